from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from voices import info

from genpool.client.fleet import Choice, _lack
from genpool.client.link import Link

HOSTILE = {name: info(name, ready=0, loading=1) for name in ("a\nb", "\x1b[31mred")}


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["gwen"], r"no worker has announced an LLM named 'gwen' at here (known there: \x1b[31mred, a\nb)"),
        ([], r"no LLM is ready at here (loading there: \x1b[31mred, a\nb)"),
    ],
    ids=["known", "loading"],
)
def test_names_that_workers_gave_reach_no_terminal_as_they_are(asked: list[str], told: str) -> None:
    link: Any = SimpleNamespace(fleet=HOSTILE)
    assert _lack(cast(Link, link), Choice("here", asked)) == told
