"""Target: the client's machine, with a broker that says anything at any time, and callers that come and go.

Each row ends once, unless it was withdrawn, and none is left when the client ends.
"""

# A target looks inside what it tests.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from genpool.client.machine import Client, Ended, RunEnded
from genpool.client.row import Row, RowSpec
from genpool.client.run import Run
from genpool.protocol.errors import DecodeError, UnknownLLM
from genpool.protocol.frames import Payload
from genpool.protocol.limits import ROW_ID_BYTES
from genpool.protocol.messages import (
    Answer,
    Await,
    Busy,
    Dismissed,
    Fleet,
    Goodbye,
    Hello,
    Message,
    Missing,
    Ping,
    Refuse,
    Release,
    Reset,
    Status,
    Submit,
    Welcome,
)
from genpool.protocol.session import Close, Open, Send, SessionSettings, SessionState

from .choices import Choices
from .garbage import LLMS, MAKERS, Vocabulary, passed_on, received

_KINDS = (Answer, Answer, Answer, Fleet, Fleet, Missing, Status, Ping, Welcome, Reset, Goodbye, Refuse, Busy, Dismissed)
_MOST_STEPS = 200
_MOST_ROWS = 40


class _Owner:
    """Whose rows they are; it is told by the target itself."""

    ends_at_once = 1
    runs_user_code = True

    def ended(self, rows: list[Row]) -> None:
        raise AssertionError("effects are read instead")

    def run_ended(self, run: Run, first: int, payloads: Sequence[Payload]) -> None:
        raise AssertionError("effects are read instead")


