"""The three state machines together, over the in-memory network: no socket, no sleep, no clock."""

from __future__ import annotations

import random

import pytest
from network import FakeClient, FakeWorker, Network

from genpool.broker.settings import BrokerSettings
from genpool.client.row import Ending
from genpool.protocol.errors import Expired, NoBroker, UnknownLLM
from genpool.protocol.messages import Outcome


def payloads(count: int, name: str = "row") -> list[bytes]:
    return [f"{name} {number}".encode() for number in range(count)]


def assert_all_answered_once(client: FakeClient, count: int) -> None:
    assert len(client.endings) == count
    assert all(len(endings) == 1 for endings in client.endings.values())
    for payload, (ending,) in client.endings.items():
        assert isinstance(ending, Ending)
        assert (ending.outcome, ending.payload) == (Outcome.DONE, b"answer to " + payload)


def assert_nothing_left(network: Network) -> None:
    """Once all is answered, no ledger holds anything, and every worker's whole credit is there."""
    network.run(12.0)
    assert network.broker is not None
    assert not network.broker.ledger.rows
    assert not network.broker.ledger.executions
    for end in network.ends:
        if isinstance(end, FakeClient):
            assert not end.client.submitted
            assert not end.client.runs
            assert not end.client.lines
        elif isinstance(end, FakeWorker):
            assert not end.worker.held
    for llm in network.broker.llms.values():
        assert not len(llm.queue)
        for worker in llm.workers:
            assert worker.running == 0
            assert not worker.executions
            assert worker.free_calls == worker.hello.concurrency


def test_rows_are_answered_once_by_all_workers() -> None:
    network = Network()
    workers = [network.add_worker(concurrency=4) for _ in range(3)]
    client = network.add_client()
    client.submit(*payloads(1000))
    network.run_until(lambda: client.done == 1000)
    assert_all_answered_once(client, 1000)
    assert all(len(worker.started) > 250 for worker in workers)
    assert_nothing_left(network)


def test_the_first_answer_comes_before_the_last_row_starts() -> None:
    network = Network()
    worker = network.add_worker(run_s=None)
    client = network.add_client()
    client.submit(b"first", b"second", b"third")
    network.run_until(lambda: len(worker.running) == 1)
    worker.finish()
    network.run_until(lambda: client.done == 1)
    assert network.computed == {b"first": 1, b"second": 1}


def test_a_cancelled_row_never_starts_and_a_running_one_is_told_to_stop() -> None:
    network = Network()
    worker = network.add_worker(run_s=None)
    client = network.add_client()
    running, waiting, last = client.submit(b"running", b"waiting", b"last")
    network.run_until(lambda: bool(worker.running))
    client.withdraw([running, waiting])
    network.run(1.0)
    assert worker.stopped == worker.started
    worker.finish()
    network.run_until(lambda: len(worker.started) == 2)
    worker.finish()
    network.run_until(lambda: client.done == 1)
    assert network.computed == {b"running": 1, b"last": 1}
    assert list(client.endings) == [last.payload]
    assert_nothing_left(network)


def test_clients_take_turns() -> None:
    network = Network()
    worker = network.add_worker()
    big, small = network.add_client(), network.add_client()
    big.submit(*payloads(200, "big"))
    network.run_until(lambda: big.done > 10)
    small.submit(*payloads(10, "small"))
    before = big.done
    network.run_until(lambda: small.done == 10)
    assert big.done - before < 16
    assert worker.exit_code is None


def test_a_batch_engine_gets_whole_calls_of_rows_that_fit_together() -> None:
    network = Network()
    worker = network.add_worker(batch_size=8, run_s=None)
    client = network.add_client()
    client.submit(*payloads(6, "one generation"), n=1)
    client.submit(*payloads(6, "two generations"), n=2)
    network.run_until(lambda: bool(worker.running))
    network.run(1.0)
    sizes: list[tuple[int, int]] = []
    while client.done < 12:
        network.run_until(lambda: bool(worker.running))
        (call,) = worker.running.values()
        sizes.append((call.num_generations, len(call.executions)))
        done = client.done
        worker.finish()
        network.run_until(lambda done=done: client.done > done)
    assert sum(size for _, size in sizes) == 12
    assert all(size <= 8 for _, size in sizes)
    assert len(sizes) <= 3
    assert_nothing_left(network)


def test_no_row_is_handed_out_beyond_the_credit() -> None:
    network = Network()
    workers = [network.add_worker(concurrency=3, run_s=None) for _ in range(2)]
    client = network.add_client()
    client.submit(*payloads(50))
    network.run(2.0)
    assert [len(worker.worker.held) for worker in workers] == [3, 3]


