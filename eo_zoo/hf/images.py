"""Images as users hold them to values and band names: arrays, tensors, pictures, rasters and xarray's arrays."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL.Image import Image as Picture
from torch import Tensor

from eo_zoo import sensors
from eo_zoo.errors import InputError, require
from eo_zoo.values import conversion, impossible

_SINGLE = ("1", "L", "LA", "La", "I", "F")  # modes of pictures with one channel; those of 16 bits begin with I;16
LEFT_OUT = "-"  # instead of a band's name: it is not used, as in the raster pipeline
_KINDS = "a numpy array, torch tensor, PIL image, rasterio dataset, path of a raster, or xarray DataArray"


@dataclass
class Image:
    """Values, float32 (..., bands, H, W) with NaN for what is missing, their canonical names, and what may be wrong."""

    values: Tensor
    bands: tuple[str, ...]
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What images are, and what is wanted of them.

    Args:
        targets: the sensors whose bands they may hold, each with the units wanted, one of ``eo_zoo.sensors.UNITS``.
        orders: of images whose bands carry no names: canonical names, of which the first list of as many is taken.
        bands: names of the images' bands in their order, ``LEFT_OUT`` for one that is not used, or the name of an
            order; None for what they say themselves.
        units: of their values, also by sensor; None for what their metadata say, or the units wanted.
        nodata: the stored number that means missing, beside NaN and what their metadata say.
    """

    targets: Mapping[str, str]
    orders: Sequence[tuple[str, ...]]
    bands: str | Sequence[str] | None = None
    units: str | Mapping[str, str] | None = None
    nodata: float | None = None

    def read(self, image: Any) -> Image:
        """One image, or a batch of one array.

        Raises:
            InputError: no image of a kind that is known; bands without names, or of other sensors; or units that
                cannot be what they are said to be.
            MissingExtra: rasterio is needed for it and not installed.
        """
        if isinstance(image, (np.ndarray, Tensor)):
            return self._of_array(image.detach().cpu() if isinstance(image, Tensor) else image)
        if isinstance(image, Picture):
            return self._of_picture(image)
        if hasattr(image, "dims") and hasattr(image, "coords"):
            return self._of_xarray(image)
        if isinstance(image, (str, Path)) or (hasattr(image, "descriptions") and hasattr(image, "read")):
            require("rasterio", "geo")
            with _in_python():
                return self._of_raster(image)
        raise InputError(f"got {type(image).__name__} as an image, expected {_KINDS}")

    # ---- kinds ----

    def _of_array(self, image: npt.NDArray[Any] | Tensor, said: tuple[str, ...] | None = None) -> Image:
        shape = tuple(image.shape)
        bands = self.named() or said or self._fitting(shape[-3] if len(shape) > 2 else 0)
        if bands is None or len(shape) < 3 or shape[-3] != len(bands):
            raise InputError(self._misfit(shape, bands))
        if isinstance(image, Tensor):
            image = (image.float() if image.dtype == torch.bfloat16 else image).numpy()
        return self._converted(image, bands, metadata=False)

    def _of_picture(self, picture: Picture) -> Image:
        if picture.mode in _SINGLE or picture.mode.startswith("I;16"):
            return self._of_array(np.asarray(picture.convert("L") if "A" in picture.mode.upper() else picture)[None])
        if self.bands is None and "RGB" not in self.targets:
            raise InputError(
                f"the image is a picture (RGB), but bands of {' and '.join(self.targets)} are expected: give "
                "arrays, or open the file with rasterio. Image pipelines of transformers give pictures, so they need "
                "a model and a processor for these (sensor='RGB', where the weights take it)"
            )
        return self._of_array(
            np.moveaxis(np.asarray(picture.convert("RGB")), -1, 0), sensors.get_sensor("RGB").band_names
        )

    def _of_raster(self, source: Any) -> Image:
        from eo_zoo.geo.bands import BandReader
        from eo_zoo.geo.grid import own_grid
        from eo_zoo.geo.scene import Scene
        from eo_zoo.geo.sources import Files, Found

        with contextlib.ExitStack() as stack:
            dataset = Files(stack).open(source) if isinstance(source, (str, Path)) else source
            found, grid = Found(next(iter(self.targets))), own_grid(dataset)
            for part in self._found(dataset):
                found.sources += [one for one in part.sources if one not in found.sources]
                found.warnings += part.warnings
            readers = []
            for one in found.sources:
                sensor, target = self._target(one.band)
                how: Any = dict(sensor=sensor, target_units=target, units=self._units(sensor), boa_offset=None)
                readers.append(BandReader.of(one, dataset, grid, nodata=self.nodata, **how))
            scene = Scene(grid, readers, found, " and ".join(set(self.targets.values())))
            values, valid = (torch.from_numpy(part) for part in scene.read(0, 0, dataset.height, dataset.width))
            return Image(values.where(valid, torch.nan), scene.bands, [_as_call(text) for text in scene.warnings])

    def _found(self, dataset: Any) -> Iterator[Any]:
        """What the raster pipeline finds in a dataset, for each sensor; where no band has a name, by their number."""
        from eo_zoo.geo.sources import Files, data_bands, described, from_file

        class Opened(Files):
            def open(self, path: str | Path) -> Any:
                return dataset

        files, numbers, given = Opened(contextlib.ExitStack()), data_bands(dataset), self.named()
        named = [name for name in self.targets if any(described(dataset, i, name) for i in dataset.indexes)]
        coloured = "RGB" in self.targets and {"red", "green", "blue"} <= {one.name for one in dataset.colorinterp}
        if given is None and not named and not coloured:
            given = self._fitting(len(numbers))
        for sensor in list(self.targets)[:1] if given or not named else named:
            yield from_file(files, str(dataset.name), sensor, given, stated=True)

    def _of_xarray(self, array: Any) -> Image:
        require("rasterio", "geo")
        from eo_zoo.geo import cubefile, cubes

        if hasattr(array, "data_vars"):
            raise InputError("got an xarray Dataset, expected a DataArray: its to_dataarray('band') gives one")
        if "band" in array.coords and "band" not in array.dims:
            array = array.expand_dims("band")
        roles, label = cubefile._roles(array), str(array.name or "the array")
        if not {"band", "y", "x"} <= roles.keys():
            raise InputError(f"{label} has the dimensions {', '.join(map(str, array.dims))}, expected band, y and x")
        array = array.transpose(*(roles[role] for role in cubefile.ROLES if role in roles))
        said: list[str | None] = []
        with contextlib.suppress(InputError):  # they carry no names
            said = [self._match(text) for text in cubefile._labels(array, roles["band"], label)]
        given = self.named() or (None if any(said) else self._fitting(array.shape[-3]))
        names: Sequence[str | None] = given or said
        if len(names) != array.shape[-3] or not any(names):
            raise InputError(self._misfit(array.shape, given))
        scale, offset = (array.attrs.get(key) for key in ("scale_factor", "add_offset"))
        made = self._converted(
            array.values,
            names,
            metadata=True,
            scale=scale,
            offset=offset,
            nodata=cubes._nodata(array, self.nodata),
        )
        # said is empty where the array has no labels for its bands
        wrong = [f"{name} ({other})" for name, other in zip(names, said, strict=False) if other not in (None, name)]
        if wrong:
            made.warnings.append(f"{label}: bands= differs from its own names: {', '.join(wrong)}")
        return made

    # ---- names ----

    def named(self) -> tuple[str, ...] | None:
        """Canonical names of ``bands`` and ``LEFT_OUT``, or None; InputError for unknown ones and repeats."""
        if self.bands is None:
            return None
        if isinstance(self.bands, str):
            return sensors.get_order(self.bands)
        names = tuple(name if name == LEFT_OUT else self._resolve(name) for name in self.bands)
        twice = sorted({name for name in names if names.count(name) > 1 and name != LEFT_OUT})
        if twice or not set(names) - {LEFT_OUT}:
            raise InputError(f"bands: {', '.join(twice)} given twice" if twice else "bands is empty: give names")
        return names

    def _resolve(self, name: str) -> str:
        for sensor in self.targets:
            with contextlib.suppress(InputError):
                return sensors.resolve(name, sensor)
        return sensors.resolve(name, next(iter(self.targets)))  # raises

    def _match(self, text: str) -> str | None:
        from eo_zoo.geo.names import match

        return next((band for sensor in self.targets if (band := match(text, sensor))), None)

    def _fitting(self, count: int) -> tuple[str, ...] | None:
        return next((order for order in self.orders if len(order) == count), None)

    def _misfit(self, shape: Sequence[int], bands: Sequence[str] | None) -> str:
        counts = sorted({len(order) for order in ([bands] if bands else self.orders)})
        expected = f"(..., {' or '.join(map(str, counts))} bands, H, W)"
        if len(shape) > 2 and shape[-1] in counts:
            return f"the image is {tuple(shape)}, its bands last: expected {expected}; transpose it"
        names = ", ".join(bands or self.orders[0])
        said = f"the bands named are {names}" if bands else f"the model's are {names}; of others give bands=[...]"
        return f"the image is {tuple(shape)}, expected {expected}: {said}"

    # ---- values ----

    def _target(self, band: str) -> tuple[str, str]:
        """The sensor that a band is of, and the units wanted."""
        owners = [sensor for sensor in self.targets if band in sensors.get_sensor(sensor).band_names]
        sensor = owners[0] if owners else next(iter(self.targets))
        return sensor, self.targets[sensor]

    def _units(self, sensor: str) -> str | None:
        return self.units.get(sensor) if isinstance(self.units, Mapping) else self.units

    def _converted(
        self,
        stored: npt.NDArray[Any],
        names: Sequence[str | None],
        *,
        metadata: bool,
        scale: float | None = None,
        offset: float | None = None,
        nodata: float | None = None,
    ) -> Image:
        """Stored values (..., bands, H, W) in the units wanted; ``metadata`` could have said which they are in."""
        if not stored.size:
            raise InputError(f"the image is empty: {tuple(stored.shape)}")
        used = [(band, stored[..., place, :, :]) for place, band in enumerate(names) if band not in (None, LEFT_OUT)]
        nodata = self.nodata if nodata is None else nodata
        planes, warnings = [], []
        for band, plane in used:
            sensor, target = self._target(band)
            units = self._units(sensor)
            if units is None and not metadata and plane.dtype.kind == "f":
                units = target  # of numbers in memory, nobody else could say it
            values, lost = _in_units(plane, target, sensor, units, scale, offset)
            if nodata is not None:
                values[plane == nodata] = np.nan
            planes.append(torch.from_numpy(values))
            if lost:
                warnings.append(impossible(band, target))
        return Image(torch.stack(planes, dim=-3), tuple(band for band, _ in used), warnings)


def _in_units(
    stored: npt.NDArray[Any], target: str, sensor: str, units: str | None, scale: float | None, offset: float | None
) -> tuple[npt.NDArray[np.float32], bool]:
    """Values in the target's units, and whether some have none there."""
    with _in_python():
        way = conversion(stored.dtype, target_units=target, sensor=sensor, units=units, scale=scale, offset=offset)
    values = way.apply(stored)
    return values, bool(way.function) and bool((np.isnan(values) & ~np.isnan(stored)).any())


def _as_call(text: str) -> str:
    """The command line's options in a message of the raster pipeline, as arguments of a call."""
    text = re.sub(r"--(units|sensor) ", r"\1=", text).replace("--stats", "statistics=")
    return re.sub(r"--([a-z]+)", r"\1=", text)


@contextlib.contextmanager
def _in_python() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(_as_call(str(error))) from error
