from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fleet import until

from genpool.broker.board import Board, Turn
from genpool.broker.machine import Broker
from genpool.broker.settings import BrokerSettings

pytest.importorskip("prometheus_client")

from genpool.broker import pages as module
from genpool.broker.pages import Metrics, health, pages, readiness


def said(page: module.Page) -> tuple[int, str]:
    return page.status, page.body.decode()


def test_a_loop_that_turns_is_healthy_and_one_that_stands_is_not() -> None:
    assert said(health(Turn(100.0), now=104.9)) == (200, "the broker's loop turns\n")
    assert said(health(Turn(100.0), now=105.0)) == (503, "the broker's loop has not turned for 5.0 s\n")


def test_a_loop_that_has_not_begun_is_not_healthy() -> None:
    assert said(health(Board().turn, now=5.0)) == (503, "the broker's loop has not turned yet\n")


def test_it_is_ready_when_it_turns_and_takes_peers() -> None:
    assert said(readiness(Turn(100.0), now=101.0)) == (200, "the broker serves clients and workers\n")
    assert said(readiness(Turn(100.0, "it is stopping"), now=101.0)) == (503, "it is stopping\n")
    assert said(readiness(Turn(100.0, "it is stopping"), now=109.0)) == (
        503,
        "the broker's loop has not turned for 9.0 s\n",
    )


def test_a_broker_that_settles_is_healthy_and_not_ready() -> None:
    machine = Broker(BrokerSettings(settle_s=2.0), bytes(16), now=10.0)
    machine.tick(10.0)
    assert machine.is_settling
    machine.tick(12.0)
    assert not machine.is_settling


def test_metrics_of_a_loop_that_stands_are_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE_S", 0.0)
    status, text = said(pages(Board())["/metrics"]())
    assert (status, text) == (503, "the broker's loop does not turn: it has made no report in time\n")


def test_a_report_is_rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[Mapping[str, Any]] = []

    def render(report: Mapping[str, Any]) -> bytes:
        rendered.append(report)
        return b"text"

    monkeypatch.setattr(module, "render", render)
    board = Board()
    page = Metrics(board)
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(page)

        def answered() -> bool:
            board.turned(time.monotonic(), "", lambda: {"uptime_s": 1})
            return first.done()

        until(answered)
    assert first.result().body == b"text"
    for _ in range(3):
        page()
    assert rendered == [{"uptime_s": 1}]
