"""``eo-zoo sft``: fine-tuning TerraSense, from data sets to scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from eo_zoo.cli_vlm import ANSWERING, MODEL, asker_of, asking_of
from eo_zoo.console import err, out, print_json, warn
from eo_zoo.options import AsJson, Overwrite, Quiet, with_options

if TYPE_CHECKING:
    from eo_zoo.vlm.sft.evaluate import Evaluation

app = typer.Typer(no_args_is_help=True, help="Fine-tune TerraSense: data, training, merging, evaluation.")

Data = Annotated[
    Path, typer.Argument(help="Conversations about images (.json, .jsonl) in LLaMA-Factory's sharegpt form.")
]
Media = Annotated[Path | None, typer.Option(help="Folder where the images' paths start; that of the data.")]
Base = Annotated[str, typer.Option("--model", "-m", help="Folder or repository of the Hub, of a Qwen-VL model.")]
ModelType = Annotated[
    str, typer.Option(help="qwen2_vl, qwen2_5_vl or qwen3_vl, as the model's config.json says: how places are written.")
]
PIXELS = {
    "min_pixels": Annotated[int | None, typer.Option(help="Smaller images are enlarged to this; 200704.")],
    "max_pixels": Annotated[int | None, typer.Option(help="Larger images are reduced to this; 4194304, as published.")],
}
RECIPE: Mapping[str, Any] = {
    "lora": Annotated[
        bool | None, typer.Option("--lora/--full", help="Train adapters, or all weights as published; full.")
    ],
    "lora_rank": Annotated[int | None, typer.Option(help="Of the adapters; 8.")],
    "lora_alpha": Annotated[int | None, typer.Option(help="Scale of the adapters; twice the rank.")],
    "lora_dropout": Annotated[float | None, typer.Option(help="Before the adapters; 0.")],
    "freeze_vision": Annotated[
        bool | None,
        typer.Option("--freeze-vision/--train-vision", help="The vision tower; frozen, as published."),
    ],
    "freeze_projector": Annotated[
        bool | None,
        typer.Option("--freeze-projector/--train-projector", help="What joins it to the text; frozen, as published."),
    ],
    "learning_rate": Annotated[float | None, typer.Option("--learning-rate", "--lr", help="1e-5, as published.")],
    "schedule": Annotated[
        str | None, typer.Option(help="cosine (as published), linear, constant or constant_with_warmup.")
    ],
    "warmup": Annotated[float | None, typer.Option(help="Share of the steps in which the rate rises; 0.1.")],
    "epochs": Annotated[float | None, typer.Option(help="Times through the data; 3.")],
    "max_steps": Annotated[int | None, typer.Option(help="Steps in all, instead of --epochs.")],
    "batch_size": Annotated[int | None, typer.Option(help="Conversations at a time on a device; 1.")],
    "accumulation": Annotated[int | None, typer.Option(help="Batches a step; 16.")],
    "weight_decay": Annotated[float | None, typer.Option(help="0.")],
    "cutoff": Annotated[int | None, typer.Option(help="Tokens of a conversation at most; 16384.")],
    **PIXELS,
    "bf16": Annotated[bool | None, typer.Option("--bf16/--fp32", help="Precision; bf16 where the device can.")],
    "attention": Annotated[
        str | None,
        typer.Option(help="flash_attention_2, sdpa or eager; the first where it is installed."),
    ],
    "deepspeed": Annotated[Path | None, typer.Option(help="Configuration file of DeepSpeed, as of ZeRO-3.")],
    "workers": Annotated[int | None, typer.Option(help="Processes that read images; up to 16.")],
    "log_steps": Annotated[int | None, typer.Option(help="Steps from one reported loss to the next; 10.")],
    "save_steps": Annotated[int | None, typer.Option(help="Steps from one checkpoint to the next; 500.")],
    "seed": Annotated[int | None, typer.Option(help="Of the order and of adapters; 42.")],
}
RUN: Mapping[str, Any] = {
    "skip_long": Annotated[
        bool | None, typer.Option("--skip-long", help="Leave out conversations longer than --cutoff.")
    ],
    "checkpointing": Annotated[
        bool | None,
        typer.Option("--checkpointing/--no-checkpointing", help="Compute activations twice to save memory; on."),
    ],
    "keep": Annotated[int | None, typer.Option(help="Checkpoints that are kept; the last 2.")],
}
WRITING: Mapping[str, Any] = {
    "group": Annotated[int | None, typer.Option(help="Classes that one question asks for, at most; 3.")],
    "turns": Annotated[int | None, typer.Option(help="Questions of a conversation, at most; 8.")],
    "window": Annotated[
        int | None,
        typer.Option(help="Cut larger images into parts of so many pixels a side, as 1024 for DOTA; not cut."),
    ],
    "overlap": Annotated[int | None, typer.Option(help="Pixels that neighbouring parts share; a quarter of them.")],
    **PIXELS,
    "seed": Annotated[int | None, typer.Option(help="Of the choice and order of questions; 0.")],
}


@app.command()
@with_options(RECIPE, RUN)
def train(
    data: Data,
    model: Base,
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder: the model, or the LoRA adapter.")],
    options: dict[str, Any],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the repository.")] = None,
    media: Media = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune with the published recipe: the language model learns, the vision tower is frozen."""
    from eo_zoo.vlm.sft import sharegpt
    from eo_zoo.vlm.sft import train as training

    def report(kind: str, text: str) -> None:
        if kind == "warning":
            warn(text)
        elif not quiet:
            err.print(text, highlight=False, markup=False, soft_wrap=True)

    result = training.train(
        sharegpt.read(data, media),
        model,
        output,
        recipe=training.Recipe(**options),
        revision=revision,
        resume=resume,
        progress=False if quiet else None,
        report=report,
    )
    if as_json:
        print_json(result.to_dict())
    elif not quiet:
        _say(result.summary())


