"""``ProcessLLM``: one LLM in a process of its own, started here or found on a running fleet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Unpack

from ..protocol.address import resolve
from ..protocol.errors import Closed, ConfigurationError, GenpoolError, UnknownLLM
from ..protocol.messages import LLMInfo
from ..protocol.printable import printable
from ..tasks.base import Task, require_task
from .generator import CallOptions, Generator, Outputs, Progress
from .link import Link, leave, link_to, own_pid, step
from .local import LocalWorker
from .row import Row
from .run import Run
from .seconds import checked_seconds

# How long a loading model is waited for where the caller cannot say (reading `model_name`, say).
_LOAD_TIMEOUT_S = 600.0


class RemoteTask(Task):
    """The task of a worker on a fleet, known by its names alone: it stays there, and only its arguments travel."""

    def __init__(self, names: Mapping[str, Any]) -> None:
        self.name = str(names.get("name", ""))
        self._inputs = [str(one) for one in names.get("input_args_names", [])]
        self._outputs = [str(one) for one in names.get("output_args_names", [])]

    def __repr__(self) -> str:
        return f"RemoteTask({self.name!r}, inputs={self._inputs}, outputs={self._outputs})"

    @property
    def input_args_names(self) -> list[str]:
        return self._inputs

    @property
    def output_args_names(self) -> list[str]:
        return self._outputs

    def generate_prompt(self, *args: Any, **kwargs: Any) -> Any:
        """Raises ConfigurationError: the prompt is made in the worker."""
        raise ConfigurationError(f"the task {self.name} is in the worker; give `task=` to `connect` to render here")

    def parse_output(self, output: str) -> Any:
        """Raises ConfigurationError: completions are parsed in the worker."""
        raise ConfigurationError(f"the task {self.name} is in the worker; give `task=` to `connect` to parse here")


def _require_name(name: Any) -> None:
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"an LLM's name is a text, and {name!r} is none")


class ProcessLLM(Generator):
    """An LLM in another process; ``generate`` returns a Future at once.

    ``ProcessLLM(task, load_llm_fn)`` gets a worker process of its own, started at the first ``generate`` or by
    ``start()``, which calls ``load_llm_fn(task)`` there. Lambdas and closures work. ``ProcessLLM.connect(name)`` is
    the LLM of that name on a running fleet, however many workers serve it.

    Args:
        task: what the LLM does, given to the loader.
        load_llm_fn: returns the LLM; runs in the worker process.

    Raises:
        ConfigurationError: when the loader cannot be called.
        TypeError: when the task lacks a method.
    """

    def __init__(self, task: Any, load_llm_fn: Callable[[Any], Any]) -> None:
        require_task(task)
        if not callable(load_llm_fn):
            raise ConfigurationError(
                f"`load_llm_fn` must be a function that takes the task and returns an LLM, not {load_llm_fn!r}"
            )
        self._begin(task)
        self._local: LocalWorker | None = LocalWorker(task, load_llm_fn)
        self._name = self._local.name
        self._wait_s = float("inf")  # its own supervisor tells when it will not come

    @classmethod
    def connect(
        cls, name: str, broker: str | None = None, task: Any | None = None, *, wait_s: float = 60.0
    ) -> ProcessLLM:
        """The LLM called ``name`` on a fleet. Returns at once; nothing is opened before the first use.

        Args:
            name: as workers announce it (``genpool worker --llm NAME``).
            broker: ``tcp://host:port``, ``host:port`` or a connection file, or several with commas between; None takes
                ``$GENPOOL_BROKER``.
            task: makes the prompts and reads the completions here; None leaves both to the worker's own task.
            wait_s: how long the broker, or an LLM that nobody has announced, is waited for.

        Raises:
            ConfigurationError: when ``broker`` is no address, or ``wait_s`` no positive number.
            TypeError: when the task lacks a method.
        """
        _require_name(name)
        if task is not None:
            require_task(task)
        llm = cls.__new__(cls)
        llm._begin(task)
        llm._local = None
        llm._name = name
        llm._address = resolve(broker)
        llm._wait_s = checked_seconds("wait_s", wait_s)
        return llm

    def _begin(self, task: Any | None) -> None:
        self._given_task = task
        self._address = ""
        self._link_of: tuple[int, Link] | None = None
        self._closed = False
        self._model_name: str | None = None

    def __repr__(self) -> str:
        if self._local is not None:
            return f"ProcessLLM(task={type(self._given_task).__name__}, local)"
        return f"ProcessLLM.connect({self._name!r}, broker={self._address!r})"

    def __getstate__(self) -> dict[str, Any]:
        if self._local is not None:
            raise ConfigurationError(
                "a local ProcessLLM belongs to the process that made it: start a worker with `genpool worker` and "
                "use ProcessLLM.connect, which can be pickled"
            )
        return {"name": self._name, "address": self._address, "task": self._given_task, "wait_s": self._wait_s}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._begin(state["task"])
        self._local = None
        self._name, self._address, self._wait_s = state["name"], state["address"], state["wait_s"]

    # The seed's interface.

    @property
    def return_futures(self) -> bool:
        """Whether ``generate`` returns a Future: True."""
        return True

    @property
    def task(self) -> Any:
        """The task: the given one, or a description by names of the one in the worker, which is waited for."""
        if self._given_task is not None:
            return self._given_task
        return RemoteTask(self._wait_for_info(lambda info: info if info.ready else None).task)

    @property
    def model_name(self) -> str:
        """The name of the loaded model. Waits until a worker has loaded it.

        Raises:
            UnknownLLM, NoBroker: when there was none within the time that ``connect`` was given.
            RemoteError: when the loader of a local LLM raised.
        """
        if self._model_name is None:
            self._model_name = self._wait_for_info(lambda info: info if info.ready else None).model_names[0]
        return self._model_name

    def generate(
        self,
        inputs: Iterable[Mapping[str, Any]],
        num_generations: int = 1,
        progress_callback_func: Progress | None = None,
        **options: Unpack[CallOptions],
    ) -> Future[Outputs]:
        """Start generating and return a Future at once: see ``submit``."""
        return self.submit(inputs, num_generations, progress_callback_func, **options)

    def start(self) -> None:
        """Start the worker process of a local LLM now, or open the connection of another."""
        self.link()

    def ask_to_stop(self) -> None:
        """Have a local LLM's process begin to end, so that several end side by side; ``teardown`` waits for it."""
        if self._local is not None:
            self._local.ask_to_stop()

    def teardown(self) -> None:
        """Be done: a local LLM's process ends, a fleet is left alone. May be called twice.

        Unfinished rows fail as Closed; those on a fleet only when nothing else uses the connection to its broker.
        """
        with step():
            was_closed, self._closed = self._closed, True
        if was_closed:
            return
        if self._local is not None:
            self._local.stop(Closed("the LLM was torn down before this row was finished"))
        elif (link := self._known_link()) is not None:
            leave(link)

    # What a call asks for: see call.Voice.

    @property
    def given_task(self) -> Any | None:
        """The task that it was made with; None where only the worker has one."""
        return self._given_task

    def _voices(self) -> Sequence[ProcessLLM]:
        self._require_open()
        return [self]

    @property
    def llm_name(self) -> str:
        """The name under which the broker knows it."""
        return self._name

    @property
    def known_model_name(self) -> str | None:
        """The model's name, if it is known by now."""
        info = self.info
        return self._model_name or (info.model_names[0] or None if info else None)

    @property
    def wait_s(self) -> float:
        """How long the broker, or an LLM that nobody has announced, is waited for."""
        return self._wait_s

    @property
    def rendering_task(self) -> Any | None:
        """The task that renders prompts here; None where the worker's own does it."""
        return None if self._local is not None else self._given_task

    @property
    def info(self) -> LLMInfo | None:
        """What the broker has said of it by now, without waiting."""
        link = self._known_link()
        return ((link.fleet if link is not None else None) or {}).get(self._name)

    @property
    def arguments(self) -> list[str] | None:
        """The names of the task's arguments; None while they are not known."""
        if self._given_task is not None:
            return list(self._given_task.input_args_names)
        info = self.info
        names = info.task.get("input_args_names") if info else None
        return None if names is None else [str(name) for name in names]

    def learn_arguments(self, deadline: float | None = None) -> list[str] | None:
        """``arguments``, which are waited for, until ``deadline`` at most; None where the LLM has told none.

        Raises:
            UnknownLLM, NoBroker: when there was none within the time that ``connect`` was given.
        """
        if self.arguments is None:
            self._wait_for_info(lambda info: info, deadline)
        return self.arguments

    def link(self) -> Link:
        """The connection that it uses in this process."""
        self._require_open()
        if self._local is not None:
            return self._local.start()
        with step():
            if self._link_of is None or self._link_of[0] != own_pid():
                self._link_of = (own_pid(), link_to(self._address))
            return self._link_of[1]

    def submit_rows(self, rows: list[Row] | Run) -> None:
        """Send rows to the broker."""
        if self._local is not None:
            self._require_open()
            self._local.submit(rows)
        else:
            self.link().submit(rows)

    def withdraw_rows(self, rows: list[Row] | Run) -> None:
        """Take rows back. After ``teardown`` too, for a call may outlive its LLM."""
        link = self._known_link()
        if link is not None:
            link.withdraw(rows)

    def _require_open(self) -> None:
        if self._closed:
            raise Closed(f"{self!r} was torn down: make a new one to generate")

    def _known_link(self) -> Link | None:
        """The connection, if it has one in this process by now."""
        if self._local is not None:
            return self._local.link
        pid, link = self._link_of or (0, None)
        return link if pid == own_pid() else None

    def _wait_for_info(self, question: Callable[[LLMInfo], LLMInfo | None], deadline: float | None = None) -> LLMInfo:
        """Wait until the broker knows this LLM and ``question`` is answered."""
        link = self.link()
        timeout_s = min(self._wait_s, _LOAD_TIMEOUT_S)
        end = time.monotonic() + timeout_s
        if deadline is not None:
            end = min(end, deadline)
        while (left := end - time.monotonic()) > 0:
            if self._local is not None and self._local.failure is not None:
                raise self._local.failure
            # In slices, because the end of a local loader is not the broker's news.
            slice_s = min(left, 0.2) if self._local is not None else left
            try:
                info = link.wait_for(
                    lambda fleet: question(fleet[self._name]) if self._name in fleet else None, slice_s
                )
            except GenpoolError:
                if self._local is None:
                    raise
                continue
            if info is not None:
                return info
        known = ", ".join(sorted(link.fleet or ())) or "none"
        raise UnknownLLM(f"no worker served {self._name!r} within {timeout_s:g} s; known there: {printable(known)}")
