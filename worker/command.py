"""``genpool worker``: parses, then runs the shell."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from .. import __version__
from ..protocol.address import resolve
from ..protocol.errors import ConfigurationError
from ..protocol.limits import MAX_NAME_BYTES
from ..protocol.number import COUNT, POSITIVE_SECONDS, SECONDS, FiniteRange
from ..protocol.option import UserPath, broker_option
from ..protocol.telemetry import exporting
from ..tasks.named import TASKS
from .config import read_config
from .llm import LLM
from .loader import ENGINES, load_engine, load_task, load_user_llm
from .setting import FileSettings, load_function
from .shell import WorkerSettings, run


@click.command()
@click.option(
    "--config",
    type=UserPath(),
    is_eager=True,
    callback=read_config,
    metavar="FILE",
    help="A TOML file that says what these options say, by their names, and the engine's settings in a table [set]. "
    "The command line and the environment go before it.",
)
@click.option("--llm", required=True, metavar="NAME", help="The name under which clients find it; replicas share one.")
@broker_option("worker")
@click.option("--engine", type=click.Choice(sorted(ENGINES)), help="A ready-made engine.")
@click.option("--model", metavar="NAME|FILE", help="The engine's model: a GGUF file, or a name that the server knows.")
@click.option(
    "--set",
    "pairs",
    envvar="GENPOOL_WORKER_SET",
    multiple=True,
    metavar="KEY=VALUE",
    help="One of the engine's settings, e.g. temperature=0.2; repeat.",
)
@click.option("--rpm", type=FiniteRange(0, min_open=True), metavar="N", help="Requests a minute, at most.")
@click.option("--tpm", type=FiniteRange(0, min_open=True), metavar="N", help="Tokens a minute, at most.")
@click.option("--load", metavar="MODULE:FUNCTION", help="A function of yours that returns an LLM, instead of --engine.")
@click.option(
    "--task",
    metavar="TASK",
    help=f"The LLM's own task: {', '.join(TASKS)}, or yours as MODULE:TASK.  [default: text generation]",
)
@click.option("--batch-size", default=1, show_default=True, type=COUNT, help="Rows in one call of the engine.")
@click.option("--concurrency", type=COUNT, help="Calls at once.  [default: what suits the LLM]")
@click.option(
    "--wait",
    type=SECONDS,
    metavar="SECONDS",
    help="Exit with 3 when no broker is there by then.  [default: wait for ever]",
)
@click.option(
    "--heartbeat-timeout",
    default=10.0,
    show_default=True,
    type=FiniteRange(0.1, 3600),
    metavar="SECONDS",
    help="How long the broker may be silent.",
)
@click.option(
    "--row-timeout",
    type=POSITIVE_SECONDS,
    metavar="SECONDS",
    help="End a row that runs for longer: it is aborted where the engine can, or else this process ends, and the row "
    "is tried again or fails.  [default: a row may run for ever]",
)
@click.option(
    "--expose-tracebacks",
    is_flag=True,
    help="Send clients the traceback of a row that failed. It tells of this host's paths, so without this it stands "
    "only in the log, at the level debug.",
)
@click.option(
    "--restart",
    is_flag=True,
    help="Start it again, after a pause that grows, when it ends with another code than 0, 2 and 4: for where no "
    "supervisor does.",
)
@click.option("--lifeline", type=int, hidden=True, help="A pipe's file descriptor; end when it closes.")
def worker(
    config: FileSettings | None,
    llm: str,
    broker: str | None,
    engine: str | None,
    model: str | None,
    pairs: tuple[str, ...],
    rpm: float | None,
    tpm: float | None,
    load: str | None,
    task: str | None,
    batch_size: int,
    concurrency: int | None,
    wait: float | None,
    heartbeat_timeout: float,
    row_timeout: float | None,
    expose_tracebacks: bool,
    restart: bool,
    lifeline: int | None,
) -> int:
    """Run a worker: a process that loads one LLM and asks a broker for rows.

    \b
    genpool worker --llm smollm2 --engine llamacpp --model FILE.gguf
    genpool worker --llm qwen --engine openai --set base_url=http://gpu1:8000/v1
    genpool worker --llm mine --load package.module:load_llm
    genpool worker --config worker.toml

    Start as many as you like under one name, on any host. SIGTERM and Ctrl-C drain: what runs is finished and handed
    over, then the process ends. Exit codes: 0 done, 2 usage, 3 no broker, 4 refused by the broker, 70 the engine died
    or did not end a row within --row-timeout, 1 the same with Python's interpreter lock held.
    """
    if restart and lifeline is None:  # what it starts has one
        from .restart import supervise

        return supervise([sys.executable, "-m", "genpool.cli", *sys.argv[1:]])
    if not llm:
        raise ConfigurationError("the name of an LLM (--llm) is empty: give it one")
    if len(llm.encode(errors="surrogatepass")) > MAX_NAME_BYTES:
        raise ConfigurationError(f"the name of an LLM (--llm) may have {MAX_NAME_BYTES} bytes at most; shorten it")
    settings = WorkerSettings(
        llm=llm,
        broker=resolve(broker),
        batch_size=batch_size,
        concurrency=concurrency,
        wait_s=wait,
        heartbeat_timeout_s=heartbeat_timeout,
        row_timeout_s=row_timeout,
        expose_tracebacks=expose_tracebacks,
        lifeline=lifeline,
        release=__version__,
    )
    limits = [f"{name}={limit:g}" for name, limit in (("rpm", rpm), ("tpm", tpm)) if limit is not None]
    loader = _loader(engine, model, [*pairs, *limits], load, task, config, concurrency)
    with exporting("genpool-worker"):
        return run(settings, loader)


def _loader(
    engine: str | None,
    model: str | None,
    pairs: list[str],
    load: str | None,
    task: str | None,
    file: FileSettings | None,
    concurrency: int | None,
) -> Callable[[], LLM]:
    """What loads the LLM, with the mistakes found that can be found before anything is loaded."""
    if (engine is None) == (load is None):
        raise ConfigurationError(
            f"say either --engine ({', '.join(sorted(ENGINES))}) or --load package.module:function, and not both"
        )
    if load is not None:
        if model is not None or pairs or (file is not None and file.values):
            raise ConfigurationError(
                "--model and --set are for --engine, and so are --rpm, --tpm and [set] in a file; a function given "
                "with --load has its own"
            )
        return lambda: load_user_llm(load_function(load), _task(task))
    assert engine is not None
    return lambda: load_engine(engine, model, pairs, _task(task), file, concurrency)


def _task(spec: str | None) -> Any:
    return None if spec is None else load_task(spec)
