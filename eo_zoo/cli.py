"""The command line: words to calls, and errors to exit codes (0 fine, 1 failure, 2 wrong use)."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.markup import escape
from rich.table import Table

from eo_zoo import cli_cache, cli_convert, cli_serve, cli_sft, cli_vlm
from eo_zoo.console import err, out, print_json, warn
from eo_zoo.errors import DownloadError, InputError, MissingExtra
from eo_zoo.options import (
    AsJson,
    Bands,
    BandsOf,
    Box,
    BoxCrs,
    Cache,
    DatePattern,
    Device,
    Dtype,
    End,
    Inputs,
    Masks,
    MaxDates,
    MaxProbability,
    Name,
    Nodata,
    NodataOf,
    Offset,
    OffsetOf,
    Overwrite,
    Quiet,
    Resolution,
    SclInvalid,
    Sensor,
    Start,
    Stats,
    StatsOf,
    Units,
    UnitsOf,
    Weights,
)

app = typer.Typer(
    name="eo-zoo",
    help="Earth-observation foundation models: list them, get their weights, embed and classify scenes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
KINDS = ("tile", "patch", "dense")  # what a model of several inputs can be asked for


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
        typer.echo(registry.markdown(rows)) if markdown else print_json(rows)
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
    """Show bands, units, statistics, licence, citation, size and hash of a weight set; see describe --format."""
    from eo_zoo import registry
    from eo_zoo.describe import card

    facts, record = registry.info(name), registry.get_record(name)
    if as_json:
        print_json(facts)
        return
    facts["bands"] = ", ".join(_band(band) for band in facts["bands"])
    facts["statistics"] = ", ".join(f"{sensor}: {own['name']}" for sensor, own in facts["statistics"].items())
    facts.pop("weights")
    if facts["inputs"]:
        facts.pop("accepts")
        facts["inputs"] = "\n".join(f"{key}: {', '.join(own['bands'])}" for key, own in facts["inputs"].items())
    facts["size"] = f"{facts['size']:,} bytes" if facts["size"] else "not published"
    if not facts["source"]:
        facts |= {"source": "none: no weights are published, only random ones can be made", "size": None}
    elif not facts["sha256"]:
        facts["sha256"] = card.checked(record)
    facts["gsd"] = ", ".join(f"{sensor}: {card.span_text(*span)}" for sensor, span in facts["gsd"].items())
    facts["parameters"] = f"{facts['parameters']:,}"
    facts["task"] = "features"
    if task := record.task:
        answers = f"{card.task_text(task)}: {'; '.join(task.classes)}"
        facts["task"] = f"{answers}. {card.result_text(task, record.paper)}"
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
        print_json(rows) if as_json else out.print(_downloads(rows))
        errors = [row["error"] for row in rows if row["error"]]
        for error in errors:
            _error(error)
        raise typer.Exit(1 if errors else 0)
    origin = registry.download(name, cache_dir=cache_dir)
    if as_json:
        print_json(
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
    output: Annotated[
        list[str],
        typer.Option(
            "--output",
            "-o",
            help="OUT.tif; OUT.npy or OUT.json for one vector. AnySat: also what, tile (a vector), patch or dense, as "
            "--output dense -o OUT.tif.",
        ),
    ],
    source: Annotated[
        str | None,
        typer.Argument(metavar="INPUT", help="GeoTIFF, folder of band files, or STAC item (path or URL)."),
    ] = None,
    inputs: Inputs = None,
    model: Annotated[str, typer.Option("--model", "-m", help="Model, with or without tag.")] = "smarties_vit_nano",
    weights: Weights = None,
    cache_dir: Cache = None,
    sensor: Sensor = None,
    bands: BandsOf = None,
    bbox: Box = None,
    bbox_crs: BoxCrs = None,
    resolution: Resolution = None,
    units: UnitsOf = None,
    boa_offset: OffsetOf = None,
    nodata: NodataOf = None,
    stats: StatsOf = None,
    layer: Annotated[
        int | None, typer.Option(help="Block or stage, from 0, whose map is written; the last if not given.")
    ] = None,
    pool: Annotated[
        str | None, typer.Option(help="One vector for the input instead of a map: token or avg (MaRS: avg).")
    ] = None,
    patch_size: Annotated[
        int | None, typer.Option(help="AnySat: metres a side of a patch; the smallest if not given.")
    ] = None,
    output_modality: Annotated[
        str | None,
        typer.Option(
            help="AnySat: KEY of the input whose sub-patches a dense map has; the first if not given. MultiMAE: domain "
            "whose map is written, as rgb; the mean of all if not given."
        ),
    ] = None,
    tile: Annotated[
        float | None, typer.Option(help="AnySat: metres a side of a tile; at most 16 patches if not given.")
    ] = None,
    overlap: Annotated[
        int | None, typer.Option(help="Pixels (AnySat: metres) that tiles overlap; half a tile if not given.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Data set whose band orders and statistics hold, as TreeSatAI-TS.")
    ] = None,
    date_pattern: DatePattern = None,
    start: Start = None,
    end: End = None,
    max_dates: MaxDates = None,
    masks: Masks = None,
    scl_invalid: SclInvalid = None,
    max_probability: MaxProbability = None,
    min_valid: Annotated[float, typer.Option(help="Least share of valid values a patch needs, 0 to 1.")] = 0.0,
    batch_size: Annotated[int | None, typer.Option(help="Tiles at a time: 8, of AnySat 1.")] = None,
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
    """Embed a scene, or several inputs of one place: rasters in, georeferenced raster of embeddings out."""
    from eo_zoo import geo

    kinds, paths = ([one for one in output if (one in KINDS) == is_kind] for is_kind in (True, False))
    if len(paths) != 1 or len(kinds) > 1:
        raise InputError(
            f"--output is {', '.join(output)}: expected one file's name, and beside it no more than one of "
            f"{', '.join(KINDS)}"
        )
    result = geo.embed_raster(
        _inputs(source, inputs),
        model,
        Path(paths[0]),
        output=kinds[0] if kinds else None,
        weights=weights,
        cache_dir=cache_dir,
        sensor=sensor,
        bands=_by_key("bands", bands, _split),
        bbox=bbox,
        bbox_crs=bbox_crs,
        resolution=resolution,
        units=_by_key("units", units, str),
        boa_offset=_by_key("boa_offset", boa_offset, float),
        nodata=_by_key("nodata", nodata, float),
        stats=_by_key("stats", stats, str),
        layer=layer,
        pool=pool,
        patch_size=patch_size,
        output_modality=output_modality,
        tile=tile,
        overlap=overlap,
        preset=preset,
        date_pattern=date_pattern,
        start=start,
        end=end,
        max_dates=max_dates,
        masks=masks,
        scl_invalid=_classes(scl_invalid),
        max_probability=max_probability,
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
        print_json(result.to_dict())
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
        print_json(result.to_dict())
    elif not quiet or output is None:
        out.print(result.summary(top), highlight=False, markup=False, soft_wrap=True)


@app.command()
def reconstruct(
    inputs: Annotated[
        list[str], typer.Option("--input", help="s2=INPUT, dem=INPUT or worldcover=INPUT, once for each there is.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="OUT.png: input, masked, reconstruction and truth.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Model, with or without tag.")] = "multimae_eo_base",
    weights: Weights = None,
    cache_dir: Cache = None,
    visible: Annotated[
        str | None,
        typer.Option(
            help="Patches of all domains together that the model is shown, as 49, or their share, as 0.25; a sixth if "
            "not given."
        ),
    ] = None,
    given: Annotated[
        str | None, typer.Option(help="Domains that the model is shown, with commas; all of the inputs if not given.")
    ] = None,
    hide: Annotated[
        str | None, typer.Option(help="Domains that it is not shown, with commas, instead of --given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the patches that are shown.")] = 0,
    row: Annotated[
        int | None,
        typer.Option(help="Of the window's first pixel; the middle of the inputs, or of --bbox, if not given."),
    ] = None,
    col: Annotated[int | None, typer.Option(help="Of the window's first pixel, as --row.")] = None,
    sensor: Sensor = None,
    bands: BandsOf = None,
    bbox: Box = None,
    bbox_crs: BoxCrs = None,
    resolution: Resolution = None,
    units: UnitsOf = None,
    boa_offset: OffsetOf = None,
    nodata: NodataOf = None,
    stats: StatsOf = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Hide patches of one window, and draw what MultiMAE makes of them beside the truth, a row for each domain."""
    from eo_zoo import geo

    result = geo.reconstruct_raster(
        _by_input(inputs),
        model,
        output,
        weights=weights,
        cache_dir=cache_dir,
        **({} if visible is None else {"visible": _share(visible)}),
        given=_names(given),
        hide=_names(hide),
        seed=seed,
        row=row,
        col=col,
        sensor=sensor,
        bands=_by_key("bands", bands, _split),
        bbox=bbox,
        bbox_crs=bbox_crs,
        resolution=resolution,
        units=_by_key("units", units, str),
        boa_offset=_by_key("boa_offset", boa_offset, float),
        nodata=_by_key("nodata", nodata, float),
        stats=_by_key("stats", stats, str),
        overwrite=overwrite,
        report=_reporter(quiet),
    )
    if as_json:
        print_json(result.to_dict())
    elif not quiet:
        out.print(result.summary(), highlight=False, markup=False, soft_wrap=True)


