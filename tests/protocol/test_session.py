from __future__ import annotations

from dataclasses import dataclass

import pytest

from genpool.protocol.limits import PROTOCOL_VERSION, Limits
from genpool.protocol.messages import (
    Answer,
    Ask,
    Fleet,
    Goodbye,
    Grant,
    Hello,
    Message,
    Ping,
    Refuse,
    Reset,
    Role,
    Welcome,
)
from genpool.protocol.session import Close, Log, Open, Send, Session, SessionSettings, SessionState

SETTINGS = SessionSettings(first_delay_s=1.0, longest_delay_s=8.0, silence_s=10.0)
HELLO = Hello(role=Role.CLIENT, instance=b"me", host="here", pid=1)
WELCOME = Welcome(b"epoch", 2.0, Limits(max_frame_bytes=1234))
START = 1000.0


@dataclass(frozen=True)
class Opened:
    """Effect of the test: the hook was called."""


@dataclass(frozen=True)
class Broken:
    """Effect of the test: the hook was called."""


@dataclass(frozen=True)
class Got:
    """Effect of the test: a message came through."""

    message: Message


class Plain(Session):
    """A session that shows what its subclass is told, as effects."""

    held: int | None = 7

    def _hello(self) -> Hello:
        return HELLO

    def _held(self) -> int | None:
        return self.held

    def _opened(self, now: float) -> None:
        self._effect(Opened())

    def _broken(self, now: float) -> None:
        self._effect(Broken())

    def _on_message(self, message: Message, now: float) -> None:
        self._effect(Got(message))


def session_at(*randoms: float, settings: SessionSettings = SETTINGS) -> Plain:
    """A new session; its random source gives these numbers in turn, or always 1, which is the whole delay."""
    numbers = iter(randoms)
    return Plain("tcp://broker:5555", settings, lambda: next(numbers, 1.0), START)


@pytest.fixture
def session() -> Plain:
    return session_at()


def greeting(session: Plain, now: float = START) -> Plain:
    assert Open() in session.tick(now)
    return session


def opened(session: Plain, now: float = START) -> Plain:
    greeting(session, now).received(WELCOME, now)
    session.flush(now)
    return session


def quiet(effects: list[object]) -> list[object]:
    """Without the log."""
    return [effect for effect in effects if not isinstance(effect, Log)]


def logged(effects: list[object]) -> list[str]:
    return [f"{effect.level}: {effect.text}" for effect in effects if isinstance(effect, Log)]


def reopens_after(session: Plain, now: float) -> float:
    """How long it waits, in steps of a thousandth, before it opens a new socket."""
    for step in range(20_000):
        if Open() in session.tick(now + step / 1000):
            return step / 1000
    raise AssertionError("it never opens again")


# From waiting to open.


def test_the_first_tick_opens_a_socket_and_the_hello_goes_first(session: Plain) -> None:
    assert session.tick(START) == [Open(), Send(HELLO)]
    assert session.state is SessionState.GREETING
    assert session.lost_at == START


def test_while_it_greets_a_tick_does_nothing(session: Plain) -> None:
    greeting(session)

    assert quiet(session.tick(START + 1)) == []


def test_the_welcome_opens_it_and_tells_the_limits(session: Plain) -> None:
    greeting(session).received(WELCOME, START + 0.5)

    assert session.flush(START + 0.5) == [Opened()]
    assert session.state is SessionState.OPEN
    assert session.limits.max_frame_bytes == 1234
    assert session.lost_at is None
    assert session.ever_open


def test_whether_there_ever_was_a_broker_is_remembered(session: Plain) -> None:
    assert not greeting(session).ever_open

    session.received(WELCOME, START)
    session.broken("cut", START)

    assert session.ever_open


def test_what_is_not_about_the_connection_goes_to_the_subclass(session: Plain) -> None:
    opened(session).received(Ping(3), START + 1)
    session.received(Grant(1, "ready"), START + 1)

    assert session.flush(START + 1) == [Got(Ping(3)), Got(Grant(1, "ready"))]


def test_effects_come_once(session: Plain) -> None:
    opened(session).received(Ping(3), START + 1)
    session.flush(START + 1)

    assert session.flush(START + 1) == []


def test_a_message_before_the_welcome_is_not_for_the_subclass(session: Plain) -> None:
    greeting(session).received(Ping(3), START)

    assert session.flush(START) == []
    assert session.state is SessionState.GREETING


def test_a_second_welcome_changes_nothing(session: Plain) -> None:
    opened(session).received(Welcome(b"other", 9.0, Limits()), START + 1)

    assert session.flush(START + 1) == []
    assert session.limits.max_frame_bytes == 1234


# Pings.


def test_pings_tell_what_is_held_at_the_interval_of_the_broker(session: Plain) -> None:
    opened(session)

    assert session.tick(START + 1.9) == []
    assert session.tick(START + 2.0) == [Send(Ping(7))]
    assert session.tick(START + 3.9) == []
    session.held = None
    assert session.tick(START + 4.0) == [Send(Ping(None))]


def test_a_late_tick_pings_once(session: Plain) -> None:
    assert opened(session).tick(START + 9.0) == [Send(Ping(7))]


def test_nothing_is_pinged_on_a_broken_connection(session: Plain) -> None:
    opened(session).broken("cut", START + 1.99)
    session.flush(START + 1.99)

    assert session.tick(START + 2.0) == []


# Silence.


def test_a_hello_that_nobody_answers_is_given_up(session: Plain) -> None:
    greeting(session)

    assert session.tick(START + 10.0) == [Log("warning", waiting_for(10, "it has not answered yet"))]
    # A broker that reads the hello later still is told that nobody waits there, and blames nobody.
    reason = "the hello was not answered for 10 s (is it a genpool broker?)"
    assert quiet(session.tick(START + 10.1)) == [Send(Reset(reason)), Close(linger_s=1.0)]
    assert session.state is SessionState.WAITING
    assert session.trouble == reason


def test_only_a_welcome_answers_the_hello(session: Plain) -> None:
    """Something that sends messages and never welcomes is no broker."""
    greeting(session)
    for second in range(11):
        session.received(Ping(0), START + second)

    assert Close(linger_s=1.0) in session.tick(START + 10.5)
    assert session.state is SessionState.WAITING


def test_a_silent_broker_is_given_up_and_its_subclass_told(session: Plain) -> None:
    opened(session)
    assert quiet(session.tick(START + 10.0)) == [Send(Ping(7))]

    effects = session.tick(START + 10.1)

    reason = "nothing was heard for 10 s"
    lost = Log("warning", f"lost the broker at tcp://broker:5555 ({reason}); trying again")
    assert effects == [Send(Reset(reason)), Close(linger_s=1.0), lost, Broken()]
    assert session.trouble == reason
    assert session.lost_at == START + 10.1


def test_any_message_ends_the_silence(session: Plain) -> None:
    opened(session).received(Ping(0), START + 9)

    assert Broken() not in session.tick(START + 18.9)
    assert Broken() in session.tick(START + 19.1)


def test_a_part_of_a_message_ends_the_silence(session: Plain) -> None:
    opened(session).arriving(START + 9)

    assert Broken() not in session.tick(START + 18.9)
    assert Broken() in session.tick(START + 19.1)


def test_what_arrives_before_the_welcome_is_no_answer_to_the_hello(session: Plain) -> None:
    session.tick(START)
    session.arriving(START + 9)

    assert session.tick(START + 10.1)[0] == Send(Reset("the hello was not answered for 10 s (is it a genpool broker?)"))


def test_a_broker_that_pings_seldom_is_not_silent_between_its_pings() -> None:
    session = opened(session_at(settings=SessionSettings(silence_s=2 * WELCOME.ping_interval_s)))

    assert Broken() not in session.tick(START + 2.9 * WELCOME.ping_interval_s)
    assert Broken() in session.tick(START + 3.1 * WELCOME.ping_interval_s)


def test_the_silence_of_a_new_connection_begins_with_it(session: Plain) -> None:
    opened(session).broken("cut", START + 9)
    again = START + 9 + reopens_after(session, START + 9)
    session.received(WELCOME, again)
    session.flush(again)

    assert Broken() not in session.tick(again + 9.9)
    assert Broken() in session.tick(again + 10.1)


