"""The usual picture of a masked autoencoder: a row a domain; input, masked, reconstruction and truth beside it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from eo_zoo.files import replacing
from eo_zoo.geo.output import stretch
from eo_zoo.models.multimae_domains import DOMAINS, WORLDCOVER

COLUMNS = ("input", "masked", "reconstruction", "truth")
SIDE = 224  # of a panel, in pixels, at the least
LABELS, ENTRY = 200, 190  # widths of the texts beside the panels, and of an entry of the legend
GAP, LINE, HEAD = 8, 18, 44
Colour = tuple[int, int, int]

# What red, green and blue show: a weight for every channel of the domain.
MIXES: dict[str, tuple[str, np.ndarray]] = {
    "rgb": ("true colour: B4, B3, B2", np.eye(3)),
    "ired": ("red edge: B7 red, B6 green, B5 blue", np.eye(3)[::-1]),
    "sired": ("short-wave infrared: B12 red, B11 blue, mean green", np.array([[0, 1], [0.5, 0.5], [1, 0]])),
    "ebands": ("near infrared: B8A red, B8 blue, mean green", np.array([[1, 0], [0.5, 0.5], [0, 1]])),
}
SAID = {name: text for name, (text, _) in MIXES.items()} | {
    "depth": "elevation: low is dark, high is bright",
    "semseg": "land cover: a label for 4 x 4 pixels",
}

# ESA WorldCover's own colours, in the order of the classes.
OFFICIAL = (
    0x006400, 0xFFBB22, 0xFFFF4C, 0xF096FF, 0xFA0000, 0xB4B4B4,
    0xF0F0F0, 0x0064C8, 0x0096A0, 0x00CF75, 0xFAE6A0, 0x000000,
)  # fmt: skip
LAND_COVER: tuple[tuple[str, Colour], ...] = tuple(
    (name, (colour >> 16, colour >> 8 & 255, colour & 255))
    for name, colour in zip(WORLDCOVER.values(), OFFICIAL, strict=True)
)

# Viridis (CC0), whose lightness rises evenly: nine of its colours, and straight lines between them.
VIRIDIS = np.array(
    [[68, 1, 84], [71, 45, 123], [59, 82, 139], [44, 114, 142], [33, 145, 140], [40, 174, 128], [94, 201, 98],
     [173, 220, 48], [253, 231, 37]]
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One domain of one image.

    Args:
        domain: its name.
        truth: float (C, H, W), NaN where unknown; of semseg class ids (h, w); None where there is none.
        prediction: the model's, in the truth's form and units.
        visible: bool (rows, columns): the patches that the model was given; None for a domain that it was not.
        lines: of text below the name; they are wrapped.
    """

    domain: str
    truth: np.ndarray | None
    prediction: np.ndarray
    visible: np.ndarray | None
    lines: Sequence[str] = ()


