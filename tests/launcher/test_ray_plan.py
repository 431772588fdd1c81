"""Which replicas on a Ray cluster are started, replaced and ended: without Ray."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genpool.cli import genpool
from genpool.launcher.machine import Drain, Machine, Start, State
from genpool.launcher.ray_file import RayFile, read_ray
from genpool.launcher.ray_plan import Order, found, name_of, orders_of, wanted
from genpool.launcher.service import Fleet, Recipe, Service
from genpool.protocol.errors import ConfigurationError

QWEN = Recipe(("worker", "--llm=qwen"), (("A", "1"),), 1)
SPREAD = {"scheduling_strategy": "SPREAD"}


def fleet(*services: Service) -> Fleet:
    return Fleet(Path("/fleets/fleet.toml"), services, drain_s=60)


def ray_file(*llms: str, **options: Any) -> RayFile:
    return RayFile(None, "f", {llm: {**SPREAD, **options} for llm in llms})


def names(service: str, *numbers: int, recipe: Recipe = QWEN, **options: Any) -> list[str]:
    fingerprint = Order(recipe, {**SPREAD, **options}).fingerprint
    return [f"f/{service}/{number}/{fingerprint}" for number in numbers]


def planned(there: list[str], want: Fleet, state: State = State.READY, file: RayFile | None = None) -> Machine:
    """What becomes of actors that are ``there``."""
    machine = Machine(lambda: 0.5)
    machine.processes = found("f", there)
    for process in machine.processes:
        process.state = state
    machine.want(wanted(want, file or ray_file(*(service.name for service in want.services))), 0.0)
    return machine


def effects(machine: Machine) -> list[tuple[str, str]]:
    return [
        (type(effect).__name__, effect.process.name) for effect in machine.flush() if isinstance(effect, Start | Drain)
    ]


def test_what_is_missing_is_started_and_what_is_unchanged_is_left_alone() -> None:
    machine = planned(names("qwen", 2), fleet(Service("qwen", QWEN, 3)))
    assert effects(machine) == [("Start", "qwen-1"), ("Start", "qwen-3")]
    assert not machine.is_settled
    machine = planned(names("qwen", 1, 2), fleet(Service("qwen", QWEN, 2)))
    assert effects(machine) == []
    assert machine.is_settled


def test_what_is_too_much_is_ended() -> None:
    there = names("qwen", 1, 2, 3) + names("gone", 1)
    assert effects(planned(there, fleet(Service("qwen", QWEN, 1)))) == [
        ("Drain", "qwen-3"),
        ("Drain", "qwen-2"),
        ("Drain", "gone-1"),
    ]


def test_changed_ones_are_replaced_one_by_one() -> None:
    machine = planned(names("qwen", 1, 2, num_cpus=4), fleet(Service("qwen", QWEN, 2)))
    assert effects(machine) == [("Start", "qwen-3")]
    (new,) = [process for process in machine.processes if process.state is State.STARTING]
    machine.came_up(new, 1.0)
    assert effects(machine) == [("Drain", "qwen-2"), ("Start", "qwen-4")]


def test_without_room_an_old_one_goes_first_and_only_one() -> None:
    machine = planned(names("qwen", 1, 2, num_cpus=4), fleet(Service("qwen", QWEN, 2)))
    machine.flush()
    (new,) = [process for process in machine.processes if process.state is State.STARTING]
    machine.make_room(new, 10.0)
    assert effects(machine) == [("Drain", "qwen-2")]
    machine.make_room(new, 20.0)
    assert effects(machine) == []


def test_room_is_not_made_for_one_that_replaces_nothing() -> None:
    machine = planned(names("qwen", 1), fleet(Service("qwen", QWEN, 2)))
    machine.flush()
    machine.make_room(machine.processes[1], 10.0)
    assert effects(machine) == []


def test_changed_ones_that_serve_nobody_yet_go_at_once() -> None:
    machine = planned(names("qwen", 1, num_cpus=4), fleet(Service("qwen", QWEN, 1)), State.STARTING)
    assert effects(machine) == [("Drain", "qwen-1"), ("Start", "qwen-2")]


@pytest.mark.parametrize(
    "other",
    [
        Order(Recipe(("worker", "--llm=qwen", "--batch-size=2"), (("A", "1"),), 1), SPREAD),
        Order(Recipe(("worker", "--llm=qwen"), (("A", "2"),), 1), SPREAD),
        Order(Recipe(("worker", "--llm=qwen"), (("A", "1"),), 2), SPREAD),
        Order(QWEN, {"scheduling_strategy": "DEFAULT"}),
    ],
)
def test_any_difference_is_a_change(other: Order) -> None:
    assert other.fingerprint != Order(QWEN, SPREAD).fingerprint


def test_names_tell_whose_they_are() -> None:
    there = ["f/a/b/12/0a", "other/a/1/0a", "f/a/x/0a", "f", "", "fa/a/1/0a"]
    (process,) = found("f", there)
    assert (process.service, process.number) == ("a/b", 12)
    assert name_of("f", process) == "f/a/b/12/0a"


def test_what_ray_is_asked_for() -> None:
    (order,) = orders_of(fleet(Service("qwen", QWEN)), ray_file("qwen", num_cpus=4)).values()
    assert order.placement == {"scheduling_strategy": "SPREAD", "num_cpus": 4, "num_gpus": 1}
    (order,) = orders_of(fleet(Service("qwen", Recipe(()))), ray_file("qwen")).values()
    assert order.placement == SPREAD


@pytest.mark.parametrize("what", ["up", "down"])
def test_without_ray_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    path = tmp_path / "fleet.toml"
    path.write_text('broker = "tcp://head:5555"\n[llm.a]\nengine = "openai"\n')
    with pytest.raises(ConfigurationError, match=r'pip install "genpool\[ray\]"'):
        genpool([what, "--on", "ray", str(path)], standalone_mode=False)


@pytest.mark.parametrize(
    ("head", "sentence"),
    [
        ("[broker]\n", "line 1: broker: the hosts of a cluster need"),
        ('broker = "head:5555"\ngpus = [0]\n', "line 2: gpus: is for --on local"),
    ],
)
def test_what_is_for_one_host_is_refused(tmp_path: Path, head: str, sentence: str) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(head + '[llm.a]\nengine = "openai"\n')
    with pytest.raises(ConfigurationError, match=sentence):
        genpool(["up", "--on", "ray", str(path)], standalone_mode=False)


def test_a_folder_for_logs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text('broker = "tcp://head:5555"\n[llm.a]\nengine = "openai"\n')
    with pytest.raises(ConfigurationError, match="--logs is for --on local"):
        genpool(["up", "--on", "ray", "--logs", str(tmp_path), str(path)], standalone_mode=False)


Read = Callable[[str], RayFile]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read(text: str) -> RayFile:
        path = tmp_path / "fleet.toml"
        path.write_text(text)
        return read_ray(path, Fleet(path, (Service("a", Recipe(())), Service("b", Recipe(())))))

    return read


HEAD = 'broker = "tcp://head:5555"\n'
LLMS = "[llm.a]\n[llm.b]\n"


def test_options_are_of_all_llms_or_of_one(read: Read) -> None:
    file = read(
        HEAD
        + '[ray]\naddress = "head:6379"\nname = "ours"\nnum-cpus = 2\n'
        + 'runtime-env = { working_dir = "s3://b/code.zip" }\n'
        + LLMS
        + '[llm.b.ray]\nnum_cpus = 0.5\nresources = { disk = 1 }\nscheduling-strategy = "DEFAULT"\n'
    )
    assert (file.address, file.name) == ("head:6379", "ours")
    common = {"num_cpus": 2, "runtime_env": {"working_dir": "s3://b/code.zip"}}
    assert file.options == {
        "a": {**common, **SPREAD},
        "b": {**common, "num_cpus": 0.5, "resources": {"disk": 1}, "scheduling_strategy": "DEFAULT"},
    }


def test_fleets_of_one_file_name_are_told_apart(read: Read, tmp_path: Path) -> None:
    name = read(HEAD + LLMS).name
    assert name.startswith("fleet-")
    other = tmp_path / "other" / "fleet.toml"
    other.parent.mkdir()
    other.write_text(HEAD)
    assert read_ray(other, Fleet(other)).name != name


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (HEAD + "[ray]\nnum-cpu = 1\n" + LLMS, "line 3: ray.num-cpu: there is no such key here: there are address, "),
        (HEAD + "[ray]\nnum-cpus = -1\n" + LLMS, "ray.num-cpus: must be a number from 0 on, got -1"),
        (HEAD + "[ray]\naddress = 1\n" + LLMS, "ray.address: must be a text, got 1"),
        (HEAD + 'ray = "auto"\n' + LLMS, r"ray: must be a table: write \[ray\]"),
        (HEAD + LLMS + "[llm.b.ray]\naddress = 'x'\n", "line 5: llm.b.ray.address: there is no such key here"),
        (HEAD + LLMS + "[llm.b.ray]\nresources = { GPU = 1 }\n", "resources.GPU: has a key of its own"),
        (HEAD + LLMS + "[llm.b.ray]\nscheduling-strategy = 'X'\n", "must be one of SPREAD, DEFAULT, got 'X'"),
        (HEAD + LLMS + "[llm.b.ray]\nruntime-env = { env_vars = {} }\n", "env_vars: belongs in"),
        (HEAD + LLMS + "[llm.b.ray]\nruntime-env = { working_dir = 'x' }\n", "working_dir: must be a URI"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(read: Read, text: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        read(text)
