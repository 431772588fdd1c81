# ruff: noqa: E402 - without litellm, what follows cannot be imported
from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from answering import SLOTS, Reply, Scripted, completion, error, refusing_first
from extras import require
from fleet import Fleet, until
from written import written

require("litellm")

from genpool import ProcessLLM
from genpool.protocol.errors import Closed, ConfigurationError, EngineUnwell, RowError
from genpool.worker.engines.litellm import LiteLLM
from genpool.worker.llm import RowCall
from genpool.worker.loader import load_engine

# litellm itself ignores this warning about its own types; pytest forgets that before each test.
pytestmark = pytest.mark.filterwarnings("ignore:.*using the `ReadOnly` qualifier:UserWarning")

USAGE = {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500}


def row(text: str = "Name a colour.", n: int = 1, **more: Any) -> RowCall:
    return RowCall({"input": text}, num_generations=n, **more)


def texts(outputs: list[Any]) -> list[str]:
    return [output["raw_output"] for output in outputs]


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.endswith("_API_KEY")]:
        monkeypatch.delenv(name)


Connect = Callable[..., LiteLLM]


@pytest.fixture
def connect(scripted: Scripted) -> Iterator[Connect]:
    made: list[LiteLLM] = []

    def connect(model: str = "openai/m", **settings: Any) -> LiteLLM:
        chosen: dict[str, Any] = {"api_base": scripted.url, "max_retries": 0, **settings}
        made.append(LiteLLM(model, **chosen))
        return made[-1]

    yield connect
    for llm in made:
        llm.close()


def is_canary(body: dict[str, Any]) -> bool:
    return body.get("max_tokens") == 1


# --- litellm's own answers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "key"),
    [
        ("anthropic/claude-sonnet-4-5", "ANTHROPIC_API_KEY"),
        ("gemini/gemini-2.5-flash", "GEMINI_API_KEY"),
        ("mistral/mistral-small-latest", "MISTRAL_API_KEY"),
        ("bedrock/us.amazon.nova-lite-v1:0", None),
    ],
)
def test_a_provider_answers_and_tells_what_it_costs(
    monkeypatch: pytest.MonkeyPatch, model: str, key: str | None
) -> None:
    if key is not None:
        monkeypatch.setenv(key, "k")
    llm = LiteLLM(model, extra_options={"mock_response": "Red."})
    outputs = llm.generate_row(row(n=3, seed=5))
    llm.close()
    assert texts(outputs) == ["Red."] * 3
    for output in outputs[:1]:
        assert output["model_name"] == model
        assert [message["role"] for message in output["prompt_used"]] == ["system", "user"]
        assert output["parsed_output"] == {"generations": "Red."}
        assert output.get("finish_reason") == "stop"
        usage = output.get("usage", {})
        assert usage["prompt_tokens"] > 0
        assert usage["completion_tokens"] > 0
        assert 0 < usage["cost"] < 0.01


@pytest.fixture(scope="module")
def real(real_url: str) -> Iterator[LiteLLM]:
    llm = LiteLLM("openai/smollm2", api_base=real_url, max_new_tokens=8)
    yield llm
    llm.close()


