"""Engine calls on scripted LLMs: what is given to the engine, and what becomes of all that it may do."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest
from inputs import inputs

from genpool.protocol.content import pack, pack_row, unpack_failure, unpack_outputs
from genpool.protocol.errors import EngineDead, EngineUnwell, RowError
from genpool.protocol.messages import Outcome
from genpool.tasks.output import LLMOutput
from genpool.tasks.prompt import Prompt
from genpool.tasks.structured import StructuredTask
from genpool.tasks.text_generation import TextGenerationTask
from genpool.worker.call import Caller
from genpool.worker.llm import LLM, RowCall
from genpool.worker.machine import RowResult, StartCall
from genpool.worker.secret import hide

Inputs = list[dict[str, Any]]


def output(text: Any, **more: Any) -> LLMOutput:
    return LLMOutput(model_name="scripted", prompt_used="prompt", raw_output=text, parsed_output=text, **more)


class Scripted(LLM):
    """Answers each input with its text; ``script`` may do something else instead."""

    def __init__(self, script: Callable[[list[str], int], Any] | None = None, **said: Any) -> None:
        super().__init__(TextGenerationTask(), **said)
        self.script = script
        self.calls: list[list[str]] = []

    @property
    def model_name(self) -> str:
        return "scripted"

    def _generate(self, inputs: Inputs, num_generations: int = 1) -> list[list[LLMOutput]]:
        texts = [one["input"] for one in inputs]
        self.calls.append(texts)
        if self.script is not None:
            return self.script(texts, num_generations)
        return [[output(f"{text} {number}") for number in range(num_generations)] for text in texts]


class ByRow(Scripted):
    """Answers row by row, and remembers the calls."""

    option_names = frozenset({"temperature"})

    def __init__(self, script: Callable[[RowCall], list[LLMOutput]] | None = None) -> None:
        super().__init__()
        self.by_row = script
        self.rows: list[RowCall] = []

    def generate_row(self, call: RowCall) -> list[LLMOutput]:
        self.rows.append(call)
        if self.by_row is not None:
            return self.by_row(call)
        return [output(str(call.content))] * call.num_generations


class ByBatch(Scripted):
    """Answers batches of calls, and remembers them."""

    option_names = frozenset({"temperature"})

    def __init__(self, script: Callable[[Sequence[RowCall]], Any] | None = None) -> None:
        super().__init__()
        self.by_batch = script
        self.batches: list[Sequence[RowCall]] = []

    def generate_batch(self, calls: Sequence[RowCall]) -> list[list[LLMOutput] | Exception]:
        self.batches.append(calls)
        if self.by_batch is not None:
            return self.by_batch(calls)
        return [[output(str(call.content))] * call.num_generations for call in calls]


class Bench:
    """A Caller, and what it said of the LLM's health."""

    def __init__(self, llm: LLM, *, expose_tracebacks: bool = False) -> None:
        self.unwell: list[str] = []
        self.caller = Caller(llm, "4711", "gpu1", self.unwell.append, expose_tracebacks=expose_tracebacks)

    def run(self, *contents: Any, n: int = 1, kind: str = "input", seed: int | None = None) -> list[RowResult]:
        return self.run_packed(*(pack_row(content, seed) for content in contents), n=n, kind=kind)

    def run_packed(self, *payloads: bytes, n: int = 1, kind: str = "input", options: bytes = b"") -> list[RowResult]:
        executions = list(range(100, 100 + len(payloads)))
        call = StartCall(0, kind, n, options, executions, list(payloads))
        return self.results(call, [threading.Event() for _ in payloads])

    def run_cancelled(self, cancelled: set[str], *texts: str) -> list[RowResult]:
        payloads = [pack_row({"input": text}, None) for text in texts]
        call = StartCall(0, "input", 1, b"", list(range(100, 100 + len(texts))), payloads)
        flags = [threading.Event() for _ in texts]
        for text, flag in zip(texts, flags, strict=True):
            if text in cancelled:
                flag.set()
        return self.results(call, flags)

    def results(self, call: StartCall, flags: list[threading.Event]) -> list[RowResult]:
        """Those that are told while the call goes on, and those of its end."""
        told: list[RowResult] = []
        last = self.caller.run(call, flags, told.extend)
        return told + last


def raw(result: RowResult) -> list[Any]:
    """The texts of a finished row."""
    assert result.outcome == Outcome.DONE
    return [one["raw_output"] for one in unpack_outputs(result.payload)]


