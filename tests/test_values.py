from __future__ import annotations

import numpy as np
import pytest

from eo_zoo.errors import InputError
from eo_zoo.sensors import Statistics, get_order, get_statistics
from eo_zoo.values import conversion, gsd_warning, plausibility


def to_dn(stored="uint16", **said):
    return conversion(stored, target_units="dn", sensor="S2", **said)


def to_db(stored="float32", **said):
    return conversion(stored, target_units="db", sensor="S1", **said)


@pytest.mark.parametrize(
    ("stored", "said", "value", "expected"),
    [
        ("uint16", {}, 1234, 1234),
        ("uint16", {"units": "dn"}, 1234, 1234),
        ("uint16", {"scale": 0.0001}, 1234, 1234),
        ("uint16", {"scale": 0.0001, "offset": -0.1}, 1234, 234),
        ("uint16", {"scale": 0.0001, "offset": -0.1, "units": "dn"}, 1234, 234),
        ("uint16", {"scale": 0.0001, "offset": -0.1, "boa_offset": 0}, 1234, 1234),
        ("uint16", {"scale": 2.75e-05, "offset": -0.2}, 20000, 3500),  # Landsat collection 2
        ("uint16", {"boa_offset": -1000}, 600, -400),  # stays negative
        ("uint16", {"scale": 0.0001, "boa_offset": -1000}, 1234, 234),
        ("float32", {"units": "reflectance"}, 0.1234, 1234),
        ("float32", {"units": "reflectance", "boa_offset": -1000}, 0.1234, 234),
        ("float32", {"units": "dn"}, 1234.5, 1234.5),
        ("uint8", {"scale": 0.004}, 25, 1000),
    ],
)
def test_to_dn(stored, said, value, expected):
    made = to_dn(stored, **said)
    assert made.apply(np.array([value], dtype=stored)) == pytest.approx([expected], rel=1e-6)
    assert "dn = " in made.note


def test_scale_of_dn_changes_no_bit():
    stored = np.arange(0, 20000, dtype=np.uint16)
    for scale in (0.0001, float(np.float32(0.0001))):
        assert np.array_equal(to_dn(scale=scale).apply(stored), to_dn().apply(stored))
    assert np.array_equal(to_dn(scale=0.0001, offset=-0.1).apply(stored), to_dn(boa_offset=-1000).apply(stored))


def test_to_reflectance():
    made = conversion("uint16", target_units="reflectance", sensor="S2", scale=0.0001, offset=-0.1)
    assert made.apply(np.array([3000], np.uint16)) == pytest.approx([0.2])
    made = conversion("uint16", target_units="reflectance", sensor="S2", units="dn")
    assert made.apply(np.array([3000], np.uint16)) == pytest.approx([0.3])


def test_to_db():
    values = np.array([1.0, 0.01, 0.0, -3.0], np.float32)
    assert to_db(units="linear").apply(values)[:2] == pytest.approx([0, -20], abs=1e-5)
    assert np.isnan(to_db(units="linear").apply(values)[2:]).all()
    assert to_db(units="db").apply(values) == pytest.approx(values)
    assert to_db("int16", scale=0.01).apply(np.array([-1500], np.int16)) == pytest.approx([-15])
    back = conversion("float32", target_units="linear", sensor="S1", units="db")
    assert back.apply(np.array([-20], np.float32)) == pytest.approx([0.01])


def test_unsaid_units_are_noted():
    assert "--units" in to_dn().note and "reflectance x 10000" in to_dn().note
    assert "--units" in to_db().note
    assert "--boa-offset -1000" in to_dn(boa_offset=-1000).note


