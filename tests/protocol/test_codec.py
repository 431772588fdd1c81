from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import accumulate, pairwise
from typing import Any, get_args
from unittest import mock

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from genpool.broker.settings import BrokerSettings
from genpool.protocol import codec
from genpool.protocol.codec import MAX_HEAD_BYTES, decode
from genpool.protocol.errors import DecodeError
from genpool.protocol.frames import LARGE_BYTES, Frames, Payload
from genpool.protocol.limits import MAX_GENERATIONS, MAX_HELLO_BYTES, MAX_ROWS_PER_MESSAGE, ROW_ID_BYTES, Limits
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

# How long an example takes says nothing on a busy machine.
# Characters of every category: lone surrogates too, which tokenizers produce.
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

texts = st.text(st.characters(), max_size=12)
counts = st.integers(0, 2**63 - 1)
positives = st.integers(1, 2**63 - 1)
firsts = st.integers(0, 2**63 - 1 - MAX_ROWS_PER_MESSAGE)
seconds = st.floats(0, 1e12)
row_ids = st.binary(min_size=ROW_ID_BYTES, max_size=ROW_ID_BYTES)
payloads = st.binary(max_size=40)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | texts
plain_data = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
)
plain_maps = st.dictionaries(texts, plain_data, max_size=3)


def encode(message: Message, max_frame_bytes: int) -> list[bytes]:
    """Its frames as they arrive."""
    return [bytes(frame) for frame in codec.encode(message, max_frame_bytes)]


def rows_of(make: Callable[..., Any], shared: dict[str, Any], **columns: SearchStrategy[Any]) -> SearchStrategy[Any]:
    """Records with equally long columns."""

    def joined(drawn: tuple[dict[str, Any], list[tuple[Any, ...]]]) -> Any:
        common, rows = drawn
        return make(**common, **{name: [row[at] for row in rows] for at, name in enumerate(columns)})

    return st.tuples(st.fixed_dictionaries(shared), st.lists(st.tuples(*columns.values()), max_size=5)).map(joined)


traces = st.sampled_from(["", TRACE, TRACE[:-2] + "00"])
run_fields: dict[str, SearchStrategy[Any]] = {
    "kind": st.sampled_from(RowKind),
    "num_generations": st.integers(1, MAX_GENERATIONS),
    "options": payloads,
    "seconds_left": st.none() | seconds,
    "trace": traces,
}
submit_fields = {"llm": texts, "again": st.booleans(), "hedge": st.just(0.0) | st.floats(1, 1e9), **run_fields}
submit_runs = rows_of(SubmitRun, submit_fields, ids=row_ids, payloads=payloads)
assign_runs = rows_of(
    AssignRun, {"charged": counts, "first_execution": firsts, **run_fields}, ids=row_ids, payloads=payloads
)
llm_infos = st.builds(
    LLMInfo,
    texts,
    st.lists(texts, max_size=3),
    plain_maps,
    st.lists(texts, max_size=3),
    counts,
    counts,
    counts,
    counts,
    texts,
)
hellos = st.builds(
    Hello,
    role=st.sampled_from(Role),
    instance=payloads,
    host=texts,
    pid=counts,
    release=texts,
    llm=texts,
    state=st.sampled_from(WorkerState),
    reason=texts,
    model_name=texts,
    task=plain_maps,
    batch_size=positives,
    concurrency=positives,
    options=st.lists(texts, max_size=3),
    credit=counts,
)
outcomes = st.sampled_from(Outcome)
MESSAGES: dict[type[Any], SearchStrategy[Any]] = {
    Hello: hellos,
    Welcome: st.builds(Welcome, payloads, seconds, st.builds(Limits, *[positives] * 6)),
    Refuse: st.builds(Refuse, texts),
    Reset: st.builds(Reset, texts),
    Ping: st.builds(Ping, st.none() | counts),
    Goodbye: st.builds(Goodbye, texts),
    Submit: st.builds(Submit, st.lists(submit_runs, max_size=4)),
    Release: st.builds(Release, st.lists(row_ids, max_size=5)),
    Await: st.builds(Await, st.lists(row_ids, max_size=5), st.booleans()),
    Missing: st.builds(Missing, st.lists(row_ids, max_size=5)),
    Busy: st.builds(Busy, st.lists(row_ids, max_size=5), seconds),
    Answer: rows_of(Answer, {}, ids=row_ids, outcomes=outcomes, attempts=counts, payloads=payloads),
    Fleet: st.builds(Fleet, st.lists(llm_infos, max_size=3)),
    Ask: st.just(Ask()),
    Status: st.builds(Status, plain_maps),
    Dismiss: st.builds(Dismiss, st.sampled_from(Role), texts, texts),
    Dismissed: st.builds(
        Dismissed, st.lists(st.builds(PeerInfo, texts, counts, texts, counts), max_size=3), texts, st.booleans()
    ),
    Drain: st.builds(Drain, texts),
    Assign: st.builds(Assign, st.lists(assign_runs, max_size=4)),
    Settle: st.builds(Settle, st.lists(counts, max_size=5)),
    Resend: st.builds(Resend, st.lists(counts, max_size=5)),
    Result: rows_of(
        Result, {"tokens": counts, "credit": counts}, executions=counts, outcomes=outcomes, payloads=payloads
    ),
    Grant: st.builds(Grant, counts, st.sampled_from(WorkerState), texts),
    Hold: rows_of(Hold, {"more": st.booleans()}, executions=counts, ids=row_ids, finished=st.booleans()),
}
messages = st.one_of(*MESSAGES.values())

