"""Numbers given as options: on the command line, in the environment and in TOML files."""

from __future__ import annotations

import click
import pytest

from genpool.cli import genpool
from genpool.protocol.number import FiniteRange

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
