"""The broker's socket shell: one ROUTER, one thread, one loop that drains, decides and sends."""

from __future__ import annotations

import ctypes
import errno
import gc
import logging
import os
import resource
import select
import signal
import socket
import stat
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import zmq

from ..protocol.address import Connection, is_loopback, read_connection_file, write_connection_file
from ..protocol.codec import MAX_HEAD_BYTES, decode, encode
from ..protocol.dealer import BURST_BYTES, heartbeat
from ..protocol.errors import ConfigurationError, DecodeError
from ..protocol.frames import Frame
from ..protocol.keys import read_pair
from ..protocol.memory import keep_freed_memory
from ..protocol.messages import Hello, Message, Refuse
from ..protocol.monitor import next_event
from ..protocol.multipart import is_readable, receive, send
from ..protocol.notify import Notifier, Phase, notifier
from ..protocol.printable import plural, printable
from ..protocol.trace import trace
from .access import OPEN, Access
from .allowed import AccessFile
from .board import Board
from .connections import Connections
from .doorman import DOMAIN, Doorman
from .keyring import ALLOWED, BROKER_KEY, usual_peer_keys
from .machine import Broker
from .naming import name_of
from .outgoing import Drop, Effect, Log, Send, fields_of
from .settings import BrokerSettings
from .visitor import Visitors

log = logging.getLogger("genpool.broker")

# How many messages are read before rows are handed out: larger batches more, smaller answers sooner.
_BURST = 512

# The longest message has some hundred frames. What is beyond is skipped, so many at a time, for the loop must turn: of
# five million empty ones, 10 MB, to read a message took 8 s.
_MOST_FRAMES = 4096
_SKIPPED_FRAMES = 20_000

# Messages (not bytes) that ZeroMQ keeps for one peer; what is over waits in the peer's outbox in the machine.
_SEND_MARK = 64

# Each peer takes two descriptors: libzmq's, and the one in connections.py. At the limit libzmq would neither accept a
# connection nor turn it away, and try again and again at full load.
_DESCRIPTORS_PER_PEER = 2

# Of the limit, at least so many and such a share are no peer's: the broker's own (about 15), and those of connections
# that come and go, to who is turned away or in the place of one that was not seen to break. More would waste places.
_LEAST_RESERVE = 64
_RESERVED_SHARE = 1 / 16

# Of these, so many are the broker's own. With fewer than so many left, connections that are no peer's are hurried.
_OWN_DESCRIPTORS = 16
_SPARE_DESCRIPTORS = 16

# How often the log says that connections were ended.
_ENDED_EVERY_S = 60.0

# Where the system sets no limit, or more: what Linux gives a process at most.
_MOST_DESCRIPTORS = 1 << 20

# Rows are in no cycle when they have gone, so there is little to find; and a pass over a million of them would stop the
# broker for half a second. Smaller numbers look more often.
_GC_THRESHOLDS = (10_000, 10, 1_000)

# How the routing ids begin that libzmq gives by itself. Who sets one that begins so has to guess: see _hide_ids.
_AUTOMATIC = b"\0"

# How often it is looked whether the list of allowed keys has changed.
_LOOK_S = 1.0

# The loop turns many times a second: when it has not for so long, the process was stopped, or its host was.
_STOOD_STILL_S = 1.0


@dataclass(frozen=True, slots=True)
class ShellSettings:
    """Where the broker listens, and what it tells of that.

    ``keys`` is the folder with the broker's keys and the list of those that are allowed; see keys.py. ``lifeline`` is
    the read end of a pipe: when its other end closes, the broker's owner is gone and it ends. ``http`` is where metrics
    and health are served, as ``tcp://HOST:PORT``.
    """

    bind: str
    connection_file: Path | None = None
    keys: Path | None = None
    lifeline: int | None = None
    http: str | None = None
    tick_s: float = 0.05


