from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from eo_zoo import create_model, create_transform, registry
from eo_zoo.errors import DownloadError, InputError
from eo_zoo.geo import open_scene
from eo_zoo.geo.predict import predict_raster
from eo_zoo.weights import RECORDS
from tests.geo import rasters
from tests.geo.fakes import BANDS, noise
from tests.geo.tuned import CLASSES, SIZE, FakeTuned, X, Y, logits, raster, read, run
from tests.geo.tuned import records as _records  # noqa: F401  a fixture

# ---- one image ----


def test_an_image_gets_the_class_with_the_highest_score(tmp_path: Path) -> None:
    values = noise(SIZE, SIZE)
    found = run(raster(tmp_path / "a.tif", values))
    expected = logits(values).softmax(0)
    assert found.scores is not None and list(found.scores) == [CLASSES[i] for i in expected.argsort(descending=True)]
    assert [found.scores[name] for name in CLASSES] == pytest.approx(expected.tolist(), abs=1e-5)
    assert sum(found.scores.values()) == pytest.approx(1, abs=1e-5)
    assert found.predicted == (CLASSES[int(expected.argmax())],)
    assert (found.path, found.shape, found.shares, found.nodata) == (None, None, None, 0)
    assert found.transform[:6] == (10, 0, X, 0, -10, Y) and found.model == "fake_net.scene"


@pytest.mark.parametrize(("threshold", "count"), [(0.0, 3), (None, None), (1.0, 0)])
def test_labels_are_scored_each_by_itself(tmp_path: Path, threshold: float | None, count: int | None) -> None:
    values = noise(30, 20)
    path = raster(tmp_path / "a.tif", values)
    found = run(path, kind="multi-label", threshold=threshold)
    expected = logits(values, kind="multi-label").sigmoid()
    assert found.scores is not None
    assert [found.scores[name] for name in CLASSES] == pytest.approx(expected.tolist(), abs=1e-5)
    least = 0.5 if threshold is None else threshold
    assert set(found.predicted) == {name for name, score in zip(CLASSES, expected, strict=True) if score >= least}
    assert count is None or len(found.predicted) == count
    for name, score in found.scores.items():
        assert name in run(path, kind="multi-label", threshold=score).predicted


def test_nodata_is_zero_after_normalisation_and_before_resizing(tmp_path: Path) -> None:
    values = noise(SIZE, SIZE).round() + 1
    valid = np.ones(values.shape, bool)
    valid[1, 4:9, 2:11] = False  # of one band, as a shift of all classes alike would not show
    warned: list[str] = []
    results = []
    for fill in (0, 60000):
        path = raster(tmp_path / f"{fill}.tif", np.where(valid, values, fill).astype(np.uint16), nodata=fill)
        results.append(run(path, report=lambda kind, text: warned.append(text)))
    assert results[0].scores == results[1].scores and results[0].nodata == pytest.approx(15 / 256)
    expected = logits(values, valid).softmax(0)
    assert [results[0].scores[name] for name in CLASSES] == pytest.approx(expected.tolist(), abs=1e-5)  # type: ignore[index]
    assert not any("nodata, which the model" in text for text in warned)
    valid[:, 3:] = False
    path = raster(tmp_path / "most.tif", np.where(valid, values, 0).astype(np.uint16), nodata=0)
    assert any("81% of the image's values are nodata" in text for text in run(path).warnings)


def test_an_image_of_nodata_is_an_error(tmp_path: Path) -> None:
    path = raster(tmp_path / "a.tif", np.zeros((3, SIZE, SIZE), np.uint16), nodata=0)
    with pytest.raises(InputError, match="all nodata: there is nothing to classify"):
        run(path, tmp_path / "o.json")
    assert not (tmp_path / "o.json").exists()


