"""The columns of a generated dataset, as distilabel 0.6 named them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from ..tasks.base import LABELLING, TaskLike, is_labelling
from ..tasks.output import LLMOutput
from .formats.jsonl import encode
from .link import Link

ERROR = "error"

# Where what a task reads under that name goes: ``error`` says why a row has failed.
PARSED_ERROR = "parsed_error"

# The column of what a task reads that has no names of its own for it.
DEFAULT = "generations"
DEFAULT_LABEL = "label"

_OF_EVERY_OUTPUT = {
    "generation_model": "model_name",
    "generation_prompt": "prompt_used",
    "raw_generation_responses": "raw_output",
}

_OF_EVERY_LABEL = {
    "labelling_model": "model_name",
    "labelling_prompt": "prompt_used",
    "raw_labelling_response": "raw_output",
}


# Where an engine has counted tokens; distilabel has no such columns.
USAGE = "generation_usage"
LABEL_USAGE = "labelling_usage"

# The columns that a run makes, whatever the task.
OF_EVERY_ROW = {DEFAULT, DEFAULT_LABEL, USAGE, LABEL_USAGE, ERROR, *_OF_EVERY_OUTPUT, *_OF_EVERY_LABEL}


class Columns:
    """What a task reads and makes: by the task given, or as far as the LLMs have told of theirs by now."""

    def __init__(self, task: TaskLike | None, link: Link, llms: Sequence[str]) -> None:
        self._link = link
        self._llms = llms
        self._needed: list[str] | None = None
        self._made: list[str] | None = None
        self._task = task
        if task is not None:
            self._needed = list(task.input_args_names)
            self._made = columns_of(getattr(task, "output_args_names", [])) or [self._default]

    @property
    def are_known(self) -> bool:
        """Whether every LLM has told of its task."""
        return self._needed is not None or None not in self._told("input_args_names")

    def needed(self) -> list[str]:
        """The columns that a row must have."""
        if self._needed is not None:
            return self._needed
        needed = _joined(self._told("input_args_names"))
        if self.are_known:
            self._needed = needed
        return needed

    def made(self) -> list[str]:
        """The columns that every row gets for what the task reads in its completions."""
        if self._made is not None:
            return self._made
        told = self._told("output_args_names")
        made = columns_of(_joined(told)) or [self._default]
        if None not in told:
            self._made = made
        return made

    @property
    def are_labels(self) -> bool:
        """Whether the task makes labels, as far as it is known by now."""
        if self._task is not None:
            return is_labelling(self._task)
        return LABELLING in cast(list[object], self._told("type"))

    @property
    def _default(self) -> str:
        return DEFAULT_LABEL if self.are_labels else DEFAULT

    def _told(self, what: str) -> list[list[str] | None]:
        fleet = self._link.fleet or {}
        return [fleet[name].task.get(what) if name in fleet else None for name in self._llms]


def columns_of(names: Iterable[Any]) -> list[str]:
    """The columns of what a task reads under these names."""
    return [PARSED_ERROR if name == ERROR else str(name) for name in names]


def _joined(lists: Sequence[Sequence[str] | None]) -> list[str]:
    return list(dict.fromkeys(str(name) for names in lists for name in names or ()))


def output_row(
    given: Mapping[str, Any],
    outputs: Sequence[LLMOutput],
    made: Sequence[str],
    error: str = "",
    *,
    are_labels: bool = False,
) -> dict[str, Any]:
    """The row to write: the input's columns, and lists with an entry for each output, None where there is nothing.

    A parsed output that is a dict gives its entries to the columns of their names; another one goes to
    ``generations``. What is generated takes the place of an input column of the same name. The columns of a single
    label hold it itself, and no list.
    """
    columns: dict[str, Any] = {name: [None] * len(outputs) for name in made}
    for at, output in enumerate(outputs):
        entries = _entries(output.get("parsed_output"), are_labels)
        for name, value in zip(columns_of(entries), entries.values(), strict=True):
            columns.setdefault(name, [None] * len(outputs))[at] = value
    for name, key in _of_every_output(are_labels).items():
        columns[name] = [output.get(key) for output in outputs]
    if any("usage" in output for output in outputs):
        columns[LABEL_USAGE if are_labels else USAGE] = [output.get("usage") for output in outputs]
    if are_labels and len(outputs) == 1:
        columns = {name: values[0] for name, values in columns.items()}
    row = {name: value for name, value in given.items() if name != ERROR} | columns
    return row | {ERROR: error} if error else row


def _of_every_output(are_labels: bool) -> Mapping[str, str]:
    return _OF_EVERY_LABEL if are_labels else _OF_EVERY_OUTPUT


def _entries(parsed: Any, are_labels: bool) -> Mapping[str, Any]:
    if parsed is None:
        return {}
    if isinstance(parsed, Mapping):
        return {str(name): value for name, value in cast(Mapping[Any, Any], parsed).items()}
    # As distilabel's labelling tasks return them: a dict for each of the texts that were labelled.
    if are_labels and isinstance(parsed, list) and all(isinstance(one, Mapping) for one in cast(list[Any], parsed)):
        texts = cast(list[Mapping[Any, Any]], parsed)
        names = dict.fromkeys(str(name) for one in texts for name in one)
        return {name: [one.get(name) for one in texts] for name in names}
    return {DEFAULT_LABEL if are_labels else DEFAULT: parsed}


def replaced(given: Mapping[str, Any], made: Sequence[str], *, are_labels: bool = False) -> list[str]:
    """The input's columns that what is generated takes the place of."""
    usage = LABEL_USAGE if are_labels else USAGE
    return [name for name in (*made, *_of_every_output(are_labels), usage, ERROR) if name in given]


def encoded(row: Mapping[str, Any], *, has_nan: bool = False) -> tuple[bytes, str]:
    """The row as a line, and what had to be left out of it: a parsed output that JSON cannot hold, say.

    ``has_nan`` is as for ``encode``.
    """
    try:
        return encode(row, has_nan=has_nan), ""
    except (TypeError, ValueError):
        pass
    writable: dict[str, Any] = {}
    problems: list[str] = []
    for name, value in row.items():
        try:
            encode({name: value})
            writable[name] = value
        except (TypeError, ValueError) as error:
            writable[name] = [None] * len(cast(list[Any], value)) if isinstance(value, list) else None
            problems.append(f"the column {name!r} cannot be written as JSON: {error}")
    problem = "; ".join(problems)
    error = "; ".join(filter(None, (str(row.get(ERROR, "")), problem)))
    return encode(writable | {ERROR: error}, has_nan=has_nan), problem
