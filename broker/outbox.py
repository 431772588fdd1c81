"""What ZeroMQ would not take of the messages for one peer, until it takes more."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from ..protocol.messages import Dismissed, Drain, Fleet, Message, Reset, Status, Welcome

# A peer can have these sent as often as it likes and need not read them: of some the last one counts, and of the
# others the first, which must stay before what was sent behind it.
_LAST_COUNTS = (Fleet, Status, Dismissed)
_FIRST_COUNTS = (Reset, Welcome, Drain)

# So many are tried first. A peer that reads nothing costs as much at each tick, and one that reads on waits for more.
_FIRST_TRIED = 64


class Outbox:
    """Messages in order; of some kinds only one is kept. No step but ``take_all`` looks at all of them."""

    def __init__(self) -> None:
        # By kind where only one is kept, else by an object of its own.
        self._back: OrderedDict[object, Message] = OrderedDict()  # was tried and came back: before the rest
        self._rest: OrderedDict[object, Message] = OrderedDict()
        self._most = _FIRST_TRIED

    def __len__(self) -> int:
        return len(self._back) + len(self._rest)

    def __iter__(self) -> Iterator[Message]:
        yield from self._back.values()
        yield from self._rest.values()

    def put_off(self, message: Message) -> None:
        """Keep ``message`` behind all that waits."""
        kind = type(message)
        if kind in _LAST_COUNTS:
            self._back.pop(kind, None)
            self._rest.pop(kind, None)
        elif kind in _FIRST_COUNTS and (kind in self._back or kind in self._rest):
            return
        self._rest[_key(kind)] = message

    def put_back(self, message: Message) -> None:
        """Keep ``message``, which was tried, before what was not and behind what came back before it."""
        kind = type(message)
        if kind in _LAST_COUNTS:
            if kind in self._rest:
                return
            self._back.pop(kind, None)
        elif kind in _FIRST_COUNTS:
            if kind in self._back:
                return
            self._rest.pop(kind, None)
        self._back[_key(kind)] = message

    def take(self) -> list[Message]:
        """What is to be tried now, from the first on: twice as many as the last time, unless some came back."""
        self._most = _FIRST_TRIED if self._back else 2 * self._most
        while self._back:
            key, message = self._back.popitem()
            self._rest[key] = message
            self._rest.move_to_end(key, last=False)
        return [self._rest.popitem(last=False)[1] for _ in range(min(self._most, len(self._rest)))]

    def take_all(self) -> list[Message]:
        """All that waits, in order; nothing does then."""
        waiting = list(self)
        self._back.clear()
        self._rest.clear()
        return waiting


def _key(kind: type[Message]) -> object:
    return kind if kind in _LAST_COUNTS or kind in _FIRST_COUNTS else object()
