from __future__ import annotations

import random
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from voices import info

from genpool.client.machine import Client, Ended, FleetSeen, HasDismissed, Reported, TurnedAway
from genpool.client.row import Ending, Row, RowSpec
from genpool.client.run import Run
from genpool.protocol.codec import decode, encode
from genpool.protocol.errors import (
    Closed,
    ConfigurationError,
    Expired,
    GenpoolError,
    LLMLost,
    NoBroker,
    Refused,
    RowError,
    UnknownLLM,
)
from genpool.protocol.frames import Payload
from genpool.protocol.limits import Limits
from genpool.protocol.messages import (
    Answer,
    Ask,
    Await,
    Busy,
    Dismiss,
    Dismissed,
    Fleet,
    Goodbye,
    Hello,
    LLMInfo,
    Message,
    Missing,
    Outcome,
    PeerInfo,
    Ping,
    Refuse,
    Release,
    Reset,
    Role,
    Settle,
    Status,
    Submit,
    Welcome,
)
from genpool.protocol.session import Close, Log, Open, Send, SessionSettings, SessionState

LEAST_WINDOW = 256
FRAME_BYTES = 1 << 20


class Owner:
    """Whom a row belongs to; the machine never calls it."""

    ends_at_once = 1
    runs_user_code = True

    def ended(self, rows: list[Row]) -> None:
        raise AssertionError("the shell tells owners")

    def run_ended(self, run: Run, first: int, payloads: Sequence[Payload]) -> None:
        raise AssertionError("the shell tells owners")


