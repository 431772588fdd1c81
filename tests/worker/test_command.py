"""``genpool worker`` as a real process, with a broker held by hand."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet import PATIENCE_S, Fleet
from wire import HandBroker

from genpool import __version__
from genpool.protocol.content import pack_row, unpack_outputs
from genpool.protocol.limits import Limits
from genpool.protocol.messages import (
    Assign,
    AssignRun,
    Goodbye,
    Grant,
    Hello,
    Hold,
    Outcome,
    Refuse,
    Result,
    Settle,
    Welcome,
)
from genpool.tasks.base import describe
from genpool.tasks.text_generation import TextGenerationTask

# A row whose input is the path of a FIFO waits until the test has opened and closed it.
SCRIPTED = """
import multiprocessing
import os
import signal
import time
from genpool import LLM, TextGenerationTask, errors

def wait(path):
    if path:
        with open(path) as fifo:
            fifo.read()

class Scripted(LLM):
    model_name = "scripted model"

    def _generate(self, inputs, num_generations=1):
        for row in inputs:
            if row["input"].startswith("/"):
                wait(row["input"])
            if row["input"] == "dead":
                raise errors.EngineDead("the GPU fell off the bus")
            if row["input"] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
        text = f"one of {len(inputs)}"
        output = {"model_name": "scripted", "prompt_used": None, "raw_output": text, "parsed_output": None}
        return [[output] * num_generations for _ in inputs]

class ByRow(Scripted):
    option_names = frozenset({"heat"})

    def generate_row(self, call):
        call.cancelled.wait()
        raise ValueError("stopped")

def announced(theirs):
    theirs.send("it runs")
    time.sleep(1000)

def forked():
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=announced, args=[theirs], daemon=True)
    process.start()
    ours.recv()
    return process

class Forking(Scripted):
    helper = None

    def _generate(self, inputs, num_generations=1):
        process = forked()
        process.terminate()
        process.join()
        text = f"it ended with {process.exitcode}"
        return [[{"model_name": "m", "prompt_used": None, "raw_output": text, "parsed_output": None}]]

class Unclosable(Scripted):
    def close(self):
        super().close()
        if "FIFO" in os.environ:
            wait(os.environ["FIFO"])
        raise {"error": OSError, "exit": SystemExit}[os.environ["RAISED"]]("no close for " + os.environ["MY_KEY"])

class Nameless(Scripted):
    model_name = None

class Endless(Scripted):
    concurrency = 10**30

class Uncallable(LLM):
    pass

not_callable = 7
task = TextGenerationTask(system_prompt="Be brief.")

def load():
    return Scripted(TextGenerationTask())

def load_task(task):
    assert task.system_prompt == "Be brief."
    return Scripted(task)

def threads():
    return Scripted(TextGenerationTask(), num_threads=3)

def by_row():
    return ByRow(TextGenerationTask())

def forking():
    llm = Forking(TextGenerationTask())
    llm.helper = forked()
    return llm

def unclosable():
    return Unclosable(TextGenerationTask())

def endless():
    return Endless(TextGenerationTask())

def nameless():
    return Nameless(TextGenerationTask())

def slow():
    wait(os.environ["FIFO"])
    return load()

def nothing():
    wait(os.environ.get("FIFO"))
    return None

def broken():
    wait(os.environ.get("FIFO"))
    raise OSError("no GPU here")

def leaves():
    wait(os.environ.get("FIFO"))
    raise SystemExit(5)

def later():
    if not os.path.exists(os.environ["SERVER"]):
        open(os.environ["SERVER"], "w").close()
        raise errors.EngineUnwell("no server yet")
    return load()

def too_much(task, path):
    return load()
