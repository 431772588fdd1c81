"""The soak: a fleet on this machine under random faults, and a client that keeps rows in flight all the while.

::

    plan.py ──faults──▶ fleet.py: broker and workers, killed, frozen, stopped, cut ──notes──▶ account.py ──▶ figures
                                        ▲ rows                                                  ▲
                        load.py: calls, streams, cancels, in this process ──────answers─────────┘

Run by `scripts/soak`. All settings are the defaults of the commands. The seed repeats the plan of the faults; what
each of them meets still depends on this machine.
"""

from __future__ import annotations

import logging
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import click
from commands import Commands, ScriptError
from rich.console import Console
from rich.live import Live
from rich.text import Text
from scripted_llm import Notebook, environment
from soaking.account import REASONS, Diary, Figures, Recovery, reason_of
from soaking.fleet import Slot, SoakFleet
from soaking.load import Load, Sent
from soaking.plan import Fault, Kind, plan
from target import Target, write_json

from genpool import ProcessLLM
from genpool.client.link import leave, link_to
from genpool.protocol.number import FiniteRange

LLMS = ["alpha", "beta"]
CONCURRENCY = 4
HEAL_LIMIT_S = 90.0
LOOK_S = 0.02
# Without a terminal, a line now and then.
LINE_S = 10.0

out = Console()
err = Console(stderr=True)
log = logging.getLogger("soak")


class Soak:
    """One run."""

    def __init__(self, commands: Commands, seed: int, workers: int) -> None:
        self._folder = commands.folder
        self._seed = seed
        notes = {llm: self._folder / f"{llm}.notes" for llm in LLMS}
        self._notebooks = {llm: Notebook(path) for llm, path in notes.items()}
        self._diaries = {llm: Diary() for llm in LLMS}
        self.fleet = SoakFleet(commands, LLMS, workers, lambda llm: environment(notes[llm], CONCURRENCY))
        self.load = Load(LLMS, self.fleet.client_side.address, seed)
        self._faults: Counter[str] = Counter()
        self._recoveries: list[Recovery] = []
        self._open: list[Recovery] = []
        self._begun = time.monotonic()
        self._last_fault = "none yet"

    def close(self) -> None:
        self.load.close()
        self.fleet.close()

    def run(self, seconds: float) -> Figures:
        self._wait_for_first_answers()
        self._begun = time.monotonic()
        self.load.start()
        with Live(console=err, get_renderable=self._line, refresh_per_second=4, transient=True):
            self._disturb(seconds)
            self.load.stop()
            self._heal()
            self._look_until(lambda: self.load.is_over)
            if self.load.is_over:
                self._look_until(lambda: not self._open and not self._left())
        return self._figures(seconds)

    def _wait_for_first_answers(self) -> None:
        for name in LLMS:
            llm = ProcessLLM.connect(name, broker=self.fleet.client_side.address)
            llm.generate([{"input": "first 0"}], timeout=HEAL_LIMIT_S).result()
            llm.teardown()

    def _disturb(self, seconds: float) -> None:
        next_line = self._begun
        for fault in plan(self._seed, seconds, len(self.fleet.workers)):
            while (now := time.monotonic()) < self._begun + fault.at_s:
                next_line = self._say_line(now, next_line)
                self._look()
                time.sleep(LOOK_S)
            self._inflict(fault, now)
        while time.monotonic() < self._begun + seconds:
            self._look()
            time.sleep(LOOK_S)

    def _inflict(self, fault: Fault, now: float) -> None:
        victims = self.fleet.victims(fault)
        if victims is None:
            return
        self._faults[fault.kind] += 1
        self._last_fault = f"{fault.kind} {', '.join(slot.name for slot in victims)}"
        log.info("%s pids %s for %.2f s", self._last_fault, [slot.pid for slot in victims], fault.lasts_s)
        self._look()
        recovery = None
        if victims:
            recovery = Recovery(fault.kind, now, [row for slot in victims for row in self._held(slot)])
            self._open.append(recovery)
        if fault.kind is Kind.POISON:
            self.load.poison()
        self.fleet.inflict(fault, now, lambda: self._healed(fault.kind, recovery))

    def _healed(self, kind: Kind, recovery: Recovery | None) -> None:
        log.info("%s is over", kind)
        if recovery is None and kind is not Kind.POISON:
            self._open.append(Recovery(kind, time.monotonic(), None))

    def _held(self, slot: Slot) -> list[Sent]:
        """The rows at a worker that are not over, and whose answer is not only seen with that of another LLM's row."""
        diary = self._diaries[slot.llm]
        held = [name for name in diary.begun_by(slot.pid) if name in self.load.sent]
        held = [name for name in held if self.load.sent[name].state == "pending"]
        diary.keep(slot.pid, held)
        rows = [self.load.sent[name] for name in held]
        return [row for row in rows if row.llms == 1 and not row.is_poison]

    def _look(self) -> None:
        """See what has come of it all."""
        self.fleet.supervise(time.monotonic())
        for llm, notebook in self._notebooks.items():
            self._diaries[llm].enter(notebook.news())
        for recovery in [one for one in self._open if one.look(self.load.answers)]:
            self._open.remove(recovery)
            self._recoveries.append(recovery)
            log.info("recovered from %s after %s s", recovery.kind, recovery.took_s)

    def _heal(self) -> None:
        self._last_fault = "healing"
        self.fleet.heal()
        self._look_until(lambda: self.fleet.is_whole)

    def _look_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + HEAL_LIMIT_S
        while not condition() and time.monotonic() < deadline:
            self._look()
            time.sleep(LOOK_S)

    def _left(self) -> list[str]:
        """What the broker still knows of rows that are over."""
        link = link_to(self.fleet.client_side.address)
        try:
            report = link.status(10.0)
        finally:
            leave(link)
        workers = [(llm["name"], worker) for llm in report["llms"] for worker in llm["workers"]]
        left = [f"{report['rows']} rows at the broker"] if report["rows"] else []
        left += [f"{llm['queued']} rows queue for {llm['name']}" for llm in report["llms"] if llm["queued"]]
        for llm, worker in workers:
            if (worker["running"], worker["unsettled"], worker["credit"]) != (0, 0, CONCURRENCY):
                left.append(f"at a worker of {llm}: {worker}")
        if len(workers) != len(self.fleet.workers):
            left.append(f"{len(workers)} of {len(self.fleet.workers)} workers are there")
        return left

    # What is said.

    def _line(self) -> Text:
        seconds = time.monotonic() - self._begun
        counts, faults = self.load.counts, sum(self._faults.values())
        return Text(
            f"{seconds:4.0f} s  {counts['answered']} rows answered, {len(self.load.pending)} inputs in flight, "
            f"{faults} faults, {len(self._open)} not over; last: {self._last_fault}"
        )

    def _say_line(self, now: float, next_line: float) -> float:
        if err.is_terminal or now < next_line:
            return next_line
        err.print(self._line(), soft_wrap=True)
        return now + LINE_S

    def _figures(self, seconds: float) -> Figures:
        load, history = self.load, self.fleet.history
        poisons = [row for row in load.sent.values() if row.is_poison]
        reasons: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
        unexplained: list[str] = []
        for diary in self._diaries.values():
            for name, runs in diary.computed_twice().items():
                reason = reason_of(runs, history)
                reasons[reason] += 1
                if reason == "no reason":
                    since = self._begun
                    said = [f"by {run.pid} {run.began - since:.2f}-{(run.ended or 0) - since:.2f} s" for run in runs]
                    unexplained.append(f"{name} {', '.join(said)}")
        kinds = [kind.value for kind in Kind]
        return Figures(
            seed=self._seed,
            seconds=seconds,
            answered=load.counts["answered"],
            computed_twice=dict(reasons),
            poisons_found=sum(row.state == "failed" for row in poisons),
            lost=[row.text for row in load.pending],
            answered_twice=load.counts["answered twice"],
            wrong=load.counts["wrong answers"],
            failed=list(load.failures),
            poisons_missed=[row.name for row in poisons if row.state != "failed"],
            crashed=history.crashed,
            left=self._left(),
            recoveries={
                kind: [one.took_s for one in self._recoveries if one.kind == kind and one.took_s is not None]
                for kind in kinds
            },
            not_recovered={kind: sum(one.kind == kind for one in self._open) for kind in kinds},
            faults={kind: self._faults[kind] for kind in kinds if self._faults[kind]},
            twice_for_no_reason=unexplained,
        )


