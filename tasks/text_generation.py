"""The task of answering a text with a text."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .base import Task
from .prompt import Prompt

DEFAULT_SYSTEM_PROMPT = (
    "You are a helpful, honest and careful assistant. Answer the question as fully as it needs and no further. Say "
    "so when a question makes no sense or when you do not know the answer, instead of making something up, and write "
    "nothing that is harmful, insulting or unfair to anyone."
)

# The groups are those of UltraFeedback (https://arxiv.org/abs/2310.01377), which drew one principle per prompt.
DEFAULT_PRINCIPLES: Mapping[str, Sequence[str]] = {
    "harmlessness": (
        "Avoid everything that could hurt a person or a group, in content and in tone.",
        "Decline what is illegal or dangerous, say why in a sentence, and offer a safe way to the same end.",
    ),
    "helpfulness": (
        "Give an answer that can be put to use at once: complete, concrete and in a sensible order.",
        "Find out what the question is really after, and explain what a newcomer to the subject would need.",
    ),
    "truthfulness": (
        "State only what is correct, and point out a false assumption in the question before answering it.",
        "Prefer well established facts, and keep them apart from opinion and from guesses.",
    ),
    "honesty": (
        "Be open about what you cannot know, and never pretend to have done or seen something.",
        "Tell the truth even where another answer would please more, and do so kindly.",
    ),
    "verbalized_calibration": (
        "Say for each claim how sure you are of it, in words that fit how well it is supported.",
        "Mark what is uncertain as uncertain, and name what would have to be checked.",
    ),
}


@dataclass
class TextGenerationTask(Task):
    """Answers ``input`` under a system prompt; ``parse_output`` gives ``{"generations": text}``.

    Attributes:
        system_prompt: how the model shall behave; may be empty.
        principles: groups of principles, by name.
        principles_distribution: how a prompt draws the group of the one principle that is appended to its system
            prompt: ``"balanced"`` draws all groups alike, a dict gives each group its weight (they sum to 1), None
            appends nothing.
        rng: the source of the draws; the ``random`` module's own where it is None.

    Raises:
        TypeError: the system prompt is no text.
        ValueError: the weights do not fit the principles, or do not sum to 1.
    """

    system_prompt: str = DEFAULT_SYSTEM_PROMPT
    principles: Mapping[str, Sequence[str]] = field(default_factory=lambda: dict(DEFAULT_PRINCIPLES), repr=False)
    principles_distribution: Mapping[str, float] | Literal["balanced"] | None = None
    rng: random.Random | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_text("system_prompt", self.system_prompt)
        if self.principles_distribution is None:
            return
        _check_principles(self.principles)
        if isinstance(self.principles_distribution, Mapping):
            _check_weights(self.principles, self.principles_distribution)
        elif self.principles_distribution != "balanced":
            raise ValueError(
                f"`principles_distribution` is {self.principles_distribution!r}: "
                "use 'balanced', a dict of weights or None."
            )

    @property
    def input_args_names(self) -> list[str]:
        return ["input"]

    @property
    def output_args_names(self) -> list[str]:
        return ["generations"]

    def generate_prompt(self, input: str, **_: Any) -> Prompt:
        """The prompt for the text ``input``.

        Raises:
            TypeError: ``input`` is no text.
        """
        _check_text("input", input)
        if self.principles_distribution is None:
            return Prompt(self.system_prompt, input)
        return Prompt(f"{self.system_prompt} {self._draw_principle()}".lstrip(), input)

    def parse_output(self, output: str) -> dict[str, str]:
        return {"generations": output}

    def _draw_principle(self) -> str:
        groups = list(self.principles)
        weights = None
        if isinstance(self.principles_distribution, Mapping):
            weights = [self.principles_distribution[group] for group in groups]
        choices = random.choices if self.rng is None else self.rng.choices
        group = choices(groups, weights)[0]
        return choices(self.principles[group])[0]


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"`{name}` must be a text, not {type(value).__name__}.")


def _check_principles(principles: Mapping[str, Sequence[str]]) -> None:
    if not principles:
        raise ValueError("`principles_distribution` needs `principles` to draw from, and there are none.")
    for group, texts in principles.items():
        if isinstance(texts, str) or not texts:
            raise ValueError(f"`principles` must give a list of at least one text for '{group}', not {texts!r}.")


def _check_weights(principles: Mapping[str, Sequence[str]], weights: Mapping[str, float]) -> None:
    without_weight = ", ".join(f"'{group}'" for group in principles if group not in weights)
    if without_weight:
        raise ValueError(f"`principles_distribution` gives no weight for {without_weight} of `principles`.")
    without_texts = ", ".join(f"'{group}'" for group in weights if group not in principles)
    if without_texts:
        raise ValueError(f"`principles_distribution` names {without_texts}, which `principles` does not have.")
    for group, weight in weights.items():
        if not weight >= 0:
            raise ValueError(f"`principles_distribution` gives '{group}' the weight {weight}: use 0 or more.")
    total = math.fsum(weights.values())
    if not math.isclose(total, 1, abs_tol=1e-6):
        raise ValueError(f"The weights of `principles_distribution` sum to {total:g}: they must sum to 1.")
