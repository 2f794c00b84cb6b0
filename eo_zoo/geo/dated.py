"""Which rasters belong to which date: folders of dated files, and STAC item collections."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

from eo_zoo.errors import InputError
from eo_zoo.geo.names import cloud_kind
from eo_zoo.geo.sources import SUFFIXES, Files, baseline_of, data_bands, rasters
from eo_zoo.geo.stac import item_baseline

# 20200219, 2020-02-19, 2020_02_19, 2020.02.19, with or without a time of day behind it
DAY = re.compile(r"(?<!\d)((?:19|20)\d\d)([-_.]?)(\d\d)\2(\d\d)(?=\d{6}(?!\d)|(?!\d))")
# when the image was taken: GDAL's own key, then those of other software; compared without case
ACQUIRED = ("acquisitiondatetime", "acquisition_date", "date_acquired", "sensing_time", "datetime", "date")
WRITTEN = "tifftag_datetime"  # by the TIFF standard when the file was made, though some put the acquisition there
DIRECTIVES = {"%Y": r"\d{4}", "%y": r"\d\d", "%j": r"\d{3}", **{f"%{letter}": r"\d\d" for letter in "mdHMS"}}

Source = list[Path] | Mapping[str, Any]  # what `open_scene` takes


@dataclass(frozen=True)
class Image:
    """What was taken on a date, or a part of it."""

    date: date
    label: str
    source: Source
    baseline: str  # of Sentinel-2 processing, "" where unknown


# ---- dates in text ----


def dates_in(text: str) -> list[date]:
    """Every date that a text holds as year, month and day, in its order.

    >>> dates_in("S2A_MSIL2A_20200219T112111_N0214_R037_T29RKH_20200220T123947"), dates_in("B04_2020050")
    ([datetime.date(2020, 2, 19), datetime.date(2020, 2, 20)], [])
    """
    found = []
    for year, _, month, day in DAY.findall(text):
        with suppress(ValueError):  # 20201399 is some other number
            found.append(date(int(year), int(month), int(day)))
    return found


def matcher(pattern: str) -> re.Pattern[str]:
    """What finds the text of a date of a strptime form, e.g. "%Y%j" or "%d-%m-%Y".

    Raises:
        InputError: no year in it, or a directive that is not known here.
    """
    parts = re.split("(%.?)", pattern)
    unknown = [part for part in parts[1::2] if part not in DIRECTIVES]
    if unknown or not {"%Y", "%y"} & set(parts):
        raise InputError(
            f"date_pattern is '{pattern}', expected a strptime form with a year, e.g. %Y%m%d, made of "
            f"{' '.join(DIRECTIVES)} and the text between them"
        )
    body = "".join(DIRECTIVES.get(part, re.escape(part)) for part in parts)
    return re.compile(rf"(?<!\d){body}(?!\d)" if parts[0] == parts[-1] == "" else body)


def date_by(pattern: str, name: str) -> date | None:
    """The first date of this form in a name. A month or day that the form lacks is the first."""
    for match in matcher(pattern).finditer(name):
        with suppress(ValueError):
            return datetime.strptime(match[0], pattern).date()
    return None


# ---- a folder ----


def dated_files(folder: Path, pattern: str | None, notes: list[str]) -> list[Image]:
    """The images of a folder: dated files side by side, or a subfolder a date.

    A date comes from the name, its first one where it holds several, or the file's metadata, which must not contradict
    it. TIFFTAG_DATETIME counts only where nothing else is there. With ``pattern`` the name alone counts.

    Raises:
        InputError: no rasters, one without a date, or name and metadata contradict each other.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from error
    side_by_side = [path for path in entries if path.suffix.lower() in SUFFIXES and path.is_file()]
    groups: dict[tuple[date, str], list[Path]] = {}
    for path in side_by_side:
        groups.setdefault((_day([path.name], path, pattern, notes), ""), []).append(path)
    if not side_by_side:
        for path in entries:
            if path.is_dir() and (inside := rasters(path)):
                day = _day([path.name, inside[0].name], inside[0], pattern, notes)
                groups[day, path.name] = inside
    if not groups:
        raise InputError(
            f"{folder}: no dated rasters in this folder (looked for *{', *'.join(SUFFIXES)} here and in its "
            "subfolders); a series is files or subfolders with a date in their names, e.g. 20200219.tif"
        )
    for (day, name), paths in groups.items():
        _check_group(day, paths)
        if pattern is None:
            _check_told(day, name or paths[0].name, paths[0])
    return [
        Image(day, name or _label(paths), paths, baseline_of(str(paths[0].absolute())))
        for (day, name), paths in groups.items()
    ]


def _label(paths: Sequence[Path]) -> str:
    return paths[0].name if len(paths) == 1 else f"{paths[0].name} and {len(paths) - 1} more"


