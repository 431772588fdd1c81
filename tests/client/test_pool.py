"""The pool on links that answer as a test says: no broker, no process."""

from __future__ import annotations

import asyncio
import builtins
import pickle
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, wait
from typing import Any

import pytest
from inputs import inputs
from voices import Asked, FakeLink, echo, failed, info

from genpool import LLMPool, ProcessLLM, Task, TextGenerationTask
from genpool.client import call as call_module
from genpool.client import pool as pool_module
from genpool.client import process_llm as llm_module
from genpool.client.process_llm import RemoteTask
from genpool.client.row import Ending
from genpool.client.seconds import LONGEST_S
from genpool.protocol.errors import (
    Closed,
    ConfigurationError,
    Expired,
    GenerationError,
    GenpoolError,
    NoBroker,
    UnknownLLM,
)
from genpool.protocol.messages import Outcome

TOO_FEW = (
    "The `llms` argument must contain at least 2 `ProcessLLM`s. If you want to use a single `ProcessLLM`, use it "
    "directly instead."
)
NOT_ONE = "The `llms` argument must contain only `ProcessLLM`s."
TASKS_DIFFER = "All the `ProcessLLM` in `llms` must share the same task (either as the instance or the parent class)."

Connect = Callable[..., LLMPool]


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> FakeLink:
    """The link of every connected LLM; it knows "a", "b" and "c"."""
    link = FakeLink(echo, info("a"), info("b"), info("c"))
    for module in (llm_module, pool_module):
        monkeypatch.setattr(module, "link_to", lambda address: link)
        monkeypatch.setattr(module, "leave", lambda link: None)
    return link


@pytest.fixture
def pool(link: FakeLink) -> LLMPool:
    return LLMPool.connect(["a", "b"])


def texts(outputs: list[Any]) -> list[list[Any]]:
    return [[output["raw_output"] for output in row] for row in outputs]


def local(task: Any) -> ProcessLLM:
    return ProcessLLM(task, lambda task: task)


class OneTask(TextGenerationTask):
    pass


class OtherTask(TextGenerationTask):
    pass


class Unrelated(Task):
    system_prompt = ""

    @property
    def input_args_names(self) -> list[str]:
        return ["question"]

    @property
    def output_args_names(self) -> list[str]:
        return []

    def generate_prompt(self, question: str) -> str:
        return question

    def parse_output(self, output: str) -> str:
        return output


# Which LLMs make a pool.


@pytest.mark.parametrize("llms", [[], [ProcessLLM.connect("a")], 7, None])
def test_fewer_than_two(llms: Any) -> None:
    with pytest.raises(ValueError, match="at least 2") as error:
        LLMPool(llms)
    assert str(error.value) == TOO_FEW


@pytest.mark.parametrize("other", [None, "b", TextGenerationTask()])
def test_something_else_than_a_process_llm(other: Any) -> None:
    with pytest.raises(ValueError, match="only") as error:
        LLMPool([ProcessLLM.connect("a"), other])
    assert str(error.value) == NOT_ONE


def test_different_tasks() -> None:
    with pytest.raises(ValueError, match="share the same task") as error:
        LLMPool([local(OneTask()), local(Unrelated())])
    assert str(error.value) == TASKS_DIFFER


@pytest.mark.parametrize(
    "tasks",
    [
        (TextGenerationTask(), TextGenerationTask("another system prompt")),
        (TextGenerationTask(), OneTask()),
        (OneTask(), OtherTask()),
        (OneTask(), TextGenerationTask(), OtherTask()),
    ],
)
def test_the_same_task_by_instance_or_parent(tasks: tuple[Any, ...]) -> None:
    pool = LLMPool([local(task) for task in tasks])
    assert pool.task is tasks[0]
    assert pool.num_llms == len(tasks)


def test_all_of_it_is_also_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError):
        LLMPool([])


def test_connect_takes_names_and_llms() -> None:
    mine = ProcessLLM.connect("mine")
    pool = LLMPool.connect(["a", mine])
    assert pool.llms[1] is mine
    assert [llm.llm_name for llm in pool.llms] == ["a", "mine"]


