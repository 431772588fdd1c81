"""Which GPUs this process may hand out."""

from __future__ import annotations

import os
import subprocess

VISIBLE = "CUDA_VISIBLE_DEVICES"

_QUERY = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
_PATIENCE_S = 30


def visible_gpus() -> tuple[str, ...]:
    """Those that ``CUDA_VISIBLE_DEVICES`` names; without it, all of this host."""
    named = os.environ.get(VISIBLE)
    if named is None:
        try:
            done = subprocess.run(_QUERY, capture_output=True, text=True, check=True, timeout=_PATIENCE_S)
        except (OSError, subprocess.SubprocessError):
            return ()
        named = done.stdout.replace("\n", ",")
    return tuple(filter(None, (one.strip() for one in named.split(","))))
