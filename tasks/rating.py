"""Ratings in the text of a judge, for the outputs that they are about.

A rating is read where the text says which output it is for: by the output's number, or by the order of as many
ratings as there are outputs. Wherever that leaves a doubt, or the text names another order, nothing is read, for a
rating of the wrong output is worse than none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from .json_value import json_values
from .output_name import LETTER, NOUN, RATING, are_in_order, is_full_name, place, place_called
from .thought import without_thought


@dataclass(frozen=True, slots=True)
class Scale:
    """Ratings go from ``lowest`` to ``highest``."""

    lowest: float
    highest: float

    def rating(self, value: object) -> float | None:
        """``value`` as a rating; None where it is no number of this scale."""
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not self.lowest <= value <= self.highest:
            return None
        return float(value)

    def fraction(self, value: str, of: str | None) -> float | None:
        """The rating "``value``/``of``"; None where it is one of another scale."""
        return self.rating(float(value)) if of is None or float(of) == self.highest else None


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge says of one output, as far as it can be read."""

    rating: float | None = None
    rationale: str | None = None


# What a reader has found: the judgements by the outputs' numbers, from 1. None where the text is not of its form;
# empty where it is, and cannot be read safely.
_Found = Mapping[int, Judgement] | None

_NOTHING: Mapping[int, Judgement] = {}


def read_judgements(text: str, scale: Scale, count: int | None = None) -> list[Judgement]:
    """What ``text`` says of each of ``count`` outputs, in their order. Never raises.

    With a ``count`` of None there are as many outputs as the text tells of, and none may be missing in between.
    """
    text = without_thought(text)
    found = _in_json(text, scale, count)
    text = _without_overall(text)
    for read in (_in_sections, _in_numbered_list, _in_order, _in_bare_numbers):
        if found is not None:
            break
        found = read(text, scale, count)
    found = found or _NOTHING
    return [found.get(number, Judgement()) for number in range(1, (len(found) if count is None else count) + 1)]


def _placed(judgements: Iterable[tuple[int, Judgement]], count: int | None) -> Mapping[int, Judgement]:
    """The judgements by their numbers; nothing where a number tells that the judge counts otherwise than we do."""
    by_number: dict[int, list[Judgement]] = {}
    for number, judgement in judgements:
        by_number.setdefault(number, []).append(judgement)
    numbers = range(1, (len(by_number) if count is None else count) + 1)
    if not all(number in numbers for number in by_number):
        return _NOTHING
    return {number: _merged(parts) for number, parts in by_number.items()}


def _merged(parts: Sequence[Judgement]) -> Judgement:
    rationales = [part.rationale for part in parts if part.rationale is not None]
    return Judgement(_agreed([part.rating for part in parts if part.rating is not None]), next(iter(rationales), None))


def _ordered(judgements: Sequence[Judgement], count: int | None) -> Mapping[int, Judgement]:
    """The judgements by their order, where they are as many as the outputs."""
    return dict(enumerate(judgements, 1)) if count in (None, len(judgements)) else _NOTHING


def _agreed(ratings: Sequence[float | None]) -> float | None:
    return ratings[0] if ratings and all(rating == ratings[0] for rating in ratings) else None


# Text.

_SPACES = r" \t\u00a0\u202f"  # some languages have such before and after a sign
_QUOTES = rf"[{_SPACES}*_`\"'(\[<]*"
_GAP = r"[ \t]{0,3}[#(]?[ \t]{0,3}"
_RATIONALE = r"(?:rationale|reason(?:ing)?|justification|explanation|comment|feedback)"

