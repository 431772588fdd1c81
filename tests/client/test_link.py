"""A real link to a broker that says only what a test tells it to."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import pytest
from fleet import PATIENCE_S, until
from voices import info
from wire import HandBroker

from genpool import ProcessLLM
from genpool.client import link as link_module
from genpool.client.link import Link, leave, link_to
from genpool.client.row import Ending, Row, RowSpec
from genpool.client.run import Run
from genpool.protocol.errors import Closed, GenpoolError, NoBroker, Refused, UnknownLLM
from genpool.protocol.frames import LARGE_BYTES, Payload
from genpool.protocol.messages import (
    Answer,
    Ask,
    Await,
    Fleet,
    Goodbye,
    Hello,
    LLMInfo,
    Outcome,
    Refuse,
    Release,
    Status,
    Submit,
)

SPEC = RowSpec("a", "input", 1, b"", None, 60.0)


class Owner:
    """Tells a test how its rows ended, and in which thread; may raise first."""

    ends_at_once = 1

    def __init__(self, error: type[BaseException] | None = None, *, runs_user_code: bool = True) -> None:
        self._error = error
        self.runs_user_code = runs_user_code
        self._ends: queue.SimpleQueue[tuple[bytes, Ending | GenpoolError, str]] = queue.SimpleQueue()

    def ended(self, rows: list[Row]) -> None:
        for row in rows:
            assert row.ending is not None
            self._ends.put((row.payload, row.ending, threading.current_thread().name))
        if self._error is not None:
            raise self._error("from the owner")

    def run_ended(self, run: Run, first: int, payloads: Sequence[Payload]) -> None:
        self.ended(run.ended(first, payloads))

    def next(self) -> tuple[bytes, Ending | GenpoolError, str]:
        return self._ends.get(timeout=PATIENCE_S)


def row(payload: bytes, owner: Owner, spec: RowSpec = SPEC) -> Row:
    return Row(payload.rjust(16, b"."), spec, payload, owner, 0, 0)


@pytest.fixture
def broker() -> Iterator[HandBroker]:
    with HandBroker() as broker:
        yield broker


@pytest.fixture
def link(broker: HandBroker) -> Iterator[Link]:
    link = link_to(broker.address)
    yield link
    leave(link)


def opened(broker: HandBroker, *llms: LLMInfo) -> None:
    broker.welcome()
    broker.wait_for(Await)
    broker.send(Fleet(list(llms)))


def test_one_link_serves_all_users_of_an_address(broker: HandBroker) -> None:
    first, second = link_to(broker.address), link_to(broker.address)
    assert first is second
    leave(first)
    assert first.is_open
    leave(second)
    assert not first.is_open
    third = link_to(broker.address)
    assert third is not first
    assert third.is_open
    leave(third)


def test_the_hello_says_who_it_is(broker: HandBroker, link: Link) -> None:
    hello = broker.wait_for(Hello)
    assert hello.role == "client"
    assert len(hello.instance) == 16
    assert hello.pid > 0


def test_rows_travel_and_their_owners_hear_of_the_end_on_the_callbacks_thread(broker: HandBroker, link: Link) -> None:
    owner = Owner()
    link.submit([row(b"x", owner), row(b"y", owner)])
    opened(broker, info("a"))
    (run,) = broker.wait_for(Submit).runs
    assert run.payloads == [b"x", b"y"]
    broker.send(Answer([run.ids[1]], [Outcome.DONE], [1], [b"answer"]))
    assert owner.next() == (b"y", Ending(Outcome.DONE, 1, b"answer"), "genpool-callbacks")
    assert broker.wait_for(Release).ids == [run.ids[1]]


@pytest.mark.parametrize("runs_user_code", [True, False])
def test_runs_travel_and_their_owners_hear_of_parts_of_them(
    broker: HandBroker, link: Link, *, runs_user_code: bool
) -> None:
    owner = Owner(RuntimeError, runs_user_code=runs_user_code)
    link.submit(Run(row(b"", owner).spec, owner, 0, [b"x", b"y", b"z"]))
    opened(broker, info("a"))
    (run,) = broker.wait_for(Submit).runs
    assert run.payloads == [b"x", b"y", b"z"]
    broker.send(Answer(run.ids[1:], [Outcome.DONE] * 2, [1, 1], [b"one", b"two"]))
    thread = "genpool-callbacks" if runs_user_code else "genpool-io"
    assert owner.next() == (b"y", Ending(Outcome.DONE, 1, b"one"), thread)
    assert owner.next() == (b"z", Ending(Outcome.DONE, 1, b"two"), thread)
    assert broker.wait_for(Release).ids == run.ids[1:]
    link.close()
    payload, ending, _ = owner.next()
    assert (payload, type(ending)) == (b"x", Closed)


@pytest.mark.parametrize(
    ("answer", "thread"),
    [(b"answer", "genpool-io"), (b"a" * LARGE_BYTES, "genpool-callbacks")],
    ids=["small", "large"],
)
def test_who_runs_no_user_code_hears_in_the_io_thread_what_is_read_soon(
    broker: HandBroker, link: Link, answer: bytes, thread: str
) -> None:
    owner = Owner(runs_user_code=False)
    link.submit([row(b"x", owner)])
    opened(broker, info("a"))
    (run,) = broker.wait_for(Submit).runs
    broker.send(Answer(run.ids, [Outcome.DONE], [1], [answer]))
    payload, ending, where = owner.next()
    assert (payload, where) == (b"x", thread)
    assert isinstance(ending, Ending)
    assert bytes(ending.payload) == answer


def test_a_withdrawn_row_is_released(broker: HandBroker, link: Link) -> None:
    mine = row(b"x", Owner())
    link.submit([mine])
    opened(broker, info("a"))
    broker.wait_for(Submit)
    link.withdraw([mine])
    assert broker.wait_for(Release).ids == [mine.id]


def test_all_rows_of_an_llm_can_be_failed(broker: HandBroker, link: Link) -> None:
    owner = Owner()
    link.submit([row(b"x", owner)])
    error = Closed("its process has ended")
    link.fail("a", error)
    assert owner.next() == (b"x", error, "genpool-callbacks")


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_an_owner_that_raises_costs_the_others_nothing(
    broker: HandBroker, link: Link, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = Owner(error), Owner()
    link.submit([row(b"x", bad), row(b"y", good)])
    opened(broker, info("a"))
    ids = broker.wait_for(Submit).runs[0].ids
    broker.send(Answer(ids, [Outcome.DONE] * 2, [1] * 2, [b""] * 2))
    assert good.next()[0] == b"y"
    assert "a callback raised" in caplog.text


def test_what_the_fleet_is_can_be_waited_for(broker: HandBroker, link: Link) -> None:
    assert link.fleet is None
    answers: list[str | None] = []

    def ask() -> None:
        answers.append(link.wait_for(lambda fleet: fleet["a"].name if "a" in fleet else None, PATIENCE_S))

    asking = threading.Thread(target=ask)
    asking.start()
    opened(broker, info("b"))
    until(lambda: link.fleet is not None)
    broker.send(Fleet([info("a"), info("b")]))
    asking.join(PATIENCE_S)
    assert answers == ["a"]


def test_a_question_without_an_answer_in_time_is_none(broker: HandBroker, link: Link) -> None:
    opened(broker, info("a"))
    until(lambda: link.fleet is not None)
    assert link.wait_for(lambda fleet: fleet.get("b"), 0.01) is None


def test_no_broker_is_an_error_that_says_where_and_for_how_long(broker: HandBroker) -> None:
    broker.close()
    link = link_to(broker.address)
    try:
        with pytest.raises(NoBroker, match=rf"no broker at {broker.address} within 0\.2 s: nothing answers there"):
            link.wait_for(lambda fleet: fleet, 0.2)
        with pytest.raises(NoBroker):
            link.status(0.05)
    finally:
        leave(link)


def test_a_refusal_ends_every_wait_at_once(broker: HandBroker, link: Link) -> None:
    owner = Owner()
    link.submit([row(b"x", owner)])
    broker.wait_for(Hello)
    broker.send(Refuse("install the same release"))
    began = time.monotonic()
    with pytest.raises(Refused, match="refused this client: install the same release"):
        link.wait_for(lambda fleet: fleet, 2 * PATIENCE_S)
    with pytest.raises(Refused):
        link.status(2 * PATIENCE_S)
    assert time.monotonic() - began < PATIENCE_S
    assert isinstance(owner.next()[1], Refused)


def test_a_refusal_wakes_one_who_waits_already(broker: HandBroker, link: Link) -> None:
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            link.wait_for(lambda fleet: fleet.get("a"), 10 * PATIENCE_S)
        except Refused as error:
            errors.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    broker.wait_for(Hello)
    broker.send(Refuse("no"))
    asking.join(PATIENCE_S)
    assert [type(error) for error in errors] == [Refused]


def test_the_brokers_report_is_fetched(broker: HandBroker, link: Link) -> None:
    reports: list[object] = []
    asking = threading.Thread(target=lambda: reports.append(link.status(PATIENCE_S)))
    asking.start()
    opened(broker)
    broker.wait_for(Ask)
    broker.send(Status({"llms": ["a"]}))
    asking.join(PATIENCE_S)
    assert reports == [{"llms": ["a"]}]


def test_closing_says_goodbye_and_ends_what_is_left(broker: HandBroker) -> None:
    link, owner = link_to(broker.address), Owner()
    link.submit([row(b"at the broker", owner)])
    opened(broker, info("a"))
    broker.wait_for(Submit)
    link.submit([row(b"at home", owner, RowSpec("b", "input", 1, b"", None, 60.0))])
    leave(link)
    assert {owner.next()[0], owner.next()[0]} == {b"at the broker", b"at home"}
    assert broker.wait_for(Goodbye)
    with pytest.raises(Closed, match=f"the connection to the broker at {broker.address} was closed"):
        link.submit([row(b"later", owner)])
    link.close()


def test_threads_end_with_the_link(broker: HandBroker) -> None:
    link = link_to(broker.address)
    threads = [link._io, link._callbacks]
    assert [thread.name for thread in threads] == ["genpool-io", "genpool-callbacks"]
    leave(link)
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_no_row_is_lost_between_submitting_and_closing(broker: HandBroker) -> None:
    for _ in range(20):
        link, owner = link_to(broker.address), Owner()
        taken: list[Row] = []

        def submit(link: Link = link, owner: Owner = owner, taken: list[Row] = taken) -> None:
            for number in range(1000):
                one = row(b"%d" % number, owner)
                try:
                    link.submit([one])
                except Closed:
                    return
                taken.append(one)

        submitting = threading.Thread(target=submit)
        submitting.start()
        until(lambda taken=taken: taken)
        leave(link)
        submitting.join(PATIENCE_S)
        assert {owner.next()[0] for _ in taken} == {one.payload for one in taken}


def test_a_defect_ends_all_rows_and_the_next_user_gets_a_new_link(
    broker: HandBroker, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(now: float) -> None:
        raise ZeroDivisionError

    link, owner = link_to(broker.address), Owner()
    link.submit([row(b"x", owner)])
    link._dealer.post(broken)
    _, ending, _ = owner.next()
    assert isinstance(ending, Closed)
    assert "broke by a defect" in str(ending)
    with pytest.raises(Closed):
        link.submit([row(b"y", owner)])
    until(lambda: not link.is_open)
    other = link_to(broker.address)
    assert other is not link
    leave(other)
    leave(link)
    assert "ZeroDivisionError" in caplog.text


def test_another_llm_may_be_torn_down_in_the_midst_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = ProcessLLM.connect("a", "127.0.0.1:5555"), ProcessLLM.connect("a", "127.0.0.1:5556")

    class Collecting(Link):
        """While it is made, the garbage collector finds the other LLM."""

        def __init__(self, address: str) -> None:
            other.teardown()
            super().__init__(address)

    other.start()
    monkeypatch.setattr(link_module, "Link", Collecting)
    one.start()
    assert one.link().is_open
    one.teardown()
    with pytest.raises(Closed):
        other.start()


_LATE = """
from genpool import ProcessLLM

class Late:
    llm = ProcessLLM.connect("a", "127.0.0.1:5555")

    def __del__(self):
        self.llm.start()

late = Late()
"""


def test_who_is_deleted_while_the_interpreter_ends_opens_nothing() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _LATE], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert "Closed: the interpreter is ending" in ended.stderr


def test_an_unknown_llm_is_told_to_the_owner(broker: HandBroker, link: Link) -> None:
    owner = Owner()
    link.submit([row(b"x", owner, RowSpec("gwen", "input", 1, b"", None, 0.1))])
    opened(broker, info("qwen"))
    _, ending, _ = owner.next()
    assert isinstance(ending, UnknownLLM)
    assert "known there: qwen" in str(ending)
