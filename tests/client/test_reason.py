from __future__ import annotations

import pytest

from genpool.client.reason import OTHER, MaxFailures, by_number, counted, reason_of
from genpool.protocol.errors import ConfigurationError


def test_failures_that_differ_in_their_numbers_are_one_reason() -> None:
    assert reason_of("the row has 5000 tokens,\n  and 4096 fit") == reason_of("the row has 6001 tokens, and 4096 fit")
    assert reason_of("line 3: this is no UTF-8") == "line #: this is no UTF-8"
    assert len(reason_of("x" * 1000)) < 200


def test_more_reasons_than_anybody_reads_are_counted_together() -> None:
    reasons: dict[str, int] = {}
    for number in range(500):
        reasons = counted(reasons, chr(number + 100))
        reasons = counted(reasons, "often")
    assert len(reasons) <= 101
    assert by_number(reasons)[0] == ("often", 500)
    assert sum(reasons.values()) == 1000
    assert reasons[OTHER] > 300


@pytest.mark.parametrize(
    ("limit", "failed", "rows", "passed"),
    [
        ("0", 0, 1, False),
        ("0", 1, 1, True),
        ("20", 20, 20, False),
        ("20", 21, 500, True),
        ("5%", 199, 199, False),
        ("5%", 10, 200, False),
        ("5%", 11, 200, True),
        ("0%", 1, 200, True),
        ("100%", 300, 300, False),
    ],
)
def test_limits(limit: str, failed: int, rows: int, passed: bool) -> None:
    read = MaxFailures.read(limit)
    assert read.are_passed(failed, rows) == passed
    assert str(read) == limit


@pytest.mark.parametrize("text", ["", "x", "-1", "5 percent", "101%", "nan%", "1.5", "%"])
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--max-failures is a number of rows, or a share such as 5%"):
        MaxFailures.read(text)
