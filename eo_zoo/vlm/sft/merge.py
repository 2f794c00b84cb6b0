"""A LoRA adapter and its base model as one model: written beside, read back, compared, and only then renamed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from eo_zoo.errors import InputError, WeightsError, require
from eo_zoo.files import making, require_new
from eo_zoo.vlm.engine import FACTORS
from eo_zoo.vlm.model import TerraSense, quietly

#: Largest difference of logits over the largest logit, by the precision that the merged weights are rounded to.
TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
PROBE = "Describe this remote sensing image."


def merge(
    adapter: Path,
    output: Path,
    *,
    base: str | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
) -> Path:
    """Write the merged model with its processor as a folder that transformers loads without peft.

    Args:
        adapter: a folder with adapter_config.json and adapter_model.safetensors.
        output: a new folder.
        base: the base model, where it is not to be found under the name in adapter_config.json.
        revision: of the base model; that in adapter_config.json if None.
        dtype: of the merged weights: auto (as the base model is stored), float32, bfloat16, float16.
        device: cpu, cuda...; a GPU if there is one.

    Raises:
        InputError: no adapter, or a folder that exists.
        WeightsError: the adapter does not fit the base model, or the merged model answers otherwise.
        MissingExtra: peft is not installed.
    """
    require_new(output)
    if dtype != "auto" and dtype not in TOLERANCES:
        raise InputError(f"dtype is '{dtype}', expected auto, {', '.join(TOLERANCES)}")
    import torch

    peft = require("peft", "sft")
    facts = _facts(adapter)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    name = base or str(facts["base_model_name_or_path"])
    loaded = TerraSense.from_pretrained(
        name, revision=revision or facts.get("revision"), dtype=dtype, device_map={"": device}
    )
    precision = loaded.model.dtype
    adapted = peft.PeftModel.from_pretrained(loaded.model, str(adapter)).eval()
    _require_all(adapted, adapter)
    wanted = _logits(adapted, loaded.processor)
    merged = adapted.merge_and_unload(safe_merge=True).to(precision)
    with making(output) as folder, quietly():
        merged.save_pretrained(folder)
        loaded.processor.save_pretrained(folder)
        del loaded, adapted, merged  # one model in memory at a time
        again = TerraSense.from_pretrained(folder, dtype=precision, device_map={"": device})
        found = _logits(again.model, again.processor)
        apart = float((found - wanted).abs().max() / wanted.abs().max())
        limit = TOLERANCES[str(precision).removeprefix("torch.")]
        if not apart <= limit:
            raise WeightsError(
                f"{output}: the merged model's logits are {apart:.2g} of the largest apart from the adapter's, more "
                f"than {limit}: nothing is kept"
            )
    return output


def _facts(adapter: Path) -> dict[str, Any]:
    file = adapter / "adapter_config.json"
    if not file.is_file():
        raise InputError(f"{adapter}: there is no adapter_config.json, expected the folder of a LoRA adapter")
    if not (adapter / "adapter_model.safetensors").is_file():
        raise InputError(f"{adapter}: there is no adapter_model.safetensors; pickles are not opened")
    facts = json.loads(file.read_text(encoding="utf-8"))
    if facts.get("peft_type") != "LORA" or not facts.get("base_model_name_or_path"):
        raise InputError(f"{file}: expected a LoRA adapter that names its base_model_name_or_path")
    return facts


def _require_all(adapted: Any, adapter: Path) -> None:
    """peft passes over what does not fit in silence."""
    from safetensors import safe_open

    peft = require("peft", "sft")
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as stored:
        shapes = {name: list(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118 - no dict
    expected = {name: list(one.shape) for name, one in peft.get_peft_model_state_dict(adapted).items()}
    if shapes != expected:
        odd = sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name))
        raise WeightsError(f"{adapter}: {len(odd)} tensors do not fit the base model: {', '.join(odd[:3])}")


def _logits(model: Any, processor: Any) -> Any:
    """Of a question about an image of many colours."""
    import numpy as np
    import torch
    from PIL import Image

    side = 4 * max(FACTORS.values())
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))
    content = [{"type": "image"}, {"type": "text", "text": PROBE}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    inputs = processor(text=[text], images=[image], return_tensors="pt").to(model.device)
    with torch.inference_mode():
        return model(**inputs).logits.float().cpu()
