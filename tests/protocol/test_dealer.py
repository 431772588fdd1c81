"""The socket shell of workers and clients against real sockets on random ports, with the test as the broker."""

from __future__ import annotations

import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from genpool.protocol import dealer as dealer_module
from genpool.protocol.address import KEYS
from genpool.protocol.codec import decode, encode
from genpool.protocol.dealer import Dealer
from genpool.protocol.keys import KeyPair, PeerKeys, new_pair, write_keys
from genpool.protocol.limits import Limits
from genpool.protocol.messages import Answer, Ask, Goodbye, Grant, Hello, Message, Ping, Refuse, Reset, Role, Welcome
from genpool.protocol.session import Close, Log, Open, Send, Session, SessionSettings, SessionState

PATIENCE_S = 15.0
PATIENCE_MS = 15_000
WELCOME = Welcome(b"epoch", 60.0, Limits(max_frame_bytes=1000))
QUICK = SessionSettings(first_delay_s=0.01, longest_delay_s=0.05, silence_s=60.0)
HELLO = Hello(role=Role.WORKER, instance=b"me", host="here", pid=1, llm="llm")


class Recorder(Session):
    """A session that notes what it is told, and whose state a test can wait for."""

    def __init__(self, address: str, settings: SessionSettings) -> None:
        super().__init__(address, settings, lambda: 1.0, time.monotonic())
        self.news = threading.Condition()
        self.got: list[Message] = []
        self.troubles: list[str] = []

    def _hello(self) -> Hello:
        return HELLO

    def _held(self) -> int | None:
        return None

    def _opened(self, now: float) -> None:
        pass

    def _broken(self, now: float) -> None:
        pass

    def _on_message(self, message: Message, now: float) -> None:
        self.got.append(message)

    def broken(self, reason: str, now: float) -> None:
        self.troubles.append(reason)
        super().broken(reason, now)

    def give_up(self, reason: str, now: float) -> None:
        self.troubles.append(reason)
        super().give_up(reason, now)

    def kept_out(self, reason: str, now: float) -> None:
        self.troubles.append(reason)
        super().kept_out(reason, now)

    def send(self, *messages: Message) -> None:
        self.effect(*map(Send, messages))

    def effect(self, *effects: object) -> None:
        self._effects += effects

    def tick(self, now: float) -> list[object]:
        return self._noted(super().tick(now))

    def flush(self, now: float) -> list[object]:
        return self._noted(super().flush(now))

    def _noted(self, effects: list[object]) -> list[object]:
        with self.news:
            self.news.notify_all()
        return effects


class Running:
    """A dealer in a thread of its own, as workers and clients run it."""

    def __init__(self, address: str, settings: SessionSettings = QUICK, **options: Any) -> None:
        self.machine = Recorder(address, settings)
        self.performed: list[object] = []
        self.dealer = Dealer(
            [self.machine], self.performed.append, Role.WORKER, log=logging.getLogger("genpool.test"), **options
        )
        (self.connection,) = self.dealer._connections
        self._over = False
        self.thread = threading.Thread(target=self.dealer.run, args=(lambda: self._over,), name="dealer", daemon=True)
        self.thread.start()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self.machine.news:
            assert self.machine.news.wait_for(condition, PATIENCE_S), (self.machine.state, self.machine.troubles)

    def wait_for_trouble(self, text: str) -> None:
        self.wait_for(lambda: any(text in trouble for trouble in self.machine.troubles))

    def wait_until_open(self) -> None:
        """Until the session is, and all that the monitor told before is read."""
        self.wait_for(lambda: self.machine.state is SessionState.OPEN and self.connection._shook_hands)

    def do(self, function: Callable[[float], None]) -> None:
        """Run ``function`` in the loop's thread and wait for its end."""
        done = threading.Event()

        def run(now: float) -> None:
            try:
                function(now)
            finally:
                done.set()

        self.dealer.post(run)
        assert done.wait(PATIENCE_S)

    def stop(self) -> None:
        self._over = True
        self.dealer.post(lambda now: None)
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()


