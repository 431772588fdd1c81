"""``LLMPool``: the generations of every input, split over several LLMs."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import wait
from typing import Any, Unpack, cast

from ..protocol.address import resolve
from ..protocol.errors import Closed, ConfigurationError, UnknownLLM
from ..protocol.messages import LLMInfo
from ..protocol.printable import printable
from ..tasks.base import require_task, same_task
from .generator import CallOptions, Generator, Outputs, Progress
from .link import leave, link_to, step
from .process_llm import ProcessLLM
from .seconds import checked_seconds
from .share import check_weights, draw_shares

_TOO_FEW = (
    "The `llms` argument must contain at least 2 `ProcessLLM`s. If you want to use a single `ProcessLLM`, use it "
    "directly instead."
)
_NOT_ONE = "The `llms` argument must contain only `ProcessLLM`s."
_TASKS_DIFFER = "All the `ProcessLLM` in `llms` must share the same task (either as the instance or the parent class)."


class LLMPool(Generator):
    """Several LLMs with the same task: every input's generations are shared out among them.

    With ``n`` generations and ``k`` LLMs each makes ``n // k``, and ``n % k`` of them, drawn at random, make one
    more. A row's outputs are the LLMs' outputs one after the other, in the order of ``llms``.

    Args:
        llms: at least two ``ProcessLLM``s, local or connected.

    Raises:
        ConfigurationError: (a ValueError) when they are fewer, something else, or have different tasks.
    """

    def __init__(self, llms: Sequence[ProcessLLM]) -> None:
        _check(llms)
        self._llms: list[ProcessLLM] | None = list(llms)
        self._begin()

    @classmethod
    def connect(
        cls,
        llms: Sequence[str | ProcessLLM] | None = None,
        broker: str | None = None,
        task: Any | None = None,
        *,
        wait_s: float = 60.0,
    ) -> LLMPool:
        """A pool of a fleet's LLMs. Returns at once; nothing is opened before the first use.

        Args:
            llms: their names; None takes all LLMs of the fleet that share a task; the first use waits for them.
            broker: as for ``ProcessLLM.connect``.
            task: as there.
            wait_s: as there.

        Raises:
            ConfigurationError: for fewer than two LLMs, or when ``broker`` is no address or ``wait_s`` no time.
            TypeError: when the task lacks a method.
        """
        if llms is not None:
            if isinstance(llms, str) or not isinstance(cast(object, llms), Iterable):
                raise ConfigurationError(f"`llms` must be a list of names, and is {llms!r}")
            return cls(
                [ProcessLLM.connect(one, broker, task, wait_s=wait_s) if isinstance(one, str) else one for one in llms]
            )
        if task is not None:
            require_task(task)
        pool = cls.__new__(cls)
        pool._llms = None
        pool._begin()
        pool._fleet = (resolve(broker), task, checked_seconds("wait_s", wait_s))
        return pool

    def _begin(self) -> None:
        self._fleet: tuple[str, Any | None, float] = ("", None, 60.0)
        self._closed = False
        self._source = random.Random()

    def __enter__(self) -> LLMPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.teardown()

    def __repr__(self) -> str:
        return f"LLMPool({self._llms if self._llms is not None else 'all of ' + self._fleet[0]})"

    def __getstate__(self) -> dict[str, Any]:
        return {"llms": self._llms, "fleet": self._fleet}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._begin()
        self._llms, self._fleet = state["llms"], state["fleet"]

    # The seed's interface.

    @property
    def return_futures(self) -> bool:
        """Whether ``generate`` returns a Future: False."""
        return False

    @property
    def llms(self) -> list[ProcessLLM]:
        """The LLMs, in the order of their shares. A pool of a whole fleet asks the broker for them, once."""
        if self._llms is None:
            found = self._find_llms()
            with step():  # another thread may have found them, too
                self._llms = self._llms or found
        return self._llms

    @property
    def num_llms(self) -> int:
        """How many LLMs there are."""
        return len(self.llms)

    @property
    def task(self) -> Any:
        """The task of the first LLM."""
        return self.llms[0].task

    def generate(
        self,
        inputs: Iterable[Mapping[str, Any]],
        num_generations: int = 1,
        progress_callback_func: Progress | None = None,
        **options: Unpack[CallOptions],
    ) -> Outputs:
        """Generate and return the outputs: see ``submit``, whose Future this waits for. Ctrl-C cancels the call."""
        future = self.submit(inputs, num_generations, progress_callback_func, **options)
        try:
            # In slices: Python may miss a signal that comes just before a wait, until the wait ends.
            while not wait([future], timeout=1.0).done:
                pass
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def teardown(self) -> None:
        """Tear down every LLM: local processes end, a fleet is left alone. May be called twice."""
        self._closed = True
        for llm in self._llms or ():
            llm.ask_to_stop()
        for llm in self._llms or ():
            llm.teardown()

    def _get_num_generations_per_llm(self, num_generations: int) -> dict[int, int]:
        """Draw the shares of one call: position in ``llms`` -> generations, zeros included."""
        shares = draw_shares(num_generations, check_weights(None, self.num_llms), self._source)
        return dict(enumerate(shares))

    def _voices(self) -> Sequence[ProcessLLM]:
        if self._closed:
            raise Closed("this LLMPool was torn down: make a new one to generate")
        return self.llms

    @property
    def _must_find_voices(self) -> bool:
        return self._llms is None and not self._closed

    def _find_llms(self) -> list[ProcessLLM]:
        """All LLMs of the fleet that share a task, once at least two of them are announced."""
        address, task, wait_s = self._fleet
        link = link_to(address)
        try:
            named = link.wait_for(lambda fleet: found if len(found := begun_llms(fleet)) >= 2 else None, wait_s)
        finally:
            leave(link)
        if named is None:
            known = printable(", ".join(sorted(link.fleet or ()))) or "none"
            raise UnknownLLM(
                f"a pool needs two LLMs that are ready, and the broker at {address} knew {known} within {wait_s:g} s"
            )
        tasks = sorted({str(info.task.get("name", "")) for info in named})
        if task is None and len(tasks) > 1:
            raise ConfigurationError(
                f"the LLMs at {address} have different tasks ({printable(', '.join(tasks))}): name those you want with "
                "`llms`, or give a `task`"
            )
        names = sorted(info.name for info in named)
        return [ProcessLLM.connect(name, address, task, wait_s=wait_s) for name in names]


def begun_llms(fleet: dict[str, LLMInfo]) -> list[LLMInfo]:
    """The LLMs that have a worker; none as long as one of them is still loading for the first time."""
    begun = [info for info in fleet.values() if info.ready + info.loading + info.unwell]
    return begun if all(info.ready or not info.loading for info in begun) else []


def _check(llms: Any) -> None:
    given = cast(Sequence[Any], llms)
    if not isinstance(llms, Sequence) or len(given) < 2:
        raise ConfigurationError(_TOO_FEW)
    if not all(isinstance(llm, ProcessLLM) for llm in given):
        raise ConfigurationError(_NOT_ONE)
    tasks = [llm.given_task for llm in cast(Sequence[ProcessLLM], llms) if llm.given_task is not None]
    if tasks and not same_task(tasks):
        raise ConfigurationError(_TASKS_DIFFER)
