"""Options of the command line that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
Weights = Annotated[Path | None, typer.Option(help="A local checkpoint instead of the published one.")]
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
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16 inside the model.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors only.")]
