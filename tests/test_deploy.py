"""The files of scripts/deploy: supervisord's on the real one, systemd's as systemd reads them, Kubernetes' parsed."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from fleet import PATIENCE_S, Fleet, until
from noted import environment
from process import is_alive

from genpool import ProcessLLM
from genpool.cli import genpool
from genpool.worker.config import read_config

DEPLOY = Path(__file__).parents[1] / "scripts" / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
SUPERVISORD = DEPLOY / "supervisord.conf"


def check_command(line: list[str]) -> None:
    """Fails where ``genpool ARGUMENTS`` has a word that the command does not know; values are not looked at."""
    assert Path(line[0]).name == "genpool"
    command = command_of(line[1])
    _, rest, _ = command.make_parser(click.Context(command)).parse_args(line[2:])
    assert not rest


def command_of(name: str) -> click.Command:
    command = genpool.get_command(click.Context(genpool), name)  # type: ignore[attr-defined]
    assert command is not None
    return command


# supervisord.


class Supervised(Fleet):
    """What the project's configuration starts in ``folder``, on a free port."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.connection_file = folder / "broker.json"
        self.address = str(self.connection_file)
        config = folder / "worker.toml"
        config.write_text('llm = "noted"\nload = "noted:load"\n')
        self.environment = {
            **os.environ,
            **environment(folder),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "GENPOOL_RUN": str(folder),
            "GENPOOL_WORKER_CONFIG": str(config),
            "GENPOOL_BROKER_BIND": "tcp://127.0.0.1:*",
        }
        with (folder / "supervisor.log").open("wb") as stream:
            self.supervisord = subprocess.Popen(
                self.command("supervisord", "-c", str(SUPERVISORD)), env=self.environment, stdout=stream, stderr=stream
            )
        self.processes.append(self.supervisord)

    def __exit__(self, *_: object) -> None:
        pids = self.pids.values()
        self.supervisord.terminate()
        try:
            self.supervisord.wait(PATIENCE_S)
        finally:
            for pid in pids:
                if is_alive(pid):
                    os.kill(pid, signal.SIGKILL)
            super().__exit__()

    @staticmethod
    def command(program: str, *arguments: str) -> list[str]:
        return [sys.executable, "-W", "ignore", "-m", f"supervisor.{program}", *arguments]

    @property
    def pids(self) -> dict[str, int]:
        """Of what runs, by name."""
        line = self.command("supervisorctl", "-c", str(SUPERVISORD), "status")
        done = subprocess.run(line, env=self.environment, capture_output=True, text=True, timeout=PATIENCE_S)
        words = [line.replace(",", "").split() for line in done.stdout.splitlines()]
        return {one[0]: int(one[one.index("pid") + 1]) for one in words if "pid" in one}

    def serving(self) -> set[int]:
        workers = [worker for llm in self.report()["llms"] for worker in llm["workers"]]
        return {worker["pid"] for worker in workers if worker["state"] == "ready"}


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    with Supervised(tmp_path) as supervised:
        until(lambda: supervised.connection_file.exists(), "the broker's start")
        yield supervised


def test_under_supervisord_a_worker_that_is_killed_comes_back_and_serves_and_all_ends_with_it(
    supervised: Supervised,
) -> None:
    until(lambda: len(supervised.serving()) == 2, "both workers")
    before = supervised.serving()
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    until(lambda: len(supervised.serving() - before) == 2, "both workers' return")
    llm = ProcessLLM.connect("noted", broker=supervised.address)
    try:
        assert llm.generate([{"input": "quick row"}], timeout=PATIENCE_S).result()
    finally:
        llm.teardown()
    until(lambda: len(supervised.pids) == 3, "supervisord's word that all run")
    pids = supervised.pids
    assert set(pids) == {"genpool-broker", "genpool-worker:genpool-worker-0", "genpool-worker:genpool-worker-1"}
    supervised.supervisord.terminate()
    assert supervised.supervisord.wait(PATIENCE_S) == 0
    assert not any(map(is_alive, pids.values()))
    # All have drained: the broker has removed its connection file, which it does only at a clean end.
    assert not supervised.connection_file.exists()


def test_supervisords_commands_can_be_parsed() -> None:
    said = ConfigParser(interpolation=None)
    said.read(SUPERVISORD)
    lines = [said[section]["command"] for section in said if section.startswith("program:")]
    assert len(lines) == 2
    for line in lines:
        check_command(shlex.split(line))


# systemd.


