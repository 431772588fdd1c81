"""The launcher's shell by itself: what a process that cannot be started does to the others."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from genpool.launcher.place import Place, Request, Status
from genpool.launcher.service import Fleet, Recipe, Service
from genpool.launcher.shell import Launcher


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        (Recipe(("--version",), (("A=", "1"),)), "illegal environment variable name"),
        (Recipe(("--version", "\0")), "embedded null byte"),
    ],
    ids=["environment", "argument"],
)
def test_one_that_cannot_be_started_ends_neither_the_launcher_nor_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recipe: Recipe, why: str
) -> None:
    place = Place(tmp_path)
    pipe = place.occupy()
    assert pipe is not None
    services = (Service("bad", recipe), Service("good", Recipe(("--version",))))
    launcher = Launcher(place, pipe, lambda: Fleet(tmp_path / "fleet.toml", services))
    place.ask(Request("down"))
    with caplog.at_level(logging.INFO, "genpool.launcher"):
        assert launcher.run() == 0
    assert f"bad-1 ended (exit code 71): it cannot be started: {why}; it is started again" in caplog.text
    assert "good-1 is started" in caplog.text


@pytest.mark.parametrize("patience_s", [3e6, 1e308], ids=["a month", "for ever"])
def test_a_drain_may_take_longer_than_the_kernel_waits(tmp_path: Path, patience_s: float) -> None:
    place = Place(tmp_path)
    pipe = place.occupy()
    assert pipe is not None
    services = (Service("good", Recipe(("--version",))),)
    place.ask(Request("down", timeout_s=patience_s))
    assert Launcher(place, pipe, lambda: Fleet(tmp_path / "fleet.toml", services)).run() == 0


def test_the_temporary_folder_may_have_a_path_that_is_too_long_for_a_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    deep = tmp_path / ("deep" * 25)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    place = Place(tmp_path)
    pipe = place.occupy()
    assert pipe is not None
    place.ask(Request("down"))
    services = (Service("good", Recipe(("--version",))),)
    with caplog.at_level(logging.INFO, "genpool.launcher"):
        assert Launcher(place, pipe, lambda: Fleet(tmp_path / "fleet.toml", services)).run() == 0
    assert "good-1 is started" in caplog.text


def test_each_of_those_who_ask_at_once_has_its_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path)
    pipe = place.occupy()
    assert pipe is not None
    told: list[Status] = []
    monkeypatch.setattr(place, "tell", told.append)
    first, second, down, late = Request("up"), Request("up"), Request("down"), Request("up")
    for request in (first, second, down, late):
        place.ask(request)
    Launcher(place, pipe, lambda: Fleet(tmp_path / "fleet.toml")).run()
    assert told[-1].answers == {
        first.token: "",
        second.token: "",
        down.token: "",
        late.token: "it is ending; call `genpool up` when it is gone",
    }


def test_one_that_logs_nothing_ends_without_the_words_of_one_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = Place(tmp_path)
    pipe = place.occupy()
    assert pipe is not None
    place.log_of("silent-1").write_text("all was well\n")
    monkeypatch.setattr("genpool.launcher.shell.sys.executable", "/bin/false")
    launcher = Launcher(
        place, pipe, lambda: Fleet(tmp_path / "fleet.toml", (Service("silent", Recipe(("worker",))),), drain_s=5)
    )
    monkeypatch.setattr(launcher, "_tell", lambda: "ended" in caplog.text and place.ask(Request("down")))
    with caplog.at_level(logging.INFO, "genpool.launcher"):
        assert launcher.run() == 0
    assert "silent-1 ended (exit code 1); it is started again" in caplog.text
