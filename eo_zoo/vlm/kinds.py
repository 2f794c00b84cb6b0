"""What a source is, and how it becomes layers: rasters, folders, STAC items, encoded pictures, images in memory."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
from PIL import Image
from rasterio.io import DatasetReader

from eo_zoo.errors import InputError
from eo_zoo.geo.opening import source_name
from eo_zoo.geo.sources import SUFFIXES, Files, Found, from_folder
from eo_zoo.geo.stac import fetch, from_item, is_remote, read_item, visual
from eo_zoo.sensors import get_sensor
from eo_zoo.vlm.choice import Choice, of_bands, of_file
from eo_zoo.vlm.layers import Layer, Place, memory_file

MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")  # what files that PIL reads here begin with; and RIFF....WEBP
ORIENTATION = 0x0112  # the EXIF tag


def label_of(source: object) -> str:
    """What messages and outputs call it."""
    if isinstance(source, Image.Image):
        return Path(getattr(source, "filename", "")).name or "the image"
    if isinstance(source, np.ndarray):
        return "the array"
    if not isinstance(source, str | Path | Mapping):
        raise InputError(
            f"the image is {type(source).__name__}, expected a path, an address, a STAC item, a PIL image or an array"
        )
    return source_name(source)


def find(
    source: Any, label: str, choice: Choice, found: Found, stack: ExitStack
) -> tuple[list[Layer], Place, list[str]]:
    """What to show of a source, where it lies, and the bands' names.

    Args:
        source: see ``open_picture``.
        label: what messages call it.
        choice: what is wanted of it.
        found: gets notes and warnings.
        stack: closes what is opened.

    Raises:
        InputError: the source, or what is asked of it, cannot be used.
        DownloadError: it is on the web and cannot be fetched.
    """
    files = Files(stack)
    if isinstance(source, np.ndarray):
        source = _of_array(source)
    if isinstance(source, Image.Image):
        return _of_image(source, Place(*source.size), label, choice, found, stack)
    if isinstance(source, Mapping):
        return _of_item(source, None, files, choice, found, stack)
    text = str(source)
    suffix = Path(urlsplit(text).path if is_remote(text) else text).suffix.lower()
    if suffix in (".json", ".geojson"):
        return _of_item(read_item(text), text, files, choice, found, stack)
    if Path(text).is_dir():
        return _of_bands(from_folder(files, Path(text), get_sensor(choice.scope).name), files, choice, found, stack)
    if is_remote(text) and suffix not in SUFFIXES:
        data = fetch(text)
        if not _is_picture(data):  # the address of an item of a STAC API ends in its id, without a suffix
            return _of_item(read_item(text), text, files, choice, found, stack)
        return _of_encoded(io.BytesIO(data), None, label, choice, found, stack)
    if Path(text).is_file():
        with open(text, "rb") as file:
            start = file.read(16)
        if _is_picture(start):
            return _of_encoded(text, _side_place(files, text), label, choice, found, stack)
    return _of_file(files.open(f"/vsicurl/{text}" if is_remote(text) else text), label, choice, found, stack)


def _of_file(
    dataset: DatasetReader, label: str, choice: Choice, found: Found, stack: ExitStack, *, picture: bool = False
) -> tuple[list[Layer], Place, list[str]]:
    layer, place = of_file(dataset, label, choice, found, stack, picture=picture)
    return [layer], place, [f"band {band}" for band in layer.bands]


def _of_item(
    item: object, place: str | None, files: Files, choice: Choice, found: Found, stack: ExitStack
) -> tuple[list[Layer], Place, list[str]]:
    path = visual(item, place) if choice.bands is None else None
    if path is not None:
        found.notes.append(f"the item's picture in true colour, {source_name(path)}, is shown")
        return _of_file(files.open(path), source_name(path), choice, found, stack)
    assets = from_item(item, place, sensor=choice.sensor, default_sensor=choice.scope)
    return _of_bands(assets, files, choice, found, stack)


def _of_bands(
    bands: Found, files: Files, choice: Choice, found: Found, stack: ExitStack
) -> tuple[list[Layer], Place, list[str]]:
    layers, place, names = of_bands(bands, files, choice, stack)
    found.notes += bands.notes
    found.warnings += bands.warnings
    return layers, place, names


# ---- PNG, JPEG, WebP, PIL ----


def _is_picture(start: bytes) -> bool:
    return start.startswith(MAGIC) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")


def _side_place(files: Files, path: str) -> Place | None:
    """The place that a world file or GDAL's own side file gives a picture."""
    with suppress(InputError):  # GDAL may read less than PIL; PIL tells what is wrong
        file = files.open(path)
        return Place(file.width, file.height, file.crs, file.transform)
    return None


def _of_encoded(
    file: str | io.BytesIO, place: Place | None, label: str, choice: Choice, found: Found, stack: ExitStack
) -> tuple[list[Layer], Place, list[str]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # half of what is refused
            with Image.open(file) as image:
                image.load()
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{label}: has more pixels than are decoded of a PNG, JPEG or WebP ({error}); convert it with "
            "gdal_translate -co TILED=YES to GeoTIFF, which is read in windows"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # as PIL says that a file is broken
        raise InputError(f"{label}: not an image that can be read ({error})") from error
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        found.warnings.append(f"{label}: the first of its {frames} frames is shown")
    if image.getexif().get(ORIENTATION, 1) != 1:
        found.warnings.append(
            f"{label}: its EXIF orientation says that it is to be turned; it is shown as it is stored"
        )
    place = place if place and (place.width, place.height) == image.size else Place(*image.size)
    return _of_image(image, place, label, choice, found, stack)


def _of_array(values: npt.NDArray[Any]) -> Image.Image:
    if values.ndim != 3 or values.shape[2] != 3 or values.dtype != np.uint8 or 0 in values.shape:
        raise InputError(
            f"the array is {values.dtype} {tuple(values.shape)}, expected bytes (uint8) of shape (height, width, 3)"
        )
    return Image.fromarray(values)


def _of_image(
    image: Image.Image, place: Place, label: str, choice: Choice, found: Found, stack: ExitStack
) -> tuple[list[Layer], Place, list[str]]:
    """A PIL image's own bytes; greys of more than 8 bits, which PIL would cut off at 255, as they are stored."""
    if 0 in image.size:
        raise InputError(f"{label}: is {image.size[0]} x {image.size[1]} pixels, expected at least one")
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        values = values.astype(values.dtype.newbyteorder("="))
    elif image.mode == "RGBA":
        values = np.asarray(image)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of PIL, that a palette's transparency is left aside
            values = np.asarray(image.convert("RGB"))
    return _of_file(memory_file(values, place, stack), label, choice, found, stack, picture=True)
