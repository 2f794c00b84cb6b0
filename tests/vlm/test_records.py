from __future__ import annotations

import csv
import io
import json
import math
import sqlite3
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS

from eo_zoo.errors import InputError, MissingExtra
from eo_zoo.vlm.boxes import Box
from eo_zoo.vlm.parse import Unparsed
from eo_zoo.vlm.records import FORMATS, WGS84, Detections, check_output

geopandas = pytest.importorskip("geopandas")
pyogrio = pytest.importorskip("pyogrio")
pyproj = pytest.importorskip("pyproj")
shapely = pytest.importorskip("shapely")

CUSTOM = "+proj=tmerc +lat_0=10 +lon_0=20.5 +k=0.999 +x_0=1000 +y_0=0 +ellps=bessel +towgs84=100,20,30 +units=m"
SITE = CRS.from_wkt('LOCAL_CS["site grid",UNIT["metre",1]]')
DISC = CRS.from_string("+proj=geos +h=35785831 +lon_0=0 +sweep=y +ellps=WGS84")
TURNED = ((100.0, 40.0), (140.0, 60.0), (130.0, 80.0), (90.0, 60.0))
BOXES = (
    Box.upright(10.25, 20.5, 50.75, 60, label="ship", score=0.875),
    Box(TURNED, "船, \n\"large\"", None, oriented=True),
    Box.upright(300, 200, 320, 220, label="ship"),
)  # fmt: skip
#: A CRS, and where pixel (0, 0) is in it.
PLACES = {
    "southern UTM": (CRS.from_epsg(32750), 5e5, 9.2e6, 1.0),
    "northern UTM": (CRS.from_epsg(26913), 4.4e5, 4.6e6, 1.0),
    "north first": (CRS.from_epsg(31467), 3.5e6, 5.5e6, 1.0),
    "no EPSG code": (CRS.from_string(CUSTOM), 2e4, 3e4, 1.0),
    "degrees": (CRS.from_epsg(4326), 10.0, -60.0, 1e-5),
    "degrees at the antimeridian": (CRS.from_epsg(4326), 179.999, 60.0, 1e-5),
    "UTM over the antimeridian": (CRS.from_epsg(32701), 1.8e5, 8e6, 1.0),
    "Antarctica": (CRS.from_epsg(3031), -2e6, 1e6, 1.0),
    "Arctic": (CRS.from_epsg(3413), 1e5, 1e5, 1.0),
    "web Mercator": (CRS.from_epsg(3857), 2.0e7, 8e6, 1.0),
}


def detections(boxes=BOXES, place="southern UTM", **changes):
    crs, east, north, metre = PLACES[place]
    made = dict(
        boxes=tuple(boxes), size=(400, 300), crs=crs, transform=Affine(metre / 2, 0, east, 0, -metre / 2, north),
        source="scene.tif", prompt="Find all ships", model="tiny", revision="abc",
    )  # fmt: skip
    return Detections(**(made | changes))


def features(found, folder) -> list[dict]:
    return json.loads(found.write(folder / "o.geojson").read_text(encoding="utf-8"))["features"]


def parts(geometry) -> list[list]:
    return [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]


# ---- what every format holds ----


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("suffix", [".gpkg", ".parquet"])
def test_geopackage_and_geoparquet_keep_the_images_crs(place, suffix, tmp_path):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", exc_type=ImportError)
    found = detections(place=place)
    path = found.write(tmp_path / f"o{suffix}")
    back = geopandas.read_parquet(path) if suffix == ".parquet" else geopandas.read_file(path)
    assert back.crs == pyproj.CRS.from_wkt(found.crs.to_wkt(version="WKT2_2019"))
    assert list(back["class"]) == [box.label for box in BOXES]
    assert list(back["score"].isna()) == [False, True, True] and back["score"][0] == 0.875
    assert set(back["prompt"]) == {"Find all ships"} and set(back["model"]) == {"tiny"}
    assert set(back["revision"]) == {"abc"} and list(back["oriented"]) == [False, True, False]
    assert json.loads(back["pixels"][1]) == [x for corner in TURNED for x in corner]
    for box, shape in zip(BOXES, back.geometry, strict=True):
        expected = shapely.Polygon([found.transform @ corner for corner in box.corners])
        assert shape.normalize().equals_exact(expected.normalize(), 1e-9 * abs(expected.bounds[3]))
        assert shape.exterior.is_ccw