def test_json_says_what_the_answer_rests_on(tmp_path: Path) -> None:
    path = raster(tmp_path / "a.tif", noise(SIZE, SIZE))
    found = run(path, tmp_path / "o.json", "multi-label", threshold=0.25)
    content = json.loads((tmp_path / "o.json").read_text())
    assert content["scores"] == found.scores and content["predicted"] == list(found.predicted)
    expected = {
        "model": "fake_net.multi-label", "weights": f"fake_net.multi-label sha256 {'ab' * 32} verified",
        "task": "multi-label", "data_set": "FakeSet", "method": "fine-tuned", "metric": "accuracy",
        "paper_result": 98.5, "classes": list(CLASSES), "threshold": "0.25", "nodata": 0.0, "source": "a.tif",
    }  # fmt: skip
    assert {name: content[name] for name in expected} == expected
    assert any("tuned on FakeSet" in text for text in content["notes"]) and content["warnings"] == list(found.warnings)
    told = json.loads(json.dumps(found.to_dict()))
    assert told["scores"] == found.scores and told["paper_result"] == 98.5 and told["path"].endswith("o.json")
    again = run(path, tmp_path / "p.json", "multi-label", threshold=0.25)
    assert (tmp_path / "p.json").read_bytes() == (tmp_path / "o.json").read_bytes() and again.scores == found.scores


def test_summary_has_the_highest_classes(tmp_path: Path) -> None:
    found = run(raster(tmp_path / "a.tif", noise(SIZE, SIZE)))
    assert found.scores is not None
    first, second, *rest = found.summary(2).splitlines()
    names = list(found.scores)
    assert first.startswith(f"* {names[0]}") and second.startswith(f"  {names[1]}")
    assert first.endswith(f"{found.scores[names[0]]:.3f}") and len(first) == len(second)
    assert names[2] not in "".join(rest) and f"image: {names[0]}" in rest[-1]


def test_a_scene_taken_as_one_image_is_warned_about(tmp_path: Path) -> None:
    small = run(raster(tmp_path / "a.tif", noise(SIZE, 2 * SIZE)))
    large = run(raster(tmp_path / "b.tif", noise(SIZE, 2 * SIZE + 1)))
    assert not any("OUT.tif" in text for text in small.warnings)
    assert any("33 x 16 pixels, images of FakeSet 16 x 16" in text for text in large.warnings)
    with pytest.raises(InputError, match="2049 x 4 pixels, more than the 2048"):
        run(raster(tmp_path / "c.tif", noise(4, 2049)))


def test_missing_bands_are_warned_about(tmp_path: Path) -> None:
    path = raster(tmp_path / "a.tif", noise(SIZE, SIZE))
    record = RECORDS["fake_net.scene"]
    RECORDS[record.name] = replace(record, accepts=(*BANDS, "near_infrared_1"))
    try:
        found = run(path)
    finally:
        RECORDS[record.name] = record
    assert any("near_infrared_1 too, which the input lacks" in text for text in found.warnings)


def test_lower_precision_is_the_models_alone(tmp_path: Path) -> None:
    path, model = raster(tmp_path / "a.tif", noise(SIZE, SIZE)), FakeTuned()
    exact, near = run(path), run(path, model=model, dtype="bfloat16")
    assert model.autocast and near.scores == exact.scores  # the fake has nothing that autocast makes less precise


def test_undefined_scores_are_an_error(tmp_path: Path) -> None:
    model = FakeTuned()
    with torch.no_grad():
        model.scale.fill_(torch.inf)
    with pytest.raises(InputError, match="infinite or undefined"):
        run(raster(tmp_path / "a.tif", noise(SIZE, SIZE)), model=model)


# ---- the public call ----