"""


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    (tmp_path / "scripted_llm.py").write_text(SCRIPTED)
    with Fleet(tmp_path) as fleet:
        yield fleet


@pytest.fixture
def broker() -> Iterator[HandBroker]:
    with HandBroker() as broker:
        yield broker


Process = subprocess.Popen[bytes]


def start(fleet: Fleet, address: str, *arguments: str, load: str = "load", **environment: str) -> Process:
    environment["PYTHONPATH"] = str(fleet.folder)
    return fleet.start_worker(
        "mine", "--load", f"scripted_llm:{load}", *arguments, broker=address, environment=environment
    )


def start_ready(
    fleet: Fleet, broker: HandBroker, *arguments: str, load: str = "load", **environment: str
) -> tuple[Process, Hello]:
    """A worker that has said that it is ready, and that hello."""
    process = start(fleet, broker.address, *arguments, load=load, **environment)
    first = broker.welcome()
    hello = first if first.state == "ready" else broker.wait_for(Hello)
    assert hello.state == "ready"
    return process, hello


def assign(first: int, *texts: str, n: int = 1) -> Assign:
    ids = [b"row %12d" % number for number in range(first, first + len(texts))]
    payloads = [pack_row({"input": text}, None) for text in texts]
    return Assign([AssignRun("input", n, b"", None, 0, first, ids, payloads)])


def texts(result: Result) -> list[Any]:
    assert set(result.outcomes) == {Outcome.DONE}
    return [output["raw_output"] for payload in result.payloads for output in unpack_outputs(payload)]


def said(fleet: Fleet) -> str:
    return (fleet.folder / "0-worker.log").read_text()


def fifo(fleet: Fleet, name: str) -> Path:
    path = fleet.folder / name
    os.mkfifo(path)
    return path


def let_go(path: Path) -> None:
    """Waits until an engine reads there, and lets it go on."""
    with path.open("w"):
        pass


# What it says of itself.


def test_it_says_hello_while_it_loads_and_again_with_its_credit(fleet: Fleet, broker: HandBroker) -> None:
    gate = fifo(fleet, "gate")
    process = start(fleet, broker.address, load="slow", FIFO=str(gate))
    hello = broker.welcome()
    assert (hello.role, hello.llm, hello.state, hello.credit) == ("worker", "mine", "loading", 0)
    assert (hello.host, hello.pid, hello.release) == (socket.gethostname(), process.pid, __version__)
    assert broker.wait_for(Hold) == Hold([], [], [], False)
    let_go(gate)
    ready = broker.wait_for(Hello)
    assert (ready.instance, ready.state, ready.credit) == (hello.instance, "ready", 1)
    assert (ready.model_name, ready.batch_size, ready.concurrency) == ("scripted model", 1, 1)
    assert ready.task == describe(TextGenerationTask())


def test_a_task_may_be_named(fleet: Fleet, broker: HandBroker) -> None:
    _, hello = start_ready(fleet, broker, "--task", "scripted_llm:task", load="load_task")
    assert hello.task == describe(TextGenerationTask())


def test_rows_are_generated_and_answered(fleet: Fleet, broker: HandBroker) -> None:
    start_ready(fleet, broker)
    broker.send(assign(5, "a", n=2))
    result = broker.wait_for(Result)
    assert (result.executions, texts(result)) == ([5], ["one of 1", "one of 1"])
    broker.send(Settle([5]), assign(6, "b"))
    assert broker.wait_for(Result).executions == [6]


def test_batch_size_is_how_many_rows_go_into_a_call(fleet: Fleet, broker: HandBroker) -> None:
    _, hello = start_ready(fleet, broker, "--batch-size", "4")
    assert (hello.batch_size, hello.concurrency, hello.credit) == (4, 1, 1)
    assert "is ready: scripted model, 4 rows at once" in said(fleet)
    broker.send(assign(0, "a", "b", "c"))
    answers: list[str] = []
    while len(answers) < 3:  # each goes out as soon as the loop hears of it
        answers += texts(broker.wait_for(Result))
    assert answers == ["one of 3"] * 3


def test_concurrency_is_how_many_calls_run_at_once(fleet: Fleet, broker: HandBroker) -> None:
    _, hello = start_ready(fleet, broker, "--concurrency", "2")
    assert (hello.concurrency, hello.credit) == (2, 2)
    gates = [fifo(fleet, "one"), fifo(fleet, "two")]
    broker.send(assign(0, *map(str, gates)))
    with gates[0].open("w"), gates[1].open("w"):  # both calls are there, or this would wait for ever
        pass
    done: list[int] = []
    while len(done) < 2:
        done += broker.wait_for(Result).executions
    assert sorted(done) == [0, 1]


@pytest.mark.parametrize(("arguments", "concurrency"), [((), 3), (("--concurrency", "5"), 5)])
def test_an_llm_with_threads_says_itself_how_many_calls_suit_it(
    fleet: Fleet, broker: HandBroker, arguments: tuple[str, ...], concurrency: int
) -> None:
    _, hello = start_ready(fleet, broker, *arguments, load="threads")
    assert (hello.concurrency, hello.credit) == (concurrency, concurrency)


def test_an_engine_that_answers_row_by_row_has_calls_of_one_row_and_is_told_to_stop(
    fleet: Fleet, broker: HandBroker
) -> None:
    process, hello = start_ready(fleet, broker, "--batch-size", "8", load="by_row")
    assert (hello.batch_size, hello.options) == (1, ["heat"])
    broker.send(assign(0, "a"))
    broker.send(Settle([0]))
    assert broker.wait_for(Grant).credit == 2  # its call has ended
    process.terminate()
    assert process.wait(PATIENCE_S) == 0


def test_options_have_environment_variables(fleet: Fleet, broker: HandBroker) -> None:
    environment = {
        "PYTHONPATH": str(fleet.folder),
        "GENPOOL_BROKER": broker.address,
        "GENPOOL_WORKER_LLM": "from the environment",
        "GENPOOL_WORKER_LOAD": "scripted_llm:load",
        "GENPOOL_WORKER_CONCURRENCY": "6",
    }
    fleet.start("worker", environment=environment)
    hello = broker.welcome()
    assert hello.llm == "from the environment"
    if hello.state == "loading":
        hello = broker.wait_for(Hello)
    assert (hello.state, hello.concurrency) == ("ready", 6)


def test_the_workers_own_variable_for_the_broker_goes_before_the_common_one(fleet: Fleet, broker: HandBroker) -> None:
    environment = {
        "PYTHONPATH": str(fleet.folder),
        "GENPOOL_BROKER": "tcp://127.0.0.1:1",
        "GENPOOL_WORKER_BROKER": broker.address,
    }
    fleet.start("worker", "--llm", "mine", "--load", "scripted_llm:load", environment=environment)
    assert broker.welcome().llm == "mine"


def test_a_file_may_say_what_the_options_say(fleet: Fleet, broker: HandBroker) -> None:
    config = fleet.folder / "worker.toml"
    config.write_text(
        f'llm = "from the file"\nbroker = "{broker.address}"\nload = "scripted_llm:load"\nconcurrency = 3'
    )
    fleet.start("worker", "--config", str(config), environment={"PYTHONPATH": str(fleet.folder)})
    hello = broker.welcome()
    assert hello.llm == "from the file"
    if hello.state == "loading":
        hello = broker.wait_for(Hello)
    assert (hello.state, hello.concurrency) == ("ready", 3)


def test_a_setting_in_a_file_that_cannot_be_used_is_named(fleet: Fleet) -> None:
    config = fleet.folder / "worker.toml"
    config.write_text('llm = "mine"\nengine = "openai"\n[set]\ntop_p = "high"')
    environment = {"PYTHONPATH": str(fleet.folder), "GENPOOL_BROKER": "tcp://127.0.0.1:1"}
    process = fleet.start("worker", "--config", str(config), environment=environment)
    assert process.wait(PATIENCE_S) == 2
    assert said(fleet).splitlines()[-1] == f"genpool: {config}: the setting top_p must be a number, got 'high'"


# Mistakes.


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "say either --engine (litellm, llamacpp, openai, transformers) or --load package.module:function, and"),
        (
            ["--engine", "openai", "--load", "a:b"],
            "say either --engine (litellm, llamacpp, openai, transformers) or --load",
        ),
        (["--load", "scripted_llm:load", "--model", "x"], "--model and --set are for --engine"),
        (["--load", "scripted_llm:load", "--set", "a=b"], "--model and --set are for --engine"),
        (["--load", "scripted_llm:load", "--rpm", "5"], "--model and --set are for --engine, and so are --rpm"),
        (["--load", "scripted_llm"], "a function or task is named as package.module:name, got 'scripted_llm'"),
        (["--load", "no_such_module:load"], "no_such_module:load: there is no module 'no_such_module'"),
        (["--load", "scripted_llm:absent"], "scripted_llm:absent: the module scripted_llm has no 'absent'"),
        (["--load", "scripted_llm:not_callable"], "scripted_llm:not_callable is int 7, and cannot be called"),
        (["--load", "scripted_llm:nothing"], "the loader scripted_llm:nothing must return an LLM"),
        (["--load", "scripted_llm:too_much"], "the loader scripted_llm:too_much must need no more than the task"),
        (
            ["--load", "scripted_llm:endless"],
            "Endless does not say of itself what a broker can use: Integer value out of",
        ),
        (["--load", "scripted_llm:load", "--concurrency", "1000000"], "10000 calls at once at most, and not 1000000"),
        (["--load", "scripted_llm:nameless"], "Nameless does not say of itself what a broker can use"),
        (["--load", "scripted_llm:load", "--task", "scripted_llm:absent"], "has no 'absent'"),
        (
            ["--load", "scripted_llm:load", "--task", "scripted_llm:not_callable"],
            "scripted_llm:not_callable is no task",
        ),
        (["--engine", "llamacpp", "--model", "absent.gguf"], "absent.gguf"),
        (["--engine", "llamacpp"], "model"),
        (["--engine", "llamacpp", "--set", "heat=1"], "LlamaCppLLM has no setting 'heat': it has "),
        (["--engine", "llamacpp", "--set", "heat"], "a setting is written key=value, got 'heat'"),
        (["--engine", "llamacpp", "--tpm", "5"], "LlamaCppLLM has no setting 'tpm': it has "),
        (["--engine", "openai", "--set", "api_key=sk-1"], "api_key is a secret, and others can read command lines"),
        (["--config", "absent.toml"], "the configuration absent.toml cannot be read"),
        (["--engine", "llamacpp", "--set", "temperature=hot"], "the setting temperature must be a number"),
        (["--load", "scripted_llm:load", "--broker", "nowhere"], "'nowhere' is neither an address"),
        (["--load", "scripted_llm:load", "--broker", "tcp://x:0"], "'tcp://x:0' is no broker's address"),
        (["--load", "scripted_llm:load", "--llm", ""], "the name of an LLM (--llm) is empty: give it one"),
        (["--load", "scripted_llm:load", "--llm", "é" * 600], "the name of an LLM (--llm) may have 1024 bytes at most"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(fleet: Fleet, arguments: list[str], sentence: str) -> None:
    environment = {"PYTHONPATH": str(fleet.folder), "GENPOOL_BROKER": "tcp://127.0.0.1:1"}
    process = fleet.start("worker", "--llm", "mine", *arguments, environment=environment)
    assert process.wait(PATIENCE_S) == 2
    line = said(fleet).splitlines()[-1]
    assert line.startswith("genpool: ")
    assert sentence in line
    assert "Traceback" not in said(fleet)
    assert "sk-1" not in said(fleet)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--load", "scripted_llm:load"],
        ["--llm", "mine", "--engine", "magic"],
        ["--llm", "mine", "--load", "scripted_llm:load", "--batch-size", "0"],
        ["--llm", "mine", "--load", "scripted_llm:load", "--concurrency", "0"],
        ["--llm", "mine", "--load", "scripted_llm:load", "--heartbeat-timeout", "-1"],
        ["--llm", "mine", "--load", "scripted_llm:load", "--wait", "-1"],
        ["--llm", "mine", "--load", "scripted_llm:load", "--row-timeout", "0"],
    ],
)
def test_an_option_that_makes_no_sense_is_refused(fleet: Fleet, arguments: list[str]) -> None:
    assert fleet.start("worker", *arguments).wait(PATIENCE_S) == 2
    assert "Error: " in said(fleet)
    assert "Traceback" not in said(fleet)


@pytest.mark.parametrize(
    ("load", "reason"),
    [
        ("broken", "OSError: no GPU here"),
        ("leaves", "SystemExit: 5"),
        ("nothing", "the loader scripted_llm:nothing"),
    ],
)
def test_the_broker_is_told_why_an_llm_could_not_be_loaded(
    fleet: Fleet, broker: HandBroker, load: str, reason: str
) -> None:
    gate = fifo(fleet, "gate")
    process = start(fleet, broker.address, load=load, FIFO=str(gate))
    broker.welcome()
    let_go(gate)
    assert broker.wait_for(Goodbye).reason.startswith(f"its LLM could not be loaded: {reason}")
    assert process.wait(PATIENCE_S) == (2 if load == "nothing" else 70)


def test_a_loader_that_raises_is_told_with_its_traceback(fleet: Fleet) -> None:
    process = start(fleet, "tcp://127.0.0.1:1", load="broken")
    assert process.wait(PATIENCE_S) == 70
    assert "the LLM could not be loaded: OSError: no GPU here\nTraceback" in said(fleet)


def test_an_llm_whose_server_is_not_there_yet_is_loaded_again(fleet: Fleet, broker: HandBroker) -> None:
    start(fleet, broker.address, load="later", SERVER=str(fleet.folder / "server"))
    broker.welcome()
    assert broker.wait_for(Hello, lambda hello: hello.state == "ready").credit == 1
    assert "'mine' is unwell: no server yet" in said(fleet)


# Brokers that are not there, or will not have it.


def test_it_waits_for_a_broker_that_is_not_there_yet(fleet: Fleet) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
        process = start(fleet, f"127.0.0.1:{port}")
        nobody.accept()[0].close()  # it has tried
    with HandBroker(f"tcp://127.0.0.1:{port}") as broker:
        assert broker.welcome().llm == "mine"
        assert broker.wait_for(Hold)
        process.terminate()
        assert broker.wait_for(Goodbye)
    assert process.wait(PATIENCE_S) == 0


def test_it_comes_back_to_a_broker_that_starts_anew_with_what_it_holds(fleet: Fleet) -> None:
    with HandBroker() as broker:
        address = broker.address
        process, _ = start_ready(fleet, broker)
        broker.send(assign(3, "a"))
        broker.wait_for(Result)
    with HandBroker(address) as broker:
        hello = broker.welcome()
        assert (hello.state, hello.credit) == ("ready", 1)
        assert broker.wait_for(Hold) == Hold([3], [b"row %12d" % 3], [True], False)
        process.terminate()
        broker.send(Settle([3]))
        assert broker.wait_for(Goodbye)
    assert process.wait(PATIENCE_S) == 0


def test_no_broker_in_the_time_given_ends_it(fleet: Fleet) -> None:
    assert start(fleet, "tcp://127.0.0.1:1", "--wait", "0.2").wait(PATIENCE_S) == 3
    assert "no broker at tcp://127.0.0.1:1 in the time given" in said(fleet)


def test_a_broker_that_refuses_it_ends_it(fleet: Fleet, broker: HandBroker) -> None:
    process = start(fleet, broker.address)
    broker.wait_for(Hello)
    broker.send(Refuse("this broker speaks version 2 of the protocol and you version 1"))
    assert process.wait(PATIENCE_S) == 4
    assert f"the broker at {broker.address} refused this worker: this broker speaks version 2" in said(fleet)


def test_a_broker_of_another_version_that_welcomes_it_ends_it(fleet: Fleet, broker: HandBroker) -> None:
    process = start(fleet, broker.address)
    broker.wait_for(Hello)
    broker.send(Welcome(bytes(16), 1.0, Limits(), version=2))
    assert process.wait(PATIENCE_S) == 4
    assert "version 2" in said(fleet)


# The end.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_worker_that_is_told_to_stop_says_goodbye(
    fleet: Fleet, broker: HandBroker, number: signal.Signals
) -> None:
    process, _ = start_ready(fleet, broker)
    process.send_signal(number)
    assert broker.wait_for(Grant) == Grant(0, "draining", "it was told to stop")
    assert broker.wait_for(Goodbye).reason == "it was told to stop"
    assert process.wait(PATIENCE_S) == 0


def test_a_worker_that_is_told_to_stop_finishes_what_runs(fleet: Fleet, broker: HandBroker) -> None:
    gate = fifo(fleet, "gate")
    process, _ = start_ready(fleet, broker)
    broker.send(assign(0, str(gate), "too much"))
    returned = broker.wait_for(Result)
    assert (returned.executions, returned.outcomes) == ([1], [Outcome.RETURNED])
    process.terminate()
    assert broker.wait_for(Grant).state == "draining"
    let_go(gate)
    result = broker.wait_for(Result)
    assert (result.executions, texts(result)) == ([0], ["one of 1"])
    broker.send(Settle([0, 1]))
    assert broker.wait_for(Goodbye)
    assert process.wait(PATIENCE_S) == 0


def test_processes_that_an_engine_forks_end_when_they_are_told_to(fleet: Fleet, broker: HandBroker) -> None:
    process, _ = start_ready(fleet, broker, load="forking")
    broker.send(assign(0, "a"))
    assert texts(broker.wait_for(Result)) == [f"it ended with {-signal.SIGTERM}"]
    broker.send(Settle([0]))
    # Python ends the helper of the LLM's, which is a daemon, and waits for it.
    process.terminate()
    assert process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize(
    ("raised", "sentence"), [("error", "OSError: no close for [secret]"), ("exit", "SystemExit: no close for [secret]")]
)
def test_an_llm_whose_close_raises_does_not_undo_the_drain(
    fleet: Fleet, broker: HandBroker, raised: str, sentence: str
) -> None:
    process, _ = start_ready(fleet, broker, load="unclosable", RAISED=raised, MY_KEY="sk-0123456789")
    process.terminate()
    assert broker.wait_for(Goodbye)
    assert process.wait(PATIENCE_S) == 0
    assert f"the LLM could not be closed: {sentence}" in said(fleet)
    assert "Traceback" not in said(fleet)
    assert "sk-0" not in said(fleet)


def test_an_llm_whose_close_hangs_does_not_keep_the_process(fleet: Fleet, broker: HandBroker) -> None:
    process, _ = start_ready(fleet, broker, load="unclosable", FIFO=str(fifo(fleet, "never opened")))
    process.terminate()
    assert broker.wait_for(Goodbye)
    assert process.wait(PATIENCE_S) == 0
    assert "the LLM was not closed within 10 s: this process ends without that" in said(fleet)


def test_a_second_signal_ends_it_at_once(fleet: Fleet, broker: HandBroker) -> None:
    gate = fifo(fleet, "gate")
    process, _ = start_ready(fleet, broker)
    broker.send(assign(0, str(gate)))
    process.terminate()
    broker.wait_for(Grant, lambda grant: grant.state == "draining")
    process.terminate()
    assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM


def test_a_worker_that_is_told_to_stop_while_it_loads_does_not_wait_for_that(fleet: Fleet, broker: HandBroker) -> None:
    process = start(fleet, broker.address, load="slow", FIFO=str(fifo(fleet, "gate")))
    broker.welcome()
    process.terminate()
    assert broker.wait_for(Goodbye).reason == "it was told to stop"
    assert process.wait(PATIENCE_S) == 0


def test_a_dead_engine_ends_its_process_without_a_goodbye(fleet: Fleet, broker: HandBroker) -> None:
    process, _ = start_ready(fleet, broker)
    broker.send(assign(0, "dead"))
    assert process.wait(PATIENCE_S) == 70
    assert "the engine is dead: the GPU fell off the bus" in said(fleet)


def test_it_ends_with_its_owner_and_takes_its_group_along(fleet: Fleet, broker: HandBroker) -> None:
    ours, theirs = os.pipe()
    command = [sys.executable, "-m", "genpool.cli", "worker", "--llm", "mine", "--broker", broker.address]
    command += ["--load", "scripted_llm:load", "--lifeline", str(ours)]
    path = os.pathsep.join(filter(None, [str(fleet.folder), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": path}
    process = subprocess.Popen(
        command, env=environment, pass_fds=[ours], start_new_session=True, stderr=subprocess.DEVNULL
    )
    os.close(ours)
    try:
        broker.welcome()
    finally:
        os.close(theirs)
    assert process.wait(PATIENCE_S) == -signal.SIGKILL