def run(shell: ShellSettings, settings: BrokerSettings) -> int:
    """Serve until a signal says stop. Returns the exit code.

    Raises:
        ConfigurationError: when the address cannot be bound, or the limit on open files leaves no room for peers.
    """
    # From now on it is none of a child's.
    manager = notifier()
    descriptors = _descriptors()
    settings = replace(settings, max_peers=_room(descriptors))
    gc.set_threshold(*_GC_THRESHOLDS)
    keep_freed_memory()
    _hide_ids()
    context = zmq.Context[zmq.Socket[bytes]]()
    context.set(zmq.MAX_SOCKETS, min(context.get(zmq.SOCKET_LIMIT), 65_536))
    router = context.socket(zmq.ROUTER)
    door = _Door(context, router, shell.keys) if shell.keys is not None else None
    try:
        loop = _Loop(router, shell, settings, door, descriptors, manager)
        # From before anybody can know that it is there.
        with loop.ended_by_signals():
            address = _bind(router, shell.bind, settings)
            with _own_socket(shell), _http(shell, loop.board), _connection_file(shell, address):
                log.info("listening on %s, room for %d clients and workers", address, settings.max_peers)
                loop.run()
        if loop.is_orphaned:
            # Nobody is left to say goodbye to, and nothing may keep this process: not even libzmq's own farewell.
            os._exit(0)
    finally:
        router.close(linger=500)
        if door is not None:
            door.close()
        if manager is not None:
            manager.close()
        context.term()
    return 0


def _hide_ids() -> None:
    """Have libzmq begin its routing ids where nobody can guess: it takes that from C's ``rand``, and seeds it nowhere.

    Who knows the next id can set it first, and libzmq ends the process; who knows a peer's gets its messages when its
    connection breaks.
    """
    ctypes.CDLL(None).srand(ctypes.c_uint(int.from_bytes(os.urandom(4))))


def _descriptors() -> int:
    """The limit on open files, raised as far as it goes: a shell often sets 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # some systems tell a limit that they do not grant
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return _MOST_DESCRIPTORS if soft == resource.RLIM_INFINITY else min(soft, _MOST_DESCRIPTORS)


def _room(limit: int) -> int:
    """For how many peers this limit on open files is enough."""
    room = (limit - max(_LEAST_RESERVE, int(limit * _RESERVED_SHARE))) // _DESCRIPTORS_PER_PEER
    if room < 1:
        raise ConfigurationError(
            f"the limit on open files is {limit}, which leaves no room for clients and workers: raise it (ulimit -n, "
            "or LimitNOFILE= in a systemd unit)"
        )
    return room


def _bind(router: zmq.Socket[bytes], address: str, settings: BrokerSettings) -> str:
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    router.setsockopt(zmq.SNDHWM, _SEND_MARK)
    router.setsockopt(zmq.IPV6, "[" in address)
    # A frame larger than this drops its sender's connection, so it leaves room for a head beside the body's frames.
    router.setsockopt(zmq.MAXMSGSIZE, max(8 * 1024 * 1024, settings.limits.max_frame_bytes))
    router.setsockopt(zmq.HANDSHAKE_IVL, int(settings.hello_timeout_s * 1000))
    heartbeat(router, settings.heartbeat_timeout_s, is_broker=True)
    if address.startswith("ipc://"):
        _refuse_live_ipc(Path(address.removeprefix("ipc://")), address)
    try:
        router.bind(address)
    except zmq.ZMQError as error:
        why = os.strerror(error.errno or 0)
        if error.errno == errno.EADDRINUSE:
            why = "another process listens there; choose another port with --bind, or stop that process"
        raise ConfigurationError(f"the broker cannot listen on {address}: {why}") from None
    return router.getsockopt_string(zmq.LAST_ENDPOINT)


def _reachable(address: str) -> str:
    """``address`` as another machine may use it: a wildcard becomes this host's name."""
    for wildcard in ("0.0.0.0", "[::]"):
        address = address.replace(f"tcp://{wildcard}:", f"tcp://{socket.gethostname()}:")
    return address


def _refuse_live_ipc(path: Path, address: str) -> None:
    """A second bind to a live ipc address succeeds silently and steals it: look first whether somebody listens."""
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise ConfigurationError(f"the broker cannot listen on {address}: a file that is no socket stands there")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return  # left over from a broker that was killed
        except OSError as error:
            raise ConfigurationError(f"the broker cannot listen on {address}: {error}") from None
    raise ConfigurationError(f"the broker cannot listen on {address}: another process listens there")


