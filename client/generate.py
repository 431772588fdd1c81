"""``genpool generate``: parses, then runs a dataset."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, Literal, TextIO

import click

from ..protocol.address import resolve
from ..protocol.errors import ConfigurationError
from ..protocol.logs import is_json
from ..protocol.number import COUNT, POSITIVE_SECONDS, FiniteRange
from ..protocol.option import broker_option
from ..tasks.named import TASKS
from .call import HEDGE_FACTOR, LOST_AFTER_S
from .dataset import GenerateSettings, run
from .fleet import Choice
from .formats.base import STANDARD_STREAM
from .formats.format import NAMES
from .reason import MaxFailures
from .task import client_task


@click.command()
@click.option(
    "-i",
    "--input",
    "source",
    required=True,
    metavar="FILE",
    help="In a format that its name tells; - is stdin, in JSONL.",
)
@click.option(
    "-o", "--output", "target", required=True, metavar="FILE", help="A run goes on where it was cut off; - is stdout."
)
@click.option("--input-format", type=click.Choice(NAMES), help="In place of what the name of the file tells.")
@click.option("--output-format", type=click.Choice(NAMES), help="In place of what the name of the file tells.")
@click.option("-n", "--num-generations", default=1, show_default=True, type=COUNT, help="Generations for each row.")
@click.option(
    "--llm", "llms", multiple=True, metavar="NAME", help="Repeat for several.  [default: all that share the task]"
)
@broker_option("generate")
@click.option(
    "--task",
    metavar="TASK",
    help=f"Makes prompts and reads completions here: {', '.join(TASKS)}, or yours as MODULE:TASK.  "
    "[default: the LLMs' own]",
)
@click.option(
    "--system-prompt", metavar="TEXT", help="The system prompt of such a task; alone it asks for text generation."
)
@click.option(
    "--set", "pairs", multiple=True, metavar="NAME=VALUE", help="A generation option, as max_new_tokens=64; repeat."
)
@click.option(
    "--map",
    "mapping",
    multiple=True,
    metavar="ARGUMENT=COLUMN",
    help="Read an argument of the task from a column of another name, as input=question; repeat.",
)
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
    "--timeout",
    type=POSITIVE_SECONDS,
    metavar="SECONDS",
    help="Rows that have no answer so long after the start have failed.",
)
@click.option(
    "--wait",
    type=POSITIVE_SECONDS,
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
    type=POSITIVE_SECONDS,
    default=LOST_AFTER_S,
    show_default=True,
    metavar="SECONDS",
    help="An LLM is lost when no worker has taken its rows for so long.",
)
@click.option(
    "--hedge",
    is_flag=False,
    flag_value=HEDGE_FACTOR,
    type=FiniteRange(min=1),
    metavar="[TIMES]",
    help="Give a row that has run so many times as long as its LLM's rows usually do to an idle worker too; the first "
    f"answer counts. Alone it is {HEDGE_FACTOR:g} times.  [default: never]",
)
@click.option("--id-column", metavar="COLUMN", help="Know rows by this column when a run goes on.  [default: by all]")
@click.option("--overwrite", is_flag=True, help="Begin afresh, whatever the output holds.")
@click.option("--errors", metavar="FILE", help="Rows that have failed go there too, with the reason in `error`; JSONL.")
@click.option("--only-failed", is_flag=True, help="Do the rows of a finished output again that have failed, in place.")
@click.option(
    "--max-failures",
    metavar="N|N%",
    help="Stop when more rows fail than so many, or than such a share of them (judged after 200 rows).",
)
@click.option("--strict", is_flag=True, help="Check all rows first, and do nothing unless all can be used.")
@click.option("--quiet", is_flag=True, help="No progress, and no summary when nothing has failed.")
def generate(
    source: str,
    target: str,
    input_format: str | None,
    output_format: str | None,
    num_generations: int,
    llms: tuple[str, ...],
    broker: str | None,
    task: str | None,
    system_prompt: str | None,
    pairs: tuple[str, ...],
    mapping: tuple[str, ...],
    seed: int | None,
    draw: Literal["call", "row"],
    weights: str | None,
    timeout: float | None,
    wait: float,
    if_lost: Literal["wait", "redraw", "fill"],
    lost_after: float,
    hedge: float | None,
    id_column: str | None,
    overwrite: bool,
    errors: str | None,
    only_failed: bool,
    max_failures: str | None,
    strict: bool,
    quiet: bool,
) -> int:
    """Generate over a file of rows with the LLMs of a fleet.

    \b
    genpool generate -i in.jsonl -o out.jsonl -n 4
    genpool generate -i in.jsonl -o out.jsonl --llm smollm2 --llm qwen --system-prompt "Answer in one sentence."
    genpool generate -i in.parquet -o out.parquet -n 2 --map input=question --errors failed.jsonl

    Cut off, killed even, the same command goes on: no row is done twice, and none is missed. Only from stdin it needs
    the same rows again, and into a pipe it always begins anew. OUTPUT.journal tells what is done; at the end there is
    OUTPUT.report.json. An output that belongs to no run of these options is not written over without --overwrite.

    Every row needs the columns that the task reads: `input` for text generation. The output has the rows in their
    order: the input's columns, `generations`, `generation_model`, `generation_prompt`, `raw_generation_responses`
    and, where the engine tells, `generation_usage`, lists with an entry for each generation. Another task's results
    have columns of their own names in the place of `generations`; a task that makes labels, such as `preference`,
    leaves the columns of the generations alone and adds `labelling_model`, `labelling_prompt`,
    `raw_labelling_response` and `labelling_usage`. A row that has failed keeps its place, has None for what is
    missing, and says why in `error`.

    Ctrl-C and SIGTERM leave whole rows and tell how to go on. Exit codes: 0 done, 1 some rows failed (or so many that
    it stopped), 2 usage (or an LLM that nobody serves), 3 no broker, 4 refused by the broker, 128 + the signal when
    stopped by one.
    """
    if only_failed and overwrite:
        raise click.UsageError("--only-failed keeps what --overwrite would throw away: give one of them")
    return run(
        GenerateSettings(
            source=source,
            target=target,
            choice=Choice(resolve(broker), llms, client_task(task, system_prompt), wait),
            num_generations=num_generations,
            source_format=input_format,
            target_format=output_format,
            generation_kwargs={name: _value(name, text) for name, text in _pairs("--set", pairs).items()} or None,
            mapping=_pairs("--map", mapping),
            id_column=id_column,
            overwrite=overwrite,
            errors=errors,
            only_failed=only_failed,
            max_failures=None if max_failures is None else MaxFailures.read(max_failures),
            seed=seed,
            draw=draw,
            weights=_weights(weights),
            timeout_s=timeout,
            if_lost=if_lost,
            lost_after_s=lost_after,
            hedge=hedge,
            strict=strict,
            quiet=quiet,
            draws_bar=_is_terminal(sys.stderr)
            and not quiet
            and not is_json()
            and not (target == STANDARD_STREAM and _is_terminal(sys.stdout)),
        )
    )


def _is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody sees what is written there; it is None where the command was started with it closed."""
    return stream is not None and stream.isatty()


def _weights(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(one) for one in text.split(",")]
    except ValueError:
        raise ConfigurationError(f"--weights are numbers with commas between them, and not {text!r}") from None


def _pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise ConfigurationError(f"{option} takes NAME=VALUE, and not {name + equals + value!r}")
        if [one for one, _, _ in pairs].count(name) > 1:
            raise ConfigurationError(f"{option} says {name!r} more than once: leave one")
    return {name: value for name, _, value in pairs}


def _value(name: str, text: str) -> Any:
    """What ``text``, the option ``name``, is in JSON; itself where it is none."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ConfigurationError(f"--set {name} is nested too deeply") from None
    except ValueError:
        return text
