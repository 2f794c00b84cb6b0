from __future__ import annotations

import numpy as np
import pytest

from eo_zoo.geo.resample import PixelAxis, resample


@pytest.mark.parametrize("step", [1 / 6, 0.5, 0.37, 0.999, 1.5, 2.0, 7.3])
def test_weights_add_up_to_exactly_one(step):
    axis = PixelAxis(0.3, step, 100)
    index, weights = axis.taps(0, int(99 / step))
    total = np.zeros(len(weights), np.float32)
    for tap in range(weights.shape[1]):
        total += weights[:, tap]
    assert (total == 1).all() and index.min() >= 0 and index.max() < 100


def test_taps_depend_on_the_place_alone():
    axis = PixelAxis(-0.4, 0.37, 50)
    for whole, part in zip(axis.taps(0, 100), axis.taps(31, 20), strict=True):
        assert np.array_equal(whole[31:51], part)


def test_aligned():
    assert PixelAxis(3.0, 1.0, 50).aligned(40)
    assert PixelAxis(3.0, 1 + 1e-9, 20000).aligned(10000)
    assert not PixelAxis(3.0, 1.001, 50).aligned(40)
    assert not PixelAxis(3.5, 1.0, 50).aligned(40)
    assert not PixelAxis(0.0, 0.5, 50).aligned(1)


@pytest.mark.parametrize("step", [0.3, 1.0, 4.7])
def test_the_nearest_pixel_is_one_of_the_rasters_own(step):
    axis = PixelAxis(0.2, step, 100)
    index, weights = axis.taps(3, 10, nearest=True)
    assert index[:, 0].tolist() == [int(0.2 + (3 + i + 0.5) * step) for i in range(10)]
    assert weights.shape == (10, 1) and (weights == 1).all()


def test_a_hole_is_left_out_of_the_mean():
    values = np.array([[[4, 8, 0, 16]]], np.float32)
    valid = np.array([[[True, True, False, True]]])
    rows = PixelAxis(0, 1, 1).taps(0, 1)
    found, enough = resample(values, valid, rows, PixelAxis(0, 2, 4).taps(0, 2))
    assert found.tolist() == [[[6, 16]]] and enough.all()
    found, enough = resample(values, valid, rows, PixelAxis(2, 1.9, 4).taps(0, 1))
    assert found.tolist() == [[[0]]] and not enough.any()
