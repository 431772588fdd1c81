from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from genpool.cli import genpool
from genpool.launcher.fleet_file import read_fleet
from genpool.launcher.ray_file import read_ray
from genpool.launcher.service import Fleet, Service
from genpool.protocol.errors import ConfigurationError

Read = Callable[..., Fleet]

HEAD = 'broker = "head:5555"\n'
NUL = "has a NUL character in it, which no command and no environment can have"
# What an LLM needs.
LLM = '[llm.a]\nengine = "openai"\n'


def command(name: str) -> click.Command:
    found = genpool.get_command(click.Context(genpool), name)  # type: ignore[attr-defined]
    assert found is not None
    return found


COMMANDS = {name: command(name) for name in ("worker", "broker")}


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read(text: str, visible: str = "", on: str = "local") -> Fleet:
        path = tmp_path / "fleet.toml"
        path.write_text(text)
        return read_fleet(path, tmp_path / "run", COMMANDS, lambda: tuple(visible), on)

    return read


def only(fleet: Fleet) -> Service:
    (service,) = fleet.services
    return service


def test_all_that_it_may_say(read: Read, tmp_path: Path) -> None:
    fleet = read("""
        drain-timeout = 60
        gpus = [0, "GPU-1", 2]
        broker = "head:5555"

        [llm.smollm2]
        engine = "llamacpp"
        model = "/models/smollm2.gguf"
        replicas = 2
        gpus = 1
        batch_size = 8
        row-timeout = 60.5
        expose-tracebacks = true
        [llm.smollm2.set]
        n_ctx = 4096
        stop = ["\\n\\n", "ä", "\\u0000"]
        flash = true
        note = "a b"
        [llm.smollm2.env]
        OMP_NUM_THREADS = "4"

        [llm.mine]
        load = "mine:load"
        expose_tracebacks = false
    """)
    first, second = fleet.services
    assert (fleet.path, fleet.drain_s, fleet.gpus) == (tmp_path / "fleet.toml", 60.0, ("0", "GPU-1", "2"))
    assert (first.name, first.replicas, first.recipe.gpus, first.is_broker) == ("smollm2", 2, 1, False)
    assert first.recipe.environment == (("OMP_NUM_THREADS", "4"),)
    assert first.recipe.arguments == (
        "worker",
        "--llm=smollm2",
        "--engine=llamacpp",
        "--model=/models/smollm2.gguf",
        "--batch-size=8",
        "--row-timeout=60.5",
        "--expose-tracebacks",
        "--broker=head:5555",
        "--set=n_ctx=4096",
        '--set=stop=["\\n\\n", "\\u00e4", "\\u0000"]',
        "--set=flash=true",
        "--set=note=a b",
    )
    assert second.recipe.arguments == ("worker", "--llm=mine", "--load=mine:load", "--broker=head:5555")
    assert (second.replicas, second.recipe.gpus) == (1, None)


def test_a_path_below_the_home_folder_is_one(read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "worker.key").touch()
    monkeypatch.setenv("HOME", str(home))
    worker = only(read('broker = "~/broker.json"\nkeys = "~/worker.key"\n' + LLM))
    assert f"--broker={home}/broker.json" in worker.recipe.arguments
    assert ("GENPOOL_KEYS", f"{home}/worker.key") in worker.recipe.environment
    broker, worker = read('[broker]\nconnection-file = "~/broker.json"\nkeys = "~/keys"\n' + LLM).services
    assert broker.recipe.arguments == ("broker", f"--connection-file={home}/broker.json", f"--keys={home}/keys")
    assert f"--broker={home}/broker.json" in worker.recipe.arguments


def test_the_worker_can_parse_what_it_is_given(read: Read) -> None:
    _, *arguments = only(read(LLM + 'batch-size = 8\n[llm.a.set]\nstop = ["x"]')).recipe.arguments
    said = COMMANDS["worker"].make_context("worker", arguments).params
    assert (said["llm"], said["engine"], said["batch_size"], said["pairs"]) == ("a", "openai", 8, ('stop=["x"]',))


