"""What is fuzzed: a name each, and a function of bytes that raises when it finds something."""

from __future__ import annotations

import hashlib
import importlib
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

TARGETS = ("codec", "content", "broker", "client", "worker")
CORPUS = Path(__file__).resolve().parents[2] / "tests" / "corpus"

# Inputs are short, so what takes longer, or more memory, costs far more than its sender paid for it.
_LONGEST_S = 1.0
_MOST_BYTES = 64 * 1024 * 1024

# What ru_maxrss counts in.
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


class TooDear(Exception):
    """Raised when an input takes too much time or memory."""


def check_of(target: str) -> Callable[[bytes], None]:
    """The function that tries one input for ``target``, within limits of time and memory."""
    check: Callable[[bytes], None] = importlib.import_module(f"fuzzing.{target}").check

    def checked(data: bytes) -> None:
        # Processor time: how long it takes by the clock says nothing on a busy machine.
        began, peak = time.process_time(), _peak_bytes()
        check(data)
        took_s, grown = time.process_time() - began, _peak_bytes() - peak
        if took_s > _LONGEST_S:
            raise TooDear(f"it took {took_s:.1f} s")
        if grown > _MOST_BYTES:
            raise TooDear(f"it took {grown / 1e6:.0f} MB")

    return checked


def name_of(data: bytes) -> str:
    """The name of an input's file in the corpus."""
    return hashlib.sha256(data).hexdigest()[:16]


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT
