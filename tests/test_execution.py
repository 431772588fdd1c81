"""Nothing received is executed: what could make code of data stands in few places, and each says why it may."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from test_arrows import MODULES, read_imports

# Modules that load code or objects from bytes or by a name, or start programs or talk to them in pickles.
LOADERS = {
    "cloudpickle",
    "code",
    "dill",
    "importlib",
    "imp",
    "joblib",
    "jsonpickle",
    "marshal",
    "multiprocessing",
    "pickle",
    "pkgutil",
    "pty",
    "runpy",
    "shelve",
    "subprocess",
    "yaml",
}
# Built-in functions and methods of `os` that do the same.
CALLS = {"__import__", "compile", "eval", "exec", "globals", "locals"}
OS_CALLS = {"execv", "execve", "execvp", "popen", "posix_spawn", "spawnv", "spawnvp", "system"}

# Module -> what it uses, and why that is no way in from the network.
ALLOWED = {
    "genpool": ({"importlib"}, "its own public names, from a table"),
    "genpool.cli": ({"importlib"}, "its own subcommands, from a table"),
    "genpool.client.child": ({"subprocess"}, "starts this interpreter with code of ours; no shell"),
    "genpool.client.formats.base": ({"importlib"}, "looks whether a package is there (find_spec), and imports nothing"),
    "genpool.client.local": (
        {"cloudpickle", "importlib"},
        "sends the user's own loader to a child over a private pipe",
    ),
    "genpool.launcher.command": ({"subprocess"}, "starts `genpool up` in the background; no shell"),
    "genpool.launcher.gpu": ({"subprocess"}, "asks nvidia-smi which GPUs there are; no shell"),
    "genpool.launcher.ray": ({"importlib"}, "Ray, by its literal name, which may not be installed"),
    "genpool.launcher.replica": ({"subprocess"}, "starts genpool's own command with the user's own file; no shell"),
    "genpool.launcher.shell": ({"subprocess"}, "starts genpool's own commands with the user's own file; no shell"),
    "genpool.launcher.slurm": ({"subprocess"}, "calls sbatch, squeue and scancel with the user's own file; no shell"),
    "genpool.protocol.lifeline": ({"subprocess"}, "starts genpool's own commands; no shell"),
    "genpool.protocol.telemetry": ({"importlib"}, "OpenTelemetry, by its literal names, which may not be installed"),
    "genpool.tasks.named": ({"importlib"}, "package.module:name from the command line or the user's own file"),
    "genpool.worker.loader": ({"importlib"}, "its own engines, from a table"),
    "genpool.worker.local": ({"pickle"}, "reads what the process sent that started this one, over that pipe"),
    "genpool.worker.restart": ({"subprocess"}, "starts its own command again; no shell"),
}

# Where an attribute is looked up by a name that is no literal, and where that name is from.
LOOKUPS = {
    "genpool": "its own table",
    "genpool.cli": "its own table",
    "genpool.protocol.codec": "the fields of its own messages",
    "genpool.tasks.named": "the command line or the user's own file",
    "genpool.worker.engines.answer": "a tuple in the module",
    "genpool.worker.engines.transformers": "a dict in the module",
    "genpool.worker.loader": "its own table",
}


def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def found_in(source: ast.Module, text: str, module: str) -> Iterator[str]:
    """What of the forbidden a module imports or calls."""
    for one in read_imports(text, module, is_package=False):
        name = one.target.partition(".")[0]
        if name in LOADERS:
            yield name
        elif name == "os" and one.target.rpartition(".")[2] in OS_CALLS:
            yield one.target
    for node in ast.walk(source):
        if isinstance(node, ast.Name) and node.id in CALLS:
            yield node.id
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "os" and node.attr in OS_CALLS:
            yield ast.unparse(node)


def looks_up(node: ast.AST) -> bool:
    """Whether an attribute or a class is looked up by a name that is made elsewhere."""
    if isinstance(node, ast.Subscript):
        return ast.unparse(node.value) in ("sys.modules", "vars(builtins)", "builtins.__dict__")
    if not isinstance(node, ast.Call):
        return False
    name = ast.unparse(node.func)
    if name in ("operator.attrgetter", "operator.methodcaller", "attrgetter", "methodcaller"):
        return True
    return name in ("getattr", "setattr", "delattr") and not isinstance(node.args[1], ast.Constant)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_what_makes_code_of_data_stands_only_where_it_is_explained(module: str) -> None:
    text = MODULES[module].read_text(encoding="utf-8")
    allowed, _ = ALLOWED.get(module, (set[str](), ""))
    assert set(found_in(ast.parse(text), text, module)) == allowed


def test_attributes_are_looked_up_by_no_name_from_elsewhere() -> None:
    found = {module for module in MODULES if any(looks_up(node) for node in ast.walk(tree_of(module)))}
    assert found == LOOKUPS.keys()


def test_what_the_network_says_is_read_where_nothing_is_looked_up() -> None:
    """Of the modules that open what has come, none but the codec (and by its own fields) looks anything up."""
    readers = {
        module
        for module in MODULES
        if any(
            one.target.partition(".")[0] == "msgpack"
            for one in read_imports(MODULES[module].read_text(encoding="utf-8"), module, is_package=False)
        )
    }
    assert readers == {"genpool.protocol.codec", "genpool.protocol.content", "genpool.protocol.packer"}
    assert readers & (ALLOWED.keys() | LOOKUPS.keys()) == {"genpool.protocol.codec"}


def test_msgpack_makes_no_objects() -> None:
    """No `object_hook` or `ext_hook`: what is unpacked is plain data."""
    hooks = {"object_hook", "object_pairs_hook", "ext_hook", "list_hook"}
    wrong = [
        f"{module} line {node.lineno}"
        for module in MODULES
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.Call) and hooks & {one.arg for one in node.keywords}
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle", {"pickle"}),
        ("def later():\n    from cloudpickle import loads", {"cloudpickle"}),
        ("import importlib.util", {"importlib"}),
        ("eval('1')", {"eval"}),
        ("run = exec", {"exec"}),
        ("import os\nos.system('ls')", {"os.system"}),
        ("from os import popen", {"os.popen"}),
        ("model.eval()\nre.compile('a')", set[str]()),
    ],
)
def test_every_form_is_seen(source: str, found: set[str]) -> None:
    assert set(found_in(ast.parse(source), source, "genpool.broker.machine")) == found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("getattr(thing, name)", True),
        ("setattr(thing, f'a{b}', 1)", True),
        ("sys.modules[name]", True),
        ("operator.methodcaller(name)(thing)", True),
        ("getattr(thing, 'name', None)", False),
        ("handlers[kind](message)", False),
    ],
)
def test_every_form_of_looking_up_is_seen(source: str, found: bool) -> None:
    assert any(looks_up(node) for node in ast.walk(ast.parse(source))) is found
