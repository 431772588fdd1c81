"""The client as a state machine: the rows that wait at home, the window of rows at the broker, and how each ends.

It writes the ledger of rows: a Submit adds to ``submitted`` and ``runs``, a Release (or a row's end) removes. It keeps
every row until it is over, so the broker may be killed at any time. No I/O, no clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from math import inf

from ..protocol.errors import Closed, Expired, GenpoolError, LLMLost, NoBroker, Refused, RowError, UnknownLLM
from ..protocol.frames import Payload
from ..protocol.messages import (
    Answer,
    Ask,
    Await,
    Busy,
    Dismiss,
    Dismissed,
    Fleet,
    Hello,
    LLMInfo,
    Message,
    Missing,
    Ping,
    Release,
    Status,
    Submit,
    SubmitRun,
)
from ..protocol.printable import plural, printable
from ..protocol.session import OPEN, REFUSED, Log, Send, Session, SessionSettings
from .line import LONGEST_NOTICE_S, Line
from .option import has_told, unknown_options
from .releases import Releases
from .row import Ending, Row, RowSpec
from .run import Run

# How much one LLM's rows at the broker may be: enough to keep its workers busy over a round trip, and no more.
_LEAST_WINDOW_ROWS = 256
_WINDOW_PER_CAPACITY = 4
_WINDOW_BYTES = 32 * 1024 * 1024

# Time between two ticks beyond this was none for this process (it was stopped, or the host asleep), and so it could
# not see who came and went. More than a busy host takes, and less than any sensible ``lost_after_s``.
_LONGEST_STEP_S = 2.0


@dataclass(frozen=True, slots=True)
class Ended:
    """Effect: these rows are over, and say how; tell their owners."""

    rows: list[Row]


@dataclass(slots=True)
class RunEnded:
    """Effect: the rows of ``run`` from ``first`` on are over, with ``payloads``; tell their owner."""

    run: Run
    first: int
    payloads: Sequence[Payload]


@dataclass(frozen=True, slots=True)
class FleetSeen:
    """Effect: what the broker says of its LLMs."""

    llms: dict[str, LLMInfo]


@dataclass(frozen=True, slots=True)
class Reported:
    """Effect: the answer to ``ask``."""

    report: dict[str, object]


@dataclass(frozen=True, slots=True)
class HasDismissed:
    """Effect: the answer to ``dismiss``."""

    answer: Dismissed


@dataclass(frozen=True, slots=True)
class TurnedAway:
    """Effect: the broker has refused this client."""


class Client(Session):
    """The machine. ``fleet`` is None until the broker has told of its LLMs."""

    def __init__(
        self, address: str, identity: Hello, settings: SessionSettings, random: Callable[[], float], now: float
    ) -> None:
        super().__init__(address, settings, random, now)
        self.identity = identity
        self.submitted: dict[bytes, Row] = {}
        self.runs: dict[bytes, Run] = {}  # at the broker, by key
        self._in_runs = 0  # how many rows those have that are not over
        self.lines: dict[str, Line] = {}
        self.fleet: dict[str, LLMInfo] | None = None
        self._begun = self._ticked = now
        # LLMs of which it was logged that nobody serves them, and since when.
        self._missed: dict[str, float] = {}
        self._ended: list[Row] = []
        self._ended_runs: list[RunEnded] = []
        self._releases = Releases()
        # An entry for each spec that has a deadline and not for each row, which is forgotten when it is over.
        self._deadlines: list[tuple[float, int, RowSpec]] = []
        self._timed: set[RowSpec] = set()
        self._order = count()
        self._asked = False
        self._to_dismiss: Dismiss | None = None
        self._busy_until = now  # the broker has no room for rows before

    # What goes in, beside what Session takes.

    def submit(self, rows: Iterable[Row] | Run, now: float) -> None:
        """Take rows in; they go to the broker as the window of their LLM allows."""
        if isinstance(rows, Run):
            if not rows.over:
                self._line_for(rows.spec).take_run(rows, now)
            return
        line: Line | None = None
        spec: RowSpec | None = None
        for row in rows:
            if row.over:
                continue  # withdrawn before it came here
            if line is None or row.spec is not spec:
                spec = row.spec
                line = self._line_for(spec)
            line.take(row, now)

    def _line_for(self, spec: RowSpec) -> Line:
        """The line for rows of ``spec``, whose deadline is kept from now on."""
        line = self.lines.get(spec.llm)
        if line is None:
            line = self.lines[spec.llm] = Line(spec.llm)
        if spec.deadline is not None and spec not in self._timed:
            self._timed.add(spec)
            heapq.heappush(self._deadlines, (spec.deadline, next(self._order), spec))
        return line

    def withdraw(self, rows: Iterable[Row] | Run, now: float) -> None:
        """Nobody wants these rows any more; what waits is taken back and what runs is stopped."""
        if isinstance(rows, Run):
            if rows.key in self.runs:
                self._split(rows)
            elif rows.rows is None and rows.spec.llm in self.lines:  # it may wait
                self.lines[rows.spec.llm].split_runs()
            rows.over, rows = True, rows.rows or ()
        for row in rows:
            self._remove(row)

    def fail(self, llm: str, error: GenpoolError) -> None:
        """End all rows of one LLM with ``error``."""
        for row in self._rows_of(llm):
            self._end(row, error)

    def end(self, reason: str | None = "") -> None:
        """Say goodbye and stay away. Rows that nobody can answer any more end as Closed."""
        for llm in self.lines:
            self.fail(
                llm, Closed(f"the connection to the broker at {self.address} was closed before this row was finished")
            )
        super().end(reason)

    def ask(self, now: float) -> None:
        """Have the broker report; Reported follows when there is one."""
        self._asked = True
        if self.state is OPEN:
            self._flush_releases()  # or its report would count them
            self._effect(Send(Ask()))

    def dismiss(self, message: Dismiss, now: float) -> None:
        """Have the broker send others away; HasDismissed follows when it has said whom."""
        self._to_dismiss = message
        if self.state is OPEN:
            self._effect(Send(message))

    # What Session asks for.

    def _hello(self) -> Hello:
        return self.identity

    def _held(self) -> int:
        return len(self.submitted) + self._in_runs

    def _opened(self, now: float) -> None:
        self._busy_until = now
        self._split_runs()
        # Another broker may take fewer rows than the last one.
        self._take_home(list(self.submitted)[self.limits.max_client_rows :])
        self._releases.take()  # what is not awaited is released
        ids = list(self.submitted)
        most = self.limits.max_rows
        for at in range(0, max(1, len(ids)), most):
            self._effect(Send(Await(ids[at : at + most], at + most < len(ids))))
        if self._asked:
            self._effect(Send(Ask()))
        if self._to_dismiss is not None:
            self._effect(Send(self._to_dismiss))

    def _broken(self, now: float) -> None:
        self.fleet = None
        for line in self.lines.values():
            line.unknown_since = None

    def _refused(self, reason: str, now: float) -> None:
        super()._refused(reason, now)
        if self.state is REFUSED:
            self._effect(TurnedAway())

    def _on_message(self, message: Message, now: float) -> None:
        match message:
            case Answer():
                self._answered(message, now)
            case Fleet():
                self.fleet = {info.name: info for info in message.llms}
                self._effect(FleetSeen(self.fleet))
                self._tell_returns(self.fleet, now)
            case Missing():
                self._split_runs()
                rows = [row for row_id in message.ids if (row := self.submitted.get(row_id)) is not None]
                self._send_rows(rows, again=True, now=now)
            case Busy():
                # Not to the same instant as all others that were turned away.
                self._busy_until = max(self._busy_until, now + message.seconds * (1 + self._random() / 2))
                self._split_runs()
                self._take_home(message.ids)
            case Status():
                self._asked = False
                self._effect(Reported(dict(message.report)))
            case Dismissed():
                self._to_dismiss = None
                self._effect(HasDismissed(message))
            case Ping():
                pass
            case _:
                self._effect(Log("warning", f"the broker sent a {type(message).__name__}, which is not for a client"))

    def _answered(self, message: Answer, now: float) -> None:
        ids, payloads = message.ids, message.payloads
        line: Line | None = None
        released: list[bytes] = []
        size = at = 0
        while at < len(ids):
            row_id = ids[at]
            if self.runs and (run := self.runs.get(Run.key_of(row_id))) is not None:
                first, count = run.answered(ids, message.outcomes, at)
                if count:
                    self._run_answered(run, first, payloads[at : at + count], now)
                    at += count
                    continue
                self._split(run)
            row = self.submitted.get(row_id)
            if row is not None:  # else it was answered before, or cancelled meanwhile
                if line is None or row.spec.llm != line.llm:
                    line = self.lines[row.spec.llm]
                    line.unquiet(now)
                self._recall(row, line)
                row.ending = Ending(message.outcomes[at], message.attempts[at], payloads[at])
                self._ended.append(row)
                released.append(row_id)
                size += len(row.payload)
            at += 1
        if released:
            self._releases.answered(released, size, payloads)

    def _run_answered(self, run: Run, first: int, payloads: Sequence[Payload], now: float) -> None:
        count = len(payloads)
        line = self.lines[run.spec.llm]
        line.unquiet(now)
        size = run.end(first, count)
        line.at_broker -= count
        line.bytes_at_broker -= size
        self._in_runs -= count
        self._releases.answered(run.ids[first : first + count], size, payloads)
        self._ended_runs.append(RunEnded(run, first, payloads))
        if not run.left:
            del self.runs[run.key]

    def _split(self, run: Run) -> None:
        """Keep each row of a run at the broker by itself."""
        del self.runs[run.key]
        self._in_runs -= run.left
        for row in run.split():
            row.submitted = True
            self.submitted[row.id] = row

    def _split_runs(self, llm: str | None = None) -> None:
        """Keep each row at the broker by itself, of one LLM or all."""
        for run in [run for run in self.runs.values() if llm is None or run.spec.llm == llm]:
            self._split(run)

    # What comes out.

    def flush(self, now: float) -> list[object]:
        self._tell_endings()  # before all that is sent: somebody may wait for them
        if self.state is OPEN:
            if self._releases.are_due or (self._releases.ids and self._is_crowded()):
                self._flush_releases()
            for line in self.lines.values() if now >= self._busy_until else ():
                if line.waiting and self.fleet is not None and line.llm in self.fleet:
                    self._fill_window(line, self.fleet[line.llm], now)
            self._tell_endings()  # of rows that cannot be sent
        return super().flush(now)

    def tick(self, now: float) -> list[object]:
        self._note_time(now)
        self._releases.hasten()  # before a Ping counts the rows
        while self._deadlines and now >= self._deadlines[0][0]:
            _, _, spec = heapq.heappop(self._deadlines)
            self._timed.discard(spec)
            for row in [row for row in self._rows_of(spec.llm) if row.spec == spec]:
                self._end(row, Expired(f"no answer from {spec.llm!r} within {now - row.since:.1f} s"))
        for line in list(self.lines.values()):
            if line.at_home or line.at_broker:
                self._watch(line, now)
            else:
                del self.lines[line.llm]
        return super().tick(now)

    # Within.

    def _tell_endings(self) -> None:
        if self._ended:
            ended, self._ended = self._ended, []
            self._effect(Ended(ended))
        if self._ended_runs:
            for effect in self._ended_runs:
                self._effect(effect)
            self._ended_runs.clear()

    def _watch(self, line: Line, now: float) -> None:
        """End what was waited for long enough, and say what a quiet line waits for."""
        if self.state is REFUSED:
            self.fail(line.llm, Refused(f"the broker at {self.address} refused this client: {self.trouble}"))
        elif not self.ever_open:
            self._give_up(line, self._begun, now, self._no_broker)
        elif self.fleet is not None:
            line.note_service(self.fleet.get(line.llm), now)
            if line.unknown_since is not None:
                self._give_up(line, line.unknown_since, now, self._unknown)
            self._lose(line, now)
        if now - line.quiet_since >= line.next_notice_s:
            line.next_notice_s = min(line.next_notice_s * 2, line.next_notice_s + LONGEST_NOTICE_S)
            self._effect(Log("warning", self._notice(line, now), {"llm": line.llm}))
            if line.unserved_since is not None:
                self._missed.setdefault(line.llm, line.unserved_since)

    def _note_time(self, now: float) -> None:
        """Time in which nobody told of the LLMs, or this process stood still, makes no LLM lost."""
        step, self._ticked = now - self._ticked, now
        untold = step if self.fleet is None else step - _LONGEST_STEP_S
        if untold > 0:
            for line in self.lines.values():
                line.note_untold(untold)

    def _lose(self, line: Line, now: float) -> None:
        """End the rows that wait no longer for an LLM that nobody serves."""
        since = line.unserved_since
        if since is None or now < line.next_loss_at:
            return
        if all(one.spec.lost_after_s is None for one in self._held_for(line)):
            line.next_loss_at = inf
            return
        error = LLMLost(f"nobody has served {line.llm!r} for {now - since:.0f} s: {self._lack(line.llm)}")
        for row in line.lost_rows(self._rows_of(line.llm), since, now):
            self._missed.setdefault(line.llm, since)
            self._end(row, error)

    def _tell_returns(self, fleet: dict[str, LLMInfo], now: float) -> None:
        for name in [name for name in self._missed if name in fleet and fleet[name].ready]:
            text = f"{name!r} is served again, after {now - self._missed.pop(name):.0f} s"
            self._effect(Log("warning", text, {"llm": name}))

    def _give_up(self, line: Line, since: float, now: float, error: Callable[[Row, float], GenpoolError]) -> None:
        def is_due(one: Row | Run) -> bool:
            return not one.over and now - max(since, one.since) >= one.spec.wait_s

        if any(map(is_due, line.waiting)):
            for row in [row for row in line.split_runs() if is_due(row)]:
                self._end(row, error(row, now))

    def _held_for(self, line: Line) -> Iterator[Row | Run]:
        at_broker = chain(self.submitted.values(), self.runs.values())
        return chain((one for one in at_broker if one.spec.llm == line.llm), line.waiting)

    def rows(self) -> list[Row]:
        """Every row, each by itself from now on, some of them over."""
        return [row for llm in self.lines for row in self._rows_of(llm)]

    def _rows_of(self, llm: str) -> list[Row]:
        """Every row of one LLM, each by itself from now on, some of them over."""
        self._split_runs(llm)
        waiting = self.lines[llm].split_runs() if llm in self.lines else ()
        return [*(row for row in self.submitted.values() if row.spec.llm == llm), *waiting]

    def _no_broker(self, row: Row, now: float) -> GenpoolError:
        return NoBroker(f"no broker at {self.address} for {now - row.since:.1f} s: {self.trouble}")

    def _unknown(self, row: Row, now: float) -> GenpoolError:
        return UnknownLLM(f"{self.unknown_llm(row.spec.llm)}; it was waited for {now - row.since:.1f} s")

    def unknown_llm(self, name: str) -> str:
        """A sentence that says that nobody serves ``name``, and which names are served."""
        known = ", ".join(sorted(self.fleet or ())) or "none"
        return f"no worker has announced an LLM named {name!r} at {self.address}; known there: {printable(known)}"

    def _notice(self, line: Line, now: float) -> str:
        rows = plural(line.at_home + line.at_broker, "row")
        waits = f"{rows} for {line.llm!r} had no answer for {now - line.quiet_since:.0f} s: "
        if self.state is not OPEN:
            return f"{waits}there is no broker at {self.address} ({self.trouble})"
        if now < self._busy_until:
            return f"{waits}the broker at {self.address} is full and takes no more rows for now"
        info = (self.fleet or {}).get(line.llm)
        if info is not None and info.ready:
            return f"{waits}it is served by {plural(info.ready, 'worker')}, at work"
        return waits + self._lack(line.llm)

    def _lack(self, llm: str) -> str:
        """Why nobody serves ``llm``."""
        info = (self.fleet or {}).get(llm)
        if info is None:
            return self.unknown_llm(llm)
        loading = f"{info.loading} are loading" if info.loading else "none is loading"
        unwell = f", {info.unwell} unwell: {printable(info.reason)}" if info.unwell else ""
        return f"no worker is ready ({loading}{unwell})"

    def _fill_window(self, line: Line, info: LLMInfo, now: float) -> None:
        limits, lines = self.limits, len(self.lines)
        # Each line has its share of what the broker takes from this client, so that none waits for the others.
        window = max(_LEAST_WINDOW_ROWS, _WINDOW_PER_CAPACITY * info.capacity)
        window = min(window, max(1, limits.max_client_rows // lines))
        window_bytes = min(_WINDOW_BYTES, limits.max_client_bytes // lines)
        while (
            line.waiting
            and line.at_broker < window
            and (line.bytes_at_broker < window_bytes or not line.at_broker)
            and (has_told(info) or not line.waiting[0].spec.required)
        ):
            first = line.waiting[0]
            if not isinstance(first, Run):
                is_next_a_run = self._send_waiting(line, info, window, window_bytes, now)
                if not is_next_a_run:
                    return
            elif not self._fits_whole(first, info) or window - len(first) < info.capacity:
                line.split_runs()  # or the LLM would idle before there is room for all of it
            elif line.at_broker + len(first) > window:
                return
            else:
                line.pop_run()
                self.runs[first.key] = first
                self._in_runs += len(first)
                self._send_run(first, now)

    def _fits_whole(self, run: Run, info: LLMInfo) -> bool:
        """Whether all rows of a run may be sent now."""
        required = run.spec.required
        return (
            (not required or unknown_options(info, required) is None)
            and run.longest <= self._longest_row
            and len(run) <= self._room
            and run.size <= self._room_bytes
        )

    def _send_run(self, run: Run, now: float) -> None:
        for part in self.limits.cut([len(payload) for payload in run.payloads]):
            said = _submit_run(run.spec, run.ids[part], run.payloads[part], again=False, now=now)
            self._effect(Send(Submit([said])))

    @property
    def _room(self) -> int:
        """How many rows more the broker takes from this client."""
        return self.limits.max_client_rows - self._held() - len(self._releases.ids)

    @property
    def _room_bytes(self) -> int:
        """How many bytes more of rows the broker takes from this client."""
        at_broker = sum([line.bytes_at_broker for line in self.lines.values()])
        return self.limits.max_client_bytes - at_broker - self._releases.size

    def _is_crowded(self) -> bool:
        """Whether rows that are over take room at the broker that others may need."""
        at_home = sum([line.at_home for line in self.lines.values()])
        return 2 * at_home > self._room or 2 * self._room_bytes < self.limits.max_client_bytes

    def _send_waiting(self, line: Line, info: LLMInfo, window: int, window_bytes: int, now: float) -> bool:
        """Send rows that wait, as many as may be at the broker. Whether there would be more, and a run is next."""
        waiting, submitted, most = line.waiting, self.submitted, self._longest_row
        room = min(window - line.at_broker, self._room)
        rows: list[Row] = []
        size = line.bytes_at_broker
        most_size = size + self._room_bytes
        is_next_a_run = False
        while waiting and len(rows) < room and (size < window_bytes or not line.at_broker + len(rows)):
            row = waiting[0]
            if isinstance(row, Run):
                is_next_a_run = True
                break
            if row.spec.required and not has_told(info):
                break
            row_size = len(row.payload)
            if size + row_size > most_size and row_size <= most and not row.over:
                break
            waiting.popleft()
            if row.over:
                line.dead -= 1
                continue
            if row_size > most or row.spec.required:
                fault = self._fault(row, info)
                if fault is not None:
                    row.over, row.ending = True, fault
                    self._ended.append(row)
                    continue
            row.submitted = True
            submitted[row.id] = row
            rows.append(row)
            size += row_size
        line.at_broker += len(rows)
        line.bytes_at_broker = size
        self._send_rows(rows, again=False, now=now)
        return is_next_a_run

    @property
    def _longest_row(self) -> int:
        return min(self.limits.max_row_bytes, self.limits.max_client_bytes)

    def _fault(self, row: Row, info: LLMInfo) -> GenpoolError | None:
        """Why the row cannot be sent, if it cannot."""
        size, most = len(row.payload), self._longest_row
        if size > most:
            return RowError(f"the row has {size} bytes and this broker takes rows of up to {most}")
        return unknown_options(info, row.spec.required) if row.spec.required else None

    def _send_rows(self, rows: list[Row], *, again: bool, now: float) -> None:
        """Submit rows in runs of equal spec, in messages of bounded size."""
        if not rows:
            return
        spec = rows[0].spec
        runs: list[SubmitRun] = []
        ids: list[bytes] = []
        payloads: list[Payload] = []
        size = rows_in_message = 0
        most_bytes, most_rows = self.limits.target_message_bytes, self.limits.max_rows
        for row in rows:
            row_size = len(row.payload)
            if runs and (size + row_size > most_bytes or rows_in_message >= most_rows):
                self._effect(Send(Submit(runs)))
                runs, size, rows_in_message = [], 0, 0
            # What was at a broker before may be at a worker, which a broker that has just begun hears of.
            is_again = again or row.returned
            if not runs or row.spec is not spec or is_again is not runs[-1].again:
                spec = row.spec
                ids, payloads = [], []
                runs.append(_submit_run(spec, ids, payloads, again=is_again, now=now))
                size += len(spec.options)
            ids.append(row.id)
            payloads.append(row.payload)
            size += row_size
            rows_in_message += 1
        if runs:
            self._effect(Send(Submit(runs)))

    def _end(self, row: Row, ending: Ending | GenpoolError) -> None:
        if not row.over:
            self._remove(row)
            row.ending = ending
            self._ended.append(row)

    def _remove(self, row: Row) -> None:
        """Take a row out of wherever it is, and have the broker forget it."""
        if row.over:
            return
        if row.submitted:
            self._recall(row, self.lines[row.spec.llm])
            self._releases.unwanted(row.id, len(row.payload))
            return
        row.over = True
        if row.taken:
            self.lines[row.spec.llm].bury()

    def _recall(self, row: Row, line: Line) -> None:
        """Take a row of ``line`` back from the broker: it is over."""
        row.over = True
        del self.submitted[row.id]
        line.at_broker -= 1
        line.bytes_at_broker -= len(row.payload)

    def _take_home(self, row_ids: Iterable[bytes]) -> None:
        """Take rows back that the broker is not to have yet; those of one line come in their order."""
        for row in reversed([row for row_id in row_ids if (row := self.submitted.pop(row_id, None)) is not None]):
            self.lines[row.spec.llm].put_back(row)
            self._releases.unwanted(row.id, 0)  # it was given no room

    def _flush_releases(self) -> None:
        ids, most = self._releases.take(), self.limits.max_rows
        for at in range(0, len(ids), most):
            self._effect(Send(Release(ids[at : at + most])))


def _submit_run(spec: RowSpec, ids: list[bytes], payloads: Sequence[Payload], *, again: bool, now: float) -> SubmitRun:
    left = None if spec.deadline is None else max(0.0, spec.deadline - now)
    what = (spec.llm, spec.kind, spec.num_generations, spec.options)
    return SubmitRun(*what, left, again, ids, payloads, spec.hedge, spec.trace)