class TestRealServer:
    def test_a_row_gets_whole_outputs(self, real: LiteLLM) -> None:
        outputs = real.generate_row(row(n=SLOTS + 1))
        assert len(outputs) == SLOTS + 1
        for output in outputs:
            assert output["raw_output"]
            assert output.get("finish_reason") in ("stop", "length")
        usage = outputs[0].get("usage", {})
        assert usage["prompt_tokens"] > 20
        assert usage["completion_tokens"] >= 1
        assert "cost" not in usage, "nobody knows what one's own server costs"

    def test_many_rows_at_once(self, real: LiteLLM) -> None:
        assert real.concurrency == 64
        with ThreadPoolExecutor(8) as executor:
            rows = list(
                executor.map(real.generate_row, [row(f"Say {k}.", options={"max_new_tokens": 2}) for k in range(8)])
            )
        assert [outputs[0]["prompt_used"][-1]["content"] for outputs in rows] == [f"Say {k}." for k in range(8)]

    def test_a_row_that_is_too_long_is_the_rows_fault(self, real: LiteLLM) -> None:
        with pytest.raises(RowError, match=r"400 .*exceeds the available context size"):
            real.generate_row(row("word " * 600))

    def test_the_answer_follows_a_schema(self, real: LiteLLM) -> None:
        schema = {"type": "object", "properties": {"a": {"enum": ["red", "blue"]}}, "required": ["a"]}
        response_format = {"type": "json_schema", "json_schema": {"name": "colour", "schema": schema}}
        (output,) = real.generate_row(
            row(options={"response_format": response_format, "max_new_tokens": 30, "temperature": 0.0})
        )
        assert json.loads(output["raw_output"])["a"] in ("red", "blue")


@pytest.mark.timeout(120)
def test_a_worker_serves_it(tmp_path: Path, scripted: Scripted) -> None:
    scripted.answer = lambda body: completion(body["messages"][-1]["content"].upper(), model="gpt-4o-mini", usage=USAGE)
    arguments = [f"api_base={scripted.url}", "concurrency=4", "temperature=0.5"]
    with Fleet(tmp_path) as fleet:
        fleet.start_broker()
        settings = [part for pair in arguments for part in ("--set", pair)]
        worker = fleet.start_worker(
            "mine",
            "--engine",
            "litellm",
            "--model",
            "openai/gpt-4o-mini",
            *settings,
            environment={"OPENAI_API_KEY": "from the environment"},
        )
        llm = ProcessLLM.connect("mine", broker=fleet.address)
        outputs = llm.generate([{"input": f"colour {k}"} for k in range(5)], 2).result(60)
        llm.teardown()
        worker.terminate()
        assert worker.wait(20) == 0
        log = (tmp_path / "1-worker.log").read_text()
    assert [texts(row) for row in outputs] == [[f"COLOUR {k}"] * 2 for k in range(5)]
    assert outputs[0][0].get("usage") == {"prompt_tokens": 1000, "completion_tokens": 500, "cost": pytest.approx(45e-5)}
    assert set(scripted.keys) == {"Bearer from the environment"}
    assert "litellm" not in log.lower().replace("--engine litellm", ""), log


