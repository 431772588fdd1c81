from __future__ import annotations

import pytest

from genpool.broker.blame import is_guilty, suspect_group_size


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
