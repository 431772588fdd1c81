"""Every case in which distilabel 0.6's `ProcessLLM` or `LLMPool` waited for ever: here each ends, and says why."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import CancelledError, Future, as_completed, wait
from pathlib import Path
from typing import Any, cast

import pytest
from fleet import until
from process import is_alive
from scripted import FutureFails, Local, Scripted, loader, note_pid, wait_for_file

from genpool import LLM, LLMPool, ProcessLLM
from genpool.client import child
from genpool.protocol.errors import Closed, ConfigurationError, GenerationError, RemoteError, WorkerLost

LIMIT_S = 30.0


def rows(*texts: str) -> list[dict[str, Any]]:
    return [{"input": text} for text in texts]


def raws(outputs: list[list[Any]]) -> list[list[str]]:
    return [[output["raw_output"] for output in some] for some in outputs]


def answers(llm: ProcessLLM, *texts: str) -> list[str]:
    return [raw for (raw,) in raws(llm.generate(rows(*texts)).result(LIMIT_S))]


def error_of(future: Future[Any]) -> GenerationError:
    error = future.exception(LIMIT_S)
    assert isinstance(error, GenerationError)
    return error


def pid_in(path: Path) -> int:
    until(path.exists, f"{path.name}'s process")
    return int(path.read_text())


# The loader.


def test_loader_that_raises_fails_the_rows_and_is_tried_again_later(local: Local, tmp_path: Path) -> None:
    def load(task: Any) -> LLM:
        if not (tmp_path / "weights").exists():
            raise FileNotFoundError("no weights here")
        return Scripted(task, tmp_path)

    llm = local(load)
    error = error_of(llm.generate(rows("a", "b")))
    assert isinstance(error, FileNotFoundError)
    assert sorted(error.failures) == [0, 1]
    failure = error.failures[0]
    assert (failure.type_name, failure.message) == ("FileNotFoundError", "no weights here")
    assert "in load" in failure.traceback
    assert failure.worker
    assert failure.host
    (tmp_path / "weights").touch()
    assert answers(llm, "c") == ["c"]
    assert llm.model_name == "scripted"


def test_model_name_of_a_loader_that_raises_is_its_error(local: Local) -> None:
    def load(_: Any) -> LLM:
        raise KeyError("which model?")

    with pytest.raises(RemoteError, match="which model") as caught:
        _ = local(load).model_name
    assert caught.value.kind is KeyError


def test_teardown_after_a_loader_that_raised(local: Local) -> None:
    def load(_: Any) -> LLM:
        raise RuntimeError("no weights here")

    llm = local(load)
    future = llm.generate(rows("a"))
    assert isinstance(error_of(future), RuntimeError)
    llm.teardown()
    with pytest.raises(Closed):
        llm.generate(rows("a"))


def test_loader_that_leaves_a_thread_behind_fails_the_rows(local: Local) -> None:
    def load(_: Any) -> LLM:
        threading.Thread(target=threading.Event().wait, daemon=False).start()
        raise RuntimeError("after a thread that never ends")

    assert isinstance(error_of(local(load).generate(rows("a"))), RuntimeError)


def test_loader_that_exits_fails_the_rows(local: Local) -> None:
    def load(_: Any) -> LLM:
        raise SystemExit("I give up")

    assert error_of(local(load).generate(rows("a"))).failures[0].message == "I give up"


def test_loader_that_returns_no_llm_fails_the_rows(local: Local) -> None:
    error = error_of(local(lambda _: "not an LLM").generate(rows("a")))
    assert isinstance(error, ValueError)
    assert error.failures[0].type_name == "ConfigurationError"
    assert "must return an LLM" in error.failures[0].message
    assert "'not an LLM'" in error.failures[0].message


class Nameless(Scripted):
    @property
    def model_name(self) -> Any:
        return None


class Idle(Scripted):
    @property
    def concurrency(self) -> int:
        return 0


class Shapeless(Scripted):
    def __init__(self, task: Any, folder: Path) -> None:
        super().__init__(task, folder)
        self.option_names = cast(Any, frozenset({1}))


@pytest.mark.parametrize("kind", [Nameless, Idle, Shapeless])
def test_llm_that_cannot_be_announced_fails_the_rows(local: Local, tmp_path: Path, kind: type[Scripted]) -> None:
    error = error_of(local(lambda task: kind(task, tmp_path)).generate(rows("a")))
    assert isinstance(error, ValueError)
    assert kind.__name__ in error.failures[0].message


def test_loader_that_cannot_be_sent_is_refused_at_once(local: Local) -> None:
    lock = threading.Lock()
    llm = local(lambda _: lock)
    with pytest.raises(ConfigurationError, match=r"cannot be sent to the worker process.*lock"):
        llm.generate(rows("a"))
    llm.teardown()


# The child is killed.


def test_child_killed_while_loading(local: Local, tmp_path: Path) -> None:
    def load(task: Any) -> LLM:
        if not (tmp_path / "go").exists():
            note_pid(tmp_path / "loading")
            wait_for_file(tmp_path / "go")
        return Scripted(task, tmp_path)

    llm = local(load)
    future = llm.generate(rows("a"))
    os.kill(pid_in(tmp_path / "loading"), signal.SIGKILL)
    error = error_of(future)
    assert isinstance(error, WorkerLost)
    assert "SIGKILL" in str(error)
    (tmp_path / "go").touch()
    assert answers(llm, "b") == ["b"]


def test_child_killed_while_running_is_started_again_and_the_row_answered(local: Local, tmp_path: Path) -> None:
    llm = local(loader(tmp_path))
    future = llm.generate(rows("hold one", "pid"))
    first = pid_in(tmp_path / "one")
    (tmp_path / "one").unlink()
    os.kill(first, signal.SIGKILL)
    assert pid_in(tmp_path / "one") != first
    (tmp_path / "go").touch()
    (held,), (pid,) = raws(future.result(LIMIT_S))
    assert held == "hold one"
    assert int(pid) != first


@pytest.mark.parametrize(
    "poison",
    [
        "kill",
        "exit",  # stands in for the kernel's out-of-memory killer
        "leave",
    ],
)
def test_poison_row_fails_after_three_attempts_and_its_neighbours_are_answered(
    local: Local, tmp_path: Path, poison: str
) -> None:
    llm = local(loader(tmp_path, num_threads=2))
    error = error_of(llm.generate(rows("a", poison, "b", "c")))
    assert list(error.failures) == [1]
    assert error.failures[1].type_name == "WorkerLost"
    assert error.failures[1].attempts == 3
    assert raws(error.partial) == [["a"], [], ["b"], ["c"]]
    assert answers(llm, "later") == ["later"]


def test_engine_out_of_memory_is_a_memory_error(local: Local, tmp_path: Path) -> None:
    llm = local(loader(tmp_path))
    error = error_of(llm.generate(rows("memory", "b")))
    assert isinstance(error, MemoryError)
    assert error.failures[0].attempts == 3
    assert raws(error.partial) == [[], ["b"]]


# The engine raises.


@pytest.mark.parametrize("num_threads", [None, 2])
def test_row_that_raises_fails_alone(local: Local, tmp_path: Path, num_threads: int | None) -> None:
    llm = local(loader(tmp_path, num_threads=num_threads))
    error = error_of(llm.generate(rows("raise", "a", "b", "raise")))
    assert isinstance(error, ValueError)
    assert sorted(error.failures) == [0, 3]
    assert error.failures[3].message == "the engine raises"
    assert "in _do" in error.failures[3].traceback
    assert error.failures[3].attempts == 1
    assert raws(error.partial) == [[], ["a"], ["b"], []]


def test_future_of_the_loaded_llm_that_fails(local: Local, tmp_path: Path) -> None:
    error = error_of(local(lambda task: FutureFails(task, tmp_path, num_threads=2)).generate(rows("a")))
    assert isinstance(error, ValueError)
    assert error.failures[0].message == "the future failed"


# Futures are cancelled.


def test_cancelled_futures_wake_their_waiters_and_later_requests_are_answered(local: Local, tmp_path: Path) -> None:
    llm = local(loader(tmp_path))
    running = llm.generate(rows("hold one"))
    until((tmp_path / "one").exists, "the held row's start")
    waiting = llm.generate(rows("die two"))
    later = llm.generate(rows("later"))
    woken = threading.Event()

    def watch() -> None:
        wait([waiting, running])
        list(as_completed([waiting, running]))
        woken.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert waiting.cancel()
    assert running.cancel()
    assert woken.wait(LIMIT_S)
    watcher.join()
    for cancelled in (waiting, running):
        with pytest.raises(CancelledError):
            cancelled.result(LIMIT_S)
    (tmp_path / "go").touch()
    assert raws(later.result(LIMIT_S)) == [["later"]]
    assert not (tmp_path / "two").exists()


# Inputs.


@pytest.mark.parametrize("num_threads", [None, 2])
def test_all_inputs_invalid(local: Local, tmp_path: Path, num_threads: int | None) -> None:
    llm = local(loader(tmp_path, num_threads=num_threads))
    outputs = llm.generate([{"no": 1}, {}], num_generations=2).result(LIMIT_S)
    assert raws(outputs) == [[None, None], [None, None]]
    assert answers(llm, "a") == ["a"]


def test_no_inputs_need_no_worker(local: Local) -> None:
    llms = [local(lambda _: None), local(lambda _: None)]
    assert llms[0].generate([]).result(LIMIT_S) == []
    assert LLMPool(llms).generate([]) == []


def test_num_generations_below_one_is_refused(local: Local) -> None:
    llms = [local(lambda _: None), local(lambda _: None)]
    with pytest.raises(ValueError, match="at least 1, and is 0"):
        llms[0].generate(rows("a"), num_generations=0)
    with pytest.raises(ValueError, match="at least 1, and is 0"):
        LLMPool(llms).generate(rows("a"), num_generations=0)


def test_model_name_before_anything_was_generated(local: Local, tmp_path: Path) -> None:
    llm = local(loader(tmp_path, "named"))
    assert llm.model_name == "named"
    assert answers(llm, "a") == ["a"]


# Teardown.


def test_generate_after_teardown_is_an_error(local: Local, tmp_path: Path) -> None:
    llms = [local(loader(tmp_path)), local(loader(tmp_path))]
    pool = LLMPool(llms)
    assert len(pool.generate(rows("a"), 2)) == 1
    pool.teardown()
    for use in (llms[0].generate, pool.generate, pool.submit, llms[0].stream):
        with pytest.raises(Closed, match="torn down"):
            use(rows("a"))
    with pytest.raises(Closed, match="torn down"):
        llms[0].start()


def test_teardown_twice_and_before_anything_was_started(local: Local, tmp_path: Path) -> None:
    used, unused = local(loader(tmp_path)), local(loader(tmp_path))
    pid = int(answers(used, "pid")[0])
    for llm in (used, unused, used, unused):
        llm.teardown()
    assert not is_alive(pid)


def test_teardown_while_a_row_runs_fails_it_and_those_that_wait(
    local: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An engine that is busy is not waited for: were it, this test would time out.
    monkeypatch.setattr(child, "_PATIENCE_S", 3600)
    llm = local(loader(tmp_path))
    running, waiting = llm.generate(rows("hold one")), llm.generate(rows("b"))
    pid = pid_in(tmp_path / "one")
    llm.teardown()
    for future in (running, waiting):
        error = error_of(future)
        assert isinstance(error, Closed)
        assert "torn down" in str(error)
    assert not is_alive(pid)


def test_teardown_while_loading(local: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: Any) -> LLM:
        note_pid(tmp_path / "loading")
        wait_for_file(tmp_path / "go")
        raise AssertionError

    monkeypatch.setattr(child, "_PATIENCE_S", 3600)
    llm = local(load)
    future = llm.generate(rows("a"))
    pid = pid_in(tmp_path / "loading")
    llm.teardown()
    assert isinstance(error_of(future), Closed)
    assert not is_alive(pid)


def test_teardown_by_a_callback(local: Local, tmp_path: Path) -> None:
    llm = local(loader(tmp_path))
    over = threading.Event()

    def tear_down(_: object) -> None:
        llm.teardown()
        over.set()

    llm.generate(rows("a")).add_done_callback(tear_down)
    assert over.wait(LIMIT_S)


# The pool.


def test_one_llm_of_a_pool_raises(local: Local, tmp_path: Path) -> None:
    def raising(task: Any) -> LLM:
        llm = Scripted(task, tmp_path, "bad")
        llm._output = lambda text: {}["nothing"]
        return llm

    pool = LLMPool([local(loader(tmp_path, "good")), local(raising)])
    with pytest.raises(GenerationError) as caught:
        pool.generate(rows("a", "b"), num_generations=2)
    assert isinstance(caught.value, KeyError)
    assert sorted(caught.value.failures) == [0, 1]
    assert raws(caught.value.partial) == [["a"], ["b"]]
    assert [llm.model_name for llm in pool.llms] == ["good", "bad"]
    for good, bad in pool.generate(rows("a", "b"), num_generations=2, on_error="fill"):
        assert good["model_name"] == "good"
        assert bad["model_name"] == "bad"
        assert bad["raw_output"] is None
        assert "KeyError" in bad.get("error", "")


def test_one_llm_of_a_pool_is_killed_while_loading(local: Local, tmp_path: Path) -> None:
    pool = LLMPool([local(loader(tmp_path)), local(lambda _: os.kill(os.getpid(), signal.SIGKILL))])
    with pytest.raises(GenerationError) as caught:
        pool.generate(rows("a"), num_generations=2)
    assert isinstance(caught.value, WorkerLost)
    assert raws(caught.value.partial) == [["a"]]