ROW_ID = bytes(range(ROW_ID_BYTES))
SUBMIT_RUN = SubmitRun("llm", RowKind.INPUT, 2, b"", None, False, [ROW_ID], [b"row"], hedge=3.0)
ASSIGN_RUN = AssignRun(RowKind.PROMPT, 1, b"", 3.5, 0, 7, [ROW_ID], [b"row"])
INFO = LLMInfo("llm", ["model"], {"name": "Task"}, ["seed"], 1, 0, 0, 4)
EXAMPLES: dict[str, Message] = {
    type(message).__name__: message
    for message in (
        Hello(role=Role.WORKER, instance=b"i", host="h", pid=1, llm="llm", task={"name": "Task"}, options=["seed"]),
        Welcome(b"epoch", 0.5, Limits()),
        Refuse("no"),
        Reset("lost count"),
        Ping(3),
        Goodbye("done"),
        Submit([SUBMIT_RUN]),
        Release([ROW_ID]),
        Await([ROW_ID], True),
        Missing([ROW_ID]),
        Busy([ROW_ID], 0.5),
        Answer([ROW_ID], [Outcome.DONE], [1], [b"answer"]),
        Fleet([INFO]),
        Ask(),
        Status({"llms": [{"name": "llm", "queued": 1}]}),
        Dismiss(Role.WORKER, "host:7", "llm"),
        Dismissed([PeerInfo("host", 7, "llm", 3)], "no", True),
        Drain("an admin said so"),
        Assign([ASSIGN_RUN]),
        Settle([1, 2]),
        Resend([3]),
        Result([7], [Outcome.DONE], 12, 4, [b"answer"]),
        Grant(5, WorkerState.READY),
        Hold([7], [ROW_ID], [True], False),
    )
}


def head_of(message: Message) -> dict[str, Any]:
    """The fields of the head, to be spoiled."""
    return msgpack.unpackb(encode(message, 1000)[0][1:], unicode_errors="surrogatepass")


def spoiled(name: str, /, *body: bytes, **changed: Any) -> list[bytes]:
    """The frames of an example with some fields of its head changed; without a body, its own."""
    frames = encode(EXAMPLES[name], 1000)
    head = head_of(EXAMPLES[name]) | changed
    return [frames[0][:1] + msgpack.packb(head), *(body or frames[1:])]


def spoiled_run(name: str, *body: bytes, **changed: Any) -> list[bytes]:
    run = head_of(EXAMPLES[name])["runs"][0] | changed
    return spoiled(name, *body, runs=[run])


def raw(name: str, head: bytes) -> list[bytes]:
    """A head of the kind with these bytes for its map."""
    return [encode(EXAMPLES[name], 1000)[0][:1] + head]


def nested(depth: int) -> Any:
    value: Any = "core"
    for _ in range(depth):
        value = [value]
    return value


def test_every_kind_of_message_is_tried() -> None:
    kinds = set(get_args(Message))

    assert set(MESSAGES) == kinds
    assert set(EXAMPLES) == {kind.__name__ for kind in kinds}


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_what_is_encoded_is_decoded(kind: type[Any]) -> None:
    @given(MESSAGES[kind], st.integers(1, 100))
    def check(message: Message, max_frame_bytes: int) -> None:
        frames = encode(message, max_frame_bytes)

        assert decode(frames) == message
        assert all(len(frame) <= max_frame_bytes for frame in frames[1:])

    check()


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_one_byte_names_the_kind_and_no_two_share_it(kind: type[Any]) -> None:
    heads = {name: encode(message, 1000)[0][:1] for name, message in EXAMPLES.items()}

    assert list(heads.values()).count(heads[kind.__name__]) == 1


