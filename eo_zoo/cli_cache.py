"""The cache on the command line: verify, cache list, cache clear."""

from __future__ import annotations

import datetime
import time
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from eo_zoo.console import err, out, print_json
from eo_zoo.errors import InputError, nearest
from eo_zoo.options import AsJson, Cache, Quiet

DAY = 24 * 3600.0  # seconds

commands = typer.Typer(help="List and clear what is kept of weights.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """The commands of this module."""
    app.command()(verify)
    app.add_typer(commands, name="cache")


def verify(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME|FOLDER|FILE", help="Model with or without tag, a model's folder, a checkpoint; else all."
        ),
    ] = None,
    cache_dir: Cache = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Hash weights again, compare tensors and values, and run each model once. Loading from the cache does not."""
    from eo_zoo.verify import verify as check

    found = check(what, cache_dir=cache_dir, progress=False if quiet else None)
    wrong = [one for one in found if one.error]
    if as_json:
        print_json([one.to_dict() for one in found])
    elif not quiet:
        table = _table("weights", "hash", "tensors", "values", "forward pass")
        for one in found:
            cells = [one.hash, one.tensors and "fit", one.values, one.golden]
            words = [escape(cell) if cell else "-" for cell in cells]
            if one.error:  # the first check that was not passed
                words[cells.index(None)] = "[bold red]failed[/]"
            table.add_row(escape(one.name), *words)
        out.print(table)
        for one in found:
            for note in one.notes:
                err.print(f"{one.name}: {note}", highlight=False, markup=False, soft_wrap=True)
    for one in wrong:
        _error(str(one.error))
    if wrong:
        raise typer.Exit(1)


@commands.command("list")
def list_(cache_dir: Cache = None, as_json: AsJson = False) -> None:
    """List weights, downloads, whole and partial, and what killed processes left."""
    from eo_zoo.weights import cache_root
    from eo_zoo.weights.inventory import entries

    root = cache_root(cache_dir)
    found = entries(root)
    if as_json:
        print_json([_facts(entry) for entry in found])
        return
    if found:
        table = _table("what", "kind", "size", "verified", "last used")
        for entry in found:
            known = {True: "yes", False: "no", None: "-"}[entry.verified]
            table.add_row(escape(entry.title), entry.kind, _size(entry.size), known, _day(entry.used))
        out.print(table)
    _say(f"{_size(sum(entry.size for entry in found))} in {root}")


@commands.command()
def clear(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Models, with or without tag, or files, as listed.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All that eo_zoo keeps there, but pins.")] = False,
    older_than: Annotated[
        float | None, typer.Option(metavar="DAYS", help="Only what was not used for so many days; alone: of all.")
    ] = None,
    pins: Annotated[
        bool, typer.Option("--pins", help="With --all: pinned hashes too; a change at the source shows no more.")
    ] = False,
    cache_dir: Cache = None,
    quiet: Quiet = False,
) -> None:
    """Remove weights, downloads and leftovers from the cache; nothing that is not eo_zoo's."""
    from eo_zoo.weights import cache_root
    from eo_zoo.weights.inventory import entries, remove, remove_small

    if bool(names) and every:
        raise InputError(f"{' '.join(names or [])} and --all: give one of them")
    if not names and not every and older_than is None:
        raise InputError("say what is to be removed: names as in `eo-zoo cache list`, --older-than DAYS, or --all")
    if pins and not every:
        raise InputError("--pins goes with --all")
    if older_than is not None and not older_than >= 0:
        raise InputError(f"--older-than is {older_than:g}, expected days, 0 or more")
    root = cache_root(cache_dir)
    found = entries(root)
    for name in names or []:
        if not any(entry.called(name) for entry in found):
            known = {one for entry in found for one in (entry.title, *entry.names)}
            raise InputError(f"'{name}' is not in {root}. {nearest(name, known) if known else 'It is empty.'}")
    since = time.time() - older_than * DAY if older_than is not None else float("inf")
    meant = [
        entry for entry in found if entry.used <= since and (not names or any(entry.called(name) for name in names))
    ]
    gone = [entry for entry in meant if remove(root, entry)]
    if every and older_than is None:
        remove_small(root, pins=pins)
    if not quiet:
        _say(f"removed {len(gone)} of {len(found)}, {_size(sum(entry.size for entry in gone))}, from {root}")
    for entry in meant:
        if entry not in gone:
            _error(f"{entry.path} is in use by another process, and stays")
    if len(gone) < len(meant):
        raise typer.Exit(1)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=column != columns[0], overflow="fold")
    return table


def _say(text: str) -> None:
    out.print(text, highlight=False, markup=False, soft_wrap=True)


def _error(text: str) -> None:
    err.print(f"[bold red]error:[/] {escape(text)}", highlight=False, soft_wrap=True)


def _facts(entry: Any) -> dict[str, Any]:
    return {
        "names": list(entry.names),
        "kind": entry.kind,
        "size": entry.size,
        "verified": entry.verified,
        "used": datetime.datetime.fromtimestamp(entry.used, datetime.UTC).isoformat(timespec="seconds"),
        "path": str(entry.path),
    }


def _day(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d")


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
