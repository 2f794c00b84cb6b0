"""Boxes and counts out of what a vision-language model wrote; ``grammar`` says in which ways boxes can be written."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from eo_zoo.errors import InputError, nearest
from eo_zoo.vlm.boxes import Box, Point
from eo_zoo.vlm.grammar import PLAIN, TAG, Place, Reading, Refusal

# How a model of a type writes places: Qwen2.5-VL in pixels of the resized image, the others in thousandths of it
# (github.com/QwenLM/Qwen3-VL, issues 1486 and 1427).
SPACES = {"qwen2_vl": "thousand", "qwen2_5_vl": "absolute", "qwen3_vl": "thousand"}
TOLERANCE = 0.02  # of the extent of a space: models overshoot the edge a little


@dataclass(frozen=True)
class Space:
    """How a model writes places.

    Attributes:
        kind: "absolute", pixels of the image as the model saw it; "thousand", 0..1000 along both axes; "unit", 0..1.
        seen: width and height of the image as the model saw it, after the processor's resize.
        image: width and height of the image that was asked about.
    """

    kind: str
    seen: tuple[int, int]
    image: tuple[int, int]

    @classmethod
    def of(cls, model_type: str, seen: tuple[int, int], image: tuple[int, int]) -> Space:
        """The space of transformers' ``model_type``.

        Raises:
            InputError: how models of that type write places is not known.
        """
        if model_type not in SPACES:
            raise InputError(
                f"how models of type '{model_type}' write coordinates is not known. {nearest(model_type, SPACES)}"
            )
        return cls(SPACES[model_type], seen, image)

    @property
    def extent(self) -> tuple[float, float]:
        """The largest x and y."""
        return {"thousand": (1000, 1000), "unit": (1, 1)}.get(self.kind, self.seen)

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the image per unit, along x and y: ``box.scaled(*space.scale)`` is in pixels of the image."""
        return self.image[0] / self.extent[0], self.image[1] / self.extent[1]

    def holds(self, numbers: Sequence[float]) -> bool:
        """Whether a box can be one of this space: its two corners, or the centre of four, which may reach beyond."""
        if len(numbers) == 8:
            numbers = [sum(numbers[::2]) / 4, sum(numbers[1::2]) / 4]
        return all(
            -TOLERANCE * most <= number <= (1 + TOLERANCE) * most
            for axis, most in enumerate(self.extent)
            for number in numbers[axis::2]
        )


@dataclass(frozen=True)
class Unparsed:
    """A part of an answer that was not read as a box, and why."""

    text: str
    reason: str


@dataclass(frozen=True)
class Parsed:
    """What an answer says.

    Attributes:
        boxes: in pixels of the image that was asked about.
        unparsed: what looks like a place and could not be read; the whole answer where it holds no box.
        warnings: what was changed or assumed, a sentence each.
        none: the answer says that there is nothing: "[]", "There are no ships."
        kind: of the space that the boxes were read in; "" where there is none.
    """

    boxes: tuple[Box, ...] = ()
    unparsed: tuple[Unparsed, ...] = ()
    warnings: tuple[str, ...] = ()
    none: bool = False
    kind: str = ""


def parse_boxes(text: str, space: Space, *, label: str = "") -> Parsed:
    """Read the boxes of an answer in any of the grammars above; never raises, whatever the text.

    Numbers are in the model's space. If all are in 0..1, and not all whole, they are fractions of the image; if they
    cannot be in the model's space and all fit the other one, they are taken so, with a warning. An upright box is
    clipped to the image; an oriented one keeps its shape, and is taken only if its centre lies in the image. Corners
    that cross each other are put in order. What an answer says twice, word for word, is one box.

    Args:
        text: the answer.
        space: how the model writes places.
        label: of boxes that carry none.
    """
    answer = text.rpartition("</think>")[2]
    if not text.strip():
        return Parsed(unparsed=(Unparsed(text, "the answer is empty"),))
    if "<think>" in answer or not answer.strip():
        return Parsed(unparsed=(Unparsed(text, "the answer ends while the model was still thinking"),))
    reading = Reading(answer)
    unparsed = reading.refusals + reading.rest()
    if not reading.places and not unparsed:
        none = says_nothing(answer) or (reading.empty and not OTHERWISE.search(_said(answer)))
        return Parsed(none=True) if none else Parsed(unparsed=(Unparsed(answer, "the answer holds no box"),))
    space, warnings = _plausible(reading.places, space)
    boxes, refused, changed = _boxes(reading.places, space, label)
    told = sorted(unparsed + refused, key=lambda part: part.start)
    return Parsed(
        tuple(boxes),
        tuple(Unparsed(answer[part.start : part.end].strip(" ,\n\t"), part.reason) for part in told),
        tuple(reading.warnings + warnings + changed),
        kind=space.kind if boxes else "",
    )