def test_the_body_is_cut_into_frames_wherever_that_falls() -> None:
    rows: list[Payload] = [b"a" * 700, b"", b"b" * 1500, b"c"]
    message = Answer([ROW_ID] * 4, [0] * 4, [1] * 4, rows)

    head, *body = encode(message, 1000)

    assert [len(frame) for frame in body] == [1000, 1000, 201]
    assert b"".join(body) == b"".join(map(bytes, rows))
    assert b"aaa" not in head
    assert decode([head, *body]) == message


def test_a_body_that_fits_is_one_frame_and_a_message_without_rows_none() -> None:
    assert [len(frame) for frame in encode(Answer([ROW_ID], [0], [1], [b"x" * 1000]), 1000)][1:] == [1000]
    assert len(encode(Submit([]), 1000)) == 1
    assert len(encode(Ping(0), 1000)) == 1


def test_rows_without_bytes_come_back() -> None:
    message = Answer([ROW_ID] * 2, [0] * 2, [1] * 2, [b"", b""])

    assert decode(encode(message, 1000)) == message


def test_a_body_may_be_cut_otherwise_than_encode_does() -> None:
    message = Submit([SUBMIT_RUN, replace(SUBMIT_RUN, payloads=[b"another row"])])
    head, body = encode(message, 1000)

    assert decode([head, body[:4], b"", body[4:]]) == message


@pytest.mark.parametrize(
    ("sizes", "is_kept"),
    [
        ([LARGE_BYTES], True),
        ([LARGE_BYTES, 1], True),
        ([LARGE_BYTES, LARGE_BYTES + 1, 7], True),
        ([LARGE_BYTES - 1], False),
        ([1, LARGE_BYTES], False),
        ([1] * LARGE_BYTES, False),
    ],
    ids=str,
)
def test_a_large_row_that_is_alone_stays_in_its_frames(sizes: list[int], is_kept: bool) -> None:
    row = random.Random(1).randbytes(sum(sizes))
    (head, *_) = encode(Answer([ROW_ID], [0], [1], [row]), sum(sizes))
    ends = list(accumulate(sizes, initial=0))
    frames = [row[start:end] for start, end in pairwise(ends)]
    message = decode([head, *frames])

    assert isinstance(message, Answer)
    (payload,) = message.payloads
    assert isinstance(payload, Frames) == is_kept
    assert (len(payload), bytes(payload)) == (len(row), row)
    sent = codec.encode(message, max(sizes))
    assert b"".join(sent[1:]) == row
    assert all(one is other for one, other in zip(sent[1:], frames, strict=False)) or not is_kept


def test_large_frames_are_cut_for_who_takes_smaller_ones() -> None:
    row = b"abc" * LARGE_BYTES
    message = Answer([ROW_ID], [0], [1], [Frames([row])])

    assert [len(frame) for frame in encode(message, 2 * LARGE_BYTES)[1:]] == [2 * LARGE_BYTES, LARGE_BYTES]


def test_a_large_row_may_share_a_message() -> None:
    large = Frames([b"a" * LARGE_BYTES, b"b"])
    message = decode(encode(Answer([ROW_ID] * 3, [0] * 3, [1] * 3, [b"before", large, b"after"]), 1000))

    assert isinstance(message, Answer)
    assert message.payloads == [b"before", bytes(large), b"after"]


def test_large_rows_of_several_runs_are_told_apart() -> None:
    runs = [replace(SUBMIT_RUN, payloads=[letter * LARGE_BYTES]) for letter in (b"a", b"b")]

    assert decode(encode(Submit(runs), LARGE_BYTES)) == Submit(runs)


def test_lone_surrogates_pass() -> None:
    for message in (
        Goodbye("\ud800 and \udfff"),
        Status({"\udc80": ["\ud834"]}),
        Fleet([replace(INFO, name="\udead")]),
    ):
        assert decode(encode(message, 1000)) == message


def test_options_are_not_read() -> None:
    run = replace(SUBMIT_RUN, options=b"\xc1 no msgpack")

    assert decode(encode(Submit([run]), 1000)) == Submit([run])


def test_the_hello_keeps_its_encoding() -> None:
    hello = Hello(
        role=Role.WORKER,
        instance=b"\x00\x01\x02\x03",
        host="gpu1",
        pid=300,
        release="0.1.0",
        llm="smollm2",
        state=WorkerState.READY,
        model_name="SmolLM2",
        task={"name": "T"},
        options=["seed"],
        credit=4,
    )

    assert encode(hello, 1000) == [
        b"H\x8f"
        b"\xa4role\xa6worker"
        b"\xa8instance\xc4\x04\x00\x01\x02\x03"
        b"\xa4host\xa4gpu1"
        b"\xa3pid\xcd\x01\x2c"
        b"\xa7version\x01"
        b"\xa7release\xa50.1.0"
        b"\xa3llm\xa7smollm2"
        b"\xa5state\xa5ready"
        b"\xa6reason\xa0"
        b"\xaamodel_name\xa7SmolLM2"
        b"\xa4task\x81\xa4name\xa1T"
        b"\xaabatch_size\x01"
        b"\xabconcurrency\x01"
        b"\xa7options\x91\xa4seed"
        b"\xa6credit\x04"
    ]


