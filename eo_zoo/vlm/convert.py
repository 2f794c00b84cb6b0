"""What training leaves of a Qwen-VL model, to a folder of safetensors that transformers and vLLM load strictly.

A source is a folder with torch's .bin or safetensors, in one file or in shards, a checkpoint of DeepSpeed's ZeRO, or a
LoRA adapter beside the folder that it was trained on. All is compared with the model of its config.json on the meta
device before anything is written, and tensors are read one by one, so that memory stays near one shard.

Up to transformers 4.51 the modules were ``model.layers``, ``visual`` and ``lm_head``, since then they are
``model.language_model.layers``, ``model.visual`` and ``lm_head``; files hold either. Written is what
``save_pretrained`` of 4.57 and 5.23 writes and the Hub has, which every version reads: the former for Qwen2-VL and
Qwen2.5-VL, the latter for Qwen3-VL.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eo_zoo.errors import InputError, WeightsError
from eo_zoo.files import making, require_new
from eo_zoo.version import __version__
from eo_zoo.vlm.engine import FACTORS
from eo_zoo.weights import checkpoint, lora, zero
from eo_zoo.weights.sharded import (
    FLOATS,
    MANIFEST,
    LazyTensors,
    has_weights,
    read_folder,
    read_json,
    require_float,
    split,
    write_folder,
)

HEAD, EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"
#: What is copied beside the weights, from the source or else from the base.
COPIED = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "processor_config.json",
    "preprocessor_config.json", "video_preprocessor_config.json",
)  # fmt: skip
# DistributedDataParallel's, torch.compile's and PEFT's
_WRAPPINGS = re.compile(r"^(?:module\.|_orig_mod\.|base_model\.model\.)+")


@dataclass(frozen=True)
class Checked:
    """A source that fits the model of its configuration."""

    tensors: LazyTensors  # under the names that are written
    config: Mapping[str, Any]  # to be written
    copied: Mapping[str, Path]  # files to be copied, by name
    summary: str  # what was found, in a sentence or two
    manifest: Mapping[str, Any]  # what becomes of each tensor


def check(
    source: str | Path, *, base: str | Path | None = None, dtype: str | None = None, shard_size: str = "5GB"
) -> Checked:
    """Compare a source with the model of its config.json by names, shapes and types; headers are read, values are not.

    Args:
        source: folder with weights, a ZeRO checkpoint or an adapter.
        base: folder of the model that ``source`` was trained from: needed for an adapter, and for whatever else lacks
            config.json or the tokenizer.
        dtype: float32, bfloat16 or float16, for all tensors; as they are stored where it is not given.
        shard_size: of the files that would be written.

    Raises:
        InputError: there is nothing to convert, or the configuration is of another model.
        WeightsError: a file is missing, damaged or hostile, or the tensors do not fit the model.
    """
    source, bases = Path(source), [] if base is None else [Path(base)]
    for folder in (source, *bases):
        if not folder.is_dir():
            raise InputError(f"{folder} is {'a file' if folder.exists() else 'not there'}: give a folder")
    require_float(dtype)
    found = _open(source, bases)
    # files of one step lie a folder below those of the model
    folders = [source, *([source.parent] if _step(source) == source else []), *bases]
    beside = {name: path for name in ("config.json", *COPIED) if (path := _first(folders, name)) is not None}
    if "config.json" not in beside:
        raise InputError(f"{source} has no config.json: give the folder of the model it was trained from with --base")
    config = read_json(beside["config.json"])
    model = _model(beside.pop("config.json"), config, len(found.shapes))
    names = _match(found, model, source)
    tensors = found.renamed({_stored(name, config["model_type"]): old for name, old in names.items()})
    if dtype is not None:
        tensors, config = tensors.to(FLOATS[dtype]), _typed(config, dtype)
    types = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.shapes.values()})
    plan = split(tensors.shapes, shard_size)
    summary = (
        f"{len(tensors.shapes)} tensors with {sum(tensor.numel() for tensor in tensors.shapes.values()):,} values "
        f"({', '.join(types)}) fit {type(model).__name__}: {plan.metadata['total_size']:,} bytes in "
        f"{len(plan.filename_to_tensors)} files"
    )
    if "tokenizer_config.json" not in beside:
        summary += ". There is no tokenizer: give the folder of the model it was trained from with --base"
    return Checked(tensors, config, beside, summary, _manifest(type(model).__name__, found, tensors))


def _manifest(name: str, found: LazyTensors, tensors: LazyTensors) -> dict[str, Any]:
    official = {ours: tensors.names.get(ours, ours) for ours in tensors.shapes}
    unused = {found.names.get(one, one) for one in found.shapes} - set(official.values())
    return {
        "eo_zoo": __version__,
        "name": name,
        "files": {},
        "tensors": [
            {
                "ours": ours,
                "official": [stored],
                "fate": "same" if ours == stored else "renamed",
                "shape": list(tensors.shapes[ours].shape),
                "dtype": str(tensors.shapes[ours].dtype).removeprefix("torch."),
            }
            for ours, stored in official.items()
        ],
        "left_out": [{"official": name, "why": "equal to the embeddings, which it is tied to"} for name in unused],
        "added": [],
    }


def convert(
    source: str | Path,
    output: str | Path,
    *,
    base: str | Path | None = None,
    dtype: str | None = None,
    shard_size: str = "5GB",
) -> Checked:
    """Write a new folder with safetensors, configuration, tokenizer and processor: beside, compared, then renamed.

    Args:
        source: as of `check`.
        output: the folder; it is made.
        base: as of `check`.
        dtype: as of `check`; the configuration then names it too.
        shard_size: of each file at most, unless one tensor is larger.

    Raises:
        InputError: as `check`, and for an output that exists or a disk without room.
        WeightsError: as `check`, and if what was read back differs.
        OSError: writing failed; nothing is left.
    """
    output = Path(output)
    require_new(output)
    checked = check(source, base=base, dtype=dtype, shard_size=shard_size)
    with making(output) as folder:
        needed, free = sum(tensor.nbytes for tensor in checked.tensors.shapes.values()), shutil.disk_usage(folder).free
        if needed > free:
            raise InputError(f"{output} would take {needed:,} bytes, and {free:,} are free: give a folder elsewhere")
        hashes = write_folder(checked.tensors, folder, shard_size=shard_size)
        for name, path in checked.copied.items():
            shutil.copyfile(path, folder / name)
        (folder / "config.json").write_text(json.dumps(checked.config, indent=2) + "\n", encoding="utf-8")
        files = {name: {"sha256": sha256, "bytes": (folder / name).stat().st_size} for name, sha256 in hashes.items()}
        manifest = json.dumps({**checked.manifest, "files": files}, indent=1) + "\n"
        (folder / MANIFEST).write_text(manifest, encoding="utf-8")
    return checked


def _first(folders: Sequence[Path], name: str) -> Path | None:
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


# ------------------------------------------------------------------------------------------------ sources


def _open(source: Path, bases: Sequence[Path]) -> LazyTensors:
    """The tensors of a source under the names of today's modules."""
    if not (source / lora.CONFIG).is_file():
        return _read(source)
    if not bases:
        trained_on = read_json(source / lora.CONFIG).get("base_model_name_or_path")
        raise InputError(f"{source} is an adapter of {trained_on!r}: give the folder of that model with --base")
    return lora.merged(_read(bases[0]), source, _today)


