"""LLMs in worker processes of this process's own: one private broker for all of them, one worker each."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import stat
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, TypeGuard

import cloudpickle

from ..protocol.content import Failure, pack, unpack_failure
from ..protocol.errors import Closed, ConfigurationError, GenpoolError, RemoteError, WorkerLost, known_error
from ..protocol.framed import FAILED, READY
from ..protocol.lifeline import describe_exit
from .child import Child
from .link import Link, leave, link_to
from .row import Row
from .run import Run

log = logging.getLogger("genpool.client")

# The variables of `genpool broker` are meant for another one.
_BROKER = (
    "import os; [os.environ.pop(name) for name in list(os.environ) if name.startswith('GENPOOL_BROKER_')]; "
    "from genpool.cli import genpool; sys.exit(genpool.main(['--log-level', 'error', 'broker', '--bind', {address!r}, "
    "'--settle', '0.5', '--lifeline', '{{descriptor}}'], standalone_mode=False))"
)
_WORKER = "from genpool.worker.local import main; main({descriptor})"

_pickler: Any = cloudpickle  # it has no type hints


class PrivateBroker:
    """A broker on a socket in a folder that only this user can read, while somebody uses it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._child: Child | None = None
        self._folder = ""
        self.address = ""

    def join(self) -> None:
        """One user more; the first one starts it."""
        with self._lock:
            if self._child is None:
                self._folder = tempfile.mkdtemp(prefix="genpool-", dir=_short_folder())
                self.address = f"ipc://{self._folder}/broker"
                code = _BROKER.format(address=self.address)
                self._child = Child("the private broker", code, [], lambda _: None, self._ended)
            self._users += 1

    def leave(self) -> None:
        """One user less; with the last one it ends."""
        with self._lock:
            self._users -= 1
            if self._users or self._child is None:
                return
            child, self._child = self._child, None
            child.stop()
            shutil.rmtree(self._folder, ignore_errors=True)

    def forget(self) -> None:
        """In a forked process: it is the parent's."""
        self.__init__()

    def _ended(self, _: int) -> bool:
        return _is_own_folder(Path(self._folder))


def _is_own_folder(path: Path) -> bool:
    """Make the folder anew if it is gone, as a broker that was told to end removes it; False if it is another's.

    Whoever is faster in making it could listen there in the broker's place.
    """
    with suppress(FileExistsError):
        path.mkdir(0o700)
    found = path.lstat()
    is_own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
    if not is_own:
        log.error("the private broker cannot start again: %s is not this process's own folder any more", path)
    return is_own


_broker = PrivateBroker()


def _short_folder() -> str:
    """Where sockets' paths stay within the 107 bytes that they may have, and have no comma, as several brokers do."""
    usual = (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir())
    short = [one for one in usual if one and len(os.fsencode(one)) < 70 and "," not in one]
    fitting = (one for one in short if os.access(one, os.W_OK | os.X_OK))
    return next(fitting, "/tmp")


class LocalWorker:
    """The worker process of one local ``ProcessLLM``, from its first start to ``stop``."""

    def __init__(self, task: Any, load_llm_fn: Callable[[Any], Any]) -> None:
        self.name = f"local-{os.urandom(4).hex()}"
        self._task, self._load = task, load_llm_fn
        self._stopped = False
        self.forget()
        _workers.add(self)

    def forget(self) -> None:
        """Begin anew, as a forked process must: what was started is the parent's."""
        self._lock = threading.RLock()
        self._child: Child | None = None
        self._link: Link | None = None
        self._loaded = False
        self.failure: GenpoolError | None = None

    @property
    def link(self) -> Link | None:
        """The link to the private broker; None before the first start."""
        return self._link

    def start(self) -> Link:
        """Start the process, unless it runs. A loader that failed before is tried again.

        Raises:
            Closed: after ``stop``.
            ConfigurationError: when the task or the loader holds something that cannot be sent to another process.
        """
        with self._lock:
            if self._stopped:
                raise Closed("this LLM was torn down: make a new one to generate")
            if self._child is None or self._link is None:
                self._link = self._start(_pickled((self._task, self._load)))
            return self._link

    def _start(self, pickled: bytes) -> Link:
        link = self._link
        if link is None:
            _broker.join()
            link = link_to(_broker.address)
        self.failure, self._loaded = None, False
        head = pack({"llm": self.name, "broker": _broker.address})
        self._child = Child(f"the worker of {self.name}", _WORKER, [head, pickled], self._heard, self._ended)
        return link

    def submit(self, rows: list[Row] | Run) -> None:
        """Have rows run; under the lock, so that a loader's failure ends either these rows or none of them."""
        with self._lock:
            self.start().submit(rows)

    def ask_to_stop(self) -> None:
        """Have the process end, without waiting for it."""
        with self._lock:
            if self._child is not None:
                self._child.ask_to_stop()

    def stop(self, error: GenpoolError) -> None:
        """End the process for good, and its rows with ``error``."""
        with self._lock:
            self._stopped = True
            child, self._child = self._child, None
            link, self._link = self._link, None
        if link is not None:
            link.fail(self.name, error)
        if child is not None:
            child.stop()
        if link is not None:
            leave(link)
            _broker.leave()

    # On the supervisor's thread.

    def _heard(self, content: bytes) -> None:
        with self._lock:
            child = self._child
            if child is None:
                return  # stopped meanwhile
            if content == READY:
                self._loaded = True
                child.came_up()
                return
            self.failure = self._remote_error(unpack_failure(content.removeprefix(FAILED)))
            # Threads that the loader has started could hold up the process's end, and its rows, for ever.
            child.kill()

    def _remote_error(self, failure: Failure) -> RemoteError:
        return RemoteError(
            failure.type,
            failure.message,
            kind=known_error(failure.builtin),
            traceback=failure.traceback,
            llm=self.name,
            worker=failure.worker,
            host=failure.host,
        )

    def _ended(self, code: int) -> bool:
        """Whether to start it again: after a crash, yes; after it could not load, only when it is asked for again."""
        with self._lock:
            if self.failure is None and self._loaded:
                self._loaded = False
                return True
            if self.failure is None:
                text = f"the worker process ended ({describe_exit(code)}) while it loaded the LLM"
                self.failure = RemoteError("WorkerLost", text, kind=WorkerLost, llm=self.name)
            self._child = None
            if self._link is not None:
                self._link.fail(self.name, self.failure)
            return False