@pytest.mark.parametrize("llms", ["ab", ["a"], ["a", ""], ["a", 7], 7, ProcessLLM.connect("a")])
def test_connect_with_what_makes_no_pool(llms: Any) -> None:
    with pytest.raises(ConfigurationError):
        LLMPool.connect(llms)


@pytest.mark.parametrize("llms", [None, ["a", "b"]], ids=["all", "named"])
def test_connect_with_what_is_no_task(llms: Any) -> None:
    with pytest.raises(TypeError, match=r"not the class TextGenerationTask: use TextGenerationTask\(\)"):
        LLMPool.connect(llms, task=TextGenerationTask)


def test_a_pool_describes_itself(pool: LLMPool) -> None:
    assert pool.num_llms == len(pool.llms) == 2
    assert not pool.return_futures
    assert all(llm.return_futures for llm in pool.llms)
    assert "'a'" in repr(pool)
    assert isinstance(pool.task, RemoteTask)
    assert pool.task.name == "TextGenerationTask"
    assert pool.task.input_args_names == ["input"]
    assert pool.task.output_args_names == ["generations"]
    assert pool.llms[0].model_name == "model of a"


@pytest.mark.parametrize("call", ["generate_prompt", "parse_output"])
def test_a_task_that_is_known_by_its_names_says_where_it_is(pool: LLMPool, call: str) -> None:
    with pytest.raises(ConfigurationError, match="give `task=` to `connect`"):
        getattr(pool.task, call)("x")


def test_a_given_task_is_the_pools() -> None:
    task = TextGenerationTask()
    assert LLMPool.connect(["a", "b"], task=task).task is task


# All LLMs of a fleet.


def test_without_names_a_pool_takes_all_that_are_served(link: FakeLink) -> None:
    link.fleet = {
        one.name: one
        for one in (
            info("b"),
            info("a"),
            info("gone", ready=0, capacity=0),
            info("unwell", ready=0, unwell=1, capacity=0),
        )
    }
    assert [llm.llm_name for llm in LLMPool.connect().llms] == ["a", "b", "unwell"]


def test_without_names_and_two_llms_there_is_no_pool(link: FakeLink) -> None:
    link.fleet = {"a": info("a"), "gone": info("gone", ready=0, capacity=0)}
    with pytest.raises(UnknownLLM, match="a pool needs two LLMs"):
        LLMPool.connect(wait_s=0.1).generate(inputs("x"))


def test_an_llm_that_loads_is_waited_for(link: FakeLink) -> None:
    link.fleet = {"a": info("a"), "b": info("b"), "slow": info("slow", ready=0, loading=1)}
    with pytest.raises(UnknownLLM):
        LLMPool.connect(wait_s=0.1).num_llms  # noqa: B018


def test_without_names_all_must_share_a_task(link: FakeLink) -> None:
    other = {"name": "Judge", "input_args_names": ["generations"], "output_args_names": []}
    link.fleet = {"a": info("a"), "b": info("b"), "judge": info("judge", task=other)}
    with pytest.raises(ConfigurationError, match=r"different tasks \(Judge, TextGenerationTask\)"):
        LLMPool.connect().generate(inputs("x"))
    assert LLMPool.connect(task=TextGenerationTask()).num_llms == 3


def test_a_pool_of_a_fleet_stays_as_it_was_found(link: FakeLink) -> None:
    pool = LLMPool.connect()
    first = pool.llms
    link.fleet = {"d": info("d"), "e": info("e")}
    assert pool.llms is first


# The draw.


