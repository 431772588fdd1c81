"""Numbers given as options: on the command line, in the environment and in TOML files."""

from __future__ import annotations

import click
import pytest

from genpool.cli import genpool
from genpool.protocol.number import COUNT, POSITIVE_SECONDS, SECONDS, FiniteRange

COMMANDS = ("broker", "worker", "up", "down", "generate", "status", "drain")
NOT_FINITE = ["nan", "inf", "-inf", "1e999", float("nan"), float("inf"), 10**400]
IDS = ["nan", "inf", "-inf", "1e999", "a float nan", "a float inf", "an integer beyond a float"]


def command_of(name: str) -> click.Command:
    assert isinstance(genpool, click.Group)
    command = genpool.get_command(click.Context(genpool), name)
    assert command is not None
    return command


@pytest.mark.parametrize("kind", [FiniteRange(0), FiniteRange(0, min_open=True), FiniteRange(-1, 1), FiniteRange()])
@pytest.mark.parametrize("value", NOT_FINITE, ids=IDS)
def test_what_is_not_finite_is_refused(kind: FiniteRange, value: object) -> None:
    with pytest.raises(click.BadParameter):
        kind.convert(value, None, None)


@pytest.mark.parametrize("value", ["nan", float("inf"), 10**400], ids=["nan", "inf", "an integer beyond a float"])
def test_the_sentence_says_what_is_wrong_with_it(value: object) -> None:
    with pytest.raises(click.BadParameter, match="is not a finite number"):
        FiniteRange(0).convert(value, None, None)


@pytest.mark.parametrize(("value", "number"), [("0.5", 0.5), (2, 2.0), ("1e300", 1e300)], ids=["text", "int", "large"])
def test_a_number_within_the_range_is_taken(value: object, number: float) -> None:
    assert FiniteRange(0).convert(value, None, None) == number


def test_one_outside_the_range_is_still_refused() -> None:
    with pytest.raises(click.BadParameter, match="not in the range"):
        FiniteRange(0).convert("-1", None, None)


@pytest.mark.parametrize("name", COMMANDS)
def test_no_option_takes_a_number_that_is_not_finite(name: str) -> None:
    lenient = [
        option.opts[0]
        for option in command_of(name).params
        if isinstance(option.type, click.types.FloatParamType) and not isinstance(option.type, FiniteRange)
    ]
    assert lenient == []


@pytest.mark.parametrize("name", COMMANDS)
def test_each_has_a_bound_below_what_timers_and_messages_take(name: str) -> None:
    endless = [
        option.opts[0]
        for option in command_of(name).params
        if isinstance(option, click.Option) and not option.hidden and not is_bounded(option)
    ]
    assert endless == []


def is_bounded(option: click.Option) -> bool:
    match option.type:
        case click.IntRange():
            return option.type is COUNT
        case click.FloatRange() if option.metavar == "SECONDS":
            return option.type in (SECONDS, POSITIVE_SECONDS) or option.type.max is not None
        case _:
            return True


@pytest.mark.parametrize(
    ("name", "given", "sentence"),
    [
        ("worker", "--llm a --row-timeout 1e12", r"1e\+12 is more than 100000000 seconds"),
        ("worker", f"--llm a --batch-size {10**30}", f"{10**30} is more than 1000000000"),
        ("broker", f"--max-client-rows {10**30}", f"{10**30} is more than 1000000000"),
        ("down", "fleet.toml --timeout 1e308", r"1e\+308 is more than 100000000 seconds"),
        ("status", "--timeout 1e9", r"1e\+09 is more than 100000000 seconds"),
    ],
    ids=["a row's time", "a batch", "a client's rows", "a drain", "a wait"],
)
def test_what_no_timer_and_no_message_takes_is_refused(name: str, given: str, sentence: str) -> None:
    with pytest.raises(click.BadParameter, match=sentence):
        command_of(name).make_context(name, given.split())


@pytest.mark.parametrize(
    ("name", "needed", "option"),
    [
        ("broker", "", "--settle"),
        ("broker", "", "--heartbeat-timeout"),
        ("worker", "--llm a", "--row-timeout"),
        ("worker", "--llm a", "--rpm"),
        ("up", "fleet.toml", "--timeout"),
        ("generate", "-i - -o -", "--hedge"),
        ("status", "", "--timeout"),
    ],
    ids=lambda text: text.strip("-"),
)
def test_nor_does_the_environment_give_one(
    name: str, needed: str, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = f"GENPOOL_{name.upper()}"
    monkeypatch.setenv(f"{prefix}_{option.strip('-').replace('-', '_').upper()}", "nan")
    with pytest.raises(click.BadParameter, match="nan is not a finite number") as raised:
        command_of(name).make_context(name, needed.split(), auto_envvar_prefix=prefix)
    assert raised.value.param is not None
    assert option in raised.value.param.opts
