from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from watched import Watched

pytest.importorskip("xllamacpp")

from genpool.protocol.errors import Closed, ConfigurationError, RowError
from genpool.worker.engines.llamacpp import LlamaCppLLM, _Joined, _schema
from genpool.worker.llm import RowCall

SLOTS = 4
# One thread: llama.cpp's threads wait for each other by spinning, which is slow beside other work on the same cores.
SMALL: dict[str, Any] = {"n_ctx": 512, "n_parallel": SLOTS, "n_threads": 1, "max_new_tokens": 8}


@pytest.fixture(scope="module")
def llm(smollm2_path: Path) -> Iterator[LlamaCppLLM]:
    llm = LlamaCppLLM(smollm2_path, **SMALL)
    yield llm
    llm.close()


def row(text: str = "Name a colour.", n: int = 1, **more: Any) -> RowCall:
    return RowCall({"input": text}, num_generations=n, **more)


def texts(outputs: list[Any]) -> list[str]:
    return [output["raw_output"] for output in outputs]


def test_a_row_gets_whole_outputs(llm: LlamaCppLLM) -> None:
    outputs = llm.generate_row(row(n=2))
    assert len(outputs) == 2
    for output in outputs:
        assert output["model_name"] == "SmolLM2-135M-Instruct.Q4_1"
        assert [message["role"] for message in output["prompt_used"]] == ["system", "user"]
        assert output["prompt_used"][1]["content"] == "Name a colour."
        assert output["raw_output"]
        assert output["parsed_output"] == {"generations": output["raw_output"]}
        assert output.get("finish_reason") in ("stop", "length")
        usage = output.get("usage", {})
        assert usage["prompt_tokens"] > 20
        assert 1 <= usage["completion_tokens"] <= 8


def test_more_generations_than_slots_are_made_in_several_goes(llm: LlamaCppLLM) -> None:
    outputs = llm.generate_row(row(n=SLOTS + 2, seed=5, options={"max_new_tokens": 4}))
    assert len(outputs) == SLOTS + 2
    assert len(set(texts(outputs))) > 1


def test_a_seed_repeats_texts_and_differs_between_generations(smollm2_path: Path) -> None:
    # Each on an engine of its own: what else is in the batch or the prompt cache changes the last digits.
    seen: list[list[str]] = []
    for seed, call in ((None, row(n=3, seed=11)), (11, row(n=3)), (11, row(n=3, seed=99))):
        seeded = LlamaCppLLM(smollm2_path, **SMALL, seed=seed)
        seen.append(texts(seeded.generate_row(call)))
        seeded.close()
    assert seen[0] == seen[1]
    assert seen[0] != seen[2]
    assert len(set(seen[0])) > 1


def test_each_go_has_a_seed_of_its_own_within_31_bits(llm: LlamaCppLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies: list[dict[str, Any]] = []

    class Recorder:
        def handle_chat_completions(self, body: dict[str, Any], on_chunk: Callable[[Any], bool]) -> None:
            bodies.append(body)
            for index in range(body["n"]):
                on_chunk({"choices": [{"index": index, "delta": {}, "finish_reason": "stop"}]})

    monkeypatch.setattr(llm, "_server", Recorder())
    llm.generate_row(row(n=SLOTS + 2, seed=2**31 + 7))
    llm.generate_row(row())
    assert [(body["n"], body.get("seed")) for body in bodies] == [(SLOTS, 7), (2, 7 + SLOTS), (1, None)]


def test_a_calls_options_go_before_the_engines(llm: LlamaCppLLM) -> None:
    (output,) = llm.generate_row(row("Tell me a story.", options={"max_new_tokens": 3}))
    assert output.get("finish_reason") == "length"
    assert output.get("usage", {})["completion_tokens"] == 3


def test_every_option_name_is_taken(llm: LlamaCppLLM) -> None:
    options: dict[str, Any] = {
        "max_new_tokens": 2,
        "temperature": 0.1,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "repeat_penalty": 1.2,
        "frequency_penalty": 0.1,
        "presence_penalty": 0.1,
        "stop": ["\n"],
    }
    assert llm.option_names == {*options, "response_format"}
    assert len(llm.generate_row(row(options=options))) == 1


def test_options_that_only_llamacpp_knows_reach_it(llm: LlamaCppLLM) -> None:
    # Where only the likeliest token is left to draw from, each seed draws the same.
    for least in ({"top_k": 1}, {"min_p": 1.0}):
        options = {"temperature": 2.0, "max_new_tokens": 4, **least}
        drawn = [texts(llm.generate_row(row("Tell me a story.", seed=seed, options=options))) for seed in (1, 2)]
        assert drawn[0] == drawn[1]


SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}},
    "required": ["colour"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "colour", "schema": SCHEMA}}


