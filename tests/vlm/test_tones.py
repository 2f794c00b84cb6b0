from __future__ import annotations

import numpy as np
import pytest

from eo_zoo.errors import InputError
from eo_zoo.vlm.tones import Stretch, Tones, stretched


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        ("none", Stretch()),
        ("2,98", Stretch(percentiles=(2, 98))),
        ((0.5, 99.5), Stretch(percentiles=(0.5, 99.5))),
        ([1, 99], Stretch(percentiles=(1, 99))),
        ("0:3000", Stretch(ranges=((0, 3000),))),
        ("-25:0, 1:2 ,3:4", Stretch(ranges=((-25, 0), (1, 2), (3, 4)))),
        (((0, 1), (0, 2), (3, -4)), Stretch(ranges=((0, 1), (0, 2), (3, -4)))),
    ],
)
def test_ways_to_say_a_stretch(given, expected):
    assert Stretch.of(given) == expected


@pytest.mark.parametrize(
    "given", ["", "two", "2", "98,2", (2,), (1, 2, 3), "1:2:3", "0:0", "0:nan", ((0, 1), 2), 5, "0,101", (None, 1)]
)
def test_what_is_no_stretch_is_refused_with_the_ways(given):
    with pytest.raises(InputError, match="expected"):
        Stretch.of(given)


def test_ends_are_black_and_white_and_the_middle_is_grey():
    values = np.array([[[-5, 0, 50, 100, 300]], [[0, 1, 2, 3, 4]], [[4, 3, 2, 1, 0]]], np.int16)
    shown = Tones(((0, 100), (0, 4), (0, 4))).apply(values)
    assert shown.tolist() == [[[0, 0, 255], [0, 64, 191], [128, 128, 128], [255, 191, 64], [255, 255, 0]]]
    assert Tones(((4, 0),)).apply(values[1:2])[0, :, 0].tolist() == [255, 191, 128, 64, 0]  # turned round


def test_without_a_stretch_values_are_cut_to_bytes():
    values = np.array([[[-3.0, 0.4, 0.6, 254.6, 900, np.nan]]], np.float32)
    assert Tones().apply(values)[0, :, 1].tolist() == [0, 0, 1, 255, 255, 0]


def test_each_band_is_stretched_over_its_own_valid_pixels():
    values = np.stack([np.linspace(0, 100, 1001), np.linspace(1000, 2000, 1001), np.full(1001, 7.0)])[:, None]
    valid = np.ones(values.shape, bool)
    valid[0, 0, 500:] = False
    tones, note = stretched(Stretch(percentiles=(10, 90)), values, valid, ["B04", "B03", "B02"])
    assert np.allclose(tones.ranges, [(4.99, 44.91), (1100, 1900), (7, 8)])
    assert note == "stretched from percentile 10 to 90: B04 4.99 to 44.91, B03 1100 to 1900, B02 7 to 8"


def test_a_mask_is_stretched_from_its_least_to_its_greatest_value():
    values = np.zeros((1, 10, 10), np.uint16)
    values[0, 0, 0] = 500
    tones, _ = stretched(Stretch(percentiles=(2, 98)), values, np.ones(values.shape, bool), ["band 1"])
    assert tones.ranges == ((0, 500),)


def test_ranges_are_for_all_bands_or_for_each():
    values = np.zeros((3, 2, 2))
    names = ["a", "b", "c"]
    assert stretched(Stretch(ranges=((0, 9),)), values, values > 0, names)[0].ranges == ((0, 9),) * 3
    with pytest.raises(InputError, match="stretch has 2 ranges for 3 bands"):
        stretched(Stretch(ranges=((0, 9), (1, 2))), values, values > 0, names)