class Broker:
    """A ROUTER that the test reads and writes by hand."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], bind: str) -> None:
        self.router = context.socket(zmq.ROUTER)
        self.router.setsockopt(zmq.LINGER, 2000)
        self.router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.router.bind(bind)
        self.address: str = self.router.getsockopt_string(zmq.LAST_ENDPOINT)

    def receive_frames(self) -> tuple[zmq.Frame, list[bytes]]:
        assert self.router.poll(PATIENCE_MS), "the dealer sent nothing"
        peer, *frames = self.router.recv_multipart(copy=False)
        return peer, [frame.bytes for frame in frames]

    def receive(self) -> tuple[bytes, Message]:
        peer, frames = self.receive_frames()
        return peer.bytes, decode(frames)

    def send(self, peer: bytes, *messages: Message) -> None:
        for message in messages:
            self.router.send_multipart([peer, *encode(message, 1000)])

    def welcome(self) -> bytes:
        """Take the hello that must come first, and answer it. Returns the routing id."""
        peer, message = self.receive()
        assert message == HELLO
        self.send(peer, WELCOME)
        return peer

    def close(self) -> None:
        self.router.close()


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    context = zmq.Context[zmq.Socket[bytes]]()
    yield context
    context.destroy(linger=0)


@pytest.fixture(params=["tcp", "ipc"])
def bind(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "tcp://127.0.0.1:*" if request.param == "tcp" else f"ipc://{tmp_path}/s"


@pytest.fixture
def start_broker(context: zmq.Context[zmq.Socket[bytes]]) -> Iterator[Callable[[str], Broker]]:
    """Starts brokers at given addresses, and closes them at the end."""
    brokers: list[Broker] = []

    def start(bind: str) -> Broker:
        brokers.append(Broker(context, bind))
        return brokers[-1]

    yield start
    for broker in brokers:
        broker.close()


@pytest.fixture
def broker(start_broker: Callable[[str], Broker], bind: str) -> Broker:
    return start_broker(bind)


@pytest.fixture
def tcp_broker(start_broker: Callable[[str], Broker]) -> Broker:
    return start_broker("tcp://127.0.0.1:*")


@pytest.fixture
def run() -> Iterator[Callable[..., Running]]:
    """Starts dealers, and stops them at the end."""
    running: list[Running] = []

    def start(address: str, settings: SessionSettings = QUICK, **options: Any) -> Running:
        running.append(Running(address, settings, **({"tick_s": 0.01} | options)))
        return running[-1]

    yield start
    for one in running:
        one.stop()


@pytest.fixture
def listen() -> Iterator[Callable[[Callable[[socket.socket], None]], str]]:
    """Starts TCP servers that hand each connection to a function and close it then. Gives the address."""
    listeners: list[socket.socket] = []

    def start(serve: Callable[[socket.socket], None]) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        threading.Thread(target=accept_all, args=(listener, serve), name="server", daemon=True).start()
        return f"tcp://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def accept_all(listener: socket.socket, serve: Callable[[socket.socket], None]) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            try:
                serve(connection)
            except OSError:
                pass


def free_address() -> str:
    """An address where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"tcp://127.0.0.1:{listener.getsockname()[1]}"


def wait_for_disconnect(running: Running) -> None:
    """In the loop's thread: until libzmq has told the monitor, which the loop has not read yet."""
    monitor = running.connection._monitor
    assert monitor is not None
    assert monitor.poll(PATIENCE_MS)


# The connection.


def test_the_hello_goes_first_and_the_welcome_opens(broker: Broker, run: Callable[..., Running]) -> None:
    running = run(broker.address)
    broker.welcome()
    running.wait_until_open()

    assert running.machine.limits.max_frame_bytes == 1000


