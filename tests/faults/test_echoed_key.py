"""A provider that repeats the key in its errors: nobody but the worker's process has it, whoever looks where."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from answering import Reply, Scripted, completion, scripted_server
from extras import require
from fleet import PATIENCE_S, Fleet, until
from written import written

pytest.importorskip("openai")

from genpool import ProcessLLM
from genpool.protocol.errors import GenerationError

KEY = "sk-proj-Zx81QvT0mNbLkPw2"
PASSWORD = "aVeryPrivateWord"
STATUSES = {"bad": 400, "refused": 401, "broken": 500}


@pytest.fixture
def server() -> Iterator[Scripted]:
    """Answers "bad", "refused" and "broken" with an error that repeats what the request was allowed by."""
    with scripted_server() as script:

        def answer(body: dict[str, Any]) -> Reply:
            word = body["messages"][-1]["content"]
            if word not in STATUSES:
                return completion(word.upper())
            seen = script.keys[-1] or ""
            # So that a sentence which is cut would be cut within the key.
            sentence = f"{'wrong ' * 44}Authorization: {seen} is not known: {seen}"
            return Reply({"error": {"message": sentence, "code": seen}}, STATUSES[word], headers={"X-Key": seen})

        script.answer = answer
        yield script


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path) as fleet:
        fleet.start_broker("--max-attempts", "1")
        yield fleet


def by_variable(fleet: Fleet) -> tuple[list[str], dict[str, str]]:
    return [], {"OPENAI_API_KEY": KEY}


def by_file(fleet: Fleet) -> tuple[list[str], dict[str, str]]:
    return ["--set", f"api_key_file={written(fleet.folder / 'key', KEY)}"], {}


@pytest.mark.parametrize("given", [by_variable, by_file])
@pytest.mark.parametrize("engine", ["openai", "litellm"])
def test_the_key_is_nowhere(
    fleet: Fleet,
    server: Scripted,
    given: Callable[[Fleet], tuple[list[str], dict[str, str]]],
    engine: str,
) -> None:
    if engine == "litellm":
        require("litellm")
    options, environment = given(fleet)
    place = {"openai": f"base_url={server.url}", "litellm": f"api_base={server.url}"}[engine]
    model = {"openai": "m", "litellm": "openai/m"}[engine]
    command = ["worker", "--llm", "served", "--broker", fleet.address, "--engine", engine, "--model", model]
    worker = fleet.start(
        *("--log-level", "debug", *command, "--set", place, "--set", "max_retries=0", "--expose-tracebacks", *options),
        environment=environment,
    )
    told = work(fleet, server, worker)
    assert server.keys.count(f"Bearer {KEY}") > 3  # it was used
    assert told["the errors"].count("[secret]") > 1  # and repeated
    assert [where for where, text in told.items() if KEY in text or KEY[:10] in text] == []


def test_a_password_in_an_address_is_nowhere(fleet: Fleet, server: Scripted) -> None:
    command = ["worker", "--llm", "served", "--broker", fleet.address, "--engine", "openai", "--expose-tracebacks"]
    url = server.url.replace("http://", f"http://me:{PASSWORD}@")
    worker = fleet.start(
        *("--log-level", "debug", *command, "--set", "max_retries=0"), environment={"OPENAI_BASE_URL": url}
    )
    told = work(fleet, server, worker)
    assert server.keys[-1] is not None
    assert server.keys[-1].startswith("Basic ")
    basic = server.keys[-1].removeprefix("Basic ")
    assert [where for where, text in told.items() if PASSWORD in text or basic in text] == []


def work(fleet: Fleet, server: Scripted, worker: subprocess.Popen[bytes]) -> dict[str, str]:
    """Have rows refused in every way. Returns all that anybody may read meanwhile, by where it is read."""
    told: dict[str, str] = {}
    llm = ProcessLLM.connect("served", broker=fleet.address)
    try:
        assert llm.generate([{"input": "good"}]).result(PATIENCE_S)[0][0]["raw_output"] == "GOOD"
        with pytest.raises(GenerationError) as raised:
            llm.generate([{"input": "bad"}, {"input": "broken"}]).result(PATIENCE_S)
        errors = raised.value.failures.values()
        assert len(errors) == 2
        assert all("Traceback" in error.traceback for error in errors)
        told["the errors"] = " ".join(f"{error} {error!r} {error.traceback}" for error in errors)
        waiting = llm.generate([{"input": "refused"}])
        until(lambda: states(fleet) == ["unwell"], "an unwell worker")
        told["the report"] = json.dumps(fleet.report())
        for option in ("--json", "--timeout=9"):
            told[f"status {option}"] = run("status", "--broker", fleet.address, option)
        told["the command line"] = Path(f"/proc/{worker.pid}/cmdline").read_text()
        told["the title"] = Path(f"/proc/{worker.pid}/comm").read_text()
        waiting.cancel()
        until(lambda: states(fleet) == ["ready"], "a worker that is ready")
    finally:
        llm.teardown()
    told |= generated(fleet)
    worker.terminate()
    assert worker.wait(PATIENCE_S) == 0
    told |= {log.name: log.read_text() for log in fleet.folder.glob("*.log")}
    assert "DEBUG" in told["1---log-level.log"]
    return told


def generated(fleet: Fleet) -> dict[str, str]:
    """What `genpool generate` writes of a row that the provider refuses."""
    source, target, errors = (fleet.folder / name for name in ("in.jsonl", "out.jsonl", "errors.jsonl"))
    source.write_text('{"input": "bad"}\n')
    said = run(
        "generate", "--broker", fleet.address, "-i", str(source), "-o", str(target), "--errors", str(errors), code=1
    )
    files = {file.name: file.read_text() for file in fleet.folder.glob("*.json*") if file != source}
    assert "wrong" in files["errors.jsonl"]
    return {"generate": said, **files}


def states(fleet: Fleet) -> list[str]:
    return [worker["state"] for llm in fleet.report()["llms"] for worker in llm["workers"]]


def run(*arguments: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "genpool.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr
