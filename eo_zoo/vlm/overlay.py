"""A picture of what was found: outlines on the image, a colour a class, and a legend below."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from eo_zoo.files import replacing

if TYPE_CHECKING:
    from eo_zoo.vlm.boxes import Box
    from eo_zoo.vlm.records import Detections

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Rectangle = tuple[int, int, int, int]  # left, top, right, bottom

LONG = 1200  # pixels: smaller pictures are enlarged by a whole factor to at most this; larger ones get larger letters
NARROW = 480  # width of the page at the least
NAME = 24  # letters of a class's name beside a box
SHARE = 0.05  # of the page that names may take: where boxes are many, colours tell
# Okabe and Ito's colours, which the colour-blind tell apart; those that are closest to others come last.
PALETTE: tuple[Colour, ...] = (
    (230, 159, 0), (86, 180, 233), (240, 228, 66), (204, 121, 167), (0, 158, 115), (213, 94, 0), (0, 114, 178),
)  # fmt: skip
GREY = (190, 190, 190)  # all further classes
# Fonts with Chinese, Japanese and Korean letters, as Linux, macOS and Windows have them, after one with many others.
FONTS = (
    "DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "NotoSansSC-Regular.otf", "wqy-microhei.ttc", "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc", "Arial Unicode.ttf", "msyh.ttc", "simsun.ttc",
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A class as it is shown.

    Args:
        name: beside its boxes.
        entry: in the legend.
        colour: of its outlines and names.
    """

    name: str
    entry: str
    colour: Colour

    @property
    def ground(self) -> str:
        """Black or white, whichever the colour stands out from."""
        red, green, blue = self.colour
        return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 110 else "white"


def draw(path: str | Path, picture: Image.Image, detections: Detections, *, overwrite: bool = False) -> Path:
    """PNG: the picture with the boxes' outlines, names where they hide nothing, and a legend with counts.

    Outlines are two-tone, so they stand out from light and from dark ground. A name (and the score, where there is
    one) is written beside a box where it covers no box and no other name; how many found no room is said below. Seven
    classes have colours of their own, all further ones are grey. A name in letters that no font here has is shown as
    "class 2" beside its boxes, and by its code points in the legend.

    Args:
        path: a name that ends in .png.
        picture: the whole image, in any size.
        detections: what was found in it.
        overwrite: replace an existing file.

    Returns:
        The path with links resolved.

    Raises:
        InputError: another suffix, no such folder, or a file that is there.
        OSError: the file cannot be written.
    """
    from eo_zoo.geo.checks import writable

    target = cast(Path, writable("the overlay", path, (".png",), overwrite))
    page = _page(picture, detections)
    with replacing(target) as part:
        page.save(part, format="PNG")
    return target


