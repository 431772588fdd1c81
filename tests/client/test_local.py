"""Local LLMs and their processes: what reaches them, whom they belong to, and that nothing is left of them."""

from __future__ import annotations

import functools
import importlib.util
import os
import pickle
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import pytest
from fleet import until
from process import Program, children, is_alive
from scripted import TASK, Local, Parallel, Scripted, loader

from genpool import LLM, LLMPool, ProcessLLM, TextGenerationTask
from genpool.client import local as local_module
from genpool.protocol.errors import Closed, ConfigurationError, GenerationError

LIMIT_S = 30.0


def ask(llm: ProcessLLM, *texts: str) -> list[Future[Any]]:
    return [llm.generate([{"input": text}]) for text in texts]


def answer(llm: ProcessLLM, text: str) -> str:
    return ask(llm, text)[0].result(LIMIT_S)[0][0]["raw_output"]


def brokers() -> list[int]:
    return [pid for pid, command in children(os.getpid()).items() if "'broker'" in command]


# What reaches the worker.


def test_lambda_closure_and_partial_load(local: Local, tmp_path: Path) -> None:
    name = "from the closure"

    def load(task: Any) -> LLM:
        return Scripted(task, tmp_path, name)

    assert local(load).model_name == name
    assert local(lambda task: Scripted(task, tmp_path, "by a lambda")).model_name == "by a lambda"
    assert local(functools.partial(Scripted, folder=tmp_path, name="partial")).model_name == "partial"


def test_a_loader_that_raises_is_called_once_for_a_list_however_long(local: Local, tmp_path: Path) -> None:
    def load(task: Any) -> LLM:
        with (tmp_path / "loads").open("a") as loads:
            loads.write("x")
        until((tmp_path / "go").exists)
        raise RuntimeError("no model")

    future = local(load).generate([{"input": str(number)} for number in range(2000)])
    (tmp_path / "go").touch()
    with pytest.raises(GenerationError, match="no model") as raised:
        future.result(LIMIT_S)
    assert len(raised.value.failures) == 2000
    assert (tmp_path / "loads").read_text() == "x"


def test_task_reaches_the_loader(local: Local, tmp_path: Path) -> None:
    task = TextGenerationTask(system_prompt="be brief")
    llm = ProcessLLM(task, lambda given: Scripted(given, tmp_path, given.system_prompt))
    try:
        assert llm.model_name == "be brief"
        assert llm.task is task
    finally:
        llm.teardown()


