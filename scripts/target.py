"""Files that a script writes when it is done, perhaps after hours."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import click


class Target(click.Path):
    """The file that an option names. What would keep it from being written is found now, and not when all is done.

    ``endings``, if there are any, are those that its name may have.
    """

    def __init__(self, *endings: str) -> None:
        super().__init__(dir_okay=False, writable=True, path_type=Path)
        self._endings = endings

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = cast(Path, super().convert(value, param, ctx))
        if self._endings and path.suffix.lower() not in self._endings:
            *others, last = self._endings
            self.fail(f"{str(path)!r} ends in none of {', '.join(others)} and {last}.", param, ctx)
        if not path.parent.is_dir():
            self.fail(f"there is no folder {str(path.parent)!r}.", param, ctx)
        if not path.exists() and not os.access(path.parent, os.W_OK):
            self.fail(f"nothing can be written into the folder {str(path.parent)!r}.", param, ctx)
        return path


@contextmanager
def writing(path: Path) -> Generator[None]:
    """For what writes to ``path``.

    Raises:
        click.ClickException: when the system does not let it.
    """
    try:
        yield
    except OSError as error:
        raise click.ClickException(f"{str(path)!r} cannot be written: {error.strerror}") from error


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as JSON. Raises as ``writing`` does."""
    with writing(path):
        path.write_text(json.dumps(content, indent=2) + "\n")