def test_a_loading_worker_gets_nothing_and_is_known() -> None:
    network = Network()
    worker = network.add_worker(ready=False)
    client = network.add_client()
    client.submit(b"row", wait_s=5.0)
    network.run(20.0)
    assert not worker.started
    assert not client.endings
    worker.worker.loaded(worker.worker.identity, network.now)
    network.run_until(lambda: client.done == 1)


@pytest.mark.parametrize("whom", ["client", "worker"])
def test_a_cut_loses_nothing_and_repeats_nothing_that_was_finished(whom: str) -> None:
    network = Network(BrokerSettings(worker_grace_s=5.0), delay_s=0.01)
    workers = [network.add_worker(concurrency=8, run_s=0.05) for _ in range(2)]
    client = network.add_client()
    client.submit(*payloads(2000))
    for _ in range(50):
        network.run(0.05)
        network.cut(client if whom == "client" else network.random.choice(workers))
    network.run_until(lambda: client.done == 2000, 300)
    assert_all_answered_once(client, 2000)
    assert set(network.computed.values()) == {1}
    assert_nothing_left(network)


def test_a_killed_workers_rows_go_elsewhere() -> None:
    network = Network()
    doomed = network.add_worker(concurrency=4, run_s=None)
    client = network.add_client()
    client.submit(*payloads(4))
    network.run_until(lambda: len(doomed.running) == 4)
    network.add_worker(concurrency=4)
    killed_at = network.now
    network.kill(doomed)
    network.run_until(lambda: client.done == 4)
    assert network.now - killed_at < 2.0
    assert_all_answered_once(client, 4)
    assert_nothing_left(network)


def test_a_poisonous_row_is_found_and_its_neighbours_are_answered() -> None:
    network = Network()
    client = network.add_client()
    rows = payloads(64)
    deaths = 0

    def add() -> FakeWorker:
        return network.add_worker(concurrency=64, run_s=0.2)

    workers = [add(), add()]
    client.submit(*rows)
    while len(client.endings) < 64:
        network.run(0.05)
        for worker in list(workers):
            if any(b"row 7" in call.payloads for call in worker.running.values()):
                deaths += 1
                network.kill(worker)
                workers.remove(worker)
                workers.append(add())
    assert deaths == 3
    failed = [payload for payload, (ending,) in client.endings.items() if getattr(ending, "outcome", 0) != Outcome.DONE]
    assert failed == [b"row 7"]
    assert_nothing_left(network)


def test_a_row_that_raises_is_tried_as_often_as_allowed() -> None:
    network = Network()
    worker = network.add_worker()
    worker.outcome = lambda payload: Outcome.RAISED if payload == b"bad" else Outcome.DONE
    client = network.add_client()
    client.submit(b"good", b"bad")
    network.run_until(lambda: len(client.endings) == 2)
    (ending,) = client.endings[b"bad"]
    assert isinstance(ending, Ending)
    assert (ending.outcome, ending.attempts, ending.payload) == (Outcome.FAILED, 3, b"answer to bad")
    assert network.computed == {b"good": 1, b"bad": 3}
    assert_nothing_left(network)


def test_a_row_that_fails_for_good_is_tried_once() -> None:
    network = Network()
    network.add_worker().outcome = lambda payload: Outcome.FAILED
    client = network.add_client()
    client.submit(b"bad")
    network.run_until(lambda: len(client.endings) == 1)
    assert network.computed == {b"bad": 1}
    assert_nothing_left(network)


def test_a_broker_killed_again_and_again_repeats_nothing() -> None:
    network = Network(BrokerSettings(settle_s=2.0))
    for _ in range(3):
        network.add_worker(concurrency=8, run_s=0.3)
    client = network.add_client()
    client.submit(*payloads(1500))
    for _ in range(5):
        network.run(0.7)
        network.kill_broker()
        network.run(0.5)
        network.start_broker()
        network.run(2.0)
    network.run_until(lambda: client.done == 1500, 300)
    assert_all_answered_once(client, 1500)
    assert set(network.computed.values()) == {1}
    assert_nothing_left(network)


def test_a_clients_rows_are_dropped_after_the_grace_and_stopped() -> None:
    network = Network(BrokerSettings(client_grace_s=5.0))
    worker = network.add_worker(run_s=None)
    client = network.add_client()
    client.submit(*payloads(5))
    network.run_until(lambda: bool(worker.running))
    network.kill(client)
    network.run(4.0)
    assert network.broker is not None
    assert len(network.broker.ledger.rows) == 5
    network.run(3.0)
    assert not network.broker.ledger.rows
    assert worker.stopped == worker.started


