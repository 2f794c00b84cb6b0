"""AnySat base against the public code: time, memory, and how near both come to the machine's own products.

    python benchmarks/anysat.py [--runs 5] [--reference DIR] [--only series tile masks bf16 load] [--device cuda]

DIR is a checkout of github.com/gastruc/AnySat. Weights are random: speed does not depend on them. Works of one table
are run in turn, medians and ratios are of one process; memory is the peak above model and input, in a process of its
own. "of the peak" is the share of the speed that plain products of (2048, 768) and (768, 1536) reach in the same run,
by torch's own linear (MKL, on a CPU) or by oneDNN, whichever is faster.

series  one Sentinel-2 tile of 64 x 64 pixels and 61 dates, patches of 40 m, dense
tile    a TreeSatAI tile: aerial 300 x 300, s2 146 dates, s1-asc 60 dates, patches of 10 m; tile, and dense aerial
masks   the series part of the first, with half of its (pixel, date) rows masked, against without masks
bf16    the first in bfloat16: its speed and how near its vectors are to float32's
load    build and load from a local checkpoint the second time, each in a fresh process
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import machine, medians, peak_memory
from torch.utils.flop_counter import FlopCounterMode

import eo_zoo
from eo_zoo.layers.linear import linear

Data = dict[str, torch.Tensor]
PARTS = ("series", "tile", "masks", "bf16", "load")


def ours() -> torch.nn.Module:
    """eo_zoo's model."""
    return eo_zoo.create_model("anysat_base", pretrained=False)


