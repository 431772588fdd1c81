"""What tells rows from each other, in this process and the next one."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from genpool.client.fingerprint import contents, digest
from genpool.client.formats.base import Line


def line(**row: Any) -> Line:
    return Line(1, row)


NEXT_PROCESS = """
from genpool.client.fingerprint import digest
from genpool.client.formats.base import Line
class Odd: pass
print(digest(Line(1, {"input": "x", "set": {"one", "two", "three", "four"}, "odd": Odd()})).hex())
"""


def test_a_row_of_odd_values_is_the_same_in_the_next_process() -> None:
    path = os.pathsep.join(sys.path)
    digests = {
        subprocess.run(
            [sys.executable, "-c", NEXT_PROCESS],
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(digests) == 1


def test_a_row_that_is_nested_too_deeply_is_told_of_no_traceback() -> None:
    deep: list[Any] = []
    for _ in range(200_000):
        deep = [deep]
    assert digest(line(input=deep)) == b"nested too deeply"


@pytest.mark.parametrize("id_column", [None, "id"])
def test_what_a_row_is_known_by_and_what_it_holds(id_column: str | None) -> None:
    one, mended = line(id=1, input="broken"), line(id=1, input="mended")
    assert (digest(one, id_column) == digest(mended, id_column)) is (id_column is not None)
    assert contents(one) != contents(mended)
    assert contents(Line(1, {"id": 1}, options={"n": 1})) != contents(line(id=1))
