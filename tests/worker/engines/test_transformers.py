# ruff: noqa: E402 - without torch, what follows cannot be imported
# pyright: reportMissingImports=false
from __future__ import annotations

import functools
import importlib
import threading
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

from extras import require

require("torch")
require("transformers")

import pytest
import torch
from tiny_model import CONTEXT, TEMPLATE, save_tiny_model
from watched import Watched

from genpool.protocol.errors import Closed, ConfigurationError, EngineDead, RowError
from genpool.tasks.text_generation import TextGenerationTask
from genpool.worker.engines.transformers import TransformersLLM
from genpool.worker.llm import RowCall
from genpool.worker.loader import load_engine

# Of different lengths, so that a batch of them is padded.
TEXTS = ["a", "name a town", "red blue green " * 4]
GREEDY = {"temperature": 0}
# One thread: torch's threads wait for each other by spinning, which is slow beside other work on the same cores.
ON_CPU: dict[str, Any] = {"device": "cpu", "n_threads": 1}


def load(model: Path, **settings: Any) -> TransformersLLM:
    usual: dict[str, Any] = {
        "task": TextGenerationTask(system_prompt="be brief"),
        "device": "cpu",
        "max_new_tokens": 12,
    }
    return TransformersLLM(model, **{**usual, **settings})


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> TransformersLLM:
    return load(tiny_model)


def row(text: str = "a", n: int = 1, **more: Any) -> RowCall:
    return RowCall({"input": text}, num_generations=n, **more)


def rendered(content: Any) -> RowCall:
    return RowCall(content, "prompt", options=GREEDY)


def texts(answer: list[Any] | Exception) -> list[str]:
    assert isinstance(answer, list), answer
    return [output["raw_output"] for output in answer]


def only(llm: TransformersLLM, call: RowCall) -> Any:
    """The one output of a row by itself."""
    (answer,) = llm.generate_batch([call])
    assert isinstance(answer, list), answer
    (output,) = answer
    return output


# What is made.


def test_a_row_gets_whole_outputs(llm: TransformersLLM) -> None:
    (answer,) = llm.generate_batch([row("name a town", n=2)])
    assert len(texts(answer)) == 2
    assert isinstance(answer, list)
    for output in answer:
        assert output["model_name"] == "tiny"
        assert output["prompt_used"] == [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "name a town"},
        ]
        assert output["parsed_output"] == {"generations": output["raw_output"]}
        assert output.get("finish_reason") == "length"
        assert output.get("usage") == {"prompt_tokens": 21, "completion_tokens": 12}
        assert "town" not in output["raw_output"], "the prompt is not repeated"


def test_a_batch_makes_the_same_greedy_texts_as_single_rows(llm: TransformersLLM) -> None:
    for options in (GREEDY, {**GREEDY, "repetition_penalty": 1.5}):
        calls = [row(text, options=options) for text in TEXTS]
        together = [texts(answer) for answer in llm.generate_batch(calls)]
        assert together == [texts(llm.generate_batch([call])[0]) for call in calls]
        assert len({text for (text,) in together}) == len(TEXTS)


def test_generations_of_a_row_differ_and_greedy_ones_are_repeated(llm: TransformersLLM) -> None:
    for answer in llm.generate_batch([row(text, n=3) for text in TEXTS]):
        assert len(set(texts(answer))) == 3
    for answer in llm.generate_batch([row(text, n=3, options=GREEDY) for text in TEXTS]):
        assert len(texts(answer)) == 3
        assert len(set(texts(answer))) == 1


def test_a_seed_repeats_texts_alone_and_beside_others(llm: TransformersLLM) -> None:
    (alone,) = llm.generate_batch([row("a", n=2, seed=5)])
    beside = llm.generate_batch([row("a", n=2, seed=5), row("a", n=2, seed=50), row("a", n=1, seed=6)])
    assert texts(beside[0]) == texts(alone)
    assert texts(beside[1]) != texts(alone)
    assert len(set(texts(alone))) == 2
    assert texts(beside[2]) == texts(alone)[1:], "the k-th generation samples with the seed + k"


def test_the_engines_seed_is_for_rows_that_bring_none(tiny_model: Path) -> None:
    seeded = load(tiny_model, seed=5)
    by_engine, by_row = seeded.generate_batch([row("a", n=2), row("a", n=2, seed=9)])
    assert texts(by_engine) == texts(load(tiny_model).generate_batch([row("a", n=2, seed=5)])[0])
    assert texts(by_engine) != texts(by_row)