@pytest.mark.parametrize(
    ("make", "stored", "said", "words"),
    [
        (to_dn, "uint16", {"units": "reflectance"}, "--units reflectance, but the values are uint16"),
        (to_dn, "uint16", {"units": "reflectance", "scale": 0.0001}, "metadata hold scale 0.0001"),
        (to_dn, "uint16", {"units": "dn", "scale": 0.001}, "where dn have 0.0001"),
        (to_dn, "uint16", {"boa_offset": -1000, "offset": -0.1, "scale": 0.0001}, "twice"),
        (to_dn, "uint16", {"boa_offset": -0.1}, "expected dn, e.g. -1000"),
        (to_dn, "uint16", {"scale": float("nan")}, "no conversion"),
        (to_dn, "uint16", {"units": "db"}, "db cannot be converted to dn"),
        (to_dn, "uint16", {"units": "metres"}, "unknown units 'metres'"),
        (to_dn, "uint8", {}, "8-bit preview"),
        (to_dn, "uint8", {"units": "dn"}, "8-bit preview"),
        (to_dn, "float32", {}, "--units reflectance or --units dn"),
        (to_dn, "complex64", {}, "not real numbers"),
        (to_db, "uint16", {}, "cannot be dB"),
        (to_db, "uint16", {"units": "db"}, "cannot be dB"),
        (to_db, "float32", {"units": "dn"}, "dn cannot be converted to db"),
        (to_db, "float32", {"boa_offset": -1000}, "--boa-offset is for optical dn"),
    ],
)
def test_contradictions(make, stored, said, words):
    with pytest.raises(InputError, match=words):
        make(stored, **said)


def test_uint8():
    assert conversion("uint8", target_units="uint8", sensor="RGB").apply(np.array([7], np.uint8)) == [7]
    for said in ({}, {"units": "uint8"}, {"units": "dn"}):
        with pytest.raises(InputError):
            conversion("uint16", target_units="uint8", sensor="RGB", **said)


# ---- plausibility ----

# medians of a forest at the end of June, top of atmosphere, by true band
FOREST = {
    "B01": 1217, "B02": 868, "B03": 637, "B04": 370, "B05": 583, "B06": 1599, "B07": 2024, "B08": 2014,
    "B09": 772, "B10": 8, "B11": 799, "B12": 304, "B8A": 2254,
}  # fmt: skip


def samples(names, order):
    """Values in file order under the given names."""
    rng = np.random.default_rng(0)
    values = [rng.normal(value, value / 20, 500).astype(np.float32) for value in FOREST.values()]
    assert len(order) == len(values)
    return dict(zip(get_order(names), values, strict=True))


@pytest.mark.parametrize("name", ["smarties/S2-L1C", "smarties/S2-L2A", "EuroSAT"])
def test_b8a_last_is_noticed(name):
    trapped = samples("S2-L1C", FOREST)  # names in wavelength order on data that hold B8A last
    trapped.pop("short_wave_infrared_2")
    found = plausibility(trapped, get_statistics(name))
    order = [text for text in found if "is B8A last?" in text]
    assert len(order) == 2
    assert "short_wave_infrared_1" in order[0] and "cirrus" in order[0]
    assert "near_infrared_3" in order[1]


@pytest.mark.parametrize("name", ["smarties/S2-L1C", "smarties/S2-L2A", "EuroSAT"])
def test_right_order_is_silent(name):
    assert plausibility(samples("eurosat", FOREST), get_statistics(name)) == []


def test_dark_water_is_silent():
    water = dict.fromkeys(("green_2", "red_2", "near_infrared_1", "near_infrared_3"), 0)
    depths = dict(zip(water, (900, 300, 60, 25), strict=True))
    depths["short_wave_infrared_1"], depths["short_wave_infrared_3"] = 12, 8
    values = {band: np.full(10, depth, np.float32) for band, depth in depths.items()}
    assert plausibility(values, get_statistics("smarties/S2-L2A")) == []


def test_out_of_range_names_the_band_and_the_side():
    values = {"red_2": np.full(5, 4000.0), "blue_1": np.full(5, 900.0), "green_2": np.full(5, 900.0)}
    (text,) = plausibility(values, get_statistics("smarties/S2-L2A"))
    assert "red_2 4000" in text and "high" in text and "blue_1" not in text
    (text,) = plausibility({"red_2": np.full(5, 0.3)}, get_statistics("smarties/S2-L2A"))
    assert "low" in text and "units" in text


def test_statistics_without_percentiles():
    statistics = Statistics("x", "RGB", "uint8", ("red_1",), (100.0,), (20.0,))
    assert plausibility({"red_1": np.full(5, 150.0)}, statistics) == []
    assert "red_1" in plausibility({"red_1": np.full(5, 170.0)}, statistics)[0]
    assert plausibility({"red_1": np.zeros(0), "green_1": np.full(5, 999.0)}, statistics) == []


def test_gsd():
    assert gsd_warning(10, (10, 60)) is None and gsd_warning(7, (10, 60)) is None
    assert "6 m" in (gsd_warning(6, (10, 60)) or "")
    assert "10 m" in (gsd_warning(16, (10, 10)) or "")
