"""Requests and tokens a minute, as token buckets. No clock: the time is an argument."""

from __future__ import annotations

import math

_MINUTE_S = 60.0

# What an idle moment leaves over may be spent at once: up to one second's worth. A larger value makes bursts that a
# server refuses which counts by the second; a smaller one loses what was due while the event loop was busy.
_BURST_S = 1.0


class Bucket:
    """A token bucket, kept as one point in time: when all that was taken is paid for at the bucket's rate.

    This is the generic cell rate algorithm (ITU-T I.371). Whoever finds the bucket not in debt may take any amount, so
    that a request larger than the bucket is delayed and never starved.

    Args:
        per_minute: what flows in; None for a bucket that never runs dry.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._seconds_each = 0.0 if per_minute is None else _MINUTE_S / per_minute
        self._paid_at = -math.inf

    def wait_s(self, now: float) -> float:
        """Seconds until something may be taken; 0 for now."""
        return max(0.0, self._paid_at - now)

    def take(self, amount: float, now: float) -> None:
        """Take ``amount``, and get into debt where that is more than there is."""
        self._paid_at = max(self._paid_at, now - _BURST_S) + amount * self._seconds_each

    def correct(self, by: float) -> None:
        """``by`` more than was taken has turned out to be used; less, where it is below 0."""
        self._paid_at += by * self._seconds_each


class Rate:
    """How many requests, and tokens of prompts and completions together, go to a server in a minute."""

    def __init__(self, requests: float | None, tokens: float | None) -> None:
        self._requests = Bucket(requests)
        self._tokens = Bucket(tokens)

    def wait_s(self, now: float) -> float:
        """Seconds until the next request may go; 0 for now."""
        return max(self._requests.wait_s(now), self._tokens.wait_s(now))

    def take(self, tokens: float, now: float) -> None:
        """A request goes that will use about ``tokens``."""
        self._requests.take(1, now)
        self._tokens.take(tokens, now)

    def correct(self, by: float) -> None:
        """A request has used ``by`` more tokens than it was taken for; less, where it is below 0."""
        self._tokens.correct(by)


def rows_at_once(concurrency: int, rpm: float | None, tpm: float | None, max_new_tokens: int | None) -> int:
    """How many rows an engine should take at once: up to ``concurrency``, and no more than may go in a minute.

    Those beyond would only wait here, kept from replicas and from a worker that drains.
    """
    limits: list[float] = [concurrency]
    if rpm is not None:
        limits.append(rpm)
    if tpm is not None and max_new_tokens is not None:
        limits.append(tpm / max_new_tokens)
    return max(1, int(min(limits)))
