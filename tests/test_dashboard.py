"""The names of metrics are those that the broker exports, in the dashboard and in docs/operate.md alike."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from genpool.broker.machine import Broker
from genpool.broker.settings import BrokerSettings
from genpool.protocol.messages import Hello, Hold, Role, WorkerState

pytest.importorskip("prometheus_client")

from prometheus_client.parser import text_string_to_metric_families

from genpool.broker.metrics import render

ROOT = Path(__file__).parents[1]
DASHBOARD = (ROOT / "scripts" / "deploy" / "grafana.json").read_text()
PAGE = (ROOT / "docs" / "operate.md").read_text()
NAME = re.compile(r"\bgenpool_\w+")


def exported() -> set[tuple[str, str]]:
    """Every metric's name and type, as a broker with one worker has them."""
    machine = Broker(BrokerSettings(has_row_times=True), bytes(16), now=90.0)
    hello = Hello(Role.WORKER, b"w", llm="a", state=WorkerState.READY, credit=1)
    for message in (hello, Hold([], [], [], False)):
        machine.received(b"w", message, 95.0)
    families = text_string_to_metric_families(render(machine.report(100.0)).decode())
    return {
        (f"{family.name}_total" if family.type == "counter" else family.name, family.type)
        for family in families
        if family.samples and not family.name.startswith("process_")
    }


def names() -> set[str]:
    found = {name for name, _ in exported()}
    return found | {f"{name}_{part}" for name, kind in exported() if kind == "histogram" for part in ("bucket", "sum")}


def test_all_names_in_the_dashboard_are_exported() -> None:
    used = set(NAME.findall(DASHBOARD))
    assert len(used) > 10
    assert used <= names()


def test_the_dashboard_shows_what_it_should() -> None:
    panels: list[dict[str, Any]] = json.loads(DASHBOARD)["panels"]
    shown = " ".join(target["expr"] for panel in panels for target in panel["targets"])
    wanted = ("rows_total", "queued_rows", "row_wait_seconds", "row_run_seconds", "workers", "tokens_total")
    for name in (*wanted, "rows_requeued_total", "loop_lag_seconds"):
        assert re.search(rf"\bgenpool_{name}(_bucket)?\b", shown), name
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(panels) == len({panel["id"] for panel in panels})


def test_the_page_has_every_metric_and_its_type() -> None:
    table = re.findall(r"^\| `(genpool_\w+)` \| (\w+) \|", PAGE, re.MULTILINE)
    assert sorted(table) == sorted(exported())


def test_all_names_on_the_page_are_exported() -> None:
    assert set(NAME.findall(PAGE)) <= names()
