"""Who sends unusable messages: a few are borne, and who sends more is kept out for a while."""

from __future__ import annotations

# More are not kept in mind; whoever comes beyond them makes the oldest be forgotten.
_MOST_KEPT_OUT = 10_000


class Offences:
    """Counts by name, in a token bucket for each: ``limit`` at once, and as many a minute. Times in seconds."""

    def __init__(self, limit: int, shut_out_s: float) -> None:
        self._limit = limit
        self._shut_out_s = shut_out_s
        self._buckets: dict[bytes, tuple[float, float]] = {}  # what is left, and when
        self._kept_out: dict[bytes, float] = {}  # until when, in this order

    def is_too_many(self, name: bytes, now: float) -> bool:
        """Count one more; whether it is beyond what is borne."""
        left = self._left(name, now)
        if left < 1:
            return True
        self._buckets[name] = left - 1, now
        return False

    def keep_out(self, name: bytes, now: float) -> None:
        """Let ``name`` not come in for a while."""
        self._kept_out.pop(name, None)
        self._kept_out[name] = now + self._shut_out_s
        if len(self._kept_out) > _MOST_KEPT_OUT:
            del self._kept_out[next(iter(self._kept_out))]

    def kept_out_s(self, name: bytes, now: float) -> float:
        """How long ``name`` may not come in still; 0 when it may."""
        return max(0.0, self._kept_out.get(name, 0.0) - now)

    def tick(self, now: float) -> None:
        """Forget what is long ago."""
        for name in [name for name in self._buckets if self._left(name, now) >= self._limit]:
            del self._buckets[name]
        for name in [name for name, until in self._kept_out.items() if now >= until]:
            del self._kept_out[name]

    def _left(self, name: bytes, now: float) -> float:
        left, since = self._buckets.get(name, (float(self._limit), now))
        return min(float(self._limit), left + (now - since) * self._limit / 60)