def _page(picture: Image.Image, detections: Detections) -> Image.Image:
    zoom = max(1, LONG // max(picture.size))
    width, height = picture.width * zoom, picture.height * zoom
    unit = max(1.0, max(width, height) / LONG)  # of line widths and letters
    margin = round(8 * unit)
    kinds = _kinds(detections)
    page = Image.new("RGB", (max(width, round(NARROW * unit)) + 2 * margin, height + 2 * margin), "white")
    page.paste(picture.convert("RGB").resize((width, height), Image.Resampling.NEAREST), (margin, margin))
    scale = width / detections.size[0], height / detections.size[1]
    outlines = [Outline(box.scaled(*scale).shifted(margin, margin), kinds[box.label], unit) for box in detections]
    pen = ImageDraw.Draw(page)
    for outline in outlines:  # all grounds first: none lies on a neighbour's line
        pen.line(outline.points, outline.kind.ground, outline.ground, joint="curve")
    for outline in outlines:
        pen.line(outline.points, outline.kind.colour, outline.line, joint="curve")
    left_out = _write_names(page, outlines, unit)
    return _with_legend(page, detections, kinds, left_out, unit)


class Outline:
    """A box on the page, and the widths of its line and of the ground below that."""

    def __init__(self, box: Box, kind: Kind, unit: float) -> None:
        self.box, self.kind = box, kind
        shortest = min(math.dist(box.corners[i - 1], box.corners[i]) for i in range(4))
        self.line = max(2, round(min(3 * unit, shortest / 8)))  # small boxes stay open
        self.ground = self.line + 2 * max(1, round(0.6 * unit))

    @property
    def points(self) -> list[tuple[float, float]]:
        """Around the box and on to the second corner, so that the joint at the first is round too."""
        return [*self.box.corners, *self.box.corners[:2]]

    def sites(self, width: int, height: int) -> Iterator[Rectangle]:
        """Where a name of this size may be: above, below, right or left of a corner, or inside; the best first."""
        gap = self.ground // 2 + 1
        corners = sorted(self.box.corners, key=lambda corner: (round(corner[1]), corner[0]))
        for x, y in corners[:2]:
            yield from (_rectangle(left, y - gap - height, width, height) for left in (x - gap, x + gap - width))
        for x, y in corners[:1:-1]:
            yield from (_rectangle(left, y + gap, width, height) for left in (x - gap, x + gap - width))
        (left, y), (right, level) = min(corners), max(corners, key=lambda corner: (corner[0], -corner[1]))
        yield _rectangle(right + gap, level, width, height)
        yield _rectangle(left - gap - width, y, width, height)
        yield _rectangle(corners[0][0] + gap, corners[0][1] + gap, width, height)


def _rectangle(left: float, top: float, width: int, height: int) -> Rectangle:
    return round(left), round(top), round(left) + width, round(top) + height


def _kinds(detections: Detections) -> dict[str, Kind]:
    """By label, the most frequent first."""
    kinds = {}
    for index, label in enumerate(detections.counts()):
        name = " ".join(label.split()) or "no class"
        colour = PALETTE[index] if index < len(PALETTE) else GREY
        if _font_for(name, 13) is not None:
            short = name if len(name) <= NAME else name[: NAME - 3].rstrip() + "..."
            kinds[label] = Kind(short, name, colour)
        else:
            kinds[label] = Kind(f"class {index + 1}", f"class {index + 1}: {_shown(name)}", colour)
    return kinds


def _write_names(page: Image.Image, outlines: Sequence[Outline], unit: float) -> int:
    """Write names where they hide nothing, of the surest and largest boxes first; returns how many found no room."""
    pen, size, pad = ImageDraw.Draw(page), round(13 * unit), round(3 * unit)
    height = size + 2 * pad
    drawn = Image.new("1", page.size)
    mask = ImageDraw.Draw(drawn)
    for outline in outlines:
        mask.line(outline.points, 1, outline.ground, joint="curve")
        if outline.box.area < (10 * height) ** 2:  # a name inside would hide what the box shows
            mask.polygon(outline.points, 1)
    busy = np.array(drawn)
    room, left_out = SHARE * busy.size, 0
    for outline in sorted(outlines, key=lambda one: (-(one.box.score or 0), -one.box.area)):
        kind, score = outline.kind, outline.box.score
        text = kind.name if score is None else f"{kind.name} {score:.2f}"
        width = _width(text, size) + 2 * pad
        site = _free(busy, outline.sites(width, height)) if room >= width * height else None
        if site is None:
            left_out += 1
            continue
        room -= width * height
        left, top, right, bottom = site
        busy[top:bottom, left:right] = True
        pen.rectangle((left, top, right - 1, bottom - 1), kind.colour)
        _write(pen, (left + pad, (top + bottom) / 2), text, size, kind.ground)
    return left_out


def _free(busy: np.ndarray, sites: Iterator[Rectangle]) -> Rectangle | None:
    """The first site that is on the page and where nothing is yet."""
    for left, top, right, bottom in sites:
        there = left >= 0 and top >= 0 and right <= busy.shape[1] and bottom <= busy.shape[0]
        if there and not busy[top:bottom, left:right].any():
            return left, top, right, bottom
    return None


def _with_legend(
    page: Image.Image, detections: Detections, kinds: dict[str, Kind], left_out: int, unit: float
) -> Image.Image:
    """The page, below it the classes with their counts, and who found them by which question."""
    size, line, gap = (round(length * unit) for length in (14, 22, 8))
    room = page.width - 2 * gap
    entries: list[tuple[int, int, str, Kind]] = []
    x = row = 0
    for label, count in detections.counts().items():
        kind, tail = kinds[label], f"  {count}"
        text = _cut(kind.entry, size, room - line - _width(tail, size)) + tail
        width = line + _width(text, size) + 2 * gap
        if x and x + width > room:
            x, row = 0, row + 1
        entries.append((x, row, text, kind))
        x += width
    model = f"{detections.model} @ {detections.revision[:8]}" if detections.revision else detections.model
    rest = f"; names of {left_out} left out for want of room" if left_out else ""
    boxes = "1 box" if len(detections) == 1 else f"{len(detections)} boxes"
    said = [f"{boxes} by {model}{rest}", " ".join(detections.prompt.split())]
    first = row + 1 if entries else 0
    whole = Image.new("RGB", (page.width, page.height + (first + len(said)) * line + gap), "white")
    whole.paste(page)
    pen = ImageDraw.Draw(whole)
    for x, row, text, kind in entries:
        left, middle = gap + x, page.height + (row + 0.5) * line
        pen.rectangle((left, middle - size // 2, left + size, middle + size // 2), kind.colour, "grey", round(unit))
        _write(pen, (left + line, middle), text, size, "black")
    for index, text in enumerate(said, first):
        text = _cut(_shown(text), size, room)
        _write(pen, (gap, page.height + (index + 0.5) * line), text, size, "dimgrey")
    return whole


# ---- letters ----


@cache
def _fonts(size: int) -> tuple[Font, ...]:
    """Pillow's own, and those of ``FONTS`` that this machine has."""
    found: list[Font] = [ImageFont.load_default(size)]
    for name in FONTS:
        try:
            found.append(ImageFont.truetype(name, size))
        except OSError:  # not here
            continue
    return tuple(found)


def _font_for(text: str, size: int) -> Font | None:
    """The first font that has all letters of a text."""
    if not text.isprintable():
        return None
    return next((font for font in _fonts(size) if all(_has(font, letter) for letter in set(text))), None)


@cache
def _has(font: Font, letter: str) -> bool:
    """A font draws the same sign, an empty frame as a rule, for all letters that it lacks."""
    return letter == " " or bytes(font.getmask(letter)) != bytes(font.getmask("\U0010fffe"))


def _shown(text: str) -> str:
    """A text, or where no font has its letters, with their code points."""
    return text if _font_for(text, 13) is not None else text.encode("ascii", "backslashreplace").decode()


def _font(text: str, size: int) -> Font:
    return _font_for(text, size) or _fonts(size)[0]


def _width(text: str, size: int) -> int:
    return math.ceil(_font(text, size).getlength(text))


def _cut(text: str, size: int, width: int) -> str:
    """A text that is no wider than this."""
    if _width(text, size) <= width:
        return text
    fitting = bisect.bisect(range(1, len(text)), width, key=lambda count: _width(text[:count] + "...", size))
    return text[:fitting].rstrip() + "..."


def _write(pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int, colour: str) -> None:
    """From the left, at this height in the middle."""
    pen.text(place, text, colour, _font(text, size), anchor="lm")
