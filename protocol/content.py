"""What is inside a row and its answer: packed and opened by clients and workers only, never by the broker.

A row is its content (the task's arguments, or a rendered prompt) and an optional sampling seed. An answer is a list
of outputs, one per generation, or a Failure. Tuples become lists and numpy scalars numbers; integer keys stay.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, cast

import msgpack

from .errors import DecodeError, RowError


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a row has no outputs, as fields: nothing is pickled and no class is looked up by a name from the wire.

    ``type`` is the exception's class name; ``builtin`` the nearest built-in exception that it derives from.
    """

    type: str
    message: str
    builtin: str = "Exception"
    traceback: str = ""
    worker: str = ""
    host: str = ""


def pack(value: Any) -> bytes:
    """``value`` as msgpack.

    Raises:
        RowError: names the type that cannot be carried, and where in ``value`` it stands.
    """
    try:
        return cast(bytes, msgpack.packb(value, default=_number, unicode_errors="surrogatepass"))
    except (TypeError, ValueError, OverflowError) as error:
        raise RowError(_complaint(value, error)) from None


def unpack(payload: bytes) -> Any:
    """The value that ``pack`` made.

    Raises:
        DecodeError: when the bytes are no msgpack, or hold a list as a key.
    """
    try:
        return msgpack.unpackb(payload, strict_map_key=False, unicode_errors="surrogatepass")
    except (ValueError, TypeError, RecursionError) as error:
        raise DecodeError(f"the content cannot be read: {error}") from None


def pack_row(content: Any, seed: int | None) -> bytes:
    """A row's payload. Raises RowError as ``pack`` does."""
    return pack([content, seed])


def unpack_row(payload: bytes) -> tuple[Any, int | None]:
    """Content and seed of a row. Raises DecodeError."""
    row = unpack(payload)
    if not isinstance(row, list) or len(cast(list[Any], row)) != 2:
        raise DecodeError("a row that is not content and seed")
    content, seed = cast(list[Any], row)
    if seed is not None and type(seed) is not int:
        raise DecodeError("a row whose seed is no integer")
    return content, seed


def pack_failure(failure: Failure) -> bytes:
    """A failure's payload; what it says always packs."""
    return pack(asdict(failure))


def unpack_failure(payload: bytes) -> Failure:
    """The failure that a payload tells of. Raises DecodeError."""
    fields = unpack(payload)
    if not isinstance(fields, dict):
        raise DecodeError("a failure that is no map")
    said = cast(dict[str, Any], fields)
    return Failure(**{name: str(said.get(name, "")) for name in Failure.__slots__})


def unpack_outputs(payload: bytes) -> list[dict[str, Any]]:
    """The outputs of one row. Raises DecodeError."""
    outputs = unpack(payload)
    if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in cast(list[Any], outputs)):
        raise DecodeError("an answer that is no list of outputs")
    return cast(list[dict[str, Any]], outputs)


def _number(value: Any) -> Any:
    """A numpy scalar as the Python number that it stands for; numpy itself is never imported."""
    item = getattr(value, "item", None)
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == () and callable(item):
        return item()
    raise TypeError(type(value).__name__)


def _complaint(value: Any, error: Exception) -> str:
    where, culprit = _find(value, "")
    if culprit is None:
        return f"the row cannot be carried over the network: {error}"
    place = f"under {where}" if where else "at its top"
    return (
        f"the row holds {_described(culprit)} {place}, which msgpack cannot carry: "
        "use text, numbers, bytes, lists and dicts"
    )


def _described(culprit: Any) -> str:
    if isinstance(culprit, int):
        return "an integer beyond 64 bits"
    return f"a value of type {type(culprit).__name__}"


def _find(value: Any, where: str, depth: int = 0) -> tuple[str, Any]:
    """Where the innermost value stands that cannot be packed, and that value (None when none was found)."""
    if depth > 64:
        return where, None
    if isinstance(value, dict):
        items = [(f"{where}[{key!r}]", one) for key, one in cast(dict[Any, Any], value).items()]
        items += [(f"{where} key", key) for key in cast(dict[Any, Any], value)]
    elif isinstance(value, (list, tuple)):
        items = [(f"{where}[{at}]", one) for at, one in enumerate(cast(list[Any], value))]
    else:
        return (where, value) if _is_unpackable(value) else (where, None)
    found = (_find(one, place, depth + 1) for place, one in items)
    return next((hit for hit in found if hit[1] is not None), (where, None))


def _is_unpackable(value: Any) -> bool:
    try:
        msgpack.packb(value, default=_number, unicode_errors="surrogatepass")
    except (TypeError, ValueError, OverflowError):
        return True
    return False
