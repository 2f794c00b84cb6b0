"""``describe NAME --format``: what is known of a weight set, as a document; without --format an image is described."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from eo_zoo.console import json_text
from eo_zoo.errors import InputError
from eo_zoo.files import replacing

#: Options of a document; None is left out.
DOCUMENT: Mapping[str, Any] = {
    "form": Annotated[
        str | None,
        typer.Option("--format", help="Of a model: md, a card; json, all facts; mlm, a STAC item of that extension."),
    ],
    "output": Annotated[Path | None, typer.Option("--output", "-o", help="With --format: file to write.")],
    "asset": Annotated[
        bool, typer.Option("--asset", help="With --format mlm: the weights' asset alone, for an item of yours.")
    ],
    "overwrite": Annotated[bool, typer.Option("--overwrite", help="With --format: replace an existing output.")],
}


def refuse_model(image: str) -> None:
    """Raise InputError where an image is asked for, and the name of a model was given."""
    from eo_zoo import registry, terrasense, weights

    names = {*weights.RECORDS, *registry.list_models(), terrasense.RECORD.name}
    if image in names and not Path(image).exists():
        raise InputError(f"{image} is a model: say --format md, json or mlm, or give an image")


def write_document(
    name: str,
    *,
    form: str | None = None,
    output: Path | None = None,
    asset: bool = False,
    overwrite: bool = False,
) -> None:
    """Print what is known of a weight set, or write it to a file.

    Raises:
        InputError: unknown name, options that do not fit, or a file that is there already.
    """
    from eo_zoo import describe

    forms = ("mlm",) if asset else ("md", "json", "mlm")
    if form not in forms:
        found = f", got {form}" if form else ""
        raise InputError(f"expected --format {' or '.join(forms)} for a document about {name}{found}")
    if output and output.exists() and not overwrite:
        raise InputError(f"{output} exists: give --overwrite to replace it, or another name")
    if form == "md":
        text = describe.document(name)
    elif form == "json":
        text = f"{json_text(describe.facts(name))}\n"
    else:
        text = f"{json_text(describe.mlm(name, kind='asset' if asset else 'item'))}\n"
    if output is None:
        typer.echo(text, nl=False)
        return
    with replacing(output) as part:
        part.write_text(text, encoding="utf-8")
