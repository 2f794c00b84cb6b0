from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from eo_zoo.errors import InputError
from eo_zoo.vlm.boxes import Box, Window, iou, merge, non_maximum_suppression, windows

seeds = st.integers(0, 2**32 - 1)


def turned(cx, cy, width, height, degrees, label="ship"):
    """An oriented box by its centre."""
    angle = np.radians(degrees)
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    corners = [
        (cx, cy) + along * width / 2 * i + across * height / 2 * j for i, j in ((-1, -1), (1, -1), (1, 1), (-1, 1))
    ]
    return Box(tuple((float(x), float(y)) for x, y in corners), label, oriented=True)


def views(objects, size, side, overlap, grain=0.0):
    """What a faultless model finds in each window: each object as far as it is seen, to ``grain`` pixels."""
    shapes = np.array([thing.polygon for thing in objects])
    found = []
    for window in windows(*size, side, overlap):
        frame = np.array([window.col, window.row, window.col + window.width, window.row + window.height])
        parts = shapely.intersection(shapes, shapely.box(*frame))
        seen = [
            _seen(objects[i], parts[i], frame[[0, 1, 0, 1]], grain) for i in np.flatnonzero(shapely.area(parts) > 0)
        ]
        found.append((window, [box for box in seen if box is not None]))
    return found


def _seen(thing, part, origin, grain):
    if part.area > 0.999999 * thing.area and not grain:
        return thing
    if thing.oriented:
        return Box(tuple(part.minimum_rotated_rectangle.exterior.coords[:4]), thing.label, thing.score, True)
    bounds = np.array(part.bounds)
    if grain:
        bounds = np.round((bounds - origin) / grain) * grain + origin
    left, top, right, bottom = bounds.tolist()
    return (
        Box.upright(left, top, right, bottom, label=thing.label, score=thing.score)
        if left < right and top < bottom
        else None
    )


def same(found, objects, least=0.99):
    """Whether the boxes are the objects, one each."""
    shapes = [np.array([box.polygon for box in boxes]) for boxes in (found, objects)]
    pairs = shapely.STRtree(shapes[1]).query(shapes[0])
    a, b = shapes[0][pairs[0]], shapes[1][pairs[1]]
    alike = shapely.area(shapely.intersection(a, b)) > least * shapely.area(shapely.union(a, b))
    alike &= [found[i].label == objects[j].label for i, j in pairs.T]
    mates = pairs[:, alike]
    return len(found) == len(objects) == len(set(mates[0])) == len(set(mates[1]))


