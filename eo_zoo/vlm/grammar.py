"""Places in what a vision-language model wrote: from text to groups of 4 or 8 numbers with a label.

Strict about content, generous about syntax: every number of a place stands in the text, in that order; nothing is
padded, swapped between x and y, or taken from where the answer was cut off. The text is read once, left to right, into
a tree of brackets; no grammar is tried and given up, so the time is linear in the length. The tree is read for:

- lists of 4 or 8 numbers, of 2 or 4 points, and lists of such lists, in any bracket, also between ``<box>``,
  ``<quad>``, ``<|box_start|>``, ``<|quad_start|>`` and their ends;
- objects with one of BOX_KEYS, or x1, y1, x2, y2 by name, as JSON or as people write it (single or no quotes, missing
  or trailing commas, Python's tuples); objects under a key, which is their label unless it is a word like "objects";
- points side by side, (x1,y1),(x2,y2), as they stand when a tokenizer has dropped the special tokens;
- labels from LABEL_KEYS, ``<ref>``, ``<|object_ref_start|>``, or in the words right before a place ("ship(", "ship: ").

In a sentence ("... between [1, 2, 3, 4]") a list of 4 numbers is a place only if x1 < x2 and y1 < y2, and a list of
fewer is prose. Of an answer that was cut off, whole objects before the cut are read.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

DEPTH = 50  # of brackets in brackets; no known answer has more than 5

# Where an object states its place twice, the more exact way comes first.
BOX_KEYS = (
    *("obb", "bbox_obb", "poly", "polygon", "quad"),
    *("bbox_2d", "bbox", "box", "box_2d", "bboxes", "boxes", "points", "coordinates"),
)
CORNER_KEYS = (("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"), ("left", "top", "right", "bottom"))
LABEL_KEYS = ("label", "class", "category", "name", "text_label", "object", "class_name")
SCORE_KEYS = ("score", "confidence")
COLLECTIONS = {"objects", "object", "detections", "results", "result", "items", "annotations", "answer", "output"}
NOT_LABELS = {
    *("here", "there", "is", "are", "at", "in", "it", "its", "of", "to", "from", "between", "range", "years", "values"),
    *("box", "boxes", "bbox", "bboxes", "bbox_2d", "bounding", "coordinate", "coordinates", "position", "positions"),
    *("location", "locations", "answer", "answers", "result", "results", "output", "detected", "detections", "found"),
    *("object", "objects"),
}

# Full-width letters and typographic signs, one for one, so that offsets stay.
PLAIN = str.maketrans(
    "\uff08\uff09\uff3b\uff3d\uff5b\uff5d\uff0c\u3001\uff1a\uff1b\uff05\u2212\u201c\u201d\u2018\u2019\uff0e"
    "\uff10\uff11\uff12\uff13\uff14\uff15\uff16\uff17\uff18\uff19",
    "()[]{},,:;%-\"\"''.0123456789",
)
NUMBER = r"(?<![\w.])[-+]?(?:(?>0|[1-9][0-9]*+)(?:\.[0-9]*+)?+|\.[0-9]++)(?:[eE][-+]?[0-9]++)?+(?!\w)"
BRACKETS = r"""
    <ref>(?P<ref>[^<]*+)</ref> | <\|object_ref_start\|>(?P<label>[^<]*+)<\|object_ref_end\|>
    | (?P<open>[\[({] | <(?:box|bbox|quad|poly)> | <\|(?:box|quad)_start\|>)
    | (?P<close>[\])}] | </(?:box|bbox|quad|poly)> | <\|(?:box|quad)_end\|>)
