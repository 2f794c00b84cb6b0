"""First load of a pickle (checked, converted, kept) against the second (from the cache) and against safetensors.

    python benchmarks/pickle_cache.py [--runs 7]

The file is a forged MaRS base RGB encoder in its official layout, 347 MB, with random values: speed does not depend on
them. "load" brings its tensors into a module that is there already; "create_model" makes the module too. For
safetensors the same tensors are in a file of the library's own writing. Runs are interleaved and of one process; the
files are in the page cache throughout.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file

import eo_zoo
from eo_zoo import weights

MANIFEST = Path(__file__).parents[1] / "tests" / "data" / "parity" / "mars.manifest.json"
NAME = "mars_base_rgb"


def forge(folder: Path) -> tuple[Path, Path]:
    """The official pickle, and its tensors under our names as safetensors."""
    rows = json.loads(MANIFEST.read_text())["base_rgb_encoder_only"]
    tensors = {key: torch.rand(shape, dtype=getattr(torch, dtype)) for key, shape, dtype in rows}
    pickle, plain = folder / "mars.pth", folder / "mars.safetensors"
    torch.save(tensors, pickle)
    family = type(eo_zoo.create_model(NAME, pretrained=False))
    save_file(family.from_official(tensors), plain)
    time.sleep(2.5)  # of a file that has just changed no hash is remembered
    return pickle, plain


def cases(pickle: Path, plain: Path, cache: Path) -> dict[str, dict[str, Callable[[], object]]]:
    """What is timed: each comparison's "first", "second" and "safetensors", in this order."""
    module = eo_zoo.create_model(NAME, pretrained=False)

    def load() -> None:
        tensors, _ = weights.load(pickle, module.from_official, layout=module.layout, cache_dir=cache)
        module.load_state_dict(tensors, strict=False)  # the released files have no final norm

    def plainly() -> None:
        module.load_state_dict(load_file(plain), strict=False)

    def create() -> None:
        eo_zoo.create_model(NAME, weights=pickle, cache_dir=cache)

    def create_plainly() -> None:
        eo_zoo.create_model(NAME, pretrained=False).load_state_dict(load_file(plain), strict=False)

    return {
        "load": {"first": load, "second": load, "safetensors": plainly},
        "create_model": {"first": create, "second": create, "safetensors": create_plainly},
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    logging.getLogger("eo_zoo").setLevel(logging.ERROR)  # a local file is called unverified each time
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = folder / "cache"
        pickle, plain = forge(folder)
        versions = f"torch {torch.__version__}, safetensors {safetensors.__version__}"
        print(
            f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
            f"{versions}, {pickle.stat().st_size:,} bytes, median of {runs}, interleaved"
        )
        for what, timed in cases(pickle, plain, cache).items():
            times: dict[str, list[float]] = {case: [] for case in timed}
            for run in range(runs + 1):
                shutil.rmtree(cache, ignore_errors=True)
                for case, call in timed.items():
                    start = time.perf_counter()
                    call()
                    if run:  # the first warms up
                        times[case].append(time.perf_counter() - start)
            medians = {case: statistics.median(values) for case, values in times.items()}
            for case, seconds in medians.items():
                ratio = medians["second"] / seconds
                print(f"{what:12s}  {case:11s} {seconds:7.3f} s, the second load takes {ratio:.3f} of it")


if __name__ == "__main__":
    main()