@pytest.fixture
def stray(tmp_path: Path) -> Iterator[ModuleType]:
    """A module that no other process finds, as notebooks and test runners make them."""
    file = tmp_path / "stray.py"
    file.write_text(
        "from scripted import TASK, Local, Scripted\n"
        "NAME = 'from afar'\n"
        "class Stray(Scripted):\n"
        "    def _answer(self, word, rest=''):\n"
        "        return NAME + word\n"
        "def load(task):\n"
        "    return Stray(task, None, NAME)\n"
    )
    spec = importlib.util.spec_from_file_location("a_stray_module", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["a_stray_module"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["a_stray_module"]


def test_module_that_the_child_cannot_import_goes_by_value(local: Local, stray: ModuleType) -> None:
    assert answer(local(stray.load), "!") == "from afar!"
    assert answer(local(lambda task: stray.Stray(task, None)), "?") == "from afar?"
    assert not cloudpickle.list_registry_pickle_by_value()


def test_only_stray_modules_go_by_value(stray: ModuleType) -> None:
    assert local_module._is_unimportable(stray)
    ordinary = [os, os.path, sys, pytest, functools, local_module, sys.modules["scripted"]]
    assert not [module for module in ordinary if local_module._is_unimportable(module)]


def test_module_of_an_installed_finder_does_not_go_by_value(stray: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """An editable install may bring a finder, which a new process has as well."""

    class Finder:
        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
            assert stray.__file__ is not None
            return importlib.util.spec_from_file_location(name, stray.__file__) if name == stray.__name__ else None

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder, object()])
    assert not local_module._is_unimportable(stray)


def test_child_has_the_path_and_the_directory_of_its_start(
    local: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("library", "there", "elsewhere"):
        (tmp_path / folder).mkdir()
    (tmp_path / "library" / "only_here.py").write_text("NAME = 'found'\n")
    monkeypatch.syspath_prepend(tmp_path / "library")
    monkeypatch.chdir(tmp_path / "there")

    def load(task: Any) -> LLM:
        import only_here  # pyright: ignore[reportMissingImports]

        return Scripted(task, tmp_path, only_here.NAME)

    llm = local(load)
    assert llm.model_name == "found"
    assert answer(llm, "directory") == str(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert answer(llm, "die once") == "die once"
    assert answer(llm, "directory") == str(tmp_path / "there")


def test_pickling_is_refused_with_a_sentence(local: Local, tmp_path: Path) -> None:
    llm = local(loader(tmp_path))
    with pytest.raises(ConfigurationError, match=r"belongs to the process that made it.*ProcessLLM\.connect"):
        pickle.dumps(llm)
    with pytest.raises(ConfigurationError, match="belongs to the process that made it"):
        pickle.dumps(LLMPool([llm, local(loader(tmp_path))]))


# The private broker.


def test_local_llms_share_a_private_broker_while_one_is_left(local: Local, tmp_path: Path) -> None:
    llms = [local(loader(tmp_path)) for _ in range(3)]
    assert brokers() == []
    assert [future.result(LIMIT_S)[0][0]["raw_output"] for llm in llms for future in ask(llm, "a")] == ["a"] * 3
    (broker,) = brokers()
    llms[0].teardown()
    llms[1].teardown()
    assert answer(llms[2], "b") == "b"
    assert brokers() == [broker]
    folder = Path(local_module._broker.address.removeprefix("ipc://")).parent
    llms[2].teardown()
    assert not is_alive(broker)
    assert not folder.exists()
    again = local(loader(tmp_path))
    assert answer(again, "c") == "c"


def test_private_broker_takes_no_options_that_are_another_brokers(
    local: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("KEYS", str(tmp_path)), ("HTTP", "127.0.0.1:1"), ("MAX_ROWS", "none")):
        monkeypatch.setenv(f"GENPOOL_BROKER_{name}", value)
    assert answer(local(loader(tmp_path)), "word") == "word"


def test_only_this_user_reaches_the_private_broker(local: Local, tmp_path: Path) -> None:
    local(loader(tmp_path)).start()
    folder = Path(local_module._broker.address.removeprefix("ipc://")).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_private_brokers_socket_has_a_short_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 80)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    assert local_module._short_folder() == "/tmp"
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    assert local_module._short_folder() == "/tmp"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_private_broker_that_ends_comes_back_and_rows_are_answered(
    local: Local, tmp_path: Path, number: signal.Signals
) -> None:
    llm = local(loader(tmp_path))
    held, waiting = ask(llm, "hold one", "waiting")
    until((tmp_path / "one").exists, "the held row's start")
    (broker,) = brokers()
    os.kill(broker, number)
    (tmp_path / "go").touch()
    assert held.result(LIMIT_S)[0][0]["raw_output"] == "hold one"
    assert waiting.result(LIMIT_S)[0][0]["raw_output"] == "waiting"
    assert answer(llm, "later") == "later"
    assert brokers() not in ([], [broker])


def test_private_broker_does_not_come_back_in_a_folder_that_another_could_have_made(
    local: Local, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    local(loader(tmp_path)).start()
    folder = Path(local_module._broker.address.removeprefix("ipc://")).parent
    (broker,) = brokers()
    os.kill(broker, signal.SIGSTOP)
    (tmp_path / "another").mkdir()
    shutil.rmtree(folder)
    folder.symlink_to(tmp_path / "another")
    try:
        os.kill(broker, signal.SIGKILL)
        until(lambda: "is not this process's own folder any more" in caplog.text, "the refusal")
        assert brokers() == []
        assert list((tmp_path / "another").iterdir()) == []
    finally:
        folder.unlink()


def test_stopped_worker_is_never_started_again(tmp_path: Path) -> None:
    others = children(os.getpid())
    worker = local_module.LocalWorker(TASK, loader(tmp_path))
    worker.stop(Closed("it is over"))
    with pytest.raises(Closed):
        worker.submit([])
    assert children(os.getpid()) == others


def test_every_child_has_a_session_of_its_own(local: Local, tmp_path: Path) -> None:
    others = set(children(os.getpid()))
    llm = local(loader(tmp_path))
    worker = int(answer(llm, "pid"))
    assert answer(llm, "session") == str(worker)
    (broker,) = brokers()
    assert os.getsid(broker) == broker
    assert set(children(os.getpid())) - others == {worker, broker}


# Engines with processes of their own.


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_of_an_engine_work_and_end_with_it(local: Local, tmp_path: Path, method: str) -> None:
    llm = local(lambda task: Parallel(task, tmp_path, method))
    first = int(answer(llm, "engine"))
    assert is_alive(first)
    assert answer(llm, "die once") == "die once"
    until(lambda: not is_alive(first), "the end of the killed engine's process")
    second = int(answer(llm, "engine"))
    assert is_alive(second)
    llm.teardown()
    until(lambda: not is_alive(second), "the end of the engine's process")


# The end of the process that made them.

PROGRAM = """
import os, signal, sys
from pathlib import Path
from genpool import ProcessLLM, TextGenerationTask
from scripted import TASK, Local, Parallel, loader, wait_for_file

folder = Path({folder!r})
llm = ProcessLLM(TextGenerationTask(), {load})
def say(*words):
    print(*words, flush=True)
def answer(text):
    return llm.generate([{{"input": text}}]).result(30)[0][0]["raw_output"]
{then}
"""

WAYS = {
    "idle": "answer('a'); say('ready'); signal.pause()",
    "busy": "llm.generate([{'input': 'hold one'}]); wait_for_file(folder / 'one'); say('ready'); signal.pause()",
    "starting": "llm.start(); say('ready'); signal.pause()",
}


def program(folder: Path, then: str, load: str = "loader(folder)") -> Program:
    return Program(PROGRAM.format(folder=str(folder), load=load, then=then))


@pytest.mark.parametrize(
    ("way", "number"),
    [
        ("idle", signal.SIGKILL),
        ("busy", signal.SIGKILL),
        ("starting", signal.SIGKILL),
        ("busy", signal.SIGTERM),
        ("busy", signal.SIGINT),
    ],
)
def test_nothing_is_left_of_a_parent_that_gets_a_signal(tmp_path: Path, way: str, number: signal.Signals) -> None:
    with program(tmp_path, WAYS[way]) as parent:
        parent.wait_for("ready")
        until(lambda: len(parent.living) == 2, "broker and worker")
        parent.process.send_signal(number)
        until(lambda: not parent.living, "the end of the parent's children")
        until(lambda: not parent.left, "the removal of the parent's files")
        assert parent.process.wait(LIMIT_S) == -number


def test_worker_ends_with_an_owner_that_never_heard_it() -> None:
    ours, theirs = socket.socketpair()
    code = (
        "import socket; from genpool.worker import shell; "
        f"socket.socket(fileno={theirs.fileno()}).send(b'ready'); shell._end_with_owner({theirs.fileno()})"
    )
    worker = subprocess.Popen([sys.executable, "-c", code], pass_fds=[theirs.fileno()], start_new_session=True)
    theirs.close()
    assert select.select([ours], [], [], LIMIT_S)[0] == [ours]
    ours.close()
    assert worker.wait(LIMIT_S) == -signal.SIGKILL


def test_nothing_is_left_of_a_killed_parents_engine(tmp_path: Path) -> None:
    then = "say('engine', answer('engine')); say('ready'); signal.pause()"
    with program(tmp_path, then, "lambda task: Parallel(task, folder, 'fork')") as parent:
        parent.wait_for("ready")
        until(lambda: len(parent.living) == 3, "broker, worker and engine")
        parent.process.kill()
        until(lambda: not parent.living, "the end of the killed parent's children")


@pytest.mark.parametrize(
    ("then", "code"),
    [
        ("answer('a')", 0),
        ("llm.start()", 0),
        ("llm.generate([{'input': 'hold one'}]); wait_for_file(folder / 'one'); raise KeyError('one')", 1),
        ("answer('a'); llm.teardown()", 0),
    ],
    ids=["idle", "starting", "busy", "torn down"],
)
def test_nothing_is_left_of_a_parent_that_ends(tmp_path: Path, then: str, code: int) -> None:
    with program(tmp_path, then) as parent:
        assert parent.process.wait(LIMIT_S) == code
        assert parent.living == []
        assert parent.left == []
        # On a busy machine its broker may be waited for, which is said.
        assert [line for line in parent.said.splitlines() if "genpool" in line and "the broker at" not in line] == []


def test_rows_fail_when_the_interpreter_ends(tmp_path: Path) -> None:
    then = (
        "llm.generate([{'input': 'hold one'}]).add_done_callback(lambda future: say(repr(future.exception())))\n"
        "wait_for_file(folder / 'one')"
    )
    with program(tmp_path, then) as parent:
        assert parent.process.wait(LIMIT_S) == 0
        parent.wait_for("the interpreter ended before this row was finished")


# Forks.


@pytest.mark.parametrize("leave", ["sys.exit()", "os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_fork_leaves_the_parents_llm_alone(tmp_path: Path, leave: str) -> None:
    then = f"""
before = answer("pid")
pid = os.fork()
if not pid:
    {leave}
os.waitpid(pid, 0)
assert answer("pid") == before
say("the same process answers")
"""
    with program(tmp_path, then) as parent:
        parent.wait_for("the same process answers")
        assert parent.process.wait(LIMIT_S) == 0
        assert parent.living == []


def test_forked_process_gets_a_worker_of_its_own(tmp_path: Path) -> None:
    then = """
import multiprocessing
before = answer("pid")
def generate(queue):
    queue.put((answer("pid"), llm.model_name))
fork = multiprocessing.get_context("fork")
queue = fork.SimpleQueue()
process = fork.Process(target=generate, args=(queue,))
process.start()
other, name = queue.get()
process.join()
assert (process.exitcode, name) == (0, "scripted")
assert answer("pid") == before != other
say("both answered")
signal.pause()
"""
    with program(tmp_path, then) as parent:
        parent.wait_for("both answered")
        until(lambda: len(parent.living) == 2, "the end of the fork's children")
        until(lambda: len(parent.left) == 1, "the removal of the fork's files")


def test_forked_process_that_outlives_the_parent_keeps_nothing_alive(tmp_path: Path) -> None:
    then = """
answer("a")
if not os.fork():
    say("forked", os.getpid())
    wait_for_file(folder / "go")
    os._exit(0)
signal.pause()
"""
    with program(tmp_path, then) as parent:
        parent.wait_for("forked")
        fork = int(parent.said.split()[-1])
        parent.process.kill()
        until(lambda: parent.living == [fork], "the end of the killed parent's children")
        (tmp_path / "go").touch()
        until(lambda: not parent.living, "the end of the fork")
