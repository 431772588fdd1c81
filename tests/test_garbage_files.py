"""Files that a user names and that hold anything at all: a sentence, and never a traceback."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genpool.broker.allowed import read_access
from genpool.protocol.address import read_connection_file
from genpool.protocol.errors import ConfigurationError
from genpool.protocol.keys import read_pair, read_peer_keys

KEY = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"
DEEP = 100_000

READERS: dict[str, Callable[[Path], object]] = {
    "connection file": read_connection_file,
    "key file": read_pair,
    "peer's key file": read_peer_keys,
    "list": read_access,
}

names = st.sampled_from(
    ["address", "pid", "keys", "public", "secret", "broker", "allowed", "key", "name", "roles", "llms", "client"]
)
texts = st.text(max_size=8) | st.sampled_from([KEY, "tcp://h:1", "client", "worker"])
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names | texts, inner, max_size=4),
    max_leaves=12,
)


def toml(value: Any) -> str:
    """Tables of ``allowed`` that hold ``value``, which may be none that TOML has."""
    entries = value if isinstance(value, list) else [value]
    return "".join(
        "[[allowed]]\n" + "".join(f"{json.dumps(str(key))} = {json.dumps(item)}\n" for key, item in entry.items())
        for entry in entries
        if isinstance(entry, dict)
    )


contents = (
    st.binary(max_size=60) | values.map(lambda value: json.dumps(value).encode()) | values.map(toml).map(str.encode)
)


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(content=contents)
def test_what_a_file_holds_is_used_or_complained_of(read: Callable[[Path], object], content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.touch(0o600)
        path.write_bytes(content)
        with suppress(ConfigurationError):
            read(path)


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize(
    "content", [b"[" * DEEP, b"a = " + b"[" * DEEP, b'{"a":' * DEEP], ids=["lists", "toml", "maps"]
)
def test_deep_nesting_is_complained_of(tmp_path: Path, read: Callable[[Path], object], content: bytes) -> None:
    path = tmp_path / "file"
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(ConfigurationError):
        read(path)