def test_the_refusal_keeps_its_encoding() -> None:
    assert encode(Refuse("go away"), 1000) == [b"R\x82\xa6reason\xa7go away\xa7version\x01"]


def test_a_hello_of_another_version_tells_its_version_whatever_else_it_holds() -> None:
    theirs = {"version": 2, "role": 7, "credit": "lots", "state": "dreaming", "news": [1]}

    assert decode([b"H" + msgpack.packb(theirs), b"a body"]) == Hello(version=2)


def test_a_refusal_of_another_version_tells_its_reason() -> None:
    assert decode([b"R" + msgpack.packb({"version": 9, "reason": "too old", "code": 3})]) == Refuse("too old", 9)
    assert decode([b"R" + msgpack.packb({"version": 9})]) == Refuse("", 9)


def test_fields_that_are_not_known_are_passed_over_and_absent_ones_take_their_default() -> None:
    assert decode([b"G" + msgpack.packb({"colour": "blue"})]) == Goodbye()
    assert decode([b"H" + msgpack.packb({"version": 1, "role": "client"})]) == Hello(role="client")


def test_the_rows_of_a_client_that_knows_of_no_hedging_are_not_hedged() -> None:
    (run,) = head_of(Submit([SUBMIT_RUN]))["runs"]
    del run["hedge"]
    assert decode(spoiled("Submit", runs=[run])) == Submit([replace(SUBMIT_RUN, hedge=0.0)])


@pytest.mark.parametrize("message", [Submit([SUBMIT_RUN]), Assign([ASSIGN_RUN])], ids=["Submit", "Assign"])
def test_a_run_carries_a_trace_only_where_there_is_one(message: Submit | Assign) -> None:
    assert "trace" not in head_of(message)["runs"][0]
    traced = type(message)([replace(message.runs[0], trace=TRACE)])  # type: ignore[type-var,arg-type]
    assert head_of(traced)["runs"][0]["trace"] == TRACE
    assert decode(encode(traced, 1000)) == traced


@pytest.mark.parametrize(
    "trace",
    [
        TRACE.upper(),
        TRACE[:-1],
        f"{TRACE}0",
        f"{TRACE}\n",
        TRACE.replace("00-", "01-", 1),
        TRACE.replace("-", "_"),
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01",
        "a prompt that somebody would smuggle in here, say, one",
        " ",
    ],
)
@pytest.mark.parametrize("kind", ["Submit", "Assign"])
def test_what_is_no_traceparent_is_refused(kind: str, trace: str) -> None:
    with pytest.raises(DecodeError, match=f"{kind}: runs trace is no traceparent"):
        decode(spoiled_run(kind, trace=trace))


@pytest.mark.parametrize("trace", [None, 7, b"00", [TRACE]])
def test_a_trace_is_a_text(trace: Any) -> None:
    with pytest.raises(DecodeError, match="Submit: runs trace is no text"):
        decode(spoiled_run("Submit", trace=trace))


def test_the_hello_of_a_client_names_no_llm() -> None:
    hello = Hello(role=Role.CLIENT, instance=b"i")

    assert decode(encode(hello, 1000)) == hello


