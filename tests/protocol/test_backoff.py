from __future__ import annotations

from genpool.protocol.backoff import Backoff


def test_the_pauses_double_up_to_the_longest() -> None:
    backoff = Backoff(lambda: 0.0, first_s=1, longest_s=5)
    assert [backoff.pause_s(0) for _ in range(5)] == [1, 2, 4, 5, 5]


def test_what_ran_for_long_starts_afresh_and_what_comes_up_and_ends_does_not() -> None:
    backoff = Backoff(lambda: 0.0, first_s=1, longest_s=5)
    assert [backoff.pause_s(ran_s) for ran_s in (0, 0, 4.9, 5, 0)] == [1, 2, 4, 1, 2]


def test_the_draw_takes_up_to_half_of_a_pause() -> None:
    draws = iter([0.0, 1.0, 0.5])
    backoff = Backoff(lambda: next(draws), first_s=1, longest_s=1)
    assert [backoff.pause_s(0) for _ in range(3)] == [1, 0.5, 0.75]