# "4", "4.5", "**4**/5", "4 out of 5"; neither "4-5", "1 to 5", "4,5", "1 + 1", "80%" nor "4th".
_OF_SCALE = r"(?:(?:stars?|points?)[ \t]+)?[(\[]?(?:/|(?:out )?of)"
_VALUE = (
    rf"{_QUOTES}(?P<value>[+-]?\d{{1,6}}(?:\.\d{{1,6}})?)(?!\d)"
    rf"(?:[{_SPACES}*_`\"')\]>]*{_OF_SCALE}{_QUOTES}(?P<of>\d{{1,6}}(?:\.\d{{1,6}})?)(?!\d))?"
    rf"(?!\w|[{_SPACES}]*%|[.,]\d|[{_SPACES}]*(?:[-=]>|[-\u2013\u2014,/|~+\u2192]|to\b|or\b|and\b)[{_SPACES}]*\d"
    r"|[ \t]*out of\b)"
)
_VALUE_HERE = re.compile(_VALUE)
_VALUE_ON_NEXT_LINE = re.compile(rf"[ \t*_]*\n\s*{_VALUE}[*_`\"')\]> \t.]*(?:\n|$)")
_LEADING_VALUE = re.compile(
    rf"\W{{0,10}}(?<![+-]){_VALUE}(?=[*_`\"')\]> \t]*(?:$|[-\u2013\u2014:;,.(|\n]|stars?\b|because\b))"
)
_LIST_BEGINS = re.compile(r"[^\w\n]{0,10}\n\W{0,10}1[.)][ \t*_]+\S")
_FRACTION = re.compile(r"(?<![\w.,/-])(\d{1,6}(?:\.\d{1,6})?)[*_ \t]*(?:/|out of)[*_ \t]*(\d{1,6})(?![\w/]|[.,]\d)")

_MARK = re.compile(
    rf"\b(?:(?P<rating>{RATING})|(?P<rationale>{_RATIONALE}))\b(?:[ \t]*[(\[][^)\]\n]{{0,20}}[)\]])?"
    r"[ \t*_`\"']{0,4}(?:[:=]|[-\u2013\u2014](?=[ \t])|(?(rating)\bis\b|(?!)))[*_`\"']*",
    re.IGNORECASE,
)

# "Output 1:", "### Response 2", "**Text 1** -", "Rating for Output 2:", "Rationale 1:" at the beginning of a line, and
# "Output 2: 4" within one. "Output 2 is better than output 1" is none of them.
_HEADING = re.compile(
    rf"^[^\w\n]*(?:(?P<of>{RATING}|{_RATIONALE}|output)[ \t]+(?:for|of)[ \t]+)?(?:the[ \t]+)?{NOUN}{_GAP}"
    r"(?P<number>\d{1,6})(?!\d)"
    r"(?=[ \t*_`\"')\]]*(?:$|[:=>|]|[-\u2013\u2014][ \t]*\d|[-\u2013\u2014(]?[ \t]*(?:rating|score)\b))"
    rf"|^[^\w\n]*(?P<of_it>{RATING}|{_RATIONALE}){_GAP}(?P<its_number>\d{{1,6}})(?=[ \t*_`\"')\]]*:)"
    rf"|\b{NOUN}{_GAP}(?P<inner>\d{{1,6}})[*_`\"')\] \t]*[:=]"
    rf"(?=[ \t*_]*(?:{RATING}[*_ \t]*[:=]{_QUOTES}\d|\d{{1,6}}(?:\.\d+)?[ \t]*(?:[/,;.|]|$|out of)))",
    re.IGNORECASE | re.MULTILINE,
)
_LIST_ITEM = re.compile(r"^[^\w\n]*(?P<number>\d{1,3})[ \t]*[.):|](?=[ \t*_]+\S)", re.MULTILINE)
# What stands around a rationale and is none of it.
_AROUND = " \t\r\n*_`\"'-\u2013\u2014:;,|>()[]"

_BARE_NUMBERS = re.compile(r"[\s\d./;,]{1,2000}")

# A rating of all outputs together, where no output follows.
_OVERALL = re.compile(
    rf"^[^\w\n]*(?:the[ \t]+)?(?:overall|average|mean|total|combined)[ \t]+{RATING}\b", re.IGNORECASE | re.MULTILINE
)

# A line that begins with a number or a letter.
_ITEM = re.compile(
    rf"^[^\w\n]*(\d{{1,3}}|{LETTER}(?=[.):\]|]))(?=[ \t]*(?:[.):|\]*_\u2013\u2014-]|$))(?![.,]\d)", re.MULTILINE
)


