from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from answering import SLOTS, Reply, Scripted, completion, error, plain_completion, refusing_first
from fleet import PATIENCE_S, Fleet, until
from gathering import Gathering
from written import written

pytest.importorskip("openai")

from genpool import ProcessLLM
from genpool.protocol.errors import Closed, ConfigurationError, EngineUnwell, RowError
from genpool.tasks.text_generation import TextGenerationTask
from genpool.worker.engines.endpoint import _http_client
from genpool.worker.engines.openai import OpenAILLM, _wire_names
from genpool.worker.llm import RowCall

COLOUR = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}},
    "required": ["colour"],
    "additionalProperties": False,
}
COLOUR_FORMAT = {"type": "json_schema", "json_schema": {"name": "colour", "schema": COLOUR}}


def row(text: str = "Name a colour.", n: int = 1, **more: Any) -> RowCall:
    return RowCall({"input": text}, num_generations=n, **more)


def texts(outputs: list[Any]) -> list[str]:
    return [output["raw_output"] for output in outputs]


# --- a real server ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(real_url: str) -> Iterator[OpenAILLM]:
    llm = OpenAILLM(base_url=real_url, max_new_tokens=8)
    yield llm
    llm.close()


class TestRealServer:
    def test_the_model_is_the_one_that_the_server_has(self, real: OpenAILLM) -> None:
        assert real.model_name == "smollm2"

    def test_a_row_gets_whole_outputs(self, real: OpenAILLM) -> None:
        outputs = real.generate_row(row(n=2))
        assert len(outputs) == 2
        for output in outputs:
            assert output["model_name"] == real.model_name
            assert [message["role"] for message in output["prompt_used"]] == ["system", "user"]
            assert output["parsed_output"] == {"generations": output["raw_output"]}
            assert output.get("finish_reason") in ("stop", "length")
        usage = outputs[0].get("usage", {})
        assert usage["prompt_tokens"] > 20
        assert usage["completion_tokens"] >= 1

    def test_more_generations_than_the_server_takes_are_asked_for_one_by_one(self, real_url: str) -> None:
        llm = OpenAILLM(base_url=real_url, max_new_tokens=3, seed=5, temperature=1.5)
        outputs = llm.generate_row(row(n=SLOTS + 3))
        llm.close()
        assert len(outputs) == SLOTS + 3
        assert len(set(texts(outputs))) > 1

    def test_many_rows_at_once(self, real: OpenAILLM) -> None:
        assert real.concurrency == 64
        with ThreadPoolExecutor(8) as executor:
            rows = list(
                executor.map(real.generate_row, [row(f"Say {k}.", options={"max_new_tokens": 2}) for k in range(8)])
            )
        assert [outputs[0]["prompt_used"][-1]["content"] for outputs in rows] == [f"Say {k}." for k in range(8)]

    def test_a_row_that_is_too_long_is_the_rows_fault(self, real: OpenAILLM) -> None:
        with pytest.raises(RowError, match=r"400 .*exceeds the available context size"):
            real.generate_row(row("word " * 600, n=2))

    def test_a_response_format_shapes_the_answer(self, real: OpenAILLM) -> None:
        options = {"response_format": COLOUR_FORMAT, "max_new_tokens": 60}
        outputs = real.generate_row(row(n=2, options=options))
        assert [list(json.loads(text)) for text in texts(outputs)] == [["colour"]] * 2
        assert {json.loads(text)["colour"] for text in texts(outputs)} <= {"red", "blue"}

    def test_a_response_format_may_be_a_setting(self, real_url: str) -> None:
        llm = OpenAILLM(base_url=real_url, max_new_tokens=60, response_format=COLOUR_FORMAT)
        (text,) = texts(llm.generate_row(row()))
        llm.close()
        assert json.loads(text)["colour"] in ("red", "blue")

    def test_options_that_openai_does_not_know_reach_the_server(self, real_url: str, real: OpenAILLM) -> None:
        # Of one token to draw from, each seed draws the same.
        options = {"top_k": 1, "temperature": 2.0, "max_new_tokens": 4}
        greedy = [row("Tell me a story.", seed=seed, options=options) for seed in (1, 2)]
        first, second = (texts(real.generate_row(one)) for one in greedy)
        assert first == second
        grammar = {"extra_body": {"grammar": 'root ::= "yes"'}}
        assert texts(real.generate_row(row(options=grammar))) == ["yes"]

    def test_plain_completions_go_on_with_the_text(self, real_url: str) -> None:
        llm = OpenAILLM(base_url=real_url, api="completions", max_new_tokens=4)
        outputs = llm.generate_row(RowCall("One, two, three, four,", "prompt", 2, {"temperature": 0.0}))
        llm.close()
        assert texts(outputs) == [" five, six,"] * 2
        assert [output.get("finish_reason") for output in outputs] == ["length"] * 2
        assert outputs[0]["prompt_used"] == "One, two, three, four,"
        assert outputs[0].get("usage", {})["prompt_tokens"] < 12  # no chat template around it

    def test_generate_keeps_the_order_of_its_inputs(self, real: OpenAILLM) -> None:
        result: Any = real.generate([{"input": "hi"}, {}, {"input": "ho"}])
        assert [outputs[0]["prompt_used"] and outputs[0]["prompt_used"][-1]["content"] for outputs in result] == [
            "hi",
            None,
            "ho",
        ]