def test_a_stop_text_ends_its_row_alone(llm: TransformersLLM) -> None:
    options = {**GREEDY, "max_new_tokens": 30}
    whole = [only(llm, row(text, options=options))["raw_output"] for text in TEXTS]
    stop = " assistant"
    assert [stop in text for text in whole] == [True, False, False]
    answers = llm.generate_batch([row(text, options={**options, "stop": [stop, "never"]}) for text in TEXTS])
    assert texts(answers[0]) == [whole[0].partition(stop)[0]]
    assert [texts(answer)[0] for answer in answers[1:]] == whole[1:]
    ended, length = answers[0], answers[1]
    assert isinstance(ended, list)
    assert isinstance(length, list)
    assert ended[0].get("finish_reason") == "stop"
    assert ended[0].get("usage", {})["completion_tokens"] < 20
    assert length[0].get("finish_reason") == "length"


def test_the_models_end_tokens_end_a_completion(tmp_path: Path) -> None:
    ending = load(save_tiny_model(tmp_path, eos_token_id=[2, *range(100, 250)]))
    output = only(ending, row(options={**GREEDY, "max_new_tokens": 60}))
    assert output["finish_reason"] == "stop"
    assert output["usage"]["completion_tokens"] < 60


def test_special_tokens_are_no_text(llm: TransformersLLM) -> None:
    answers = llm.generate_batch([row("a", n=40, seed=1, options={"temperature": 50.0, "top_k": 0})])
    assert not any(special in text for text in texts(answers[0]) for special in ("<s>", "</s>", "<pad>"))


def test_a_calls_options_go_before_the_engines(tiny_model: Path) -> None:
    llm = load(tiny_model, temperature=0, max_new_tokens=5)
    assert only(llm, row(options={"max_new_tokens": 3}))["usage"]["completion_tokens"] == 3
    assert only(llm, row(options={"max_new_tokens": None}))["usage"]["completion_tokens"] == 5
    (answer,) = llm.generate_batch([row(n=3, options={"temperature": 1.5, "max_new_tokens": 12})])
    assert len(set(texts(answer))) == 3
    assert {"max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "stop"} == llm.option_names


def test_the_models_own_sampling_is_taken_where_the_user_says_nothing(tmp_path: Path) -> None:
    own = save_tiny_model(tmp_path, do_sample=True, top_k=1, temperature=0.7)
    assert len(set(texts(load(own).generate_batch([row(n=3)])[0]))) == 1
    assert len(set(texts(load(own, top_k=0).generate_batch([row(n=3)])[0]))) == 3
    runner: Any = load(own)._runner
    left = runner._model.generation_config
    assert (left.do_sample, left.top_k, left.temperature) == (False, None, None), "generate would warn of them"


# Prompts.


def test_a_rendered_prompt_comes_back_unparsed(llm: TransformersLLM) -> None:
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    for content, used in (("a", [{"role": "user", "content": "a"}]), (chat, chat)):
        output = only(llm, rendered(content))
        assert output["prompt_used"] == used
        assert output["parsed_output"] == output["raw_output"]


def test_text_goes_in_as_it_is_where_a_format_or_a_function_makes_it(tiny_model: Path) -> None:
    assert only(load(tiny_model, prompt_format="chatml"), row())["prompt_used"].startswith("<|im_start|>system\n")
    written = "<system> be brief\n<user> a\n<assistant> "
    by_hand = load(tiny_model, prompt_formatting_fn=lambda prompt: written)
    output = only(by_hand, row(options=GREEDY))
    assert output["prompt_used"] == written
    assert output["raw_output"] == only(load(tiny_model), row(options=GREEDY))["raw_output"]


def test_a_model_without_a_chat_template_gets_plain_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = load(save_tiny_model(tmp_path, template=None))
    assert "no chat template" in caplog.text
    assert only(base, row("name a town"))["prompt_used"] == "be brief\nname a town"


def test_a_chat_template_can_be_given(tiny_model: Path) -> None:
    llm = load(tiny_model, chat_template="{% for message in messages %}{{ message.content }}!{% endfor %}")
    assert only(llm, rendered("a"))["usage"]["prompt_tokens"] == 2
    with pytest.raises(ConfigurationError, match="chat_template cannot be used"):
        load(tiny_model, chat_template="{% if")


def test_a_template_that_refuses_a_system_prompt_gets_it_in_the_users_turn(tmp_path: Path) -> None:
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE
    llm = load(save_tiny_model(tmp_path, template=refuses))
    output = only(llm, row("a", options=GREEDY))
    assert [message["role"] for message in output["prompt_used"]] == ["system", "user"]
    (by_hand,) = llm.generate_batch([rendered("be brief\n\na")])
    assert texts(by_hand) == [output["raw_output"]]
    (refused,) = llm.generate_batch([rendered([{"role": "system", "content": "alone"}])])
    assert isinstance(refused, RowError)
    assert "the chat template refuses the messages: no system role" in str(refused)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (row("red " * CONTEXT), r"the prompt has \d+ tokens and leaves no room for an answer"),
        (row("half a pair: \ud800"), "lone surrogate"),
        (rendered([]), "the prompt is empty"),
        (RowCall({"question": "a"}), "lacks 'input'"),
    ],
)
def test_a_faulty_row_fails_alone(llm: TransformersLLM, call: RowCall, sentence: str) -> None:
    before, faulty, after = llm.generate_batch([row(), call, row()])
    with pytest.raises(RowError, match=sentence):
        raise faulty if isinstance(faulty, Exception) else AssertionError(faulty)
    assert len(texts(before)) == len(texts(after)) == 1