def outcomes(results: list[RowResult]) -> list[tuple[int, int]]:
    return [(result.execution, result.outcome) for result in results]


def raiser(error: BaseException, on: str | None = None) -> Callable[[list[str], int], Any]:
    """Raises when the text ``on`` is among a call's (with None, always)."""

    def script(texts: list[str], n: int) -> Any:
        if on is None or on in texts:
            raise error
        return [[output(text)] * n for text in texts]

    return script


# What is done.


def test_a_batch_is_one_call_with_an_answer_to_each_row() -> None:
    llm = Scripted()
    results = Bench(llm).run(*inputs("a", "b", "c"), n=2)
    assert llm.calls == [["a", "b", "c"]]
    assert [raw(result) for result in results] == [["a 0", "a 1"], ["b 0", "b 1"], ["c 0", "c 1"]]
    assert [result.execution for result in results] == [100, 101, 102]


def test_an_llm_with_threads_is_waited_for() -> None:
    llm = Scripted(num_threads=2)
    try:
        results = Bench(llm).run(*inputs("a", "b"))
        assert [raw(result) for result in results] == [["a 0"], ["b 0"]]
    finally:
        llm.close()


def test_a_future_that_an_llm_returns_is_waited_for_and_its_failure_is_the_rows() -> None:
    class Later(Scripted):
        def generate(self, *arguments: Any, **named: Any) -> Future[Any]:
            future: Future[Any] = Future()
            if failure is None:
                future.set_result([[output("later")]])
            else:
                future.set_exception(failure)
            return future

    failure: Exception | None = None
    assert raw(Bench(Later()).run(*inputs("a"))[0]) == ["later"]
    failure = ValueError("the future failed")
    (result,) = Bench(Later()).run(*inputs("a"))
    assert (result.outcome, unpack_failure(result.payload).message) == (Outcome.FAILED, "the future failed")


def test_a_row_that_lacks_an_argument_has_empty_outputs_and_is_not_given_to_the_engine() -> None:
    llm = Scripted()
    results = Bench(llm).run({"input": "a"}, {"question": "b"}, n=2)
    assert llm.calls == [["a"]]
    empty = {"model_name": "scripted", "prompt_used": None, "raw_output": None, "parsed_output": None}
    assert unpack_outputs(results[1].payload) == [empty, empty]
    assert raw(results[0]) == ["a 0", "a 1"]


def test_tokens_are_counted_where_the_engine_tells_them() -> None:
    def script(texts: list[str], n: int) -> list[list[LLMOutput]]:
        usages: list[Any] = [{"prompt_tokens": 9, "completion_tokens": 5}, {"completion_tokens": 2}]
        return [[output("text", usage=usage) for usage in usages] for _ in texts]

    (result,) = Bench(Scripted(script)).run(*inputs("a"), n=2)
    assert result.tokens == 7


@pytest.mark.parametrize(
    "usage",
    [
        None,
        "many",
        [],
        {},
        {"completion_tokens": None},
        {"completion_tokens": 1.5},
        {"completion_tokens": -1},
        {"completion_tokens": True},
        {"completion_tokens": 2**63},
        {"completion_tokens": 2**64 - 1},
    ],
    ids=str,
)
def test_a_usage_that_makes_no_sense_costs_nothing_but_the_count(usage: Any) -> None:
    (result,) = Bench(Scripted(lambda texts, n: [[output("text", usage=usage)]])).run(*inputs("a"))
    assert (raw(result), result.tokens) == (["text"], 0)


def told_before_the_end(llm: LLM, *payloads: bytes) -> tuple[list[list[int]], list[int]]:
    """The executions that are told of while a call goes on, in their lists, and those that its end brings."""
    told: list[list[int]] = []
    call = StartCall(0, "input", 1, b"", list(range(len(payloads))), list(payloads))
    flags = [threading.Event() for _ in payloads]
    last = Bench(llm).caller.run(call, flags, lambda results: told.append([one.execution for one in results]))
    return told, [one.execution for one in last]


def test_a_batchs_answers_are_known_together_and_those_of_rows_that_are_tried_alone_one_by_one() -> None:
    payloads = [pack_row(row, None) for row in inputs("a", "b", "c")]
    assert told_before_the_end(Scripted(), *payloads) == ([], [0, 1, 2])
    assert told_before_the_end(Scripted(raiser(ValueError("bad row"), on="b")), *payloads) == ([[0], [1]], [2])