@contextmanager
def _connection_file(shell: ShellSettings, address: str) -> Generator[None]:
    """Have the file there as long as this broker serves. Another broker may have written its own there since."""
    path = shell.connection_file
    if path is None:
        yield
        return
    keys = usual_peer_keys(shell.keys) if shell.keys is not None else {}
    write_connection_file(path, Connection(_reachable(address), os.getpid(), keys))
    try:
        yield
    finally:
        with suppress(ConfigurationError, OSError):
            if read_connection_file(path).pid == os.getpid():
                path.unlink()


@contextmanager
def _own_socket(shell: ShellSettings) -> Generator[None]:
    """Remove the file of an ``ipc`` address at the end, and the folder that a private broker's has to itself."""
    try:
        yield
    finally:
        if shell.bind.startswith("ipc://"):
            path = Path(shell.bind.removeprefix("ipc://"))
            path.unlink(missing_ok=True)
            if shell.lifeline is not None:
                with suppress(OSError):  # not empty, or gone already: whoever put something there removes it
                    path.parent.rmdir()


@contextmanager
def _http(shell: ShellSettings, board: Board) -> Generator[None]:
    if shell.http is None:
        yield
        return
    try:
        from .http import serving
        from .pages import pages
        from .sampler import sampling
    except ImportError as error:
        raise ConfigurationError(
            f'--http needs the package prometheus-client: pip install "genpool[metrics]" ({error})'
        ) from None
    with sampling(board) as history, serving(shell.http, pages(board, history)) as url:
        log.info("a web page, metrics and health are on %s", url)
        yield


def is_open_to_others(address: str) -> bool:
    """Whether a broker bound here would be reachable from other machines."""
    return not is_loopback(address)