class _Caller:
    """A client's machine and who uses it, as far as the bytes go."""

    def __init__(self, choices: Choices) -> None:
        self._choices = choices
        self._words = Vocabulary(ids=[])
        self._now = 1000.0
        identity = Hello(role="client", instance=b"1", host="host", pid=1)
        random = lambda: choices.below(8) / 8  # noqa: E731
        self._client = Client("broker", identity, SessionSettings(silence_s=2.0), random, self._now)
        self._is_connected = False
        self._owners = (_Owner(), _Owner())
        self._rows: list[Row] = []
        self._runs: list[Run] = []
        self._withdrawn: set[bytes] = set()
        self._ended: set[bytes] = set()

    def run(self) -> None:
        for _ in range(_MOST_STEPS):
            if self._choices.are_over:
                break
            self._step()
            self._look()
        self._client.end("done")
        self._perform(self._client.flush(self._now))
        assert all(row.over for row in self._all_rows())
        assert not self._client.submitted
        assert not self._client.runs
        for row_id in [row.id for row in self._rows] + [row_id for run in self._runs for row_id in run.ids]:
            assert (row_id in self._ended) != (row_id in self._withdrawn), "a row has no end"

    def _all_rows(self) -> list[Row]:
        return [*self._rows, *(row for run in self._runs for row in run.rows or ())]

    def _step(self) -> None:
        match self._choices.below(16):
            case 0 | 1 | 2:
                self._now += self._choices.one_of((0.05, 0.0, 0.5, 1.5, 3.0, 50.0, 1e5))
                self._perform(self._client.tick(self._now))
            case 3:
                self._perform(self._client.flush(self._now))
            case 4 | 5:
                self._submit()
            case 6:
                self._withdraw()
            case 7:
                self._client.ask(self._now)
            case 8:
                self._disturb()
            case 9 | 10:
                self._welcome()
            case _:
                self._hear()

    def _disturb(self) -> None:
        match self._choices.below(4):
            case 0:
                self._client.broken("the connection broke", self._now)
            case 1:
                self._client.fail(self._choices.one_of(LLMS), UnknownLLM("nobody knows it"))
            case 2:
                self._client.malformed("garbage", self._now)
            case _:
                self._client.give_up("enough", self._now)

    def _welcome(self) -> None:
        """A broker that is in order, and its LLMs."""
        words = self._words
        self._receive(MAKERS[Welcome](self._choices, words))
        self._receive(MAKERS[Fleet](self._choices, words))

    def _withdraw(self) -> None:
        if self._runs and self._choices.below(3) == 0:
            run = self._choices.one_of(self._runs)
            if run.rows is None:
                left = [row_id for row_id, has_ended in zip(run.ids, run._has_ended, strict=True) if not has_ended]
            else:
                left = [row.id for row in run.rows if not row.over]
            self._withdrawn.update(left)
            self._client.withdraw(run, self._now)
            return
        known = self._all_rows()
        rows = [row for row in self._choices.some_of(known, 3) if not row.over] if known else []
        self._withdrawn.update(row.id for row in rows)
        self._client.withdraw(rows, self._now)

    def _submit(self) -> None:
        room = _MOST_ROWS - len(self._rows) - sum(map(len, self._runs))
        choices = self._choices
        deadline = self._now + choices.seconds() if choices.below(4) == 3 else None
        spec = RowSpec(
            choices.one_of(LLMS),
            "input",
            1 + choices.below(3),
            b"",
            deadline,
            choices.seconds(),
            choices.one_of((None, 0.0, 5.0)),
            choices.one_of((frozenset[str](), frozenset({"seed"}))),
        )
        owner = choices.one_of(self._owners)
        if room > 0 and choices.below(3) == 0:
            run = Run(spec, owner, 0, [b"x" * choices.one_of((3, 0, 150))] * min(room, 2 + choices.below(6)))
            self._runs.append(run)
            self._words.ids += run.ids
            self._client.submit(run, self._now)
            return
        rows: list[Row] = []
        for _ in range(min(room, 1 + choices.below(6))):
            row_id = len(self._rows).to_bytes(ROW_ID_BYTES, "big")
            rows.append(Row(row_id, spec, b"x" * choices.one_of((3, 0, 150, 700)), owner, 0, 0))
            self._rows.append(rows[-1])
            self._words.ids.append(row_id)
        self._client.submit(rows, self._now)

    def _hear(self) -> None:
        if not self._words.ids:
            self._words.ids.append(bytes(ROW_ID_BYTES))
        kinds: tuple[type[Any], ...] = tuple(MAKERS) if self._choices.rarely() else _KINDS
        try:
            message = received(self._choices, self._words, kinds)
        except DecodeError as error:
            self._client.malformed(str(error), self._now)
        else:
            self._receive(message)

    def _receive(self, message: Message) -> None:
        if self._is_connected:
            self._client.received(message, self._now)

    def _perform(self, effects: list[object]) -> None:
        for effect in effects:
            match effect:
                case Open():
                    self._is_connected = True
                case Close():
                    self._is_connected = False
                case Send():
                    assert self._is_connected, "something is sent to nobody"
                    self._look_at_sent(passed_on(effect.message, self._client.limits.max_frame_bytes))
                case Ended():
                    for row in effect.rows:
                        assert row.over
                        assert row.id not in self._ended, "a row ends twice"
                        assert row.id not in self._withdrawn, "a row ends that was withdrawn"
                        self._ended.add(row.id)
                case RunEnded():
                    for row in effect.run.ended(effect.first, effect.payloads):
                        assert row.id not in self._ended, "a row of a run ends twice"
                        assert row.id not in self._withdrawn, "a row of a run ends that was withdrawn"
                        self._ended.add(row.id)
                case _:
                    pass

    def _look_at_sent(self, message: Message) -> None:
        most = self._client.limits.max_rows
        if isinstance(message, Submit):
            assert sum(len(run.ids) for run in message.runs) <= most, "a message has too many rows"
        elif isinstance(message, (Release, Await)):
            assert len(message.ids) <= most, "a message has too many rows"

    def _look(self) -> None:
        client = self._client
        rows = self._all_rows()
        assert {row.id for row in rows if row.submitted and not row.over} == set(client.submitted)
        assert not (client.state is SessionState.OPEN and client.lost_at is not None)
        for line in client.lines.values():
            here = [len(row.payload) for row in client.submitted.values() if row.spec.llm == line.llm]
            for run in client.runs.values():
                if run.spec.llm == line.llm:
                    here += run.left * [len(run.payloads[0])]  # they are alike
            assert line.at_broker == len(here)
            assert line.bytes_at_broker == sum(here)
            assert line.at_home == sum(len(one) if isinstance(one, Run) else not one.over for one in line.waiting)
        whole = [run for run in self._runs if run.rows is None and not run.over]
        alive = sum(not row.over for row in rows) + sum(run.left for run in whole)
        assert sum(line.at_home for line in client.lines.values()) + client._held() == alive, "a row is nowhere"
        count = len(self._rows) + sum(map(len, self._runs))
        assert len(client._releases.ids) <= count
        assert len(client._deadlines) == len(client._timed) <= count


def check(data: bytes) -> None:
    _Caller(Choices(data)).run()
