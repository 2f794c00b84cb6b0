"""Image processors: every kind of image gives what ``create_transform`` gives, and what does not fit says so."""

from __future__ import annotations

import json
import logging
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoImageProcessor, pipeline

from eo_zoo import create_transform, hf, registry, sensors
from eo_zoo.errors import InputError, MissingExtra
from eo_zoo.hf import processing

S2 = sensors.get_sensor("S2").band_names
EUROSAT = sensors.get_order("eurosat")
# medians of real chips in dn, by EuroSAT's file order: B10 is dark, B8A comes last
EUROSAT_DN = (1350, 1100, 1030, 900, 1150, 2000, 2400, 2300, 750, 8, 1800, 1050, 2600)
NANO = "smarties_vit_nano"
TUNED = "smarties_vit_base.eurosat_finetune"


def dn(bands: int = 12, size: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(300, 3000, (bands, size, size)).astype(np.uint16)


def eurosat(size: int = 64) -> np.ndarray:
    """Lookalike of a chip, in the file's order."""
    noise = np.random.default_rng(0).uniform(0.8, 1.2, (13, size, size))
    return (np.array(EUROSAT_DN)[:, None, None] * noise).astype(np.uint16)


def picture(height: int = 40, width: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def equal(found: Any, wanted: Any) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


def dataset(tmp_path, values: np.ndarray, name: str = "image.tif", opened: bool = True, **facts: Any):
    rasterio = pytest.importorskip("rasterio")
    from tests.geo.rasters import write_raster

    write_raster(tmp_path / name, values, **facts)
    return rasterio.open(tmp_path / name) if opened else tmp_path / name


def named(values: np.ndarray, names: Any, **attributes: Any):
    pytest.importorskip("rasterio")  # the checks of the raster pipeline
    xarray = pytest.importorskip("xarray")
    return xarray.DataArray(values, dims=("band", "y", "x"), coords={"band": list(names)}, attrs=attributes)


# ---- equal to create_transform ----


@pytest.mark.parametrize("name, sensor", [(NANO, "S2"), (NANO, "S1"), (NANO, "RGB"), (TUNED, "S2-L1C"),
                                          ("mars_base_rgb", "RGB"), ("mars_base_sar", "Capella")])  # fmt: skip
def test_arrays_and_tensors_are_transformed_as_create_transform_does(name, sensor):
    kind = hf.SmartiesImageProcessor if name.startswith("smarties") else hf.MarsImageProcessor
    bands = len(sensors.get_sensor(sensor).bands)
    values = {
        "db": np.random.default_rng(0).normal(-12, 3, (2, bands, 30, 30)).astype(np.float32),
        "uint8": dn(2 * bands, 30).reshape(2, bands, 30, 30).astype(np.uint8),
    }.get(sensors.get_sensor(sensor).units, dn(2 * bands, 30).reshape(2, bands, 30, 30))
    processor = kind.from_pretrained(name, sensor=sensor, size=56)
    wanted = create_transform(name, sensor, size=56)(values.astype(np.float32))
    floats = torch.from_numpy(values.astype(np.float32)).requires_grad_()
    assert values.dtype == np.uint8 or torch.equal(processor(floats).pixel_values, wanted)
    for given in (values, torch.from_numpy(values), list(values), [torch.from_numpy(one) for one in values]):
        assert torch.equal(processor(given).pixel_values, wanted)
    assert torch.equal(processor(values[0]).pixel_values, create_transform(name, sensor, size=56)(values[:1]))
    assert isinstance(processor(values, return_tensors="np")["pixel_values"], np.ndarray)
    assert torch.equal(torch.from_numpy(processor(values, return_tensors="np")["pixel_values"]), wanted)


def test_rasters_and_xarray_give_the_same_by_their_names(tmp_path):
    values, shuffled = dn(), [S2.index(band) for band in reversed(S2)]
    names = [sensors.get_band(S2[place]).sensor_name for place in shuffled]
    processor = hf.SmartiesImageProcessor(NANO)
    wanted = processor(values).pixel_values
    with dataset(tmp_path, values[shuffled], descriptions=names) as opened:
        assert torch.equal(processor(opened).pixel_values, wanted)
        assert torch.equal(processor([opened, opened]).pixel_values, wanted.repeat(2, 1, 1, 1))
    path = tmp_path / "image.tif"
    assert torch.equal(processor(path).pixel_values, wanted)
    assert torch.equal(processor(str(path)).pixel_values, wanted)
    assert torch.equal(processor(named(values[shuffled], names)).pixel_values, wanted)
    more = np.concatenate([values[shuffled], dn(1, seed=1)])
    assert torch.equal(processor(named(more, [*names, "clouds"])).pixel_values, wanted)
    assert torch.equal(processor(named(values[shuffled], names).transpose("y", "x", "band")).pixel_values, wanted)
    long_name = named(values[shuffled], range(1, 13), long_name=tuple(names))  # as rioxarray has it
    assert torch.equal(processor(long_name).pixel_values, wanted)
    times = named(values[shuffled], names).expand_dims(time=3)
    assert torch.equal(processor(times).pixel_values, wanted.repeat(3, 1, 1, 1))
    assert torch.equal(processor(values[shuffled], bands=names).pixel_values, wanted)


def test_bands_without_names_are_the_processors_own_where_there_are_as_many(tmp_path):
    processor = hf.SmartiesImageProcessor(NANO, bands=["B4", "B3", "B2"])
    values = dn(3)
    wanted = create_transform(NANO, bands=["B4", "B3", "B2"])(values[None])
    assert processor.bands == ["red_2", "green_2", "blue_1"]
    assert torch.equal(processor(values).pixel_values, wanted)
    with dataset(tmp_path, values) as opened:
        assert torch.equal(processor(opened).pixel_values, wanted)
    assert torch.equal(processor(named(values, range(3))).pixel_values, wanted)
    assert torch.equal(processor(values[::-1], bands=["B2", "B3", "B4"]).pixel_values, wanted)
    whole = dn(12)
    chosen = whole[[S2.index(band) for band in processor.bands]]
    assert torch.equal(processor(whole).pixel_values, processor(chosen).pixel_values)


def test_a_raster_without_georeference_and_its_nodata(tmp_path):
    values = dn(2).astype(np.float32) / -200
    values[0, :9] = -99
    processor = hf.SmartiesImageProcessor(NANO, sensor="S1")
    missing = values.copy()
    missing[0, :9] = np.nan
    wanted = processor(missing).pixel_values
    with dataset(tmp_path, values, crs=None, nodata=-99, descriptions=("VV", "VH")) as opened:
        assert torch.equal(processor(opened).pixel_values, wanted)
    assert torch.equal(processor(values, nodata=-99).pixel_values, wanted)
    with dataset(tmp_path, values, "unsaid.tif", descriptions=("VV", "VH")) as opened:
        assert torch.equal(processor(opened, nodata=-99).pixel_values, wanted)
    assert torch.equal(processor(named(values, ("VV", "VH"), _FillValue=-99.0)).pixel_values, wanted)
    assert not torch.equal(processor(values).pixel_values, wanted)
    zeros, own = np.where(values == -99, 0, values), hf.SmartiesImageProcessor(NANO, sensor="S1", nodata=-99)
    assert torch.equal(own(values).pixel_values, wanted) and torch.equal(own(zeros, nodata=0).pixel_values, wanted)


def test_what_is_missing_is_zero_after_normalising():
    values = dn().astype(np.float32)
    values[3, 10:20] = np.nan
    processor = hf.SmartiesImageProcessor(NANO, do_resize=False)
    found = processor(values).pixel_values
    assert found.shape == (1, 12, 64, 64) and not found[0, 3, 10:20].any() and found[0, 3, 20:].any()
    normalize, resize = create_transform(NANO)
    whole = normalize(np.nan_to_num(values)[None])
    whole[0, 3, 10:20] = 0
    assert torch.equal(processor(values, do_resize=True).pixel_values, resize(whole))
    assert torch.equal(processor(values, do_normalize=False).pixel_values[0], torch.from_numpy(np.nan_to_num(values)))
    plain = hf.SmartiesImageProcessor(NANO, do_resize=False, do_normalize=False)
    assert torch.equal(plain(values).pixel_values, processor(values, do_normalize=False).pixel_values)


@pytest.mark.parametrize("units, values", [("reflectance", dn().astype(np.float32) / 10000), ("dn", dn())])
def test_units_of_optical_images(units, values):
    processor = hf.SmartiesImageProcessor(NANO)
    found = processor(values, units=units).pixel_values
    assert torch.allclose(found, processor(dn()).pixel_values, atol=1e-3)
    assert torch.equal(found, hf.SmartiesImageProcessor(NANO, units=units)(values).pixel_values)
    lacking = values.astype(np.float32)
    lacking[:, :9] = np.nan
    marked = np.nan_to_num(lacking, nan=-1)
    options = dict(units=units, nodata=-1)
    assert torch.equal(processor(marked, **options).pixel_values, processor(lacking, units=units).pixel_values)


def test_linear_power_becomes_db_and_what_has_none_is_missing(caplog):
    processor = hf.SmartiesImageProcessor(NANO, sensor="S1")
    db = np.random.default_rng(0).normal(-12, 3, (2, 32, 32)).astype(np.float32)
    power = np.float32(10) ** (db / 10)
    assert torch.allclose(processor(power, units="linear").pixel_values, processor(db).pixel_values, atol=1e-3)
    power[:, :4] = np.nan
    processor(power, units="linear")
    assert not caplog.text  # what was missing before is told by nobody
    power[:, :4] = 0
    processor(power, units="linear")
    assert "have no value in db" in caplog.text


def test_scale_and_offset_of_metadata_are_applied(tmp_path):
    stored = dn()
    names = [band.sensor_name for band in sensors.get_sensor("S2").bands]
    processor = hf.SmartiesImageProcessor(NANO)
    wanted = processor(stored.astype(np.float32) - 100).pixel_values
    with dataset(tmp_path, stored, descriptions=names, scale=0.0001, offset=-0.01) as opened:
        assert torch.allclose(processor(opened).pixel_values, wanted, atol=1e-4)
    array = named(stored, names, scale_factor=0.0001, add_offset=-0.01)
    assert torch.allclose(processor(array).pixel_values, wanted, atol=1e-4)
    with pytest.raises(InputError, match=r"float32 without scale.*units=reflectance"):
        processor(named(stored.astype(np.float32), names))
    path = dataset(tmp_path, stored.astype(np.float32), opened=False, descriptions=names)
    with pytest.raises(InputError, match="say units=reflectance or units=dn"):
        processor(path)


# ---- pictures and pipelines ----


def test_pictures_are_red_green_and_blue():
    image = picture()
    wanted = create_transform(NANO, "RGB")(np.moveaxis(np.array(image), -1, 0)[None])
    processor = hf.SmartiesImageProcessor(NANO, sensor="RGB")
    assert torch.equal(processor(image).pixel_values, wanted)
    assert torch.equal(processor(image.convert("RGBA")).pixel_values, wanted)
    assert torch.equal(hf.SmartiesImageProcessor(NANO)(image, sensor="RGB").pixel_values, wanted)
    other = hf.SmartiesImageProcessor(NANO, sensor="RGB", bands=["blue", "green", "red"])
    assert torch.equal(other(image).pixel_values, wanted.flip(1))
    reverse = hf.MarsImageProcessor("mars_base_rgb", bands=["blue", "green", "red"], size=32)
    assert torch.equal(reverse(image).pixel_values, hf.MarsImageProcessor(size=32)(image).pixel_values.flip(1))
    said = hf.MarsImageProcessor(size=32)(image, bands=["blue", "green", "red"])
    turned = np.moveaxis(np.asarray(image), -1, 0)[::-1].copy()
    assert torch.equal(said.pixel_values, hf.MarsImageProcessor(size=32)(turned).pixel_values)


@pytest.mark.parametrize("mode, dtype", [("L", np.uint8), ("I;16", np.uint16), ("F", np.float32)])
def test_pictures_with_one_channel(mode, dtype):
    values = dn(1, 48).astype(dtype)
    sensor = "Umbra" if dtype is np.uint8 else "Capella"
    processor = hf.MarsImageProcessor("mars_base_sar", sensor=sensor, size=32)
    image = Image.fromarray(values[0])
    assert image.mode == mode
    assert torch.equal(processor(image).pixel_values, processor(values).pixel_values)


def test_pipelines_take_models_of_pictures_and_say_why_they_take_no_others():
    for task, kind in (
        ("image-feature-extraction", hf.SmartiesModel),
        ("image-classification", hf.SmartiesForImageClassification),
    ):
        config = hf.SmartiesConfig(NANO, sensor="RGB", num_labels=3 if "class" in task else 0)
        model = kind(config).eval()
        processor = processing.processor_for(model)
        ran = pipeline(task, model=model, image_processor=processor)
        found = ran([picture(), picture()])
        with torch.no_grad():
            made = model(**processor(picture()))
        if "class" in task:
            best = made.logits.softmax(-1).max().item()
            assert found[0][0]["score"] == pytest.approx(best, rel=1e-5)
        else:
            assert torch.allclose(torch.tensor(found[0]), made.last_hidden_state, atol=1e-6)
    model = hf.SmartiesModel(hf.SmartiesConfig(NANO)).eval()
    ran = pipeline("image-feature-extraction", model=model, image_processor=processing.processor_for(model))
    with pytest.raises(InputError, match=r"picture \(RGB\), but bands of S2 are expected.*sensor='RGB'"):
        ran(picture())
    with pytest.raises(InputError, match=r"dict of inputs by name.*got Image.*pipelines"):
        hf.AnySatImageProcessor("anysat_nano")(picture())


# ---- bands and sensors ----


def test_smarties_gives_other_bands_where_the_images_lack_some_and_says_so(caplog):
    processor = hf.SmartiesImageProcessor(NANO)
    values = dn(3)
    found = processor(values, bands=["B4", "B3", "B2"]).pixel_values
    assert torch.equal(found, create_transform(NANO, bands=["B4", "B3", "B2"])(values[None]))
    assert "from_pretrained(..., bands=['red_2', 'green_2', 'blue_1'])" in caplog.text
    again = hf.SmartiesImageProcessor.from_pretrained(NANO, bands=["red_2", "green_2", "blue_1"])
    assert torch.equal(again(values).pixel_values, found)
    radar = np.random.default_rng(0).normal(-12, 3, (2, 32, 32)).astype(np.float32)
    assert torch.equal(processor(radar, sensor="S1").pixel_values, create_transform(NANO, "S1")(radar[None]))
    vv = hf.SmartiesImageProcessor(NANO, bands=["VV"])
    assert (vv.sensor, vv.bands) == ("S1", ["microwave_1"])


def test_the_tuned_set_leaves_the_cirrus_band_in_as_its_model_does():
    processor = hf.SmartiesImageProcessor(TUNED)
    values = eurosat()
    wanted = create_transform(TUNED, bands=sensors.get_sensor("S2-L1C").band_names)(
        sensors.reorder(values, "eurosat", "S2-L1C")[None]
    )
    assert torch.equal(processor(values, bands="eurosat").pixel_values, wanted)
    kept = [band for band in EUROSAT if band != "short_wave_infrared_2"]
    without = processor(sensors.reorder(values, EUROSAT, kept), bands=kept)
    assert without.pixel_values.shape == (1, 12, 224, 224)


def test_an_image_of_two_sensors():
    name = "smarties_vit_base.bigearthnetmm_linprobe"
    values = np.concatenate([dn(), np.random.default_rng(0).normal(-12, 3, (2, 64, 64))]).astype(np.float32)
    processor = hf.SmartiesImageProcessor(name)
    assert processor.sensor is None and len(processor.bands) == 14
    assert torch.allclose(processor(values).pixel_values, create_transform(name)(values[None]), atol=1e-6)
    names = [*reversed(S2), "VH", "VV"]
    turned = values[[*range(11, -1, -1), 13, 12]]
    assert torch.equal(processor(turned, bands=names).pixel_values, processor(values).pixel_values)
    chosen = ["microwave_1", "red_2", "green_2", "microwave_2"]
    mixed = hf.SmartiesImageProcessor(name, bands=chosen)
    places = [processor.bands.index(band) for band in chosen]
    wanted = processor(values, do_resize=False).pixel_values[:, places]
    assert torch.equal(mixed(values[places], do_resize=False).pixel_values, wanted)


def test_bands_that_are_not_used_are_named_so(tmp_path):
    values = dn(4).astype(np.uint8)
    processor = hf.MarsImageProcessor(size=32)
    wanted = processor(values[[0, 2, 3]]).pixel_values
    names = ["R", "-", "G", "B"]
    assert torch.equal(processor(values, bands=names).pixel_values, wanted)
    assert torch.equal(processor(dataset(tmp_path, values, opened=False), bands=names).pixel_values, wanted)
    assert torch.equal(processor(named(values, range(4)), bands=names).pixel_values, wanted)


@pytest.mark.parametrize("shifted", [True, False])
def test_a_file_with_b8a_last_under_names_in_the_order_of_wavelengths_is_told(shifted, caplog):
    processor = hf.SmartiesImageProcessor(TUNED)
    values = eurosat().astype(np.float32)
    values[:, :5] = np.nan
    for _ in range(3):  # once, not for each image of a training set
        processor(values, **({} if shifted else {"bands": "eurosat"}))
    assert caplog.text.count("is B8A last?") == (2 if shifted else 0)


def test_wrong_names_of_a_raster_are_told(tmp_path, caplog):
    values = eurosat()
    names = [band.sensor_name for band in sensors.get_sensor("S2-L1C").bands]  # as in many copies
    processor = hf.SmartiesImageProcessor(TUNED)
    wanted = processor(values, bands="eurosat").pixel_values
    caplog.clear()
    with dataset(tmp_path, values, descriptions=names) as opened:
        processor(opened)
        assert "is B8A last?" in caplog.text
        assert torch.equal(processor(opened, bands="eurosat").pixel_values, wanted)
    assert "bands= differs from" in caplog.text and "--" not in caplog.text
    caplog.clear()
    processor = hf.SmartiesImageProcessor(TUNED)
    assert torch.equal(processor(named(values, names), bands="eurosat").pixel_values, wanted)
    assert "bands= differs from its own names: short_wave_infrared_1 (near_infrared_3)" in caplog.text


def test_alpha_of_a_raster_masks_it(tmp_path):
    values = np.concatenate([np.moveaxis(np.asarray(picture()), -1, 0), np.full((1, 40, 40), 255, np.uint8)])
    values[3, :5] = 0
    processor = hf.MarsImageProcessor(do_resize=False)
    with dataset(tmp_path, values, colours=("red", "green", "blue", "alpha")) as opened:
        found = processor(opened).pixel_values
    assert found.shape == (1, 3, 40, 40) and not found[..., :5, :].any()
    assert torch.equal(found[..., 5:, :], processor(values[:3]).pixel_values[..., 5:, :])


# ---- dicts ----


def anysat_data(batch: int | None = None) -> dict[str, Any]:
    lead = () if batch is None else (batch,)
    rng = np.random.default_rng(0)
    dates = ["2020-02-19", "2020-03-01", "2020-07-05"]
    return {
        "s2": rng.integers(300, 3000, (*lead, 3, 10, 6, 6)).astype(np.uint16),
        "s2_dates": dates if batch is None else [dates] * batch,
        "aerial": rng.integers(0, 256, (*lead, 4, 300, 300)).astype(np.uint8),
    }


def test_anysat_takes_what_create_transform_takes():
    processor = hf.AnySatImageProcessor("anysat_nano")
    data = anysat_data(2)
    wanted = create_transform("anysat_nano")(data)
    assert equal(processor(data), wanted)
    assert {key: tuple(x.shape) for key, x in processor(anysat_data()).items()} == {
        "s2": (1, 3, 10, 6, 6), "s2_mask": (1, 3, 10, 6, 6), "s2_dates": (1, 3), "aerial": (1, 4, 300, 300)
    }  # fmt: skip
    samples = [{key: values[i] for key, values in data.items()} for i in range(2)]
    assert equal(processor(samples), wanted)
    with torch.no_grad():
        model = hf.AnySatModel(hf.AnySatConfig("anysat_nano")).eval()
        assert model(**processor(data), patch_size=30).pooler_output.shape == (2, 128)
    tensors = {key: torch.from_numpy(own) if isinstance(own, np.ndarray) else own for key, own in data.items()}
    assert equal(processor(tensors), wanted)
    whole = {"s2": dn(36, 6).reshape(3, 12, 6, 6), "s2_dates": anysat_data()["s2_dates"]}
    assert equal(processor(whole), processor(whole, bands={"s2": S2}))  # the sensor's, as there are as many


def test_anysat_by_names_masks_and_presets(tmp_path):
    data = anysat_data()
    names = ["R", "G", "B", "NIR"]
    order = [1, 2, 3, 0]
    processor = hf.AnySatImageProcessor("anysat_nano")
    wanted = processor(data)["aerial"]
    turned = data["aerial"][order]
    assert torch.equal(processor({"aerial": turned}, bands={"aerial": names})["aerial"], wanted)
    assert torch.equal(hf.AnySatImageProcessor(bands={"aerial": names})({"aerial": turned})["aerial"], wanted)
    with dataset(tmp_path, turned, descriptions=["Red", "Green", "Blue", "NIR"]) as opened:
        assert torch.equal(processor({"aerial": opened})["aerial"], wanted)
    mask = np.ones((3, 1, 6, 6), bool)
    mask[1] = False
    found = processor({**data, "s2_mask": mask})
    assert not found["s2_mask"][0, 1].any() and not found["s2"][0, 1].any() and found["s2"][0, 2].any()
    pastis = hf.AnySatImageProcessor("anysat_nano", preset="pastis-hd")
    assert pastis.preset == "PASTIS-HD" and pastis.statistics["s2"]["name"] == "pastis/s2"
    series = {key: data[key] for key in ("s2", "s2_dates")}
    assert torch.equal(pastis(series)["s2"][0], create_transform("anysat_nano", preset="PASTIS-HD")(series)["s2"])


def test_anysat_reads_dates_of_xarray():
    pytest.importorskip("rasterio")
    xarray = pytest.importorskip("xarray")
    data = anysat_data()
    times = np.array(data["s2_dates"], "datetime64[ns]")
    bands = [sensors.get_band(band).sensor_name for band in sensors.get_order("anysat/s2")]
    array = xarray.DataArray(data["s2"], dims=("time", "band", "y", "x"), coords={"time": times, "band": bands})
    processor = hf.AnySatImageProcessor("anysat_nano")
    wanted = processor({key: data[key] for key in ("s2", "s2_dates")})
    assert equal(processor({"s2": array}), wanted)
    assert equal(processor({"s2": array.isel(band=slice(None, None, -1))}), wanted)
    other = ["2021-01-01", "2021-01-02", "2021-01-03"]
    assert processor({"s2": array, "s2_dates": other})["s2_dates"].tolist() == [[1, 2, 3]]


def test_multimae_takes_what_create_transform_takes(tmp_path):
    rng = np.random.default_rng(0)
    data = {
        "s2": dn(24).reshape(2, 12, 64, 64),
        "dem": rng.uniform(100, 900, (2, 1, 64, 64)).astype(np.float32),
        "worldcover": rng.choice([10, 40, 80], (2, 1, 64, 64)).astype(np.uint8),
    }
    processor = hf.MultiMaeEoImageProcessor()
    wanted = create_transform("multimae_eo_base")(data)
    assert equal(processor(data), wanted)
    assert equal(processor([{key: values[i] for key, values in data.items()} for i in range(2)]), wanted)
    one = {key: values[0] for key, values in data.items()}
    assert equal(processor(one), {key: x[:1] for key, x in wanted.items()})
    with dataset(tmp_path, one["s2"], descriptions=[sensors.get_band(band).sensor_name for band in S2]) as opened:
        assert equal(processor({**one, "s2": opened}), {key: x[:1] for key, x in wanted.items()})
    l1c = hf.MultiMaeEoImageProcessor(sensor="S2-L1C", size=32)
    whole = dn(13)
    assert equal(l1c({"s2": whole}), create_transform("multimae_eo_base", "S2-L1C", size=32)({"s2": whole[None]}))
    mmearth = processor({"s2": whole}, bands={"s2": "mmearth"})
    assert equal(mmearth, create_transform("multimae_eo_base", bands={"s2": "mmearth"})({"s2": whole[None]}))
    names = [band.sensor_name for band in sensors.get_sensor("S2-L1C").bands]
    listed = sensors.reorder(whole, "mmearth", "S2-L1C")
    assert equal(processor({"s2": listed}, bands={"s2": names}), mmearth)
    rgb = {"rgb": whole[[3, 2, 1]]}
    assert equal(processor(rgb), create_transform("multimae_eo_base")({"rgb": rgb["rgb"][None]}))
    codes = rng.choice([10, 40], (56, 56))
    assert processor({"semseg": codes})["semseg"].shape == (1, 14, 14)


# ---- JSON ----


PROCESSORS = [
    (hf.SmartiesImageProcessor, dict(name=NANO, bands=["B4", "B3"], size=56, units="dn", nodata=0)),
    (hf.SmartiesImageProcessor, dict(name="smarties_vit_base.bigearthnetmm_linprobe")),
    (hf.SmartiesImageProcessor, dict(name=TUNED, do_resize=False)),
    (hf.MarsImageProcessor, dict(name="mars_large_sar", sensor="Capella", size={"height": 64, "width": 64})),
    (hf.AnySatImageProcessor, dict(name="anysat_nano", preset="FLAIR")),
    (hf.AnySatImageProcessor, dict(bands={"aerial": ["R", "G", "B", "NIR"]}, nodata={"s2": 0})),
    (hf.MultiMaeEoImageProcessor, dict(sensor="S2-L1C", size=32)),
]


@pytest.mark.parametrize("kind, facts", PROCESSORS)
def test_a_processor_is_its_json(kind, facts, tmp_path):
    processor = kind(**facts)
    processor.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert stored == json.loads(json.dumps(processor.to_dict()))
    assert set(stored) == {*kind.facts, "image_processor_type"}
    for again in (kind.from_pretrained(tmp_path), AutoImageProcessor.from_pretrained(tmp_path), kind.from_dict(stored)):
        assert type(again) is kind and again.to_dict() == processor.to_dict()
    processor.to_dict()["statistics"].clear()
    assert processor.to_dict() == again.to_dict() and kind.__name__ in repr(processor)


def test_a_reloaded_processor_gives_equal_outputs(tmp_path):
    processor = hf.SmartiesImageProcessor(NANO, size=56)
    processor.save_pretrained(tmp_path / "image")
    values = dn()
    again = AutoImageProcessor.from_pretrained(tmp_path / "image")
    assert torch.equal(again(values).pixel_values, processor(values).pixel_values)
    smaller = AutoImageProcessor.from_pretrained(tmp_path / "image", size=28, bands=["B8", "B4"])
    assert smaller(values).pixel_values.shape == (1, 2, 28, 28)
    radar = AutoImageProcessor.from_pretrained(tmp_path / "image", sensor="S1")
    assert (radar.sensor, len(radar.bands)) == ("S1", 2)
    radar = AutoImageProcessor.from_pretrained(tmp_path / "image", sensor="S1", bands=["VH"])
    assert radar.bands == ["microwave_2"]
    anysat = hf.AnySatImageProcessor("anysat_nano", preset="FLAIR")
    anysat.save_pretrained(tmp_path / "dict")
    key = next(iter(anysat.statistics))
    data = {key: dn(len(anysat.statistics[key]["bands"]), 50).astype(np.uint8)}
    assert equal(AutoImageProcessor.from_pretrained(tmp_path / "dict")(data), anysat(data))


def test_a_folder_keeps_its_statistics_when_recorded_ones_change(tmp_path, monkeypatch):
    values = dn()
    processor = hf.SmartiesImageProcessor(NANO)
    wanted = processor(values).pixel_values
    processor.save_pretrained(tmp_path)
    recorded = sensors.get_statistics("nano/S2-L2A").to_dict()
    other = sensors.Statistics.from_dict({**recorded, "mean": [0.1] * 12})
    monkeypatch.setattr(sensors, "get_statistics", lambda name: other)
    assert torch.equal(hf.SmartiesImageProcessor.from_pretrained(tmp_path)(values).pixel_values, wanted)
    assert not torch.equal(hf.SmartiesImageProcessor(NANO)(values).pixel_values, wanted)


def test_statistics_of_ones_own(tmp_path):
    values, own = dn(), sensors.get_statistics("smarties/S2-L2A")
    wanted = create_transform(NANO, stats=own)(values[None])
    (tmp_path / "own.json").write_text(json.dumps(own.to_dict()))
    for given in (own, own.to_dict(), own.name, tmp_path / "own.json", {"S2": own.to_dict()}):
        assert torch.equal(hf.SmartiesImageProcessor(NANO, statistics=given)(values).pixel_values, wanted)
    spot = {"spot": {"sensor": "SPOT", "units": "uint8", "bands": "SPOT", "mean": [100] * 3, "std": [40] * 3}}
    found = hf.AnySatImageProcessor("anysat_nano", statistics=spot)({"spot": dn(3).astype(np.uint8)})
    assert found["spot"].shape == (1, 3, 64, 64)
    height = {"sensor": "DEM", "units": "m", "bands": ["elevation"], "mean": [0], "std": [10]}
    depth = create_transform("multimae_eo_base", stats={"depth": sensors.Statistics.from_dict(height)})
    for given in ({"depth": height}, {"depth": sensors.Statistics.from_dict(height)}):
        made = hf.MultiMaeEoImageProcessor(statistics=given)({"dem": values[:1]})
        assert equal(made, depth({"dem": values[None, :1]}))


@pytest.mark.parametrize(
    "kind, name, found",
    [
        (hf.SmartiesImageProcessor, "gsumbul/SMARTIES-v1-ViT-B", "smarties_vit_base.pretrain"),
        (hf.SmartiesImageProcessor, "gsumbul/SMARTIES-v1-ViT-L", "smarties_vit_large.pretrain"),
        (hf.SmartiesImageProcessor, TUNED, TUNED),
        (hf.AnySatImageProcessor, "g-astruc/AnySat", "anysat_base.pretrain"),
        (hf.MarsImageProcessor, "mars_base_sar", "mars_base_sar.pretrain"),
        (hf.MultiMaeEoImageProcessor, "josesosajs/multimae-meets-eo", "multimae_eo_base.pretrain"),
    ],
)
def test_names_of_eo_zoo_and_official_repositories_need_no_network(kind, name, found, tmp_path, monkeypatch):
    assert kind.from_pretrained(name, cache_dir=tmp_path, local_files_only=True).name == found
    processor, unused = kind.from_pretrained(name, return_unused_kwargs=True, foo=1, token=False)
    assert processor.name == found and unused == {"foo": 1}
    with pytest.raises(InputError, match=r"is for .*got"):
        other = hf.MarsImageProcessor if kind is hf.SmartiesImageProcessor else hf.SmartiesImageProcessor
        other.from_pretrained(name)
    # a folder of that name comes first
    monkeypatch.chdir(tmp_path)
    kind(found).save_pretrained(tmp_path / name)
    stored = tmp_path / name / "preprocessor_config.json"
    stored.write_text(json.dumps({**json.loads(stored.read_text()), "units": "dn"}))
    assert kind.from_pretrained(name).units == "dn"


def test_every_weight_set_has_a_processor():
    kinds = {"smarties": hf.SmartiesImageProcessor, "mars": hf.MarsImageProcessor, "anysat": hf.AnySatImageProcessor,
             "multimae": hf.MultiMaeEoImageProcessor}  # fmt: skip
    for name in registry.list_models():
        for full in registry.list_tags(name):
            processor = kinds[name.partition("_")[0]](full)
            assert json.loads(processor.to_json_string())["name"] == full


def test_a_model_has_its_processor():
    config = hf.SmartiesConfig(NANO, bands=["VV", "VH"], sensor="S1", img_size=56)
    processor = processing.processor_for(hf.SmartiesModel(config))
    assert (processor.name, processor.sensor, processor.size["height"]) == (f"{NANO}.demo", "S1", 56)
    assert processor.bands == ["microwave_1", "microwave_2"]
    mixed = processing.processor_for(hf.SmartiesModel(hf.SmartiesConfig(NANO, bands=["B4", "VV"])))
    values = np.stack([dn(1)[0].astype(np.float32), np.full((64, 64), -12, np.float32)])
    found = mixed(values).pixel_values
    assert mixed.sensor is None
    assert torch.equal(found[:, :1], create_transform(NANO, bands=["B4"])(values[None, :1]))
    assert torch.equal(found[:, 1:], create_transform(NANO, "S1", bands=["VV"])(values[None, 1:]))
    assert processing.processor_for(hf.AnySatModel(hf.AnySatConfig("anysat_nano"))).name.startswith("anysat_nano")
    small = hf.MultiMaeEoConfig(model_args=dict(embed_dim=32, depth=1, num_heads=2), img_size=112)
    assert processing.processor_for(hf.MultiMaeEoModel(small)).size == {"height": 112, "width": 112}


# ---- segmentation ----


def test_maps_of_classes_at_the_sizes_wanted():
    logits = torch.randn(2, 5, 12, 12, generator=torch.Generator().manual_seed(0))
    processor = hf.SmartiesImageProcessor(NANO)
    outputs = SimpleNamespace(logits=logits)
    assert torch.equal(torch.stack(processor.post_process_semantic_segmentation(outputs)), logits.argmax(1))
    maps = processor.post_process_semantic_segmentation(outputs, target_sizes=[(30, 20), (12, 12)])
    assert [tuple(one.shape) for one in maps] == [(30, 20), (12, 12)] and torch.equal(maps[1], logits[1].argmax(0))
    assert torch.equal(maps[0], F.interpolate(logits[:1], (30, 20), mode="bilinear", align_corners=False)[0].argmax(0))
    with pytest.raises(InputError, match="got 1 target_sizes for 2 images"):
        processor.post_process_semantic_segmentation(outputs, target_sizes=[(3, 3)])


# ---- errors ----


@pytest.mark.parametrize(
    "images, said, message",
    [
        (dn().transpose(1, 2, 0), {}, r"\(64, 64, 12\), its bands last: expected \(..., 12 bands, H, W\); transpose"),
        (dn(5), {}, r"\(5, 64, 64\), expected \(..., 12 bands, H, W\): the model's are aerosol.*give bands="),
        (dn(4), {"bands": ["B2", "B3", "B4"]}, r"expected \(..., 3 bands, H, W\): the bands named are blue_1, green_2"),
        (dn()[0], {}, r"the image is \(64, 64\), expected"),
        (dn(1), {"bands": ["B99"]}, "unknown band 'B99' of S2"),
        (dn(2), {"bands": ["B4", "red_2"]}, "red_2 given twice"),
        (dn(2), {"bands": []}, "bands is empty"),
        (dn(2), {"bands": ["-", "-"]}, "bands is empty"),
        (dn(), {"sensor": "S3"}, "unknown sensor 'S3'"),
        (dn(7), {"sensor": "MODIS"}, "has statistics for S2, S1, RGB, none for MODIS: build the processor with stat"),
        (dn(2), {"bands": ["B10", "B9"], "sensor": "S2-L1C"}, "none for S2-L1C"),
        (dn()[:, :0], {}, r"the image is empty: \(12, 0, 64\)"),
        ([], {}, "the list is empty"),
        ([dn(), dn(12, 32)], {"do_resize": False}, r"different sizes, .*, and do_resize is False"),
        (dn(), {"size": 0}, "size is 0, expected 1 pixel or more"),
        (dn(), {"size": True}, "size is True, expected"),
        (dn(), {"size": {"height": 3, "width": 4}}, "expected pixels a side, or height and width that are equal"),
        (dn(), {"return_tensors": "tf"}, "return_tensors is 'tf', expected 'pt' or 'np'"),
        (None, {}, "got NoneType as an image, expected a numpy array"),
        ({"s2": dn()}, {}, "got dict as an image"),
        (np.full((12, 8, 8), np.inf, np.float32), {}, "NaN or infinite"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_sentence(images, said, message):
    with pytest.raises(InputError, match=message):
        hf.SmartiesImageProcessor(NANO)(images, **said)


def test_units_that_cannot_be():
    processor = hf.SmartiesImageProcessor(NANO)
    for values, said, message in (
        (dn().astype(np.uint8), {}, "8-bit preview, not data"),
        (dn(), {"units": "db"}, "db cannot be converted to dn of S2; expected units=dn or reflectance"),
        (dn(), {"units": "reflectance"}, "the values are uint16: integers, which units=dn would be"),
        (dn(), {"units": "metres"}, "unknown units 'metres'"),
        (dn().astype(complex), {}, "complex128, not real numbers"),
    ):
        with pytest.raises(InputError, match=message):
            processor(values, **said)
    with pytest.raises(InputError, match=r"statistics of RGB are for uint8 \(0 to 255\)"):
        processor(torch.rand(3, 64, 64), sensor="RGB")
    name, db = "smarties_vit_base.bigearthnetmm_linprobe", np.full((2, 64, 64), -12, np.float32)
    optical = dn().astype(np.float32)
    mixed = hf.SmartiesImageProcessor(name, units={"S1": "linear"})(np.concatenate([optical, 10 ** (db / 10)]))
    wanted = hf.SmartiesImageProcessor(name)(np.concatenate([optical, db])).pixel_values
    torch.testing.assert_close(mixed.pixel_values, wanted, atol=1e-4, rtol=1e-4)


def test_images_that_differ_in_bands_and_models_that_need_theirs(tmp_path):
    with pytest.raises(InputError, match="the images lack blue_3: the model takes red_1, green_1, blue_3"):
        hf.MarsImageProcessor()(dn(2).astype(np.uint8), bands=["red", "green"])
    with pytest.raises(InputError, match="none of the images' bands microwave_1"):
        hf.SmartiesImageProcessor(NANO)(dn(1), bands=["microwave_1"])
    three, two = (dataset(tmp_path, dn(n), f"{n}.tif", False, descriptions=("B02", "B03", "B04")[:n]) for n in (3, 2))
    with pytest.raises(InputError, match="the images have different bands: blue_1, green_2 and blue_1, green_2, red_2"):
        hf.SmartiesImageProcessor(NANO)([three, two])


def test_rasters_and_arrays_without_names(tmp_path):
    processor = hf.SmartiesImageProcessor(NANO)
    with pytest.raises(InputError, match="no such file"):
        dataset(tmp_path, dn(5), descriptions=("a", "b", "c", "d", "e"))
        processor(tmp_path / "none.tif")
    with pytest.raises(InputError, match=r"its 5 bands carry no names that S2 knows.*give bands= with 5 names"):
        processor(tmp_path / "image.tif")
    with pytest.raises(InputError, match=r"\(5, 64, 64\), expected \(..., 12 bands"):
        processor(named(dn(5), "abcde"))
    with pytest.raises(InputError, match=r"\(5, 64, 64\), expected \(..., 2 bands.*named are red_2, green_2"):
        processor(named(dn(5), range(5)), bands=["B4", "B3"])
    with pytest.raises(InputError, match="got an xarray Dataset, expected a DataArray"):
        processor(named(dn(5), "abcde").to_dataset(name="x"))
    with pytest.raises(InputError, match="has the dimensions a, y, x, expected band, y and x"):
        processor(named(dn(5), "abcde").rename(band="a"))


@pytest.mark.parametrize(
    "data, said, message",
    [
        ({"s3": 0}, {}, "unknown input 's3'. Known: aerial"),
        ({"spot": dn(3).astype(np.uint8)}, {}, "no statistics of spot were published.*with statistics="),
        ({"aerial": dn(3).astype(np.uint8)}, {}, r"aerial: the image is \(3, 64, 64\), expected \(..., 4 bands"),
        ({"aerial": dn(4).astype(np.uint8)}, {"bands": {"aerial": ["R", "G", "B", "X"]}}, "aerial: unknown band 'X'"),
        ({"s2": dn(10)}, {}, r"s2 is \(10, 64, 64\), expected \(T, bands, H, W\) or \(B, T, bands, H, W\)"),
        ({"s2": dn(20).reshape(2, 10, 64, 64), "s2_dates": ["x", "y"]}, {}, "'x' is no date"),
        ([], {}, "the list is empty"),
        ([{"aerial": dn(4, 20).astype(np.uint8)}, {"aerial": dn(4, 30).astype(np.uint8)}], {}, "in one sample and"),
        ([{"aerial": dn(4).astype(np.uint8)}, {}], {}, "the samples have different inputs"),
    ],
)  # fmt: skip
def test_what_does_not_fit_anysat(data, said, message):
    with pytest.raises(InputError, match=message):
        hf.AnySatImageProcessor("anysat_nano")(data, **said)


def test_what_does_not_fit_multimae():
    processor = hf.MultiMaeEoImageProcessor()
    for data, message in (
        ({"s3": 0}, "unknown raster or domain 's3'"),
        ({"s2": dn(11)}, r"s2: the image is \(11, 64, 64\), expected \(..., 12 bands"),
        ({"s2": dn(12), "dem": np.full((1, 64, 64), -9999.0)}, "nodata="),
        ({"s2": dn(12).astype(np.uint8)}, "8-bit|uint8|expected digital numbers"),
        (dn(12), "takes a dict of inputs by name"),
    ):
        with pytest.raises(InputError, match=message):
            processor(data)
    assert processor({"dem": np.full((1, 64, 64), -9999.0)}, nodata={"dem": -9999})["depth"].shape == (1, 1, 56, 56)


@pytest.mark.parametrize(
    "kind, facts, message",
    [
        (hf.SmartiesImageProcessor, {"name": "mars_base_rgb"}, "SmartiesImageProcessor is for smarties_vit_base"),
        (hf.SmartiesImageProcessor, {"name": "smarties"}, "unknown model 'smarties'"),
        (hf.SmartiesImageProcessor, {"bands": ["B99"]}, "B99"),
        (hf.SmartiesImageProcessor, {"bands": ["B4", "-"]}, "unknown band '-'"),
        (hf.SmartiesImageProcessor, {"sensor": "S2", "bands": ["microwave_1"]}, "have no microwave_1"),
        (hf.SmartiesImageProcessor, {"sensor": "MODIS"}, "none for MODIS"),
        (hf.SmartiesImageProcessor, {"statistics": {"S2": {"mean": [1]}}}, "statistics: sensor"),
        (hf.AnySatImageProcessor, {"preset": "TreeSat"}, "unknown preset"),
        (hf.AnySatImageProcessor, {"bands": {"areal": ["R"]}}, "unknown input 'areal'"),
        (hf.MultiMaeEoImageProcessor, {"sensor": "S1"}, r"expected S2 \(L2A\) or S2-L1C"),
    ],
)
def test_facts_that_do_not_fit(kind, facts, message):
    with pytest.raises(InputError, match=message):
        kind(**facts)


def test_what_reads_rasters_needs_rasterio(monkeypatch):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(MissingExtra, match=r"eo-zoo\[geo\]"):
        hf.SmartiesImageProcessor(NANO)("image.tif")


def test_warnings_come_once_a_kind(caplog):
    processor = hf.SmartiesImageProcessor(NANO)
    with caplog.at_level(logging.WARNING, "eo_zoo"):
        for seed in range(3):
            processor(dn(seed=seed) // 20 + 20)
    assert caplog.text.count("median values too low") == 1
    caplog.clear()
    hf.MultiMaeEoImageProcessor(sensor="S2-L1C")({"s2": eurosat()})
    assert "is B8A last?" in caplog.text