def directives(unit: Path) -> list[tuple[str, str]]:
    lines = [line for line in unit.read_text().splitlines() if line and line[0] not in "#["]
    return [(name, value) for name, _, value in (line.partition("=") for line in lines)]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_units_command_can_be_parsed_and_it_waits_for_a_drain(unit: Path) -> None:
    said = dict(directives(unit))
    check_command(shlex.split(said["ExecStart"]))
    assert said["Type"] == "notify"
    assert said["Restart"] == "on-failure"
    assert int(said["TimeoutStopSec"]) > 10  # a drain waits 5 s for clients to take the last answers


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_takes_a_unit(unit: Path, tmp_path: Path) -> None:
    # The command must be there: it is, in another place.
    here = tmp_path / unit.name.replace("@.", "@qwen.")
    executable = Path(sys.executable).with_name("genpool")
    here.write_text(unit.read_text().replace("/opt/genpool/bin/genpool", f'"{executable}"'))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(here)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    assert unit.stem.split("@")[0] not in done.stderr


# Kubernetes.


def documents() -> list[dict[str, Any]]:
    return [one for path in MANIFESTS for one in yaml.safe_load_all(path.read_text())]


def containers() -> list[dict[str, Any]]:
    specs = [one["spec"]["template"]["spec"] for one in documents() if one["kind"] == "Deployment"]
    return [container for spec in specs for container in spec["containers"]]


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [one for one in documents() if one["kind"] == kind]


@pytest.mark.parametrize("container", containers(), ids=lambda one: one["name"])
def test_a_containers_command_and_environment_can_be_parsed(container: dict[str, Any]) -> None:
    check_command(container["command"])
    prefix = f"GENPOOL_{container['command'][1].upper()}_"
    options = [param.opts[0].lstrip("-") for param in command_of(container["command"][1]).params]
    known = {prefix + option.replace("-", "_").upper() for option in options}
    assert {one["name"] for one in container["env"] if one["name"].startswith(prefix)} <= known


@pytest.mark.parametrize("deployment", of_kind("Deployment"), ids=lambda one: one["metadata"]["name"])
def test_a_deployment_is_one_with_itself(deployment: dict[str, Any]) -> None:
    template = deployment["spec"]["template"]
    assert deployment["spec"]["selector"]["matchLabels"] == template["metadata"]["labels"]
    (container,) = template["spec"]["containers"]
    volumes = template["spec"]["volumes"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in volumes}
    assert template["spec"]["terminationGracePeriodSeconds"] > 10
    assert "readinessProbe" in container
    # A key that others can read is refused; YAML has read the octal number.
    assert [one["secret"]["defaultMode"] for one in volumes if "secret" in one] == [0o400]


def test_workers_scale_on_the_queue_of_their_own_llm() -> None:
    (config,) = of_kind("ConfigMap")
    name = config["metadata"]["name"]
    llm = tomllib.loads(config["data"]["worker.toml"])["llm"]
    (scaled,) = of_kind("ScaledObject")
    assert scaled["spec"]["scaleTargetRef"]["name"] == scaled["metadata"]["name"] == name
    (trigger,) = scaled["spec"]["triggers"]
    assert trigger["metadata"]["query"] == f'sum(genpool_queued_rows{{llm="{llm}"}})'


def test_the_workers_file_is_one(tmp_path: Path) -> None:
    (config,) = of_kind("ConfigMap")
    path = tmp_path / "worker.toml"
    path.write_text(config["data"]["worker.toml"])
    command = command_of("worker")
    context = click.Context(command)
    option = next(param for param in command.params if param.name == "config")
    assert read_config(context, option, path) is not None
    assert context.default_map is not None
    assert context.default_map["llm"] == "qwen"


def test_the_workers_probe_says_whether_it_is_ready(tmp_path: Path) -> None:
    (worker,) = [one for one in containers() if one["name"] == "worker"]
    line = [word.replace("/keys/client.key", "") for word in worker["readinessProbe"]["exec"]["command"]]

    with Fleet(tmp_path) as fleet:
        fleet.start_broker()
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        told = {**os.environ, "PATH": path, "GENPOOL_BROKER": fleet.address}

        def is_ready() -> bool:
            done = subprocess.run(line, env=told, capture_output=True, text=True, timeout=PATIENCE_S)
            assert not done.stderr
            return done.returncode == 0

        assert not is_ready()
        fleet.start_worker("noted", "--load", "noted:load", environment=environment(tmp_path))
        until(is_ready, "a probe that succeeds")
