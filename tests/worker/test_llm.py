"""The base class against scripted engines; whoever waits, waits on an event."""

from __future__ import annotations

import copy
import functools
import gc
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, as_completed, wait
from dataclasses import dataclass
from typing import Any

import pytest
from inputs import inputs

from genpool.protocol.errors import Closed, ConfigurationError, RowError
from genpool.tasks.output import LLMOutput, empty_output, parsed_output
from genpool.tasks.prompt import Prompt
from genpool.tasks.rendered import RenderedPromptTask
from genpool.tasks.text_generation import TextGenerationTask
from genpool.worker.llm import LLM, RowCall

LIMIT_S = 10
TASK = TextGenerationTask("S")


class EchoLLM(LLM):
    """Answers with its input, calls `before` first, and notes each call and its thread."""

    def __init__(self, *args: Any, before: Callable[[list[str]], object] = lambda _: None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.before = before
        self.calls: list[list[str]] = []
        self.threads: set[str] = set()

    @property
    def model_name(self) -> str:
        return "echo"

    def _generate(self, inputs: list[dict[str, Any]], num_generations: int = 1) -> list[list[LLMOutput]]:
        texts = [str(one.get("input", one.get("prompt"))) for one in inputs]
        self.calls.append(texts)
        self.threads.add(threading.current_thread().name)
        self.before(texts)
        return [[self.output(text, k) for k in range(num_generations)] for text in texts]

    def output(self, text: str, k: int) -> LLMOutput:
        raw = f"{text}#{k}"
        return LLMOutput(
            model_name=self.model_name, prompt_used=text, raw_output=raw, parsed_output=parsed_output(self.task, raw)
        )


@dataclass
class Gate:
    """Holds an engine call until it is opened."""

    entered: threading.Event
    opened: threading.Event

    def __call__(self, _: list[str]) -> None:
        self.entered.set()
        assert self.opened.wait(LIMIT_S)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate(threading.Event(), threading.Event())
    yield gate
    gate.opened.set()


def raws(generations: list[list[LLMOutput]]) -> list[list[str]]:
    return [[output["raw_output"] for output in outputs] for outputs in generations]


def finish(result: list[list[LLMOutput]] | Future[list[list[LLMOutput]]]) -> list[list[LLMOutput]]:
    return result.result(LIMIT_S) if isinstance(result, Future) else result


def future_of(llm: LLM, given: list[dict[str, Any]], num_generations: int = 1) -> Future[list[list[LLMOutput]]]:
    result = llm.generate(given, num_generations)
    assert isinstance(result, Future)
    return result


@pytest.fixture(params=[None, 1, 3], ids=["no threads", "1 thread", "3 threads"])
def llm(request: pytest.FixtureRequest) -> Iterator[EchoLLM]:
    llm = EchoLLM(TASK, num_threads=request.param)
    yield llm
    llm.close()


def test_outputs_come_in_the_order_of_the_inputs(llm: EchoLLM) -> None:
    result = llm.generate(inputs("a", "b", "c"), num_generations=2)
    assert isinstance(result, Future) is llm.return_futures
    assert raws(finish(result)) == [["a#0", "a#1"], ["b#0", "b#1"], ["c#0", "c#1"]]


def test_without_threads_one_call_takes_all_inputs() -> None:
    llm = EchoLLM(TASK)
    assert raws(finish(llm.generate(inputs("a", "b")))) == [["a#0"], ["b#0"]]
    assert llm.calls == [["a", "b"]]
    assert llm.threads == {threading.current_thread().name}
    assert (llm.return_futures, llm.num_threads, llm.concurrency) == (False, None, 1)


def test_with_threads_each_input_is_a_call() -> None:
    llm = EchoLLM(TASK, num_threads=4)
    assert len(finish(llm.generate(inputs("a", "b")))) == 2
    assert sorted(llm.calls) == [["a"], ["b"]]
    assert all(name.startswith("genpool-EchoLLM") for name in llm.threads)
    assert (llm.return_futures, llm.num_threads, llm.concurrency) == (True, 4, 4)
    llm.close()


def test_threads_run_at_once() -> None:
    both = threading.Barrier(2)
    llm = EchoLLM(TASK, num_threads=2, before=lambda _: both.wait(LIMIT_S))
    assert raws(finish(llm.generate(inputs("a", "b")))) == [["a#0"], ["b#0"]]
    llm.close()


def test_inputs_that_lack_an_argument_get_empty_outputs(llm: EchoLLM, caplog: pytest.LogCaptureFixture) -> None:
    given: list[dict[str, Any]] = [{"text": "x"}, {"input": "a"}, {}, {"input": "b"}]
    with caplog.at_level(logging.WARNING, "genpool.worker"):
        result = finish(llm.generate(given, num_generations=2))
    assert result[0] == result[2] == [empty_output("echo"), empty_output("echo")]
    assert raws([result[1], result[3]]) == [["a#0", "a#1"], ["b#0", "b#1"]]
    assert sorted(text for call in llm.calls for text in call) == ["a", "b"]
    assert caplog.messages == [
        "input 0 lacks 'input', which TextGenerationTask needs: its outputs stay empty",
        "input 2 lacks 'input', which TextGenerationTask needs: its outputs stay empty",
    ]


def test_no_two_empty_outputs_are_one_object(llm: EchoLLM) -> None:
    ((one, other),) = finish(llm.generate([{}], num_generations=2))
    assert one == other
    assert one is not other


@pytest.mark.parametrize("given", [[], [{}], [{}, {"text": "x"}]])
def test_without_a_valid_input_it_completes_and_no_engine_is_called(llm: EchoLLM, given: list[dict[str, Any]]) -> None:
    assert finish(llm.generate(given)) == [[empty_output("echo")] for _ in given]
    assert llm.calls == []


@pytest.mark.parametrize("number", [0, -1, True, 1.0, "2", None])
def test_num_generations_below_one(llm: EchoLLM, number: Any) -> None:
    with pytest.raises(ConfigurationError, match="`num_generations` must be a whole number of at least 1, not"):
        llm.generate([], num_generations=number)
    with pytest.raises(ValueError, match="num_generations"):
        llm.generate(inputs("a"), num_generations=number)


@pytest.mark.parametrize(
    "given", [{"input": "x"}, "text", b"bytes", 7, None, iter([{"input": "x"}])], ids=lambda given: type(given).__name__
)
def test_inputs_that_are_no_list(llm: EchoLLM, given: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"`inputs` must be a list of dicts.*: write \[\{'input': …\}\]"):
        llm.generate(given)


def test_an_engine_error_reaches_the_caller(llm: EchoLLM) -> None:
    def fail(texts: list[str]) -> None:
        if "b" in texts:
            raise ZeroDivisionError("b is no number")

    llm.before = fail
    with pytest.raises(ZeroDivisionError, match="b is no number"):
        finish(llm.generate(inputs("a", "b", "c")))


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (None, "was given 1 inputs and must return a list of outputs for each"),
        ([], "was given 1 inputs"),
        ([[], []], "was given 1 inputs"),
        ([None], "was asked for 2 generations and must return a list of so many"),
        ([[empty_output("m")]], "was asked for 2 generations"),
    ],
)
def test_an_answer_of_the_wrong_shape(llm: EchoLLM, answer: Any, sentence: str) -> None:
    llm._generate = lambda inputs, num_generations=1: answer  # type: ignore[method-assign]
    with pytest.raises(RowError, match=f"EchoLLM._generate {sentence}"):
        finish(llm.generate(inputs("a"), num_generations=2))


