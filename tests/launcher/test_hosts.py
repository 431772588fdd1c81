"""docs/deploy.md as a new user goes through it: three hosts with keys, brought up by fleet files; one is unplugged."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from fleet import PATIENCE_S, until
from hosts import Host, another_host
from noted import began, ended, environment
from process import is_alive

from genpool import LLMPool
from genpool.launcher.place import Place
from genpool.protocol.address import KEYS, read_connection_file

# Short, so that a host that is unplugged is missed soon.
TIMEOUT_S = 2


class Site:
    """A host with a fleet file of its own, in ``folder``; ``host`` runs a command there."""

    def __init__(self, folder: Path, host: Sequence[str] = ()) -> None:
        folder.mkdir()
        self.file = folder / "fleet.toml"
        self._host = host
        self._place = Place.of(self.file, None)

    def run(self, *arguments: str) -> str:
        line = [*self._host, sys.executable, "-m", "genpool.cli", *arguments]
        said = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            line, cwd=self.file.parent, env=said, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def up(self) -> None:
        self.run("up", "--detach", "fleet.toml")

    def down(self) -> None:
        self.run("down", "fleet.toml", "--timeout", "5")

    def end(self) -> None:
        """By force, if it is still up."""
        status = self._place.status()
        if status is not None and is_alive(status.pid):
            os.kill(status.pid, signal.SIGKILL)
            until(lambda: not any(one["pid"] and is_alive(one["pid"]) for one in status.processes), "the end of all")


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    with ExitStack() as stack:
        yield [stack.enter_context(another_host()) for _ in range(2)]


@pytest.fixture
def sites(tmp_path: Path, hosts: list[Host]) -> Iterator[list[Site]]:
    """``head``, where we are, and a host for each of the GPUs' names."""
    sites = [Site(tmp_path / "head"), *(Site(tmp_path / host.name, host.command) for host in hosts)]
    yield sites
    for site in sites:
        site.end()


def start(sites: list[Site], hosts: list[Host], folder: Path) -> Path:
    """Bring all up. Returns the broker's connection file."""
    head, *others = sites
    keys = head.file.parent / "keys"
    head.run("keys", "new", "keys")
    broker = f'[broker]\nbind = "tcp://0.0.0.0:*"\nkeys = "keys"\nheartbeat-timeout = {TIMEOUT_S}\n'
    env = "".join(f'{name} = "{value}"\n' for name, value in environment(folder, concurrency=2).items())
    llm = f'[llm.{{}}]\nload = "noted:load"\nreplicas = 2\nheartbeat-timeout = {TIMEOUT_S}\n[llm.{{}}.env]\n{env}'
    head.file.write_text(broker + llm.format("small", "small"))
    head.up()
    (file,) = head.file.parent.glob("fleet.run/*/broker.json")
    port = read_connection_file(file).address.rpartition(":")[2]
    for site, host in zip(others, hosts, strict=True):
        key = site.file.parent / "worker.key"
        key.touch(0o600)
        key.write_bytes((keys / "worker.key").read_bytes())
        site.file.write_text(f'broker = "{host.here}:{port}"\nkeys = "worker.key"\n' + llm.format("qwen", "qwen"))
        site.up()
    return file


def test_three_hosts_with_keys_and_one_is_unplugged_in_the_midst_of_a_call(
    sites: list[Site], hosts: list[Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = start(sites, hosts, tmp_path)
    port = read_connection_file(file).address.rpartition(":")[2]
    monkeypatch.setenv(KEYS, str(sites[0].file.parent / "keys" / "client.key"))
    names = [f"row{number}" for number in range(40)]
    with LLMPool.connect(["small", "qwen"], broker=f"127.0.0.1:{port}") as pool:
        future = pool.submit([{"input": f"sleep:0.2 {name}"} for name in names], 2, timeout=50)
        until(lambda: len(ended(tmp_path)) > 4, "the first rows")
        hosts[1].unplug()
        outputs = future.result()
        assert [[output["raw_output"].split()[1] for output in row] for row in outputs] == [
            [name.upper()] * 2 for name in names
        ]
        hosts[1].plug()
        again = pool.submit([{"input": "quick last"}], 2, timeout=50)
        assert len(again.result()[0]) == 2
    assert set(began(tmp_path)) == {*names, "last"}
    for site in reversed(sites):
        site.down()
    assert not file.exists()
