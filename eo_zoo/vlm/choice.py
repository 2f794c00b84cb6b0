"""Which bands of a file, a folder or a STAC item are shown, and where they lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from rasterio.io import DatasetReader

from eo_zoo.errors import InputError
from eo_zoo.geo.grid import Grid, common_grid, own_grid
from eo_zoo.geo.names import given_bands, match
from eo_zoo.geo.sources import BandSource, Files, Found, alpha_band, data_bands, described
from eo_zoo.sensors import get_band
from eo_zoo.vlm.layers import Layer, Part, Place, without_alpha

COLOURS = ("red", "green", "blue")
SENSOR = "S2"  # whose band names are meant where nothing says
SAMPLE = 1024  # pixels a side at most that are looked at to learn about an image
MASK = 0.5  # share of an alpha band's values that are 0 or 255 at least, or else it is no mask


@dataclass(frozen=True)
class Choice:
    """What is wanted of an image.

    Args:
        bands: names, or numbers from 1, to be shown as red, green and blue; or one.
        sensor: whose band names are meant.
        nodata: stored value that means missing, instead of what the files say.
        bbox: minx, miny, maxx, maxy of the part wanted.
        bbox_crs: of ``bbox``; None for the image's own.
    """

    bands: tuple[str, ...] | None = None
    sensor: str | None = None
    nodata: float | None = None
    bbox: Sequence[float] | None = None
    bbox_crs: str | None = None

    @property
    def scope(self) -> str:
        """The sensor, also where none is given."""
        return self.sensor or SENSOR

    @property
    def numbers(self) -> tuple[int, ...]:
        """The bands as numbers, if that is how they are given."""
        bands = self.bands or ()
        return tuple(int(band) for band in bands) if all(band.isdecimal() for band in bands) else ()


def split(bands: str | Sequence[str | int] | None) -> tuple[str, ...] | None:
    """Names or numbers, one or three, from a text with commas or a list.

    Raises:
        InputError: they are not one or three.
    """
    if bands is None:
        return None
    texts = [str(band).strip() for band in (bands.split(",") if isinstance(bands, str) else bands)]
    if len(texts) not in (1, 3) or not all(texts):
        raise InputError(f"bands are {bands!r}: give three, to be shown as red, green and blue, or one")
    return tuple(texts)


# ---- one file ----


def of_file(
    dataset: DatasetReader, label: str, choice: Choice, found: Found, stack: ExitStack, *, picture: bool = False
) -> tuple[Layer, Place]:
    """The bands of a file to show, three or one, and where they lie.

    By default those that the file itself calls red, green and blue, by its descriptions or colour interpretation;
    else the first three, with a warning.

    Args:
        dataset: the file.
        label: what messages call it.
        choice: what is wanted of it.
        found: gets notes and warnings.
        stack: closes what is opened.
        picture: its alpha band is one for sure.

    Raises:
        InputError: it has no such bands, or values of a kind that cannot be shown; or ``bbox`` is none, or elsewhere.
    """
    place = place_of(dataset, label, found)
    numbers = choice.numbers
    if numbers and not all(1 <= number <= dataset.count for number in numbers):
        raise InputError(f"{label}: has no band {max(numbers)}, only {dataset.count}; numbers start at 1")
    alpha = alpha_band(dataset)
    if alpha and (alpha in numbers or (not picture and _is_data(dataset, alpha, label, choice, found))):
        dataset, alpha = without_alpha(dataset, stack), None
    if not numbers:
        numbers = _usual(dataset, label, choice, found) if choice.bands is None else _named(dataset, label, choice)
    layer = Layer.of(dataset, numbers, alpha, choice.nodata, label)
    if choice.bbox is None:
        return layer, place
    part = _part(dataset, label, choice)
    found.notes.append(_told_cut(label, *part))
    return layer.cut(*part[:2]), place.cut(part)


def _is_data(dataset: DatasetReader, alpha: int, label: str, choice: Choice, found: Found) -> bool:
    """Whether an alpha band is none: GDAL calls the fourth band of many files alpha by its place alone."""
    name = None
    with suppress(InputError):  # a name that may be several bands' is none here
        name = described(dataset, alpha, choice.scope)
    if name is None:
        if dataset.crs is None or dataset.dtypes[alpha - 1] != "uint8":
            return False
        sample = dataset.read(alpha, out_shape=(min(dataset.height, SAMPLE), min(dataset.width, SAMPLE)))
        if ((sample == 0) | (sample == 255)).mean() >= MASK:
            return False
    why = f"it is named {name}" if name else "most of its values are neither 0 nor 255"
    found.warnings.append(f"{label}: band {alpha} is marked as alpha, but {why}: taken as data, not as a mask")
    return True


def _names(dataset: DatasetReader, scope: str) -> tuple[dict[str, int], dict[str, int]]:
    """The file's bands by their descriptions, as canonical names, and by their colour interpretation."""
    said: dict[str, int] = {}
    colours: dict[str, int] = {}
    for number in data_bands(dataset):
        with suppress(InputError):  # what may be several bands is none
            if name := described(dataset, number, scope):
                said.setdefault(name, number)
        colours.setdefault(dataset.colorinterp[number - 1].name, number)
    return said, {colour: number for colour, number in colours.items() if colour in COLOURS}