# What breaks it.


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (Reset("it lost count"), "the broker ended the connection: it lost count"),
        (Goodbye("it was stopped"), "the broker ended the connection: it was stopped"),
        (Reset("a\n\x1b[31mred"), r"the broker ended the connection: a\n\x1b[31mred"),
    ],
    ids=["reset", "goodbye", "no words"],
)
def test_the_broker_may_end_the_connection_and_is_tried_again(session: Plain, message: Message, reason: str) -> None:
    opened(session, START).received(message, START + 5)

    effects = session.flush(START + 5)

    assert quiet(effects) == [Close(), Broken()]
    assert logged(effects) == [f"warning: lost the broker at tcp://broker:5555 ({reason}); trying again"]
    assert quiet(session.tick(START + 7)) == [Open(), Send(HELLO)]


def test_bytes_that_are_no_message_end_the_connection(session: Plain) -> None:
    opened(session).malformed("Ping: its head is no msgpack", START + 5)

    reason = "what answered is no genpool broker of this version: Ping: its head is no msgpack"
    assert quiet(session.flush(START + 5)) == [Send(Reset(reason)), Close(linger_s=1.0), Broken()]
    assert session.trouble == reason


def test_a_connection_that_breaks_before_the_welcome_is_not_reported_as_lost(session: Plain) -> None:
    greeting(session).broken("nothing answers there", START + 0.1)

    assert session.flush(START + 0.1) == [Close()]
    assert session.trouble == "nothing answers there"
    assert session.lost_at == START


def test_a_break_is_told_once(session: Plain) -> None:
    opened(session).broken("the connection broke", START + 1)
    session.flush(START + 1)
    session.broken("the connection broke again", START + 1)
    session.malformed("nonsense", START + 1)

    assert session.flush(START + 1) == []
    assert session.trouble == "the connection broke"


@pytest.mark.parametrize(
    "message", [WELCOME, Ping(1), Answer([], [], [], []), Refuse("no"), Reset("again"), Goodbye("bye")], ids=repr
)
def test_stale_messages_of_a_connection_that_was_given_up_change_nothing(session: Plain, message: Message) -> None:
    opened(session).broken("the connection broke", START + 1)
    session.flush(START + 1)

    session.received(message, START + 1)

    assert session.flush(START + 1) == []
    assert session.state is SessionState.WAITING
    assert session.trouble == "the connection broke"


def test_what_followed_a_reset_in_the_same_burst_is_not_read(session: Plain) -> None:
    opened(session).received(Reset("it lost count"), START + 1)
    session.received(Ping(3), START + 1)

    assert quiet(session.flush(START + 1)) == [Close(), Broken()]


# Backoff.


def test_the_backoff_doubles_up_to_the_longest_delay(session: Plain) -> None:
    greeting(session)
    now, delays = START, list[float]()
    for _ in range(6):
        session.broken("nothing answers there", now)
        delays.append(reopens_after(session, now))
        now += delays[-1]

    assert delays == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def test_the_jitter_takes_up_to_half_of_the_delay_away() -> None:
    shortest, middle, longest = session_at(0.0), session_at(0.5), session_at(1.0)

    assert [delay_of_first_attempt(one) for one in (shortest, middle, longest)] == [0.5, 0.75, 1.0]


def delay_of_first_attempt(session: Plain) -> float:
    greeting(session).broken("nothing answers there", START)
    session.flush(START)
    return reopens_after(session, START)


def test_a_broker_may_be_away_for_days() -> None:
    """A power of two beyond a float's range ends no worker."""
    session = session_at(settings=SessionSettings(first_delay_s=0.05, longest_delay_s=1.0))
    now = START
    for _ in range(5_000):
        greeting(session, now).broken("nothing answers there", now)
        now += 1.0

    assert reopens_after(session, now) <= 1.0


def test_a_connection_that_lasted_starts_the_backoff_anew(session: Plain) -> None:
    now = START
    for _ in range(5):
        greeting(session, now).broken("nothing answers there", now)
        now += 10
    opened(session, now).broken("cut", now + 60)

    assert reopens_after(session, now + 60) == 1.0


def test_a_connection_that_did_some_work_starts_the_backoff_anew(session: Plain) -> None:
    now = START
    for _ in range(5):
        greeting(session, now).broken("nothing answers there", now)
        now += 10
    opened(session, now).received(Answer([], [], [], []), now)
    session.broken("cut", now)

    assert reopens_after(session, now) == 1.0