# The joint future of a threaded LLM.


def test_a_failed_row_fails_the_future_and_drops_what_has_not_begun(gate: Gate) -> None:
    def script(texts: list[str]) -> None:
        if texts == ["bad"]:
            raise ValueError("bad")
        gate(texts)

    llm = EchoLLM(TASK, num_threads=1, before=script)
    future = future_of(llm, inputs("bad", "b", "c"))
    assert isinstance(future.exception(LIMIT_S), ValueError)
    gate.opened.set()
    llm.close()
    assert ["c"] not in llm.calls


def test_the_future_fails_with_the_first_error_only() -> None:
    both = threading.Barrier(2)

    def fail(texts: list[str]) -> None:
        both.wait(LIMIT_S)
        raise ValueError(texts[0])

    llm = EchoLLM(TASK, num_threads=2, before=fail)
    future = future_of(llm, inputs("a", "b"))
    told: list[str] = []
    future.add_done_callback(lambda done: told.append(str(done.exception())))
    error = future.exception(LIMIT_S)
    llm.close()
    assert told == [str(error)]


def test_thousands_of_rows_resolve_the_future_once(caplog: pytest.LogCaptureFixture) -> None:
    llm = EchoLLM(TASK, num_threads=8)
    resolved: list[Any] = []
    future = future_of(llm, inputs(*map(str, range(5000))))
    future.add_done_callback(resolved.append)
    assert raws(future.result(LIMIT_S)) == [[f"{k}#0"] for k in range(5000)]
    llm.close()
    assert resolved == [future]
    assert not caplog.records


def test_cancel_drops_what_has_not_begun_and_wakes_who_waits(gate: Gate) -> None:
    llm = EchoLLM(TASK, num_threads=1, before=gate)
    future = future_of(llm, inputs("a", "b"))
    assert gate.entered.wait(LIMIT_S)
    assert future.cancel()
    assert future.cancel()
    assert wait([future], LIMIT_S).done == {future}
    assert list(as_completed([future], LIMIT_S)) == [future]
    with pytest.raises(CancelledError):
        future.result()
    gate.opened.set()
    llm.close()
    assert llm.calls == [["a"]]


def test_a_finished_future_cannot_be_cancelled() -> None:
    llm = EchoLLM(TASK, num_threads=1)
    future = future_of(llm, inputs("a"))
    future.result(LIMIT_S)
    assert not future.cancel()
    assert raws(future.result()) == [["a#0"]]
    llm.close()


def test_a_model_name_that_raises_fails_the_future() -> None:
    class NamelessLLM(EchoLLM):
        @property
        def model_name(self) -> str:
            raise OSError("no name")

    llm = NamelessLLM(TASK, num_threads=1)
    with pytest.raises(OSError, match="no name"):
        finish(llm.generate([{}]))
    llm.close()


# Progress.


def test_progress_adds_up(llm: EchoLLM) -> None:
    seen: list[int] = []
    finish(
        llm.generate([{}, *inputs("a", "b", "c")], 2, progress_callback_func=lambda *, advance: seen.append(advance))
    )
    assert sum(seen) == 8
    assert seen[0] == 2


def test_progress_of_threads_is_told_row_by_row(gate: Gate) -> None:
    first = threading.Event()
    llm = EchoLLM(TASK, num_threads=1, before=lambda texts: gate(texts) if texts == ["b"] else None)
    result = llm.generate(inputs("a", "b"), 1, lambda advance: first.set())
    assert isinstance(result, Future)
    assert first.wait(LIMIT_S)
    assert not result.done()
    gate.opened.set()
    assert len(finish(result)) == 2
    llm.close()


def test_a_failed_row_is_no_progress() -> None:
    def fail(_: list[str]) -> None:
        raise ValueError("bad")

    seen: list[int] = []
    llm = EchoLLM(TASK, num_threads=1, before=fail)
    with pytest.raises(ValueError, match="bad"):
        finish(llm.generate(inputs("a"), 1, lambda advance: seen.append(advance)))
    llm.close()
    assert seen == []


def test_a_progress_callback_that_raises_costs_nothing(llm: EchoLLM, caplog: pytest.LogCaptureFixture) -> None:
    def fail(advance: int) -> None:
        raise ZeroDivisionError

    assert raws(finish(llm.generate(inputs("a"), 1, fail))) == [["a#0"]]
    assert "progress_callback_func raised; the generation goes on" in caplog.messages


# Prompts.


@dataclass
class ForeignPrompt:
    system_prompt: str
    formatted_prompt: str


class ForeignTask:
    """A task of another library, with a prompt class of its own."""

    input_args_names = ("question",)
    output_args_names = ()

    def generate_prompt(self, question: str, **_: Any) -> ForeignPrompt:
        return ForeignPrompt("F", question)

    def parse_output(self, output: str) -> str:
        return output


class FormattedTask(TextGenerationTask):
    def generate_prompt(self, input: str, **_: Any) -> str:  # type: ignore[override]
        return f"Q: {input}\nA:"


def test_prompts_take_the_llm_s_format() -> None:
    llm = EchoLLM(TASK, prompt_format="zephyr")
    (prompt,) = llm.validate_prompts(inputs("P"), default_format="openai")
    assert prompt == "<|system|>\nS</s>\n<|user|>\nP</s>\n<|assistant|>\n"


def test_prompts_take_the_engine_s_default_format() -> None:
    (prompt,) = EchoLLM(TASK)._generate_prompts(inputs("P"), default_format="openai")
    assert prompt == [{"role": "system", "content": "S"}, {"role": "user", "content": "P"}]


