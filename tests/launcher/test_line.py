from __future__ import annotations

import pytest

from genpool.launcher.line import line_of

TEXT = '''# a comment
broker = "x"

[llm.a]
engine = "openai"
set = {n_ctx = 1}
description = """
replicas = 7
[llm.b]
"""
stop = [
  "a",
]
replicas = 2  # replicas = 3

[llm.b]
[llm.b.env]
"OMP" = "1"
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("broker", 2),
        ("llm", 4),
        ("llm a", 4),
        ("llm a engine", 5),
        ("llm a set n_ctx", 6),
        ("llm a description", 7),
        ("llm a stop", 11),
        ("llm a replicas", 14),
        ("llm b", 16),
        ("llm b env OMP", 18),
        ("absent", 1),
        ("", 1),
    ],
)
def test_the_line_where_a_value_begins(path: str, line: int) -> None:
    assert line_of(TEXT, path.split()) == line


def test_line_ends_of_other_systems() -> None:
    assert line_of(TEXT.replace("\n", "\r\n"), ["llm", "b"]) == 16
