"""The command line: words to calls, and errors to exit codes (0 fine, 1 failure, 2 wrong use)."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from eo_zoo.errors import DownloadError, InputError, MissingExtra

app = typer.Typer(
    name="eo-zoo",
    help="Earth-observation foundation models: list them, get their weights, embed scenes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console()
err = Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Name = Annotated[
    str,
    typer.Argument(help="Model, with or without tag, as smarties_vit_base or smarties_vit_base.pretrain."),
]
Cache = Annotated[
    Path | None,
    typer.Option("--cache-dir", help="Where weights are kept; else $EO_ZOO_CACHE or ~/.cache/eo_zoo."),
]


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
    table.add_column("model", no_wrap=True, overflow="fold")
    for column in ("parameters", "sensors", "licence", "weights"):
        table.add_column(column)
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['parameters'] / 1e6:.1f} M",
            ", ".join(row["sensors"]),
            row["licence"],
            row["title"],
        )
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
    facts["sha256"] = facts["sha256"] or "not published: the Hub's own is checked, and pinned at first use"
    facts["gsd"] = ", ".join(f"{sensor}: {_span(*span)}" for sensor, span in facts["gsd"].items())
    facts["parameters"] = f"{facts['parameters']:,}"
    grid = Table.grid(padding=(0, 2))
    for key, value in facts.items():
        text = ", ".join(value) if isinstance(value, (list, tuple)) else str(value)
        if value is not None and text:
            grid.add_row(f"[bold]{key}[/bold]", escape(text))
    out.print(grid)


@app.command()
def download(name: Name, cache_dir: Cache = None, as_json: AsJson = False) -> None:
    """Fetch a weight set, verify it, and keep it ready in the cache."""
    from eo_zoo import registry

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
    weights: Annotated[Path | None, typer.Option(help="A local checkpoint instead of the published one.")] = None,
    cache_dir: Cache = None,
    sensor: Annotated[str | None, typer.Option(help="Sensor, whose band names are meant: S2, S1, RGB, ...")] = None,
    bands: Annotated[
        str | None,
        typer.Option(
            help="Band names, with commas: all of a multi-band file's in order, or a choice from a folder or item."
        ),
    ] = None,
    bbox: Annotated[
        tuple[float, float, float, float] | None,
        typer.Option(help="min x, min y, max x, max y: only this part."),
    ] = None,
    bbox_crs: Annotated[str | None, typer.Option(help="CRS of --bbox, as EPSG:4326; the scene's if not given.")] = None,
    resolution: Annotated[
        float | None, typer.Option(help="Resample to this pixel size; the finest band's if not given.")
    ] = None,
    units: Annotated[
        str | None, typer.Option(help="What the stored numbers are: dn, reflectance, db, linear, uint8.")
    ] = None,
    boa_offset: Annotated[
        float | None,
        typer.Option(help="Added to digital numbers, -1000 for Sentinel-2 since baseline 04.00."),
    ] = None,
    nodata: Annotated[
        float | None, typer.Option(help="Stored value that means missing, where the files do not say.")
    ] = None,
    stats: Annotated[
        str | None, typer.Option(help="Statistics to normalise by: a recorded set or a JSON file.")
    ] = None,
    layer: Annotated[int | None, typer.Option(help="Block whose tokens are written; the last if not given.")] = None,
    pool: Annotated[str | None, typer.Option(help="One vector for the input instead of a map: token or avg.")] = None,
    overlap: Annotated[int | None, typer.Option(help="Pixels that tiles overlap; half a tile if not given.")] = None,
    min_valid: Annotated[float, typer.Option(help="Least share of valid values a patch needs, 0 to 1.")] = 0.0,
    batch_size: Annotated[int, typer.Option(help="Tiles at a time.")] = 8,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; a GPU if there is one.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16 inside the model.")] = "float32",
    out_dtype: Annotated[str, typer.Option(help="float32 or float16 in the output.")] = "float32",
    preview: Annotated[
        Path | None, typer.Option(help="PNG: true colour beside the first three principal components.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors only.")] = False,
    as_json: AsJson = False,
) -> None:
    """Embed a scene: raster in, georeferenced raster of embeddings out."""
    from eo_zoo import geo

    def report(kind: str, text: str) -> None:
        if kind == "warning":
            _warn(text)
        elif not quiet:
            err.print(text, highlight=False, markup=False, soft_wrap=True)

    result = geo.embed_raster(
        source,
        model,
        output,
        weights=weights,
        cache_dir=cache_dir,
        sensor=sensor,
        bands=[band.strip() for band in bands.split(",")] if bands is not None else None,
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
        report=report,
    )
    if as_json:
        _print_json(result.to_dict())
    elif not quiet:
        out.print(result.summary(), highlight=False, markup=False, soft_wrap=True)


def _span(low: float, high: float) -> str:
    return f"{low:g} m" if low == high else f"{low:g} to {high:g} m"


def _band(band: dict[str, Any]) -> str:
    size = f" ({band['gsd']:g} m)" if band["gsd"] else ""
    return f"{band['sensor_name']} {band['name']}{size}"


def _print_json(value: Any) -> None:
    # not rich's own: it wraps and colours, and scripts read this
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def _warn(text: str) -> None:
    err.print(f"[bold yellow]warning:[/] {escape(text)}", highlight=False, soft_wrap=True)


class _Warnings(logging.Handler):
    """What the package logs as a warning is shown like the command's own."""

    def emit(self, record: logging.LogRecord) -> None:
        _warn(record.getMessage())


def _fail(text: str, code: int) -> NoReturn:
    err.print(f"[bold red]error:[/] {escape(text)}", highlight=False, soft_wrap=True)
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
