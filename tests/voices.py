"""LLMs without a broker: a link that ends rows as a test says, and voices on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from genpool.client.row import Ending, Row
from genpool.client.run import Run
from genpool.protocol.content import Failure, pack, pack_failure, unpack, unpack_row
from genpool.protocol.errors import GenpoolError
from genpool.protocol.messages import LLMInfo, Outcome

T = TypeVar("T")

Answer = Callable[["Asked"], "Ending | GenpoolError | None"]


class Asked:
    """A row as a worker would read it."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.llm = row.spec.llm
        self.kind = row.spec.kind
        self.num_generations = row.spec.num_generations
        self.options: dict[str, Any] = unpack(row.spec.options) if row.spec.options else {}
        self.content, self.seed = unpack_row(row.payload)

    def tell(self, ending: Ending | GenpoolError) -> None:
        """End the row, and tell its owner."""
        self.row.ending = ending
        self.row.owner.ended([self.row])

    @property
    def text(self) -> str:
        return self.content.get("input", "") if isinstance(self.content, Mapping) else str(self.content)


def echo(asked: Asked) -> Ending:
    """``LLM: text #1``, ``LLM: text #2``, …"""
    texts = [f"{asked.llm}: {asked.text} #{number}" for number in range(1, asked.num_generations + 1)]
    return done(
        *({"model_name": f"model of {asked.llm}", "prompt_used": asked.text, "raw_output": text} for text in texts)
    )


def done(*outputs: Mapping[str, Any]) -> Ending:
    """The row is answered; what an output lacks is None."""
    usual = {"model_name": "model", "prompt_used": None, "raw_output": None, "parsed_output": None}
    return Ending(Outcome.DONE, 1, pack([{**usual, **output} for output in outputs]))


def failed(message: str, builtin: str = "ValueError", *, type: str = "", outcome: Outcome = Outcome.FAILED) -> Ending:
    """A worker tells that the row has failed."""
    failure = Failure(type or builtin, message, builtin, "the traceback", "123", "gpu1")
    return Ending(outcome, 2, pack_failure(failure))


class FakeLink:
    """Ends each row with what ``answer`` makes of it; None holds it until ``end``. All in the caller's thread.

    Runs are split, or with ``keeps_runs`` kept in ``runs`` until ``end_of``.
    """

    def __init__(self, answer: Answer = echo, *llms: LLMInfo, keeps_runs: bool = False) -> None:
        self.answer = answer
        self.keeps_runs = keeps_runs
        self.runs: list[Run] = []
        self.address = "nowhere"
        self.fleet: dict[str, LLMInfo] | None = {info.name: info for info in llms} or None
        self.batches: list[int] = []
        self.rows: list[Asked] = []
        self.held: list[Asked] = []
        self.withdrawn: list[Asked] = []

    def submit(self, rows: list[Row] | Run) -> None:
        if isinstance(rows, Run) and self.keeps_runs:
            self.runs.append(rows)
            return
        if isinstance(rows, Run):
            rows = rows.split()
        self.batches.append(len(rows))
        asked = [Asked(row) for row in rows]
        self.rows += asked
        for one in asked:
            ending = self.answer(one)
            if ending is None:
                self.held.append(one)
            else:
                one.tell(ending)

    def withdraw(self, rows: Iterable[Row] | Run) -> None:
        if isinstance(rows, Run):
            rows.over = True
            rows = rows.rows or ()
        gone = set(map(id, rows))
        self.withdrawn += [one for one in self.held if id(one.row) in gone]
        self.held = [one for one in self.held if id(one.row) not in gone]

    def end_of(self, run: Run, first: int, count: int, payload: bytes | None = None) -> None:
        """Answer rows of a run that is kept."""
        rows = [Asked(run.row(place)) for place in range(first, first + count)]
        run.end(first, count)
        run.owner.run_ended(run, first, [echo(one).payload if payload is None else payload for one in rows])

    def split(self, run: Run) -> None:
        """From now on, the rows of a run that are left are held one by one."""
        self.runs.remove(run)
        self.held += map(Asked, run.split())

    def end(self, asked: Asked | None = None, ending: Ending | GenpoolError | None = None) -> None:
        """End a held row (the oldest)."""
        one = self.held.pop(0) if asked is None else self.held.pop(self.held.index(asked))
        one.tell(echo(one) if ending is None else ending)

    def wait_for(self, question: Callable[[dict[str, LLMInfo]], T | None], timeout_s: float) -> T | None:
        return question(self.fleet or {})

    @property
    def texts(self) -> list[str]:
        return [one.text for one in self.rows]


class FakeVoice:
    """One LLM as a call needs it. Who waits for its ``arguments`` hears of those that it ``learns``."""

    learns: list[str] | None = None
    was_waited_for = 0

    def __init__(
        self, name: str, link: FakeLink, *, task: Any = None, arguments: list[str] | None = None, wait_s: float = 60.0
    ) -> None:
        self.llm_name = name
        self.known_model_name = f"model of {name}"
        self.rendering_task = task
        self.arguments = arguments
        self.wait_s = wait_s
        self.fake = link

    def learn_arguments(self, deadline: float | None = None) -> list[str] | None:
        self.was_waited_for += 1
        self.arguments = self.learns
        return self.arguments

    @property
    def info(self) -> LLMInfo | None:
        return (self.fake.fleet or {}).get(self.llm_name)

    def submit_rows(self, rows: list[Row] | Run) -> None:
        self.fake.submit(rows)

    def withdraw_rows(self, rows: list[Row] | Run) -> None:
        self.fake.withdraw(rows)


def info(name: str, **said: Any) -> LLMInfo:
    """What the broker says of an LLM that one worker serves."""
    usual: dict[str, Any] = {
        "model_names": [f"model of {name}"],
        "task": {"name": "TextGenerationTask", "input_args_names": ["input"], "output_args_names": ["generations"]},
        "options": [],
        "ready": 1,
        "loading": 0,
        "unwell": 0,
        "capacity": 1,
    }
    return LLMInfo(name, **{**usual, **said})
