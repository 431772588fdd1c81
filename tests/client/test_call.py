from __future__ import annotations

import asyncio
import builtins
import datetime
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import pytest
from inputs import inputs
from voices import Asked, FakeLink, FakeVoice, done, echo, failed, info

from genpool.client.call import Call, CallSettings
from genpool.client.item import Item, Planned
from genpool.client.record import Record, Share
from genpool.client.row import Ending, tell
from genpool.protocol.content import pack, unpack_outputs
from genpool.protocol.errors import Closed, Expired, GenpoolError, RemoteError, UnknownLLM, generation_error
from genpool.protocol.messages import Outcome
from genpool.tasks.base import Task
from genpool.tasks.prompt import Prompt


def settings(num_generations: int = 1, **said: Any) -> CallSettings:
    usual: dict[str, Any] = {
        "weights": [1.0, 1.0],
        "draw_each_row": False,
        "seed": None,
        "options": b"",
        "deadline": None,
        "fill_errors": False,
    }
    return CallSettings(num_generations, **{**usual, **said})


def shares(record: Record) -> list[int]:
    """How many generations each of the two voices makes."""
    return [sum(share.count for share in record.shares if share.at == at) for at in range(2)]


class Run:
    """A call over two voices, "a" and "b", and what came of it."""

    def __init__(
        self, asked_for: CallSettings, link: FakeLink | None = None, *, other: FakeLink | None = None, **of_voice: Any
    ) -> None:
        self.link = link or FakeLink()
        of_voice.setdefault("arguments", ["input"])
        self.voices = [FakeVoice("a", self.link, **of_voice), FakeVoice("b", other or self.link, **of_voice)]
        self.records: list[Record] = []
        self.advances: list[int] = []
        self.settings = asked_for
        self.call = Call(self.voices, asked_for, self.records.extend, self.progress)

    def progress(self, *, advance: int) -> None:
        self.advances.append(advance)

    def over(self, given: Iterable[Any]) -> dict[int, Record]:
        self.call.begin(0, list(given))
        return {record.index: record for record in self.records}

    def texts(self, index: int = 0) -> list[Any]:
        (record,) = [record for record in self.records if record.index == index]
        return [output["raw_output"] for output in record.outputs]


class WordlessError(Exception):
    """A user's exception that cannot say what it is."""

    def __str__(self) -> str:
        raise AttributeError("no words")


class Shout(Task):
    """A task whose prompts and answers cannot be mistaken for anybody else's."""

    system_prompt = "Shout."

    @property
    def input_args_names(self) -> list[str]:
        return ["input"]

    @property
    def output_args_names(self) -> list[str]:
        return ["shout"]

    def generate_prompt(self, input: str) -> Any:
        if input == "unspeakable":
            raise KeyError("no words")
        if input == "wordless":
            raise WordlessError
        if input == "number":
            return 7
        return [{"role": "user", "content": input}] if input == "chat" else Prompt(self.system_prompt, input)

    def parse_output(self, output: str) -> dict[str, str]:
        if "gasp" in output:
            raise WordlessError
        if "mumble" in output:
            raise ValueError("cannot be read")
        return {"shout": output.upper()}


def test_shares_are_joined_in_the_order_of_the_voices() -> None:
    link = FakeLink(lambda asked: None)
    run = Run(settings(4), link)
    run.over(inputs("x", "y"))
    for asked in sorted(link.held, key=lambda asked: (asked.text, asked.llm), reverse=True):
        link.end(asked)
    assert [record.index for record in run.records] == [1, 0]
    assert run.texts(0) == ["a: x #1", "a: x #2", "b: x #1", "b: x #2"]
    assert run.texts(1) == ["a: y #1", "a: y #2", "b: y #1", "b: y #2"]


def test_a_voice_without_a_share_is_not_asked() -> None:
    run = Run(settings(1, seed=3))
    run.over(inputs("x", "y", "z"))
    assert len({asked.llm for asked in run.link.rows}) == 1
    assert len(run.link.rows) == 3