def test_a_response_format_shapes_the_answer(llm: LlamaCppLLM) -> None:
    outputs = llm.generate_row(row(n=2, options={"response_format": FORMAT, "max_new_tokens": 60}))
    for text in texts(outputs):
        assert json.loads(text)["colour"] in ("red", "blue")


@pytest.mark.parametrize("prompt_format", [None, "chatml"])
def test_a_response_format_may_be_a_setting_of_chats_and_of_texts(smollm2_path: Path, prompt_format: Any) -> None:
    settings: dict[str, Any] = {**SMALL, "max_new_tokens": 60}
    shaped = LlamaCppLLM(smollm2_path, response_format=FORMAT, prompt_format=prompt_format, **settings)
    (output,) = shaped.generate_row(row())
    (free,) = shaped.generate_row(row(options={"response_format": {"type": "text"}, "max_new_tokens": 4}))
    with pytest.raises(RowError, match="response_format"):
        shaped.generate_row(row(options={"response_format": {"type": "xml"}}))
    shaped.close()
    assert json.loads(output["raw_output"])["colour"] in ("red", "blue")
    assert not free["raw_output"].startswith("{")


@pytest.mark.parametrize(
    ("response_format", "schema"),
    [
        (FORMAT, SCHEMA),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_object", "schema": SCHEMA}, SCHEMA),
        ({"type": "text"}, None),
    ],
    ids=str,
)
def test_the_schema_of_a_response_format(response_format: Any, schema: Any) -> None:
    assert _schema(response_format) == schema


