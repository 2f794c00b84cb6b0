"""Converting a checkpoint against copying it: time and memory, each run in a process of its own.

    python benchmarks/convert.py [--file smarties_large mars_large anysat_base] [--format safetensors zip legacy]
                                 [--runs 5] [--folder DIR]

The files are forged from the names and shapes that tests/data/parity records, with random values: SMARTIES large as its
pretraining leaves it, 1.3 GB; MaRS large, 0.8 GB; AnySat base, 0.5 GB. Each run of `eo_zoo.convert.convert` is timed
after its imports, from the file to the folder that was read back and renamed, and in turn with a plain copy of the file
that waits until it is on the disk (shutil.copyfile, then fsync). Source files are in the page cache throughout. Memory
is the process's highest resident size, imports and mapped files included (VmHWM, and ru_maxrss). Ratios are of medians.
Exits with 1 where memory is more than the file and 1 GB, or, of files of 1 GB and more, time more than 3 times the
copy's: smaller ones take longer than that, because what a model is costs the same whatever its size (MaRS: about 1 s).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Nothing large here: the kernel counts what a process was forked from to its highest resident size.
PARITY = Path(__file__).parents[1] / "tests" / "data" / "parity"
FILES = {
    "smarties_large": ("smarties_large", "pretraining"),
    "mars_large": ("mars", "large_sar_encoder_only"),
    "anysat_base": ("anysat_base", None),
}
FORMATS = ("safetensors", "zip", "legacy")
MOST_TIME, MORE_MEMORY, JUDGED = 3.0, 10**9, 10**9


def forge(name: str, kind: str, path: Path) -> None:
    """Write an official file with random values."""
    import torch
    from safetensors.torch import save_file

    manifest, part = FILES[name]
    rows = json.loads((PARITY / f"{manifest}.manifest.json").read_text())
    tensors = {
        key: torch.randn(shape).to(getattr(torch, dtype)) for key, shape, dtype in (rows[part] if part else rows)
    }
    if kind == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "zip")


def copy(source: Path, output: Path) -> float:
    """Seconds of a copy that is on the disk."""
    start = time.perf_counter()
    shutil.copyfile(source, output)
    with output.open("rb+") as file:
        os.fsync(file.fileno())
    return time.perf_counter() - start


def convert(source: Path, output: Path) -> float:
    """Seconds of a conversion, imports aside."""
    import eo_zoo.hf.folder  # noqa: F401  (with transformers)
    from eo_zoo.convert import convert

    start = time.perf_counter()
    convert(source, output)
    return time.perf_counter() - start


def measured(work: str, source: Path, output: Path) -> tuple[float, int, int]:
    """Seconds, VmHWM and ru_maxrss (bytes) of one run in a process of its own; what it writes is removed."""
    command = [sys.executable, __file__, "--work", work, str(source), str(output)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "EO_ZOO_CACHE": str(source.parent / "c")}
    try:
        text = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    finally:
        shutil.rmtree(output) if output.is_dir() else output.unlink(missing_ok=True)
    seconds, highest, maxrss = json.loads(text.splitlines()[-1])
    return seconds, highest, maxrss


def work(name: str, source: Path, output: Path) -> None:
    """One run, told to the process that measures."""
    seconds = copy(source, output) if name == "copy" else convert(source, output)
    status = Path("/proc/self/status").read_text()
    highest = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    print(json.dumps([seconds, highest, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))


def compare(name: str, kind: str, runs: int, folder: Path) -> bool:
    """Print one line; whether both limits are kept."""
    source = folder / f"{name}.{kind}"
    # in a process of its own, see above
    code = f"import convert; convert.forge({name!r}, {kind!r}, convert.Path({str(source)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
    measured("copy", source, folder / "copy")
    rounds = [
        (measured("copy", source, folder / "copy"), measured("convert", source, folder / "out")) for _ in range(runs)
    ]
    size = source.stat().st_size
    source.unlink()
    plain, full = (statistics.median(one[i][0] for one in rounds) for i in (0, 1))
    ratios = sorted(one[1][0] / one[0][0] for one in rounds)
    highest, maxrss = (max(one[1][i] for one in rounds) for i in (1, 2))
    kept = (full <= MOST_TIME * plain or size < JUDGED) and highest <= size + MORE_MEMORY
    print(
        f"{name:15} {kind:12} {size:13,} bytes   copy {plain:5.2f} s, convert {full:5.2f} s, {full / plain:4.2f} times "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f})   memory {highest:,} bytes, the file and {highest - size:,} "
        f"(ru_maxrss {maxrss:,})   {'kept' if kept else 'NOT KEPT'}",
        flush=True,
    )
    return kept


def main() -> int:
    """Measure what is asked for; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", nargs="+", choices=FILES, default=["smarties_large"])
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where there is room for three times the file; the temporary one")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.work[0], *map(Path, given.work[1:]))
        return 0
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, a load of {os.getloadavg()[0]:.1f}, median of {given.runs}, "
        "interleaved"
    )
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        kept = [compare(name, kind, given.runs, Path(folder)) for name in given.file for kind in given.format]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
