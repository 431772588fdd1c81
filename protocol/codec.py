"""Messages to frames and back: the one place that knows msgpack, and where bytes from a peer become typed.

A message is a *head* frame (one byte for its kind, then a msgpack map of its fields) and, where it carries rows, body
frames: the rows' payloads one after the other, cut at ``max_frame_bytes`` wherever that falls. The head holds the
payloads' sizes; payloads stay bytes until the worker or the client that they are for opens them (see content.py), and
a large one that is alone in its message stays in the frames that it came in (see frames.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from enum import Enum
from math import inf
from operator import attrgetter, call
from struct import Struct
from typing import Any, cast

import msgpack

from .errors import DecodeError
from .frames import LARGE_BYTES, Frame, Frames, Payload
from .limits import (
    MAX_COUNT,
    MAX_GENERATIONS,
    MAX_HELLO_BYTES,
    MAX_NAME_BYTES,
    MAX_OPTIONS_BYTES,
    MAX_REASON_BYTES,
    MAX_ROWS_PER_MESSAGE,
    PROTOCOL_VERSION,
    ROW_ID_BYTES,
    Limits,
)
from .messages import (
    Answer,
    Ask,
    Assign,
    AssignRun,
    Await,
    Busy,
    Dismiss,
    Dismissed,
    Drain,
    Fleet,
    Goodbye,
    Grant,
    Hello,
    Hold,
    LLMInfo,
    Message,
    Missing,
    Outcome,
    PeerInfo,
    Ping,
    Refuse,
    Release,
    Resend,
    Reset,
    Result,
    Role,
    RowKind,
    Settle,
    Status,
    Submit,
    SubmitRun,
    Welcome,
    WorkerState,
)
from .packer import Packer

Check = Callable[[Any], Any]
# With a type that ``map`` takes.
_checked = cast("Callable[[Check, Any], Any]", call)

MAX_HEAD_BYTES = 4 * 1024 * 1024
MAX_COLLECTED_BYTES = 64 * 1024 * 1024
# Of a message without options; the longest has some 30 bytes for each of its rows.
_MAX_PLAIN_BYTES = 256 * 1024
_ID = Struct(f"{ROW_ID_BYTES}s")
_MOST_LLMS = 100_000
_MOST_PEERS = 100_000

# A task's description goes on to clients inside further maps, and msgpack ends at some depth: levels must be left.
_DEEPEST_TASK = 16
_DEEPEST_REPORT = 64


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise DecodeError("is no text")
    return value


def _text_of(most_bytes: int) -> Check:
    surely_fits = most_bytes // 4

    def checked(value: Any) -> str:
        if not isinstance(value, str):
            raise DecodeError("is no text")
        # Nearly all are so short that they need not be encoded.
        if len(value) > surely_fits and len(value.encode(errors="surrogatepass")) > most_bytes:
            raise DecodeError(f"is longer than {most_bytes} bytes")
        return value

    return checked


_name = _text_of(MAX_NAME_BYTES)
_reason = _text_of(MAX_REASON_BYTES)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_COUNT:
        raise DecodeError("is no count")
    return value


def _first_of_run(value: Any) -> int:
    # The numbers of the rows behind the first must be counts, too.
    if _count(value) > MAX_COUNT - MAX_ROWS_PER_MESSAGE:
        raise DecodeError("is no count that others can follow")
    return value


def _positive(value: Any) -> int:
    if _count(value) < 1:
        raise DecodeError("is below 1")
    return value


def _generations(value: Any) -> int:
    if _positive(value) > MAX_GENERATIONS:
        raise DecodeError(f"is above {MAX_GENERATIONS}")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise DecodeError("is no flag")
    return value


def _seconds(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < inf:
        raise DecodeError("is no number of seconds")
    return float(value)


def _hedge(value: Any) -> float:
    if type(value) not in (int, float) or not (value == 0 or 1 <= value < inf):
        raise DecodeError("is neither 0 nor a number from 1")
    return float(value)


# A traceparent of version 00, by https://www.w3.org/TR/trace-context/: neither id is all zeros.
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def _trace(value: Any) -> str:
    if _text(value) and _TRACEPARENT.fullmatch(value) is None:
        raise DecodeError("is no traceparent")
    return value


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise DecodeError("is no byte string")
    return value


def _options(value: Any) -> bytes:
    if len(_bytes(value)) > MAX_OPTIONS_BYTES:
        raise DecodeError(f"is longer than {MAX_OPTIONS_BYTES} bytes")
    return value


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not {*map(type, cast("dict[Any, Any]", value))} <= {str}:
        raise DecodeError("is no map of names")
    return cast("dict[str, Any]", value)


def _check_plain(value: Any, levels: int) -> None:
    if levels < 0:
        raise DecodeError("is nested too deeply")
    if isinstance(value, dict):
        for item in _mapping(value).values():
            _check_plain(item, levels - 1)
    elif isinstance(value, list):
        for item in cast(list[Any], value):
            _check_plain(item, levels - 1)
    elif value is not None and not isinstance(value, (str, int, float)):
        raise DecodeError(f"holds a value of type {type(value).__name__}")


def _plain_mapping(levels: int) -> Check:
    """Only maps of names, lists, text and numbers, so that whoever gets them can pass them on, as JSON too."""

    def checked(value: Any) -> dict[str, Any]:
        _check_plain(value, levels)
        return _mapping(value)

    return checked


def _optional(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def _list(value: Any, most: int) -> list[Any]:
    items: list[Any] = value
    if type(items) is not list:
        raise DecodeError("is no list")
    if len(items) > most:
        raise DecodeError(f"has {len(items)} entries, more than {most}")
    return items


def _list_of(check: Check, most: int = MAX_ROWS_PER_MESSAGE) -> Check:
    return lambda value: [*map(check, _list(value, most))]


def _one_of(names: type[Enum]) -> Check:
    known: dict[str | int, None] = {member.value: None for member in names}

    def checked(value: Any) -> Any:
        if type(value) not in (str, int) or value not in known:
            raise DecodeError(f"is none of {', '.join(map(str, known))}")
        return value

    return checked


# There is one of these for each row: a call for each would take twice as long as all else that is done to it here.


def _counts(value: Any) -> list[int]:
    counts = _list(value, MAX_ROWS_PER_MESSAGE)
    for count in counts:
        if type(count) is not int or count < 0 or count > MAX_COUNT:
            raise DecodeError("is no count")
    return counts


def _outcomes(value: Any) -> list[int]:
    outcomes = _list(value, MAX_ROWS_PER_MESSAGE)
    for outcome in outcomes:
        if type(outcome) is not int or outcome not in _OUTCOMES:
            raise DecodeError(f"is none of {', '.join(map(str, _OUTCOMES))}")
    return outcomes


_OUTCOMES = tuple(outcome.value for outcome in Outcome)


def _ids(value: Any) -> list[bytes]:
    joined = _bytes(value)
    if len(joined) % ROW_ID_BYTES or len(joined) > MAX_ROWS_PER_MESSAGE * ROW_ID_BYTES:
        raise DecodeError(f"is no string of at most {MAX_ROWS_PER_MESSAGE} ids, {ROW_ID_BYTES} bytes each")
    return [joined] if len(joined) == ROW_ID_BYTES else [row_id for (row_id,) in _ID.iter_unpack(joined)]


def _record(kind: type[Any]) -> Check:
    def checked(value: Any) -> Any:
        return _usual(kind, value) or _typed(kind, _mapping(value))

    return checked


def _unchecked(value: Any) -> Any:
    return value


# What each field must be. A field that a peer leaves out takes the dataclass's default or is an error; a field that
# is not named here is passed over, so that a later release of the same version may say more.
_FIELDS: dict[type[Any], dict[str, Check]] = {
    Hello: {
        "role": _one_of(Role),
        "instance": _bytes,
        "host": _name,
        "pid": _count,
        "version": _count,
        "release": _name,
        "llm": _name,
        "state": _one_of(WorkerState),
        "reason": _reason,
        "model_name": _name,
        "task": _plain_mapping(_DEEPEST_TASK),
        "batch_size": _positive,
        "concurrency": _positive,
        "options": _list_of(_name),
        "credit": _count,
    },
    Welcome: {"epoch": _bytes, "ping_interval_s": _seconds, "limits": _record(Limits), "version": _count},
    Limits: {
        "max_frame_bytes": _positive,
        "target_message_bytes": _positive,
        "max_row_bytes": _positive,
        "max_rows": _positive,
        "max_client_rows": _positive,
        "max_client_bytes": _positive,
    },
    Refuse: {"reason": _reason, "version": _count},
    Reset: {"reason": _reason},
    Ping: {"held": _optional(_count), "waiting": _count},
    Goodbye: {"reason": _reason},
    Submit: {"runs": _list_of(_record(SubmitRun))},
    SubmitRun: {
        "llm": _name,
        "kind": _one_of(RowKind),
        "num_generations": _generations,
        "options": _options,
        "seconds_left": _optional(_seconds),
        "again": _flag,
        "ids": _ids,
        "hedge": _hedge,
        "trace": _trace,
    },
    Release: {"ids": _ids},
    Await: {"ids": _ids, "more": _flag},
    Missing: {"ids": _ids},
    Busy: {"ids": _ids, "seconds": _seconds},
    Answer: {"ids": _ids, "outcomes": _outcomes, "attempts": _counts},
    LLMInfo: {
        "name": _name,
        "model_names": _list_of(_name),
        "task": _plain_mapping(_DEEPEST_TASK),
        "options": _list_of(_name),
        "ready": _count,
        "loading": _count,
        "unwell": _count,
        "capacity": _count,
        "reason": _reason,
    },
    Fleet: {"llms": _list_of(_record(LLMInfo), most=_MOST_LLMS)},
    Ask: {},
    Status: {"report": _plain_mapping(_DEEPEST_REPORT)},
    Dismiss: {"role": _one_of(Role), "name": _name, "llm": _name},
    PeerInfo: {"host": _name, "pid": _count, "llm": _name, "rows": _count},
    Dismissed: {"peers": _list_of(_record(PeerInfo), most=_MOST_PEERS), "reason": _reason, "is_refused": _flag},
    Drain: {"reason": _reason},
    Assign: {"runs": _list_of(_record(AssignRun))},
    AssignRun: {
        "kind": _one_of(RowKind),
        "num_generations": _generations,
        "options": _options,
        "seconds_left": _optional(_seconds),
        "charged": _count,
        "first_execution": _first_of_run,
        "ids": _ids,
        "are_suspects": _flag,
        "trace": _trace,
    },
    Settle: {"executions": _counts},
    Resend: {"executions": _counts},
    Result: {"executions": _counts, "outcomes": _outcomes, "tokens": _count, "credit": _count},
    Grant: {"credit": _count, "state": _one_of(WorkerState), "reason": _reason},
    Hold: {"executions": _counts, "ids": _ids, "finished": _list_of(_flag), "more": _flag},
}

# The byte of each kind. Hello and Refuse keep theirs for ever.
_KINDS: dict[bytes, type[Any]] = {
    b"H": Hello,
    b"R": Refuse,
    b"W": Welcome,
    b"X": Reset,
    b"P": Ping,
    b"G": Goodbye,
    b"S": Submit,
    b"L": Release,
    b"A": Await,
    b"M": Missing,
    b"B": Busy,
    b"D": Answer,
    b"F": Fleet,
    b"Q": Ask,
    b"T": Status,
    b"K": Dismiss,
    b"V": Dismissed,
    b"U": Drain,
    b"J": Assign,
    b"Z": Settle,
    b"N": Resend,
    b"E": Result,
    b"C": Grant,
    b"O": Hold,
}
_BYTES = {kind: byte for byte, kind in _KINDS.items()}

# Lists that must be equally long: one entry a row.
_COLUMNS: dict[type[Any], tuple[str, ...]] = {
    SubmitRun: ("ids", "payloads"),
    AssignRun: ("ids", "payloads"),
    Answer: ("ids", "outcomes", "attempts", "payloads"),
    Result: ("executions", "outcomes", "payloads"),
    Hold: ("executions", "ids", "finished"),
}
_COLUMNS_OF = {kind: attrgetter(*names) for kind, names in _COLUMNS.items()}
_CARRIERS = frozenset(kind for kind in _COLUMNS if kind is not Hold)
_RUNS = {Submit: SubmitRun, Assign: AssignRun}
# Fields that do not stand in the head as they are.
_CHANGED = frozenset(("payloads", "ids", "runs", "llms", "peers", "limits", "reason", "trace"))
# Each field's name, and whether it is one of those.
_NAMES = {kind: tuple((f.name, f.name in _CHANGED) for f in fields(kind)) for kind in _FIELDS}

# A map as ``encode`` writes it where there is no trace: its names, and what each of its values must be, in the order of
# the dataclass's fields. Sizes are looked at when the body is cut.
_USUAL: dict[type[Any], tuple[tuple[str, ...], tuple[Check, ...]]] = {
    kind: (
        tuple("sizes" if name == "payloads" else name for name, _ in names if name != "trace"),
        tuple(_FIELDS[kind].get(name, _unchecked) for name, _ in names if name != "trace"),
    )
    for kind, names in _NAMES.items()
}

# How many bytes a head may have and a list in it items, where others than usual: a hello's is passed on to all clients,
# and what is collected of many hellos is longer.
_LARGEST = dict.fromkeys(_FIELDS, (_MAX_PLAIN_BYTES, MAX_ROWS_PER_MESSAGE)) | {
    **dict.fromkeys((Submit, Assign), (MAX_HEAD_BYTES, MAX_ROWS_PER_MESSAGE)),
    Hello: (MAX_HELLO_BYTES, MAX_ROWS_PER_MESSAGE),
    Fleet: (MAX_COLLECTED_BYTES, _MOST_LLMS),
    Status: (MAX_COLLECTED_BYTES, _MOST_LLMS),
    Dismissed: (MAX_COLLECTED_BYTES, _MOST_PEERS),
}

_packer = Packer()


def encode(message: Message, max_frame_bytes: int) -> list[Frame]:
    """The frames of ``message``: its head, then body frames of at most ``max_frame_bytes``."""
    payloads: list[Payload] = []
    head = _BYTES[type(message)] + _pack(_plain(message, payloads))
    if not payloads:
        return [head]
    if len(payloads) == 1 and isinstance(payloads[0], Frames):
        frames = payloads[0].frames
        if all(len(frame) <= max_frame_bytes for frame in frames):
            return [head, *frames]
    try:
        body = b"".join(cast("list[bytes]", payloads))
    except TypeError:  # there are Frames among them
        body = b"".join(map(bytes, payloads))
    if len(body) <= max_frame_bytes:
        return [head, body]
    view = memoryview(body)
    return [head, *(view[at : at + max_frame_bytes] for at in range(0, len(view), max_frame_bytes))]


def _pack(head: dict[str, Any]) -> bytes:
    try:
        return _packer.pack(head)
    except UnicodeEncodeError:  # lone surrogates: with them, long texts take ten times as long
        return msgpack.packb(head, unicode_errors="surrogatepass")


def _plain(value: Any, payloads: list[Payload]) -> dict[str, Any]:
    """The record as a map, its payloads taken out and appended to ``payloads``."""
    plain: dict[str, Any] = {}
    for name, is_changed in _NAMES[type(value)]:
        item = getattr(value, name)
        if not is_changed:
            pass
        elif name == "trace":
            if not item:
                continue  # as nearly always
        elif name == "payloads":
            payloads.extend(item)
            name, item = "sizes", [len(payload) for payload in item]
        elif name == "ids":
            item = b"".join(item)
        elif name == "reason":
            item = _shortened(item)
        elif name == "limits":
            item = _plain(item, payloads)
        else:
            item = [_plain(one, payloads) for one in item]
        plain[name] = item
    return plain


def _shortened(reason: str) -> str:
    """A reason that is not too long to be carried: it is for people, who read its beginning."""
    most = MAX_REASON_BYTES // 4 - 1
    return reason if len(reason) <= most else reason[:most] + "…"


def decode(frames: Sequence[Frame]) -> Message:
    """The message that ``frames`` hold.

    A hello or refusal of another version comes back with its version and, for a hello, nothing more.

    Raises:
        DecodeError: what was wrong, in a sentence.
    """
    if not frames or not frames[0]:
        raise DecodeError("an empty message")
    head = bytes(frames[0])
    kind = _KINDS.get(head[:1])
    if kind is None:
        raise DecodeError(f"a message of the unknown kind {head[:1]!r}")
    most_bytes, longest = _LARGEST[kind]
    if len(head) > most_bytes:
        raise DecodeError(f"{kind.__name__}: its head has {len(head)} bytes, more than {most_bytes}")
    try:
        plain = _unpack(head[1:], longest)
        if (kind is Hello or kind is Refuse) and _field("version", _count, plain) != PROTOCOL_VERSION:
            return Hello(version=plain["version"]) if kind is Hello else _foreign_refusal(plain)
        if kind is Hello:
            _field("role", _FIELDS[Hello]["role"], plain)  # only that of another version may say none
        message = _usual(kind, plain) or _typed(kind, plain)
        _fill(kind, message, frames[1:])
    except DecodeError as error:
        raise DecodeError(f"{kind.__name__}: {error}") from None
    return message


def _foreign_refusal(plain: dict[str, Any]) -> Refuse:
    return Refuse(_field("reason", _text, plain) if "reason" in plain else "", plain["version"])


def _unpack(head: bytes, longest: int) -> dict[str, Any]:
    try:
        # The length that a list announces is allocated before its items are seen, at every level of nesting. An item
        # takes a byte at least.
        most = min(longest, len(head))
        plain: dict[str, Any] = msgpack.unpackb(head, unicode_errors="surrogatepass", max_array_len=most)
    # msgpack raises ValueError and its own subclasses for bad bytes, and others for odd but valid ones (a list as key).
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        raise DecodeError(f"its head is no msgpack: {str(error) or type(error).__name__}") from None
    if type(plain) is not dict:
        raise DecodeError("its head is no map of names")
    return plain


def _field(name: str, check: Check, plain: dict[str, Any]) -> Any:
    try:
        return check(plain.get(name))
    except DecodeError as error:
        raise DecodeError(f"{name} {error}") from None


def _usual(kind: type[Any], plain: dict[str, Any]) -> Any:
    """As ``_typed``, of a map as nearly all are; None of any other value, and where something is wrong with it."""
    names, checks = _USUAL[kind]
    if type(plain) is not dict or (*plain,) != names:
        return None
    try:
        return kind(*map(_checked, checks, plain.values()))
    except DecodeError:
        return None


def _typed(kind: type[Any], plain: dict[str, Any]) -> Any:
    """An instance of ``kind`` from checked fields; where its rows' payloads belong are yet their unchecked sizes."""
    values: dict[str, Any] = {}
    name = ""
    try:
        for name, check in _FIELDS[kind].items():
            if name in plain:
                values[name] = check(plain[name])
    except DecodeError as error:
        raise DecodeError(f"{name} {error}") from None
    if kind in _CARRIERS:
        values["payloads"] = plain.get("sizes")
    try:
        return kind(**values)
    except TypeError:
        absent = [name for name in _FIELDS[kind] if name not in plain]
        raise DecodeError(f"lacks some of {', '.join(absent)}") from None