@pytest.mark.parametrize("num_generations", [0, 1, 2, 3, 7, 12])
def test_num_generations_per_llm(num_generations: int) -> None:
    pool = LLMPool.connect(["a", "b", "c", "d"])
    shares = pool._get_num_generations_per_llm(num_generations)
    assert list(shares) == [0, 1, 2, 3]
    assert sum(shares.values()) == num_generations
    assert set(shares.values()) <= {num_generations // 4, num_generations // 4 + 1}


def test_who_makes_one_more_is_drawn_at_random() -> None:
    pool = LLMPool.connect(["a", "b", "c"])
    drawn = Counter(tuple(pool._get_num_generations_per_llm(1).values()) for _ in range(300))
    assert drawn.keys() == {(1, 0, 0), (0, 1, 0), (0, 0, 1)}


def test_outputs_come_in_the_order_of_the_inputs_and_of_the_llms(pool: LLMPool) -> None:
    assert texts(pool.generate(inputs("x", "y"), 4)) == [
        ["a: x #1", "a: x #2", "b: x #1", "b: x #2"],
        ["a: y #1", "a: y #2", "b: y #1", "b: y #2"],
    ]


@pytest.mark.parametrize("num_generations", [1, 2, 3, 5])
def test_every_input_gets_as_many_outputs_as_were_asked_for(pool: LLMPool, num_generations: int) -> None:
    outputs = pool.generate(inputs("x", "y", "z"), num_generations)
    assert [len(row) for row in outputs] == [num_generations] * 3
    # Drawn once a call: every input has the same shares.
    assert len({tuple(output["model_name"] for output in row) for row in outputs}) == 1


def test_shares_may_be_drawn_for_each_row(pool: LLMPool) -> None:
    outputs = pool.generate(inputs(*map(str, range(64))), 1, draw="row")
    assert {row[0]["model_name"] for row in outputs} == {"model of a", "model of b"}


def test_weights_make_shares_unequal(pool: LLMPool) -> None:
    (row,) = pool.generate(inputs("x"), 4, weights=[3, 1])
    assert [output["model_name"] for output in row] == ["model of a"] * 3 + ["model of b"]
    (row,) = pool.generate(inputs("x"), 4, weights=[0, 1])
    assert [output["model_name"] for output in row] == ["model of b"] * 4


def test_a_seed_repeats_the_draw_and_the_sampling(pool: LLMPool, link: FakeLink) -> None:
    def seen(seed: int) -> list[Any]:
        link.rows.clear()
        pool.generate(inputs(*map(str, range(20))), 3, draw="row", seed=seed)
        return [(asked.llm, asked.text, asked.num_generations, asked.seed) for asked in link.rows]

    assert seen(1) == seen(1)
    assert seen(1) != seen(2)


def test_no_inputs_no_outputs(pool: LLMPool) -> None:
    assert pool.generate([], 3) == []
    assert pool.generate(iter(()), 3) == []
    assert list(pool.stream([], 3)) == []


# What cannot be asked for.


@pytest.mark.parametrize("num_generations", [0, -1, 1.5, "2", None, True])
def test_num_generations_below_one(pool: LLMPool, num_generations: Any) -> None:
    for call in (pool.generate, pool.submit, pool.stream, pool.astream, pool.llms[0].generate):
        with pytest.raises(ValueError, match=f"at least 1, and is {num_generations!r}"):
            call(inputs("x"), num_generations)


@pytest.mark.parametrize("given", [{"input": "x"}, "text", b"bytes", 7, None])
def test_inputs_that_are_no_list_of_dicts(pool: LLMPool, given: Any) -> None:
    for call in (pool.generate, pool.submit, pool.stream, pool.astream):
        with pytest.raises(ValueError, match=r"`inputs` must be a list of dicts.*: write \[\{'input': …\}\]"):
            call(given)


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("temperature", 0.5, r"no such option: temperature; there are draw, generation_kwargs, hedge, if_lost"),
        ("on_error", "ignore", "`on_error` must be 'raise' or 'fill', and is 'ignore'"),
        ("if_lost", "panic", "`if_lost` must be 'wait' or 'redraw' or 'fill', and is 'panic'"),
        ("lost_after_s", 0, "`lost_after_s` must be a positive number of seconds, and is 0"),
        ("hedge", 0.5, "`hedge` must be True, False or a number of at least 1, and is 0.5"),
        ("hedge", float("inf"), "`hedge` must be .* and is inf"),
        ("hedge", float("nan"), "`hedge` must be .* and is nan"),
        ("hedge", "yes", "`hedge` must be .* and is 'yes'"),
        ("draw", "never", "`draw` must be 'call' or 'row', and is 'never'"),
        ("weights", [1], "`weights` must be 2 numbers"),
        ("timeout", 0, "`timeout` must be a positive number of seconds, and is 0"),
        ("timeout", -1.0, "`timeout` must be a positive number of seconds"),
        ("timeout", "5", "`timeout` must be a positive number of seconds, and is '5'"),
        ("timeout", float("nan"), "`timeout` must be a positive number of seconds, and is nan"),
        ("timeout", True, "`timeout` must be a positive number of seconds, and is True"),
        ("weights", [10**400, 1], "`weights` must be 2 numbers"),
        ("seed", "abc", "`seed` must be a whole number, and is 'abc'"),
        ("seed", 1.5, "`seed` must be a whole number"),
        ("seed", 2**63, "`seed` must be a whole number from"),
        ("seed", -(10**40), "`seed` must be a whole number from"),
        ("generation_kwargs", ["temperature"], r"`generation_kwargs` must be a dict .* and is \['temperature'\]"),
        ("generation_kwargs", {7: 1}, r"`generation_kwargs` must be a dict .* by their names, and is \{7: 1\}"),
        ("generation_kwargs", {"stop": object()}, r"`generation_kwargs` cannot be sent: .*\['stop'\]"),
    ],
)
def test_options_that_cannot_be_used(pool: LLMPool, link: FakeLink, option: str, value: Any, told: str) -> None:
    for call in (pool.generate, pool.submit, pool.stream, pool.astream, pool.llms[0].generate):
        if option == "weights" and call == pool.llms[0].generate:
            continue
        with pytest.raises(ConfigurationError, match=told):
            call(inputs("x"), 1, **{option: value})
    assert link.rows == []


