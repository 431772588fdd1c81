"""Rows that are in memory already."""

from __future__ import annotations

from typing import Any

import pytest

from genpool.client.formats.base import Line
from genpool.client.formats.memory import source_of
from genpool.protocol.errors import ConfigurationError


def test_a_list_is_counted_and_read_again() -> None:
    with source_of([{"input": 1}, {"input": 2}]) as source:
        assert source.count() == 2
        for _ in range(2):
            assert list(source.lines(lambda: ["input"])) == [Line(1, {"input": 1}), Line(2, {"input": 2})]
            source.rewind()


def test_a_generator_is_read_as_it_is_needed_and_once() -> None:
    taken: list[int] = []

    def rows() -> Any:
        for at in range(3):
            taken.append(at)
            yield {"input": at}

    source = source_of(rows())
    source.rewind()
    lines = source.lines(list)
    assert next(lines).row == {"input": 0}
    assert taken == [0]
    with pytest.raises(ConfigurationError, match="the rows have to be read more than once for this: give a list"):
        source.rewind()


def test_a_row_that_cannot_be_used_says_so_by_its_number() -> None:
    bad, missing = source_of(["text", {"prompt": 1}]).lines(lambda: ["input"])
    assert bad.problem == 'the rows, row 1: a row is a dict such as {"input": …}, and this is of the type str'
    assert missing.problem == "the rows, row 2: the column 'input' is missing; there is 'prompt'"


def test_names_of_columns_are_text_as_they_are_in_a_file() -> None:
    assert next(source_of([{1: "one"}]).read()).row == {"1": "one"}


def test_a_row_of_the_caller_is_not_changed_through_a_line() -> None:
    mine = {"input": 1}
    next(source_of([mine]).read()).row["input"] = 2
    assert mine == {"input": 1}


@pytest.mark.parametrize("wrong", ["in.jsonl", 3, None, {"train": []}])
def test_what_holds_no_rows_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="rows are a Dataset or an iterable of dicts, and"):
        source_of(wrong)
