"""What reasoning models write before they answer, where their server leaves it in the completion."""

from __future__ import annotations

import re


def without_thought(text: str) -> str:
    """``text`` after the thought that it begins with; nothing where the thought was cut off.

    Never raises. A tag that is only spoken of ends no thought.
    """
    if thought := _THOUGHT.match(text):
        return text[thought.end() :]
    return "" if _BEGINS.match(text) else text


_OPENS, _CLOSES = r"(?:<think(?:ing)?>|\[THINK\])", r"(?:</think(?:ing)?>|\[/THINK\])"
_BEGINS = re.compile(rf"\s*{_OPENS}")
# Chat templates may have the opening tag in the prompt: then the closing one has a line of its own.
_THOUGHT = re.compile(
    rf"\s*{_OPENS}.*?{_CLOSES}|(?!\s*{_OPENS}).*?^[^\S\n]*{_CLOSES}[^\S\n]*$", re.DOTALL | re.MULTILINE
)