def test_messages_come_and_go_in_order(broker: Broker, run: Callable[..., Running]) -> None:
    running = run(broker.address)
    peer = broker.welcome()
    running.wait_until_open()

    broker.send(peer, *(Ping(number) for number in range(600)))
    running.wait_for(lambda: len(running.machine.got) == 600)
    running.do(lambda now: running.machine.send(*(Grant(number, "ready") for number in range(600))))

    assert running.machine.got == [Ping(number) for number in range(600)]
    assert [broker.receive()[1] for _ in range(600)] == [Grant(number, "ready") for number in range(600)]


def test_a_body_is_cut_as_the_welcome_says(tcp_broker: Broker, run: Callable[..., Running]) -> None:
    running = run(tcp_broker.address)
    tcp_broker.welcome()
    running.wait_until_open()
    answer = Answer([bytes(16)], [0], [1], [b"x" * 2500])

    running.do(lambda now: running.machine.send(answer))
    _, frames = tcp_broker.receive_frames()

    assert [len(frame) for frame in frames[1:]] == [1000, 1000, 500]
    assert decode(frames) == answer


def test_a_reset_leads_to_a_new_socket(broker: Broker, run: Callable[..., Running]) -> None:
    running = run(broker.address)
    first = broker.welcome()
    running.wait_until_open()

    broker.send(first, Reset("it lost count"))
    second = broker.welcome()
    running.wait_until_open()

    assert first != second
    assert running.machine.troubles == ["the broker ended the connection: it lost count"]


