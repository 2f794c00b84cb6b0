"""Names, orders, statistics: nothing is guessed, and what is recorded agrees with itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

from eo_zoo import sensors
from eo_zoo.errors import InputError

# SMARTIES' spectrum, in its order of wavelength
SPECTRUM = [
    "aerosol",
    "blue_1",
    "blue_2",
    "blue_3",
    "green_1",
    "green_2",
    "red_1",
    "red_2",
    "red_edge_1",
    "red_edge_2",
    "near_infrared_1",
    "near_infrared_2",
    "near_infrared_3",
    "short_wave_infrared_1",
    "short_wave_infrared_2",
    "short_wave_infrared_3",
    "short_wave_infrared_4",
    "thermal_infrared_1",
    "microwave_1",
    "microwave_2",
]
S2 = [
    "aerosol",
    "blue_1",
    "green_2",
    "red_2",
    "red_edge_1",
    "red_edge_2",
    "near_infrared_2",
    "near_infrared_1",
    "near_infrared_3",
    "short_wave_infrared_1",
    "short_wave_infrared_3",
    "short_wave_infrared_4",
]
S2_NAMES = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"]
ALL_BANDS = list(sensors._bands())


def values(**changes: object) -> dict[str, object]:
    """A valid set of statistics for two bands, with changes; None removes a key."""
    valid = {"sensor": "S2", "units": "dn", "bands": ["B04", "B08"], "mean": [0.4, 0.5], "std": [0.1, 0.2]}
    valid |= {"p1": [1, 2.5], "p99": [100, 200]} | changes
    return {key: value for key, value in valid.items() if value is not None}


# ---- the recorded facts ----


@pytest.mark.parametrize("name", sensors.list_sensors())
def test_sensor_is_consistent(name: str) -> None:
    sensor = sensors.get_sensor(name)
    assert sensor.title and sensor.bands and sensor.units in sensors.UNITS
    assert len(set(sensor.band_names)) == len(sensor.bands)
    assert len({band.sensor_name for band in sensor.bands}) == len(sensor.bands)
    assert sensors.get_order(name) == sensor.band_names
    for band in sensor.bands:
        assert band.gsd is None or band.gsd > 0
        assert band.wavelength is None or 0 < band.wavelength[0] < band.wavelength[1]
        assert sensors.resolve(band.name, name) == sensors.resolve(band.sensor_name, name) == band.name


@pytest.mark.parametrize("name", sensors.list_sensors())
def test_every_alias_means_one_band_or_is_reported(name: str) -> None:
    ambiguous = set()
    for band in sensors.get_sensor(name).bands:
        for alias in filter(None, (*band.aliases, band.common_name)):
            try:
                assert sensors.resolve(alias.upper(), name) == band.name
            except InputError as error:
                assert band.name in str(error)
                ambiguous.add(alias)
    assert ambiguous == ({"rededge"} if name.startswith("S2") else set())


@pytest.mark.parametrize("name", ALL_BANDS)
def test_canonical_name_is_never_another_bands_alias(name: str) -> None:
    assert sensors.resolve(name) == name
    assert sensors._band_keys(None)[sensors._key(name)] == (name,)
    assert all(sensors.resolve(name.upper(), sensor) == name for sensor in sensors.list_sensors())


def test_names_do_not_collide() -> None:
    data = sensors._data("sensors.json")
    spellings = [_ for name, facts in data["sensors"].items() for _ in (name, *facts["aliases"])]
    keys = [sensors._key(name) for name in [*spellings, *data["orders"]]]
    assert len(set(keys)) == len(keys)
    assert len({sensors._key(name) for name in ALL_BANDS}) == len(ALL_BANDS)
    used = {band for sensor in sensors.list_sensors() for band in sensors.get_sensor(sensor).band_names}
    used |= {band for order in sensors.list_orders() for band in sensors.get_order(order)}
    assert used == set(ALL_BANDS)


def test_spectrum_names_are_canonical() -> None:
    assert set(SPECTRUM) <= set(ALL_BANDS)
    assert list(sensors.get_sensor("S2").band_names) == S2
    assert [band.sensor_name for band in sensors.get_sensor("S2").bands] == S2_NAMES
    assert sensors.get_sensor("S1").band_names == ("microwave_1", "microwave_2")
    assert sensors.get_sensor("RGB").band_names == ("red_1", "green_1", "blue_3")
    l1c = list(sensors.get_sensor("S2-L1C").band_names)
    assert l1c == [*S2[:10], "short_wave_infrared_2", *S2[10:]]


def test_native_resolution_and_agency_wavelengths() -> None:
    assert [band.gsd for band in sensors.get_sensor("S2").bands] == [
        60,
        10,
        10,
        10,
        *[20] * 3,
        10,
        20,
        60,
        20,
        20,
    ]
    assert [band.gsd for band in sensors.get_sensor("L8").bands] == [*[30] * 7, 15, 30, 100, 100]
    assert [band.gsd for band in sensors.get_sensor("L7").bands] == [*[30] * 5, 60, 30, 15]
    assert sensors.get_sensor("S2").bands[3].wavelength == pytest.approx((664.6 - 15, 664.6 + 15))
    assert sensors.get_sensor("L8").bands[1].wavelength == (452, 512)
    assert sensors.get_sensor("RGB").bands[0].wavelength is None


@pytest.mark.parametrize(
    "alias, name",
    [
        ("sentinel-2", "S2"),
        ("SENTINEL2-L2A", "S2"),
        ("s2_l2a", "S2"),
        ("Sentinel-2A", "S2"),
        ("s2-l1c", "S2-L1C"),
        ("landsat-8", "L8"),
        ("L9", "L8"),
        ("Landsat 9", "L8"),
        ("SENTINEL1-GRD", "S1"),
        ("umbra", "Umbra"),
    ],
)
def test_sensor_aliases(alias: str, name: str) -> None:
    assert sensors.get_sensor(alias).name == name


def test_unknown_sensor_tells_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown sensor 'Capela'. Did you mean 'Capella'"):
        sensors.get_sensor("Capela")
    with pytest.raises(InputError, match="text, got int"):
        sensors.get_sensor(2)  # type: ignore[arg-type]


# ---- resolve ----


@pytest.mark.parametrize(
    "name, sensor, band",
    [
        ("B1", "S2", "aerosol"),
        ("B01", "S2", "aerosol"),
        ("b08", "S2", "near_infrared_1"),
        ("B8a", "S2", "near_infrared_3"),
        ("B08A", "S2", "near_infrared_3"),
        ("Band 4", "S2", "red_2"),
        ("nir", "S2", "near_infrared_1"),
        ("nir08", "S2", "near_infrared_3"),
        ("nir09", "S2", "short_wave_infrared_1"),
        ("rededge071", "S2", "red_edge_1"),
        ("rededge2", "S2", "red_edge_2"),
        ("rededge3", "S2", "near_infrared_2"),
        ("RED_EDGE_3", "S2", "near_infrared_2"),
        ("swir16", "S2", "short_wave_infrared_3"),
        ("SWIR_2", "S2", "short_wave_infrared_4"),
        ("COASTAL_AEROSOL", "S2", "aerosol"),
        ("BLUE", "S2", "blue_1"),
        ("BLUE", "L8", "blue_2"),
        ("NIR_BROAD", "S2", "near_infrared_1"),
        ("NIR_NARROW", "S2", "near_infrared_3"),
        ("NIR_NARROW", "L8", "oli_near_infrared"),
        ("SWIR_1", "L8", "oli_short_wave_infrared_1"),
        ("B5", "L9", "oli_near_infrared"),
        ("lwir11", "L8", "thermal_infrared_1"),
        ("pan", "L7", "etm_panchromatic"),
        ("cirrus", "S2-L1C", "short_wave_infrared_2"),
        ("vv", "S1", "microwave_1"),
        ("red", "RGB", "red_1"),
        ("red_edge_1", "RGB", "red_edge_1"),
        ("VH", None, "microwave_2"),
        ("B8A", None, "near_infrared_3"),
        ("hv", None, "alos_hv"),
        ("VV/VH", None, "microwave_ratio"),
        ("elevation", None, "elevation"),
    ],
)
def test_resolve(name: str, sensor: str | None, band: str) -> None:
    assert sensors.resolve(name, sensor) == band


def test_ambiguous_name_lists_the_candidates() -> None:
    expected = "near: red_edge_1 (B05), red_edge_2 (B06), near_infrared_2 (B07);"
    with pytest.raises(InputError, match=re.escape(expected)):
        sensors.resolve("rededge", "S2")
    with pytest.raises(InputError) as error:
        sensors.resolve("B10")
    assert "short_wave_infrared_2 (B10 of S2-L1C), thermal_infrared_1 (B10 of L8)" in str(error.value)
    assert "sensor=" in str(error.value)


def test_unknown_name_tells_the_nearest_and_who_has_it() -> None:
    with pytest.raises(InputError, match=r"unknown band 'near_infrard_3' of S2. Did you mean 'near_infrared_"):
        sensors.resolve("near_infrard_3", "S2")
    with pytest.raises(InputError, match=r"'B10' of S2\b.*Elsewhere: short_wave_infrared_2 \(B10 of S2-L1C\)"):
        sensors.resolve("B10", "S2")
    with pytest.raises(InputError, match=r"unknown band 'aerosl'. Did you mean 'aerosol'"):
        sensors.resolve("aerosl")
    with pytest.raises(InputError, match="unknown sensor"):
        sensors.resolve("red_2", "S9")
    with pytest.raises(InputError, match="got int 4"):
        sensors.resolve(4)  # type: ignore[arg-type]


def test_resolve_bands_keeps_order_and_repeats() -> None:
    assert sensors.resolve_bands(["B04", "red", "B02"], "S2") == ("red_2", "red_2", "blue_1")
    with pytest.raises(InputError, match="list of names, got str 'B04'"):
        sensors.resolve_bands("B04", "S2")
    with pytest.raises(InputError, match="list of names, got set"):
        sensors.resolve_bands({"B04", "B02"}, "S2")  # type: ignore[arg-type]


# ---- orders ----

ORDERS = {
    "eurosat": ("S2-L1C", "B01 B02 B03 B04 B05 B06 B07 B08 B09 B10 B11 B12 B8A"),
    "mmearth": ("S2-L1C", "B1 B2 B3 B4 B5 B6 B7 B8A B8 B9 B10 B11 B12"),
    "anysat/s2": ("S2", "B2 B3 B4 B5 B6 B7 B8 B8A B11 B12"),
    "anysat/aerial": ("AERIAL", "NIR R G B"),
    "anysat/naip": ("NAIP", "R G B NIR"),
    "anysat/spot": ("SPOT", "R G B"),
    "anysat/s1-asc": ("S1", "VV VH"),
    "anysat/l7": ("L7", "B1 B2 B3 B4 B5 B7"),
    "anysat/l8": ("L8", "B8 B1 B2 B3 B4 B5 B6 B7 B9 B10 B11"),
    "anysat/modis": ("MODIS", "B1 B2 B3 B4 B5 B6 B7"),
}


@pytest.mark.parametrize("order", ORDERS)
def test_order(order: str) -> None:
    sensor, names = ORDERS[order]
    assert sensors.get_order(order) == sensors.resolve_bands(names.split(), sensor)


def test_orders_with_channels_that_no_sensor_has() -> None:
    assert sensors.get_order("anysat/s1") == ("microwave_1", "microwave_2", "microwave_ratio")
    assert sensors.get_order("anysat/alos") == ("alos_hh", "alos_hv", "alos_ratio")
    assert sensors.get_order("anysat/aerial-flair")[3:] == ("aerial_near_infrared", "elevation")


def test_order_names() -> None:
    assert set(ORDERS) | set(sensors.list_sensors()) <= set(sensors.list_orders())
    for order in sensors.list_orders():
        assert len(set(sensors.get_order(order))) == len(sensors.get_order(order))
    assert sensors.get_order("EuroSAT") == sensors.get_order("eurosat")
    assert sensors.get_order("sentinel-2") == tuple(S2)
    with pytest.raises(InputError, match=r"unknown band order 'eurosatt'. Did you mean 'eurosat'"):
        sensors.get_order("eurosatt")


# ---- reorder ----


def channels(names: tuple[str, ...], dtype: str = "int32") -> numpy.ndarray:
    """2 x C x 3 x 4, each channel filled with its band's place in the whole table."""
    return numpy.stack([numpy.full((2, 3, 4), ALL_BANDS.index(name), dtype) for name in names], axis=1)


@pytest.mark.parametrize("order", ["eurosat", "mmearth"])
def test_reorder_moves_8a_where_it_belongs(order: str) -> None:
    x = channels(sensors.get_order(order))
    wanted = channels(tuple(S2))
    out = sensors.reorder(x, order, "S2")
    assert out.dtype == x.dtype and out.flags.c_contiguous
    numpy.testing.assert_array_equal(out, wanted)
    tensor = sensors.reorder(torch.from_numpy(x), order, "S2")
    assert tensor.dtype == torch.int32
    numpy.testing.assert_array_equal(tensor.numpy(), wanted)
    assert not numpy.array_equal(x[:, :12], wanted)


def test_reorder_by_names_of_either_side() -> None:
    x = channels(sensors.get_order("eurosat"))
    for names in (["B8A", "B02"], ["NIR_NARROW", "blue"]):
        wanted = channels(("near_infrared_3", "blue_1"))
        numpy.testing.assert_array_equal(sensors.reorder(x, "eurosat", names), wanted)
    back = sensors.reorder(x[:, :3], ["B03", "B01", "B02"], ["B01", "B01", "B03"], sensor="S2")
    numpy.testing.assert_array_equal(back[:, :, 0, 0], x[:, [1, 1, 0], 0, 0])
    with pytest.raises(InputError, match="sensor="):
        sensors.reorder(x[:, :2], ["B01", "B02"], ["B02"])


