from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, as_completed, wait

import pytest

from genpool.client.future import CallFuture, leave_callbacks_to


class Withdrawals:
    """Counts how often a call was withdrawn."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture
def withdrawals() -> Withdrawals:
    return Withdrawals()


@pytest.fixture
def future(withdrawals: Withdrawals) -> CallFuture[int]:
    return CallFuture(withdrawals)


def in_thread(function: object) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)  # pyright: ignore[reportArgumentType]
    thread.start()
    return thread


def test_it_is_pending_until_it_is_resolved(future: CallFuture[int], withdrawals: Withdrawals) -> None:
    assert isinstance(future, Future)
    assert not future.running()
    assert not future.done()
    future.resolve(7)
    assert future.result(0) == 7
    assert withdrawals.count == 0


def test_an_error_is_raised(future: CallFuture[int]) -> None:
    future.reject(KeyError("gone"))
    assert isinstance(future.exception(0), KeyError)
    with pytest.raises(KeyError, match="gone"):
        future.result(0)


def test_cancel_withdraws_once(future: CallFuture[int], withdrawals: Withdrawals) -> None:
    assert future.cancel()
    assert future.cancelled()
    assert future.cancel()
    assert withdrawals.count == 1
    with pytest.raises(CancelledError):
        future.result(0)


@pytest.mark.parametrize("how", ["resolve", "reject"])
def test_a_finished_call_cannot_be_cancelled(future: CallFuture[int], withdrawals: Withdrawals, how: str) -> None:
    future.resolve(7) if how == "resolve" else future.reject(ValueError())
    assert not future.cancel()
    assert not future.cancelled()
    assert withdrawals.count == 0


def test_what_comes_after_a_cancel_changes_nothing(future: CallFuture[int]) -> None:
    future.cancel()
    future.resolve(7)
    future.reject(ValueError())
    assert future.cancelled()


def test_the_first_end_counts(future: CallFuture[int]) -> None:
    future.resolve(7)
    future.reject(ValueError())
    assert future.result(0) == 7


def test_cancel_wakes_wait(future: CallFuture[int]) -> None:
    cancelled = in_thread(future.cancel)
    done, pending = wait([future], timeout=10)
    cancelled.join(10)
    assert (done, pending) == ({future}, set())


def test_cancel_wakes_as_completed_and_result(future: CallFuture[int]) -> None:
    ends: list[object] = []

    def wait_for_result() -> None:
        try:
            ends.append(future.result(10))
        except CancelledError as error:
            ends.append(error)

    waiting = in_thread(wait_for_result)
    in_thread(future.cancel)
    assert list(as_completed([future], timeout=10)) == [future]
    waiting.join(10)
    assert [type(end) for end in ends] == [CancelledError]


def test_a_done_callback_may_cancel_again(future: CallFuture[int], withdrawals: Withdrawals) -> None:
    answers: list[bool] = []
    future.add_done_callback(lambda done: answers.append(done.cancel()))
    cancelling = in_thread(future.cancel)
    cancelling.join(10)
    assert not cancelling.is_alive()
    assert answers == [True]
    assert withdrawals.count == 1


def test_a_done_callback_may_wait_for_another_thread_that_cancels(future: CallFuture[int]) -> None:
    ended: list[bool] = []

    def cancel_elsewhere(_: Future[int]) -> None:
        other = in_thread(future.cancel)
        other.join(10)
        ended.append(not other.is_alive())

    future.add_done_callback(cancel_elsewhere)
    cancelling = in_thread(future.cancel)
    cancelling.join(20)
    assert ended == [True]


def test_of_many_cancels_and_an_answer_one_wins(withdrawals: Withdrawals) -> None:
    for _ in range(200):
        before = withdrawals.count
        future: CallFuture[int] = CallFuture(withdrawals)
        start = threading.Barrier(4)
        answers: list[bool] = []

        def cancel(
            future: CallFuture[int] = future, start: threading.Barrier = start, answers: list[bool] = answers
        ) -> None:
            start.wait()
            answers.append(future.cancel())

        threads = [in_thread(cancel) for _ in range(3)]
        start.wait()
        future.resolve(7)
        for thread in threads:
            thread.join(10)
        assert wait([future], timeout=10).done == {future}
        assert len(set(answers)) == 1
        assert answers[0] == future.cancelled()
        assert withdrawals.count - before == (1 if future.cancelled() else 0)


def test_cancelling_an_asyncio_task_that_waits_for_it_withdraws(
    future: CallFuture[int], withdrawals: Withdrawals
) -> None:
    async def main() -> None:
        waiting = asyncio.ensure_future(asyncio.wrap_future(future))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())
    assert future.cancelled()
    assert withdrawals.count == 1


@pytest.mark.parametrize("error", [ValueError, SystemExit], ids=["error", "exit"])
def test_a_thread_that_runs_no_user_code_leaves_callbacks_to_another(
    future: CallFuture[int], error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    left: list[Callable[[], None]] = []
    told: list[int] = []

    def explode(_: Future[int]) -> None:
        raise error("from the callback")

    future.add_done_callback(explode)
    future.add_done_callback(lambda one: told.append(one.result(0)))

    def resolve() -> None:
        leave_callbacks_to(left.append)
        future.resolve(7)

    in_thread(resolve).join()
    assert future.result(0) == 7
    assert told == []
    for run in left:
        run()
    assert told == [7]
    assert "from the callback" in caplog.text


def test_a_callback_that_comes_late_runs_where_it_is_added(future: CallFuture[int]) -> None:
    left: list[Callable[[], None]] = []
    in_thread(lambda: (leave_callbacks_to(left.append), future.resolve(7))).join()
    told: list[tuple[int, threading.Thread]] = []
    future.add_done_callback(lambda one: told.append((one.result(0), threading.current_thread())))
    assert (told, left) == ([(7, threading.current_thread())], [])
