"""The command line: words to calls, and errors to exit codes (0 fine, 1 failure, 2 wrong use)."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from eo_zoo.errors import DownloadError, InputError, MissingExtra
from eo_zoo.options import (
    AsJson,
    Bands,
    Box,
    BoxCrs,
    Cache,
    Device,
    Dtype,
    Name,
    Nodata,
    Offset,
    Overwrite,
    Quiet,
    Resolution,
    Sensor,
    Stats,
    Units,
    Weights,
)

app = typer.Typer(
    name="eo-zoo",
    help="Earth-observation foundation models: list them, get their weights, embed and classify scenes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console()
err = Console(stderr=True)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from eo_zoo import __version__

        out.print(__version__)
        raise typer.Exit()


@app.command("list")
def list_(
    filter: Annotated[str, typer.Argument(help="Part of a name, or a pattern such as 'smarties*'.")] = "*",
    as_json: AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
) -> None:
    """List models and their weight sets."""
    from eo_zoo import registry

    rows = registry.table(filter)
    if not rows:
        raise InputError(f"no model matches '{filter}'; eo-zoo list shows all")
    if as_json and markdown:
        raise InputError("--json and --markdown: give one of them")
    if as_json or markdown:
        typer.echo(registry.markdown(rows)) if markdown else _print_json(rows)
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("model", no_wrap=True)
    for column in ("size", "sensors", "task", "licence"):
        table.add_column(column, overflow="fold")
    for row in rows:
        size, task = f"{row['parameters'] / 1e6:.0f} M", row["task"] or "features"
        table.add_row(row["name"], size, ", ".join(row["sensors"]), task, row["licence"])
    out.print(table)


@app.command()
def info(name: Name, as_json: AsJson = False) -> None:
    """Show bands, units, statistics, licence, citation, size and hash of a weight set."""
    from eo_zoo import registry

    facts = registry.info(name)
    if as_json:
        _print_json(facts)
        return
    facts["bands"] = ", ".join(_band(band) for band in facts["bands"])
    facts["statistics"] = ", ".join(f"{sensor}: {own['name']}" for sensor, own in facts["statistics"].items())
    facts.pop("weights")
    facts["size"] = f"{facts['size']:,} bytes" if facts["size"] else "not published"
    if not facts["sha256"]:
        checked = "the md5" if facts["md5"] else "the Hub's own"
        facts["sha256"] = f"not published: {checked} is checked, and it is pinned at first use"
    facts["gsd"] = ", ".join(f"{sensor}: {_span(*span)}" for sensor, span in facts["gsd"].items())
    facts["parameters"] = f"{facts['parameters']:,}"
    facts["task"] = _task(facts["task"]) if facts["task"] else "features"
    grid = Table.grid(padding=(0, 2))
    for key, value in facts.items():
        text = ", ".join(value) if isinstance(value, (list, tuple)) else str(value)
        if value is not None and text:
            grid.add_row(f"[bold]{key}[/bold]", escape(text))
    out.print(grid)


@app.command()
def download(
    name: Name,
    all_tags: Annotated[bool, typer.Option("--all-tags", help="All weight sets of an architecture.")] = False,
    cache_dir: Cache = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a weight set, verify it, and keep it ready in the cache."""
    from eo_zoo import registry

    if all_tags:
        rows = registry.download_all(name, cache_dir=cache_dir)
        _print_json(rows) if as_json else out.print(_downloads(rows))
        errors = [row["error"] for row in rows if row["error"]]
        for error in errors:
            _error(error)
        raise typer.Exit(1 if errors else 0)
    origin = registry.download(name, cache_dir=cache_dir)
    if as_json:
        _print_json(
            {
                "name": origin.name,
                "source": origin.source,
                "sha256": origin.sha256,
                "verified": origin.verified,
            }
        )
    else:
        out.print(f"ready: {origin}", highlight=False, soft_wrap=True)