@pytest.mark.parametrize("dim", [0, -1, 1])
def test_reorder_along_another_dim(dim: int) -> None:
    x = numpy.moveaxis(numpy.arange(24).reshape(2, 3, 4)[:, :, :2], 0, dim)
    out = sensors.reorder(x, ["VV", "VH"], ["VH", "VV"], dim=dim)
    numpy.testing.assert_array_equal(out, numpy.flip(x, dim))
    tensor = sensors.reorder(torch.from_numpy(x.copy()), ["VV", "VH"], ["VH", "VV"], dim=dim)
    numpy.testing.assert_array_equal(tensor.numpy(), out)


def test_reorder_returns_x_itself_where_nothing_changes() -> None:
    x = torch.zeros(12, 2, 2)
    assert sensors.reorder(x, S2_NAMES, "S2") is x


@pytest.mark.parametrize(
    "shape, from_, to, dim, message",
    [
        (
            (12, 2, 2),
            "eurosat",
            "S2",
            -3,
            r"found 12 channels along dim -3 of shape \(12, 2, 2\), expected 13",
        ),
        ((2, 2), ["VV", "VH"], ["VH"], -3, r"dim -3, but the array's shape is \(2, 2\)"),
        ((2, 2, 2), ["VV", "VH"], ["VH"], 3, "dim 3"),
        ((2, 2, 2), ["VV", "microwave_1"], ["VV"], -3, r"microwave_1 \(VV\) more than once"),
        ((12, 2, 2), "S2", ["short_wave_infrared_2"], -3, r"from_ has no short_wave_infrared_2 \(B10\)"),
        ((2, 2, 2), ["VV", "VX"], ["VV"], -3, "unknown band 'VX'"),
        ((2, 2, 2), "sentinel1", "eurosatt", -3, "unknown band order 'eurosatt'"),
    ],
)
def test_reorder_refuses(shape: tuple[int, ...], from_: str, to: str, dim: int, message: str) -> None:
    for x in (numpy.zeros(shape), torch.zeros(shape)):
        with pytest.raises(InputError, match=message):
            sensors.reorder(x, from_, to, dim=dim)