_workers: weakref.WeakSet[LocalWorker] = weakref.WeakSet()


def _begin_anew() -> None:
    """In a forked process."""
    _broker.forget()
    for worker in list(_workers):
        worker.forget()


os.register_at_fork(after_in_child=_begin_anew)


@atexit.register
def _stop_all() -> None:
    """Workers first, then the links and the broker: nobody is left to miss another."""
    workers = list(_workers)
    for worker in workers:
        worker.ask_to_stop()
    for worker in workers:
        worker.stop(Closed("the interpreter ended before this row was finished"))


def _pickled(value: Any) -> bytes:
    """``value`` by cloudpickle, with modules that a new process could not import pickled by value.

    Raises:
        ConfigurationError: when something in it cannot be pickled.
    """
    with _by_value([module for module in list(sys.modules.values()) if _is_unimportable(module)]):
        try:
            return _pickler.dumps(value)
        # Whatever the objects' own pickling raises.
        except Exception as error:
            raise ConfigurationError(
                f"the task or the loader cannot be sent to the worker process: {type(error).__name__}: {error}; "
                "make what cannot be pickled (locks, files, loaded models) inside the loader"
            ) from error


_registering = threading.Lock()


@contextmanager
def _by_value(modules: list[ModuleType]) -> Generator[None]:
    """Have cloudpickle take these modules' content by value. Its registry is the process's, so one at a time."""
    with _registering:
        registered = _pickler.list_registry_pickle_by_value()
        # By name, because one module may stand under two (`os.path`).
        added = {module.__name__: module for module in modules if module.__name__ not in registered}.values()
        for module in added:
            _pickler.register_pickle_by_value(module)
        try:
            yield
        finally:
            for module in added:
                _pickler.unregister_pickle_by_value(module)


def _is_unimportable(module: object) -> TypeGuard[ModuleType]:
    """Whether the module was loaded from a file that its name does not lead to, as test runners and notebooks do."""
    # What stands in `sys.modules` may be anything, and compute its attributes or refuse to.
    known = vars(module) if isinstance(module, ModuleType) else {}
    file, name = known.get("__file__"), known.get("__name__", "")
    if not isinstance(file, str) or not name or name == "__main__" or sys.modules.get(name) is not module:
        return False
    if Path(file).suffix != ".py" or name.partition(".")[0] == "genpool":
        return False
    spec = _find_spec(name)
    if spec is None or not spec.origin:
        return True
    # What is frozen into the interpreter has no location, and is in every interpreter.
    return spec.has_location and Path(spec.origin).resolve() != Path(file).resolve()


def _find_spec(name: str) -> ModuleSpec | None:
    """What a new process would find under ``name``, with the same ``sys.path`` and finders (of editable installs)."""
    spec: ModuleSpec | None = None
    path: Any = None
    parts = name.split(".")
    finders = [finder for finder in sys.meta_path if hasattr(finder, "find_spec")]
    for depth in range(1, len(parts) + 1):
        found = (finder.find_spec(".".join(parts[:depth]), path) for finder in finders)
        spec = next((one for one in found if one is not None), None)
        if spec is None:
            return None
        path = spec.submodule_search_locations
    return spec