def _fill(kind: type[Any], message: Any, body: Sequence[Frame]) -> None:
    """Cut the body into payloads, by the sizes in the head, and check that all columns are equally long."""
    if kind in _RUNS:
        kind, records = _RUNS[kind], message.runs
    elif kind in _COLUMNS:
        records = [message]
    else:
        records = []
    if records and kind is not Hold:
        _cut(records, body)
        body = ()
    for record in records:
        if len({*map(len, _COLUMNS_OF[kind](record))}) > 1:
            raise DecodeError(f"{', '.join(_COLUMNS[kind])} differ in length")
    if body:
        raise DecodeError("has a body and no rows")


def _cut(records: list[Any], body: Sequence[Frame]) -> None:
    """Put payloads into ``records``, where there are their sizes."""
    if len(records) == 1 and len(body) == 1 and len(body[0]) < LARGE_BYTES:
        # As below, for what is mostly one row. A size of True or 1.0 is none, and would be equal.
        sizes = records[0].payloads
        if sizes == [len(body[0])] and type(sizes[0]) is int:
            records[0].payloads = [bytes(body[0])]
            return
    try:
        sizes = [_counts(record.payloads) for record in records]
    except DecodeError as error:
        raise DecodeError(f"sizes {error}") from None
    size = sum(map(len, body))
    at = sum(map(sum, sizes))
    if at != size:
        raise DecodeError(f"its rows have {at} bytes and its body {size}")
    # Of many small frames each would cost the next reader more than a byte's copy.
    is_large = size >= LARGE_BYTES and all(len(frame) >= LARGE_BYTES for frame in body[:-1])
    if is_large and sizes == [[size]]:
        records[0].payloads = [Frames(body)]
    else:
        rows, start = b"".join(body) if len(body) != 1 else bytes(body[0]), 0
        for record, own in zip(records, sizes, strict=True):
            record.payloads = [rows[start : (start := start + size)] for size in own]
