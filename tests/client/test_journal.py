from __future__ import annotations

import multiprocessing
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from genpool.client import journal as module
from genpool.client.journal import MAGIC, Journal
from genpool.client.standing import Block, Finished, Standing
from genpool.protocol.errors import ConfigurationError, GenpoolError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl.journal"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    made = Journal(path)
    made.begin({"run": "7"}, Standing())
    yield made
    made.close()


def share(number: int, answer: bytes = b"answer") -> Finished:
    return Finished(number, b"contents", 0, 0, [(0, 1, 0)], answer)


def block(rows: int) -> Block:
    return Block(rows, rows * 10, bytes(16), rows, 0, zlib.crc32(b"line"))


def standing(rows: int) -> Standing:
    return Standing(rows=rows, size=rows * 10, line=rows)


def reopened(journal: Journal) -> Journal:
    journal.close()
    return Journal(journal.path)


def test_it_tells_later_what_it_was_told(journal: Journal) -> None:
    journal.append(share(0))
    journal.append(block(1))
    journal.append(share(3))
    found = reopened(journal)
    assert found.header == {"run": "7"}
    assert (found.found.blocks, found.found.shares) == ([block(1)], {0: [share(0)], 3: [share(3)]})
    found.close()


def test_with_another_header_it_tells_all_else_as_before(journal: Journal) -> None:
    journal.sync(standing(1))
    journal.append(share(2))
    journal.append(block(2))
    again = reopened(journal)
    found = again.found
    again.change({"run": "8"})
    again.append(share(3))
    last = reopened(again)
    assert last.header == {"run": "8"}
    assert (last.found.standing, last.found.blocks) == (found.standing, found.blocks)
    assert last.found.shares == {2: [share(2)], 3: [share(3)]}
    last.close()


def test_a_torn_end_is_cut_off_and_written_over(journal: Journal) -> None:
    journal.append(share(0))
    journal.append(share(1))
    with journal.path.open("r+b") as file:
        file.truncate(journal.path.stat().st_size - 3)
    again = reopened(journal)
    assert again.found.shares == {0: [share(0)]}
    again.append(share(2))
    last = reopened(again)
    assert last.found.shares == {0: [share(0)], 2: [share(2)]}
    last.close()


@pytest.mark.parametrize("left", [0, 5, len(MAGIC), len(MAGIC) + 3])
def test_one_that_was_cut_off_at_its_beginning_is_a_new_one(journal: Journal, left: int) -> None:
    with journal.path.open("r+b") as file:
        file.truncate(left)
    again = reopened(journal)
    assert again.header is None
    again.close()
    assert not again.path.exists()


def test_another_file_of_that_name_is_left_alone(path: Path) -> None:
    path.write_text("Dear diary")
    with pytest.raises(ConfigurationError, match="is no journal of genpool"):
        Journal(path)
    assert path.read_text() == "Dear diary"


def test_it_stays_small(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SMALL_BYTES", 10_000)
    journal = Journal(path)
    journal.begin({"run": "7"}, Standing())
    for number in range(500):
        journal.append(share(number, b"x" * 100))
        journal.append(share(number + 3, b"ahead"))
        journal.append(block(number + 1))
        if number % 10 == 9:
            journal.sync(standing(number + 1))
            assert path.stat().st_size < 20_000
    # What is owed is there still, and it is the file of that name that is written to.
    journal.append(share(600))
    again = reopened(journal)
    assert again.header == {"run": "7"}
    assert again.found.standing == standing(500)
    assert sorted(again.found.shares) == [500, 501, 502, 600]
    again.close()


def test_it_is_locked_after_a_rewriting_too(journal: Journal) -> None:
    journal.begin({"run": "8"}, Standing())
    with pytest.raises(ConfigurationError, match=r"another run has the journal .*: wait for its end"):
        Journal(journal.path)


def _try(path: str, found: multiprocessing.SimpleQueue[str]) -> None:
    try:
        Journal(Path(path))
        found.put("opened")
    except ConfigurationError as error:
        found.put(str(error))


def test_another_process_cannot_have_it(journal: Journal) -> None:
    context = multiprocessing.get_context("spawn")
    found = context.SimpleQueue()
    process = context.Process(target=_try, args=(str(journal.path), found))
    process.start()
    said = found.get()
    process.join()
    process.close()
    assert "another run has the journal" in said


def test_what_cannot_be_written_is_said_and_nothing_is_torn_by_it(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.append(share(0))

    def torn(descriptor: int, content: bytes) -> None:
        write(descriptor, content[:7])
        raise OSError(28, "No space left on device")

    write = module._write_all
    monkeypatch.setattr(module, "_write_all", torn)
    with pytest.raises(GenpoolError, match="cannot be written: No space left on device"):
        journal.append(share(1))
    monkeypatch.undo()
    journal.append(share(2))
    again = reopened(journal)
    assert again.found.shares == {0: [share(0)], 2: [share(2)]}
    again.close()


def test_what_comes_when_it_is_closed_is_dropped(journal: Journal) -> None:
    journal.append(share(0))
    journal.close()
    journal.append(share(1))
    again = Journal(journal.path)
    assert list(again.found.shares) == [0]
    again.close()
