"""Preference data in two stages, with LLMs that are loaded once: they answer, one of them judges, TRL trains on it.

    genpool broker &
    genpool worker --llm small --engine llamacpp --model small.gguf &
    genpool worker --llm qwen --engine openai --set base_url=http://127.0.0.1:8000/v1 &
    python scripts/examples/preference.py prompts.jsonl pairs.jsonl -n 4 --judge qwen

Each line of the input is a JSON object with a text at ``input``. Each line of the output is a pair in TRL's
conversational preference format with an explicit prompt, as DPOTrainer and RewardTrainer read it
(https://huggingface.co/docs/trl/dataset_formats):

    {"prompt": [{"role": "user", …}], "chosen": [{"role": "assistant", …}], "rejected": [{"role": "assistant", …}]}

``chosen`` is the answer that the judge rates highest, ``rejected`` the one that it rates lowest. Where it rates all
alike, or fewer than two of its ratings can be read, there is no pair; how often that was is said at the end.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from genpool import LLMPool, PreferenceTask, ProcessLLM, TextGenerationTask, errors

# Room for the judge to rate one answer and say why.
_TOKENS_PER_RATING = 100

PAIR, TIE, UNREADABLE, TOO_FEW, FAILED = "pair", "tie", "unreadable", "too few", "failed"

# Why there is no pair.
_REASONS = {
    TIE: "rated alike",
    UNREADABLE: "without two ratings that can be read",
    TOO_FEW: "without two different answers",
    FAILED: "failed",
}


def read(path: Path) -> Iterator[dict[str, str]]:
    """The prompts of a JSONL file.

    Raises:
        click.ClickException: says which line is none.
    """
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield {"input": json.loads(line)["input"]}
            except (ValueError, TypeError, KeyError):
                raise click.ClickException(
                    f"{path}, line {number}: it must be a JSON object with a text at `input`"
                ) from None


def has_failed(error: errors.RemoteError | None) -> bool:
    """Whether a row ended with an error.

    Raises:
        errors.GenpoolError: when no other row would do better.
    """
    for kind in (errors.NoBroker, errors.Refused, errors.UnknownLLM):
        if error is not None and issubclass(error.kind, kind):
            raise kind(error.message)
    return error is not None


def answered(pool: LLMPool, prompts: Iterator[dict[str, str]], count: int, tally: Counter[str]) -> Iterator[Any]:
    """Each prompt with its different answers, two at least, as it is answered."""
    for row in pool.stream(prompts, count):
        failed = has_failed(row.error)
        answers = [output["raw_output"] for output in row.outputs]
        different = list(dict.fromkeys(answer for answer in answers if answer and answer.strip()))
        if len(different) >= 2:
            yield {"input": row.input["input"], "generations": different}
        else:
            tally[FAILED if failed else TOO_FEW] += 1


def pair(judged: dict[str, Any], parsed: dict[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """What becomes of a judged prompt, and the pair if it becomes one."""
    ratings: list[float | None] = parsed["rating"] if parsed else []
    rated = [(rating, text) for rating, text in zip(ratings, judged["generations"], strict=False) if rating is not None]
    if len(rated) < 2:
        return UNREADABLE, {}
    (best, chosen), (worst, rejected) = max(rated, key=_rating), min(rated, key=_rating)
    if best == worst:
        return TIE, {}
    return PAIR, {
        "prompt": [{"role": "user", "content": judged["input"]}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def _rating(rated: tuple[float, str]) -> float:
    return rated[0]


def run(
    source: Path, target: Path, broker: str | None, llms: list[str], judge: str | None, count: int, wait_s: float
) -> Counter[str]:
    """Writes the pairs, and tells how often what became of a prompt."""
    tally: Counter[str] = Counter()
    # It shows the answers to the judge in an order of their own. What it would like is left to LLMs that know it.
    task = PreferenceTask(generation_kwargs={"max_new_tokens": count * _TOKENS_PER_RATING, "temperature": 0.0})
    # Without a system prompt, so that `prompt` is all that an answer was made from.
    with LLMPool.connect(llms or None, broker, TextGenerationTask(system_prompt=""), wait_s=wait_s) as pool:
        judging = ProcessLLM.connect(judge or pool.llms[0].llm_name, broker, task, wait_s=wait_s)
        with target.open("w", encoding="utf-8") as out:
            for row in judging.stream(answered(pool, read(source), count, tally)):
                if has_failed(row.error):
                    tally[FAILED] += 1
                    continue
                kind, made = pair(row.input, row.outputs[0]["parsed_output"])
                tally[kind] += 1
                if made:
                    out.write(json.dumps(made, ensure_ascii=False) + "\n")
        judging.teardown()
    return tally


def summary(tally: Counter[str], target: Path) -> str:
    """One sentence about the run."""
    left_out = [f"{tally[kind]} {reason}" for kind, reason in _REASONS.items() if tally[kind]]
    without = f"; no pair was made of {', '.join(left_out)}" if left_out else ""
    return f"{tally[PAIR]} pairs of {tally.total()} prompts are in {target}{without}"


@click.command()
@click.argument("source", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--broker", envvar="GENPOOL_BROKER", help="Where the fleet is.  [default: 127.0.0.1:5555]")
@click.option("--llm", "llms", multiple=True, help="An LLM that answers; repeat it.  [default: all of the fleet]")
@click.option("--judge", help="The LLM that judges.  [default: the first of those that answer]")
@click.option("-n", "count", default=4, show_default=True, type=click.IntRange(2), help="Answers to each prompt.")
@click.option(
    "--wait",
    "wait_s",
    default=60,
    show_default=True,
    type=click.IntRange(1),
    metavar="SECONDS",
    help="How long to wait for the broker, and for an LLM that no worker has announced.",
)
def main(
    source: Path,
    target: Path,
    broker: str | None,
    llms: tuple[str, ...],
    judge: str | None,
    count: int,
    wait_s: float,
) -> None:
    """Make preference pairs for the prompts in SOURCE (JSONL with a text at `input`) and write them to TARGET."""
    try:
        tally = run(source, target, broker, list(llms), judge, count, wait_s)
    except errors.GenpoolError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"{error.filename or target} cannot be used: {error.strerror}") from error
    click.echo(summary(tally, target), err=True)
    if tally[UNREADABLE] and not tally[PAIR]:
        click.echo("the judge's ratings cannot be read: take a larger model for --judge", err=True)


if __name__ == "__main__":
    sys.exit(main())