def test_a_broker_is_started_where_there_is_a_table(read: Read, tmp_path: Path) -> None:
    broker, worker = read('[broker]\nbind = "tcp://127.0.0.1:*"\nmax-attempts = 5\n' + LLM).services
    file = tmp_path / "run" / "broker.json"
    assert broker.is_broker
    assert broker.recipe.arguments == (
        "broker",
        "--bind=tcp://127.0.0.1:*",
        "--max-attempts=5",
        f"--connection-file={file}",
    )
    assert f"--broker={file}" in worker.recipe.arguments
    COMMANDS["broker"].make_context("broker", list(broker.recipe.arguments[1:]))


@pytest.mark.parametrize("key", ["connection-file", "connection_file"])
def test_the_connection_file_may_be_said(read: Read, tmp_path: Path, key: str) -> None:
    broker, worker = read(f'[broker]\n{key} = "b.json"\n' + LLM).services
    assert broker.recipe.arguments == ("broker", "--connection-file=b.json")
    assert f"--broker={tmp_path / 'b.json'}" in worker.recipe.arguments


def test_a_key_may_be_spelled_with_underscores(read: Read) -> None:
    assert read("drain_timeout = 60\n" + LLM).drain_s == 60.0


def test_paths_are_meant_from_the_files_folder(read: Read, tmp_path: Path) -> None:
    (tmp_path / "worker.key").touch()
    recipe = only(read('broker = "run/broker.json"\nkeys = "worker.key"\n' + LLM)).recipe
    assert f"--broker={tmp_path / 'run/broker.json'}" in recipe.arguments
    assert recipe.environment == (("GENPOOL_KEYS", str(tmp_path / "worker.key")),)


def test_without_a_broker_it_is_that_of_the_environment(read: Read) -> None:
    assert only(read(LLM)).recipe.arguments == ("worker", "--llm=a", "--engine=openai")


def test_gpus_are_those_that_are_seen_unless_the_file_names_them(read: Read) -> None:
    assert read(LLM + "gpus = 2", visible="0123").gpus == ("0", "1", "2", "3")
    assert read("gpus = [3]\n" + LLM + "gpus = 1", visible="0123").gpus == ("3",)
    assert read(LLM, visible="0123").gpus == ()


def test_the_same_text_is_the_same_state(read: Read) -> None:
    assert read(LLM + "gpus = 1", visible="0") == read(LLM + "gpus = 1", visible="0")