@pytest.mark.parametrize(
    "response_format", [{"type": "json_schema"}, {"type": "json_schema", "json_schema": 3}, {}, "x"]
)
def test_a_response_format_without_a_schema_is_the_rows_fault(response_format: Any) -> None:
    with pytest.raises(RowError, match="response_format must be"):
        _schema(response_format)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (row("word " * 600), "exceeds the available context size"),
        (row("half a pair: \ud800"), "lone surrogate"),
        (row(options={"temperature": "hot"}), "temperature"),
        (row(options={"temperature": float("nan")}), "JSON"),
        (row(options={"stop": {1}}), "JSON"),
        (row(options={"stop": ["e", ""]}), "stop must be a list of texts that are not empty"),
        (row(options={"stop": ""}), "stop must be a list of texts that are not empty"),
        (row(options={"stop": {"a": 1}}), "stop must be a list of texts that are not empty"),
        (row(options={"max_new_tokens": 0}), "max_new_tokens must be a whole number of at least 1, got 0"),
        (row(options={"max_new_tokens": -1}), "max_new_tokens must be a whole number of at least 1, got -1"),
        (row(options={"max_new_tokens": 1.5}), "max_new_tokens must be a whole number of at least 1, got 1.5"),
        (row(options={"response_format": "json"}), "response_format must be"),
        (row(options={"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}}), "schema"),
        (RowCall([{"role": "user"}], "prompt"), "content"),
        (RowCall([], "prompt"), "empty"),
    ],
)
def test_a_faulty_row_is_the_rows_fault(llm: LlamaCppLLM, call: RowCall, sentence: str) -> None:
    with pytest.raises(RowError, match=sentence):
        llm.generate_row(call)


def test_a_rendered_prompt_comes_back_unparsed(llm: LlamaCppLLM) -> None:
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hi"}, {"role": "user", "content": "?"}]
    for content, used in (("hi", [{"role": "user", "content": "hi"}]), (chat, chat)):
        (output,) = llm.generate_row(RowCall(content, "prompt"))
        assert output["prompt_used"] == used
        assert output["parsed_output"] == output["raw_output"]


def test_a_cancelled_row_stops_at_its_next_token(llm: LlamaCppLLM) -> None:
    flag = Watched(lambda look: flag.set() if look == 5 else None)
    with pytest.raises(CancelledError):
        llm.generate_row(row("Tell me a long story.", n=2, cancelled=flag, options={"max_new_tokens": 400}))
    assert flag.looks == 5
    assert len(llm.generate_row(row(n=SLOTS, options={"max_new_tokens": 1}))) == SLOTS


def test_a_row_cancelled_early_never_starts(llm: LlamaCppLLM) -> None:
    flag = Watched(lambda look: None)
    flag.set()
    with pytest.raises(CancelledError):
        llm.generate_row(row(cancelled=flag))
    assert flag.looks == 1


def test_as_many_rows_as_slots_run_at_once(llm: LlamaCppLLM) -> None:
    assert llm.concurrency == SLOTS
    together = threading.Barrier(SLOTS)
    # The first look is before the call, the second at its first token: there each row waits for all others.
    flags = [Watched(lambda look: together.wait(20) if look == 2 else None) for _ in range(SLOTS)]
    with ThreadPoolExecutor(SLOTS) as executor:
        rows = list(executor.map(lambda flag: llm.generate_row(row(cancelled=flag)), flags))
    assert [len(outputs) for outputs in rows] == [1] * SLOTS


def test_what_the_callback_raises_is_raised(llm: LlamaCppLLM) -> None:
    def fail(look: int) -> None:
        if look == 2:
            raise KeyError("scripted")

    with pytest.raises(KeyError, match="scripted"):
        llm.generate_row(row(cancelled=Watched(fail)))


def test_generate_keeps_the_order_of_its_inputs(llm: LlamaCppLLM) -> None:
    inputs = [{"input": f"Name colour {k}."} for k in range(6)] + [{"other": 1}]
    result = llm.generate(inputs, num_generations=2)
    assert isinstance(result, list)
    assert [len(outputs) for outputs in result] == [2] * 7
    used = [outputs[0]["prompt_used"] for outputs in result]
    assert [prompt[-1]["content"] for prompt in used[:6]] == [one["input"] for one in inputs[:6]]
    assert used[6] is None


def test_generate_raises_what_one_input_raises(llm: LlamaCppLLM) -> None:
    with pytest.raises(RowError, match="context size"):
        llm.generate([{"input": "hi"}, {"input": "word " * 600}, {"input": "hi"}])


def test_num_threads_makes_generate_return_a_future(smollm2_path: Path) -> None:
    threaded = LlamaCppLLM(smollm2_path, num_threads=2, **SMALL)
    assert threaded.concurrency == 2
    result = threaded.generate([{"input": "hi"}, {"input": "ho"}])
    assert isinstance(result, Future)
    assert [len(outputs) for outputs in result.result(20)] == [1, 1]
    threaded.close()


def test_a_text_format_goes_in_as_text(smollm2_path: Path) -> None:
    formatted = LlamaCppLLM(smollm2_path, prompt_format="chatml", **SMALL)
    (output,) = formatted.generate_row(row("hi", seed=3))
    assert output["prompt_used"].startswith("<|im_start|>system\n")
    assert output["raw_output"]
    assert "completion_tokens" in output.get("usage", {})
    with pytest.raises(RowError, match="empty"):
        formatted.generate_row(RowCall("", "prompt", num_generations=2))
    formatted.close()


def test_a_formatting_function_makes_the_text(smollm2_path: Path) -> None:
    formatted = LlamaCppLLM(smollm2_path, prompt_formatting_fn=lambda prompt: prompt.formatted_prompt, **SMALL)
    (output,) = formatted.generate_row(row("One, two, three,"))
    assert output["prompt_used"] == "One, two, three,"
    formatted.close()


def test_a_model_without_a_chat_template_gets_plain_text(gemma_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = LlamaCppLLM(gemma_path, **SMALL)
    assert "no chat template" in caplog.text
    (output,) = base.generate_row(RowCall([{"role": "user", "content": "One, two,"}], "prompt"))
    assert output["prompt_used"] == "One, two,"
    (output,) = base.generate_row(row("One, two,"))
    assert output["prompt_used"].endswith(".\nOne, two,")
    base.close()


def test_a_chat_template_can_be_named(gemma_path: Path) -> None:
    base = LlamaCppLLM(gemma_path, chat_template="gemma", **SMALL)
    (output,) = base.generate_row(row("hi"))
    assert [message["role"] for message in output["prompt_used"]] == ["system", "user"]
    base.close()


def test_a_chat_template_can_be_given(smollm2_path: Path) -> None:
    template = "{% for message in messages %}{{ message.content }}!{% endfor %}"
    llm = LlamaCppLLM(smollm2_path, chat_template=template, **SMALL)
    (output,) = llm.generate_row(RowCall("a", "prompt"))
    assert output.get("usage", {})["prompt_tokens"] <= 3
    llm.close()


@pytest.mark.parametrize("template", ["no-such-template", "{% if"])
def test_a_chat_template_that_cannot_be_used_is_refused(smollm2_path: Path, template: str) -> None:
    with pytest.raises(ConfigurationError, match="chat_template"):
        LlamaCppLLM(smollm2_path, chat_template=template, **SMALL)


def test_a_missing_model_file_is_named_with_the_folder_that_it_was_looked_for_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=rf"no model file at {tmp_path}/absent\.gguf"):
        LlamaCppLLM("absent.gguf")


def test_a_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "readme.gguf").write_text("hello")
    with pytest.raises(ConfigurationError, match=r"readme\.gguf is no GGUF"):
        LlamaCppLLM(tmp_path / "readme.gguf")