def test_reorder_refuses_lists() -> None:
    with pytest.raises(InputError, match="torch tensor or numpy array, got list"):
        sensors.reorder([[1], [2]], ["VV", "VH"], ["VH"])


# ---- statistics ----


@pytest.mark.parametrize("name", sensors.list_statistics())
def test_recorded_statistics(name: str) -> None:
    statistics = sensors.get_statistics(name)
    assert statistics.name == name and statistics.source
    assert sensors.get_sensor(statistics.sensor).name == statistics.sensor
    assert sensors.Statistics.from_dict(json.loads(json.dumps(statistics.to_dict()))) == statistics
    assert sensors.get_statistics(name.upper()) == statistics


def test_statistics_belong_to_their_bands() -> None:
    eurosat = sensors.get_statistics("EuroSAT")
    assert eurosat.bands == sensors.get_order("eurosat") and eurosat.p99 is not None
    # B10 sees little but cirrus and B8A is the brightest: a shifted list would show here
    assert eurosat.p99[eurosat.bands.index("short_wave_infrared_2")] == 28.0
    assert eurosat.select(["B8A"]).p99 == (5312.0,)
    l2a = sensors.get_statistics("smarties/S2-L2A")
    assert l2a.bands == tuple(S2) and l2a.units == "dn" and l2a.mean[8] == 0.41560056805610657
    assert sensors.get_statistics("BigEarthNetS2").select(S2).p99 == l2a.p99
    merced, rgb = sensors.get_statistics("UC-Merced"), sensors.get_statistics("smarties/RGB")
    assert merced.mean == rgb.mean and merced.p1 == (5.498963563859194, 13.11450763095778, 15.76891186580283)
    assert sensors.get_statistics("DFC2020").bands == (*S2, "microwave_1", "microwave_2")
    assert sensors.get_statistics("mars/Capella").p1 is None
    assert sensors.get_statistics("smarties/S1").units == "db"


