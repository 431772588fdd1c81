"""Where rows are written: a line at a time, never by half; or a whole file in the place of another, at once."""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from io import BufferedWriter
from pathlib import Path
from types import TracebackType

from ...protocol.errors import ConfigurationError, GenpoolError
from .base import STANDARD_STREAM, Format, Source, check_path


def check_target(path: str, source: Source, format: Format) -> None:
    """Look, before any work, whether rows can be written to ``path`` in ``format``; ``-`` is standard output.

    Raises:
        ConfigurationError: says why not.
    """
    format.check_installed()
    if path == STANDARD_STREAM:
        found = _standard_output(format)
    else:
        _check_path(Path(path), format)
        found = _stat(path)
    if found is not None and not stat.S_ISCHR(found.st_mode) and source.is_at(found):
        raise ConfigurationError(f"{source.name} is the input and the output: write to another file")


def check_input(source: Source, others: Sequence[Path]) -> None:
    """Look, before any work, whether the input is none of the files that the run writes. Raises ConfigurationError."""
    if any(found is not None and source.is_at(found) for found in map(_stat, others)):
        raise ConfigurationError(f"{source.name} is the input and one that the run writes: name another output")


def check_errors(path: str, source: Source, others: Sequence[Path]) -> None:
    """Look, before any work, whether failed rows can be written to ``path`` too, beside the ``others`` of the run.

    Without others, the run's output is standard output.

    Raises:
        ConfigurationError: says why not.
    """
    if not path:
        raise ConfigurationError("the name of the file of errors is empty: name a file")
    check_path(path)
    found = _stat(path)
    if found is not None and source.is_at(found):
        raise ConfigurationError(f"{source.name} is the input and the file of errors: name another file of errors")
    outputs = [_stat(other) for other in others or (1,)]
    is_output = found is not None and any(os.path.samestat(found, one) for one in outputs if one is not None)
    if is_output or Path(path).resolve() in [other.resolve() for other in others]:
        raise ConfigurationError(f"{path} is the file of errors and one that the run writes besides: name another one")
    problem = _problem(Path(path))
    if not problem and found is not None and not stat.S_ISREG(found.st_mode):
        problem = "it is no regular file"
    if problem:
        raise ConfigurationError(f"the file of errors {path} cannot be written: {problem}")


def _standard_output(format: Format) -> os.stat_result | None:
    # Closed, its number may be another file's by now: the input's.
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison]
        raise ConfigurationError("the output cannot be written: standard output is closed")
    if not format.is_lines:
        raise ConfigurationError(f"{format.name} cannot be written to standard output: name a file")
    return _stat(1)


def _check_path(path: Path, format: Format) -> None:
    problem = _problem(path, is_lines=format.is_lines, is_folder=format.is_folder)
    if problem:
        raise ConfigurationError(f"the output {path} cannot be written: {problem}")


def _problem(path: Path, *, is_lines: bool = True, is_folder: bool = False) -> str:
    """Why rows cannot be written to ``path``, line by line or as a whole, if they cannot."""
    folder, found = path.parent, _stat(path)
    if not folder.is_dir():
        return f"there is no directory {folder}"
    if found is not None and is_folder:
        return _folder_problem(path)
    if found is not None and stat.S_ISDIR(found.st_mode):
        return "it is a directory"
    if found is not None and not is_lines and not stat.S_ISREG(found.st_mode):
        return "it is no regular file, and this format is written as a whole file in its place"
    # What is replaced is not written to; its folder is.
    if not os.access(path if found and is_lines else folder, os.W_OK):
        return "permission denied"
    return ""


def _folder_problem(path: Path) -> str:
    if not path.is_dir():
        return "a dataset is a folder, and this is a file"
    if any(path.iterdir()) and not (path / "state.json").is_file():
        return "it is a folder that holds something else than one dataset"
    return "" if os.access(path.parent, os.W_OK) else "permission denied"


def _stat(file: str | int | Path) -> os.stat_result | None:
    try:
        return os.fstat(file) if isinstance(file, int) else Path(file).stat()
    except OSError:
        return None


class Target:
    """Where rows are written, as a context manager. A row is in the file, whole, when ``write`` returns.

    Raises:
        ConfigurationError: when it cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self.name = "standard output" if path == STANDARD_STREAM else path
        self.path = None if path == STANDARD_STREAM else path
        try:
            # Unbuffered: what is killed leaves all lines that it said it had written.
            self._file = open(1 if self.path is None else path, "wb", buffering=0, closefd=self.path is not None)  # noqa: SIM115
        except OSError as error:
            raise ConfigurationError(f"the output {self.name} cannot be written: {error.strerror}") from None

    def __enter__(self) -> Target:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: TracebackType | BaseException | None) -> None:
        try:
            self._file.close()
        except OSError as error:
            if kind is None:
                raise cannot_write(self.name, error) from error

    def write(self, line: bytes) -> None:
        """Write one line.

        Raises:
            BrokenPipeError: when nobody reads any more.
            GenpoolError: when it cannot be written (a full disk, say); no half line is left in a file.
        """
        left = memoryview(line)
        try:
            while left:
                left = left[self._file.write(left) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            self._take_back(len(line) - len(left))
            raise cannot_write(self.name, error) from error

    def _take_back(self, size: int) -> None:
        try:
            if size and stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
                self._file.truncate(self._file.seek(-size, io.SEEK_CUR))
        except OSError:
            pass  # the disk is beyond that; the error that follows tells


def cannot_write(name: str | Path, error: OSError) -> GenpoolError:
    """The sentence for a write that has failed."""
    return GenpoolError(f"{name} cannot be written: {error.strerror or errno.errorcode.get(error.errno or 0, error)}")


@contextmanager
def replacing(target: Path) -> Generator[BufferedWriter]:
    """A file to write that takes the place of ``target``, at once and on the disk, when the block ends well.

    What was at ``target`` stays whole until then, and for good when the block raises.

    Raises:
        GenpoolError: when it cannot be written (a full disk, say).
    """
    # Through a link, what it points to is replaced, as by any other program that writes there.
    target = Path(os.path.realpath(target))
    beside = target.with_name(f".{target.name}.tmp")
    try:
        with beside.open("wb") as file:
            keep_mode(target, beside)
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        with suppress(OSError):  # what could not be opened, as it is a folder, is not removed either
            beside.unlink()


def keep_mode(target: Path, beside: Path) -> None:
    """Let nobody read or write the file that will take the place of ``target`` who may not do so there."""
    found = _stat(target)
    if found is not None and target != beside:
        with suppress(OSError):  # some file systems have no modes
            beside.chmod(stat.S_IMODE(found.st_mode) | stat.S_IRUSR | stat.S_IWUSR)  # it may have to be gone on with


def sync_folder(folder: Path) -> None:
    """Have the disk keep the names in ``folder``: a rename is not safe before that."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
