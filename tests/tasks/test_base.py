"""Tasks of our own and of others."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest

from genpool.tasks.base import Task, describe, is_labelling, lacking_inputs, missing_arguments, require_task, same_task
from genpool.tasks.prompt import Prompt
from genpool.tasks.text_generation import TextGenerationTask


class Summary(Task):
    """Two inputs, and a constructor of its own."""

    def __init__(self, system_prompt: str = "Sum it up.") -> None:
        self.system_prompt = system_prompt

    @property
    def input_args_names(self) -> list[str]:
        return ["title", "text"]

    @property
    def output_args_names(self) -> list[str]:
        return ["summary"]

    def generate_prompt(self, title: str, text: str) -> Prompt:
        return Prompt(self.system_prompt, f"{title}: {text}")

    def parse_output(self, output: str) -> dict[str, str]:
        return {"summary": output}


class Nameless(Summary):
    def __init__(self) -> None:
        pass


class Polite(TextGenerationTask):
    pass


class Rude(TextGenerationTask):
    pass


class VeryPolite(Polite):
    pass


class Duck:
    """A task of another library."""

    input_args_names = ("question",)

    def generate_prompt(self, question: str) -> str:
        return question

    def parse_output(self, output: str) -> str:
        return output


class OtherDuck(Duck):
    pass


class Goose:
    input_args_names = ("question",)


@pytest.mark.parametrize("columns", [["text", "title"], ["id", "title", "text"]])
def test_validate_dataset_takes_more_columns(columns: list[str]) -> None:
    assert Summary().validate_dataset(columns) is None


def test_validate_dataset_names_the_missing_column() -> None:
    with pytest.raises(KeyError, match="Summary needs the column 'text', and the dataset has only 'title', 'body'"):
        Summary().validate_dataset(["title", "body"])


def test_validate_dataset_without_columns() -> None:
    with pytest.raises(KeyError, match="needs the column 'title', 'text', and the dataset has only no columns"):
        Summary().validate_dataset([])


def test_rich_repr_tells_the_names() -> None:
    assert dict(Summary().__rich_repr__()) == {
        "system_prompt": "Sum it up.",
        "task_description": None,
        "input_args_names": ["title", "text"],
        "output_args_names": ["summary"],
    }


def test_rich_repr_without_a_system_prompt() -> None:
    assert dict(Nameless().__rich_repr__())["system_prompt"] is None


def test_an_unfinished_task_cannot_be_made() -> None:
    class Half(Task):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Half()  # type: ignore[abstract]


@pytest.mark.parametrize("task", [Summary(), Duck(), TextGenerationTask()])
def test_require_task_takes_whatever_has_the_members(task: object) -> None:
    assert require_task(task) is None


def test_require_task_names_what_is_missing() -> None:
    with pytest.raises(TypeError, match="must have 'generate_prompt', 'parse_output', and Goose has not"):
        require_task(Goose())


def test_require_task_refuses_a_class() -> None:
    with pytest.raises(TypeError, match=r"not the class Summary: use Summary\(\)"):
        require_task(Summary)


@pytest.mark.parametrize(
    ("input", "missing"),
    [
        ({"title": "T", "text": "X", "more": 1}, []),
        ({"text": None}, ["title"]),
        ({}, ["title", "text"]),
        ("title text", ["title", "text"]),
        (None, ["title", "text"]),
    ],
)
def test_missing_arguments(input: Any, missing: list[str]) -> None:
    assert missing_arguments(Summary(), input) == missing
    assert missing_arguments(["title", "text"], input) == missing
    whole = MappingProxyType({"text": "X", "title": "T"})
    assert lacking_inputs(Summary(), [whole, input, {"text": "X", "title": "T"}]) == ({1: missing} if missing else {})


@pytest.mark.parametrize(
    "tasks",
    [
        [],
        [Summary()],
        [Summary("a"), Summary("b")],
        [VeryPolite(), TextGenerationTask(), Rude()],
        [Polite(), Rude()],
        [TextGenerationTask(), Summary()],
        [Duck(), OtherDuck()],
    ],
    ids=["none", "one", "instances", "base class among them", "siblings", "siblings under Task", "ducks"],
)
def test_same_task(tasks: list[object]) -> None:
    assert same_task(tasks)
    assert same_task(tasks[::-1])


@pytest.mark.parametrize(
    "tasks", [[VeryPolite(), Rude()], [Summary(), Polite()], [Duck(), Goose()], [Duck(), Summary()]]
)
def test_not_the_same_task(tasks: list[object]) -> None:
    assert not same_task(tasks)
    assert not same_task(tasks[::-1])


def test_describe() -> None:
    assert describe(Summary()) == {
        "name": "Summary",
        "input_args_names": ["title", "text"],
        "output_args_names": ["summary"],
    }


def test_describe_a_task_without_output_names() -> None:
    task: Any = Duck()
    assert describe(task) == {"name": "Duck", "input_args_names": ["question"], "output_args_names": []}


class Judge(Summary):
    __type__ = "labelling"


def test_a_task_that_makes_labels_says_so() -> None:
    assert is_labelling(Judge())
    assert not is_labelling(Summary())
    task: Any = Duck()
    assert not is_labelling(task)
    assert describe(Judge())["type"] == "labelling"
