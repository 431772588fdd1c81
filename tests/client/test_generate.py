"""The command itself: exit codes, streams, signals."""

from __future__ import annotations

import json
import os
import pty
import resource
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fleet import Fleet, until

from .conftest import Gate, Genpool, Start, command
