"""Checkpoints of the public code: forged by the recorded names, and small ones of every family."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from torch import Tensor, nn

from eo_zoo.models.smarties import sincos_positions
from tests.models import multimae, test_anysat, test_mars, test_smarties
from tests.procedural import forge, manifest

STATE = ("aerial", "s2", "s1-asc")  # inputs of AnySat's forged pretraining
MARS_TINY = {**test_mars.TINY, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]}


@dataclass(frozen=True)
class Original:
    """What there is to convert, and what has to come out."""

    recorded: tuple[str, str | None]  # where: file of tests/data/parity, and its part
    tensors: Callable[[], dict[str, Tensor]]
    name: str  # architecture
    layout: str
    check: Callable[[nn.Module], int] | None = None  # compares with expected results, gives their number
    built: Mapping[str, Any] = field(default_factory=dict)  # arguments of the model
    said: tuple[str, ...] = ()  # those of them that no tensor tells
    part: str | None = None
    left_out: int = 0
    added: tuple[str, ...] = ()
    wrapper: str = ""
    slow: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        return {name: self.built[name] for name in self.said}


def smarties(size: str, part: str = "encoder", *, average: bool = False) -> Original:
    def check(model: nn.Module) -> int:
        return test_smarties.check_cases(size, None if average else model, model if average else None)

    dim = {"tiny": 64, "base": 768, "large": 1024}[size]
    name = f"smarties_vit_{'base' if size == 'tiny' else size}"
    built: dict[str, Any] = dict(test_smarties.TINY) if size == "tiny" else {}
    return Original(
        (f"smarties_{size}", part),
        functools.partial(test_smarties.official, size, dim, fc_norm=average, part=part), name, part,
        check=None if size == "large" else check, built=built | (dict(global_pool="avg") if average else {}),
        said=("num_heads",) if size == "tiny" else (), left_out=136 if part == "pretraining" else 0,
        slow=size != "tiny",
    )  # fmt: skip


def smarties_pretraining_tiny() -> dict[str, Tensor]:
    """Of a width of its own, as the decoder that comes with it."""
    dims = {"pos_embed": 64, "decoder_pos_embed": 512}
    return forge(manifest("smarties_tiny_pretraining"), {name: sincos_positions(d, 14, 14) for name, d in dims.items()})


def mars(size: str, sensor: str) -> Original:
    return Original(
        ("mars", f"{size}_{sensor}_encoder_only"), functools.partial(test_mars.official, size, sensor),
        f"mars_{'base' if size == 'tiny' else size}_{sensor}",
        "encoder", check=None if size == "large" else functools.partial(test_mars.check_cases, f"{size}_{sensor}"),
        built=MARS_TINY if size == "tiny" else {}, said=("window_size", "img_size") if size == "tiny" else (),
        added=("norm.weight", "norm.bias"), slow=size != "tiny",
    )  # fmt: skip


def mars_pretraining(sensor: str) -> Original:
    return Original(
        ("mars", "tiny_pretraining"), lambda: forge(manifest("mars", "tiny_pretraining"), {}),
        f"mars_base_{sensor}", "pretraining",
        check=functools.partial(test_mars.check_cases, f"tiny_{sensor}"), built=MARS_TINY,
        said=("window_size", "img_size"), part=f"encoder_{sensor}", left_out=492, wrapper="model",
    )  # fmt: skip


def anysat(size: str) -> Original:
    def check(model: nn.Module) -> int:
        return test_anysat.check_cases(size, model, "planted", *(["spot_s1"] if size == "base" else []))

    return Original(
        (f"anysat_{size}", None), functools.partial(test_anysat.official, size), f"anysat_{size}", "encoder",
        check=check, wrapper="state_dict", slow=size != "tiny",
    )  # fmt: skip


def anysat_state(part: str | None) -> Original:
    """As the module of pretraining names its tensors, or with the teacher, as Lightning saves both."""

    def tensors() -> dict[str, Tensor]:
        rows = manifest("anysat_tiny_pretraining")
        student = forge(rows, {})
        if part is None:
            return student
        # expected results were made with the teacher's values
        own = [(name.removeprefix("encoder."), *rest) for name, *rest in rows if name.startswith("encoder.")]
        teacher = forge(own, {})
        return {
            **{f"model.{name}": tensor for name, tensor in student.items()},
            **{f"target_encoder.{name}": tensor for name, tensor in teacher.items()},
        }

    check = functools.partial(test_anysat.check_cases, "tiny")
    return Original(
        ("anysat_tiny_pretraining", None), tensors, "anysat_tiny", "lightning" if part else "state",
        check=(lambda model: check(model, "aerial_s2_s1asc")) if part == "teacher" else None,
        built=dict(inputs=STATE), part=part, left_out=174 if part else 33, wrapper="state_dict",
    )  # fmt: skip


def multimae_of(size: str, part: str) -> Original:
    return Original(
        (f"multimae_{size}", part), functools.partial(multimae.official, size, part), "multimae_eo_base", part,
        check=functools.partial(multimae.check_cases, size), built=multimae.TINY if size == "tiny" else {},
        said=("num_heads",) if size == "tiny" else (), wrapper="model", slow=size != "tiny",
        left_out={"tiny": 280, "base": 364}[size] if part == "pretraining" else 0,
    )  # fmt: skip


ORIGINALS = {
    "smarties_tiny": smarties("tiny"),
    "smarties_tiny_avg": smarties("tiny", average=True),
    "smarties_tiny_pretraining": Original(
        ("smarties_tiny_pretraining", None), smarties_pretraining_tiny, "smarties_vit_base", "pretraining",
        built=dict(test_smarties.TINY), said=("num_heads",), left_out=52, wrapper="model",
    ),
    **{f"mars_tiny_{sensor}": dataclasses.replace(mars("tiny", sensor), slow=True) for sensor in ("rgb", "sar")},
    "mars_tiny_pretraining_rgb": dataclasses.replace(mars_pretraining("rgb"), slow=True),
    "mars_tiny_pretraining_sar": mars_pretraining("sar"),
    "anysat_tiny": anysat("tiny"),
    "anysat_tiny_student": anysat_state(None),
    "anysat_tiny_state_student": anysat_state("student"),
    "anysat_tiny_state_teacher": dataclasses.replace(anysat_state("teacher"), slow=True),
    **{f"multimae_tiny_{part}": multimae_of("tiny", part) for part in ("encoder", "pretraining")},
    **{f"smarties_{size}_{part}": smarties(size, part) for size in ("base", "large")
       for part in ("encoder", "pretraining")},
    "smarties_base_avg": smarties("base", average=True),
    **{f"mars_{size}_{sensor}": mars(size, sensor) for size in ("base", "large") for sensor in ("rgb", "sar")},
    "anysat_base": anysat("base"),
    **{f"multimae_base_{part}": multimae_of("base", part) for part in ("encoder", "pretraining")},
}  # fmt: skip


# ---------------------------------------------------------------------------------------------- small ones

#: Architecture, how it is built, what of that no tensor tells.
SMALL: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "smarties": (
        "smarties_vit_base",
        dict(embed_dim=32, depth=2, num_heads=2, patch_size=8, img_size=32),
        ("num_heads",),
    ),
    "mars": (
        "mars_base_sar",
        dict(img_size=64, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4], window_size=2),
        ("img_size", "window_size"),
    ),
    "anysat": ("anysat_nano", {}, ()),
    "multimae": ("multimae_eo_base", dict(embed_dim=32, depth=2, num_heads=2), ("num_heads",)),
}


def model_of(family: str, **kwargs: Any) -> Any:
    """A small model of a family with random values, none of them zero."""
    name, built, _ = SMALL[family]
    torch.manual_seed(0)
    model = timm.create_model(name, **{**built, **kwargs}).eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.01, 0.1)
    return model


@functools.cache
def state_of(family: str) -> dict[str, Tensor]:
    """Its tensors, by our names."""
    return dict(model_of(family).state_dict())


@functools.cache
def public_of(family: str) -> dict[str, Tensor]:
    """Its tensors, by the public code's names."""
    state, cls = state_of(family), type(model_of(family))
    layout = next(one for one in cls.layouts(state) if one.name == "encoder")
    plan = layout.back(state)
    assert not plan.unknown
    return {name: tensor.clone() for name, tensor in plan.undo(state).items()}


def said(family: str) -> dict[str, Any]:
    """What no tensor of the small one tells."""
    _, built, unseen = SMALL[family]
    return {name: built[name] for name in unseen}
