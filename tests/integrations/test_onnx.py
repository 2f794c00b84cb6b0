from __future__ import annotations

import json
import sys

import pytest
import timm
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

import eo_zoo
from eo_zoo import registry
from eo_zoo.errors import InputError, MissingExtra
from eo_zoo.integrations.onnx import _metadata, export
from tests.models.families import FAMILIES, anysat_inputs, images

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def run(path, given):
    session = onnxruntime.InferenceSession(path)
    data = given if isinstance(given, dict) else {"image": given}
    assert {one.name for one in session.get_inputs()} == set(data)
    [*names] = (one.name for one in session.get_outputs())
    assert names == (["output"] if len(names) == 1 else [f"output_{i}" for i in range(len(names))])
    return [torch.from_numpy(one) for one in session.run(None, {name: one.numpy() for name, one in data.items()})]


def metadata(path):
    return onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map


def check(model, sensor, inputs, path, **options):
    """Export, and run the file on other values than the example's."""
    x, kwargs = inputs(model, sensor, 2)
    assert export(model, x, path, **kwargs, **options) == path and [*path.parent.iterdir()] == [path]
    x = tree_map(lambda one: one.flip(0), x)
    with torch.no_grad():
        expected = tree_leaves(model(x, **kwargs, **options))
    torch.testing.assert_close(run(path, x), expected, atol=1e-3, rtol=1e-3)
    return metadata(path)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "anysat"])  # which takes long: see below
def test_every_family(family, tmp_path):
    row = FAMILIES[family]
    record = registry.get_record(row.smallest)
    torch.manual_seed(0)
    model = eo_zoo.create_model(row.smallest, pretrained=False, **row.small)
    facts = check(model, record.sensors[0], row.inputs, tmp_path / "model.onnx")
    assert facts["model"] == record.name and facts["weights"] == "random" and facts["licence"] == record.licence
    assert facts["units"] == registry.info(model)["units"]
    [*inputs] = json.loads(facts["inputs"]).values()
    assert all(one["sensor"] == record.sensors[0] and one["bands"] for one in inputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["anysat_base", "multimae_eo_base", "smarties_vit_base", "mars_base_sar"])
def test_full_size(name, tmp_path):
    row = FAMILIES[name.partition("_")[0]]
    model = eo_zoo.create_model(name, pretrained=False, **row.full)
    check(model, registry.get_record(name).sensors[0], row.inputs, tmp_path / "model.onnx")


def test_dense_maps_of_a_series_and_an_image(tmp_path):
    model = eo_zoo.create_model("anysat_nano", pretrained=False, inputs=["aerial", "s2"])
    call = dict(patch_size=20, output="dense", output_modality="aerial")

    def inputs(*_):
        return anysat_inputs(["aerial", "s2"], batch=1), {}

    facts = check(model, "S2", inputs, tmp_path / "model.onnx", **call)
    assert facts["model"] == "anysat_nano.unpublished" and facts["weights"] == "random" and facts["licence"] == "mit"
    assert facts["units"] == registry.info(model)["units"] and json.loads(facts["arguments"]) == call
    assert json.loads(facts["inputs"])["aerial"]["bands"] == list(eo_zoo.sensors.get_order("anysat/aerial"))


def test_several_outputs_and_the_bands_of_a_call(tmp_path):
    pyramid = timm.create_model("smarties_vit_nano", features_only=True, sensor="S1").eval()
    facts = check(pyramid, "S1", lambda model, *_: (images(model.model, "S1", 1), {}), tmp_path / "maps.onnx")
    assert json.loads(facts["inputs"])["image"] == {"sensor": "S1", "bands": ["microwave_1", "microwave_2"]}
    model = eo_zoo.create_model("smarties_vit_nano", sensor="S2-L1C", bands=["B02", "B03"])
    (tmp_path / "maps.onnx").unlink()
    x = images(model, "S1", 1)  # two channels
    facts = check(model, "S2", lambda *_: (x, {}), tmp_path / "model.onnx", bands=["B08", "B04"])
    assert json.loads(facts["inputs"])["image"] == {"sensor": "S2-L1C", "bands": ["near_infrared_1", "red_2"]}
    assert "verified" in facts["weights"] and json.loads(facts["statistics"])["S2"]["units"] == facts["units"]


def test_classes_are_those_of_a_published_head():
    small = dict(embed_dim=64, depth=1, num_heads=4)
    for classes, known in ((10, True), (3, False)):
        model = timm.create_model("smarties_vit_base.eurosat_finetune", num_classes=classes, **small)
        facts = _metadata(model, {"image": torch.zeros(1, 13, 224, 224)}, {})
        assert ("classes" in facts) == known
    assert registry.record_of(model).task.classes[9] == "SeaLake"


def test_what_does_not_fit_is_told_and_leaves_no_file(tmp_path):
    model = eo_zoo.create_model("smarties_vit_nano")
    x, path = torch.zeros(1, 12, 112, 112), tmp_path / "model.onnx"
    with pytest.raises(InputError, match="training mode"):
        export(timm.create_model("smarties_vit_nano"), x, path)
    with pytest.raises(InputError, match=r"float64, expected float32|float32 and torch.float64"):
        export(model, x.double(), path)
    with pytest.raises(InputError, match="12 bands"):
        export(model, x[:, :3], path)
    series = {"s2": torch.zeros(1, 1, 10, 6, 6), "s2_dates": [["2020-04-01"]]}
    with pytest.raises(InputError, match=r"s2_dates is list, expected a tensor: eo_zoo\.dates"):
        export(eo_zoo.create_model("anysat_nano", pretrained=False), series, path)
    assert not [*tmp_path.iterdir()]


def test_a_file_that_differs_is_not_kept(tmp_path):
    class Random(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    path = tmp_path / "model.onnx"
    path.write_text("what was there")
    with pytest.raises(RuntimeError, match=r"from the model's, expected at most 0\.001"):
        export(Random().eval(), torch.zeros(1, 3), path)
    assert [*tmp_path.iterdir()] == [path] and path.read_text() == "what was there"


def test_a_missing_package_is_told_with_the_pip_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match=r'pip install "eo-zoo\[onnx\]"'):
        export(nn.Identity().eval(), torch.zeros(1), tmp_path / "model.onnx")
