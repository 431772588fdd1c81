from __future__ import annotations

from pathlib import Path

import pytest

from genpool.protocol.errors import ConfigurationError
from genpool.worker.engines.gguf import has_chat_template, model_path


def test_an_instruct_model_has_a_chat_template_and_a_base_model_has_none(smollm2_path: Path, gemma_path: Path) -> None:
    assert has_chat_template(smollm2_path)
    assert not has_chat_template(gemma_path)


def test_a_model_may_lie_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF and more")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert model_path("~/a.gguf") == tmp_path / "a.gguf"


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no model file"):
        model_path(tmp_path)


def test_an_empty_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    with pytest.raises(ConfigurationError, match="no GGUF"):
        model_path(tmp_path / "a.gguf")
