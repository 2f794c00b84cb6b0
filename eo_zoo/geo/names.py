"""Band names as people write them: free text, file names, lists.

Built on :func:`eo_zoo.sensors.resolve`, which knows the names; here is what may stand around them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from eo_zoo.errors import InputError
from eo_zoo.sensors import get_sensor, list_sensors, resolve, resolve_bands

# "04 - Red", "08A - Vegetation Red Edge", "B4, central wavelength 665 nm": the sensor's number, then text
NUMBERED = re.compile(r"(?:b|band)?[ _]*(\d{1,2}a?)(?:\s+-\s+|\s*[:,(]\s*)(.*[a-z]{3}.*)", re.IGNORECASE)
# "Band 4", "layer_4", "4": what software calls a band that nobody named
POSITION = re.compile(r"(band|layer|channel|ch)?[\s_-]*\d+", re.IGNORECASE)
LEFT_OUT = "-"  # in --bands: the file's band at this place is not used


def match(text: str | None, sensor: str) -> str | None:
    """The band that a free text names, or None.

    The text as a whole is looked up; failing that, where it begins with a number and goes on in words
    ("04 - Red"), the sensor's band of that number. The words must not name another band.

    Raises:
        InputError: the text is ambiguous, or number and words name different bands.
    """
    if not text or POSITION.fullmatch(text.strip()):
        return None
    band = _lookup(text, sensor)
    numbered = NUMBERED.fullmatch(text.strip())
    if band or not numbered:
        return band
    band = _lookup("B" + numbered[1], sensor)
    words = None if _ambiguous(numbered[2], sensor) else _lookup(numbered[2], sensor)
    if band and words and words != band:
        raise InputError(
            f"'{text}' is {band} of {sensor} by its number, but {words} by its words; give --bands or --sensor"
        )
    return band


def cloud_kind(text: str | None) -> str | None:
    """What kind of cloud mask a free text or a file's name stands for, or None.

    "scl" is Sentinel-2's scene classification ("SCL", ``T29RKH_20200219_SCL_20m``), "probability" that of clouds in
    per cent (``MSK_CLDPRB_20m``, "cloud_probability").
    """
    words = re.split(r"[^a-z]+", (text or "").lower())
    if "scl" in words:
        return "scl"
    return "probability" if "cldprb" in words or {"cloud", "probability"} <= set(words) else None


def _lookup(name: str, sensor: str) -> str | None:
    for scope in _scopes(sensor):
        try:
            return resolve(name, scope)
        except InputError:
            if _ambiguous(name, scope):
                raise
    return None


def _scopes(sensor: str) -> list[str]:
    """The sensor, then those with all its bands and more: Sentinel-2 L2A has no B10, but L1C has."""
    bands = set(get_sensor(sensor).band_names)
    wider = [name for name in list_sensors() if bands < set(get_sensor(name).band_names)]
    return [sensor, *wider]


def _ambiguous(name: str, sensor: str) -> bool:
    spellings = [{band.common_name, *band.aliases} for band in get_sensor(sensor).bands]
    return sum(name.lower() in {(text or "").lower() for text in texts} for texts in spellings) > 1


def match_file_name(path: Path, sensor: str) -> str | None:
    """The band that a file's name holds as a whole or between separators: ``T29RKH_20200219_B02_10m.jp2``.

    Only the sensor's own bands count, as a stray word must not become another sensor's band.

    Raises:
        InputError: the parts name different bands, or one is ambiguous.
    """
    whole = _lookup(path.stem, sensor)
    if whole:
        return whole
    own = {band for scope in _scopes(sensor) for band in get_sensor(scope).band_names}
    tokens = [token for token in re.split(r"[^0-9A-Za-z]+", path.stem) if token and not token.isdigit()]
    ambiguous = [token for token in tokens if _ambiguous(token, sensor)]
    found = {token: band for token in tokens if token not in ambiguous and (band := _lookup(token, sensor)) in own}
    if len(set(found.values())) > 1:
        listed = ", ".join(f"'{token}' is {band}" for token, band in found.items())
        raise InputError(f"{path.name}: its name holds several bands ({listed}); rename it or describe its band")
    if ambiguous and not found:
        resolve(ambiguous[0], sensor)  # raises, with the candidates
    return next(iter(found.values()), None)


def given_bands(bands: Sequence[str], sensor: str) -> tuple[str, ...]:
    """The canonical names of ``--bands``, without the places marked as left out and those of cloud masks.

    Raises:
        InputError: a name is unknown, or a band is given twice.
    """
    if isinstance(bands, str) or not set(bands) - {LEFT_OUT}:
        raise InputError(f"--bands is {bands!r}, expected a list of band names")
    bands = [band for band in bands if band != LEFT_OUT and not cloud_kind(band)]
    for scope in _scopes(sensor):
        try:
            names = resolve_bands(bands, scope)
            break
        except InputError:
            continue
    else:
        names = resolve_bands(bands, sensor)  # raises, in the words of the sensor that was meant
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"--bands: band given twice: {', '.join(twice)}")
    return names
