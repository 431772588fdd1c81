"""What the client of a soak does: keeps rows in flight in every way that the interface has, and notes their ends."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Literal

from genpool import LLMOutput, LLMPool, ProcessLLM
from genpool.protocol.errors import GenerationError

State = Literal["pending", "answered", "cancelled", "failed"]

# How many calls of each kind are kept in flight. A stream has its window besides.
_SINGLE_CALLS = 24
_POOL_CALLS = 4
_INPUTS_PER_POOL_CALL = 4

# One list at a time that nobody hears of each row of, so that its rows go in runs.
_INPUTS_PER_LIST = 40

_CANCELLED_SHARE = 0.05
_LONG_SHARE = 0.03
_STREAMS = 2
_STREAM_ROWS = 300
_LOOK_S = 0.01

# How long a stream whose rows have failed may take to end.
_LAST_ROWS_S = 5.0


@dataclass(slots=True)
class Sent:
    """One input that was sent to ``llms`` LLMs, hence as many rows."""

    name: str
    text: str
    llms: int
    state: State = "pending"
    over_at: float = 0.0

    @property
    def is_poison(self) -> bool:
        return self.text.endswith(" kill")


@dataclass(slots=True)
class _Later:
    """A call that is cancelled at ``at`` when it is not over by then."""

    at: float
    cancel: Callable[[], object]


class Load:
    """Generates until ``stop``, and then until what is in flight has ended.

    Attributes:
        sent: every input by its name, which says which call it was in.
        counts: what went wrong ("answered twice", "wrong answers"), and "answered", in rows.
        failures: what became of innocent rows, for people.
        answers: when rows were answered, in order.
    """

    def __init__(self, llms: Sequence[str], address: str, seed: int) -> None:
        self.sent: dict[str, Sent] = {}
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self.answers: list[float] = []
        self._llms = [ProcessLLM.connect(name, broker=address) for name in llms]
        self._pool = LLMPool(self._llms)
        self._chance = random.Random(seed)
        self._lock = threading.Lock()
        self._pending: set[str] = set()
        self._calls: Counter[str] = Counter()
        self._later: list[_Later] = []
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for name, target in (("soak-calls", self._call), *[("soak-stream", self._stream)] * _STREAMS)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Begin nothing more."""
        self._stopping.set()

    @property
    def is_over(self) -> bool:
        """Whether all that was begun has ended."""
        return not self._pending and not any(thread.is_alive() for thread in self._threads)

    def close(self) -> None:
        """End, whatever is in flight."""
        self.stop()
        calls, *streams = self._threads
        if calls.ident is not None:
            calls.join()
        self._pool.teardown()
        for stream in streams:
            if stream.ident is not None:
                stream.join(_LAST_ROWS_S)

    @property
    def pending(self) -> list[Sent]:
        """What is in flight."""
        with self._lock:
            return [self.sent[name] for name in self._pending]

    def poison(self) -> None:
        """Send a row that ends every worker which runs it."""
        (row,) = self._new("p", 1, llms=1, duration="kill")
        self._send_single(row)

    # The calls.

    def _call(self) -> None:
        while not self._stopping.wait(_LOOK_S):
            while self._calls["single"] < _SINGLE_CALLS:
                (row,) = self._new("s", 1, llms=1)
                self._send_single(row)
            while self._calls["pool"] < _POOL_CALLS:
                rows = self._new("c", _INPUTS_PER_POOL_CALL, llms=len(self._llms))
                future = self._pool.submit(_inputs(rows), len(self._llms), self._progress(rows))
                self._follow("pool", rows, future)
            if not self._calls["list"]:
                llm = self._chance.choice([*self._llms, None])
                rows = self._new("l", _INPUTS_PER_LIST, llms=1 if llm else len(self._llms))
                self._follow("list", rows, (llm or self._pool).submit(_inputs(rows), rows[0].llms))
            now = time.monotonic()
            for later in [later for later in self._later if now >= later.at]:
                self._later.remove(later)
                later.cancel()

    def _send_single(self, row: Sent) -> None:
        llm = self._chance.choice(self._llms)
        self._follow("single", [row], llm.generate(_inputs([row]), 1, self._progress([row])))

    def _follow(self, kind: str, rows: list[Sent], future: Future[list[list[LLMOutput]]]) -> None:
        with self._lock:
            self._calls[kind] += 1
            is_cancelled = not rows[0].is_poison and self._chance.random() < _CANCELLED_SHARE
            delay_s = self._chance.uniform(0, 1)
        if is_cancelled:
            self._later.append(_Later(time.monotonic() + delay_s, future.cancel))
        future.add_done_callback(lambda done: self._done(kind, rows, done))

    def _done(self, kind: str, rows: list[Sent], future: Future[list[list[LLMOutput]]]) -> None:
        with self._lock:
            self._calls[kind] -= 1
        try:
            for row, outputs in zip(rows, future.result(), strict=True):
                self._answered(row, outputs)
        except CancelledError:
            self._over(rows, "cancelled")
        except GenerationError as error:
            self._failed(rows, error)

    def _stream(self) -> None:
        """One stream after the other, of an LLM or the pool, each left in its midst."""
        while not self._stopping.is_set():
            llm = self._chance.choice([*self._llms, None])
            rows: list[Sent] = []
            left = threading.Event()
            llms = 1 if llm else len(self._llms)
            stream = (llm or self._pool).stream(self._endless(rows, llms, left), llms, self._progress(None))
            seen: set[int] = set()
            for row in stream:
                self.counts["answered twice"] += row.index in seen
                seen.add(row.index)
                if row.error is None:
                    self._answered(rows[row.index], row.outputs)
                else:
                    self._failed([rows[row.index]], row.error)
                if len(seen) >= _STREAM_ROWS and not self._stopping.is_set():
                    break
            stream.close()
            left.set()
            self._over(list(rows), "cancelled")

    def _endless(self, rows: list[Sent], llms: int, left: threading.Event) -> Iterator[dict[str, str]]:
        while not self._stopping.is_set():
            new = self._new("t", 1, llms=llms)
            rows += new
            if left.is_set():
                self._over(new, "cancelled")  # it was read while the stream was left
                return
            yield from _inputs(new)

    # The rows.

    def _new(self, prefix: str, count: int, *, llms: int, duration: str = "") -> list[Sent]:
        with self._lock:
            rows: list[Sent] = []
            for _ in range(count):
                is_long = self._chance.random() < _LONG_SHARE
                seconds = self._chance.uniform(1, 3) if is_long else self._chance.uniform(0.01, 0.3)
                name = f"{prefix}{len(self.sent)}"
                row = self.sent[name] = Sent(name, f"{name} {duration or format(seconds, '.2f')}", llms)
                self._pending.add(name)
                rows.append(row)
            return rows

    def _progress(self, rows: list[Sent] | None) -> Callable[..., None]:
        """Notes when rows are answered; when ``rows`` are all that there are, also that none is answered twice."""
        left = float("inf") if rows is None else sum(row.llms for row in rows)

        def advance(advance: int) -> None:
            nonlocal left
            left -= advance
            self.answers.append(time.monotonic())
            if left < 0:
                self.counts["answered twice"] += 1

        return advance

    def _answered(self, row: Sent, outputs: list[LLMOutput]) -> None:
        if [output["raw_output"] for output in outputs] != [row.text.upper()] * row.llms:
            self.counts["wrong answers"] += 1
        self._over([row], "answered")

    def _failed(self, rows: list[Sent], error: Exception) -> None:
        if not rows[0].is_poison:
            self.failures.append(f"{rows[0].name} and {len(rows) - 1} more: {type(error).__name__}: {error}")
        self._over(rows, "failed")

    def _over(self, rows: list[Sent], state: State) -> None:
        now = time.monotonic()
        with self._lock:
            for row in [row for row in rows if row.state == "pending"]:
                row.state, row.over_at = state, now
                self._pending.discard(row.name)
                self.counts[state] += row.llms


def _inputs(rows: list[Sent]) -> list[dict[str, str]]:
    return [{"input": row.text} for row in rows]
