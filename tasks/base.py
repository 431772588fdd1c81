"""The task: how inputs become prompts and completions become parsed outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Generator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol, cast

LABELLING = "labelling"


class TaskLike(Protocol):
    """What is asked of a task. Objects that merely have these members (a distilabel task, say) are tasks too.

    What a task may have beside them: ``parse_output_of(input, output)``, which is preferred to ``parse_output`` where
    the row's arguments are known; ``generation_kwargs``, sampling options for the LLMs that know them, which a call's
    own come before; and ``__type__ = "labelling"``, which gives what it makes the columns of labels.
    """

    @property
    def input_args_names(self) -> Sequence[str]: ...

    @property
    def output_args_names(self) -> Sequence[str]: ...

    def generate_prompt(self, *args: Any, **kwargs: Any) -> Any: ...

    def parse_output(self, output: str, /) -> Any: ...


class Task(ABC):
    """The base of every task.

    Attributes:
        system_prompt: how the model shall behave.
        task_description: what the task is about, for people.
    """

    # distilabel's name for it, so that its tasks tell the same way.
    __type__: ClassVar[Literal["generation", "labelling"]] = "generation"

    system_prompt: str
    task_description: str | None = None

    def __rich_repr__(self) -> Generator[Any, None, None]:
        yield "system_prompt", getattr(self, "system_prompt", None)
        yield "task_description", self.task_description
        yield "input_args_names", self.input_args_names
        yield "output_args_names", self.output_args_names

    @property
    @abstractmethod
    def input_args_names(self) -> list[str]:
        """The keys that every input must have."""

    @property
    @abstractmethod
    def output_args_names(self) -> list[str]:
        """The keys of what ``parse_output`` returns."""

    @abstractmethod
    def generate_prompt(self, *args: Any, **kwargs: Any) -> Any:
        """The prompt for one input, whose arguments come by name: a ``Prompt``, a text or a list of chat messages."""

    @abstractmethod
    def parse_output(self, output: str) -> Any:
        """What a completion says. May raise: that costs the parsed output, never the raw one."""

    def validate_dataset(self, columns_in_dataset: Sequence[str]) -> None:
        """Checks that a dataset has every column that this task needs.

        Raises:
            KeyError: names the columns that are missing.
        """
        missing = [name for name in self.input_args_names if name not in columns_in_dataset]
        if missing:
            raise KeyError(
                f"{type(self).__name__} needs the column {_quoted(missing)}, "
                f"and the dataset has only {_quoted(columns_in_dataset) or 'no columns'}."
            )


def require_task(task: object) -> None:
    """Refuses what cannot serve as a task.

    Raises:
        TypeError: names the members that it lacks, or says that it is a class.
    """
    if isinstance(task, type):
        raise TypeError(f"A task must be an object, not the class {task.__name__}: use {task.__name__}().")
    missing = [name for name in ("generate_prompt", "parse_output", "input_args_names") if not hasattr(task, name)]
    if missing:
        raise TypeError(
            f"A task must have {_quoted(missing)}, and {type(task).__name__} has not: derive it from genpool.Task."
        )


def missing_arguments(task: TaskLike | Sequence[str], input: object) -> list[str]:
    """The argument names of ``task`` (a task, or just the names) that ``input`` lacks, in the task's order."""
    names = task if isinstance(task, Sequence) else task.input_args_names
    # A dict is told apart at once, and what else is a mapping only by asking.
    if not isinstance(input, (dict, Mapping)):
        return list(names)
    return [name for name in names if name not in input]


def lacking_inputs(task: TaskLike, inputs: Sequence[Any]) -> dict[int, list[str]]:
    """The argument names of ``task`` that some of ``inputs`` lack, by their places; the others lack nothing."""
    names = list(task.input_args_names)
    if _are_dicts_with(names, inputs):  # as a rule, and that takes a third of the time to see
        return {}
    return {place: lacking for place, one in enumerate(inputs) if (lacking := missing_arguments(names, one))}


def _are_dicts_with(names: Sequence[str], inputs: Sequence[Any]) -> bool:
    for one in inputs:
        if type(one) is not dict:
            return False
    for name in names:
        for one in inputs:
            if name not in one:
                return False
    return True


def same_task(tasks: Sequence[object]) -> bool:
    """Whether LLMs with these tasks may share a pool, by distilabel's rule.

    They may where all tasks are instances of the least derived class among them, or where all their classes have
    the same direct parent; a parent that says nothing about a task (``object``) does not count.
    """
    classes = [type(task) for task in tasks]
    if not classes:
        return True
    least_derived = min(classes, key=lambda one: len(one.__mro__))
    if all(issubclass(one, least_derived) for one in classes):
        return True
    parents = {one.__mro__[1] for one in classes}
    return len(parents) == 1 and parents.isdisjoint({object, ABC})


def is_labelling(task: TaskLike) -> bool:
    """Whether what ``task`` makes are labels of something that was generated before."""
    return getattr(task, "__type__", None) == LABELLING


def known_wishes(wishes: object, known: Collection[str]) -> dict[str, Any]:
    """Those of a task's ``generation_kwargs`` that an LLM with the options ``known`` can be asked for."""
    if wishes is None or not isinstance(wishes, Mapping):  # to tell that of None takes long
        return {}
    return {name: value for name, value in cast(Mapping[str, Any], wishes).items() if name in known}


def text_of(error: BaseException) -> str:
    """What ``error`` says; a user's exception may be unable to, and then it is ""."""
    try:
        return str(error)
    except Exception:
        return ""


def describe(task: TaskLike) -> dict[str, Any]:
    """A task by its names, for those who do not have it: ``name``, ``input_args_names``, ``output_args_names``.

    Where it makes labels, its ``type`` says so.
    """
    names = {
        "name": type(task).__name__,
        "input_args_names": list(task.input_args_names),
        "output_args_names": list(getattr(task, "output_args_names", [])),
    }
    return names | {"type": LABELLING} if is_labelling(task) else names


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