def test_shares_are_drawn_once_a_call() -> None:
    run = Run(settings(1, draw_each_row=False))
    assert len({tuple(shares(record)) for record in run.over(inputs(*"abcdefghijklmnop")).values()}) == 1


def test_or_anew_for_each_row() -> None:
    run = Run(settings(1, draw_each_row=True))
    drawn = {tuple(shares(record)) for record in run.over(inputs(*map(str, range(64)))).values()}
    assert drawn == {(1, 0), (0, 1)}


@pytest.mark.parametrize("each_row", [False, True])
def test_a_seed_repeats_the_draw(each_row: bool) -> None:
    def drawn(seed: int) -> list[list[int]]:
        run = Run(settings(3, draw_each_row=each_row, seed=seed))
        return [shares(record) for record in run.over(inputs(*map(str, range(40)))).values()]

    assert drawn(5) == drawn(5)
    assert len({str(drawn(seed)) for seed in range(8)}) > 1


def test_weights_make_shares_unequal() -> None:
    run = Run(settings(8, weights=[3.0, 1.0]))
    assert shares(run.over(inputs("x"))[0]) == [6, 2]


def test_every_row_has_a_sampling_seed_of_its_own_which_a_call_repeats() -> None:
    def seeds(seed: int | None) -> list[Any]:
        run = Run(settings(2, seed=seed))
        run.over(inputs("same", "same", "same"))
        return [asked.seed for asked in run.link.rows if asked.llm == "a"]

    assert len(set(seeds(7))) == 3
    assert seeds(7) == seeds(7)
    assert set(seeds(7)).isdisjoint(seeds(8))
    assert all(0 <= seed < 2**31 for seed in seeds(7))
    assert seeds(None) == [None, None, None]


def test_options_and_deadline_go_with_every_row() -> None:
    run = Run(settings(2, options=pack({"temperature": 0.5}), deadline=123.0))
    run.over(inputs("x"))
    assert [asked.options for asked in run.link.rows] == [{"temperature": 0.5}] * 2
    assert {asked.row.spec.deadline for asked in run.link.rows} == {123.0}


def test_rows_of_one_share_travel_together_and_share_a_spec() -> None:
    run = Run(settings(2))
    run.over(inputs(*map(str, range(50))))
    assert run.link.batches == [50, 50]
    assert len({id(asked.row.spec) for asked in run.link.rows}) == 2
    assert len({asked.row.id for asked in run.link.rows}) == 100


def test_only_the_arguments_of_the_task_are_sent() -> None:
    run = Run(settings(2))
    run.over([{"input": "x", "id": 7, "when": datetime.date(2024, 1, 1)}])
    assert [asked.content for asked in run.link.rows] == [{"input": "x"}] * 2


@pytest.mark.parametrize("learns", [["input"], None], ids=str)
def test_what_cannot_be_carried_has_the_arguments_waited_for_once(learns: list[str] | None) -> None:
    run = Run(settings(2), arguments=None)
    for voice in run.voices:
        voice.learns = learns
    run.over([{"input": "x", "when": datetime.date(2024, 1, number)} for number in (1, 2)])
    assert [voice.was_waited_for for voice in run.voices] == [1, 1]
    assert [asked.content for asked in run.link.rows] == ([{"input": "x"}] * 4 if learns else [])
    assert {"RowError" in str(record.failure) for record in run.records} == {learns is None}


def test_without_knowing_the_arguments_the_whole_input_is_sent() -> None:
    run = Run(settings(2), arguments=None)
    run.over([{"question": "x", "id": 7}])
    assert [asked.content for asked in run.link.rows] == [{"question": "x", "id": 7}] * 2


