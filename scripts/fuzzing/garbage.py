"""Messages of every kind, made from choices: well formed, and about what the other messages are about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from genpool.protocol.codec import decode, encode
from genpool.protocol.limits import MAX_COUNT, MAX_GENERATIONS, MAX_ROWS_PER_MESSAGE, ROW_ID_BYTES, Limits
from genpool.protocol.messages import (
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

from .choices import Choices

LLMS = ("a", "b")
_MOST_ROWS = 5
_PAYLOADS = (b"", b"row", b"another row", b"x" * 120, b"y" * 700)
_OPTIONS = (b"", b"\x81\xa4seed\x01", b"\xc1")
_TRACES = ("", "", "", "00-" + 32 * "a" + "-" + 16 * "b" + "-01")
_OPTION_NAMES: tuple[str, ...] = ("seed", "temperature", "\ud800")
_MODELS: tuple[str, ...] = ("model", "")
_MAPS: tuple[dict[str, Any], ...] = ({}, {"name": "Task"}, {"a": [None, True, 1.5, {"\udfff": "b"}]})


@dataclass(slots=True)
class Vocabulary:
    """What a conversation is about: messages that name the same things have something to do with each other."""

    ids: list[bytes] = field(default_factory=lambda: [bytes([number]) * ROW_ID_BYTES for number in range(10)])
    executions: list[int] = field(default_factory=lambda: list(range(6)))
    instances: list[bytes] = field(default_factory=lambda: [b"1", b"2", b"3", b"4"])


def message(choices: Choices, words: Vocabulary, kinds: tuple[type[Any], ...]) -> Message:
    """A message of one of ``kinds``."""
    return MAKERS[choices.one_of(kinds)](choices, words)


def received(choices: Choices, words: Vocabulary, kinds: tuple[type[Any], ...]) -> Message:
    """A message as it may arrive: well formed, or now and then what is read from bytes that are not. DecodeError."""
    if not choices.rarely():
        return message(choices, words, kinds)
    return decode([choices.blob() for _ in range(3)] if choices.flag() else spoiled(choices, words, kinds))


def spoiled(choices: Choices, words: Vocabulary, kinds: tuple[type[Any], ...]) -> list[bytes]:
    """The frames of a message, with one byte changed."""
    made = [bytes(frame) for frame in encode(message(choices, words, kinds), 1 + choices.below(250))]
    at = choices.below(len(made))
    frame = bytearray(made[at])
    if frame:
        frame[choices.below(256) % len(frame)] = choices.below(256)
    made[at] = bytes(frame)
    return made


def passed_on(sent: Message, max_frame_bytes: int) -> Message:
    """What arrives of a message that a machine has sent. Raises whatever keeps it from arriving."""
    made = encode(sent, max_frame_bytes)
    assert all(len(frame) <= max_frame_bytes for frame in made[1:]), "a frame is too long"
    return decode(made)


def _payloads(choices: Choices, count: int) -> list[bytes]:
    return [choices.one_of(_PAYLOADS) for _ in range(count)]


def _outcomes(choices: Choices, count: int) -> list[int]:
    return [choices.one_of((Outcome.DONE, *Outcome)) for _ in range(count)]


def _left(choices: Choices) -> float | None:
    return choices.seconds() if choices.below(4) == 3 else None


def _positive(choices: Choices) -> int:
    return max(1, choices.count())


def _hello(choices: Choices, words: Vocabulary) -> Hello:
    if choices.rarely():
        return Hello(version=2)
    return Hello(
        role=choices.one_of(tuple(Role)),
        instance=choices.one_of(words.instances),
        host=choices.text(),
        pid=choices.count(),
        release=choices.text(),
        llm=choices.one_of((*LLMS, *LLMS, "", "c")),
        state=choices.one_of(tuple(WorkerState)),
        reason=choices.text(),
        model_name=choices.text(),
        task=choices.one_of(_MAPS),
        batch_size=choices.one_of((1, 1, 2, 3, _positive(choices))),
        concurrency=choices.one_of((1, 2, 8, _positive(choices))),
        options=choices.some_of(_OPTION_NAMES, 2),
        credit=choices.count(),
    )


def _submit_run(choices: Choices, words: Vocabulary) -> SubmitRun:
    ids = choices.some_of(words.ids, _MOST_ROWS)
    return SubmitRun(
        choices.one_of((*LLMS, *LLMS, "", "c")),
        choices.one_of(tuple(RowKind)),
        choices.one_of((1, 2, min(MAX_GENERATIONS, _positive(choices)))),
        choices.one_of(_OPTIONS),
        _left(choices),
        choices.flag(),
        ids,
        _payloads(choices, len(ids)),
        choices.one_of((0.0, 0.0, 1.0, 1e308)),
        choices.one_of(_TRACES),
    )


def _assign_run(choices: Choices, words: Vocabulary) -> AssignRun:
    ids = choices.some_of(words.ids, _MOST_ROWS)
    return AssignRun(
        choices.one_of(tuple(RowKind)),
        choices.one_of((1, 2, min(MAX_GENERATIONS, _positive(choices)))),
        choices.one_of(_OPTIONS),
        _left(choices),
        choices.count(),
        min(choices.one_of((*words.executions, choices.count())), MAX_COUNT - MAX_ROWS_PER_MESSAGE),
        ids,
        _payloads(choices, len(ids)),
        choices.flag(),
        choices.one_of(_TRACES),
    )


def _answer(choices: Choices, words: Vocabulary) -> Answer:
    ids = choices.some_of(words.ids, _MOST_ROWS)
    attempts = [choices.count() for _ in ids]
    return Answer(ids, _outcomes(choices, len(ids)), attempts, list(_payloads(choices, len(ids))))


def _executions(choices: Choices, words: Vocabulary) -> list[int]:
    return choices.some_of((*words.executions[-24:], choices.count()), _MOST_ROWS)


def _result(choices: Choices, words: Vocabulary) -> Result:
    executions = _executions(choices, words)
    count = len(executions)
    tokens, credit = choices.count(), choices.count()
    return Result(executions, _outcomes(choices, count), tokens, credit, _payloads(choices, count))


def _hold(choices: Choices, words: Vocabulary) -> Hold:
    executions = _executions(choices, words)
    ids = [choices.one_of(words.ids) for _ in executions]
    return Hold(executions, ids, [choices.flag() for _ in executions], choices.below(4) == 3)


def _info(choices: Choices) -> LLMInfo:
    ready, loading, unwell, capacity = (choices.count() for _ in range(4))
    names, options = choices.some_of(_MODELS, 2), choices.some_of(_OPTION_NAMES, 2)
    return LLMInfo(
        choices.one_of(LLMS), names, choices.one_of(_MAPS), options, ready, loading, unwell, capacity, choices.text()
    )


def _limits(choices: Choices) -> Limits:
    return Limits(*(choices.one_of((4096, 1, 3, 200, _positive(choices))) for _ in range(4)))


def _welcome(choices: Choices) -> Welcome:
    return Welcome(b"epoch", choices.seconds(), _limits(choices), 2 if choices.rarely() else 1)


def _ids(choices: Choices, words: Vocabulary) -> list[bytes]:
    return choices.some_of(words.ids, 2 * _MOST_ROWS)


MAKERS: dict[type[Any], Callable[[Choices, Vocabulary], Message]] = {
    Hello: _hello,
    Welcome: lambda choices, words: _welcome(choices),
    Refuse: lambda choices, words: Refuse(choices.text(), 2 if choices.rarely() else 1),
    Reset: lambda choices, words: Reset(choices.text()),
    Ping: lambda choices, words: Ping(choices.one_of((None, choices.count()))),
    Goodbye: lambda choices, words: Goodbye(choices.text()),
    Submit: lambda choices, words: Submit([_submit_run(choices, words) for _ in range(1 + choices.below(3))]),
    Release: lambda choices, words: Release(_ids(choices, words)),
    Await: lambda choices, words: Await(_ids(choices, words), choices.below(4) == 3),
    Missing: lambda choices, words: Missing(_ids(choices, words)),
    Answer: _answer,
    Fleet: lambda choices, words: Fleet([_info(choices) for _ in range(choices.below(3))]),
    Ask: lambda choices, words: Ask(),
    Status: lambda choices, words: Status(choices.one_of(_MAPS)),
    Assign: lambda choices, words: Assign([_assign_run(choices, words) for _ in range(1 + choices.below(3))]),
    Settle: lambda choices, words: Settle(_executions(choices, words)),
    Resend: lambda choices, words: Resend(_executions(choices, words)),
    Result: _result,
    Grant: lambda choices, words: Grant(choices.count(), choices.one_of(tuple(WorkerState)), choices.text()),
    Hold: _hold,
    Busy: lambda choices, words: Busy(_ids(choices, words), choices.seconds()),
    Dismiss: lambda choices, words: Dismiss(choices.one_of(tuple(Role)), choices.text(), choices.one_of(("", *LLMS))),
    Dismissed: lambda choices, words: Dismissed(
        [PeerInfo(choices.text(), choices.count(), choices.text(), choices.count()) for _ in range(choices.below(3))],
        choices.text(),
        choices.below(2) == 1,
    ),
    Drain: lambda choices, words: Drain(choices.text()),
}
