"""Types of options that several commands take."""

from __future__ import annotations

import click

from .seconds import LONGEST_S

SECONDS = click.FloatRange(min=0, min_open=True, max=LONGEST_S)
