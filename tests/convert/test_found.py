"""Which model a checkpoint is of: by its tensors alone."""

from __future__ import annotations

import json

import pytest
import timm
import torch

import eo_zoo
from eo_zoo import hf
from eo_zoo.convert import convert
from eo_zoo.errors import InputError
from eo_zoo.identify import Source, identify
from eo_zoo.train.anysat import AnySatPretraining
from eo_zoo.train.mars import MarsPretraining
from eo_zoo.train.multimae import pretraining_model
from eo_zoo.train.smarties import SmartiesMaskedAutoencoder
from eo_zoo.weights import sharded
from tests.convert.originals import SMALL, model_of, public_of, said, state_of
from tests.hf.cases import CASES
from tests.models import test_smarties_tags
from tests.models.families import FAMILIES


def converted(tensors, folder, **kwargs):
    """What is told of them, and the model that timm reads."""
    torch.save(tensors, folder / "checkpoint.pth")
    made = convert(folder / "checkpoint.pth", folder / "made", **kwargs).facts
    return made, timm.create_model(f"local-dir:{folder / 'made'}", pretrained=True).eval()


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * ("mars_large" in name)) for name in eo_zoo.list_models()],
)
def test_registered_sizes(name, tmp_path):
    """By names and shapes alone, without a file."""
    with torch.device("meta"):
        model = timm.create_model(name)
        state = model.state_dict()
    layout = next(one for one in type(model).layouts(state) if one.name == "encoder")
    values = {key: torch.ones((), dtype=tensor.dtype).expand(tensor.shape) for key, tensor in state.items()}
    found = identify(Source(tmp_path, (), layout.back(values).undo(values)))
    assert found.architecture == name and not found.left_out and found.tensors.keys() == state.keys()
    assert (found.model.num_classes, dict(found.added)) == (0, {})


@pytest.mark.parametrize("family", SMALL)
def test_a_size_of_ones_own_computes_the_same(family, tmp_path):
    model = model_of(family)
    made, again = converted(public_of(family), tmp_path, arguments=said(family))
    assert made["name"] == SMALL[family][0]
    row = FAMILIES[family]
    x, call = row.inputs(model, eo_zoo.registry.get_record(SMALL[family][0]).sensors[0], 2)
    with torch.no_grad():
        assert torch.equal(again(x, **call), model(x, **call))


def test_inputs_of_anysat_and_domains_of_multimae(tmp_path):
    made, model = converted(model_of("anysat", inputs=["s2", "spot"]).state_dict(), tmp_path)
    assert model.inputs == ("spot", "s2") and set(made["arguments"]["inputs"]) == {"spot", "s2"}
    (tmp_path / "other").mkdir()
    tensors = model_of("multimae", in_domains=["depth", "rgb"]).state_dict()
    _, model = converted(tensors, tmp_path / "other", arguments=dict(num_heads=2))
    assert set(model.in_domains) == {"rgb", "depth"} and model.blocks[0].attn.num_heads == 2


def test_fewer_inputs_may_be_asked_for(tmp_path):
    made, model = converted(public_of("multimae"), tmp_path, arguments=dict(num_heads=2, in_domains=["rgb"]))
    assert model.in_domains == ("rgb",)
    assert made["left_out"] and {row["official"].split(".")[0] for row in made["left_out"]} == {"input_adapters"}
    assert all("rgb" not in row["official"] and row["why"] for row in made["left_out"])


def test_smarties_at_another_image_size_and_with_average_pooling(tmp_path):
    state = model_of("smarties", img_size=48, global_pool="avg").state_dict()
    _, model = converted(state, tmp_path, arguments=dict(num_heads=2))
    assert model.patch_embed.img_size == (48, 48) and model.global_pool == "avg" and "fc_norm.weight" in state
    assert torch.equal(model.pos_embed, state["pos_embed"])


@pytest.mark.parametrize(
    ("tag", "kind"),
    [("eurosat_finetune", "linear"), ("eurosat_linprobe", "probe"), ("dfc2020_linprobe", "segmentation")],
)
@pytest.mark.parametrize("tagged", [True, False])
def test_heads_of_smarties(tag, kind, tagged, tmp_path):
    """Its kind and classes are told by tensors; whose classes they are, by --model only."""
    tensors = test_smarties_tags.official(tag)
    classes = test_smarties_tags.SETS[tag][2]
    arguments = dict(num_heads=4)
    model = f"smarties_vit_base.{tag}" if tagged else None
    with torch.no_grad():
        made, again = converted(tensors, tmp_path, arguments=arguments, model=model)
    assert (again.head_kind, again.num_classes) == (kind, classes)
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    record = eo_zoo.registry.get_record(f"smarties_vit_base.{tag}")
    assert (config.get("label_names") == list(record.task.classes)) == tagged
    assert config["num_classes"] == classes and made["name"] == "smarties_vit_base"
    assert config["architectures"] == [
        "SmartiesForSemanticSegmentation" if kind == "segmentation" else "SmartiesForImageClassification"
    ]