def _in_sections(text: str, scale: Scale, count: int | None) -> _Found:
    """Judgements under headings that name their outputs."""
    headings = list(_HEADING.finditer(text))
    if not headings:
        return None
    if _rates(text[: headings[0].start()], scale):
        return _NOTHING  # the ratings may stand before the headings
    return _placed(
        ((_number(one), _judgement(_words(one) + body, scale)) for one, body in _split(text, headings)), count
    )


def _in_numbered_list(text: str, scale: Scale, count: int | None) -> _Found:
    """A list with an item for each output."""
    items = list(_LIST_ITEM.finditer(text))
    numbers = [int(item["number"]) for item in items]
    if not items or numbers != _run(count or len(items)) or _rates(text[: items[0].start()], scale):
        return None
    bodies = [body for _, body in _split(text, items)]
    judgements = [_judgement(body, scale) for body in bodies]
    # Where one item is a rating and another its rationale, they are lines, and not outputs.
    if all(one.rating is None for one in judgements) or {"R", "J"} <= {_kinds(_MARK.finditer(body)) for body in bodies}:
        return None
    return dict(enumerate(judgements, 1)) if are_in_order(text, len(items)) else _NOTHING


def _in_order(text: str, scale: Scale, count: int | None) -> _Found:
    """As many ratings as outputs, each with its rationale after it, or each with it before."""
    marks = list(_MARK.finditer(text))
    kinds = _kinds(marks)
    if "R" not in kinds:
        return None
    if re.fullmatch("(RJ*)+", kinds):
        first = "rating"
    elif re.fullmatch("(JR)+", kinds):
        first = "rationale"
    else:
        return _NOTHING
    begins = [mark for mark in marks if mark[first]]
    if not are_in_order(text, len(begins)) or not _items_in_order(text, marks, first):
        return _NOTHING
    return _ordered([_judgement(mark[0] + body, scale) for mark, body in _split(text, begins)], count)


def _in_bare_numbers(text: str, scale: Scale, count: int | None) -> _Found:
    """Nothing but numbers, as many as outputs."""
    if not _BARE_NUMBERS.fullmatch(text):
        return None
    values = [_VALUE_HERE.fullmatch(word) for word in re.split(r"[\s;,]+", text.strip())]
    if None in values:
        return _NOTHING  # such as "2.", which may be an output's number
    return _ordered([Judgement(_rating(value, scale)) for value in values], count)


def _without_overall(text: str) -> str:
    found = list(_OVERALL.finditer(text))
    return text[: found[0].start()] if len(found) == 1 and not _HEADING.search(text, found[0].end()) else text


def _run(count: int) -> list[int]:
    return list(range(1, count + 1))


def _kinds(marks: Iterable[re.Match[str]]) -> str:
    return "".join("R" if mark["rating"] else "J" for mark in marks)


def _items_in_order(text: str, marks: Sequence[re.Match[str]], first: str) -> bool:
    """Whether the list in which the ratings stand, if it is one of outputs, has them in their order."""
    items: list[re.Match[str] | None] = []
    heads: list[tuple[str, str]] = []
    since = 0
    for mark in marks:
        items.append(next(reversed([*_ITEM.finditer(text, since, mark.start())]), None))
        if mark[first]:
            heads.append(_head(text[since : mark.start()]))
        value = _marked_value(text, mark.end()) if mark["rating"] else None
        since = mark.end() if value is None else value.end()
    if any(_tell_another_order(lines) for lines in zip(*heads, strict=True)):
        return False
    numbers = [None if item is None else place(item[1]) for item in items]
    of_outputs = [number for number, mark in zip(numbers, marks, strict=True) if mark[first]]
    if None in of_outputs:
        # A list in a rationale, unless a rating is its item.
        return not any(
            item is not None and mark[first] and not re.search(r"\w", text[item.end() : mark.start()])
            for item, mark in zip(items, marks, strict=True)
        )
    # Each line may have a number: "1. Rating: 4", "2. Rationale: …", and from 1 again, or on from 3.
    lines = len(numbers) // len(of_outputs)
    is_of_lines = lines > 1 and numbers in (_run(lines) * len(of_outputs), _run(len(numbers)))
    return is_of_lines or of_outputs == _run(len(of_outputs))


