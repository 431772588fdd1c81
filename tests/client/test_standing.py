"""What a journal and a working file come to, wherever they were cut off: without files."""

from __future__ import annotations

import dataclasses
import io
import random
import zlib
from collections.abc import Iterator

import pytest

from genpool.client.entry import bodies, frame, packed, unpacked
from genpool.client.item import Planned
from genpool.client.standing import Block, Entry, Finished, Made, Standing, planned, recovered, trusted
from genpool.protocol.content import pack
from genpool.protocol.errors import DecodeError

SHARES = 2
CONTENTS = b"contents"
LINES = [f"row {number} {'x' * (number % 5)}\n".encode() for number in range(30)]


def entries_of(journal: bytes) -> list[Entry]:
    return [unpacked(body) for body, _ in bodies(io.BytesIO(journal))]


def block(standing: Standing, number: int) -> Block:
    line = LINES[number]
    reason, made = ("bad", {}) if number % 7 == 0 else ("", {"a": Made(1, 2, 3, 0.5)})
    size = standing.size + len(line)
    return Block(number + 1, size, bytes([number]) * 16, number + 1, 0, zlib.crc32(line), reason, made)


def share(number: int, at: int, *, draw: int = 0) -> Finished:
    return Finished(number, CONTENTS, at, draw, [(at, 1, draw) for at in range(SHARES)], f"{number}/{at}".encode())


class Disk:
    """What a run writes, in the order in which it does; a cut leaves the first ``left`` bytes of all."""

    def __init__(self, left: int, journal: bytes = b"", file: bytes = b"") -> None:
        self.left, self.journal, self.file = left, journal, file

    def note(self, entry: Entry) -> None:
        self.journal += self._kept(frame(packed(entry)))

    def write(self, line: bytes) -> None:
        self.file += self._kept(line)

    def _kept(self, written: bytes) -> bytes:
        kept = written[: self.left]
        self.left -= len(kept)
        if len(kept) < len(written):
            raise EOFError
        return kept


def run(disk: Disk, standing: Standing, shares: dict[int, list[Finished]], chance: random.Random) -> None:
    """Write all rows from ``standing`` on; shares are finished a little ahead, and a sync comes now and then."""
    owed = [(number, at) for number in range(standing.rows, len(LINES)) for at in range(SHARES)]
    known = {(one.number, one.at) for ones in shares.values() for one in ones}
    owed = [one for one in owed if one not in known]
    for number in range(standing.rows, len(LINES)):
        while owed and (owed[0][0] <= number or chance.random() < 0.5):
            ahead = chance.randrange(min(4, len(owed))) if owed[0][0] > number else 0
            disk.note(share(*owed.pop(ahead)))
        entry = block(standing, number)
        disk.note(entry)
        disk.write(LINES[number])
        standing = standing.after(entry)
        if chance.random() < 0.2:
            disk.note(standing)


@pytest.mark.parametrize("seed", range(100))
def test_wherever_it_is_cut_off_it_goes_on_to_the_same_end(seed: int) -> None:
    chance = random.Random(seed)
    disk = Disk(0)
    finished: set[tuple[int, int]] = set()
    for left in [*(chance.randrange(1500) for _ in range(6)), 10**9]:
        entries = entries_of(disk.journal)
        found = recovered(entries, Standing())
        standing = trusted(found, lambda start, end, file=disk.file: file[start:end])
        assert disk.file[: standing.size] == b"".join(LINES[: standing.rows])
        assert len(disk.file) - standing.size < max(map(len, LINES)), "only a torn line is given up"
        assert standing.failed == len([number for number in range(standing.rows) if number % 7 == 0])
        assert standing.made.get("a", Made()).outputs == standing.rows - standing.failed
        # What was finished, and not written, is known still.
        shares = {number: ones for number, ones in found.shares.items() if number >= standing.rows}
        held = {(one.number, one.at) for ones in shares.values() for one in ones}
        assert {one for one in finished if one[0] >= standing.rows} <= held
        disk = Disk(left, _whole(disk.journal), disk.file[: standing.size])
        try:
            run(disk, standing, shares, chance)
        except EOFError:
            finished = {(one.number, one.at) for one in entries_of(disk.journal) if isinstance(one, Finished)}
    assert disk.file == b"".join(LINES)