def test_a_broken_model_file_is_named(tmp_path: Path, smollm2_path: Path) -> None:
    with smollm2_path.open("rb") as whole:
        (tmp_path / "half.gguf").write_bytes(whole.read(2_000_000))
    with pytest.raises(ConfigurationError, match=r"cannot load .*half\.gguf"):
        LlamaCppLLM(tmp_path / "half.gguf")


@pytest.mark.parametrize("name", ["n_ctx", "n_parallel", "n_threads", "max_new_tokens"])
def test_a_number_below_one_is_refused(smollm2_path: Path, name: str) -> None:
    settings: dict[str, Any] = {**SMALL, name: 0}
    with pytest.raises(ConfigurationError, match=name):
        LlamaCppLLM(smollm2_path, **settings)


def test_an_empty_stop_text_is_refused(smollm2_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"stop must be a list of texts that are not empty, got \[''\]"):
        LlamaCppLLM(smollm2_path, stop=[""])


def test_close_stops_what_runs(smollm2_path: Path) -> None:
    llm = LlamaCppLLM(smollm2_path, **SMALL)
    flag = Watched(lambda look: llm.close() if look == 3 else None)
    with pytest.raises(CancelledError):
        llm.generate_row(row(cancelled=flag, options={"max_new_tokens": 400}))
    llm.close()
    with pytest.raises(Closed):
        llm.generate_row(row())


def test_it_is_quiet_on_stderr(smollm2_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    llm = LlamaCppLLM(smollm2_path, **SMALL)
    llm.generate_row(row())
    llm.close()
    assert capfd.readouterr() == ("", "")


def test_its_http_port_is_closed_to_others(llm: LlamaCppLLM) -> None:
    server: Any = llm._server
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}]}).encode()
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(f"{server.listening_address}/v1/chat/completions", body, timeout=10)
    raised.value.close()
    assert raised.value.code == 401


class TestJoined:
    def test_choices_that_take_turns_are_told_apart(self) -> None:
        joined = _Joined(2, lambda: False)
        for index, text, reason in ((1, "b", None), (0, "a", None), (1, "B", None), (1, "", "stop"), (0, "", "length")):
            part = {"index": index, "delta": {"content": text}, "finish_reason": reason}
            assert joined.take({"choices": [part]}) is False
        assert [(one.text, one.finish_reason) for one in joined.choices()] == [("a", "length"), ("bB", "stop")]

    def test_usage_belongs_to_the_choice_that_ended_last(self) -> None:
        joined = _Joined(2, lambda: False)
        for index in (1, 0):
            joined.take({"choices": [{"index": index, "delta": {}, "finish_reason": "stop"}]})
            joined.take({"choices": [], "usage": {"completion_tokens": index}})
        assert [one.usage for one in joined.choices()] == [{"completion_tokens": 0}, {"completion_tokens": 1}]

    def test_a_choice_that_never_ends_is_an_engine_error(self) -> None:
        with pytest.raises(RuntimeError, match=r"without finishing generations \[0\]"):
            _Joined(1, lambda: False).choices()

    def test_an_error_of_the_server_is_an_engine_error(self) -> None:
        joined = _Joined(1, lambda: False)
        assert joined.take({"error": {"code": 500, "message": "no memory"}}) is True
        with pytest.raises(RuntimeError, match="no memory"):
            joined.choices()

    def test_a_chunk_of_another_shape_stops_the_call(self) -> None:
        joined = _Joined(1, lambda: False)
        assert joined.take({"choices": [{"index": 7, "delta": {}}]}) is True
        with pytest.raises(IndexError):
            joined.choices()