@app.command()
def stats(
    output: Annotated[Path, typer.Option("--output", "-o", help="STATS.json, which --stats takes.")],
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUT...", help="Images of one sensor: GeoTIFFs, folders of band files, STAC items."),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            help="KEY=INPUT, for a model that takes several, as often as needed: an image, a series, a folder of "
            "images or a 'pattern*.tif'.",
        ),
    ] = None,
    sensor: Sensor = None,
    preset: Annotated[
        str | None, typer.Option(help="Data set whose band orders and units hold, as TreeSatAI-TS.")
    ] = None,
    target_units: Annotated[
        str | None, typer.Option(help="Units of the statistics; the preset's or the sensor's if not given.")
    ] = None,
    clip: Annotated[
        bool,
        typer.Option("--clip", help="Also percentiles to clip at, as SMARTIES was trained with, AnySat and MaRS not."),
    ] = False,
    bands: BandsOf = None,
    units: UnitsOf = None,
    boa_offset: OffsetOf = None,
    nodata: NodataOf = None,
    date_pattern: DatePattern = None,
    start: Start = None,
    end: End = None,
    max_dates: MaxDates = None,
    masks: Masks = None,
    scl_invalid: SclInvalid = None,
    max_probability: MaxProbability = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Compute each band's mean and standard deviation over rasters, in the form that --stats takes."""
    from eo_zoo import geo

    if bool(sources) == bool(inputs):
        raise InputError("give images of one sensor, as tile1.tif tile2.tif --sensor AERIAL, or --input KEY=INPUT")
    found = geo.raster_statistics(
        sources or _lists(inputs or []),
        output,
        sensor=sensor,
        preset=preset,
        target_units=target_units,
        clip=clip,
        bands=_by_key("bands", bands, _split),
        units=_by_key("units", units, str),
        boa_offset=_by_key("boa_offset", boa_offset, float),
        nodata=_by_key("nodata", nodata, float),
        date_pattern=date_pattern,
        start=start,
        end=end,
        max_dates=max_dates,
        masks=masks,
        scl_invalid=_classes(scl_invalid),
        max_probability=max_probability,
        overwrite=overwrite,
        progress=False if quiet else None,
        report=_reporter(quiet),
    )
    if as_json:
        print_json({name: own.to_dict() for name, own in found.items()})
    elif not quiet:
        for name, own in found.items():
            for band, mean, std in zip(own.bands, own.mean, own.std, strict=True):
                out.print(f"{name} {band}: mean {mean:.6g}, std {std:.6g}", highlight=False, soft_wrap=True)
        out.print(f"{output}: statistics of {', '.join(found)}", highlight=False, markup=False, soft_wrap=True)


