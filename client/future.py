"""The future of a call: pending until its last row is answered, so that it can be cancelled until then."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class CallFuture(Future[T], Generic[T]):
    """A ``concurrent.futures.Future`` whose ``cancel`` reaches the rows that wait and the engines that run them."""

    def __init__(self, withdraw: Callable[[], None]) -> None:
        super().__init__()
        self._withdraw = withdraw
        self._withdrawn = False
        self._lock = threading.Lock()

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
