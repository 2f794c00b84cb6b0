"""Questions about images on the command line: ask, describe, classify, count, detect, ground, change."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from eo_zoo.cli_describe import DOCUMENT, refuse_model, write_document
from eo_zoo.console import err, out, print_json, warn
from eo_zoo.errors import DownloadError, InputError
from eo_zoo.options import AsJson, Box, BoxCrs, Nodata, Overwrite, Quiet, Sensor, with_options

if TYPE_CHECKING:
    from eo_zoo.vlm.pictures import Picture
    from eo_zoo.vlm.records import Detections
    from eo_zoo.vlm.tasks import Asker, Reply

NAME = "terrasense_base"  # what the package calls the official weights
FEW = 3  # parts of an answer that are shown
CANVAS = 4096  # longest side of what an overlay is drawn on, in pixels

Image = Annotated[str, typer.Argument(help="GeoTIFF or other raster, PNG, JPEG, WebP, STAC item (path or URL).")]
Prompt = Annotated[str | None, typer.Option(help="Ask in these words instead; boxes are read from the answer.")]
Classes = Annotated[str, typer.Option(help="Names of the classes with commas, or a text file with a name a line.")]

# Options that the commands share, by the names that the calls have; None is left to these.
Group = Mapping[str, Any]
MODEL: Group = {
    "model": Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help=f"Folder or repository of the Hub; {NAME} if not given. With --url its name there."
        ),
    ],
    "revision": Annotated[str | None, typer.Option(help="Branch, tag or commit of the repository.")],
    "dtype": Annotated[str | None, typer.Option(help="bfloat16, float16, float32 or auto (as stored).")],
    "device_map": Annotated[str | None, typer.Option(help="auto, cpu, cuda:0; auto where there is a GPU.")],
    "quantization": Annotated[str | None, typer.Option(help="8bit or 4bit.")],
    "batch_size": Annotated[int | None, typer.Option(help="Questions that are answered at a time; 4.")],
    "url": Annotated[
        str | None, typer.Option(help="Ask a server with OpenAI's interface instead, as http://127.0.0.1:8000.")
    ],
    "model_type": Annotated[
        str | None,
        typer.Option(help="With --url: qwen2_vl, qwen2_5_vl or qwen3_vl, which decides how boxes are read."),
    ],
    "concurrency": Annotated[int | None, typer.Option(help="With --url: requests at a time; 8.")],
    "retries": Annotated[int | None, typer.Option(help="With --url: of a request that fails; 4.")],
    "timeout": Annotated[float | None, typer.Option(help="With --url: seconds for an answer, retries included; 600.")],
}  # fmt: skip
SERVED = ("model_type", "concurrency", "retries", "timeout")
LOCAL = ("revision", "dtype", "device_map", "quantization", "batch_size")
READING: Group = {
    "bands": Annotated[
        str | None, typer.Option(help="Three bands for red, green, blue, or one: names, or numbers from 1, as 4,3,2.")
    ],
    "sensor": Sensor,
    "stretch": Annotated[
        str | None,
        typer.Option(
            help="What becomes black and white: percentiles, as 2,98; values, as 0:3000; none: they are bytes already."
        ),
    ],
    "nodata": Nodata,
    "bbox": Box,
    "bbox_crs": BoxCrs,
}
ANSWERING: Group = {
    "max_new_tokens": Annotated[int | None, typer.Option(help="Of an answer; 512, where boxes are read 2048.")],
    "temperature": Annotated[
        float | None, typer.Option(help="Of sampling; 0: the likeliest answer. 0.1, where boxes are read 0.")
    ],
    "top_p": Annotated[float | None, typer.Option(help="Of sampling: 0.9.")],
    "seed": Annotated[int | None, typer.Option(help="Of sampling, for the same answer again.")],
    "min_pixels": Annotated[int | None, typer.Option(help="Smaller images are enlarged to this; 200704.")],
    "max_pixels": Annotated[int | None, typer.Option(help="Larger images are reduced to this; 4194304.")],
}
WINDOWS: Group = {
    "window": Annotated[
        int | None,
        typer.Option(help="Pixels a side of what is shown at a time; the whole image up to --max-pixels, else 1024."),
    ],
    "overlap": Annotated[int | None, typer.Option(help="Pixels that windows share; a quarter of them.")],
}
FOUND: Group = {
    "output": Annotated[
        Path | None, typer.Option("--output", "-o", help="OUT.geojson, .gpkg, .parquet, .csv or .json.")
    ],
    "overlay": Annotated[Path | None, typer.Option(help="PNG: the boxes on the image.")],
    "oriented": Annotated[bool, typer.Option("--oriented", help="Boxes along the objects, not along the image.")],
    "prompt": Prompt,
    "overwrite": Overwrite,
    "quiet": Quiet,
    "as_json": AsJson,
}


def _with(*groups: Group) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return with_options(MODEL, *groups)


def add_to(app: typer.Typer) -> None:
    """The commands of this module."""
    for command in (ask, describe, classify, count, detect, ground, change):
        app.command()(command)


@_with(READING, ANSWERING)
def ask(
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE [IMAGE] PROMPT", help="One image or two, and the question.")
    ],
    options: dict[str, Any],
    each: Annotated[
        bool, typer.Option("--each", help="Ask of every image by itself, of as many as there are.")
    ] = False,
    stream: Annotated[bool, typer.Option("--stream", help="Print words as they come.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Ask about an image, or about two of them: TerraSense answers in words."""
    *paths, prompt = images
    if not paths:
        raise InputError(f"'{prompt}' is all there is: give an image and a question, as scene.tif \"How many ships?\"")
    if not prompt.strip():
        raise InputError("the prompt is empty: say what is asked of the image")
    if Path(prompt).is_file():
        raise InputError(f'{prompt} is a file, and the question comes last: scene.tif "How many ships?"')
    if len(paths) > 2 and not each:
        raise InputError(f"{len(paths)} images were given, expected one or two; --each asks of every one by itself")
    if stream and (as_json or each):
        raise InputError("--stream prints words as they come: leave --json and --each out")
    own = asking_of(options)
    if each:
        for path in paths:  # one that cannot be read would lose the answers to all others
            with _opened([path], dict(own)):
                pass
        pairs = [(path, prompt) for path in paths]
        replies = asker_of(options).ask_all(pairs, progress=False if quiet else None, **own)
        if as_json:
            print_json([reply.to_dict() for reply in replies])
            return
        for path, reply in zip(paths, replies, strict=True):
            _tell(reply.notes, reply.warnings, quiet)
            typer.echo(f"{path}: {reply.text}")
        return
    with _opened(paths, own) as pictures:
        asker = asker_of(options)
        if stream:
            for picture in pictures:
                _tell(picture.notes, picture.warnings, quiet)
            said = ""
            for piece in asker.stream(pictures, prompt, **own):
                typer.echo(piece, nl=False)
                said += piece
            typer.echo()
            _require_words([said])
            return
        _print(asker.ask(pictures, prompt, **own), quiet, as_json)


