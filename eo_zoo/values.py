"""What stored numbers mean: conversion to a model's units, and checks that they can be what they claim.

numpy only. Nothing here guesses from a product's date or from the values: a conversion follows from what the
metadata or the caller says, and is put into words; the checks only warn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eo_zoo.errors import InputError
from eo_zoo.sensors import UNITS, Statistics, get_sensor

DN = 10000.0  # dn per unit of reflectance, in every optical product that calls its numbers so
MEANING = {"dn": "dn (reflectance x 10000)"}  # of optical bands; the others' words are plain
SOLE = {"m": "metres", "class": "codes of classes"}  # units that nothing is converted to or from
CIRRUS = 75.0  # dn; 99 % of Sentinel-2's cirrus band (B10) stays below, by the SMARTIES statistics of L1C
REFLECTIVE = 5000.0  # nm; a band of longer wavelength is thermal or radar and has no reflectance


@dataclass(frozen=True)
class Conversion:
    """From stored numbers to a model's units: ``multiply * stored + add``, then ``function``.

    ``function`` is "" (none), "log10" (linear power to dB) or "power" (dB to linear power). ``note`` says the
    same in words, for people.
    """

    multiply: float = 1.0
    add: float = 0.0
    function: str = ""
    note: str = ""

    def apply(self, stored: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """Stored numbers of any shape as float32 in the target units; NaN where there is no such value."""
        values = stored.astype(np.float32)
        if self.multiply != 1:
            values *= np.float32(self.multiply)
        if self.add != 0:
            values += np.float32(self.add)
        if self.function == "log10":
            values[values <= 0] = np.nan  # zero power is the sensor's way of saying nothing was measured
            values = np.float32(10) * np.log10(values)
        elif self.function == "power":
            values = np.power(np.float32(10), values / np.float32(10))
        return values


def conversion(
    stored: npt.DTypeLike,
    *,
    target_units: str,
    sensor: str,
    units: str | None = None,
    scale: float | None = None,
    offset: float | None = None,
    boa_offset: float | None = None,
) -> Conversion:
    """How to bring a band's stored numbers into ``target_units``.

    Args:
        stored: the file's data type.
        target_units: one of ``UNITS``, those of the statistics that the model uses.
        sensor: whose band it is; decides whether scale and offset lead to reflectance.
        units: what the stored numbers are, as said by the user.
        scale: of the metadata; ``stored * scale + offset`` is the physical value. 1 and 0 count as none.
        offset: of the metadata, in physical units.
        boa_offset: in dn, added to the dn (Sentinel-2 from baseline 04.00 on: -1000). 0 says that there is
            none, whatever offset the metadata hold; any other value beside such an offset is refused.

    Raises:
        InputError: no such conversion exists, or units, metadata and data type contradict each other.
    """
    dtype = np.dtype(stored)
    for name in (target_units, units or target_units):
        if name not in UNITS:
            raise InputError(f"unknown units '{name}'; expected one of {', '.join(UNITS)}")
    if dtype.kind not in "uif":
        raise InputError(f"the values are {dtype}, not real numbers; convert them first, e.g. to linear power")
    scale, offset = 1.0 if scale is None else float(scale), 0.0 if offset is None else float(offset)
    if not (math.isfinite(scale) and math.isfinite(offset)) or scale == 0:
        raise InputError(f"scale {scale} and offset {offset} in the metadata are no conversion; correct them")
    if target_units in ("dn", "reflectance") and reflective(sensor):
        return _optical(dtype, target_units, sensor, units, scale, offset, boa_offset)
    if boa_offset is not None:
        raise InputError(f"--boa-offset is for optical dn, but the values wanted are {target_units} of {sensor}")
    return _other(dtype, target_units, sensor, units, scale, offset)


def reflective(sensor: str) -> bool:
    """Whether a sensor measures reflected sunlight, at least in some bands: not radar."""
    return any(band.wavelength and band.wavelength[0] < REFLECTIVE for band in get_sensor(sensor).bands)


def _optical(
    dtype: np.dtype,
    target: str,
    sensor: str,
    units: str | None,
    scale: float,
    offset: float,
    boa_offset: float | None,
) -> Conversion:
    """To dn or reflectance: everything is brought to dn first."""
    described = (scale, offset) != (1.0, 0.0)
    if units in ("db", "linear", "uint8"):
        raise InputError(f"{units} cannot be converted to {target} of {sensor}; expected --units dn or reflectance")
    if dtype.itemsize == 1 and not described:
        raise InputError(
            f"the values are {dtype}, but {sensor} needs {MEANING.get(target, target)}: this looks like an "
            "8-bit preview, not data; use the original bands"
        )
    if boa_offset and not 1 <= abs(boa_offset) < math.inf:
        raise InputError(f"--boa-offset is {boa_offset:g}, expected dn, e.g. -1000")
    if boa_offset and offset:
        raise InputError(
            f"the metadata hold the offset {offset:g} already, --boa-offset {boa_offset:g} would apply it "
            "twice; leave one out (--boa-offset 0 ignores the one in the metadata)"
        )
    _check_said(dtype, units, scale, described)
    if described:
        multiply, add = _tidy(scale * DN), _tidy(offset * DN)
        note = f"scale {scale:g} and offset {offset:g} of the metadata applied"
        if boa_offset == 0 and offset:
            add, note = (
                0.0,
                f"scale {scale:g} of the metadata applied, its offset {offset:g} not (--boa-offset 0)",
            )
    elif units == "reflectance":
        multiply, add, note = DN, 0.0, "values are reflectance, as said"
    elif units == "dn":
        multiply, add, note = 1.0, 0.0, f"values are {MEANING['dn']}, as said"
    elif dtype.kind == "f":
        raise InputError(
            f"the values are {dtype} without scale in the metadata, which may be reflectance or dn; "
            "say --units reflectance or --units dn"
        )
    elif target == "reflectance":
        raise InputError(f"the values are {dtype} without scale in the metadata, not reflectance; say --units dn")
    else:
        note = f"no units in the metadata: values taken as {MEANING['dn']}; say --units otherwise"
        multiply, add = 1.0, 0.0
    if boa_offset:
        add += boa_offset
        note += f", --boa-offset {boa_offset:g} added"
    if target == "reflectance":
        multiply, add = multiply / DN, add / DN
    return Conversion(multiply, add, "", f"{note}; {_formula(target, multiply, add)}")


def _check_said(dtype: np.dtype, units: str | None, scale: float, described: bool) -> None:
    """What the user says the numbers are must not contradict the metadata or the data type."""
    if units == "reflectance" and described:
        raise InputError(
            f"--units reflectance, but the metadata hold scale {scale:g}: the stored numbers become "
            "reflectance only by it; leave --units out"
        )
    if units == "reflectance" and dtype.kind != "f":
        raise InputError(f"--units reflectance, but the values are {dtype}: integers, which --units dn would be")
    if units == "dn" and described and not math.isclose(scale * DN, 1, rel_tol=1e-6):
        raise InputError(
            f"--units dn (reflectance x 10000), but the metadata hold scale {scale:g} where dn have 0.0001; "
            "leave --units out, or correct the metadata"
        )


def _tidy(value: float) -> float:
    """0.0001 x 10000 as exactly 1, also of a float32 0.0001: files with and without scale give equal bits."""
    nearest = float(round(value))
    return nearest if math.isclose(value, nearest, rel_tol=1e-6, abs_tol=1e-9) else value


def _formula(target: str, multiply: float, add: float) -> str:
    if (multiply, add) == (1, 0):
        return f"{target} = stored"
    product = "stored" if multiply == 1 else f"{multiply:g} x stored"
    return f"{target} = {product}" + (f" {'-' if add < 0 else '+'} {abs(add):g}" if add else "")


def _other(dtype: np.dtype, target: str, sensor: str, units: str | None, scale: float, offset: float) -> Conversion:
    """To dB, linear power, 8-bit values, or the raw dn of a sensor without reflectance."""
    described = (scale, offset) != (1.0, 0.0)
    given = units or target
    if given != target and {given, target} != {"db", "linear"}:
        raise InputError(f"{given} cannot be converted to {target} of {sensor}; expected --units {target}")
    if "uint8" in (given, target) and (dtype != np.uint8 or described):
        found = f"{dtype} with scale {scale:g} and offset {offset:g}" if described else str(dtype)
        raise InputError(
            f"the values are {found}, but the statistics of {sensor} are for uint8 (0 to 255); convert the image to 8 "
            "bits first, or give others with --stats"
        )
    if given == "db" and dtype.kind == "u" and not described:
        raise InputError(
            f"the values are {dtype}, which cannot be dB (these are negative); calibrate the image first, "
            "or say --units linear if it holds power"
        )
    note = f"values are {given}, as said"
    if units is None:
        note = f"no units in the metadata: values taken as {SOLE.get(target, target)}"
        note += "; say --units otherwise" * (target not in SOLE)
    if described:
        note += f"; scale {scale:g} and offset {offset:g} of the metadata applied"
    function = "" if given == target else "log10" if target == "db" else "power"
    if function:
        note += "; db = 10 log10(linear)" if function == "log10" else "; linear = 10^(db / 10)"
    return Conversion(scale, offset, function, note)


def impossible(band: str, units: str) -> str:
    """The warning about values that a conversion has no result for."""
    # without a count: how often a pixel is read depends on the tiles
    return f"{band}: some values have no value in {units} (zero or negative power): taken as nodata"


# ---- plausibility ----


def plausibility(samples: Mapping[str, npt.NDArray[np.floating]], statistics: Statistics) -> list[str]:
    """Warnings about values that a band of this name should not have, each naming the bands.

    Three rules. A band's median lies outside p1..p99 of the statistics (without these, outside mean +- 3
    std). Optical only: a band is as dark as the cirrus band (median below 75 dn) while its neighbours in
    wavelength, on both sides, are ten times brighter; and Sentinel-2's two infrared bands that see the same
    light, B08 and B8A, differ by more than a factor of 2. The last two are what files with B8A at the end
    look like under names in wavelength order.

    Args:
        samples: canonical band name -> 1-D values in ``statistics.units``, valid ones only.
        statistics: what the model was trained with; bands that only one side has are not looked at.
    """
    known = [band for band in samples if band in statistics.bands and samples[band].size]
    medians = {band: float(np.median(samples[band])) for band in known}
    warnings = _out_of_range(medians, statistics)
    if statistics.units in ("dn", "reflectance") and reflective(statistics.sensor):
        # all given bands help here, also those without statistics (B10 beside statistics of L2A)
        dn = DN if statistics.units == "reflectance" else 1.0
        brightness = {band: float(np.median(values)) * dn for band, values in samples.items() if values.size}
        warnings += _order_of_bands(brightness, statistics.sensor)
    return warnings


def _out_of_range(medians: Mapping[str, float], statistics: Statistics) -> list[str]:
    low: list[str] = []
    high: list[str] = []
    for band, median in medians.items():
        i = statistics.bands.index(band)
        if statistics.p1 is not None and statistics.p99 is not None:
            bottom, top = statistics.p1[i], statistics.p99[i]
        else:
            bottom = statistics.mean[i] - 3 * statistics.std[i]
            top = statistics.mean[i] + 3 * statistics.std[i]
        if median < bottom:
            low.append(f"{band} {median:.4g} (usually above {bottom:.4g})")
        elif median > top:
            high.append(f"{band} {median:.4g} (usually below {top:.4g})")
    hint = "units or offset may be wrong" if len(low) + len(high) > len(medians) / 2 else "check these bands"
    sides = (("low", low), ("high", high))
    return [
        f"median values too {side} for the statistics '{statistics.name}': {', '.join(found)}; {hint}, "
        "or the scene is unlike the training data"
        for side, found in sides
        if found
    ]


def _order_of_bands(medians: Mapping[str, float], sensor: str) -> list[str]:
    """The two marks that a wrong band order leaves; medians in dn."""
    bands = [band for band in get_sensor(sensor).bands if band.name in medians and band.wavelength]
    ordered = [band.name for band in sorted(bands, key=lambda band: sum(band.wavelength or ()))]
    ordered = [name for name in ordered if name != "short_wave_infrared_2"]  # the cirrus band itself
    warnings = []
    # every band with the two beside it: the shifted lists end earlier
    for before, band, after in zip(ordered, ordered[1:], ordered[2:], strict=False):
        around = min(medians[before], medians[after])
        if medians[band] < CIRRUS and around > 10 * max(medians[band], 1):
            warnings.append(
                f"{band} has a median of {medians[band]:.4g} dn, the range of Sentinel-2's cirrus band B10, "
                f"between {before} ({medians[before]:.4g}) and {after} ({medians[after]:.4g}): "
                "check the band order: is B8A last?"
            )
    pair = [medians[name] for name in ("near_infrared_1", "near_infrared_3") if name in medians]
    # dark water is left alone: there, noise and the atmospheric correction decide
    if len(pair) == 2 and max(pair) > 500 and max(pair) > 2 * min(pair):
        warnings.append(
            f"near_infrared_1 (B08) and near_infrared_3 (B8A) see the same light, but their medians are "
            f"{pair[0]:.4g} and {pair[1]:.4g} dn: check the band order: is B8A last?"
        )
    return warnings


def gsd_warning(gsd_metres: float, trained: Sequence[float]) -> str | None:
    """A warning if the pixel size is further than a factor of 1.5 from the range a model was trained on.

    Args:
        gsd_metres: metres per pixel of the raster.
        trained: lowest and highest metres per pixel in training.
    """
    low, high = trained
    if low / 1.5 <= gsd_metres <= high * 1.5:
        return None
    known = f"{low:g} m" if low == high else f"{low:g} to {high:g} m"
    return (
        f"pixels are {gsd_metres:.4g} m, the model was trained on {known}: its results may mean little; "
        "--resolution resamples"
    )