def parse_together(texts: Sequence[str], spaces: Sequence[Space], *, label: str = "") -> list[Parsed]:
    """Read the answers of one model to questions of one kind, as about the windows of an image.

    What one answer shows of how places are written holds for all: numbers that fit several spaces are read in the one
    that another answer's numbers must be in.
    """
    parsed = [parse_boxes(text, space, label=label) for text, space in zip(texts, spaces, strict=True)]
    others = {own.kind for own, space in zip(parsed, spaces, strict=True) if own.kind not in ("", "unit", space.kind)}
    if len(others) != 1:
        return parsed
    (kind,) = others
    told = [warning for own in parsed for warning in own.warnings if "they cannot be" in warning][:1]
    again = [
        parse_boxes(text, replace(space, kind=kind), label=label) for text, space in zip(texts, spaces, strict=True)
    ]
    if any(own.kind not in ("", kind) for own in again):
        said = "the answers do not agree on how places are written: each was read by itself"
        return [replace(parsed[0], warnings=(*parsed[0].warnings, said)), *parsed[1:]]
    return [replace(again[0], warnings=(*told, *again[0].warnings)), *again[1:]]


def says_nothing(text: str) -> bool:
    """Whether a short answer says, in English or Chinese and without a "but", that there is none.

    >>> says_nothing("There are no ships in the image."), says_nothing("No planes, but a ship.")
    (True, False)
    """
    said = _said(text)
    return len(said) < 200 and bool(NOTHING.search(said)) and not OTHERWISE.search(said)


def parse_count(text: str) -> int | None:
    """The one number of things an answer states, in digits or English words up to ninety-nine; 0 for "no ships".

    None where the answer states no number, several (a range too), a bound ("more than 10"), a share, a fraction or a
    list.

    >>> parse_count("There are twelve ships."), parse_count("10 to 12"), parse_count("No ships are visible.")
    (12, None, 0)
    """
    said = _said(text.rpartition("</think>")[2])
    if "[" in said or BOUND.search(said):
        return None
    if NOTHING.search(said):
        return 0 if says_nothing(said) else None
    counts = {
        float(match["digits"].replace(",", "")) if match["digits"] else float(_in_words(match["words"]))
        for match in COUNT.finditer(said)
    }
    count = counts.pop() if len(counts) == 1 else math.inf
    return int(count) if count.is_integer() and count >= 0 else None


def _said(text: str) -> str:
    return " ".join(TAG.sub(" ", text.translate(PLAIN)).lower().split())


NOTHING = re.compile(
    r"""
    ^\W*+(?:no|none|nothing|zero|0|nil|n/a|null)\W*+$
    | ^\W*+(?:no|zero|0)\s(?!idea|answer|way|information|clear)(?:[\w-]++[\s.]?){1,4}+\W*+$
    | \b(?:no|zero|0)\s(?:[\w-]++\s){1,5}(?:visible|found|detected|present|seen|identified|located|here|in)\b
    | \b(?:is|are|were)\s(?:no|zero|0|none|nothing)\b
    | \b(?:isn't|aren't|is\snot|are\snot)\s(?:any|visible|found|detected|present)\b
    | (?:n't|\bnot|\bnot\sable\sto|\bunable\sto|\bcannot)\s(?:see|find|detect|contain|show|locate|identify)\sany\b
    | (?:\u6ca1\u6709|\u672a\u68c0\u6d4b|\u672a\u53d1\u73b0|\u4e0d\u5b58\u5728)
    """,
    re.VERBOSE,
)
OTHERWISE = re.compile(
    r"\b(?:but|however|except|although|though|only|other|rather|instead|yet|while|one|two|three|some|several|[1-9]\d*)\b"
    r"|\u4f46|\u53ea\u6709"
)
ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
BOUND = re.compile(
    r"\b(?:(?:more|fewer|less|greater|no\smore)\sthan|at\s(?:least|most)|up\sto|(?:over|under|above|below)\s[0-9]++|hundreds?|"
    r"thousands?|millions?|dozens?)\b|[<>%\u2264\u2265+]"
)
COUNT = re.compile(
    rf"""
    (?<![a-z0-9_])(?<![a-z]-)(?P<digits>-?(?:[0-9]{{1,3}}+(?:,[0-9]{{3}})++|[0-9]{{1,15}}+)(?:\.[0-9]++)?+)
        (?![a-z0-9_])
    | \b(?P<words>(?:{"|".join(TENS)})(?:[-\s](?:{"|".join(ONES[1:10])}))?+|{"|".join(ONES)})\b
    """,
    re.VERBOSE,
)