@pytest.mark.parametrize("number", [0, -1, 2**63, 1.5, "2", None, True], ids=str)
def test_numbers_of_generations_that_cannot_be_asked_for(pool: LLMPool, link: FakeLink, number: Any) -> None:
    for call in (pool.generate, pool.submit, pool.stream, pool.astream, pool.llms[0].generate):
        with pytest.raises(ConfigurationError, match=r"`num_generations` (must be a whole number|may be at most)"):
            call(inputs("x"), number)
    assert link.rows == []


def test_progress_that_cannot_be_called(pool: LLMPool, link: FakeLink) -> None:
    for call in (pool.generate, pool.submit, pool.stream, pool.astream, pool.llms[0].generate):
        with pytest.raises(ConfigurationError, match="`progress_callback_func` must be a function, and is True"):
            call(inputs("x"), 1, True)  # pyright: ignore[reportArgumentType]
    assert link.rows == []


@pytest.mark.parametrize("endless", [float("inf"), 10**400, 1e300], ids=["inf", "int", "float"])
def test_a_time_without_an_end_is_as_long_as_a_timer_takes(
    pool: LLMPool, link: FakeLink, monkeypatch: pytest.MonkeyPatch, endless: float
) -> None:
    monkeypatch.setattr(call_module.time, "monotonic", lambda: 1000.0)
    pool.generate(inputs("x"), timeout=endless, if_lost="fill", lost_after_s=endless)
    specs = {one.row.spec for one in link.rows}
    assert {(spec.deadline, spec.lost_after_s) for spec in specs} == {(1000.0 + LONGEST_S, LONGEST_S)}


@pytest.mark.parametrize("wait_s", [None, 0, -1.0, float("nan"), "60", True], ids=str)
def test_a_wait_that_is_no_time(wait_s: Any) -> None:
    for connect in (
        lambda: LLMPool.connect(wait_s=wait_s),
        lambda: LLMPool.connect(["a", "b"], wait_s=wait_s),
        lambda: ProcessLLM.connect("a", wait_s=wait_s),
    ):
        with pytest.raises(ConfigurationError, match=f"`wait_s` must be a positive number .* and is {wait_s!r}"):
            connect()


