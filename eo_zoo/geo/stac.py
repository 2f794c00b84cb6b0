"""STAC items: which of their assets hold which band, for STAC 1.1 ``bands`` and for ``eo:bands`` +
``raster:bands``.

Specifications read: STAC 1.1 (bands and common metadata), its extensions eo 1 and 2, raster 1 and 2.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit
from urllib.request import url2pathname

from eo_zoo.errors import DownloadError, InputError
from eo_zoo.geo.names import cloud_kind, match
from eo_zoo.geo.sources import SUFFIXES, BandSource, Found
from eo_zoo.sensors import get_sensor, list_sensors

SKIPPED = {"thumbnail", "overview", "visual", "metadata"}  # roles, or keys of assets whose role is not told
TIMEOUT = 30  # seconds without an answer before an item counts as unreachable
# what a media type holds or a file ends in, best first: cloud-optimised GeoTIFFs are made for reading windows
MEDIA = (("profile=cloud-optimized", ()), ("image/tiff", (".tif", ".tiff")), ("image/jp2", (".jp2",)))

Rank = tuple[int, int, float]


def is_remote(source: str) -> bool:
    """Whether this is an http(s) address."""
    return source.lower().startswith(("http://", "https://"))


def read_item(source: str) -> Any:
    """The JSON of a file or an http(s) address.

    Raises:
        InputError: missing, or not JSON.
        DownloadError: the server could not be reached, or failed.
    """
    try:
        return json.loads(fetch(source) if is_remote(source) else Path(source).read_bytes())
    except OSError as error:
        raise InputError(f"{source}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source}: not a STAC item, as it is not JSON ({error})") from error


def fetch(address: str) -> bytes:
    """What an http(s) address holds.

    Raises:
        InputError: the server refuses it.
        DownloadError: it could not be reached, or failed.
    """
    import requests  # here, as only items on the web need it

    try:
        answer = requests.get(address, timeout=TIMEOUT)
    except requests.RequestException as error:
        raise DownloadError(f"{address}: cannot be fetched ({error})") from error
    if not answer.ok:
        kind = InputError if answer.status_code < 500 else DownloadError
        raise kind(f"{address}: the server answers {answer.status_code} ({answer.reason})")
    return answer.content


def from_item(item: object, place: str | None, *, sensor: str | None, default_sensor: str) -> Found:
    """The bands of an item, one source each.

    Of assets that hold the same band (``red`` and ``red-jp2``), the one that is taken: hrefs that can be read
    here before others; then by media type: cloud-optimised GeoTIFF, GeoTIFF, JPEG 2000, others; then the
    finer pixels by what the item says; then the first in the item.

    Args:
        item: the item's JSON object.
        place: the file or address it came from, which relative hrefs start at; None for its own "self" link.
        sensor: as the user said; must not contradict the item's platform.
        default_sensor: taken where neither says.

    Raises:
        InputError: not an Item, no asset with a band, or another platform.
    """
    name = place or "the STAC item"
    if not isinstance(item, Mapping) or item.get("type") != "Feature" or not isinstance(item.get("assets"), Mapping):
        raise InputError(f"{name}: expected a STAC Item with assets, found {_kind(item)}; give one Item")
    properties = item["properties"] if isinstance(item.get("properties"), Mapping) else {}
    found = Found(_sensor({**properties, "collection": item.get("collection")}, sensor, default_sensor, name))
    place = place or _self_link(item)
    candidates: dict[str, list[tuple[Rank, BandSource]]] = {}
    unused = []
    for key, asset in item["assets"].items():
        if isinstance(asset, Mapping) and _is_raster(key, asset):
            bands = _bands_of(key, asset, place, found.sensor, name)
            kind = None if bands else cloud_kind(key)
            if kind:
                path = _path(str(asset.get("href", "")), place, key, name)
                found.clouds.setdefault(kind, BandSource(kind, path, key))
            unused += [] if bands or kind else [key]
            for rank, source in bands:
                candidates.setdefault(source.band, []).append((rank, source))
    if not candidates:
        keys = ", ".join(item["assets"])
        raise InputError(f"{name}: none of its assets is a band of {found.sensor} (it has: {keys}); is --sensor right?")
    if unused:
        found.notes.append(f"assets not used, as not a band of {found.sensor}: {', '.join(unused)}")
    _choose(candidates, found)
    if found.sensor.partition("-")[0] == "S2":
        _offsets(properties, found)
    return found


def visual(item: object, place: str | None) -> str | None:
    """What GDAL opens for an item's picture in true colour, the asset or the role "visual", or None.

    Args:
        item: the item's JSON object.
        place: as of :func:`from_item`.

    Raises:
        InputError: its href has no place to start from.
    """
    if not isinstance(item, Mapping) or not isinstance(item.get("assets"), Mapping):
        return None
    found = []
    for key, asset in item["assets"].items():
        if isinstance(asset, Mapping) and "visual" in (key.lower(), *(asset.get("roles") or ())):
            rank = _media(str(asset.get("type") or ""), str(asset.get("href", "")))
            if rank < len(MEDIA):
                found.append((rank, key, asset))
    if not found:
        return None
    _, key, asset = min(found, key=lambda one: one[0])
    return _path(str(asset.get("href", "")), place or _self_link(item), key, place or "the STAC item")


def _kind(item: object) -> str:
    if not isinstance(item, Mapping):
        return f"a {type(item).__name__}"
    features = item.get("features")
    count = f" of {len(features)} items" if isinstance(features, list) else " without assets"
    return f"a {item.get('type', 'JSON object')}{count}"


def _self_link(item: Mapping[str, Any]) -> str | None:
    links = [link for link in item.get("links") or () if isinstance(link, Mapping)]
    return next((str(link.get("href")) for link in links if link.get("rel") == "self"), None)


# ---- the sensor ----


def _sensor(facts: Mapping[str, Any], sensor: str | None, default_sensor: str, name: str) -> str:
    """The sensor that the user says, else the one of the item's collection or platform."""
    stated = [str(facts[key]) for key in ("platform", "constellation") if facts.get(key)]
    default = get_sensor(default_sensor).name
    known = []
    for text in (facts.get("collection"), *stated):
        with suppress(InputError):  # collections are named freely, platforms may be unknown here
            known.append(get_sensor(str(text)).name)
    if sensor is not None:
        said = get_sensor(sensor).name
        other = [text for text in stated if _contradicts(text, said)]
        if other:
            raise InputError(
                f"{name}: its platform is {other[0]}, but --sensor says {said}; leave --sensor out, or correct it"
            )
        return said
    if known:
        # a platform does not tell L1C from L2A; the default may
        return default if _family(default) == _family(known[0]) and not facts.get("collection") else known[0]
    if stated:
        raise InputError(
            f"{name}: its platform '{stated[0]}' is no sensor known here; say --sensor (one of "
            f"{', '.join(list_sensors())}) if its bands are those of one"
        )
    return default