def test_a_broker_that_welcomes_and_breaks_off_at_once_is_tried_ever_more_slowly(session: Plain) -> None:
    now, delays = START, list[float]()
    for _ in range(4):
        if session.state is SessionState.WAITING:
            greeting(session, now)
        for message in (WELCOME, Fleet([]), Ping(0)):
            session.received(message, now)
        session.malformed("nonsense", now)
        delays.append(reopens_after(session, now))
        now += delays[-1]

    assert delays == [1.0, 2.0, 4.0, 8.0]


# Refused, and the end.


@pytest.mark.parametrize(
    ("reason", "trouble"),
    [("install the same release", "install the same release"), ("a\n\x1b[31mred", r"a\n\x1b[31mred")],
    ids=["a sentence", "no words"],
)
def test_a_refusal_is_the_end(session: Plain, reason: str, trouble: str) -> None:
    greeting(session).received(Refuse(reason), START)

    assert session.flush(START) == [Close()]
    assert session.state is SessionState.REFUSED
    assert session.trouble == trouble
    assert session.tick(START + 1000) == []


def test_who_was_never_let_in_hears_at_once_that_its_key_is_not(session: Plain) -> None:
    greeting(session).kept_out("not allowed", START)

    assert session.state is SessionState.REFUSED
    assert session.trouble == "not allowed"


def test_who_was_let_in_before_tries_again_seldom(session: Plain) -> None:
    opened(session).broken("it went", START)
    session.tick(START + 5)
    session.kept_out("not allowed", START + 5)

    assert session.state is SessionState.WAITING
    assert session.trouble == "not allowed"
    assert Open() not in session.tick(START + 14.9)
    assert Open() in session.tick(START + 15.1)


def test_a_refusal_of_an_open_connection_tells_the_subclass(session: Plain) -> None:
    opened(session).received(Refuse("not you"), START + 5)

    assert session.flush(START + 5) == [Close(), Broken()]
    assert session.lost_at == START + 5


def test_a_welcome_of_another_version_is_a_refusal(session: Plain) -> None:
    greeting(session).received(Welcome(b"epoch", 1.0, Limits(), version=PROTOCOL_VERSION + 1), START)

    assert session.flush(START) == [Close()]
    assert session.state is SessionState.REFUSED
    assert session.trouble == f"the broker speaks version {PROTOCOL_VERSION + 1} of the protocol, not 1"


@pytest.mark.parametrize("is_open", [False, True], ids=["greeting", "open"])
def test_the_end_says_goodbye_and_gives_it_time_to_leave(session: Plain, is_open: bool) -> None:
    opened(session) if is_open else greeting(session)
    session.end("it is done")

    assert session.flush(START) == [Send(Goodbye("it is done")), Close(linger_s=1.0)]
    assert session.state is SessionState.ENDED


def test_after_the_end_nothing_happens(session: Plain) -> None:
    opened(session).end()
    session.flush(START)
    session.end()
    session.broken("cut", START)
    for message in (Refuse("no"), Reset("again"), WELCOME, Ping(1)):
        session.received(message, START)

    assert session.tick(START + 1000) == []
    assert session.state is SessionState.ENDED


def test_without_a_connection_the_end_is_silent(session: Plain) -> None:
    session.end("never mind")

    assert session.tick(START) == []
    assert session.state is SessionState.ENDED


def test_who_was_refused_can_end(session: Plain) -> None:
    greeting(session).received(Refuse("no"), START)
    session.flush(START)
    session.end()

    assert session.flush(START) == []
    assert session.state is SessionState.ENDED


# What it says while it waits.


def waiting_for(seconds: int, trouble: str) -> str:
    return f"waiting for the broker at tcp://broker:5555 since {seconds} s: {trouble}"


def test_a_broker_that_is_waited_for_is_named_now_and_then() -> None:
    session = session_at(settings=SessionSettings(first_delay_s=1000.0, longest_delay_s=1000.0))
    greeting(session).broken("nothing answers there", START)

    said = [text for second in range(70) for text in logged(session.tick(START + second))]

    assert said == [f"warning: {waiting_for(second, 'nothing answers there')}" for second in (1, 31, 61)]