MALFORMED: dict[str, tuple[list[bytes], str]] = {
    "no frames": ([], "an empty message"),
    "an empty head": ([b""], "an empty message"),
    "an empty head with a body": ([b"", b"body"], "an empty message"),
    "an unknown kind": ([b"?\x80"], "a message of the unknown kind b'?'"),
    "another protocol": ([b"GET / HTTP/1.1\r\n"], "Goodbye: its head is no msgpack"),
    "a kind alone": ([b"P"], "Ping: its head is no msgpack"),
    "a text for a head": (raw("Ping", b"\xa4ping"), "Ping: its head is no map of names"),
    "a list for a head": (raw("Ping", b"\x90"), "Ping: its head is no map of names"),
    "bytes after the head": (raw("Ask", b"\x80\x80"), "Ask: its head is no msgpack"),
    "a number as a key": (raw("Ping", b"\x81\x01\x01"), "Ping: its head is no msgpack"),
    "a list as a key": (raw("Ping", b"\x81\x90\x01"), "Ping: its head is no msgpack"),
    "bytes as a key": (raw("Status", b"\x81\xa6report\x81\xc4\x01k\x01"), "Status: report is no map of names"),
    "a type that is not used": (raw("Ping", b"\xc1"), "Ping: its head is no msgpack"),
    "no text": (raw("Goodbye", b"\x81\xa6reason\xa1\xff"), "Goodbye: its head is no msgpack"),
    "a list of 4 billion": (raw("Settle", b"\x81\xaaexecutions\xdd\xff\xff\xff\xff"), "Settle: its head is no msgpack"),
    "a map of 4 billion": (raw("Status", b"\x81\xa6report\xdf\xff\xff\xff\xff"), "Status: its head is no msgpack"),
    "a text of 4 billion": (raw("Goodbye", b"\x81\xa6reason\xdb\xff\xff\xff\xff"), "Goodbye: its head is no msgpack"),
    "bytes of 4 billion": (raw("Release", b"\x81\xa3ids\xc6\xff\xff\xff\xff"), "Release: its head is no msgpack"),
    "a bottomless list": (raw("Status", b"\x81\xa6report" + b"\x91" * 5000), "Status: its head is no msgpack"),
    "a deep task": (spoiled("Hello", task={"deep": nested(40)}), "Hello: task is nested too deeply"),
    "a deep report": (spoiled("Status", report={"deep": nested(100)}), "Status: report is nested too deeply"),
    "bytes in a task": (spoiled("Hello", task={"name": b"T"}), "Hello: task holds a value of type bytes"),
    "a moment in a task": (
        spoiled("Hello", task={"at": msgpack.Timestamp(1)}),
        "Hello: task holds a value of type Timestamp",
    ),
    "a list for a task": (spoiled("Hello", task=["T"]), "Hello: task is no map of names"),
    "a hello without a version": (raw("Hello", b"\x80"), "Hello: version is no count"),
    "a flag for a version": (spoiled("Hello", version=True), "Hello: version is no count"),
    "a foreign refusal without words": (spoiled("Refuse", version=2, reason=7), "Refuse: reason is no text"),
    "a hello that leaves its role out": (raw("Hello", b"\x81\xa7version\x01"), "Hello: role is none of"),
    "an unknown role": (spoiled("Hello", role="king"), "Hello: role is none of"),
    "no role": (spoiled("Hello", role=None), "Hello: role is none of"),
    "a list for a role": (spoiled("Hello", role=["client"]), "Hello: role is none of"),
    "a batch of none": (spoiled("Hello", batch_size=0), "Hello: batch_size is below 1"),
    "credit below 0": (spoiled("Hello", credit=-1), "Hello: credit is no count"),
    "credit beyond 63 bits": (spoiled("Grant", credit=2**63), "Grant: credit is no count"),
    "credit in parts": (spoiled("Grant", credit=1.5), "Grant: credit is no count"),
    "an option that is no name": (spoiled("Hello", options=["seed", 3]), "Hello: options is no text"),
    "an instance that is text": (spoiled("Hello", instance="me"), "Hello: instance is no byte string"),
    "limits that are a list": (spoiled("Welcome", limits=[1]), "Welcome: limits is no map of names"),
    "frames of no size": (
        spoiled("Welcome", limits=head_of(EXAMPLES["Welcome"])["limits"] | {"max_frame_bytes": 0}),
        "Welcome: limits max_frame_bytes is below 1",
    ),
    "an interval below 0": (spoiled("Welcome", ping_interval_s=-0.5), "Welcome: ping_interval_s is no number of"),
    "an interval that is no number": (
        spoiled("Welcome", ping_interval_s=float("nan")),
        "Welcome: ping_interval_s is no number of seconds",
    ),
    "an endless interval": (spoiled("Welcome", ping_interval_s=float("inf")), "Welcome: ping_interval_s is no number"),
    "a flag for an interval": (spoiled("Welcome", ping_interval_s=True), "Welcome: ping_interval_s is no number of"),
    "a ping that holds text": (spoiled("Ping", held="3"), "Ping: held is no count"),
    "a ping that says nothing": (raw("Ping", b"\x80"), "Ping: lacks some of held"),
    "a run without its llm": (raw("Submit", msgpack.packb({"runs": [{"ids": b""}]})), "Submit: runs lacks some of llm"),
    "runs that are a map": (spoiled("Submit", runs={}), "Submit: runs is no list"),
    "a run that is a number": (spoiled("Submit", runs=[1]), "Submit: runs is no map of names"),
    "more generations than a worker could list": (
        spoiled_run("Submit", num_generations=MAX_GENERATIONS + 1),
        "Submit: runs num_generations is above 100000",
    ),
    "an execution that the next cannot follow": (
        spoiled_run("Assign", first_execution=2**63 - 1),
        "Assign: runs first_execution is no count that others can follow",
    ),
    "an unknown row kind": (spoiled_run("Submit", kind="file"), "Submit: runs kind is none of input, prompt"),
    "no generations": (spoiled_run("Assign", num_generations=0), "Assign: runs num_generations is below 1"),
    "a hedge below 1": (spoiled_run("Submit", hedge=0.5), "Submit: runs hedge is neither 0 nor a number from 1"),
    "an endless hedge": (spoiled_run("Submit", hedge=float("inf")), "Submit: runs hedge is neither 0 nor a number"),
    "a flag for a hedge": (spoiled_run("Submit", hedge=True), "Submit: runs hedge is neither 0 nor a number from 1"),
    "options that are a map": (spoiled_run("Assign", options={}), "Assign: runs options is no byte string"),
    "a deadline before now": (spoiled_run("Submit", seconds_left=-1), "Submit: runs seconds_left is no number"),
    "half an id": (spoiled("Release", ids=ROW_ID[:7]), "Release: ids is no string of at most"),
    "ids in a list": (spoiled("Release", ids=[ROW_ID]), "Release: ids is no byte string"),
    "too many ids": (
        spoiled("Release", ids=ROW_ID * (MAX_ROWS_PER_MESSAGE + 1)),
        "Release: ids is no string of at most",
    ),
    "too many executions": (
        spoiled("Settle", executions=[1] * (MAX_ROWS_PER_MESSAGE + 1)),
        f"{MAX_ROWS_PER_MESSAGE + 1} exceeds max_array_len({MAX_ROWS_PER_MESSAGE})",
    ),
    "executions in a map": (spoiled("Resend", executions={"a": 1}), "Resend: executions is no list"),
    "a flag that is a number": (spoiled("Await", more=1), "Await: more is no flag"),
    "flags that are numbers": (spoiled("Hold", finished=[1]), "Hold: finished is no flag"),
    "flags that are one flag": (spoiled("Hold", finished=True), "Hold: finished is no list"),
    "an unknown outcome": (spoiled("Answer", outcomes=[17]), "Answer: outcomes is none of 0, 1, 2, 3, 4"),
    "an outcome that is a flag": (spoiled("Answer", outcomes=[True]), "Answer: outcomes is none of 0, 1, 2, 3, 4"),
    "an outcome that is a float": (spoiled("Result", outcomes=[0.0]), "Result: outcomes is none of 0, 1, 2, 3, 4"),
    "one outcome too many": (spoiled("Answer", outcomes=[0, 0]), "differ in length"),
    "one id too few": (spoiled("Answer", ids=b""), "Answer: ids, outcomes, attempts, payloads differ in length"),
    "one execution too many": (spoiled("Result", executions=[7, 8]), "Result: executions, outcomes, payloads differ"),
    "one flag too few": (spoiled("Hold", finished=[]), "Hold: executions, ids, finished differ in length"),
    "one size too many": (spoiled_run("Assign", sizes=[3, 0]), "Assign: ids, payloads differ in length"),
    "no sizes": (spoiled("Answer", sizes=None), "Answer: sizes is no list"),
    "a size below 0": (spoiled("Answer", sizes=[-6]), "Answer: sizes is no count"),
    "a size that is a flag": (spoiled("Answer", b"a", sizes=[True]), "Answer: sizes is no count"),
    "a size that is a float": (spoiled_run("Submit", b"a", sizes=[1.0]), "Submit: sizes is no count"),
    "a size beyond the body": (spoiled("Answer", sizes=[7]), "Answer: its rows have 7 bytes and its body 6"),
    "a size beyond all memory": (spoiled("Answer", sizes=[2**62]), "Answer: its rows have"),
    "sizes that add up to more than 63 bits": (
        spoiled("Answer", ids=ROW_ID * 2, outcomes=[0] * 2, attempts=[1] * 2, sizes=[2**63 - 1] * 2),
        "Answer: its rows have",
    ),
    "a body that is too short": (spoiled_run("Submit", b"ro"), "Submit: its rows have 3 bytes and its body 2"),
    "a body that is too long": (spoiled_run("Submit", b"row", b"s"), "Submit: its rows have 3 bytes and its body 4"),
    "no body": (encode(EXAMPLES["Submit"], 1000)[:1], "Submit: its rows have 3 bytes and its body 0"),
    "a body without rows": (spoiled("Ping", b"body"), "Ping: has a body and no rows"),
    "a body without runs": (spoiled("Submit", b"body", runs=[]), "Submit: has a body and no rows"),
    "a state that is not known": (spoiled("Grant", state="asleep"), "Grant: state is none of loading, ready"),
    "a long head without options": ([b"P" + bytes(300_000)], "Ping: its head has 300001 bytes, more than 262144"),
    "a huge head": ([b"G" + bytes(MAX_HEAD_BYTES)], f"Goodbye: its head has {MAX_HEAD_BYTES + 1} bytes, more than"),
}


