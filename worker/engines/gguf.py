"""What the head of a GGUF model file tells without loading the model."""

from __future__ import annotations

import mmap
from pathlib import Path

from ...protocol.errors import ConfigurationError
from ...protocol.home import expanded

_MAGIC = b"GGUF"

# The key is followed by the number of its type: 8, a string.
_CHAT_TEMPLATE = b"tokenizer.chat_template\x08\x00\x00\x00"

# Metadata stands ahead of the weights, and the largest vocabularies take some 20 MB of it. A smaller value would miss
# templates; a larger one reads weights for nothing.
_METADATA_BYTES = 64 * 2**20


def model_path(model: str | Path) -> Path:
    """The path of a GGUF file that is there.

    Raises:
        ConfigurationError: there is no such file, or it is no GGUF file.
    """
    path = expanded(model)
    if not path.is_file():
        raise ConfigurationError(f"there is no model file at {path.absolute()}")
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as error:
        raise ConfigurationError(f"the model file {path} cannot be read: {error.strerror}") from error
    if magic != _MAGIC:
        raise ConfigurationError(f"{path} is no GGUF model file")
    return path


def has_chat_template(path: Path) -> bool:
    """Whether the model says how chat messages become its prompt. Base models do not."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(_CHAT_TEMPLATE, 0, _METADATA_BYTES) >= 0
