"""Runs: rows that stay together until something sets one apart, and calls of which all rows do."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, cast

import pytest
from voices import FakeLink, FakeVoice, echo, failed, info

from genpool.client.call import Call, CallSettings
from genpool.client.record import Record
from genpool.client.row import Ending, Owner, Row, RowSpec
from genpool.client.run import Run
from genpool.protocol.errors import Closed, LLMLost, RemoteError
from genpool.protocol.limits import ROW_ID_BYTES
from genpool.protocol.messages import Outcome

DONE, FAILED = Outcome.DONE, Outcome.FAILED


def run_of(count: int, start: int = 0) -> Run:
    payloads = [b"%d" % number for number in range(count)]
    return Run(RowSpec("a", "input", 1, b"", None, 60.0), cast(Owner, None), start, payloads)


# The run itself.


def test_the_ids_of_a_run_begin_with_its_key_and_no_others_do() -> None:
    one, other = run_of(256), run_of(3)
    assert len(set(one.ids) | set(other.ids)) == 259
    assert {len(row_id) for row_id in one.ids} == {ROW_ID_BYTES}
    assert {Run.key_of(row_id) for row_id in one.ids} == {one.key}
    assert Run.key_of(other.ids[2]) == other.key != one.key


def answered(run: Run, ids: Sequence[bytes], at: int = 0, outcomes: Sequence[int] | None = None) -> tuple[int, int]:
    return run.answered(ids, [DONE] * len(ids) if outcomes is None else outcomes, at)


def test_rows_that_follow_each_other_are_answered_together() -> None:
    run, other = run_of(10), run_of(10)
    assert answered(run, run.ids) == (0, 10)
    assert answered(run, run.ids[3:6]) == (3, 3)
    assert answered(run, [*other.ids[:2], *run.ids[3:6], *run.ids[8:], *other.ids], at=2) == (3, 3)
    assert answered(run, [*run.ids[3:6], *run.ids[8:]], at=3) == (8, 2)
    assert answered(run, [run.ids[9], run.ids[0]]) == (9, 1)
    assert answered(run, [run.ids[4], run.ids[4]]) == (4, 1)


def test_rows_are_not_answered_together_where_one_has_no_outputs_or_has_ended_or_never_was() -> None:
    run = run_of(10)
    assert answered(run, run.ids, outcomes=[DONE] * 9 + [FAILED]) == (0, 0)
    assert answered(run, run.ids[:9], outcomes=[DONE] * 9) == (0, 9)
    assert answered(run, [run.key + b"\x0a"]) == (10, 0)
    assert run.end(4, 2) == 2
    assert run.left == 8
    assert answered(run, run.ids) == (0, 0)
    assert answered(run, run.ids[5:6]) == (5, 0)
    assert answered(run, run.ids[:4]) == (0, 4)


def test_a_run_is_split_into_the_rows_that_are_left() -> None:
    run = run_of(6, start=256)
    run.since = 7.0
    run.end(1, 2)
    rows = run.split()
    assert run.rows is rows
    assert [(row.id, row.payload, row.index) for row in rows] == [
        (run.ids[place], b"%d" % place, 256 + place) for place in (0, 3, 4, 5)
    ]
    assert all(row.spec is run.spec and row.since == 7.0 and row.taken and not row.over for row in rows)


# A call whose rows do.


class Runs:
    """A call of ``count`` inputs over one voice, or several, on a link that keeps runs."""

    def __init__(self, count: int, voices: Sequence[str] = "a", **said: Any) -> None:
        self.link = FakeLink(lambda _: None, *(info(name, capacity=1000) for name in voices), keeps_runs=True)
        self.voices = [FakeVoice(name, self.link, arguments=["input"]) for name in voices]
        self.outputs: dict[int, list[str | None]] = {}
        self.records: list[Record] = []
        usual: dict[str, Any] = {"draw_each_row": False, "seed": None, "options": b"", "deadline": None}
        settings = CallSettings(said.pop("n", 1), [1.0] * len(voices), fill_errors=False, **{**usual, **said})
        self.call = Call(self.voices, settings, self.finished, finished_alike=self.finished_alike)
        self.inputs: list[Any] = [{"input": str(number)} for number in range(count)]

    def begin(self) -> list[Run]:
        self.call.begin_list(self.inputs)
        return self.link.runs

    def finished(self, records: list[Record]) -> None:
        self.records += records
        for record in records:
            self.note(record.index, record.outputs)

    def finished_alike(self, start: int, outputs: list[list[Any]]) -> None:
        for index, one in enumerate(outputs, start):
            self.note(index, one)

    def note(self, index: int, outputs: list[Any]) -> None:
        assert index not in self.outputs, "an input has finished twice"
        self.outputs[index] = [output["raw_output"] for output in outputs]

    def of(self, llm: str) -> list[Run]:
        return [run for run in self.link.runs if run.spec.llm == llm]

    def expected(self, n: int = 1) -> dict[int, list[str | None]]:
        return {at: [f"a: {at} #{number + 1}" for number in range(n)] for at in range(len(self.inputs))}


@pytest.mark.parametrize("n", [1, 3])
def test_a_list_for_one_llm_goes_in_runs_and_finishes_with_them(n: int) -> None:
    call = Runs(600, n=n)
    runs = call.begin()
    assert [(run.start, len(run)) for run in runs] == [(0, 256), (256, 256), (512, 88)]
    for run, first, count in ((runs[1], 100, 156), (runs[0], 0, 256), (runs[2], 0, 88), (runs[1], 0, 100)):
        call.link.end_of(run, first, count)
    assert call.outputs == call.expected(n)
    assert not call.records
    assert not call.call._parts
    assert call.call.begun == 600
    assert not any(call.call._ahead.under_way.values())


@pytest.mark.parametrize("said", [{"seed": 3}, {"draw_each_row": True}], ids=str)
def test_what_is_not_alike_goes_in_rows(said: dict[str, Any]) -> None:
    call = Runs(20, **said)
    call.begin()
    assert not call.link.runs
    assert len(call.link.rows) >= 20


def joined(number: int, *llms: str) -> list[str | None]:
    return [f"{llm}: {number} #1" for llm in llms]


def test_a_list_for_several_llms_goes_in_runs_for_each_and_an_input_finishes_with_the_last() -> None:
    call = Runs(300, "abc", n=3)
    call.begin()
    assert [(run.start, len(run), run.place) for run in call.of("b")] == [(0, 256, 1), (256, 44, 1)]
    call.link.end_of(call.of("c")[0], 0, 256)
    call.link.end_of(call.of("a")[0], 100, 100)
    assert not call.outputs
    call.link.end_of(call.of("b")[0], 90, 30)
    assert sorted(call.outputs) == list(range(100, 120))
    call.link.end_of(call.of("b")[0], 120, 136)
    call.link.end_of(call.of("b")[0], 0, 90)
    call.link.end_of(call.of("a")[0], 0, 100)
    call.link.end_of(call.of("a")[0], 200, 56)
    for llm in "abc":
        call.link.end_of(call.of(llm)[1], 0, 44)
    assert call.outputs == {number: joined(number, "a", "b", "c") for number in range(300)}
    assert not call.records
    assert not call.call._parts
    assert not any(call.call._ahead.under_way.values())


def test_a_pool_may_have_more_llms_than_a_byte_counts() -> None:
    names = [f"llm{number:03d}" for number in range(300)]
    call = Runs(8, names, n=300)
    for run in list(call.begin()):
        call.link.end_of(run, 0, 8)
    assert call.outputs == {number: joined(number, *names) for number in range(8)}


def test_where_one_llm_fails_a_row_the_others_shares_of_it_count() -> None:
    call = Runs(20, "ab", n=2)
    call.begin()
    (first,), (second,) = call.of("a"), call.of("b")
    call.link.end_of(first, 0, 5)
    call.link.split(second)
    for number in range(10):
        one = next(one for one in call.link.held if one.text == str(number))
        call.link.end(one, failed("no") if number in (3, 8) else None)
    assert sorted(call.outputs) == [0, 1, 2, 3, 4]
    call.link.end_of(first, 5, 15)
    assert sorted(call.outputs) == list(range(10))
    while call.link.held:
        call.link.end()
    wrong = {record.index: record.outputs[0]["raw_output"] for record in call.records if record.failure}
    assert wrong == {3: "a: 3 #1", 8: "a: 8 #1"}
    assert {number: one for number, one in call.outputs.items() if number not in wrong} == {
        number: joined(number, "a", "b") for number in range(20) if number not in wrong
    }
    assert not call.call._parts
    assert not call.call._records
    assert not any(call.call._ahead.under_way.values())


def test_what_a_lost_llm_owes_of_a_run_is_made_by_the_others() -> None:
    call = Runs(20, "ab", n=2, if_lost="redraw", lost_after_s=1.0)
    call.begin()
    (first,), (second,) = call.of("a"), call.of("b")
    call.link.end_of(first, 0, 10)
    call.link.fleet = {"a": info("a"), "b": info("b", ready=0)}
    call.link.split(second)
    for one in [one for one in call.link.held if one.llm == "b"]:
        call.link.end(one, LLMLost("b is lost"))
    while call.link.held:
        call.link.end()
    call.link.end_of(first, 10, 10)
    assert {tuple(sorted(map(str, one))) for one in call.outputs.values()} == {
        (f"a: {number} #1", f"a: {number} #1") for number in range(20)
    }
    assert not call.call._parts
    assert not any(call.call._ahead.under_way.values())


def test_a_cancelled_call_over_several_llms_withdraws_all_its_runs() -> None:
    call = Runs(20, "ab", n=2)
    call.begin()
    (first,), (second,) = call.of("a"), call.of("b")
    call.link.end_of(first, 0, 10)
    call.link.end_of(second, 5, 10)
    call.call.cancel()
    assert first.over
    assert second.over
    call.link.end_of(second, 0, 5)
    assert sorted(call.outputs) == list(range(5, 10))
    assert call.call.begun == 5


@pytest.mark.parametrize("seed", range(30))
def test_by_chance_all_inputs_finish_once_with_what_each_llm_made(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)
    call = Runs(700, "abc"[: chance.randint(1, 3)], n=3)
    monkeypatch.setattr("genpool.client.call._MOST_PART_BYTES", 10_000)
    for first in chance.sample(range(700), seed % 4):
        for number in range(first, min(700, first + chance.randint(1, 40))):
            call.inputs[number] = {"input": f"{number} {chance.randint(1, 4000) * 'x'}"}
    call.begin()
    left = {run: list(range(len(run))) for run in call.link.runs}
    while left or call.link.held:
        if call.link.held and (not left or chance.random() < 0.8):
            call.link.end(chance.choice(call.link.held))
            continue
        run = chance.choice(list(left))
        numbers = left[run]
        if chance.random() < 0.05:
            del left[run]
            call.link.split(run)
            continue
        first = chance.choice(numbers)
        count = 1
        while first + count in numbers and chance.random() < 0.97:
            count += 1
        left[run] = [number for number in numbers if not first <= number < first + count]
        if not left[run]:
            del left[run]
        call.link.end_of(run, first, count)
        left |= {new: list(range(len(new))) for new in call.link.runs if new.left == len(new)}
    assert sorted(call.outputs) == list(range(700))
    for number, outputs in call.outputs.items():
        assert len(outputs) == 3
        assert outputs == sorted(map(str, outputs))
        assert {str(one).split()[1] for one in outputs} == {str(number)}
    assert not call.call._parts
    assert not call.call._records
    assert not any(call.call._ahead.under_way.values())


def test_a_few_inputs_or_odd_ones_go_in_rows() -> None:
    few = Runs(7)
    few.begin()
    odd = Runs(20)
    odd.inputs[11] = {}
    odd.begin()
    assert (few.link.runs, odd.link.runs) == ([], [])
    assert (len(few.link.rows), len(odd.link.rows)) == (7, 19)
    assert len(odd.outputs) == 1


def test_large_inputs_go_in_rows_and_a_run_begins_again_where_the_next_part_does() -> None:
    call = Runs(700)
    for number in range(100, 110):
        call.inputs[number] = {"input": str(number) + 1_000_000 * "x"}
    call.begin()
    assert [run.start for run in call.link.runs] == [256, 512]
    assert call.link.batches == [127, 129]  # packed 1, 2, 4 … together
    assert [one.row.index for one in call.link.rows] == list(range(256))


def test_a_run_that_is_split_ends_row_by_row() -> None:
    call = Runs(300)
    first, second = call.begin()
    call.link.end_of(first, 10, 20)
    call.link.split(first)
    call.link.end(call.link.held[5], failed("no"))
    call.link.end(call.link.held[100], LLMLost("a is lost"))
    while call.link.held:
        call.link.end()
    call.link.end_of(second, 0, 44)
    wrong = {record.index: record.failure.kind for record in call.records if record.failure}
    assert wrong == {5: ValueError, 121: LLMLost}
    assert {at: one for at, one in call.outputs.items() if at not in wrong} == {
        at: one for at, one in call.expected().items() if at not in wrong
    }
    assert len(call.records) == 236
    assert all(record.input is call.inputs[record.index] for record in call.records)
    assert not call.call._parts
    assert not call.call._records
    assert not any(call.call._ahead.under_way.values())


def test_an_answer_that_cannot_be_read_is_a_failure_of_its_own_row() -> None:
    call = Runs(20)
    (run,) = call.begin()
    call.link.end_of(run, 0, 3, payload=b"\xc1")
    call.link.end_of(run, 3, 17)
    assert [record.index for record in call.records if record.failure] == [0, 1, 2]
    assert {record.failure.type_name for record in call.records if record.failure} == {"DecodeError"}
    assert len(call.outputs) == 20


def test_a_cancelled_call_withdraws_its_runs_and_hears_no_more_of_them() -> None:
    call = Runs(600)
    runs = list(call.begin())
    call.link.end_of(runs[0], 0, 10)
    call.link.split(runs[1])
    call.call.cancel()
    assert all(run.over for run in runs)
    call.link.end_of(runs[0], 10, 5)
    for one in list(call.link.held):
        one.tell(echo(one))
    assert len(call.outputs) == 10
    assert call.call.begun == 10


def test_a_run_that_cannot_be_sent_is_the_callers_error(monkeypatch: pytest.MonkeyPatch) -> None:
    call = Runs(20)

    def submit_rows(rows: object) -> None:
        raise Closed("torn down")

    monkeypatch.setattr(call.voices[0], "submit_rows", submit_rows)
    with pytest.raises(Closed):
        call.begin()
    call.call.cancel()
    assert not call.outputs


def test_a_run_that_was_put_off_and_cannot_be_sent_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    call = Runs(20_000)
    runs = list(call.begin())
    assert sum(map(len, runs)) < 7000

    def submit_rows(rows: list[Row] | Run) -> None:
        raise Closed("torn down")

    monkeypatch.setattr(call.voices[0], "submit_rows", submit_rows)
    for run in runs:
        call.link.end_of(run, 0, len(run))
    errors = [record.failure for record in call.records]
    assert len(errors) == 20_000 - sum(map(len, runs))
    assert all(isinstance(error, RemoteError) and error.kind is Closed for error in errors)
    assert len(call.outputs) == 20_000


def test_rows_of_a_run_end_as_rows_do() -> None:
    run = run_of(5, start=10)
    rows = run.ended(1, [b"x", b"y"])
    assert [(row.index, row.ending, row.over) for row in rows] == [
        (11, Ending(DONE, 1, b"x"), True),
        (12, Ending(DONE, 1, b"y"), True),
    ]