def test_a_wait_without_an_end(link: FakeLink) -> None:
    assert LLMPool.connect(["a", "b"], wait_s=float("inf")).llms[0].wait_s == LONGEST_S


@pytest.mark.parametrize(("timeout", "waited"), [(None, [60.0, 60.0]), (90.0, [60.0, 30.0]), (20.0, [20.0])], ids=str)
def test_what_a_task_reads_is_waited_for_no_longer_than_the_call_may_take(
    pool: LLMPool, link: FakeLink, monkeypatch: pytest.MonkeyPatch, timeout: float | None, waited: list[float]
) -> None:
    now = 1000.0
    waits: list[float] = []

    def wait_for(question: Callable[[Any], Any], timeout_s: float) -> Any:
        nonlocal now
        now += timeout_s
        waits.append(timeout_s)
        raise NoBroker

    link.fleet = None
    monkeypatch.setattr(link, "wait_for", wait_for)
    monkeypatch.setattr(llm_module.time, "monotonic", lambda: now)
    with pytest.raises(ValueError, match="a value of type object"):
        pool.generate([{"input": "x", "odd": object()}], 2, timeout=timeout)
    assert waits == waited


@pytest.mark.parametrize(("hedge", "factor"), [(None, 0.0), (False, 0.0), (True, 3.0), (2, 2.0), (1.5, 1.5)])
def test_hedge_goes_with_every_row(pool: LLMPool, link: FakeLink, hedge: Any, factor: float) -> None:
    for call in (pool.generate, pool.submit, pool.llms[0].generate):
        call(inputs("x"), 2, hedge=hedge)
    list(pool.stream(inputs("x"), 2, hedge=hedge))
    assert [asked.row.spec.hedge for asked in link.rows] == [factor] * 7


def test_generation_options_go_to_every_llm(link: FakeLink) -> None:
    link.fleet = {name: info(name, options=["temperature", "top_p"]) for name in "ab"}
    pool = LLMPool.connect(["a", "b"])
    pool.llms[0].start()
    pool.generate(inputs("x"), 2, generation_kwargs={"temperature": 0.5})
    assert [asked.options for asked in link.rows] == [{"temperature": 0.5}] * 2


def test_a_generation_option_that_an_llm_does_not_know_is_refused_with_the_known_ones(link: FakeLink) -> None:
    link.fleet = {"a": info("a", options=["temperature", "top_p"]), "b": info("b")}
    pool = LLMPool.connect(["a", "b"])
    for llm in pool.llms:
        llm.start()
    with pytest.raises(ConfigurationError, match="'a' knows no option 'heat'; it knows temperature, top_p"):
        pool.generate(inputs("x"), 2, generation_kwargs={"heat": 1})
    with pytest.raises(ConfigurationError, match="'b' knows no option 'temperature'; it knows none"):
        pool.generate(inputs("x"), 2, generation_kwargs={"temperature": 1})
    assert link.rows == []


# What fails.


def broken(llm: str, builtin: str = "ValueError", *, on: str | None = None) -> Callable[[Asked], Any]:
    def answer(asked: Asked) -> Ending:
        return failed("it broke", builtin) if asked.llm == llm and on in (None, asked.text) else echo(asked)

    return answer


def test_an_error_carries_every_failure_and_all_that_is_finished(pool: LLMPool, link: FakeLink) -> None:
    link.answer = broken("b", on="y")
    with pytest.raises(GenerationError) as raised:
        pool.generate(inputs("x", "y", "z"), 2)
    error = raised.value
    assert list(error.failures) == [1]
    assert texts(error.partial) == [["a: x #1", "b: x #1"], ["a: y #1"], ["a: z #1", "b: z #1"]]
    assert str(error).startswith("1 of 3 rows failed; row 1: ValueError: it broke (LLM 'b', worker gpu1:123")
    assert error.failures[1].traceback == "the traceback"