def _whole(journal: bytes) -> bytes:
    """A journal without its torn end."""
    return journal[: max([0, *(end for _, end in bodies(io.BytesIO(journal)))])]


def _standings() -> Iterator[Entry]:
    standing = Standing()
    for number in range(8):
        entry = block(standing, number)
        standing = standing.after(entry)
        yield from (share(number, 0), entry)
    yield dataclasses.replace(standing, repeated=2, seconds=1.5)


@pytest.mark.parametrize("entry", list(_standings()), ids=repr)
def test_an_entry_is_read_as_it_was_written(entry: Entry) -> None:
    assert unpacked(packed(entry)) == entry


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", pack(7), pack([9]), pack([1, 2]), pack([2, {}]), pack([0, 1, 2, 3, 4, 5])]
)
def test_a_body_that_is_no_entry_is_refused(body: bytes) -> None:
    with pytest.raises(DecodeError):
        unpacked(body)


def test_a_flipped_bit_ends_the_journal_there() -> None:
    frames = [frame(packed(share(number, 0))) for number in range(3)]
    torn = bytearray(b"".join(frames))
    torn[len(frames[0]) + 12] ^= 1
    assert entries_of(bytes(torn)) == [share(0, 0)]


def test_a_line_that_is_not_what_was_noted_is_not_trusted() -> None:
    entries: list[Entry] = []
    standing = Standing()
    for number in range(3):
        entries.append(block(standing, number))
        standing = standing.after(block(standing, number))
    # As after a loss of power: the name and the size are there, and the contents are not.
    file = LINES[0] + bytes(len(LINES[1])) + LINES[2]
    assert trusted(recovered(entries, Standing()), lambda start, end: file[start:end]).rows == 1


def test_what_was_synced_is_trusted_as_it_is() -> None:
    standing = Standing().after(block(Standing(), 0))
    found = recovered([block(Standing(), 0), standing, block(standing, 1)], Standing())
    assert (found.standing, [one.rows for one in found.blocks]) == (standing, [2])


def test_shares_of_rows_that_are_synced_are_forgotten() -> None:
    standing = Standing().after(block(Standing(), 0))
    found = recovered([share(0, 0), share(1, 0), share(0, 1), standing, share(2, 1)], Standing())
    assert found.shares == {1: [share(1, 0)], 2: [share(2, 1)]}


def test_the_plan_of_a_row_is_the_last_one_with_the_answers_that_are_there() -> None:
    first = Finished(4, CONTENTS, 0, 0, [(0, 2, 0), (1, 1, 0)], b"first")
    # The second LLM was lost, and its share drawn anew over the first.
    redrawn = Finished(4, CONTENTS, 0, 1, [(0, 2, 0), (0, 1, 1)], b"again")
    assert planned([first], CONTENTS) == [Planned(0, 2, 0, b"first"), Planned(1, 1, 0, None)]
    assert planned([first, redrawn], CONTENTS) == [Planned(0, 2, 0, b"first"), Planned(0, 1, 1, b"again")]
    assert planned([], CONTENTS) == []


def test_what_was_finished_of_a_row_that_was_another_then_is_of_no_use() -> None:
    former = Finished(4, b"former", 0, 0, [(0, 1, 0), (1, 1, 0)], b"former")
    now = Finished(4, CONTENTS, 1, 0, [(0, 1, 0), (1, 1, 0)], b"now")
    assert planned([former], CONTENTS) == []
    assert planned([former, now], CONTENTS) == [Planned(0, 1, 0, None), Planned(1, 1, 0, b"now")]
