"""A client that stops reading while long answers come for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet import Fleet, until
from noted import began, ended, environment
from process import Program
from wire import Peer, client_hello

from genpool import ProcessLLM
from genpool.protocol.content import pack_row, unpack_outputs
from genpool.protocol.messages import Answer, Release, RowKind, Submit, SubmitRun

MEBI = 1 << 20
ROWS = 300
MAX_UNREAD = 32
CONCURRENCY = 2

# Its answer has a mebibyte.
WORDS = "word " * (MEBI // 5 // 32)
GENERATIONS = 32

# Beside what may be unread: the rows themselves, and what is on its way through.
MORE = 96 * MEBI

CLIENT = f"""
from genpool import ProcessLLM
llm = ProcessLLM.connect("noted", broker={{address!r}})
words = [f"{{{{'wait' if number else 'quick'}}}} slow{{{{number}}}} {WORDS}" for number in range({ROWS})]
read = lambda advance: print("reads", flush=True)
outputs = llm.generate([{{{{"input": word}}}} for word in words], {GENERATIONS}, progress_callback_func=read).result()
assert [row[-1]["raw_output"] for row in outputs] == [word.upper() for word in words]
print("has everything", flush=True)
llm.teardown()
"""


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path) as fleet:
        # A peer whose buffers are full does not hear the heartbeat either.
        fleet.start_broker("--max-unread", str(MAX_UNREAD), "--client-grace", "600", "--heartbeat-timeout", "600")
        noted = environment(tmp_path, concurrency=CONCURRENCY)
        fleet.start_worker("noted", "--load", "noted:load", environment=noted)
        fleet.wait_for(lambda report: sum(llm["capacity"] for llm in report["llms"]) == CONCURRENCY)
        yield fleet


def memory(fleet: Fleet, field: str) -> int:
    """How many bytes the broker has: ``VmRSS`` now, ``VmHWM`` at most until now."""
    lines = Path(f"/proc/{fleet.processes[0].pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def account(fleet: Fleet, pid: int) -> dict[str, Any]:
    """What the broker reports of the client with this process id."""
    return next((one for one in fleet.report()["clients"] if one["pid"] == pid), {"withheld": 0})


def serve_others(fleet: Fleet) -> None:
    """Have another client's rows done, whose answers are many times as long as may be unread."""
    llm = ProcessLLM.connect("noted", broker=fleet.address)
    words = [f"quick other{number} {WORDS}" for number in range(ROWS)]
    try:
        outputs = llm.generate([{"input": word} for word in words], GENERATIONS, timeout=50).result()
    finally:
        llm.teardown()
    assert [row[0]["raw_output"] for row in outputs] == [word.upper() for word in words]


def begun_for_slow(folder: Path) -> int:
    return sum(count for name, count in began(folder).items() if name.startswith("slow"))


def test_the_others_finish_the_broker_stays_small_and_all_comes_when_it_reads_on(fleet: Fleet, tmp_path: Path) -> None:
    small = memory(fleet, "VmRSS")
    # What does not fit into the kernel's buffers lies in the broker.
    with Peer(fleet.address, client_hello("slow"), mark=1) as slow:
        names = {number.to_bytes(16): f"slow{number}" for number in range(ROWS)}
        rows = [pack_row({"input": f"quick {name} {WORDS}"}, None) for name in names.values()]
        slow.send(Submit([SubmitRun("noted", RowKind.INPUT, GENERATIONS, b"", None, False, list(names), rows)]))
        until(lambda: account(fleet, 1)["withheld"], "the stop of the slow client's answers")

        serve_others(fleet)
        held = account(fleet, 1)
        assert 0 < held["unread_bytes"] <= MAX_UNREAD * MEBI
        # Those that ran then, and those whose answers were on their way.
        assert 0 < held["withheld"] <= 2 * CONCURRENCY
        assert begun_for_slow(tmp_path) <= MAX_UNREAD + 2 * CONCURRENCY

        answers: dict[bytes, str] = {}
        while len(answers) < len(names):
            answer = slow.wait_for(Answer)
            for row_id, payload in zip(answer.ids, answer.payloads, strict=True):
                answers[row_id] = unpack_outputs(payload)[0]["raw_output"].split()[1]
            slow.send(Release(answer.ids))
        assert answers == {row_id: name.upper() for row_id, name in names.items()}
    fleet.wait_for(lambda report: not report["rows"])
    assert set(ended(tmp_path).values()) == {1}
    assert memory(fleet, "VmHWM") - small < MAX_UNREAD * MEBI + MORE


def test_one_that_is_stopped_in_the_midst_of_it_gets_everything_once_it_goes_on(fleet: Fleet, tmp_path: Path) -> None:
    small = memory(fleet, "VmRSS")
    with Program(CLIENT.format(address=fleet.address)) as program:
        program.wait_for("reads")
        os.kill(program.process.pid, signal.SIGSTOP)
        for number in range(1, ROWS):
            (tmp_path / f"slow{number}.go").touch()
        until(lambda: account(fleet, program.process.pid)["withheld"], "the stop of the stopped client's answers")
        serve_others(fleet)
        assert begun_for_slow(tmp_path) < ROWS
        os.kill(program.process.pid, signal.SIGCONT)
        program.wait_for("has everything")
    assert set(ended(tmp_path).values()) == {1}
    assert memory(fleet, "VmHWM") - small < MAX_UNREAD * MEBI + MORE
