"""The part that workers and clients share of their state machines: one connection after another to a broker.

::

    WAITING ──Open──▶ GREETING ──Welcome──▶ OPEN
       ▲   (hello goes first)                 │
       └──── broken, reset, silent ───────────┘      REFUSED is the end

Of several brokers it keeps to the first that says welcome: after a break that one is tried first, and after an attempt
that failed the next.

No I/O, no clock, no random source of its own. The shell (dealer.py) performs the effects.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from .brokers import split
from .limits import PROTOCOL_VERSION, Limits
from .messages import Fleet, Goodbye, Hello, Message, Ping, Refuse, Reset, Welcome
from .printable import printable

# A wait for the broker is logged after the first time, so that a wrong address shows in a second, and then seldom.
_FIRST_NOTICE_S = 1.0
_NEXT_NOTICE_S = 30.0


@dataclass(frozen=True, slots=True)
class Open:
    """Effect: open a new socket to the broker."""


@dataclass(frozen=True, slots=True)
class Close:
    """Effect: close the socket, giving what was sent last ``linger_s`` to leave."""

    linger_s: float = 0.0


# Never changed, but not frozen: that would treble what it costs to make one.
@dataclass(slots=True)
class Send:
    """Effect: send ``message`` on the open socket."""

    message: Message


@dataclass(frozen=True, slots=True)
class Log:
    """Effect: one line for the log; ``level`` is a name of the logging module, ``fields`` what JSON has beside."""

    level: str
    text: str
    fields: Mapping[str, object] = field(default_factory=dict[str, object], compare=False)


class SessionState(Enum):
    """How the connection stands."""

    WAITING = auto()
    GREETING = auto()
    OPEN = auto()
    REFUSED = auto()
    ENDED = auto()


# The states as plain names: up to CPython 3.11 each ``SessionState.OPEN`` calls Python code, which takes 0.1 µs, and
# some ten are looked up for each message.
WAITING, GREETING, OPEN, REFUSED, ENDED = SessionState

_TRYING = (WAITING, GREETING)

# A broker is silent at the earliest when so many of its pings have not come.
_PINGS_MISSED = 3

# How long a peer that was let in before, and is not any more, waits until it tries again.
_KEPT_OUT_S = 10.0

# With several brokers, how long one may take to say welcome before the next is tried: one that is frozen, or whose host
# is gone, accepts a connection or swallows it without a word.
_WELCOME_S = 2.0

# How long what was sent last on a connection may take to leave.
_LAST_WORD_S = 1.0

# Doublings of the backoff beyond this would overflow a float, and no one waits that long.
_MOST_DOUBLINGS = 32


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """Times in seconds.

    Attributes:
        first_delay_s, longest_delay_s: the backoff between attempts doubles from the first to the longest, with
            jitter, so that a thousand workers do not come back in the same instant.
        silence_s: how long the broker may say nothing before the connection is given up. It is a little less than
            libzmq's heartbeat allows (see dealer.py), so that the broker can still be told.
    """

    first_delay_s: float = 0.05
    longest_delay_s: float = 1.0
    silence_s: float = 7.0


class Session(ABC):
    """Keeps a connection. A subclass says what goes into the hello and what to do with the other messages.

    ``address`` is as ``address.resolve`` has made it.

    Attributes:
        addresses: of all brokers that it may use.
        address: of the one that it uses or tries.
        limits: what the broker told in its welcome.
        lost_at: since when there is no open connection; None while there is one.
        trouble: why the last attempt failed, for people.
        ever_open: whether a broker has said welcome at any time.
    """

    def __init__(self, address: str, settings: SessionSettings, random: Callable[[], float], now: float) -> None:
        self.addresses = split(address)
        self.address = self.addresses[0]
        self.session_settings = settings
        self.state = WAITING
        self.limits = Limits()
        self.lost_at: float | None = now
        self.trouble = "it has not answered yet"
        self.ever_open = False
        self._random = random
        self._attempts = 0
        self._delay_s = 0.0
        self._open_at = now
        self._heard = now
        self._greeted = now
        self._opened_at = now
        self._ping_interval_s = 1.0
        self._next_ping = now
        self._ping_due = False
        self._next_notice = now + _FIRST_NOTICE_S
        self._is_missed = False  # whether it was logged that the broker is not there
        self._refusals: dict[str, str] = {}  # of brokers that will not talk to this process: why
        self._effects: list[object] = []

    # What a subclass gives.

    @abstractmethod
    def _hello(self) -> Hello:
        """The hello of a new connection."""

    @abstractmethod
    def _held(self) -> int | None:
        """How many entries the ledger holds that this end writes; None for a worker, which writes none."""

    @abstractmethod
    def _opened(self, now: float) -> None:
        """The broker has said welcome: tell it what is held here."""

    @abstractmethod
    def _broken(self, now: float) -> None:
        """The connection is gone."""

    @abstractmethod
    def _on_message(self, message: Message, now: float) -> None:
        """A message that is not about the connection."""

    def row_of(self, execution: int) -> bytes | None:
        """Which row an execution is of, where that is known."""
        return None

    # What goes in.

    def received(self, message: Message, now: float) -> None:
        """A message has come. Its effects come with the next ``flush``."""
        if self.state is not OPEN and self.state is not GREETING:
            return  # of a connection that was given up
        self._heard = now
        match message:
            case Welcome():
                self._welcomed(message, now)
            case Refuse():
                self._refused(printable(message.reason), now)
            case Reset() | Goodbye():
                self.broken(f"the broker ended the connection: {printable(message.reason)}", now)
            case _ if self.state is OPEN:
                if not isinstance(message, (Ping, Fleet)):
                    self._attempts = 0  # it did some work
                self._on_message(message, now)
            case _:
                pass  # a broker says welcome first; the wait for that goes on

    def arriving(self, now: float) -> None:
        """A part of a message has come: who takes long to send it is not silent."""
        if self.state is OPEN:
            self._heard = now

    def malformed(self, reason: str, now: float) -> None:
        """Bytes have come that are no message of this protocol: whoever is there, it is no broker of ours."""
        self.give_up(f"what answered is no genpool broker of this version: {reason}", now)

    def give_up(self, reason: str, now: float) -> None:
        """End this connection from here, and tell the broker, for whom it may look sound.

        Also one that hears the hello too late: without a word, it would take this process for one that has ended.
        """
        if self.state in (GREETING, OPEN):
            self._effect(Send(Reset(reason)))
        self._disconnect(reason, Close(_LAST_WORD_S), now)

    def broken(self, reason: str, now: float) -> None:
        """The socket's connection failed or ended; a new one is tried after the backoff."""
        self._disconnect(reason, Close(), now)

    def kept_out(self, reason: str, now: float) -> None:
        """The broker's end will not have this peer's key, or finds none.

        Who was never let in hears that at once. Who was tries again, seldom, for the list of allowed keys may change.
        """
        if self.ever_open:
            self._disconnect(reason, Close(), now)
            if len(self.addresses) == 1:
                self._open_at = max(self._open_at, now + _KEPT_OUT_S)
        else:
            self._refused(reason, now)

    def _disconnect(self, reason: str, close: Close, now: float) -> None:
        if self.state in (REFUSED, ENDED, WAITING):
            return
        was_open = self.state is OPEN
        self.state, self.trouble = WAITING, reason
        self._effect(close)
        if not was_open:
            self._go_to_next()
        else:
            self.lost_at = now
            # A broker that welcomes and breaks off at once, over and over, is not tried at full speed: only a
            # connection that did some work, or lasted longer than it was waited for, starts the backoff anew.
            if now - self._opened_at >= self._delay_s:
                self._attempts = 0
            self._next_notice = now + _FIRST_NOTICE_S
            self._is_missed = True
            self._effect(Log("warning", f"lost the broker at {self.address} ({reason}); trying again"))
            self._broken(now)
        self._open_at = now + self._backoff()

    def _go_to_next(self) -> None:
        at = self.addresses.index(self.address) + 1
        self.address = self.addresses[at % len(self.addresses)]

    def tick(self, now: float) -> list[object]:
        """Time has passed: open, ping, or give up on a silent broker. Returns all effects since the last flush."""
        silence = self.session_settings.silence_s
        if self.state is OPEN:
            silence = max(silence, _PINGS_MISSED * self._ping_interval_s)
        elif len(self.addresses) > 1:
            silence = min(silence, _WELCOME_S)
        if self.state is WAITING and now >= self._open_at:
            self._open(now)
        elif self.state is GREETING and now - self._greeted > silence:
            self.give_up(f"the hello was not answered for {silence:g} s (is it a genpool broker?)", now)
        elif self.state is OPEN and now - self._heard > silence:
            self.give_up(f"nothing was heard for {silence:g} s", now)
        if self.state is OPEN and now >= self._next_ping:
            self._next_ping = now + self._ping_interval_s
            self._ping_due = True
        if self.lost_at is not None and now >= self._next_notice and self.state in _TRYING:
            self._next_notice = now + _NEXT_NOTICE_S
            self._is_missed = True
            waited = f"waiting for the broker at {' or '.join(self.addresses)} since {now - self.lost_at:.0f} s"
            self._effect(Log("warning", f"{waited}: {self.trouble}"))
        return self.flush(now)

    def flush(self, now: float) -> list[object]:
        """All effects since the last flush, in order."""
        if self._ping_due and self.state is OPEN:
            # Behind all that changes the ledger, so that the broker counts what is counted here.
            self._effect(Send(Ping(self._held())))
        self._ping_due = False
        effects, self._effects = self._effects, []
        return effects

    def end(self, reason: str | None = "") -> None:
        """Say goodbye and stay away; with None for a reason, only hang up."""
        if self.state in (OPEN, GREETING):
            if reason is not None:
                self._effect(Send(Goodbye(reason)))
            self._effect(Close(_LAST_WORD_S))
        self.state = ENDED

    # Within.

    def _open(self, now: float) -> None:
        self.state = GREETING
        self._heard = self._greeted = now
        self._effect(Open())
        self._effect(Send(self._hello()))

    def _welcomed(self, message: Welcome, now: float) -> None:
        if message.version != PROTOCOL_VERSION:
            self._refused(f"the broker speaks version {message.version} of the protocol, not {PROTOCOL_VERSION}", now)
            return
        if self.state is not GREETING:
            return
        self.state = OPEN
        self.ever_open = True
        self._refusals.clear()
        self._opened_at = now
        self.limits = message.limits
        self._ping_interval_s = message.ping_interval_s
        self._next_ping = now + self._ping_interval_s
        if self._is_missed and self.lost_at is not None:
            self._effect(Log("warning", f"the broker at {self.address} is there, after {now - self.lost_at:.1f} s"))
        self.lost_at, self._is_missed = None, False
        self._opened(now)

    def _refused(self, reason: str, now: float) -> None:
        """This broker will not talk to us: that is the end where no other is left."""
        was_open = self.state is OPEN
        self._refusals[self.address] = reason
        if len(self._refusals) < len(self.addresses):
            self._disconnect(f"it refuses this process: {reason}", Close(), now)
            if was_open:
                self._go_to_next()
            return
        self.state, self.trouble = REFUSED, reason
        self._effect(Close())
        if was_open:
            self.lost_at = now
            self._broken(now)

    def _backoff(self) -> float:
        """Doubling delays with jitter between half and the whole of each."""
        settings = self.session_settings
        delay = min(settings.longest_delay_s, settings.first_delay_s * 2 ** min(self._attempts, _MOST_DOUBLINGS))
        self._attempts += 1
        self._delay_s = delay * (0.5 + self._random() / 2)
        return self._delay_s

    def _effect(self, effect: object) -> None:
        self._effects.append(effect)
