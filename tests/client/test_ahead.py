"""Long lists: what is put off until its LLMs need it, and what becomes of that."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from voices import FakeLink, FakeVoice, echo, info

from genpool.client.call import Call, CallSettings
from genpool.client.record import Record
from genpool.client.row import Row
from genpool.protocol.errors import Closed, LLMLost, RemoteError, UnknownLLM

# Inputs begin in parts of 256, as long as fewer rows than 384 are under way.
PART, ENOUGH = 256, 384
BEGUN = 2 * PART


def settings(voices: int, **said: Any) -> CallSettings:
    usual: dict[str, Any] = {"draw_each_row": False, "seed": None, "options": b"", "deadline": None}
    return CallSettings(voices, [1.0] * voices, fill_errors=False, **{**usual, **said})


class Long:
    """A call of ``count`` inputs over voices that end rows when they are told to."""

    def __init__(self, count: int, voices: int = 1, capacity: int = 1, **said: Any) -> None:
        names = "abc"[:voices]
        self.link = FakeLink(lambda _: None, *(info(name, capacity=capacity) for name in names))
        self.voices = [FakeVoice(name, self.link, arguments=["input"]) for name in names]
        self.records: list[Record] = []
        self.call = Call(self.voices, settings(voices, **said), self.records.extend)
        self.inputs = [{"input": str(number)} for number in range(count)]
        self.call.begin_list(self.inputs)

    def end(self, count: int, llm: str = "a") -> None:
        for one in [one for one in self.link.held if one.llm == llm][:count]:
            self.link.end(one)

    def begun(self, llm: str = "a") -> int:
        return sum(one.llm == llm for one in self.link.rows)


def test_a_long_list_begins_as_far_as_its_llm_needs_it() -> None:
    call = Long(2000)
    assert call.begun() == BEGUN
    call.end(BEGUN - ENOUGH)
    assert call.begun() == BEGUN
    call.end(1)
    assert call.begun() == BEGUN + PART
    call.end(PART - 1)
    assert call.begun() == BEGUN + PART
    while call.link.held:
        call.end(100)
    assert call.link.texts == [str(number) for number in range(2000)]
    assert [record.index for record in call.records] == list(range(2000))
    assert call.call.begun == 2000
    assert not any(record.failure for record in call.records)


def test_a_large_fleet_has_more_rows_under_way() -> None:
    assert Long(5000, capacity=200).begun() == pytest.approx(1200, abs=PART)


def test_all_rows_of_a_list_wait_since_it_was_given() -> None:
    call = Long(1000)
    call.end(500)
    since = {one.row.spec.since for one in call.link.rows}
    assert len(since) == 1
    assert None not in since


def test_an_input_that_is_changed_later_counts_as_it_was_given() -> None:
    call = Long(1000)
    for given in call.inputs:
        given["input"] = "changed"
    call.inputs.clear()
    while call.link.held:
        call.end(100)
    assert call.link.texts == [str(number) for number in range(1000)]


def test_a_slow_llm_keeps_no_other_waiting() -> None:
    call = Long(2000, 2)
    assert call.begun("a") == BEGUN
    for _ in range(7):
        call.end(300, "a")
    assert call.begun("a") == 2000
    assert not call.records


def test_what_cannot_be_packed_without_a_look_is_begun_at_once() -> None:
    call = Long(1000, seed=7)
    assert call.begun() == 1000


def test_cancelled_rows_that_were_put_off_never_begin() -> None:
    call = Long(1000)
    call.call.cancel()
    assert len(call.link.withdrawn) == call.begun() == BEGUN
    for one in call.link.rows:
        one.tell(echo(one))
    assert call.begun() == BEGUN
    assert not call.records


def test_when_a_row_ends_without_a_worker_the_others_begin_at_once_and_may_end_as_it_did() -> None:
    call = Long(2000)
    call.link.end(None, UnknownLLM("nobody serves it"))
    assert call.begun() == 2000
    for one in list(call.link.held):
        call.link.end(one, UnknownLLM("nobody serves it"))
    assert {record.failure.kind for record in call.records if record.failure} == {UnknownLLM}
    assert len(call.records) == 2000


def test_where_an_llms_process_cannot_be_had_no_row_asks_for_it_again() -> None:
    call = Long(2000, 2)
    error = RemoteError("RuntimeError", "no model", llm="a")
    for one in [one for one in call.link.held if one.llm == "a"]:
        call.link.end(one, error)
    assert (call.begun("a"), call.begun("b")) == (BEGUN, 2000)
    call.end(2000, "b")
    assert len(call.records) == 2000
    assert {record.failure and record.failure.message for record in call.records} == {"no model"}
    assert {len(record.outputs) for record in call.records} == {1}


def raises(error: Exception) -> Callable[[list[Row]], None]:
    def submit_rows(rows: list[Row]) -> None:
        raise error

    return submit_rows


@pytest.mark.parametrize("error", [Closed("torn down"), OSError("no process can be started")], ids=["ours", "other"])
def test_rows_that_cannot_be_sent_any_more_have_failed(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    call = Long(2000)
    monkeypatch.setattr(call.voices[0], "submit_rows", raises(error))
    while call.link.held:
        call.end(100)
    assert len(call.records) == 2000
    failures = [record.failure for record in call.records if record.failure]
    assert len(failures) == 2000 - BEGUN
    assert {(one.type_name, one.message) for one in failures} == {(type(error).__name__, str(error))}


def test_rows_that_cannot_be_made_any_more_have_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    call = Long(2000)

    def urandom(_: int) -> bytes:
        raise MemoryError

    monkeypatch.setattr(os, "urandom", urandom)
    while call.link.held:
        call.end(100)
    assert len(call.records) == 2000
    assert {record.failure.type_name for record in call.records if record.failure} == {"MemoryError"}


def test_what_was_put_off_is_redrawn_where_its_llm_is_lost() -> None:
    call = Long(1000, 2, if_lost="redraw", lost_after_s=1.0)
    call.link.fleet = {"a": info("a"), "b": info("b", ready=0)}
    call.link.end(next(one for one in call.link.held if one.llm == "b"), LLMLost("b is lost"))
    while held := list(call.link.held):
        for one in held:
            call.link.end(one, LLMLost("b is lost") if one.llm == "b" else None)
    assert len(call.records) == 1000
    assert {len(record.outputs) for record in call.records} == {2}
    assert not any(record.failure for record in call.records)
