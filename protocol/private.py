"""Files that only their owner may read: connection files, and those that hold keys."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from .errors import ConfigurationError

_OTHERS = 0o077


def write_private(path: Path, text: str, what: str) -> None:
    """Write the file in one step, readable by its owner alone, so that nobody ever reads half of it.

    Args:
        path: where; a file that is there is replaced.
        text: what.
        what: what the file is, for people: "the connection file".

    Raises:
        ConfigurationError: when it cannot be written there.
    """
    draft: Path | None = None
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            # Whatever is renamed to the name of a device (/dev/stdout, say) takes its place, for all processes.
            raise ConfigurationError(f"{what} {str(path)!r} cannot be written: what is there is no file")
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        draft = Path(name)
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # else the name may be there before the text, and the power go between
        draft.replace(path)
    except OSError as error:
        if draft is not None:
            draft.unlink(missing_ok=True)
        raise ConfigurationError(f"{what} {str(path)!r} cannot be written: {error.strerror}") from None


def refuse_shared(path: Path, what: str) -> None:
    """See that nobody but its owner can read a file of ours that holds a secret.

    A file of another user's (a secret that Docker or Kubernetes mounts) is theirs to protect, as OpenSSH sees it.

    Raises:
        ConfigurationError: with the command that mends it.
        OSError: when there is no such file.
    """
    found = path.stat()
    if found.st_uid == os.geteuid() and found.st_mode & _OTHERS:
        raise ConfigurationError(
            f"{what} {str(path)!r} holds a secret, and others can read it (its mode is {found.st_mode & 0o777:04o}): "
            f"run `chmod 600 {path}`"
        )
