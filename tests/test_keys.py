"""Keys on real commands: who gets in, what those hear who do not, and what another allowed key cannot do."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from echo import ECHO
from fleet import PATIENCE_S, Fleet, until
from wire import Peer

from genpool import LLMPool, ProcessLLM
from genpool.broker.access import Permission
from genpool.broker.allowed import add_access, read_access, write_access
from genpool.broker.keyring import new_keyring, new_peers
from genpool.protocol.address import KEYS, read_connection_file
from genpool.protocol.errors import ConfigurationError, Refused
from genpool.protocol.keys import PeerKeys, new_pair, read_peer_keys
from genpool.protocol.messages import (
    Answer,
    Ask,
    Assign,
    Await,
    Hello,
    Hold,
    Outcome,
    Ping,
    Refuse,
    Release,
    Result,
    Role,
    RowKind,
    Status,
    Submit,
    SubmitRun,
    Welcome,
    WorkerState,
)

LLM = "echo"
ROW = b"the row's own id"


class Guarded(Fleet):
    """A fleet whose broker has keys, in ``keys``; the connection file hands on those of client and worker."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.keys = folder / "keys"
        new_keyring(self.keys)
        (folder / "echo_llm.py").write_text(ECHO)

    def start_guarded(self) -> subprocess.Popen[bytes]:
        return self.start_broker("--keys", str(self.keys))

    def key(self, name: str, *roles: str, llms: frozenset[str] | None = None) -> PeerKeys:
        """A new key, allowed to be what ``roles`` say."""
        (path,) = new_peers(self.keys, [name])
        keys = read_peer_keys(path)
        if roles:
            add_access(self.keys / "allowed.toml", Permission(keys.own.public, name, frozenset(roles), llms))
        return keys

    def own(self, name: str) -> PeerKeys:
        return read_peer_keys(self.keys / f"{name}.key")

    def start_echo(self, keys: str | None, broker: str | None = None, llm: str = LLM) -> subprocess.Popen[bytes]:
        environment = {"MODEL": "echo", "PYTHONPATH": str(self.folder)}
        if keys is not None:
            environment[KEYS] = str(self.keys / f"{keys}.key")
        return self.start_worker(llm, "--load", "echo_llm:load", broker=broker, environment=environment)

    def said(self, number: int) -> str:
        (log,) = self.folder.glob(f"{number}-*.log")
        return log.read_text()


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guarded]:
    monkeypatch.delenv(KEYS, raising=False)
    with Guarded(tmp_path) as fleet:
        yield fleet


def worker_hello(llm: str = LLM, instance: bytes = b"worker", credit: int = 10) -> Hello:
    return Hello(role=Role.WORKER, instance=instance, llm=llm, state=WorkerState.READY, credit=credit, concurrency=10)


def client_hello(instance: bytes = b"client") -> Hello:
    return Hello(role=Role.CLIENT, instance=instance)


def submit(payload: bytes, row_id: bytes = ROW, llm: str = LLM) -> Submit:
    return Submit([SubmitRun(llm, RowKind.INPUT, 1, b"", None, False, [row_id], [payload])])


def refusal(peer: Peer, hello: Hello) -> str:
    """What the broker says to this hello, which it does not take."""
    peer.send(hello)
    answer = peer.receive()
    assert isinstance(answer, Refuse)
    return answer.reason


# The whole set-up.


def test_one_path_is_the_whole_set_up(fleet: Guarded) -> None:
    fleet.start_guarded()
    file = fleet.connection_file
    assert file.stat().st_mode & 0o777 == 0o600
    fleet.start_echo(None, broker=str(file))
    llm = ProcessLLM.connect(LLM, broker=str(file))
    try:
        ((output,),) = llm.generate([{"input": "hello"}]).result(PATIENCE_S)
    finally:
        llm.teardown()
    assert output["raw_output"] == "HELLO"