def _read(folder: Path) -> LazyTensors:
    if (folder / lora.CONFIG).is_file():
        raise InputError(f"{folder} is an adapter, not the model that one was trained on")
    step = _step(folder)
    tensors = read_folder(folder) if step is None else zero.read_zero(step)
    names: dict[str, str] = {}
    for name in tensors.shapes:
        if other := names.get(_today(name)):
            raise WeightsError(f"{folder} holds one tensor twice: as {other} and as {name}")
        names[_today(name)] = name
    return tensors.renamed(names)


def _step(folder: Path) -> Path | None:
    """Where the files of a ZeRO checkpoint lie, if that is what the folder has."""
    return None if has_weights(folder) else zero.find_zero(folder)


def _today(name: str) -> str:
    """What a tensor of either layout is called in today's modules, without wrappings."""
    name = _WRAPPINGS.sub("", name).replace("._orig_mod.", ".")
    if name.startswith("visual."):
        return f"model.{name}"
    return re.sub(r"^model\.(?!language_model\.|visual\.)", "model.language_model.", name)


def _stored(name: str, model_type: str) -> str:
    """What today's name is called in a file."""
    if model_type == "qwen3_vl":
        return name
    return re.sub(r"^model\.visual\.", "visual.", re.sub(r"^model\.language_model\.", "model.", name))


# ------------------------------------------------------------------------------------------------ model


def _model(path: Path, found: Mapping[str, Any], tensors: int) -> Any:
    """The model of a config.json, on the meta device."""
    model_type = found.get("model_type")
    if not isinstance(model_type, str) or model_type not in FACTORS:
        raise InputError(f"{path} is of the type {model_type!r}; expected one of {', '.join(FACTORS)}")
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForImageTextToText

    try:
        for part in (found, found.get("text_config") or {}, found.get("vision_config") or {}):
            layers = max(part.get("num_hidden_layers", 0), part.get("depth", 0))
            if layers > tensors:  # making them would take for ever
                raise ValueError(f"it has {layers} layers, and there are {tensors} tensors")
        config = AutoConfig.from_pretrained(path.parent)
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config, attn_implementation="eager")
    except (*checkpoint.BROKEN, OSError, StrictDataclassError) as error:
        words = " ".join(str(error).split())
        raise InputError(f"{path} describes no model of the type {model_type}: {words}") from error


def _match(found: LazyTensors, model: Any, source: Path) -> dict[str, str]:
    """Today's names to those found, of all tensors that are to be written."""
    names = {name: name for name in found.shapes}
    wanted: dict[str, Tensor] = model.state_dict()
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    if tied and HEAD in names and EMBEDDING not in names:
        names[EMBEDDING] = names.pop(HEAD)
    shapes = {name: found.shapes[old] for name, old in names.items()}
    checkpoint.check_fit(shapes, wanted, optional=(HEAD,) if tied else (), what=str(source))
    whole = [f"{name} is {tensor.dtype}" for name, tensor in shapes.items() if tensor.dtype not in FLOATS.values()]
    if whole:
        raise WeightsError(
            f"{source} is quantized or of another type than {', '.join(FLOATS)}: {checkpoint.some(whole)}"
        )
    if tied and HEAD in names:
        del names[HEAD]
        read = found.reader()
        if not torch.equal(read(HEAD), read(EMBEDDING)):
            raise WeightsError(f"{source}: its config.json ties {HEAD} to the embeddings, but the two differ: "
                               "set tie_word_embeddings to false there")  # fmt: skip
    return names


def _typed(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """A configuration whose parts all name the type; ``torch_dtype`` is what every version reads."""
    parts = {
        name: _typed(part, dtype) if name.endswith("_config") and isinstance(part, dict) else part
        for name, part in config.items()
        if name != "dtype"
    }
    return {**parts, "torch_dtype": dtype}
