"""SMARTIES base against timm's ViT-B on the same work, and against the public code.

    python benchmarks/smarties.py [--batch 8 64] [--runs 20] [--reference DIR]

DIR is a checkout of github.com/gsumbul/SMARTIES (whose utilities import scikit-learn and pyyaml).
Runs are interleaved, medians and ratios are of one process;
memory is the peak above what the process held before, in a process of its own.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from measure import machine, medians, peak_memory

import eo_zoo
from eo_zoo.sensors import get_sensor

S2 = get_sensor("S2").band_names


def ours() -> Callable[[torch.Tensor], torch.Tensor]:
    """eo_zoo's model, random weights: speed does not depend on them."""
    return eo_zoo.create_model("smarties_vit_base", pretrained=False)


def plain_vit() -> Callable[[torch.Tensor], torch.Tensor]:
    """timm's ViT-B of the same width, depth and tokens, on 12 channels."""
    return timm.create_model("vit_base_patch16_224", in_chans=12, num_classes=0).eval()


def public(folder: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """The public code's model, called as its evaluation does."""
    import yaml

    sys.path.insert(0, str(folder))
    from models_smarties_vit import vit_base_patch16

    specs = yaml.safe_load((folder / "config" / "electromagnetic_spectrum.yaml").read_text())
    # a released attribute that today's timm no longer takes is the only thing left out
    model = vit_base_patch16(spectrum_specs=specs, img_size=224, num_classes=0).eval()
    model.head = torch.nn.Identity()
    index = torch.tensor([specs[name]["projection_idx"] for name in S2])

    def call(x: torch.Tensor) -> torch.Tensor:
        indices = index.expand(len(x), 14, 14, -1)
        return model((x, indices), is_patchify=True)

    return call


def memory(make: Callable[..., Callable[[torch.Tensor], torch.Tensor]], arguments: tuple, batch: int) -> float:
    """Peak of one forward pass above model and input."""
    model, x = make(*arguments), torch.randn(batch, 12, 224, 224)
    with torch.inference_mode(), peak_memory() as peak:
        model(x)
    return peak["MB"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--reference", type=Path, help="checkout of the public code")
    arguments = parser.parse_args()
    makers = {"eo_zoo": (ours, ()), "timm ViT-B": (plain_vit, ())}
    if arguments.reference:
        makers["public code"] = (public, (arguments.reference,))
    print(machine("float32", arguments.runs))
    models = {name: make(*args) for name, (make, args) in makers.items()}
    fresh = multiprocessing.get_context("spawn")
    for batch in arguments.batch:
        x = torch.randn(batch, 12, 224, 224)
        with torch.inference_mode():
            seconds = medians({name: functools.partial(model, x) for name, model in models.items()}, arguments.runs)
        for name, (make, args) in makers.items():
            with fresh.Pool(1) as pool:
                peak = pool.apply(memory, (make, args, batch))
            ratio = seconds["eo_zoo"] / seconds[name]
            print(f"batch {batch:3d}  {name:12s} {seconds[name]:7.3f} s, eo_zoo takes {ratio:.3f} of it; {peak:.0f} MB")


if __name__ == "__main__":
    main()
