"""The rows of a Python program through LLMs, as ``genpool generate`` does those of a file."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, cast

from ..protocol.errors import ConfigurationError
from ..tasks.base import TaskLike
from ..tasks.output import empty_output
from .claim import is_resumable
from .column import OF_EVERY_ROW, Columns, columns_of, output_row
from .dataset import GenerateSettings, Progress, generate
from .fleet import Choice, Connected
from .formats.base import check_path
from .formats.format import JSONL, format_of
from .formats.memory import is_dataset, source_of
from .formats.working import rows_of
from .interrupt import Interrupt
from .pool import LLMPool
from .process_llm import ProcessLLM
from .reason import MaxFailures

log = logging.getLogger("genpool.generate")


class DatasetOptions(TypedDict, total=False):
    """What ``generate_dataset`` takes beside its rows.

    Attributes:
        output: the JSONL file that the rows are written to as they come. The same call goes on where that was cut
            off, and gives back what is there when it was finished. Beside it stand its journal and its report.
        columns: the task's argument -> the column of the rows that it is read from, where that has another name.
        id_column: the column that rows are known by when a call goes on; all their contents count without it.
        errors: a JSONL file where rows that have failed go too.
        only_failed: do the rows again that have failed in the finished ``output``.
        overwrite: begin afresh, whatever ``output`` holds.
        max_failures: stop when more rows have failed than so many, as ``20`` or ``"5%"``.
        seed, draw, weights, timeout, if_lost, lost_after_s, hedge, generation_kwargs: as in CallOptions.
    """

    output: str | Path | None
    columns: Mapping[str, str]
    id_column: str | None
    errors: str | Path | None
    only_failed: bool
    overwrite: bool
    max_failures: int | str | None
    seed: int | None
    draw: Literal["call", "row"]
    weights: Any
    timeout: float | None
    if_lost: Literal["wait", "redraw", "fill"]
    lost_after_s: float
    hedge: bool | float | None
    generation_kwargs: Mapping[str, Any] | None


# Those that have other names in GenerateSettings.
_RENAMED = {"columns": "mapping", "timeout": "timeout_s"}


def generate_dataset(
    llm: LLMPool | ProcessLLM, rows: Any, num_generations: int = 1, **options: Unpack[DatasetOptions]
) -> Any:
    """Generate for every row, and return the rows with the columns that ``genpool generate`` writes.

    Args:
        llm: makes the outputs.
        rows: a ``datasets.Dataset``, or an iterable of dicts, with a column for each of the task's arguments.
        num_generations: outputs for each row.
        options: see DatasetOptions.

    Returns:
        A ``datasets.Dataset`` for one, else a list of dicts; in the order of ``rows``. A row that has failed has None
        for what is missing, and says why in ``error``.

    Raises:
        ConfigurationError: for arguments that cannot be used, and for an ``output`` that is another run's.
        GenpoolError: when too many rows have failed, or they cannot be written; with ``output``, nothing is lost by it.
    """
    if not isinstance(cast(object, llm), (LLMPool, ProcessLLM)):
        raise ConfigurationError(f"`llm` must be an LLMPool or a ProcessLLM, and is {llm!r}")
    unknown = set(options) - set(DatasetOptions.__annotations__)
    if unknown:
        known = ", ".join(sorted(DatasetOptions.__annotations__))
        raise ConfigurationError(f"no such option: {', '.join(sorted(unknown))}; there are {known}")
    given = cast(dict[str, Any], dict(options))
    output = given.pop("output", None)
    if output is not None:
        check_path(str(output))
        if format_of(str(output)).name != JSONL:
            raise ConfigurationError(f"`output` is a JSONL file, and {output} is named otherwise")
        if not is_resumable(str(output)):
            raise ConfigurationError(f"`output` is a file that the rows are read back from, and {output} is none")
        return _generated(llm, rows, num_generations, Path(output), given)
    with tempfile.TemporaryDirectory(prefix="genpool-") as folder:
        return _generated(llm, rows, num_generations, Path(folder) / "rows.jsonl", given)


def _generated(
    llm: LLMPool | ProcessLLM, rows: Any, num_generations: int, target: Path, options: dict[str, Any]
) -> Any:
    limit = options.pop("max_failures", None)
    if (errors := options.pop("errors", None)) is not None:
        options["errors"] = str(errors)
    voices = llm.llms if isinstance(llm, LLMPool) else [llm]
    there = _Given(llm, [_stable_name(voice, at) for at, voice in enumerate(voices)], voices)
    settings = GenerateSettings(
        source="",
        target=str(target),
        target_format=JSONL,
        choice=Choice("", there.names, voices[0].given_task),
        num_generations=num_generations,
        max_failures=None if limit is None else MaxFailures.read(str(limit)),
        **{_RENAMED.get(name, name): value for name, value in options.items()},
    )
    with source_of(rows) as source:
        _, said = generate(settings, source, there.connected, Progress(settings), Interrupt())
    for line in said:
        log.info("%s", line)
    return _as_dataset(target, rows, voices, num_generations) if is_dataset(rows) else list(rows_of(target))


def _stable_name(llm: ProcessLLM, at: int) -> str:
    """A name that is the same in the next process; that of a local LLM is not."""
    is_local = llm.given_task is not None and llm.rendering_task is None
    return f"local {at + 1}" if is_local else llm.llm_name


@dataclass(frozen=True, slots=True)
class _Given:
    """LLMs that the caller has, and keeps."""

    llm: LLMPool | ProcessLLM
    names: list[str]
    voices: list[ProcessLLM]

    @contextmanager
    def connected(self, choice: Choice) -> Generator[Connected]:
        """The LLMs, with their connection. Raises Closed after their ``teardown``."""
        for voice in self.voices:
            voice.start()  # see fleet.connected
        link = self.voices[0].link()
        task: TaskLike | None = self.voices[0].given_task
        columns = Columns(task, link, [voice.llm_name for voice in self.voices])
        yield Connected(self.llm, self.names, link, columns)


def _as_dataset(target: Path, rows: Any, voices: Sequence[ProcessLLM], num_generations: int) -> Any:
    from .formats.huggingface import as_dataset

    columns = Columns(voices[0].given_task, voices[0].link(), [voice.llm_name for voice in voices])
    outputs = [empty_output("")] * num_generations
    example = output_row(dict.fromkeys(rows.column_names), outputs, columns.made(), are_labels=columns.are_labels)
    return as_dataset(target, rows, sorted(OF_EVERY_ROW.union(*map(_made_by, voices))), example)


def _made_by(llm: ProcessLLM) -> list[str]:
    """The columns of what the LLM's task reads in its completions."""
    task = llm.given_task
    if task is not None:
        return columns_of(getattr(task, "output_args_names", []))
    return columns_of(llm.info.task.get("output_args_names", [])) if llm.info is not None else []
