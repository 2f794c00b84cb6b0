"""AnySat's key table: official checkpoint -> ours.

Names differ from the public code's: ``projectors`` make the sub-patches' vectors, ``patch_encoder`` is its
``spatial_encoder``, ``pool`` its last block.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterator

from eo_zoo.models.anysat_inputs import INPUTS
from eo_zoo.weights.plan import Layout, Rule, same


def module_name(name: str) -> str:
    """An input's name as part of a module's."""
    return name.replace("-", "_")  # graphs name their parts by it


PARTS = ("student.", "teacher.")
# The whole pretraining state: what comes before the names of an encoder. Its predictor is not needed for features.
PREDICTOR = r"(model\.)?(predictor\..+|masked_token)"
STATES = {
    "state": {"encoder.": "student.", "target_encoder.": "teacher."},
    "lightning": {"model.encoder.": "student.", "target_encoder.": "teacher."},
}
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
_IN_BLOCK = r"(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)"
_LAST = re.compile(r"(?:.*\.)?blocks\.(\d{1,4})\.attn\.q_learned")
_BLOCK = re.compile(r"(?:.*\.)?blocks\.(\d{1,4})\..+")


def _projector(name: str) -> Iterator[Rule]:
    for official, ours in (IN_SERIES if INPUTS[name].series else IN_IMAGE).items():
        rest = "{rest}" if official.endswith(".") else ""
        yield Rule(f"projector_{name}.{official}{rest}", f"projectors.{module_name(name)}.{ours}{rest}")


def _encoder(last: str) -> tuple[Rule, ...]:
    """The rules of one encoder, whose last block pools."""
    block, patches = f"blocks.{last}.", "spatial_encoder.predictor_blocks.{n}."
    table = "rpe_k.lookup_table_weight"
    return (
        Rule(f"{block}attn.q_learned", "pool.query"),
        Rule(f"{block}attn.{table}", "pool.distance", "squeeze"),
        Rule(f"{block}attn.{{i}}.{{wb}}", "pool.kv.{wb}", "cat", ("wk", "wv")),
        Rule(f"{block}{{x:norm1|norm2|mlp\\.fc1|mlp\\.fc2}}.{{wb}}", "pool.{x}.{wb}"),
        Rule(f"{block}attn.proj.{{wb}}", "pool.proj.{wb}"),
        same(rf"blocks\.\d+\.{_IN_BLOCK}"),
        Rule(f"{patches}attn.{table}", "patch_encoder.blocks.{n}.attn.distance", "squeeze"),
        Rule(f"{patches}{{x:{_IN_BLOCK}}}", "patch_encoder.blocks.{n}.{x}"),
        Rule("cls_token", "cls_token"),
        Rule("spatial_encoder.cls_token", "patch_encoder.cls_token"),
        Rule("spatial_encoder.predictor_norm.{wb}", "patch_encoder.norm.{wb}"),
        *(rule for name in INPUTS for rule in _projector(name)),
    )


def layouts(names: Collection[str]) -> tuple[Layout, ...]:
    """The public code's encoder, the whole state of its pretraining, and ours.

    Of a whole state come "student." and "teacher." with an encoder behind each.
    """
    own: tuple[Layout, ...] = ()
    if any(name.startswith("encoder.projectors.") for name in names):  # of ``AnySatPretraining``
        rules = (Rule("encoder.{rest}", "student.{rest}"), same(r"teacher\..+"))
        own = (Layout("eo_zoo", rules, {PREDICTOR: "the predictor of pretraining"}),)
    elif any(name.startswith(("projectors.", *(f"{part}projectors." for part in PARTS))) for name in names):
        # What does not fit is found when the model is filled.
        own = (Layout("eo_zoo", (same(".+"),)),)
    return *_public(_last(names)), *own


@functools.lru_cache(maxsize=4)
def _public(last: str) -> tuple[Layout, ...]:
    encoder = _encoder(last)
    states = (
        Layout(
            name,
            tuple(rule.behind(start, part) for start, part in starts.items() for rule in encoder),
            {PREDICTOR: "the predictor of pretraining"},
        )
        for name, starts in STATES.items()
    )
    return Layout("encoder", encoder), *states


def _last(names: Collection[str]) -> str:
    """The number of the block that pools, as it is in the file; of ours, the one behind all others."""
    if found := next((match[1] for name in names if (match := _LAST.fullmatch(name))), None):
        return found
    numbers = [int(match[1]) for name in names if (match := _BLOCK.fullmatch(name))]
    return str(max(numbers, default=-1) + 1)
