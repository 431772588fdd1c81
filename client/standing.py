"""How far a run of a dataset is, and what a journal says of it. No files, no clock.

::

    Finished, Finished, Block, Finished, Block, Standing, …  ─▶  recovered()  ─▶  what is done, what is owed
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from .item import Planned
from .reason import counted

NO_ROWS = bytes(16)


@dataclass(frozen=True, slots=True)
class Made:
    """What LLMs have made: outputs, their tokens where they were counted, and their cost where it was told."""

    outputs: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: Made) -> Made:
        return Made(
            self.outputs + other.outputs,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cost + other.cost,
        )


@dataclass(frozen=True, slots=True)
class LostWorker:
    """A worker that the broker lost, as it tells of it; ``ago_s`` counts the seconds that the run has worked since."""

    llm: str
    host: str
    pid: int
    ago_s: float
    why: str
    rows: int


@dataclass(frozen=True, slots=True)
class Standing:
    """What is written by now.

    Attributes:
        rows: how many rows; the next one has this number.
        size: the bytes of the working file.
        chain: a hash of the input's rows up to here.
        line: the number of the last one's line in the input.
        errors_size: the bytes of the file of errors.
        failed: how many rows have failed, and ``reasons`` why: a sentence without its numbers -> rows.
        made: the name of an LLM -> what it made for the rows that are written.
        repeated: shares that took more than one attempt.
        seconds: how long the run worked, over all times that it was started.
        lost: the workers that were lost meanwhile.
    """

    rows: int = 0
    size: int = 0
    chain: bytes = NO_ROWS
    line: int = 0
    errors_size: int = 0
    failed: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict[str, int])
    made: Mapping[str, Made] = field(default_factory=dict[str, Made])
    repeated: int = 0
    seconds: float = 0.0
    lost: Sequence[LostWorker] = field(default_factory=list[LostWorker])

    def after(self, block: Block) -> Standing:
        """When ``block`` is written."""
        reasons, made = self.reasons, self.made
        if block.reason:
            reasons = counted(reasons, block.reason)
        if block.made:
            made = {**made, **{llm: made.get(llm, Made()) + more for llm, more in block.made.items()}}
        return dataclasses.replace(
            self,
            rows=block.rows,
            size=block.size,
            chain=block.chain,
            line=block.line,
            errors_size=block.errors_size,
            failed=self.failed + bool(block.reason),
            reasons=reasons,
            made=made,
        )


@dataclass(frozen=True, slots=True)
class Block:
    """What is about to be written: one row, or several that are copied.

    ``rows`` to ``errors_size`` are as in Standing, when it is written. ``crc`` is of its bytes in the working file.
    ``reason`` says why the row has failed, if it has; ``made`` is as in Standing, for this row alone.
    """

    rows: int
    size: int
    chain: bytes
    line: int
    errors_size: int
    crc: int
    reason: str = ""
    made: Mapping[str, Made] = field(default_factory=dict[str, Made])


@dataclass(frozen=True, slots=True)
class Finished:
    """A share that is finished: of the row ``number``, by the LLM at position ``at`` in the draw ``draw``.

    ``contents`` is a hash of all that the row had: rows that are not written yet may be changed before a run goes on.
    ``plan`` has position, count and draw of each of the row's shares, as they were drawn by then.
    """

    number: int
    contents: bytes
    at: int
    draw: int
    plan: Sequence[tuple[int, int, int]]
    answer: bytes
    attempts: int = 1


Entry = Standing | Block | Finished


@dataclass(slots=True)
class Recovered:
    """What a journal holds: the last Standing, the blocks that came after it, and the shares of rows from there on."""

    standing: Standing = field(default_factory=Standing)
    blocks: list[Block] = field(default_factory=list[Block])
    shares: dict[int, list[Finished]] = field(default_factory=dict[int, list[Finished]])


def recovered(entries: Iterable[Entry], start: Standing) -> Recovered:
    """What the entries of a journal come to, in the order in which they were written."""
    found = Recovered(start)
    for entry in entries:
        match entry:
            case Finished():
                found.shares.setdefault(entry.number, []).append(entry)
            case Block():
                # A run that was cut off before it wrote the row has noted it too.
                while found.blocks and found.blocks[-1].rows >= entry.rows:
                    found.blocks.pop()
                found.blocks.append(entry)
            case Standing():
                found.standing = entry
                found.blocks = [block for block in found.blocks if block.rows > entry.rows]
                for number in [number for number in found.shares if number < entry.rows]:
                    del found.shares[number]
    return found


def trusted(found: Recovered, read: Callable[[int, int], bytes]) -> Standing:
    """The Standing of what is surely in the working file: what its last sync told, and whole blocks after that.

    Args:
        found: what the journal holds.
        read: gives the bytes of the working file from an offset to another, fewer where it ends before.
    """
    standing = found.standing
    for block in found.blocks:
        if zlib.crc32(read(standing.size, block.size)) != block.crc:
            break
        standing = standing.after(block)
    return standing


def planned(shares: Sequence[Finished], contents: bytes) -> list[Planned]:
    """The shares of one row with these contents, as they were drawn last, with the answers that are there."""
    shares = [share for share in shares if share.contents == contents]
    if not shares:
        return []
    answers = {(share.at, share.draw): share.answer for share in shares}
    return [Planned(at, count, draw, answers.get((at, draw))) for at, count, draw in shares[-1].plan]
