"""Other hosts for a test: network namespaces, each with one cable to this one that can be unplugged. Needs root."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from typing import NoReturn

import pytest


class Host:
    """A namespace with an address of its own. ``here`` is this host's address on the cable between.

    ``command`` is what ``Fleet.start_worker(host=...)`` takes to start a process there.
    """

    def __init__(self) -> None:
        mark = uuid.uuid4().hex[:8]
        self.name = f"genpool-{mark}"
        self._near, self._far = f"gp-{mark}-n", f"gp-{mark}-f"
        self.command = ("ip", "netns", "exec", self.name)
        # Of the range for tests of networks (RFC 2544), which no real one uses; nothing is routed beyond the cable.
        first = 4 * random.SystemRandom().randrange(1 << 15)
        self.here, self.address = (f"198.{18 + (first >> 16)}.{first >> 8 & 255}.{(first & 255) + n}" for n in (1, 2))

    def set_up(self) -> None:
        """Make it, with its cable plugged in."""
        _ip("netns", "add", self.name)
        _ip("link", "add", self._near, "type", "veth", "peer", "name", self._far, "netns", self.name)
        _ip("address", "add", f"{self.here}/30", "dev", self._near)
        _ip("link", "set", self._near, "up")
        _ip("-n", self.name, "address", "add", f"{self.address}/30", "dev", self._far)
        _ip("-n", self.name, "link", "set", "lo", "up")
        self.plug()

    def plug(self) -> None:
        """Take the link up."""
        _ip("-n", self.name, "link", "set", self._far, "up")

    def unplug(self) -> None:
        """Take the link down: nothing comes or goes, and neither end is told."""
        _ip("-n", self.name, "link", "set", self._far, "down")

    def tear_down(self) -> None:
        """Remove what there is of it. The processes in it must have ended."""
        for arguments in (("link", "delete", self._near), ("netns", "delete", self.name)):
            subprocess.run(["ip", *arguments], check=False, capture_output=True)


@contextmanager
def another_host() -> Generator[Host]:
    """A host for the length of a test; skips where there can be none, and fails there in CI."""
    if os.geteuid():
        _missing("network namespaces need root")
    if shutil.which("ip") is None:
        _missing("network namespaces need the command ip (of iproute2)")
    host = Host()
    try:
        try:
            host.set_up()
        except subprocess.CalledProcessError as error:
            _missing(f"no network namespace can be made here: {' '.join(error.cmd)}: {error.stderr.strip()}")
        yield host
    finally:
        host.tear_down()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def _missing(reason: str) -> NoReturn:
    """Skips on a developer's machine; in CI, a test that did not run is a failure."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
