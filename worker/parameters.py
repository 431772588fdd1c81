"""The parameters of a function."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

if sys.version_info >= (3, 14):
    from annotationlib import Format

    # An annotation may name what only a type checker imports.
    _signature = partial(inspect.signature, annotation_format=Format.FORWARDREF)
else:
    _signature = inspect.signature


def parameters_of(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Its parameters by name. Raises TypeError or ValueError where nothing tells them, as for some built-in ones."""
    return _signature(function).parameters
