from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from genpool.worker.call_queue import CallQueue

PATIENCE_S = 20.0


@pytest.fixture
def many_switches() -> Iterator[None]:
    """Threads give way to each other nearly everywhere."""
    former = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(former)


def test_what_was_put_first_comes_first() -> None:
    queue = CallQueue[int]()
    for number in range(3):
        queue.put(number)
    assert [queue.get() for _ in range(3)] == [0, 1, 2]


def test_each_of_several_calls_that_take_long_has_a_thread() -> None:
    queue = CallQueue[int]()
    together = threading.Barrier(4, timeout=PATIENCE_S)
    threads = [threading.Thread(target=lambda: (queue.get(), together.wait()), daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(3):
        queue.put(number)
    together.wait()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not [thread for thread in threads if thread.is_alive()]


@pytest.mark.usefixtures("many_switches")
def test_every_item_is_taken_once_and_no_thread_sleeps_beside_one() -> None:
    queue = CallQueue[int | None]()
    taken: list[int] = []

    def take() -> None:
        while (item := queue.get()) is not None:
            taken.append(item)

    threads = [threading.Thread(target=take, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for number in range(5000):
        queue.put(number)
    for _ in threads:
        queue.put(None)
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not [thread for thread in threads if thread.is_alive()]
    assert sorted(taken) == list(range(5000))
