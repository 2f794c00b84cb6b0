"""Time of ``import eo_zoo`` against ``import timm``, interleaved, in fresh processes.

python benchmarks/import_time.py [--runs 20]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys

CODE = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


def measure(module: str) -> float:
    """Seconds of one import in a process of its own."""
    result = subprocess.run([sys.executable, "-c", CODE.format(module)], capture_output=True, text=True, check=True)
    return float(result.stdout)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    modules = ("timm", "eo_zoo")
    for module in modules:
        measure(module)  # warms the file cache
    times: dict[str, list[float]] = {module: [] for module in modules}
    for _ in range(runs):
        for module in modules:
            times[module].append(measure(module))
    medians = {module: statistics.median(values) for module, values in times.items()}
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, median of {runs}")
    for module, seconds in medians.items():
        print(f"import {module}: {seconds:.3f} s")
    print(f"ratio: {medians['eo_zoo'] / medians['timm']:.3f}")


if __name__ == "__main__":
    main()
