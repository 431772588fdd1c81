"""A worker whose host loses its network: nothing is closed, and nothing comes any more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from away import (
    ARGUMENTS,
    its_rows_go_elsewhere_and_it_is_stopped_when_it_is_back,
    what_it_finishes_meanwhile_is_taken_when_it_is_back,
)
from fleet import Fleet
from hosts import Host, another_host

TIMEOUT = ("--heartbeat-timeout", "2")


@pytest.fixture
def host() -> Iterator[Host]:
    with another_host() as host:
        yield host


@pytest.fixture
def fleet(tmp_path: Path, host: Host) -> Iterator[Fleet]:
    with Fleet(tmp_path) as fleet:
        fleet.address = f"tcp://{host.here}:*"
        yield fleet


def start_far(fleet: Fleet, host: Host, environment: Mapping[str, str], *arguments: str) -> None:
    fleet.start_worker("noted", "--load", "noted:load", *arguments, environment=environment, host=host.command)


def test_its_rows_go_elsewhere_uncharged_and_it_is_stopped_when_it_is_back(fleet: Fleet, host: Host) -> None:
    fleet.start_broker("--insecure", *TIMEOUT, *ARGUMENTS)
    its_rows_go_elsewhere_and_it_is_stopped_when_it_is_back(
        fleet, lambda environment: start_far(fleet, host, environment, *TIMEOUT), host.unplug, host.plug
    )


def test_what_it_finishes_meanwhile_is_taken_when_it_is_back(fleet: Fleet, host: Host) -> None:
    fleet.start_broker("--insecure", *TIMEOUT, *ARGUMENTS)
    what_it_finishes_meanwhile_is_taken_when_it_is_back(
        fleet, lambda environment: start_far(fleet, host, environment, *TIMEOUT), host.unplug, host.plug
    )


def test_the_default_is_ten_seconds(fleet: Fleet, host: Host) -> None:
    fleet.start_broker("--insecure", *ARGUMENTS)
    its_rows_go_elsewhere_and_it_is_stopped_when_it_is_back(
        fleet, lambda environment: start_far(fleet, host, environment), host.unplug, host.plug
    )
