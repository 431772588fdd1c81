"""The launcher's plan, without a process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from genpool.launcher.machine import Drain, Kill, Machine, Note, Process, Start, State
from genpool.launcher.service import BROKER, Fleet, Recipe, Service

A1, A2 = Recipe(("a", "1")), Recipe(("a", "2"))


def fleet(*services: Service, gpus: str = "", drain_s: float = 60) -> Fleet:
    return Fleet(Path("fleet.toml"), services, tuple(gpus), drain_s)


def llm(name: str = "a", replicas: int = 1, *, gpus: int | None = None, version: int = 1) -> Service:
    return Service(name, Recipe((name, str(version)), gpus=gpus), replicas)


def broker(version: int = 1) -> Service:
    return Service(BROKER, Recipe(("broker", str(version))), is_broker=True)


class Host:
    """Does what the machine says, at once or as the test says, and remembers the order."""

    def __init__(self, *services: Service, gpus: str = "") -> None:
        self.machine = Machine(draw=lambda: 0.0)
        self.now = 0.0
        self.did: list[str] = []
        self.notes: list[str] = []
        self.want(*services, gpus=gpus)

    def want(self, *services: Service, gpus: str = "") -> None:
        self.machine.want(fleet(*services, gpus=gpus), self.now)
        self.perform()

    def perform(self) -> None:
        for effect in self.machine.flush():
            match effect:
                case Note(text=text):
                    self.notes.append(text)
                case Start(process) | Drain(process) | Kill(process):
                    self.did.append(f"{type(effect).__name__.lower()} {process.name}")
                case _:
                    raise AssertionError(effect)

    def news(self) -> list[str]:
        """What was done since the last call."""
        did, self.did = self.did, []
        return did

    def find(self, name: str, state: State | None = None) -> Process:
        (found,) = [one for one in self.machine.processes if one.name == name and state in (None, one.state)]
        return found

    def ready(self, *names: str) -> None:
        for name in names:
            self.machine.came_up(self.find(name, State.STARTING), self.now)
        self.perform()

    def end(self, name: str, code: int = 0) -> None:
        self.machine.ended(self.find(name), code, self.now)
        self.perform()

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.machine.tick(self.now)
        self.perform()

    def states(self) -> dict[str, Any]:
        return {one.name: str(one.state) for one in self.machine.processes}


def test_all_are_started_the_broker_first_and_it_is_settled_when_all_are_ready() -> None:
    host = Host(broker(), llm("a", 2), llm("b"))
    assert host.news() == ["start broker-1", "start a-1", "start a-2", "start b-1"]
    host.ready("broker-1", "a-1", "b-1")
    assert not host.machine.is_settled
    host.ready("a-2")
    assert host.machine.is_settled


def test_the_same_file_changes_nothing() -> None:
    host = Host(broker(), llm("a", 2))
    host.ready("broker-1", "a-1", "a-2")
    host.news()
    host.want(broker(), llm("a", 2))
    assert host.news() == []
    assert host.machine.is_settled


def test_only_what_differs_changes() -> None:
    host = Host(llm("a"), llm("b"), llm("c", 2))
    host.ready("a-1", "b-1", "c-1", "c-2")
    host.news()
    host.want(llm("a"), llm("c", 1), llm("d"))
    assert host.news() == ["drain c-2", "drain b-1", "start d-1"]
    host.end("b-1")
    host.end("c-2")
    host.ready("d-1")
    assert host.machine.is_settled


def test_more_replicas_are_added_and_those_that_serve_stay() -> None:
    host = Host(llm("a"))
    host.ready("a-1")
    host.news()
    host.want(llm("a", 3))
    assert host.news() == ["start a-2", "start a-3"]


def test_fewer_replicas_end_those_that_do_not_serve_first() -> None:
    host = Host(llm("a", 3))
    host.ready("a-2", "a-3")
    host.news()
    host.want(llm("a", 2))
    assert host.news() == ["drain a-1"]


def test_a_changed_llm_is_replaced_one_by_one_the_new_one_first() -> None:
    host = Host(llm("a", 2))
    host.ready("a-1", "a-2")
    host.news()
    host.want(llm("a", 2, version=2))
    assert host.news() == ["start a-3"]
    host.wait(1000)
    assert host.news() == []
    host.ready("a-3")
    assert host.news() == ["drain a-2", "start a-4"]
    host.end("a-2")
    host.ready("a-4")
    assert host.news() == ["drain a-1"]
    host.end("a-1")
    assert host.machine.is_settled
    assert {one.recipe for one in host.machine.processes} == {A2}


def test_where_no_gpu_is_free_an_old_one_makes_room_and_the_others_serve() -> None:
    host = Host(llm("a", 2, gpus=1), gpus="01")
    host.ready("a-1", "a-2")
    host.news()
    host.want(llm("a", 2, gpus=1, version=2), gpus="01")
    assert host.news() == ["drain a-2"]
    host.end("a-2")
    assert host.news() == ["start a-2"]
    assert host.find("a-2").gpus == ("1",)
    host.ready("a-2")
    assert host.news() == ["drain a-1"]
    host.end("a-1")
    host.ready("a-1")
    assert host.machine.is_settled


def test_replicas_that_are_to_share_the_gpus_of_an_old_one_have_it_make_room() -> None:
    host = Host(llm(gpus=2), gpus="01")
    host.ready("a-1")
    host.news()
    host.want(llm(replicas=2, gpus=1), gpus="01")
    assert host.news() == ["drain a-1"]
    host.end("a-1")
    assert host.news() == ["start a-1", "start a-2"]
    host.ready("a-1", "a-2")
    assert host.machine.is_settled


def test_a_replacement_that_never_serves_leaves_the_old_ones_alone() -> None:
    host = Host(llm("a", 2))
    host.ready("a-1", "a-2")
    host.news()
    host.want(llm("a", 2, version=2))
    host.end("a-3", 70)
    host.wait(1)
    host.end("a-3", 2)
    host.wait(1000)
    assert host.news() == ["start a-3", "start a-3"]
    assert host.states() == {"a-1": "ready", "a-2": "ready", "a-3": "final"}
    host.want(llm("a", 2))
    assert host.news() == []
    assert host.machine.is_settled


def test_old_ones_that_do_not_serve_are_replaced_at_once() -> None:
    host = Host(llm("a", 2, gpus=1), gpus="01")
    host.end("a-1", 2)
    host.news()
    host.want(llm("a", 2, gpus=1, version=2), gpus="01")
    assert host.news() == ["drain a-2", "start a-1"]


def test_a_restart_that_is_asked_for_rolls_too() -> None:
    host = Host(llm("a", 1), llm("b"))
    host.ready("a-1", "b-1")
    host.news()
    host.machine.restart("a", host.now)
    host.perform()
    assert host.news() == ["start a-2"]
    host.ready("a-2")
    assert host.news() == ["drain a-1"]


def test_each_replica_has_gpus_of_its_own_and_keeps_them() -> None:
    host = Host(llm("a", 2, gpus=2), llm("b", gpus=1), gpus="01234")
    assert {one.name: one.gpus for one in host.machine.processes} == {
        "a-1": ("0", "1"),
        "a-2": ("2", "3"),
        "b-1": ("4",),
    }
    host.end("a-1", -9)
    host.wait(1)
    assert host.find("a-1").gpus == ("0", "1")


def test_gpus_are_handed_on_only_when_their_holder_is_gone() -> None:
    host = Host(llm("a", gpus=1), gpus="0")
    host.ready("a-1")
    host.news()
    host.want(llm("b", gpus=1), gpus="0")
    assert host.news() == ["drain a-1"]
    host.end("a-1")
    assert host.news() == ["start b-1"]


def test_who_holds_a_gpu_that_is_no_longer_to_be_used_is_replaced() -> None:
    host = Host(llm("a", gpus=1), gpus="01")
    host.ready("a-1")
    host.news()
    host.want(llm("a", gpus=1), gpus="12")
    assert host.news() == ["start a-2"]
    assert host.find("a-2").gpus == ("1",)


def test_one_that_dies_is_started_again_after_a_pause_that_grows() -> None:
    host = Host(llm("a"))
    pauses: list[float] = []
    for _ in range(3):
        assert host.news() == ["start a-1"]
        host.end("a-1", -9)
        due = host.machine.next_at()
        assert due is not None
        pauses.append(due - host.now)
        host.wait(pauses[-1] - 0.01)
        assert host.news() == []
        host.wait(0.02)
    assert pauses == [0.5, 1, 2]
    assert host.notes[0] == "a-1 ended (SIGKILL); it is started again in 0.5 s"
    host.ready("a-1")
    host.wait(1000)
    host.end("a-1", 70)
    assert host.machine.next_at() == host.now + 0.5


def test_what_ended_for_good_is_started_when_it_is_asked_for_again() -> None:
    host = Host(llm("a"))
    host.ready("a-1")
    host.end("a-1", 0)
    host.wait(1000)
    assert host.news() == ["start a-1"]
    assert not host.machine.is_settled
    host.want(llm("a"))
    assert host.news() == ["start a-1"]


def test_a_broker_is_replaced_when_the_old_one_is_gone() -> None:
    host = Host(broker(), llm())
    host.ready("broker-1", "a-1")
    host.news()
    host.want(broker(2), llm())
    assert host.news() == ["drain broker-1"]
    host.end("broker-1")
    assert host.news() == ["start broker-1"]


def test_the_broker_goes_last() -> None:
    host = Host(broker(), llm("a", 2))
    host.ready("broker-1", "a-1", "a-2")
    host.news()
    host.machine.stop(host.now)
    host.perform()
    assert host.news() == ["drain a-1", "drain a-2"]
    host.end("a-1")
    assert host.news() == []
    host.end("a-2")
    assert host.news() == ["drain broker-1"]
    assert not host.machine.is_over
    host.end("broker-1")
    assert host.machine.is_over


def test_a_broker_that_is_not_wanted_any_more_waits_for_those_that_leave() -> None:
    host = Host(broker(), llm())
    host.ready("broker-1", "a-1")
    host.news()
    host.want(llm(version=2))
    assert host.news() == ["start a-2"]
    host.ready("a-2")
    assert host.news() == ["drain a-1"]
    host.end("a-1")
    assert host.news() == ["drain broker-1"]


def test_who_does_not_drain_in_time_is_killed() -> None:
    host = Host(llm("a"), llm("b"))
    host.ready("a-1", "b-1")
    host.news()
    host.want(llm("b"))
    host.wait(59)
    assert host.news() == ["drain a-1"]
    host.wait(2)
    assert host.news() == ["kill a-1"]
    host.wait(1000)
    assert host.news() == []
    host.end("a-1", -9)
    assert host.states() == {"b-1": "ready"}


def test_to_stop_may_be_more_urgent_than_a_drain() -> None:
    host = Host(llm("a"), llm("b"))
    host.ready("a-1", "b-1")
    host.want(llm("b"))
    host.machine.stop(host.now, patience_s=5)
    host.perform()
    host.news()
    host.wait(6)
    assert host.news() == ["kill a-1", "kill b-1"]


def test_everything_can_be_killed_at_once() -> None:
    host = Host(broker(), llm("a", 2))
    host.end("a-1", -9)
    host.machine.stop(host.now)
    host.perform()
    host.news()
    host.machine.kill()
    host.perform()
    assert host.news() == ["kill broker-1", "kill a-2"]
    host.end("a-2", -9)
    host.end("broker-1", -9)
    assert host.machine.is_over


def test_one_that_waits_to_be_started_again_is_not_when_it_is_not_wanted() -> None:
    host = Host(llm("a"))
    host.end("a-1", -9)
    host.news()
    host.want(replace(llm("b")))
    host.wait(1000)
    assert host.news() == ["start b-1"]
