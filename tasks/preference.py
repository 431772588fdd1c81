"""The task of rating several answers to one input, with reasons."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, cast

from .base import Task
from .prompt import Prompt
from .rating import Judgement, Scale, read_judgements

_SYSTEM_PROMPT = (
    "You are a fair and careful judge of texts. You rate each output by itself: neither its length nor its place "
    "among the others makes it better or worse."
)

_LEAST_GENERATIONS = 2


@dataclass
class PreferenceTask(Task):
    """Has a judge rate each of ``generations``, several texts that answer ``input``, and say why.

    ``parse_output_of`` gives ``{"rating": [4.0, None], "rationale": ["Correct.", None]}``: a number and a text for
    each generation, in the order of ``generations``, with None for what could not be read safely. A number of ratings
    that does not fit is never shifted onto the wrong generation. The way of asking is UltraFeedback's
    (https://arxiv.org/abs/2310.01377).

    Attributes:
        system_prompt: how the judge shall behave; may be empty.
        aspects: what the judge shall look at, a text for each; overall quality where there are none.
        lowest, highest: the scale of the ratings.
        shuffle: shows the generations in an order of their own, so that no place is favoured. The order is drawn
            from the texts themselves: the same row is always shown in the same one.
        generation_kwargs: sampling options for the judge that hold where it knows them, such as ``max_new_tokens``
            (a judge that is cut off rates only the first ones) or a ``temperature`` of 0.

    Raises:
        TypeError: the system prompt is no text.
        ValueError: ``lowest`` is not below ``highest``.
    """

    __type__: ClassVar[Literal["generation", "labelling"]] = "labelling"

    system_prompt: str = _SYSTEM_PROMPT
    aspects: Sequence[str] = ()
    lowest: int = 1
    highest: int = 5
    shuffle: bool = True
    generation_kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        if not isinstance(cast(object, self.system_prompt), str):
            raise TypeError(f"`system_prompt` must be a text, not {type(self.system_prompt).__name__}.")
        if isinstance(self.aspects, str):
            raise TypeError("`aspects` must be a list of texts, not a single one.")
        if not self.lowest < self.highest:
            raise ValueError(f"`lowest` must be below `highest`, and {self.lowest} is not below {self.highest}.")

    @property
    def input_args_names(self) -> list[str]:
        return ["input", "generations"]

    @property
    def output_args_names(self) -> list[str]:
        return ["rating", "rationale"]

    def generate_prompt(self, input: str, generations: Sequence[str], **_: Any) -> Prompt:
        """The prompt that asks for the ratings.

        Raises:
            TypeError: ``input`` or one of ``generations`` is no text.
            ValueError: there are fewer than two generations.
        """
        texts = _checked(input, generations)
        shown = [texts[at] for at in self._order(input, texts)]
        numbers = range(1, len(shown) + 1)
        outputs = [
            f"<output {number}>\n{text}\n</output {number}>" for number, text in zip(numbers, shown, strict=True)
        ]
        form = f"Rating: (a number from {self.lowest} to {self.highest})\nRationale: (one or two sentences)"
        forms = [f"Output {number}:\n{form}" for number in numbers]
        parts = [
            self._question(len(shown)),
            f"<instruction>\n{input}\n</instruction>",
            *outputs,
            "Answer in this form, and write nothing else:",
            *forms,
        ]
        return Prompt(self.system_prompt, "\n\n".join(parts))

    def parse_output(self, output: str) -> dict[str, Any]:
        """The ratings and rationales in the order in which the generations were shown.

        Raises:
            ValueError: they were shuffled, and ``output`` alone does not tell how.
        """
        if self.shuffle:
            raise ValueError(
                "a PreferenceTask that shuffles reads a completion by its row: call parse_output_of(input, output), "
                "or make it with shuffle=False"
            )
        return _columns(read_judgements(output, self._scale))

    def parse_output_of(self, input: Mapping[str, Any], output: str) -> dict[str, Any]:
        """The ratings and rationales that ``output`` has for the generations of the row ``input``, in their order.

        Raises:
            TypeError, ValueError: as ``generate_prompt``, for a row that no prompt was made of.
        """
        texts = _checked(input["input"], input["generations"])
        shown = read_judgements(output, self._scale, len(texts))
        judgements = [Judgement()] * len(texts)
        for at, judgement in zip(self._order(input["input"], texts), shown, strict=True):
            judgements[at] = judgement
        return _columns(judgements)

    @property
    def _scale(self) -> Scale:
        return Scale(self.lowest, self.highest)

    def _question(self, count: int) -> str:
        ask = (
            f"Below are an instruction and {count} outputs that answer it. Rate each output from {self.lowest} (worst) "
            f"to {self.highest} (best), and give the reason for each rating."
        )
        if not self.aspects:
            return f"{ask} The rating is about the overall quality: how correct, helpful and clear the output is."
        return "\n".join([f"{ask} The rating is about:", *(f"- {aspect}" for aspect in self.aspects)])

    def _order(self, input: str, texts: Sequence[str]) -> list[int]:
        """Which of the texts is shown first, which second, and so on."""
        order = list(range(len(texts)))
        if self.shuffle:
            # As bytes, for a text of a tokenizer may hold lone surrogates, with which a text is no seed.
            random.Random("\0".join((input, *texts)).encode("utf-8", "surrogatepass")).shuffle(order)
        return order


def _columns(judgements: Sequence[Judgement]) -> dict[str, Any]:
    return {
        "rating": [judgement.rating for judgement in judgements],
        "rationale": [judgement.rationale for judgement in judgements],
    }


def _checked(input: object, generations: object) -> list[str]:
    if not isinstance(input, str):
        raise TypeError(f"`input` must be a text, not {type(input).__name__}.")
    if isinstance(generations, str) or not isinstance(generations, Sequence):
        raise TypeError(f"`generations` must be a list of texts, not {type(generations).__name__}.")
    texts = cast(Sequence[object], generations)
    for at, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"`generations` must be texts, and the one at {at} is {type(text).__name__}.")
    if len(texts) < _LEAST_GENERATIONS:
        raise ValueError(f"`generations` must be at least two to be compared, and there are {len(texts)}.")
    return cast(list[str], list(texts))