@app.command()
def embed(
    source: Annotated[
        str,
        typer.Argument(metavar="INPUT", help="GeoTIFF, folder of band files, or STAC item (path or URL)."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="OUT.tif; OUT.npy or OUT.json with --pool.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Model, with or without tag.")] = "smarties_vit_nano",
    weights: Weights = None,
    cache_dir: Cache = None,
    sensor: Sensor = None,
    bands: Bands = None,
    bbox: Box = None,
    bbox_crs: BoxCrs = None,
    resolution: Resolution = None,
    units: Units = None,
    boa_offset: Offset = None,
    nodata: Nodata = None,
    stats: Stats = None,
    layer: Annotated[
        int | None, typer.Option(help="Block or stage, from 0, whose map is written; the last if not given.")
    ] = None,
    pool: Annotated[
        str | None, typer.Option(help="One vector for the input instead of a map: token or avg (MaRS: avg).")
    ] = None,
    overlap: Annotated[int | None, typer.Option(help="Pixels that tiles overlap; half a tile if not given.")] = None,
    min_valid: Annotated[float, typer.Option(help="Least share of valid values a patch needs, 0 to 1.")] = 0.0,
    batch_size: Annotated[int, typer.Option(help="Tiles at a time.")] = 8,
    device: Device = None,
    dtype: Dtype = "float32",
    out_dtype: Annotated[str, typer.Option(help="float32 or float16 in the output.")] = "float32",
    preview: Annotated[
        Path | None, typer.Option(help="PNG: true colour beside the first three principal components.")
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Embed a scene: raster in, georeferenced raster of embeddings out."""
    from eo_zoo import geo

    result = geo.embed_raster(
        source,
        model,
        output,
        weights=weights,
        cache_dir=cache_dir,
        sensor=sensor,
        bands=_names(bands),
        bbox=bbox,
        bbox_crs=bbox_crs,
        resolution=resolution,
        units=units,
        boa_offset=boa_offset,
        nodata=nodata,
        stats=stats,
        layer=layer,
        pool=pool,
        overlap=overlap,
        min_valid=min_valid,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        out_dtype=out_dtype,
        preview=preview,
        overwrite=overwrite,
        progress=False if quiet else None,
        report=_reporter(quiet),
    )
    if as_json:
        _print_json(result.to_dict())
    elif not quiet:
        out.print(result.summary(), highlight=False, markup=False, soft_wrap=True)


@app.command()
def predict(
    model: Annotated[str, typer.Option("--model", "-m", help="A tuned one, as smarties_vit_base.eurosat_finetune.")],
    source: Annotated[
        str | None,
        typer.Argument(metavar="INPUT", help="GeoTIFF, folder of band files, or STAC item (path or URL)."),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", help="SENSOR=INPUT, instead of INPUT and twice, for a model of two sensors together."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="OUT.tif: a map of classes; OUT.json: the classes of all.")
    ] = None,
    weights: Weights = None,
    cache_dir: Cache = None,
    sensor: Sensor = None,
    bands: Bands = None,
    bbox: Box = None,
    bbox_crs: BoxCrs = None,
    resolution: Resolution = None,
    units: Units = None,
    boa_offset: Offset = None,
    nodata: Nodata = None,
    stats: Stats = None,
    top: Annotated[int, typer.Option(help="Classes to print.")] = 5,
    threshold: Annotated[
        float | None, typer.Option(help="Score from which on a label is given, 0.5 if not said; multi-label only.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="Pixels a side of what is classified at a time; those of the data set's images.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Pixels from window to window; the window, for segmentation half of it.")
    ] = None,
    min_valid: Annotated[float, typer.Option(help="Least share of valid values a cell needs, 0 to 1.")] = 0.0,
    scores: Annotated[Path | None, typer.Option(help="SCORES.tif: the map's scores, a band for each class.")] = None,
    preview: Annotated[Path | None, typer.Option(help="PNG: true colour beside the map, with a legend.")] = None,
    mix: Annotated[
        str | None, typer.Option(help="Of two sensors together: random halves, as published, or plain.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the random mix; 0 if not given.")] = None,
    batch_size: Annotated[int, typer.Option(help="Windows at a time.")] = 8,
    device: Device = None,
    dtype: Dtype = "float32",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Classify with a tuned model: an image's classes with scores, or a georeferenced map over a scene."""
    from eo_zoo import geo

    if top < 1:
        raise InputError(f"--top is {top}, expected 1 or more")
    result = geo.predict_raster(
        _inputs(source, inputs),
        model,
        output,
        weights=weights,
        cache_dir=cache_dir,
        sensor=sensor,
        bands=_names(bands),
        bbox=bbox,
        bbox_crs=bbox_crs,
        resolution=resolution,
        units=units,
        boa_offset=boa_offset,
        nodata=nodata,
        stats=stats,
        window=window,
        stride=stride,
        threshold=threshold,
        min_valid=min_valid,
        mix=mix,
        seed=seed,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        scores=scores,
        preview=preview,
        overwrite=overwrite,
        progress=False if quiet else None,
        report=_reporter(quiet),
    )
    if as_json:
        _print_json(result.to_dict())
    elif not quiet or output is None:
        out.print(result.summary(top), highlight=False, markup=False, soft_wrap=True)


def _names(text: str | None) -> list[str] | None:
    return [name.strip() for name in text.split(",")] if text is not None else None


def _inputs(source: str | None, inputs: list[str] | None) -> str | dict[str, str]:
    """INPUT, or the inputs by sensor."""
    if (source is None) == (not inputs):
        raise InputError("give one INPUT, or --input SENSOR=INPUT for each sensor of a model that takes several")
    if source is not None:
        return source
    pairs = [text.partition("=") for text in inputs or []]
    wrong = next((text for text, (_, equals, path) in zip(inputs or [], pairs, strict=True) if not path), None)
    if wrong:
        raise InputError(f"--input is '{wrong}', expected SENSOR=INPUT, as s2=folder")
    if len({sensor.lower() for sensor, *_ in pairs}) < len(pairs):
        raise InputError("--input: a sensor is given twice")
    return {sensor: path for sensor, _, path in pairs}


def _reporter(quiet: bool) -> Callable[[str, str], None]:
    def report(kind: str, text: str) -> None:
        if kind == "warning":
            _warn(text)
        elif not quiet:
            err.print(text, highlight=False, markup=False, soft_wrap=True)

    return report


def _downloads(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("weights", no_wrap=True)
    for column in ("size", "sha256", "verified", "from"):
        table.add_column(column, no_wrap=True)
    for row in rows:
        size = f"{row['size'] / 1e6:,.1f} MB" if row["size"] else "unknown"
        facts = ("", "", "failed") if row["error"] else (row["sha256"][:8], str(row["verified"]).lower(), row["from"])
        table.add_row(row["name"], size, *facts)
    return table


def _span(low: float, high: float) -> str:
    return f"{low:g} m" if low == high else f"{low:g} to {high:g} m"


def _band(band: dict[str, Any]) -> str:
    size = f" ({band['gsd']:g} m)" if band["gsd"] else ""
    return f"{band['sensor_name']} {band['name']}{size}"


def _task(task: dict[str, Any]) -> str:
    result = "not recorded" if task["result"] is None else f"{task['result']:g} %"
    return (
        f"{task['kind']}, {task['method']} on {task['data_set']} ({task['size']} x {task['size']} pixels); "
        f"{task['metric']}: {result}; {len(task['classes'])} classes: {'; '.join(task['classes'])}"
    )


def _print_json(value: Any) -> None:
    # not rich's own: it wraps and colours, and scripts read this
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def _warn(text: str) -> None:
    err.print(f"[bold yellow]warning:[/] {escape(text)}", highlight=False, soft_wrap=True)


class _Warnings(logging.Handler):
    """What the package logs as a warning is shown like the command's own."""

    def emit(self, record: logging.LogRecord) -> None:
        _warn(record.getMessage())


def _error(text: str) -> None:
    err.print(f"[bold red]error:[/] {escape(text)}", highlight=False, soft_wrap=True)


def _fail(text: str, code: int) -> NoReturn:
    _error(text)
    sys.exit(code)


def main() -> None:
    """Run the command line, turning the package's exceptions into one sentence and an exit code."""
    logging.getLogger("eo_zoo").addHandler(_Warnings(logging.WARNING))
    try:
        app()
    except InputError as error:
        _fail(str(error), 2)
    except (DownloadError, MissingExtra, OSError) as error:
        _fail(str(error), 1)


if __name__ == "__main__":
    main()