def _head(before: str) -> tuple[str, str]:
    """The first and the last line of the paragraph that ends ``before`` a rating: one may say what is rated."""
    lines = re.split(r"\n[^\S\n]*\n", before.rstrip(f"{_AROUND}#"))[-1].strip().splitlines()
    return (lines[0], lines[-1]) if lines else ("", "")


def _tell_another_order(lines: Sequence[str]) -> bool:
    """Whether the numbers or letters in which such lines as "Model B" and "Model A" differ are in another order."""
    words = [re.findall(r"\d{1,6}|[^\W\d_]+", line) for line in lines]
    return any(_is_another_order([place(word) for word in column]) for column in zip(*words, strict=False))


def _split(text: str, begins: Sequence[re.Match[str]]) -> Iterable[tuple[re.Match[str], str]]:
    """Each beginning, with the text from its end to the next one's start."""
    ends = [*(one.start() for one in begins[1:]), len(text)]
    return ((one, text[one.end() : end]) for one, end in zip(begins, ends, strict=True))


def _number(heading: re.Match[str]) -> int:
    return int(heading["number"] or heading["its_number"] or heading["inner"])


def _words(heading: re.Match[str]) -> str:
    """What a heading says of its section: "Rating: " for "Rating for Output 1"."""
    said = heading["of"] or heading["of_it"] or "output"
    return "" if said.lower() == "output" else f"{said}: "


def _rates(text: str, scale: Scale) -> bool:
    values = _values(text, list(_MARK.finditer(text)))
    return _agreed([_rating(value, scale) for value in values]) is not None


def _judgement(section: str, scale: Scale) -> Judgement:
    """What the text about one output says of it."""
    marks = list(_MARK.finditer(section))
    rated = _values(section, marks)
    ratings = [_rating(value, scale) for value in rated]
    if (said := _rating(_leading_value(section), scale)) is not None:
        ratings.append(said)  # what is marked may be of all outputs
    return Judgement(_agreed(ratings), _rationale(section, marks, rated[-1] if rated else None))


def _values(section: str, marks: Sequence[re.Match[str]]) -> list[re.Match[str] | None]:
    """Those that are marked; without any, the one at the beginning, or all fractions."""
    if marked := [_marked_value(section, mark.end()) for mark in marks if mark["rating"]]:
        return marked
    return [leading] if (leading := _leading_value(section)) else list(_FRACTION.finditer(section))


def _leading_value(section: str) -> re.Match[str] | None:
    """The value at the beginning, where a list's first number is none."""
    return None if _LIST_BEGINS.match(section) else _LEADING_VALUE.match(section)


def _rationale(section: str, marks: Sequence[re.Match[str]], value: re.Match[str] | None) -> str | None:
    """What stands after "Rationale:", up to a rating that follows; without that word, what follows the value."""
    begin = next((mark.end() for mark in marks if mark["rationale"]), None if value is None else value.end())
    if begin is None:
        return None
    end = next((mark.start() for mark in marks if mark["rating"] and mark.start() >= begin), len(section))
    return section[begin:end].lstrip(".").strip(_AROUND) or None


def _marked_value(section: str, at: int) -> re.Match[str] | None:
    """The value after "Rating:", in its line or alone in the next."""
    after = re.compile(r"[ \t:=]*").match(section, at)
    at = at if after is None else after.end()
    return _VALUE_HERE.match(section, at) or _VALUE_ON_NEXT_LINE.match(section, at)


def _rating(value: re.Match[str] | None, scale: Scale) -> float | None:
    return None if value is None else scale.fraction(value[1], value[2])


# JSON.

_RATING_KEYS = ("rating", "score", "grade")
_RATIONALE_KEYS = ("rationale", "reason", "reasoning", "justification", "explanation", "comment", "feedback")
_SAID_KEYS = frozenset(key + plural for key in (*_RATING_KEYS, *_RATIONALE_KEYS) for plural in ("", "s"))
# "Model B", "2" and "b"; what is longer tells of other outputs, too.
_SHORT_NAME = re.compile(rf"(?:[^\W\d_]{{1,20}}[ _#.-]{{0,3}})?(?:\d{{1,6}}|{LETTER})|[a-z]")
_NUMBER_KEY = re.compile(rf"{NOUN}(?:[ _-]?(?:id|index|number|no))?")
_NUMBER_KEYS = ("id", "index", "number", "no", "#")
_NUMBERED = re.compile(rf"(?:{NOUN}[ _#-]*)?(\d{{1,6}})", re.IGNORECASE)

