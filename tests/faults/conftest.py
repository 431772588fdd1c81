from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import Fleet

from genpool import ProcessLLM


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """A broker with the defaults."""
    with Fleet(tmp_path) as fleet:
        fleet.start_broker()
        yield fleet


@pytest.fixture
def llm(fleet: Fleet) -> Iterator[ProcessLLM]:
    """What noted.py serves in the fleet."""
    llm = ProcessLLM.connect("noted", broker=fleet.address)
    yield llm
    llm.teardown()
