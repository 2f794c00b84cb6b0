from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import torch
from PIL import Image
from torch import Tensor

from eo_zoo import create_model, create_transform
from eo_zoo.errors import InputError
from eo_zoo.geo import open_scene
from eo_zoo.geo.classify import Prediction
from eo_zoo.geo.predict import predict_raster
from eo_zoo.sensors import get_sensor, get_statistics
from tests.geo import rasters
from tests.geo.tuned import INPUT, FakeTuned, X, Y, read
from tests.geo.tuned import records as _records  # noqa: F401  a fixture


@pytest.fixture
def both(tmp_path: Path) -> dict[str, Path]:
    """Sentinel-2 over 480 x 480 m, and Sentinel-1 on pixels of 20 m that begin 120 m further east and south."""
    s2 = rasters.s2_folder(tmp_path / "s2", size=480)
    radar = np.stack([-5 - rasters.smooth(seed, 24, 24, 0, 10).astype(np.float32) for seed in (20, 21)])
    s1 = rasters.write_raster(
        tmp_path / "s1.tif", radar, pixel=20, origin=(X + 120, Y - 120), descriptions=["VV", "VH"], nodata=-99
    )
    return {"s2": s2, "s1": s1}


def together(sources: dict[str, Path], out: Path | None = None, **options: Any) -> tuple[Prediction, FakeTuned]:
    model = FakeTuned("together", bands=14)
    return predict_raster(sources, model, out, **options), model


def test_two_inputs_lie_on_the_first_ones_pixels(tmp_path: Path, both: dict[str, Path]) -> None:
    notes: list[str] = []
    found, model = together(both, tmp_path / "o.tif", window=12, report=lambda _, text: notes.append(text))
    with rasterio.open(tmp_path / "o.tif") as file:
        assert file.transform[:6] == (120, 0, X + 120, 0, -120, Y - 120) and file.shape == (3, 3)
        tags = file.tags()
    assert found.shape == (3, 3, 3) and {shape[1:] for shape, _ in model.calls} == {(14, INPUT, INPUT)}
    assert json.loads(tags["BANDS"]) == [*get_sensor("S2").band_names, *get_sensor("S1").band_names]
    assert (tags["SENSOR"], tags["UNITS"], tags["SOURCE"]) == ("S2, S1", "dn, db", "s2: s2, s1: s1.tif")
    assert json.loads(tags["STATISTICS"])["p1"][12:] == list(get_statistics("smarties/S1").p1 or ())
    assert any("only the common part" in text for text in notes) and any("S1: resampled" in text for text in notes)
    # Cut to the common part beforehand, nothing else comes out.
    box = (X + 120, Y - 480, X + 480, Y - 120)
    for name, options in {"part": {"bbox": box}, "whole": {}}.items():
        together(both, tmp_path / "p.tif", window=12, scores=tmp_path / f"{name}.tif", overwrite=True, **options)
    np.testing.assert_array_equal(read(tmp_path / "part.tif"), read(tmp_path / "whole.tif"))


def test_the_first_input_gives_the_pixels(tmp_path: Path, both: dict[str, Path]) -> None:
    together({"s1": both["s1"], "s2": both["s2"]}, tmp_path / "a.tif", window=6, preview=tmp_path / "p.png")
    together(both, tmp_path / "b.tif", window=6, resolution=20)
    for name, first in (("a", "microwave_1"), ("b", "aerosol")):
        with rasterio.open(tmp_path / f"{name}.tif") as file:
            assert file.transform[:6] == (120, 0, X + 120, 0, -120, Y - 120) and file.shape == (3, 3)
            assert json.loads(file.tags()["BANDS"])[0] == first
    page = np.asarray(Image.open(tmp_path / "p.png")).astype(int)
    assert np.ptp(page[:500, :500], axis=2).max() > 20  # true colour, though the radar comes first


