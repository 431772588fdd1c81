"""Everything at once, at random, in the broker's machine."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from driven import (
    FIRST,
    SETTINGS,
    Bench,
    client_hello,
    grant,
    hold,
    ids,
    numbered,
    result,
    submit,
    worker_hello,
)

from genpool.broker.peer import Worker
from genpool.protocol.messages import (
    Await,
    Goodbye,
    Message,
    Outcome,
    Release,
    WorkerState,
)


class Chaos:
    """Two clients and three workers on two connections each, saying whatever comes to their minds."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        settings = replace(SETTINGS, max_attempts=self.chance.choice([1, 2, 3]))
        self.bench = Bench(settings, age=self.chance.choice([0.0, 100.0]))

    def step(self) -> None:
        pick = self.chance.random()
        if pick < 0.1:
            self.bench.tick(self.chance.choice([0.1, 0.5, 0.5, 12.0]))
        elif pick < 0.15:
            self.bench.lose(self.somebody(), silent=self.chance.random() < 0.3)
        else:
            name = self.somebody()
            messages = self.of_client(name) if name.startswith("c") else self.of_worker(name)
            self.bench.tell(name, *messages)

    def somebody(self) -> str:
        """Mostly one who is there."""
        there = [peer.decode() for peer in self.bench.broker.peers]
        return self.chance.choice([*CHAOTIC_PEERS, *there, *there, *there])

    def rows(self, name: str, most: int) -> list[str]:
        """Some of the rows of this client; nobody else can know their ids."""
        return self.chance.sample(numbered(name[:2], 8), self.chance.randint(0, most))

    def of_client(self, name: str) -> list[Message]:
        chance = self.chance
        if name.encode() not in self.bench.broker.peers:
            coming: list[Message] = [client_hello(name[:2]), Await(ids(*self.rows(name, 6)), False)]
            return coming[: chance.randint(1, 2)]
        said: dict[str, Any] = {
            "llm": chance.choice(["llm", "llm", "other"]),
            "num_generations": chance.choice([1, 2]),
            "seconds_left": chance.choice([None, None, 1.0]),
            "again": chance.random() < 0.3,
            "hedge": chance.choice([0.0, 1.0]),
        }
        messages = [
            submit(*self.rows(name, 4), **said),
            Release(ids(*self.rows(name, 2))),
            Await(ids(*self.rows(name, 8)), chance.random() < 0.2),
            chance.choice([client_hello(name[:2]), Goodbye()]),
        ]
        return chance.choices(messages, [8, 3, 2, 1])

    def of_worker(self, name: str) -> list[Message]:
        chance = self.chance
        llm, batch = ("other", 1) if name.startswith("w3") else ("llm", chance.choice([1, 3]))
        state = chance.choice([READY, READY, WorkerState.UNWELL])
        hello = worker_hello(name[:2], llm=llm, batch_size=batch, credit=chance.randint(0, 9), state=state)
        held = [(number, row, chance.random() < 0.4) for number, row in self.held(name)]
        if name.encode() not in self.bench.broker.peers:
            coming: list[Message] = [hello, hold(*held)]
            return coming[: chance.randint(1, 4)]
        messages = [
            hello,
            grant(chance.randint(0, 40), state),
            result(*self.executions(name), credit=chance.randint(0, 40), outcome=chance.choice(list(Outcome)[:4])),
            hold(*held, more=chance.random() < 0.1),
            hold((*self.lie(), chance.random() < 0.5)),
            Goodbye(),
        ]
        return chance.choices(messages, [1, 3, 6, 2, 1, 1])

    def executions(self, name: str) -> list[int]:
        own = [number for number, _ in self.held(name)]
        return self.chance.sample(own, self.chance.randint(0, len(own))) or [self.chance.randint(0, 20)]

    def held(self, name: str) -> list[tuple[int, str]]:
        worker = self.bench.broker.peers.get(name.encode())
        executions = worker.executions.values() if isinstance(worker, Worker) else []
        held = [(execution.id - FIRST, execution.row.id.decode().strip(".")) for execution in executions]
        return [one for one in held if self.chance.random() < 0.9]

    def lie(self) -> tuple[int, str]:
        """An execution of this life or of an earlier one, and any row."""
        number = self.chance.randint(0, 20)
        row = self.chance.choice(["c1", "c2"]) + str(self.chance.randint(0, 7))
        return self.chance.choice([number, (5 << 38) - FIRST + number]), row


CHAOTIC_PEERS = ["c1", "c1/2", "c2", "c2/2", "w1", "w1/2", "w2", "w2/2", "w3"]
READY = WorkerState.READY


@pytest.mark.parametrize("seed", range(40))
def test_whatever_anybody_says_the_books_agree_and_nothing_is_left_when_all_have_gone(seed: int) -> None:
    """The books are checked at every step, by Bench."""
    chaos = Chaos(seed)
    for _ in range(200):
        chaos.step()
    chaos.bench.lose(*CHAOTIC_PEERS)
    chaos.bench.tick(30.0)
    chaos.bench.tick(30.0)
    broker = chaos.bench.broker
    assert (broker.ledger.rows, broker.ledger.executions, broker.clients, broker.peers) == ({}, {}, {}, {})
    assert not any(len(llm.queue) or llm.suspects or llm.workers for llm in broker.llms.values())