def test_an_option_that_cannot_be_used_is_named(llm: TransformersLLM) -> None:
    with pytest.raises(RowError, match="temperature must be a number of at least 0, got 'hot'"):
        llm.generate_batch([row(options={"temperature": "hot"})])


def test_a_row_near_the_end_of_the_context_gets_what_is_left_and_takes_nothing_from_others(
    llm: TransformersLLM,
) -> None:
    long = "red " * 50
    options = {**GREEDY, "max_new_tokens": 90}
    calls = [row("a", options=options), row(long, options=options), row("b", options=options)]
    short, cut, other = (answer[0] for answer in llm.generate_batch(calls) if isinstance(answer, list))
    usage = cut.get("usage", {})
    assert usage["prompt_tokens"] + usage["completion_tokens"] == CONTEXT
    assert cut.get("finish_reason") == "length"
    assert [one.get("usage", {})["completion_tokens"] for one in (short, other)] == [90, 90]
    assert [one["prompt_used"][1]["content"] for one in (short, cut, other)] == ["a", long, "b"]


# Cancelling and closing.


def test_a_cancelled_row_leaves_its_batch_and_the_others_go_on(llm: TransformersLLM) -> None:
    flag = Watched(lambda look: flag.set() if look == 5 else None)
    options = {**GREEDY, "max_new_tokens": 30}
    gone, stays = llm.generate_batch([row("a", cancelled=flag, options=options), row("name a town", options=options)])
    assert isinstance(gone, CancelledError)
    assert texts(stays) == [only(llm, row("name a town", options=options))["raw_output"]]


def test_a_batch_that_nobody_wants_stops_at_its_next_token(llm: TransformersLLM) -> None:
    flag = Watched(lambda look: flag.set() if look == 5 else None)
    answers = llm.generate_batch([row("a", n=2, cancelled=flag, options={"max_new_tokens": 90})] * 2)
    assert all(isinstance(answer, CancelledError) for answer in answers)
    assert flag.looks < 20


