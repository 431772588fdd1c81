from __future__ import annotations

import pytest

from genpool.broker.blame import SURVIVOR_WAIT_S, is_guilty, is_spared, suspect_group_size


@pytest.mark.parametrize(
    ("lost_with", "charged", "max_attempts", "size"),
    [
        (256, 1, 3, 16),  # three deaths: 256 together, then 16, then alone
        (16, 2, 3, 1),
        (256, 1, 4, 41),
        (41, 2, 4, 7),
        (7, 3, 4, 1),
        (2, 1, 3, 2),
        (1, 1, 3, 1),
        (100, 1, 2, 1),
        (100, 1, 1, 1),
        (100, 7, 3, 1),  # charged more often than allowed, never alone
        (0, 1, 3, 1),
    ],
)
def test_suspects_are_tried_again_in_groups_of(lost_with: int, charged: int, max_attempts: int, size: int) -> None:
    assert suspect_group_size(lost_with, charged, max_attempts) == size


@pytest.mark.parametrize("max_attempts", [2, 3, 4, 5])
@pytest.mark.parametrize("rows", [1, 2, 3, 10, 100, 1024, 4096])
def test_a_poison_is_alone_by_its_last_permitted_death(rows: int, max_attempts: int) -> None:
    lost_with = rows
    for charged in range(1, max_attempts):
        assert not is_guilty(lost_with, charged, max_attempts)
        lost_with = min(lost_with, suspect_group_size(lost_with, charged, max_attempts))
    assert is_guilty(lost_with, max_attempts, max_attempts)


@pytest.mark.parametrize(
    ("lost_with", "charged", "max_attempts", "guilty"),
    [(1, 3, 3, True), (1, 4, 3, True), (1, 2, 3, False), (2, 3, 3, False), (2, 9, 3, False), (1, 1, 1, True)],
)
def test_only_a_row_that_was_alone_for_the_last_time_is_guilty(
    lost_with: int, charged: int, max_attempts: int, guilty: bool
) -> None:
    assert is_guilty(lost_with, charged, max_attempts) is guilty


@pytest.mark.parametrize("row_s", [1.0, SURVIVOR_WAIT_S, 1000.0, 100_000.0])
def test_however_long_rows_take_a_worker_is_kept_free_for_longer_in_the_end_and_never_for_most_of_the_time(
    row_s: float,
) -> None:
    step_s = SURVIVOR_WAIT_S / 10
    longest_s = turn_s = spared_s = waited_s = 0.0
    while longest_s <= row_s:
        turn_s = turn_s + step_s if is_spared(waited_s) else 0.0
        longest_s = max(longest_s, turn_s)
        spared_s += step_s if turn_s else 0.0
        waited_s += step_s
        assert spared_s <= SURVIVOR_WAIT_S + 0.7 * waited_s
    assert waited_s < 5 * max(row_s, SURVIVOR_WAIT_S)
