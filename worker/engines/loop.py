"""An asyncio event loop for calls from threads.

thread ── run(coroutine, cancelled) ──▶ loop thread ── task ──▶ result, back to the thread
                              └── looks: is it set? ──▶ the task is cancelled, and what it has open is closed
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from ...protocol.errors import Closed

_T = TypeVar("_T")

# How often the loop looks whether what runs is still wanted, for a threading.Event cannot be awaited. The loop does it
# for all, as hundreds of waiting threads that each wake up to look cost a tenth of a core. A smaller value notices a
# cancel sooner and looks more often.
_LOOK_S = 0.1

_Watched = dict[Future[Any], threading.Event]


class LoopThread:
    """Runs coroutines in one daemon thread until ``close()``, or until nobody refers to it any more.

    Args:
        name: the thread's name.
        at_end: awaited in the loop when it ends, after every task was cancelled.
    """

    def __init__(self, name: str, at_end: Callable[[], Awaitable[None]]) -> None:
        self._loop = asyncio.new_event_loop()
        # Orders ``run`` and ``close``: what is submitted before the end is cancelled by the end, never forgotten.
        self._turn = threading.Lock()
        self._watched: _Watched = {}
        # The thread must not refer to this object, or it would never be collected.
        self._thread = threading.Thread(target=_serve, args=(self._loop, self._watched), name=name, daemon=True)
        self._thread.start()
        self._end = weakref.finalize(self, _submit_end, self._loop, at_end)

    def run(self, coroutine: Coroutine[Any, Any, _T], cancelled: threading.Event | None = None) -> _T:
        """The result of ``coroutine``.

        Raises:
            Closed: the loop has ended.
            concurrent.futures.CancelledError: ``cancelled`` was set, or the loop ended meanwhile.
        """
        with self._turn:
            if not self._end.alive:
                coroutine.close()
                raise Closed("its event loop has ended")
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        if cancelled is not None:
            self._watched[future] = cancelled
        try:
            return future.result()
        finally:
            self._watched.pop(future, None)
            future.cancel()

    def close(self) -> None:
        """Cancels what runs, and ends the thread. May be called twice."""
        with self._turn:
            self._end()
        if threading.current_thread() is not self._thread:
            self._thread.join()


def _serve(loop: asyncio.AbstractEventLoop, watched: _Watched) -> None:
    try:
        loop.call_soon(_look, loop, watched)
        loop.run_forever()
    finally:
        loop.close()


def _look(loop: asyncio.AbstractEventLoop, watched: _Watched) -> None:
    for future in [future for future, cancelled in list(watched.items()) if cancelled.is_set()]:
        future.cancel()
    loop.call_later(_LOOK_S, _look, loop, watched)


def _submit_end(loop: asyncio.AbstractEventLoop, at_end: Callable[[], Awaitable[None]]) -> None:
    asyncio.run_coroutine_threadsafe(_end(loop, at_end), loop)


async def _end(loop: asyncio.AbstractEventLoop, at_end: Callable[[], Awaitable[None]]) -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    try:
        await at_end()
        await loop.shutdown_asyncgens()
    finally:
        loop.stop()
