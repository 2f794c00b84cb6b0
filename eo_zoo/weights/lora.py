"""PEFT's LoRA adapters, merged into the weights that they were trained on: W + scale * B @ A, one tensor at a time.

Format and scaling: peft/tuners/lora of PEFT (Apache 2.0). Plain LoRA of linear layers and embeddings is merged;
whatever else changes the sum is refused by name.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from eo_zoo.errors import InputError, WeightsError
from eo_zoo.weights import checkpoint
from eo_zoo.weights.sharded import LazyTensors, Reader, read_files, read_json

CONFIG = "adapter_config.json"
# What an adapter_config.json may say without any effect on the sum, or with one that is followed here.
UNDERSTOOD = (
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "megatron_core", "modules_to_save",
    "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config",
    "target_modules", "task_type", "use_rslora",
)  # fmt: skip
# The other ways to begin (pissa, olora, loftq, ...) change the weights that the adapter is added to.
BEGINNINGS = (None, True, False, "gaussian", "eva", "orthogonal")
# Regular expressions of a file are matched for so long as they ask for. Those that could ask for more than a moment:
# repeated groups, counts, looking around, references, and too many repetitions or choices.
COSTLY = re.compile(r"\)[*+?]|[*+?{][*+?{]|[{}]|\(\?|\\[^.dw-]")
MAX_ALPHA = 1e6
MAX_PATTERNS, MAX_PATTERN, MAX_REPEATS, MAX_CHOICES = 1000, 500, 2, 10


@dataclass(frozen=True)
class Pair:
    """The two matrices of one weight: names in the adapter, A (rank, in), B (out, rank)."""

    first: str
    second: str
    scale: float
    transposed: bool  # the weight is (in, out)


def merged(base: LazyTensors, folder: Path, rename: Callable[[str], str]) -> LazyTensors:
    """The tensors of ``base`` with an adapter added. Sums are made in float32 and kept in the type of ``base``.

    Args:
        base: the weights that the adapter was trained on.
        folder: adapter_config.json and adapter_model.safetensors or .bin.
        rename: from the names of the adapter, without ``lora_A``, to those of ``base``.

    Raises:
        InputError: the adapter is none that can be merged.
        WeightsError: its tensors do not fit the base's.
    """
    config = _config(folder / CONFIG)
    file = next((path for end in ("safetensors", "bin") if (path := folder / f"adapter_model.{end}").is_file()), None)
    if file is None:
        raise InputError(f"{folder} has {CONFIG}, but no adapter_model.safetensors or adapter_model.bin")
    adapter = read_files({file: None})
    pairs, replaced = _sort(adapter, config, file, rename)
    _check(base, adapter, pairs, replaced, file)

    def reader() -> Reader:
        from_base, from_adapter = base.reader(), adapter.reader()

        def read(name: str) -> Tensor:
            weight = from_adapter(replaced[name]) if name in replaced else from_base(name)
            pair = pairs.get(name)
            if pair is None:
                return weight
            change = from_adapter(pair.second).float() @ from_adapter(pair.first).float() * pair.scale
            return (weight.float() + (change.T if pair.transposed else change)).to(weight.dtype)

        return read

    return LazyTensors(
        {**base.shapes, **{name: adapter.shapes[old] for name, old in replaced.items()}}, reader, base.names
    )


def _config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    if config.get("peft_type") != "LORA":
        kind = reprlib.repr(config.get("peft_type"))
        raise InputError(f"{path} is of {kind}: only LoRA is merged, use peft for others")
    unknown = sorted(key for key, value in config.items() if value and key not in UNDERSTOOD)
    if config.get("bias", "none") != "none":
        unknown.append("bias")
    if config.get("init_lora_weights") not in BEGINNINGS:
        unknown.append(f"init_lora_weights={reprlib.repr(config['init_lora_weights'])}")
    if unknown:
        raise InputError(
            f"{path} asks for {checkpoint.some(unknown)}, which is more than plain LoRA: merge it with peft"
        )
    for key in ("alpha_pattern", "rank_pattern"):
        config[key] = _patterns(config.get(key) or {}, f"{path} has {key}")
    return config


def _patterns(found: Any, what: str) -> list[tuple[re.Pattern[str], Any]]:
    """Patterns of the names of modules, and a number for each: a module's full name or the end of it, as in PEFT."""
    if not isinstance(found, dict) or len(found) > MAX_PATTERNS:
        raise InputError(f"{what}={reprlib.repr(found)}; expected an object of at most {MAX_PATTERNS} names")
    patterns = []
    for key, value in found.items():
        repeats, choices = len(re.findall("[*+?]", key)), key.count("|")
        if len(key) > MAX_PATTERN or COSTLY.search(key) or repeats > MAX_REPEATS or choices > MAX_CHOICES:
            raise InputError(
                f"{what} {reprlib.repr(key)}, which may take for ever to match; expected names of modules, or patterns "
                r"of them with \d+, \w+ or .* in at most two places"
            )
        try:
            patterns.append((re.compile(rf"(.*\.)?({key})$"), value))
        except (re.error, RecursionError) as error:
            raise InputError(f"{what} {reprlib.repr(key)}, which is no regular expression") from error
    return patterns


