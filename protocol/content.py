"""What is inside a row and its answer: packed and opened by clients and workers only, never by the broker.

A row is its content (the task's arguments, or a rendered prompt) and an optional sampling seed. An answer is a list
of outputs, one per generation, or a Failure. Tuples become lists and numpy scalars numbers; integer keys stay.

Generation options are a map of names. Those in the map at WISHES hold only where the LLM knows them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, cast

import msgpack

from .errors import DecodeError, RowError
from .frames import Frame, Payload, in_one_piece
from .packer import Packer
from .shape import are_lists

# No option has this name: an option is an argument of an engine's.
WISHES = "?"

# How many levels are searched for what cannot be packed.
_DEEPEST_SEARCH = 64

# Refuses all but plain dicts, lists, texts, bytes, numbers and None, and so packs nothing that cannot be opened.
_plain = Packer(strict_types=True)

# The length that a list announces is allocated before its items are seen, at each of up to 1024 levels of nesting. A
# payload with a longer list is looked through first, which takes a tenth of the time more.
_LONGEST_UNSEEN = 4096

_reading: dict[str, Any] = {"strict_map_key": False, "unicode_errors": "surrogatepass"}
_open: Callable[[Any], Any] = partial(msgpack.unpackb, max_array_len=_LONGEST_UNSEEN, **_reading)

# Without options it takes half the time. It opens what ``_open`` does and to the same values, but refuses integer keys,
# lone surrogates and lists that announce more items than the payload has bytes: of a payload that is no longer than
# _LONGEST_UNSEEN it needs no other bound.
_open_short: Callable[[Any], Any] = msgpack.unpackb


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


def pack(value: Any, part: Any = None) -> bytes:
    """``value`` as msgpack.

    Raises:
        RowError: names the type that cannot be carried, and where in ``value`` it stands, or in that ``part`` of it
            which the user gave.
    """
    try:
        return _plain.pack(value)
    except (TypeError, ValueError, OverflowError, BufferError):
        return _pack_odd(value, value if part is None else part)


def pack_each(values: Sequence[Any]) -> list[bytes] | None:
    """``pack`` for all of ``values``, for less than one by one; None when ``pack`` must look at one of them."""
    try:
        return _plain.pack_each(values)
    except Exception:  # whatever it is, ``pack`` says it of the one that it is about
        return None


def _pack_odd(value: Any, part: Any) -> bytes:
    """``pack`` for values that hold tuples, numpy scalars, lone surrogates or the like. Raises RowError."""
    try:
        packed = msgpack.packb(value, default=_number, unicode_errors="surrogatepass")
        # What packs need not open again: a tuple comes back as a list, and a list is no key.
        msgpack.unpackb(packed, strict_map_key=False, unicode_errors="surrogatepass")
    except (TypeError, ValueError, OverflowError, BufferError) as error:
        raise RowError(_complaint(part, error)) from None
    return packed


def unpack(payload: Payload) -> Any:
    """The value that ``pack`` made.

    Raises:
        DecodeError: when the bytes are no msgpack, or hold a list as a key.
    """
    packed = in_one_piece(payload)
    try:
        try:
            return _open(packed)
        except ValueError:
            _look_through(packed)
            return msgpack.unpackb(packed, **_reading)
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        raise DecodeError(f"the content cannot be read: {str(error) or type(error).__name__}") from None


def _look_through(packed: Frame) -> None:
    """See that all is there that is announced. Raises ValueError; the rest is said by whoever opens it."""
    reader = msgpack.Unpacker(max_buffer_size=len(packed))
    reader.feed(packed)
    try:
        reader.skip()
    except msgpack.OutOfData:
        raise ValueError("it announces more than there is") from None


def pack_row(content: Any, seed: int | None) -> bytes:
    """A row's payload. Raises RowError as ``pack`` does."""
    return pack([content, seed], content)


def unpack_row(payload: Payload) -> tuple[Any, int | None]:
    """Content and seed of a row. Raises DecodeError."""
    row = unpack(payload)
    if not isinstance(row, list) or len(cast(list[Any], row)) != 2:
        raise DecodeError("a row that is not content and seed")
    content, seed = cast(list[Any], row)
    if seed is not None and type(seed) is not int:
        raise DecodeError("a row whose seed is no integer")
    return content, seed


def _open_each(payloads: Sequence[Payload]) -> list[Any]:
    """What ``payloads`` hold. Raises what msgpack raises."""
    if max(map(len, payloads), default=0) <= _LONGEST_UNSEEN:
        try:
            return list(map(_open_short, payloads))
        except Exception:
            pass  # ``_open`` takes it, or says what is wrong
    return list(map(_open, map(in_one_piece, payloads)))


