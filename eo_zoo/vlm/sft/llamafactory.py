"""The same training for LLaMA-Factory: its configuration, its ``dataset_info.json``, and the conversations.

Keys and templates: data/README.md, src/llamafactory/extras/constants.py and hparams/ of hiyouga/LLaMA-Factory
(Apache-2.0); values: the public README of TerraSense-CASM/TerraSense (Apache-2.0).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from eo_zoo.errors import InputError, require
from eo_zoo.files import making, require_new
from eo_zoo.vlm.engine import prepared, seen
from eo_zoo.vlm.sft import sharegpt
from eo_zoo.vlm.sft.sharegpt import Conversation
from eo_zoo.vlm.sft.train import Recipe

#: Chat templates by model type; qwen3_vl there is that of the models that think aloud first.
TEMPLATES = {"qwen2_vl": "qwen2_vl", "qwen2_5_vl": "qwen2_vl", "qwen3_vl": "qwen3_vl_nothink"}
DATA, INFO, CONFIG = "data.json", "dataset_info.json", "sft.yaml"


def export(
    conversations: Sequence[Conversation],
    folder: Path,
    *,
    model: str,
    model_type: str,
    recipe: Recipe | None = None,
    name: str = "terrasense",
    images: bool = False,
) -> Path:
    """Write a folder with the data and a configuration: ``llamafactory-cli train FOLDER/sft.yaml``.

    Args:
        conversations: see `eo_zoo.vlm.sft.sharegpt.read`.
        folder: a new one; the configuration names it as it is given here.
        model: folder or repository of the weights.
        model_type: of that model, which decides the template.
        recipe: the published one if None.
        name: of the data set.
        images: write the images too, as the model sees them. LLaMA-Factory rounds sides in another way, which moves
            coordinates in pixels (qwen2_5_vl) a little; images that need no resize keep them.

    Returns:
        The configuration.

    Raises:
        InputError: an unknown model type, no conversation, or a folder that exists.
    """
    recipe = recipe or Recipe()
    if model_type not in TEMPLATES:
        raise InputError(f"model_type is '{model_type}', expected one of {', '.join(TEMPLATES)}")
    require_new(folder)
    entry = {
        "file_name": DATA,
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "images": "images"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "system_tag": "system",
        },
    }
    with making(folder) as beside:
        if images:
            conversations = _with_images(conversations, beside / "images", model_type, recipe)
        sharegpt.write(beside / DATA, conversations)
        (beside / INFO).write_text(json.dumps({name: entry}, indent=2) + "\n", encoding="utf-8")
        config = _yaml(sections(folder, model, model_type, recipe, name))
        (beside / CONFIG).write_text(config, encoding="utf-8")
    return folder / CONFIG


def sections(folder: Path, model: str, model_type: str, recipe: Recipe, name: str) -> dict[str, dict[str, Any]]:
    """LLaMA-Factory's configuration, by the headings of the published one."""
    lora = {
        "lora_rank": recipe.lora_rank,
        "lora_alpha": recipe.lora_alpha or 2 * recipe.lora_rank,
        "lora_dropout": recipe.lora_dropout,
        "lora_target": "all",
    }
    length = {"max_steps": recipe.max_steps} if recipe.max_steps else {"num_train_epochs": recipe.epochs}
    return {
        "model": {
            "model_name_or_path": model,
            "image_min_pixels": recipe.min_pixels,
            "image_max_pixels": recipe.max_pixels,
            "video_max_pixels": 16384,
        },
        "method": {
            "stage": "sft",
            "do_train": True,
            "finetuning_type": "lora" if recipe.lora else "full",
            **(lora if recipe.lora else {}),
            "freeze_vision_tower": recipe.freeze_vision,
            "freeze_multi_modal_projector": recipe.freeze_projector,
            **({"deepspeed": str(recipe.deepspeed)} if recipe.deepspeed else {}),
        },
        "dataset": {
            "dataset_dir": str(folder),
            "dataset": name,
            "template": TEMPLATES[model_type],
            "cutoff_len": recipe.cutoff,
            "preprocessing_num_workers": 32,
            "dataloader_num_workers": 16 if recipe.workers is None else recipe.workers,
        },
        "output": {
            "output_dir": f"./output/{name}",
            "logging_steps": recipe.log_steps,
            "save_steps": recipe.save_steps,
            "plot_loss": True,
        },
        "train": {
            "per_device_train_batch_size": recipe.batch_size,
            "gradient_accumulation_steps": recipe.accumulation,
            "learning_rate": recipe.learning_rate,
            **length,
            "lr_scheduler_type": recipe.schedule,
            "warmup_ratio": recipe.warmup,
            "weight_decay": recipe.weight_decay,
            "seed": recipe.seed,
            "bf16": recipe.bf16 is not False,
            "flash_attn": {"sdpa": "sdpa", "eager": "disabled"}.get(recipe.attention or "", "fa2"),
        },
    }


def _yaml(parts: dict[str, dict[str, Any]]) -> str:
    yaml = require("yaml", "sft")
    return "\n".join(f"### {title}\n{yaml.safe_dump(values, sort_keys=False)}" for title, values in parts.items())


def _with_images(
    conversations: Sequence[Conversation], folder: Path, model_type: str, recipe: Recipe
) -> list[Conversation]:
    """The conversations with copies of their images, resized as the model's processor does."""
    from eo_zoo.vlm.pictures import open_picture

    folder.mkdir()
    copies: dict[Path, Path] = {}
    for path in (path for conversation in conversations for path in conversation.images):
        if path not in copies:
            copies[path] = folder / f"{len(copies):06d}_{path.stem}.png"
            with open_picture(path) as picture:
                image = prepared(picture.read())
            size = seen(image.size, model_type, recipe.generation())
            image.resize(size, Image.Resampling.BICUBIC).save(copies[path])
    return [replace(one, images=tuple(copies[path] for path in one.images)) for one in conversations]