def test_before_the_first_attempt_has_failed_it_says_that_nobody_has_answered(session: Plain) -> None:
    greeting(session)

    assert logged(session.tick(START + 2)) == [f"warning: {waiting_for(2, 'it has not answered yet')}"]


def test_a_wait_that_is_over_in_a_moment_is_not_named() -> None:
    session = session_at(settings=SessionSettings(first_delay_s=0.5, longest_delay_s=0.5))
    greeting(session).broken("nothing answers there", START)
    session.flush(START)

    assert logged(opened(session, START + 0.5).tick(START + 0.5)) == []


def test_a_broker_that_comes_back_is_reported(session: Plain) -> None:
    greeting(session).tick(START + 2)  # says that it waits
    session.received(WELCOME, START + 4.25)

    assert session.flush(START + 4.25) == [
        Log("warning", "the broker at tcp://broker:5555 is there, after 4.2 s"),
        Opened(),
    ]


def test_a_broker_that_was_lost_for_a_moment_is_reported_too(session: Plain) -> None:
    opened(session).broken("cut", START)
    again = START + reopens_after(session, START)
    session.received(WELCOME, again)

    assert any("is there, after" in line for line in logged(session.flush(again)))


def test_an_open_connection_says_nothing(session: Plain) -> None:
    opened(session)
    for second in range(100):
        session.received(Ping(0), START + second)
        assert logged(session.tick(START + second)) == []


def test_messages_that_were_due_go_before_the_ping(session: Plain) -> None:
    """The ping counts what the messages before it have changed."""

    class Asking(Plain):
        def flush(self, now: float) -> list[object]:
            self._effect(Send(Ask()))
            return super().flush(now)

    asking = Asking("tcp://broker:5555", SETTINGS, lambda: 1.0, START)
    opened(asking)

    assert asking.tick(START + 2)[-2:] == [Send(Ask()), Send(Ping(7))]


# Several brokers.


def among(*addresses: str, settings: SessionSettings = SETTINGS) -> Plain:
    return Plain(",".join(addresses), settings, lambda: 1.0, START)


def tried(session: Plain, now: float, times: int, *, by: str = "nothing answers there") -> list[str]:
    """Which brokers it tries, each of which fails at once."""
    addresses: list[str] = []
    for _ in range(times):
        now += reopens_after(session, now)
        addresses.append(session.address)
        session.broken(by, now)
    return addresses


def test_the_next_broker_is_tried_after_an_attempt_that_failed() -> None:
    assert tried(among("a", "b", "c"), START, 5) == ["a", "b", "c", "a", "b"]


def test_after_a_break_the_broker_that_was_there_is_tried_first() -> None:
    session = among("a", "b", "c")
    assert tried(session, START, 1) == ["a"]
    now = START + 2
    opened(session, now)
    session.broken("cut", now)
    session.flush(now)

    assert tried(session, now, 2) == ["b", "c"]


def test_a_broker_that_says_nothing_is_left_sooner_where_there_is_another() -> None:
    alone, session = among("a"), among("a", "b")
    for one in (alone, session):
        greeting(one)
        one.tick(START + 2.1)

    assert alone.state is SessionState.GREETING
    assert session.address == "b"


def test_a_broker_that_refuses_is_left_for_the_next_and_when_all_do_it_is_the_end() -> None:
    session = among("a", "b")
    greeting(session).received(Refuse("it is full"), START)
    session.flush(START)
    now = START + reopens_after(session, START)
    assert session.address == "b"
    assert session.state is SessionState.GREETING
    session.received(Refuse("it is full, too"), now)

    assert session.state is SessionState.REFUSED
    assert session.trouble == "it is full, too"


def test_a_welcome_makes_earlier_refusals_count_no_more() -> None:
    session = among("a", "b")
    greeting(session).received(Refuse("no"), START)
    now = START + reopens_after(session, START)
    session.received(WELCOME, now)
    session.received(Refuse("not any more"), now)

    assert session.state is SessionState.WAITING
    assert session.address == "a"


def test_the_log_names_all_of_them_while_none_is_there() -> None:
    session = among("a", "b")
    tried(session, START, 1)

    (line,) = logged(session.tick(START + 1.0))
    assert line == "warning: waiting for the broker at a or b since 1 s: nothing answers there"
