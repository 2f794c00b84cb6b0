from __future__ import annotations

import numpy as np
import pytest

from eo_zoo.errors import InputError
from eo_zoo.geo.tiles import Axis, TileGrid, WindowAxis, WindowGrid, default_overlap


def test_starts_are_multiples_of_the_step_and_the_last_ends_with_the_raster() -> None:
    assert Axis(cells=20, tile=6, overlap=2).starts == (0, 4, 8, 12, 14)
    assert Axis(cells=14, tile=6, overlap=2).starts == (0, 4, 8)
    assert Axis(cells=6, tile=6, overlap=2).starts == (0,)
    assert Axis(cells=4, tile=6, overlap=2).starts == (0,)
    assert Axis(cells=7, tile=6, overlap=0).starts == (0, 1)


@pytest.mark.parametrize("cells", range(1, 40))
@pytest.mark.parametrize(("tile", "overlap"), [(1, 0), (6, 0), (6, 2), (6, 5), (14, 4)])
def test_tiles_and_own_ranges_cover_everything(cells: int, tile: int, overlap: int) -> None:
    axis = Axis(cells, tile, overlap)
    covered, owned, weight = (np.zeros(max(cells, tile)) for _ in range(3))
    for index, start in enumerate(axis.starts):
        low, high = axis.own(index)
        assert start == low and high <= start + tile
        covered[start : start + tile] += 1
        owned[low:high] += 1
        weights = axis.weights(index)
        assert weights.dtype == np.float32 and weights.min() > 0
        weight[start : start + tile] += weights
    assert covered.min() >= 1
    assert (owned[:cells] == 1).all() and (owned[cells:] == 0).all()
    np.testing.assert_allclose(weight, 1, rtol=1e-6)
    assert set(owned[:cells]) == {1.0}


def test_weights_fall_towards_the_tiles_edge() -> None:
    axis = Axis(cells=34, tile=14, overlap=4)
    first, second = axis.weights(0), axis.weights(1)
    assert (first[:10] == 1).all()  # where one tile is alone its features are taken as they are
    assert (np.diff(first[9:]) < 0).all() and (np.diff(second[:5]) > 0).all()
    assert first[-1] < 0.05 and second[0] < 0.05


def test_weights_of_a_crop_on_the_grid_are_the_same_bits() -> None:
    whole, crop = Axis(cells=60, tile=14, overlap=4), Axis(cells=34, tile=14, overlap=4)
    assert whole.starts[:3] == crop.starts[:3]
    for index in range(3):
        # The whole raster's fourth tile shares the last four cells of the third.
        alone = slice(None, 10 if index == 2 else None)
        assert np.array_equal(whole.weights(index)[alone], crop.weights(index)[alone])


def test_grid_counts_partial_patches() -> None:
    grid = TileGrid(height=41, width=8, patch=8, tile=32, overlap=8)
    assert grid.shape == (6, 1)
    assert grid.rows.starts == (0, 2) and grid.cols.starts == (0,)
    assert len(grid) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"height": 7}, "smaller than one patch"),
        ({"tile": 30}, "not a multiple of the patch"),
        ({"overlap": 4}, "multiple of the patch"),
        ({"overlap": 32}, "from 0 to 24"),
        ({"overlap": -8}, "from 0 to 24"),
    ],
)
def test_what_does_not_fit_is_an_error(change: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        TileGrid(**{**{"height": 64, "width": 64, "patch": 8, "tile": 32, "overlap": 8}, **change})


@pytest.mark.parametrize(
    ("tile", "patch", "overlap"),
    [(224, 16, 112), (112, 8, 56), (8, 8, 0), (16, 8, 8), (24, 8, 16), (56, 8, 32), (256, 32, 128)],
)
def test_default_overlap_is_half(tile: int, patch: int, overlap: int) -> None:
    assert default_overlap(tile, patch) == overlap
    TileGrid(300, 300, patch, tile, overlap)


def test_windows_are_centred_on_their_cells_and_moved_inside_at_the_ends() -> None:
    axis = WindowAxis(cells=100, tile=30, overlap=20)  # pixels, a cell every 10
    assert axis.starts == (0, 10, 20, 30, 40, 50, 60, 70)
    assert axis.windows.tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 7, 7]
    beyond = WindowAxis(cells=25, tile=10, overlap=0)  # the last cell is half outside
    assert (beyond.starts, beyond.windows.tolist()) == ((0, 10, 15), [0, 1, 2])
    odd = WindowAxis(cells=40, tile=7, overlap=3)  # centred to half a pixel: cell 4 to 7, window 2 to 8
    assert odd.starts[1] == 2 and len(odd.windows) == 10
    assert WindowGrid(40, 25, 1, 10, 5).shape == (8, 5)


@pytest.mark.parametrize(("tile", "overlap"), [(1, 0), (6, 0), (6, 2), (6, 5), (7, 6), (7, 4)])
def test_windows_hold_their_cells_and_own_every_pixel_once(tile: int, overlap: int) -> None:
    for size in range(tile, 40):
        axis, owned = WindowAxis(size, tile, overlap), np.zeros(size)
        for cell, window in enumerate(axis.windows):
            start = axis.starts[window]
            first, last = cell * (tile - overlap), min((cell + 1) * (tile - overlap), size)
            assert 0 <= start <= first and last <= start + tile <= size
        for index, start in enumerate(axis.starts):
            low, high = axis.own(index)
            assert start == low and high <= start + tile
            owned[low:high] += 1
        assert (owned == 1).all()


@pytest.mark.parametrize(
    ("cells", "starts", "span"), [(7, (0, 2, 4), 8), (8, (0, 2, 4), 8), (3, (0,), 4), (9, (0, 2, 4, 6), 10)]
)
def test_tiles_begin_at_whole_units_and_may_reach_beyond(cells: int, starts: tuple[int, ...], span: int) -> None:
    """Units of two cells, as sub-patches in a patch: the last unit may be cut by the raster's end."""
    axis = Axis(cells, 4, 2, 2)
    assert axis.starts == starts and axis.span == span
    total = np.zeros(span)
    for index, start in enumerate(starts):
        total[start : start + 4] += axis.weights(index)
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert [axis.own(index) for index in range(len(starts))] == [*zip(starts, (*starts[1:], cells), strict=True)]
