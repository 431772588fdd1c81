"""What the pool costs: SmolLM2's tokens a second through broker, worker and client, and of the engine called directly.

For each engine both run side by side and take turns at the same prompts, with the same settings and as many completions
at once, so that whatever else runs on this machine meets both.

- Directly: the engine is loaded in this process, and its ``generate`` gets all inputs in one call.
- Pool: a broker, a worker with the same engine, and a client in this process that sends the same inputs.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import click
from commands import Commands, until
from demo import read_prompts, smollm2_file
from rich.console import Console
from rich.progress import track
from rich.table import Table
from target import Target, write_json

from genpool import LLMOutput, ProcessLLM
from genpool.protocol.address import read_connection_file
from genpool.worker.llm import LLM
from genpool.worker.loader import load_engine

_AIM = 0.97
_CONTEXT = 512
_PACKAGES = {"llamacpp": ("xllamacpp",), "openai": ("openai", "xllamacpp")}

Inputs = list[dict[str, str]]
Generations = list[list[LLMOutput]]

out = Console()
err = Console(stderr=True)


@dataclass(frozen=True)
class Plan:
    """What is measured: so many rows a round, and how they are made."""

    rows: int
    num_generations: int
    max_new_tokens: int
    concurrency: int
    threads: int
    repeat: int

    @property
    def inputs(self) -> Inputs:
        """The demo's prompts over and over; the number keeps them apart."""
        prompts = read_prompts()
        return [{"input": f"{number}. {prompts[number % len(prompts)]['input']}"} for number in range(self.rows)]


@dataclass(frozen=True)
class Setup:
    """An engine by its name, with the words that a command line would load it by."""

    engine: str
    model: str
    pairs: Sequence[str]

    def load(self) -> LLM:
        return load_engine(self.engine, self.model, self.pairs, None)

    @property
    def arguments(self) -> list[str]:
        """The worker's."""
        pairs = [word for pair in self.pairs for word in ("--set", pair)]
        return ["--engine", self.engine, "--model", self.model, *pairs]


@contextmanager
def _llamacpp(plan: Plan) -> Generator[Setup]:
    slots = [f"n_parallel={plan.concurrency}", f"n_ctx={_CONTEXT}", f"n_threads={plan.threads}"]
    yield Setup("llamacpp", str(smollm2_file()), [*_sampling(plan), *slots])


@contextmanager
def _openai(plan: Plan) -> Generator[Setup]:
    with _llama_server(plan) as url:
        yield Setup("openai", "smollm2", [*_sampling(plan), f"base_url={url}", f"concurrency={plan.concurrency}"])


_SETUPS = {"llamacpp": _llamacpp, "openai": _openai}


def _sampling(plan: Plan) -> list[str]:
    return [f"max_new_tokens={plan.max_new_tokens}", "temperature=0.8", "seed=1"]


@contextmanager
def _llama_server(plan: Plan) -> Generator[str]:
    """The address of llama.cpp's own server, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(str(smollm2_file()), plan.concurrency, plan.threads, theirs))
    process.start()
    theirs.close()
    try:
        yield f"{ours.recv()}/v1"
    finally:
        ours.close()
        process.join()


def _serve(model: str, slots: int, threads: int, parent: Connection) -> None:
    """Serve until the parent closes its end, be it by its own end."""
    import xllamacpp

    params: Any = cast(Any, xllamacpp).CommonParams()
    params.model.path, params.model_alias = model, {"smollm2"}
    params.n_parallel, params.n_ctx, params.cpuparams.n_threads = slots, slots * _CONTEXT, threads
    params.verbosity, params.cache_ram_mib = -1, 0
    server: Any = cast(Any, xllamacpp).Server(params)
    parent.send(server.listening_address)
    parent.poll(None)


@contextmanager
def _pool(folder: Path, commands: Commands, setup: Setup) -> Generator[ProcessLLM]:
    """A client of a worker with the engine."""
    file = folder / "broker.json"
    commands.start_broker("tcp://127.0.0.1:*", file)
    until(file.exists, "the broker's connection file")
    address = read_connection_file(file).address
    commands.start_worker("worker", "smollm2", address, *setup.arguments, environment={})
    llm = ProcessLLM.connect("smollm2", broker=address)
    try:
        yield llm
    finally:
        llm.teardown()


def _tokens_per_s(generate: Callable[[], Generations]) -> float:
    begun_at = time.monotonic()
    generations = generate()
    taken_s = time.monotonic() - begun_at
    usages = [output.get("usage", {}) for outputs in generations for output in outputs]
    return sum(usage.get("completion_tokens", 0) for usage in usages) / taken_s


def _measure(name: str, plan: Plan) -> dict[str, list[float]]:
    """Tokens a second, directly and through the pool, of each round."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="genpool-bench-")))
        setup = stack.enter_context(_SETUPS[name](plan))
        commands = stack.enter_context(Commands(folder))
        pool = stack.enter_context(_pool(folder, commands, setup))
        engine = setup.load()
        stack.callback(engine.close)
        ways: dict[str, Callable[[Inputs], Generations]] = {
            "direct": lambda inputs: cast(Generations, engine.generate(inputs, plan.num_generations)),
            "pool": lambda inputs: pool.generate(inputs, plan.num_generations).result(),
        }
        inputs = plan.inputs
        for way in ways.values():
            way(inputs[: plan.concurrency])  # loads what is loaded late, and waits for the worker
        speeds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in track(range(plan.repeat), f"Measuring {name}", console=err, transient=True):
            for way, generate in ways.items():
                speeds[way].append(_tokens_per_s(lambda generate=generate: generate(inputs)))
        return speeds


