"""Many futures as one, and the progress that they make."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

log = logging.getLogger("genpool.worker")

P = TypeVar("P")
R = TypeVar("R")


class Progress:
    """Calls a progress callback, from one thread at a time; what it raises is logged and costs no output."""

    def __init__(self, callback: Callable[..., Any] | None) -> None:
        self._callback = callback
        self._turn = threading.Lock()

    def advance(self, by: int) -> None:
        if self._callback is None or by == 0:
            return
        with self._turn:
            try:
                self._callback(advance=by)
            except Exception:
                log.exception("progress_callback_func raised; the generation goes on")

    def advance_for(self, part: Future[Any], by: int) -> None:
        if not part.cancelled() and part.exception() is None:
            self.advance(by)


class JointFuture(Future[R], Generic[P, R]):
    """Done when all ``parts`` are, with ``join`` of their results; fails with the first part that fails.

    It is resolved once, by whoever claims it first: the last part, a failed part, or ``cancel()``. The latter two
    cancel the parts that have not begun.
    """

    def __init__(self, parts: Sequence[Future[P]], join: Callable[[list[P]], R]) -> None:
        super().__init__()
        self._parts = parts
        self._join = join
        self._left = len(parts)
        self._is_claimed = False
        self._turn = threading.Lock()  # guards the two above
        for part in parts:
            part.add_done_callback(self._on_done)
        if not parts:
            self._finish()

    def cancel(self) -> bool:
        if self._claim():
            super().cancel()
            self.set_running_or_notify_cancel()  # wakes `wait` and `as_completed`, which `cancel` alone does not
            self._cancel_parts()
        return self.cancelled()

    def _on_done(self, part: Future[Any]) -> None:
        if part.cancelled():
            self.cancel()
        elif (error := part.exception()) is not None:
            self._fail(error)
        elif self._count_down() == 0:
            self._finish()

    def _finish(self) -> None:
        if not self._claim():
            return
        try:
            result = self._join([part.result() for part in self._parts])
        except BaseException as error:
            self.set_exception(error)
        else:
            self.set_result(result)

    def _fail(self, error: BaseException) -> None:
        if self._claim():
            self.set_exception(error)
            self._cancel_parts()

    def _claim(self) -> bool:
        with self._turn:
            is_first = not self._is_claimed
            self._is_claimed = True
        return is_first

    def _count_down(self) -> int:
        with self._turn:
            self._left -= 1
            return self._left

    def _cancel_parts(self) -> None:
        for part in self._parts:
            part.cancel()