@pytest.mark.parametrize(("frames", "complaint"), MALFORMED.values(), ids=MALFORMED)
def test_what_is_malformed_is_an_error_with_a_sentence(frames: list[bytes], complaint: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(frames)

    assert complaint in str(caught.value)


def test_the_longest_messages_are_read() -> None:
    rows = MAX_ROWS_PER_MESSAGE
    ids, numbers = [bytes(ROW_ID_BYTES)] * rows, [2**63 - 1] * rows
    payloads: list[Payload] = [b"x"] * rows
    runs = [SubmitRun("m" * 500, RowKind.INPUT, 1, b"", None, False, [one], [b"x"]) for one in ids]
    for message in (
        Submit(runs),
        Answer(ids, [Outcome.DONE] * rows, numbers, payloads),
        Hold(numbers, ids, [True] * rows, False),
        Result(numbers, [Outcome.DONE] * rows, 0, 0, payloads),
    ):
        assert decode(encode(message, 1_000_000)) == message


def decoded(frames: list[bytes]) -> Message | None:
    """The message, or None after an error with a sentence. Any other exception fails the test."""
    try:
        return decode(frames)
    except DecodeError as error:
        complaint = str(error)
    assert complaint
    return None


def assert_can_be_passed_on(message: Message | None) -> None:
    """What was let in can be encoded again: the broker passes on what it is told."""
    assert message is None or encode(message, 1000)


@given(st.lists(st.binary(max_size=60), max_size=4))
def test_arbitrary_bytes_do_no_harm(frames: list[bytes]) -> None:
    assert_can_be_passed_on(decoded(frames))


@given(st.sampled_from(sorted(EXAMPLES)), st.binary(max_size=60), st.lists(st.binary(max_size=8), max_size=2))
def test_arbitrary_heads_do_no_harm(name: str, head: bytes, body: list[bytes]) -> None:
    assert_can_be_passed_on(decoded([*raw(name, head), *body]))


anything = st.recursive(
    scalars | st.binary(max_size=20) | st.floats() | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts | st.integers(-9, 9), inner, max_size=4),
    max_leaves=8,
)


