"""``genpool worker --restart``: one worker, started again when it dies, where no other supervisor runs."""

from __future__ import annotations

import logging
import random
import signal
import subprocess
import time
from collections.abc import Sequence

from ..protocol.backoff import FINAL, Backoff
from ..protocol.lifeline import Lifeline, describe_exit, kill_session
from ..protocol.signals import Signals

log = logging.getLogger("genpool.worker")


def supervise(command: Sequence[str]) -> int:
    """Run the worker's ``command`` until it ends for good. Returns the exit code.

    The first SIGTERM or SIGINT is passed on, so that the worker drains; a second one ends it at once. The worker never
    outlives this process.
    """
    with Lifeline() as lifeline, Signals(signal.SIGTERM, signal.SIGINT, signal.SIGCHLD) as signals:
        return _Supervisor(command, lifeline, signals).run()


class _Supervisor:
    def __init__(self, command: Sequence[str], lifeline: Lifeline, signals: Signals) -> None:
        self._command, self._lifeline, self._signals = command, lifeline, signals
        self._backoff = Backoff(random.random)
        self._stopped_by: int | None = None

    def run(self) -> int:
        while True:
            started = time.monotonic()
            try:
                process = self._lifeline.start(self._command)
            except OSError as error:
                why = f"cannot be started: {error}"
            else:
                code = self._attend(process)
                # What its engine has started must not outlive it, and may hold its memory or its GPU.
                kill_session(process.pid)
                if self._stopped_by is not None or code in FINAL:
                    return self._last_word(code)
                why = f"ended ({describe_exit(code)})"
            pause_s = self._backoff.pause_s(time.monotonic() - started)
            log.warning("the worker %s; it is started again in %.1f s", why, pause_s)
            if not self._rest(pause_s):
                return 0

    def _attend(self, process: subprocess.Popen[bytes]) -> int:
        """Pass signals on until the process has ended. Returns its exit code."""
        while (code := process.poll()) is None:
            for number in self._stops(self._signals.wait()):
                if self._stopped_by is None:
                    process.terminate()
                else:
                    kill_session(process.pid)
                self._stopped_by = number
        return code

    def _rest(self, pause_s: float) -> bool:
        """Whether nobody said stop in the meantime."""
        end = time.monotonic() + pause_s
        while (left_s := end - time.monotonic()) > 0:
            if self._stops(self._signals.wait(left_s)):
                return False
        return True

    def _last_word(self, code: int) -> int:
        if code == -signal.SIGTERM:  # it had not even begun
            return 0
        return 128 + (self._stopped_by or 0) if code < 0 else code

    @staticmethod
    def _stops(numbers: list[int]) -> list[int]:
        return [number for number in numbers if number != signal.SIGCHLD]
