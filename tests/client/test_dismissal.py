"""``genpool drain`` and ``genpool kick`` on real fleets."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from echo import command
from fleet import PATIENCE_S, Fleet, until
from noted import began, ended, environment, noted

from genpool import LLMOutput, ProcessLLM
from genpool.broker.keyring import new_keyring
from genpool.client.dismissal import DrainSettings, run_drain, run_kick
from genpool.protocol.address import KEYS
from genpool.protocol.errors import ConfigurationError, Refused

# Says of itself that it is another host.
HOST = "import os, socket\nsocket.gethostname = lambda: os.environ['HOST_NAME']\n"
WAITING = ["one", "two"]
QUICK = [f"quick{number}" for number in range(8)]


class Served(Fleet):
    """A fleet in which a row that is charged once fails at once: so none is."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (folder / "sitecustomize.py").write_text(HOST)

    def serve(self, llm: str = "noted", host: str = "here", concurrency: int = 1) -> subprocess.Popen[bytes]:
        given = environment(self.folder, concurrency=concurrency)
        given |= {"HOST_NAME": host, "PYTHONPATH": os.pathsep.join([str(self.folder), given["PYTHONPATH"]])}
        return self.start_worker(llm, "--load", "noted:load", environment=given)

    def wait_for_workers(self, **states: str) -> None:
        """Wait until each host's workers are in the state that is said of it, and there are no others."""
        self.wait_for(lambda report: {one["host"]: one["state"] for one in workers(report)} == states)

    def let_go(self) -> None:
        for name in WAITING:
            (self.folder / f"{name}.go").touch()


def workers(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for llm in report["llms"] for one in llm["workers"]]


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.delenv(KEYS, raising=False)
    with Served(tmp_path) as fleet:
        fleet.start_broker("--max-attempts", "1")
        yield fleet


@pytest.fixture
def llm(fleet: Served) -> Iterator[ProcessLLM]:
    llm = ProcessLLM.connect("noted", broker=fleet.address)
    yield llm
    llm.teardown()


def begin(fleet: Served, llm: ProcessLLM) -> Future[list[list[LLMOutput]]]:
    """Rows of which the first two run until they are let go, one at each worker."""
    words = [*(f"wait {name}" for name in WAITING), *(f"quick {name}" for name in QUICK)]
    future = llm.generate([{"input": text} for text in words])
    until(lambda: len(began(fleet.folder)) == len(WAITING), "the start of the first rows")
    return future


def names(future: Future[list[list[LLMOutput]]]) -> list[str]:
    return [str(row[0]["raw_output"]).split()[1].lower() for row in future.result(PATIENCE_S)]