def test_select() -> None:
    statistics = sensors.Statistics.from_dict(values())
    chosen = statistics.select(["B08", "red", "B08"])
    assert chosen.bands == ("near_infrared_1", "red_2", "near_infrared_1")
    assert (chosen.mean, chosen.std) == ((0.5, 0.4, 0.5), (0.2, 0.1, 0.2))
    assert (chosen.p1, chosen.p99) == ((2.5, 1, 2.5), (200, 100, 200))
    with pytest.raises(InputError, match=r"'custom' have no aerosol \(B01\), green_2 \(B03\); they hold red_2"):
        statistics.select(["B03", "B04", "B01"])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mean": None, "std": None}, "mean, std missing"),
        ({"men": [1, 2]}, "unknown key 'men'. Did you mean 'mean'"),
        ({"mean": [1]}, "1 values in mean for 2 bands"),
        ({"p99": [1, 2, 3]}, "3 values in p99 for 2 bands"),
        ({"bands": [], "mean": [], "std": [], "p1": None, "p99": None}, "0 values in mean for 0 bands"),
        ({"mean": [0.1, float("nan")]}, "mean holds something that is not a finite number"),
        ({"std": [0.1, float("inf")]}, "std holds something that is not a finite number"),
        ({"p1": [1, 10**400]}, "p1 holds something that is not a finite number"),
        ({"p1": [1, True]}, "p1 holds something that is not a finite number"),
        ({"p1": [1, "2"]}, "p1 holds something that is not a finite number"),
        ({"mean": 0.5}, "mean is float, expected a list"),
        ({"std": [0.1, 0]}, "std of near_infrared_1 is 0, expected a number above 0"),
        ({"p99": [1, 200]}, "p99 of red_2 is 1, not above its p1, 1"),
        ({"p1": None}, "p1 and p99 come together"),
        ({"units": "reflectances"}, "units are 'reflectances', expected one of dn"),
        ({"units": 3}, "units is int, expected text"),
        ({"sensor": "S9"}, "unknown sensor 'S9'"),
        ({"sensor": ["S2"]}, "sensor is list, expected text"),
        ({"bands": ["B04", "B10"]}, "unknown band 'B10' of S2"),
        ({"bands": ["B04", "red"]}, "listed twice with different values"),
        ({"bands": 4}, "bands are a list of names, got int"),
    ],
)
def test_from_dict_refuses(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        sensors.Statistics.from_dict(values(**changes))
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(values(**changes)))
    with pytest.raises(InputError, match=f"mine.json: .*{message}"):
        sensors.get_statistics(path)