def _summary(speeds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, and the ratios of what ran one after the other."""
    ratios = [pool / direct for direct, pool in zip(speeds["direct"], speeds["pool"], strict=True)]
    return {
        "direct_tokens_per_s": round(statistics.median(speeds["direct"]), 2),
        "pool_tokens_per_s": round(statistics.median(speeds["pool"]), 2),
        "ratio": round(statistics.median(ratios), 4),
        "ratio_min": round(min(ratios), 4),
        "ratio_max": round(max(ratios), 4),
        "aim": _AIM,
        "each": speeds,
    }


def _table(summaries: dict[str, dict[str, Any]], plan: Plan) -> Table:
    table = Table("engine", title=f"Tokens a second of SmolLM2, medians of {plan.repeat} rounds")
    for heading in ("directly", "pool", "pool/directly", "min", "max", "aim"):
        table.add_column(heading, justify="right")
    for name, summary in summaries.items():
        speeds = [f"{summary[key]:.1f}" for key in ("direct_tokens_per_s", "pool_tokens_per_s")]
        ratios = [f"{summary[key]:.3f}" for key in ("ratio", "ratio_min", "ratio_max")]
        table.add_row(name, *speeds, *ratios, f"{_AIM:g}")
    table.caption = (
        f"{plan.rows} rows of {plan.num_generations} completions up to {plan.max_new_tokens} tokens long, "
        f"{plan.concurrency} at once, {plan.threads} threads"
    )
    return table


@click.command()
@click.option("--engine", "names", multiple=True, type=click.Choice(list(_SETUPS)), help="Only this one; repeatable.")
@click.option("--repeat", default=5, show_default=True, type=click.IntRange(1), help="Rounds of each.")
@click.option("--rows", default=16, show_default=True, type=click.IntRange(1), help="Rows of a round.")
@click.option("-n", "--num-generations", default=1, show_default=True, type=click.IntRange(1), help="Of each row.")
@click.option("--max-new-tokens", default=32, show_default=True, type=click.IntRange(1), help="Of each generation.")
@click.option("--concurrency", default=4, show_default=True, type=click.IntRange(1), help="Completions at once.")
@click.option("--threads", type=click.IntRange(1), help="llama.cpp's threads.  [default: half the cores]")
@click.option("--json", "file", type=Target(), help="Write the figures here, too.")
def engines(names: Sequence[str], file: Path | None, threads: int | None, **numbers: int) -> None:
    """Measure SmolLM2's tokens a second through the pool, against the engine called directly."""
    plan = Plan(threads=threads or max(1, (os.cpu_count() or 2) // 2), **numbers)
    chosen = [name for name in names or _SETUPS if all(find_spec(package) for package in _PACKAGES[name])]
    if not chosen:
        sys.exit("none of these engines is installed; run scripts/setup")
    measured = {name: _measure(name, plan) for name in chosen}
    summaries = {name: _summary(speeds) for name, speeds in measured.items()}
    out.print(_table(summaries, plan))
    if file is not None:
        write_json(file, {**plan.__dict__, "engines": summaries})