@_with(READING, ANSWERING, DOCUMENT)
def describe(
    image: Annotated[str, typer.Argument(metavar="IMAGE|NAME", help="An image; with --format the name of a model.")],
    options: dict[str, Any],
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Describe an image in words, or with --format a model: what it takes, gives and may be used for."""
    if wanted := {key: options.pop(key) for key in DOCUMENT if key in options}:
        if options or as_json:
            raise InputError("--format, --output and --asset are of a document about a model: leave all others out")
        write_document(image, **wanted)
        return
    refuse_model(image)
    own = asking_of(options)
    with _opened([image], own) as pictures:
        _print(asker_of(options).describe(pictures, **own), quiet, as_json)


@_with(READING, ANSWERING)
def classify(
    image: Image,
    classes: Classes,
    options: dict[str, Any],
    prompt: Prompt = None,
    top: Annotated[int, typer.Option(help="Classes to print.")] = 5,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """The likeliest of a list of classes, with a score for each."""
    from eo_zoo.vlm.tasks import class_names

    names, own = class_names(_classes(classes)), asking_of(options)
    with _opened([image], own) as pictures:
        found = asker_of(options).classify(pictures, names, prompt=prompt, **own)
    if as_json:
        print_json(found.to_dict())
        return
    _tell(found.notes, found.warnings, quiet)
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, score in list(found.scores.items())[:top]:
        table.add_row(name, f"{score:.1%}")
    out.print(table)


@_with(READING, ANSWERING, WINDOWS)
def count(
    image: Image,
    what: Annotated[str, typer.Argument(help="What to count, as ship.")],
    options: dict[str, Any],
    boxes: Annotated[
        bool | None, typer.Option("--boxes/--number", help="Count boxes, or ask for the number; boxes in windows.")
    ] = None,
    prompt: Prompt = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Count objects of a class."""
    own = asking_of(options)
    with _opened([image], own) as pictures:
        own["progress"] = False if quiet else None
        found = asker_of(options).count(pictures, what, boxes=boxes, prompt=prompt, **own)
    if as_json:
        print_json(found.to_dict())
    else:
        _tell(found.notes, found.warnings, quiet)
        typer.echo(found.text if found.value is None else found.value)
    if found.value is None:
        raise typer.Exit(1)


@_with(READING, ANSWERING, WINDOWS, FOUND)
def detect(
    image: Image,
    what: Annotated[list[str], typer.Argument(help="Class to look for, as ship; several with spaces.")],
    options: dict[str, Any],
) -> None:
    """Find objects: boxes on the map, and a picture of them."""
    _found(lambda asker, shown, own: asker.detect(shown[0], what, **own), [image], options)


@_with(READING, ANSWERING, WINDOWS, FOUND)
def ground(
    image: Image,
    phrase: Annotated[str, typer.Argument(help="What is to be found, as 'the largest building'.")],
    options: dict[str, Any],
) -> None:
    """Find what a phrase describes."""
    _found(lambda asker, shown, own: asker.ground(shown[0], phrase, **own), [image], options)


@_with(READING, ANSWERING, WINDOWS, FOUND)
def change(before: Image, after: Image, options: dict[str, Any]) -> None:
    """Find what changed between two images of one place."""
    _found(lambda asker, shown, own: asker.change(*shown, **own), [before, after], options)


def _found(
    look: Callable[[Asker, Any, dict[str, Any]], Detections], images: list[str], options: dict[str, Any]
) -> None:
    """Look, and write what was found; whether it can be read and written is found out before the model is loaded."""
    own = asking_of(options)
    output, overlay = own.pop("output", None), own.pop("overlay", None)
    overwrite, quiet, as_json = (own.pop(name, False) for name in ("overwrite", "quiet", "as_json"))
    with _opened(images, own, aligned=True) as pictures:
        from eo_zoo.geo.checks import writable
        from eo_zoo.vlm.overlay import draw
        from eo_zoo.vlm.records import check_output

        first, last = pictures[0], pictures[-1]
        if output is not None:
            check_output(output, None not in (first.crs, first.transform), overwrite=overwrite, inputs=images)
        if overlay is not None:
            writable("the overlay", overlay, (".png",), overwrite, *images)
        found = look(asker_of(options), pictures, own | {"progress": False if quiet else None})
        _require_words(found.answers)
        if output is not None:
            found.write(output, overwrite=overwrite)
        if overlay is not None:
            draw(overlay, last.thumbnail(CANVAS), found, overwrite=overwrite)
    if as_json:
        print_json(found.to_dict())
        return
    _tell(found.notes, found.warnings, quiet)
    for part in found.unparsed[:FEW]:
        warn(f"could not be read as a box: {textwrap.shorten(part.text, 200)!r}: {part.reason}")
    if len(found.unparsed) > FEW:
        warn(f"and {len(found.unparsed) - FEW} more: --json, or OUT.json, has them all")
    written = " and ".join(str(path) for path in (output, overlay) if path)
    typer.echo(f"{written}: {found.summary()}" if written else found.summary())
    if not written:
        for box in found:
            typer.echo(f"{box.label or '-'}\t{' '.join(f'{x:.1f},{y:.1f}' for x, y in box.corners)}")


@contextmanager
def _opened(images: Sequence[str], own: dict[str, Any], *, aligned: bool = False) -> Iterator[tuple[Picture, ...]]:
    """The images, found readable before a model is loaded; ``own`` loses what says how they are read."""
    from eo_zoo.vlm.pictures import open_pair, open_picture

    reading = {name: own.pop(name) for name in READING if name in own}
    with ExitStack() as stack:
        if aligned and len(images) == 2:
            pictures: tuple[Picture, ...] = open_pair(*images, **reading)
        else:
            pictures = tuple(open_picture(image, **reading) for image in images)
        for picture in pictures:
            stack.enter_context(picture)
        yield pictures


def _print(reply: Reply, quiet: bool, as_json: bool) -> None:
    if as_json:
        print_json(reply.to_dict())
    else:
        _tell(reply.notes, () if not reply.text.strip() else reply.warnings, quiet)
        typer.echo(reply.text)
    _require_words([reply.text])


def _require_words(answers: Sequence[str]) -> None:
    """No answer at all is a failure, not "there is none"."""
    if not any(answer.strip() for answer in answers):
        raise DownloadError("the model's answer is empty: ask in other words, or raise --max-new-tokens")


def asker_of(options: Mapping[str, Any]) -> Asker:
    """The model here, or the one behind ``--url``."""
    given = {name: value for name, value in options.items() if name in MODEL}
    name = given.pop("model", None)
    url = given.pop("url", None)
    wrong = [f"--{option.replace('_', '-')}" for option in given if option in (LOCAL if url else SERVED)]
    if wrong:
        where = "of a model in this process: leave --url out" if url else "of a server: give --url"
        raise InputError(f"{', '.join(wrong)}: {where}, or leave this out")
    if url is not None:
        from eo_zoo.vlm.served import ServedModel

        return ServedModel(url, model=name, **given)
    from eo_zoo.vlm.model import TerraSense

    return TerraSense.from_pretrained(*[name] * (name not in (None, NAME)), **given)


def asking_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """How to read and to answer, as the calls take it."""
    return {name: value for name, value in options.items() if name not in MODEL}


def _classes(text: str) -> list[str]:
    """Names with commas, or those of a file's lines."""
    path = Path(text)
    if "," not in text and path.suffix and not path.is_file():
        raise InputError(f"--classes is {text}, expected names with commas, or a file, which is not there")
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else text.split(",")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a text file with a class a line ({error})") from error
    return [line.strip() for line in lines if line.strip()]


def _tell(notes: Sequence[str], warnings: Sequence[str], quiet: bool) -> None:
    for note in () if quiet else notes:
        err.print(note, highlight=False, markup=False, soft_wrap=True)
    for warning in warnings:
        warn(warning)