def _named(dataset: DatasetReader, label: str, choice: Choice) -> tuple[int, ...]:
    said, colours = _names(dataset, choice.scope)
    bands = choice.bands or ()
    numbers = [colours.get(band.lower()) for band in bands]
    if said or None in numbers:
        names = given_bands(bands, choice.scope)
        numbers = [said.get(name, number) for name, number in zip(names, numbers, strict=True)]
    missing = [band for band, number in zip(bands, numbers, strict=True) if number is None]
    if missing:
        known = ", ".join([*said, *colours]) or "none"
        raise InputError(
            f"{label}: none of its {dataset.count} bands is called {' or '.join(missing)} (names: {known}); give "
            "numbers, as 3,2,1"
        )
    return tuple(number for number in numbers if number is not None)


def _usual(dataset: DatasetReader, label: str, choice: Choice, found: Found) -> tuple[int, ...]:
    said, colours = _names(dataset, choice.scope)
    numbers = tuple(said[name] for name in _colour_names(choice.scope) if name in said)
    if len(numbers) == 3:
        listed = ", ".join(map(str, numbers))
        found.notes.append(f"{label}: bands {listed} are shown as red, green, blue, as they are named")
        return numbers
    if len(colours) == 3:
        return tuple(colours[colour] for colour in COLOURS)
    data = data_bands(dataset)
    if not data:
        raise InputError(f"{label}: holds no image of its own, but parts; convert the one wanted to GeoTIFF")
    if len(data) == 1:
        return (data[0],)
    shown = "the first is shown in grey" if len(data) == 2 else "the first three are shown as red, green, blue"
    found.warnings.append(f"{label}: nothing says which of its {len(data)} bands are colours, so {shown}; give bands")
    return tuple(data[: 1 if len(data) == 2 else 3])


def _colour_names(scope: str) -> list[str]:
    """Canonical names of a sensor's red, green and blue; a radar has none."""
    return [name for colour in COLOURS if (name := match(colour, scope))]


def place_of(dataset: DatasetReader, label: str, found: Found) -> Place:
    """A file's own pixels; what it says of their place that cannot be used is told."""
    size, crs, transform = (dataset.width, dataset.height), dataset.crs, dataset.transform
    if transform.is_identity or transform.is_degenerate:
        if crs is None and (dataset.gcps[0] or dataset.rpcs):
            found.notes.append(
                f"{label}: placed by ground control points or RPCs only, so its pixels have no place on a map; run "
                "gdalwarp on it"
            )
        elif crs is not None:
            found.warnings.append(f"{label}: has a CRS but no pixel grid, so its pixels have no place on a map")
        return Place(*size)
    if crs is None:
        found.notes.append(f"{label}: has a pixel grid but no CRS; set it with gdal_edit.py -a_srs EPSG:CODE")
    elif not (crs.is_projected or crs.is_geographic):
        found.warnings.append(f"{label}: its CRS is local, not of the Earth, and is left aside")
        crs = None
    return Place(*size, crs, transform)


