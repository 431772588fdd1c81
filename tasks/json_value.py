"""JSON in the text of a completion: alone, in a fence, or in the middle of talk."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn


def json_values(text: str) -> list[Any]:
    """The JSON values in ``text``: the one that it is, else its outermost objects and lists, in their order.

    What is cut off is not there, and nothing that stands inside of it either. Never raises.
    """
    try:
        return [_DECODER.decode(text)]
    except (ValueError, RecursionError):
        return list(_outermost(_Unlined(text)))


class _Unlined(str):
    """A text of one line for json's errors, which else count all lines before them, at each opening that fails."""

    def count(self, *_: object) -> int:
        return 0

    def rfind(self, *_: object) -> int:
        return -1


def _outermost(text: str) -> Iterator[Any]:
    at = 0
    while (opening := _OPENING.search(text, at)) is not None:
        try:
            value, at = _DECODER.raw_decode(text, opening.start())
        except json.JSONDecodeError as error:
            if error.msg.startswith("Unterminated string"):
                return  # all that follows stands in it
            # What was whole before the error is a part of the broken value: it must not be taken for one of its own.
            at = max(opening.end(), error.pos)
        except ValueError:
            at = opening.end()
        except RecursionError:
            return
        else:
            yield value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


_OPENING = re.compile(r"[\[{]")
_DECODER = json.JSONDecoder(parse_constant=_refuse)