@app.command()
def merge(
    adapter: Annotated[Path, typer.Argument(help="Folder of a LoRA adapter, as sft train --lora writes it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder: a model that needs no peft.")],
    base: Annotated[
        str | None, typer.Option(help="The base model, where it is not under the name the adapter has for it.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the base model.")] = None,
    dtype: Annotated[str, typer.Option(help="auto (as the base model), float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; a GPU if there is one.")] = None,
    quiet: Quiet = False,
) -> None:
    """Put an adapter into its base model, and check that the answers stay the same."""
    from eo_zoo.vlm.sft.merge import merge as join

    join(adapter, output, base=base, revision=revision, dtype=dtype, device=device)
    if not quiet:
        _say(f"{output}: the merged model, checked against {adapter}")


@app.command()
@with_options(WRITING)
def data(
    name: Annotated[str, typer.Argument(metavar="NAME", help="dota, dior, levir-cd, rsvqa or rsicd.")],
    folder: Annotated[Path, typer.Argument(help="The data set as it is unpacked.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="data.json or data.jsonl; parts of images beside it.")],
    model_type: ModelType,
    options: dict[str, Any],
    split: Annotated[str | None, typer.Option(help="train, val, test...; all if not given.")] = None,
    oriented: Annotated[
        bool | None, typer.Option("--oriented/--upright", help="Boxes along the objects; of DOTA if not given.")
    ] = None,
    tasks: Annotated[str, typer.Option(help="What is asked of objects: detect, count, or both.")] = "detect,count",
    difficult: Annotated[
        bool, typer.Option("--difficult/--no-difficult", help="Objects that are marked as difficult.")
    ] = True,
    empty: Annotated[bool, typer.Option("--empty/--no-empty", help="Images without an object.")] = True,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Turn a data set into conversations, in the words and coordinates that the model is asked in."""
    from eo_zoo.vlm.sft import readers, sharegpt
    from eo_zoo.vlm.sft.questions import Writing

    sharegpt.check_output(output, overwrite=overwrite)
    asked = tuple(task.strip() for task in tasks.split(","))
    written = readers.read(
        name,
        folder,
        Writing(model_type=model_type, tasks=asked, empty=empty, **options),
        output.with_name(f"{output.stem}_parts"),
        split=split,
        oriented=oriented,
        difficult=difficult,
    )
    sharegpt.write(output, written.conversations, overwrite=overwrite)
    if not quiet:
        _say(f"{output}: {written.summary()}")


@app.command()
@with_options(RECIPE)
def export(
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder: data, dataset_info.json, sft.yaml.")],
    model_type: ModelType,
    options: dict[str, Any],
    model: Base = "TerraSense-CASM/TerraSense-Base",
    media: Media = None,
    name: Annotated[str, typer.Option(help="Of the data set.")] = "terrasense",
    images: Annotated[
        bool,
        typer.Option("--images", help="Write the images too, as the model sees them, so that none is resized again."),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Write the same training for LLaMA-Factory."""
    from eo_zoo.vlm.sft import llamafactory, sharegpt
    from eo_zoo.vlm.sft.train import Recipe

    config = llamafactory.export(
        sharegpt.read(data, media),
        output,
        model=model,
        model_type=model_type,
        recipe=Recipe(**options),
        name=name,
        images=images,
    )
    if not quiet:
        _say(f"llamafactory-cli train {config}")


@app.command()
@with_options(MODEL, ANSWERING)
def predict(
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="predictions.json or .jsonl.")],
    options: dict[str, Any],
    media: Media = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Answer the questions of conversations, each alone, for evaluate."""
    from eo_zoo.vlm.sft import evaluate as evaluation
    from eo_zoo.vlm.sft import sharegpt

    sharegpt.check_output(output, overwrite=overwrite)
    conversations = sharegpt.read(data, media)
    progress = False if quiet else None
    answered = evaluation.predict(asker_of(options), conversations, progress=progress, **asking_of(options))
    sharegpt.write(output, answered, overwrite=overwrite)
    if not quiet:
        _say(f"{output}: answers to {sum(1 for one in answered for _ in one.turns())} questions")


@app.command()
@with_options(PIXELS)
def evaluate(
    predictions: Annotated[
        Path, typer.Argument(help="Conversations, or detections (.json), one a line (.jsonl), or a folder of them.")
    ],
    truth: Annotated[Path, typer.Argument(help="What is there, in the same forms.")],
    options: dict[str, Any],
    model_type: Annotated[
        str | None, typer.Option(help="Of conversations: qwen2_vl, qwen2_5_vl or qwen3_vl, how places are written.")
    ] = None,
    iou: Annotated[float, typer.Option(help="Intersection over union from which on two boxes match.")] = 0.5,
    as_json: AsJson = False,
) -> None:
    """Precision, recall, F1 and mean IoU of boxes, upright and oriented."""
    from eo_zoo.vlm.engine import Generation
    from eo_zoo.vlm.sft import evaluate as evaluation

    limits = Generation(**options)
    result = evaluation.evaluate(predictions, truth, threshold=iou, model_type=model_type, generation=limits)
    if as_json:
        print_json(result.to_dict())
        return
    for text, count in (
        ("questions have no prediction: their boxes count as not found", result.unanswered),
        ("predictions hold parts that could not be read as boxes", result.unread),
        ("predictions have no truth and are left out", result.unknown),
    ):
        if count:
            warn(f"{count} {text}")
    out.print(_table(result))


def _table(result: Evaluation) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("boxes", "class"):
        table.add_column(column)
    for column in ("precision", "recall", "F1", "mean IoU", "predicted", "truth"):
        table.add_column(column, justify="right")
    for form, classes in result.scores.items():
        for label, one in classes.items():
            shares = (one.precision, one.recall, one.f1, one.mean_iou)
            numbers = ["-" if share is None else f"{100 * share:.2f}" for share in shares]
            table.add_row(form, label or "all", *numbers, str(one.predicted), str(one.truth))
    return table


def _say(text: str) -> None:
    out.print(text, highlight=False, markup=False, soft_wrap=True)
