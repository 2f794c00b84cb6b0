"""MultiMAE base against timm's ViT-B of the same tokens, and against the public code: time and memory.

    python benchmarks/multimae.py [--batch 1 8] [--runs 10] [--reference DIR] [--only rgb domains step] [--bf16]

DIR is a checkout of github.com/josesosajs/multimae-meets-eo (which imports einops). Weights are random: speed does not
depend on them. Works of one row are run in turn, medians and ratios are of one process; memory is the peak above what
the process held before, model and input, in a process of its own.

rgb      56 x 56 pixels, one domain: 49 tokens and one; timm's ViT-B/8 at 56
domains  all six domains: 294 tokens and one; timm's ViT-B/8 at 112 x 168
step     one step of pretraining, 49 of 294 tokens visible: forward, losses, backward, AdamW; the public code's alone
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from measure import Work, machine, medians, peak_memory

import eo_zoo
from eo_zoo.models.multimae_domains import DOMAINS
from eo_zoo.train.multimae import MultiMaePretraining

PARTS = ("rgb", "domains", "step")
VISIBLE = 49


def places(batch: int, device: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """All six domains of ``batch`` places."""
    return {
        name: torch.randint(one.channels, (batch, 14, 14), device=device)
        if one.classes
        else torch.randn(batch, one.channels, 56, 56, device=device, dtype=dtype)
        for name, one in DOMAINS.items()
    }


def training(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Work:
    """A step of the published optimizer."""
    parameters = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def without_gradients(model: torch.nn.Module, x: Any) -> Work:
    """A forward pass."""
    return torch.inference_mode()(functools.partial(model.eval(), x))


# ---- whose work it is: functions of (part, batch, device, dtype) ----


def ours(part: str, batch: int, device: str, dtype: torch.dtype) -> Work:
    """eo_zoo's model."""
    model = eo_zoo.create_model("multimae_eo_base", pretrained=False).to(device, dtype)
    data = places(batch, device, dtype)
    if part != "step":
        return without_gradients(model, data if part == "domains" else data["rgb"])
    pretraining = MultiMaePretraining(model).to(device, dtype).train()
    return training(pretraining, lambda: pretraining(data, visible=VISIBLE).loss)


def plain_vit(part: str, batch: int, device: str, dtype: torch.dtype) -> Work:
    """timm's ViT-B of as many tokens, without a norm at its end, as MultiMAE's."""
    size = (56, 56) if part == "rgb" else (112, 168)
    model = timm.create_model("vit_base_patch8_224", img_size=size, num_classes=0, final_norm=False)
    return without_gradients(model.to(device, dtype), torch.randn(batch, 3, *size, device=device, dtype=dtype))


def public(part: str, batch: int, device: str, dtype: torch.dtype, folder: Path) -> Work:
    """The public code's model, called as its training does."""
    sys.path.insert(0, str(folder))
    # its utilities read a data set's file when they are imported; the model needs their register of models alone
    utilities = types.ModuleType("utils")
    utilities.__path__ = [str(folder / "utils")]
    sys.modules.setdefault("utils", utilities)
    warnings.filterwarnings("ignore")  # of meshgrid and autocast, at each call
    from domain_config import CONFIG
    from multimae.multimae import multivit_base, pretrain_multimae_base

    every = {name: dict(stride_level=one["stride_level"], patch_size_full=8) for name, one in CONFIG.items()}
    inputs = {name: CONFIG[name]["input_adapter"](**sizes) for name, sizes in every.items()}
    data = places(batch, device, dtype)
    if part != "step":
        model = multivit_base(inputs, None).to(device, dtype)
        return without_gradients(model, data if part == "domains" else data["rgb"])

    own = {name: name for name in every} | {"norm_rgb": "rgb"}
    common = dict(dim_tokens=128, depth=2, num_heads=8, context_tasks=list(every))
    outputs = {out: CONFIG[name]["output_adapter"](task=name, **common, **every[name]) for out, name in own.items()}
    losses = {name: CONFIG[name]["loss"](patch_size=8, stride=CONFIG[name]["stride_level"]) for name in every}
    losses["norm_rgb"] = CONFIG["rgb"]["loss"](patch_size=8, norm_pix=True)
    model = pretrain_multimae_base(inputs, outputs).to(device, dtype).train()

    def loss() -> torch.Tensor:
        made, masks = model(data, num_encoded_tokens=VISIBLE)
        return sum(losses[out](made[out].float(), data[name], mask=masks[name]) for out, name in own.items())

    return training(model, loss)


# ---- measuring ----


def memory(make: Callable[..., Work], arguments: tuple) -> float:
    """Peak of one run above model and input, in MB."""
    work = make(*arguments)
    with peak_memory() as peak:
        work()
    return peak["MB"]


def compare(part: str, batch: int, options: argparse.Namespace) -> None:
    """A line for each of: ours, timm's, the public code's."""
    dtype = torch.bfloat16 if options.bf16 else torch.float32
    common = (part, batch, options.device, dtype)
    makers: dict[str, tuple[Callable[..., Work], tuple]] = {"eo_zoo": (ours, common)}
    if part != "step":
        makers["timm ViT-B"] = (plain_vit, common)
    if options.reference:
        makers["public code"] = (public, (*common, options.reference))
    seconds = medians({name: make(*arguments) for name, (make, arguments) in makers.items()}, options.runs)
    for name, (make, arguments) in makers.items():
        ratio = seconds["eo_zoo"] / seconds[name]
        held = ""
        if options.device == "cpu":
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                held = f"; {pool.apply(memory, (make, arguments)):,.0f} MB"
        print(f"{part:7s}  batch {batch:3d}  {name:11s} {seconds[name]:8.4f} s, eo_zoo takes {ratio:.3f} of it{held}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--reference", type=Path, help="checkout of the public code")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--bf16", action="store_true", help="weights and images in bfloat16")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    print(machine("bfloat16" if options.bf16 else "float32", options.runs))
    for part in options.only:
        for batch in options.batch:
            compare(part, batch, options)


if __name__ == "__main__":
    main()
