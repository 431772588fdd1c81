"""The morning report: what became of a run's rows, for people and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..protocol.printable import plural, printable
from .entry import standing_fields
from .formats.target import replacing
from .reason import by_number
from .standing import LostWorker, Made, Standing

_SHOWN_REASONS = 5


def now_text() -> str:
    """What time it is. For people: nothing goes by it."""
    return datetime.now(tz=UTC).astimezone().isoformat(timespec="seconds")


def report_of(header: Mapping[str, Any], standing: Standing, *, is_finished: bool) -> dict[str, Any]:
    """The report as plain data.

    Args:
        header: what the run was begun with.
        standing: how far it is.
        is_finished: whether all rows of the input are written.
    """
    llms = {llm: _made(made, standing.seconds) for llm, made in standing.made.items()}
    return {
        "finished": is_finished,
        "started": header["started"],
        "ended": now_text(),
        "seconds": round(standing.seconds, 3),
        "rows": standing.rows,
        "failed": standing.failed,
        "reasons": dict(by_number(standing.reasons)),
        "llms": llms,
        "shares_run_twice": standing.repeated,
        "workers_lost": [asdict(one) for one in standing.lost],
        **{name: header[name] for name in ("run", "pool", "drawn", "settings", "errors")},
        "standing": {**standing_fields(standing), "chain": standing.chain.hex()},
    }


def _made(made: Made, seconds: float) -> dict[str, Any]:
    tokens = made.prompt_tokens + made.completion_tokens
    told: dict[str, Any] = {"outputs": made.outputs, "outputs_per_s": _rate(made.outputs, seconds)}
    if tokens:
        told |= {"prompt_tokens": made.prompt_tokens, "completion_tokens": made.completion_tokens}
        told["completion_tokens_per_s"] = _rate(made.completion_tokens, seconds)
    if made.cost:
        told["cost"] = round(made.cost, 6)
    return told


def _rate(count: float, seconds: float) -> float:
    return round(count / seconds, 2) if seconds else 0.0


def workers_lost(fleet: Mapping[str, Any] | None, llms: Sequence[str], seconds: float) -> list[LostWorker]:
    """The workers of ``llms`` that were lost in the last ``seconds``, by the broker's report ``fleet``, if it came."""
    found = [one for one in (fleet or {}).get("lost", []) if one["llm"] in llms and one["ago_s"] <= seconds]
    return [LostWorker(**{field.name: one[field.name] for field in fields(LostWorker)}) for one in found]


def summary(report: Mapping[str, Any]) -> list[str]:
    """The lines of the report for people, without how many rows there are."""
    lines: list[str] = []
    reasons = list(report["reasons"].items())
    lines += [f"{rows} failed: {reason}" for reason, rows in reasons[:_SHOWN_REASONS]]
    if len(reasons) > _SHOWN_REASONS:
        lines.append(f"{sum(rows for _, rows in reasons[_SHOWN_REASONS:])} failed for other reasons")
    lines += [_of_llm(llm, made) for llm, made in report["llms"].items()]
    if lost := report["workers_lost"]:
        were = "was" if len(lost) == 1 else "were"
        lines.append(f"{plural(len(lost), 'worker')} {were} lost: " + "; ".join(_of_worker(one) for one in lost))
    if report["shares_run_twice"]:
        lines.append(f"shares that were run more than once: {report['shares_run_twice']}")
    return [printable(line) for line in lines]


def _of_llm(llm: str, made: Mapping[str, Any]) -> str:
    said = [f"{plural(made['outputs'], 'output')} ({made['outputs_per_s']:g}/s)"]
    if "completion_tokens" in made:
        said.append(f"{made['completion_tokens']} tokens ({made['completion_tokens_per_s']:g}/s)")
    if "cost" in made:
        said.append(f"cost {made['cost']:g}")
    return f"{llm}: {', '.join(said)}"


def _of_worker(lost: Mapping[str, Any]) -> str:
    rows = f"{plural(lost['rows'], 'row')}, which went elsewhere"
    when = f"{lost['ago_s']:.0f} s before the end ({lost['why']}, with {rows})"
    return f"{lost['host']}:{lost['pid']} of {lost['llm']!r}, {when}"


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Put the report at ``path``, whole or not at all. Raises GenpoolError."""
    with replacing(path) as file:
        file.write(json.dumps(report, indent=2, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")
