"""What was found in an image, as records a GIS, a spreadsheet or a program opens."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from eo_zoo.errors import InputError, require
from eo_zoo.files import replacing

if TYPE_CHECKING:
    from affine import Affine
    from geopandas import GeoDataFrame
    from rasterio.crs import CRS
    from shapely.geometry.base import BaseGeometry

    from eo_zoo.vlm.boxes import Box
    from eo_zoo.vlm.parse import Unparsed

PLAIN = (".csv", ".json")  # for any image; the others have no coordinates but a map's
NEEDS = {".geojson": ("shapely", "pyproj"), ".gpkg": ("geopandas", "pyogrio"), ".parquet": ("geopandas", "pyarrow")}
WGS84 = "EPSG:4326"
COLUMNS = {
    "class": "string", "score": "float64", "prompt": "string", "model": "string", "revision": "string",
    "oriented": "bool", "pixels": "string",
}  # fmt: skip
DECIMALS = 9  # of longitude and latitude, 0.1 mm
SUBPIXEL = 3  # decimals of places in pixels
DATE = "1970-01-01T00:00:00.000Z"  # in every GeoPackage: equal records give equal bytes
BEND = 0.1  # pixels by which a side may leave its true course in longitude and latitude
PARTS = 256  # of a side at most
# What makes spreadsheets compute a text; the last four are the full-width forms of the first.
FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")


@dataclass(frozen=True)
class Detections:
    """The boxes of one image, and what they come from.

    Args:
        boxes: in pixels of the whole image.
        size: width and height of the image.
        crs: of the map, None if there is none.
        transform: pixels, counted from the image's outer top left corner, to the map; it may be rotated.
        source: path or address of the image.
        prompt: what was asked, word by word.
        model: name or folder.
        revision: commit of the weights, where it is known.
        unparsed: parts of the answers that could not be read, and why.
        answers: the model's own words, an answer a window.
        notes: choices made on the way, a sentence each.
        warnings: what may be wrong, a sentence each.
    """

    boxes: tuple[Box, ...]
    size: tuple[int, int]
    crs: CRS | None
    transform: Affine | None
    source: str
    prompt: str
    model: str
    revision: str | None = None
    unparsed: tuple[Unparsed, ...] = ()
    answers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.boxes)

    def __iter__(self) -> Iterator[Box]:
        return iter(self.boxes)

    @property
    def georeferenced(self) -> bool:
        """Whether the boxes have a place on a map: there is both a transform and a CRS."""
        return self.crs is not None and self.transform is not None

    def counts(self) -> dict[str, int]:
        """Boxes of each class, the most frequent first."""
        counted = Counter(box.label for box in self.boxes)
        return dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))

    def summary(self) -> str:
        """How many there are of each class, and whether all of the answer could be read; one line."""
        names = {label: " ".join(label.split()) or "without a class" for label in self.counts()}
        each = ", ".join(f"{count} {names[label]}" for label, count in self.counts().items())
        text = f"{_many(len(self), 'box', 'boxes')}: {each}" if self.boxes else "no boxes"
        rest = _many(len(self.unparsed), "part", "parts")
        return f"{text}; {rest} of the answer could not be read" if self.unparsed else text

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ``pixels`` are x1, y1 ... x4, y4, ``transform`` is GDAL's six numbers."""
        own = ("class", "score", "oriented", "pixels")
        return {
            "source": self.source,
            "size": list(self.size),
            "crs": self.crs.to_string() if self.crs is not None else None,
            "transform": list(self.transform.to_gdal()) if self.transform is not None else None,
            "prompt": self.prompt,
            "model": self.model,
            "revision": self.revision,
            "boxes": [{name: record[name] for name in own} for record in self._records()],
            "unparsed": [{"text": part.text, "reason": part.reason} for part in self.unparsed],
            "answers": list(self.answers),
            "notes": list(self.notes),
            "warnings": list(self.warnings),
        }

    def to_geodataframe(self) -> GeoDataFrame:
        """A row a box: class, score (NaN where there is none), prompt, model, revision, oriented, pixels, geometry.

        Geometries are in the image's CRS. Without one they are in pixels and ``crs`` is None; y then points down, so
        turn it over before drawing them with y up. ``pixels`` holds x1, y1 ... x4, y4 as the text of a JSON list, as
        not every format has columns of lists.

        Raises:
            MissingExtra: geopandas is not installed.
        """
        geopandas, pandas, shapely = (require(name, "vlm") for name in ("geopandas", "pandas", "shapely"))
        records = [record | {"pixels": json.dumps(record["pixels"])} for record in self._records()]
        columns = {name: pandas.array([record[name] for record in records], kind) for name, kind in COLUMNS.items()}
        places = self._map_corners() if self.georeferenced else self._corners()
        rings = [_upright_ring(shapely.Polygon(corners)) for corners in places]
        return geopandas.GeoDataFrame(columns, geometry=rings, crs=self._pyproj() if self.georeferenced else None)

    def write(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the records in the format that the name ends in, and return the path with links resolved.

        - ``.geojson``: RFC 7946, longitude and latitude in WGS 84, cut at the antimeridian. Sides that are straight in
          the image get points between their ends, so that no side is more than a tenth of a pixel from its place. A
          box with no place on the Earth (beyond the limb) has the geometry null.
        - ``.gpkg``, ``.parquet``: GeoPackage (layer "detections") and GeoParquet in the image's CRS, as
          ``to_geodataframe`` has them.
        - ``.csv``: pixels x1 ... y4, and with a map its coordinates map_x1 ... map_y4, the CRS, and longitude and
          latitude of the middle; UTF-8 with the mark that spreadsheets ask for. A text that a spreadsheet would
          compute, as it begins with one of ``= + - @``, a tab or a line break, gets a ' before it.
        - ``.json``: ``to_dict``.

        Equal records give equal bytes. No box gives a file without rows.

        Raises:
            InputError: see ``check_output``; or the CRS has no way to WGS 84, which GeoJSON needs.
            MissingExtra: the format needs a package that is not installed.
            OSError: the file cannot be written.
        """
        target = check_output(path, self.georeferenced, overwrite=overwrite)
        content = FORMATS[target.suffix.lower()](self)
        with replacing(target) as part:
            part.write_bytes(content)
        if target.suffix.lower() == ".gpkg":  # what SQLite kept beside the old file is not true of the new one
            for kind in ("-wal", "-shm", "-journal"):
                target.with_name(target.name + kind).unlink(missing_ok=True)
        return target

    def _records(self) -> list[dict[str, Any]]:
        """A record a box, without its place on the map."""
        shared = {"prompt": _text(self.prompt), "model": _text(self.model), "revision": self.revision}
        return [
            {
                "class": _text(box.label),
                "score": box.score,
                **shared,
                "oriented": box.oriented,
                "pixels": [round(float(x), SUBPIXEL) for corner in box.corners for x in corner],
            }
            for box in self.boxes
        ]

    def _corners(self) -> np.ndarray:
        """In pixels: (boxes, 4, 2)."""
        return np.array([box.corners for box in self.boxes], float).reshape(-1, 4, 2)

    def _map_corners(self) -> np.ndarray:
        return _placed(self.transform, self._corners())

    def _pyproj(self) -> Any:
        crs: Any = self.crs
        return require("pyproj", "vlm").CRS.from_wkt(crs.to_wkt(version="WKT2_2019"))

    def _to_wgs84(self) -> Callable[[np.ndarray], np.ndarray] | None:
        """From pixels (..., 2) to longitude and latitude, NaN where there is no such place; None for a local CRS."""
        pyproj = require("pyproj", "vlm")
        try:
            project = pyproj.Transformer.from_crs(self._pyproj(), WGS84, always_xy=True).transform
        except pyproj.exceptions.ProjError:
            return None

        def place(pixels: np.ndarray) -> np.ndarray:
            there = _placed(self.transform, pixels)
            found = np.stack(project(there[..., 0], there[..., 1]), axis=-1)
            found[~np.isfinite(found).all(axis=-1)] = np.nan
            found[..., 1] = found[..., 1].clip(-90, 90)  # outer edges of pixels whose middles are at the poles
            return found

        return place


def check_output(
    path: str | Path, georeferenced: bool, *, overwrite: bool = False, inputs: Sequence[object] = ()
) -> Path:
    """The path with links resolved, if ``Detections.write`` can write there; costs nothing, to be asked before a run.

    Args:
        path: its suffix says the format.
        georeferenced: whether the image has a place on a map.
        overwrite: replace an existing file.
        inputs: files that must not be replaced.

    Raises:
        MissingExtra: a package that the format needs is not installed.
        InputError: an unknown suffix, a format that needs a map for an image without one, no such folder, a file that
            is there, or one of ``inputs``.
    """
    from eo_zoo.geo.checks import writable

    target = writable("the output", path, tuple(FORMATS), overwrite, *inputs)
    target = cast(Path, target)
    for package in NEEDS.get(target.suffix.lower(), ()):
        require(package, "vlm")
    if not georeferenced and target.suffix.lower() not in PLAIN:
        raise InputError(
            f"the output is {target.name}, but the image has no georeference (a transform and a CRS), so its boxes "
            "have no place on a map; write .csv or .json, which hold pixels, or georeference the image first"
        )
    return target


# ---- formats ----


def _geojson(found: Detections) -> bytes:
    shapely, place = require("shapely", "vlm"), found._to_wgs84()
    if place is None:
        raise InputError(
            f"the CRS of {found.source} has no way to WGS 84, in which GeoJSON is; write .gpkg or .parquet, which keep "
            "the image's CRS"
        )
    rings = _outlines(found._corners(), place)
    features = [
        {"type": "Feature", "properties": record, "geometry": _geometry(shapely, ring)}
        for record, ring in zip(found._records(), rings, strict=True)
    ]
    # a feature a line, for those who look at the file or compare two
    lines = ",\n".join(json.dumps(feature, ensure_ascii=False) for feature in features)
    return f'{{"type": "FeatureCollection", "features": [\n{lines}\n]}}\n'.encode()


def _geopackage(found: Detections) -> bytes:
    pyogrio, buffer = require("pyogrio", "vlm"), io.BytesIO()
    before = pyogrio.get_gdal_config_option("OGR_CURRENT_DATE")
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": DATE})
    try:
        pyogrio.write_dataframe(
            found.to_geodataframe(), buffer, driver="GPKG", layer="detections", geometry_type="Polygon"
        )
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": before})
    return buffer.getvalue()


def _geoparquet(found: Detections) -> bytes:
    require("pyarrow", "vlm")
    buffer = io.BytesIO()
    found.to_geodataframe().to_parquet(buffer, index=False)
    return buffer.getvalue()


def _csv(found: Detections) -> bytes:
    numbers = [f"{axis}{corner}" for corner in (1, 2, 3, 4) for axis in "xy"]
    names = [name for name in COLUMNS if name != "pixels"]
    header = [*names, *numbers]
    rows = [[*(_quoted(record[name]) for name in names), *record["pixels"]] for record in found._records()]
    if found.georeferenced and found.crs is not None:
        header += [*(f"map_{name}" for name in numbers), "crs", "lon", "lat"]
        place = found._to_wgs84()
        middles = found._corners().mean(axis=1)
        lonlat = np.full_like(middles, np.nan) if place is None else place(middles)
        lonlat[:, 0] = _turned(lonlat[:, 0])
        for row, there, middle in zip(rows, found._map_corners().reshape(-1, 8), lonlat, strict=True):
            row += [*there.tolist(), found.crs.to_string()]
            row += [None if math.isnan(angle) else round(angle, DECIMALS) for angle in middle.tolist()]
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    return text.getvalue().encode("utf-8-sig")


def _json(found: Detections) -> bytes:
    text = json.dumps(found.to_dict(), ensure_ascii=False, indent=1)
    return (_text(text) + "\n").encode()


#: How the records are written, by the end of the name.
FORMATS: dict[str, Callable[[Detections], bytes]] = {
    ".geojson": _geojson,
    ".gpkg": _geopackage,
    ".parquet": _geoparquet,
    ".csv": _csv,
    ".json": _json,
}


def _many(count: int, one: str, more: str) -> str:
    return f"{count} {one if count == 1 else more}"


def _text(text: str) -> str:
    """Without what UTF-8 or SQLite cannot hold: a model may write half of a surrogate pair, or a NUL."""
    return re.sub("[\ud800-\udfff\0]", "\N{REPLACEMENT CHARACTER}", text)


def _quoted(value: object) -> object:
    """A text from a model is not to be trusted in a spreadsheet."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


# ---- places ----


def _placed(transform: Any, pixels: np.ndarray) -> np.ndarray:
    """Map coordinates of pixels (..., 2)."""
    t, x, y = transform, pixels[..., 0], pixels[..., 1]
    return np.stack([t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f], axis=-1)


def _turned(longitude: np.ndarray) -> np.ndarray:
    """From -180 to 180."""
    return longitude - 360 * np.round(longitude / 360)


def _outlines(corners: np.ndarray, place: Callable[[np.ndarray], np.ndarray]) -> list[np.ndarray]:
    """Rings (points, 2) in longitude and latitude, of boxes (boxes, 4, 2) in pixels.

    Longitudes go on beyond 180 degrees rather than jump, so the last point is a whole turn from the first where a pole
    is inside. A side is halved until a quarter, half and three quarters of each part are within ``BEND`` of a straight
    line.
    """
    rings: list[np.ndarray] = [np.empty((0, 2))] * len(corners)
    rest, parts = np.arange(len(corners)), 1
    while len(rest):
        start = corners[rest]
        along = np.arange(4 * parts)[:, None] / (4 * parts)
        pixels = start[:, :, None] + along * (np.roll(start, -1, axis=1) - start)[:, :, None]
        found = place(pixels.reshape(len(rest), -1, 2))  # four points for each part
        steps = np.roll(found, -1, axis=1) - found
        steps[..., 0] = _turned(steps[..., 0])
        way = steps.reshape(len(rest), -1, 4, 2).cumsum(axis=2)
        chords = way[:, :, 3]
        off = way - chords[:, :, None] * np.array([0.25, 0.5, 0.75, 1])[:, None]
        level = np.cos(np.radians(found[:, ::4, 1]))  # a degree of longitude is that much shorter
        lengths = np.hypot(chords[..., 0] * level, chords[..., 1]).sum(axis=1)
        sides = np.linalg.norm(np.roll(start, -1, axis=1) - start, axis=2).sum(axis=1)
        bent = np.hypot(off[..., 0] * level[..., None], off[..., 1]).max(axis=(1, 2)) * sides > BEND * lengths
        for index in np.flatnonzero(~bent | (parts == PARTS)):
            rings[rest[index]] = np.concatenate([found[index, :1], found[index, 0] + chords[index].cumsum(axis=0)])
        rest, parts = rest[bent & (parts < PARTS)], parts * 2
    return rings


def _geometry(shapely: Any, ring: np.ndarray) -> dict[str, Any] | None:
    """A ring of ``_outlines`` as GeoJSON, cut where longitude jumps; None where a point has no place."""
    if np.isnan(ring).any():
        return None
    if abs(ring[-1, 0] - ring[0, 0]) > 180:  # around a pole: up to it at both ends
        pole = math.copysign(90, ring[:, 1].mean())
        ring = np.concatenate([ring, [[ring[-1, 0], pole], [ring[0, 0], pole]]])
    else:
        ring[-1] = ring[0]  # but for rounding they are the same
    shape = shapely.Polygon(ring)
    shape = shape if shape.is_valid else shape.buffer(0)  # a side may go through a pole
    turns = range(math.floor((ring[:, 0].min() + 180) / 360), math.ceil((ring[:, 0].max() + 180) / 360))
    pieces: list[BaseGeometry] = []
    for turn in turns:
        west = 360 * turn - 180
        piece = shape if len(turns) == 1 else shape.intersection(shapely.box(west, -90, west + 360, 90))
        pieces.append(shapely.transform(piece, lambda points, by=360 * turn: (points - [by, 0]).round(DECIMALS)))
    # what goes on below a whole turn later touches its beginning; repeated points are those that rounding made equal
    whole = shapely.remove_repeated_points(shapely.union_all(pieces) if len(pieces) > 1 else pieces[0])
    polygons = [part for part in shapely.get_parts(whole) if part.geom_type == "Polygon" and part.area]
    rings = [[[list(point) for point in part.coords] for part in _rings(_upright_ring(one))] for one in polygons]
    if len(rings) == 1:
        return {"type": "Polygon", "coordinates": rings[0]}
    return {"type": "MultiPolygon", "coordinates": rings} if rings else None


def _rings(polygon: Any) -> list[Any]:
    return [polygon.exterior, *polygon.interiors]


def _upright_ring(polygon: Any) -> Any:
    """The exterior counter-clockwise, as GeoJSON asks for."""
    return require("shapely.geometry.polygon", "vlm").orient(polygon)
