"""Signals to this very process, which come between two statements or where they are held until."""

from __future__ import annotations

import queue
import signal
import threading
import time

import pytest

from genpool.client.interrupt import Interrupted, interruptible

LIMIT_S = 20.0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_raises_where_it_comes_and_the_former_handlers_return(number: signal.Signals) -> None:
    former = signal.getsignal(number)
    with pytest.raises(Interrupted) as raised, interruptible():
        signal.raise_signal(number)
    assert raised.value.number == number
    assert signal.getsignal(number) is former


def test_what_is_held_comes_to_its_end() -> None:
    done: list[str] = []

    def work() -> None:
        with interruptible() as interrupt:
            with interrupt.held():
                signal.raise_signal(signal.SIGTERM)
                done.append("the whole line")
            done.append("more")

    with pytest.raises(Interrupted):
        work()
    assert done == ["the whole line"]


def test_a_handler_for_exceptions_lets_it_pass() -> None:
    def work() -> None:
        with interruptible():
            try:
                signal.raise_signal(signal.SIGTERM)
            except Exception:
                pytest.fail("a row's error handler took it")

    with pytest.raises(Interrupted):
        work()


def test_the_same_signal_sent_twice_at_once_is_one_wish() -> None:
    def work() -> None:
        with interruptible() as interrupt, interrupt.held():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        work()


def test_an_ignored_signal_stays_ignored() -> None:
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible():
            signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, former)


def test_a_signal_that_interrupts_no_wait_of_the_main_thread_is_seen_all_the_same() -> None:
    # One that another thread takes stands for one that comes just before the main thread blocks.
    aside = threading.Timer(0.2, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGTERM))

    def wait() -> None:
        with interruptible():
            aside.start()
            queue.SimpleQueue[None]().get(timeout=LIMIT_S)

    began = time.monotonic()
    with pytest.raises(Interrupted):
        wait()
    aside.join()
    assert time.monotonic() - began < LIMIT_S