def _sort(
    adapter: LazyTensors, config: dict[str, Any], file: Path, rename: Callable[[str], str]
) -> tuple[dict[str, Pair], dict[str, str]]:
    """Pairs by the name of the weight they change, and what takes a weight's place: name to the adapter's."""
    pairs: dict[str, Pair] = {}
    replaced: dict[str, str] = {}
    for name in adapter.shapes:
        found = re.fullmatch(r"(.+)\.lora_(embedding_)?([AB])(?:\.weight)?", name)
        if found is None:
            if "lora_" in name:
                raise WeightsError(f"{file} holds {name}, which is more than plain LoRA: merge it with peft")
            target = rename(name.replace(".base_layer.", "."))
            if target in replaced:
                raise WeightsError(f"{file} holds {target} twice: as {name} and as {replaced[target]}")
            replaced[target] = name
            continue
        module, embedding, letter = found.groups()
        other = f"{name[: found.start(3)]}{'B' if letter == 'A' else 'A'}{name[found.end(3) :]}"
        if other not in adapter.shapes:
            raise WeightsError(f"{file} holds {name}, but no {other}")
        if letter == "A":
            rank = next(iter(adapter.shapes[name].shape), 0)
            scale = _scale(module.removeprefix("base_model.model."), rank, config, file)
            turned = bool(embedding) or bool(config.get("fan_in_fan_out"))
            target = rename(f"{module}.weight")
            if target in pairs:
                raise WeightsError(f"{file} changes {target} twice: by {name} and by {pairs[target].first}")
            pairs[target] = Pair(name, other, scale, turned)
    if not pairs:
        raise WeightsError(f"{file} holds no lora_A and lora_B")
    return pairs, replaced


def _scale(module: str, rank: int, config: dict[str, Any], file: Path) -> float:
    """Alpha over the rank, or over its root."""

    def chosen(patterns: str, default: str) -> Any:
        return next((value for key, value in config[patterns] if key.match(module)), config.get(default))

    if (expected := chosen("rank_pattern", "r")) != rank:
        raise WeightsError(f"{file}: {module} is of rank {rank}, expected {reprlib.repr(expected)} by {CONFIG}")
    alpha = chosen("alpha_pattern", "lora_alpha")
    # a whole number of JSON may have thousands of digits, NaN is none of its range
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) < MAX_ALPHA or rank == 0:
        shown = reprlib.repr(alpha)
        raise InputError(f"{file.parent / CONFIG}: alpha of {module} is {shown} at rank {rank}; expected numbers")
    return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)


def _check(
    base: LazyTensors, adapter: LazyTensors, pairs: dict[str, Pair], replaced: dict[str, str], file: Path
) -> None:
    if unknown := [name for name in (*pairs, *replaced) if name not in base.shapes]:
        raise WeightsError(f"{file} is for other weights: the base has no {checkpoint.some(unknown)}")
    for name, pair in pairs.items():
        first, second = adapter.shapes[pair.first].shape, adapter.shapes[pair.second].shape
        change = (first[1:] + second[:1]) if pair.transposed else (second[:1] + first[1:])
        weight = (adapter.shapes[replaced[name]] if name in replaced else base.shapes[name]).shape
        if len(first) != 2 or len(second) != 2 or first[0] != second[1] or change != weight:
            raise WeightsError(
                f"{file}: {pair.first} is {tuple(first)} and B {tuple(second)}, which does not fit {tuple(weight)}"
            )