def test_answers_that_are_packed_when_memory_runs_out_are_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def pack_until(outputs: list[LLMOutput]) -> bytes:
        if outputs[0]["raw_output"] == "c 0":
            raise MemoryError
        return pack(outputs)

    monkeypatch.setattr("genpool.worker.call.pack_each", lambda answers: None)  # memory runs out there first
    monkeypatch.setattr("genpool.worker.call.pack", pack_until)
    call = StartCall(0, "input", 1, b"", [0, 1, 2], [pack_row(row, None) for row in inputs("a", "b", "c")])
    told: list[RowResult] = []
    with pytest.raises(MemoryError):
        Bench(Scripted()).caller.run(call, [threading.Event() for _ in range(3)], told.extend)
    assert outcomes(told) == [(0, Outcome.DONE), (1, Outcome.DONE)]


def test_a_row_that_cannot_be_read_does_not_wait_for_the_engine() -> None:
    payloads = [pack_row(inputs("a")[0], None), b"no row", b""]
    assert told_before_the_end(Scripted(), *payloads) == ([[1, 2]], [0])
    assert told_before_the_end(Scripted(), *payloads[1:]) == ([], [0, 1])


# Row by row.


def test_an_engine_that_answers_row_by_row_is_given_each_row_by_itself() -> None:
    llm = ByRow()
    bench = Bench(llm)
    assert bench.caller.by_row
    results = bench.run_packed(
        pack_row({"input": "a"}, 7), pack_row({"input": "b"}, None), n=3, options=pack({"temperature": 0.5})
    )
    assert llm.calls == []
    assert [(row.content, row.kind, row.num_generations, row.options, row.seed) for row in llm.rows] == [
        ({"input": "a"}, "input", 3, {"temperature": 0.5}, 7),
        ({"input": "b"}, "input", 3, {"temperature": 0.5}, None),
    ]
    assert [len(raw(result)) for result in results] == [3, 3]


def test_rows_are_answered_one_by_one_as_they_are_done() -> None:
    llm = ByRow()
    payloads = [pack_row(row, None) for row in inputs("a", "b")]
    call = StartCall(0, "input", 1, b"", [100, 101], payloads)
    told: list[tuple[int, list[RowResult]]] = []
    flags = [threading.Event(), threading.Event()]
    last = Bench(llm).caller.run(call, flags, lambda results: told.append((len(llm.rows), results)))
    assert [(rows, outcomes(results)) for rows, results in told] == [(1, [(100, Outcome.DONE)])]
    # The last one's result is the end of the call.
    assert (len(llm.rows), outcomes(last)) == (2, [(101, Outcome.DONE)])


def test_a_row_engine_is_told_when_nobody_wants_the_row_any_more() -> None:
    llm = ByRow()
    flag = threading.Event()
    Bench(llm).results(StartCall(0, "input", 1, b"", [1], [pack_row({"input": "a"}, None)]), [flag])
    assert llm.rows[0].cancelled is flag


def test_a_row_engine_is_not_given_rows_that_lack_an_argument_but_prompts_as_they_are() -> None:
    llm = ByRow()
    bench = Bench(llm)
    (result,) = bench.run({"question": "b"})
    assert unpack_outputs(result.payload)[0]["raw_output"] is None
    assert llm.rows == []
    bench.run("a prompt", kind="prompt")
    assert [(row.content, row.kind) for row in llm.rows] == [("a prompt", "prompt")]


# In batches of calls.


def test_an_engine_that_takes_batches_gets_seeds_options_and_flags() -> None:
    llm = ByBatch()
    bench = Bench(llm)
    assert not bench.caller.by_row
    payloads = [pack_row({"input": "a"}, 7), pack_row({"input": "b"}, None)]
    flags = [threading.Event(), threading.Event()]
    call = StartCall(0, "input", 2, pack({"temperature": 0.5}), [100, 101], payloads)
    results = bench.results(call, flags)
    (batch,) = llm.batches
    assert [(row.content, row.kind, row.num_generations, row.options, row.seed) for row in batch] == [
        ({"input": "a"}, "input", 2, {"temperature": 0.5}, 7),
        ({"input": "b"}, "input", 2, {"temperature": 0.5}, None),
    ]
    assert [row.cancelled for row in batch] == flags
    assert [len(raw(result)) for result in results] == [2, 2]