def test_each_peer_may_have_a_file_of_its_own(fleet: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.start_guarded()
    for name in ("one", "two"):
        fleet.start_echo("worker", llm=name)
    monkeypatch.setenv(KEYS, str(fleet.keys / "client.key"))
    with LLMPool([ProcessLLM.connect(name, broker=fleet.address) for name in ("one", "two")]) as pool:
        outputs = pool.generate([{"input": "hello"}], 2)
    assert [output["raw_output"] for output in outputs[0]] == ["HELLO", "HELLO"]
    monkeypatch.setenv(KEYS, str(fleet.keys / "admin.key"))
    assert {llm["name"] for llm in fleet.report()["llms"]} == {"one", "two"}


def test_a_connection_file_with_keys_that_others_can_read_is_refused(fleet: Guarded) -> None:
    fleet.start_guarded()
    fleet.connection_file.chmod(0o644)
    worker = fleet.start_echo(None, broker=str(fleet.connection_file))
    assert worker.wait(PATIENCE_S) == 2
    assert f"run `chmod 600 {fleet.connection_file}`" in fleet.said(1)
    assert "Traceback" not in fleet.said(1)


def test_nothing_secret_is_said(fleet: Guarded) -> None:
    fleet.start_guarded()
    fleet.start_echo("worker")
    until(lambda: "is ready" in fleet.said(1), "the worker's start")
    secrets = [read_peer_keys(fleet.keys / f"{name}.key").own.secret for name in ("client", "worker", "admin")]
    shown = "".join(
        [fleet.said(0), fleet.said(1), *(Path(f"/proc/{one.pid}/cmdline").read_text() for one in fleet.processes)]
    )
    assert not [secret for secret in secrets if secret in shown]


# Who does not get in hears why.


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ("stranger", "this key is not among those that it allows: see `genpool keys allow`"),
        (None, "it speaks only to peers with keys: name a key file in GENPOOL_KEYS, or give its connection file"),
        ("client", "its key (client) may be client here, and no worker"),
        ("limited", "its key (limited) may serve 'other' here, and not 'echo'"),
    ],
)
def test_a_worker_that_is_not_let_in_ends_with_a_sentence(fleet: Guarded, keys: str | None, sentence: str) -> None:
    fleet.key("stranger")
    fleet.key("limited", "worker", llms=frozenset(["other"]))
    fleet.start_guarded()
    worker = fleet.start_echo(keys)
    assert worker.wait(PATIENCE_S) == 4
    assert f"the broker at {fleet.address} refused this worker: {sentence}" in fleet.said(1)
    assert "Traceback" not in fleet.said(1)


def test_a_peer_with_keys_is_told_that_its_broker_has_none(fleet: Guarded) -> None:
    fleet.start_broker()
    worker = fleet.start_echo("worker")
    assert worker.wait(PATIENCE_S) == 4
    assert "it has no keys, and this peer has: unset GENPOOL_KEYS, or start the broker with --keys" in fleet.said(1)