def test_geojson_is_of_rfc_7946(tmp_path):
    path = detections().write(tmp_path / "o.geojson")
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content.keys() == {"type", "features"}  # no "crs", which the RFC took out
    assert content["features"][0]["properties"] == {
        "class": "ship", "score": 0.875, "prompt": "Find all ships", "model": "tiny", "revision": "abc",
        "oriented": False, "pixels": [10.25, 20.5, 50.75, 20.5, 50.75, 60.0, 10.25, 60.0],
    }  # fmt: skip
    assert content["features"][1]["properties"]["score"] is None
    back = geopandas.read_file(path)
    assert back.crs == WGS84 and list(back["class"]) == [box.label for box in BOXES]
    east, north = detections().transform @ (10.25, 20.5)
    expected = pyproj.Transformer.from_crs(32750, 4326, always_xy=True).transform(east, north)
    assert np.abs(np.array(back.geometry[0].exterior.coords) - expected).sum(axis=1).min() < 1e-9


@pytest.mark.parametrize("turn", [Affine.identity(), Affine.scale(1, -1), Affine.scale(-1, 1), Affine.rotation(130)])
@pytest.mark.parametrize("order", [1, -1])
def test_rings_of_geojson_are_counter_clockwise_whatever_the_transform(turn, order, tmp_path):
    found = detections([Box(TURNED[::order])], transform=detections().transform @ turn)
    (ring,) = features(found, tmp_path)[0]["geometry"]["coordinates"]
    assert shapely.LinearRing(ring).is_ccw and ring[0] == ring[-1] and len(ring) == 5


def test_csv_is_read_by_spreadsheets_and_gdal(tmp_path):
    path = detections().write(tmp_path / "o.csv")
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")  # without it Excel takes the text for another encoding
    rows = list(csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline="")))
    assert [row["class"] for row in rows] == [box.label for box in BOXES]
    assert rows[1]["score"] == "" and rows[1]["oriented"] == "True" and float(rows[1]["x2"]) == 140
    assert float(rows[0]["map_x1"]) == 500000 + 10.25 / 2 and rows[0]["crs"] == "EPSG:32750"
    back = pyogrio.read_dataframe(path, X_POSSIBLE_NAMES="lon", Y_POSSIBLE_NAMES="lat")
    middle = pyproj.Transformer.from_crs(32750, 4326, always_xy=True).transform(5e5 + 155, 9.2e6 - 105)
    assert list(back["class"]) == [box.label for box in BOXES]
    assert back.geometry[2].distance(shapely.Point(middle)) < 1e-9


@pytest.mark.parametrize("label", ["=1+1", "+1", "-1", "@a", "\t=1", "\r=1", "\N{FULLWIDTH EQUALS SIGN}1"])
def test_no_text_in_a_csv_is_computed_by_a_spreadsheet(label, tmp_path):
    path = detections([Box.upright(1, 2, 3, 4, label=label)], crs=None).write(tmp_path / "o.csv")
    (row,) = csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""))
    assert row["class"] == f"'{label}" and row["x1"] == "1.0"