@given(st.data())
def test_fields_of_any_type_do_no_harm(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(EXAMPLES)))
    frames = encode(EXAMPLES[name], 1000)
    head = head_of(EXAMPLES[name])
    target = head["runs"][0] if "runs" in head and data.draw(st.booleans()) else head
    for field in data.draw(st.lists(st.sampled_from(sorted(target)), max_size=3)) if target else []:
        target[field] = data.draw(anything)

    packed = msgpack.packb(head, unicode_errors="surrogatepass")

    assert_can_be_passed_on(decoded([frames[0][:1] + packed, *frames[1:]]))


@given(st.sampled_from([*MESSAGES]), st.data())
def test_a_usual_message_is_read_as_any_other(kind: type[Any], data: st.DataObject) -> None:
    """The quick ways, of a usual map and of one row alone, against the general ones: the same message or complaint."""
    frames = encode(data.draw(MESSAGES[kind]), 1000)
    head = msgpack.unpackb(frames[0][1:], unicode_errors="surrogatepass")
    edges = st.sampled_from([None, True, 0, -0.0, 0.5, 1.0, 1, -1, 2**62, 2**63, float("inf"), "", "input", b"", []])
    target = data.draw(st.sampled_from([head, *head.get("runs", ())]))
    for field in data.draw(st.lists(st.sampled_from(sorted(target)), max_size=2)) if target else []:
        target[field] = data.draw(edges | anything)
    for field in data.draw(st.lists(st.sampled_from(sorted(target)), max_size=1)) if target else []:
        del target[field]
    if data.draw(st.booleans()):
        target[data.draw(st.sampled_from(["trace", "payloads", "more", b"key"]))] = data.draw(edges)
    if "sizes" in target and data.draw(st.booleans()):
        target["sizes"] = [data.draw(edges) for _ in target["sizes"]] if isinstance(target["sizes"], list) else []
    frames[0] = frames[0][:1] + msgpack.packb(head, unicode_errors="surrogatepass")

    with mock.patch.object(codec, "_usual", return_value=None):
        # A body in two frames is no row alone.
        expected = told([*frames, b""] if len(frames) > 1 else frames)

    assert told(frames) == expected


def told(frames: list[bytes]) -> str:
    """The message with the types of all in it, for True == 1 == 1.0; or what is wrong with it."""
    try:
        return repr(decode(frames))
    except DecodeError as error:
        return str(error)


