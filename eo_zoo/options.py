"""Options of the command line that several commands have."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Name = Annotated[
    str,
    typer.Argument(help="Model, with or without tag, as smarties_vit_base or smarties_vit_base.pretrain."),
]
Cache = Annotated[
    Path | None,
    typer.Option("--cache-dir", help="Where weights are kept; else $EO_ZOO_CACHE or ~/.cache/eo_zoo."),
]

# What embed and predict share.
Weights = Annotated[
    str | None,
    typer.Option(help="A local checkpoint, or github://OWNER/REPO/TAG/ASSET, instead of the published one."),
]
Sensor = Annotated[str | None, typer.Option(help="Sensor, whose band names are meant: S2, S1, RGB, ...")]
Bands = Annotated[
    str | None,
    typer.Option(
        help="Band names, with commas: all of a multi-band file's in order, - for one not to be used; or a choice from "
        "a folder or item."
    ),
]
Box = Annotated[
    tuple[float, float, float, float] | None, typer.Option(help="min x, min y, max x, max y: only this part.")
]
BoxCrs = Annotated[str | None, typer.Option(help="CRS of --bbox, as EPSG:4326; the scene's if not given.")]
Resolution = Annotated[float | None, typer.Option(help="Resample to this pixel size; the finest band's if not given.")]
Units = Annotated[str | None, typer.Option(help="What the stored numbers are: dn, reflectance, db, linear, uint8.")]
Offset = Annotated[
    float | None, typer.Option(help="Added to digital numbers, -1000 for Sentinel-2 since baseline 04.00.")
]
Nodata = Annotated[float | None, typer.Option(help="Stored value that means missing, where the files do not say.")]
Stats = Annotated[str | None, typer.Option(help="Statistics to normalise by: a recorded set or a JSON file.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; a GPU if there is one.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto (what is fast here) inside the model.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors only.")]

# Of several inputs, a value each: KEY=VALUE, as often as needed.
BandsOf = Annotated[
    list[str] | None,
    typer.Option(
        "--bands",
        help="Band names, with commas: all of a multi-band file's in order, - for one not to be used; or a choice from "
        "a folder or item. Of several inputs KEY=NAMES.",
    ),
]
UnitsOf = Annotated[
    list[str] | None,
    typer.Option(
        "--units",
        help="What the stored numbers are: dn, reflectance, db, linear, uint8. Of several inputs KEY=UNITS, as "
        "s1-asc=linear.",
    ),
]
OffsetOf = Annotated[
    list[str] | None,
    typer.Option(
        "--boa-offset",
        help="Added to digital numbers, -1000 for Sentinel-2 since baseline 04.00. Of several inputs KEY=OFFSET.",
    ),
]
NodataOf = Annotated[
    list[str] | None,
    typer.Option(
        "--nodata",
        help="Stored value that means missing, where the files do not say. Of several inputs KEY=VALUE.",
    ),
]
StatsOf = Annotated[
    list[str] | None,
    typer.Option(
        "--stats",
        help="Statistics to normalise by: a recorded set or a JSON file, which may hold those of several inputs; or "
        "KEY=STATS.",
    ),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        help="SENSOR=INPUT, instead of INPUT and once for each, for a model that takes several. MultiMAE: any of s2, "
        "dem and worldcover, in any CRS.",
    ),
]

# How a time series is read.
DatePattern = Annotated[
    str | None, typer.Option(help="Date in the file names of a series, as %Y%m%d; found by itself where it is clear.")
]
Start = Annotated[str | None, typer.Option(help="First date of a series to use, as 2020-03-01.")]
End = Annotated[str | None, typer.Option(help="Last date of a series to use.")]
MaxDates = Annotated[int | None, typer.Option(help="Dates of a series to use at most, evenly spread.")]
Masks = Annotated[
    str | None, typer.Option(help="Cloud masks of a series: auto (what is found), scl or probability (required), off.")
]
SclInvalid = Annotated[
    str | None, typer.Option(help="Classes of a scene classification that are masked, with commas; 0,1,3,8,9,10.")
]
MaxProbability = Annotated[
    float | None, typer.Option(help="Cloud probability, 0 to 100, above which a pixel is masked; 50.")
]


def with_options(*groups: Mapping[str, Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of these groups (name: Annotated type), as one dict ``options`` of what was given."""

    def wrap(function: Callable[..., None]) -> Callable[..., None]:
        shared = {name: kind for group in groups for name, kind in group.items()}
        own = [one for name, one in inspect.signature(function, eval_str=True).parameters.items() if name != "options"]
        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
            for name, kind in shared.items()
        ]

        @functools.wraps(function)
        def command(**given: Any) -> None:
            options = {name: given.pop(name) for name in shared}
            function(**given, options={name: value for name, value in options.items() if value is not None})

        made: Any = command
        made.__signature__ = inspect.Signature([*own, *added])
        made.__annotations__ = {one.name: one.annotation for one in (*own, *added)}
        del made.__wrapped__
        return command

    return wrap
