"""AnySat's key table: official checkpoint -> ours.

Names differ from the public code's: ``projectors`` make the sub-patches' vectors, ``patch_encoder`` is its
``spatial_encoder``, ``pool`` its last block.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from eo_zoo import weights
from eo_zoo.errors import WeightsError
from eo_zoo.models.anysat_inputs import INPUTS


def module_name(name: str) -> str:
    """An input's name as part of a module's."""
    return name.replace("-", "_")  # graphs name their parts by it


PARTS = ("student.", "teacher.")
# The whole pretraining state: what comes before the names of an encoder. Its predictor is not needed for features.
STATE = {"model.encoder.": "student.", "encoder.": "student.", "target_encoder.": "teacher."}
PREDICTOR = re.compile(r"(model\.)?(predictor\..+|masked_token)")
PROJECTOR = re.compile(r"projector_([\w-]+)\.(.+)")
IN_IMAGE = {
    "patch_embed.": "embed.", "mlp.0.": "fc1.", "mlp.1.": "norm1.", "mlp.3.": "fc2.", "mlp.4.": "norm2.",
}  # fmt: skip
IN_SERIES = {
    **{f"patch_embed.inconv.{4 * i}.": f"layers.{i}.linear." for i in range(5)},
    **{f"patch_embed.inconv.{4 * i + 1}.": f"layers.{i}.norm." for i in range(5)},
    "patch_embed.in_norm.": "in_norm.",
    "patch_embed.attention_heads.Q": "query",
    "patch_embed.attention_heads.fc1_k.weight": "key.weight",
    "patch_embed.attention_heads.fc1_k.bias": "key_bias",
    "patch_embed.mlp.0.": "out.linear.",
    "patch_embed.mlp.1.": "out.norm.",
    "patch_embed.out_norm.": "out_norm.",
    "pad_parameter": "pad",
}  # fmt: skip
IN_BLOCK = r"(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)"
PATCH_BLOCK = re.compile(rf"spatial_encoder\.predictor_blocks\.(\d+)\.({IN_BLOCK})")
PATCH_DISTANCE = re.compile(r"spatial_encoder\.predictor_blocks\.(\d+)\.attn\.rpe_k\.lookup_table_weight")
BLOCK = re.compile(rf"blocks\.\d+\.{IN_BLOCK}")
POOL = re.compile(r"blocks\.(\d+)\.(?:attn\.(q_learned|wk|wv|proj|rpe_k)\.?|(norm1|norm2|mlp\.fc1|mlp\.fc2)\.)(.*)")
SINGLE = {
    "cls_token": "cls_token",
    "spatial_encoder.cls_token": "patch_encoder.cls_token",
    "spatial_encoder.predictor_norm.weight": "patch_encoder.norm.weight",
    "spatial_encoder.predictor_norm.bias": "patch_encoder.norm.bias",
}


def from_official(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The public code's encoder, or the whole state of its pretraining, to our names; our own names are kept.

    Of a whole state come "student." and "teacher." with an encoder behind each.

    Raises:
        WeightsError: a name that is neither in the table nor one of the predictor's.
    """
    if any(name.startswith(("projectors.", *(f"{part}projectors." for part in PARTS))) for name in tensors):
        return dict(tensors)  # ours: what does not fit is found when the model is filled
    ours: dict[str, Tensor] = {}
    unknown = []
    encoders: dict[str, dict[str, Tensor]] = {}
    for official, tensor in tensors.items():
        start = next((start for start in STATE if official.startswith(start)), "")
        if start:
            encoders.setdefault(STATE[start], {})[official.removeprefix(start)] = tensor
        elif PREDICTOR.fullmatch(official) and any(name.startswith(tuple(STATE)) for name in tensors):
            continue
        else:
            encoders.setdefault("", {})[official] = tensor
    for part, encoder in encoders.items():
        mapped, strange = _encoder_from_official(encoder)
        ours |= {f"{part}{name}": tensor for name, tensor in mapped.items()}
        unknown += strange
    weights.refuse_unknown(unknown, "AnySat")
    return ours


def _encoder_from_official(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    ours: dict[str, Tensor] = {}
    unknown = []
    # the pooling block is the last one, whatever the depth
    last = next((m[1] for name in tensors if (m := POOL.fullmatch(name)) and m[2] == "q_learned"), "")
    keys: dict[str, Tensor] = {}
    for official, tensor in tensors.items():
        name = _our_name(official, last)
        if name is None:
            unknown.append(official)
        elif name.startswith("pool.w"):
            keys[name] = tensor
        else:
            ours[name] = tensor.squeeze(0) if name.endswith("distance") else tensor
    for kind in ("weight", "bias"):
        pair = [keys[name] for name in (f"pool.wk.{kind}", f"pool.wv.{kind}") if name in keys]
        if len({tensor.shape for tensor in pair}) == 1 < len(pair):
            ours[f"pool.kv.{kind}"] = torch.cat(pair)
        elif pair:
            raise WeightsError(
                f"blocks.{last}.attn.wk.{kind} and wv.{kind} belong together: expected both of them, of one shape"
            )
    return ours, unknown


def _our_name(official: str, last: str) -> str | None:
    if official in SINGLE:
        return SINGLE[official]
    if match := PROJECTOR.fullmatch(official):
        if match[1] not in INPUTS:
            return None
        table = IN_SERIES if INPUTS[match[1]].series else IN_IMAGE
        start = next((start for start in table if match[2].startswith(start)), None)
        return start and f"projectors.{module_name(match[1])}.{table[start]}{match[2].removeprefix(start)}"
    if match := PATCH_BLOCK.fullmatch(official):
        return f"patch_encoder.blocks.{match[1]}.{match[2]}"
    if match := PATCH_DISTANCE.fullmatch(official):
        return f"patch_encoder.blocks.{match[1]}.attn.distance"
    if last and (match := POOL.fullmatch(official)) and match[1] == last:
        single = {"q_learned": "query", "rpe_k": "distance"}.get(match[2])
        return f"pool.{single}" if single else f"pool.{match[2] or match[3]}.{match[4]}"
    return official if BLOCK.fullmatch(official) else None