@given(messages, st.data())
def test_a_spoiled_byte_does_no_harm(message: Message, data: st.DataObject) -> None:
    frames = encode(message, 1000)
    at = data.draw(st.integers(0, len(frames[0]) - 1))
    byte = bytes([data.draw(st.integers(0, 255))])

    assert_can_be_passed_on(decoded([frames[0][:at] + byte + frames[0][at + 1 :], *frames[1:]]))


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_head_cut_anywhere_is_an_error(name: str) -> None:
    head, *body = encode(EXAMPLES[name], 1000)

    for length in range(len(head)):
        with pytest.raises(DecodeError):
            decode([head[:length], *body])


def test_the_task_of_any_hello_can_be_passed_on_in_a_report() -> None:
    deepest = next(depth for depth in range(40, 0, -1) if decoded(spoiled("Hello", task={"deep": nested(depth)})))
    task = {"deep": nested(deepest)}

    report = Status({"llms": [{"name": "llm", "task": task, "workers": [{"pid": 1}]}]})

    assert deepest > 5
    assert decode(encode(report, 1000)) == report
    assert decode(encode(Fleet([replace(INFO, task=task)]), 1000)) == Fleet([replace(INFO, task=task)])


def test_lists_that_announce_much_cost_little() -> None:
    """Each list is allocated as it is announced, so nested ones could take far more memory than the head has bytes."""
    announced = b"\xdd" + struct.pack(">I", MAX_HEAD_BYTES - 100_000)
    bomb = b"\x81\xa6report" + announced * 900
    bomb += b"\xc0" * (MAX_HEAD_BYTES - len(bomb) - 1)

    with pytest.raises(DecodeError, match="max_array_len"):
        decode(raw("Status", bomb))


def test_a_short_head_cannot_announce_more_than_it_holds() -> None:
    with pytest.raises(DecodeError, match="max_array_len"):
        decode(raw("Status", b"\x81\xa6report\xdd" + struct.pack(">I", 50) + bytes(30)))


LONG_NAMES: dict[str, tuple[list[bytes], str]] = {
    "host": (spoiled("Hello", host="h" * 1025), "Hello: host is longer than 1024 bytes"),
    "llm": (spoiled("Hello", llm="ü" * 513), "Hello: llm is longer than 1024 bytes"),
    "model": (spoiled("Hello", model_name="m" * 1025), "Hello: model_name is longer than 1024 bytes"),
    "option": (spoiled("Hello", options=["o" * 1025]), "Hello: options is longer than 1024 bytes"),
    "llm of rows": (spoiled_run("Submit", llm="l" * 1025), "Submit: runs llm is longer than 1024 bytes"),
    "options of rows": (spoiled_run("Submit", options=bytes(65537)), "Submit: runs options is longer than 65536 bytes"),
    "reason": (spoiled("Grant", reason="r" * 4097), "Grant: reason is longer than 4096 bytes"),
    "hello": (
        spoiled("Hello", options=["o" * 1000] * 33),
        f"more than {MAX_HELLO_BYTES}",
    ),
}


@pytest.mark.parametrize(("frames", "complaint"), LONG_NAMES.values(), ids=LONG_NAMES)
def test_what_is_too_long_for_a_name_a_reason_or_a_hello_is_an_error(frames: list[bytes], complaint: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(frames)
    assert complaint in str(caught.value)


def test_names_may_be_as_long_as_is_told() -> None:
    hello = Hello(role=Role.WORKER, llm="\udc80" * 341, host="h" * 1024, options=["ü" * 512])
    assert decode(encode(hello, 1000)) == hello


@pytest.mark.parametrize("letter", ["r", "ü", "\udc80", "😀"])
def test_a_reason_that_is_too_long_is_carried_by_its_beginning(letter: str) -> None:
    grant = decode(encode(Grant(0, WorkerState.UNWELL, letter * 10_000), 1000))
    assert isinstance(grant, Grant)
    assert grant.reason == letter * 1023 + "…"


def test_what_is_told_of_all_llms_is_carried_when_each_says_as_much_as_it_may() -> None:
    info = LLMInfo("l" * 1024, ["m" * 1024] * 16, {"name": "t" * 31_000}, [], 1, 0, 0, 1, "😀" * 1000)
    fleet = Fleet([info] * BrokerSettings().max_llms)
    assert decode(encode(fleet, 1000)) == fleet


def test_errors_do_not_repeat_what_the_peer_sent() -> None:
    secret = "s3cret" * 1000
    with pytest.raises(DecodeError) as caught:
        decode(spoiled("Hello", role=secret, state=secret))

    assert len(str(caught.value)) < 200


def test_every_field_of_every_message_is_checked() -> None:
    """A value that no field takes, in each field in turn."""
    for name, message in EXAMPLES.items():
        for field in fields(message):
            if field.name in ("payloads", "runs"):
                continue
            with pytest.raises(DecodeError, match=field.name):
                decode(spoiled(name, **{field.name: msgpack.ExtType(5, b"x")}))