def test_bands_and_sensors_that_no_tensor_tells(tmp_path):
    made, model = converted(public_of("smarties"), tmp_path, arguments=dict(num_heads=2, sensor="S1"))
    assert model.bands == ("microwave_1", "microwave_2") and made["arguments"]["sensor"] == "S1"


# --------------------------------------------------------------------------------- what our own code leaves


SMALL_MARS = SMALL["mars"][1]
TRAINED = {
    "smarties": (
        lambda: SmartiesMaskedAutoencoder(model_of("smarties"), decoder_dim=32, decoder_depth=1, decoder_heads=2),
        "encoder.", None, {"the decoder of pretraining"},
    ),
    "mars": (
        lambda: MarsPretraining(timm.create_model("mars_base_rgb", **SMALL_MARS), model_of("mars"), contrast="clip"),
        "encoder_sar.encoder.", "encoder_sar",
        {"a decoder of pretraining", "a mask token, for pretraining only", "the meta-attention of pretraining",
         "the temperature of pretraining's loss", "the RGB encoder, which --part encoder_rgb takes"},
    ),
    "anysat": (lambda: AnySatPretraining(model_of("anysat")), "teacher.", "teacher", {"the predictor of pretraining"}),
    "multimae": (
        lambda: pretraining_model(
            "multimae_eo_base", False, **SMALL["multimae"][1], decoder_dim=32, decoder_depth=1, decoder_heads=2
        ),
        "encoder.", None, set(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", TRAINED)
def test_pretraining_of_our_own(family, tmp_path):
    make, start, part, reasons = TRAINED[family]
    state = make().state_dict()
    made, model = converted({"model": state, "epoch": 1}, tmp_path, part=part, arguments=said(family))
    wanted = {name.removeprefix(start): tensor for name, tensor in state.items() if name.startswith(start)}
    if family == "mars":
        wanted.pop("mask_token", None)
    found = model.state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in found)
    told = [name for one in made["tensors"] for name in one["official"]] + [one["official"] for one in made["left_out"]]
    assert sorted(told) == sorted(state) and {one["why"] for one in made["left_out"]} >= reasons


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.family)
def test_what_transformers_saved(case, tmp_path):
    """Folders of every class; what they were built with is in them."""
    for kind, kwargs in ((case.features, {}), (case.classifier, dict(num_labels=3)), *case.others):
        model, folder = case.build(kind, **kwargs), tmp_path / kind.__name__
        model.save_pretrained(folder / "in")
        made = convert(folder / "in", folder / "out").facts
        module = getattr(model.model, "encoder", model.model)
        found = sharded.read(folder / "out")
        assert found.keys() == module.state_dict().keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in module.state_dict().items())
        told = [name for one in made["tensors"] for name in one["official"]]
        left_out = [one["official"] for one in made["left_out"]]
        assert sorted(told + left_out) == sorted(sharded.read(folder / "in"))
        assert bool(left_out) == (kind in (hf.SmartiesForPreTraining, hf.MultiMaeEoForPreTraining))


def test_timms_swin_has_the_names_of_mars(tmp_path):
    """So which of both it is has to be said; the public code's names, or a folder of ours, say it."""
    torch.save(state_of("mars"), tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"names that timm's SwinV2 and MaRS share: .* \(--family mars\)"):
        convert(tmp_path / "x.pth", None, arguments=said("mars"))
    assert (
        convert(tmp_path / "x.pth", tmp_path / "made", family="mars", arguments=said("mars")).facts["layout"]
        == "eo_zoo"
    )
    assert convert(tmp_path / "made", None).facts["name"] == "mars_base_sar"


def test_parts_have_to_be_chosen(tmp_path):
    torch.save(AnySatPretraining(model_of("anysat")).state_dict(), tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"holds student and teacher: choose one by part \(--part student\)"):
        convert(tmp_path / "x.pth", None)
    with pytest.raises(InputError, match="holds student and teacher, no encoder_rgb"):
        convert(tmp_path / "x.pth", None, part="encoder_rgb")
    torch.save(public_of("anysat"), tmp_path / "x.pth")
    with pytest.raises(InputError, match="holds encoder, no teacher"):
        convert(tmp_path / "x.pth", None, part="teacher")
    assert convert(tmp_path / "x.pth", None, part="encoder").facts["part"] == ""
