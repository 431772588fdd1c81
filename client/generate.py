"""``genpool generate``: parses, then runs a dataset."""

from __future__ import annotations

import sys
from typing import Literal

import click

from ..protocol.address import resolve
from ..protocol.errors import ConfigurationError
from .call import LOST_AFTER_S
from .dataset import GenerateSettings, run
from .fleet import Choice
from .jsonl import STANDARD_STREAM
from .task import client_task

# The longest that a timer of the operating system surely takes.
SECONDS = click.FloatRange(min=0, min_open=True, max=1e8)


@click.command()
@click.option("-i", "--input", "source", required=True, metavar="FILE", help="JSONL, a JSON object a line; - is stdin.")
@click.option("-o", "--output", "target", required=True, metavar="FILE", help="Overwritten; - is stdout.")
@click.option(
    "-n", "--num-generations", default=1, show_default=True, type=click.IntRange(1), help="Generations for each row."
)
@click.option(
    "--llm", "llms", multiple=True, metavar="NAME", help="Repeat for several.  [default: all that share the task]"
)
@click.option(
    "--broker",
    envvar=["GENPOOL_GENERATE_BROKER", "GENPOOL_BROKER"],
    metavar="ADDRESS",
    help="tcp://HOST:PORT, HOST:PORT, or a connection file.  [default: 127.0.0.1:5555]",
)
@click.option(
    "--task",
    metavar="MODULE:TASK",
    help="Makes prompts and reads completions here: text-generation, or one of yours.  [default: the LLMs' own]",
)
@click.option("--system-prompt", metavar="TEXT", help="The system prompt of text generation; implies that task.")
@click.option("--seed", type=int, help="Repeats the draw of shares, and seeds the engines that can be seeded.")
@click.option(
    "--draw",
    type=click.Choice(["call", "row"]),
    default="row",
    show_default=True,
    help="Draw the LLMs that make one generation more once for all rows, or anew for each.",
)
@click.option("--weights", metavar="A,B,…", help="Unequal shares: a number for each LLM, in the order of --llm.")
@click.option(
    "--timeout", type=SECONDS, metavar="SECONDS", help="Rows that have no answer so long after the start have failed."
)
@click.option(
    "--wait",
    type=SECONDS,
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the broker, and for an LLM that no worker has announced.",
)
@click.option(
    "--if-lost",
    type=click.Choice(["wait", "redraw", "fill"]),
    default="wait",
    show_default=True,
    help="What becomes of the share of an LLM that is lost: wait on, draw it anew over the other LLMs, or leave it "
    "None with an error.",
)
@click.option(
    "--lost-after",
    type=SECONDS,
    default=LOST_AFTER_S,
    show_default=True,
    metavar="SECONDS",
    help="An LLM is lost when no worker has taken its rows for so long.",
)
@click.option("--strict", is_flag=True, help="Check all rows first, and do nothing unless all can be used.")
@click.option("--quiet", is_flag=True, help="No progress, and no summary when nothing has failed.")
def generate(
    source: str,
    target: str,
    num_generations: int,
    llms: tuple[str, ...],
    broker: str | None,
    task: str | None,
    system_prompt: str | None,
    seed: int | None,
    draw: Literal["call", "row"],
    weights: str | None,
    timeout: float | None,
    wait: float,
    if_lost: Literal["wait", "redraw", "fill"],
    lost_after: float,
    strict: bool,
    quiet: bool,
) -> int:
    """Generate over a file of rows with the LLMs of a fleet.

    \b
    genpool generate -i in.jsonl -o out.jsonl -n 4
    genpool generate -i in.jsonl -o out.jsonl --llm smollm2 --llm qwen --system-prompt "Answer in one sentence."
    zcat in.jsonl.gz | genpool generate -i - -o - | gzip > out.jsonl.gz

    Every row needs the columns that the task reads: `input` for text generation. The output has the rows in their
    order: the input's columns, `generations`, `generation_model`, `generation_prompt` and
    `raw_generation_responses`, lists with an entry for each generation. Another task's results have columns of
    their own names in the place of `generations`. A row that has failed keeps its place, has None for what is
    missing, and says why in `error`.

    Ctrl-C and SIGTERM leave whole rows and tell how to go on. Exit codes: 0 done, 1 some rows failed, 2 usage (or an
    LLM that nobody serves), 3 no broker, 4 refused by the broker, 128 + the signal when stopped by one.
    """
    return run(
        GenerateSettings(
            source=source,
            target=target,
            choice=Choice(resolve(broker), llms, client_task(task, system_prompt), wait),
            num_generations=num_generations,
            seed=seed,
            draw=draw,
            weights=_weights(weights),
            timeout_s=timeout,
            if_lost=if_lost,
            lost_after_s=lost_after,
            strict=strict,
            quiet=quiet,
            draws_bar=sys.stderr.isatty() and not quiet and not (target == STANDARD_STREAM and sys.stdout.isatty()),
        )
    )


def _weights(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(one) for one in text.split(",")]
    except ValueError:
        raise ConfigurationError(f"--weights are numbers with commas between them, and not {text!r}") from None
