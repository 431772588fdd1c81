"""The arrows of the house, read from the imports of every module of the package."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "genpool"
ALLOWED = {
    "protocol": {"protocol"},
    "tasks": {"tasks"},
    "broker": {"broker", "protocol"},
    "worker": {"worker", "protocol", "tasks"},
    "client": {"client", "protocol", "tasks"},
    "launcher": {"launcher", "protocol"},
}
# The one name that a folder may take from the root, which is lazy and brings nothing else with it.
FROM_ROOT = f"{PACKAGE}.__version__"
MACHINES = [
    "genpool.broker.machine",
    "genpool.worker.machine",
    "genpool.client.machine",
    "genpool.launcher.machine",
]
NOT_IN_A_MACHINE = {"zmq", "time", "threading", "socket", "random"}


@dataclass(frozen=True)
class Import:
    """One imported name: `target` is absolute, `line` is where it stands."""

    target: str
    line: int
    for_types_only: bool


def package_files() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    files = {PACKAGE if file.stem == "__init__" else f"{PACKAGE}.{file.stem}": file for file in ROOT.glob("*.py")}
    for folder in ALLOWED:
        for file in (ROOT / folder).rglob("*.py"):
            parts = file.relative_to(ROOT).with_suffix("").parts
            files[".".join((PACKAGE, *parts)).removesuffix(".__init__")] = file
    return files


MODULES = package_files()


def read_imports(source: str, module: str, *, is_package: bool) -> list[Import]:
    """All imports of a module, those inside functions too. `from a import b` counts as `a.b`."""
    tree = ast.parse(source)
    typed = {id(inner) for node in ast.walk(tree) for part in body_for_types(node) for inner in ast.walk(part)}
    return [
        Import(target, node.lineno, id(node) in typed)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for target in targets(node, module if is_package else module.rpartition(".")[0])
    ]


def body_for_types(node: ast.AST) -> list[ast.stmt]:
    """What stands under `if TYPE_CHECKING:`."""
    if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
        return node.body
    return []


def targets(node: ast.Import | ast.ImportFrom, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        parent = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*parent, node.module] if node.module else parent)
    yield from (f"{base}.{alias.name}" for alias in node.names)


def imports_of(module: str) -> list[Import]:
    file = MODULES[module]
    return read_imports(file.read_text(encoding="utf-8"), module, is_package=file.stem == "__init__")


def folder_of(name: str) -> str:
    """`genpool.broker.row.Row` -> `broker`; a module of the root or the root itself -> its name."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def modules_run_by(name: str) -> set[str]:
    """The modules of ours that importing `name` runs: itself and the packages above it."""
    parts = name.split(".")
    return {".".join(parts[:end]) for end in range(1, len(parts) + 1)} & MODULES.keys()


def closure(module: str) -> set[str]:
    """Every module of ours that runs when `module` is imported."""
    seen: set[str] = set()
    waiting = modules_run_by(module)
    while waiting:
        current = waiting.pop()
        seen.add(current)
        for found in imports_of(current):
            if not found.for_types_only:
                waiting |= modules_run_by(found.target) - seen
    return seen


@pytest.mark.parametrize("folder", ALLOWED)
def test_folder_imports_only_what_its_arrow_allows(folder: str) -> None:
    ours = [module for module in MODULES if module != PACKAGE and folder_of(module) == folder]
    wrong = [
        f"{module} line {found.line}: {found.target}"
        for module in ours
        for found in imports_of(module)
        if found.target.split(".")[0] == PACKAGE and found.target != FROM_ROOT
        if folder_of(found.target) not in ALLOWED[folder]
    ]
    assert ours
    assert not wrong


@pytest.mark.parametrize("machine", MACHINES)
def test_machine_and_what_it_imports_do_no_io_and_read_no_clock(machine: str) -> None:
    assert machine in MODULES
    wrong = [
        f"{module} line {found.line}: {found.target}"
        for module in closure(machine)
        for found in imports_of(module)
        if not found.for_types_only and found.target.split(".")[0] in NOT_IN_A_MACHINE
    ]
    assert not wrong


def test_imports_inside_the_package_are_relative() -> None:
    wrong = [
        f"{module} line {node.lineno}"
        for module, file in MODULES.items()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if (isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == PACKAGE)
        or (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == PACKAGE for alias in node.names))
    ]
    assert not wrong


def test_no_root_module_hides_the_standard_library_or_a_dependency() -> None:
    ours = {file.stem for file in ROOT.glob("*.py")} | {file.parent.name for file in ROOT.glob("*/__init__.py")}
    assert set(ALLOWED) <= ours
    assert not ours & (sys.stdlib_module_names | dependency_modules())


def dependency_modules() -> set[str]:
    """The import names of all that pyproject.toml names; a package that is not installed counts by its own name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted = {re.split(r"[^\w.-]", line, maxsplit=1)[0].lower() for group in groups for line in group}
    installed = {name for name, owners in packages_distributions().items() if wanted & {o.lower() for o in owners}}
    return installed | {name.replace("-", "_") for name in wanted}


def test_the_reader_sees_every_form_of_import() -> None:
    source = """
import zmq.auth
from time import monotonic
from . import row
from ..protocol import messages as m
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import random
def later():
    from genpool.client import pool
"""
    found = read_imports(source, "genpool.broker.machine", is_package=False)
    assert {(f.target, f.for_types_only) for f in found} == {
        ("zmq.auth", False),
        ("time.monotonic", False),
        ("genpool.broker.row", False),
        ("genpool.protocol.messages", False),
        ("typing.TYPE_CHECKING", False),
        ("random", True),
        ("genpool.client.pool", False),
    }
    from_package = read_imports("from .machine import Machine", "genpool.broker", is_package=True)
    assert [f.target for f in from_package] == ["genpool.broker.machine.Machine"]