def test_an_input_that_lacks_an_argument_gets_outputs_of_none(caplog: pytest.LogCaptureFixture) -> None:
    run = Run(settings(4), arguments=["input", "context"])
    records = run.over([{"input": "x"}, {"input": "y", "context": "z"}])
    assert [
        (output["prompt_used"], output["raw_output"], output["parsed_output"]) for output in records[0].outputs
    ] == [(None, None, None)] * 4
    assert [output["model_name"] for output in records[0].outputs] == ["model of a"] * 2 + ["model of b"] * 2
    assert records[0].failure is None
    assert len(records[1].outputs) == 4
    assert run.link.texts == ["y", "y"]
    assert "input 0 lacks 'context'" in caplog.text


def test_progress_adds_up_whatever_becomes_of_the_rows() -> None:
    def answer(asked: Asked) -> Ending:
        return failed("bad") if asked.text == "bad" else echo(asked)

    run = Run(settings(5), FakeLink(answer))
    run.over([{"input": "good"}, {"input": "bad"}, {"nothing": 1}, "not a dict"])
    assert sum(run.advances) == 5 * 4
    assert all(advance > 0 for advance in run.advances)


@pytest.mark.parametrize("error", [ValueError, SystemExit, asyncio.CancelledError])
def test_progress_that_raises_costs_no_output(error: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    def explode(advance: int) -> None:
        raise error("the bar is broken")

    link = FakeLink(lambda asked: None)
    records: list[Record] = []
    call = Call([FakeVoice("a", link)], settings(2, weights=[1.0]), records.extend, explode)
    call.begin(0, inputs("x"))
    if issubclass(error, Exception):
        link.end()
        assert "progress_callback_func raised" in caplog.text
    else:
        with pytest.raises(error):
            link.end()
    assert [output["raw_output"] for output in records[0].outputs] == ["a: x #1", "a: x #2"]


def test_large_inputs_begin_some_at_a_time() -> None:
    run = Run(settings())
    texts = [f"{number:02d}" + 1_000_000 * "x" for number in range(20)]
    begun = run.call.begin(0, inputs(*texts))
    assert begun == 7  # 1, 2 and 4 of them
    assert 7_000_000 < run.call.begun_bytes < 7_000_500
    while begun < 20:
        begun += run.call.begin(begun, inputs(*texts[begun:]))
    assert sum(record.size for record in run.records) == run.call.begun_bytes > 20_000_000
    assert [record.index for record in run.records] == list(range(20))
    assert run.call.begin(20, inputs(*map(str, range(300)))) == 256


@pytest.mark.parametrize("odd", [{}, Item({"input": "x"}, 7), 5])
def test_inputs_that_must_be_looked_at_begin_together(odd: Any) -> None:
    run = Run(settings())
    given = [*inputs("a", "b"), odd, *inputs("c")]
    assert run.call.begin(0, given) == 4
    assert len(run.records) == 4
    assert sum(record.size for record in run.records) == run.call.begun_bytes


def test_a_failed_share_leaves_the_others() -> None:
    run = Run(settings(4), FakeLink(lambda asked: failed("too hot", "OSError") if asked.llm == "b" else echo(asked)))
    (record,) = run.over(inputs("x")).values()
    assert [output["raw_output"] for output in record.outputs] == ["a: x #1", "a: x #2"]
    error = record.failure
    assert error is not None
    assert (error.type_name, error.message, error.kind) == ("OSError", "too hot", OSError)
    assert (error.llm, error.worker, error.host, error.attempts) == ("b", "123", "gpu1", 2)
    assert error.traceback == "the traceback"
    assert "too hot" in str(error)


def test_all_failures_of_an_input_are_told() -> None:
    run = Run(settings(2), FakeLink(lambda asked: failed(f"{asked.llm} is broken")))
    (record,) = run.over(inputs("x")).values()
    assert record.failure is not None
    assert [error.message for error in (record.failure, *record.failure.others)] == ["a is broken", "b is broken"]


def test_the_failures_of_one_input_are_not_those_of_another() -> None:
    """An error that ended several rows, as when an LLM could not be loaded, knows only its own input's others."""
    gone = {name: RemoteError("WorkerLost", f"{name} is gone", llm=name) for name in "ab"}

    def answer(asked: Asked) -> Ending | GenpoolError:
        return echo(asked) if (asked.text, asked.llm) == ("y", "b") else gone[asked.llm]

    run = Run(settings(2), FakeLink(answer))
    records = run.over(inputs("x", "y"))
    failures = [records[at].failure for at in (0, 1)]
    assert [[str(other) for other in failure.others] for failure in failures if failure] == [[str(gone["b"])], []]


@pytest.mark.parametrize(
    ("ending", "kind"),
    [
        (failed("late", "TimeoutError", type="Expired", outcome=Outcome.EXPIRED), Expired),
        (Expired("late"), Expired),
        (UnknownLLM("who?"), UnknownLLM),
        (failed("odd", "no_such_builtin"), Exception),
        (failed("not an error", "print"), Exception),
    ],
)
def test_of_what_kind_a_failure_is(ending: Any, kind: type[BaseException]) -> None:
    run = Run(settings(2), FakeLink(lambda asked: ending))
    (record,) = run.over(inputs("x")).values()
    assert record.failure is not None
    assert record.failure.kind is kind


@pytest.mark.parametrize("payload", [b"", b"\xc1", pack({"no": "list"}), pack(["no", "dicts"]), pack([])])
def test_an_answer_that_cannot_be_read_is_a_failure_and_no_hang(payload: bytes) -> None:
    run = Run(settings(2), FakeLink(lambda asked: Ending(Outcome.DONE, 1, payload)))
    (record,) = run.over(inputs("x")).values()
    assert record.failure is not None
    assert record.outputs == []


def test_an_answer_of_too_few_outputs_is_a_failure() -> None:
    run = Run(settings(4), FakeLink(lambda asked: done({"raw_output": "only one"})))
    (record,) = run.over(inputs("x")).values()
    assert record.failure is not None
    assert "1 output of" in record.failure.message


@pytest.mark.parametrize("given", ["text", 7, None, ["input"]])
def test_an_input_that_is_no_dict_fails_alone(given: Any) -> None:
    run = Run(settings(2))
    records = run.over([given, {"input": "x"}])
    assert records[0].failure is not None
    assert f"input 0 is a {type(given).__name__} and not a dict" in records[0].failure.message
    assert records[0].failure.kind is ValueError
    assert records[1].failure is None


def test_an_input_that_cannot_be_carried_fails_alone() -> None:
    run = Run(settings(2))
    records = run.over([{"input": datetime.date(2024, 1, 1)}, {"input": "x"}])
    assert records[0].failure is not None
    assert "date" in records[0].failure.message
    assert "['input']" in records[0].failure.message
    assert records[1].failure is None


def test_failures_are_filled_in_where_asked() -> None:
    run = Run(settings(4, fill_errors=True), FakeLink(lambda asked: failed("no") if asked.llm == "a" else echo(asked)))
    (record,) = run.over(inputs("x")).values()
    assert [output["raw_output"] for output in record.outputs] == [None, None, "b: x #1", "b: x #2"]
    first, second = record.outputs[:2]
    assert first["model_name"] == "model of a"
    assert "ValueError: no" in first.get("error", "")
    assert first == second
    assert first is not second
    assert record.failure is not None


def test_a_task_here_makes_the_prompts_and_reads_the_completions() -> None:
    run = Run(settings(2), task=Shout())
    records = run.over(inputs("hello", "chat"))
    assert {asked.kind for asked in run.link.rows} == {"prompt"}
    assert run.link.rows[0].content == [
        {"role": "system", "content": "Shout."},
        {"role": "user", "content": "hello"},
    ]
    assert run.link.rows[1].content == [{"role": "user", "content": "chat"}]
    assert [output["parsed_output"] for output in records[1].outputs] == [
        {"shout": output["raw_output"].upper()} for output in records[1].outputs
    ]


@pytest.mark.parametrize(
    ("text", "told"), [("unspeakable", "KeyError: 'no words'"), ("wordless", "WordlessError: "), ("number", "not int")]
)
def test_a_task_that_makes_no_prompt_fails_its_row_alone(text: str, told: str) -> None:
    run = Run(settings(2), task=Shout())
    records = run.over(inputs(text, "hello"))
    assert records[0].failure is not None
    assert told in records[0].failure.message
    assert "input 0" in records[0].failure.message
    assert records[0].failure.kind is ValueError
    assert records[1].failure is None


@pytest.mark.parametrize(("text", "told"), [("mumble", "cannot be read"), ("gasp", "raised WordlessError: ;")])
def test_a_completion_that_cannot_be_read_keeps_its_text(
    text: str, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(settings(2), task=Shout())
    (record,) = run.over(inputs(text)).values()
    assert record.failure is None
    assert [output["parsed_output"] for output in record.outputs] == [None, None]
    assert all(text in output["raw_output"] for output in record.outputs)
    assert told in caplog.text


class WordlessExit(SystemExit):
    __str__ = WordlessError.__str__


@pytest.mark.parametrize("error", [SystemExit, WordlessExit])
def test_a_task_that_would_end_the_program_ends_its_row_alone(error: type[BaseException]) -> None:
    class Exits(Shout):
        def parse_output(self, output: str) -> Any:
            if "bad" in output:
                raise error
            return output

    run = Run(settings(2), task=Exits())
    records = run.over(inputs("bad", "good"))
    assert records[0].failure is not None
    assert records[0].failure.type_name == error.__name__
    assert records[1].failure is None


def test_cancel_withdraws_what_has_not_ended_and_nothing_is_told_any_more() -> None:
    one, other = FakeLink(lambda asked: None), FakeLink(lambda asked: None)
    run = Run(settings(2), one, other=other)
    run.over(inputs("x", "y"))
    one.end()
    running = list(other.held)
    run.call.cancel()
    assert [asked.text for asked in one.withdrawn] == ["y"]
    assert [asked.text for asked in other.withdrawn] == ["x", "y"]
    for asked in running:
        asked.tell(echo(asked))
    assert run.records == []
    assert sum(run.advances) == 1


class Collecting(defaultdict[int, int]):
    """Counts that a call writes under its lock. At one such step, the garbage collector closes the call's stream."""

    def __init__(self, call: Call, step: int) -> None:
        super().__init__(int, {0: 0})
        self._call, self._step = call, step

    def __setitem__(self, at: int, count: int) -> None:
        super().__setitem__(at, count)
        self._step -= 1
        if not self._step:
            self._call.cancel()


@pytest.mark.parametrize(
    ("draw_each_row", "step", "sent"), [(False, 1, 0), (False, 2, 2), (True, 1, 0), (True, 3, 2)], ids=str
)
def test_a_call_may_be_cancelled_in_the_midst_of_its_own_steps(draw_each_row: bool, step: int, sent: int) -> None:
    run = Run(settings(weights=[1.0, 0.0], draw_each_row=draw_each_row), FakeLink(lambda asked: None))
    call = Call(run.voices, run.settings, run.records.extend)  # which no progress is told of
    call._ahead.under_way = Collecting(call, step)
    call.begin(0, inputs("x", "y"))
    for asked in run.link.rows:
        asked.row.ending = echo(asked)
    call.ended([asked.row for asked in run.link.rows])
    assert len(run.link.rows) == sent
    assert len(run.link.withdrawn) == sent
    assert not call._records


def test_nothing_begins_after_a_cancel() -> None:
    run = Run(settings(2))
    run.call.cancel()
    run.over(inputs("x"))
    assert run.link.rows == []
    assert run.records == []


def test_where_begin_raises_its_inputs_are_forgotten_and_their_rows_withdrawn() -> None:
    class Gone(FakeLink):
        def submit(self, rows: Any) -> None:
            raise Closed("it was torn down")

    link = FakeLink(lambda asked: None)
    run = Run(settings(2), link, other=Gone())
    with pytest.raises(Closed):
        run.over([{"input": "x"}, {}, {"input": "y"}])
    assert [asked.text for asked in link.withdrawn] == ["x", "y"]
    for asked in link.rows:
        asked.tell(echo(asked))
    assert [record.index for record in run.records] == [1], "it needed no LLM, and was told of before"
    assert run.call.begun == 1


def test_rows_that_end_together_are_told_of_together() -> None:
    told: list[list[int]] = []
    link = FakeLink(lambda asked: None)
    voice = FakeVoice("a", link, arguments=["input"])
    call = Call([voice], settings(1, weights=[1.0]), lambda records: told.append([one.index for one in records]))
    call.begin(0, inputs(*"wxyz"))
    answers = [echo(one) for one in link.held]
    answers[1] = Ending(Outcome.DONE, 1, b"no answer")
    for one, answer in zip(link.held, answers, strict=True):
        one.row.ending = answer
    tell(call, [one.row for one in link.held[:3]])
    link.end(link.held[3])
    assert told == [[0, 1, 2], [3]]


@pytest.mark.parametrize("error", [OSError, SystemExit])
def test_a_note_of_a_share_that_fails_costs_no_row(error: type[BaseException]) -> None:
    def shared(record: Record, share: Share, ending: Ending) -> None:
        if record.index == 1:
            raise error("the disk is full")

    link = FakeLink(lambda asked: None)
    records: list[Record] = []
    call = Call([FakeVoice("a", link)], settings(1, weights=[1.0]), records.extend, None, shared)
    call.begin(0, inputs("x", "y", "z"))
    for one in link.held:
        one.row.ending = echo(one)
    tell(call, [one.row for one in link.held])
    assert [(record.index, record.failure) for record in records] == [(0, None), (1, None), (2, None)]


def test_what_a_callback_raises_costs_no_row_that_ended_with_it() -> None:
    def explode(advance: int) -> None:
        raise SystemExit

    link = FakeLink(lambda asked: None)
    records: list[Record] = []
    call = Call([FakeVoice("a", link)], settings(1, weights=[1.0]), records.extend, explode)
    call.begin(0, inputs("x", "y", "z"))
    for one in link.held:
        one.row.ending = echo(one)
    tell(call, [one.row for one in link.held])
    assert [record.index for record in records] == [0, 1, 2]


def test_an_input_is_packed_once_for_llms_that_take_the_same_arguments() -> None:
    link = FakeLink(lambda asked: None)
    arguments = [["input"], ["input"], ["input", "more"], None]
    voices = [FakeVoice(name, link, arguments=taken) for name, taken in zip("abcd", arguments, strict=True)]
    call = Call(voices, settings(4, weights=[1.0] * 4, seed=7), lambda records: None)
    call.begin(0, [{"input": "x", "more": 1, "else": 2}, {"input": "y", "more": 1, "else": 2}])
    rows = {(asked.llm, asked.text): asked for asked in link.rows}
    assert [set(rows[llm, "x"].content) for llm in "abcd"] == [
        {"input"},
        {"input"},
        {"input", "more"},
        {"input", "more", "else"},
    ]
    assert rows["a", "x"].row.payload is rows["b", "x"].row.payload
    assert len({asked.seed for asked in link.rows}) == 2, "one for each input"


def test_every_row_has_an_id_of_its_own() -> None:
    run = Run(settings(2))
    for _ in range(20):
        run.over(inputs(*map(str, range(50))))
    assert len({asked.row.id for asked in run.link.rows}) == len(run.link.rows) == 2000


def test_cancel_may_come_twice_and_after_the_end() -> None:
    run = Run(settings(2))
    run.over(inputs("x"))
    run.call.cancel()
    run.call.cancel()
    assert run.link.withdrawn == []
    assert len(run.records) == 1


def test_a_task_that_is_interrupted_leaves_nothing_behind() -> None:
    class Interrupted(Shout):
        def generate_prompt(self, input: str) -> Any:
            if input == "stop":
                raise KeyboardInterrupt
            return input

    run = Run(settings(2), task=Interrupted())
    with pytest.raises(KeyboardInterrupt):
        run.over(inputs("hello", "stop"))
    run.call.cancel()
    assert run.link.rows == []
    assert run.records == []


BUILTIN_ERRORS = sorted(
    name for name, one in vars(builtins).items() if isinstance(one, type) and issubclass(one, Exception)
)


@pytest.mark.parametrize("name", BUILTIN_ERRORS)
def test_whatever_builtin_an_engine_raises_becomes_an_error_that_can_be_raised(name: str) -> None:
    run = Run(settings(2), FakeLink(lambda asked: failed("it broke", name)))
    (record,) = run.over(inputs("x")).values()
    assert record.failure is not None
    error = generation_error({0: record.failure}, [record.outputs])
    assert "it broke" in str(error)
    assert error.failures[0].message == "it broke"


def finished_shares(run: Run) -> list[tuple[int, int, int, int, bytes]]:
    """Has the run's call tell of the shares that workers answer: the input's number, and what a later Item needs."""
    told: list[tuple[int, int, int, int, bytes]] = []

    def shared(record: Record, share: Share, ending: Ending) -> None:
        told.append((record.number, share.at, share.count, share.draw, bytes(ending.payload)))

    run.call = Call(run.voices, run.settings, run.records.extend, run.progress, shared)
    return told


def test_shares_with_outputs_are_told_of_before_their_input_is_finished() -> None:
    def answer(asked: Asked) -> Ending:
        return failed("bad") if asked.llm == "b" else echo(asked)

    run = Run(settings(2), FakeLink(answer))
    told = finished_shares(run)
    run.over(inputs("x", "y"))
    assert [(number, at, count) for number, at, count, _, _ in told] == [(0, 0, 1), (1, 0, 1)]
    assert unpack_outputs(told[0][-1])[0]["raw_output"] == "a: x #1"


def test_what_was_finished_before_is_not_asked_again() -> None:
    before = Run(settings(3, seed=5), task=Shout(), arguments=["input"])
    told = finished_shares(before)
    whole = before.over([Item({"input": "x"}, 7)])[0]
    _, at, count, draw, answer = told[0]
    plan = [Planned(at, count, draw, answer), *(Planned(*other[1:4]) for other in told[1:])]

    after = Run(settings(3, seed=5), task=Shout(), arguments=["input"])
    record = after.over([Item({"input": "x"}, 7, plan=plan)])[0]
    assert record.outputs == whole.outputs
    assert record.outputs[0]["parsed_output"] == {"shout": record.outputs[0]["raw_output"].upper()}
    assert [asked.llm for asked in after.link.rows] == ["b" if at == 0 else "a"]
    assert after.link.rows[0].seed == before.link.rows[-1].seed
    assert sum(after.advances) == 3


def test_an_item_that_is_all_finished_ends_in_begin() -> None:
    run = Run(settings(2))
    answer = done({"raw_output": "one"}, {"raw_output": "two"}).payload
    assert isinstance(answer, bytes)
    record = run.over([Item({"input": "x"}, 3, plan=[Planned(1, 2, 0, answer)])])[0]
    assert (len(record.outputs), record.makers, run.link.rows) == (2, [1, 1], [])


def test_a_damaged_answer_of_before_fails_its_share_alone() -> None:
    run = Run(settings(2))
    record = run.over([Item({"input": "x"}, 0, plan=[Planned(0, 1, 0, b"\xc1"), Planned(1, 1)])])[0]
    assert record.failure is not None
    assert record.failure.type_name == "DecodeError"
    assert [output["raw_output"] for output in record.outputs] == ["b: x #1"]


def test_the_draw_and_the_seeds_of_an_item_go_by_its_number() -> None:
    whole = Run(settings(1, draw_each_row=True, seed=4))
    records = whole.over(inputs(*map(str, range(40))))
    late = Run(settings(1, draw_each_row=True, seed=4))
    resumed = late.over([Item({"input": str(number)}, number) for number in range(30, 40)])
    assert [shares(resumed[at]) for at in range(10)] == [shares(records[at]) for at in range(30, 40)]
    seeds = {asked.text: asked.seed for asked in whole.link.rows}
    assert {asked.text: asked.seed for asked in late.link.rows}.items() <= seeds.items()


def test_options_of_one_input_go_over_those_of_the_call_and_never_mix() -> None:
    run = Run(settings(1, options=pack({"temperature": 0.5, "top_p": 0.9})), FakeLink(echo))
    given = [{"temperature": 1.0}, None, {"temperature": 1.0}]
    run.over([Item({"input": str(at)}, at, options) for at, options in enumerate(given)])
    assert [asked.options for asked in run.link.rows] == [
        {"temperature": 1.0, "top_p": 0.9},
        {"temperature": 0.5, "top_p": 0.9},
        {"temperature": 1.0, "top_p": 0.9},
    ]
    specs = [asked.row.spec for asked in run.link.rows]
    assert specs[0] is specs[2]
    assert specs[0] != specs[1]


def test_options_that_an_llm_does_not_know_fail_their_input_alone() -> None:
    link = FakeLink(echo, info("a", options=["top_p"]), info("b", options=["top_p"]))
    run = Run(settings(2), link)
    records = run.over([Item({"input": "x"}, 0, {"temprature": 1}), Item({"input": "y"}, 1, {"top_p": 0.5})])
    assert records[0].failure is not None
    assert "'a' knows no option 'temprature'; it knows top_p" in str(records[0].failure)
    assert records[1].failure is None


def test_as_many_sets_of_options_as_inputs_are_not_kept() -> None:
    run = Run(settings(1))
    run.over([Item({"input": "x"}, at, {"max_tokens": at}) for at in range(3000)])
    assert len(run.call._row_maker._specs) <= 1024


# What a task would like of the LLMs.


class Wishing(Shout):
    def __init__(self, **wishes: Any) -> None:
        self.generation_kwargs = wishes


def options_of(task: Any, **said: Any) -> list[Any]:
    run = Run(settings(2, **said), task=task)
    run.over(inputs("x"))
    return [asked.options for asked in run.link.rows] or [str(run.records[0].failure)]


def test_what_a_task_would_like_goes_with_its_rows_beside_the_calls_own_options() -> None:
    assert options_of(Wishing(top_k=1)) == [{"?": {"top_k": 1}}] * 2
    assert options_of(Wishing(top_k=1), options=pack({"top_k": 7})) == [{"?": {"top_k": 1}, "top_k": 7}] * 2
    assert options_of(Shout()) == options_of(Wishing()) == [{}] * 2


def test_what_a_task_would_like_and_cannot_be_sent_fails_its_rows() -> None:
    (failure,) = options_of(Wishing(top_k={1, 2}))
    assert "cannot be sent" in failure


def test_a_seed_of_ones_own_is_sent_as_it_is() -> None:
    run = Run(settings(2, seed=4))
    run.over([Item({"input": "x"}, 0, seed=11), {"input": "y"}])
    assert [asked.seed for asked in run.link.rows if asked.text == "x"] == [11, 11]
    assert 11 not in [asked.seed for asked in run.link.rows if asked.text == "y"]
