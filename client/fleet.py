"""The LLMs that a command line asks for, once the broker knows them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ..protocol.errors import ConfigurationError
from ..protocol.messages import LLMInfo
from ..protocol.printable import printable
from ..tasks.base import TaskLike
from .column import Columns
from .link import Link, leave, link_to
from .pool import LLMPool, begun_llms
from .process_llm import ProcessLLM

log = logging.getLogger("genpool.generate")

# A wait longer than this says what it waits for.
_QUIET_WAIT_S = 2.0


@dataclass(frozen=True, slots=True)
class Choice:
    """What is asked for.

    Attributes:
        broker: its address.
        llms: names; none stands for all LLMs of the fleet that share a task.
        task: renders the prompts here; None leaves that to the workers' own tasks.
        wait_s: how long the broker, or an LLM that nobody has announced, is waited for.
    """

    broker: str
    llms: Sequence[str] = ()
    task: TaskLike | None = None
    wait_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Connected:
    """LLMs that can be called: their ``names`` in order, the connection to their broker, their tasks' columns."""

    llm: LLMPool | ProcessLLM
    names: Sequence[str]
    link: Link
    columns: Columns


@contextmanager
def connected(choice: Choice) -> Generator[Connected]:
    """The LLMs of ``choice``.

    Raises:
        ConfigurationError: when nobody has announced one of them in time, or they do not go together.
        NoBroker, Refused: as ``Link.wait_for``.
    """
    link = link_to(choice.broker)
    try:
        llm = _connect(link, choice)
        try:
            voices = llm.llms if isinstance(llm, LLMPool) else [llm]
            for voice in voices:
                voice.start()  # what the LLMs know is known by now, and options are checked against it
            names = [voice.llm_name for voice in voices]
            log.info("generating with %s at %s", printable(", ".join(names)), choice.broker)
            yield Connected(llm, names, link, Columns(choice.task, link, names))
        finally:
            llm.teardown()
    finally:
        leave(link)


def _connect(link: Link, choice: Choice) -> LLMPool | ProcessLLM:
    fleet = _wait(link, choice)
    names = choice.llms or [info.name for info in begun_llms(fleet)]
    if len(names) == 1:
        return ProcessLLM.connect(names[0], choice.broker, choice.task, wait_s=choice.wait_s)
    return LLMPool.connect(choice.llms or None, choice.broker, choice.task, wait_s=choice.wait_s)


def _wait(link: Link, choice: Choice) -> dict[str, LLMInfo]:
    """What the broker knows, once it knows what is asked for."""
    notice = threading.Timer(_QUIET_WAIT_S, lambda: _tell_wait(link, choice))
    notice.daemon = True
    notice.start()
    try:
        fleet = link.wait_for(lambda fleet: fleet if _is_there(fleet, choice.llms) else None, choice.wait_s)
    finally:
        notice.cancel()
    if fleet is None:
        raise ConfigurationError(f"{_lack(link, choice)}; it was waited for {choice.wait_s:g} s")
    return fleet


def _is_there(fleet: dict[str, LLMInfo], llms: Sequence[str]) -> bool:
    """Whether all of ``llms`` are announced; without names, whether some are served and none loads its first worker."""
    return fleet.keys() >= set(llms) if llms else bool(begun_llms(fleet))


def _tell_wait(link: Link, choice: Choice) -> None:
    # Without a broker, the link itself tells.
    if link.fleet is not None:
        log.info("%s; waiting up to %g s for it", _lack(link, choice), choice.wait_s)


def _lack(link: Link, choice: Choice) -> str:
    """What is not there, and what is."""
    fleet = link.fleet or {}
    if missing := ", ".join(repr(name) for name in choice.llms if name not in fleet):
        known = ", ".join(sorted(fleet)) or "none"
        return f"no worker has announced an LLM named {missing} at {choice.broker} (known there: {printable(known)})"
    loading = ", ".join(sorted(name for name, info in fleet.items() if info.loading)) or "none"
    return f"no LLM is ready at {choice.broker} (loading there: {printable(loading)})"