cli_vlm.add_to(app)
cli_cache.add_to(app)
app.command()(cli_convert.convert)
app.command()(cli_serve.serve)
app.add_typer(cli_sft.app, name="sft")


def _lists(inputs: list[str]) -> dict[str, list[str]]:
    """The inputs by key, each as often as it is given."""
    lists: dict[str, list[str]] = {}
    for text in inputs:
        key, _, source = text.partition("=")
        if not source:
            raise InputError(f"--input is '{text}', expected KEY=INPUT, as s2=folder")
        lists.setdefault(key, []).append(source)
    return lists


def _names(text: str | None) -> list[str] | None:
    return _split(text) if text is not None else None


def _split(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _by_key(option: str, texts: list[str] | None, kind: Callable[[str], Any]) -> Any:
    """An option's one value, or its values by input, where all are KEY=VALUE."""
    if not texts:
        return None
    option = f"--{option.replace('_', '-')}"
    found = [
        match.groups() if (match := re.fullmatch(r"([a-z][a-z0-9-]*)=(.+)", text)) else ("", text) for text in texts
    ]
    keys = [key for key, _ in found]
    if len(set(keys)) < len(keys) or ("" in keys and len(keys) > 1):
        raise InputError(f"{option} is given more than once: give it for each input as KEY=VALUE, as s2=...")
    try:
        values = {key: kind(text) for key, text in found}
    except ValueError as error:
        raise InputError(f"{option} is {', '.join(texts)}, expected a number, or KEY=NUMBER") from error
    return values.get("", values)


def _share(text: str) -> int | float:
    """A number with a point is a share, one without a count."""
    try:
        return float(text) if "." in text else int(text)
    except ValueError as error:
        raise InputError(f"--visible is {text}, expected a number of patches, as 49, or a share, as 0.25") from error


def _classes(text: str | None) -> list[int] | None:
    try:
        return [int(one) for one in _split(text)] if text is not None else None
    except ValueError as error:
        raise InputError(f"--scl-invalid is {text}, expected numbers of classes with commas, as 3,8,9") from error


def _inputs(source: str | None, inputs: list[str] | None) -> str | dict[str, str]:
    """INPUT, or the inputs by sensor."""
    if (source is None) == (not inputs):
        raise InputError("give one INPUT, or --input SENSOR=INPUT for each input of a model that takes several")
    return source if source is not None else _by_input(inputs or [])


def _by_input(inputs: list[str]) -> dict[str, str]:
    """SENSOR=INPUT, each once."""
    pairs = [text.partition("=") for text in inputs]
    wrong = next((text for text, (_, equals, path) in zip(inputs, pairs, strict=True) if not path), None)
    if wrong:
        raise InputError(f"--input is '{wrong}', expected SENSOR=INPUT, as s2=folder")
    if len({sensor.lower() for sensor, *_ in pairs}) < len(pairs):
        raise InputError("--input: a sensor is given twice")
    return {sensor: path for sensor, _, path in pairs}


def _reporter(quiet: bool) -> Callable[[str, str], None]:
    def report(kind: str, text: str) -> None:
        if kind == "warning":
            warn(text)
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


def _band(band: dict[str, Any]) -> str:
    size = f" ({band['gsd']:g} m)" if band["gsd"] else ""
    return f"{band['sensor_name']} {band['name']}{size}"


class _Warnings(logging.Handler):
    """What the package logs as a warning is shown like the command's own."""

    def emit(self, record: logging.LogRecord) -> None:
        warn(record.getMessage())


def _error(text: str) -> None:
    err.print(f"[bold red]error:[/] {escape(text)}", highlight=False, soft_wrap=True)


def _fail(text: str, code: int) -> NoReturn:
    _error(text)
    sys.exit(code)


def main(arguments: list[str] | None = None, commands: typer.Typer = app) -> None:
    """Run the command line, turning the package's exceptions into one sentence and an exit code."""
    logging.getLogger("eo_zoo").addHandler(_Warnings(logging.WARNING))
    try:
        commands(arguments)
    except InputError as error:
        _fail(str(error), 2)
    except (DownloadError, MissingExtra, OSError) as error:
        _fail(str(error), 1)


if __name__ == "__main__":
    main()
