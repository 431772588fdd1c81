"""Types of options that several commands take."""

from __future__ import annotations

import click

# The longest that a timer of the operating system surely takes.
SECONDS = click.FloatRange(min=0, min_open=True, max=1e8)