class TestRequests:
    def test_settings_and_options_travel_by_their_wire_names(self, scripted: Scripted, connect: Connect) -> None:
        llm = connect(temperature=0.5, top_p=0.9, stop=["x"], extra_options={"extra_body": {"top_k": 3}})
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

    def test_what_is_not_set_is_left_to_the_provider(self, scripted: Scripted, connect: Connect) -> None:
        connect(max_new_tokens=None).generate_row(row("hi"))
        assert scripted.requests[0].keys() == {"model", "messages"}

    def test_n_is_one_request_whose_first_output_has_usage_and_cost(self, scripted: Scripted, connect: Connect) -> None:
        scripted.answer = lambda body: completion("a", "b", "c", model="gpt-4o-mini", usage=USAGE)
        outputs = connect("openai/gpt-4o-mini").generate_row(row(n=3, seed=1))
        assert texts(outputs) == ["a", "b", "c"]
        # 0.15 and 0.60 dollars for a million tokens.
        whole = {"prompt_tokens": 1000, "completion_tokens": 500, "cost": pytest.approx(0.00045)}
        assert [output.get("usage") for output in outputs] == [whole, None, None]
        assert [(sent["n"], sent["seed"]) for sent in scripted.requests] == [(3, 1)]

    def test_a_provider_without_n_is_asked_one_by_one(self, scripted: Scripted, connect: Connect) -> None:
        llm = connect("mistral/m")
        scripted.answer = lambda body: completion("a")
        assert texts(llm.generate_row(row(n=3, seed=5))) == ["a"] * 3
        assert ["n" in sent for sent in scripted.requests] == [False] * 3

    def test_a_provider_that_refuses_or_ignores_n_is_asked_one_by_one(
        self, scripted: Scripted, connect: Connect
    ) -> None:
        scripted.answer = lambda body: error(400, "n must be 1") if "n" in body else completion("a")
        assert texts(connect().generate_row(row(n=3))) == ["a"] * 3
        scripted.answer = lambda body: completion("b")
        assert texts(connect().generate_row(row(n=3))) == ["b"] * 3

    def test_anthropic_gets_neither_n_nor_seed(self, scripted: Scripted, connect: Connect) -> None:
        said = {"type": "message", "role": "assistant", "model": "claude-sonnet-4-5", "id": "x"}
        content = [{"type": "text", "text": "hey"}]
        usage = {"input_tokens": 1000, "output_tokens": 500}
        scripted.answer = lambda body: Reply({**said, "content": content, "stop_reason": "end_turn", "usage": usage})
        llm = connect("anthropic/claude-sonnet-4-5", api_base=scripted.url.removesuffix("/v1"))
        outputs = llm.generate_row(row("hi", n=2, seed=5, options={"max_new_tokens": 7}))
        assert texts(outputs) == ["hey"] * 2
        assert outputs[1].get("usage") == {
            "prompt_tokens": 1000,
            "completion_tokens": 500,
            "cost": pytest.approx(0.0105),
        }
        assert [sent["max_tokens"] for sent in scripted.requests] == [7, 7]
        assert all("seed" not in sent and "n" not in sent for sent in scripted.requests)
        assert all(sent["system"] for sent in scripted.requests), "the messages are the row's, not what litellm left"

    def test_the_options_are_those_that_the_provider_takes(self, connect: Connect) -> None:
        assert connect("openai/m").option_names >= {"frequency_penalty", "response_format", "temperature"}
        assert connect("anthropic/claude-sonnet-4-5").option_names == {
            "max_new_tokens",
            "temperature",
            "top_p",
            "stop",
            "response_format",
        }

    def test_cancel_closes_the_request(self, scripted: Scripted, connect: Connect) -> None:
        llm, flag = connect(), threading.Event()
        with ThreadPoolExecutor(1) as executor:
            call = executor.submit(llm.generate_row, row("hold", cancelled=flag))
            assert scripted.held.acquire(timeout=20)
            flag.set()
            assert isinstance(call.exception(10), CancelledError)
        assert scripted.left.acquire(timeout=10)
        assert texts(llm.generate_row(row())) == ["text"]

    def test_close_ends_what_runs_and_its_connections(self, scripted: Scripted, connect: Connect) -> None:
        llm = connect()
        assert texts(llm.generate_row(row())) == ["text"]
        other = connect()
        with ThreadPoolExecutor(1) as executor:
            call = executor.submit(llm.generate_row, row("hold"))
            assert scripted.held.acquire(timeout=10)
            llm.close()
            assert isinstance(call.exception(10), CancelledError)
        assert scripted.left.acquire(timeout=10)
        llm.close()
        with pytest.raises(Closed):
            llm.generate_row(row())
        assert texts(other.generate_row(row())) == ["text"], "another one's connections are its own"
        other.close()
        until(lambda: not any("process_request_thread" in one.name for one in threading.enumerate()), "the end of all")

    def test_tokens_that_the_provider_does_not_count_are_not_zero(self, connect: Connect) -> None:
        # The minute's tokens that they were estimated at would all be given back.
        assert "usage" not in connect().generate_row(row())[0]