class _Door:
    """Lets in who has an allowed key, and follows the list of those."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], router: zmq.Socket[bytes], keys: Path) -> None:
        """Raises ConfigurationError where the keys or the list cannot be used."""
        pair = read_pair(keys / BROKER_KEY)
        self._file = AccessFile(keys / ALLOWED)
        self.access = self._file.access
        self._doorman = Doorman(context, self.access)
        self.socket = self._doorman.socket
        self.answer = self._doorman.answer
        self.close = self._doorman.close
        router.curve_server = True
        router.curve_publickey = pair.public.encode()
        router.curve_secretkey = pair.secret.encode()
        router.setsockopt_string(zmq.ZAP_DOMAIN, DOMAIN)

    def changed(self) -> Access | None:
        """The list, if it is another one now."""
        try:
            changed = self._file.changed()
        except ConfigurationError as error:
            log.error("%s; what it said before stays in force", error)
            return None
        if changed is not None:
            log.info("the list of allowed keys has changed: %s", plural(len(changed.permissions), "key"))
            self.access = self._doorman.access = changed
        return changed


class _Loop:
    """Receive a burst, flush the machine, perform its effects; tick in between."""

    def __init__(
        self,
        router: zmq.Socket[bytes],
        shell: ShellSettings,
        settings: BrokerSettings,
        door: _Door | None = None,
        descriptors: int = _MOST_DESCRIPTORS,
        manager: Notifier | None = None,
    ) -> None:
        self._router = router
        self._manager = manager
        self._door = door
        self._descriptors = descriptors
        self._shell = shell
        self._frame_bytes = settings.limits.max_frame_bytes
        self._message_bytes = MAX_HEAD_BYTES + max(settings.limits.max_row_bytes, settings.limits.target_message_bytes)
        access = OPEN if door is None else door.access
        self._machine = Broker(settings, os.urandom(16), time.monotonic(), access)
        self._last_now = time.monotonic()
        self.board = Board()
        self._connections = Connections()
        self._visitors = Visitors(settings.hello_timeout_s)
        self._ended = 0  # connections, since the log has said so last
        self._next_ended = 0.0
        self.is_orphaned = False
        self._stopping = False
        self._must_look = False
        self._is_skipping = False  # the rest of a message of too many frames
        # A signal's byte in this pipe wakes the poll; the handlers themselves only note that it came.
        self._ear, self._bell = os.pipe()
        os.set_blocking(self._bell, False)

    def run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        monitor = self._router.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        poller.register(monitor, zmq.POLLIN)
        poller.register(self._ear, zmq.POLLIN)
        if self._shell.lifeline is not None:
            poller.register(self._shell.lifeline, zmq.POLLIN | zmq.POLLERR)
        if self._door is not None:
            poller.register(self._door.socket, zmq.POLLIN)
        next_tick = next_look = time.monotonic()
        try:
            while not self._stopping:
                now = self._now()
                if now >= next_tick:
                    self._machine.loop.lag.observe(now - next_tick)
                    next_tick = now + self._shell.tick_s
                    self._perform(self._machine.tick(now))
                    self._connections.keep_only(self._machine.peers)
                    self._observe(monitor)
                    self._end_connections(now)
                    self._tell_board(now)
                    self._notify(now, Phase.SERVING)
                    if self._door is not None and (now >= next_look or self._must_look):
                        next_look, self._must_look = now + _LOOK_S, False
                        self._look_at_list(self._door)
                ready = dict(poller.poll(int(max(0.0, next_tick - now) * 1000) + 1))
                self.is_orphaned = self._shell.lifeline in ready and self._owner_is_gone()
                self._stopping |= self.is_orphaned
                if self._door is not None and self._door.socket in ready:
                    self._door.answer()
                if self._router in ready:
                    self._receive()
                if monitor in ready:
                    self._observe(monitor)
            self._tell_board(self._now())
            self._notify(time.monotonic(), Phase.STOPPING)
            self._perform(self._machine.stop("it was stopped"))
        finally:
            self._connections.close()
            self._visitors.close()
            self._router.disable_monitor()
            monitor.close(linger=0)

    def _notify(self, now: float, phase: Phase) -> None:
        """Tell the service manager, if there is one, how it goes."""
        if self._manager is None:
            return
        machine = self._machine
        peers = f"{len(machine.clients)} clients, {len(machine.workers)} workers"
        self._manager.tick(now, phase, f"{peers}, {len(machine.ledger.rows)} rows, {len(machine.llms)} LLMs")

    def _look_at_list(self, door: _Door) -> None:
        changed = door.changed()
        if changed is not None:
            self._machine.admit(changed, self._now())
            self._perform(self._machine.flush(self._now()))

    def _observe(self, monitor: zmq.Socket[bytes]) -> None:
        while is_readable(monitor):
            event, descriptor = next_event(monitor)
            if event == zmq.EVENT_ACCEPTED:
                self._visitors.accepted(descriptor, self._now())
                continue
            # Where it was no peer's, nobody need be pinged for it.
            if self._visitors.closed(descriptor) in self._connections.inodes:
                self._machine.connection_broke(self._now())

    def _end_connections(self, now: float) -> None:
        """End those that may not stay. All that the monitor tells must have been read."""
        used = len(self._visitors) + len(self._connections) + _OWN_DESCRIPTORS
        is_short = used + _SPARE_DESCRIPTORS > self._descriptors
        self._ended += self._visitors.tick(now, self._connections.inodes, is_short=is_short)
        if self._ended and now >= self._next_ended:
            were = "that was" if self._ended == 1 else "that were"
            log.warning("ended %s %s no client's or worker's", plural(self._ended, "connection"), were)
            self._ended, self._next_ended = 0, now + _ENDED_EVERY_S

    def _tell_board(self, now: float) -> None:
        unready = ""
        if self._stopping:
            unready = "the broker is stopping"
        elif self._machine.is_settling:
            unready = "the broker has just started: workers may say first what they hold"
        self.board.turned(now, unready, lambda: self._machine.report(now), lambda: self._machine.counts(now))

    def _now(self) -> float:
        now = time.monotonic()
        gap_s, self._last_now = now - self._last_now, now
        if gap_s > _STOOD_STILL_S:
            self._machine.stood_still(gap_s, now)
        return now

    def _owner_is_gone(self) -> bool:
        assert self._shell.lifeline is not None
        readable, _, _ = select.select([self._shell.lifeline], [], [], 0)
        return bool(readable) and os.read(self._shell.lifeline, 1) == b""

    def _receive(self) -> None:
        """One burst: what is left after it is there at the next poll, so that no flood keeps the ticks away."""
        size = 0
        for number in range(_BURST):
            if self._is_skipping:
                self._skip()
                break
            # As a rule a message is alone, and to ask takes less than half the time of an exception.
            if size > BURST_BYTES or (number == 1 and not is_readable(self._router)):
                break
            try:
                envelope = self._router.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            size += self._take(envelope, receive(self._router, most=_MOST_FRAMES))
        self._perform(self._machine.flush(self._now()))

    def _skip(self) -> None:
        """Read on in a message whose frames nobody wants. All of them are there."""
        for _ in range(_SKIPPED_FRAMES):
            self._is_skipping = self._router.recv(zmq.NOBLOCK, copy=False).more
            if not self._is_skipping:
                break

    def _take(self, envelope: zmq.Frame, frames: list[Frame]) -> int:
        """Give the machine one message. Returns how many bytes it has."""
        peer, size = envelope.bytes, sum(map(len, frames))
        self._is_skipping = len(frames) == _MOST_FRAMES and bool(self._router.rcvmore)
        if peer in self._visitors:
            return size
        if not peer.startswith(_AUTOMATIC):
            # Whoever chooses its id could lie in wait for one that another will have.
            self._connections.note(peer, int(envelope.get(zmq.SRCFD)))
            refusal = Refuse("a peer of this broker sets no routing id (ZMQ_ROUTING_ID)")
            self._perform([Send(peer, refusal), Drop(peer)])
            return size
        self._machine.loop.received_bytes += size
        try:
            if self._is_skipping:
                raise DecodeError(f"a message of more than {_MOST_FRAMES} frames")
            # It has a head and rows up to a limit, or one longer row. Of two frames, libzmq bounds each.
            if size > self._message_bytes and len(frames) > 2:
                raise DecodeError(f"a message of {size} bytes, more than {self._message_bytes}")
            message = decode(frames)
        except DecodeError as error:
            self._machine.malformed(peer, str(error))
        else:
            if log.isEnabledFor(logging.DEBUG):
                self._trace("received from", peer, message)
            key = str(envelope.get("User-Id")) if self._door is not None and isinstance(message, Hello) else ""
            self._machine.received(peer, message, self._now(), key)
        if peer not in self._connections:
            # Also of one that is no peer: until the next tick, it may have to be shown out.
            self._connections.note(peer, int(envelope.get(zmq.SRCFD)))
        return size

    def _perform(self, effects: list[Effect]) -> None:
        blocked: dict[bytes, bool] = {}
        for effect in effects:
            if isinstance(effect, Log):
                level = logging.getLevelNamesMapping()[effect.level.upper()]
                log.log(level, "%s", printable(effect.text), extra={"fields": effect.fields})
            elif isinstance(effect, Drop):
                self._visitors.show_out(effect.peer, self._connections.take(effect.peer), self._now())
            elif effect.peer in blocked:
                # In order: nothing overtakes a message that could not be sent.
                self._failed(effect, gone=blocked[effect.peer])
            else:
                self._send(effect, blocked)

    def _trace(self, way: str, peer_id: bytes, message: Message) -> None:
        peer = self._machine.peers.get(peer_id)
        if peer is not None:
            who = f"{way} {peer.hello.role} {printable(name_of(peer))}"
            trace(log, who, message, self._machine.row_of, **fields_of(peer.hello))

    def _send(self, effect: Send, blocked: dict[bytes, bool]) -> None:
        if log.isEnabledFor(logging.DEBUG):
            self._trace("sent to", effect.peer, effect.message)
        frames = encode(effect.message, self._frame_bytes)
        try:
            send(self._router, [effect.peer, *frames])
        except zmq.ZMQError as error:
            if error.errno not in (errno.EAGAIN, errno.EHOSTUNREACH):
                raise
            gone = error.errno == errno.EHOSTUNREACH
            blocked[effect.peer] = gone
            self._failed(effect, gone=gone)
        else:
            self._machine.loop.sent_bytes += sum(map(len, frames))

    def _failed(self, effect: Send, *, gone: bool) -> None:
        silent = gone and self._connections.was_silent(effect.peer)
        self._machine.send_failed(effect.peer, effect.message, gone=gone, silent=silent, now=self._now())

    @contextmanager
    def ended_by_signals(self) -> Generator[None]:
        """SIGTERM and SIGINT end the loop; a second one ends the process at once. SIGHUP has the list read again."""

        def stop(number: int, _: object) -> None:
            if self._stopping:
                os._exit(128 + number)
            self._stopping = True
            os.write(self._bell, b"!")

        def look(_: int, __: object) -> None:
            self._must_look = True

        former = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        if self._door is not None:
            former[signal.SIGHUP] = signal.signal(signal.SIGHUP, look)
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
            os.close(self._ear)
            os.close(self._bell)
