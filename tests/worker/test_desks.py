"""A worker of several brokers: one engine, whose places follow where rows wait."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from genpool.protocol.limits import Limits
from genpool.protocol.messages import (
    Assign,
    AssignRun,
    Goodbye,
    Grant,
    Hello,
    Hold,
    Message,
    Outcome,
    Ping,
    Refuse,
    Result,
    Role,
    RowKind,
    Settle,
    Welcome,
)
from genpool.protocol.session import Log, Send, SessionSettings, SessionState
from genpool.worker.desk import Desk
from genpool.worker.machine import Exit, RowResult, StartCall, StopRow, Worker

HELLO = Hello(role=Role.WORKER, instance=b"me", host="here", pid=1, llm="llm")


def ids(first: int, count: int) -> list[bytes]:
    return [b"%016d" % number for number in range(first, first + count)]


class Several:
    """A ready worker with a connection to each of the brokers ``names``."""

    def __init__(self, names: str = "ab", concurrency: int = 4) -> None:
        self.now = 100.0
        self.said: dict[str, list[Message]] = {name: [] for name in names}
        self.started: list[StartCall] = []
        self.stopped: list[int] = []
        self.logs: list[str] = []
        self.exit_code: int | None = None
        identity = replace(HELLO, model_name="model", concurrency=concurrency)
        self.worker = Worker(",".join(names), HELLO, SessionSettings(), lambda: 0.0, self.now)
        self.desks = dict(zip(names, self.worker.desks, strict=True))
        self.worker.loaded(identity, self.now)
        for name in names:
            self.open(name)
        self.said = {name: [] for name in names}

    def open(self, name: str) -> None:
        while self.desks[name].state is SessionState.WAITING:
            self.tick(1.0)
        self.tell(name, Welcome(b"epoch", 1000.0, Limits()))

    def tell(self, name: str, *messages: Message) -> None:
        for message in messages:
            self.desks[name].received(message, self.now)
        self.flush()

    def assign(self, name: str, first: int, count: int, *, are_suspects: bool = False) -> None:
        options = (RowKind.INPUT, 1, b"", None, 0)
        payloads = [b"row %d" % number for number in range(first, first + count)]
        self.tell(name, Assign([AssignRun(*options, first, ids(first, count), payloads, are_suspects)]))

    def done(self, *executions: int) -> None:
        for execution in executions:
            (number,) = [call.number for call in self.worker.calls.values() if execution in call.row_ids]
            self.worker.rows_ended(number, [RowResult(execution, Outcome.DONE, b"answer")], self.now)
            self.worker.call_ended(number, self.now)
        self.flush()

    def lose(self, name: str) -> None:
        self.desks[name].broken("it was cut", self.now)
        self.flush()

    def flush(self) -> None:
        for name, desk in self.desks.items():
            self._perform(name, desk.flush(self.now))

    def tick(self, seconds: float = 0.0) -> None:
        self.now += seconds
        for name, desk in self.desks.items():
            self._perform(name, desk.tick(self.now))

    def _perform(self, name: str, effects: list[object]) -> None:
        for effect in effects:
            match effect:
                case Send(message=Ping()):
                    pass
                case Send():
                    self.said[name].append(effect.message)
                case StartCall():
                    self.started.append(effect)
                case StopRow():
                    self.stopped.append(effect.execution)
                case Exit():
                    self.exit_code = effect.code
                case Log():
                    self.logs.append(effect.text)
                case _:
                    pass

    def credit(self, name: str) -> int:
        """How many rows more this broker may hand out, as it was told last."""
        desk: Desk = self.desks[name]
        return desk._granted - desk._used

    @property
    def credits(self) -> list[int]:
        return [self.credit(name) for name in self.desks]


def test_the_places_are_shared_evenly_while_no_rows_wait() -> None:
    assert Several(concurrency=4).credits == [2, 2]
    assert Several(concurrency=5).credits == [3, 2]
    assert Several("abc", concurrency=1).credits == [1, 0, 0]


def test_they_go_where_rows_wait() -> None:
    several = Several("abc", concurrency=4)
    several.tell("b", Ping(0, 10))
    several.tick()
    assert several.credits == [0, 4, 0]
    several.tell("c", Ping(0, 1))
    several.tick()
    assert several.credits == [0, 2, 2]
    several.tell("b", Ping(0, 0))
    several.tell("c", Ping(0, 0))
    several.tick()
    assert sum(several.credits) == 4
    assert 0 not in several.credits


def test_a_single_place_goes_from_one_to_the_next_where_rows_wait_at_both() -> None:
    several = Several(concurrency=1)
    served: list[str] = []
    for name in "ab":
        several.tell(name, Ping(0, 10))
    several.tick()
    for number in range(6):
        (name,) = [name for name in "ab" if several.credit(name)]
        served.append(name)
        several.assign(name, number, 1)
        several.done(number)
    assert served == ["a", "b"] * 3


def test_who_has_rows_waiting_hears_of_a_free_place_at_once_and_the_others_at_the_next_tick() -> None:
    several = Several(concurrency=2)
    several.tell("a", Ping(0, 10))
    several.tick()
    several.assign("a", 0, 2)
    several.done(0)
    assert several.said["a"][-1] == Result([0], [Outcome.DONE], 0, 3, [b"answer"])
    several.tell("a", Ping(2, 0))
    several.done(1)
    assert not [message for message in several.said["b"] if isinstance(message, Grant) and message.credit]
    several.tick()
    assert several.credits == [1, 1]


def test_a_row_for_a_place_that_another_broker_has_filled_is_handed_back() -> None:
    several = Several(concurrency=2)
    several.assign("a", 0, 1)
    several.assign("b", 50, 1)
    several.assign("a", 1, 1)  # on its way when the place was b's
    assert [call.executions for call in several.started] == [[0], [50]]
    assert several.said["a"][-1] == Result([1], [Outcome.RETURNED], 0, 2, [b""])


def test_each_broker_gets_the_answers_of_its_own_rows() -> None:
    several = Several()
    several.assign("a", 0, 1)
    several.assign("b", 50, 2)
    several.done(50, 0, 51)
    answered = {
        name: [number for message in said if isinstance(message, Result) for number in message.executions]
        for name, said in several.said.items()
    }
    assert answered == {"a": [0], "b": [50, 51]}
    assert {name: [*desk.held] for name, desk in several.desks.items()} == {"a": [0], "b": [50, 51]}


def test_what_a_lost_brokers_rows_leave_free_is_the_others() -> None:
    several = Several()
    several.assign("a", 0, 1)
    several.lose("a")
    several.tick()
    assert several.credit("b") == 3
    several.done(0)
    assert several.credit("b") == 3
    several.tick()
    assert several.credit("b") == 4
    several.open("a")
    assert several.said["a"][-1] == Hold([0], ids(0, 1), [True], False)


def test_a_broker_that_stays_away_is_forgotten_where_there_is_another() -> None:
    several = Several()
    several.assign("a", 0, 2)
    several.done(0)
    several.lose("a")
    several.tick(59)
    assert len(several.worker.held) == 2
    several.tell("b", Ping(0))
    several.tick(2)
    assert (several.worker.held, several.worker.finished, several.stopped) == ({}, {}, [1])
    assert several.logs[-1] == "the broker at a is away for 60 s: its 2 rows here are forgotten"
    several.done(1)
    several.open("a")
    assert [message for message in several.said["a"] if isinstance(message, Hold)] == [Hold([], [], [], False)]


def test_an_only_broker_is_never_forgotten() -> None:
    several = Several("a")
    several.assign("a", 0, 1)
    several.lose("a")
    several.tick(3600)
    assert several.worker.held
    assert several.stopped == []


def test_a_drain_says_goodbye_to_all() -> None:
    several = Several()
    several.assign("b", 50, 1)
    several.worker.drain(several.now)
    several.tick()
    assert several.credits == [0, 0]
    assert several.exit_code is None
    several.done(50)
    several.tick(0.1)
    several.tick(6)  # nobody takes the last answer
    assert several.exit_code == 0
    assert [several.said[name][-1] for name in "ab"] == [Goodbye("it was told to stop")] * 2


def test_a_dead_engine_hands_its_answers_over_to_all_and_says_no_goodbye_where_rows_run() -> None:
    several = Several()
    several.assign("a", 0, 1)
    several.assign("b", 50, 2)
    (call,) = [call for call in several.worker.calls.values() if 50 in call.row_ids]
    several.worker.rows_ended(call.number, [RowResult(50, Outcome.DONE, b"answer")], several.now)
    several.worker.crash(several.now)
    several.flush()
    assert isinstance(several.said["b"][-1], Result)
    assert not [message for said in several.said.values() for message in said if isinstance(message, Goodbye)]
    assert several.exit_code == 70


def test_one_that_is_refused_by_one_stays_with_the_others() -> None:
    several = Several()
    several.tell("a", Refuse("it is full"))
    several.tick()
    assert not several.worker.is_refused
    assert several.logs[-1] == "the broker at a refused this worker, which stays with the others: it is full"
    assert several.credit("b") == 4
    several.tell("b", Refuse("it is full, too"))
    assert several.worker.is_refused


def test_the_llm_is_told_of_at_every_broker() -> None:
    several = Several()
    several.worker.unwell("no server", several.now)
    several.flush()
    for name in "ab":
        assert several.said[name][-1] == Grant(several.desks[name]._used, "unwell", "no server")


def test_suspects_begin_when_other_brokers_rows_have_ended_and_none_of_theirs_begins_beside_them() -> None:
    several = Several()
    several.assign("b", 50, 1)
    several.assign("a", 0, 1, are_suspects=True)
    assert several.said["a"][-1] == Result([0], [Outcome.RETURNED], 0, 1, [b""])
    assert several.credits == [0, 0]
    several.assign("b", 51, 1)  # on its way meanwhile
    assert several.said["b"][-1] == Result([51], [Outcome.RETURNED], 0, 2, [b""])
    several.done(50)
    several.tick()
    assert several.credits == [4, 0]
    several.assign("a", 1, 2, are_suspects=True)
    several.assign("b", 52, 1)
    several.done(1)
    several.assign("b", 53, 1)
    several.tick(60)
    assert [call.executions for call in several.started] == [[50], [1], [2]]
    several.done(2)
    several.tick()
    assert several.credits == [2, 2]
    several.assign("b", 54, 1)
    assert several.started[-1].executions == [54]


def test_other_rows_of_the_suspects_broker_are_its_own_affair() -> None:
    several = Several()
    several.assign("a", 0, 1)
    several.assign("a", 1, 1, are_suspects=True)
    assert [call.executions for call in several.started] == [[0], [1]]
    alone = Several("a")
    alone.assign("a", 0, 1, are_suspects=True)
    alone.tick()
    assert alone.credits == [3]


def test_suspects_that_do_not_come_are_waited_for_a_second() -> None:
    several = Several()
    several.assign("b", 50, 1)
    several.assign("a", 0, 1, are_suspects=True)
    several.done(50)
    several.tick()
    several.tick(0.9)
    assert several.credits == [4, 0]
    several.tick(0.2)
    assert several.credits == [2, 2]


def test_others_rows_are_waited_for_a_minute_and_then_the_others_have_theirs() -> None:
    several = Several()
    several.assign("b", 50, 1)
    several.assign("a", 0, 1, are_suspects=True)
    several.tick(59)
    assert several.credits == [0, 0]
    several.tick(1)
    assert several.credits == [2, 1]
    several.assign("a", 1, 1, are_suspects=True)
    assert several.said["a"][-1] == Result([1], [Outcome.RETURNED], 0, 4, [b""])
    several.tick(59)
    several.assign("a", 2, 1, are_suspects=True)
    several.tick()
    assert sum(several.credits) == 3
    several.tick(1)
    several.assign("a", 3, 1, are_suspects=True)
    assert several.credits == [0, 0]
    several.done(50)
    several.tick()
    several.assign("a", 4, 1, are_suspects=True)
    assert several.started[-1].executions == [4]


def test_suspects_of_a_broker_that_is_lost_are_not_waited_for() -> None:
    several = Several()
    several.assign("b", 50, 1)
    several.assign("a", 0, 1, are_suspects=True)
    several.lose("a")
    several.tick()
    assert several.credit("b") == 3


class Weather:
    """Brokers that hand out what they were told, or more that crosses a smaller grant, and connections that break."""

    def __init__(self, data: st.DataObject, concurrency: int) -> None:
        self.several = Several("abc", concurrency)
        self.handed: dict[str, set[int]] = {name: set() for name in "abc"}
        self.suspects: set[int] = set()
        self._data = data
        self._numbers = count()

    def step(self) -> None:
        name = self._data.draw(st.sampled_from("abc"), "broker")
        desk = self.several.desks[name]
        actions = (self.assign, self.assign, self.done, self.done, self.ping, self.settle, self.break_or_open)
        action = self._data.draw(st.sampled_from(actions), "action")
        if desk.state is SessionState.OPEN or action == self.break_or_open:
            action(name, desk)
        if self._data.draw(st.booleans(), "tick"):
            self.several.tick(0.1)

    def assign(self, name: str, desk: Desk) -> None:
        for _ in range(self.several.credit(name) + self._data.draw(st.integers(0, 1), "crossing")):
            number = next(self._numbers)
            self.handed[name].add(number)
            are_suspects = self._data.draw(st.integers(0, 3), "suspects") == 3
            if are_suspects:
                self.suspects.add(number)
            self.several.assign(name, number, 1, are_suspects=are_suspects)

    def done(self, name: str, desk: Desk) -> None:
        running = [number for call in self.several.worker.calls.values() for number in call.row_ids]
        if running:
            self.several.done(self._data.draw(st.sampled_from(running), "done"))

    def ping(self, name: str, desk: Desk) -> None:
        self.several.tell(name, Ping(len(desk.held), self._data.draw(st.integers(0, 2), "waiting")))

    def settle(self, name: str, desk: Desk) -> None:
        for number in sorted(desk.finished)[:1]:
            self.handed[name].discard(number)
            self.several.tell(name, Settle([number]))

    def break_or_open(self, name: str, desk: Desk) -> None:
        if desk.state is SessionState.OPEN:
            self.several.lose(name)
        else:
            self.several.open(name)


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_whatever_comes_the_engine_is_never_overfull_and_no_place_is_lost(data: st.DataObject) -> None:
    concurrency = data.draw(st.integers(1, 5), "concurrency")
    weather = Weather(data, concurrency)
    several, worker = weather.several, weather.several.worker
    for _ in range(data.draw(st.integers(0, 40), "steps")):
        weather.step()
        assert len(worker.calls) <= concurrency
        if any(number in weather.suspects for call in worker.calls.values() for number in call.row_ids):
            assert len({call.desk.address for call in worker.calls.values()}) == 1
        assert {name: set(desk.held) for name, desk in several.desks.items()} == weather.handed
    for call in list(worker.calls.values()):
        several.done(*call.row_ids)
    for name in "abc":
        several.open(name)
        several.tell(name, Ping(len(several.desks[name].held), 0))
    several.tick(0.1)
    several.tick(1.0)  # suspects may be waited for
    assert sum(several.credits) == concurrency
    assert all(set(desk.finished) == weather.handed[name] for name, desk in several.desks.items())
