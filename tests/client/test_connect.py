"""Connected LLMs and pools on a real fleet: a broker and workers, each a command, on random ports."""

from __future__ import annotations

import asyncio
import datetime
import multiprocessing
import operator
import pickle
import queue
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import wait
from contextlib import aclosing, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import served
import zmq
from fleet import PATIENCE_S, Fleet, until

from genpool import LLMPool, ProcessLLM, Prompt, Task
from genpool.client import link as link_module
from genpool.protocol.errors import Closed, ConfigurationError, Expired, GenerationError, NoBroker, UnknownLLM

REPLICAS = 2

# A fork of a process with threads is what these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(scope="module")
def held_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("held")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, held_folder: Path) -> Iterator[Fleet]:
    """Serves "one" with two workers, "two" (with a prompt format), and "held"."""
    with Fleet(tmp_path_factory.mktemp("fleet")) as fleet:
        fleet.start_broker()
        for _ in range(REPLICAS):
            start(fleet, "one", "plain")
        start(fleet, "two", "chatml")
        start(fleet, "held", "held", HELD=str(held_folder))
        fleet.wait_for(lambda report: sum(llm["capacity"] for llm in report["llms"]) == REPLICAS + 2)
        yield fleet


def start(fleet: Fleet, llm: str, loader: str, **environment: str) -> Any:
    here = str(Path(served.__file__).parent)
    said = {"MODEL": f"model of {llm}", "PYTHONPATH": here, **environment}
    return fleet.start_worker(llm, "--load", f"served:{loader}", environment=said)


@pytest.fixture
def connected(fleet: Fleet) -> Iterator[Callable[..., Any]]:
    """Connects a pool (for a list of names) or an LLM (for one), which is torn down at the end."""
    made: list[Any] = []

    def connect(names: str | list[str], **said: Any) -> Any:
        kind = ProcessLLM if isinstance(names, str) else LLMPool
        made.append(kind.connect(names, **{"broker": fleet.address, **said}))  # pyright: ignore[reportArgumentType]
        return made[-1]

    yield connect
    for one in made:
        one.teardown()


@pytest.fixture
def pool(connected: Callable[..., Any]) -> LLMPool:
    return connected(["one", "two"])


class Hold:
    """The rows of the LLM "held": what has started, and what may go on."""

    def __init__(self, folder: Path, llm: ProcessLLM) -> None:
        self.folder, self.llm = folder, llm
        self._number = next(_numbers)

    def named(self, *names: str) -> list[dict[str, str]]:
        """Inputs of these names, of this test alone."""
        return [{"question": self._text(name)} for name in names]

    def _text(self, name: str) -> str:
        return f"{name}-{self._number}"

    def _is(self, name: str, what: str) -> bool:
        return (self.folder / f"{self._text(name)}.{what}").exists()

    def let_go(self, *names: str) -> None:
        for name in names:
            (self.folder / f"{self._text(name)}.go").touch()

    def has_started(self, name: str) -> bool:
        return self._is(name, "started")

    def wait_until(self, name: str, what: str) -> None:
        until(lambda: self._is(name, what), f"that {name} is {what}")

    def pass_by(self) -> None:
        """Have one more row run: what was asked for before and not withdrawn has started by then."""
        self.let_go("last")
        assert self.llm.generate(self.named("last")).result(PATIENCE_S)


_numbers = count()


@pytest.fixture
def hold(connected: Callable[..., Any], held_folder: Path) -> Hold:
    return Hold(held_folder, connected("held"))


class Shout(Task):
    """A task of the client's own, with other arguments than the workers'."""

    system_prompt = "Shout."

    @property
    def input_args_names(self) -> list[str]:
        return ["word"]

    @property
    def output_args_names(self) -> list[str]:
        return ["shout"]

    def generate_prompt(self, word: str) -> Any:
        return [{"role": "user", "content": word}] if word == "chat" else Prompt(self.system_prompt, word)

    def parse_output(self, output: str) -> str:
        return f"parsed here: {output}"


