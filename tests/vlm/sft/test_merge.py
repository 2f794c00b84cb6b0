from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from eo_zoo.errors import InputError, WeightsError
from eo_zoo.vlm.model import TerraSense
from eo_zoo.vlm.sft.merge import merge
from eo_zoo.vlm.sft.train import Recipe, train
from tests.vlm.sft.planted import PIXELS, QUESTION, fields


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    recipe = Recipe(
        lora=True,
        schedule="constant",
        batch_size=4,
        accumulation=1,
        learning_rate=2e-2,
        max_steps=8,
        workers=0,
        **PIXELS,
    )
    train(fields(folder, 4), str(base), folder / "a", recipe=recipe, progress=False)
    return folder / "a"


def test_the_merged_model_is_whole_and_answers_as_the_adapter(base, adapter, tmp_path):
    output = merge(adapter, tmp_path / "merged")
    merged = TerraSense.from_pretrained(output)
    plain = TerraSense.from_pretrained(base)
    (one,) = fields(tmp_path, 1)
    said = {
        name: str(model.ask(one.images[0], QUESTION, temperature=0, max_new_tokens=12, **PIXELS))
        for name, model in (("merged", merged), ("plain", plain))
    }
    with_adapter = TerraSense(PeftModel.from_pretrained(plain.model, str(adapter)), plain.processor)
    assert said["merged"] == str(with_adapter.ask(one.images[0], QUESTION, temperature=0, max_new_tokens=12, **PIXELS))
    assert said["merged"] != said["plain"]
    assert load_file(output / "model.safetensors").keys() == load_file(base / "model.safetensors").keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.png", "merged"]


def test_the_base_may_have_moved_and_the_weights_be_rounded(base, adapter, tmp_path):
    moved = shutil.copytree(base, tmp_path / "moved")
    gone = shutil.copytree(adapter, tmp_path / "adapter")
    facts = json.loads((gone / "adapter_config.json").read_text())
    (gone / "adapter_config.json").write_text(json.dumps(facts | {"base_model_name_or_path": str(tmp_path / "lost")}))
    with pytest.raises(InputError, match="lost: not a folder"):
        merge(gone, tmp_path / "merged")
    merge(gone, tmp_path / "merged", base=str(moved), dtype="bfloat16")
    tensors = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_an_adapter_of_another_model_is_refused(adapter, tmp_path):
    odd = shutil.copytree(adapter, tmp_path / "odd")
    tensors = load_file(odd / "adapter_model.safetensors")
    name = min(tensors)
    tensors[name.replace("layers.0", "layers.7")] = tensors.pop(name)
    save_file(tensors, odd / "adapter_model.safetensors")
    with pytest.raises(WeightsError, match="2 tensors do not fit the base model"):
        merge(odd, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_merge_that_changes_answers_leaves_nothing(adapter, tmp_path, monkeypatch):
    load, loaded = TerraSense.from_pretrained, []

    def spoilt(folder, **kwargs):
        loaded.append(load(folder, **kwargs))
        loaded[-1].model.lm_head.weight.data[0] += len(loaded) - 1  # the second is what was written
        return loaded[-1]

    monkeypatch.setattr(TerraSense, "from_pretrained", spoilt)
    with pytest.raises(WeightsError, match=r"logits are .* apart from the adapter's"):
        merge(adapter, tmp_path / "merged")
    assert not list(tmp_path.iterdir())


def test_what_is_no_adapter(base, adapter, tmp_path):
    with pytest.raises(InputError, match=r"there is no adapter_config\.json"):
        merge(base, tmp_path / "merged")
    with pytest.raises(InputError, match="exists"):
        merge(adapter, tmp_path)
    with pytest.raises(InputError, match="dtype is 'int8'"):
        merge(adapter, tmp_path / "merged", dtype="int8")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"there is no adapter_model\.safetensors"):
        merge(bare, tmp_path / "merged")
