"""The future of a call: pending until its last row is answered, so that it can be cancelled until then."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from functools import partial
from typing import Any, Generic, TypeVar

log = logging.getLogger("genpool.client")

T = TypeVar("T")

_here = threading.local()


def leave_callbacks_to(put: Callable[[Callable[[], None]], None]) -> None:
    """From now on, done-callbacks of futures that this thread resolves are given to ``put``, which has them run."""
    _here.put = put


def _run(fn: Callable[[Future[T]], object], future: Future[T]) -> None:
    try:
        fn(future)
    # User code: what it raises, be it SystemExit, must not cost others their callbacks.
    except BaseException:
        log.exception("a callback raised")


class CallFuture(Future[T], Generic[T]):
    """A ``concurrent.futures.Future`` whose ``cancel`` reaches the rows that wait and the engines that run them."""

    def __init__(self, withdraw: Callable[[], None]) -> None:
        super().__init__()
        self._withdraw = withdraw
        self._withdrawn = False
        self._lock = threading.Lock()

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """As in Future: it runs on the callbacks thread, in the thread that cancels, or here where all is done."""

        def run(future: Future[T]) -> None:
            put = getattr(_here, "put", None)
            if put is None:
                fn(future)
            else:
                put(partial(_run, fn, future))

        super().add_done_callback(run)

    def cancel(self) -> bool:
        """Take the call back. Wakes ``wait`` and ``as_completed``; False when it is finished already."""
        if not super().cancel():
            return False
        # The callbacks that have just run may have cancelled again, in any thread, so no lock is held over them.
        with self._lock:
            is_first, self._withdrawn = not self._withdrawn, True
        if is_first:
            # Without this step waiters would sleep on: Future expects an executor to make it.
            self.set_running_or_notify_cancel()
            self._withdraw()
        return True

    def resolve(self, result: T) -> None:
        """Set the result, unless the call was cancelled meanwhile."""
        self._settle(lambda: self.set_result(result))

    def reject(self, error: BaseException) -> None:
        """Set the error, unless the call was cancelled meanwhile."""
        self._settle(lambda: self.set_exception(error))

    def _settle(self, settle: Callable[[], Any]) -> None:
        try:
            settle()
        except InvalidStateError:
            pass  # cancelled at the same moment; the first one wins
