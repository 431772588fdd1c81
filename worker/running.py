"""An engine call that runs."""

from __future__ import annotations

from dataclasses import dataclass

from .desk import Desk


@dataclass(slots=True)
class RunningCall:
    """A running engine call for one broker, of suspects or of other rows.

    ``since`` is when it began or last answered a row, ``stopped`` when it was told to end. ``row_ids`` are of the rows
    that the engine has not answered, wanted or not, by execution.
    """

    number: int
    desk: Desk
    row_ids: dict[int, bytes]
    since: float
    are_suspects: bool = False
    stopped: float | None = None
    has_moved: bool = False  # it answered a row after it was told to end

    def unanswered(self) -> list[int]:
        """The executions that are still wanted and have no result."""
        desk = self.desk
        return [number for number in self.row_ids if number in desk.held and number not in desk.finished]
