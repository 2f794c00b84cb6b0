"""Peak memory of embedding a large raster: what a run needs above the loaded model.

Makes a raster of 12 bands of Sentinel-2 in a temporary folder, embeds it, and prints the process's peak
memory less what it held when the model was ready.

    python benchmarks/embed_memory.py                  # 20,000 x 20,000 x 12: hours on a small CPU
    python benchmarks/embed_memory.py --size 3000      # minutes
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import rasterio
import torch
from affine import Affine
from rasterio.windows import Window

import eo_zoo
from eo_zoo.geo import embed_raster
from eo_zoo.sensors import get_sensor

BLOCK = 512


def make_raster(path: Path, size: int) -> None:
    """A tiled, compressed uint16 raster: smooth content, cheap to make, different in every band."""
    bands = get_sensor("S2").band_names
    wave = (np.sin(np.arange(size) / 97.0) * 700 + 1500).astype(np.uint16)
    with rasterio.open(
        path, "w", driver="GTiff", width=size, height=size, count=len(bands), dtype="uint16", nodata=0,
        crs="EPSG:32629", transform=Affine(10, 0, 500_000, 0, -10, 3_000_000), tiled=True, blockxsize=BLOCK,
        blockysize=BLOCK, compress="deflate", predictor=2, interleave="band", bigtiff="IF_SAFER",
    ) as file:  # fmt: skip
        file.descriptions = bands
        for top in range(0, size, BLOCK):
            rows = min(BLOCK, size - top)
            pixels = wave[top : top + rows, None] // 2 + wave[None, :] // 2
            for band in range(len(bands)):
                file.write(pixels + np.uint16(100 * band), band + 1, window=Window(0, top, size, rows))


def resident() -> int:
    """Bytes this process holds now, or at its peak where the system does not tell."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize()
    return peak()


def peak() -> int:
    """Highest number of bytes this process has held."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def show_progress(out: Path, stop: threading.Event) -> None:
    """Every minute, the memory so far and the size of the unfinished output."""
    started = time.perf_counter()
    while not stop.wait(60):
        written = sum(part.stat().st_size for part in out.parent.glob(f".{out.name}*"))
        seconds = time.perf_counter() - started
        print(f"  {seconds:6.0f} s: {resident() / 1e6:.0f} MB, {written / 1e6:.0f} MB written", flush=True)


def main() -> None:
    """Make the raster, embed it, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=20_000, help="rows and columns of the raster (%(default)s)")
    parser.add_argument("--model", default="smarties_vit_nano", help="%(default)s")
    parser.add_argument("--batch-size", type=int, default=8, help="%(default)s")
    parser.add_argument("--device", help="as torch names it")
    parser.add_argument("--preview", action="store_true", help="make the preview too")
    parser.add_argument("--folder", help="where the temporary folder is made")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        source, out = Path(folder, "scene.tif"), Path(folder, "embedding.tif")
        started = time.perf_counter()
        # In a process of its own, whose memory does not count.
        maker = multiprocessing.get_context("spawn").Process(target=make_raster, args=(source, args.size))
        maker.start()
        maker.join()
        if maker.exitcode:
            sys.exit("the raster could not be made")
        made = time.perf_counter() - started
        print(f"raster made in {made:.0f} s, {source.stat().st_size / 1e6:.0f} MB", flush=True)
        model = eo_zoo.create_model(args.model, bands=get_sensor("S2").band_names)
        before = resident()
        stop = threading.Event()
        watcher = threading.Thread(target=show_progress, args=(out, stop), daemon=True)
        watcher.start()
        result = embed_raster(
            source, model, out, batch_size=args.batch_size, device=args.device, progress=False,
            preview=Path(folder, "preview.png") if args.preview else None,
        )  # fmt: skip
        stop.set()
        watcher.join()
        size = out.stat().st_size
    above = peak() - before
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{args.size} x {args.size} x 12, {args.model}: output {result.shape}, {size / 1e6:.0f} MB")
    print(f"time {result.seconds:.0f} s; model ready at {before / 1e6:.0f} MB; peak {above / 1e6:.0f} MB above it")


if __name__ == "__main__":
    main()