def test_a_broken_connection_leads_to_a_new_socket_with_the_hello_first(
    tcp_broker: Broker, run: Callable[..., Running]
) -> None:
    running = run(tcp_broker.address)
    frame, _ = tcp_broker.receive_frames()
    tcp_broker.send(frame.bytes, WELCOME)
    running.wait_until_open()

    with socket.fromfd(int(frame.get(zmq.SRCFD)), socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.shutdown(socket.SHUT_RDWR)
    second = tcp_broker.welcome()
    running.wait_until_open()

    assert second != frame.bytes
    assert running.machine.troubles == ["the connection broke"]


def test_a_broker_that_is_started_again_is_found_again(
    start_broker: Callable[[str], Broker], broker: Broker, run: Callable[..., Running]
) -> None:
    running = run(broker.address)
    broker.welcome()
    running.wait_until_open()
    broker.close()
    running.wait_for_trouble("nothing answers there")

    start_broker(broker.address).welcome()
    running.wait_until_open()

    assert running.machine.troubles[0] == "the connection broke"


def test_where_nothing_listens_it_backs_off_and_connects_once_something_does(
    start_broker: Callable[[str], Broker], run: Callable[..., Running]
) -> None:
    address = free_address()
    running = run(address)
    running.wait_for(lambda: len(running.machine.troubles) >= 3)
    assert set(running.machine.troubles) == {"nothing answers there; does `genpool broker` run?"}

    start_broker(address).welcome()

    running.wait_until_open()


@pytest.mark.parametrize("leftover", ["nothing", "a dead socket", "a file"])
def test_a_path_where_nothing_listens(
    tmp_path: Path, start_broker: Callable[[str], Broker], run: Callable[..., Running], leftover: str
) -> None:
    path = tmp_path / "s"
    if leftover == "a dead socket":
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
    elif leftover == "a file":
        path.write_text("")
    running = run(f"ipc://{path}")
    running.wait_for_trouble("nothing answers there")
    path.unlink(missing_ok=True)

    start_broker(f"ipc://{path}").welcome()

    running.wait_until_open()


def test_nothing_stale_is_sent_on_a_new_connection(broker: Broker, run: Callable[..., Running]) -> None:
    running = run(broker.address)
    peer = broker.welcome()
    running.wait_until_open()
    broker.send(peer, Reset("again"))
    running.wait_for(lambda: running.machine.state is not SessionState.OPEN)

    running.do(lambda now: running.machine.send(Ask()) if running.machine.state is SessionState.WAITING else None)
    second = broker.welcome()
    running.wait_until_open()
    running.do(lambda now: running.machine.send(Grant(1, "ready")))

    assert broker.receive() == (second, Grant(1, "ready"))


# What breaks while it works.


def test_what_came_before_the_break_is_read_also_the_last_words(broker: Broker, run: Callable[..., Running]) -> None:
    """More than one burst of messages, unread when the connection breaks."""
    running = run(broker.address)
    peer = broker.welcome()
    running.wait_until_open()

    def leave(now: float) -> None:
        broker.send(peer, *(Ping(number) for number in range(600)), Refuse("go away"))
        broker.close()
        wait_for_disconnect(running)

    running.do(leave)
    running.wait_for(lambda: running.machine.state is SessionState.REFUSED)

    assert running.machine.got == [Ping(number) for number in range(600)]
    assert running.machine.trouble == "go away"


def test_sending_on_a_connection_that_has_just_broken_does_not_hang(
    broker: Broker, run: Callable[..., Running], start_broker: Callable[[str], Broker]
) -> None:
    running = run(broker.address)
    broker.welcome()
    running.wait_until_open()

    def send_after_break(now: float) -> None:
        broker.close()
        wait_for_disconnect(running)
        assert running.connection._sock is not None
        running.connection._sock.poll(0)
        for effect in (Send(Ask()), Send(Ask())):
            running.connection.perform([effect])

    running.do(send_after_break)
    running.wait_for_trouble("the connection broke")
    start_broker(broker.address).welcome()

    running.wait_until_open()


def test_a_message_that_libzmq_does_not_take_breaks_the_connection(broker: Broker, run: Callable[..., Running]) -> None:
    running = run(broker.address)
    broker.welcome()
    running.wait_until_open()

    def send_without_peer(now: float) -> None:
        sock = running.connection._sock
        assert sock is not None
        sock.disconnect(broker.address)
        running.machine.send(Ask())

    running.do(send_without_peer)
    running.wait_for_trouble("the connection broke")

    broker.welcome()
    running.wait_until_open()


def test_garbage_from_the_broker_ends_the_connection_and_not_the_loop(
    broker: Broker, run: Callable[..., Running], caplog: pytest.LogCaptureFixture
) -> None:
    running = run(broker.address)
    for garbage in ([b""], [b"\xff\xff"], [b"P\x01"], [b"H\x80", b"x"]):
        peer = broker.welcome()
        running.wait_until_open()
        broker.router.send_multipart([peer, *garbage])
        running.wait_for(lambda: running.machine.state is not SessionState.OPEN)
        _, last_word = broker.receive()
        assert isinstance(last_word, Reset)
    broker.welcome()
    running.wait_until_open()

    wrong = "what answered is no genpool broker of this version: "
    assert [trouble.removeprefix(wrong) for trouble in running.machine.troubles] == [
        "an empty message",
        r"a message of the unknown kind b'\xff'",
        "Ping: its head is no map of names",
        "Hello: version is no count",
    ]
    assert f"lost the broker at {broker.address}" in caplog.text


def test_a_process_that_stood_still_does_not_take_that_for_the_brokers_silence(
    broker: Broker, run: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(dealer_module, "time", clock)
    running = run(broker.address)
    running.machine._heard = running.machine._open_at = clock.monotonic()
    peer = broker.welcome()
    running.wait_until_open()

    def stand_still(now: float) -> None:
        broker.send(peer, Ping(1))
        assert running.connection._sock is not None
        assert running.connection._sock.poll(PATIENCE_MS)
        clock.advance(1000.0)

    running.do(stand_still)

    assert broker.receive() == (peer, Ping(None))
    assert running.machine.state is SessionState.OPEN


def test_a_message_that_takes_long_to_arrive_is_no_silence(
    tcp_broker: Broker, listen: Callable[..., str], run: Callable[..., Running]
) -> None:
    """The end of an answer is kept back until its first part was taken for a sign of life."""
    port = int(tcp_broker.address.rpartition(":")[2])
    answer = Answer([bytes(16)], [0], [1], [bytes(1 << 20)])
    parts = threading.Semaphore(0)

    def forward(connection: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", port)) as onward:
            threading.Thread(target=pump_parts, args=(onward, connection, parts), name="pump", daemon=True).start()
            pump(connection, onward, threading.Event())

    running = run(listen(forward))
    parts.release(8)
    peer = tcp_broker.welcome()
    running.wait_until_open()
    heard = running.machine._heard
    tcp_broker.send(peer, answer)

    def has_heard() -> bool:
        parts.release()
        return running.machine._heard > heard

    running.wait_for(has_heard)
    assert running.machine.got == []
    parts.release(1000)
    running.wait_for(lambda: running.machine.got == [answer])
    assert running.machine.troubles == []


def pump_parts(source: socket.socket, target: socket.socket, parts: threading.Semaphore) -> None:
    """Forward 4 KiB at most for each of the ``parts``."""
    try:
        while data := source.recv(4096):
            assert parts.acquire(timeout=PATIENCE_S)
            target.sendall(data)
    except OSError:
        pass


class Clock:
    """Stands in for the ``time`` module: it runs, and can be put forward."""

    def __init__(self) -> None:
        self._ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self._ahead

    def advance(self, seconds: float) -> None:
        self._ahead += seconds


# What is no broker.


@pytest.mark.parametrize(
    "reply", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n", b""], ids=["http", "ssh", "nothing"]
)
def test_a_server_of_another_kind_that_hangs_up(
    listen: Callable[..., str], run: Callable[..., Running], reply: bytes
) -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(64)
        connection.sendall(reply)

    running = run(listen(serve))

    running.wait_for_trouble("it ended the handshake: no genpool broker?")


def test_a_server_of_another_kind_that_resets_the_connection(
    listen: Callable[..., str], run: Callable[..., Running]
) -> None:
    def serve(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    running = run(listen(serve))

    running.wait_for_trouble("it ended the handshake: no genpool broker?")


def test_a_server_that_says_nothing(listen: Callable[..., str], run: Callable[..., Running]) -> None:
    running = run(listen(read_to_the_end), SessionSettings(0.01, 0.05, silence_s=0.1))

    running.wait_for_trouble("the hello was not answered for 0.1 s (is it a genpool broker?)")


def read_to_the_end(connection: socket.socket) -> None:
    while connection.recv(4096):
        pass


@pytest.mark.parametrize("kind", [zmq.PUB, zmq.PULL, zmq.SUB], ids=["PUB", "PULL", "SUB"])
def test_a_zeromq_socket_of_another_type(
    context: zmq.Context[zmq.Socket[bytes]], run: Callable[..., Running], kind: int
) -> None:
    with context.socket(kind) as other:
        other.bind("tcp://127.0.0.1:*")
        running = run(other.getsockopt_string(zmq.LAST_ENDPOINT))

        running.wait_for_trouble("it ended the handshake: no genpool broker?")


def test_a_broker_that_wants_a_key(context: zmq.Context[zmq.Socket[bytes]], run: Callable[..., Running]) -> None:
    with guarded(context, new_pair()) as router:
        running = run(router.getsockopt_string(zmq.LAST_ENDPOINT))

        running.wait_for_trouble("it speaks only to peers with keys")
        running.wait_for(lambda: running.machine.state is SessionState.REFUSED)


@pytest.mark.parametrize("has_keys", [False, True], ids=["needs keys", "needs no keys"])
def test_a_broker_that_hangs_up_first_is_asked_what_it_speaks(
    listen: Callable[..., str],
    run: Callable[..., Running],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    has_keys: bool,
) -> None:
    """Two ends that differ about keys: who reads the other's greeting first hangs up, and the other hears no more."""
    if has_keys:
        write_keys(tmp_path / "my.key", PeerKeys(new_pair(), new_pair().public))
        monkeypatch.setenv(KEYS, str(tmp_path / "my.key"))
    mechanism = b"NULL" if has_keys else b"CURVE"
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01" + mechanism.ljust(20, b"\0") + bytes(32)

    has_hung_up = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.sendall(greeting[:11])
        if not has_hung_up.is_set():
            has_hung_up.set()
            connection.recv(64)
        else:
            assert connection.recv(64) == greeting[:12]
            connection.sendall(greeting[11:])

    running = run(listen(serve))

    running.wait_for_trouble("it has no keys, and this peer has" if has_keys else "it speaks only to peers with keys")
    running.wait_for(lambda: running.machine.state is SessionState.REFUSED)


def test_a_broker_with_another_key_is_tried_again(
    context: zmq.Context[zmq.Socket[bytes]],
    run: Callable[..., Running],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_keys(tmp_path / "my.key", PeerKeys(new_pair(), new_pair().public))
    monkeypatch.setenv(KEYS, str(tmp_path / "my.key"))
    with guarded(context, new_pair()) as router:
        running = run(router.getsockopt_string(zmq.LAST_ENDPOINT))

        running.wait_for_trouble("it has another key than GENPOOL_KEYS or the connection file says")
        assert running.machine.state is not SessionState.REFUSED


def guarded(context: zmq.Context[zmq.Socket[bytes]], pair: KeyPair) -> zmq.Socket[bytes]:
    """A ROUTER with these keys."""
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.CURVE_SERVER, 1)
    router.setsockopt_string(zmq.CURVE_SECRETKEY, pair.secret)
    router.bind("tcp://127.0.0.1:*")
    return router


def test_a_host_name_that_does_not_exist_is_said_at_once(run: Callable[..., Running]) -> None:
    """libzmq tells nothing of it. This name is wrong in itself, so no name server is asked."""
    running = run("tcp://a..b:5555")

    running.wait_for_trouble("the host name 'a..b' cannot be resolved: ")


def test_a_host_name_that_nobody_knows_is_said_at_once(
    run: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(host: str, port: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    running = run("tcp://a..b:5555")

    running.wait_for_trouble("the host name 'a..b' cannot be resolved: [Errno -2] Name or service not known")


def test_a_failed_look_up_does_not_break_what_libzmq_has_connected(
    tcp_broker: Broker, run: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def slow(host: str, port: object) -> None:
        asked.set()
        assert go_on.wait(PATIENCE_S)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    running = run(tcp_broker.address.replace("127.0.0.1", "localhost"))
    tcp_broker.welcome()
    running.wait_until_open()
    assert asked.wait(PATIENCE_S)
    go_on.set()
    for thread in threading.enumerate():
        if thread.name == "genpool-asks":
            thread.join(PATIENCE_S)
    running.do(lambda now: None)

    assert running.machine.troubles == []


def test_an_address_that_libzmq_does_not_take_does_not_end_the_loop(run: Callable[..., Running]) -> None:
    running = run("tcp://nonsense")

    running.wait_for(lambda: len(running.machine.troubles) >= 2)

    assert running.machine.trouble.startswith("no socket can be opened to it: Invalid argument")


def test_a_network_that_swallows_everything_is_noticed_by_heartbeats(
    tcp_broker: Broker, listen: Callable[..., str], run: Callable[..., Running]
) -> None:
    port = int(tcp_broker.address.rpartition(":")[2])
    frozen = threading.Event()

    def forward(connection: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", port)) as onward:
            threading.Thread(target=pump, args=(onward, connection, frozen), name="pump", daemon=True).start()
            pump(connection, onward, frozen)

    running = run(listen(forward), heartbeat_timeout_s=0.2)
    tcp_broker.welcome()
    running.wait_until_open()
    frozen.set()

    running.wait_for_trouble("the connection broke")


def pump(source: socket.socket, target: socket.socket, frozen: threading.Event) -> None:
    """Forward bytes; once ``frozen``, swallow them."""
    try:
        while data := source.recv(4096):
            if not frozen.is_set():
                target.sendall(data)
    except OSError:
        pass


# Other threads.


def test_a_post_wakes_the_loop(broker: Broker, run: Callable[..., Running]) -> None:
    """With a tick a minute long, a wake-up that is lost is a test that fails."""
    running = run(broker.address, tick_s=60.0)
    broker.welcome()
    running.wait_until_open()
    counts = [0] * 4

    def post_one_after_the_other(at: int) -> None:
        for _ in range(500):
            running.do(lambda now: counts.__setitem__(at, counts[at] + 1))

    threads = [threading.Thread(target=post_one_after_the_other, args=(at,), name=f"post-{at}") for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)

    assert counts == [500] * 4


def test_a_post_within_a_post_runs_and_leaves_the_bell_silent() -> None:
    """A bell that rings on would have the loop spin."""
    machine = Recorder("tcp://127.0.0.1:1", QUICK)
    dealer = Dealer([machine], lambda effect: None, Role.WORKER, log=logging.getLogger("genpool.test"))
    order: list[str] = []

    def first(now: float) -> None:
        order.append("first")
        dealer.post(lambda now: order.append("second"))

    with dealer._ear, dealer._bell:
        dealer.post(first)
        dealer._run_posted(rung=True)
        assert order == ["first", "second"]
        dealer._run_posted(rung=True)

        with pytest.raises(BlockingIOError):
            dealer._ear.recv(64)
        dealer.post(lambda now: order.append("third"))
        assert dealer._ear.recv(64) == b"!"


def test_effects_of_a_post_are_performed_at_once(broker: Broker, run: Callable[..., Running]) -> None:
    running = run(broker.address, tick_s=60.0)
    peer = broker.welcome()
    running.wait_until_open()

    running.do(lambda now: running.machine.send(Ask()))

    assert broker.receive() == (peer, Ask())


def test_effects_that_are_not_about_the_socket_go_to_the_caller_in_order(
    run: Callable[..., Running], caplog: pytest.LogCaptureFixture
) -> None:
    running = run(free_address())
    with caplog.at_level(logging.INFO):
        running.do(lambda now: running.machine.effect("one", Log("info", "100 % done"), "two"))
        running.wait_for(lambda: len(running.performed) == 2)

    assert running.performed == ["one", "two"]
    assert ("genpool.test", logging.INFO, "100 % done") in caplog.record_tuples


def test_many_posts_before_the_loop_starts_are_run() -> None:
    machine = Recorder("tcp://127.0.0.1:1", QUICK)
    dealer = Dealer([machine], lambda effect: None, Role.WORKER, log=logging.getLogger("genpool.test"))
    ran: list[int] = []
    for number in range(1000):
        dealer.post(lambda now, number=number: ran.append(number))

    dealer.run(lambda: bool(ran))

    assert ran == list(range(1000))


# The end.


def test_the_goodbye_still_leaves(broker: Broker) -> None:
    running = Running(broker.address)
    peer = broker.welcome()
    running.wait_until_open()

    running.dealer.post(lambda now: running.machine.end("it is done"))
    received = broker.receive()
    running.stop()

    assert received == (peer, Goodbye("it is done"))
    assert running.machine.state is SessionState.ENDED


def test_a_post_after_the_end_does_no_harm(broker: Broker) -> None:
    running = Running(broker.address)
    broker.welcome()
    running.stop()
    ran: list[float] = []

    running.dealer.post(ran.append)

    assert ran == []


def test_the_loop_closes_its_sockets_when_the_machine_raises(broker: Broker) -> None:
    machine = Recorder(broker.address, QUICK)
    dealer = Dealer([machine], lambda effect: None, Role.WORKER, log=logging.getLogger("genpool.test"))

    def fail(now: float) -> None:
        raise ZeroDivisionError

    dealer.post(fail)
    with pytest.raises(ZeroDivisionError):
        dealer.run(lambda: False)

    (connection,) = dealer._connections
    assert connection._sock is None
    assert connection.context is not None
    assert connection.context.closed


def test_opening_twice_leaves_one_socket(broker: Broker, run: Callable[..., Running]) -> None:
    running = run(broker.address)
    broker.welcome()
    running.wait_until_open()

    running.do(lambda now: running.machine.effect(Open(), Send(HELLO), Close(), Open(), Send(HELLO)))
    broker.receive()
    running.wait_for(lambda: len(running.dealer._poller.sockets) == 3)

    assert running.connection._sock is not None
