from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genpool.client.share import check_weights, draw_shares
from genpool.protocol.errors import ConfigurationError

_DRAWS = 4000


def mean_shares(num_generations: int, weights: list[float], draws: int = _DRAWS) -> list[float]:
    source = random.Random(0)
    totals = [0] * len(weights)
    for _ in range(draws):
        for at, share in enumerate(draw_shares(num_generations, weights, source)):
            totals[at] += share
    return [total / draws for total in totals]


@given(st.integers(0, 500), st.integers(1, 12), st.integers(0, 1000))
def test_equal_weights_share_within_one(num_generations: int, llms: int, seed: int) -> None:
    shares = draw_shares(num_generations, [1.0] * llms, random.Random(seed))
    assert len(shares) == llms
    assert sum(shares) == num_generations
    assert Counter(shares)[num_generations // llms + 1] == num_generations % llms
    assert set(shares) <= {num_generations // llms, num_generations // llms + 1}


weights_of_llms = st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=10).filter(any)


@given(st.integers(0, 500), weights_of_llms, st.integers(0, 1000))
def test_any_weights_share_out_all_of_it_within_one_of_the_proportion(
    num_generations: int, weights: list[float], seed: int
) -> None:
    shares = draw_shares(num_generations, weights, random.Random(seed))
    assert sum(shares) == num_generations
    for share, weight in zip(shares, weights, strict=True):
        exact = num_generations * weight / sum(weights)
        assert math.floor(exact + 1e-6) <= share + 1e-6
        assert share <= math.ceil(exact - 1e-6) + 1e-6


@pytest.mark.parametrize("num_generations", [1, 3, 5])
def test_who_makes_one_more_is_drawn_evenly(num_generations: int) -> None:
    for mean in mean_shares(num_generations, [1.0] * 4):
        assert mean == pytest.approx(num_generations / 4, abs=0.04)


def test_which_llms_make_one_more_together_is_drawn_evenly() -> None:
    source = random.Random(0)
    pairs = Counter(tuple(draw_shares(2, [1.0] * 4, source)) for _ in range(_DRAWS))
    assert len(pairs) == 6
    assert all(count == pytest.approx(_DRAWS / 6, rel=0.15) for count in pairs.values())


@pytest.mark.parametrize(
    ("num_generations", "weights"),
    [(1, [3.0, 1.0]), (2, [9.0, 9.0, 2.0]), (3, [5.0, 4.0, 3.0, 1.0]), (7, [0.1, 0.2, 0.7]), (10, [1.0, 1.0, 0.5])],
)
def test_over_many_draws_the_shares_are_as_the_weights(num_generations: int, weights: list[float]) -> None:
    exact = [num_generations * weight / sum(weights) for weight in weights]
    assert mean_shares(num_generations, weights) == pytest.approx(exact, abs=0.04)


def test_whole_proportions_leave_nothing_to_chance() -> None:
    drawn = {tuple(draw_shares(8, [1.0, 2.0, 1.0], random.Random(seed))) for seed in range(50)}
    assert drawn == {(2, 4, 2)}


def test_thirds_that_floats_cannot_hold_count_as_whole() -> None:
    assert draw_shares(3, [1 / 3] * 3, random.Random(0)) == [1, 1, 1]
    assert draw_shares(30, [0.1] * 3, random.Random(0)) == [10, 10, 10]


def test_a_weight_of_zero_makes_nothing() -> None:
    for seed in range(100):
        shares = draw_shares(5, [0.0, 2.0, 1.0, 0.0], random.Random(seed))
        assert (shares[0], shares[3], sum(shares)) == (0, 0, 5)


def test_none_to_share_out() -> None:
    assert draw_shares(0, [1.0, 1.0], random.Random(0)) == [0, 0]


def test_a_seed_repeats_the_draw_and_another_one_does_not() -> None:
    def drawn(seed: int) -> list[list[int]]:
        source = random.Random(seed)
        return [draw_shares(3, [1.0] * 5, source) for _ in range(20)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_no_weights_are_equal_ones() -> None:
    assert check_weights(None, 3) == [1.0, 1.0, 1.0]


def test_weights_become_floats() -> None:
    weights = check_weights((1, 2, 0), 3)
    assert weights == [1.0, 2.0, 0.0]
    assert all(isinstance(weight, float) for weight in weights)


@pytest.mark.parametrize(
    "weights",
    [
        [],
        [1.0],
        [1.0, 1.0, 1.0],
        [1.0, -1.0],
        [0.0, 0.0],
        [1.0, math.inf],
        [1e308, 1e308],
        [1.0, math.nan],
        ["heavy", "light"],
        [1.0, None],
        7,
    ],
)
def test_weights_that_cannot_be_used(weights: object) -> None:
    with pytest.raises(ConfigurationError, match=r"`weights` must be 2 numbers, one for each LLM"):
        check_weights(weights, 2)  # pyright: ignore[reportArgumentType]