def test_a_batch_holds_no_row_that_lacks_an_argument_but_prompts_as_they_are() -> None:
    llm = ByBatch()
    bench = Bench(llm)
    results = bench.run({"question": "a"}, {"input": "b"}, {"question": "c"})
    assert [row.content for batch in llm.batches for row in batch] == [{"input": "b"}]
    assert [raw(result)[0] for result in results] == [None, "{'input': 'b'}", None]
    assert raw(bench.run({"question": "a"})[0]) == [None]
    assert len(llm.batches) == 1
    bench.run("a prompt", kind="prompt")
    assert [(row.content, row.kind) for row in llm.batches[1]] == [("a prompt", "prompt")]


def test_an_error_in_the_place_of_a_rows_outputs_is_that_rows() -> None:
    def script(calls: Sequence[RowCall]) -> list[list[LLMOutput] | Exception]:
        calls[1].cancelled.set()
        return [RowError("too long"), CancelledError(), RuntimeError("odd"), [output("done")]]

    llm = ByBatch(script)
    results = Bench(llm).run(*inputs("a", "b", "c", "d"))
    assert outcomes(results) == [
        (100, Outcome.FAILED),
        (101, Outcome.RETURNED),
        (102, Outcome.RAISED),
        (103, Outcome.DONE),
    ]
    assert unpack_failure(results[0].payload).message == "too long"
    assert len(llm.batches) == 1


OF_ITS_OWN = "the LLM gave up a row that nobody has cancelled: CancelledError"


def is_charged(result: RowResult) -> bool:
    return result.outcome == Outcome.RAISED and unpack_failure(result.payload).message == OF_ITS_OWN


def test_a_cancelled_error_in_the_place_of_a_wanted_rows_outputs_is_charged() -> None:
    charged, done = Bench(ByBatch(lambda calls: [CancelledError(), [output("done")]])).run(*inputs("a", "b"))
    assert is_charged(charged)
    assert raw(done) == ["done"]


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_cancelled_error_of_the_engines_own_is_charged_and_that_of_a_cancelled_row_is_not(cancelled: bool) -> None:
    def script(call: RowCall) -> list[LLMOutput]:
        if cancelled:
            call.cancelled.set()
        raise CancelledError

    (result,) = Bench(ByRow(script)).run(*inputs("a"))
    assert is_charged(result) is not cancelled
    assert ((result.outcome, result.payload) == (Outcome.RETURNED, b"")) is cancelled


def test_the_wanted_rows_of_a_batch_that_was_cancelled_are_tried_alone() -> None:
    def script(calls: Sequence[RowCall]) -> list[list[LLMOutput]]:
        if len(calls) > 1:
            calls[1].cancelled.set()
            raise CancelledError
        return [[output("done")]]

    llm = ByBatch(script)
    assert outcomes(Bench(llm).run(*inputs("a", "b", "c"))) == [(100, Outcome.DONE), (102, Outcome.DONE)]
    assert [len(batch) for batch in llm.batches] == [3, 1, 1]


def test_a_batch_for_which_there_is_no_room_is_tried_row_by_row() -> None:
    def script(calls: Sequence[RowCall]) -> list[list[LLMOutput]]:
        if len(calls) > 1:
            raise MemoryError("no room")
        return [[output("done")] for _ in calls]

    llm = ByBatch(script)
    assert [raw(result) for result in Bench(llm).run(*inputs("a", "b"))] == [["done"], ["done"]]
    assert [len(batch) for batch in llm.batches] == [2, 1, 1]


@pytest.mark.parametrize("answers", [[], [[output("1")]] * 3, [[output("1")] * 2] * 2, [["text"]] * 2])
def test_the_wrong_number_or_kind_of_outputs_of_a_batch_fails_its_rows(answers: Any) -> None:
    results = Bench(ByBatch(lambda calls: answers)).run(*inputs("a", "b"))
    assert [result.outcome for result in results] == [Outcome.FAILED] * 2


# Rendered prompts.


class Rendering(Scripted):
    """Says what it would send to its model."""

    def _generate(self, inputs: Inputs, num_generations: int = 1) -> list[list[LLMOutput]]:
        prompts = self._generate_prompts(inputs)
        return [[output(prompt)] * num_generations for prompt in prompts]


MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]