def test_statistics_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(values()))
    statistics = sensors.get_statistics(str(path))
    assert statistics.name == "mine" and statistics.bands == ("red_2", "near_infrared_1")
    path.write_text(json.dumps(values(name="other", bands="anysat/s1-asc", sensor="S1", units="db")))
    assert sensors.get_statistics(path).name == "other"
    assert sensors.get_statistics(path).bands == ("microwave_1", "microwave_2")


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100_000, b"[1, 2]", b"null"])
def test_statistics_file_with_other_content(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(InputError, match=r"bad.json: "):
        sensors.get_statistics(tmp_path / "bad.json")


def test_statistics_not_found(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Did you mean 'EuroSAT'"):
        sensors.get_statistics("eurosatt")
    for missing in (tmp_path / "none.json", tmp_path):
        with pytest.raises(InputError, match="cannot be read as statistics"):
            sensors.get_statistics(missing)


# ---- normalize ----


def test_normalize_by_hand() -> None:
    statistics = sensors.Statistics.from_dict(values())
    x = numpy.array([[[0, 1], [50, 1000]], [[2, 101], [200, 65535]]], dtype="uint16")
    before = x.copy()
    out = sensors.normalize(x, statistics)
    wanted = [
        [[(0 - 0.4) / 0.1, (0 - 0.4) / 0.1], [(49 / 99 - 0.4) / 0.1, (1 - 0.4) / 0.1]],
        [[(0 - 0.5) / 0.2, (98.5 / 197.5 - 0.5) / 0.2], [(1 - 0.5) / 0.2, (1 - 0.5) / 0.2]],
    ]
    assert out.dtype == numpy.float32
    numpy.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-6)
    numpy.testing.assert_array_equal(x, before)
    raw = sensors.normalize(x, sensors.Statistics.from_dict(values(p1=None, p99=None)))
    assert raw[1, 0, 1] == pytest.approx((101 - 0.5) / 0.2)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int64", "float16", "float32", "float64"])
@pytest.mark.parametrize("dim", [-3, -1, 1])
def test_normalize_is_the_same_in_torch_and_numpy(dtype: str, dim: int) -> None:
    statistics = sensors.get_statistics("smarties/S2-L2A").select(["B04", "B08", "B8A"])
    x = numpy.random.default_rng(0).integers(0, 255, (2, 3, 4, 5)).astype(dtype)
    x = numpy.moveaxis(x, 1, dim)
    a = sensors.normalize(x, statistics, dim=dim)
    tensor = torch.from_numpy(x.copy())
    b = sensors.normalize(tensor, statistics, dim=dim)
    assert a.dtype == (dtype if "float" in dtype else "float32") and b.numpy().dtype == a.dtype
    numpy.testing.assert_allclose(a, b.numpy(), rtol=2e-3 if dtype == "float16" else 1e-6)
    assert torch.equal(tensor, torch.from_numpy(x.copy()))


def test_normalize_keeps_nan_bfloat16_device_and_gradient() -> None:
    statistics = sensors.get_statistics("smarties/S1")
    x = torch.tensor([[[float("nan"), -10.0]], [[-60.0, 5.0]]], requires_grad=True)
    out = sensors.normalize(x, statistics)
    assert out.isnan().tolist() == [[[True, False]], [[False, False]]]
    out.nansum().backward()
    assert x.grad is not None and x.grad[0, 0, 1] > 0 and x.grad[1].abs().sum() == 0
    assert sensors.normalize(torch.zeros(2, 1, 1, dtype=torch.bfloat16), statistics).dtype == torch.bfloat16
    assert sensors.normalize(torch.zeros(2, 1, 1, device="meta"), statistics).device.type == "meta"


def test_normalize_compiles_without_breaks() -> None:
    statistics = sensors.get_statistics("smarties/S1")
    compiled = torch.compile(lambda x: sensors.normalize(x, statistics), fullgraph=True, backend="eager")
    x = torch.randn(1, 2, 4, 4) * 10 - 10
    torch.testing.assert_close(compiled(x), sensors.normalize(x, statistics))


def test_normalize_refuses() -> None:
    statistics = sensors.get_statistics("smarties/S1")
    for x in (numpy.zeros((3, 2, 2)), torch.zeros(3, 2, 2)):
        with pytest.raises(InputError, match=r"found 3 channels along dim -3 of shape .* expected 2"):
            sensors.normalize(x, statistics)
    for complex_x in (numpy.zeros((2, 1, 1), "complex64"), torch.zeros(2, 1, 1, dtype=torch.complex64)):
        with pytest.raises(InputError, match=r"expected real numbers, got .*complex64"):
            sensors.normalize(complex_x, statistics)
    with pytest.raises(InputError, match="expected real numbers"):
        sensors.normalize(numpy.full((2, 1, 1), "a"), statistics)


def test_module_does_not_import_torch() -> None:
    # the package itself registers models, so the module is loaded beside an empty stand-in for it
    code = (
        "import sys, types; package = types.ModuleType('eo_zoo'); package.__path__ = [sys.argv[1]]; "
        "sys.modules['eo_zoo'] = package; import eo_zoo.sensors; assert 'torch' not in sys.modules"
    )
    folder = str(Path(sensors.__file__).parent)
    subprocess.run([sys.executable, "-c", code, folder], check=True)


def test_sensors_know_their_statistics() -> None:
    assert {"smarties/S2-L2A", "BigEarthNetS2"} <= set(sensors.get_sensor("S2").statistics)
    every = [name for sensor in sensors.list_sensors() for name in sensors.get_sensor(sensor).statistics]
    assert sorted(every) == sorted(sensors.list_statistics())


# ---- several inputs ----


def test_bands_made_of_two_others() -> None:
    assert sensors.get_band("VV/VH").ratio_of == sensors.get_order("anysat/s1-asc")
    assert sensors.get_band("HH/HV").ratio_of == ("alos_hh", "alos_hv") and not sensors.get_band("B02", "S2").ratio_of
    first, second = numpy.array([1.0, -3.0, 2.0, 0.0]), numpy.array([2.0, 1.5, 1e-12, 0.0])
    wanted = [0.5, -2.0, 1e4, 0.0]
    numpy.testing.assert_allclose(sensors.ratio(first, second), wanted, rtol=1e-9)
    found = sensors.ratio(torch.from_numpy(first).float(), torch.from_numpy(second).float())
    numpy.testing.assert_allclose(found.numpy(), wanted, rtol=1e-6)


def test_the_sensor_of_an_order() -> None:
    assert sensors.sensor_of("anysat/aerial-flair") == "AERIAL" and sensors.sensor_of("sentinel-2") == "S2"
    with pytest.raises(InputError, match="unknown band order"):
        sensors.sensor_of("anysat/s3")


INPUTS = {"s2": sensors.get_order("anysat/s2"), "rg": ("red_2", "green_2"), "s1": sensors.get_order("anysat/s1-asc")}


def test_statistics_of_one_set_hold_for_every_input_with_its_bands(tmp_path: Path) -> None:
    own = sensors.get_statistics("smarties/S2-L2A")
    (tmp_path / "own.json").write_text(json.dumps(own.to_dict()))
    for given in ("smarties/S2-L2A", own, tmp_path / "own.json", str(tmp_path / "own.json")):
        found = sensors.statistics_for(given, INPUTS)
        assert list(found) == ["s2", "rg"] and found["rg"] == own.select(["red_2", "green_2"])
        assert found["s2"].bands == INPUTS["s2"]


def test_statistics_by_input(tmp_path: Path) -> None:
    s1, s2 = sensors.get_statistics("smarties/S1"), sensors.get_statistics("anysat/s2")
    path = tmp_path / "several.json"
    path.write_text(json.dumps({"s1": s1.to_dict(), "s2": {k: v for k, v in s2.to_dict().items() if k != "name"}}))
    found = sensors.statistics_for(path, INPUTS)
    assert list(found) == ["s2", "s1"] and found["s1"] == s1 and found["s2"].name == "s2"
    assert sensors.statistics_for({"s1": "smarties/S1"}, INPUTS) == {"s1": s1}
    with pytest.raises(
        InputError, match=r"several\.json holds statistics of several inputs, s1, s2: expected those of one"
    ):
        sensors.get_statistics(path)
    path.write_text(json.dumps({"s1": {**s1.to_dict(), "std": [1.0, 0.0]}}))
    with pytest.raises(InputError, match=r"several\.json: s1: statistics: std of microwave_2 is 0"):
        sensors.statistics_for(path, INPUTS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"s3": "smarties/S1"}, "given for 's3', which is no input. Known: rg, s1, s2."),
        ({"s1": "anysat/s2"}, "statistics 'anysat/s2' have no microwave_1"),
        ("mars/RGB", "hold red_1, green_1, blue_3, which are all bands of none of the inputs s2, rg, s1"),
        ("EuroSatt", "Did you mean 'EuroSAT'"),
    ],
)
def test_statistics_that_fit_no_input(given: object, message: str) -> None:
    with pytest.raises(InputError) as error:
        sensors.statistics_for(given, INPUTS)  # type: ignore[arg-type]
    assert message in str(error.value)
