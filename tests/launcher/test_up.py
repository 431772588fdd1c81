"""``genpool up`` and ``genpool down``, the real commands with real workers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from echo import command
from fleet import PATIENCE_S, Fleet, until
from noted import began, noted
from process import is_alive

from genpool import ProcessLLM
from genpool.launcher.place import Place, Status

BROKER = '[broker]\nbind = "tcp://127.0.0.1:*"\nsettle = 0.2\n'


class Host(Fleet):
    """A host that is brought to the state of a fleet file; the commands run with what the LLM of noted.py needs."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.file = folder / "fleet.toml"
        self.place = Place.of(self.file, None)
        self._known: set[int] = set()

    def __exit__(self, *_: object) -> None:
        status = self.place.status()
        if status is not None and is_alive(status.pid):
            os.kill(status.pid, signal.SIGKILL)
        super().__exit__()
        pids = self._known
        until(lambda: not any(map(is_alive, pids)), f"the end of {pids}")

    def write(self, *llms: str, head: str = BROKER) -> None:
        self.file.write_text(head + "".join(llms))

    def llm(self, name: str = "noted", replicas: int = 1, load: str = "noted:load", more: str = "", **env: str) -> str:
        environment = {"NOTED": str(self.folder), "CONCURRENCY": "2", "PYTHONPATH": str(Path(__file__).parents[1])}
        lines = [f'{key} = "{value}"' for key, value in {**environment, **env}.items()]
        table = f'[llm.{name}]\nload = "{load}"\nreplicas = {replicas}\n{more}\n[llm.{name}.env]\n'
        return table + "\n".join(lines) + "\n"

    def run(self, *arguments: str, code: int = 0) -> str:
        """What ``genpool ARGUMENTS`` says."""
        done = subprocess.run(
            command(*arguments), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert done.returncode == code, done.stderr
        self.status()
        return done.stderr

    def up(self, *arguments: str, code: int = 0) -> str:
        said = self.run("up", "--detach", "--timeout", "25", str(self.file), *arguments, code=code)
        if (self.place.folder / "broker.json").exists():
            self.address = str(self.place.folder / "broker.json")
        return said

    def down(self, *arguments: str) -> str:
        return self.run("down", str(self.file), *arguments)

    def status(self) -> Status:
        status = self.place.status() or Status(0, "", {}, False, [])
        self._known |= {one["pid"] for one in status.processes if one["pid"]} | ({status.pid} - {0})
        return status

    @property
    def pids(self) -> dict[str, int]:
        """Of what runs, by name."""
        return {one["name"]: one["pid"] for one in self.status().processes}

    def served(self) -> list[dict[str, Any]]:
        """The workers that are ready, as the broker sees it."""
        return [
            worker
            for llm in self.report()["llms"]
            for worker in llm["workers"]
            if worker["state"] == "ready" and is_alive(worker["pid"])
        ]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # launchers that are killed leave their folders there
    with Host(tmp_path) as host:
        yield host


@pytest.fixture
def llm(host: Host) -> Iterator[ProcessLLM]:
    """Of a fleet that is up."""
    llm = ProcessLLM.connect("noted", broker=host.address)
    yield llm
    llm.teardown()


@pytest.fixture
def pair(host: Host) -> Host:
    """It is up, with a broker and two replicas."""
    host.write(host.llm(replicas=2))
    host.up()
    return host


def test_a_worker_that_is_killed_comes_back_and_serves(pair: Host) -> None:
    before = pair.pids
    assert set(before) == {"broker-1", "noted-1", "noted-2"}
    assert {worker["pid"] for worker in pair.served()} == {before["noted-1"], before["noted-2"]}
    os.kill(before["noted-1"], signal.SIGKILL)
    os.kill(before["noted-2"], signal.SIGKILL)
    dead = {before["noted-1"], before["noted-2"]}
    until(lambda: len({worker["pid"] for worker in pair.served()} - dead) == 2, "both workers' return")
    until(lambda: pair.status().is_settled and not dead & set(pair.pids.values()), "the launcher's word")
    llm = ProcessLLM.connect("noted", broker=pair.address)
    try:
        assert llm.generate([{"input": "quick row"}], timeout=PATIENCE_S).result()
    finally:
        llm.teardown()


def test_only_what_differs_changes(host: Host) -> None:
    host.write(host.llm("a"), host.llm("b"), host.llm("c", 2))
    host.up()
    before = host.pids
    assert "asked to end" not in host.up()
    assert host.pids == before

    host.write(host.llm("a"), host.llm("c", 1), host.llm("d"))
    host.up()
    after = host.pids
    assert set(after) == {"broker-1", "a-1", "c-1", "d-1"}
    assert all(after[name] == before[name] for name in ("broker-1", "a-1", "c-1"))
    until(lambda: not is_alive(before["b-1"]) and not is_alive(before["c-2"]), "the end of those that went")


@pytest.mark.parametrize("how", ["a change", "--restart"])
def test_a_rolling_restart_in_the_midst_of_a_call_loses_no_row_and_somebody_serves_at_all_times(
    pair: Host, llm: ProcessLLM, tmp_path: Path, how: str
) -> None:
    before = pair.pids
    stop, served = threading.Event(), list[int]()

    def look() -> None:
        while not stop.wait(0.01):
            served.append(len(pair.served()))

    looker = threading.Thread(target=look)
    looker.start()
    try:
        names = [f"row{number}" for number in range(200)]
        future = llm.generate([{"input": f"sleep:0.05 {name}"} for name in names], timeout=PATIENCE_S)
        until(lambda: began(tmp_path), "the first row")
        if how == "--restart":
            pair.up("--restart", "noted")
        else:
            pair.write(pair.llm(replicas=2, more="batch-size = 2"))
            pair.up()
        outputs = future.result()
    finally:
        stop.set()
        looker.join()
    assert [row[0]["raw_output"].split()[1] for row in outputs] == [name.upper() for name in names]
    after = pair.pids
    assert after["broker-1"] == before["broker-1"]
    workers = {pid for name, pid in after.items() if name != "broker-1"}
    assert len(workers) == 2
    assert not workers & set(before.values())
    assert len(served) > 5
    assert min(served) > 0
    # A drain gives back what it has not begun, and finishes the rest.
    assert Counter(name for name, _ in noted(tmp_path, "ended")) == Counter(names)


def test_down_drains_and_leaves_nothing(pair: Host, llm: ProcessLLM, tmp_path: Path) -> None:
    pids = set(pair.pids.values()) | {pair.status().pid}
    future = llm.generate([{"input": "wait row"}], timeout=PATIENCE_S)
    until(lambda: began(tmp_path), "the start of the row")
    closing = subprocess.Popen(command("down", str(pair.file)), stderr=subprocess.DEVNULL)
    pair.wait_for(lambda report: any(one["state"] == "draining" for one in report["llms"][0]["workers"]))
    (tmp_path / "row.go").touch()
    assert future.result()
    assert closing.wait(PATIENCE_S) == 0
    until(lambda: not any(map(is_alive, pids)), "the end of all")
    assert {path.suffix for path in pair.place.folder.iterdir()} == {".log"}
    assert "nothing of" in pair.down()


def test_down_of_a_file_that_is_not_there_is_a_mistake(host: Host) -> None:
    assert host.run("down", str(host.file), code=2) == (
        f"genpool: there is no fleet file {host.file}, and nothing of it runs on this host\n"
    )


def test_down_kills_what_does_not_drain_in_time(pair: Host, llm: ProcessLLM, tmp_path: Path) -> None:
    pids = pair.pids.values()
    llm.generate([{"input": "hang row"}])
    until(lambda: began(tmp_path), "the start of the row")
    assert "did not end in time; it is killed" in pair.down("--timeout", "0.5")
    until(lambda: not any(map(is_alive, pids)), "the end of all")


def test_nothing_outlives_the_launcher_and_the_next_one_begins_anew(pair: Host) -> None:
    before = pair.pids
    os.kill(pair.status().pid, signal.SIGKILL)
    until(lambda: not any(map(is_alive, before.values())), "the end of all")
    pair.up()
    assert len(pair.served()) == 2
    assert not set(pair.pids.values()) & set(before.values())


def test_a_file_that_is_wrong_changes_nothing(pair: Host) -> None:
    before = pair.pids
    assert "there is no 'absent' in" in pair.up("--restart", "absent", code=2)
    pair.write(pair.llm(replicas=2, more="batch_size = 0"))
    assert f"{pair.file}, line 7: llm.noted.batch_size: 0 is not in the range x>=1" in pair.up(code=2)
    pair.write(pair.llm(replicas=2, **{'"A="': "1"}))
    assert "llm.noted.env.A=: is no name of an environment variable" in pair.up(code=2)
    assert pair.pids == before


def test_what_is_started_in_the_background_detaches_no_more_whatever_the_environment_says(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENPOOL_UP_DETACH", "1")
    host.write(host.llm())
    assert "all 2 are ready" in host.up()


def test_of_many_that_begin_at_once_one_is_the_launcher_and_none_follows_itself(host: Host) -> None:
    host.write(host.llm())
    starts = [host.start("up", "--detach", str(host.file)) for _ in range(4)]
    codes = [process.wait(PATIENCE_S) for process in starts]
    assert 0 in codes
    assert set(codes) <= {0, 2}, "2 says that another one has begun in this moment"
    assert host.place.own_log.read_text().count("broker-1 is started") == 1
    host.down()


def test_one_that_cannot_be_used_is_told_with_what_it_logged(host: Host) -> None:
    host.write(host.llm(load="noted:absent"))
    said = host.up(code=1)
    assert "noted-1 ended (exit code 2): genpool: " in said
    assert "absent" in said
    assert "noted-1 ended; see the logs in" in said
    # The way out is a file that is right.
    host.write(host.llm())
    host.up()
    assert len(host.served()) == 1


def test_each_has_its_gpus(host: Host) -> None:
    gpus = "gpus = [4, 5, 6]\n"
    host.write(host.llm("a", 2, more="gpus = 1"), host.llm("b", more="gpus = 0"), host.llm("c"), head=gpus + BROKER)
    host.up()
    seen = {
        name: dict(
            line.split("=", 1) for line in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in line
        ).get("CUDA_VISIBLE_DEVICES")
        for name, pid in host.pids.items()
    }
    ours = os.environ.get("CUDA_VISIBLE_DEVICES")
    assert seen == {"broker-1": ours, "a-1": "4", "a-2": "5", "b-1": "", "c-1": ours}


def test_its_broker_serves_metrics_where_the_file_says_so(host: Host) -> None:
    host.write(host.llm(), head=BROKER + 'http = "127.0.0.1:0"\n')
    host.up()
    log = host.place.log_of("broker-1").read_text()
    found = re.search(r"on (http://127\.0\.0\.1:\d+)$", log, re.MULTILINE)
    assert found is not None, log
    with urllib.request.urlopen(f"{found[1]}/metrics", timeout=PATIENCE_S) as answer:
        assert 'genpool_workers{llm="noted",state="ready"} 1.0' in answer.read().decode()
    host.down()


def test_all_that_is_said_is_json_where_the_log_is(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.write(host.llm())
    host.up()
    monkeypatch.setenv("GENPOOL_LOG_FORMAT", "json")
    # The first launcher logs text.
    said = [host.up(), host.down(), host.up(), host.down(), host.down()]
    messages = [[str(json.loads(line)["message"]) for line in one.splitlines()] for one in said]
    ready = f"all 2 are ready; logs are in {host.place.folder}"
    assert messages[0] == [ready]
    assert messages[1][-1].endswith("broker-1 is stopped")
    assert messages[2][-1] == ready
    assert messages[3][-1] == "broker-1 is stopped"
    assert messages[4] == [f"nothing of {host.file} runs on this host"]


@pytest.mark.parametrize("arguments", [["--detach"], []], ids=["in the background", "in the foreground"])
def test_it_needs_no_standard_streams(host: Host, arguments: list[str]) -> None:
    host.write(host.llm())
    closed = ["sh", "-c", 'exec "$0" "$@" <&- >&- 2>&-', *command("up", *arguments, str(host.file))]
    with subprocess.Popen(closed) as process:
        until(lambda: host.status().is_settled or process.poll(), "all to be ready")
        host.down()
        assert process.wait(PATIENCE_S) == 0
    assert "all are ready" in host.place.own_log.read_text()


def test_in_the_foreground_a_signal_drains_all_and_a_second_one_ends_them_at_once(host: Host) -> None:
    host.write(host.llm())
    process = host.start("up", str(host.file))
    until(lambda: host.status().is_settled or process.poll() is not None, "all to be ready")
    pids = host.pids.values()
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_S) == 0
    assert not any(map(is_alive, pids))

    process = host.start("up", str(host.file))
    until(lambda: host.status().is_settled or process.poll() is not None, "all to be ready")
    pids = host.pids.values()
    llm = ProcessLLM.connect("noted", broker=str(host.place.folder / "broker.json"))
    llm.generate([{"input": "hang row"}])
    until(lambda: began(host.folder), "the start of the row")
    process.terminate()
    until(lambda: "noted-1 is asked to end" in host.place.own_log.read_text().rpartition("are ready")[2], "the drain")
    process.terminate()
    assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM
    assert not any(map(is_alive, pids))
    llm.teardown()
