from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from eo_zoo.errors import InputError, WeightsError
from eo_zoo.weights import lora, sharded

peft = pytest.importorskip("peft")


class Model(nn.Module):
    """Linear layers in two blocks, an embedding and a head."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.blocks = nn.ModuleList(nn.ModuleDict({"q": nn.Linear(6, 6), "down": nn.Linear(6, 6)}) for _ in range(2))
        self.head = nn.Linear(6, 11, bias=False)


def adapted(folder, **config):
    """A base model's tensors and those with the adapter merged by peft; the adapter is saved in ``folder``."""
    torch.manual_seed(0)
    model = Model()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model = peft.get_peft_model(model, peft.LoraConfig(**{"r": 3, "lora_alpha": 8, "target_modules": ["q"], **config}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_()
    model.save_pretrained(folder)
    merged = model.merge_and_unload().state_dict()
    return base, {
        name.replace(".modules_to_save.default", "").replace(".base_layer", ""): t for name, t in merged.items()
    }


def own(tensors):
    return sharded.LazyTensors(
        {name: sharded.shape_of(tensor) for name, tensor in tensors.items()}, lambda: tensors.__getitem__
    )


def merge(base, folder):
    found = lora.merged(own(base), folder, lambda name: name.removeprefix("base_model.model."))
    read = found.reader()
    return {name: read(name) for name in found.shapes}


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        {"target_modules": "all-linear"},
        {"target_modules": ["q", "embed"]},
        {"modules_to_save": ["head"]},
        {"rank_pattern": {"0.q": 5}, "alpha_pattern": {r"blocks\.1\.q": 2, "q": 16}},
        {"rank_pattern": {"^blocks.0.q": 2}, "alpha_pattern": {"^blocks.0.q": 3}, "use_rslora": True},
        {"layers_to_transform": [1], "layers_pattern": "blocks"},
        {"init_lora_weights": "gaussian", "lora_dropout": 0.1},
    ],
)
@pytest.mark.parametrize("safe", [True, False])
def test_sums_are_those_of_peft(tmp_path, config, safe):
    base, expected = adapted(tmp_path, **config)
    if not safe:
        file = tmp_path / "adapter_model.safetensors"
        torch.save(sharded.stored.read(file), tmp_path / "adapter_model.bin")
        file.unlink()
    found = merge(base, tmp_path)
    assert found.keys() == expected.keys()
    assert any(not torch.equal(found[name], base[name]) for name in base)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)


def test_weights_that_lie_the_other_way_round(tmp_path):
    """As transformers' Conv1D, which peft merges with fan_in_fan_out."""
    base, expected = adapted(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "fan_in_fan_out": True}))
    turned = {name: t.T if name.endswith("q.weight") else t for name, t in base.items()}
    for name, tensor in merge(turned, tmp_path).items():
        torch.testing.assert_close(tensor.T if name.endswith("q.weight") else tensor, expected[name], rtol=0, atol=1e-6)


def test_the_base_keeps_its_type(tmp_path):
    base, expected = adapted(tmp_path)
    found = merge({name: tensor.bfloat16() for name, tensor in base.items()}, tmp_path)
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    torch.testing.assert_close(found["blocks.0.q.weight"].float(), expected["blocks.0.q.weight"], rtol=0.01, atol=0.05)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "asks for bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"something_new": {"a": 1}}, "something_new"),
        ({"peft_type": "LOHA"}, "is of 'LOHA'"),
        ({"r": 4}, "is of rank 3, expected 4"),
        ({"lora_alpha": "much"}, "alpha of blocks.0.q is 'much'"),
        ({"alpha_pattern": {"(": 1}}, "no regular expression"),
        ({"alpha_pattern": [1]}, "expected an object"),
    ],
)
def test_more_than_plain_lora_is_refused(tmp_path, change, expected):
    base, _ = adapted(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputError, match=expected.replace("(", r"\(")):
        merge(base, tmp_path)


FIRST = "base_model.model.blocks.0.q.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.pop(FIRST), r"lora_B\.weight, but no .*lora_A\.weight"),
        (lambda t: t.update({FIRST: torch.ones(3, 7)}), r"is \(3, 7\) and B \(6, 3\), which does not fit \(6, 6\)"),
        (lambda t: t.update({FIRST: torch.ones(3, 6, 1)}), "does not fit"),
        (lambda t: t.update({"base_model.model.blocks.0.q.lora_magnitude_vector": torch.ones(6)}), "magnitude"),
        (lambda t: t.update({"base_model.model.other.weight": torch.ones(6)}), "base has no other.weight"),
        (
            lambda t: t.update({"head.weight": torch.ones(11, 6), "base_model.model.head.weight": torch.ones(1)}),
            "twice",
        ),
        (
            lambda t: [t.pop(name) for name in list(t)] + [t.update({"head.weight": torch.ones(11, 6)})],
            "holds no lora_A",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, change, expected):
    base, _ = adapted(tmp_path)
    tensors = {
        name: tensor.clone() for name, tensor in sharded.stored.read(tmp_path / "adapter_model.safetensors").items()
    }
    change(tensors)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(WeightsError, match=expected):
        merge(base, tmp_path)


def test_an_adapter_without_tensors(tmp_path):
    base, _ = adapted(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="no adapter_model"):
        merge(base, tmp_path)
