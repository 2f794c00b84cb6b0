from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from eo_zoo.errors import InputError
from eo_zoo.vlm import overlay
from eo_zoo.vlm.boxes import Box
from eo_zoo.vlm.overlay import GREY, LONG, PALETTE, draw
from eo_zoo.vlm.records import Detections

MARGIN = 8  # of a page up to LONG pixels wide
SHIP = "\N{CJK UNIFIED IDEOGRAPH-8239}"


def detections(boxes, size=(1200, 800), **changes):
    shared = dict(crs=None, transform=None, source="scene.tif", prompt="Find all ships", model="tiny")
    return Detections(boxes=tuple(boxes), size=size, **(shared | changes))


def drawn(path, found, ground=(90, 90, 90), size=None) -> np.ndarray:
    """The page (rows, columns, 3), of a picture in one colour."""
    return np.array(Image.open(draw(path, Image.new("RGB", size or found.size, ground), found)))


def shows(page, colour, x, y, reach=3) -> bool:
    """Whether the colour is near a pixel of the picture."""
    x, y = round(x) + MARGIN, round(y) + MARGIN
    return bool((page[y - reach : y + reach + 1, x - reach : x + reach + 1] == colour).all(axis=2).any())


@pytest.mark.parametrize("divisor", [1, 2])
def test_outlines_are_where_the_boxes_are_also_on_a_smaller_picture(divisor, tmp_path):
    corners = ((200.0, 300.0), (500.0, 400.0), (450.0, 550.0), (150.0, 450.0))
    found = detections([Box(corners, "ship", oriented=True)])
    page = drawn(tmp_path / "o.png", found, size=(1200 // divisor, 800 // divisor))
    zoom = LONG // (1200 // divisor) / divisor
    assert zoom == 1  # what is half as large is shown twice as large
    for (x, y), (to_x, to_y) in zip(corners, corners[1:] + corners[:1], strict=True):
        assert all(shows(page, PALETTE[0], x + (to_x - x) * part, y + (to_y - y) * part) for part in (0, 0.3, 0.7))
    assert (page[MARGIN + 425, MARGIN + 325] == 90).all()  # the middle of the box


@pytest.mark.parametrize("ground", [(0, 0, 0), (255, 255, 255), *PALETTE, GREY])
def test_outlines_stand_out_from_any_ground(ground, tmp_path):
    labels = [f"class {index}" for index in range(len(PALETTE) + 1)]
    boxes = [Box.upright(100 * i + 50, 300, 100 * i + 120, 500, label=label) for i, label in enumerate(labels)]
    page = drawn(tmp_path / "o.png", detections(boxes), ground)

    def lightness(pixels):
        return pixels @ np.array([0.299, 0.587, 0.114])

    for box in boxes:
        left = round(box.bounds[0]) + MARGIN
        across = page[MARGIN + 420, left - 5 : left + 6].astype(float)
        assert np.abs(lightness(across) - lightness(np.array(ground, float))).max() > 60


def test_an_eighth_class_is_grey(tmp_path):
    boxes = [Box.upright(100 * i + 50, 300, 100 * i + 120, 500, label=f"class {i}") for i in range(8)]
    page = drawn(tmp_path / "o.png", detections(boxes))
    for index, colour in enumerate((*PALETTE, GREY)):
        assert shows(page, colour, 100 * index + 50, 420)


def test_many_boxes_stay_visible_and_names_take_little_room(tmp_path):
    boxes = [
        Box.upright(x, y, x + 24, y + 14, label="small vehicle", score=0.5)
        for x in range(10, 1160, 45)
        for y in range(10, 780, 35)
    ]
    assert len(boxes) > 500
    page = drawn(tmp_path / "o.png", detections(boxes))
    for box in boxes:
        left, top, right, bottom = (round(edge) + MARGIN for edge in box.bounds)
        assert (page[top + 4 : bottom - 3, left + 4 : right - 3] == 90).all(), "what is in the box is hidden"
        assert shows(page, PALETTE[0], box.bounds[0], box.bounds[1] + 7)


def test_names_are_beside_their_boxes_and_on_the_page(tmp_path):
    """Wherever there is room: a box in each corner, and one as large as the image, which has it inside."""
    for corner in ((0, 0), (1100, 0), (0, 740), (1100, 740)):
        path = tmp_path / f"{corner}.png"
        bare = drawn(
            tmp_path / f"{corner} bare.png", detections([Box.upright(*corner, corner[0] + 100, corner[1] + 60)])
        )
        named = drawn(path, detections([Box.upright(*corner, corner[0] + 100, corner[1] + 60, label="a" * 20)]))
        changed = (bare != named).any(axis=2)[: 800 + 2 * MARGIN]
        rows, columns = np.nonzero(changed)
        assert changed.sum() > 200 and np.abs(columns.mean() - corner[0] - 50) < 200
        assert np.abs(rows.mean() - corner[1] - 30) < 80
    page = drawn(tmp_path / "whole.png", detections([Box.upright(0, 0, 1200, 800, label="port")]))
    assert (page[MARGIN + 6 : MARGIN + 20, MARGIN + 6 : MARGIN + 30] == PALETTE[0]).all(axis=2).mean() > 0.5


def test_the_surest_are_named_first_and_the_rest_is_counted(monkeypatch, tmp_path):
    said: list[str] = []
    write = overlay._write
    monkeypatch.setattr(
        overlay, "_write", lambda pen, at, text, *rest: (said.append(text), write(pen, at, text, *rest))
    )
    boxes = [Box.upright(500, 400, 530, 420, label="ship", score=score) for score in (0.25, 0.75)] * 20
    drawn(tmp_path / "o.png", detections(boxes, prompt="Find\nall ships", revision="0123456789"))
    names, entry, counted, prompt = said[:-3], *said[-3:]
    assert names[0] == "ship 0.75" and 0 < len(names) < 20
    assert (entry, prompt) == ("ship  40", "Find all ships")
    assert counted == f"40 boxes by tiny @ 01234567; names of {40 - len(names)} left out for want of room"


def test_letters_that_no_font_has_are_given_as_code_points(monkeypatch, tmp_path):
    monkeypatch.setattr(overlay, "FONTS", ())
    overlay._fonts.cache_clear()
    try:
        found = detections([Box.upright(1, 1, 9, 9, label=SHIP), Box.upright(20, 1, 29, 9, label="a\nb")])
        kinds = overlay._kinds(found)
        assert (kinds[SHIP].name, kinds[SHIP].entry) == ("class 2", "class 2: \\u8239")
        assert kinds["a\nb"].name == "a b"
        assert drawn(tmp_path / "o.png", found).shape[1] == 1200 + 2 * MARGIN
    finally:
        overlay._fonts.cache_clear()


def test_long_names_and_many_classes_do_not_widen_the_page(tmp_path):
    boxes = [Box.upright(10, 10 * i, 60, 10 * i + 8, label=f"{i} " + "very long " * 40) for i in range(30)]
    page = drawn(tmp_path / "o.png", detections(boxes, size=(300, 400), prompt="why " * 300))
    assert page.shape[1] == 900 + 2 * MARGIN and page.shape[0] > 1200 + 30 * 20
    assert (page[1200 + 2 * MARGIN :, -2:] == 255).all()  # no text runs off the page


def test_letters_and_lines_grow_with_the_picture(tmp_path):
    found = detections([Box.upright(100, 100, 500, 400, label="ship")], size=(1200, 800))
    small = drawn(tmp_path / "small.png", found)
    large = drawn(tmp_path / "large.png", found, size=(3600, 2400))
    assert np.abs(np.array(large.shape[:2]) / small.shape[:2] - 3).max() < 0.02
    shares = [(page == PALETTE[0]).all(axis=2).mean() for page in (small, large)]
    assert shares[0] == pytest.approx(shares[1], rel=0.2)


@pytest.mark.parametrize("size", [(1, 1), (2, 3000), (60, 40)])
def test_pictures_of_any_shape_with_nothing_found(size, tmp_path):
    page = drawn(tmp_path / "o.png", detections([], size=size))
    assert page.shape[0] > size[1] and (page == 90).all(axis=2).sum() >= size[0] * size[1]


def test_equal_pictures_are_equal_files(tmp_path):
    found = detections([Box.upright(10, 10, 60, 70, label="ship", score=0.5)])
    for name in "ab":
        drawn(tmp_path / f"{name}.png", found)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_files_that_should_not_be_written(tmp_path):
    picture, found = Image.new("RGB", (8, 8)), detections([], size=(8, 8))
    there = draw(tmp_path / "o.png", picture, found)
    with pytest.raises(InputError, match="exists"):
        draw(there, picture, found)
    assert draw(there, picture, found, overwrite=True) == there
    with pytest.raises(InputError, match=r"ends in \.png"):
        draw(tmp_path / "o.jpg", picture, found)
    assert list(tmp_path.iterdir()) == [there]