def scattered(seed, size, pitch, smallest, largest, labels=("ship", "plane")):
    """Objects that do not overlap each other, in cells of ``pitch``."""
    random = np.random.default_rng(seed)
    objects = []
    for row in range(size[1] // pitch):
        for col in range(size[0] // pitch):
            if random.random() < 0.3:
                continue
            width, height = random.uniform(smallest, largest, 2)
            left, top = col * pitch + random.uniform(0, pitch - width), row * pitch + random.uniform(0, pitch - height)
            objects.append(Box.upright(left, top, left + width, top + height, label=str(random.choice(labels))))
    return objects


class TestBox:
    def test_corners_of_an_upright_box(self):
        box = Box.upright(30, 40, 10, 20, label="ship", score=0.5)
        assert box.corners == ((10, 20), (30, 20), (30, 40), (10, 40))
        assert (box.label, box.score, box.oriented) == ("ship", 0.5, False)
        assert box.bounds == (10, 20, 30, 40)
        assert box.area == box.polygon.area == 400

    def test_moved_and_scaled(self):
        box = Box.upright(10, 20, 30, 40, label="ship", score=0.25)
        assert box.shifted(5, -1) == Box.upright(15, 19, 35, 39, label="ship", score=0.25)
        assert box.scaled(2, 0.5) == Box.upright(20, 10, 60, 20, label="ship", score=0.25)

    def test_area_of_an_oriented_box_is_its_own(self):
        assert turned(50, 50, 30, 10, 37).area == pytest.approx(300)

    def test_corners_that_cross_enclose_their_hull(self):
        assert Box(((0, 0), (10, 10), (10, 0), (0, 10))).polygon.area == 100


class TestIou:
    @pytest.mark.parametrize(
        ("a", "b", "expected"),
        [
            (Box.upright(0, 0, 10, 10), Box.upright(0, 0, 10, 10), 1),
            (Box.upright(0, 0, 10, 10), Box.upright(5, 0, 15, 10), 50 / 150),
            (Box.upright(0, 0, 10, 10), Box.upright(10, 0, 20, 10), 0),
            (Box.upright(0, 0, 10, 10), Box(((5, 0), (10, 5), (5, 10), (0, 5))), 0.5),
            (turned(0, 0, 10, 2, 0), turned(0, 0, 10, 2, 90), 4 / 36),
            (Box.upright(3, 3, 3, 3), Box.upright(3, 3, 3, 3), 0),
        ],
    )
    def test_known(self, a, b, expected):
        assert iou(a, b) == pytest.approx(expected)
        assert iou(b, a) == pytest.approx(expected)


class TestWindows:
    @settings(deadline=None)
    @given(st.integers(1, 900), st.integers(1, 900), st.integers(60, 500), st.floats(0, 0.9))
    def test_cover_and_overlap(self, width, height, side, share):
        overlap = int(share * side)
        places = windows(width, height, side, overlap)
        for start, length in (("col", "width"), ("row", "height")):
            whole = width if start == "col" else height
            spans = sorted({(getattr(place, start), getattr(place, length)) for place in places})
            assert all(size == min(side, whole) for _, size in spans)
            assert spans[0][0] == 0
            assert sum(spans[-1]) == whole
            for (first, size), (second, _) in pairwise(spans):
                assert overlap <= first + size - second < size
            assert len(spans) == 1 + max(0, -(-(whole - side) // (side - overlap)))
        assert len(places) == len(set(places))

    def test_row_by_row(self):
        assert windows(100, 90, 64, 16) == [
            Window(0, 0, 64, 64),
            Window(0, 36, 64, 64),
            Window(26, 0, 64, 64),
            Window(26, 36, 64, 64),
        ]

    def test_small_images_are_one_window(self):
        assert windows(64, 30, 64, 16) == [Window(0, 0, 30, 64)]
        assert windows(65, 30, 64, 16) == [Window(0, 0, 30, 64), Window(0, 1, 30, 64)]

    @pytest.mark.parametrize(("overlap", "fine"), [(-1, False), (0, True), (63, True), (64, False)])
    def test_overlap_is_within_the_side(self, overlap, fine):
        if fine:
            assert windows(100, 100, 64, overlap)
        else:
            with pytest.raises(InputError, match="cannot overlap by"):
                windows(100, 100, 64, overlap)

    @pytest.mark.parametrize("shape", [(0, 5, 64), (5, 0, 64), (5, 5, 0)])
    def test_nothing_to_cover(self, shape):
        with pytest.raises(InputError, match="at least 1"):
            windows(*shape, 0)


class TestNonMaximumSuppression:
    def test_none(self):
        assert non_maximum_suppression([]) == []

    def test_best_score_wins_and_order_is_kept(self):
        low, other, high = (
            Box.upright(0, 0, 10, 10, score=0.2),
            Box.upright(50, 0, 60, 10),
            Box.upright(1, 0, 10, 10, score=0.9),
        )
        assert non_maximum_suppression([low, other, high]) == [other, high]
        assert non_maximum_suppression([high, other, low]) == [high, other]

    def test_without_scores_the_larger_then_the_first_wins(self):
        small, large, equal = (
            Box.upright(0, 0, 9, 9),
            Box.upright(0, 0, 10, 10),
            Box.upright(0.5, 0, 10.5, 10),
        )
        assert non_maximum_suppression([small, large, equal]) == [large]
        assert non_maximum_suppression([equal, large, small]) == [equal]

    def test_a_stated_score_comes_before_none(self):
        stated, larger = Box.upright(0, 0, 9, 9, score=0.01), Box.upright(0, 0, 10, 10)
        assert non_maximum_suppression([larger, stated]) == [stated]

    def test_labels_apart_but_not_by_case(self):
        boxes = [Box.upright(0, 0, 10, 10, label=label) for label in ("ship", "plane", "Ship")]
        assert [box.label for box in non_maximum_suppression(boxes)] == ["ship", "plane"]

    def test_threshold_is_what_may_stay(self):
        pair = [Box.upright(0, 0, 10, 10), Box.upright(0, 0, 10, 5)]
        assert len(non_maximum_suppression(pair, 0.5)) == 2
        assert len(non_maximum_suppression(pair, 0.49)) == 1

    def test_a_removed_box_removes_none(self):
        row = [Box.upright(x, 0, x + 10, 10, score=1 - x / 100) for x in (0, 3, 6)]
        assert non_maximum_suppression(row) == [row[0], row[2]]

    def test_parallel_ships_side_by_side_stay(self):
        ships = [turned(100 + 8 * i, 100 - 8 * i, 60, 10, 45) for i in range(5)]
        assert iou(*(Box.upright(*ship.bounds) for ship in ships[:2])) > 0.5  # upright boxes would be taken as one
        assert non_maximum_suppression(ships) == ships


class TestMerge:
    def test_nothing_found(self):
        assert merge([(Window(0, 0, 64, 64), [])], (64, 64)) == []
        assert merge([], (64, 64)) == []

    @settings(max_examples=20, deadline=None)
    @given(seeds, st.integers(0, 60), st.integers(0, 60))
    def test_objects_smaller_than_the_overlap(self, seed, more_width, more_height):
        size = (300 + more_width, 200 + more_height)
        objects = scattered(seed, size, 20, 2, 20)
        assert same(merge(views(objects, size, 96, 24), size), objects)

    @settings(max_examples=20, deadline=None)
    @given(seeds, st.sampled_from([0.974, 0.71]))
    def test_rounded_places(self, seed, grain):
        """To the pixels of the image as a model saw it, which differ from window to window in their place."""
        size = (700, 500)
        objects = scattered(seed, size, 60, 15, 55)
        assert same(merge(views(objects, size, 300, 64, grain), size), objects, 0.8)

    @settings(max_examples=10, deadline=None)
    @given(seeds)
    def test_dense_rows_of_equal_objects(self, seed):
        random = np.random.default_rng(seed)
        width, height, gap = random.integers(3, 12), random.integers(3, 12), random.choice([0.0, 0.5, 1.0])
        size = (170, 110)
        objects = [
            Box.upright(float(x), float(y), float(x + width), float(y + height), label="car")
            for x in np.arange(random.random(), size[0] - width, width + gap)
            for y in np.arange(random.random(), size[1] - height, height + gap)
        ]
        assert same(merge(views(objects, size, 80, 20), size), objects)

    @settings(max_examples=20, deadline=None)
    @given(seeds)
    def test_oriented_objects(self, seed):
        random = np.random.default_rng(seed)
        size = (420, 300)
        objects = [
            turned(
                x + random.uniform(-5, 5), y + random.uniform(-5, 5), *random.uniform(8, 30, 2), random.uniform(0, 180)
            )
            for x in range(25, size[0] - 24, 54)
            for y in range(25, size[1] - 24, 54)
        ]
        found = merge(views(objects, size, 160, 48), size)
        assert same(found, objects)
        assert all(box.oriented for box in found)

    @settings(max_examples=20, deadline=None)
    @given(seeds)
    def test_objects_longer_than_windows_are_joined(self, seed):
        random = np.random.default_rng(seed)
        size = (500, 300)
        rows = [
            Box.upright(random.uniform(0, 200), y, random.uniform(300, 500), y + random.uniform(5, 18), label="train")
            for y in range(0, 280, 20)
        ]
        assert same(merge(views(rows, size, 100, 16), size), rows)
        columns = [Box(tuple((y, x) for x, y in row.corners), row.label) for row in rows]
        assert same(merge(views(columns, size[::-1], 100, 16), size[::-1]), columns)

    def test_the_corner_of_a_turned_object(self):
        """Its corner alone is boxed anew in the neighbour, which is no second object."""
        ship = turned(125, 50, 24, 12, 45)
        parts = views([ship], (200, 100), 120, 40)
        corner = turned(117, 46, 5.5, 9, 0)
        parts[0] = (parts[0][0], [corner])
        assert iou(corner, ship) < 0.2
        assert merge(parts, (200, 100)) == [ship]

    def test_a_part_that_lies_beside_is_another_object(self):
        ship = turned(125, 50, 24, 12, 45)
        other = Box.upright(110, 60, 119, 70, label="ship")
        parts = views([ship], (200, 100), 120, 40)
        parts[0] = (parts[0][0], [other])
        assert len(merge(parts, (200, 100))) == 2

    @pytest.mark.parametrize("overlap", [0, 16])
    def test_an_object_as_large_as_the_image(self, overlap):
        lake = Box.upright(3, 5, 390, 290, label="lake", score=0.5)
        assert merge(views([lake], (400, 300), 100, overlap), (400, 300)) == [lake]

    def test_windows_that_only_touch(self):
        train, car = Box.upright(20, 10, 180, 30, label="train"), Box.upright(40, 60, 60, 70, label="car")
        assert same(merge(views([train, car], (200, 100), 100, 0), (200, 100)), [train, car])

    def test_an_oriented_object_longer_than_the_overlap(self):
        ship = turned(200, 60, 150, 12, 20)
        (found,) = merge(views([ship], (400, 120), 220, 40), (400, 120))
        assert found.oriented
        assert iou(found, ship) > 0.85

    def test_the_joined_has_the_best_score(self):
        parts = [
            (Window(0, 0, 100, 100), [Box.upright(50, 10, 100, 20, label="train", score=0.3)]),
            (Window(0, 80, 100, 100), [Box.upright(80, 10, 150, 20, label="train", score=0.7)]),
        ]
        assert merge(parts, (180, 100)) == [Box.upright(50, 10, 150, 20, label="train", score=0.7)]

    def test_the_whole_wins_over_a_cut_one_with_a_better_score(self):
        parts = [
            (Window(0, 0, 100, 100), [Box.upright(85, 10, 100, 20, score=0.9)]),
            (Window(0, 80, 100, 100), [Box.upright(85, 10, 125, 20, score=0.1)]),
        ]
        assert merge(parts, (180, 100)) == [Box.upright(85, 10, 125, 20, score=0.1)]

    def test_what_only_one_window_found_is_kept(self):
        alone = Box.upright(85, 10, 100, 20)  # cut, and overlooked in the neighbour
        parts = [(Window(0, 0, 100, 100), [alone]), (Window(0, 80, 100, 100), [])]
        assert merge(parts, (180, 100)) == [alone]

    def test_labels_are_not_mixed(self):
        parts = [
            (Window(0, 0, 100, 100), [Box.upright(50, 10, 100, 20, label="road")]),
            (Window(0, 80, 100, 100), [Box.upright(80, 10, 150, 20, label="river")]),
        ]
        assert [box.label for box in merge(parts, (180, 100))] == ["road", "river"]

    def test_two_whole_ones_that_meet_in_the_overlap_stay_two(self):
        parts = [
            (Window(0, 0, 100, 100), [Box.upright(50, 10, 96, 20)]),
            (Window(0, 60, 100, 100), [Box.upright(64, 10, 140, 20)]),
        ]
        assert len(merge(parts, (160, 100))) == 2

    def test_a_window_has_an_object_once(self):
        """Two of one window are two, whatever a third box between them says."""
        above, below = Box.upright(60, 10, 100, 20), Box.upright(60, 21, 100, 31)
        parts = [
            (Window(0, 0, 100, 100), [above, below]),
            (Window(0, 50, 100, 100), [Box.upright(60, 10, 101, 22), Box.upright(60, 21, 101, 31)]),
        ]
        assert len(merge(parts, (150, 100))) == 2

    def test_nor_does_a_box_of_another_window_join_two(self):
        one, other = Box.upright(60, 10, 120, 24), Box.upright(60, 17, 120, 31)
        parts = [
            (Window(0, 0, 100, 100), [Box.upright(60, 10, 100, 30)]),
            (Window(0, 50, 100, 100), [one, other]),
        ]
        assert merge(parts, (150, 100)) == [one, other]

    def test_twice_in_a_window_is_once_where_it_is_joined(self):
        parts = [
            (Window(0, 0, 100, 100), [Box.upright(20, 10, 100, 20), Box.upright(21, 10, 100, 20)]),
            (Window(0, 80, 100, 400), [Box.upright(80, 10, 370, 20)]),
        ]
        assert merge(parts, (480, 100)) == [Box.upright(20, 10, 370, 20)]

    def test_a_sliver_that_rounding_set_beside_its_object(self):
        whole = Box.upright(100.2, 10, 125, 20)
        parts = [(Window(0, 0, 100, 100), [Box.upright(99, 10, 100, 20)]), (Window(0, 80, 100, 100), [whole])]
        assert merge(parts, (180, 100)) == [whole]

    def test_what_no_edge_explains_is_left_to_the_overlap(self):
        """The windows disagree where the object ends, but it is mostly the same place."""
        parts = [
            (Window(0, 0, 1000, 1000), [Box.upright(700, 10, 960, 20)]),
            (Window(0, 600, 1000, 1000), [Box.upright(700, 10, 1030, 20)]),
        ]
        assert merge(parts, (1600, 1000)) == [Box.upright(700, 10, 1030, 20)]

    def test_twice_in_one_window_is_once(self):
        parts = [(Window(0, 0, 100, 100), [Box.upright(10, 10, 20, 20), Box.upright(10, 10, 20, 20.5)])]
        assert merge(parts, (100, 100)) == [Box.upright(10, 10, 20, 20.5)]

    def test_the_edge_of_the_image_cuts_nothing(self):
        """A box at the image's edge is whole there, and wins over one that an inner edge cut."""
        parts = [
            (Window(0, 0, 100, 100), [Box.upright(0, 10, 100, 20, score=0.1)]),
            (Window(0, 0, 100, 140), [Box.upright(0, 10, 140, 20, score=0.05)]),
        ]
        assert merge(parts, (140, 100)) == [Box.upright(0, 10, 140, 20, score=0.05)]

    def test_an_end_near_the_edge_counts_as_cut(self):
        """Models do not box up to the last pixel: an end within 2 % of the side may go on."""
        parts = [
            (Window(0, 0, 1000, 1000), [Box.upright(500, 100, 985, 140)]),
            (Window(0, 900, 1000, 1000), [Box.upright(915, 100, 1500, 140)]),
        ]
        assert merge(parts, (1900, 1000)) == [Box.upright(500, 100, 1500, 140)]

    def test_an_end_far_from_the_edge_does_not(self):
        parts = [
            (Window(0, 0, 1000, 1000), [Box.upright(500, 100, 960, 140)]),
            (Window(0, 900, 1000, 1000), [Box.upright(902, 100, 1500, 140)]),
        ]
        assert len(merge(parts, (1900, 1000))) == 2

    def test_the_order_is_that_of_the_finding(self):
        boxes = [Box.upright(x, 10, x + 8, 20, label=str(x)) for x in (70, 10, 40)]
        assert merge([(Window(0, 0, 100, 100), boxes)], (100, 100)) == boxes

    def test_five_thousand_boxes_take_seconds(self):
        size = (6000, 6000)
        objects = scattered(7, size, 71, 20, 70, labels=("ship",))
        found = []
        edges = np.array([thing.bounds for thing in objects])
        for window in windows(*size, 1024, 128):
            frame = np.array([window.col, window.row, window.col + window.width, window.row + window.height])
            low, high = np.maximum(edges[:, :2], frame[:2]), np.minimum(edges[:, 2:], frame[2:])
            seen = (low < high).all(1)
            parts = np.concatenate([low, high], axis=1)[seen].tolist()
            found.append((window, [Box.upright(*part, label="ship") for part in parts]))
        assert sum(len(boxes) for _, boxes in found) > 5000
        start = time.process_time()
        merged = merge(found, size)
        assert time.process_time() - start < 10
        assert len(merged) == len(objects)
        assert set(merged) == set(objects)

    def test_a_thousand_boxes_on_top_of_each_other(self):
        pile = [Box.upright(10, 10, 50 + i / 1000, 50) for i in range(1000)]
        start = time.process_time()
        assert non_maximum_suppression(pile) == [pile[-1]]
        assert time.process_time() - start < 3
