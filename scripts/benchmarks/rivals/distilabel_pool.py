"""distilabel 0.6: its ``ProcessLLM``s, called in turn with all futures outstanding, or its ``LLMPool``.

A ``LLMPool`` blocks, and two threads must not call it at once. So it gets one call after the other, with a generation
from each of its LLMs, and each generation counts. One text a call is the default of distilabel's own pipeline.
"""

# It is not installed beside genpool, but in an environment of its own.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportUntypedBaseClass=false

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from itertools import cycle
from typing import Any

from benchmarks.rivals.harness import PATIENCE_S, Order, Rival, Texts, answer, serve
from distilabel.llm import LLM, LLMPool, ProcessLLM
from distilabel.llm.utils import LLMOutput
from distilabel.tasks import TextGenerationTask


class Noop(LLM):
    """Answers at once."""

    @property
    def model_name(self) -> str:
        return "noop"

    def _generate(self, inputs: list[dict[str, Any]], num_generations: int = 1) -> list[list[Any]]:
        return [
            [
                LLMOutput(model_name="noop", prompt_used=None, raw_output=text, parsed_output=None)
                for text in answer(["" for _ in range(num_generations)])
            ]
            for _ in inputs
        ]


def _inputs(texts: Texts) -> list[dict[str, str]]:
    return [{"input": text} for text in texts]


def _outputs(generations: list[list[Any]]) -> Texts:
    return [output["raw_output"] for row in generations for output in row]


def _processes(llms: Sequence[Any]) -> Rival:
    turn = cycle(llms)

    def call(texts: Texts) -> Texts:
        return _outputs(next(turn).generate(_inputs(texts)).result(PATIENCE_S))

    def call_all(calls: Sequence[Texts]) -> list[Texts]:
        futures = [next(turn).generate(_inputs(texts)) for texts in calls]
        return [_outputs(future.result(PATIENCE_S)) for future in futures]

    return Rival(version("distilabel"), f"{len(llms)} ProcessLLMs in turn", call, call_all)


def _pool(llms: Sequence[Any]) -> Rival:
    pool = LLMPool(list(llms))

    def call(texts: Texts) -> Texts:
        return _outputs(pool.generate(_inputs(texts)))

    def call_all(calls: Sequence[Texts]) -> list[Texts]:
        return [_outputs(pool.generate(_inputs(texts), num_generations=len(llms))) for texts in calls]

    return Rival(version("distilabel"), f"1 pool of {len(llms)} ProcessLLMs", call, call_all)


_KINDS = {"processes": _processes, "pool": _pool}


@contextmanager
def running(order: Order) -> Generator[Rival]:
    with ExitStack() as stack:
        llms = [ProcessLLM(TextGenerationTask(), Noop) for _ in range(order.workers)]
        for llm in llms:
            stack.callback(llm.teardown)
        (kind,) = order.arguments
        yield _KINDS[kind](llms)


if __name__ == "__main__":
    serve(running)