def test_a_client_that_says_goodbye_is_forgotten_at_once() -> None:
    network = Network()
    worker = network.add_worker(run_s=None)
    client = network.add_client()
    client.submit(*payloads(5))
    network.run_until(lambda: bool(worker.running))
    client.machine.end("done")
    client.perform(client.machine.flush(network.now))
    network.run(0.5)
    assert network.broker is not None
    assert not network.broker.ledger.rows
    assert not network.broker.clients
    assert worker.stopped == worker.started


def test_a_client_away_for_longer_than_the_grace_sends_its_rows_again() -> None:
    network = Network(BrokerSettings(client_grace_s=2.0))
    network.add_worker(run_s=1.0)
    client = network.add_client()
    client.submit(*payloads(20))
    network.run(1.5)
    wire = client.wire
    assert wire is not None
    network.ends.remove(client)  # frozen: no tick, and the broker sees the connection close
    client.is_alive = False
    network._break(wire)
    network.run(10.0)
    assert network.broker is not None
    assert not network.broker.ledger.rows
    client.is_alive = True
    network.ends.append(client)
    client.machine.broken("it was frozen", network.now)
    client.perform(client.machine.flush(network.now))
    network.run_until(lambda: client.done == 20)
    assert_all_answered_once(client, 20)


def test_a_drained_worker_finishes_what_runs_and_exits() -> None:
    network = Network()
    worker = network.add_worker(concurrency=2, run_s=None)
    client = network.add_client()
    client.submit(*payloads(4))
    network.run_until(lambda: len(worker.running) == 2)
    worker.worker.drain(network.now)
    network.run(1.0)
    assert worker.exit_code is None
    worker.finish()
    worker.finish()
    network.run_until(lambda: worker.exit_code is not None)
    assert worker.exit_code == 0
    assert client.done == 2
    network.add_worker()
    network.run_until(lambda: client.done == 4)
    assert set(network.computed.values()) == {1}
    assert_nothing_left(network)


def test_an_unwell_worker_hands_back_uncharged_and_probes() -> None:
    network = Network()
    worker = network.add_worker(concurrency=4, run_s=None)
    worker.outcome = lambda payload: Outcome.RETURNED
    client = network.add_client()
    client.submit(*payloads(4))
    network.run_until(lambda: len(worker.running) == 4)
    worker.worker.unwell("no server", network.now)
    for _ in range(4):
        worker.finish()
    network.run(0.5)
    assert network.broker is not None
    (info,) = [llm.info() for llm in network.broker.llms.values()]
    assert (info.ready, info.unwell, info.reason) == (0, 1, "no server")
    assert not worker.running
    worker.outcome = lambda payload: Outcome.DONE
    network.run_until(lambda: len(worker.running) == 1)  # the probe
    network.run(0.5)
    assert len(worker.running) == 1
    worker.run_s = 0.01
    worker.finish()
    network.run_until(lambda: client.done == 4)
    assert all(ending.attempts == 0 for (ending,) in client.endings.values() if isinstance(ending, Ending))
    assert_nothing_left(network)


def test_an_unknown_llm_is_waited_for_and_then_an_error_that_lists_the_known() -> None:
    network = Network()
    network.add_worker("known")
    client = network.add_client()
    client.submit(b"row", llm="unknown", wait_s=5.0)
    network.run(4.0)
    assert not client.endings
    network.run(2.0)
    ((ending,),) = client.endings.values()
    assert isinstance(ending, UnknownLLM)
    assert "'unknown'" in str(ending)
    assert "known there: known" in str(ending)


def test_no_broker_is_an_error_after_the_wait() -> None:
    network = Network()
    network.kill_broker()
    client = network.add_client()
    client.submit(b"row", wait_s=5.0)
    network.run(6.0)
    ((ending,),) = client.endings.values()
    assert isinstance(ending, NoBroker)


def test_a_deadline_ends_rows_that_wait_and_rows_that_run() -> None:
    network = Network()
    worker = network.add_worker(run_s=None)
    client = network.add_client()
    client.submit(b"running", b"waiting", timeout_s=2.0)
    network.run(3.0)
    assert [type(ending) for (ending,) in client.endings.values()] == [Expired, Expired]
    assert worker.stopped == worker.started
    worker.finish()
    assert_nothing_left(network)