@pytest.mark.parametrize("builtin", ["ValueError", "KeyError", "OSError", "ZeroDivisionError", "MemoryError"])
def test_an_error_is_of_the_builtin_type_that_all_failures_share(pool: LLMPool, link: FakeLink, builtin: str) -> None:
    link.answer = broken("a", builtin)
    kind = getattr(builtins, builtin)
    with pytest.raises(kind, match="it broke") as raised:
        pool.generate(inputs("x", "y"), 2)
    assert isinstance(raised.value, GenerationError)
    assert isinstance(pool.submit(inputs("x"), 2).exception(), kind)


def test_an_error_of_several_types_is_of_none(pool: LLMPool, link: FakeLink) -> None:
    link.answer = lambda asked: failed("it broke", "KeyError" if asked.text == "x" else "OSError")
    with pytest.raises(GenerationError) as raised:
        pool.generate(inputs("x", "y"), 2)
    assert not isinstance(raised.value, (KeyError, OSError))


def test_an_error_crosses_processes(pool: LLMPool, link: FakeLink) -> None:
    link.answer = broken("a")
    error = pool.submit(inputs("x"), 2).exception()
    copied = pickle.loads(pickle.dumps(error))
    assert isinstance(copied, GenerationError)
    assert isinstance(copied, ValueError)
    assert str(copied) == str(error)
    assert texts(copied.partial) == [["b: x #1"]]


def test_failures_may_be_filled_in(pool: LLMPool, link: FakeLink) -> None:
    link.answer = broken("a", on="y")
    outputs = pool.generate(inputs("x", "y"), 2, on_error="fill")
    assert texts(outputs) == [["a: x #1", "b: x #1"], [None, "b: y #1"]]
    empty = outputs[1][0]
    assert (empty["prompt_used"], empty["parsed_output"], empty["model_name"]) == (None, None, "model of a")
    assert "it broke" in empty.get("error", "")


def test_a_stream_raises_for_no_row(pool: LLMPool, link: FakeLink) -> None:
    link.answer = broken("a", on="y")
    rows = {row.index: row for row in pool.stream(inputs("x", "y"), 2)}
    assert rows[0].error is None
    assert str(rows[1].error).startswith("ValueError: it broke")
    assert [output["raw_output"] for output in rows[1].outputs] == ["b: y #1"]


def test_a_stream_fills_in_too(pool: LLMPool, link: FakeLink) -> None:
    link.answer = broken("a")
    (row,) = pool.stream(inputs("x"), 2, on_error="fill")
    assert [output["raw_output"] for output in row.outputs] == [None, "b: x #1"]
    assert row.error is not None


@pytest.mark.parametrize(
    "ending", [Expired("no answer"), failed("late", "TimeoutError", type="Expired", outcome=Outcome.EXPIRED)]
)
def test_a_timeout_is_an_expired_and_a_timeout_error(pool: LLMPool, link: FakeLink, ending: Any) -> None:
    link.answer = lambda asked: ending if asked.text == "slow" else echo(asked)
    with pytest.raises(TimeoutError) as raised:
        pool.generate(inputs("quick", "slow"), 2, timeout=5.0)
    assert isinstance(raised.value, Expired)
    assert isinstance(raised.value, GenerationError)
    assert texts(raised.value.partial) == [["a: quick #1", "b: quick #1"], []]
    assert link.rows[0].row.spec.deadline is not None


@pytest.mark.parametrize("kind", [UnknownLLM, Closed])
def test_what_ended_the_rows_here_is_what_is_raised(pool: LLMPool, link: FakeLink, kind: type[GenpoolError]) -> None:
    link.answer = lambda asked: kind("gone")
    with pytest.raises(kind, match="gone"):
        pool.generate(inputs("x"), 2)


