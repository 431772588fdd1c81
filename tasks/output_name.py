"""What judges call an output, and whether a text calls the outputs so in their order."""

from __future__ import annotations

import re
from itertools import groupby
from string import ascii_lowercase

NOUN = r"(?:output|response|answer|text|generation|completion|candidate)"
RATING = r"(?:rating|score|grade)"

_CARDINALS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_PLACES = {word: at for words in (ascii_lowercase, _CARDINALS, _ORDINALS) for at, word in enumerate(words, 1)}

# The last group of a match is the word that tells which output is meant: "2", "B", "two", "second", "2nd".
LETTER = r"(?-i:[A-Z])"
_WHICH = rf"(\d{{1,6}}|{LETTER}|{'|'.join(_CARDINALS)})(?![^\W_])"
_ORDINAL = rf"({'|'.join(_ORDINALS)}|\d{{1,6}}(?:st|nd|rd|th))\b"
_NAME = rf"(?:{NOUN}[ \t_-]*(?:(?:number|no|nr|id|index)\b\.?)?[ \t_#(\[:.-]*{_WHICH}|{_ORDINAL}[ \t]+{NOUN}\b)"

_FULL_NAME = re.compile(_NAME, re.IGNORECASE)
_ANY_NAME = re.compile(rf"{_NAME}|{_WHICH}|{_ORDINAL}", re.IGNORECASE)

_RATES_HERE = rf"[^\n]*\b{RATING}\b(?:[^\w\n]{{0,4}}[:=]|[ \t]+is\b)"
# Only where a rating is said to be of an output: "it is better than output 2" is in nobody's way.
_OF_A_RATING = re.compile(
    # Lines such as "Output No. 2:", "1. Output B", "Output two - …", "Output B's rating: 4" and "The second:".
    rf"^[^\w\n]*(?:\d{{1,3}}[.):|\]][ \t*_#(\[]*)?(?:the[ \t]+)?"
    rf"(?:{_NAME}(?=[^\w\n]*$|[ \t*_`\"')\]>]*[:(|=\u2013\u2014-]|{_RATES_HERE})"
    rf"|{_ORDINAL}(?=[^\w\n]*$|[ \t*_`\"')\]>]*:|[^\w\n]+{RATING}\b))"
    # Lines in another language, such as "Ausgabe 2:".
    rf"|^[^\w\n]*[^\W\d_]{{1,20}}[ \t_#-]{{0,3}}(\d{{1,3}})[*_`\"')\]>]*:[^\w\n]*$"
    # Behind a rating, as in "4 for output 2", "4/5 (output 2)" and "4 for the second".
    rf"|\d[*_`\"')\]> \t]*[-\u2013\u2014:(]?[ \t(]*(?:(?:for|of)[ \t]+(?:the[ \t]+)?(?:{_NAME}|{_ORDINAL})"
    rf"|{_NAME}(?=[^\w\n]*$|\)))"
    # In its mark, as in "Rating [2]:" and "Rating (output B):".
    rf"|\b{RATING}[ \t]*[(\[][ \t#]*(?:{_NAME}|{_WHICH}|{_ORDINAL})[ \t]*[)\]]",
    re.IGNORECASE | re.MULTILINE,
)


def place(word: str) -> int:
    """Which output is called so, from 1: 2 for "2", "2nd", "B", "two" and "second"."""
    number = re.match(r"\d+", word)
    # A word of other letters that lower case takes for these, as of a long s, is no place.
    return _PLACES.get(word.lower(), 0) if number is None else int(number[0])


def place_called(text: str) -> int | None:
    """Which output all of ``text`` is a name of, as "B" or "second output" is; None where it is none."""
    name = _ANY_NAME.fullmatch(text.strip())
    return None if name is None else _place_of(name)


def is_full_name(text: object) -> bool:
    """Whether all of ``text`` is a name of an output that can be no other thing's: "output 2", not "2"."""
    return isinstance(text, str) and _FULL_NAME.fullmatch(text.strip()) is not None


def are_in_order(text: str, count: int) -> bool:
    """Whether the ratings of ``text`` are said to be of no output, or of each of ``count`` in their order."""
    places = [_place_of(name) for name in _OF_A_RATING.finditer(text)]
    return [at for at, _ in groupby(places)] in ([], list(range(1, count + 1)))


def _place_of(name: re.Match[str]) -> int:
    return place(name[name.lastindex or 0])