def _check_group(day: date, paths: Sequence[Path]) -> None:
    """Files side by side of one date are bands, not images."""
    images = [path for path in paths if not cloud_kind(path.stem)]
    if not images:
        raise InputError(f"{day}: only a cloud mask ({_label(paths)}) has this date; add the image, or remove it")
    with ExitStack() as stack:
        files = Files(stack)
        if len(images) > 1 and all(len(data_bands(files.open(path))) > 1 for path in images):
            raise InputError(
                f"{day}: {len(images)} images of one date ({', '.join(path.name for path in images[:3])}); mosaic them "
                "(gdalwarp A.tif B.tif OUT.tif), keep one, or put each into a subfolder"
            )


def _day(names: Sequence[str], path: Path, pattern: str | None, notes: list[str]) -> date:
    """The date of the first of these names that holds one, else of the file's metadata."""
    if pattern is not None:
        found = [day for name in names if (day := date_by(pattern, name))]
        if not found:
            raise InputError(f"{names[0]}: date_pattern '{pattern}' does not match it; correct it, or move this away")
        return found[0]
    named = [days for name in names if (days := dates_in(name))]
    if named:
        if len(set(named[0])) > 1:
            _note(notes, "names hold several dates: the first counts")
        return named[0][0]
    tags = _tags(path)
    told = [day for key in ACQUIRED for day in dates_in(tags.get(key, ""))[:1]]
    if not told and (told := dates_in(tags.get(WRITTEN, ""))):
        _note(notes, "dates taken from TIFFTAG_DATETIME, which may be when the files were written")
    if not told:
        raise InputError(
            f"{names[0]}: no date in its name (looked for 20200219, 2020-02-19 and the like) nor its metadata; rename "
            "it, or give date_pattern, e.g. %Y%j"
        )
    return told[0]


def _check_told(day: date, name: str, path: Path) -> None:
    """Raise where the metadata of a date's first file say another day."""
    tags = _tags(path)
    for key in ACQUIRED:
        told = dates_in(tags.get(key, ""))
        if told and told[0] != day:
            raise InputError(
                f"{name}: its name says {day}, but its metadata {told[0]} ({key}); correct one, or give date_pattern, "
                "with which the name alone counts"
            )


def _tags(path: Path) -> dict[str, str]:
    """Tags in lower case, dates with hyphens: TIFF writes 2020:02:19 11:21:09."""
    with ExitStack() as stack:
        dataset = Files(stack).open(path)
        tags = {**dataset.tags(), **dataset.tags(ns="IMAGERY")}
    return {key.lower(): re.sub(r"(\d{4}):(\d\d):(\d\d)", r"\1-\2-\3", text) for key, text in tags.items()}


def _note(notes: list[str], sentence: str) -> None:
    if sentence not in notes:
        notes.append(sentence)


# ---- STAC ----


def dated_items(collection: object, place: str | None, warnings: list[str]) -> list[Image]:
    """The items of a FeatureCollection with the day of their ``datetime``, else ``start_datetime``.

    Args:
        collection: its JSON.
        place: the file or address it came from, which relative hrefs of items without a "self" link start at.
        warnings: gets a sentence if there are more pages.

    Raises:
        InputError: not a collection of items, or an item without a date.
    """
    name = place or "the STAC item collection"
    collection = collection if isinstance(collection, Mapping) else {"type": type(collection).__name__}
    kind, items = collection.get("type"), collection.get("features")
    if kind != "FeatureCollection" or not isinstance(items, list) or not items:
        what = "one without items" if kind == "FeatureCollection" else f"a {kind}"
        raise InputError(f"{name}: expected a STAC item collection (a FeatureCollection of items), found {what}")
    if any(isinstance(link, Mapping) and link.get("rel") == "next" for link in collection.get("links") or ()):
        warnings.append(f"{name}: only the first page of a longer list ({len(items)} items); ask for more at once")
    return [_image(item, place, name) for item in items]


def _image(item: Any, place: str | None, name: str) -> Image:
    if not isinstance(item, Mapping) or not isinstance(item.get("properties"), Mapping):
        raise InputError(f"{name}: holds something that is not a STAC item; correct it")
    label, properties = str(item.get("id", "item")), item["properties"]
    days = dates_in(str(properties.get("datetime") or properties.get("start_datetime") or ""))
    if not days:
        raise InputError(f"{name}: item '{label}' has no datetime; add it")
    links = [link for link in item.get("links") or () if isinstance(link, Mapping)]
    if place and not any(link.get("rel") == "self" for link in links):
        item = {**item, "links": [*links, {"rel": "self", "href": place}]}
    return Image(days[0], label, item, item_baseline(properties))