def _family(sensor: str) -> str:
    return sensor.partition("-")[0]


def _contradicts(platform: str, sensor: str) -> bool:
    """Whether a platform ("landsat-8", "sentinel-2a") is certainly not what carries this sensor."""
    if sensor == "RGB":
        return False
    with suppress(InputError):
        return _family(get_sensor(platform).name) != _family(sensor)
    first = {name: re.split(r"[^a-z]", get_sensor(name).title.lower())[0] for name in list_sensors()}
    word = re.split(r"[^a-z]", platform.lower())[0]
    return word in first.values() and word != first[sensor]


# ---- assets ----


def _is_raster(key: str, asset: Mapping[str, Any]) -> bool:
    if SKIPPED & {key.lower(), *(asset.get("roles") or ())}:
        return False
    media, path = str(asset.get("type") or ""), urlsplit(str(asset.get("href", ""))).path
    return any(text in media for text in ("tiff", "jp2")) or path.lower().endswith(SUFFIXES)


def _bands_of(
    key: str, asset: Mapping[str, Any], place: str | None, sensor: str, item: str
) -> list[tuple[Rank, BandSource]]:
    """The sensor's bands in an asset, each with its rank among twins (lower is better)."""
    href = str(asset.get("href", ""))
    path = _path(href, place, key, item)
    media = _media(str(asset.get("type") or ""), href)
    lists = [asset.get(name) for name in ("bands", "eo:bands", "raster:bands")]
    now, eo, raster = [[b if isinstance(b, Mapping) else {} for b in x] if isinstance(x, list) else [] for x in lists]
    count = max(len(now), len(eo), len(raster))
    found = []
    for index in range(max(count, 1)):
        b, e, r = (bands[index] if index < len(bands) else {} for bands in (now, eo, raster))
        names = [b.get("name"), e.get("name"), b.get("eo:common_name"), e.get("common_name")]
        if not any(names) and count <= 1 and "data" in (asset.get("roles") or ()):
            names = [key]  # the last resort: an asset without any band object is called by its key
        band = _first_match([str(text) for text in names if text], sensor, key, item)
        if band is None:
            continue
        gsd = _number(r.get("spatial_resolution"), b.get("raster:spatial_resolution"), b.get("gsd"), asset.get("gsd"))
        source = BandSource(
            band,
            path,
            key,
            index + 1,
            scale=_number(b.get("raster:scale"), r.get("scale"), asset.get("raster:scale")),
            offset=_number(b.get("raster:offset"), r.get("offset"), asset.get("raster:offset")),
            nodata=_number(b.get("nodata"), r.get("nodata"), asset.get("nodata")),
            count=count or None,
        )
        found.append(
            (
                (
                    int("://" in path and not path.startswith("/vsi")),
                    media,
                    float("inf") if gsd is None else gsd,
                ),
                source,
            )
        )
    return found


