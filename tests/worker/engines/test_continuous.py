# ruff: noqa: E402 - without torch, what follows cannot be imported
"""Continuous batching, which is a part of transformers that changes: what is leaned on is tested here."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from extras import require

require("torch")
require("transformers")

import pytest
from fleet import until
from tiny_model import CONTEXT, save_tiny_model

from genpool.protocol.errors import Closed, ConfigurationError, EngineDead, RowError
from genpool.tasks.text_generation import TextGenerationTask
from genpool.worker.engines.transformers import TransformersLLM
from genpool.worker.llm import RowCall

TEXTS = ["a", "name a town", "red blue green " * 4]
GREEDY = {"temperature": 0}
# For as long as the context lets it.
LONG = {"max_new_tokens": CONTEXT}
PATIENCE_S = 30


def load(model: Path, **settings: Any) -> TransformersLLM:
    usual: dict[str, Any] = {
        "task": TextGenerationTask(system_prompt="be brief"),
        "device": "cpu",
        "max_new_tokens": 12,
    }
    return TransformersLLM(model, **{**usual, **settings})


def load_continuous(model: Path, **settings: Any) -> TransformersLLM:
    return load(model, **{"batching": "continuous", "cache_tokens": 2000, **settings})


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> Iterator[TransformersLLM]:
    llm = load_continuous(tiny_model)
    yield llm
    llm.close()


def row(text: str = "a", n: int = 1, **more: Any) -> RowCall:
    return RowCall({"input": text}, num_generations=n, **more)


def texts(answer: list[Any] | Exception) -> list[str]:
    assert isinstance(answer, list), answer
    return [output["raw_output"] for output in answer]


def wait_until_it_runs(llm: TransformersLLM) -> None:
    runner: Any = llm._runner
    until(lambda: runner._manager.batch_processor.scheduler.active_requests, "the start of a row")


def test_it_makes_the_same_greedy_outputs_as_a_static_batch(llm: TransformersLLM, tiny_model: Path) -> None:
    calls = [row(text, n=2, options={**GREEDY, "max_new_tokens": 30}) for text in TEXTS]
    assert llm.generate_batch(calls) == load(tiny_model).generate_batch(calls)


def test_rows_of_many_calls_run_beside_each_other_each_with_its_own_options(llm: TransformersLLM) -> None:
    assert llm.concurrency == 64
    options = [{**GREEDY, "max_new_tokens": 20}, {"temperature": 1.5, "max_new_tokens": 7}, {"top_k": 1}]
    calls = [row(TEXTS[k % 3], n=2, options=options[k % 3]) for k in range(24)]
    with ThreadPoolExecutor(len(calls)) as executor:
        answers = [answer for (answer,) in executor.map(lambda call: llm.generate_batch([call]), calls)]
    for k, answer in enumerate(answers):
        assert isinstance(answer, list)
        for output in answer:
            length, most = output.get("usage", {})["completion_tokens"], [20, 7, 12][k % 3]
            # One that is sampled may come upon the model's end token, and says so; no other ends early.
            is_ended = k % 3 == 1 and output.get("finish_reason") == "stop"
            assert length <= most if is_ended else length == most
        assert len(set(texts(answer))) == (2 if k % 3 == 1 else 1)


def test_a_stop_text_ends_a_completion(llm: TransformersLLM, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    withdrawn: list[str] = []
    runner: Any = llm._runner
    monkeypatch.setattr(runner._manager, "cancel_request", withdrawn.append)
    call = row("a", options={**GREEDY, "max_new_tokens": 30, "stop": [" assistant"]})
    (answer,) = llm.generate_batch([call])
    assert [answer] == load(tiny_model).generate_batch([call])
    assert isinstance(answer, list)
    assert answer[0].get("finish_reason") == "stop"
    assert len(withdrawn) == 1


def test_the_models_end_tokens_end_a_completion(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path, eos_token_id=[2, *range(100, 250)])
    ending = load_continuous(model)
    call = row("a", options={**GREEDY, "max_new_tokens": 60})
    answers = ending.generate_batch([call])
    ending.close()
    assert answers == load(model).generate_batch([call])
    assert isinstance(answers[0], list)
    assert answers[0][0].get("finish_reason") == "stop"


def test_a_cancelled_row_is_withdrawn_while_others_run(llm: TransformersLLM) -> None:
    flag = threading.Event()
    with ThreadPoolExecutor(2) as executor:
        gone = executor.submit(llm.generate_batch, [row("a", n=8, cancelled=flag, options=LONG)])
        stays = executor.submit(llm.generate_batch, [row("name a town")])
        wait_until_it_runs(llm)
        flag.set()
        assert isinstance(gone.result(PATIENCE_S)[0], CancelledError)
        assert len(texts(stays.result(PATIENCE_S)[0])) == 1
    (answer,) = llm.generate_batch([row(cancelled=flag)])
    assert isinstance(answer, CancelledError)


def test_what_is_too_long_for_the_context_or_the_cache_fails_alone(tmp_path: Path, llm: TransformersLLM) -> None:
    faulty, fine = llm.generate_batch([row("red " * CONTEXT), row()])
    assert isinstance(faulty, RowError)
    assert len(texts(fine)) == 1
    long = save_tiny_model(tmp_path, max_position_embeddings=4 * CONTEXT)
    narrow = load_continuous(long, cache_tokens=1)
    options = {"max_new_tokens": 400}
    faulty, full = narrow.generate_batch([row("red " * 250, options=options), row("red " * 100, options=options)])
    narrow.close()
    assert isinstance(faulty, RowError)
    assert "256 is the most" in str(faulty)
    assert isinstance(full, list)
    assert sum(full[0].get("usage", {}).values()) == 256


def test_more_rows_than_the_cache_holds_take_turns(tiny_model: Path) -> None:
    narrow = load_continuous(tiny_model, cache_tokens=512)
    answers = narrow.generate_batch([row(n=3, options=LONG) for _ in range(3)])
    narrow.close()
    assert [len(texts(answer)) for answer in answers] == [3] * 3


def test_close_ends_what_runs(tiny_model: Path) -> None:
    before = threading.enumerate()
    closing = load_continuous(tiny_model)
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(closing.generate_batch, [row(n=20, options=LONG)])
        wait_until_it_runs(closing)
        closing.close()
        assert isinstance(future.result(PATIENCE_S)[0], CancelledError)
    closing.close()
    with pytest.raises(Closed):
        closing.generate_batch([row()])
    assert not set(threading.enumerate()) - set(before)


def test_an_error_in_a_step_is_the_engines_end(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = load_continuous(tiny_model)
    runner: Any = broken._runner

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(runner._manager, "_generation_step", fail)
    with caplog.at_level(logging.CRITICAL), pytest.raises(EngineDead, match="CUDA error: device-side assert"):
        broken.generate_batch([row()])
    with pytest.raises(EngineDead):
        broken.generate_batch([row()])
    broken.close()


def test_a_defect_where_results_are_collected_leaves_nobody_waiting(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = load_continuous(tiny_model)

    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("a name that a later version has not")

    monkeypatch.setattr(broken._runner, "_take", fail)
    with pytest.raises(EngineDead, match="a name that a later version has not"):
        broken.generate_batch([row()])
    broken.close()


def test_what_it_does_not_heed_is_refused_or_told(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in (("seed", 1), ("repetition_penalty", 1.1)):
        with pytest.raises(ConfigurationError, match=f"continuous batching heeds no {name}: leave it out"):
            load_continuous(tiny_model, **{name: value})
    own = load_continuous(save_tiny_model(tmp_path, repetition_penalty=1.1))
    own.close()
    assert "the model's own 1.1 is left out" in caplog.text
    assert "repetition_penalty" not in own.option_names
    assert "repetition_penalty" in load(tiny_model).option_names


def test_an_error_of_one_request_is_its_rows(llm: TransformersLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    runner: Any = llm._runner
    take = runner._take

    def failing(output: Any) -> None:
        if len(output.generated_tokens) == 3:
            output.error = "odd"
        take(output)

    monkeypatch.setattr(runner, "_take", failing)
    with pytest.raises(RuntimeError, match="odd"):
        llm.generate_batch([row(options={**GREEDY, "max_new_tokens": 3})])
    assert len(texts(llm.generate_batch([row(options=GREEDY)])[0])) == 1