def test_a_rendered_prompt_is_formatted_by_a_plain_llm_and_its_own_task_is_left_out() -> None:
    llm = Rendering(prompt_format="chatml")
    bench = Bench(llm)
    (result,) = bench.run(MESSAGES, kind="prompt")
    assert raw(result) == [Prompt("Be brief.", "Why?").format_as("chatml")]
    assert unpack_outputs(result.payload)[0]["parsed_output"] == raw(result)[0]
    # The LLM's own task is what it was.
    assert raw(bench.run({"input": "Why?"})[0])[0] == llm.task.generate_prompt("Why?").format_as("chatml")


@pytest.mark.parametrize("prompt", ["a text", [{"role": "user", "content": "only"}]])
def test_a_prompt_that_is_text_or_a_conversation_goes_through_as_it_is(prompt: Any) -> None:
    (result,) = Bench(Rendering()).run(prompt, kind="prompt")
    assert raw(result) == [prompt]


def test_a_rendered_prompt_gets_the_formatting_function() -> None:
    llm = Rendering(prompt_formatting_fn=lambda prompt: f"<{prompt.system_prompt}|{prompt.formatted_prompt}>")
    assert raw(Bench(llm).run(MESSAGES, kind="prompt")[0]) == ["<Be brief.|Why?>"]


# What goes wrong.


def test_a_batch_that_raises_is_split_and_only_its_bad_row_fails(caplog: pytest.LogCaptureFixture) -> None:
    llm = Scripted(raiser(ValueError("bad row"), on="b"))
    with caplog.at_level(logging.WARNING, "genpool.worker"):
        results = Bench(llm).run(*inputs("a", "b", "c"))
    assert llm.calls == [["a", "b", "c"], ["a"], ["b"], ["c"]]
    assert outcomes(results) == [(100, Outcome.DONE), (101, Outcome.FAILED), (102, Outcome.DONE)]
    assert caplog.messages[0] == "a batch of 3 rows raised ValueError: bad row; trying its rows alone"


class Popping(Scripted):
    """Takes its inputs apart, and refuses a batch when it has."""

    def _generate(self, inputs: Inputs, num_generations: int = 1) -> list[list[LLMOutput]]:
        texts = [one.pop("input") for one in inputs]
        if "bad" in texts:
            raise ValueError("bad row")
        return [[output(text)] * num_generations for text in texts]


def pop_messages(calls: Sequence[RowCall]) -> list[list[LLMOutput]]:
    popped: list[Any] = [call.content.pop() for call in calls if isinstance(call.content, list)]
    if "bad" in [message["content"] for message in popped]:
        raise ValueError("bad row")
    return [[output(message["content"])] for message in popped]


@pytest.mark.parametrize(
    "contents",
    [inputs("a", "bad", "c"), ["unreadable", *inputs("a", "bad", "c")]],
    ids=["read together", "read one by one"],
)
def test_rows_that_are_tried_alone_are_as_they_came_though_the_llm_has_changed_what_it_was_given(
    contents: list[Any],
) -> None:
    payloads = [b"" if content == "unreadable" else pack_row(content, None) for content in contents]
    results = Bench(Popping()).run_packed(*payloads)[-3:]
    assert [result.outcome for result in results] == [Outcome.DONE, Outcome.FAILED, Outcome.DONE]
    assert [raw(result) for result in results[::2]] == [["a"], ["c"]]


def test_prompts_of_a_batch_that_are_tried_alone_are_as_they_came() -> None:
    prompts = [[{"role": "user", "content": text}] for text in ("a", "bad", "c")]
    results = Bench(ByBatch(pop_messages)).run(*prompts, kind="prompt")
    assert [result.outcome for result in results] == [Outcome.DONE, Outcome.FAILED, Outcome.DONE]
    assert [raw(result) for result in results[::2]] == [["a"], ["c"]]


class Odd(Exception):
    pass


class OddValue(ValueError):
    pass


