"""The wheel holds the packages and `py.typed`, the web page, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOT_SOURCE = ("build", "dist", "*.egg-info", "__pycache__", ".*")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    # A build in place would leave build/ behind, and a stale build/ ends up in the wheel.
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*NOT_SOURCE))
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir"]
    done = subprocess.run([*build, folder, source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as opened:
        yield opened


def package_folders() -> list[Path]:
    """The root and every folder below that carries an `__init__.py`, all its parents doing so too."""
    found = [ROOT]
    for folder in found:
        found += sorted(file.parent for file in folder.glob("*/__init__.py") if not file.parent.name.startswith("."))
    return found


def info_file(wheel: zipfile.ZipFile, name: str) -> str:
    (path,) = [path for path in wheel.namelist() if path.endswith(f".dist-info/{name}")]
    return wheel.read(path).decode()


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    return Parser().parsestr(info_file(wheel, "METADATA"))


def test_wheel_holds_exactly_the_package(wheel: zipfile.ZipFile) -> None:
    sources = [file for folder in package_folders() for file in folder.glob("*.py")]
    data = [ROOT / "py.typed", *(ROOT / "broker" / "web").iterdir()]
    wanted = {f"genpool/{file.relative_to(ROOT).as_posix()}" for file in (*sources, *data)}
    held = {path for path in wheel.namelist() if ".dist-info/" not in path}
    assert {
        "genpool/__init__.py",
        "genpool/protocol/errors.py",
        "genpool/worker/engines/__init__.py",
        "genpool/broker/web/page.html",
    } <= wanted
    assert held == wanted


def test_wheel_carries_the_license(wheel: zipfile.ZipFile, metadata: Message) -> None:
    assert metadata["License-Expression"] == "Apache-2.0"
    assert info_file(wheel, "licenses/LICENSE") == (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_wheel_installs_the_command(wheel: zipfile.ZipFile) -> None:
    assert "genpool = genpool.cli:main" in info_file(wheel, "entry_points.txt")


def test_versions_agree(wheel: zipfile.ZipFile, metadata: Message) -> None:
    code = "import genpool; print(genpool.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(wheel.filename)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == metadata["Version"] == "0.1.0"


def test_wheel_asks_for_nothing_but_the_core_unless_told(metadata: Message) -> None:
    required = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    names = {line.split(">")[0] for line in required}
    assert names == {"pyzmq", "msgpack", "click", "rich", "cloudpickle"}
    assert {"llamacpp", "openai", "dev"} <= set(metadata.get_all("Provides-Extra", []))