def test_an_llm_that_goes_while_rows_are_sent_leaves_none_running(pool: LLMPool, link: FakeLink) -> None:
    link.answer = lambda asked: None
    pool.llms[1].teardown()
    with pytest.raises(Closed):
        pool.generate(inputs("x"), 2)
    assert [asked.llm for asked in link.withdrawn] == ["a"]


# Futures, progress, asyncio.


def test_a_future_is_pending_until_its_last_row(pool: LLMPool, link: FakeLink) -> None:
    link.answer = lambda asked: None
    future = pool.submit(inputs("x", "y"), 2)
    assert isinstance(future, Future)
    for _ in range(3):
        link.end()
        assert not future.done()
    link.end()
    assert texts(future.result(0)) == [["a: x #1", "b: x #1"], ["a: y #1", "b: y #1"]]
    assert not future.cancel()


def test_cancelling_a_future_takes_back_what_has_not_ended(pool: LLMPool, link: FakeLink) -> None:
    link.answer = lambda asked: None
    future = pool.submit(inputs("x", "y"), 2)
    link.end()
    assert future.cancel()
    assert wait([future], timeout=10).done == {future}
    assert sorted((asked.llm, asked.text) for asked in link.withdrawn) == [("a", "y"), ("b", "x"), ("b", "y")]


def test_cancelling_after_a_teardown_does_no_harm(pool: LLMPool, link: FakeLink) -> None:
    link.answer = lambda asked: None
    future = pool.submit(inputs("x"), 2)
    pool.teardown()
    assert future.cancel()
    assert len(link.withdrawn) == 2


def test_leaving_a_stream_after_a_teardown_does_no_harm(pool: LLMPool, link: FakeLink) -> None:
    link.answer = lambda asked: echo(asked) if asked.text == "x" else None
    rows = pool.stream(inputs("x", "y"), 2)
    assert next(rows).index == 0
    pool.teardown()
    rows.close()
    assert {asked.text for asked in link.withdrawn} <= {"y"}


def test_progress_adds_up(pool: LLMPool, link: FakeLink) -> None:
    link.answer = broken("a", on="bad")
    advances: list[int] = []
    given = [*inputs("x", "bad"), {"nothing": "here"}]
    pool.generate(given, 5, lambda advance: advances.append(advance), on_error="fill")
    assert sum(advances) == 5 * 3


def test_agenerate(pool: LLMPool) -> None:
    outputs = asyncio.run(pool.agenerate(inputs("x"), 2))
    assert texts(outputs) == [["a: x #1", "b: x #1"]]


def test_cancelling_the_task_of_agenerate_takes_its_rows_back(pool: LLMPool, link: FakeLink) -> None:
    link.answer = lambda asked: None

    async def main() -> None:
        task = asyncio.ensure_future(pool.agenerate(inputs("x", "y"), 2))
        while len(link.held) < 4:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert len(link.withdrawn) == 4


def test_streams(pool: LLMPool) -> None:
    rows = list(pool.stream(({"input": text} for text in "xyz"), 2, ordered=True))
    assert [row.index for row in rows] == [0, 1, 2]
    assert texts([row.outputs for row in rows]) == [[f"a: {text} #1", f"b: {text} #1"] for text in "xyz"]


def test_async_streams(pool: LLMPool) -> None:
    async def source() -> AsyncIterator[dict[str, str]]:
        for text in "xyz":
            yield {"input": text}

    async def main() -> list[int]:
        return [row.index async for row in pool.astream(source(), 2, ordered=True)]

    assert asyncio.run(main()) == [0, 1, 2]


@pytest.mark.parametrize("call", ["agenerate", "astream"])
def test_the_event_loop_turns_while_a_pool_looks_for_its_llms(link: FakeLink, call: str) -> None:
    is_found = threading.Event()
    found = link.wait_for

    def wait_for(question: Callable[[Any], Any], timeout_s: float) -> Any:
        assert is_found.wait(10.0), "the event loop stands still"
        return found(question, timeout_s)

    link.wait_for = wait_for  # pyright: ignore[reportAttributeAccessIssue]
    pool = LLMPool.connect()

    async def main() -> int:
        asyncio.get_running_loop().call_later(0.05, is_found.set)
        if call == "agenerate":
            return len(await pool.agenerate(inputs("x", "y"), 3))
        return len([row async for row in pool.astream(inputs("x", "y"), 3)])

    assert asyncio.run(main()) == 2


