"""A bar for long work."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar(
    what: str, total: int, show: bool | None = None, unit: str = "tiles"
) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, or nothing; it is called with the number that is done. ``show`` None: where it is a terminal."""
    if not (sys.stderr.isatty() if show is None else show):
        yield lambda count: None
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn(what), progress.BarColumn(), progress.MofNCompleteColumn(),
        progress.TextColumn(unit), progress.TimeElapsedColumn(), progress.TimeRemainingColumn(),
    )  # fmt: skip
    with progress.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)
