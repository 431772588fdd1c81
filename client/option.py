"""Generation options: checked against what the LLMs know, and packed for the wire."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, cast

from ..protocol.content import WISHES, pack, unpack
from ..protocol.errors import ConfigurationError, RowError
from ..protocol.limits import MAX_OPTIONS_BYTES
from ..protocol.messages import LLMInfo
from ..protocol.printable import printable


class Knower(Protocol):
    """One LLM, and what it has told of itself by now."""

    @property
    def llm_name(self) -> str: ...
    @property
    def info(self) -> LLMInfo | None: ...


def packed_options(llms: Sequence[Knower], options: Any) -> bytes:
    """The options as bytes, after a look whether the LLMs that are known by now understand them.

    Raises:
        ConfigurationError: they are no dict by names, an LLM knows one of them not, or they cannot be sent.
    """
    if options is None:
        return b""
    named = cast(Mapping[str, Any], options)
    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in cast(list[Any], named)):
        raise ConfigurationError(
            f"`generation_kwargs` must be a dict of sampling options by their names, and is {options!r}"
        )
    for llm in llms:
        _require_known(llm, named)
    return _packed(named) if named else b""


def with_wishes(packed: bytes, task: object) -> bytes:
    """``packed`` with the ``generation_kwargs`` of ``task``, which hold where the LLM knows them.

    The worker tells whether it does: here the LLM may not be known yet, and its workers may differ.

    Raises:
        ConfigurationError: they cannot be sent.
    """
    wishes = getattr(task, "generation_kwargs", None)
    if not wishes:
        return packed
    return _packed({**(unpack(packed) if packed else {}), WISHES: wishes})


def _packed(named: Mapping[str, Any]) -> bytes:
    try:
        packed = pack(dict(sorted(named.items())))
    except RowError as error:
        raise ConfigurationError(f"`generation_kwargs` cannot be sent: {error}") from None
    if len(packed) > MAX_OPTIONS_BYTES:
        raise ConfigurationError(
            f"`generation_kwargs` have {len(packed)} bytes, and at most {MAX_OPTIONS_BYTES} can be sent with a call"
        )
    return packed


def has_told(info: LLMInfo) -> bool:
    """Whether a worker has told which options the LLM knows, with its model's name: one that loads cannot say yet."""
    return info.ready > 0 or any(info.model_names)


def unknown_options(info: LLMInfo, names: Iterable[str]) -> ConfigurationError | None:
    """An error that says which of the options ``names`` the LLM does not know, if there are any."""
    unknown = sorted(set(names) - set(info.options))
    if not unknown:
        return None
    known = printable(", ".join(info.options)) or "none"
    return ConfigurationError(f"{info.name!r} knows no option {', '.join(map(repr, unknown))}; it knows {known}")


def _require_known(llm: Knower, options: Mapping[str, Any]) -> None:
    info = llm.info
    error = unknown_options(info, options) if info and has_told(info) else None
    if error is not None:
        raise error