@pytest.mark.parametrize(("capacity", "window"), [(1, 64), (100, 800)])
def test_how_far_a_stream_reads_ahead_follows_the_capacity(link: FakeLink, capacity: int, window: int) -> None:
    link.fleet = {name: info(name, capacity=capacity) for name in "ab"}
    pool = LLMPool.connect(["a", "b"])
    for llm in pool.llms:
        llm.start()
    link.answer = lambda asked: None
    read = 0

    def endless() -> Any:
        nonlocal read
        while True:
            read += 1
            yield {"input": str(read)}
            if read == window - 1:
                link.answer = echo

    rows = pool.stream(endless(), 2)
    assert next(rows).index == window - 1
    assert read == window
    rows.close()


def test_one_llm_generates_alone(link: FakeLink) -> None:
    llm = ProcessLLM.connect("a")
    future = llm.generate(inputs("x"), 3)
    assert texts(future.result(0)) == [["a: x #1", "a: x #2", "a: x #3"]]


# The end.


def test_after_teardown_nothing_goes_any_more(pool: LLMPool, link: FakeLink) -> None:
    pool.generate(inputs("x"), 2)
    pool.teardown()
    pool.teardown()
    link.rows.clear()
    for call in (pool.generate, pool.submit, pool.stream, pool.astream, pool.llms[0].generate):
        with pytest.raises(Closed, match="was torn down: make a new one"):
            call(inputs("x"))
    with pytest.raises(Closed):
        asyncio.run(pool.agenerate(inputs("x")))
    assert link.rows == []


def test_a_pool_is_a_context_manager(link: FakeLink) -> None:
    with LLMPool.connect(["a", "b"]) as pool:
        assert len(pool.generate(inputs("x"), 2)) == 1
    with pytest.raises(Closed):
        pool.generate(inputs("x"), 2)


def test_an_interrupt_while_it_waits_takes_the_rows_back(
    pool: LLMPool, link: FakeLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    link.answer = lambda asked: None

    def interrupted(futures: Any, timeout: float | None = None) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(pool_module, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.generate(inputs("x"), 2)
    assert len(link.withdrawn) == 2


def test_a_pool_pickles_as_names_and_address(link: FakeLink) -> None:
    pool = LLMPool.connect(["a", "b"], broker="gpu1:5555", task=TextGenerationTask("be brief"))
    pool.generate(inputs("x"), 2)
    copied = pickle.loads(pickle.dumps(pool))
    assert [repr(llm) for llm in copied.llms] == [repr(llm) for llm in pool.llms]
    assert "tcp://gpu1:5555" in repr(copied.llms[0])
    assert copied.task.system_prompt == "be brief"
    assert len(copied.generate(inputs("x"), 2)[0]) == 2
    assert link.rows[-1].content == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "x"}]


def test_a_pool_of_a_whole_fleet_pickles_too(link: FakeLink) -> None:
    copied = pickle.loads(pickle.dumps(LLMPool.connect()))
    assert [llm.llm_name for llm in copied.llms] == ["a", "b", "c"]


def test_a_local_llm_does_not_pickle() -> None:
    with pytest.raises(ConfigurationError, match="a local ProcessLLM belongs to the process that made it"):
        pickle.dumps(local(TextGenerationTask()))


def test_calls_from_many_threads_do_not_mix(pool: LLMPool) -> None:
    results: dict[int, list[list[Any]]] = {}

    def call(number: int) -> None:
        results[number] = texts(pool.generate(inputs(*(f"{number}.{at}" for at in range(50))), 2))

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == {
        number: [[f"a: {number}.{at} #1", f"b: {number}.{at} #1"] for at in range(50)] for number in range(8)
    }
