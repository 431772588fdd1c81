"""What a server answered to one request, whatever its interface."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...tasks.output import token_count


@dataclass(frozen=True, slots=True)
class Choice:
    """One completion."""

    text: str
    finish_reason: str | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request brought: its choices, and the tokens of all of them together where the server counts them.

    ``cost`` is theirs in US dollars, where it is known.
    """

    choices: list[Choice]
    usage: Mapping[str, int] | None
    cost: float | None = None

    @property
    def tokens(self) -> int | None:
        """Tokens of the prompt and the completions."""
        return sum(self.usage.values()) if self.usage else None


def counts_of(usage: object) -> dict[str, int] | None:
    """The counts of tokens in what a server tells of its usage; None where it tells none, or nothing but zeros."""
    counts = {name: token_count(getattr(usage, name, None)) for name in ("prompt_tokens", "completion_tokens")}
    told = {name: count for name, count in counts.items() if count is not None}
    # litellm says 0 where a provider says nothing, and no request is without a token.
    return told if any(told.values()) else None