def _in_words(words: str) -> int:
    """
    >>> _in_words("twenty-one")
    21
    """
    return sum(ONES.index(word) if word in ONES else 20 + 10 * TENS.index(word) for word in re.split(r"[-\s]", words))


def _boxes(places: list[Place], space: Space, label: str) -> tuple[list[Box], list[Refusal], list[str]]:
    """Places in the model's space as boxes in the image's pixels, what is none, and sentences about both."""
    boxes: list[Box] = []
    refused: list[Refusal] = []
    changed = Counter[str]()
    known: set[tuple[tuple[float, ...], str]] = set()
    for place in places:
        # what cannot be printed cannot be written to every format either
        named = " ".join("".join(c if c.isprintable() else " " for c in place.about.label).split())
        key = place.numbers, named.casefold()
        if key in known:
            changed["repeated in the answer: kept once"] += 1
            continue
        known.add(key)
        try:
            corners, change = (_upright if len(place.numbers) == 4 else _oriented)(place.numbers, space)
        except _NoBox as reason:
            refused.append(Refusal(place.start, place.end, str(reason)))
            continue
        changed.update([change] if change else [])
        oriented = len(place.numbers) == 8
        boxes.append(Box(corners, named or label, place.about.score, oriented))
    return boxes, refused, [f"{count} box{'es'[: 2 * (count > 1)]} {change}" for change, count in changed.items()]


def _plausible(places: list[Place], space: Space) -> tuple[Space, list[str]]:
    """The space that the numbers of an answer can be in."""
    if not places or all(place.whole for place in places) or any(not 0 <= n <= 1 for p in places for n in p.numbers):
        other = replace(space, kind="absolute" if space.kind == "thousand" else "thousand")
        if all(space.holds(place.numbers) for place in places) or not all(other.holds(p.numbers) for p in places):
            return space, []
        width, height = space.seen
        said = {"absolute": f"pixels of the image as the model saw it, {width} x {height}", "thousand": "0..1000"}
        return other, [f"coordinates were taken as {said[other.kind]}: they cannot be {said[space.kind]}"]
    return replace(space, kind="unit"), []


class _NoBox(Exception):
    """Why numbers are no box."""


def _upright(numbers: Sequence[float], space: Space) -> tuple[tuple[Point, ...], str]:
    """Corners clipped to the image, and what was changed."""
    box = Box.upright(*numbers).scaled(*space.scale)
    left, top, right, bottom = box.bounds
    if not (left < right and top < bottom):
        raise _NoBox("a box without an area")
    width, height = space.image
    turned = "with corners the other way round: taken as x1 < x2, y1 < y2" * (
        numbers[0] > numbers[2] or numbers[1] > numbers[3]
    )
    clipped = Box.upright(max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
    if left >= width or top >= height or right <= 0 or bottom <= 0:
        raise _NoBox("a box outside of the image")
    return clipped.corners, turned if clipped == box else "clipped to the image"


def _oriented(numbers: Sequence[float], space: Space) -> tuple[tuple[Point, ...], str]:
    """Four corners in order around the box, and what was changed."""
    box = Box(tuple(zip(numbers[::2], numbers[1::2], strict=True))).scaled(*space.scale)
    left, top, right, bottom = box.bounds
    width, height = space.image
    if left < -width or top < -height or right > 2 * width or bottom > 2 * height:
        raise _NoBox("a box that reaches far beyond the image")
    a, b, c, d = box.corners
    crossing = _meet(a, b, c, d) or _meet(b, c, d, a)
    corners = next(filter(_convex, ((a, c, b, d), (a, b, d, c))), None) if crossing else box.corners
    if corners is None:
        raise _NoBox("a box without an area" if box.area < 1e-6 else "corners that are not those of a box")
    if not (0 <= sum(x for x, _ in corners) / 4 <= width and 0 <= sum(y for _, y in corners) / 4 <= height):
        raise _NoBox("an oriented box whose centre lies outside of the image")
    if crossing:
        return corners, "had corners that cross each other: put in order"
    beyond = left < 0 or top < 0 or right > width or bottom > height
    return corners, "oriented, reaching beyond the image: kept whole" if beyond else ""


def _convex(corners: tuple[Point, ...]) -> bool:
    """Whether one goes round four corners by turning to one side alone."""
    turns = [_turn(corners[i - 2], corners[i - 1], corners[i]) for i in range(4)]
    return min(turns) > 0 or max(turns) < 0


def _meet(a: Point, b: Point, c: Point, d: Point) -> bool:
    """Whether a side a-b meets a side c-d; always so where all four are in line."""
    return _turn(a, b, c) * _turn(a, b, d) <= 0 and _turn(c, d, a) * _turn(c, d, b) <= 0


def _turn(a: Point, b: Point, c: Point) -> float:
    """Positive where b-c turns to the right of a-b as it is seen, negative to the left, 0 straight on."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
