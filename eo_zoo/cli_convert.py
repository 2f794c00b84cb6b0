"""``eo-zoo convert``: checkpoints in, verified folders out, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from eo_zoo.console import out, print_json
from eo_zoo.errors import InputError
from eo_zoo.options import AsJson, Overwrite


def convert(
    source: Annotated[
        Path,
        typer.Argument(help="A checkpoint: a file, a folder, or an index of shards; of the public code, or ours."),
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The folder to make.")] = None,
    export: Annotated[
        Path | None,
        typer.Option(help="Instead of a folder: the public code's layout, OUT.pth or OUT.safetensors."),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Only tell what it is and what would be written.")] = False,
    family: Annotated[
        str | None, typer.Option(help="mars, smarties, anysat, multimae or terrasense, that it has to be of.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Model that it has to be, with or without tag; found if not said."),
    ] = None,
    part: Annotated[
        str | None, typer.Option(help="Of a file with several: student, teacher, encoder_rgb, encoder_sar.")
    ] = None,
    ema: Annotated[
        bool, typer.Option("--ema", help="The moving average of the weights, if it lies beside them.")
    ] = False,
    arg: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE of the model, where tensors do not tell, as num_heads=6 of a size of your own."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; as the tensors are stored if not given.")
    ] = None,
    shard_size: Annotated[str, typer.Option(help="Of each file at most, as 500MB.")] = "5GB",
    layout: Annotated[
        str | None, typer.Option(help="Of --export: encoder, pretraining or state; the one it came in if not given.")
    ] = None,
    base: Annotated[
        Path | None, typer.Option(help="TerraSense: folder of the model that an adapter was trained on.")
    ] = None,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload it too, where the weights' licence allows that.")
    ] = None,
    own_weights: Annotated[
        bool, typer.Option("--own-weights", help="Your word that no published weights are in it, for --push-to-hub.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Convert a checkpoint, official or self-trained, to a folder that timm, transformers and eo_zoo read, and back."""
    from eo_zoo import convert as work

    if (output is not None) + (export is not None) + check != 1:
        raise InputError("give one of --output FOLDER, --export FILE and --check")
    others: dict[str, object] = {"--layout": layout, "--overwrite": overwrite}
    if export is not None:
        others = {"--model": model, "--dtype": dtype, "--base": base, "--push-to-hub": push_to_hub}
    if wrong := [option for option, value in others.items() if value]:
        raise InputError(f"{', '.join(wrong)} means nothing {'with' if export else 'without'} --export: leave it out")
    if export is not None:
        plan = work.export_original(
            source, export, family=family, part=part, ema=ema, arguments=_arguments(arg), layout=layout,
            overwrite=overwrite,
        )  # fmt: skip
        facts = {"layout": plan.layout, "tensors": {one.ours: list(one.official) for one in plan.moves}}
        text = f"{len(plan.moves)} tensors of ours, {sum(len(one.official) for one in plan.moves)} in '{plan.layout}'"
    else:
        made = work.convert(
            source, output, family=family, model=model, part=part, ema=ema, arguments=_arguments(arg), dtype=dtype,
            shard_size=shard_size, base=base, push_to_hub=push_to_hub, own_weights=own_weights,
        )  # fmt: skip
        facts, text = dict(made.facts), made.summary
    if as_json:
        print_json(facts)
        return
    out.print(text, highlight=False, markup=False, soft_wrap=True)
    if not check:
        out.print(
            f"{output or export}: every tensor read back and equal", highlight=False, markup=False, soft_wrap=True
        )


def _arguments(given: list[str] | None) -> dict[str, Any]:
    """NAME=VALUE, each once; a value is a number, true, false, a text, or several with commas."""
    made: dict[str, Any] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier() or name in made:
            raise InputError(f"--arg is '{text}', expected NAME=VALUE, each name once, as num_heads=6")
        values = [_value(one) for one in value.split(",")]
        made[name] = values if len(values) > 1 else values[0]
    return made


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