@pytest.mark.parametrize(
    ("error", "outcome", "type_name", "builtin"),
    [
        (ValueError("x"), Outcome.FAILED, "ValueError", "ValueError"),
        (RowError("x"), Outcome.FAILED, "RowError", "ValueError"),
        (OddValue("x"), Outcome.FAILED, "OddValue", "ValueError"),
        (KeyError("x"), Outcome.FAILED, "KeyError", "KeyError"),
        (TypeError("x"), Outcome.FAILED, "TypeError", "TypeError"),
        (ZeroDivisionError("x"), Outcome.FAILED, "ZeroDivisionError", "ZeroDivisionError"),
        (AttributeError("x"), Outcome.FAILED, "AttributeError", "AttributeError"),
        (AssertionError("x"), Outcome.FAILED, "AssertionError", "AssertionError"),
        (NotImplementedError("x"), Outcome.FAILED, "NotImplementedError", "NotImplementedError"),
        (OSError("x"), Outcome.RAISED, "OSError", "OSError"),
        (ConnectionResetError("x"), Outcome.RAISED, "ConnectionResetError", "ConnectionResetError"),
        (TimeoutError("x"), Outcome.RAISED, "TimeoutError", "TimeoutError"),
        (MemoryError("x"), Outcome.RAISED, "MemoryError", "MemoryError"),
        (RuntimeError("x"), Outcome.RAISED, "RuntimeError", "RuntimeError"),
        (Odd("x"), Outcome.RAISED, "Odd", "Exception"),
    ],
)
@pytest.mark.parametrize("by_row", [False, True])
def test_errors_of_the_request_are_final_and_others_are_tried_again(
    error: Exception, outcome: Outcome, type_name: str, builtin: str, by_row: bool
) -> None:
    def raise_it(call: RowCall) -> list[LLMOutput]:
        raise error

    llm = ByRow(raise_it) if by_row else Scripted(raiser(error))
    (result,) = Bench(llm).run(*inputs("a"))
    assert result.outcome == outcome
    failure = unpack_failure(result.payload)
    assert (failure.type, failure.message, failure.builtin) == (type_name, str(error), builtin)
    assert (failure.worker, failure.host) == ("4711", "gpu1")
    assert failure.traceback == ""