@pytest.fixture
def by_name(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What models are made with by name; they are fakes."""
    made: list[dict[str, Any]] = []

    def create_model(name: str, **options: Any) -> FakeTuned:
        made.append({"name": name, **options})
        return FakeTuned(name.partition(".")[2])

    monkeypatch.setattr(registry, "create_model", create_model)
    return made


def test_a_name_brings_its_weights(tmp_path: Path, by_name: list[dict[str, Any]]) -> None:
    path = raster(tmp_path / "a.tif", noise(SIZE, SIZE))
    found = run(path, model="fake_net.scene", weights="w.pth", cache_dir="c")
    assert by_name == [{"name": "fake_net.scene", "weights": "w.pth", "cache_dir": "c", "bands": BANDS}]
    assert found.scores == run(path).scores


@pytest.mark.parametrize(
    ("kind", "out", "options", "words"),
    [
        ("scene", "o.png", {}, r"out is o.png, expected a name that ends in .json or .tif or .tiff"),
        ("scene", "no/o.tif", {}, "does not exist; create it first"),
        ("scene", "old.tif", {}, "exists; choose another name, or pass --overwrite"),
        ("scene", "a.tif", {"overwrite": True}, "is the input itself"),
        ("scene", "o.tif", {"scores": "s.json"}, r"scores is s.json, expected a name that ends in .tif"),
        ("scene", "o.tif", {"scores": "old.tif"}, "scores: .*old.tif exists"),
        ("scene", "o.tif", {"scores": "o.tif"}, "scores: .*o.tif is out itself"),
        ("scene", "o.tif", {"preview": "p.jpg"}, r"preview is p.jpg, expected a name that ends in .png"),
        ("scene", "o.tif", {"window": 0}, "window is 0, expected pixels, 1 or more"),
        ("scene", "o.tif", {"window": 41}, "a window of 41 pixels does not fit into the scene, 50 x 40"),
        ("scene", "o.tif", {"stride": 17}, "stride is 17, expected 1 to 16, the window"),
        ("segmentation", "o.tif", {"stride": 0}, "stride is 0, expected 1 to 16"),
        ("scene", "o.tif", {"min_valid": 1.5}, "min_valid is 1.5, expected a share from 0 to 1"),
        ("scene", "o.tif", {"batch_size": 0}, "batch_size is 0"),
        ("scene", None, {"dtype": "int8"}, "dtype is 'int8'"),
        ("scene", None, {"device": "gpu"}, "device 'gpu' is not there"),
        ("multi-label", None, {"threshold": 1.5}, "threshold is 1.5, expected a score from 0 to 1"),
        ("multi-label", None, {"threshold": float("nan")}, "threshold is nan"),
        ("scene", None, {"threshold": 0.5}, "threshold: only for multi-label weight sets"),
        ("scene", None, {"mix": "plain"}, "mix: only for weight sets of two sensors together"),
        ("scene", "o.json", {"window": 8, "scores": "s.tif"}, "window, scores: only for maps: give out"),
        ("scene", None, {"stride": 8, "min_valid": 0.5}, "stride, min_valid: only for maps"),
        ("segmentation", None, {}, "fake_net.segmentation gives every pixel a class: give out, the path of a .tif"),
        ("segmentation", "o.json", {}, "gives every pixel a class"),
        ("scene", None, {"bands": ["B02"]}, "has 3 bands, but --bands names 1"),
        ("scene", None, {"bands": ["B08", "B8A", "B12"]}, "takes none of the bands found"),
        ("together", None, {}, "fake_net.together takes S2, S1 together: give one input of each"),
        (
            "demo",
            None,
            {"model": "smarties_vit_nano.demo"},
            "smarties_vit_nano.demo gives features, not classes .*eurosat",
        ),
        ("demo", None, {"model": nn.Linear(1, 1)}, "Linear gives features, not classes"),
        ("scene", None, {"model": FakeTuned(), "weights": "w.pth"}, "a module was given"),
    ],
)
def test_what_does_not_fit_is_one_sentence_before_any_weights(
    tmp_path: Path, by_name: list[dict[str, Any]], kind: str, out: str | None, options: dict[str, Any], words: str
) -> None:
    path = raster(tmp_path / "a.tif", noise(40, 50))
    (tmp_path / "old.tif").touch()
    before = sorted(tmp_path.iterdir())
    paths = {name: tmp_path / options[name] for name in ("scores", "preview") if name in options}
    with pytest.raises(InputError, match=words) as caught:
        run(path, out and tmp_path / out, **{"model": f"fake_net.{kind}", **options, **paths})  # type: ignore[arg-type]
    assert sorted(tmp_path.iterdir()) == before and not by_name and "\n" not in str(caught.value)


def test_one_input_is_given_alone(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"fake_net.scene takes one input \(S2\), not several"):
        run({"s2": raster(tmp_path / "a.tif", noise(SIZE, SIZE))})


def test_a_model_with_another_number_of_classes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the model gives 2 values, but the task has 3"):
        run(raster(tmp_path / "a.tif", noise(SIZE, SIZE)), model=FakeTuned(classes=2))


def test_a_module_made_for_other_bands(tmp_path: Path) -> None:
    model = FakeTuned()
    model.bands = BANDS[::-1]  # type: ignore[assignment]
    with pytest.raises(InputError, match="made for the bands red_2, green_2, blue_1"):
        run(raster(tmp_path / "a.tif", noise(SIZE, SIZE)), model=model)


def test_a_stac_item_as_dict_is_one_input(tmp_path: Path, by_name: list[dict[str, Any]]) -> None:
    rasters.s2_folder(tmp_path / "bands", size=480)
    item = rasters.stac_item(
        tmp_path / "item.json", {b: str(tmp_path / f"bands/{b}.tif") for b in ("B02", "B03", "B04")}
    )
    found = run(json.loads(item.read_text()), model="fake_net.scene", units=None)
    assert found.scores == run(item, units=None).scores


def test_progress_goes_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(raster(tmp_path / "a.tif", noise(32, 48)), tmp_path / "o.tif", progress=True)
    shown = capsys.readouterr()
    assert "predicting" in shown.err and "6/6" in shown.err and not shown.out


# ---- the models themselves ----


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "side"), [("smarties_vit_base.eurosat_finetune", 64), ("smarties_vit_base.bigearthnets2_finetune", 120)]
)
def test_a_tuned_tag_answers_as_its_transform_and_model_do(tmp_path: Path, name: str, side: int) -> None:
    """Forged weights of full size, by the public door, against the two parts by hand."""
    folder = rasters.s2_folder(tmp_path / "s2", size=1200)
    model = create_model(name, pretrained=False)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    box = (X, Y - 10 * side, X + 10 * side, Y)
    found = predict_raster(folder, name, weights=tmp_path / "w.pth", bbox=box)
    mapped = predict_raster(folder, name, tmp_path / "o.tif", weights=tmp_path / "w.pth", scores=tmp_path / "s.tif")
    record = RECORDS[name]
    facts = dict(default_sensor=record.sensors[0], accepts=record.accepts, target_units="dn", bbox=box)
    with open_scene(folder, **facts) as scene:  # type: ignore[arg-type]
        values, valid = scene.read(0, 0, side, side)
        bands = scene.bands
    assert valid.all() and record.task
    with torch.no_grad():
        made = model(create_transform(name, bands=bands)(values)[None], bands=bands)[0]
    scores = made.softmax(0) if record.task.kind == "scene" else made.sigmoid()
    assert found.scores is not None
    assert [found.scores[label] for label in record.task.classes] == pytest.approx(scores.tolist(), abs=1e-4)
    np.testing.assert_allclose(read(tmp_path / "s.tif")[:, 0, 0], scores, atol=1e-4)
    assert mapped.shape is not None and mapped.shape[1:] == (-(-120 // side),) * 2


@pytest.mark.parametrize("sensor", [None, "S2-L1C"])
def test_an_assumed_processing_level_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sensor: str) -> None:
    """EuroSAT is L1C; bands of the same names with L2A's values would give other classes in silence."""
    monkeypatch.setenv("EO_ZOO_OFFLINE", "1")
    folder, told = rasters.s2_folder(tmp_path / "scene"), []
    name = "smarties_vit_base.eurosat_finetune"
    with pytest.raises(DownloadError, match="offline"):
        predict_raster(folder, name, sensor=sensor, report=lambda *what: told.append(what))
    warned = [text for kind, text in told if kind == "warning" and "taken as Sentinel-2 L1C" in text]
    assert len(warned) == (sensor is None)
