"""MMEarth's statistics: of its files, and which of them MultiMAE's domains take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eo_zoo import sensors
from eo_zoo.errors import InputError
from eo_zoo.mmearth import band_stats, domain_statistics

RECORDED = {"S2": "mmearth/s2-l2a", "S2-L1C": "mmearth/s2-l1c", "DEM": "mmearth/aster"}
NAN = float("nan")
# where MultiMAE's bands are among the 13 of MMEarth's order, from the model's description
PLACES = {"rgb": [3, 2, 1], "ired": [4, 5, 6], "sired": [11, 12], "ebands": [7, 8]}


def values() -> dict[str, Any]:
    """What a file holds: band i has mean 100 i; B10 of L2A has no value."""
    l2a = {"mean": [100.0 * i for i in range(13)], "std": [float(i + 1) for i in range(13)]}
    l1c = {"mean": [100.0 * i + 50 for i in range(13)], "std": [float(i + 2) for i in range(13)]}
    l2a["mean"][10] = l2a["std"][10] = NAN
    limits = {"min": [float("inf")] * 13, "max": [float("-inf")] * 13}
    aster = {"mean": [700.0, 8.0], "std": [900, 10.0], "min": [-77.0, 0.0], "max": [8000.0, 80.0]}
    return {"lat": {"mean": [0.0, 0.1]}, "sentinel2_l2a": l2a | limits, "sentinel2_l1c": l1c | limits, "aster": aster}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path, values())


def write(folder: Path, content: Any) -> Path:
    path = folder / "data_1M_v001_64_band_stats.json"
    path.write_text(json.dumps(content))
    return path


# ---- the data set's file ----


def test_band_stats(path: Path) -> None:
    found = band_stats(path)
    order = sensors.get_order("mmearth")
    assert found["s2-l1c"].bands == order and found["s2-l1c"].mean == tuple(100 * i + 50 for i in range(13))
    assert found["s2"].bands == tuple(band for band in order if band != sensors.resolve("B10", "S2-L1C"))
    assert found["s2"].select(["B8A", "B8", "B12"]).mean == (700, 800, 1200)
    assert found["s2"].select(["B8A", "B8", "B12"]).std == (8, 9, 13)
    assert (found["dem"].bands, found["dem"].mean, found["dem"].std) == (("elevation",), (700,), (900,))
    assert [(own.sensor, own.units) for own in found.values()] == [("S2", "dn"), ("S2-L1C", "dn"), ("DEM", "m")]
    assert found["s2"].name == "data_1M_v001_64_band_stats/sentinel2_l2a"


@pytest.mark.parametrize("bad", [NAN, float("inf")])
def test_a_set_without_numbers_is_left_out(tmp_path: Path, bad: float) -> None:
    content = values()
    content["sentinel2_l1c"] |= {"mean": [bad] * 13}
    content["sentinel2_l2a"]["std"][10] = 0  # as if zeros had been counted
    content["sentinel2_l2a"]["mean"][10] = 0
    found = band_stats(write(tmp_path, content))
    assert set(found) == {"s2", "dem"} and len(found["s2"].bands) == 12
    content["sentinel2_l2a"]["std"][3:5] = [0, bad]
    assert band_stats(write(tmp_path, content))["s2"].bands == (*found["s2"].bands[:3], *found["s2"].bands[5:])


@pytest.mark.parametrize("key", ["sentinel2_l2a", "sentinel2_l1c", "aster"])
@pytest.mark.parametrize(
    "change", [None, [], {"mean": [1.0]}, {"mean": [1.0], "std": [1.0]}, {"mean": ["1"] * 13, "std": [True] * 13}]
)
def test_an_incomplete_file(tmp_path: Path, key: str, change: Any) -> None:
    content = values()
    content[key] = change
    with pytest.raises(InputError, match=rf"_band_stats.json has no {key} with \d+ numbers each in mean and std"):
        band_stats(write(tmp_path, content))


def test_a_file_that_is_none(tmp_path: Path) -> None:
    for content in ([], {}, 3, {"p1": [1]}):
        with pytest.raises(InputError, match="has no sentinel2_l2a with 13 numbers"):
            band_stats(write(tmp_path, content))
    with pytest.raises(InputError, match="cannot be read as statistics"):
        band_stats(tmp_path / "nowhere.json")


# ---- statistics of domains ----


def test_recorded() -> None:
    """L2A's red; the near infrareds, which are the wrong way round in other data sets' order; and elevation."""
    found = domain_statistics(RECORDED)
    assert set(found) == {*PLACES, "depth"}
    assert found["rgb"].bands == ("red_2", "green_2", "blue_1")
    assert found["rgb"].mean[0] == pytest.approx(1899.18487, abs=1e-5)
    assert found["rgb"].std[2] == pytest.approx(2375.8721, abs=1e-5)
    assert found["ebands"].bands == ("near_infrared_3", "near_infrared_1")
    assert found["ebands"].mean == pytest.approx((3149.53649, 3110.84056), abs=1e-5)
    assert found["sired"].std == pytest.approx((1473.22481, 1390.67812), abs=1e-5)
    assert (*found["depth"].mean, *found["depth"].std) == pytest.approx((750.36437, 975.15168), abs=1e-5)
    other = domain_statistics(RECORDED, sensor="S2-L1C")
    assert other["ebands"].mean == pytest.approx((2907.50965, 2620.48457), abs=1e-5)
    assert other["depth"] == found["depth"]


@pytest.mark.parametrize("sensor, shift", [("S2", 0), ("sentinel-2-l1c", 50)])
def test_of_the_data_sets_file(path: Path, sensor: str, shift: int) -> None:
    for given in (path, str(path)):
        found = domain_statistics(RECORDED, given, sensor=sensor)
        for name, places in PLACES.items():
            assert found[name].mean == tuple(100 * i + shift for i in places)
        assert found["depth"].mean == (700,)
    assert domain_statistics({}, path, sensor=sensor) == found


def test_by_raster_by_domain_or_one(tmp_path: Path, path: Path) -> None:
    recorded, own = domain_statistics(RECORDED), band_stats(path)
    by_raster = domain_statistics(RECORDED, {"s2": own["s2"]})
    assert by_raster["sired"].mean == (1100, 1200) and by_raster["depth"] == recorded["depth"]
    by_domain = domain_statistics(RECORDED, {"s2": own["s2"], "rgb": "mmearth/s2-l1c", "dem": own["dem"]})
    assert by_domain["rgb"] == domain_statistics(RECORDED, sensor="S2-L1C")["rgb"]
    assert by_domain["ired"].mean == (400, 500, 600) and by_domain["depth"].mean == (700,)
    one = domain_statistics(RECORDED, own["s2"].select(["B2", "B3", "B4", "B8"]))
    assert one["rgb"].mean == (300, 200, 100) and one["ebands"] == recorded["ebands"]
    file = tmp_path / "stats.json"
    file.write_text(json.dumps({"s2": own["s2"].to_dict(), "dem": own["dem"].to_dict()}))
    assert domain_statistics(RECORDED, file)["ebands"].mean == (700, 800)


def test_what_is_wrong(tmp_path: Path, path: Path) -> None:
    with pytest.raises(InputError, match="sensor is DEM, expected S2 "):
        domain_statistics(RECORDED, sensor="DEM")
    with pytest.raises(InputError, match=r"given for 's3', which is no input\. "):
        domain_statistics(RECORDED, {"s3": "mmearth/s2-l2a"})
    with pytest.raises(InputError, match=r"have no .*near_infrared_3 \(B8A\)"):
        domain_statistics(RECORDED, {"s2": "smarties/S2-L2A", "ebands": band_stats(path)["s2"].select(["B8"])})
    content = values()
    content["sentinel2_l2a"]["mean"][3] = NAN
    with pytest.raises(InputError, match=r"have no red_2 \(B04\)"):
        domain_statistics(RECORDED, write(tmp_path, content))
    content["aster"]["std"] = [NAN, NAN]
    with pytest.raises(InputError, match="has no usable mean and std of aster"):
        domain_statistics(RECORDED, write(tmp_path, content))
    content.pop("aster")
    with pytest.raises(InputError, match="has no aster with 2 numbers"):
        domain_statistics(RECORDED, write(tmp_path, content))