def test_a_quiet_call_says_what_it_waits_for() -> None:
    network = Network()
    network.add_worker(ready=False)
    client = network.add_client()
    client.submit(b"row")
    network.run(15.0)
    assert any("1 row for 'llm' had no answer" in line and "1 are loading" in line for line in network.log)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_every_row_is_answered_once(seed: int) -> None:
    """Random cuts, kills and restarts of everything but the clients."""
    chance = random.Random(seed)
    network = Network(BrokerSettings(settle_s=1.0), seed=seed, delay_s=chance.choice([0.0005, 0.005, 0.05]))
    workers = [network.add_worker(concurrency=chance.randint(1, 8), run_s=chance.uniform(0.01, 0.5)) for _ in range(4)]
    workers += [network.add_worker(batch_size=4, run_s=chance.uniform(0.01, 0.5)) for _ in range(2)]
    clients = [network.add_client() for _ in range(3)]
    for number, client in enumerate(clients):
        client.submit(*payloads(400, f"client {number}"))
    killed = 0
    for _ in range(60):
        network.run(chance.uniform(0.0, 0.5))
        what = chance.random()
        if what < 0.5:
            network.cut(chance.choice(network.ends))
        elif what < 0.6 and killed < 2:
            killed += 1
            victim = workers.pop(chance.randrange(len(workers)))
            network.kill(victim)
            workers.append(network.add_worker(concurrency=4, run_s=0.1))
        elif what < 0.7:
            network.kill_broker()
            network.run(chance.uniform(0.0, 1.0))
            network.start_broker()
    network.run_until(lambda: all(client.done == 400 for client in clients), 600)
    for client in clients:
        assert_all_answered_once(client, 400)
    assert_nothing_left(network)


def test_an_llm_that_is_unwell_while_it_loads_is_loaded_again() -> None:
    network = Network()
    worker = network.add_worker(ready=False)
    client = network.add_client()
    client.submit(b"row")
    network.run(1.0)
    worker.worker.unwell("its server is not there yet", network.now)
    network.run(0.5)
    assert network.broker is not None
    (info,) = [llm.info() for llm in network.broker.llms.values()]
    assert (info.loading, info.unwell, info.reason) == (0, 1, "its server is not there yet")
    network.run_until(lambda: worker.loads == 1)
    assert not worker.started
    worker.worker.loaded(worker.worker.identity, network.now)
    network.run_until(lambda: client.done == 1)


def test_a_row_whose_engine_holds_the_lock_until_it_crashes_ends_too() -> None:
    """No word is heard for longer than the heartbeat timeout, and then the connection closes."""
    network = Network()
    client = network.add_client()
    client.submit(b"poison")
    for _ in range(network.settings.max_attempts):
        worker = network.add_worker(run_s=None)
        network.run_until(lambda worker=worker: bool(worker.running))
        worker.is_alive = False  # its machine is not asked any more, and its connection stays
        network.run(12.0)
        network.kill(worker)
        network.run(2.0)
    ((ending,),) = client.endings.values()
    assert isinstance(ending, Ending)
    assert (ending.outcome, ending.attempts) == (Outcome.FAILED, 3)


def test_a_row_that_met_three_frozen_hosts_is_answered() -> None:
    network = Network()
    client = network.add_client()
    client.submit(b"innocent")
    for _ in range(3):
        worker = network.add_worker(run_s=None)
        network.run_until(lambda worker=worker: bool(worker.running))
        network.freeze(worker)
        network.run(12.0)
    network.add_worker()
    network.run_until(lambda: client.done == 1)
    ((ending,),) = client.endings.values()
    assert isinstance(ending, Ending)
    assert ending.attempts == 0


def test_a_worker_that_was_frozen_hands_over_what_is_wanted_and_stops_what_is_not() -> None:
    network = Network()
    frozen = network.add_worker(concurrency=2, run_s=None)
    client = network.add_client()
    client.submit(b"done elsewhere", b"still running")
    network.run_until(lambda: len(frozen.running) == 2)
    network.freeze(frozen)
    network.run(5.0)
    other = network.add_worker(concurrency=2, run_s=None)
    network.run_until(lambda: len(other.running) == 2)
    elsewhere = next(call for call, one in other.running.items() if one.payloads == [b"done elsewhere"])
    other.finish(elsewhere)
    network.run_until(lambda: client.done == 1)
    network.thaw(frozen)
    network.run(2.0)
    assert len(frozen.stopped) == 1
    here = next(call for call, one in frozen.running.items() if one.payloads == [b"still running"])
    frozen.finish(here)
    network.run_until(lambda: client.done == 2)
    network.run(1.0)
    assert len(other.stopped) == 1
    assert_all_answered_once(client, 2)
    for worker in (frozen, other):
        for call in list(worker.running):
            worker.finish(call)
    network.run(1.0)
    assert_nothing_left(network)