@pytest.mark.parametrize(
    ("text", "line", "key", "sentence"),
    [
        ("", 1, "", "there is nothing to start: add a table [llm.NAME]"),
        ('colour = "red"\n' + LLM, 1, "colour", "there is no such key here: there are broker, keys, gpus,"),
        (LLM + "colour = 1", 3, "llm.a.colour", "there is no such key here: there are batch-size, concurrency,"),
        (LLM + "lifeline = 1", 3, "llm.a.lifeline", "there is no such key here"),
        (LLM + 'broker = "a:1"', 3, "llm.a.broker", "there is no such key here"),
        (LLM + "restart = true", 3, "llm.a.restart", "there is no such key here"),
        (LLM + "replicas = -1", 3, "llm.a.replicas", "must be a whole number from 0 on, got -1"),
        (LLM + "replicas = true", 3, "llm.a.replicas", "must be a whole number from 0 on, got True"),
        (LLM + 'gpus = "all"', 3, "llm.a.gpus", "must be a whole number from 0 on, got 'all'"),
        (LLM + "gpus = 1", 3, "llm.a.gpus", "all replicas together need 1 GPUs, and there are 0: ask for fewer,"),
        ("gpus = [1, 1]\n" + LLM, 1, "gpus", "names a GPU twice"),
        ("gpus = 2\n" + LLM, 1, "gpus", "must be a list of GPUs, such as [0, 1], got 2"),
        (LLM + "batch-size = 8\nbatch_size = 4", 4, "llm.a.batch_size", "is there twice, as 'batch-size' too"),
        ('[broker]\nconnection_file = "a.json"\nconnection-file = "b.json"\n' + LLM, 3, "broker.connection-file", "is"),
        (LLM + 'batch_size = "8"', 3, "llm.a.batch_size", "must be a whole number, got '8'"),
        (LLM + "batch-size = 0", 3, "llm.a.batch-size", "0 is not in the range x>=1."),
        ('[llm.a]\nengine = "magic"', 2, "llm.a.engine", "'magic' is not one of"),
        ('\n[llm.a]\nmodel = "m"', 2, "llm.a", "needs either engine = "),
        (LLM + 'load = "a:b"', 1, "llm.a", "needs either engine = "),
        ('[llm.a]\nload = "a:b"\n[llm.a.set]\nx = 1', 3, "llm.a.set", "is for an engine; a function that load names"),
        (LLM + 'set = "x=1"', 3, "llm.a.set", "must be a table: write [llm.a.set]"),
        ('llm = "a"', 1, "llm", "must be a table: write [llm]"),
        ("[llm]\na = 1", 2, "llm.a", "must be a table: write [llm.a]"),
        ('[llm.broker]\nengine = "openai"', 1, "llm.broker", "cannot be an LLM's name here"),
        (LLM + "[llm.a.set]\nday = 2020-01-01", 4, "llm.a.set.day", "no setting is a date or a time, got 2020-01-01"),
        (LLM + '[llm.a.set]\napi_key = "sk-1"', 4, "llm.a.set.api_key", "is a secret, and others can read"),
        (LLM + '[llm.a.set]\nurl = "http://me:sk-1@h"', 4, "llm.a.set.url", "has a password in it"),
        (LLM + '[llm.a.env]\nHF_TOKEN = "sk-1"', 4, "llm.a.env.HF_TOKEN", "is a secret, and others can read this file"),
        (LLM + '[llm.a.env]\nURL = "http://me:sk-1@h"', 4, "llm.a.env.URL", "is a secret, and others can read this"),
        (LLM + "[llm.a.env]\nN = 4", 4, "llm.a.env.N", 'must be a text, got 4: write "4"'),
        (
            LLM + '[llm.a.env]\n"N=" = "4"',
            4,
            "llm.a.env.N=",
            "is no name of an environment variable: take one without '='",
        ),
        (LLM + '[llm.a.env]\n"" = "4"', 4, "llm.a.env.", "is no name of an environment variable: take one without '='"),
        (LLM + '[llm.a.env]\nN = "4\\u0000"', 4, "llm.a.env.N", NUL),
        (LLM + '[llm.a.env]\n"N\\u0000" = "4"', 4, "llm.a.env.N\\x00", NUL),
        (LLM + 'model = "m\\u0000"', 3, "llm.a.model", NUL),
        (LLM + '[llm.a.set]\nstop = "a\\u0000"', 4, "llm.a.set.stop", NUL),
        (LLM + '[llm.a.slurm]\ntime = "1\\u0000"', 4, "llm.a.slurm.time", NUL),
        ('[llm."\\u0000"]\nload = "a:b"', 1, "llm.\\x00", NUL),
        ('[llm.a]\nload = "a:b\\u0000"', 2, "llm.a.load", NUL),
        ('gpus = ["0\\u0000"]\n' + LLM, 1, "gpus", NUL),
        ('broker = "a\\u0000:1"\n' + LLM, 1, "broker", NUL),
        (LLM + '[llm.a.env]\nNOTIFY_SOCKET = "4"', 4, "llm.a.env.NOTIFY_SOCKET", "is set by `genpool up`"),
        (
            LLM + 'gpus = 0\n[llm.a.env]\nCUDA_VISIBLE_DEVICES = "4"',
            5,
            "llm.a.env.CUDA_VISIBLE_DEVICES",
            "is set by `genpool up` where gpus is given",
        ),
        ('broker = "nowhere"\n' + LLM, 1, "broker", "'nowhere' is neither an address"),
        ('broker = "tcp://a:99999"\n' + LLM, 1, "broker", "'tcp://a:99999' is no broker's address"),
        ("broker = 1\n" + LLM, 1, "broker", "must be an address, or a table of the options of `genpool broker`"),
        ("[broker]\nport = 1\n" + LLM, 2, "broker.port", "there is no such key here: there are bind, client-grace,"),
        ("[broker]\nbind = 1\n" + LLM, 2, "broker.bind", "must be a text, got 1"),
        ('keys = "absent.key"\n' + LLM, 1, "keys", "there is no key file"),
        ("keys = 1\n" + LLM, 1, "keys", "must be the path of a worker's key file, got 1"),
        (
            LLM + f"replicas = {10**30}",
            3,
            "llm.a.replicas",
            f"must be a whole number from 0 on, got {10**30}: take one up",
        ),
        (LLM + f"batch-size = {10**30}", 3, "llm.a.batch-size", f"{10**30} is more than 1000000000, a billion"),
        (LLM + "row-timeout = 1e12", 3, "llm.a.row-timeout", "1e+12 is more than 100000000 seconds"),
        pytest.param(f"[llm.{'n' * 300}]", 1, f"llm.{'n' * 300}", "is too long for the names", id="300 letters"),
        pytest.param(f'[llm."{"ä" * 40}"]', 1, f"llm.{'ä' * 40}", "is too long for the names", id="40 quoted letters"),
        ("drain-timeout = 1e9\n" + LLM, 1, "drain-timeout", "must be a number of seconds, got 1000000000.0: take one"),
        pytest.param(
            f"drain-timeout = {10**400}\n" + LLM,
            1,
            "drain-timeout",
            "must be a number of seconds, got 1000",
            id="10**400",
        ),
        ("drain-timeout = -1\n" + LLM, 1, "drain-timeout", "must be a number of seconds, got -1"),
        ("gpus = [0]\ndrain_timeout = -1\n" + LLM, 2, "drain_timeout", "must be a number of seconds, got -1"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_key(
    read: Read, tmp_path: Path, text: str, line: int, key: str, sentence: str
) -> None:
    with pytest.raises(ConfigurationError) as raised:
        read(text)
    place = f"{key}: " if key else ""
    assert str(raised.value).startswith(f"{tmp_path / 'fleet.toml'}, line {line}: {place}{sentence}")
    assert "sk-1" not in str(raised.value)


def test_what_is_no_toml_is_told_with_its_line(read: Read) -> None:
    with pytest.raises(ConfigurationError, match=r"is no TOML file: .*line 2"):
        read("[llm.a]\nengine = \n")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"the fleet file .*absent\.toml cannot be read: No such file"):
        read_fleet(tmp_path / "absent.toml", tmp_path, COMMANDS, tuple)


DEPLOY = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text()


@pytest.mark.parametrize("example", re.findall(r"```toml\n(.*?)```", DEPLOY, re.DOTALL))
def test_the_examples_of_the_docs_are_some(read: Read, tmp_path: Path, example: str) -> None:
    (tmp_path / "worker.key").touch()
    on = next((place for place in ("slurm", "ray") if f"[{place}]" in example), "local")
    fleet = read(example, visible="0123", on=on)
    assert fleet.services
    if on == "ray":
        assert set(read_ray(fleet.path, fleet).options) == {service.name for service in fleet.services}


def test_what_is_said_to_sbatch(read: Read) -> None:
    text = 'broker = "h:1"\n[slurm]\npartition = "gpu"\nexclusive = true\n' + LLM + "replicas = 9\ngpus = 2\n"
    service = only(read(text + '[llm.a.slurm]\nmem_per_cpu = "4G"\npartition = "big"\nexclusive = false\n', on="slurm"))
    assert dict(service.slurm) == {"partition": "big", "mem-per-cpu": "4G"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (HEAD + LLM + '[llm.a.slurm]\narray = "1-3"\n', r"line 5: llm\.a\.slurm\.array: is set by `genpool up`"),
        (
            HEAD + LLM + "[llm.a.slurm]\ntime = 1.5\n",
            r"line 5: llm\.a\.slurm\.time: must be a text, a whole number or true",
        ),
        (HEAD + LLM + "slurm = 1\n", r"line 4: llm\.a\.slurm: must be a table"),
        ("[broker]\n" + LLM, r"line 1: broker: the hosts of a cluster need a broker that is there already"),
        (LLM, r"line 1: the hosts of a cluster must be told their broker"),
    ],
    ids=["array", "number", "no table", "own broker", "no broker"],
)
def test_what_cannot_be_said_to_sbatch(read: Read, text: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        read(text, on="slurm")


def test_the_example_of_the_module_is_one() -> None:
    import genpool.launcher.fleet_file as module

    assert module.__doc__ is not None
    assert tomllib.loads(module.__doc__.split("\n", 2)[2])["llm"]["smollm2"]["replicas"] == 2
