"""One target under atheris, in a process of its own: python -m fuzzing.guided TARGET, and libFuzzer's arguments."""

from __future__ import annotations

import importlib
import shlex
import sys
from typing import Any


def main() -> None:
    # By its name, for it may not be installed.
    atheris: Any = importlib.import_module("atheris")
    target = sys.argv.pop(1)
    # What a machine reaches counts there, and what reads its messages only takes time.
    beside = [] if target in ("codec", "content") else ["genpool.protocol.codec"]
    with atheris.instrument_imports(include=["genpool"], exclude=beside):
        from fuzzing.targets import check_of

        check = check_of(target)
    # To merge inputs, libFuzzer has a shell run what it takes for the program's name.
    atheris.Setup([f"{shlex.quote(sys.executable)} -m fuzzing.guided {target}", *sys.argv[1:]], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