def test_json_holds_everything_also_what_could_not_be_read(tmp_path):
    found = detections(crs=None, transform=None, unparsed=(Unparsed("[1, 2", "cut off"),), answers=("船 [1, 2",))
    path = found.write(tmp_path / "o.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content == json.loads(json.dumps(found.to_dict()))
    assert content["unparsed"] == [{"text": "[1, 2", "reason": "cut off"}] and content["answers"] == ["船 [1, 2"]
    assert content["crs"] is None and content["size"] == [400, 300] and len(content["boxes"]) == 3
    assert detections().to_dict()["transform"] == [5e5, 0.5, 0, 9.2e6, 0, -0.5]


@pytest.mark.parametrize("suffix", FORMATS)
def test_nothing_found_gives_a_file_without_rows(suffix, tmp_path):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", exc_type=ImportError)
    path = detections([]).write(tmp_path / f"o{suffix}")
    if suffix == ".json":
        assert json.loads(path.read_text())["boxes"] == []
        return
    back = geopandas.read_parquet(path) if suffix == ".parquet" else pyogrio.read_dataframe(path)
    assert len(back) == 0
    if suffix != ".geojson":  # which has no place for the names of columns
        assert {"class", "score", "prompt", "model", "revision", "oriented"} <= set(back.columns)


@pytest.mark.parametrize("suffix", FORMATS)
def test_text_that_utf8_or_sqlite_cannot_hold_does_not_cost_the_answer(suffix, tmp_path):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", exc_type=ImportError)
    path = detections([Box.upright(1, 2, 3, 4, label="half \ud83d of\0 it")]).write(tmp_path / f"o{suffix}")
    if suffix == ".json":
        label = json.loads(path.read_text(encoding="utf-8"))["boxes"][0]["class"]
    else:
        label = (geopandas.read_parquet(path) if suffix == ".parquet" else pyogrio.read_dataframe(path))["class"][0]
    assert label == "half \N{REPLACEMENT CHARACTER} of\N{REPLACEMENT CHARACTER} it"


@pytest.mark.parametrize("suffix", FORMATS)
def test_equal_records_give_equal_bytes_and_say_nothing(suffix, tmp_path, capfd):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", exc_type=ImportError)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = (detections().write(tmp_path / f"{name}{suffix}") for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert capfd.readouterr() == ("", "")


def test_the_date_in_a_geopackage_is_fixed_and_gdals_settings_are_put_back(tmp_path):
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": "2001-02-03T04:05:06Z"})
    try:
        path = detections().write(tmp_path / "o.gpkg")
        assert pyogrio.get_gdal_config_option("OGR_CURRENT_DATE") == "2001-02-03T04:05:06Z"
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})
    file = sqlite3.connect(path)
    assert file.execute("select table_name, last_change from gpkg_contents").fetchall() == [
        ("detections", "1970-01-01T00:00:00.000Z")
    ]
    file.close()


def test_frames_of_images_without_a_map_are_in_pixels():
    frame = detections(crs=None).to_geodataframe()
    assert frame.crs is None and frame.geometry[0].bounds == (10.25, 20.5, 50.75, 60)


def test_the_summary_is_one_line_with_the_most_frequent_class_first():
    assert detections().summary() == '3 boxes: 2 ship, 1 船, "large"'
    assert detections([]).summary() == "no boxes"
    found = detections([Box.upright(0, 0, 1, 1)], unparsed=(Unparsed("x", "y"),))
    assert found.summary() == "1 box: 1 without a class; 1 part of the answer could not be read"
    assert len(found) == 1 and list(found) == list(found.boxes)


# ---- places on the Earth ----