def test_both_are_normalised_and_resized_each_by_its_own(both: dict[str, Path]) -> None:
    """Against the pixels as other code reads them."""
    seen: list[Tensor] = []
    model = FakeTuned("together", bands=14)
    model.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].clone()))
    predict_raster(both, model, bbox=(X + 120, Y - 480, X + 480, Y - 120), mix="plain")
    with rasterio.open(both["s1"]) as file:
        radar = file.read()[:, :18, :18]
    with rasterio.open(both["s2"] / "B08.tif") as file:
        near = file.read(1)[12:48, 12:48].astype(np.float32)
    # Bilinear from 20 to 10 m: a quarter of a pixel to either side, the edge repeated.
    grown = np.pad(radar, ((0, 0), (1, 1), (1, 1)), mode="edge")
    with rasterio.open(both["s1"]) as file:
        grown[:, 1:, 1:] = file.read()[:, :19, :19]
    rows = np.stack([0.25 * grown[:, :-2] + 0.75 * grown[:, 1:-1], 0.75 * grown[:, 1:-1] + 0.25 * grown[:, 2:]], 2)
    rows = rows.reshape(2, 36, 20)
    cols = np.stack(
        [0.25 * rows[:, :, :-2] + 0.75 * rows[:, :, 1:-1], 0.75 * rows[:, :, 1:-1] + 0.25 * rows[:, :, 2:]], 3
    )
    expected = create_transform("fake_net.together", "S1", size=INPUT)(cols.reshape(2, 36, 36))
    np.testing.assert_allclose(seen[0][0, 12:], expected, atol=1e-4)
    expected = create_transform("fake_net.together", "S2", bands=["B08"], size=INPUT)(near[None])
    np.testing.assert_allclose(seen[0][0, 7], expected[0], atol=1e-4)


def test_the_random_mix_is_seeded(both: dict[str, Path]) -> None:
    found = {seed: together(both, seed=seed)[0].scores for seed in (None, 0, 1)}
    assert found[None] == found[0] != found[1]
    _, model = together(both, mix="plain")
    assert model.calls[0][1] == {"mix": "plain"}
    _, model = together(both)
    assert model.calls[0][1]["mix"] == "random" and isinstance(model.calls[0][1]["generator"], torch.Generator)


def test_options_go_to_the_input_that_they_fit(both: dict[str, Path]) -> None:
    power = 10 ** (read(both["s1"]) / 10)
    path = rasters.write_raster(
        both["s1"].with_name("power.tif"), power, pixel=20, origin=(X + 120, Y - 120), descriptions=["VV", "VH"]
    )
    expected, _ = together(both, seed=3)
    found, _ = together({**both, "s1": path}, seed=3, units="linear")
    # Power is resampled, and then is dB.
    assert found.scores == pytest.approx(expected.scores, abs=1e-3)
    assert together({**both, "s1": path}, seed=3)[0].scores != pytest.approx(expected.scores, abs=1e-2)
    moved, _ = together(both, seed=3, boa_offset=-200)
    assert moved.scores != expected.scores and any("--boa-offset -200" in text for text in moved.notes)


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({"s1": None}, {}, "got inputs of s2; fake_net.together takes one of each of S2, S1"),
        ({"l8": "x"}, {}, "got inputs of s2, s1, l8"),
        ({"S-2": "x"}, {}, "got inputs of s2, s1, S-2"),
        ({"s9": "x"}, {}, "s9"),
        ({"s1": "one"}, {}, "the input of S1 has no microwave_2: the model takes all its bands"),
        ({"s1": "crs"}, {}, "the inputs have different CRS: S2 EPSG:32632, S1 EPSG:32633"),
        ({"s1": "far"}, {}, "the inputs cover no common area: S2"),
        ({}, {"bands": ["VV"]}, "bands cannot be told for two inputs"),
        ({}, {"sensor": "S2", "nodata": 0.0}, "sensor, nodata cannot be told for two inputs"),
        ({}, {"units": "uint8"}, "units 'uint8' fit none of the inputs: expected for S2 dn or reflectance, S1 db or"),
        ({}, {"mix": "half"}, "mix is 'half', expected random or plain"),
        ({}, {"mix": "plain", "seed": 1}, "seed is for the random mix"),
    ],
)  # fmt: skip
def test_inputs_that_do_not_go_together(
    tmp_path: Path, both: dict[str, Path], change: dict[str, str | None], options: dict[str, Any], words: str
) -> None:
    values = read(both["s1"])
    place: dict[str, Any] = dict(pixel=20, origin=(X, Y), descriptions=["VV", "VH"])
    rasters.write_raster(tmp_path / "one.tif", values[:1], **{**place, "descriptions": ["VV"]})
    rasters.write_raster(tmp_path / "crs.tif", values, **{**place, "crs": "EPSG:32633"})
    rasters.write_raster(tmp_path / "far.tif", values, **{**place, "origin": (X + 9000, Y)})
    named = {name: tmp_path / f"{source}.tif" for name, source in change.items() if source}
    sources = {name: source for name, source in {**both, **named}.items() if change.get(name, "") is not None}
    with pytest.raises(InputError, match=words):
        together(sources, **options)


