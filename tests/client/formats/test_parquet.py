"""Parquet files that others wrote, and some that are broken."""

# pyright: reportMissingImports=false
# pyarrow is an extra.

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from extras import require

require("pyarrow")

import pyarrow as pa  # noqa: E402  after the look whether it is there
import pyarrow.parquet as pq  # noqa: E402

from genpool.client.formats.base import Line  # noqa: E402
from genpool.client.formats.format import open_source  # noqa: E402
from genpool.client.formats.parquet import export_parquet  # noqa: E402
from genpool.protocol.content import pack  # noqa: E402
from genpool.protocol.errors import ConfigurationError  # noqa: E402


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "in.parquet"


def write(path: Path, columns: dict[str, Any], **said: Any) -> None:
    pq.write_table(pa.table(columns), path, **said)


def read(path: Path, *needed: str) -> list[Line]:
    with open_source(str(path)) as source:
        lines = list(source.lines(lambda: needed))
        source.rewind()
        assert list(source.lines(lambda: needed)) == lines
        return lines


def test_rows_are_counted_from_1_over_all_row_groups(path: Path) -> None:
    write(path, {"input": [f"row {at}" for at in range(1000)]}, row_group_size=300)
    lines = read(path, "input")
    assert lines == [Line(at + 1, {"input": f"row {at}"}) for at in range(1000)]
    with open_source(str(path)) as source:
        assert source.count() == 1000


@pytest.mark.parametrize(("rows", "text", "groups"), [(25_000, "x", 3), (40, "x" * 500_000, 3), (3, "x", 1)])
def test_row_groups_are_as_large_as_memory_may_grow(path: Path, rows: int, text: str, groups: int) -> None:
    working = path.with_name("working.jsonl")
    working.write_text(f'{{"input": "{text}"}}\n' * rows)
    export_parquet(working, path)
    metadata = pq.ParquetFile(path).metadata
    assert (metadata.num_rows, metadata.num_row_groups) == (rows, groups)


def test_values_are_such_as_a_task_and_json_can_have(path: Path) -> None:
    write(
        path,
        {
            "when": [datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)],
            "day": [date(2026, 1, 2)],
            "hour": [time(3, 4)],
            "while": [timedelta(seconds=90)],
            "price": [Decimal("1.50")],
            "nested": [[{"at": date(2026, 1, 2), "n": None}]],
            "pairs": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
            "kind": pa.array(["x"]).dictionary_encode(),
            "raw": [b"\xff"],
        },
    )
    (line,) = read(path)
    assert line.row == {
        "when": "2026-01-02T03:04:05+00:00",
        "day": "2026-01-02",
        "hour": "03:04:00",
        "while": "0:01:30",
        "price": "1.50",
        "nested": [{"at": "2026-01-02", "n": None}],
        "pairs": [["a", 1]],
        "kind": "x",
        "raw": b"\xff",
    }
    assert pack(line.row)


def test_values_of_the_json_type_are_what_they_stand_for(path: Path) -> None:
    def typed(*texts: str | None) -> Any:
        return pa.array(texts, pa.json_())

    items = pa.ListArray.from_arrays([0, 2, 2], typed('{"a": 1}', "[2]"))
    fields = pa.StructArray.from_arrays([typed("true", "null"), pa.array(["x", "y"])], names=["args", "name"])
    write(path, {"plain": typed('"text"', None), "items": items, "fields": fields, "wrong": typed("{oops", "1")})
    assert [line.row for line in read(path)] == [
        {"plain": "text", "items": [{"a": 1}, [2]], "fields": {"args": True, "name": "x"}, "wrong": "{oops"},
        {"plain": None, "items": [], "fields": {"args": None, "name": "y"}, "wrong": 1},
    ]


def test_a_value_that_is_nested_too_deeply_costs_its_own_row_only(path: Path) -> None:
    deep = pa.ExtensionArray.from_storage(pa.json_(), pa.array(["1", "[" * 100_000 + "]" * 100_000, "[[2]]"]))
    write(path, {"input": deep})
    lines = read(path)
    assert [line.row for line in lines] == [{"input": 1}, {}, {"input": [[2]]}]
    assert [line.problem for line in lines] == ["", f"{path}, row 2: this is nested too deeply", ""]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (pa.array([0, 10**7, 1], pa.date32()), "date value out of range"),
        (pa.array([0, 10**17, 86_400_000], pa.timestamp("ms")), "days="),
        (pa.array([b"1970-01-01", b"\xff", b"1970-01-02"]).view(pa.string()), "'utf-8' codec can't decode byte 0xff"),
    ],
    ids=["a late date", "a late time", "no UTF-8"],
)
def test_a_value_that_python_has_no_form_for_costs_its_own_row_only(path: Path, values: Any, told: str) -> None:
    write(path, {"input": values})
    lines = read(path, "input")
    assert [str(line.row.get("input"))[:10] for line in lines] == ["1970-01-01", "None", "1970-01-02"]
    assert [bool(line.problem) for line in lines] == [False, True, False]
    assert lines[1].problem.startswith(f"{path}, row 2: this cannot be read: {told}")


def test_a_column_that_is_missing_is_named_by_row(path: Path) -> None:
    write(path, {"prompt": ["a", "b"]})
    assert read(path, "input")[1].problem == f"{path}, row 2: the column 'input' is missing; there is 'prompt'"


def test_a_file_is_the_same_by_any_name(path: Path) -> None:
    write(path, {"input": ["a"]})
    with open_source(str(path)) as source:
        assert source.is_at(path.stat())
        assert not source.is_at(path.parent.stat())


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def json_instead(path: Path) -> None:
    path.write_text('{"input": 1}\n')


@pytest.mark.parametrize("harm", [emptied, cut, json_instead])
def test_what_is_no_whole_file_says_so_in_one_line(path: Path, harm: Callable[[Path], None]) -> None:
    write(path, {"input": ["a"]})
    harm(path)
    with pytest.raises(ConfigurationError) as raised:
        open_source(str(path))
    assert str(raised.value).startswith(f"{path} is no whole Parquet file: ")
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_says_so(path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"in\.parquet cannot be read: No such file"):
        open_source(str(path))
    with pytest.raises(ConfigurationError, match="cannot be read: Is a directory"):
        open_source(str(path.parent), "parquet")


def test_two_columns_of_one_name_are_refused(path: Path) -> None:
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), path)
    with pytest.raises(ConfigurationError, match="the column 'a' is there twice: rename one"):
        open_source(str(path))


def test_a_damaged_row_group_costs_its_own_rows_only(path: Path) -> None:
    write(path, {"input": [f"row {at} " * 50 for at in range(1000)]}, row_group_size=100, use_dictionary=False)
    place = pq.ParquetFile(path).metadata.row_group(3).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[place : place + 40] = b"\xff" * 40
    path.write_bytes(content)
    lines = read(path)
    (bad,) = [line for line in lines if line.problem]
    assert bad.number == 301
    assert bad.problem.startswith(f"{path}, row 301: rows 301 to 400 cannot be read: ")
    assert [line.number for line in lines if not line.problem] == [*range(1, 301), *range(401, 1001)]