def _unpack_lists(payloads: Sequence[Payload], length: int) -> list[list[Any]] | None:
    """What ``payloads`` hold, for less than one by one; None unless each is a list of that length."""
    try:
        lists = _open_each(payloads)
    except Exception:  # whatever it is, ``unpack`` says it of the one that it is about
        return None
    return lists if are_lists(lists, length) else None


def unpack_rows(payloads: Sequence[Payload]) -> tuple[list[Any], list[int | None]] | None:
    """``unpack_row`` for all of ``payloads``, for less than one by one; None when one of them must be looked at.

    Returns:
        The contents and the seeds.
    """
    rows = _unpack_lists(payloads, 2)
    if rows is None:
        return None
    contents: list[Any] = []
    seeds: list[int | None] = []
    for content, seed in rows:
        if seed is not None and type(seed) is not int:
            return None
        contents.append(content)
        seeds.append(seed)
    return contents, seeds


def pack_failure(failure: Failure) -> bytes:
    """A failure's payload; what it says always packs."""
    return pack(asdict(failure))


def unpack_failure(payload: Payload) -> Failure:
    """The failure that a payload tells of. Raises DecodeError."""
    fields = unpack(payload)
    if not isinstance(fields, dict):
        raise DecodeError("a failure that is no map")
    said = cast(dict[str, Any], fields)
    return Failure(**{name: str(said.get(name, "")) for name in Failure.__slots__})


def unpack_outputs(payload: Payload) -> list[dict[str, Any]]:
    """The outputs of one row. Raises DecodeError."""
    outputs = unpack(payload)
    if not isinstance(outputs, list) or [one for one in cast(list[Any], outputs) if not isinstance(one, dict)]:
        raise DecodeError("an answer that is no list of outputs")
    return cast(list[dict[str, Any]], outputs)


def unpack_each_outputs(payloads: Sequence[Payload], count: int) -> list[list[dict[str, Any]]] | None:
    """``unpack_outputs`` for all of ``payloads``, for less than one by one; None unless each holds so many of them."""
    rows = _unpack_lists(payloads, count)
    if rows is None or not {type(output) for row in rows for output in row} <= {dict}:
        return None
    return rows


def _number(value: Any) -> Any:
    """A numpy scalar as the Python number that it stands for; numpy itself is never imported.

    Not the times among them: some of those would silently become numbers too.
    """
    name = type(value).__name__
    if type(value).__module__ != "numpy" or name in ("datetime64", "timedelta64") or value.shape != ():
        raise TypeError(name)
    return value.item()


def _complaint(value: Any, error: Exception) -> str:
    culprit = _culprit(value, "", set())
    if culprit is None:
        return f"the row cannot be carried over the network: {error}"
    return f"the row holds {culprit}, which msgpack cannot carry: use text, numbers, bytes, lists and dicts"


def _culprit(value: Any, where: str, seen: set[int], depth: int = 0) -> str | None:
    """The first value or key in ``value`` that cannot be packed: its type and its place, in words.

    ``seen`` holds the containers that were searched: one may be met many times over, or hold itself.
    """
    if not isinstance(value, (dict, list, tuple)):
        return None if _is_packable(value) else f"{_described(value, 'value')} {_place(where)}"
    if depth > _DEEPEST_SEARCH or id(cast(Any, value)) in seen:
        return None
    seen.add(id(cast(Any, value)))
    if isinstance(value, dict):
        entries = cast(dict[Any, Any], value)
        for key in entries:
            if isinstance(key, tuple) or not _is_packable(key):
                return f"{_described(key, 'key')} {_place(where)}"
        items: Iterable[tuple[Any, Any]] = entries.items()
    else:
        items = enumerate(cast(Sequence[Any], value))
    found = (_culprit(item, f"{where}[{key!r:.80}]", seen, depth + 1) for key, item in items)
    return next((one for one in found if one is not None), None)


def _place(where: str) -> str:
    return f"under {where}" if where else "at its top"


def _described(culprit: Any, what: str) -> str:
    if isinstance(culprit, int):
        return f"an integer {what} beyond 64 bits"
    return f"a {what} of type {type(culprit).__name__}"


def _is_packable(value: Any) -> bool:
    try:
        msgpack.packb(value, default=_number, unicode_errors="surrogatepass")
    except (TypeError, ValueError, OverflowError, BufferError):
        return False
    return True
