from __future__ import annotations

import json

import pytest
import transformers
import yaml
from PIL import Image

from eo_zoo.errors import InputError
from eo_zoo.vlm.engine import Generation
from eo_zoo.vlm.sft import llamafactory, sharegpt
from eo_zoo.vlm.sft.collate import Collator, row
from eo_zoo.vlm.sft.train import Recipe
from tests.vlm.sft.planted import PIXELS, fields, picture

PUBLISHED = """
model_name_or_path: TerraSense-CASM/TerraSense-Base
image_max_pixels: 4194304
video_max_pixels: 16384
stage: sft
do_train: true
finetuning_type: full
freeze_vision_tower: true
freeze_multi_modal_projector: true
cutoff_len: 16384
preprocessing_num_workers: 32
dataloader_num_workers: 16
logging_steps: 10
save_steps: 500
plot_loss: true
per_device_train_batch_size: 1
gradient_accumulation_steps: 16
learning_rate: 1.0e-5
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
flash_attn: fa2
"""


def export(tmp_path, **options):
    given = dict(model="TerraSense-CASM/TerraSense-Base", model_type="qwen3_vl") | options
    return llamafactory.export(fields(tmp_path, 2), tmp_path / "lf", **given)


def test_the_configuration_has_the_published_values(tmp_path):
    config = yaml.safe_load(export(tmp_path).read_text())
    published = yaml.safe_load(PUBLISHED)
    assert {name: config.get(name) for name in published} == published
    added = {name: config[name] for name in config.keys() - published.keys()}
    assert added == {
        "image_min_pixels": 200704, "dataset_dir": str(tmp_path / "lf"), "dataset": "terrasense",
        "template": "qwen3_vl_nothink", "output_dir": "./output/terrasense", "weight_decay": 0.0, "seed": 42,
    }  # fmt: skip


def test_the_recipe_is_carried_over(tmp_path):
    (tmp_path / "ds.json").write_text("{}")
    recipe = Recipe(
        lora=True, lora_rank=16, max_steps=7, freeze_vision=False, attention="sdpa", deepspeed=tmp_path / "ds.json",
        bf16=False, workers=2,
    )  # fmt: skip
    config = yaml.safe_load(export(tmp_path, recipe=recipe, model_type="qwen2_5_vl", name="mine").read_text())
    expected = dict(
        finetuning_type="lora", lora_rank=16, lora_alpha=32, lora_target="all", max_steps=7, freeze_vision_tower=False,
        flash_attn="sdpa", deepspeed=str(tmp_path / "ds.json"), bf16=False, dataloader_num_workers=2,
        template="qwen2_vl", dataset="mine",
    )  # fmt: skip
    assert {name: config.get(name) for name in expected} == expected
    assert "num_train_epochs" not in config


def test_the_data_set_is_described(tmp_path):
    export(tmp_path)
    folder = tmp_path / "lf"
    info = json.loads((folder / "dataset_info.json").read_text())["terrasense"]
    assert info["formatting"] == "sharegpt"
    entry = json.loads((folder / info["file_name"]).read_text())[0]
    for column in info["columns"].values():
        assert column in entry
    tags = info["tags"]
    first = entry["messages"][0]
    assert first[tags["role_tag"]] == tags["user_tag"]
    assert first[tags["content_tag"]].startswith("<image>")
    assert entry["messages"][1][tags["role_tag"]] == tags["assistant_tag"]
    assert sharegpt.read(folder / "data.json") == fields(tmp_path, 2)


@pytest.mark.parametrize("size", [(383, 232), (100, 640), (56, 56)])
def test_images_are_written_as_the_model_sees_them(base, tmp_path, size):
    path = picture(tmp_path / "odd.png", (200, 90, 30), size=size)
    made = [sharegpt.Conversation.of([("q", "a")], [path])]
    llamafactory.export(
        made, tmp_path / "lf", model=str(base), model_type="qwen2_5_vl", recipe=Recipe(**PIXELS), images=True
    )
    (copied,) = sharegpt.read(tmp_path / "lf" / "data.json")
    assert copied.images[0].parent == tmp_path / "lf" / "images"
    processor = transformers.AutoProcessor.from_pretrained(base)
    collate = Collator(processor, "qwen2_5_vl", Generation(**PIXELS), 4096)
    grid = collate([row(made[0])])["image_grid_thw"][0].tolist()
    with Image.open(copied.images[0]) as image:
        assert [1, image.height // 14, image.width // 14] == grid
        assert image.width * image.height <= PIXELS["max_pixels"]


def test_what_cannot_be_exported(tmp_path):
    with pytest.raises(InputError, match="model_type is 'llava'"):
        export(tmp_path, model_type="llava")
    export(tmp_path)
    with pytest.raises(InputError, match="exists"):
        export(tmp_path)
    with pytest.raises(InputError, match="no conversation"):
        llamafactory.export([], tmp_path / "other", model="m", model_type="qwen3_vl")
    assert not (tmp_path / "other").exists()
