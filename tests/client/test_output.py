"""What a run has written and noted, as the next one finds it: with calls over voices in the place of a fleet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from voices import Asked, FakeLink, FakeVoice, echo, info

from genpool.client import output as module
from genpool.client.call import Call, CallSettings
from genpool.client.item import Item
from genpool.client.journal import Journal
from genpool.client.output import LineFile, ResumableOutput
from genpool.client.record import Record
from genpool.client.row import Ending
from genpool.client.standing import LostWorker, Standing, trusted
from genpool.protocol.errors import ConfigurationError, GenpoolError, LLMLost


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "_SYNC_EVERY_S", 60.0)
    return tmp_path


@pytest.fixture
def journal(folder: Path) -> Iterator[Journal]:
    made = Journal(folder / "journal")
    made.begin({"run": "7"}, Standing())
    yield made
    made.close()


def a_call(link: FakeLink, output: ResumableOutput) -> tuple[Call, list[Record]]:
    records: list[Record] = []
    voices = [FakeVoice(name, link, arguments=["input"]) for name in ("a", "b")]
    settings = CallSettings(
        num_generations=2,
        weights=[1.0, 1.0],
        draw_each_row=True,
        seed=3,
        options=b"",
        deadline=None,
        fill_errors=True,
        if_lost="redraw",
    )
    return Call(voices, settings, records.extend, None, output.note_share), records


def test_a_share_that_was_drawn_anew_is_resumed_where_it_was(folder: Path, journal: Journal) -> None:
    def hold(asked: Asked) -> Ending | None:
        return None

    link = FakeLink(hold, info("a"), info("b", ready=0))
    with ResumableOutput(folder / "out", None, journal, Standing()) as output:
        call, _ = a_call(link, output)
        call.begin(0, [Item({"input": "x"}, 7, plan=output.plan(7, b"x"))])
        first, second = link.held
        assert (first.llm, second.llm) == ("a", "b")
        link.end(second, LLMLost("nobody serves it"))
        redrawn = link.held[-1]
        assert redrawn.llm == "a"
        link.end(redrawn)
    journal.close()

    # Cut off there. The LLM that was lost is back, and owes nothing any more.
    again = Journal(folder / "journal")
    link = FakeLink(echo, info("a"), info("b"))
    with ResumableOutput(folder / "out", None, again, Standing()) as output:
        call, records = a_call(link, output)
        call.begin(0, [Item({"input": "x"}, 7, plan=output.plan(7, b"x"))])
    again.close()
    assert [(asked.llm, asked.seed) for asked in link.rows] == [("a", first.seed)]
    (record,) = records
    assert (record.failure, record.makers) == (None, [0, 0])


def test_what_is_not_synced_is_not_claimed(folder: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    sync, note = LineFile.sync, journal.sync

    def synced(self: LineFile) -> None:
        order.append(self.path.name)
        sync(self)

    def noted(standing: Standing) -> None:
        order.append(f"journal of {standing.rows}")
        note(standing)

    monkeypatch.setattr(LineFile, "sync", synced)
    monkeypatch.setattr(journal, "sync", noted)
    with ResumableOutput(folder / "out", folder / "errors", journal, Standing()) as output:
        for number in range(3):
            output.write(b"line\n", number + 1, bytes(16), number + 1, reason="bad", failed=b"failed\n")
    assert order == ["out", "errors", "journal of 3"]


def test_a_file_of_errors_that_became_shorter_is_written_on(folder: Path, journal: Journal) -> None:
    with ResumableOutput(folder / "out", folder / "errors", journal, Standing(errors_size=100)) as output:
        output.write(b"line\n", 1, bytes(16), 1, reason="bad", failed=b"failed\n")
    assert (folder / "errors").read_bytes() == b"failed\n"
    assert output.standing.errors_size == 7


def test_a_journal_that_cannot_be_written_ends_the_run_at_the_next_row(
    folder: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = FakeLink(echo, info("a"), info("b"))

    def full(entry: Any) -> None:
        raise GenpoolError("journal cannot be written: No space left on device")

    with ResumableOutput(folder / "out", None, journal, Standing()) as output:
        call, records = a_call(link, output)
        monkeypatch.setattr(journal, "append", full)
        call.begin(0, [Item({"input": "x"}, 0, plan=output.plan(0, b"x"))])
        assert len(records) == 1, "the answers are not lost by it"
        monkeypatch.undo()
        with pytest.raises(GenpoolError, match="No space left on device"):
            output.write(b"line\n", 1, bytes(16), 1)
    assert (folder / "out").read_bytes() == b""


def test_rows_that_failed_or_were_copied_are_trusted_alike(folder: Path, journal: Journal) -> None:
    with ResumableOutput(folder / "out", None, journal, Standing()) as output:
        output.write(b"one\ntwo\nthree\n", 3, bytes(16), 3)
        output.write(b"four\n", 4, b"x" * 16, 4, reason="bad")
    journal.close()
    found = Journal(folder / "journal")
    content = (folder / "out").read_bytes()
    standing = trusted(found.found, lambda start, end: content[start:end])
    found.close()
    assert (standing.rows, standing.size, standing.failed, standing.chain) == (4, len(content), 1, b"x" * 16)


def test_a_file_that_cannot_be_opened_is_told_of(folder: Path, journal: Journal) -> None:
    with pytest.raises(ConfigurationError, match="none/errors cannot be written: No such file or directory"):
        ResumableOutput(folder / "out", folder / "none" / "errors", journal, Standing())


def test_a_worker_that_was_lost_is_told_of_when_the_run_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    early = LostWorker("a", "gpu1", 12, 3.0, "its connection broke", 3)
    late = LostWorker("a", "gpu2", 7, 1.0, "it fell silent", 1)
    found = Standing()
    for lost, seconds in (([early], 10.0), ([], 5.0), ([late], 20.0)):
        journal = Journal(folder / "journal")
        if journal.header is None:
            journal.begin({"run": "7"}, found)
        with ResumableOutput(folder / "out", None, journal, journal.found.standing) as output:
            clock[0] += seconds
            assert output.seconds == seconds
            output.note_lost(lost)
            found = output.summary()
        journal.close()
        clock[0] += 3600.0
    assert (found.seconds, found.lost) == (35.0, [replace(early, ago_s=28.0), late])
