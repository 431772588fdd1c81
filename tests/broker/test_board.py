from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fleet import until

from genpool.broker import board as module
from genpool.broker.board import Board, Turn


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What time it is on the board."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def not_wanted() -> dict[str, Any]:
    raise AssertionError("nobody waits for a report")


def test_a_turn_is_told_and_no_report_is_made_that_nobody_wants() -> None:
    board = Board()
    assert board.turn.at == float("-inf")
    board.turned(5.0, "it settles", not_wanted)
    assert board.turn == Turn(5.0, "it settles")


def test_without_a_turn_there_is_no_report_and_the_next_turn_makes_one(clock: list[float]) -> None:
    board = Board()
    with pytest.raises(TimeoutError, match="does not turn"):
        board.report(0.0)
    board.turned(clock[0], "", lambda: {"uptime_s": 1})
    assert board.report(0.0) == {"uptime_s": 1}


def test_a_report_is_given_again_for_a_second(clock: list[float]) -> None:
    board = Board()
    with pytest.raises(TimeoutError):
        board.report(0.0)
    board.turned(clock[0], "", lambda: {"uptime_s": 1})
    clock[0] += 0.9
    assert board.report(0.0) is board.report(0.0)
    board.turned(clock[0], "", not_wanted)
    clock[0] += 0.2
    with pytest.raises(TimeoutError):
        board.report(0.0)
    board.turned(clock[0], "", lambda: {"uptime_s": 2})
    assert board.report(0.0) == {"uptime_s": 2}


def test_all_who_wait_get_the_same_report() -> None:
    board = Board()
    made: list[dict[str, Any]] = []

    def report() -> dict[str, Any]:
        made.append({"uptime_s": 1})
        return made[-1]

    with ThreadPoolExecutor(4) as threads:
        answers = [threads.submit(board.report, 30.0) for _ in range(4)]

        def all_answered() -> bool:
            board.turned(module.time.monotonic(), "", report)
            return all(answer.done() for answer in answers)

        until(all_answered)
    assert all(answer.result() in made for answer in answers)


def test_counts_are_made_without_a_report(clock: list[float]) -> None:
    board = Board()
    with pytest.raises(TimeoutError, match="does not turn"):
        board.counts(0.0)
    board.turned(clock[0], "", not_wanted, lambda: {"llms": []})
    assert board.counts(0.0) == {"llms": []}