_ITEM_WITH_OBJECT = re.compile(rf"^[^\w\n]*(\d{{1,3}}|{LETTER})[.):|\]][ \t*_]*(?:\n?```\w*)?\s*\{{", re.MULTILINE)

_BEFORE_OBJECT = re.compile(r"^([^\n{]+)\{", re.MULTILINE)

_JSON_RATING = re.compile(rf"[\"']{RATING}s?[\"']\s*:", re.IGNORECASE)
_NOTHING_BUT_JSON = re.compile(r"(?:```\w*\s+)?[\[{].*[\]}]\s*(?:```)?", re.DOTALL)

# Ratings stand no deeper than {"evaluation": {"outputs": [{"rating": …}]}}.
_DEEPEST = 3


def _in_json(text: str, scale: Scale, count: int | None) -> _Found:
    """Judgements in the one JSON value of the text that has some, or in one object for each output."""
    values = json_values(text)
    objects = values if len(values) > 1 and all(isinstance(value, dict) for value in values) else []
    if objects:
        values = [objects]
    if not _NOTHING_BUT_JSON.fullmatch(text.strip()):
        # A list of numbers in the middle of talk may be anything.
        values = [value for value in values if not _is_plain_list(value)]
    found = [one for value in values if (one := _in_value(value, scale, count)) is not None]
    if found:
        return found[0] if len(found) == 1 and _stand_in_order(objects, text) else _NOTHING
    # Where JSON was cut off, the numbers in it may be of outputs in any order.
    return _NOTHING if _JSON_RATING.search(text) else None


def _stand_in_order(objects: Sequence[Any], text: str) -> bool:
    """Whether what the text calls these objects is their order, or they have numbers of their own."""
    if any(_number_of(one) is not None for one in objects):
        return True
    items = [place(item) for item in _ITEM_WITH_OBJECT.findall(text)]
    if _tell_another_order(_BEFORE_OBJECT.findall(text)):
        return False
    return not objects or (items in ([], _run(len(objects))) and are_in_order(text, len(objects)))


def _is_plain_list(value: Any) -> bool:
    return isinstance(value, list) and not any(isinstance(one, dict) for one in cast(list[Any], value))


def _in_value(value: Any, scale: Scale, count: int | None, depth: int = 0) -> _Found:
    if isinstance(value, list):
        return _in_list(cast(list[Any], value), scale, count)
    if not isinstance(value, dict) or depth > _DEEPEST:
        return None
    keys = _lowered(value)
    numbered = [
        (int(match[1]), _of_value(one, scale)) for key, one in keys.items() if (match := _NUMBERED.fullmatch(key))
    ]
    if any(judgement.rating is not None for _, judgement in numbered):
        return _placed(numbered, count)
    ratings = _first(keys, [f"{key}s" for key in _RATING_KEYS] + list(_RATING_KEYS))
    if isinstance(ratings, list):
        if any(isinstance(one, dict) for one in cast(list[Any], ratings)):
            return _in_list(cast(list[Any], ratings), scale, count)
        reasons = _first(keys, [f"{key}s" for key in _RATIONALE_KEYS] + list(_RATIONALE_KEYS))
        if any(_is_another_order(said) for key, said in keys.items() if _NUMBER_KEY.fullmatch(key.removesuffix("s"))):
            return _NOTHING
        if any(_are_names_in_another_order(said) for key, said in keys.items() if key not in _SAID_KEYS):
            return _NOTHING
        return _in_lists(cast(list[Any], ratings), reasons, scale, count)
    if _first(keys, _RATING_KEYS) is not None:
        return _in_list([keys], scale, count)
    inner: list[Any] = [one for one in keys.values() if isinstance(one, (dict, list))]
    return _in_value(inner[0], scale, count, depth + 1) if len(inner) == 1 else None


