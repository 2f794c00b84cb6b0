from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import eo_zoo
from eo_zoo import registry
from tests.models.families import FAMILIES

peft = pytest.importorskip("peft")
BLOCKS = ["qkv", "proj", "fc1", "fc2"]  # what all transformers of timm call the linear layers of their blocks


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


def create(family, **kwargs):
    torch.manual_seed(0)
    model = eo_zoo.create_model(family.smallest, pretrained=False, **family.small, **kwargs)
    for parameter in model.parameters():
        if not parameter.any():  # branches that start closed would hide what is behind them
            nn.init.normal_(parameter, std=0.02)
    return model


def inputs(family, model):
    """A batch and the arguments of a call for each sensor."""
    record = registry.get_record(family.smallest)
    return [family.inputs(model, sensor, 1) for sensor in record.sensors]


def outputs(model, batches):
    with torch.no_grad():
        return torch.cat([model(x, **kwargs) for x, kwargs in batches])


def trained(model, batches, steps=2):
    """The names of the parameters that changed."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0)
    for _ in range(steps):  # in the first, only the B matrices move, which start at 0
        optimizer.zero_grad()
        for x, kwargs in batches:
            model(x, **kwargs).square().sum().backward()
        optimizer.step()
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


@pytest.mark.parametrize("targets", [BLOCKS, "all-linear"], ids=["blocks", "all"])
def test_lora(family, targets, tmp_path):
    base = create(family)
    fresh, batches = copy.deepcopy(base), inputs(family, base)
    expected = outputs(base, batches)
    model = peft.get_peft_model(base, peft.LoraConfig(target_modules=targets)).eval()
    # AnySat takes other products where there is no adapter, which round otherwise
    torch.testing.assert_close(outputs(model, batches), expected, atol=1e-6, rtol=1e-5)

    # every adapter counts, also around weights that a model could use without calling their layer, and nothing else
    changed = trained(model, batches)
    assert changed == {name for name, _ in model.named_parameters() if ".lora_" in name}
    adapted = outputs(model, batches)
    assert (adapted - expected).abs().max() > 0.1
    with model.disable_adapter():
        torch.testing.assert_close(outputs(model, batches), expected, atol=1e-6, rtol=1e-5)

    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(fresh, tmp_path)
    assert torch.equal(outputs(again, batches), adapted)
    merged = again.merge_and_unload()
    assert type(merged) is type(create(family)) and not any("lora" in name for name in merged.state_dict())
    torch.testing.assert_close(outputs(merged, batches), adapted, atol=1e-4, rtol=1e-4)


def test_a_head_is_trained_and_saved_with_it(family, tmp_path):
    base = create(family, num_classes=3)
    fresh, batches = copy.deepcopy(base), inputs(family, base)[:1]
    config = peft.LoraConfig(target_modules="all-linear", modules_to_save=["head"])
    model = peft.get_peft_model(base, config).eval()
    changed = trained(model, batches)
    assert any(".head.modules_to_save." in name for name in changed)
    assert all(".lora_" in name or ".head.modules_to_save." in name for name in changed)
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(fresh, tmp_path)
    assert torch.equal(outputs(again, batches), outputs(model, batches))


def test_a_segmentation_head_is_one_inside_of_an_adapter():
    model = eo_zoo.create_model("smarties_vit_nano", head="segmentation", num_classes=4)
    x = torch.randn(1, 12, 112, 112)
    expected = model(x)
    config = peft.LoraConfig(target_modules=BLOCKS, modules_to_save=["head"])
    assert torch.equal(peft.get_peft_model(model, config).eval()(x), expected)