class Driven:
    """A client machine, the effects that came out of it, and the broker's ledger as those would make it."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.now = 100.0
        self.limits = limits or Limits()
        identity = Hello(role="client", instance=b"i" * 16)
        self.client = Client("tcp://broker:5555", identity, SessionSettings(), lambda: 1.0, self.now)
        self.sent: list[Message] = []
        self.log: list[str] = []
        self.others: list[object] = []
        self.ended: dict[bytes, Ending | GenpoolError] = {}
        self.ledger: set[bytes] = set()
        self._sizes: dict[bytes, int] = {}
        self._awaited: set[bytes] = set()
        self._number = 0
        self.owner = Owner()

    def perform(self, effects: Iterable[object]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    self.sent.append(effect.message)
                    self._count(effect.message)
                case Ended():
                    for row in effect.rows:
                        assert row.payload not in self.ended, "a row has ended twice"
                        assert row.ending is not None
                        self.ended[row.payload] = row.ending
                case Log():
                    self.log.append(effect.text)
                case _:
                    self.others.append(effect)

    def _count(self, message: Message) -> None:
        match message:
            case Submit():
                for run in message.runs:
                    self._sizes.update(zip(run.ids, map(len, run.payloads), strict=True))
                    self.ledger.update(run.ids)
                assert len(self.ledger) <= self.limits.max_client_rows
                assert sum(self._sizes[row_id] for row_id in self.ledger) <= self.limits.max_client_bytes
            case Release():
                assert self.ledger.issuperset(message.ids)
                self.ledger.difference_update(message.ids)
            case Await():
                self._awaited.update(message.ids)
                if not message.more:
                    self.ledger, self._awaited = self._awaited, set()
            case Ping():
                assert message.held == len(self.ledger)
            case _:
                pass

    def flush(self) -> None:
        self.perform(self.client.flush(self.now))

    def receive(self, *messages: Message) -> None:
        for message in messages:
            self.client.received(message, self.now)
        self.flush()

    def tick(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.perform(self.client.tick(self.now))

    def pass_time(self, seconds: float, step_s: float = 0.1) -> None:
        for _ in range(round(seconds / step_s)):
            self.tick(step_s)

    def open(self, *llms: LLMInfo) -> None:
        self.tick(2.0)
        self.receive(Welcome(b"e" * 16, 0.5, self.limits), Fleet(list(llms)))
        self.log.clear()

    def keep_alive(self, seconds: float) -> None:
        """Time passes, and the broker says nothing but that it is there."""
        for _ in range(round(seconds)):
            self.receive(Ping(None))
            self.pass_time(1.0)

    def row(self, payload: bytes, spec: RowSpec) -> Row:
        self._number += 1
        return Row(self._number.to_bytes(16, "big"), spec, payload, self.owner, 0, 0)

    def submit(self, *payloads: bytes, llm: str = "a", spec: RowSpec | None = None, **said: Any) -> list[Row]:
        rows = [self.row(payload, spec or spec_of(llm, **said)) for payload in payloads]
        self.client.submit(rows, self.now)
        self.flush()
        return rows

    def withdraw(self, *rows: Row) -> None:
        self.client.withdraw(rows, self.now)
        self.flush()

    def answer(self, *rows: Row, outcome: int = Outcome.DONE) -> None:
        ids = [row.id for row in rows]
        self.receive(Answer(ids, [outcome] * len(ids), [1] * len(ids), [b"answer"] * len(ids)))

    @property
    def payloads(self) -> list[bytes]:
        return [payload for one in self.of(Submit) for run in one.runs for payload in run.payloads]

    def of(self, kind: type[Any]) -> list[Any]:
        return [message for message in self.sent if isinstance(message, kind)]

    def kinds_ended(self) -> dict[bytes, type]:
        return {payload: type(ending) for payload, ending in self.ended.items()}


_specs: dict[Any, RowSpec] = {}


def spec_of(
    llm: str = "a",
    *,
    deadline: float | None = None,
    wait_s: float = 60.0,
    n: int = 1,
    lost_after_s: float | None = None,
    required: frozenset[str] = frozenset(),
) -> RowSpec:
    """One object for equal specs, as a call has it."""
    spec = RowSpec(llm, "input", n, b"", deadline, wait_s, lost_after_s, required)
    return _specs.setdefault(spec, spec)


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(start, start + count)]


@pytest.fixture
def driven() -> Driven:
    """A client whose broker has one LLM, ``a``."""
    driven = Driven()
    driven.open(info("a"))
    return driven


# What goes to the broker, and when.


def test_rows_wait_at_home_until_the_broker_knows_their_llm() -> None:
    driven = Driven()
    driven.submit(b"row")
    driven.tick(2.0)
    assert driven.others == [Open()]
    driven.receive(Welcome(b"e" * 16, 0.5, Limits()))
    assert driven.payloads == []
    driven.receive(Fleet([info("b")]))
    assert driven.payloads == []
    driven.receive(Fleet([info("a"), info("b")]))
    assert driven.payloads == [b"row"]


def test_rows_with_options_wait_at_home_until_their_llm_has_told_which_it_knows() -> None:
    driven = Driven()
    driven.open(info("a", model_names=[""], ready=0, loading=1))
    driven.submit(b"hot", spec=spec_of(required=frozenset({"heat"})))
    driven.submit(b"plain")
    assert driven.payloads == []
    driven.receive(Fleet([info("a", options=["heat"])]))
    assert driven.payloads == [b"hot", b"plain"]


def test_a_row_with_an_option_that_its_llm_does_not_know_is_never_sent() -> None:
    driven = Driven()
    driven.open(info("a", model_names=[""], ready=0, loading=1))
    driven.submit(b"hot", b"hotter", spec=spec_of(required=frozenset({"heat", "top_p"})))
    driven.submit(b"plain")
    driven.receive(Fleet([info("a", options=["top_k", "top_p"])]))
    assert driven.payloads == [b"plain"]
    for payload in (b"hot", b"hotter"):
        error = driven.ended[payload]
        assert isinstance(error, ConfigurationError)
        assert str(error) == "'a' knows no option 'heat'; it knows top_k, top_p"


def test_a_run_with_options_goes_whole_to_an_llm_that_knows_them_and_else_never() -> None:
    for options, sent in ((["heat"], 9), (["top_p"], 0)):
        driven = Driven()
        driven.open(info("a", model_names=[""], ready=0, loading=1))
        run = Run(spec_of(required=frozenset({"heat"})), driven.owner, 0, numbered(9))
        driven.client.submit(run, driven.now)
        driven.flush()
        assert driven.payloads == []
        driven.receive(Fleet([info("a", options=options)]))
        assert len(driven.payloads) == sent
        assert len(driven.ended) == 9 - sent
        assert (run.rows is None) == bool(sent)


@pytest.mark.parametrize(("capacity", "whole"), [(1, 2), (50, 2), (200, 8)])
def test_runs_keep_to_the_window_and_are_split_where_the_llm_would_wait_for_them(capacity: int, whole: int) -> None:
    driven = Driven()
    driven.open(info("a", capacity=capacity))
    for _ in range(10):
        driven.client.submit(Run(spec_of(), driven.owner, 0, numbered(100)), driven.now)
    driven.flush()
    assert (len(driven.client.runs), len(driven.ledger)) == (whole, 100 * whole)
    long = Driven()
    long.open(info("a", capacity=capacity))
    long.client.submit(Run(spec_of(), long.owner, 0, numbered(256)), long.now)
    long.flush()
    assert (len(long.client.runs), len(long.ledger)) == (int(capacity == 200), 256)


def test_what_an_unwell_llm_told_before_still_counts() -> None:
    driven = Driven()
    driven.open(info("a", options=["heat"], ready=0, unwell=1))
    driven.submit(b"hot", spec=spec_of(required=frozenset({"heat"})))
    driven.submit(b"cold", spec=spec_of(required=frozenset({"cold"})))
    assert driven.payloads == [b"hot"]
    assert list(driven.ended) == [b"cold"]


def test_rows_go_in_the_order_in_which_they_came(driven: Driven) -> None:
    driven.submit(*numbered(1000))
    for _ in range(4):
        driven.answer(*driven.client.submitted.values())
    assert driven.payloads == numbered(1000)


def test_a_run_says_what_its_rows_share(driven: Driven) -> None:
    spec = RowSpec("a", "prompt", 3, b"options", driven.now + 5.0, 60.0, hedge=3.0, trace="trace")
    driven.submit(b"x", b"y", spec=spec)
    (submit,) = driven.of(Submit)
    (run,) = submit.runs
    assert (run.llm, run.kind, run.num_generations, run.options, run.again) == ("a", "prompt", 3, b"options", False)
    assert run.seconds_left == pytest.approx(5.0)
    assert (run.hedge, run.trace) == (3.0, "trace")
    assert run.payloads == [b"x", b"y"]


def test_rows_of_another_spec_are_another_run(driven: Driven) -> None:
    one, other = spec_of(n=1), spec_of(n=2)
    driven.client.submit([driven.row(b"x", one), driven.row(b"y", other), driven.row(b"z", other)], driven.now)
    driven.flush()
    (submit,) = driven.of(Submit)
    assert [(run.num_generations, run.payloads) for run in submit.runs] == [(1, [b"x"]), (2, [b"y", b"z"])]


# The window.


@pytest.mark.parametrize(("capacity", "window"), [(0, LEAST_WINDOW), (1, LEAST_WINDOW), (64, LEAST_WINDOW), (100, 400)])
def test_the_window_follows_the_capacity(capacity: int, window: int) -> None:
    driven = Driven()
    driven.open(info("a", capacity=capacity))
    driven.submit(*numbered(1000))
    assert len(driven.client.submitted) == window


def test_the_window_grows_with_the_fleet_and_shrinks_with_it(driven: Driven) -> None:
    rows = driven.submit(*numbered(2000))
    assert len(driven.client.submitted) == LEAST_WINDOW
    driven.receive(Fleet([info("a", capacity=200)]))
    assert len(driven.client.submitted) == 800
    driven.receive(Fleet([info("a", capacity=1)]))
    driven.answer(*rows[:500])
    assert len(driven.client.submitted) == 300
    driven.answer(*rows[500:600])
    assert len(driven.client.submitted) == LEAST_WINDOW


def test_answers_make_room(driven: Driven) -> None:
    rows = driven.submit(*numbered(300))
    driven.answer(*rows[:10])
    assert driven.payloads == numbered(LEAST_WINDOW + 10)
    assert driven.ledger == {*driven.client.submitted, *(row.id for row in rows[:10])}
    driven.tick()
    assert driven.ledger == set(driven.client.submitted)


def test_an_llm_that_is_behind_does_not_hold_up_another() -> None:
    driven = Driven()
    driven.open(info("a"), info("b"))
    driven.submit(*numbered(1000))
    driven.submit(b"for b", llm="b")
    assert driven.payloads[-1] == b"for b"


def test_the_window_is_bounded_in_bytes(driven: Driven) -> None:
    mebibyte = bytes(1024 * 1024)
    rows = driven.submit(*[mebibyte] * 50)
    assert len(driven.client.submitted) == 32
    driven.client.withdraw(rows[:2], driven.now)
    driven.flush()
    assert len(driven.client.submitted) == 32
    assert len(driven.of(Submit)) >= 32


def test_a_row_larger_than_the_window_goes_alone(driven: Driven) -> None:
    large = bytes(33 * 1024 * 1024)
    first, second = driven.submit(large, large)
    assert list(driven.client.submitted) == [first.id]
    driven.withdraw(first)
    assert list(driven.client.submitted) == [second.id]


def test_a_row_too_long_for_the_broker_fails_alone() -> None:
    driven = Driven(Limits(max_row_bytes=10))
    driven.open(info("a"))
    driven.submit(b"short", b"much too long", b"0123456789")
    assert driven.payloads == [b"short", b"0123456789"]
    error = driven.ended[b"much too long"]
    assert isinstance(error, RowError)
    assert str(error) == "the row has 13 bytes and this broker takes rows of up to 10"


def test_only_rows_that_are_too_long_leave_nothing_behind() -> None:
    driven = Driven(Limits(max_row_bytes=1))
    driven.open(info("a"))
    driven.submit(*numbered(100, start=100))
    assert len(driven.ended) == 100
    driven.tick(0.1)
    assert driven.client.lines == {}


def test_messages_are_bounded_in_rows_and_bytes() -> None:
    driven = Driven(Limits(max_rows=10, target_message_bytes=100))
    driven.open(info("a"))
    driven.submit(*[b"%02d" % number for number in range(25)])
    driven.submit(*[b"%060d" % number for number in range(4)], b"x" * 500, b"last")
    sizes = [[len(payload) for run in submit.runs for payload in run.payloads] for submit in driven.of(Submit)]
    assert [len(size) for size in sizes[:3]] == [10, 10, 5]
    assert sizes[3:] == [[60], [60], [60], [60], [500], [4]]


def test_rows_with_long_options_of_their_own_share_no_message_that_is_too_long_to_be_read(driven: Driven) -> None:
    payloads = numbered(100)
    specs = [replace(spec_of(), options=payload.ljust(60_000)) for payload in payloads]
    driven.client.submit(list(map(driven.row, payloads, specs)), driven.now)
    driven.flush()
    assert driven.payloads == payloads
    assert all(decode(encode(submit, FRAME_BYTES)) == submit for submit in driven.of(Submit))


# What a broker takes of one client, and one that has no room.


def test_no_more_rows_are_at_the_broker_than_it_takes_of_a_client() -> None:
    driven = Driven(Limits(max_client_rows=10))
    driven.open(info("a"))
    rows = driven.submit(*numbered(25))
    assert driven.payloads == numbered(10)
    driven.answer(*rows[:4])
    assert driven.payloads == numbered(14)


def test_no_more_bytes_are_at_the_broker_than_it_takes_of_a_client() -> None:
    driven = Driven(Limits(max_client_bytes=100))
    driven.open(info("a"))
    sizes = [60, 30, 20, 5, 101, 100, 1]
    rows = driven.submit(*[bytes(size) for size in sizes])
    assert [*map(len, driven.payloads)] == [60, 30]
    driven.answer(rows[0])
    assert [*map(len, driven.payloads)] == [60, 30, 20, 5]
    assert str(driven.ended[bytes(101)]) == "the row has 101 bytes and this broker takes rows of up to 100"
    driven.answer(*rows[1:4])
    assert [*map(len, driven.payloads)] == [60, 30, 20, 5, 100]


def test_each_llm_has_its_share_of_what_the_broker_takes() -> None:
    driven = Driven(Limits(max_client_rows=10, max_client_bytes=80))
    driven.open(info("a"), info("b"))
    for llm in ("a", "b"):
        driven.client.submit([driven.row(b"%s%d" % (llm.encode(), at), spec_of(llm)) for at in range(9)], driven.now)
    driven.flush()
    assert driven.payloads == [b"%s%d" % (llm, at) for llm in (b"a", b"b") for at in range(5)]


def test_rows_that_the_broker_has_no_room_for_wait_at_home_before_the_others_until_the_time_is_over() -> None:
    driven = Driven(Limits(max_client_rows=4))
    driven.open(info("a"), info("b"))
    rows = driven.submit(*numbered(6))
    driven.receive(Busy([row.id for row in rows[1:4]], 2.0))
    assert driven.of(Release)[-1].ids == [row.id for row in reversed(rows[1:4])]
    assert driven.ledger == {rows[0].id}
    driven.submit(b"for b", llm="b")
    driven.answer(rows[0])
    driven.keep_alive(2)
    assert driven.payloads == numbered(4), "it waits a little longer than it was told to"
    driven.keep_alive(2)
    assert driven.payloads == [*numbered(4), b"1", b"2", b"for b"]
    again = {payload: run.again for message in driven.of(Submit) for run in message.runs for payload in run.payloads}
    assert again == {b"0": False, b"1": True, b"2": True, b"3": False, b"for b": False}
    assert driven.ledger == set(driven.client.submitted)


def test_a_row_that_was_withdrawn_before_the_broker_said_that_it_has_no_room_is_released_once() -> None:
    driven = Driven()
    driven.open(info("a"))
    one, two = driven.submit(b"one", b"two")
    driven.withdraw(one)
    driven.receive(Busy([one.id, two.id], 0.1))
    assert [release.ids for release in driven.of(Release)] == [[one.id], [two.id]]
    driven.withdraw(two)
    driven.keep_alive(1)
    assert driven.payloads == [b"one", b"two"]
    assert driven.client.lines == {}


def test_the_next_broker_may_take_fewer_rows_and_is_asked_at_once() -> None:
    driven = Driven()
    driven.open(info("a"))
    rows = driven.submit(*numbered(10))
    driven.receive(Busy([rows[9].id], 3600.0))
    driven.client.broken("it was cut", driven.now)
    driven.limits = Limits(max_client_rows=4)
    driven.open(info("a"))
    assert [row_id for message in driven.of(Await) for row_id in message.ids] == [row.id for row in rows[:4]]
    assert driven.ledger == {row.id for row in rows[:4]}
    driven.answer(*rows[:4])
    assert driven.payloads[10:] == numbered(8)[4:]


def test_a_quiet_line_says_that_the_broker_is_full(driven: Driven) -> None:
    (row,) = driven.submit(b"row")
    driven.receive(Busy([row.id], 60.0))
    driven.keep_alive(11)
    assert driven.log == [
        "1 row for 'a' had no answer for 10 s: the broker at tcp://broker:5555 is full and takes no more rows for now"
    ]


# How rows end.


def test_an_answer_ends_its_row_once_and_the_next_tick_releases_it(driven: Driven) -> None:
    (row,) = driven.submit(b"row")
    driven.answer(row)
    assert driven.ended == {b"row": Ending(Outcome.DONE, 1, b"answer")}
    driven.submit(b"another")
    driven.answer(row)
    assert driven.of(Release) == []
    driven.tick()
    assert [release.ids for release in driven.of(Release)] == [[row.id]]
    driven.tick()
    assert len(driven.of(Release)) == 1


def test_what_takes_much_room_is_released_at_once(driven: Driven) -> None:
    *many, last = driven.submit(*numbered(64))
    driven.answer(*many)
    assert driven.of(Release) == []
    driven.answer(last)
    assert [len(release.ids) for release in driven.of(Release)] == [64]
    for name, payload in ((b"short", bytes(300_000)), (bytes(300_000), b"short")):
        (row,) = driven.submit(name)
        driven.receive(Answer([row.id], [Outcome.DONE], [1], [payload]))
        assert driven.of(Release)[-1].ids == [row.id]


@pytest.mark.parametrize("waiting", [3, 4])
def test_rows_are_released_at_once_where_others_may_need_their_room(waiting: int) -> None:
    driven = Driven(Limits(max_client_rows=8))
    driven.open(info("a"))
    driven.answer(*driven.submit(b"one"))
    driven.submit(*numbered(waiting))
    assert len(driven.of(Release)) == (waiting == 4)


@pytest.mark.parametrize("size", [40_000, 60_000])
def test_rows_are_released_at_once_where_others_may_need_their_bytes(size: int) -> None:
    driven = Driven(Limits(max_client_bytes=100_000))
    driven.open(info("a"))
    driven.answer(*driven.submit(bytes(size)))
    assert len(driven.of(Release)) == (size == 60_000)
    driven.submit(bytes(55_000))
    assert len(driven.client.submitted) == 1


def test_rows_are_released_with_those_that_nobody_wants_and_before_the_broker_is_asked(driven: Driven) -> None:
    one, two, three = driven.submit(*numbered(3))
    driven.answer(one)
    driven.withdraw(two)
    assert [release.ids for release in driven.of(Release)] == [[one.id, two.id]]
    driven.answer(three)
    driven.client.ask(driven.now)
    driven.flush()
    assert [type(message) for message in driven.sent[-2:]] == [Release, Ask]


def test_what_was_answered_and_not_released_before_a_break_is_not_told_of_after_it(driven: Driven) -> None:
    one, two = driven.submit(*numbered(2))
    driven.answer(one)
    driven.client.broken("it was cut", driven.now)
    driven.open(info("a"))
    driven.tick()
    assert driven.ledger == {two.id}
    assert driven.of(Release) == []


def test_answers_that_come_together_are_released_together() -> None:
    driven = Driven(Limits(max_rows=100))
    driven.open(info("a"))
    rows = driven.submit(*numbered(250))
    driven.answer(*rows)
    assert [len(release.ids) for release in driven.of(Release)] == [100, 100, 50]


def test_a_withdrawn_row_that_waits_is_never_sent(driven: Driven) -> None:
    rows = driven.submit(*numbered(300))
    driven.withdraw(rows[299], rows[298])
    driven.answer(*rows[:200])
    assert driven.payloads == numbered(298)
    assert driven.ended.keys() == set(numbered(200))


def test_a_withdrawn_row_at_the_broker_is_released(driven: Driven) -> None:
    rows = driven.submit(*numbered(3))
    driven.withdraw(rows[1])
    assert [release.ids for release in driven.of(Release)] == [[rows[1].id]]
    driven.answer(rows[1])
    assert driven.ended == {}


def test_a_row_that_was_withdrawn_before_it_came_is_not_taken(driven: Driven) -> None:
    early = driven.row(b"early", spec_of())
    unknown = driven.row(b"unknown", spec_of("nobody"))
    driven.withdraw(early, unknown)
    driven.client.submit([early, driven.row(b"other", spec_of())], driven.now)
    driven.flush()
    assert driven.payloads == [b"other"]
    driven.tick(0.1)
    assert list(driven.client.lines) == ["a"]


class Counted(Row):
    """A row that counts how often somebody looks whether it is over."""

    looks = 0

    @property
    def over(self) -> bool:
        Counted.looks += 1
        return self._over

    @over.setter
    def over(self, value: bool) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._over = value


@pytest.mark.parametrize("order", ["first to last", "last to first", "mixed"])
def test_withdrawing_many_waiting_rows_costs_the_same_for_each(order: str) -> None:
    driven = Driven()
    count = 100_000
    spec, owner = spec_of(), Owner()
    rows = [Counted(number.to_bytes(16, "big"), spec, b"", owner, 0, 0) for number in range(count)]
    driven.client.submit(rows, driven.now)
    if order == "last to first":
        rows.reverse()
    elif order == "mixed":
        random.Random(0).shuffle(rows)
    Counted.looks = 0
    largest_rest = 0
    for done, row in enumerate(rows, 1):
        driven.client.withdraw([row], driven.now)
        largest_rest = max(largest_rest, len(driven.client.lines["a"].waiting) - 2 * (count - done))
    assert Counted.looks < 8 * count
    assert largest_rest <= 2
    driven.tick(0.1)
    assert driven.client.lines == {}


def test_what_is_over_is_forgotten(driven: Driven) -> None:
    """A deadline far away must not keep the rows of a long run."""
    rows = driven.submit(*numbered(400), deadline=driven.now + 1e6)
    owners = [weakref.ref(row.owner) for row in rows]
    driven.withdraw(*rows[300:])
    driven.answer(*rows[:300])
    driven.answer(*rows[:300])
    driven.tick(0.1)
    del rows
    driven.owner = Owner()
    assert [owner for owner in owners if owner() is not None] == []
    assert driven.client.submitted == {}


def test_one_llm_fails_and_the_others_go_on() -> None:
    driven = Driven()
    driven.open(info("a"), info("b"))
    driven.submit(*numbered(300))
    driven.submit(b"for b", llm="b")
    driven.client.fail("a", Closed("gone"))
    driven.client.fail("nobody", Closed("gone"))
    driven.flush()
    assert driven.kinds_ended() == dict.fromkeys(numbered(300), Closed)
    assert len(driven.client.submitted) == len(driven.ledger) == 1


# Deadlines.


def test_a_deadline_ends_what_waits_and_what_runs(driven: Driven) -> None:
    driven.submit(*numbered(300), deadline=driven.now + 3.0)
    driven.submit(b"no deadline")
    driven.pass_time(2.9)
    assert driven.ended == {}
    driven.pass_time(0.2)
    assert driven.kinds_ended() == dict.fromkeys(numbered(300), Expired)
    assert "no answer from 'a' within 3." in str(driven.ended[b"0"])
    assert len(driven.client.submitted) == len(driven.ledger) == 1


def test_a_deadline_ends_only_what_is_not_over(driven: Driven) -> None:
    first, second, third = driven.submit(b"first", b"second", b"third", deadline=driven.now + 3.0)
    driven.answer(first)
    driven.withdraw(second)
    driven.pass_time(4.0)
    assert driven.kinds_ended() == {b"first": Ending, b"third": Expired}
    assert third.over


def test_deadlines_come_in_their_order(driven: Driven) -> None:
    driven.submit(b"late", deadline=driven.now + 3.0)
    driven.submit(b"soon", deadline=driven.now + 1.0)
    driven.pass_time(1.5)
    assert list(driven.ended) == [b"soon"]
    driven.pass_time(2.0)
    assert list(driven.ended) == [b"soon", b"late"]


def test_a_row_that_comes_after_its_deadline_ends_at_once(driven: Driven) -> None:
    deadline = driven.now + 1.0
    driven.submit(b"in time", deadline=deadline)
    driven.pass_time(2.0)
    driven.submit(b"too late", deadline=deadline)
    driven.tick(0.1)
    assert driven.kinds_ended() == {b"in time": Expired, b"too late": Expired}


def test_a_deadline_needs_no_broker() -> None:
    driven = Driven()
    driven.submit(b"row", deadline=driven.now + 1.0)
    driven.pass_time(1.2)
    assert driven.kinds_ended() == {b"row": Expired}


def test_the_broker_hears_of_an_expired_row_before_it_hears_the_count(driven: Driven) -> None:
    driven.submit(*numbered(3), deadline=driven.now + 0.5)
    driven.tick(0.5)  # due now: the deadline, and the ping
    assert [type(message) for message in driven.sent[-2:]] == [Release, Ping]
    assert driven.sent[-1] == Ping(0)


# What is waited for.


def test_no_broker_is_waited_for_and_then_an_error() -> None:
    driven = Driven()
    driven.submit(b"patient", wait_s=30.0)
    driven.submit(b"hasty", wait_s=5.0)
    driven.tick(0.1)
    driven.client.broken("nothing answers there", driven.now)
    driven.pass_time(4.8)
    assert driven.ended == {}
    driven.pass_time(0.5)
    assert driven.kinds_ended() == {b"hasty": NoBroker}
    assert "no broker at tcp://broker:5555 for 5" in str(driven.ended[b"hasty"])
    assert "nothing answers there" in str(driven.ended[b"hasty"])


def test_a_row_waits_its_own_time() -> None:
    driven = Driven()
    driven.pass_time(100.0)
    driven.submit(b"row", wait_s=5.0)
    driven.pass_time(4.8)
    assert driven.ended == {}
    driven.pass_time(0.4)
    assert driven.kinds_ended() == {b"row": NoBroker}


def test_a_broker_that_was_there_is_waited_for(driven: Driven) -> None:
    driven.submit(b"row", wait_s=5.0)
    driven.client.broken("it was killed", driven.now)
    driven.pass_time(100.0)
    assert driven.ended == {}


def test_an_unknown_llm_is_waited_for_and_then_an_error_that_lists_the_known() -> None:
    driven = Driven()
    driven.open(info("qwen"), info("gemma"))
    driven.submit(b"row", llm="gwen", wait_s=5.0)
    driven.keep_alive(4.0)
    assert driven.ended == {}
    driven.keep_alive(2.0)
    error = driven.ended[b"row"]
    assert isinstance(error, UnknownLLM)
    told = "no worker has announced an LLM named 'gwen' at tcp://broker:5555; known there: gemma, qwen"
    assert str(error).startswith(f"{told}; it was waited for 5")


def test_what_workers_say_of_themselves_stands_in_errors_on_one_line() -> None:
    driven = Driven()
    driven.open(info("a\nb"), info("\x1b[31mred", ready=0, unwell=1, reason="no\nquota"))
    driven.submit(b"unknown", llm="gwen", wait_s=1.0)
    driven.submit(b"lost", llm="\x1b[31mred", lost_after_s=1.0)
    driven.keep_alive(3.0)
    told = r"no worker has announced an LLM named 'gwen' at tcp://broker:5555; known there: \x1b[31mred, a\nb; it was"
    assert str(driven.ended[b"unknown"]).startswith(told)
    assert str(driven.ended[b"lost"]).endswith(r"no worker is ready (none is loading, 1 unwell: no\nquota)")


def test_an_llm_that_comes_in_time_is_served() -> None:
    driven = Driven()
    driven.open()
    driven.submit(b"row", wait_s=5.0)
    driven.keep_alive(4.0)
    driven.receive(Fleet([info("a")]))
    driven.keep_alive(4.0)
    assert driven.payloads == [b"row"]
    assert driven.ended == {}


def test_refused_ends_everything_and_says_why(driven: Driven) -> None:
    driven.submit(*numbered(300))
    driven.receive(Refuse("install the same release"))
    assert any(isinstance(effect, TurnedAway) for effect in driven.others)
    driven.tick(0.1)
    assert driven.kinds_ended() == dict.fromkeys(numbered(300), Refused)
    assert "tcp://broker:5555 refused this client: install the same release" in str(driven.ended[b"0"])
    driven.submit(b"later")
    driven.tick(0.1)
    assert isinstance(driven.ended[b"later"], Refused)


def test_what_a_quiet_call_waits_for_is_said_now_and_then(driven: Driven) -> None:
    driven.submit(*numbered(300))
    driven.keep_alive(9.0)
    assert driven.log == []
    driven.keep_alive(2.0)
    assert driven.log == ["300 rows for 'a' had no answer for 10 s: it is served by 1 worker, at work"]
    driven.keep_alive(600.0)
    quiet = [int(line.split(" s:")[0].split()[-1]) for line in driven.log]
    assert quiet == pytest.approx([10, 20, 40, 80, 160, 320, 620][: len(quiet)], abs=1)


def test_an_answer_ends_the_quiet(driven: Driven) -> None:
    rows = driven.submit(*numbered(30))
    for row in rows:
        driven.keep_alive(8.0)
        driven.answer(row)
    assert driven.log == []


def test_a_call_after_a_long_pause_is_not_quiet_yet(driven: Driven) -> None:
    driven.answer(*driven.submit(b"first"))
    driven.keep_alive(100.0)
    driven.submit(b"second")
    driven.keep_alive(8.0)
    assert driven.log == []


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"ready": 2}, "it is served by 2 workers, at work"),
        ({"ready": 0, "loading": 3}, "no worker is ready (3 are loading)"),
        ({"ready": 0}, "no worker is ready (none is loading)"),
        (
            {"ready": 0, "unwell": 1, "reason": "no quota"},
            "no worker is ready (none is loading, 1 unwell: no quota)",
        ),
    ],
)
def test_a_notice_says_how_the_llm_is(said: dict[str, Any], told: str) -> None:
    driven = Driven()
    driven.open(info("a", **said))
    driven.submit(b"row")
    driven.keep_alive(11.0)
    assert driven.log == [f"1 row for 'a' had no answer for 10 s: {told}"]


def test_a_notice_says_that_the_llm_is_unknown() -> None:
    driven = Driven()
    driven.open(info("b"))
    driven.submit(b"row")
    driven.keep_alive(11.0)
    assert driven.log[0].endswith("no worker has announced an LLM named 'a' at tcp://broker:5555; known there: b")


def test_a_notice_says_that_the_broker_is_away(driven: Driven) -> None:
    driven.submit(b"row")
    driven.client.broken("the connection broke", driven.now)
    driven.pass_time(11.0)
    notice = "1 row for 'a' had no answer for 10 s: there is no broker at tcp://broker:5555 ("
    assert any(line.startswith(notice) for line in driven.log)


# An LLM that nobody serves.


def unserved(**said: Any) -> LLMInfo:
    return info("a", **{"ready": 0, "capacity": 0, **said})


@pytest.mark.parametrize(
    ("fleet", "told"),
    [
        ([unserved()], "no worker is ready (none is loading)"),
        ([unserved(loading=2)], "no worker is ready (2 are loading)"),
        ([unserved(unwell=1, reason="no quota")], "no worker is ready (none is loading, 1 unwell: no quota)"),
        ([info("b")], "no worker has announced an LLM named 'a' at tcp://broker:5555; known there: b"),
    ],
)
def test_rows_of_an_llm_that_nobody_serves_are_given_back(driven: Driven, fleet: list[LLMInfo], told: str) -> None:
    rows = driven.submit(*numbered(300), lost_after_s=30.0)
    driven.keep_alive(5.0)
    driven.receive(Fleet(fleet))
    driven.keep_alive(29.0)
    assert driven.ended == {}
    driven.keep_alive(3.0)
    assert driven.kinds_ended() == dict.fromkeys(numbered(300), LLMLost)
    assert str(driven.ended[b"0"]) == f"nobody has served 'a' for 30 s: {told}"
    # What was at the broker is withdrawn there.
    assert {row_id for release in driven.of(Release) for row_id in release.ids} == {row.id for row in rows[:256]}
    assert driven.ledger == set()
    assert driven.client.lines == {}


def test_rows_that_wait_for_as_long_as_it_takes_are_never_lost(driven: Driven) -> None:
    driven.submit(b"patient")
    driven.submit(b"not", lost_after_s=30.0)
    driven.receive(Fleet([unserved()]))
    driven.keep_alive(3600.0)
    assert driven.kinds_ended() == {b"not": LLMLost}
    driven.receive(Fleet([info("a")]))
    assert driven.log[-1] == "'a' is served again, after 3600 s"
    assert len([line for line in driven.log if "patient" in line or "had no answer" in line]) < 25


def test_an_llm_that_comes_back_in_time_is_not_lost_and_has_its_whole_time_again(driven: Driven) -> None:
    (row,) = driven.submit(b"row", lost_after_s=30.0)
    for _ in range(4):
        driven.receive(Fleet([unserved(loading=1)]))
        driven.keep_alive(28.0)
        driven.receive(Fleet([info("a")]))
        driven.keep_alive(1.0)
    assert driven.ended == {}
    driven.answer(row)
    assert driven.kinds_ended() == {b"row": Ending}


def test_the_time_without_a_broker_does_not_count(driven: Driven) -> None:
    driven.submit(b"row", lost_after_s=30.0)
    driven.receive(Fleet([unserved()]))
    driven.keep_alive(20.0)
    for _ in range(3):
        driven.client.broken("it was killed", driven.now)
        driven.pass_time(1000.0, step_s=0.5)
        assert driven.ended == {}
        # A broker that was started again hears of the LLM a moment later.
        driven.receive(Welcome(b"f" * 16, 0.5, Limits()), Fleet([]))
        driven.keep_alive(2.0)
        driven.receive(Fleet([unserved()]))
        driven.keep_alive(1.0)
        assert driven.ended == {}
    driven.keep_alive(2.0)
    assert driven.kinds_ended() == {b"row": LLMLost}


def test_a_broker_that_is_away_makes_no_llm_lost(driven: Driven) -> None:
    driven.submit(b"row", lost_after_s=30.0)
    driven.client.broken("it was killed", driven.now)
    driven.pass_time(1000.0, step_s=0.5)
    assert driven.ended == {}


def test_the_time_in_which_the_client_stood_still_does_not_count(driven: Driven) -> None:
    driven.submit(b"row", lost_after_s=30.0)
    driven.receive(Fleet([unserved()]))
    driven.keep_alive(10.0)
    driven.now += 3600.0
    driven.receive(Ping(None))
    driven.tick()
    driven.keep_alive(15.0)
    assert driven.ended == {}
    driven.receive(Fleet([info("a")]))
    driven.keep_alive(60.0)
    assert driven.ended == {}


def test_a_later_call_waits_its_own_time_and_a_calls_rows_are_lost_together(driven: Driven) -> None:
    driven.receive(Fleet([unserved()]))
    driven.submit(b"first", lost_after_s=30.0)
    driven.keep_alive(25.0)
    driven.submit(b"of the first call too", lost_after_s=30.0)
    driven.owner = Owner()
    driven.submit(b"second", lost_after_s=30.0)
    driven.keep_alive(7.0)
    assert driven.ended.keys() == {b"first", b"of the first call too"}
    driven.keep_alive(20.0)
    assert b"second" not in driven.ended
    driven.keep_alive(5.0)
    assert b"second" in driven.ended


def test_another_llm_does_not_suffer() -> None:
    driven = Driven()
    driven.open(unserved(), info("b"))
    driven.submit(b"for b", llm="b", lost_after_s=5.0)
    driven.submit(b"for a", lost_after_s=5.0)
    driven.keep_alive(20.0)
    assert driven.ended.keys() == {b"for a"}


def test_an_llm_that_was_known_is_waited_for_though_a_new_broker_does_not_know_it(driven: Driven) -> None:
    driven.submit(*numbered(300), wait_s=5.0)
    driven.tick(0.1)
    driven.client.broken("it was killed", driven.now)
    driven.tick(2.0)
    driven.receive(Welcome(b"f" * 16, 0.5, Limits()), Fleet([]))
    driven.keep_alive(60.0)
    assert driven.ended == {}
    assert driven.log[-1].endswith("no worker has announced an LLM named 'a' at tcp://broker:5555; known there: none")


def test_it_is_said_once_that_an_llm_is_back(driven: Driven) -> None:
    driven.submit(b"row", lost_after_s=5.0)
    driven.receive(Fleet([unserved()]))
    driven.keep_alive(7.0)
    assert driven.kinds_ended() == {b"row": LLMLost}
    driven.receive(Fleet([unserved(loading=1)]))
    driven.log.clear()
    driven.receive(Fleet([info("a")]), Fleet([info("a", ready=2)]))
    assert driven.log == ["'a' is served again, after 7 s"]


# Connections.


def test_a_new_connection_says_what_is_awaited() -> None:
    driven = Driven(Limits(max_rows=100))
    driven.open(info("a"))
    rows = driven.submit(*numbered(250))
    driven.answer(rows[0])
    driven.client.broken("it was cut", driven.now)
    driven.withdraw(rows[1])
    driven.sent.clear()
    driven.open(info("a"))
    awaits = driven.of(Await)
    assert [len(one.ids) for one in awaits] == [100, 100, 48]
    assert [one.more for one in awaits] == [True, True, False]
    assert {row_id for one in awaits for row_id in one.ids} == {row.id for row in rows[2:]}
    assert driven.of(Release) == []  # what is not awaited is released


def test_a_connection_that_awaits_nothing_says_so(driven: Driven) -> None:
    assert driven.of(Await) == [Await([], False)]


def test_nothing_is_sent_between_connections(driven: Driven) -> None:
    rows = driven.submit(*numbered(300))
    driven.client.broken("it was cut", driven.now)
    driven.sent.clear()
    driven.withdraw(*rows[:50])
    driven.submit(b"more")
    assert driven.sent == []
    driven.open(info("a"))
    assert driven.payloads == [*numbered(44, start=256), b"more"]


def test_rows_that_the_broker_misses_are_sent_again_under_their_ids(driven: Driven) -> None:
    rows = driven.submit(*numbered(3))
    driven.sent.clear()
    driven.receive(Missing([rows[2].id, rows[0].id, b"unknown id of 16"]))
    (submit,) = driven.of(Submit)
    (run,) = submit.runs
    assert (run.again, run.ids, run.payloads) == (True, [rows[2].id, rows[0].id], [b"2", b"0"])
    assert driven.client.lines["a"].at_broker == 3


def test_the_fleet_is_forgotten_with_the_connection(driven: Driven) -> None:
    assert driven.client.fleet is not None
    driven.client.broken("it was cut", driven.now)
    assert driven.client.fleet is None


def test_closing_says_goodbye_and_ends_what_nobody_can_answer(driven: Driven) -> None:
    driven.submit(*numbered(300))
    driven.client.end("it is done")
    driven.flush()
    assert driven.sent[-1] == Goodbye("it is done")
    assert any(isinstance(effect, Close) for effect in driven.others)
    assert driven.kinds_ended() == dict.fromkeys(numbered(300), Closed)
    assert "tcp://broker:5555 was closed" in str(driven.ended[b"0"])


def test_closing_without_a_broker_ends_rows_too() -> None:
    driven = Driven()
    driven.submit(b"row")
    driven.client.end()
    driven.flush()
    assert driven.kinds_ended() == {b"row": Closed}
    assert driven.sent == []


def test_what_the_fleet_is_goes_out_as_an_effect(driven: Driven) -> None:
    driven.receive(Fleet([info("b")]))
    assert driven.others[-1] == FleetSeen({"b": info("b")})


def test_a_report_is_asked_for_once_there_is_a_broker() -> None:
    driven = Driven()
    driven.client.ask(driven.now)
    driven.open()
    assert driven.of(Ask) == [Ask()]
    driven.client.broken("it was cut", driven.now)
    driven.open()
    assert driven.of(Ask) == [Ask(), Ask()]
    driven.receive(Status({"llms": []}))
    assert driven.others[-1] == Reported({"llms": []})
    driven.client.ask(driven.now)
    driven.flush()
    assert len(driven.of(Ask)) == 3


def test_a_dismissal_is_said_again_after_a_break_until_it_is_answered() -> None:
    driven = Driven()
    message = Dismiss(Role.WORKER, "gpu1")
    driven.client.dismiss(message, driven.now)
    driven.open()
    assert driven.of(Dismiss) == [message]
    driven.client.broken("it was cut", driven.now)
    driven.open()
    assert driven.of(Dismiss) == [message, message]
    answer = Dismissed([PeerInfo("gpu1", 7, "llm", 3)])
    driven.receive(answer)
    assert driven.others[-1] == HasDismissed(answer)
    driven.client.broken("it was cut", driven.now)
    driven.open()
    assert len(driven.of(Dismiss)) == 2
    driven.client.dismiss(message, driven.now)
    driven.flush()
    assert len(driven.of(Dismiss)) == 3


def test_a_message_for_others_is_logged_and_does_no_harm(driven: Driven) -> None:
    driven.receive(Settle([1]))
    assert driven.log == ["the broker sent a Settle, which is not for a client"]


@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_the_counts_agree_and_every_row_ends_once(seed: int) -> None:
    """``Driven`` checks every ping against the ledger that the messages before it make."""
    chance = random.Random(seed)
    driven = Driven(Limits(max_rows=chance.choice([3, 1024]), max_row_bytes=1000, max_client_rows=300))
    driven.open(info("a"), info("b"))
    rows: list[Row] = []
    withdrawn: set[bytes] = set()
    for step in range(300):
        match chance.randrange(8):
            case 0 | 1:
                deadline = chance.choice([None, driven.now + chance.uniform(0, 2)])
                names = [b"%d" % (1000 * step + at) for at in range(chance.randint(1, 80))]
                lost_after_s = chance.choice([None, 1.0])
                rows += driven.submit(*names, llm=chance.choice("ab"), deadline=deadline, lost_after_s=lost_after_s)
            case 2:
                gone = chance.sample(rows, min(len(rows), chance.randint(0, 50)))
                withdrawn |= {row.payload for row in gone if not row.over}
                driven.withdraw(*gone)
            case 3:
                there = [row for row in rows if row.id in driven.client.submitted]
                driven.answer(*chance.sample(there, len(there) // 2))
            case 4:
                capacity = chance.randint(0, 200)
                driven.receive(Fleet([info("a", capacity=capacity), info("b", ready=capacity % 2)]))
            case 6:
                there = list(driven.client.submitted)
                driven.receive(Busy(there[chance.randint(0, len(there)) :], chance.uniform(0, 0.3)))
            case 5 if chance.random() < 0.2:
                driven.client.broken("it was cut", driven.now)
                driven.open(info("a"), info("b"))
            case _:
                driven.tick(chance.uniform(0, 0.6))
        rows = [row for row in rows if not row.over]
        for line in driven.client.lines.values():
            there = [row for row in driven.client.submitted.values() if row.spec.llm == line.llm]
            assert (line.at_broker, line.bytes_at_broker) == (len(there), sum(len(row.payload) for row in there))
            assert line.at_home == sum(not row.over for row in line.waiting)
        assert len(driven.client.submitted) <= 300
    driven.keep_alive(1)
    while driven.client.submitted:
        driven.answer(*driven.client.submitted.values())
    driven.tick()
    assert withdrawn.isdisjoint(driven.ended)
    assert driven.ledger == set()


# Every message in every state: twice, late, and from another life.


def at_work() -> Driven:
    """Rows answered (1), running (2), cancelled (3), and one that waits for an LLM that is not there (4)."""
    driven = Driven()
    driven.open(info("a"))
    answered, _, cancelled = driven.submit(b"answered", b"running", b"cancelled")
    driven.submit(b"waiting", llm="b")
    driven.answer(answered)
    driven.withdraw(cancelled)
    return driven


def without_a_broker() -> Driven:
    driven = Driven()
    driven.submit(b"running")
    return driven


def greeting() -> Driven:
    driven = without_a_broker()
    driven.tick(2.0)
    return driven


def without_a_fleet() -> Driven:
    driven = greeting()
    driven.receive(Welcome(b"e" * 16, 0.5, driven.limits))
    return driven


def cut_off() -> Driven:
    driven = at_work()
    driven.client.broken("it was cut", driven.now)
    driven.flush()
    return driven


def back_again() -> Driven:
    """On a second connection, its fleet not told yet."""
    driven = cut_off()
    driven.tick(2.0)
    driven.receive(Welcome(b"f" * 16, 0.5, driven.limits))
    return driven


def refused() -> Driven:
    driven = at_work()
    driven.receive(Refuse("another version"))
    return driven


def ended() -> Driven:
    driven = at_work()
    driven.client.end()
    driven.flush()
    return driven


STATES = {
    one.__name__: one
    for one in (at_work, without_a_broker, greeting, without_a_fleet, cut_off, back_again, refused, ended)
}


def row_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def answer(*numbers: int, outcome: int = Outcome.DONE) -> Answer:
    count = len(numbers)
    return Answer([row_id(number) for number in numbers], [outcome] * count, [1] * count, [b"answer"] * count)


MESSAGES: dict[str, Message] = {
    "welcome": Welcome(b"e" * 16, 0.5, Limits()),
    "welcome of another life": Welcome(b"g" * 16, 0.1, Limits(max_rows=1, target_message_bytes=1)),
    "welcome of another version": Welcome(b"e" * 16, 0.5, Limits(), version=99),
    "refuse": Refuse("another version"),
    "reset": Reset("say hello first"),
    "goodbye": Goodbye("it was stopped"),
    "ping": Ping(None),
    "ping that counts": Ping(77),
    "fleet": Fleet([info("a"), info("b")]),
    "fleet of none": Fleet([]),
    "fleet of the unserved": Fleet([info("a", ready=0, capacity=0)]),
    "answer": answer(1, 2, 4),
    "answer twice in one": answer(2, 2),
    "answer again": answer(1),
    "answer to the cancelled": answer(3),
    "answer to the unknown": answer(99),
    "failed": answer(2, outcome=Outcome.FAILED),
    "expired": answer(2, outcome=Outcome.EXPIRED),
    "missing": Missing([row_id(2)]),
    "missing what is over": Missing([row_id(number) for number in (1, 3, 99)]),
    "missing what was never sent": Missing([row_id(4)]),
    "busy": Busy([row_id(2)], 0.05),
    "busy with what is over": Busy([row_id(number) for number in (1, 3, 99)], 0.05),
    "busy with what was never sent": Busy([row_id(4)], 3600.0),
    "status": Status({}),
    "hello": Hello(role="client", instance=b"i" * 16),
    "settle": Settle([1]),
}


def check(driven: Driven, after: tuple[str, str]) -> None:
    """What must hold of a client at any time; ``Driven`` itself sees that no row ends twice."""
    client = driven.client
    lines = client.lines.values()
    waiting = [row for line in lines for row in line.waiting if isinstance(row, Row) and not row.over]
    assert not {row.id for row in waiting} & set(client.submitted), after
    assert not any(row.over for row in client.submitted.values()), after
    assert sum(line.at_broker for line in lines) == len(client.submitted), after
    assert sum(line.at_home for line in lines) == len(waiting), after
    assert {row.payload for row in [*waiting, *client.submitted.values()]}.isdisjoint(driven.ended), after
    if client.state is SessionState.OPEN:
        assert driven.ledger == {*client.submitted, *client._releases.ids}, after


@pytest.mark.parametrize("state", STATES)
def test_any_two_messages_and_both_again_break_nothing(state: str) -> None:
    for first, second in product(MESSAGES, MESSAGES):
        driven = STATES[state]()
        for what in (first, second, first, second):
            driven.receive(MESSAGES[what])
            check(driven, (first, second))
            driven.tick(0.1)
            check(driven, (first, second))
        driven.client.end()
        driven.flush()
        assert not driven.client.submitted, (first, second)
        assert b"running" in driven.ended, (first, second)


@pytest.mark.parametrize("state", STATES)
def test_a_message_that_comes_twice_ends_and_submits_no_row_twice(state: str) -> None:
    for what, message in MESSAGES.items():
        driven = STATES[state]()
        driven.receive(message)
        before = sorted(driven.client.submitted), driven.kinds_ended(), driven.client.state
        sent = len(driven.payloads)
        driven.receive(message)
        assert (sorted(driven.client.submitted), driven.kinds_ended(), driven.client.state) == before, what
        asked = set(message.ids) & set(driven.client.submitted) if isinstance(message, Missing) else set[bytes]()
        is_open = driven.client.state is SessionState.OPEN
        assert len(driven.payloads) - sent == (len(asked) if is_open else 0), what


@pytest.mark.parametrize("state", ["cut_off", "refused", "ended"])
def test_a_message_of_a_connection_that_is_gone_changes_nothing(state: str) -> None:
    for what, message in MESSAGES.items():
        driven = STATES[state]()
        before = sorted(driven.client.submitted), driven.kinds_ended(), driven.client.state, len(driven.sent)
        driven.receive(message)
        after = sorted(driven.client.submitted), driven.kinds_ended(), driven.client.state, len(driven.sent)
        assert after == before, what