@pytest.mark.slow
def test_the_tuned_tag_answers_as_its_transform_and_model_do(tmp_path: Path, both: dict[str, Path]) -> None:
    """Forged weights of full size, by the public door, against the parts by hand."""
    name = "smarties_vit_base.bigearthnetmm_linprobe"
    model = create_model(name, pretrained=False)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    box = (X + 120, Y - 480, X + 480, Y - 120)
    parts = []
    for sensor, units in (("S2", "dn"), ("S1", "db")):
        accepts = get_sensor(sensor).band_names
        # Sentinel-1 at 10 m, as the pixels that it is resampled to
        with open_scene(
            both[sensor.lower()], default_sensor=sensor, accepts=accepts, target_units=units, bbox=box, resolution=10
        ) as scene:
            parts.append(scene.read(0, 0, 36, 36)[0])
    x = create_transform(name)(np.concatenate(parts))[None]
    for mix, given in (("plain", {}), ("random", {"generator": torch.Generator().manual_seed(5)})):
        options = {} if mix == "plain" else {"seed": 5}
        found = predict_raster(both, name, weights=tmp_path / "w.pth", bbox=box, mix=mix, **options)  # type: ignore[arg-type]
        with torch.no_grad():
            scores = model(x, mix=mix, **given)[0].sigmoid()
        assert found.scores is not None
        assert [found.scores[label] for label in found.task.classes] == pytest.approx(scores.tolist(), abs=1e-4)


@pytest.mark.parametrize("shift", [(0, -480), (0, -9000), (9000, 0), (480, 0)])
def test_areas_that_only_touch_have_nothing_in_common(tmp_path, both, shift):
    place = dict(pixel=20, descriptions=["VV", "VH"], origin=(X + shift[0], Y + shift[1]))
    rasters.write_raster(tmp_path / "far.tif", read(both["s1"]), **place)
    with pytest.raises(InputError, match="cover no common area"):
        together({**both, "s1": tmp_path / "far.tif"})


def test_another_crs_is_refused_with_the_way_out(tmp_path, both):
    place = dict(pixel=20, descriptions=["VV", "VH"], origin=(X, Y), crs="EPSG:32633")
    rasters.write_raster(tmp_path / "crs.tif", read(both["s1"]), **place)
    with pytest.raises(InputError, match="warp them to one with gdalwarp"):
        together({**both, "s1": tmp_path / "crs.tif"})


def test_it_is_told_which_input_was_resampled(both):
    notes: list[str] = []
    together({**both}, resolution=20, report=lambda _, text: notes.append(text))
    assert not any("resampled to the pixels of" in text for text in notes)
    together({"s1": both["s1"], "s2": both["s2"]}, report=lambda _, text: notes.append(text))
    assert any("S2: resampled to the pixels of S1" in text for text in notes)