def draw(path: Path, rows: Sequence[Row], classes: Sequence[tuple[str, Colour]] = LAND_COVER) -> None:
    """PNG: ``COLUMNS`` for each row, in the same colours; hidden patches are hatched.

    Of the reconstruction only hidden patches are the model's, the others are shown as they were given. Colours run
    from the 2nd to the 98th percentile of the truth (without one, of the prediction); what is NaN is white.

    Args:
        path: where to write; it takes its name when it is whole.
        rows: of one image.
        classes: name and colour of the class ids of semseg; those that occur are listed beside it.

    Raises:
        OSError: the file cannot be written.
    """
    pixels = max(row.prediction.shape[-1] * DOMAINS[row.domain].stride for row in rows)
    side = pixels * max(1, SIDE // pixels)
    lefts = [LABELS + column * (side + GAP) for column in range(len(COLUMNS))]
    legend = [classes[one] for row in rows if DOMAINS[row.domain].classes for one in _occurring(row)]
    across = (lefts[-1] + side - LABELS) // ENTRY
    bottom = HEAD + len(rows) * (side + GAP)
    page = Image.new("RGB", (lefts[-1] + side + GAP, bottom + -(-len(legend) // across) * LINE + GAP), "white")
    pen = ImageDraw.Draw(page)
    for name, left in zip(COLUMNS, lefts, strict=True):
        pen.text((left + side / 2, HEAD / 2), name, "black", _font(18), anchor="mm")
    for index, row in enumerate(rows):
        top = HEAD + index * (side + GAP)
        _write_label(pen, row, top)
        for panel, left in zip(_panels(row, side, classes), lefts, strict=True):
            page.paste(panel, (left, top))
    for index, (text, colour) in enumerate(legend):
        x, y = LABELS + index % across * ENTRY, bottom + index // across * LINE
        pen.rectangle((x, y + 2, x + 12, y + 14), fill=colour, outline="grey")
        pen.text((x + 18, y), text, "black", _font(13))
    with replacing(path) as part:
        page.save(part, format="PNG")


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _write_label(pen: ImageDraw.ImageDraw, row: Row, top: int) -> None:
    pen.text((GAP, top), row.domain, "black", _font(18))
    lines = [line for text in row.lines for line in textwrap.wrap(text, 28) or [""]]
    for index, line in enumerate(lines):
        pen.text((GAP, top + 26 + index * LINE), line, "dimgrey", _font(13))


def _occurring(row: Row) -> list[int]:
    ids = [labels.ravel() for labels in (row.truth, row.prediction) if labels is not None]
    return np.unique(np.concatenate(ids)).tolist()


def _panels(row: Row, side: int, classes: Sequence[tuple[str, Colour]]) -> list[Image.Image]:
    """The four pictures of a row, ``side`` pixels a side."""
    hatch = np.where(np.add.outer(np.arange(side), np.arange(side)) % 8 < 2, 190, 228).astype(np.uint8)
    hatch = hatch[..., None].repeat(3, -1)
    prediction = _enlarged(_colours(row, row.prediction, classes), side)
    if row.truth is None:
        panels = [hatch, hatch, prediction, np.full_like(prediction, 255)]
    else:
        truth = _enlarged(_colours(row, row.truth, classes), side)
        hidden = _enlarged(np.ones((1, 1), bool) if row.visible is None else ~row.visible, side)[..., None]
        given = hatch if row.visible is None else truth
        panels = [given, np.where(hidden, hatch, truth), np.where(hidden, prediction, truth), truth]
    images = [Image.fromarray(panel) for panel in panels]
    if row.visible is None:
        _write_across(images[0], "not given")
    if row.truth is None:
        _write_across(images[3], "no raster")
    return images


def _colours(row: Row, values: np.ndarray, classes: Sequence[tuple[str, Colour]]) -> np.ndarray:
    """Bytes (rows, columns, 3)."""
    if DOMAINS[row.domain].classes:
        return np.array([colour for _, colour in classes], np.uint8)[values]
    like = row.prediction if row.truth is None or np.isnan(row.truth).all() else row.truth
    if row.domain in MIXES:
        mix = MIXES[row.domain][1]
        return stretch(np.tensordot(mix, values, 1), np.tensordot(mix, like, 1))
    grey = stretch(values, like)[..., 0]
    steps = np.arange(256) / 255 * (len(VIRIDIS) - 1)
    table = np.stack([np.interp(steps, np.arange(len(VIRIDIS)), channel) for channel in VIRIDIS.T], 1)
    return np.where(np.isnan(values[0])[..., None], 255, table[grey]).astype(np.uint8)


def _enlarged(picture: np.ndarray, side: int) -> np.ndarray:
    """(rows, columns, ...), every value repeated."""
    for axis in (0, 1):
        picture = picture.repeat(side // picture.shape[axis], axis)
    return picture


def _write_across(image: Image.Image, text: str) -> None:
    pen, middle, font = ImageDraw.Draw(image), (image.width / 2, image.height / 2), _font(15)
    pen.rectangle((0, 0, image.width - 1, image.height - 1), outline="silver")
    pen.rectangle(pen.textbbox(middle, f" {text} ", font, anchor="mm"), fill="white")
    pen.text(middle, text, "black", font, anchor="mm")