@given(
    place=st.sampled_from(sorted(PLACES)),
    pixel=st.floats(0.2, 30),
    turn=st.floats(-180, 180),
    mirrored=st.booleans(),
    corner=st.tuples(st.floats(0, 300), st.floats(0, 200)),
    side=st.tuples(st.floats(1, 100), st.floats(1, 100)),
    angle=st.floats(0, 90),
)
@settings(max_examples=60, deadline=None)
def test_pixels_to_geojson_and_back(tmp_path_factory, place, pixel, turn, mirrored, corner, side, angle):
    crs, east, north, metre = PLACES[place]
    box_of = Affine.translation(*corner) @ Affine.rotation(angle) @ Affine.scale(*side)
    box = Box(tuple(box_of @ point for point in ((0, 0), (1, 0), (1, 1), (0, 1))), oriented=True)
    way = Affine.scale(pixel * metre, pixel * metre * (1 if mirrored else -1))
    transform = Affine.translation(east, north) @ Affine.rotation(turn) @ way
    found = detections([box], crs=crs, transform=transform)
    (feature,) = features(found, tmp_path_factory.mktemp("geojson"))
    back = pyproj.Transformer.from_crs(WGS84, pyproj.CRS.from_wkt(crs.to_wkt(version="WKT2_2019")), always_xy=True)
    pieces = []
    for ring, *holes in parts(feature["geometry"]):
        points = np.array(ring)
        assert not holes and shapely.LinearRing(ring).is_ccw and shapely.Polygon(ring).is_valid
        assert np.abs(points[:, 0]).max() <= 180 and np.ptp(points[:, 0]) < 180
        # one of the sides of the antimeridian is a turn away in coordinates that go on
        there = np.stack(back.transform(*points.T), axis=1)
        for full in {"degrees at the antimeridian": 360, "web Mercator": 2 * 20037508.342789244}.items():
            if place == full[0]:
                there[:, 0] += full[1] * np.round((transform.c - there[:, 0]) / full[1])
        pieces.append(shapely.Polygon([~transform @ tuple(point) for point in there]))
    whole = shapely.unary_union([piece.buffer(1e-3) for piece in pieces])
    tolerance = 0.1 + 2e-3 + 2e-4 / pixel  # BEND, the buffer, and what nine decimals are
    assert whole.hausdorff_distance(shapely.Polygon(box.corners)) < tolerance
    assert len(feature["properties"]["pixels"]) == 8


def test_a_box_across_the_antimeridian_is_cut_in_two(tmp_path):
    crs = CRS.from_epsg(32701)
    east, north = pyproj.Transformer.from_crs(4326, crs.to_epsg(), always_xy=True).transform(-180, -18)
    found = detections([Box.upright(0, 0, 40, 10)], transform=Affine(10, 0, east - 100, 0, -10, north + 50), crs=crs)
    geometry = features(found, tmp_path)[0]["geometry"]
    assert geometry["type"] == "MultiPolygon"
    west, east_side = sorted(
        (shapely.Polygon(ring).bounds for (ring,) in geometry["coordinates"]), key=lambda bounds: -bounds[0]
    )
    assert west[2] == 180 and east_side[0] == -180  # touching it, exactly
    assert (180 - west[0]) * 3 == pytest.approx(east_side[2] + 180, rel=0.01)  # 100 m on one side, 300 on the other


@pytest.mark.parametrize(("epsg", "pole"), [(3031, -90), (3413, 90)])
def test_a_box_around_a_pole_holds_it(epsg, pole, tmp_path):
    found = detections(
        [Box.upright(50, 50, 250, 250)], crs=CRS.from_epsg(epsg), transform=Affine(1e3, 0, -1.2e5, 0, -1e3, 1.8e5)
    )
    geometry = features(found, tmp_path)[0]["geometry"]
    shape = shapely.geometry.shape(geometry)
    assert shape.is_valid
    assert all(shape.covers(shapely.Point(longitude, pole * 0.9999)) for longitude in range(-180, 181, 7))
    assert math.copysign(1, pole) * shape.bounds[1 if pole > 0 else 3] > 88


def test_long_sides_get_points_between_their_ends(tmp_path):
    """An edge that is straight in the image is not in longitude and latitude."""
    side = 20000
    found = detections([Box.upright(0, 0, side, side)], size=(side, side), transform=Affine(10, 0, 5e5, 0, -10, 5e6))
    (ring,) = features(found, tmp_path)[0]["geometry"]["coordinates"]
    north, east = pyproj.Transformer.from_crs(32750, 4326, always_xy=True), np.linspace(5e5, 7e5, 501)
    truth = np.stack(north.transform(east, np.full_like(east, 5e6)), axis=1)
    off = [shapely.LinearRing(ring).distance(shapely.Point(point)) * 111320 / 10 for point in truth]  # in pixels
    assert max(off) < 0.15
    ends = shapely.LineString(truth[[0, -1]])
    assert max(ends.distance(shapely.Point(point)) for point in truth) * 111320 / 10 > 10  # what two corners would give