def test_prompts_without_any_format_warn_and_are_joined() -> None:
    with pytest.warns(UserWarning, match="Neither `prompt_format` nor a default format is set") as warned:
        assert EchoLLM(TASK).validate_prompts(inputs("P", "Q")) == ["S\nP", "S\nQ"]
    assert len(warned) == 1


def test_the_formatting_function_gets_the_prompt() -> None:
    llm = EchoLLM(
        TASK, prompt_format="zephyr", prompt_formatting_fn=lambda p: f"{p.system_prompt}|{p.formatted_prompt}"
    )
    assert llm.validate_prompts(inputs("P"), default_format="openai") == ["S|P"]


def test_a_formatted_prompt_is_left_as_it_is() -> None:
    llm = EchoLLM(FormattedTask("S"), prompt_format="zephyr")
    assert llm.validate_prompts(inputs("P")) == ["Q: P\nA:"]


def test_formatting_a_formatted_prompt_again_warns() -> None:
    llm = EchoLLM(FormattedTask("S"), prompt_formatting_fn=str.upper)
    with pytest.warns(UserWarning, match=r"FormattedTask\.generate_prompt returns prompts that are formatted already"):
        assert llm.validate_prompts(inputs("p")) == ["Q: P\nA:"]


def test_a_task_of_another_library_is_a_task() -> None:
    llm = EchoLLM(ForeignTask(), prompt_format="default")
    assert llm.validate_prompts([{"question": "P"}]) == ["F\nP"]
    assert finish(llm.generate([{"input": "P"}])) == [[empty_output("echo")]]


@pytest.mark.parametrize("task", [None, "task"])
def test_what_is_no_task_is_refused(task: Any) -> None:
    with pytest.raises(TypeError, match="A task must have 'generate_prompt', 'parse_output', 'input_args_names'"):
        EchoLLM(task)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"prompt_format": "alpaca"}, "no prompt format 'alpaca': use one of default, openai"),
        ({"num_threads": 0}, "`num_threads` must be a whole number of at least 1, not 0"),
        ({"num_threads": "2"}, "`num_threads` must be a whole number of at least 1, not '2'"),
    ],
)
def test_options_that_cannot_be_used(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        EchoLLM(TASK, **options)


# Row by row.


def test_prompt_of_an_input_takes_only_the_task_s_arguments() -> None:
    class StrictTask(TextGenerationTask):
        def generate_prompt(self, input: str) -> Prompt:  # type: ignore[override]
            return Prompt("T", input)

    call = RowCall({"input": "P", "id": 7})
    assert EchoLLM(StrictTask()).prompt_of(call) == Prompt("T", "P")
    assert EchoLLM(StrictTask(), prompt_format="default").prompt_of(call) == "T\nP"
    assert EchoLLM(StrictTask(), prompt_formatting_fn=lambda p: p.formatted_prompt * 2).prompt_of(call) == "PP"


@pytest.mark.parametrize("content", [{"text": "P"}, {}, "input", [{"role": "user", "content": "P"}]])
def test_prompt_of_an_input_that_lacks_an_argument(content: Any) -> None:
    with pytest.raises(RowError, match="The input lacks 'input', which TextGenerationTask needs"):
        EchoLLM(TASK).prompt_of(RowCall(content))


WIRE = [{"role": "system", "content": "W"}, {"role": "user", "content": "P"}]


@pytest.mark.parametrize(
    ("content", "prompt", "formatted"),
    [(WIRE, Prompt("W", "P"), "W\nP"), ("text", "text", "text"), (WIRE[1:], WIRE[1:], WIRE[1:])],
)
def test_prompt_of_a_rendered_prompt_does_not_ask_the_task(content: Any, prompt: Any, formatted: Any) -> None:
    call = RowCall(content, "prompt")
    assert EchoLLM(TASK).prompt_of(call) == prompt
    assert EchoLLM(TASK, prompt_format="default").prompt_of(call) == formatted


def test_a_row_call_is_born_unwanted_by_nobody() -> None:
    one, other = RowCall({"input": "P"}), RowCall({"input": "P"})
    one.cancelled.set()
    assert not other.cancelled.is_set()
    assert (other.kind, other.num_generations, other.options, other.seed) == ("input", 1, {}, None)


def test_a_plain_llm_answers_no_single_rows() -> None:
    llm = EchoLLM(TASK)
    assert llm.option_names == frozenset()
    with pytest.raises(NotImplementedError, match="EchoLLM does not answer row by row: call `generate`"):
        llm.generate_row(RowCall({"input": "P"}))


@pytest.mark.parametrize("num_threads", [None, 2])
def test_a_twin_takes_rendered_prompts(num_threads: int | None) -> None:
    llm = EchoLLM(TASK, num_threads=num_threads)
    twin = copy.copy(llm)
    twin.task = RenderedPromptTask()
    (outputs,) = finish(twin.generate([{"prompt": "P"}]))
    assert outputs[0]["parsed_output"] == "P#0"
    assert llm.task is TASK
    del twin
    gc.collect()
    assert raws(finish(llm.generate(inputs("a")))) == [["a#0"]]
    llm.close()


# What it says of itself.


def test_repr() -> None:
    llm = EchoLLM(TASK, prompt_format="chatml")
    assert repr(llm) == "EchoLLM(task=TextGenerationTask, num_threads=None, prompt_format='chatml', model='echo')"


def upper(prompt: Prompt, sep: str = " ") -> str:
    joined = sep.join((prompt.system_prompt, prompt.formatted_prompt))
    return joined.upper()


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (upper, "upper(prompt, sep)"),
        (functools.partial(upper, sep="\n"), "partial(prompt, sep)"),
        (dict, "dict(...)"),
    ],
)
def test_rich_repr(function: Any, text: str) -> None:
    llm = EchoLLM(TASK, prompt_formatting_fn=function)
    assert dict(llm.__rich_repr__()) == {
        "task": TASK,
        "num_threads": None,
        "prompt_format": None,
        "prompt_formatting_fn": text,
        "model": "echo",
    }


