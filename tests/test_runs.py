"""Runs over the in-memory network: whatever happens to some of their rows, they end as they would one by one."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from network import FakeClient, FakeWorker, Network, Weather
from test_together import assert_all_answered_once, assert_nothing_left, payloads

from genpool.broker.settings import BrokerSettings
from genpool.client.machine import Client
from genpool.client.row import Ending
from genpool.client.run import Run
from genpool.protocol.errors import Expired
from genpool.protocol.limits import Limits
from genpool.protocol.messages import Outcome

LIMITS = Limits(target_message_bytes=2000, max_rows=64, max_client_rows=200, max_client_bytes=4000)
FAILS = b"fails"


def outcome(payload: bytes) -> Outcome:
    return Outcome.FAILED if payload.startswith(FAILS) else Outcome.DONE


def add_worker(network: Network, batch_size: int = 1) -> FakeWorker:
    worker = network.add_worker(concurrency=3, batch_size=batch_size, run_s=0.05)
    worker.outcome = outcome
    return worker


def test_rows_of_runs_are_answered_once_by_all_workers_and_stay_together() -> None:
    network = Network()
    workers = [network.add_worker(concurrency=2, batch_size=size) for size in (7, 16, 4)]
    client = network.add_client()
    for number in range(10):
        client.submit(*payloads(100, f"list {number}"), as_run=True)
    network.run_until(lambda: client.done == 1000)
    assert_all_answered_once(client, 1000)
    assert all(len(worker.started) > 50 for worker in workers)
    assert not client.rows
    assert_nothing_left(network)
    assert_no_disagreement(network)


def assert_no_disagreement(network: Network) -> None:
    """Both ends of each connection have counted the same rows all the time."""
    assert not [line for line in network.log if "you hold" in line or "I hold" in line]


def test_runs_and_rows_go_in_the_order_in_which_they_came() -> None:
    network = Network()
    worker = network.add_worker(batch_size=4)
    client = network.add_client()
    names = ["first", "second", "third", "fourth"]
    for number, name in enumerate(names):
        client.submit(*payloads(20, name), as_run=number % 2 == 0)
    network.run_until(lambda: client.done == 80)
    assert list(client.endings) == [payload for name in names for payload in payloads(20, name)]
    assert len(worker.started) == 80


def test_where_a_row_fails_the_others_of_its_run_are_answered() -> None:
    network = Network()
    add_worker(network, batch_size=4)
    client = network.add_client()
    given = [b"first", b"fails 2", *payloads(20)]
    client.submit(*given, as_run=True)
    network.run_until(lambda: len(client.endings) == len(given))
    failed = [payload for payload, (one,) in client.endings.items() if getattr(one, "outcome", 0) == Outcome.FAILED]
    assert failed == [b"fails 2"]
    assert client.done == len(given) - 1
    assert_nothing_left(network)


@pytest.mark.parametrize("limits", [{"max_rows": 8}, {"target_message_bytes": 60}], ids=str)
def test_a_run_that_is_too_long_for_a_message_goes_in_several(limits: dict[str, int]) -> None:
    network = Network(BrokerSettings(limits=replace(LIMITS, **limits)))
    network.add_worker(concurrency=4)
    client = network.add_client()
    client.submit(*payloads(50), as_run=True)
    network.run_until(lambda: client.done == 50)
    assert_all_answered_once(client, 50)
    assert not client.rows
    assert_nothing_left(network)
    assert_no_disagreement(network)


def test_a_run_that_does_not_fit_goes_as_rows() -> None:
    for limits in (
        replace(LIMITS, max_client_rows=10),
        replace(LIMITS, max_client_bytes=60),
        replace(LIMITS, max_row_bytes=5),
    ):
        network = Network(BrokerSettings(limits=limits))
        network.add_worker(concurrency=4)
        client = network.add_client()
        client.submit(*payloads(50), as_run=True)
        network.run_until(lambda client=client: len(client.endings) == 50)
        assert client.done == (0 if limits.max_row_bytes == 5 else 50)
        assert len(client.rows) == 50


def test_a_run_that_expires_ends_where_it_is() -> None:
    network = Network()
    worker = network.add_worker(run_s=None)
    client = network.add_client()
    client.submit(*payloads(20), timeout_s=2.0, as_run=True)
    network.run_until(lambda: bool(worker.running))
    worker.finish()
    network.run_until(lambda: len(client.endings) == 20)
    assert client.done == 1
    assert sum(isinstance(one, Expired) for (one,) in client.endings.values()) == 19
    worker.finish()
    assert_nothing_left(network)


def test_a_run_that_nobody_wants_any_more_is_taken_back_wherever_it_is() -> None:
    network = Network()
    worker = network.add_worker(run_s=None)
    client = network.add_client()
    client.submit(*payloads(20), as_run=True)
    network.run_until(lambda: bool(worker.running))
    client.withdraw(client.runs[0])
    unserved = [client.submit(*payloads(20, llm), llm=llm, as_run=True) for llm in ("nobody", "none")]
    client.withdraw(client.runs[1])
    late = Run(unserved[0][0].spec, client, 0, [b"late"])
    client.withdraw(late)
    client.client.submit(late, network.now)
    client.withdraw(client.runs[2])
    network.run(1.0)
    worker.finish()
    network.run(1.0)
    assert not client.endings
    assert_nothing_left(network)


class Chaos:
    """Clients whose runs, and rows, meet with every trouble that there is, by chance."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        settings = BrokerSettings(limits=LIMITS, settle_s=1.0, max_rows=self.chance.choice([40, *[100_000] * 3]))
        weather = Weather(*self.chance.choice([(0.0, 0.0, 0.0), (0.1, 0.3, 0.1)]))
        self.network = Network(settings, seed=seed, weather=weather)
        self.workers = [add_worker(self.network, self.chance.choice([1, 4, 9])) for _ in range(3)]
        self.clients = [self.network.add_client() for _ in range(2)]
        self.given: dict[FakeClient, list[bytes]] = {client: [] for client in self.clients}
        self.withdrawn: set[bytes] = set()
        self.count = 0

    def run(self) -> None:
        for _ in range(60):
            self.step()
            self.network.run(self.chance.choice([0.0, 0.02, 0.2]))
            for client in self.clients:
                client.assert_books()
        if self.network.broker is None:
            self.network.start_broker()
        self.network.run_until(lambda: all(map(self.is_over, self.clients)), 300.0)

    def step(self) -> None:
        chance, network = self.chance, self.network
        client = chance.choice(self.clients)
        match chance.randrange(20):
            case 0 | 1 | 2 | 3 | 4:
                self.submit(client)
            case 5:
                network.cut(client)
            case 6:
                network.cut(chance.choice(self.workers))
            case 7:
                worker = self.workers.pop(0)
                network.kill(worker)
                self.workers.append(add_worker(network, chance.choice([1, 4, 9])))
            case 8 if network.broker is not None:
                network.kill_broker()
            case 8 | 9 if network.broker is None:
                network.start_broker()
            case 10 if client.runs:
                run = chance.choice(client.runs)
                self.withdrawn.update(payload for payload in run.payloads if payload not in client.endings)
                client.withdraw(run)
            case _:
                pass

    def submit(self, client: FakeClient) -> None:
        words = [FAILS if self.chance.random() < 0.01 else b"row" for _ in range(self.chance.randint(1, 60))]
        given = [b"%b %d" % (word, self.count + number) for number, word in enumerate(words)]
        self.count += len(given)
        self.given[client] += given
        client.submit(*given, as_run=self.chance.random() < 0.8)

    def is_over(self, client: FakeClient) -> bool:
        return len(client.endings) == len(set(self.given[client]) - self.withdrawn)


@pytest.mark.parametrize("seed", range(24))
def test_whatever_happens_each_row_has_one_end_or_was_withdrawn(seed: int) -> None:
    chaos = Chaos(seed)
    chaos.run()
    for client in chaos.clients:
        assert set(client.endings) == set(chaos.given[client]) - chaos.withdrawn
        for payload, endings in client.endings.items():
            (ending,) = endings
            assert isinstance(ending, Ending)
            # A row may be suspected of the death of a worker.
            assert ending.outcome in (outcome(payload), Outcome.FAILED)
            assert ending.outcome != Outcome.DONE or ending.payload == b"answer to " + payload
    assert_nothing_left(chaos.network)
    if chaos.network.weather == Weather():
        assert_no_disagreement(chaos.network)


def test_by_chance_runs_stay_together_and_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test above says little."""
    together: list[int] = []
    whole = Client._run_answered

    def counted(self: Client, run: Run, first: int, given: list[bytes], now: float) -> None:
        together.append(len(given))
        whole(self, run, first, given, now)

    monkeypatch.setattr(Client, "_run_answered", counted)
    chaos = Chaos(7)
    chaos.run()
    assert sum(together) > 100
    assert sum(len(client.rows) for client in chaos.clients) > 200