def questions(*texts: str) -> list[dict[str, str]]:
    return [{"question": text} for text in texts]


def raw(outputs: list[Any]) -> list[list[Any]]:
    return [[output["raw_output"] for output in row] for row in outputs]


# By names.


def test_a_pool_by_names_uses_the_workers_task(pool: LLMPool) -> None:
    outputs = pool.generate(questions("why?", "how?"), 4)
    assert [[output["model_name"] for output in row] for row in outputs] == [
        ["model of one"] * 2 + ["model of two"] * 2
    ] * 2
    first, last = outputs[1][0], outputs[1][3]
    assert (first["prompt_used"], first["raw_output"]) == ("Answer.\nhow?", "ANSWER.\nHOW?")
    assert last["prompt_used"].startswith("<|im_start|>system\nAnswer.<|im_end|>")
    assert first["parsed_output"] == {"answer": "answer.\nhow?"}


def test_a_task_of_the_fleet_is_known_by_its_names(pool: LLMPool) -> None:
    assert repr(pool.task) == "RemoteTask('Question', inputs=['question'], outputs=['answer'])"
    assert pool.task.input_args_names == ["question"]
    assert pool.task.output_args_names == ["answer"]


@pytest.mark.parametrize("extra", [7, datetime.date(2026, 1, 2)], ids=["plain", "not to be carried"])
def test_columns_that_the_task_does_not_have_are_left_out(connected: Callable[..., Any], extra: Any) -> None:
    """At the first call as well, when the client does not know the task's arguments yet."""
    llm = connected("one")
    given = [{"question": "why?", "extra": extra}, {"extra": extra}]
    for _ in range(2):
        first, second = llm.generate(given, 2).result(PATIENCE_S)
        assert raw([first]) == [["ANSWER.\nWHY?"] * 2]
        assert [(one["prompt_used"], one["raw_output"], one["parsed_output"]) for one in second] == [(None,) * 3] * 2
        assert llm.model_name == "model of one"


def test_a_row_that_fails_says_where(connected: Callable[..., Any]) -> None:
    with pytest.raises(ArithmeticError, match="this one fails") as raised:
        connected(["one", "two"]).generate(questions("good", "fail"), 2)
    assert isinstance(raised.value, GenerationError)
    failure = raised.value.failures[1]
    assert (failure.type_name, failure.host) == ("ArithmeticError", socket.gethostname())
    assert failure.worker.isdigit()
    assert failure.traceback == ""
    assert "served.py" not in str(failure)
    assert [len(row) for row in raised.value.partial] == [2, 1]


def test_without_names_a_pool_is_the_whole_fleet(echo_fleet: Fleet) -> None:
    with LLMPool.connect(broker=echo_fleet.address) as pool:
        assert raw(pool.generate([{"input": "x"}], 2)) == [["X", "X"]]
        assert [llm.model_name for llm in pool.llms] == ["model-a", "model-b"]
        assert pool.task.name == "TextGenerationTask"


def test_all_workers_of_a_name_take_part(connected: Callable[..., Any]) -> None:
    outputs = connected("one").generate(questions(*["pid"] * 200)).result(PATIENCE_S)
    assert len({row[0]["raw_output"] for row in outputs}) == REPLICAS


def test_many_rows_are_answered_in_order(pool: LLMPool) -> None:
    texts = [str(number) for number in range(500)]
    assert raw(pool.generate(questions(*texts), 1, weights=[1, 0])) == [[f"ANSWER.\n{text}"] for text in texts]


# With a task here.


def test_a_task_here_renders_for_any_llm_and_reads_its_completions(connected: Callable[..., Any]) -> None:
    pool = connected(["one", "two"], task=Shout())
    (row,) = pool.generate([{"word": "hello", "question": "not this"}], 2)
    assert [output["prompt_used"] for output in row] == [
        "Shout.\nhello",
        "<|im_start|>system\nShout.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n",
    ]
    assert [output["parsed_output"] for output in row] == [f"parsed here: {output['raw_output']}" for output in row]
    assert pool.task.system_prompt == "Shout."


