"""What becomes of the shares of an LLM that nobody serves: calls on links that lose rows as a test says."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import pytest
from inputs import inputs
from voices import Asked, FakeLink, FakeVoice, echo, info

from genpool import LLMPool, ProcessLLM, TextGenerationTask
from genpool.client import pool as pool_module
from genpool.client import process_llm as llm_module
from genpool.client.call import Call, CallSettings
from genpool.client.record import Record
from genpool.client.row import Ending
from genpool.client.share import move_shares
from genpool.protocol.errors import ConfigurationError, GenerationError, GenpoolError, LLMLost

LOST = LLMLost("nobody has served 'a' for 30 s")


class Fleet:
    """The LLMs "a", "b" and "c" on one link. ``lose`` ends what an LLM holds and whatever it is asked afterwards."""

    def __init__(self) -> None:
        self.holding: set[str] = set()
        self.link = FakeLink(self._answer, *(info(name) for name in "abc"))

    def _answer(self, asked: Asked) -> Ending | GenpoolError | None:
        return None if asked.llm in self.holding else echo(asked)

    def hold(self, *llms: str) -> None:
        self.holding |= set(llms)

    def take_away(self, *llms: str) -> None:
        """Nobody serves them now."""
        self.hold(*llms)
        assert self.link.fleet is not None
        self.link.fleet |= {name: info(name, ready=0, capacity=0) for name in llms}

    def lose(self, *llms: str) -> None:
        self.take_away(*llms)
        for one in [one for one in self.link.held if one.llm in llms]:
            self.link.end(one, LOST)

    def bring_back(self, llm: str) -> None:
        assert self.link.fleet is not None
        self.holding.remove(llm)
        self.link.fleet[llm] = info(llm)

    def asked(self, llm: str) -> int:
        """How many rows it was asked."""
        return sum(one.llm == llm for one in self.link.rows)


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """The fleet of every connected LLM."""
    fleet = Fleet()
    for module in (llm_module, pool_module):
        monkeypatch.setattr(module, "link_to", lambda address: fleet.link)
        monkeypatch.setattr(module, "leave", lambda link: None)
    return fleet


@pytest.fixture
def pool(fleet: Fleet) -> LLMPool:
    return LLMPool.connect(["a", "b", "c"])


def makers(row: list[Any]) -> list[str]:
    """The LLMs that made a row's outputs, in order."""
    return [output["model_name"].rpartition(" ")[2] for output in row]


def test_what_is_lost_is_drawn_anew_over_the_others(fleet: Fleet, pool: LLMPool) -> None:
    fleet.hold("a")
    advances: list[int] = []
    future = pool.submit(
        inputs("x", "y"), 6, lambda *, advance: advances.append(advance), if_lost="redraw", lost_after_s=30.0
    )
    assert {one.row.spec.lost_after_s for one in fleet.link.rows} == {30.0}
    fleet.lose("a")
    for row in future.result(0):
        assert makers(row) == ["b"] * 3 + ["c"] * 3
    assert sum(advances) == 12


def test_what_an_llm_makes_for_another_is_sampled_anew(fleet: Fleet, pool: LLMPool) -> None:
    fleet.hold("a", "b")
    future = pool.submit(inputs("x"), 3, if_lost="redraw", seed=7, weights=[1, 1, 1])
    fleet.lose("a")
    fleet.lose("b")
    assert makers(future.result(0)[0]) == ["c"] * 3
    seeds = [one.seed for one in fleet.link.rows if one.llm == "c"]
    assert None not in seeds
    assert len(set(seeds)) == len(seeds) >= 2


@pytest.mark.parametrize("seed", range(20))
def test_every_input_has_all_its_outputs_whoever_is_lost_when(fleet: Fleet, pool: LLMPool, seed: int) -> None:
    chance = random.Random(seed)
    fleet.hold("a", "b", "c")
    number = chance.randint(1, 9)
    advances: list[int] = []
    count = chance.randint(1, 5)
    future = pool.submit(
        inputs(*map(str, range(count))), number, lambda *, advance: advances.append(advance), if_lost="redraw"
    )
    for name in chance.sample("abc", chance.randint(1, 2)):
        for one in chance.sample(fleet.link.held, chance.randint(0, len(fleet.link.held))):
            fleet.link.end(one)
        fleet.lose(name)
    while fleet.link.held:
        one = chance.choice(fleet.link.held)
        fleet.link.end(one)
    outputs = future.result(0)
    for index, row in enumerate(outputs):
        assert len(row) == number
        assert makers(row) == sorted(makers(row)), "the shares stand in the order of the LLMs"
        assert {output["prompt_used"] for output in row} == {str(index)}
    assert sum(advances) == number * count


