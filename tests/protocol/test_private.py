from __future__ import annotations

import os
from pathlib import Path

import pytest

from genpool.protocol.private import write_private


def test_a_file_has_its_text_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, saved = tmp_path / "file", list[tuple[int, bool]]()
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        saved.append((os.fstat(descriptor).st_size, path.exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_private(path, "text", "the file")
    assert saved == [(len("text"), False)]
    assert path.read_text() == "text"
