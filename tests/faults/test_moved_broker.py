"""A broker that is killed and started again elsewhere, found again through its connection file."""

from __future__ import annotations

from pathlib import Path

import pytest
from fleet import Fleet, until

from genpool import ProcessLLM

# Answers a row when a file of the row's name is there.
HELD = """
import os, time
from genpool import LLM, TextGenerationTask

class Held(LLM):
    model_name = "held"

    def _generate(self, inputs, num_generations=1):
        raise NotImplementedError

    def generate_row(self, call):
        name = call.content["input"]
        with open(os.path.join(os.environ["HELD"], "computed"), "a") as file:
            file.write(name + "\\n")
        while not os.path.exists(os.path.join(os.environ["HELD"], name)):
            time.sleep(0.01)
        return [{"model_name": "held", "prompt_used": name, "raw_output": name, "parsed_output": None}]

def load():
    return Held(TextGenerationTask())
"""


@pytest.mark.timeout(120)
def test_worker_and_client_find_it_and_nothing_is_computed_again(tmp_path: Path) -> None:
    (tmp_path / "held.py").write_text(HELD)
    environment = {"HELD": str(tmp_path), "PYTHONPATH": str(tmp_path)}
    file = tmp_path / "broker.json"
    with Fleet(tmp_path) as fleet:
        # The worker is started before there is a broker, or even its file.
        fleet.start_worker("held", "--load", "held:load", broker=str(file), environment=environment)
        broker = fleet.start_broker()
        llm = ProcessLLM.connect("held", broker=str(file))
        future = llm.generate([{"input": "first"}, {"input": "second"}], timeout=100)
        until(lambda: (tmp_path / "computed").exists(), "the first row's start")
        former = fleet.address
        broker.kill()
        broker.wait()
        fleet.address = ""
        fleet.start_broker()
        assert fleet.address != former
        (tmp_path / "first").touch()
        (tmp_path / "second").touch()
        assert [row[0]["raw_output"] for row in future.result(60)] == ["first", "second"]
        assert (tmp_path / "computed").read_text().split() == ["first", "second"]
        llm.teardown()