def test_a_task_here_reaches_an_engine_that_answers_row_by_row(hold: Hold, connected: Callable[..., Any]) -> None:
    (given,) = hold.named("shouted")
    hold.let_go("shouted")
    (row,) = connected("held", task=Shout()).generate([{"word": given["question"]}]).result(PATIENCE_S)
    assert row[0]["parsed_output"].startswith(f"parsed here: {given['question']}")


# Options and seed.


def test_options_and_seed_reach_the_engine(hold: Hold) -> None:
    hold.let_go("x", "y")
    call = hold.llm.generate(hold.named("x", "y"), generation_kwargs={"temperature": 0.5}, seed=1)
    first, second = (row[0]["raw_output"] for row in call.result(PATIENCE_S))
    assert "{'temperature': 0.5}" in first
    assert first.split()[-1].isdigit()
    assert first.split()[-1] != second.split()[-1]


def test_options_that_the_engine_does_not_know_are_refused_with_those_that_it_does(hold: Hold) -> None:
    """By the client: when it hears of the engine, before a row is sent, and afterwards with the call."""
    given, heat = hold.named("x"), {"heat": 0.5}
    with pytest.raises(ConfigurationError, match=r"no option 'heat'; it knows temperature, top_p"):
        hold.llm.generate(given, generation_kwargs=heat).result(PATIENCE_S)
    assert hold.llm.model_name == "held"
    with pytest.raises(ConfigurationError, match="'held' knows no option 'heat'; it knows temperature, top_p"):
        hold.llm.generate(given, generation_kwargs=heat)
    assert not hold.has_started("x")


def test_an_llm_without_options_refuses_all(pool: LLMPool) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match=r"no option 'temperature'; it knows none"):
            pool.generate(questions("x"), 2, generation_kwargs={"temperature": 0.5})
        assert pool.llms[0].model_name == "model of one"


# Row by row.


def test_the_first_row_of_a_stream_is_seen_before_the_last_has_started(hold: Hold) -> None:
    rows = hold.llm.stream(hold.named("first", "second", "third"))
    hold.let_go("first")
    assert next(rows).index == 0
    assert not hold.has_started("third")
    hold.let_go("second", "third")
    assert [row.index for row in rows] == [1, 2]


def test_leaving_a_stream_stops_what_runs_and_what_waits_never_starts(hold: Hold) -> None:
    rows = hold.llm.stream(hold.named("first", "second", "third"))
    hold.let_go("first")
    assert next(rows).index == 0
    hold.wait_until("second", "started")
    rows.close()
    hold.wait_until("second", "cancelled")
    hold.pass_by()
    assert not hold.has_started("third")


def test_cancelling_a_future_stops_what_runs_and_what_waits_never_starts(hold: Hold) -> None:
    future = hold.llm.generate(hold.named("running", "waiting"))
    hold.wait_until("running", "started")
    assert future.cancel()
    assert wait([future], PATIENCE_S).done == {future}
    hold.wait_until("running", "cancelled")
    hold.pass_by()
    assert not hold.has_started("waiting")


def test_a_future_can_be_cancelled_until_its_last_row(hold: Hold) -> None:
    advanced: queue.SimpleQueue[int] = queue.SimpleQueue()
    future = hold.llm.generate(hold.named("done", "running"), 1, lambda advance: advanced.put(advance))
    hold.let_go("done")
    assert advanced.get(timeout=PATIENCE_S) == 1
    hold.wait_until("running", "started")
    assert future.cancel()
    hold.wait_until("running", "cancelled")


def test_cancelling_the_task_of_agenerate_withdraws_its_rows(hold: Hold) -> None:
    async def main() -> None:
        task = asyncio.ensure_future(hold.llm.agenerate(hold.named("running", "waiting")))
        await asyncio.sleep(0)
        await asyncio.to_thread(hold.wait_until, "running", "started")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    hold.wait_until("running", "cancelled")
    hold.pass_by()
    assert not hold.has_started("waiting")


def test_agenerate(pool: LLMPool) -> None:
    outputs = asyncio.run(pool.agenerate(questions("x", "y"), 2))
    assert [len(row) for row in outputs] == [2, 2]


def test_astream_yields_as_rows_finish_and_leaving_it_cancels(hold: Hold) -> None:
    async def source() -> AsyncIterator[dict[str, str]]:
        for given in hold.named("first", "second", "third"):
            yield given

    async def main() -> None:
        async with aclosing(hold.llm.astream(source())) as rows:
            assert (await anext(rows)).index == 0
            await asyncio.to_thread(hold.wait_until, "second", "started")

    hold.let_go("first")
    asyncio.run(main())
    hold.wait_until("second", "cancelled")
    hold.pass_by()
    assert not hold.has_started("third")


def test_a_timeout_ends_the_call_and_stops_the_engine(hold: Hold, connected: Callable[..., Any]) -> None:
    pool = connected(["one", "held"])
    with pytest.raises(TimeoutError) as raised:
        pool.generate(hold.named("running", "waiting"), 2, timeout=1.0)
    assert isinstance(raised.value, Expired)
    assert isinstance(raised.value, GenerationError)
    assert [[output["model_name"] for output in row] for row in raised.value.partial] == [["model of one"]] * 2
    hold.wait_until("running", "cancelled")
    hold.pass_by()
    assert not hold.has_started("waiting")


def test_ctrl_c_cancels_what_generate_waits_for(hold: Hold, connected: Callable[..., Any]) -> None:
    pool = connected(["one", "held"])

    def interrupt() -> None:
        hold.wait_until("running", "started")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    with pytest.raises(KeyboardInterrupt):
        pool.generate(hold.named("running", "waiting"), 2)
    interrupting.join(PATIENCE_S)
    hold.wait_until("running", "cancelled")
    hold.pass_by()
    assert not hold.has_started("waiting")


# The caller's own code.


def test_progress_is_called_on_a_thread_of_its_own(pool: LLMPool) -> None:
    seen: list[tuple[int, str]] = []
    future = pool.submit(
        questions("x", "y", "z"), 3, lambda advance: seen.append((advance, threading.current_thread().name))
    )
    future.result(PATIENCE_S)
    assert sum(advance for advance, _ in seen) == 9
    assert {name for _, name in seen} == {"genpool-callbacks"}


def test_done_callbacks_run_on_the_callbacks_thread(hold: Hold) -> None:
    seen: list[str] = []
    told = threading.Event()

    def note(_: Any) -> None:
        seen.append(threading.current_thread().name)
        told.set()

    future = hold.llm.submit(hold.named("x"))
    future.add_done_callback(note)
    hold.let_go("x")
    assert told.wait(PATIENCE_S)
    assert seen == ["genpool-callbacks"]


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_callback_that_raises_costs_nothing(pool: LLMPool, error: type[BaseException]) -> None:
    def explode(*_: Any, **__: Any) -> None:
        raise error("from the callback")

    future = pool.submit(questions("x", "y"), 2, explode)
    future.add_done_callback(explode)
    assert [len(row) for row in future.result(PATIENCE_S)] == [2, 2]
    assert [len(row) for row in pool.submit(questions("z"), 2).result(PATIENCE_S)] == [2]


def test_a_callback_may_start_another_call(pool: LLMPool) -> None:
    second: queue.SimpleQueue[Any] = queue.SimpleQueue()
    first = pool.submit(questions("x"), 2)
    first.add_done_callback(lambda _: second.put(pool.submit(questions("y"), 2)))
    assert len(second.get(timeout=PATIENCE_S).result(PATIENCE_S)[0]) == 2


# Addresses, and what may be found there.


