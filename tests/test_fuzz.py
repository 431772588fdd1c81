"""What scripts/fuzz looks for, without it: in its corpus and in what hypothesis thinks of; and a moment of it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from extras import require
from fuzzing import targets
from fuzzing.choices import Choices
from fuzzing.garbage import MAKERS, Vocabulary, message
from fuzzing.run import LONGEST_BYTES, fuzz_target
from fuzzing.targets import CORPUS, TARGETS, TooDear, check_of, name_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from genpool.protocol.codec import decode, encode

SCRIPT = Path(__file__).parents[1] / "scripts" / "fuzz.py"

# A step is chosen by its first byte, and what follows decides what it is about: zeros are the plainest.
STEPS: SearchStrategy[bytes] = st.lists(
    st.tuples(st.integers(0, 255), st.binary(max_size=24)).map(lambda step: bytes([step[0]]) + step[1]), max_size=40
).map(b"".join)


@pytest.mark.parametrize("target", TARGETS)
def test_no_input_that_was_found_worth_keeping_is_a_finding(target: str) -> None:
    check = check_of(target)
    files = sorted((CORPUS / target).iterdir())
    assert 5 < len(files) <= 200
    for file in files:
        data = file.read_bytes()
        assert name_of(data) == file.name
        assert len(data) <= LONGEST_BYTES
        check(data)


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_that_hypothesis_thinks_of_is_a_finding(target: str) -> None:
    check = check_of(target)

    @given(STEPS)
    @settings(max_examples=200, deadline=None)
    def try_it(data: bytes) -> None:
        check(data)

    try_it()


@given(st.sampled_from(list(MAKERS)), st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_a_message_that_is_made_from_bytes_is_one_that_may_arrive(kind: type[object], data: bytes) -> None:
    made = message(Choices(data), Vocabulary(), (kind,))

    assert type(made) is kind
    assert decode(encode(made, 100)) == made


@pytest.mark.parametrize(("limit", "complaint"), [("_LONGEST_S", "it took .* s"), ("_MOST_BYTES", "it took .* MB")])
def test_an_input_that_takes_more_than_it_may_is_a_finding(
    limit: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, limit, -1)
    with pytest.raises(TooDear, match=complaint):
        check_of("content")(b"")


def test_an_input_can_be_tried_again(tmp_path: Path) -> None:
    file = tmp_path / "input"
    file.write_bytes(b"\x03")
    done = run("--again", file, "codec")
    assert (done.returncode, "none is a finding" in done.stdout) == (0, True)
    done = run("--again", file)
    assert done.returncode == 2
    assert "--again takes one TARGET" in done.stderr
    (tmp_path / "folder").mkdir()
    done = run("--again", tmp_path, "codec")
    assert done.returncode == 2
    assert f"--again takes a file, or a folder of files: {tmp_path}/folder is a folder" in done.stderr


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)


def test_without_atheris_a_sentence_says_what_to_install() -> None:
    if importlib.util.find_spec("atheris") is not None:
        pytest.skip("atheris is installed")
    done = run("--minutes", "0.01", "codec")
    assert done.returncode == 1
    assert "./scripts/setup --fuzz" in done.stderr


@pytest.fixture
def atheris() -> None:
    if sys.version_info >= (3, 15):
        pytest.skip("atheris is not for this Python")
    require("atheris")


@pytest.mark.usefixtures("atheris")
@pytest.mark.parametrize("target", TARGETS)
def test_a_moment_of_fuzzing_finds_nothing(target: str, tmp_path: Path) -> None:
    fuzzed = fuzz_target(target, 3, tmp_path)
    assert fuzzed.finding is None, fuzzed.said
    assert fuzzed.executions > 20


@pytest.mark.usefixtures("atheris")
def test_what_is_found_can_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = tmp_path / "fuzzing" / "planted.py"
    planted.parent.mkdir()
    planted.write_text(PLANTED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    fuzzed = fuzz_target("planted", 30, tmp_path / "work")
    assert fuzzed.finding is not None
    assert fuzzed.finding.read_bytes()[:1] == b"!"
    assert "a planted fault" in fuzzed.said
    assert fuzzed.executions > 1


PLANTED = """
from genpool.protocol.codec import decode
from genpool.protocol.errors import DecodeError

def check(data):
    try:
        decode([data])
    except DecodeError:
        assert data[:1] != b"!", "a planted fault"
"""