@pytest.mark.parametrize("by_row", [False, True])
def test_a_traceback_is_told_where_that_is_asked_for_and_logged_anyway(
    by_row: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def raise_it(call: RowCall) -> list[LLMOutput]:
        raise OSError("no GPU")

    llm = ByRow(raise_it) if by_row else Scripted(raiser(OSError("no GPU")))
    with caplog.at_level(logging.DEBUG, "genpool.worker"):
        (result,) = Bench(llm, expose_tracebacks=True).run(*inputs("a"))
    trace = unpack_failure(result.payload).traceback
    assert trace.startswith("Traceback (most recent call last)")
    assert trace.endswith("OSError: no GPU\n")
    assert trace in caplog.text


@pytest.mark.parametrize("raised", [EngineUnwell, RowError])
def test_no_secret_is_told(raised: type[Exception], caplog: pytest.LogCaptureFixture) -> None:
    hide("sk-proj-0123456789")
    bench = Bench(Scripted(raiser(raised("no sk-proj-0123456789"))), expose_tracebacks=True)
    (result,) = bench.run(*inputs("a"))
    assert b"sk-proj" not in result.payload
    assert bench.unwell == (["no [secret]"] if raised is EngineUnwell else [])
    assert "sk-proj" not in caplog.text


def test_an_unwell_llm_hands_the_rows_back_and_says_why() -> None:
    bench = Bench(Scripted(raiser(EngineUnwell("no quota"))))
    results = bench.run(*inputs("a", "b"))
    assert [(r.outcome, r.payload) for r in results] == [(Outcome.RETURNED, b"")] * 2
    assert bench.unwell == ["no quota"]


def test_an_llm_that_is_unwell_in_the_middle_of_a_call_keeps_what_it_has_done() -> None:
    def script(call: RowCall) -> list[LLMOutput]:
        if len(llm.rows) > 1:
            raise EngineUnwell("no server")
        return [output("done")]

    llm = ByRow(script)
    results = Bench(llm).run(*inputs("a", "b"))
    assert outcomes(results) == [(100, Outcome.DONE), (101, Outcome.RETURNED)]


@pytest.mark.parametrize("error", [EngineDead("CUDA error"), SystemExit("bye"), KeyboardInterrupt()])
def test_a_dead_engine_ends_the_call_with_no_result_for_anybody(error: BaseException) -> None:
    llm = Scripted(raiser(error))
    with pytest.raises(type(error)):
        Bench(llm).run(*inputs("a", "b"))
    assert llm.calls == [["a", "b"]]  # nothing is tried on a dead engine


def test_cancelled_rows_are_not_run() -> None:
    llm = Scripted()
    assert outcomes(Bench(llm).run_cancelled({"b"}, "a", "b", "c")) == [(100, Outcome.DONE), (102, Outcome.DONE)]
    assert llm.calls == [["a", "c"]]
    assert Bench(llm).run_cancelled({"a", "b"}, "a", "b") == []
    assert len(llm.calls) == 1


def test_a_row_cancelled_while_its_batch_is_split_is_not_run() -> None:
    flags = [threading.Event() for _ in range(3)]

    def script(texts: list[str], n: int) -> Any:
        if len(texts) > 1:
            raise OSError("together")
        flags[1].set()
        return [[output("alone")]]

    llm = Scripted(script)
    payloads = [pack_row(row, None) for row in inputs("a", "b", "c")]
    results = Bench(llm).results(StartCall(0, "input", 1, b"", [0, 1, 2], payloads), flags)
    assert outcomes(results) == [(0, Outcome.DONE), (2, Outcome.DONE)]
    assert llm.calls == [["a", "b", "c"], ["a"], ["c"]]


def odd_part(part: str, odd: Any) -> Callable[[list[str], int], Any]:
    """Has something odd in that part of the last output of the row "b"."""

    def script(texts: list[str], n: int) -> Any:
        rows: list[list[dict[str, Any]]] = [[{**output(text)} for _ in range(n)] for text in texts]
        rows[texts.index("b")][-1][part] = odd
        return rows

    return script


@pytest.mark.parametrize(
    ("odd", "complaint"),
    [
        ({"answer": {"set": {1}}}, "a value of type set under {}['answer']['set']"),
        ([1, 1 << 70], "an integer value beyond 64 bits under {}[1]"),
        ({"when": threading.Event()}, "a value of type Event under {}['when']"),
        ({(1, 2): "x"}, "a key of type tuple under {}"),
    ],
    ids=["set", "large number", "object", "key"],
)
class TestWhatCannotBeCarried:
    def test_a_text_that_cannot_be_carried_fails_its_row_and_type_and_key_are_named(
        self, odd: Any, complaint: str
    ) -> None:
        results = Bench(Scripted(odd_part("raw_output", odd))).run(*inputs("a", "b", "c"))
        assert outcomes(results) == [(100, Outcome.DONE), (101, Outcome.FAILED), (102, Outcome.DONE)]
        failure = unpack_failure(results[1].payload)
        assert failure.type == "RowError"
        assert failure.message == cannot_be_carried(complaint, "[0]['raw_output']")

    @pytest.mark.parametrize("part", ["parsed_output", "usage"])
    def test_what_was_read_or_counted_and_cannot_be_carried_is_left_out_and_logged(
        self, odd: Any, complaint: str, part: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING, "genpool.worker"):
            results = Bench(Scripted(odd_part(part, odd))).run(*inputs("a", "b", "c"), n=2)
        assert [raw(result) for result in results] == [[text, text] for text in "abc"]
        whole, reduced = unpack_outputs(results[1].payload)
        assert whole["parsed_output"] == "b"
        assert reduced == (output("b") if part == "usage" else {**output("b"), "parsed_output": None})
        assert caplog.messages == [f"{cannot_be_carried(complaint, repr([part]))}; the answer goes without it"]


def cannot_be_carried(complaint: str, where: str) -> str:
    what = complaint.format(where)
    return f"the row holds {what}, which msgpack cannot carry: use text, numbers, bytes, lists and dicts"


def test_a_number_beyond_64_bits_that_a_structured_task_reads_does_not_cost_the_text() -> None:
    text = f'{{"id": {10**29}}}'
    task = StructuredTask({"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]})
    assert task.parse_output(text)["generations"]["id"] == 10**29
    llm = Scripted(lambda texts, n: [[{**output(text), "parsed_output": task.parse_output(text)}]])
    (result,) = Bench(llm).run(*inputs("a"))
    assert raw(result) == [text]
    assert unpack_outputs(result.payload)[0]["parsed_output"] is None


def test_tuples_become_lists_and_integer_keys_stay() -> None:
    (result,) = Bench(Scripted(lambda texts, n: [[output({1: ("a", (2.5, None))})]])).run(*inputs("a"))
    assert raw(result) == [{1: ["a", [2.5, None]]}]


@pytest.mark.parametrize(
    ("answers", "complaint"),
    [
        ([], "must return a list of outputs for each"),
        ([[output("1")]] * 3, "must return a list of outputs for each"),
        ([[output("1")]], "was asked for 2 generations"),
        ([[output("1")] * 3], "was asked for 2 generations"),
        (None, "must return a list of outputs for each"),
        ("text", "must return a list of outputs for each"),
        ([["text", "text"]], "something else than a list of outputs (dicts)"),
    ],
)
def test_the_wrong_number_or_kind_of_outputs_fails_the_row(answers: Any, complaint: str) -> None:
    (result,) = Bench(Scripted(lambda texts, n: answers)).run(*inputs("a"), n=2)
    assert result.outcome == Outcome.FAILED
    assert complaint in unpack_failure(result.payload).message


@pytest.mark.parametrize(
    ("answers", "complaint"),
    [
        ([output("1")], "was asked for 2 generations of a row and returned 1"),
        (None, "something else than a list of outputs (dicts)"),
        ([1, 2], "something else than a list of outputs (dicts)"),
    ],
)
def test_the_wrong_number_or_kind_of_outputs_of_one_row_fails_it(answers: Any, complaint: str) -> None:
    (result,) = Bench(ByRow(lambda call: answers)).run(*inputs("a"), n=2)
    assert result.outcome == Outcome.FAILED
    assert complaint in unpack_failure(result.payload).message


@pytest.mark.parametrize("payload", [b"", b"\xc1", pack("text"), pack([1, 2, 3]), pack([{"input": "a"}, "seed"])])
def test_a_row_that_cannot_be_read_fails_alone(payload: bytes) -> None:
    llm = Scripted()
    results = Bench(llm).run_packed(payload, pack_row({"input": "good"}, None))
    assert sorted(outcomes(results)) == [(100, Outcome.FAILED), (101, Outcome.DONE)]
    assert llm.calls == [["good"]]


@pytest.mark.parametrize("content", [None, 7, "input", ["input"]])
@pytest.mark.parametrize("llm", [Scripted(), ByRow()], ids=["plain", "by row"])
def test_a_row_that_is_no_map_lacks_every_argument(llm: LLM, content: Any) -> None:
    bad, good = Bench(llm).run(content, {"input": "good"})
    assert raw(bad) == [None]
    assert "good" in raw(good)[0]


@pytest.mark.parametrize("options", [b"\xc1", pack([1]), pack("hot")])
def test_options_that_cannot_be_read_fail_the_rows_and_not_the_process(options: bytes) -> None:
    llm = ByRow()
    results = Bench(llm).run_packed(*(pack_row(row, None) for row in inputs("a", "b")), options=options)
    assert outcomes(results) == [(100, Outcome.FAILED), (101, Outcome.FAILED)]
    assert {unpack_failure(result.payload).type for result in results} == {"DecodeError"}
    assert llm.rows == []


def test_text_with_lone_surrogates_goes_both_ways() -> None:
    (result,) = Bench(Scripted()).run({"input": "half \ud83d"})
    assert raw(result) == ["half \ud83d 0"]


# What the task would like.

WISHES = {"temperature": 0.1, "response_format": {"type": "json_object"}}


class Wishing(TextGenerationTask):
    generation_kwargs = WISHES


def options_of(llm: ByRow, **said: Any) -> Any:
    """What the engine is asked for."""
    payload = pack_row({"input": "a"} if said.get("kind", "input") == "input" else "a", None)
    (result,) = Bench(llm).run_packed(payload, **said)
    assert result.outcome == Outcome.DONE, unpack_failure(result.payload)
    return llm.rows[-1].options


def test_what_a_clients_task_would_like_holds_where_the_llm_knows_it_and_the_call_says_nothing() -> None:
    assert options_of(ByRow(), options=pack({"?": WISHES}), kind="prompt") == {"temperature": 0.1}
    assert options_of(ByRow(), options=pack({"?": WISHES, "temperature": 0.5}), kind="prompt") == {"temperature": 0.5}
    assert options_of(ByRow(), options=pack({"?": "no map"}), kind="prompt") == {}


def test_what_the_workers_own_task_would_like_holds_for_inputs_and_not_for_rendered_prompts() -> None:
    llm = ByRow()
    llm.task = Wishing()
    assert options_of(llm) == {"temperature": 0.1}
    assert options_of(llm, options=pack({"temperature": 0.5})) == {"temperature": 0.5}
    assert options_of(llm, kind="prompt") == {}
