"""Where the sockets are on which processes say how they fare."""

from __future__ import annotations

import os
import tempfile

# A socket's path may have 103 bytes on macOS. The rest is for the folder's own name and the socket's.
_LONGEST_PARENT = 76


def ear_folder() -> tempfile.TemporaryDirectory[str]:
    """A new folder for such sockets, below the temporary folder unless that one's path is too long."""
    usual = tempfile.gettempdir()
    parent = usual if len(os.fsencode(usual)) <= _LONGEST_PARENT else "/tmp"
    return tempfile.TemporaryDirectory(prefix="genpool-up-", dir=parent)