def test_what_is_beyond_the_limb_has_no_geometry_but_is_there(tmp_path):
    found = detections(
        [Box.upright(190, 190, 210, 210), Box.upright(0, 0, 20, 20)],
        crs=DISC, transform=Affine(27500, 0, -5.5e6, 0, -27500, 5.5e6),
    )  # fmt: skip
    seen, beyond = features(found, tmp_path)
    assert seen["geometry"]["type"] == "Polygon" and beyond["geometry"] is None
    assert beyond["properties"]["pixels"][:2] == [0, 0]
    rows = list(csv.DictReader(io.StringIO(found.write(tmp_path / "o.csv").read_text("utf-8-sig"))))
    assert abs(float(rows[0]["lon"])) < 0.01 and rows[1]["lon"] == rows[1]["lat"] == ""


def test_a_crs_without_a_way_to_wgs84(tmp_path):
    found = detections(crs=SITE)
    with pytest.raises(InputError, match=r"no way to WGS 84.*\.gpkg"):
        found.write(tmp_path / "o.geojson")
    assert not list(tmp_path.iterdir())
    assert geopandas.read_file(found.write(tmp_path / "o.gpkg")).crs.name == "site grid"
    (row, *_) = csv.DictReader(io.StringIO(found.write(tmp_path / "o.csv").read_text("utf-8-sig")))
    assert row["lat"] == row["lon"] == "" and row["map_x1"]


# ---- files ----


@pytest.mark.parametrize(
    ("name", "georeferenced", "says"),
    [
        ("o.shp", True, r"expected a name that ends in \.geojson or"),
        ("nowhere/o.csv", True, "does not exist"),
        ("there.csv", True, "exists; choose another name, or pass --overwrite"),
        ("o.geojson", False, r"no georeference.*\.csv or \.json"),
        ("o.gpkg", False, "no georeference"),
        ("o.parquet", False, "no georeference"),
        ("scene.json", True, "is the input itself"),
    ],
)
def test_outputs_that_cannot_be_written_are_refused_beforehand(name, georeferenced, says, tmp_path):
    (tmp_path / "there.csv").touch()
    (tmp_path / "scene.json").touch()
    with pytest.raises(InputError, match=says):
        check_output(
            tmp_path / name, georeferenced, overwrite=name == "scene.json", inputs=[str(tmp_path / "scene.json")]
        )


def test_outputs_that_can_be_written():
    assert check_output(Path("o.csv"), False).is_absolute()
    assert check_output("O.GPKG", True).name == "O.GPKG"


def test_an_image_is_not_overwritten_by_what_was_found_in_it(tmp_path):
    item = tmp_path / "item.json"
    item.write_text("{}")
    with pytest.raises(InputError, match="is the input itself"):
        check_output(item, True, overwrite=True, inputs=(item,))


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = detections([]).write(tmp_path / "o.gpkg")
    before = path.read_bytes()

    def full(part: Path, content: bytes) -> int:
        with part.open("wb") as file:
            file.write(content[:1000])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        detections().write(path, overwrite=True)
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == before


def test_what_sqlite_left_beside_an_old_geopackage_goes_with_it(tmp_path):
    path = detections([]).write(tmp_path / "o.gpkg")
    for kind in ("-wal", "-shm", "-journal"):
        path.with_name(path.name + kind).write_bytes(b"of the old file")
    assert detections().write(path, overwrite=True) == path
    assert list(tmp_path.iterdir()) == [path] and len(geopandas.read_file(path)) == 3


def test_the_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "shapely", None)
    with pytest.raises(MissingExtra, match=r"shapely.*eo-zoo\[vlm\]"):
        detections().write(tmp_path / "o.geojson")
    assert not list(tmp_path.iterdir())
