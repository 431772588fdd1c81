"""What becomes of text that another process has sent before people see it."""

from __future__ import annotations

import pytest

from genpool.protocol.printable import plural, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("gpu1: no memory (8 GiB)", "gpu1: no memory (8 GiB)"),
        ("größe 東京 😀", "größe 東京 😀"),
        ("lost\n2026-01-01 INFO all is well", "lost\\n2026-01-01 INFO all is well"),
        ("\x1b[2Jgone\x07\x9b", "\\x1b[2Jgone\\x07\\x9b"),
        ("a\u202eb\u2028c", "a\\u202eb\\u2028c"),
        ("\udc80", "\\udc80"),
    ],
    ids=["plain", "letters", "line", "terminal", "direction", "surrogate"],
)
def test_it_is_one_line_of_visible_characters(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_one_of_something_is_told_so() -> None:
    assert [plural(number, "row") for number in (0, 1, 2)] == ["0 rows", "1 row", "2 rows"]
