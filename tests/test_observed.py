"""A fleet of real commands as its metrics, its probes and ``genpool status`` show it."""

from __future__ import annotations

import json
import re
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from echo import ECHO
from fleet import PATIENCE_S, Fleet, until

from genpool import ProcessLLM
from genpool.protocol.errors import GenerationError

pytest.importorskip("prometheus_client")

from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[1]
# What the loader does, and counts tokens.
COUNTING = ECHO.replace('"parsed_output": parsed}', '"parsed_output": parsed, "usage": {"completion_tokens": 3}}')


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    (tmp_path / "counting_llm.py").write_text(COUNTING)
    with Fleet(tmp_path) as fleet:
        yield fleet


def start_worker(fleet: Fleet) -> None:
    environment = {"MODEL": "model", "GATE": "none", "PYTHONPATH": str(fleet.folder)}
    fleet.start_worker("echo", "--load", "counting_llm:load", environment=environment)


def url_of(fleet: Fleet) -> str:
    """Where the broker says in its log that it serves HTTP."""
    log = (fleet.folder / "0-broker.log").read_text()
    found = re.search(r"metrics and health are on (http://127\.0\.0\.1:\d+)$", log, re.MULTILINE)
    assert found is not None
    return found[1]


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def samples(url: str) -> dict[tuple[str, ...], float]:
    """Every sample by its name and the values of its labels, in the order of their names."""
    status, text = get(f"{url}/metrics")
    assert status == 200
    families = text_string_to_metric_families(text)
    found = [one for family in families for one in family.samples]
    return {(one.name, *(value for _, value in sorted(one.labels.items()))): one.value for one in found}


def test_metrics_tell_what_was_done(fleet: Fleet) -> None:
    fleet.start_broker("--http", "127.0.0.1:0")
    url = url_of(fleet)
    start_worker(fleet)
    llm = ProcessLLM.connect("echo", fleet.address)
    try:
        assert len(llm.generate([{"input": "hello"}] * 20, 2).result(PATIENCE_S)) == 20
        with pytest.raises(GenerationError):
            llm.generate([{"input": "fail"}] * 3).result(PATIENCE_S)
        # A row counts as ended when its client has taken the answer; a report is given again for a second.
        until(lambda: samples(url)["genpool_rows_total", "echo", "failed"] == 3)
        found = samples(url)
        assert found["genpool_rows_total", "echo", "done"] == 20
        assert found["genpool_rows_total", "echo", "cancelled"] == 0
        assert found["genpool_tokens_total", "echo"] == 20 * 2 * 3
        assert found["genpool_row_wait_seconds_count", "echo"] == 23
        assert found["genpool_row_run_seconds_count", "echo"] == 20
        assert found["genpool_row_run_seconds_bucket", "+Inf", "echo"] == 20
        assert found["genpool_queued_rows", "echo"] == found["genpool_running_rows", "echo"] == 0
        assert found["genpool_workers", "echo", "ready"] == 1
        assert found["genpool_clients",] == 1
        assert found["genpool_received_bytes_total",] > 23 * len("hello")
        assert found["genpool_sent_bytes_total",] > 23 * len("hello")
        assert found["genpool_loop_lag_seconds_count",] > 0
    finally:
        llm.teardown()


def test_a_worker_that_dies_is_counted(fleet: Fleet) -> None:
    fleet.start_broker("--http", "127.0.0.1:0")
    url = url_of(fleet)
    start_worker(fleet)
    until(lambda: samples(url).get(("genpool_workers", "echo", "ready")) == 1)
    fleet.processes[1].kill()
    until(lambda: samples(url)["genpool_workers_lost_total", "echo"] == 1)
    assert samples(url)["genpool_workers", "echo", "ready"] == 0
    assert fleet.report()["lost"][0]["llm"] == "echo"


def test_probes_of_a_broker(fleet: Fleet) -> None:
    broker = fleet.start_broker("--http", "127.0.0.1:0", "--settle", "1")
    url = url_of(fleet)
    until(lambda: get(f"{url}/healthz") == (200, "the broker's loop turns\n"))
    until(lambda: get(f"{url}/readyz") == (200, "the broker serves clients and workers\n"))
    broker.send_signal(signal.SIGTERM)
    assert broker.wait(PATIENCE_S) == 0
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url, timeout=PATIENCE_S)


def test_a_broker_that_settles_is_not_ready(fleet: Fleet) -> None:
    fleet.start_broker("--http", "127.0.0.1:0", "--settle", "600")
    url = url_of(fleet)
    until(lambda: get(f"{url}/healthz")[0] == 200)
    assert get(f"{url}/readyz") == (503, "the broker has just started: workers may say first what they hold\n")


def test_without_the_option_nothing_is_served(fleet: Fleet) -> None:
    fleet.start_broker()
    assert "http" not in (fleet.folder / "0-broker.log").read_text()


@pytest.mark.parametrize("given", ["nonsense", "127.0.0.1", "127.0.0.1:99999", "tcp://127.0.0.1:1"])
def test_a_bad_address_is_refused_in_a_sentence(fleet: Fleet, given: str) -> None:
    assert fleet.start("broker", "--bind", "tcp://127.0.0.1:*", "--http", given).wait(PATIENCE_S) == 2
    assert (fleet.folder / "0-broker.log").read_text() == (
        f"genpool: --http {given!r} is nothing to serve HTTP on: give HOST:PORT, such as 127.0.0.1:9464; port 0 takes "
        "a free one\n"
    )


def test_without_the_package_it_says_what_to_install(fleet: Fleet) -> None:
    (fleet.folder / "sitecustomize.py").write_text("import sys\nsys.modules['prometheus_client'] = None\n")
    bind = ("--bind", "tcp://127.0.0.1:*")
    process = fleet.start("broker", *bind, "--http", "127.0.0.1:0", environment={"PYTHONPATH": str(fleet.folder)})
    assert process.wait(PATIENCE_S) == 2
    assert (fleet.folder / "0-broker.log").read_text() == (
        'genpool: --http needs the package prometheus-client: pip install "genpool[metrics]" '
        "(import of prometheus_client halted; None in sys.modules)\n"
    )


def test_an_address_that_others_reach_is_warned_of(fleet: Fleet) -> None:
    fleet.start_broker("--http", "*:0")
    log = (fleet.folder / "0-broker.log").read_text()
    assert "--http *:0: anyone who reaches it can read names of LLMs and hosts, and counts, without a key" in log


def test_status_tells_of_it_all(fleet: Fleet) -> None:
    fleet.start_broker()
    start_worker(fleet)
    fleet.wait_for(lambda report: sum(llm["capacity"] for llm in report["llms"]) == 1)
    llm = ProcessLLM.connect("echo", fleet.address)
    try:
        llm.generate([{"input": "hello"}] * 5).result(PATIENCE_S)
        fleet.wait_for(lambda report: report["llms"][0]["done"] == 5)
    finally:
        llm.teardown()
    fleet.processes[1].kill()
    fleet.wait_for(lambda report: report["lost"])
    status = fleet.start("status", "--broker", fleet.address, "--json")
    assert status.wait(PATIENCE_S) == 0
    report = json.loads((fleet.folder / "2-status.log").read_text())
    (one,) = report["llms"]
    assert (one["done"], one["tokens"], one["lost"], one["workers"]) == (5, 15, 1, [])
    assert report["lost"][0]["why"] == "its connection broke"