class TestFaults:
    @pytest.mark.parametrize("provider", ["openai", "mistral"])
    @pytest.mark.parametrize("status", [400, 413, 422])
    def test_a_refused_row_is_the_rows_fault(
        self, scripted: Scripted, connect: Connect, provider: str, status: int
    ) -> None:
        scripted.answer = lambda body: completion("a") if is_canary(body) else error(status, "this will not do")
        with pytest.raises(RowError, match=rf"{provider}/m: {status} this will not do$"):
            connect(f"{provider}/m").generate_row(row())

    @pytest.mark.parametrize("provider", ["openai", "mistral"])
    @pytest.mark.parametrize("status", [401, 402, 403, 404, 409, 429, 502, 503, 529])
    def test_a_provider_at_fault_is_unwell(
        self, scripted: Scripted, connect: Connect, provider: str, status: int
    ) -> None:
        scripted.answer = lambda body: error(status, "not today")
        with pytest.raises(EngineUnwell, match=rf"{provider}/m: {status} not today$"):
            connect(f"{provider}/m").generate_row(row())

    def test_what_is_refused_to_everybody_is_no_rows_fault(self, scripted: Scripted, connect: Connect) -> None:
        """As Anthropic tells of a spent quota, and Bedrock of an unknown model."""
        scripted.answer = lambda body: error(400, "Your credit balance is too low")
        with pytest.raises(EngineUnwell, match="400 Your credit balance is too low"):
            connect().generate_row(row())

    def test_a_provider_that_only_dislikes_the_canary_is_well(self, scripted: Scripted, connect: Connect) -> None:
        scripted.answer = lambda body: error(400, "max_tokens is too low" if is_canary(body) else "a bad image")
        with pytest.raises(RowError, match="400 a bad image"):
            connect().generate_row(row())

    def test_a_context_that_is_too_long_needs_no_canary(self, scripted: Scripted, connect: Connect) -> None:
        scripted.answer = lambda body: error(400, "This model's maximum context length is 4 tokens.")
        with pytest.raises(RowError, match="maximum context length"):
            connect().generate_row(row())
        assert not any(map(is_canary, scripted.requests))

    def test_an_overload_is_tried_again(self, scripted: Scripted, connect: Connect) -> None:
        for provider in ("openai", "mistral"):
            replies = [error(503, "busy"), error(429, "slow down"), completion("at last")]
            scripted.answer = lambda body, replies=replies: replies.pop(0)
            assert texts(connect(f"{provider}/m", max_retries=2).generate_row(row())) == ["at last"]

    def test_a_long_retry_after_is_no_pause(self, scripted: Scripted, connect: Connect) -> None:
        scripted.answer = lambda body: replace(error(429, "come back tomorrow"), headers={"Retry-After": "80000"})
        for provider in ("openai", "mistral"):
            with pytest.raises(EngineUnwell, match="429 come back tomorrow"):
                connect(f"{provider}/m", max_retries=3).generate_row(row())
        assert len(scripted.requests) == 2

    def test_what_is_refused_for_good_is_not_tried_again(self, scripted: Scripted, connect: Connect) -> None:
        scripted.answer = lambda body: error(403, "not for you")
        with pytest.raises(EngineUnwell):
            connect(max_retries=3).generate_row(row())
        assert [is_canary(sent) for sent in scripted.requests] == [False, True]

    @pytest.mark.parametrize("provider", ["openai", "mistral"])
    @pytest.mark.parametrize("status", [403, 502, 503, 529])
    def test_what_one_row_is_refused_while_others_are_answered_is_the_rows(
        self, scripted: Scripted, connect: Connect, provider: str, status: int
    ) -> None:
        scripted.answer = lambda body: completion("fine") if is_canary(body) else error(status, "flagged")
        with pytest.raises(RuntimeError, match=rf"{provider}/m: {status} flagged$") as raised:
            connect(f"{provider}/m").generate_row(row())
        assert type(raised.value) is RuntimeError

    @pytest.mark.parametrize("provider", ["openai", "mistral"])
    def test_a_row_with_more_tokens_than_a_minute_may_have_is_at_fault(
        self, scripted: Scripted, connect: Connect, provider: str
    ) -> None:
        said = "Request too large for m on tokens per min (TPM): Limit 30000, Requested 30601."
        scripted.answer = lambda body: completion("fine") if is_canary(body) else error(429, said)
        with pytest.raises(RowError, match=rf"{provider}/m: 429 Request too large for m"):
            connect(f"{provider}/m", max_retries=9).generate_row(row())

    @pytest.mark.parametrize("provider", ["openai", "mistral"])
    @pytest.mark.parametrize("status", [401, 402, 404, 429])
    def test_what_tells_of_key_quota_or_load_is_the_providers_whatever_becomes_of_one_token(
        self, scripted: Scripted, connect: Connect, provider: str, status: int
    ) -> None:
        scripted.answer = lambda body: completion("fine") if is_canary(body) else error(status, "not for you")
        with pytest.raises(EngineUnwell, match=rf"{provider}/m: {status} not for you$"):
            connect(f"{provider}/m").generate_row(row())

    def test_an_error_inside_is_the_rows_while_others_are_answered(self, scripted: Scripted, connect: Connect) -> None:
        scripted.answer = lambda body: completion("fine") if is_canary(body) else error(500, "assertion failed")
        with pytest.raises(RuntimeError, match="500 assertion failed") as raised:
            connect().generate_row(row())
        assert type(raised.value) is RuntimeError

    def test_an_error_inside_for_every_row_is_the_providers(self, scripted: Scripted, connect: Connect) -> None:
        scripted.answer = lambda body: error(500, "out of memory")
        with pytest.raises(EngineUnwell, match="500 out of memory"):
            connect().generate_row(row())

    def test_a_row_that_takes_too_long_is_charged_while_others_are_answered(
        self, scripted: Scripted, connect: Connect
    ) -> None:
        llm = connect(timeout_s=1.0, max_retries=3)
        llm.generate_row(row())
        with pytest.raises(TimeoutError, match="no answer within 1 s"):
            llm.generate_row(row("hold"))
        assert [is_canary(sent) for sent in scripted.requests] == [False, False, True]

    def test_a_package_that_a_provider_needs_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "google", None)
        llm = LiteLLM("vertex_ai/gemini-2.5-flash", max_retries=0)
        with pytest.raises(EngineUnwell, match=r"vertex_ai/gemini-2.5-flash: 500 .*google") as raised:
            llm.generate_row(row())
        llm.close()
        assert "Traceback" not in str(raised.value)

    def test_a_dead_server_is_unwell(self) -> None:
        with socket.socket() as reserved:
            reserved.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{reserved.getsockname()[1]}/v1"
            for provider in ("openai", "mistral"):
                llm = LiteLLM(f"{provider}/m", api_base=url, max_retries=0)
                with pytest.raises(EngineUnwell, match=f"{provider}/m: .*[Cc]onnect"):
                    llm.generate_row(row())
                llm.close()

    @pytest.mark.parametrize(
        "reply",
        [
            Reply("<html>Welcome to nginx</html>", type="text/html"),
            Reply("{broken"),
            Reply({"error": "no such thing"}),
            Reply({"choices": []}),
            Reply({"choices": [{"index": 0}]}),
        ],
        ids=lambda reply: str(reply.body)[:30],
    )
    def test_something_else_than_a_completion_is_the_servers_fault(
        self, scripted: Scripted, connect: Connect, reply: Reply
    ) -> None:
        scripted.answer = lambda body: reply
        for provider in ("openai", "mistral"):
            with pytest.raises(EngineUnwell, match=f"{provider}/m: ") as raised:
                connect(f"{provider}/m").generate_row(row())
            assert "Traceback" not in str(raised.value)


class TestKeys:
    def test_the_key_comes_from_the_providers_variable(
        self, scripted: Scripted, connect: Connect, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MISTRAL_API_KEY", "k1")
        llm = connect("mistral/m")
        llm.generate_row(row())
        assert scripted.keys == ["Bearer k1"]
        assert "k1" not in repr(llm)

    def test_the_key_comes_from_the_variable_named(
        self, scripted: Scripted, connect: Connect, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MY_KEY", "k1")
        connect(api_key_env="MY_KEY").generate_row(row())
        assert scripted.keys == ["Bearer k1"]

    def test_a_file_is_read_again_when_the_key_is_refused(
        self, scripted: Scripted, connect: Connect, tmp_path: Path
    ) -> None:
        file = written(tmp_path / "key", "old\n")
        llm = connect(api_key_file=file)
        llm.generate_row(row())
        file.write_text("new\n")
        scripted.answer = lambda body: completion("in") if scripted.keys[-1] == "Bearer new" else error(401, "no")
        assert texts(llm.generate_row(row())) == ["in"]
        assert scripted.keys == ["Bearer old", "Bearer old", "Bearer new"]

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

    @pytest.mark.parametrize(
        ("settings", "sentence"),
        [
            ({}, "environment variable GOOGLE_API_KEY or GEMINI_API_KEY"),
            ({"api_key_env": "MY_KEY"}, "environment variable MY_KEY"),
            ({"api_key_file": "/nowhere/key"}, "/nowhere/key cannot be read"),
        ],
        ids=str,
    )
    def test_a_key_that_is_missing_is_told_at_once(self, settings: dict[str, Any], sentence: str) -> None:
        with pytest.raises(ConfigurationError, match=sentence):
            LiteLLM("gemini/gemini-2.5-flash", **settings)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"prompt_format": "chatml"}, "prompt_format"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"concurrency": 0}, "concurrency"),
        ({"max_retries": -1}, "max_retries"),
        ({"frequency_penalty": 0.5}, "anthropic takes no frequency_penalty"),
        ({"extra_options": {"n": 2}}, "extra_options must leave n to the engine"),
        ({"extra_options": {"api_key": "k"}}, "extra_options must not hold api_key: use the environment, or a file"),
        ({"model": "nobody/m"}, r"litellm knows no provider for the model 'nobody/m': write it as provider/model"),
    ],
    ids=str,
)
def test_arguments_that_cannot_be_used_are_refused(
    capfd: pytest.CaptureFixture[str], settings: dict[str, Any], sentence: str
) -> None:
    chosen: dict[str, Any] = {"model": "anthropic/claude-sonnet-4-5", "api_base": "http://127.0.0.1:9", **settings}
    with pytest.raises(ConfigurationError, match=sentence):
        LiteLLM(**chosen)
    assert capfd.readouterr() == ("", ""), "litellm says nothing by itself"


def test_the_engine_is_found_by_its_name() -> None:
    with pytest.raises(ConfigurationError, match="the engine litellm needs model"):
        load_engine("litellm", None, [], None)
    llm = load_engine("litellm", "openai/m", ["api_base=http://127.0.0.1:9/v1", "max_new_tokens=none"], None)
    assert isinstance(llm, LiteLLM)
    assert llm.model_name == "openai/m"
    llm.close()


_ALONE = """
import socket, sys

def refuse(*_):
    sys.exit("a connection is made")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from genpool.worker.engines.litellm import LiteLLM
from genpool.worker.llm import RowCall

llm = LiteLLM("anthropic/claude-sonnet-4-5", extra_options={"mock_response": "a"})
assert llm.generate_row(RowCall({"input": "hi"}))[0]["raw_output"] == "a"
llm.close()
"""


def test_nobody_is_called_but_the_provider(tmp_path: Path) -> None:
    path = os.pathsep.join(sys.path)
    (tmp_path / ".env").write_text("ANTHROPIC_API_KEY=of another project\n")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _ALONE],
        env={**os.environ, "PYTHONPATH": path, "ANTHROPIC_API_KEY": "k"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