def test_rich_repr_without_a_function() -> None:
    assert "prompt_formatting_fn" not in dict(EchoLLM(TASK).__rich_repr__())


# The end.


def own_threads(kind: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(f"genpool-{kind}")]


def assert_ended(threads: list[threading.Thread]) -> None:
    assert threads
    for thread in threads:
        thread.join(LIMIT_S)
        assert not thread.is_alive()


def test_the_threads_end_when_the_llm_goes() -> None:
    class LostLLM(EchoLLM):
        pass

    llm = LostLLM(TASK, num_threads=2)
    finish(llm.generate(inputs("a", "b")))
    threads = own_threads("LostLLM")
    del llm
    gc.collect()
    assert_ended(threads)


def test_close_ends_the_threads_and_may_be_called_twice() -> None:
    class ClosedLLM(EchoLLM):
        pass

    llm = ClosedLLM(TASK, num_threads=2)
    finish(llm.generate(inputs("a", "b")))
    threads = own_threads("ClosedLLM")
    llm.close()
    llm.close()
    assert_ended(threads)


def test_nothing_is_generated_after_close(llm: EchoLLM) -> None:
    llm.close()
    with pytest.raises(Closed, match="EchoLLM is closed and generates nothing more"):
        llm.generate(inputs("a"))


def test_a_twin_learns_that_its_threads_are_closed() -> None:
    llm = EchoLLM(TASK, num_threads=1)
    twin = copy.copy(llm)
    llm.close()
    with pytest.raises(Closed):
        twin.generate(inputs("a"))


def test_close_waits_for_the_running_call_and_cancels_the_rest(gate: Gate) -> None:
    llm = EchoLLM(TASK, num_threads=1, before=gate)
    running, waiting = future_of(llm, inputs("a")), future_of(llm, inputs("b"))
    assert gate.entered.wait(LIMIT_S)
    waiting.add_done_callback(lambda _: gate.opened.set())
    llm.close()
    assert raws(running.result(0)) == [["a#0"]]
    assert waiting.cancelled()


def test_close_in_a_callback_of_its_own_thread(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    closed = threading.Event()

    def close(_: object) -> None:
        llm.close()
        closed.set()

    llm = EchoLLM(TASK, num_threads=1, before=gate)
    future = future_of(llm, inputs("a"))
    future.add_done_callback(close)
    gate.opened.set()
    assert raws(future.result(LIMIT_S)) == [["a#0"]]
    assert closed.wait(LIMIT_S)
    assert not caplog.records


def test_an_llm_whose_constructor_failed_goes_quietly(recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(ConfigurationError):
        EchoLLM(TASK, num_threads=0)
    gc.collect()
    assert not recwarn.list