def _part(dataset: DatasetReader, label: str, choice: Choice) -> Part:
    """The pixels that touch the box."""
    own = common_grid({label: dataset}, None, [])
    grid = own.window(choice.bbox or (), choice.bbox_crs)
    rows, columns = grid.axes(own)
    return round(rows.start), round(columns.start), grid.height, grid.width


def _told_cut(label: str, row: int, column: int, height: int, width: int) -> str:
    return (
        f"{label}: cut to {width} x {height} pixels from column {column}, row {row}; places in pixels, and what a "
        "stretch is taken of, are the cut's"
    )


# ---- several files ----


def of_bands(found: Found, files: Files, choice: Choice, stack: ExitStack) -> tuple[list[Layer], Place, list[str]]:
    """Layers of a folder or a STAC item, in the finest file's pixels; where these lie; and what the bands are called.

    By default its red, green and blue; where it has no such, as of radar, its first band.

    Raises:
        InputError: bands are missing, the files have no common grid, or as :func:`of_file`.
    """
    sources = _chosen(found, choice)
    datasets = {source.label: files.open(source.path) for source in sources}
    grid = common_grid(datasets, None, found.notes)
    if choice.bbox is not None:
        whole, grid = grid, grid.window(choice.bbox, choice.bbox_crs)
        rows, columns = grid.axes(whole)
        found.notes.append(_told_cut("the bands", round(rows.start), round(columns.start), grid.height, grid.width))
    layers = [_layer(source, datasets[source.label], grid, choice, found, stack) for source in sources]
    names = [get_band(source.band).sensor_name for source in sources]
    labels = ", ".join(f"{name} ({source.label})" for name, source in zip(names, sources, strict=True))
    found.notes.append(f"shown as {'red, green, blue' if len(names) == 3 else 'grey'}: {labels}")
    return layers, Place(grid.width, grid.height, grid.crs, grid.transform), names


def _chosen(found: Found, choice: Choice) -> list[BandSource]:
    there: Mapping[str, BandSource] = {source.band: source for source in found.sources}
    listed = ", ".join(there)
    if choice.numbers:
        raise InputError(f"bands are given by number, but each band is a file of its own: give names, of {listed}")
    if choice.bands is not None:
        names = list(given_bands(choice.bands, found.sensor))
        if missing := [name for name in names if name not in there]:
            raise InputError(f"bands: {', '.join(missing)} not found; there are {listed}")
        return [there[name] for name in names]
    names = [name for name in _colour_names(found.sensor) if name in there]
    if len(names) < 3:
        names = list(there)[:1]
        if len(there) > 1:
            found.warnings.append(f"no red, green and blue among {listed}: {names[0]} is shown in grey; give bands")
    return [there[name] for name in names]


def _layer(
    source: BandSource, dataset: DatasetReader, grid: Grid, choice: Choice, found: Found, stack: ExitStack
) -> Layer:
    number = data_bands(dataset)[source.index - 1] if source.count else source.index
    nodata = choice.nodata
    if nodata is None and dataset.nodatavals[number - 1] is None:
        nodata = source.nodata
    alpha = alpha_band(dataset) if source.masked else None
    layer = Layer.of(dataset, (number,), alpha, nodata, source.label)
    own = own_grid(dataset)
    rows, columns = grid.axes(own)
    if rows.aligned(grid.height) and columns.aligned(grid.width):
        return layer.cut(round(rows.start), round(columns.start))
    found.notes.append(f"{source.label}: resampled to pixels of {grid.transform.a:g} (bilinear)")
    place = Place(grid.width, grid.height, grid.crs, grid.transform)
    return layer.on(Place(own.width, own.height, own.crs, own.transform), place, stack)
