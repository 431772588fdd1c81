"""A call's rows: what each carries, what it shares with others, and its id."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..protocol.content import unpack
from ..protocol.limits import ROW_ID_BYTES
from ..protocol.messages import RowKind
from .maker import Maker, Voice
from .option import packed_options, with_wishes
from .record import Record
from .row import Owner, Row, RowSpec

if TYPE_CHECKING:
    from .call import CallSettings

# More sets of options than this, one for each row, say, are not worth remembering.
_MOST_SPECS = 1024

# So many ids of rows are drawn ahead in a long call.
_MOST_IDS_AT_ONCE = 256


class RowMaker:
    """Makes the rows of one call, any thread of it.

    ``tasks`` are those that make prompts here, by the position of their LLM; ``trace`` is as in SubmitRun. ``since`` is
    since when all rows of the call wait, None where each waits from when it was sent.
    """

    def __init__(
        self, voices: Sequence[Voice], tasks: Sequence[Any | None], settings: CallSettings, trace: str
    ) -> None:
        self.since: float | None = None
        self._voices = voices
        self._tasks = tasks
        self._settings = settings
        self._trace = trace
        self._makers: dict[int, Maker] = {}
        self._ids: list[bytes] = []
        self._ids_at_once = 1
        # Rows of the same spec share one object, by which the client's machine groups them.
        self._specs: dict[tuple[int, int, bytes, bool], RowSpec] = {}

    def row(self, record: Record, place: int, owner: Owner, payload: bytes | None = None) -> Row | None:
        """The row for the share at ``place``; ``payload`` is what it carries, where that is known.

        None when the input lacks an argument of the task.

        Raises:
            RowError: when the input cannot be carried, or the task cannot make a prompt of it.
            ConfigurationError: when its options cannot be used.
        """
        share, is_plain = record.shares[place], record.item is None
        if payload is None and place:
            payload = self._payload_before(record, place)
        if payload is None:
            seed = None if is_plain and self._settings.seed is None else self._seed_of(record, share.draw)
            payload = self._maker(share.at).payload(record, seed)
        if payload is None:
            return None
        is_again = share.row is not None or share.draw > 0
        options = None if is_plain else self._options(record, share.at)
        spec = self.spec(share.at, share.count, options, is_again=is_again)
        row = share.row = Row(self.new_id(), spec, payload, owner, record.index, place)
        return row

    def payloads(self, inputs: Sequence[Any], most_bytes: int) -> Sequence[bytes] | None:
        """What the rows for these inputs carry, where all LLMs' carry the same: as in Maker."""
        makers = [self._maker(at) for at in range(len(self._voices))]
        is_plain = self._settings.seed is None and all(map(makers[0].packs_as, makers))
        return makers[0].payloads(inputs, most_bytes) if is_plain else None

    def spec(self, at: int, count: int, options: bytes | None = None, *, is_again: bool = False) -> RowSpec:
        """What the rows for ``count`` generations by the LLM at this position have in common.

        ``options`` are theirs, where they have others than the call. Those of a lost LLM's share are sent
        ``is_again``: they wait from then on. Raises ConfigurationError as ``with_wishes``.
        """
        settings = self._settings
        options = settings.options if options is None else options
        spec = self._specs.get((at, count, options, is_again))
        if spec is None:
            if len(self._specs) >= _MOST_SPECS:
                self._specs.clear()
            voice, task = self._voices[at], self._tasks[at]
            spec = RowSpec(
                voice.llm_name,
                RowKind.INPUT if task is None else RowKind.PROMPT,
                count,
                with_wishes(options, task),
                settings.deadline,
                voice.wait_s,
                None if settings.if_lost == "wait" else settings.lost_after_s,
                frozenset(unpack(options)) if options else frozenset(),
                settings.hedge,
                self._trace,
                None if is_again else self.since,
            )
            self._specs[at, count, options, is_again] = spec
        return spec

    def new_id(self) -> bytes:
        """A row's id. Many are drawn at once, which costs little more than one; ever more of them, up to a point."""
        try:
            return self._ids.pop()
        except IndexError:  # rather than a look before: another thread may take the last one
            count = self._ids_at_once
            self._ids_at_once = min(2 * count, _MOST_IDS_AT_ONCE)
            new_id, *others = struct.unpack(f"{ROW_ID_BYTES}s" * count, os.urandom(ROW_ID_BYTES * count))
            self._ids += others
            return new_id

    def _maker(self, at: int) -> Maker:
        """The maker for the LLM at this position, as it is now."""
        maker, info = self._makers.get(at), self._voices[at].info
        if maker is None or maker.info is not info:
            maker = self._makers[at] = Maker(self._voices[at], self._tasks[at], info, self._settings.deadline)
        return maker

    def _payload_before(self, record: Record, place: int) -> bytes | None:
        """The bytes of the input's row before the one at ``place``, where that carries the same."""
        share, before = record.shares[place], record.shares[place - 1]
        if before.row is None or before.draw != share.draw:
            return None
        return before.row.payload if self._maker(share.at).packs_as(self._maker(before.at)) else None

    def _options(self, record: Record, at: int) -> bytes:
        """The options that the input's rows are sent with. Raises ConfigurationError as ``packed_options``."""
        packed = self._settings.options
        if record.item is None or not record.item.options:
            return packed
        return packed_options([self._voices[at]], {**(unpack(packed) if packed else {}), **record.item.options})

    def _seed_of(self, record: Record, draw: int) -> int | None:
        seed = self._settings.seed
        if record.item is not None and record.item.seed is not None:
            seed = record.item.seed
            if not draw:
                return seed
        if seed is None:
            return None
        # An LLM that makes a lost one's share beside its own must not say the same again.
        again = f"/{draw}" if draw else ""
        # A text seeds the same in every release of Python, and inputs that are alike still differ.
        return random.Random(f"{seed}/{record.number}{again}").getrandbits(31)