def public(folder: Path) -> torch.nn.Module:
    """The public hub code's model, without flash-attn, in eval mode."""
    sys.path[:0] = [str(folder), str(folder / "src")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from hubconf import AnySat

        return AnySat("base", flash_attn=False).eval()


def series_tile(batch: int = 1) -> Data:
    """64 x 64 pixels of 10 m, 61 dates."""
    return {
        "s2": torch.randn(batch, 61, 10, 64, 64),
        "s2_dates": torch.arange(1, 366, 6)[:61].expand(batch, -1).contiguous(),
    }


def treesat_tile(batch: int = 1) -> Data:
    """60 m: aerial, Sentinel-2 and ascending Sentinel-1 as in TreeSatAI-TS."""
    return {
        "aerial": torch.randn(batch, 4, 300, 300),
        "s2": torch.randn(batch, 146, 10, 6, 6),
        "s2_dates": torch.randint(1, 366, (batch, 146)),
        "s1-asc": torch.randn(batch, 60, 2, 6, 6),
        "s1-asc_dates": torch.randint(1, 366, (batch, 60)),
    }


SERIES = (series_tile, dict(patch_size=40, output="dense"))
TILE = (treesat_tile, dict(patch_size=10, output="tile"))
DENSE = (treesat_tile, dict(patch_size=10, output="dense", output_modality="aerial"))


class Products:
    """Plain products, run among the other works: what the machine gives at best."""

    def __init__(self, device: str, function: Callable[..., torch.Tensor]) -> None:
        self.x = torch.randn(2048, 768, device=device)
        self.w = torch.randn(1536, 768, device=device)
        self.times, self.function = 40, function

    def __call__(self) -> None:
        """Run them."""
        for _ in range(self.times):
            self.function(self.x, self.w)

    def speed(self, seconds: float) -> float:
        """GFLOP/s."""
        return self.times * 2 * self.x.numel() * len(self.w) / seconds / 1e9


def operations(model: torch.nn.Module, data: Data, call: dict[str, Any]) -> float:
    """GFLOP of the products in a call."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(data, **call)
    return counter.get_total_flops() / 1e9


def memory(make: Callable[..., torch.nn.Module], arguments: tuple, work: tuple, compiled: bool) -> float:
    """Peak of a forward pass above model and input, in MB; of the second one where the first compiles."""
    model, data = make(*arguments), work[0]()
    with torch.inference_mode():
        if compiled:
            model = torch.compile(model)
            model(data, **work[1])
        with peak_memory() as peak:
            model(data, **work[1])
    return peak["MB"]


def in_fresh_process(function: Callable[..., float], *arguments: Any) -> float:
    """A number measured in a process that has done nothing else."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def compare(title: str, work: tuple, options: argparse.Namespace) -> None:
    """One row for each of: the public code, ours, ours compiled."""
    data = {name: tensor.to(options.device) for name, tensor in work[0]().items()}
    model = ours().to(options.device)
    models: dict[str, tuple] = {"eo_zoo": (model, ours, (), False)}
    if not options.eager:
        models["eo_zoo, compiled"] = (torch.compile(model), ours, (), True)
    if options.reference:
        other = public(options.reference).to(options.device)
        models = {"public code": (other, public, (options.reference,), False), **models}
    gflop = operations(model, data, work[1])
    products = {"linear": Products(options.device, F.linear), "oneDNN": Products(options.device, linear)}
    with torch.inference_mode():
        works: dict[str, Any] = {name: functools.partial(made[0], data, **work[1]) for name, made in models.items()}
        seconds = medians({**works, **products}, options.runs)
    speeds = {name: one.speed(seconds.pop(name)) for name, one in products.items()}
    peak = max(speeds.values())
    reached = ", ".join(f"{speed:.0f} GFLOP/s by {name}" for name, speed in speeds.items())
    print(f"\n{title}: {gflop:,.0f} GFLOP; plain products reach {reached}")
    first = next(iter(seconds))
    for name, taken in seconds.items():
        _, make, arguments, compiled = models[name]
        took = f"{name:17s} {taken:7.3f} s, {seconds[first] / taken:5.2f} x the speed of {first}"
        share = f"{gflop / taken / peak:4.0%} of the peak"
        held = ""
        if options.device == "cpu":
            held = f", {in_fresh_process(memory, make, arguments, work, compiled):,.0f} MB"
        print(f"  {took}, {share}{held}")


def masks(options: argparse.Namespace) -> None:
    """The series projector with half of the rows masked, and without masks."""
    projector = ours().to(options.device).projectors["s2"]
    data = series_tile()
    x, dates = data["s2"].to(options.device), data["s2_dates"].float().to(options.device)
    print("\nseries part, rows masked as clouds come, whole (pixel, date) rows:")
    keep = torch.rand(1, 61, 1, 64, 64).to(options.device)
    works = {"no mask": functools.partial(projector, x, dates, None)}
    for share in (0.5, 0.7):
        works[f"{share:.0%} masked"] = functools.partial(projector, x, dates, keep > share)
    with torch.inference_mode():
        budget = 24 * 2**20 if options.device == "cpu" else 2**30
        seconds = medians({n: functools.partial(w, memory=budget) for n, w in works.items()}, options.runs)
    for name, taken in seconds.items():
        print(f"  {name:11s} {taken:7.3f} s, {seconds['no mask'] / taken:4.2f} x")


def bf16(options: argparse.Namespace) -> None:
    """Speed of bfloat16, and the cosines of its vectors with float32's."""
    model = ours().to(options.device)
    low = ours().to(options.device)
    low.load_state_dict(model.state_dict())
    low.bfloat16()
    print("\nbfloat16:")
    for title, (make, call) in {"series, dense": SERIES, "tile": TILE, "dense aerial": DENSE}.items():
        data = {name: tensor.to(options.device) for name, tensor in make().items()}
        cast = {name: x.bfloat16() if x.is_floating_point() else x for name, x in data.items()}
        with torch.inference_mode():
            exact, near = model(data, **call), low(cast, **call).float()
            cosine = F.cosine_similarity(near.flatten(0, -2), exact.flatten(0, -2)).min().item()
            works = {
                "float32": functools.partial(model, data, **call),
                "bfloat16": functools.partial(low, cast, **call),
            }
            seconds = medians(works, options.runs)
        ratio = seconds["float32"] / seconds["bfloat16"]
        print(f"  {title:13s} {ratio:5.2f} x the speed of float32, smallest cosine {cosine:.6f}")


OURS = """
import time; import eo_zoo, sys, logging
logging.disable()
start = time.perf_counter(); eo_zoo.create_model("anysat_base", weights=sys.argv[1]); print(time.perf_counter() - start)
"""
PUBLIC = """
import sys, time, warnings; warnings.simplefilter("ignore")
sys.path[:0] = [sys.argv[2], sys.argv[2] + "/src"]
import torch; from hubconf import AnySat
start = time.perf_counter()
model = AnySat("base", flash_attn=False)
model.model.load_state_dict(torch.load(sys.argv[1])["state_dict"]); print(time.perf_counter() - start)
"""


def load(options: argparse.Namespace) -> None:
    """Build and load as a user's process does the second time, imports not counted."""
    if not options.reference:
        print("\nbuild and load: needs --reference, whose checkpoint is read")
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "AnySat.pth"
        torch.save({"state_dict": public(options.reference).model.state_dict()}, path)
        environment = {**os.environ, "EO_ZOO_CACHE": folder}

        def run(code: str) -> float:
            command = [sys.executable, "-c", code, str(path), str(options.reference)]
            made = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            return float(made.stdout.split()[-1])

        first = run(OURS)
        rounds = [(run(PUBLIC), run(OURS)) for _ in range(options.runs)]
    theirs, own = (statistics.median(times) for times in zip(*rounds, strict=True))
    print("\nbuild and load from a local file, each in a fresh process:")
    print(f"  public code {theirs:.2f} s; eo_zoo {first:.2f} s at first, then {own:.2f} s: {theirs / own:.1f} x")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--reference", type=Path, help="checkout of the public code")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--eager", action="store_true", help="leave compiling out, which takes minutes")
    options = parser.parse_args()
    print(machine("float32", options.runs))
    start = time.perf_counter()
    if "series" in options.only:
        compare("one s2 tile, 64 x 64 x 61 dates, patch 40, dense", SERIES, options)
    if "tile" in options.only:
        compare("TreeSatAI tile, tile vector", TILE, options)
        compare("TreeSatAI tile, dense aerial", DENSE, options)
    for name, part in {"masks": masks, "bf16": bf16, "load": load}.items():
        if name in options.only:
            part(options)
    print(f"\ndone in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
