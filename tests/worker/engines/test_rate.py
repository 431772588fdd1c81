from __future__ import annotations

import pytest

from genpool.worker.engines.rate import Bucket, Rate, rows_at_once


def begun(rate: Rate, tokens: float, until: float, step: float = 0.01) -> list[float]:
    """When requests of ``tokens`` each may begin, if as many as possible do until then."""
    times: list[float] = []
    now = 0.0
    while now < until:
        while rate.wait_s(now) == 0:
            rate.take(tokens, now)
            times.append(now)
        now += step
    return times


class TestBucket:
    def test_without_a_limit_nothing_waits(self) -> None:
        bucket = Bucket(None)
        for _ in range(1000):
            bucket.take(1e9, 5.0)
        assert bucket.wait_s(5.0) == 0

    def test_what_was_taken_is_paid_at_the_rate(self) -> None:
        bucket = Bucket(60)
        bucket.take(5, 100.0)
        assert bucket.wait_s(100.0) == pytest.approx(4)  # a second's worth was there
        assert bucket.wait_s(103.5) == pytest.approx(0.5)
        assert bucket.wait_s(104.0) == pytest.approx(0)

    def test_a_long_rest_saves_no_more_than_a_second(self) -> None:
        bucket = Bucket(600)
        bucket.take(1, 0.0)
        bucket.take(30, 10_000.0)
        assert bucket.wait_s(10_000.0) == pytest.approx(2)

    def test_what_is_larger_than_the_bucket_waits_and_is_not_starved(self) -> None:
        bucket = Bucket(60)
        assert bucket.wait_s(0.0) == 0
        bucket.take(600, 0.0)
        assert bucket.wait_s(598.0) == pytest.approx(1)

    def test_a_correction_moves_the_end_of_the_wait(self) -> None:
        bucket = Bucket(60)
        bucket.take(11, 0.0)
        bucket.correct(-4)
        assert bucket.wait_s(0.0) == pytest.approx(6)
        bucket.correct(2)
        assert bucket.wait_s(0.0) == pytest.approx(8)

    def test_more_given_back_than_taken_saves_no_more_than_a_second(self) -> None:
        bucket = Bucket(60)
        bucket.take(2, 0.0)
        bucket.correct(-1000)
        bucket.take(4, 0.0)
        assert bucket.wait_s(0.0) == pytest.approx(3)


class TestRate:
    @pytest.mark.parametrize("rpm", [6, 60, 600, 6000])
    def test_no_minute_has_more_requests_than_a_second_above_the_limit(self, rpm: int) -> None:
        times = begun(Rate(rpm, None), 0, until=180.0)
        allowed = rpm + max(1, rpm / 60) + 1
        assert all(sum(start <= time < start + 60 for time in times) <= allowed for start in times[:: len(times) // 9])
        assert len(times) == pytest.approx(3 * rpm, abs=max(2, rpm / 50))

    def test_tokens_bind_where_requests_do_not(self) -> None:
        assert len(begun(Rate(6000, 6000), 100, until=120.0)) == pytest.approx(120, abs=2)

    def test_requests_bind_where_tokens_do_not(self) -> None:
        assert len(begun(Rate(60, 1e6), 100, until=120.0)) == pytest.approx(120, abs=2)

    def test_a_correction_is_of_tokens_only(self) -> None:
        rate = Rate(60, 60)
        rate.take(10, 0.0)
        rate.take(0, 0.0)
        assert rate.wait_s(0.0) == pytest.approx(9)
        rate.correct(-1000)
        assert rate.wait_s(0.0) == pytest.approx(1)  # two requests, of which one was there


@pytest.mark.parametrize(
    ("rpm", "tpm", "max_new_tokens", "rows"),
    [
        (None, None, 100, 64),
        (1000, None, 100, 64),
        (10, None, 100, 10),
        (0.5, None, 100, 1),
        (None, 1000, 100, 10),
        (None, 50, 100, 1),
        (5, 1000, 100, 5),
        (None, 1000, None, 64),
    ],
)
def test_no_more_rows_are_taken_than_a_minute_lets_go(
    rpm: float | None, tpm: float | None, max_new_tokens: int | None, rows: int
) -> None:
    assert rows_at_once(64, rpm, tpm, max_new_tokens) == rows