"""
TOKENS = rf"""
    | (?P<number>{NUMBER})
    | (?P<string>(?<!\w)"(?:[^"\\\n]|\\.)*+(?:"|(?=\n)|\\?\Z) | (?<!\w)'(?:[^'\\\n]|\\.|'(?=\w))*+(?:'|(?=\n)|\\?\Z))
    | (?P<word>\w++) | (?P<comma>,) | (?P<colon>:) | (?P<junk>\S)
"""
# Every alternative is linear: no repetition can give back what it took.
OUTSIDE = re.compile(BRACKETS, re.VERBOSE)
INSIDE = re.compile(BRACKETS + TOKENS, re.VERBOSE)
PARTNER = {"]": "[", ")": "(", "}": "{"}


@dataclass(slots=True)
class _Node:
    """A token, or a bracket ("[", "(", "{", "<" for tags, "" for the whole answer) with what stands in it."""

    kind: str
    start: int
    end: int
    text: str = ""
    items: list[_Node] = field(default_factory=list)
    closed: bool = True

    @property
    def bracket(self) -> bool:
        return self.kind in ("[", "(", "{", "<")

    @property
    def numbers(self) -> list[str] | None:
        """The numbers of a whole bracket with nothing else in it, as written."""
        written = [item.number for item in self.items] if self.bracket and self.closed else []
        return [number for number in written if number] if written and all(written) else None

    @property
    def number(self) -> str:
        """A number as written, with or without quotes; "" if it is none."""
        if self.kind == "number":
            return self.text
        return self.text.strip() if self.kind == "string" and re.fullmatch(NUMBER, self.text.strip()) else ""

    @property
    def point(self) -> bool:
        return self.kind in ("[", "(") and len(self.items) == 2 and self.numbers is not None


def _tree(text: str) -> _Node:
    """The brackets of a text and the tokens in them, in one pass."""
    stack, open_ones = [_Node("", 0, len(text))], Counter[str]()
    at, before = 0, ""
    while match := (INSIDE if len(stack) > 1 else OUTSIDE).search(text, at):
        kind, at = match.lastgroup or "", match.end()
        if kind == "open":
            node = _Node("<" if match[0][0] == "<" else match[0], match.start(), len(text), closed=False)
            stack[-1].items.append(node)
            stack.append(node)
            open_ones[node.kind] += 1
        elif kind == "close":
            _close(stack, open_ones, PARTNER.get(match[0], "<"), at)
        elif kind != "comma":
            stack[-1].items.append(_Node(kind, match.start(), at, _written(kind, match)))
        elif before in ("comma", "open"):  # something is missing here
            stack[-1].items.append(_Node("junk", match.start(), at, ","))
        before = kind
    return stack[0]


def _close(stack: list[_Node], open_ones: Counter[str], kind: str, end: int) -> None:
    """Close the bracket of a kind and those in it that were forgotten; a wrong kind, as in [0, 10), closes the last."""
    if len(stack) == 1 or (not open_ones[kind] and kind == "<"):
        return
    wanted = kind if open_ones[kind] else stack[-1].kind
    closed = ""
    while closed != wanted:
        node = stack.pop()
        node.closed, node.end, closed = True, end, node.kind
        open_ones[closed] -= 1


def _written(kind: str, match: re.Match[str]) -> str:
    """A token's text; of a string what is between the quotes."""
    if kind != "string":
        return match[kind]
    written = match[0]
    try:
        return str(json.loads(written))
    except ValueError:
        return written[1:-1] if len(written) > 1 and written[-1] == written[0] else written[1:]


@dataclass(frozen=True)
class About:
    """What is known of the boxes that follow."""

    label: str = ""
    score: float | None = None


@dataclass(frozen=True)
class Place:
    """The numbers of a box, 4 or 8, in the model's space."""

    numbers: tuple[float, ...]
    whole: bool  # all are written without a decimal point or exponent
    about: About
    start: int
    end: int


@dataclass(frozen=True)
class Refusal:
    """A part of the text that looks like a place and is not read as one."""

    start: int
    end: int
    reason: str


Found = list[Place | Refusal]
_Fields = list[tuple[str, list[_Node]]]


class Reading:
    """What an answer's brackets say: ``places``, and ``refusals`` of what looks like one."""

    def __init__(self, text: str) -> None:
        self.text = text.translate(PLAIN)
        self.warnings: list[str] = []
        self.empty = False
        self.tree = _tree(self.text)
        found = self._sequence(self.tree, About(), 0)
        self.places = [part for part in found if isinstance(part, Place)]
        self.refusals = [part for part in found if isinstance(part, Refusal)]

    def rest(self) -> list[Refusal]:
        """What is cut off, and text between the boxes that may name a place: that with two numbers or more."""
        found: Found = [*self.places, *self.refusals]
        spans = sorted((part.start, part.end) for part in found)
        last = self.tree.items[-1] if self.tree.items else self.tree
        rest = []
        if not last.closed:
            start = max([last.start, *(end for _, end in spans)])
            if not found or re.search(r"\w", self.text[start:]):
                rest.append(Refusal(start, len(self.text), "cut off"))
                spans.append((start, len(self.text)))
            else:
                self.warnings.append("the answer ends within a list: there may be more objects than it names")
        at = 0
        for start, end in [*spans, (len(self.text), len(self.text))] if spans else []:
            if len(re.findall(r"[0-9]++", self.text[at:start])) > 1:
                rest.append(Refusal(at, start, "numbers in text, which are no box"))
            at = end
        return rest

    def _sequence(self, node: _Node, about: About, depth: int) -> Found:
        """Prose, or a list of several things: brackets with their labels, points side by side."""
        found: Found = []
        items = [item for item in node.items if item.bracket or item.kind in ("ref", "label")]
        at = node.start
        near, label, running = about.label, about.label, False
        index = 0
        while index < len(items):
            item = items[index]
            index += 1
            if item.kind in ("ref", "label"):
                near = label = item.text.strip()
                at = item.end
                continue
            lead = TAG.sub("", self.text[at : item.start]) if item.start > at else ""
            if re.search(r"[^\W\d]", lead):
                named = _label(lead)
                near, running = named or label, not named and not lead.rstrip().endswith(":") and _same_line(lead)
            elif "\n" in lead:
                running = False
            run = [item]
            while item.point and index < len(items) and items[index].point and self._gap(run[-1], items[index]):
                run.append(items[index])
                index += 1
            at = run[-1].end
            told = replace(about, label=near)
            if not item.point:
                found += self._bracket(item, told, depth + 1, prose=node.kind in ("", "("), running=running)
            elif node.closed:
                found += self._points(run, told)
        return found

    def _gap(self, first: _Node, second: _Node) -> int:
        """How closely two points go together: the higher the closer, 0 not at all."""
        gap = self.text[first.end : second.start]
        return GAPS.get((gap.strip().lower(), "\n" in gap), 0)

    def _points(self, run: list[_Node], about: About) -> Found:
        """Points side by side: those that go closest together are one box."""
        gaps = [self._gap(*pair) for pair in pairwise(run)]
        closest = max(gaps, default=0)
        groups = [[run[0]]]
        for point, gap in zip(run[1:], gaps, strict=True):
            if gap == closest:
                groups[-1].append(point)
            else:
                groups.append([point])
        return [
            self._place(_Node("[", group[0].start, group[-1].end, items=group), about)
            for group in groups
            if len(group) > 1
        ]

    def _bracket(self, node: _Node, about: About, depth: int, *, prose: bool = False, running: bool = False) -> Found:
        """A bracket that is a box, an object, or holds several.

        Args:
            node: the bracket.
            about: label and score so far.
            depth: brackets around it.
            prose: it stands in text, where a bracket need not be a place.
            running: it stands in a sentence.
        """
        if depth > DEPTH:
            return [Refusal(node.start, node.end, f"brackets in brackets, more than {DEPTH} deep")]
        if node.closed and not node.items:
            self.empty |= node.kind in ("[", "{")
            return []
        if node.kind != "(" and any(item.kind == "colon" for item in node.items):
            return self._object(node, about, depth)
        numbers = node.numbers
        if numbers is not None:
            if prose and node.kind != "<" and len(numbers) < 4:
                return []
            place = self._place(node, about)
            if running and isinstance(place, Place) and len(numbers) == 4 and not _ordered(place.numbers):
                return [
                    Refusal(node.start, node.end, "a list in a sentence, which is a box only if x1 < x2 and y1 < y2")
                ]
            return [place]
        if node.closed and all(item.point for item in node.items):
            return [self._place(node, about)]
        found = self._sequence(node, about, depth)
        if node.closed and not any(item.bracket for item in node.items) and not (prose and node.kind == "("):
            found += self._not_numbers(node)
        return found

    def _not_numbers(self, node: _Node) -> Found:
        inside = self.text[node.start : node.end]
        if "%" in inside:
            reason = "percentages, where a box has numbers"
        elif re.search(r"(?i)\b(?:nan|inf|infinity)\b", inside):
            reason = "a number that is not finite"
        elif len(re.findall(r"[0-9]++", inside)) > 1:
            reason = "more than a list of numbers"
        else:
            return []
        return [Refusal(node.start, node.end, reason)]

    def _place(self, node: _Node, about: About) -> Place | Refusal:
        """A closed bracket of numbers alone, or of points alone."""
        points = node.items[0].point
        written = [number for item in node.items for number in item.numbers or ()] if points else node.numbers or []
        if len(written) not in (4, 8):
            count, unit, needs = (
                (len(written) // 2, "point", "2 or 4") if points else (len(written), "number", "4 or 8")
            )
            return Refusal(node.start, node.end, f"{count} {unit}{'s'[count == 1 :]}, where a box has {needs}")
        numbers = tuple(float(number) for number in written)
        if not all(map(math.isfinite, numbers)):
            return Refusal(node.start, node.end, "a number that is not finite")
        whole = all(re.fullmatch(r"[-+]?[0-9]++", number) for number in written)
        return Place(numbers, whole, about, node.start, node.end)

    def _object(self, node: _Node, about: About, depth: int) -> Found:
        """Something with keys: a box with its label and score, or a collection."""
        fields = _fields(node)
        whole = fields if node.closed else fields[:-1]
        labels = next((said for key in LABEL_KEYS if (said := self._scalars(_under(whole, key)))), [])
        scores = next((said for key in SCORE_KEYS if (said := self._scalars(_under(whole, key)))), [])
        ways = [values for key in BOX_KEYS if (values := _under(fields, key))] + _corners(fields)
        if ways and not node.closed:
            return []  # its numbers or its label may be cut
        found: Found = []
        for values in ways:
            found = []
            for index, value in enumerate(values):
                score = self._score(_of_each(scores, index, len(values)))
                told = About(_of_each(labels, index, len(values)) or about.label, score)
                found += self._box_value(value, told, depth)
            if any(isinstance(part, Place) for part in found):
                break
        if ways:
            return [replace(part, start=node.start, end=node.end) for part in found]
        return self._collection(node, fields, labels, about, depth)

    def _collection(self, node: _Node, fields: _Fields, labels: list[str], about: About, depth: int) -> Found:
        """Something with keys, none of which is a box's: what stands under each."""
        found: Found = []
        brackets = [(key, value) for key, value in fields if any(item.bracket for item in value)]
        for key, value in brackets:
            label = labels[0] if labels else about.label if key.lower() in COLLECTIONS else key
            found += self._bracket(_list_of(value, node.closed), replace(about, label=label), depth + 1)
        if not brackets and node.closed and node.kind == "{":
            found.append(Refusal(node.start, node.end, "an object that names no box"))
        return found

    def _box_value(self, value: list[_Node], about: About, depth: int) -> Found:
        """What stands under a key that names a box."""
        node = _list_of(value)
        if len(value) == 1 and value[0].kind == "string" and not value[0].number:
            written = value[0].text
            inner = Reading(written if re.search(r"[\[({<]", written) else f"[{written}]")
            return [replace(place, about=about) for place in inner.places] or [
                Refusal(node.start, node.end, "text that holds no box")
            ]
        return self._bracket(node, about, depth + 1) or [Refusal(node.start, node.end, "no coordinates")]

    def _scalars(self, values: list[list[_Node]]) -> list[str]:
        """The values that are words or numbers, as text."""
        texts = [
            value[0].text if len(value) == 1 else self.text[value[0].start : value[-1].end]
            for value in values
            if value and not any(item.bracket for item in value)
        ]
        return [text.strip() for text in texts if text.strip().lower() not in ("", "null", "none")]

    def _score(self, written: str) -> float | None:
        if not written:
            return None
        score = float(written) if re.fullmatch(NUMBER, written) else math.nan
        if 0 <= score <= 1:
            return score
        self.warnings.append(f"the score '{written[:40]}' is left out: it is not in 0..1")
        return None


TAG = re.compile(r"<\|\w++\|>|</?[a-z]++>|```(?:json)?+")
GAPS = {  # what may stand between two points of one box, and whether on another line: how closely they go together
    ("to", False): 5, ("-", False): 5, ("\u2013", False): 5,
    (",", False): 4, (",", True): 3, ("", False): 2, ("", True): 1,
}  # fmt: skip


def _label(lead: str) -> str:
    """The label that the text before a box ends with: up to four words right before it, or before a colon.

    >>> _label("I see: a small ship"), _label("1. **Ship**: "), _label("The ships are at ")
    ('small ship', 'Ship', '')
    """
    said = lead.rstrip()
    if said != lead and said[-1:] != ":":
        return ""
    phrase = re.split(r"[\n.;!?,:\u3002](?=.)", said.rstrip(":*_ "))[-1]
    words = re.sub(r"^[\W\d_]*+", "", phrase).rstrip("-*_#`\"'=. \t").split()
    while words and words[0].lower() in ("a", "an", "the", "and"):
        del words[0]
    return " ".join(words) if 0 < len(words) <= 4 and not NOT_LABELS & {word.lower() for word in words} else ""


def _same_line(lead: str) -> bool:
    return "\n" not in lead[len(lead.rstrip()) :]


def _ordered(numbers: Sequence[float]) -> bool:
    return numbers[0] < numbers[2] and numbers[1] < numbers[3]


def _list_of(items: list[_Node], closed: bool = True) -> _Node:
    """Items as if in a list of their own."""
    return _Node("[", items[0].start, items[-1].end, items=items, closed=closed) if items else _Node("[", 0, 0)


def _fields(node: _Node) -> _Fields:
    """Keys and values; a key is what stands before a colon, so that commas do not matter."""
    colons = [index for index, item in enumerate(node.items) if item.kind == "colon"]
    return [
        (node.items[colon - 1].text.strip() if colon else "", node.items[colon + 1 : following - 1])
        for colon, following in pairwise([*colons, len(node.items) + 1])
    ]


def _under(fields: _Fields, key: str) -> list[list[_Node]]:
    return [value for name, value in fields if name.lower() == key]


def _corners(fields: _Fields) -> list[list[list[_Node]]]:
    """The values of x1, y1, x2, y2 by their names, as those of one box."""
    values = ([_under(fields, key) for key in keys] for keys in CORNER_KEYS)
    return [[[item for several in four for item in several[0]]] for four in values if all(map(len, four))]


def _of_each(values: list[str], index: int, count: int) -> str:
    """The value that goes with one of several boxes of an object: its own where there are as many, else the first."""
    return values[index if len(values) == count else 0] if values else ""