def run(fleet: Fleet, *arguments: str, keys: Path | None = None) -> subprocess.CompletedProcess[str]:
    given = {**os.environ, "GENPOOL_BROKER": fleet.address, **({KEYS: str(keys)} if keys else {})}
    return subprocess.run(
        command(*arguments), env=given, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def test_one_of_two_workers_is_drained_in_the_middle_of_a_call(fleet: Served, llm: ProcessLLM, tmp_path: Path) -> None:
    first, second = fleet.serve(host="gpu1"), fleet.serve(host="gpu2")
    fleet.wait_for_workers(gpu1="ready", gpu2="ready")
    future = begin(fleet, llm)
    drain = fleet.start("drain", f"gpu1:{first.pid}", "--broker", fleet.address)
    fleet.wait_for_workers(gpu1="draining", gpu2="ready")
    said = tmp_path / "3-drain.log"
    until(lambda: "waiting for 1 worker to end 1 row\n" in said.read_text(), "a word about who is waited for")
    assert drain.poll() is None
    fleet.let_go()
    assert names(future) == WAITING + QUICK
    assert drain.wait(PATIENCE_S) == first.wait(PATIENCE_S) == 0
    assert said.read_text().endswith(f"1 worker gone, which ran 1 row: gpu1:{first.pid}\n")
    assert began(tmp_path) == ended(tmp_path) == dict.fromkeys(WAITING + QUICK, 1)
    ran_by_first = [name for name, pid in noted(tmp_path, "began") if pid == first.pid]
    assert ran_by_first in (["one"], ["two"])
    assert second.poll() is None
    fleet.wait_for_workers(gpu2="ready")


def test_a_host_is_drained_or_of_it_the_workers_of_one_llm(fleet: Served) -> None:
    noted_one = fleet.serve(host="gpu1")
    other = fleet.serve("other", host="gpu1")
    stays = fleet.serve(host="gpu2")
    fleet.wait_for(lambda report: [one["state"] for one in workers(report)] == ["ready"] * 3)
    done = run(fleet, "drain", "gpu1", "--llm", "other")
    assert (done.returncode, done.stdout) == (0, f"1 worker gone, which ran 0 rows: gpu1:{other.pid}\n")
    assert done.stderr == "genpool: waiting for 1 worker to end\n"
    assert other.wait(PATIENCE_S) == 0
    assert noted_one.poll() is None
    done = run(fleet, "drain", "gpu1")
    assert (done.returncode, done.stdout) == (0, f"1 worker gone, which ran 0 rows: gpu1:{noted_one.pid}\n")
    assert noted_one.wait(PATIENCE_S) == 0
    assert stays.poll() is None
    done = run(fleet, "drain", "gpu1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"genpool: there is no worker 'gpu1'; there are gpu2:{stays.pid}\n"


def test_a_drain_need_not_be_waited_for(fleet: Served, llm: ProcessLLM) -> None:
    worker = fleet.serve(concurrency=2)
    future = begin(fleet, llm)
    done = run(fleet, "drain", str(worker.pid), "--timeout", "0.2")
    assert done.returncode == 1
    assert done.stderr.endswith(f"1 worker still there after 0.2 s, draining: here:{worker.pid}\n")
    done = run(fleet, "drain", str(worker.pid), "--no-wait")
    assert done.returncode == 0
    assert done.stdout == f"1 worker will end with the last of 2 rows: here:{worker.pid}\n"
    assert worker.poll() is None
    another = fleet.serve(concurrency=2)
    fleet.let_go()
    assert worker.wait(PATIENCE_S) == 0
    assert names(future) == WAITING + QUICK
    assert another.poll() is None


def test_a_client_is_kicked_in_the_middle_of_a_call(fleet: Served, llm: ProcessLLM, tmp_path: Path) -> None:
    fleet.serve(host="gpu1")
    fleet.serve(host="gpu2")
    future = begin(fleet, llm)
    done = run(fleet, "kick", str(os.getpid()))
    assert done.returncode == 0
    assert done.stdout == f"{socket.gethostname()}:{os.getpid()} was kicked, and 10 rows withdrawn\n"
    with pytest.raises(Refused, match="an admin has ended the session of this client"):
        future.result(PATIENCE_S)
    # Nobody wants what runs any more, and what did not run is not run.
    fleet.wait_for(lambda report: report["rows"] == 0 and not any(one["running"] for one in workers(report)))
    assert set(began(tmp_path)) == set(WAITING)
    assert not ended(tmp_path)
    # Who connects anew may come in.
    again = ProcessLLM.connect("noted", broker=fleet.address)
    assert names(again.generate([{"input": "quick again"}])) == ["again"]
    again.teardown()


def test_a_client_that_is_not_there_cannot_be_kicked(fleet: Served) -> None:
    done = run(fleet, "kick", "nowhere:1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "genpool: there is no client 'nowhere:1'; there is none at all\n"


def test_a_name_that_is_too_long_to_be_sent_is_refused_at_once(tmp_path: Path) -> None:
    """A broker would end the connection of who sends it, again and again, and then keep the admin's key out."""
    nowhere, long = f"ipc://{tmp_path}/none", "ü" * 513
    for name, llm in ((long, ""), ("gpu1", long)):
        with pytest.raises(ConfigurationError, match="more than 1024 bytes: 'üü"):
            run_drain(DrainSettings(nowhere, name, llm, None))
    with pytest.raises(ConfigurationError, match="more than 1024 bytes: 'üü"):
        run_kick(nowhere, long)


def test_with_keys_only_an_admin_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = tmp_path / "keys"
    new_keyring(keys)
    monkeypatch.setenv(KEYS, str(keys / "admin.key"))
    with Served(tmp_path) as fleet:
        fleet.start_broker("--keys", str(keys))
        monkeypatch.setenv(KEYS, str(keys / "worker.key"))
        worker = fleet.serve()
        monkeypatch.setenv(KEYS, str(keys / "admin.key"))
        fleet.wait_for_workers(here="ready")
        for arguments in (("drain", "here"), ("kick", "1"), ("drain", "nobody")):
            done = run(fleet, *arguments, keys=keys / "client.key")
            assert (done.returncode, done.stdout) == (4, "")
            assert "only an admin may drain workers and kick clients, and this key (client) is none" in done.stderr
        assert worker.poll() is None
        assert run(fleet, "drain", "here", keys=keys / "admin.key").returncode == 0
        assert worker.wait(PATIENCE_S) == 0


def test_without_a_broker_it_says_where(fleet: Served, tmp_path: Path) -> None:
    done = run(fleet, "drain", "here", "--broker", f"ipc://{tmp_path}/none")
    assert done.returncode == 3
    assert "genpool: no broker at" in done.stderr
