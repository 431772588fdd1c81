from __future__ import annotations

import json
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fleet import until

from genpool.broker.board import Board, Turn
from genpool.broker.http import Handler, Page
from genpool.broker.machine import Broker
from genpool.broker.settings import BrokerSettings
from genpool.protocol.messages import Hello, Role

pytest.importorskip("prometheus_client")

from genpool.broker import pages as module
from genpool.broker.pages import Rendered, health, pages, readiness
from genpool.broker.sampler import Sampler


def said(page: Page) -> tuple[int, str]:
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


@pytest.mark.parametrize("path", ["/metrics", "/api/report"])
def test_reports_of_a_loop_that_stands_are_a_sentence(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(module, "_PATIENCE_S", 0.0)
    status, text = said(all_pages(Board())[path]())
    assert (status, text) == (503, "the broker's loop does not turn: it has made no report in time\n")


def test_a_report_is_rendered_once() -> None:
    rendered: list[Mapping[str, Any]] = []

    def render(report: Mapping[str, Any]) -> bytes:
        rendered.append(report)
        return b"text"

    board = Board()
    page = Rendered(lambda: board.report(30.0), render, "text/plain")
    assert answered(board, page, {"uptime_s": 1}).body == b"text"
    for _ in range(3):
        page()
    assert rendered == [{"uptime_s": 1}]


def test_the_web_page_asks_for_what_there_is() -> None:
    served = all_pages(Board())
    page = said(served["/"]())[1]
    for name in ("page.css", "page.js", "icon.svg"):
        assert f'"{name}"' in page
        assert served[f"/{name}"]().status == 200
    script = said(served["/page.js"]())[1]
    for name in ("api/report", "api/history"):
        assert f'"{name}"' in script
    assert set(served) == {
        *("/", "/page.css", "/page.js", "/icon.svg", "/api/report", "/api/history"),
        *("/metrics", "/healthz", "/readyz"),
    }
    # Its Content-Security-Policy would keep them from running.
    assert " on" not in page.replace("rows done per second", "")
    assert "innerHTML" not in script


def test_the_page_s_data_are_ascii_whatever_names_there_are() -> None:
    machine = Broker(BrokerSettings(), bytes(16), now=10.0)
    machine.received(b"w", Hello(Role.WORKER, b"w", host="\ud800", llm="</script>\ud800é"), 11.0)
    board = Board()
    body = answered(board, all_pages(board)["/api/report"], machine.report(12.0)).body
    assert body.isascii()
    assert json.loads(body)["llms"][0]["name"] == "</script>\ud800é"


def test_a_history_is_empty_at_first() -> None:
    page = all_pages(Board())["/api/history"]()
    assert json.loads(page.body) == {"times": [], "series": [], "failures": []}


def all_pages(board: Board) -> Mapping[str, Handler]:
    return pages(board, Sampler(board))


def answered(board: Board, handler: Handler, report: Mapping[str, Any]) -> Page:
    """What is answered once the loop has made this report."""
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(handler)

        def is_answered() -> bool:
            board.turned(time.monotonic(), "", lambda: report)
            return first.done()

        until(is_answered)
    return first.result()