def test_addresses(fleet: Fleet, connected: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for broker in (str(fleet.connection_file), fleet.address.removeprefix("tcp://"), fleet.address):
        assert connected("one", broker=broker).generate(questions("x")).result(PATIENCE_S)
    for broker in (str(fleet.connection_file), fleet.address):
        monkeypatch.setenv("GENPOOL_BROKER", broker)
        assert connected(["one", "two"], broker=None).generate(questions("x"), 2)


@pytest.mark.parametrize("broker", ["nowhere", "tcp://host", "http://host:80", "host:99999"])
def test_what_is_no_address(broker: str) -> None:
    with pytest.raises(ConfigurationError, match=broker):
        LLMPool.connect(["one", "two"], broker=broker)


def test_an_llm_that_nobody_serves_is_an_error_that_lists_the_known(connected: Callable[..., Any]) -> None:
    pool = connected(["one", "gwen"], wait_s=0.3)
    with pytest.raises(
        UnknownLLM, match=r"no worker has announced an LLM named 'gwen'.* known there: held, one, two"
    ) as raised:
        pool.generate(questions("x"), 2)
    assert isinstance(raised.value, GenerationError)
    assert raw(raised.value.partial) == [["ANSWER.\nX"]]
    with pytest.raises(UnknownLLM, match=r"no worker served 'gwen' within 0\.3 s; known there: held, one, two"):
        assert pool.llms[1].model_name


def test_the_model_name_is_waited_for(fleet: Fleet, connected: Callable[..., Any]) -> None:
    llm = connected("late")
    names: list[str] = []
    asking = threading.Thread(target=lambda: names.append(llm.model_name))
    asking.start()
    worker = start(fleet, "late", "plain")
    try:
        asking.join(PATIENCE_S)
        assert names == ["model of late"]
        assert llm.task.name == "Question"
    finally:
        worker.terminate()
        worker.wait(PATIENCE_S)
        fleet.processes.remove(worker)


@contextmanager
def nobody() -> Generator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    yield port


@contextmanager
def listening(answer: bytes) -> Generator[int]:
    """A server that says ``answer`` to whoever connects and hangs up, or says nothing at all."""
    listener = socket.create_server(("127.0.0.1", 0))
    connections: list[socket.socket] = []

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connections.append(connection)
                if answer:
                    connection.sendall(answer)
                    connection.shutdown(socket.SHUT_RDWR)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        for one in (listener, *connections):
            one.close()


@contextmanager
def other_zeromq() -> Generator[int]:
    with zmq.Context[zmq.Socket[bytes]]() as context, context.socket(zmq.PUB) as publisher:
        yield publisher.bind_to_random_port("tcp://127.0.0.1")


@pytest.mark.parametrize(
    ("server", "told"),
    [
        (nobody, "nothing answers there"),
        (lambda: listening(b""), "it has not answered yet"),
        (lambda: listening(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"), "no genpool broker"),
        (other_zeromq, "no genpool broker"),
    ],
    ids=["nobody", "silent", "http", "zeromq"],
)
def test_what_is_no_broker_is_an_error_that_says_where_and_how_long(server: Any, told: str) -> None:
    with server() as port:
        address = f"127.0.0.1:{port}"
        with LLMPool.connect(["one", "two"], broker=address, wait_s=0.4) as pool:
            with pytest.raises(NoBroker, match=rf"no broker at tcp://{address} for 0\.\d s: .*{told}") as raised:
                pool.generate(questions("x"), 2)
            assert isinstance(raised.value, ConnectionError)
        llm = ProcessLLM.connect("one", address, wait_s=0.2)
        with pytest.raises(NoBroker, match=rf"no broker at tcp://{address} within 0\.2 s: .*{told}"):
            assert llm.model_name
        llm.teardown()


# Other processes.


def test_a_pickled_pool_works_in_a_spawned_process(pool: LLMPool) -> None:
    pool.generate(questions("x"), 2)
    with multiprocessing.get_context("spawn").Pool(1) as processes:
        call = operator.methodcaller("generate", questions("x", "y"), 2)
        outputs = processes.apply_async(call, (pool,)).get(PATIENCE_S)
    assert raw(outputs) == raw(pool.generate(questions("x", "y"), 2))


def test_a_pickled_pool_works_in_a_forked_process(pool: LLMPool) -> None:
    pool.generate(questions("x"), 2)
    with multiprocessing.get_context("fork").Pool(2) as processes:
        call = operator.methodcaller("generate", questions("x"), 2)
        outputs = processes.map_async(call, [pool] * 4).get(PATIENCE_S)
    assert [len(one[0]) for one in outputs] == [2] * 4


def test_a_pool_connects_anew_after_a_fork(pool: LLMPool) -> None:
    before = pool.submit(questions(*map(str, range(50))), 2)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(raw(pool.generate(questions("x"), 2))))
    child.start()
    assert receiver.poll(PATIENCE_S)
    assert receiver.recv() == raw(pool.generate(questions("x"), 2))
    child.join(PATIENCE_S)
    assert child.exitcode == 0
    assert len(before.result(PATIENCE_S)) == 50


def test_a_child_may_use_a_pool_whose_llms_its_parent_was_looking_for(tmp_path: Path) -> None:
    pool = LLMPool.connect(broker=f"ipc://{tmp_path}/nobody", wait_s=2.0)

    def look() -> None:
        with pytest.raises(NoBroker):
            pool.generate(questions("x"))

    waiting = threading.Thread(target=look)
    child = multiprocessing.get_context("fork").Process(target=look, daemon=True)
    waiting.start()
    child.start()
    child.join(PATIENCE_S)
    waiting.join(PATIENCE_S)
    assert child.exitcode == 0


def test_a_child_that_is_forked_in_the_midst_of_a_step_takes_steps_of_its_own(pool: LLMPool) -> None:
    with link_module.step():
        child = multiprocessing.get_context("fork").Process(target=pool.teardown, daemon=True)
        child.start()
        child.join(PATIENCE_S)
    assert child.exitcode == 0


def test_a_pool_pickles_without_a_broker() -> None:
    pool = LLMPool.connect(["one", "two"], broker="127.0.0.1:1", task=Shout())
    copied = pickle.loads(pickle.dumps(pool))
    assert repr(copied) == repr(pool)
    assert isinstance(copied.task, Shout)


# The end.


def test_teardown_leaves_the_fleet_alone(fleet: Fleet, connected: Callable[..., Any]) -> None:
    first = connected(["one", "two"])
    first.generate(questions("x"), 2)
    workers = {worker["pid"] for llm in fleet.report()["llms"] for worker in llm["workers"]}
    first.teardown()
    first.teardown()
    assert connected(["one", "two"]).generate(questions("x"), 2)
    assert {worker["pid"] for llm in fleet.report()["llms"] for worker in llm["workers"]} == workers
    with pytest.raises(Closed):
        first.generate(questions("x"), 2)


def test_teardown_ends_what_is_not_finished(hold: Hold, connected: Callable[..., Any]) -> None:
    future = hold.llm.generate(hold.named("running", "waiting"))
    hold.wait_until("running", "started")
    hold.llm.teardown()
    with pytest.raises(Closed):
        future.result(PATIENCE_S)
    hold.wait_until("running", "cancelled")
    hold.llm = connected("held")
    hold.pass_by()
    assert not hold.has_started("waiting")


def test_rows_of_a_torn_down_llm_go_on_while_others_use_its_connection(
    hold: Hold, connected: Callable[..., Any]
) -> None:
    connected("one").start()
    wanted = hold.llm.generate(hold.named("wanted"))
    unwanted = hold.llm.generate(hold.named("unwanted"))
    hold.wait_until("wanted", "started")
    hold.llm.teardown()
    hold.let_go("wanted")
    assert wanted.result(PATIENCE_S)
    hold.wait_until("unwanted", "started")
    assert unwanted.cancel()
    hold.wait_until("unwanted", "cancelled")


def test_connecting_opens_nothing(fleet: Fleet) -> None:
    before = set(threading.enumerate())
    pool = LLMPool.connect(["one", "two"], broker=fleet.address)
    assert not set(threading.enumerate()) - before
    pool.teardown()