def _in_list(values: list[Any], scale: Scale, count: int | None) -> _Found:
    judgements = [_of_value(value, scale) for value in values]
    if all(judgement.rating is None for judgement in judgements):
        return None
    numbers = [_number_of(value) for value in values]
    if None not in numbers:
        return _placed(zip(cast(list[int], numbers), judgements, strict=True), count)
    places = [_place_of(value) for value in values]
    is_in_order = places == _run(len(places)) or (all(at is None for at in places) and not _are_named_otherwise(values))
    return _ordered(judgements, count) if is_in_order and all(number is None for number in numbers) else _NOTHING


def _are_named_otherwise(values: Sequence[Any]) -> bool:
    """Whether the objects tell under a key of any name, such as "model", that they are in another order."""
    objects = [_lowered(value) for value in values if isinstance(value, dict)]
    keys = [key for key in (objects[0] if objects else ()) if key not in _SAID_KEYS]
    return any(_are_names_in_another_order([one.get(key) for one in objects]) for key in keys)


def _are_names_in_another_order(said: Any) -> bool:
    names = cast(list[Any], said) if isinstance(said, list) else []
    are_names = all(isinstance(one, str) and _SHORT_NAME.fullmatch(one.strip()) for one in names)
    return are_names and _tell_another_order(names)


def _in_lists(ratings: list[Any], reasons: Any, scale: Scale, count: int | None) -> _Found:
    judgements = [_of_value(value, scale) for value in ratings]
    if isinstance(reasons, list) and len(cast(list[Any], reasons)) == len(judgements):
        pairs = zip(judgements, cast(list[Any], reasons), strict=True)
        judgements = [Judgement(one.rating, _text(reason) or one.rationale) for one, reason in pairs]
    return _ordered(judgements, count)


def _of_value(value: Any, scale: Scale) -> Judgement:
    """What a value says of one output: a number, "4/5", or an object that holds one."""
    if isinstance(value, dict):
        keys = _lowered(value)
        return Judgement(_of_value(_first(keys, _RATING_KEYS), scale).rating, _text(_first(keys, _RATIONALE_KEYS)))
    if isinstance(value, str):
        match = _VALUE_HERE.fullmatch(value.strip())
        return Judgement(_rating(match, scale))
    return Judgement(scale.rating(value))


def _number_of(value: Any) -> int | None:
    """The number of the output that an object says it is about."""
    return next((number for said in _names_in(value) if (number := _number_in(said)) is not None), None)


def _number_in(said: Any) -> int | None:
    if isinstance(said, str):
        match = _NUMBERED.fullmatch(said.strip())
        return None if match is None else int(match[1])
    return said if type(said) is int else None


def _place_of(value: Any) -> int | None:
    """Which output an object says it is about, in other words than a number: "B", "second output"."""
    return next((at for said in _names_in(value) if (at := _place_in(said)) is not None), None)


def _place_in(said: Any) -> int | None:
    return place_called(said) if isinstance(said, str) else _number_in(said)


def _names_in(value: Any) -> list[Any]:
    """What an object may say of which output it is about, the surest first."""
    if not isinstance(value, dict):
        return []
    keys = _lowered(value)
    named = [said for key, said in keys.items() if _NUMBER_KEY.fullmatch(key)]
    inner = [_first(_lowered(said), _NUMBER_KEYS) for said in named if isinstance(said, dict)]
    others = [said for key, said in keys.items() if key not in _RATIONALE_KEYS and is_full_name(said)]
    return [*named, *inner, *(keys[key] for key in _NUMBER_KEYS if key in keys), *others]


def _is_another_order(said: Any) -> bool:
    """Whether it is a list of the outputs in another order than theirs."""
    places = [_place_in(one) for one in cast(list[Any], said)] if isinstance(said, list) else []
    return set(places) == set(_run(len(places))) and places != _run(len(places))


def _lowered(value: Any) -> dict[str, Any]:
    return {key.strip().lower(): one for key, one in cast(dict[str, Any], value).items()}


def _first(keys: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((keys[name] for name in names if name in keys), None)


def _text(value: Any) -> str | None:
    return value.strip() or None if isinstance(value, str) else None