def test_a_client_that_is_not_let_in_can_try_again(fleet: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = fleet.key("stranger")
    fleet.start_guarded()
    fleet.start_echo("worker")
    monkeypatch.setenv(KEYS, str(fleet.keys / "stranger.key"))
    for _ in range(2):
        llm = ProcessLLM.connect(LLM, broker=fleet.address)
        with pytest.raises(Refused, match="this key is not among those that it allows"):
            llm.generate([{"input": "hello"}]).result(PATIENCE_S)
        llm.teardown()
    add_access(fleet.keys / "allowed.toml", Permission(stranger.own.public, "guest", frozenset(["client"])))
    until(lambda: "the list of allowed keys has changed: 4 keys" in fleet.said(0), "the broker's look at the list")
    llm = ProcessLLM.connect(LLM, broker=fleet.address)
    ((output,),) = llm.generate([{"input": "hello"}]).result(PATIENCE_S)
    llm.teardown()
    assert output["raw_output"] == "HELLO"


def test_commands_that_are_not_let_in_end_with_their_code(fleet: Guarded) -> None:
    fleet.key("stranger")
    fleet.start_guarded()
    stranger = {KEYS: str(fleet.keys / "stranger.key")}
    (fleet.folder / "in.jsonl").write_text('{"input": "hello"}\n')
    status = fleet.start("status", "--broker", fleet.address, environment=stranger)
    files = ("-i", str(fleet.folder / "in.jsonl"), "-o", str(fleet.folder / "out.jsonl"))
    generate = fleet.start("generate", "--broker", fleet.address, "--llm", LLM, *files, environment=stranger)
    for number, process in enumerate((status, generate), 1):
        assert process.wait(PATIENCE_S) == 4
        assert "this key is not among those that it allows" in fleet.said(number)
        assert "Traceback" not in fleet.said(number)


@pytest.mark.parametrize("name", ["none.key", "broker.key"])
def test_a_key_file_that_cannot_be_used_is_said_at_once(
    fleet: Guarded, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    worker = fleet.start_worker(
        LLM, "--load", "echo_llm:load", broker="127.0.0.1:1", environment={KEYS: str(fleet.keys / name)}
    )
    assert worker.wait(PATIENCE_S) == 2
    assert f"key file {str(fleet.keys / name)!r}" in fleet.said(0)
    monkeypatch.setenv(KEYS, str(fleet.keys / name))
    with pytest.raises(ConfigurationError, match="key file"):
        ProcessLLM.connect(LLM, broker="127.0.0.1:1")


def test_another_broker_in_its_place_gets_nothing(fleet: Guarded) -> None:
    """Who has the address but not the broker's secret learns nothing, not even the hello."""
    fleet.start_guarded()
    with ExitStack() as stack:
        keys = fleet.own("client")
        peer = stack.enter_context(Peer(fleet.address, keys=replace(keys, broker=new_pair().public)))
        peer.send(client_hello())
        assert not peer.socket.poll(500)


# Who may stay stays, and who may not must go.


@pytest.mark.parametrize("by_signal", [False, True])
def test_a_key_that_is_taken_back_must_go_and_others_stay(fleet: Guarded, by_signal: bool) -> None:
    gone = fleet.key("gone", "client", "worker")
    broker = fleet.start_guarded()
    with ExitStack() as stack:
        stays = stack.enter_context(Peer(fleet.address, client_hello(b"stays"), keys=fleet.own("client")))
        worker = stack.enter_context(Peer(fleet.address, worker_hello(instance=b"own"), keys=fleet.own("worker")))
        worker.send(Hold([], [], [], False))
        client = stack.enter_context(Peer(fleet.address, client_hello(b"gone"), keys=gone))
        other = stack.enter_context(Peer(fleet.address, worker_hello("else", b"other"), keys=gone))
        other.send(Hold([], [], [], False))
        stays.send(submit(b"for the one that goes", b"another row's id", "else"))
        assert other.wait_for(Assign).runs[0].ids == [b"another row's id"]
        client.send(submit(b"of the one that goes"))
        number = worker.wait_for(Assign).runs[0].first_execution

        allowed = fleet.keys / "allowed.toml"
        kept = [one for key, one in read_access(allowed).permissions.items() if key != gone.own.public]
        write_access(allowed, kept)
        if by_signal:
            broker.send_signal(signal.SIGHUP)
        for peer in (client, other):
            assert peer.wait_for(Refuse).reason == "its key is not allowed at this broker (any more)"
        worker.send(Result([number], [Outcome.DONE], 0, 11, [b"too late"]))
        stays.send(Ask())
        report = stays.wait_for(Status).report
        assert [one["rows"] for one in report["clients"]] == [1]
        assert stays.wait_for(Ping) is not None
        newcomer = stack.enter_context(Peer(fleet.address, worker_hello("else", b"new"), keys=fleet.own("worker")))
        newcomer.send(Hold([], [], [], False))
        assert newcomer.wait_for(Assign).runs[0].ids == [b"another row's id"]


def test_a_list_that_breaks_lets_nobody_else_in_and_drops_nobody(fleet: Guarded) -> None:
    fleet.start_guarded()
    with Peer(fleet.address, client_hello(), keys=fleet.own("client")) as peer:
        (fleet.keys / "allowed.toml").write_text("[[")
        until(lambda: "what it said before stays in force" in fleet.said(0), "the broker's look at the list")
        peer.send(Ask())
        assert peer.wait_for(Status)


# What another allowed key cannot do.


def test_a_process_belongs_to_its_key(fleet: Guarded) -> None:
    thief = fleet.key("thief", "client", "worker")
    fleet.start_guarded()
    with (
        Peer(fleet.address, client_hello(), keys=fleet.own("client")) as client,
        Peer(fleet.address, worker_hello(), keys=fleet.own("worker")) as worker,
        Peer(fleet.address, keys=thief) as one,
        Peer(fleet.address, keys=thief) as other,
    ):
        worker.send(Hold([], [], [], False))
        client.send(submit(b"payload"))
        number = worker.wait_for(Assign).runs[0].first_execution
        for peer, hello in ((one, client_hello()), (other, worker_hello())):
            assert refusal(peer, hello) == "it says that it is a process which has another key"
        worker.send(Result([number], [Outcome.DONE], 0, 11, [b"answer"]))
        assert client.wait_for(Answer).payloads == [b"answer"]


def test_rows_of_others_cannot_be_awaited_released_or_submitted_anew(fleet: Guarded) -> None:
    """Even with the row's id, which nobody else can know."""
    thief = fleet.key("thief", "client")
    fleet.start_guarded()
    with (
        Peer(fleet.address, client_hello(), keys=fleet.own("client")) as client,
        Peer(fleet.address, client_hello(b"thief"), keys=thief) as other,
        Peer(fleet.address, worker_hello(), keys=fleet.own("worker")) as worker,
    ):
        client.send(Await([], False), submit(b"payload"))
        worker.send(Hold([], [], [], False))
        number = worker.wait_for(Assign).runs[0].first_execution
        other.send(Await([ROW], False), submit(b"mine"), Release([ROW]), Ask())
        assert [one["rows"] for one in other.wait_for(Status).report["clients"]] == [1, 0]
        worker.send(Result([number], [Outcome.DONE], 0, 11, [b"answer"]))
        assert client.wait_for(Answer) == Answer([ROW], [Outcome.DONE], [0], [b"answer"])
        other.send(Await([ROW], False), submit(b"mine"), Ask())
        seen: list[object] = []
        while not seen or not isinstance(seen[-1], Status):
            seen.append(other.receive())
        assert not [message for message in seen if isinstance(message, Answer)]


def test_rows_cannot_be_answered_or_claimed_by_workers_that_were_not_given_them(fleet: Guarded) -> None:
    thief = fleet.key("thief", "worker")
    fleet.start_guarded()
    with (
        Peer(fleet.address, client_hello(), keys=fleet.own("client")) as client,
        Peer(fleet.address, worker_hello(), keys=fleet.own("worker")) as worker,
        Peer(fleet.address, worker_hello("else", b"thief"), keys=thief) as other,
    ):
        worker.send(Hold([], [], [], False))
        client.send(submit(b"payload"))
        number = worker.wait_for(Assign).runs[0].first_execution
        # It guesses the execution, which it can, but not the row's id.
        other.send(
            Hold([number], [bytes(16)], [True], False),
            Result([number], [Outcome.DONE], 0, 11, [b"forged"]),
            Ping(None),
        )
        other.wait_for(Ping)
        other.wait_for(Ping)
        worker.send(Result([number], [Outcome.DONE], 0, 11, [b"answer"]))
        assert client.wait_for(Answer).payloads == [b"answer"]


def test_nobody_sets_a_routing_id(fleet: Guarded) -> None:
    fleet.start_guarded()
    with Peer(fleet.address, keys=fleet.own("client"), routing_id=b"me") as peer:
        assert "sets no routing id" in refusal(peer, client_hello())
    with Peer(fleet.address, keys=fleet.own("client")) as peer:
        peer.send(client_hello())
        assert peer.wait_for(Welcome)


def test_brokers_with_copies_of_one_folder_of_keys_take_each_others_peers(
    fleet: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(fleet.keys, fleet.folder / "copy")
    files = [fleet.folder / "a.json", fleet.folder / "b.json"]
    for file, keys in zip(files, (fleet.keys, fleet.folder / "copy"), strict=True):
        fleet.start("broker", "--bind", "tcp://127.0.0.1:*", "--connection-file", str(file), "--keys", str(keys))
        until(file.exists, "the broker's start")
    fleet.address = ",".join(read_connection_file(file).address for file in files)
    fleet.start_echo("worker")
    monkeypatch.setenv(KEYS, str(fleet.keys / "client.key"))
    llm = ProcessLLM.connect(LLM, broker=fleet.address)
    try:
        for word in ("before", "after"):
            ((output,),) = llm.generate([{"input": word}], timeout=PATIENCE_S).result()
            assert output["raw_output"] == word.upper()
            fleet.processes[0].kill()
    finally:
        llm.teardown()
