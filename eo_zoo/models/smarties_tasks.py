"""SMARTIES' fine-tuned and probed weight sets: their heads, the mix of two sensors, and their records.

What tells the sets apart is data/smarties_tasks.json.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eo_zoo import sensors
from eo_zoo.errors import InputError
from eo_zoo.weights import Record, Task

RADAR = ("microwave_1", "microwave_2")
MIXES = ("random", "plain")
SOURCE = "hf://gsumbul/SMARTIES-v1-finetuned-models/smarties-v1-vit{size}-{file}.safetensors"
TRAINED = {"fine-tuned": "encoder and head", "linear probe": "the head alone, on the frozen pretrained encoder"}


class ProbeHead(nn.Sequential):
    """Linear probe of pooled features (B, features): BatchNorm without affine, then linear."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(nn.BatchNorm1d(features, affine=False, eps=1e-6), nn.Linear(features, classes))


class SegmentationHead(nn.Sequential):
    """Linear probe of a map (B, features, h, w): 1 x 1 convolution, then from 14 x 14 to 96 x 96, DFC2020's size."""

    def __init__(self, features: int, classes: int) -> None:
        upsample = nn.Upsample(scale_factor=96 / 14, mode="bilinear", align_corners=False)
        super().__init__(nn.Conv2d(features, classes, kernel_size=1), upsample)


HEADS: dict[str, Callable[[int, int], nn.Module]] = {
    "linear": nn.Linear,
    "probe": ProbeHead,
    "segmentation": SegmentationHead,
}


@functools.cache
def head_names(kind: str) -> set[str]:
    """Names of a head's tensors in a model."""
    return {f"head.{name}" for name in HEADS[kind](1, 1).state_dict()}


def head_options(record: Record) -> dict[str, str]:
    """How a model is made for a tuned weight set: ``head``, and ``mix`` where it takes two sensors together."""
    task = record.task
    if task is None:
        return {}
    kind = "probe" if task.method == "linear probe" else "linear"
    options = {"head": "segmentation" if task.kind == "segmentation" else kind}
    return options | ({"mix": "random"} if record.together else {})


def two_kinds(names: Sequence[str], mix: str) -> tuple[list[int], list[int]]:
    """Where the bands of Sentinel-1 and the others are."""
    if mix not in MIXES:
        raise InputError(f"mix is {mix!r}, expected {' or '.join(MIXES)}")
    radar = [i for i, name in enumerate(names) if name in RADAR]
    others = [i for i, name in enumerate(names) if name not in RADAR]
    if not radar or not others:
        raise InputError(
            f"got the bands {', '.join(names)}: a model of two sensors together takes those of Sentinel-1 and of "
            "Sentinel-2 in one image; name them with bands=[...]"
        )
    return radar, others


def half_mix(first: Tensor, second: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Two complementary random mixes of two maps (B, D, h, w): each has half of its places from either.

    A random half of an image's places, drawn for each image, keeps ``first`` in the first result and ``second`` in
    the second; the other places are swapped.
    """
    batch, _, height, width = first.shape
    device = generator.device if generator is not None else first.device
    rank = torch.rand(batch, height * width, generator=generator, device=device).argsort(1).argsort(1)
    kept = (rank < height * width // 2).view(batch, 1, height, width).to(first.device)
    return torch.where(kept, first, second), torch.where(kept, second, first)


def tuned_records(projected: Collection[str], **paper: Any) -> Iterator[Record]:
    """One record for each published set and size; no hash is published for any.

    Args:
        projected: the bands that have a projection, so that a model can take them.
        **paper: what all weights of the paper share.
    """
    table = json.loads(importlib.resources.files("eo_zoo").joinpath("data/smarties_tasks.json").read_text("utf-8"))
    for tag, facts in table["sets"].items():
        classes = tuple(table["classes"][facts["classes"]])
        own = {key: facts[key] for key in ("kind", "data_set", "method", "metric", "size")}
        names = tuple(facts["statistics"])
        bands = [band for name in names for band in sensors.get_sensor(name).band_names]
        for size, result in facts["result"].items():
            yield Record(
                name=f"smarties_vit_{size}.{tag}",
                title=f"SMARTIES ViT-{size[0].upper()}, {own['method']} on {own['data_set']}: {own['kind']}, "
                f"{len(classes)} classes",
                source=SOURCE.format(size=size[0], file=tag.replace("_", "-")),
                sensors=names,
                accepts=tuple(band for band in bands if band in projected),
                statistics=facts["statistics"],
                gsd=dict.fromkeys(names, tuple(facts["gsd"])),
                trained_on=f"{facts['images']}: {TRAINED[own['method']]}",
                task=Task(classes=classes, result=result, **own),
                together=len(names) > 1,
                resize="spline",
                crop=facts.get("crop", 1.0),
                **paper,
            )