def _first_match(names: list[str], sensor: str, key: str, item: str) -> str | None:
    """The first of an asset's names that is a band; names go before common names, which may be ambiguous."""
    for text in names:
        try:
            if band := match(text, sensor):
                return band
        except InputError as error:
            raise InputError(f"{item}, asset '{key}': {error}") from error
    return None


def _number(*values: Any) -> float | None:
    """The first that is given; STAC writes NaN and infinities as text."""
    for value in values:
        if value is not None and not isinstance(value, bool):
            with suppress(TypeError, ValueError):
                return float(value)
    return None


def _media(media: str, href: str) -> int:
    path = urlsplit(href).path.lower()
    for rank, (text, endings) in enumerate(MEDIA):
        if text in media or (not media and endings and path.endswith(endings)):
            return rank
    return len(MEDIA)


def _path(href: str, place: str | None, key: str, item: str) -> str:
    """What GDAL opens; an address of another kind (s3://) stays as it is and is refused when it is needed."""
    if not href:
        raise InputError(f"{item}, asset '{key}': it has no href")
    if href.startswith("file://"):
        return url2pathname(urlsplit(href).path)
    if place and is_remote(place):
        href = urljoin(place, href)
    if is_remote(href):
        return f"/vsicurl/{href}"
    if "://" in href or href.startswith("/"):
        return href
    if place is None:
        raise InputError(
            f"{item}, asset '{key}': its href '{href}' is relative, and an item without a file or a 'self' "
            "link has no place to start from; give the item's file or absolute hrefs"
        )
    if "://" in place:
        return place.rpartition("/")[0] + "/" + href
    return str(Path(place).parent / href)


def _choose(candidates: Mapping[str, list[tuple[Rank, BandSource]]], found: Found) -> None:
    twins = []
    for options in candidates.values():
        # sorting is stable: of equals, the first in the item wins
        ordered = [source for _, source in sorted(options, key=lambda option: option[0])]
        found.sources.append(ordered[0])
        if len(ordered) > 1:
            twins.append(f"{ordered[0].label} (not {', '.join(source.label for source in ordered[1:])})")
    if twins:
        found.notes.append(
            "several assets hold the same band; taken by media type (cloud-optimised GeoTIFF, GeoTIFF, "
            f"JPEG 2000, others), then finer pixels, then order: {', '.join(twins)}"
        )


def item_baseline(properties: Mapping[str, Any]) -> str:
    """The processing baseline of Sentinel-2 ("04.00") that an item's properties hold, or ""."""
    return str(properties.get("s2:processing_baseline", properties.get("processing:version", "")))


def _offsets(properties: Mapping[str, Any], found: Found) -> None:
    """Sentinel-2's offset of baseline 04.00, as far as the item tells."""
    applied = properties.get("earthsearch:boa_offset_applied", properties.get("sentinel:boa_offset_applied"))
    if applied is not True:
        found.baseline = item_baseline(properties)
        return
    # Earth Search lists -0.1 even where its GeoTIFFs have the offset taken off; its maintainers say that the
    # flag is what to believe (github.com/Element84/earth-search/issues/9). The JPEG 2000 twins are originals.
    shifted = [s for s in found.sources if s.offset and not s.path.lower().endswith(".jp2")]
    if shifted:
        found.sources = [replace(s, offset=None) if s in shifted else s for s in found.sources]
        found.notes.append(
            f"the item's offset {shifted[0].offset:g} is not applied, as it says boa_offset_applied: the "
            f"GeoTIFFs have it taken off already ({', '.join(source.label for source in shifted)})"
        )
