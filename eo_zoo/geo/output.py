"""What a run writes: GeoTIFF, .npy or .json, and a preview picture."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from PIL import Image, ImageDraw, ImageFont
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.windows import Window

from eo_zoo.errors import InputError
from eo_zoo.files import replacing

BLOCK = 64  # side of the GeoTIFF's blocks, a multiple of 16
TIFF = (".tif", ".tiff")  # a map
VECTOR = (".npy", ".json")
NODATA = 255  # of a uint8 map
FLOAT16_MAX = float(np.finfo(np.float16).max)
CANVAS = 1024  # longest side of each half of the preview, in pixels
SMALL = 512  # smaller pictures are enlarged by a whole factor to about this size


def side_file(path: Path) -> Path:
    """The file beside a raster in which GDAL looks for what the raster itself cannot hold."""
    return path.with_name(path.name + ".aux.xml")


@contextmanager
def replacing_raster(path: Path) -> Iterator[Path]:
    """``replacing``; what lies beside the old raster is not true of the new one, and goes."""
    with replacing(path) as part:
        yield part
        side_file(path).unlink(missing_ok=True)


class MapWriter:
    """Writes a map from top to bottom into a GeoTIFF, holding one row of blocks in memory.

    float32, or float16 as GDAL has it (32-bit bands of which 16 are stored), where NaN is nodata; or uint8,
    where 255 is. Blocks are written once and in order, so the file has no dead space and equal input gives
    equal bytes.

    Args:
        path: where to write; the caller decides on its final name.
        shape: channels, rows, columns.
        crs: of the raster.
        transform: of the map: one pixel is one cell.
        out_dtype: "float32", "float16" or "uint8".
        descriptions: one name per channel.
        colours: of the values 0, 1, ... of a uint8 map of one channel.

    Raises:
        OSError: the file cannot be written: disk full, quota.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int, int],
        *,
        crs: CRS,
        transform: Affine,
        out_dtype: str,
        descriptions: Sequence[str],
        colours: Sequence[tuple[int, int, int]] = (),
    ) -> None:
        self.path = path
        self.shape = shape
        self.half = out_dtype == "float16"
        self.block = min(BLOCK, 16 * -(-max(shape[1:]) // 16))
        dtype = "uint8" if out_dtype == "uint8" else "float32"
        form: dict[str, Any] = {"nodata": NODATA} if dtype == "uint8" else {"nodata": math.nan, "predictor": 3}
        self._buffer = np.empty((shape[0], self.block, shape[2]), dtype)
        self._done = 0  # rows in the file
        self._held = 0  # rows in the buffer
        with _write_errors(path):
            self._file = rasterio.open(
                path, "w", driver="GTiff", count=shape[0], height=shape[1], width=shape[2], dtype=dtype,
                crs=crs, transform=transform, tiled=True, blockxsize=self.block, blockysize=self.block,
                interleave="band", compress="deflate", bigtiff="IF_SAFER", **form,
                **({"nbits": 16} if self.half else {}),
            )  # fmt: skip
            self._file.descriptions = tuple(descriptions)
            if colours:
                self._file.write_colormap(1, {value: (*colour, 255) for value, colour in enumerate(colours)})

    def __enter__(self) -> MapWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except (RasterioError, CPLE_BaseError):
            # On a full disk closing fails as writing did; the first error is the one to tell.
            if error is None:
                raise

    def write(self, strip: np.ndarray) -> None:
        """Add finished rows, in the file's type: (channels, any number of rows, columns)."""
        if self.half:
            strip = self._to_half(strip)
        while strip.shape[1]:
            count = min(strip.shape[1], self.block - self._held)
            self._buffer[:, self._held : self._held + count] = strip[:, :count]
            strip, self._held = strip[:, count:], self._held + count
            if self._held == self.block or self._done + self._held == self.shape[1]:
                window = Window(0, self._done, self.shape[2], self._held)
                with _write_errors(self.path):
                    self._file.write(self._buffer[:, : self._held], window=window)
                self._done, self._held = self._done + self._held, 0

    def _to_half(self, strip: np.ndarray) -> np.ndarray:
        largest = np.nanmax(np.abs(strip), initial=0.0)
        if largest > FLOAT16_MAX:
            raise InputError(
                f"the embedding holds {largest:.0f}, more than float16 can ({FLOAT16_MAX:.0f}); "
                "write it with out_dtype float32"
            )
        # GDAL truncates on its way to 16 bits; rounding first makes that exact.
        return strip.astype(np.float16).astype(np.float32)

    def finish(self, tags: Mapping[str, str]) -> None:
        """Write the tags, close, and look whether the file can be read."""
        with _write_errors(self.path):
            self._file.update_tags(**tags)
            self._file.close()
            # GDAL keeps quiet when its last bytes do not fit on the disk; reading tells.
            with rasterio.open(self.path) as file:
                file.read(file.count, window=Window(file.width - 1, file.height - 1, 1, 1))


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (RasterioError, CPLE_BaseError, OSError) as error:
        raise OSError(
            f"writing to {path.parent} failed ({error}); is the disk full? Nothing was kept of the output"
        ) from error


def write_vector(path: Path, vector: np.ndarray, tags: Mapping[str, str]) -> None:
    """One float32 vector as .npy, or as .json under "embedding", there with the tags beside it."""
    if path.suffix.lower() == ".json":
        write_json(path, {"embedding": vector.tolist()}, tags)
        return
    with _write_errors(path), replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, vector.astype(np.float32))


def write_json(path: Path, content: Mapping[str, object], tags: Mapping[str, str]) -> None:
    """Plain values, and beside them the tags that are none of these, in small letters."""
    values = {**content, **{name.lower(): _plain(tag) for name, tag in tags.items() if name.lower() not in content}}
    with _write_errors(path), replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _plain(tag: str) -> object:
    return json.loads(tag) if tag.startswith(("{", "[")) else tag


# ---- preview ----


class Thumbnail:
    """The input's colours on a canvas of at most ``CANVAS`` pixels a side, filled window by window.

    Args:
        shape: rows and columns of the raster.
        bands: positions of the bands for red, green and blue, or of one band for grey.
    """

    def __init__(self, shape: tuple[int, int], bands: Sequence[int]) -> None:
        self.bands = list(bands)
        self.extent = shape
        self.factor = -(-max(shape) // CANVAS)  # pixels of the raster on one of the canvas, each way
        self.shape = -(-shape[0] // self.factor), -(-shape[1] // self.factor)
        self._sums = np.zeros((len(self.bands), *self.shape))
        self._counts = np.zeros((len(self.bands), *self.shape), np.int64)

    def add(self, row: int, col: int, values: np.ndarray, valid: np.ndarray) -> None:
        """Add pixels (bands, rows, columns) from ``row``, ``col`` on; each pixel of the raster comes once."""
        height, width = min(values.shape[1], self.extent[0] - row), min(values.shape[2], self.extent[1] - col)
        valid = valid[self.bands, :height, :width]
        values = np.where(valid, values[self.bands, :height, :width], 0.0)
        down, across = _bins(row, height, self.factor), _bins(col, width, self.factor)
        top, left = row // self.factor, col // self.factor
        target = np.s_[:, top : top + len(down), left : left + len(across)]
        for canvas, pixels in ((self._sums, values), (self._counts, valid.astype(np.int64))):
            canvas[target] += np.add.reduceat(np.add.reduceat(pixels, down, axis=1), across, axis=2)

    def caption(self, bands: Sequence[str]) -> str:
        """Which of the raster's bands are shown."""
        return "input: " + ", ".join(bands[i] for i in self.bands)

    def picture(self) -> np.ndarray:
        """Mean values (3, rows, columns), NaN where any of the bands has no valid pixel."""
        with np.errstate(invalid="ignore"):
            means = self._sums / self._counts
        means[:, np.isnan(means).any(axis=0)] = np.nan
        return np.broadcast_to(means, (3, *self.shape))


def _bins(start: int, length: int, factor: int) -> np.ndarray:
    """Offsets in a run of pixels at which a new canvas pixel begins."""
    target = (start + np.arange(length)) // factor
    return np.flatnonzero(np.diff(target, prepend=target[0] - 1))


class Components:
    """The first three principal components of a map, from the covariance of its strips."""

    def __init__(self, channels: int) -> None:
        self._count = 0
        self._shift = np.zeros(channels)
        self._sum = np.zeros(channels)
        self._products = np.zeros((channels, channels))

    def add(self, strip: np.ndarray) -> None:
        """Add rows (channels, rows, columns); cells with NaN are left out."""
        cells = strip[:, ~np.isnan(strip[0])].astype(np.float64)
        if not cells.shape[1]:
            return
        if not self._count:
            # Near the mean the covariance loses no digits to cancellation.
            self._shift = cells.mean(axis=1)
        cells -= self._shift[:, None]
        self._count += cells.shape[1]
        self._sum += cells.sum(axis=1)
        self._products += cells @ cells.T

    def basis(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean (channels,) and directions (3, channels); each one's largest entry is positive."""
        mean = self._sum / self._count
        _, vectors = np.linalg.eigh(self._products / self._count - np.outer(mean, mean))
        directions = np.zeros((3, len(mean)))
        found = vectors.T[::-1][:3]
        largest = np.abs(found).argmax(axis=1)
        directions[: len(found)] = found * np.sign(found[np.arange(len(found)), largest])[:, None]
        return mean + self._shift, directions


def write_preview(
    path: Path,
    thumbnail: Thumbnail,
    components: Components,
    embedding: Path,
    *,
    patch: int,
    captions: tuple[str, str],
) -> None:
    """PNG: the input's colours on the left, the embedding's first three principal components on the right.

    Both halves are stretched from the 2nd to the 98th percentile, a channel each; nodata is white.

    Args:
        path: where to write.
        thumbnail: of the whole input.
        components: of the whole map.
        embedding: the map as GeoTIFF; it is read a row of blocks at a time.
        patch: pixels of the input on one cell of the map, each way.
        captions: texts below the halves.
    """
    halves = [stretch(thumbnail.picture()), stretch(_project(embedding, components.basis(), thumbnail, patch))]
    write_page(path, halves, captions)


def write_page(
    path: Path,
    halves: Sequence[np.ndarray],
    captions: Sequence[str],
    legend: Sequence[tuple[tuple[int, int, int], str]] = (),
) -> None:
    """PNG: pictures (rows, columns, 3) of one size side by side, a caption below each; colours and their meaning."""
    zoom = max(1, SMALL // max(halves[0].shape))
    height, width = (side * zoom for side in halves[0].shape[:2])
    gap, band, line = 8, 24, 18
    font = ImageFont.load_default(size=13)
    right = len(halves) * (width + gap)
    texts = max((math.ceil(font.getlength(text)) + line + gap for _, text in legend), default=-gap)
    page = Image.new("RGB", (right + texts, max(height + band, len(legend) * line)), "white")
    draw = ImageDraw.Draw(page)
    for index, (half, caption) in enumerate(zip(halves, captions, strict=True)):
        left = index * (width + gap)
        page.paste(Image.fromarray(half).resize((width, height), Image.Resampling.NEAREST), (left, 0))
        while caption and draw.textlength(caption, font=font) > width:
            caption = caption[:-1]
        draw.text((left + 2, height + 4), caption, fill="black", font=font)
    for index, (colour, text) in enumerate(legend):
        draw.rectangle((right, index * line + 2, right + 12, index * line + 14), fill=colour, outline="grey")
        draw.text((right + line, index * line), text, fill="black", font=font)
    with _write_errors(path):
        page.save(path, format="PNG")


def cells_below(thumbnail: Thumbnail, cell: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of a map's cells, ``cell`` pixels a side, below the middle of each pixel of the canvas."""
    rows, cols = (
        np.minimum((np.arange(count) * thumbnail.factor + thumbnail.factor // 2) // cell, -(-size // cell) - 1)
        for count, size in zip(thumbnail.shape, thumbnail.extent, strict=True)
    )
    return rows, cols


def _project(embedding: Path, basis: tuple[np.ndarray, np.ndarray], thumbnail: Thumbnail, patch: int) -> np.ndarray:
    """Components (3, rows, columns) of the cells below the middle of each pixel of the canvas."""
    mean, directions = basis[0].astype(np.float32), basis[1].astype(np.float32)
    row_of, col_of = cells_below(thumbnail, patch)
    picture = np.empty((3, *thumbnail.shape))
    with rasterio.open(embedding) as file:
        block = file.block_shapes[0][0]
        for top in range(0, file.height, block):
            here = np.flatnonzero(row_of // block == top // block)
            if not len(here):
                continue
            cells = file.read(window=Window(0, top, file.width, min(block, file.height - top)))
            rows, back = np.unique(row_of[here] - top, return_inverse=True)
            cells = cells[:, rows]
            cells -= mean[:, None, None]
            picture[:, here] = np.tensordot(directions, cells, axes=1)[:, back][:, :, col_of]
    return picture


def stretch(picture: np.ndarray, like: np.ndarray | None = None) -> np.ndarray:
    """Values (channels, rows, columns) to bytes (rows, columns, channels); a flat channel is middle grey, NaN white.

    From the 2nd to the 98th percentile of each channel, of ``like`` if that is given.
    """
    result = np.full(picture.shape, 255, np.uint8)
    like = picture if like is None else like
    known, counted = (~np.isnan(one).any(axis=0) for one in (picture, like))
    if known.any() and counted.any():
        for channel, values, reference in zip(result, picture[:, known], like[:, counted], strict=True):
            low, high = np.percentile(reference, (2, 98))
            scaled = (values - low) / (high - low) if high > low else np.full_like(values, 0.5)
            channel[known] = np.round(255 * np.clip(scaled, 0, 1))
    return np.ascontiguousarray(result.transpose(1, 2, 0))
