"""The examples of the README and docs/: the Python compiles, the LLM works, and the commands are ones that exist."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any, cast

import click
import pytest

from genpool.cli import genpool

ROOT = Path(__file__).parents[1]
PAGES = [(ROOT / "README.md").read_text(), *(page.read_text() for page in sorted((ROOT / "docs").glob("*.md")))]


def blocks(language: str) -> list[str]:
    return [block for page in PAGES for block in re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)]


def commands() -> list[str]:
    """Every ``genpool …`` in the shell examples, without what the shell puts around it."""
    lines = [line for block in blocks("sh") for line in block.replace("\\\n", "").splitlines()]
    found = [
        re.search(r"(?:^|= )(genpool .*?)(?: &)?(?:\s+#.*)?$", re.sub(r"^[A-Z_]+=\S+ ", "", line)) for line in lines
    ]
    return [one[1] for one in found if one]


@pytest.mark.parametrize("source", blocks("python"))
def test_python_compiles(source: str) -> None:
    assert compile(source, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_what_python_imports_of_genpool_is_there() -> None:
    nodes = [node for source in blocks("python") for node in ast.walk(ast.parse(source))]
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("genpool")]
    assert imports
    exec(compile(ast.Module(cast(list[ast.stmt], imports), []), "README.md", "exec"), {})


def test_the_llm_of_ones_own_generates() -> None:
    (source,) = [source for source in blocks("python") if "def load_llm" in source]
    names: dict[str, Any] = {}
    exec(source, names)
    llm = names["load_llm"]()
    ((first, second),) = llm.generate([{"input": "hello"}], 2)
    assert first == second
    assert first["raw_output"].endswith("HELLO")
    assert first["parsed_output"] == {"generations": first["raw_output"]}


def test_there_are_commands() -> None:
    assert {line.split()[1] for line in commands()} == {
        "broker",
        "worker",
        "up",
        "down",
        "keys",
        "generate",
        "status",
        "drain",
        "kick",
    }
    assert len(commands()) > 25


@pytest.mark.parametrize("line", commands())
def test_a_command_can_be_parsed(line: str) -> None:
    _, name, *arguments = shlex.split(line)
    context = click.Context(genpool)
    command = genpool.get_command(context, name)  # type: ignore[attr-defined]
    assert command is not None
    if isinstance(command, click.Group):
        context = command.make_context(name, arguments, parent=context)
        name, command, arguments = command.resolve_command(context, [*context._protected_args, *context.args])
        assert command is not None
    assert command.make_context(name, arguments, parent=context).params
