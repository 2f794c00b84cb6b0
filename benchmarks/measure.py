"""What the benchmarks share: interleaved medians, peak memory, and the machine in a line."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import timm
import torch

Work = Callable[[], object]


def machine(dtype: str, runs: int) -> str:
    """Where and how: the first line of a benchmark's output."""
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return (
        f"{platform.machine()}, {cores}, torch {torch.__version__}, timm {timm.__version__}, {dtype}, "
        f"median of {runs}, interleaved"
    )


def medians(works: Mapping[str, Work], runs: int, warmup: int = 2) -> dict[str, float]:
    """Seconds of each, run in turn so that all see the same machine; the first rounds do not count."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for run in range(runs + warmup):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if run >= warmup:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


@contextlib.contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """Highest resident size above the one at the start, in MB, sampled every 2 ms."""
    page = resource.getpagesize()

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * page

    found, done, start = {"MB": 0.0}, threading.Event(), resident()

    def watch() -> None:
        while not done.wait(0.002):
            found["MB"] = max(found["MB"], (resident() - start) / 2**20)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