def soak(folder: Path, seconds: float, seed: int, workers: int) -> Figures:
    with ExitStack() as stack:
        running = Soak(stack.enter_context(Commands(folder)), seed, workers)
        stack.callback(running.close)
        return running.run(seconds)


@click.command()
@click.option("--minutes", default=10.0, show_default=True, type=FiniteRange(0.05), help="How long faults happen.")
@click.option("--seed", type=int, help="Repeats the plan of the faults.  [default: a new one]")
@click.option("--workers", default=3, show_default=True, type=click.IntRange(2), help="Workers of each of two LLMs.")
@click.option("--keep", is_flag=True, help="Keep the logs even when all was clean.")
@click.option("--json", "file", type=Target(), help="Write the figures here, too.")
def main(minutes: float, seed: int | None, workers: int, keep: bool, file: Path | None) -> None:
    """Run a fleet under random faults; exit with 0 when nothing was lost, 1 otherwise."""
    # A signal unwinds the stack, so that nothing started here is left behind.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    if seed is None:
        seed = random.SystemRandom().randrange(1_000_000)
    folder = Path(tempfile.mkdtemp(prefix="genpool-soak-"))
    logging.basicConfig(
        filename=folder / "client.log", level="INFO", format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    err.print(f"Soaking for {minutes:g} minutes, seed {seed}; logs in {folder}", highlight=False)
    try:
        figures = soak(folder, minutes * 60, seed, workers)
    except (KeyboardInterrupt, SystemExit) as stopped:
        shutil.rmtree(folder)
        sys.exit(128 + signal.SIGINT if isinstance(stopped, KeyboardInterrupt) else stopped.code)
    except ScriptError as error:
        raise click.ClickException(f"{error}; logs in {folder}") from error
    out.print(*figures.tables())
    for line in figures.troubles():
        err.print(line, markup=False, highlight=False)
    if figures.is_clean and not keep:
        shutil.rmtree(folder)
    else:
        err.print(f"{'Clean' if figures.is_clean else 'Not clean'}; logs are in {folder}", highlight=False)
    if file is not None:
        write_json(file, figures.as_json())
    sys.exit(not figures.is_clean)


if __name__ == "__main__":
    main()