def test_weights_are_kept_in_a_new_draw(fleet: Fleet, pool: LLMPool) -> None:
    fleet.hold("a")
    future = pool.submit(inputs(*"uvwxyz"), 4, if_lost="redraw", weights=[1, 0, 1])
    fleet.lose("a")
    assert [makers(row) for row in future.result(0)] == [["c"] * 4] * 6


def test_where_no_other_is_served_lost_shares_wait(
    fleet: Fleet, pool: LLMPool, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.take_away("a", "b", "c")
    future = pool.submit(inputs("x"), 3, if_lost="redraw")
    for _ in range(5):
        fleet.lose("a", "b", "c")
    assert not future.done()
    assert len(fleet.link.held) == 3
    # Each time as long as the first: a row that counted from the start would be lost again at once.
    assert {one.row.spec.since for one in fleet.link.held} == {None}
    assert fleet.link.rows[0].row.spec.since is not None
    (call,) = {cast(Call, one.row.owner) for one in fleet.link.held}
    assert [len(record.shares) for record in call._records.values()] == [3]
    fleet.bring_back("b")
    fleet.lose("a", "c")
    assert not future.done()
    fleet.link.end()
    assert makers(future.result(0)[0]) == ["b"] * 3
    assert "no other LLM is served that could take its shares, so they wait" in caplog.text


def test_lost_shares_are_filled_and_nothing_is_raised(fleet: Fleet, pool: LLMPool) -> None:
    fleet.hold("a")
    future = pool.submit(inputs("x"), 6, if_lost="fill")
    fleet.lose("a")
    (row,) = future.result(0)
    assert makers(row) == ["a"] * 2 + ["b"] * 2 + ["c"] * 2
    assert [output["raw_output"] for output in row[:2]] == [None, None]
    assert {output.get("error") for output in row[:2]} == {"LLMLost: nobody has served 'a' for 30 s (LLM 'a')"}
    assert all("error" not in output for output in row[2:])


def test_other_failures_are_still_raised(fleet: Fleet, pool: LLMPool) -> None:
    fleet.hold("a", "b")
    future = pool.submit(inputs("x", "y"), 3, if_lost="fill")
    (bad,) = [one for one in fleet.link.held if (one.llm, one.text) == ("b", "y")]
    fleet.link.end(bad, ConfigurationError("no"))
    fleet.holding.remove("b")
    for one in [one for one in fleet.link.held if one.llm == "b"]:
        fleet.link.end(one)
    fleet.lose("a")
    with pytest.raises(GenerationError) as caught:
        future.result(0)
    assert caught.value.failures.keys() == {1}
    assert [len(row) for row in caught.value.partial] == [3, 2]


class Run:
    """A call over "a", "b" and "c", begun input by input."""

    def __init__(
        self, fleet: Fleet, if_lost: str, num_generations: int, *, seed: int | None = None, task: Any = None
    ) -> None:
        self.records: dict[int, Record] = {}
        self._number = 0
        voices = [FakeVoice(name, fleet.link, task=task, arguments=["input"]) for name in "abc"]
        settings = CallSettings(
            num_generations,
            weights=[1.0] * 3,
            draw_each_row=True,
            seed=seed,
            options=b"",
            deadline=None,
            fill_errors=False,
            if_lost=if_lost,
        )
        self.call = Call(voices, settings, self._finished)

    def _finished(self, records: list[Record]) -> None:
        for record in records:
            assert record.index not in self.records
            self.records[record.index] = record

    def begin(self, count: int) -> None:
        self.call.begin(self._number, [{"input": str(self._number + number)} for number in range(count)])
        self._number += count


@pytest.mark.parametrize("if_lost", ["redraw", "fill"])
def test_later_inputs_ask_nothing_of_a_lost_llm_until_it_is_served_again(fleet: Fleet, if_lost: str) -> None:
    run = Run(fleet, if_lost, 3)
    fleet.hold("a")
    run.begin(1)
    fleet.lose("a")
    run.begin(50)
    assert len(run.records) == 51
    assert fleet.asked("a") == 1
    fleet.bring_back("a")
    run.begin(9)
    assert fleet.asked("a") == 10
    assert all(len(record.outputs) == 3 for record in run.records.values())
    assert {index for index, record in run.records.items() if record.failure} == (
        set(range(51)) if if_lost == "fill" else set()
    )


def test_a_loss_is_told_once_and_with_what_is_done(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(fleet, "redraw", 6)
    fleet.hold("a")
    run.begin(20)
    fleet.lose("a")
    run.begin(20)
    assert caplog.messages == [f"{LOST}; its shares are drawn anew over b, c, until it is served again"]


def test_what_was_drawn_anew_is_withdrawn_with_its_call(fleet: Fleet) -> None:
    run = Run(fleet, "redraw", 3)
    fleet.hold("a", "b", "c")
    run.begin(4)
    lost = [one for one in fleet.link.held if one.llm == "a"]
    fleet.lose("a")
    assert len(fleet.link.held) == 12
    run.call.cancel()
    assert fleet.link.held == []
    assert len(fleet.link.withdrawn) == 12
    # What is told of before the cancellation and heard after it changes nothing.
    lost[0].tell(LOST)
    assert len(fleet.link.rows) == 16
    assert run.records == {}


class Tired(TextGenerationTask):
    """Makes three prompts, and does something else at the next one."""

    def __init__(self, otherwise: Callable[[], Any]) -> None:
        super().__init__()
        self._left = 3
        self._otherwise = otherwise

    def generate_prompt(self, input: str, **_: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            self._otherwise()
        return super().generate_prompt(input)


def test_nothing_is_sent_when_the_call_is_cancelled_during_a_new_draw(fleet: Fleet) -> None:
    run = Run(fleet, "redraw", 3, task=Tired(lambda: run.call.cancel()))
    fleet.hold("a", "b", "c")
    run.begin(1)
    fleet.lose("a")
    assert len(fleet.link.rows) == 3
    assert fleet.link.held == []


def test_a_task_that_would_end_the_program_ends_its_share_alone(fleet: Fleet) -> None:
    run = Run(fleet, "redraw", 3, task=Tired(lambda: sys.exit("no more")))
    fleet.hold("a")
    run.begin(1)
    fleet.lose("a")
    (record,) = run.records.values()
    assert record.failure is not None
    assert str(record.failure).startswith("SystemExit: no more (LLM ")
    assert len(record.outputs) == 2


def test_an_llm_that_is_torn_down_takes_no_shares(fleet: Fleet, pool: LLMPool) -> None:
    fleet.hold("a")
    future = pool.submit(inputs("x"), 3, if_lost="redraw", weights=[1, 2, 0])
    pool.llms[1].teardown()
    fleet.lose("a")
    with pytest.raises(GenerationError, match="Closed") as caught:
        future.result(0)
    assert len(caught.value.partial[0]) == 2


def test_the_draw_of_later_inputs_is_the_same_whatever_is_lost(fleet: Fleet) -> None:
    def drawn(run: Run) -> list[Counter[str]]:
        return [Counter(makers(run.records[index].outputs)) for index in range(40, 60)]

    whole, broken = Run(fleet, "redraw", 4, seed=3), Run(fleet, "redraw", 4, seed=3)
    whole.begin(60)
    fleet.hold("a")
    broken.begin(40)
    fleet.lose("a")
    fleet.bring_back("a")
    broken.begin(20)
    assert drawn(broken) == drawn(whole)


def test_an_llm_alone_has_nobody_who_could_take_its_shares(fleet: Fleet) -> None:
    llm = ProcessLLM.connect("a")
    for call in (llm.generate, llm.stream):
        with pytest.raises(ConfigurationError, match=r"`if_lost` cannot be 'redraw' for 'a' alone"):
            call(inputs("x"), if_lost="redraw")
    fleet.hold("a")
    future = llm.generate(inputs("x"), 2, if_lost="fill")
    fleet.lose("a")
    assert [output["raw_output"] for output in future.result(0)[0]] == [None, None]


@pytest.mark.parametrize(
    ("shares", "lost", "weights", "moved"),
    [
        ([2, 2, 2], {0}, [1, 1, 1], [0, 3, 3]),
        ([4, 0, 2], {0}, [1, 0, 1], [0, 0, 6]),
        ([2, 2, 2], {0, 1}, [1, 1, 1], [0, 0, 6]),
        ([2, 2, 2], {0, 1, 2}, [1, 1, 1], [2, 2, 2]),
        ([2, 2, 2], {0}, [0, 0, 0], [2, 2, 2]),
        ([0, 2, 2], {0}, [1, 1, 1], [0, 2, 2]),
        ([2, 2, 2], set(), [1, 1, 1], [2, 2, 2]),
    ],
)
def test_who_makes_what_lost_llms_owe(
    shares: list[int], lost: set[int], weights: list[float], moved: list[int]
) -> None:
    assert move_shares(shares, lost, weights, random.Random(0)) == moved