def test_rows_cancelled_early_never_start(llm: TransformersLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    flag = threading.Event()
    flag.set()
    monkeypatch.setattr(llm._runner, "_generate", None)
    (answer,) = llm.generate_batch([row(cancelled=flag)])
    assert isinstance(answer, CancelledError)


def test_close_stops_what_runs(tiny_model: Path) -> None:
    closing = load(tiny_model)
    flag = Watched(lambda look: closing.close() if look == 3 else None)
    (answer,) = closing.generate_batch([row(cancelled=flag, options={"max_new_tokens": 90})])
    assert isinstance(answer, CancelledError)
    assert flag.looks < 10
    with pytest.raises(Closed):
        closing.generate_batch([row()])


# Called as any other LLM.


def test_generate_keeps_the_order_of_its_inputs_and_raises_what_one_raises(llm: TransformersLLM) -> None:
    result = llm.generate([{"input": text} for text in TEXTS] + [{"other": 1}], num_generations=2)
    assert isinstance(result, list)
    assert [len(outputs) for outputs in result] == [2] * 4
    assert [outputs[0]["prompt_used"][1]["content"] for outputs in result[:3]] == TEXTS
    assert result[3][0]["prompt_used"] is None
    with pytest.raises(RowError, match="leaves no room"):
        llm.generate([{"input": "a"}, {"input": "red " * CONTEXT}])


WISHES = {"max_new_tokens": 2, "min_p": 0.5}


class Wishing(TextGenerationTask):
    generation_kwargs = WISHES


def test_generate_asks_for_what_the_task_would_like(tiny_model: Path) -> None:
    result = load(tiny_model, task=Wishing("be brief"), max_new_tokens=5, temperature=0).generate([{"input": "a"}])
    assert isinstance(result, list)
    assert result[0][0].get("usage", {})["completion_tokens"] == 2


# What goes wrong with a device.


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), MemoryError),
        (RuntimeError("CUDA error: device-side assert triggered"), EngineDead),
        (RuntimeError("something else"), RuntimeError),
    ],
)
def test_an_error_of_the_device_is_told(
    llm: TransformersLLM, monkeypatch: pytest.MonkeyPatch, raised: Exception, kind: type[Exception]
) -> None:
    def fail(**_: Any) -> None:
        raise raised

    runner: Any = llm._runner
    monkeypatch.setattr(runner._model, "generate", fail)
    with pytest.raises(kind) as caught:
        llm.generate_batch([row(), row()])
    assert kind is RuntimeError or caught.value.__context__ is None, "what it holds on to holds the batch's memory"


# Loading.


def test_it_is_quiet(tiny_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(tiny_model).generate_batch([row(), row("red " * CONTEXT)])
    assert capfd.readouterr() == ("", "")


def test_settings_come_as_text(tiny_model: Path) -> None:
    pairs = [
        "device=cpu",
        "dtype=bfloat16",
        "temperature=0",
        "stop=a,b",
        'model_kwargs={"attn_implementation": "eager"}',
    ]
    llm = load_engine("transformers", str(tiny_model), pairs, None)
    assert isinstance(llm, TransformersLLM)
    runner: Any = llm._runner
    assert runner._model.dtype == torch.bfloat16
    assert runner._model.config._attn_implementation == "eager"
    assert (llm._settings["temperature"], llm._settings["stop"]) == (0, ["a", "b"])


def test_the_tokenizer_may_lie_elsewhere(tiny_model: Path, tmp_path: Path) -> None:
    alone = save_tiny_model(tmp_path / "alone")
    for file in alone.glob("token*"):
        file.unlink()
    with pytest.raises(ConfigurationError, match="cannot load the tokenizer of"):
        load(alone)
    assert load(alone, tokenizer=tiny_model).model_name == "alone"


@pytest.mark.parametrize("name", ["/absent", "./absent", "a/b/c"])
def test_a_missing_folder_is_named(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"there is no model folder at .*(absent|c)"):
        TransformersLLM(name)


def test_a_missing_gguf_file_is_named(tiny_model: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no model file at .*absent\.gguf"):
        TransformersLLM(tiny_model / "absent.gguf")
    with pytest.raises(ConfigurationError, match=r"no model file at .*absent\.gguf"):
        TransformersLLM(tiny_model, gguf_file="absent.gguf")


@pytest.mark.timeout(180)
def test_a_gguf_file_is_unpacked(
    smollm2_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    require("gguf")
    gguf: Any = importlib.import_module("gguf")
    # transformers reads the file's head three times, which takes most of the time.
    monkeypatch.setattr(gguf, "GGUFReader", functools.cache(gguf.GGUFReader))
    llm = TransformersLLM(smollm2_path.parent, gguf_file=smollm2_path.name, **ON_CPU)
    assert llm.model_name == "SmolLM2-135M-Instruct.Q4_1"
    output = only(llm, rendered("What is the capital of France?"))
    assert "Paris" in output["raw_output"]
    assert output["finish_reason"] == "stop"
    assert capfd.readouterr() == ("", "")


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"transformers cannot load .* {tmp_path}"):
        TransformersLLM(tmp_path)


def test_a_broken_model_file_is_named(tmp_path: Path) -> None:
    weights = save_tiny_model(tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigurationError, match=f"transformers cannot load the model {tmp_path}"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1"),
        ({"top_p": 2.0}, "top_p must be a number above 0 and up to 1"),
        ({"n_threads": 0}, "n_threads must be above 0"),
        ({"device": "cuda:77"}, "transformers cannot load the model"),
        ({"device": "gpu"}, "transformers cannot load the model"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(tiny_model: Path, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        load(tiny_model, **settings)
