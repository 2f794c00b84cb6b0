"""SMARTIES' key table: official checkpoint -> ours."""

from __future__ import annotations

import re
from collections.abc import Collection

from eo_zoo.weights.plan import Layout, Rule, same

PROJECTIONS = 17  # of the spectrum, each for a part of it

_ENCODER = (
    same(
        r"cls_token|pos_embed|(norm|fc_norm|head(\.[01])?)\.(weight|bias)|blocks\.\d+\..+"
        r"|head\.0\.(running_mean|running_var|num_batches_tracked)"
    ),
)
_PROJECTIONS = Rule(
    "spectrum_projection.spectrum_embeds.{i}.proj.{wb}",
    "patch_embed.{wb}",
    "stack",
    tuple(map(str, range(PROJECTIONS))),
)
DECODER = re.compile(r"mask_token|decoder_.+")
_LEFT_OUT = "the decoder of pretraining"


def layouts(names: Collection[str]) -> tuple[Layout, ...]:
    """Encoder or pretraining checkpoint of the public code, whose 17 projections become two tensors, and ours.

    A prefix that all names share, as the repository with remote code has it, is taken off.
    """
    anchor = next((name for name in names if re.fullmatch(r"[\w.]*cls_token", name)), "cls_token")
    prefix = anchor.removesuffix("cls_token")
    rules = tuple(rule.behind(prefix, "") for rule in (_PROJECTIONS, *_ENCODER))
    own = tuple(rule.behind(prefix, "") for rule in (*_ENCODER, same(r"patch_embed\.(weight|bias)")))
    drops = {re.escape(prefix) + f"({DECODER.pattern})": _LEFT_OUT}
    return (
        Layout("encoder", rules),
        Layout("pretraining", rules, drops, wrapper="model"),
        Layout("eo_zoo", own, {DECODER.pattern: _LEFT_OUT}),  # also of ``SmartiesMaskedAutoencoder``
    )