# --- a scripted server -----------------------------------------------------------------------------------------------


@pytest.fixture
def connect(scripted: Scripted) -> Iterator[Callable[..., OpenAILLM]]:
    made: list[OpenAILLM] = []

    def connect(**settings: Any) -> OpenAILLM:
        chosen: dict[str, Any] = {"base_url": scripted.url, "max_retries": 0, **settings}
        made.append(OpenAILLM(**chosen))
        return made[-1]

    yield connect
    for llm in made:
        llm.close()


Connect = Callable[..., OpenAILLM]


def is_canary(body: dict[str, Any]) -> bool:
    return body["max_tokens"] == 1


class TestRequests:
    def test_settings_and_options_travel_by_their_wire_names(self, scripted: Scripted, connect: Connect) -> None:
        llm = connect(temperature=0.5, top_p=0.9, stop=["x"], extra_body={"top_k": 3})
        llm.generate_row(row("hi", seed=7, options={"max_new_tokens": 5, "temperature": 0.1}))
        (sent,) = scripted.requests
        assert sent.pop("messages")[-1] == {"role": "user", "content": "hi"}
        assert sent == {
            "model": "m",
            "max_tokens": 5,
            "temperature": 0.1,
            "top_p": 0.9,
            "stop": ["x"],
            "seed": 7,
            "top_k": 3,
        }

    def test_what_is_not_set_is_left_to_the_server(self, scripted: Scripted, connect: Connect) -> None:
        connect(max_new_tokens=None).generate_row(row("hi"))
        assert scripted.requests[0].keys() == {"model", "messages"}

    def test_a_calls_extra_fields_go_before_the_settings(self, scripted: Scripted, connect: Connect) -> None:
        llm = connect(top_k=20, extra_body={"repetition_penalty": 1.2, "min_tokens": 2})
        llm.generate_row(row(options={"min_p": 0.1, "extra_body": {"min_tokens": 5}}))
        (sent,) = scripted.requests
        assert sent == sent | {"top_k": 20, "min_p": 0.1, "repetition_penalty": 1.2, "min_tokens": 5}

    @pytest.mark.parametrize("extra", [{"stream": True}, {"n": 2, "top_k": 1}, {"messages": []}, "top_k"], ids=str)
    def test_extra_fields_that_would_change_the_request_are_the_rows_fault(
        self, scripted: Scripted, connect: Connect, extra: Any
    ) -> None:
        with pytest.raises(RowError, match="extra_body must"):
            connect().generate_row(row(options={"extra_body": extra}))
        assert scripted.requests == []

    def test_its_options_are_those_that_its_server_can_know(self, connect: Connect) -> None:
        common = {"max_new_tokens", "temperature", "top_p", "frequency_penalty", "presence_penalty", "stop"}
        assert connect().option_names == {*common, "top_k", "min_p", "response_format", "extra_body"}
        assert connect(api="completions").option_names == {*common, "top_k", "min_p", "extra_body"}
        assert _wire_names("chat", is_official=True).keys() == {*common, "response_format"}
        assert _wire_names("chat", is_official=True)["max_new_tokens"] == "max_completion_tokens"
        assert _wire_names("completions", is_official=True)["max_new_tokens"] == "max_tokens"

    def test_an_empty_prompt_is_the_rows_fault(self, connect: Connect) -> None:
        with pytest.raises(RowError, match="the prompt is empty"):
            connect(api="completions").generate_row(RowCall("", "prompt"))

    def test_a_rendered_prompt_comes_back_unparsed(self, scripted: Scripted, connect: Connect) -> None:
        chat = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ]
        (output,) = connect().generate_row(RowCall(chat, "prompt"))
        assert scripted.requests[0]["messages"] == output["prompt_used"] == chat
        assert output["parsed_output"] == "text"

    def test_n_is_one_request_whose_first_output_has_the_usage(self, scripted: Scripted, connect: Connect) -> None:
        usage = {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12}
        scripted.answer = lambda body: completion("a", "b", "c", usage=usage)
        outputs = connect().generate_row(row(n=3, seed=1))
        assert texts(outputs) == ["a", "b", "c"]
        assert [output.get("usage") for output in outputs] == [{"prompt_tokens": 3, "completion_tokens": 9}, None, None]
        assert [(sent["n"], sent["seed"]) for sent in scripted.requests] == [(3, 1)]

    @pytest.mark.parametrize(
        ("usage", "kept"),
        [
            ({"prompt_tokens": 3, "completion_tokens": 2**64 - 1}, {"prompt_tokens": 3}),
            ({"prompt_tokens": 2**70, "completion_tokens": 4}, {"completion_tokens": 4}),
            ({"prompt_tokens": -3, "completion_tokens": True}, None),
            ({"prompt_tokens": 0, "completion_tokens": 0}, None),
            ({"prompt_tokens": 3, "completion_tokens": 0}, {"prompt_tokens": 3, "completion_tokens": 0}),
        ],
        ids=str,
    )
    def test_counts_that_no_server_can_have_counted_are_dropped(
        self, scripted: Scripted, connect: Connect, usage: dict[str, int], kept: dict[str, int] | None
    ) -> None:
        scripted.answer = lambda body: completion("a", usage=usage)
        # Nor does the next request wait for what they would have cost.
        llm = connect(tpm=60_000_000)
        assert [llm.generate_row(row())[0].get("usage") for _ in range(2)] == [kept] * 2

    def test_a_server_that_ignores_n_is_asked_again_for_the_rest(self, scripted: Scripted, connect: Connect) -> None:
        scripted.answer = lambda body: completion(f"seed {body['seed']}")
        llm = connect()
        assert texts(llm.generate_row(row(n=3, seed=5))) == ["seed 5", "seed 6", "seed 7"]
        assert [sent.get("n") for sent in scripted.requests] == [3, None, None]
        assert texts(llm.generate_row(row(n=2, seed=1))) == ["seed 1", "seed 2"]
        assert [sent.get("n") for sent in scripted.requests[3:]] == [None, None]

    def test_a_server_that_refuses_n_is_asked_one_by_one(self, scripted: Scripted, connect: Connect) -> None:
        scripted.answer = lambda body: error(400, "n must be 1") if "n" in body else completion("a")
        llm = connect()
        assert texts(llm.generate_row(row(n=3))) == ["a"] * 3
        assert texts(llm.generate_row(row(n=2))) == ["a"] * 2
        assert [sent.get("n") for sent in scripted.requests] == [3, None, None, None, None, None]

    def test_choices_beyond_those_asked_for_are_dropped(self, scripted: Scripted, connect: Connect) -> None:
        scripted.answer = lambda body: completion("a", "b", "c")
        assert texts(connect().generate_row(row(n=2))) == ["a", "b"]

    def test_an_answer_without_text_is_an_empty_text(self, scripted: Scripted, connect: Connect) -> None:
        scripted.answer = lambda body: completion(None)
        assert texts(connect().generate_row(row())) == [""]

    @pytest.mark.parametrize(("refusal", "text"), [("I will not.", "I will not."), (None, ""), (["no"], "")], ids=str)
    def test_a_refusal_that_stands_apart_is_the_text(
        self, scripted: Scripted, connect: Connect, refusal: object, text: str
    ) -> None:
        message = {"role": "assistant", "content": None, "refusal": refusal}
        scripted.answer = lambda body: Reply({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
        assert texts(connect().generate_row(row())) == [text]

    def test_no_more_requests_than_concurrency_run_at_once(self, scripted: Scripted, connect: Connect) -> None:
        llm, flag = connect(concurrency=2), threading.Event()
        with ThreadPoolExecutor(3) as executor:
            calls = [executor.submit(llm.generate_row, row("hold", cancelled=flag)) for _ in range(3)]
            assert scripted.held.acquire(timeout=10)
            assert scripted.held.acquire(timeout=10)
            assert not scripted.held.acquire(timeout=0.1)
            flag.set()
            assert all(isinstance(call.exception(10), CancelledError) for call in calls)
        assert len(scripted.requests) == 2

    def test_cancel_closes_the_request(self, scripted: Scripted, connect: Connect) -> None:
        llm, flag = connect(), threading.Event()
        with ThreadPoolExecutor(1) as executor:
            call = executor.submit(llm.generate_row, row("hold", cancelled=flag))
            assert scripted.held.acquire(timeout=10)
            flag.set()
            assert isinstance(call.exception(10), CancelledError)
        assert scripted.left.acquire(timeout=10)
        assert texts(llm.generate_row(row())) == ["text"]

    def test_close_ends_what_runs(self, scripted: Scripted, connect: Connect) -> None:
        llm = connect()
        with ThreadPoolExecutor(1) as executor:
            call = executor.submit(llm.generate_row, row("hold"))
            assert scripted.held.acquire(timeout=10)
            llm.close()
            assert isinstance(call.exception(10), CancelledError)
        assert scripted.left.acquire(timeout=10)
        llm.close()
        with pytest.raises(Closed):
            llm.generate_row(row())


class TestPlainCompletions:
    @pytest.fixture(autouse=True)
    def _answer(self, scripted: Scripted) -> None:
        scripted.answer = lambda body: plain_completion(*["text"] * body.get("n", 1))

    @pytest.mark.parametrize(
        ("settings", "expected"),
        [
            ({}, "Be brief.\nhi"),
            ({"prompt_format": "zephyr"}, "<|system|>\nBe brief.</s>\n<|user|>\nhi</s>\n<|assistant|>\n"),
            ({"prompt_formatting_fn": lambda prompt: f"Q: {prompt.formatted_prompt}\nA:"}, "Q: hi\nA:"),
        ],
        ids=["plain", "format", "function"],
    )
    def test_the_prompt_goes_as_a_text(
        self, scripted: Scripted, connect: Connect, settings: dict[str, Any], expected: str
    ) -> None:
        llm = connect(api="completions", task=TextGenerationTask("Be brief."), max_new_tokens=3, **settings)
        outputs = llm.generate_row(row("hi", n=2, seed=4))
        assert scripted.requests == [{"model": "m", "prompt": expected, "max_tokens": 3, "n": 2, "seed": 4}]
        assert scripted.paths == ["/v1/completions"]
        assert [output["prompt_used"] for output in outputs] == [expected] * 2
        assert outputs[0]["parsed_output"] == {"generations": "text"}
        assert outputs[0].get("finish_reason") == "length"

    def test_rendered_messages_become_their_lines(self, scripted: Scripted, connect: Connect) -> None:
        chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        connect(api="completions").generate_row(RowCall(chat, "prompt"))
        assert scripted.requests[0]["prompt"] == "a\nb"

    def test_the_canary_is_a_plain_one(self, scripted: Scripted, connect: Connect) -> None:
        scripted.answer = lambda body: plain_completion("fine") if is_canary(body) else error(500, "boom")
        with pytest.raises(RuntimeError, match="500 boom"):
            connect(api="completions").generate_row(row())
        assert scripted.paths == ["/v1/completions"] * 2

    def test_an_answer_without_text_is_the_servers_fault(self, scripted: Scripted, connect: Connect) -> None:
        scripted.answer = lambda body: Reply({"choices": [{"index": 0}]})
        with pytest.raises(EngineUnwell, match="no completion"):
            connect(api="completions").generate_row(row())


class TestLimits:
    def test_a_request_waits_for_its_turn_and_can_be_cancelled(self, scripted: Scripted, connect: Connect) -> None:
        llm, flag = connect(rpm=1), threading.Event()
        assert llm.concurrency == 1  # what would only wait here is left to others
        assert texts(llm.generate_row(row())) == ["text"]
        with ThreadPoolExecutor(1) as executor:
            call = executor.submit(llm.generate_row, row(cancelled=flag))
            with pytest.raises(TimeoutError):
                call.result(0.2)
            flag.set()
            assert isinstance(call.exception(10), CancelledError)
        assert len(scripted.requests) == 1

    def test_tokens_that_were_not_used_are_given_back(self, scripted: Scripted, connect: Connect) -> None:
        usage = {"prompt_tokens": 0, "completion_tokens": 1, "total_tokens": 1}
        replies = [error(503, "busy"), completion("a", usage=usage), completion("b", usage=usage)]
        scripted.answer = lambda body: replies.pop(0)
        # A hundred minutes' worth for each request, as far as is known before.
        llm = connect(tpm=100, max_new_tokens=10_000, max_retries=1)
        assert [texts(llm.generate_row(row())) for _ in range(2)] == [["a"], ["b"]]

    def test_tokens_that_were_used_are_waited_for(self, scripted: Scripted, connect: Connect) -> None:
        usage = {"prompt_tokens": 5_000, "completion_tokens": 5_000, "total_tokens": 10_000}
        scripted.answer = lambda body: completion("a", usage=usage)
        llm, flag = connect(tpm=100, max_new_tokens=None), threading.Event()
        llm.generate_row(row("hi"))
        with ThreadPoolExecutor(1) as executor:
            call = executor.submit(llm.generate_row, row(cancelled=flag))
            with pytest.raises(TimeoutError):
                call.result(0.2)
            flag.set()
        assert len(scripted.requests) == 1


class TestFaults:
    @pytest.mark.parametrize("status", [400, 413, 422])
    def test_a_refused_row_is_the_rows_fault(self, scripted: Scripted, connect: Connect, status: int) -> None:
        scripted.answer = lambda body: error(status, "this prompt will not do")
        with pytest.raises(RowError, match=f"{status} this prompt will not do"):
            connect().generate_row(row())

    def test_a_row_with_more_tokens_than_a_minute_may_have_is_at_fault(
        self, scripted: Scripted, connect: Connect
    ) -> None:
        said = "Request too large for m on tokens per min (TPM): Limit 30000, Requested 30601."
        scripted.answer = lambda body: error(429, said, code="rate_limit_exceeded")
        with pytest.raises(RowError, match="429 Request too large for m"):
            connect(max_retries=9).generate_row(row())
        assert len(scripted.requests) == 1

    @pytest.mark.parametrize("status", [401, 402, 403, 404, 405, 409, 429, 502, 503, 504])
    def test_a_server_at_fault_is_unwell(self, scripted: Scripted, connect: Connect, status: int) -> None:
        scripted.answer = lambda body: error(status, "not today")
        with pytest.raises(EngineUnwell, match=f"{scripted.url}: {status} not today"):
            connect().generate_row(row())

    def test_an_exhausted_quota_is_unwell(self, scripted: Scripted, connect: Connect) -> None:
        scripted.answer = lambda body: error(429, "You exceeded your current quota", code="insufficient_quota")
        with pytest.raises(EngineUnwell, match="429 You exceeded your current quota"):
            connect(max_retries=9).generate_row(row())
        assert len(scripted.requests) == 1

    def test_a_server_that_wants_no_request_for_an_hour_is_unwell_at_once(
        self, scripted: Scripted, connect: Connect
    ) -> None:
        scripted.answer = lambda body: replace(error(429, "daily limit"), headers={"Retry-After": "3600"})
        with pytest.raises(EngineUnwell, match="429 daily limit"):
            connect(max_retries=9).generate_row(row())
        assert len(scripted.requests) == 1

    def test_no_pause_goes_beyond_the_time_that_a_request_has(self, scripted: Scripted, connect: Connect) -> None:
        scripted.answer = lambda body: replace(error(503, "busy"), headers={"Retry-After": "50"})
        with pytest.raises(EngineUnwell, match="503 busy"):
            connect(max_retries=9, timeout_s=40.0).generate_row(row())
        assert len(scripted.requests) == 1

    def test_a_model_that_went_away_is_the_servers_fault_until_it_is_back(
        self, scripted: Scripted, connect: Connect
    ) -> None:
        llm = connect()
        scripted.answer = lambda body: error(404, "The model `m` does not exist.")
        with pytest.raises(EngineUnwell, match="404 The model `m` does not exist"):
            llm.generate_row(row())
        scripted.answer = lambda body: completion("back")
        assert texts(llm.generate_row(row())) == ["back"]

    def test_an_overload_is_tried_again(self, scripted: Scripted, connect: Connect) -> None:
        replies = [error(503, "busy"), error(429, "slow down"), completion("at last")]
        scripted.answer = lambda body: replies.pop(0)
        assert texts(connect(max_retries=2).generate_row(row())) == ["at last"]

    def test_an_error_inside_is_the_rows_while_others_are_answered(self, scripted: Scripted, connect: Connect) -> None:
        scripted.answer = lambda body: completion("fine") if is_canary(body) else error(500, "assertion failed")
        with pytest.raises(RuntimeError, match="500 assertion failed") as raised:
            connect().generate_row(row())
        assert type(raised.value) is RuntimeError

    @pytest.mark.parametrize("status", [403, 405, 408, 409, 501, 502, 503, 504, 529])
    def test_what_one_row_is_refused_while_others_are_answered_is_the_rows_once_its_tries_are_spent(
        self, scripted: Scripted, connect: Connect, status: int
    ) -> None:
        scripted.answer = lambda body: completion("fine") if is_canary(body) else error(status, "flagged")
        with pytest.raises(RuntimeError, match=f"{scripted.url}: {status} flagged") as raised:
            connect(max_retries=1).generate_row(row())
        assert type(raised.value) is RuntimeError
        tries = 1 if status in (403, 405) else 2
        assert [is_canary(sent) for sent in scripted.requests] == [False] * tries + [True, False]

    def test_a_row_is_not_at_fault_where_the_server_was_mended_before_the_canary(
        self, scripted: Scripted, connect: Connect
    ) -> None:
        replies = [error(403, "closed"), completion("fine"), completion("mended")]
        scripted.answer = lambda body: replies.pop(0)
        assert texts(connect().generate_row(row())) == ["mended"]

    def test_a_connection_that_is_cut_for_one_row_is_the_rows(self, scripted: Scripted, connect: Connect) -> None:
        scripted.answer = lambda body: completion("fine") if is_canary(body) else None
        with pytest.raises(RuntimeError, match="Connection error"):
            connect(max_retries=1).generate_row(row())
        assert [is_canary(sent) for sent in scripted.requests] == [False, False, True, False]

    @pytest.mark.parametrize(
        "reply",
        [
            error(401, "wrong key"),
            error(402, "pay for so many tokens"),
            error(429, "too many tokens"),
            error(403, "no more today", code="insufficient_quota"),
            error(403, "no more today", type="insufficient_quota"),
            replace(error(503, "restarting"), headers={"Retry-After": "3600"}),
        ],
        ids=str,
    )
    def test_what_tells_of_key_quota_or_load_is_the_servers_whatever_becomes_of_one_token(
        self, scripted: Scripted, connect: Connect, reply: Reply
    ) -> None:
        scripted.answer = lambda body: completion("fine") if is_canary(body) else reply
        with pytest.raises(EngineUnwell, match=f"{reply.status} "):
            connect().generate_row(row())
        assert len(scripted.requests) == 1

    def test_an_error_inside_for_every_row_is_the_servers(self, scripted: Scripted, connect: Connect) -> None:
        scripted.answer = lambda body: error(500, "out of memory")
        with pytest.raises(EngineUnwell, match="500 out of memory"):
            connect().generate_row(row())

    def test_a_server_that_only_dislikes_the_canary_is_well(self, scripted: Scripted, connect: Connect) -> None:
        scripted.answer = lambda body: error(400, "max_tokens") if is_canary(body) else error(500, "boom")
        with pytest.raises(RuntimeError, match="500 boom"):
            connect().generate_row(row())

    def test_a_row_that_takes_too_long_is_charged_while_others_are_answered(
        self, scripted: Scripted, connect: Connect
    ) -> None:
        with pytest.raises(TimeoutError, match=r"no answer within 0\.2 s"):
            connect(timeout_s=0.2, max_retries=3).generate_row(row("hold"))
        assert [is_canary(sent) for sent in scripted.requests] == [False, True]

    @pytest.mark.parametrize(
        "reply",
        [
            Reply("<html>Welcome to nginx</html>", type="text/html"),
            Reply("{broken", 200),
            Reply("[]"),
            Reply({"choices": []}),
            Reply({"choices": [{}]}),
            Reply({"choices": [{"message": None}]}),
            Reply({"choices": [{"message": "text"}]}),
            Reply({"choices": ["text"]}),
            Reply({"choices": "many"}),
            Reply({"error": {"message": "no such thing"}}),
        ],
        ids=lambda reply: str(reply.body)[:30],
    )
    def test_something_else_than_a_completion_is_the_servers_fault(
        self, scripted: Scripted, connect: Connect, reply: Reply
    ) -> None:
        scripted.answer = lambda body: reply
        with pytest.raises(EngineUnwell, match=scripted.url):
            connect().generate_row(row())

    @pytest.mark.parametrize(
        "reply", [Reply("{broken"), Reply({"error": {"message": "filtered", "code": 403}})], ids=str
    )
    def test_something_else_than_a_completion_for_one_row_is_the_rows(
        self, scripted: Scripted, connect: Connect, reply: Reply
    ) -> None:
        scripted.answer = lambda body: completion("fine") if is_canary(body) else reply
        with pytest.raises(RuntimeError, match=scripted.url) as raised:
            connect().generate_row(row())
        assert type(raised.value) is RuntimeError

    @pytest.mark.parametrize(
        ("reply", "sentence"),
        [
            (Reply({"choices": [{"message": {"content": [{"text": "a dream"}]}}]}), "choices without a text"),
            (Reply('data: {"choices": [{"delta": {"content": "a dream"}}]}', type="text/event-stream"), "a text"),
            (Reply([{"generated_text": "a dream"}]), "JSON without choices"),
            (Reply({"error": {"message": "filtered", "code": 403}}), "filtered"),
            (Reply("<html>Welcome to nginx</html>", type="text/html"), "<html>Welcome to nginx"),
            (Reply(""), "a text that is no JSON"),
            (Reply('{"choices": [{"message": {"content": "a dream'), "a text that is no JSON"),
            (Reply("[" * 50_000), "JSON that is nested too deeply"),
        ],
        ids=["a list of parts", "a stream", "a list", "an error", "a page", "nothing", "a part", "brackets"],
    )
    def test_what_may_be_a_completion_in_another_form_is_not_repeated(
        self, scripted: Scripted, connect: Connect, reply: Reply, sentence: str
    ) -> None:
        scripted.answer = lambda body: reply
        with pytest.raises(EngineUnwell, match=f"answered with something that is no completion: {sentence}") as raised:
            connect().generate_row(row())
        assert "dream" not in str(raised.value)

    @pytest.mark.parametrize(
        ("reply", "sentence"),
        [
            (Reply({"message": "old vllm", "object": "error"}, 404), "404 old vllm"),
            (Reply({"detail": "Not Found"}, 404), "404 Not Found"),
            (Reply("<html>\n  <b>Bad</b>\n</html>", 502, "text/html"), "502 <html> <b>Bad</b> </html>"),
            (Reply("", 503), "503 Service Unavailable"),
            pytest.param(Reply("[" * 50_000, 503), r"503 \[\[\[", id="brackets"),
        ],
    )
    def test_the_sentence_is_the_servers(
        self, scripted: Scripted, connect: Connect, reply: Reply, sentence: str
    ) -> None:
        scripted.answer = lambda body: reply
        with pytest.raises(EngineUnwell, match=sentence):
            connect().generate_row(row())

    def test_one_failing_generation_ends_the_others(self, scripted: Scripted, connect: Connect) -> None:
        scripted.answer = lambda body: completion("a") if body["seed"] == 5 else error(422, "no")
        with pytest.raises(RowError, match="422 no"):
            connect().generate_row(row(n=4, seed=5))


class TestConnecting:
    def test_a_dead_server_is_unwell_at_once(self) -> None:
        before = set(threading.enumerate())
        with socket.socket() as reserved:
            reserved.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{reserved.getsockname()[1]}/v1"
            for model in (None, "m"):
                with pytest.raises(EngineUnwell, match=rf"{url} cannot be reached: Connection error \(.+\)"):
                    OpenAILLM(model, base_url=url, max_retries=0)
        until(lambda: set(threading.enumerate()) <= before, "the end of its threads")

    def test_the_first_of_several_models_is_taken(
        self, scripted: Scripted, connect: Connect, caplog: pytest.LogCaptureFixture
    ) -> None:
        scripted.models = Reply({"data": [{"id": "b"}, {"id": "a"}]})
        assert connect().model_name == "b"
        assert "has the models b, a: b is taken" in caplog.text

    def test_a_server_need_not_list_its_models_when_one_is_named(self, scripted: Scripted, connect: Connect) -> None:
        scripted.models = error(404, "no such page")
        assert connect(model="mine").model_name == "mine"
        with pytest.raises(EngineUnwell, match="does not list its models: 404 no such page"):
            connect()

    def test_an_address_without_the_version_gets_a_hint(self, scripted: Scripted, connect: Connect) -> None:
        scripted.models = error(404, "no such page")
        with pytest.raises(EngineUnwell, match=r"base_url mostly ends in /v1"):
            connect(base_url=scripted.url.removesuffix("/v1"))

    def test_an_address_without_a_scheme_is_refused(self) -> None:
        with pytest.raises(ConfigurationError, match="must begin with http"):
            OpenAILLM("m", base_url="gpu1:8000/v1")

    @pytest.mark.parametrize(
        "address", ["", "[::1", "gpu1:eight/v1", "gpu1:80000/v1", "gpu1:-1/v1", "gpu 1/v1", "gpu1/v1\n"]
    )
    def test_an_address_where_no_server_can_be_is_refused(self, address: str) -> None:
        with pytest.raises(ConfigurationError, match=r"base_url must be http://HOST:PORT/v1, .*, got '"):
            OpenAILLM("m", base_url=f"http://{address}")

    def test_an_address_with_a_query_is_refused(self) -> None:
        with pytest.raises(ConfigurationError, match=r"^base_url must have no '\?': .* to its end$"):
            OpenAILLM("m", base_url="http://gpu1:8000/v1?api-version=2024-10-21")

    @pytest.mark.parametrize(
        ("variable", "value"),
        [("ALL_PROXY", "socks5://127.0.0.1:9"), ("HTTP_PROXY", "ftp://127.0.0.1"), ("SSL_CERT_FILE", "/none/such")],
    )
    def test_a_proxy_or_certificates_of_the_environment_that_cannot_be_used_are_refused(
        self, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
    ) -> None:
        monkeypatch.setitem(sys.modules, "socksio", None)  # without which there is no SOCKS proxy
        monkeypatch.setenv(variable, value)
        with pytest.raises(ConfigurationError, match="a proxy or a file of certificates that the environment names"):
            OpenAILLM("m", base_url="http://127.0.0.1:9/v1")

    @pytest.mark.parametrize(
        "proxy", ["http://me:word@127.0.0.1:99999", "me:word@127.0.0.1:99999", "http://me:word@h:x"]
    )
    def test_a_proxy_that_is_no_address_is_refused_and_not_repeated(
        self, monkeypatch: pytest.MonkeyPatch, proxy: str
    ) -> None:
        monkeypatch.setenv("HTTP_PROXY", proxy)
        with pytest.raises(ConfigurationError, match="a proxy that the environment names is no address") as raised:
            OpenAILLM("m", base_url="http://127.0.0.1:9/v1")
        assert "word" not in str(raised.value)

    def test_a_password_in_an_address_that_is_refused_is_not_repeated(self) -> None:
        with pytest.raises(ConfigurationError, match="base_url must be http://HOST:PORT/v1") as raised:
            OpenAILLM("m", base_url="http://me:pass[word@gpu1/v1")
        assert "pass" not in str(raised.value)

    def test_a_refused_key_is_told_at_once(self, scripted: Scripted, connect: Connect) -> None:
        scripted.models = error(401, "wrong key")
        with pytest.raises(EngineUnwell, match="401 wrong key"):
            connect(model="mine")

    @pytest.mark.parametrize(
        ("models", "sentence"),
        [
            (Reply({"data": []}), "lists no model"),
            (Reply({"hello": 1}), "no OpenAI server"),
            (Reply({"data": [{"id": 1}, {"id": 2}]}), "no OpenAI server"),
            (Reply({"data": [{"name": "m"}]}), "no OpenAI server"),
            (Reply([{"id": "m"}]), "no OpenAI server"),
            (Reply("<html></html>", type="text/html"), "no OpenAI server"),
            (Reply("{"), "no OpenAI server"),
            pytest.param(Reply("[" * 50_000), "no OpenAI server", id="brackets"),
        ],
        ids=str,
    )
    def test_a_server_without_models_is_unwell_unless_one_is_named(
        self, scripted: Scripted, connect: Connect, models: Reply, sentence: str
    ) -> None:
        scripted.models = models
        with pytest.raises(EngineUnwell, match=sentence):
            connect()
        assert connect(model="mine").model_name == "mine"

    def test_the_address_may_come_from_the_environment(
        self, scripted: Scripted, connect: Connect, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OPENAI_BASE_URL", scripted.url)
        assert connect(base_url=None).model_name == "m"

    def test_a_login_in_the_address_is_not_told(self, scripted: Scripted, connect: Connect) -> None:
        scripted.answer = lambda body: error(503, "busy")
        llm = connect(base_url=scripted.url.replace("http://", "http://me:secret@"))
        with pytest.raises(EngineUnwell) as raised:
            llm.generate_row(row())
        assert "secret" not in str(raised.value)


class TestKeys:
    @pytest.fixture(autouse=True)
    def _no_keys(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
            monkeypatch.delenv(name, raising=False)

    def test_the_key_comes_from_the_variable_named(
        self, scripted: Scripted, connect: Connect, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MY_KEY", "k1")
        llm = connect(api_key_env="MY_KEY")
        assert scripted.keys == ["Bearer k1"]
        assert "k1" not in repr(llm)

    def test_a_file_goes_before_the_variable(
        self, scripted: Scripted, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", "k1")
        written(tmp_path / "key", "k2\n")
        connect(api_key_file=tmp_path / "key")
        assert scripted.keys == ["Bearer k2"]

    def test_an_exchanged_key_is_for_all_requests_that_are_in_flight(
        self, scripted: Scripted, connect: Connect, tmp_path: Path
    ) -> None:
        file = written(tmp_path / "key", "old\n")
        llm = connect(api_key_file=file)
        file.write_text("new\n")
        scripted.answer = refusing_first(4)
        with ThreadPoolExecutor(4) as executor:
            assert [texts(outputs) for outputs in executor.map(llm.generate_row, [row()] * 4)] == [["in"]] * 4
        assert scripted.keys[-8:] == ["Bearer old"] * 4 + ["Bearer new"] * 4

    def test_a_server_of_ones_own_needs_no_key(self, scripted: Scripted, connect: Connect) -> None:
        assert texts(connect().generate_row(row())) == ["text"]

    def test_openai_itself_needs_a_key_and_a_model(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ConfigurationError, match="OPENAI_API_KEY"):
            OpenAILLM("m")
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        with pytest.raises(ConfigurationError, match="name one"):
            OpenAILLM()

    @pytest.mark.parametrize("content", [None, "", "\n"])
    def test_a_key_file_without_a_key_is_named(self, tmp_path: Path, content: str | None) -> None:
        if content is not None:
            written(tmp_path / "key", content)
        with pytest.raises(ConfigurationError, match=r"api_key_file .*key"):
            OpenAILLM("m", base_url="http://127.0.0.1:9/v1", api_key_file=str(tmp_path / "key"))


@pytest.mark.parametrize(
    "settings",
    [
        {"prompt_format": "chatml"},
        {"prompt_format": "openai", "api": "completions"},
        {"response_format": COLOUR_FORMAT, "api": "completions"},
        {"extra_body": {"stream": True}},
        {"timeout_s": 0.0},
        {"concurrency": 0},
        {"max_new_tokens": 0},
        {"max_retries": -1},
        {"rpm": 0.0},
        {"tpm": -1.0},
    ],
    ids=str,
)
def test_arguments_that_cannot_be_used_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        OpenAILLM("m", base_url="http://127.0.0.1:9/v1", **settings)


def test_settings_that_openai_itself_does_not_know_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with pytest.raises(ConfigurationError, match="OpenAI itself takes no top_k, min_p"):
        OpenAILLM("m", top_k=3, min_p=0.1)


def test_the_client_library_keeps_a_connection_for_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr("openai.DefaultAsyncHttpxClient", lambda **given: made.append(given))
    _http_client(1500)
    limits = made[0]["limits"]
    assert (limits.max_connections, limits.max_keepalive_connections) == (None, 1500)


# --- hundreds of requests --------------------------------------------------------------------------------------------


def test_hundreds_of_requests_are_in_flight_from_one_worker(tmp_path: Path) -> None:
    with Gathering(256) as server, Fleet(tmp_path) as fleet:
        fleet.start_broker()
        fleet.start_worker("crowd", "--engine", "openai", "--set", f"base_url={server.url}", "--concurrency", "256")
        llm = ProcessLLM.connect("crowd", broker=fleet.address)
        try:
            rows = llm.generate([{"input": str(number)} for number in range(512)]).result(PATIENCE_S)
        finally:
            llm.teardown()
        assert [outputs[0]["raw_output"] for outputs in rows] == [str(number) for number in range(512)]
        assert server.most == 256
