"""What docs/ says of the commands' options is true of them."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from genpool.cli import genpool

DOCS = Path(__file__).parents[1] / "docs"
ROW = re.compile(r"^\| `genpool (\w+) --([\w-]+)` \| ([^|]*) \|", re.MULTILINE)
SETTINGS = ROW.findall((DOCS / "reliability.md").read_text())


def option(command: str, name: str) -> click.Parameter:
    found = genpool.get_command(click.Context(genpool), command)
    assert found is not None
    return next(param for param in found.params if f"--{name}" in param.opts)


def test_there_are_settings() -> None:
    assert len(SETTINGS) > 10


@pytest.mark.parametrize(("command", "name", "default"), SETTINGS)
def test_a_setting_has_the_default_that_is_told(command: str, name: str, default: str) -> None:
    value = option(command, name).default
    number = re.match(r"\d+(\.\d+)?", default)
    if number is None:
        assert not isinstance(value, int | float)
    else:
        assert value == float(number[0])


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_an_option_that_is_named_exists(page: Path) -> None:
    commands = [
        genpool.get_command(click.Context(genpool), name) for name in genpool.list_commands(click.Context(genpool))
    ]
    commands.append(genpool)
    commands += [one for group in commands if isinstance(group, click.Group) for one in group.commands.values()]
    known = {opt for command in commands if command for param in command.params for opt in param.opts}
    scripts = {
        "--help",
        "--minutes",
        "--fuzz",
        "--again",
        "--keep",
        "--seed",
        "--repeat",
        "--json",
        "--plot",
        "--bench",
        "--in-all",
        "--pack",
        "--workers",
        "--all",
        "--judge",
    }
    servers = {"--port", "--model-path", "--now", "--from-file", "--gpus"}
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]+", page.read_text())) <= known | scripts | servers
