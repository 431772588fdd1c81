from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("openai")

from genpool.protocol.errors import EngineUnwell
from genpool.worker.engines.fault import Blame


def test_a_canary_whose_answer_never_ends_is_not_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genpool.worker.engines.fault.CANARY_TIMEOUT_S", 0.01)
    blame = Blame("here", asyncio.Event().wait, str)
    raised = asyncio.run(asyncio.wait_for(blame.of(TimeoutError("no answer within 600 s")), 5))
    assert type(raised) is EngineUnwell
