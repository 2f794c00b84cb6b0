"""The factual part of a model card: the Hub's front matter, and bands, values, weights and terms in Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from eo_zoo import registry, weights
from eo_zoo.describe.facts import facts, record_of
from eo_zoo.terrasense import RECORD as TERRASENSE
from eo_zoo.values import MEANING, SOLE
from eo_zoo.weights import github

# The Hub's name for what a model answers, by the kind of its task.
PIPELINES = {
    "": "image-feature-extraction",
    "scene": "image-classification",
    "multi-label": "image-classification",
    "segmentation": "image-segmentation",
}
_TAGS = {
    "S2": "sentinel-2", "S2-L1C": "sentinel-2", "S1": "sentinel-1", "RGB": "rgb", "L7": "landsat", "L8": "landsat",
    "MODIS": "modis", "ALOS": "alos", "SPOT": "spot", "NAIP": "naip", "AERIAL": "aerial", "Umbra": "sar",
    "Capella": "sar", "DEM": "elevation", "WorldCover": "land-cover",
}  # fmt: skip
_AXES = {"batch": "B", "time": "T", "height": "H", "width": "W", "token": "N"}
_UNITS = {"dn": "digital numbers", "db": "dB", "uint8": "0..255", "linear": "linear power", **SOLE}


def front_matter(name: str, *, library: str = "eo_zoo") -> dict[str, Any]:
    """What the Hugging Face Hub reads at the top of a card.

    Args:
        name: architecture or architecture.tag, or "terrasense_base".
        library: what loads the weights where the card lies.

    Returns:
        license, with license_name and license_link where it is none of the Hub's names, library_name, pipeline_tag,
        tags, and base_model of weights that were trained further. Results are left out: the Hub would show them as
        measured, and the papers' are quoted here, not checked.

    Raises:
        InputError: unknown name; the message gives the nearest.
    """
    record = record_of(name)
    front: dict[str, Any] = {"license": record.licence}
    if not record.redistributable:
        link = record.repository or address(record)
        front = {"license": "other", "license_name": record.licence, "license_link": link}
    words = record is TERRASENSE
    front |= {
        "library_name": "transformers" if words else library,
        "pipeline_tag": "image-text-to-text" if words else PIPELINES[record.task.kind if record.task else ""],
        "tags": _tags(record),
    }
    base = next(iter(registry.list_tags(record.name.partition(".")[0])), record.name)
    if record.task and base != record.name:
        front["base_model"] = "/".join(weights.RECORDS[base].address.split("/")[:2])
    return front


def _tags(record: weights.Record) -> list[str]:
    family = record.name.partition("_")[0]
    task = [record.task.kind] if record.task else []
    series = ["multimodal", "time-series"] if family == "anysat" else []
    tool = ["vision-language-model", "object-detection", "change-detection"] if record is TERRASENSE else ["timm"]
    tags = ["earth-observation", family, *series, *(_TAGS[sensor] for sensor in record.sensors), *task, "eo-zoo", *tool]
    return list(dict.fromkeys(tags))


def address(record: weights.Record) -> str:
    """Where a person finds a record's weights on the web; empty where they are not on it."""
    if record.scheme == "github":
        return github.parse(record.source).page
    if record.scheme == "hf":
        owner, repo, *path = record.address.split("/", 2)
        place = f"https://huggingface.co/{owner}/{repo}"
        return f"{place}/blob/{record.revision}/{path[0]}" if path else place
    return record.source if record.scheme == "https" else ""


def checked(record: weights.Record) -> str:
    """What a file of weights is compared with when it comes."""
    if record.sha256 or record.md5:
        return f"sha256 `{record.sha256}` is checked" if record.sha256 else f"md5 `{record.md5}` is checked"
    if not record.source:
        return ""
    if record.scheme == "github":
        return "no hash is published: what GitHub states, size and SHA-256, is checked and pinned at first use"
    return "no hash is published: the Hub's own SHA-256 is checked and pinned at first use"


def header(front: dict[str, Any]) -> str:
    """Front matter as it stands at the top of a card."""
    # slow to import, and not needed by who only loads models
    from huggingface_hub.utils import yaml_dump

    return f"---\n{yaml_dump(front, sort_keys=False)}---\n"


def document(name: str) -> str:
    """A whole card of facts: front matter, title and `markdown`.

    Raises:
        InputError: unknown name; the message gives the nearest.
    """
    return f"{header(front_matter(name))}\n# {record_of(name).title}\n\n{markdown(name)}"


def markdown(name: str) -> str:
    """The factual block of a model card, a list, a table of bands for each input, and the classes.

    It is the same on every machine: what this one has pinned is not in it.

    Raises:
        InputError: unknown name; the message gives the nearest.
    """
    record, told = record_of(name), facts(name)
    parts = ["\n".join(f"- **{what}:** {text}" for what, text in _rows(told, record).items() if text)]
    parts += [_table(entry) for entry in told["takes"]]
    if record.task:
        classes = "; ".join(f"{i} {label}" for i, label in enumerate(record.task.classes))
        parts.append(f"**Classes**, in the order of the logits: {classes}.")
    return "\n\n".join(parts) + "\n"


def _rows(told: dict[str, Any], record: weights.Record) -> dict[str, str]:
    """What a card lists, by its label; what does not apply is empty."""
    task = record.task
    size = told["input_size"]
    return {
        "Architecture": _architecture(told),
        "Parameters": _parameters(told),
        "Input": f"{size} x {size} pixels" if size else "",
        "Takes": "a dict with any of the inputs below" if record.inputs else "",
        "Output": "; ".join(f"`{shape_text(one['shape'])}` {one['what']}" for one in told["gives"]),
        "Resizing": resizing(told),
        "Statistics": "; ".join(f"`{name}` ({source})" for name, source in _sources(told).items()),
        "Other bands, with statistics of your own": _others(record, told),
        "Task": task_text(task) if task else "",
        "Result": result_text(task, record.paper) if task else "",
        "Pixels seen in training": ", ".join(f"{name} {span_text(*span)}" for name, span in record.gsd.items()),
        "Weights": _weights(record),
        **terms(record),
    }


def terms(record: weights.Record) -> dict[str, str]:
    """The rows that hold wherever a set of weights goes."""
    return {
        "Trained on": record.trained_on,
        "Licence": record.licence if record.redistributable else f"{record.licence}; not to be hosted elsewhere",
        "Terms": record.terms or "",
        "Original": record.repository or "eo_zoo",
        "Citation": f"{record.citation}{f' ({record.paper})' if record.paper.startswith('arXiv') else ''}",
    }


def _sources(told: dict[str, Any]) -> dict[str, str]:
    pairs = [zip(entry["statistics"], entry["sources"], strict=True) for entry in told["takes"]]
    return {name: source for pair in pairs for name, source in pair}


def _others(record: weights.Record, told: dict[str, Any]) -> str:
    listed = {band["name"] for entry in told["takes"] for band in entry["bands"]}
    return ", ".join(f"`{band}`" for band in record.accepts if band not in listed)


def _architecture(told: dict[str, Any]) -> str:
    maps = ", ".join(map(str, told["strides"]))
    cells = f"; maps at stride{'s' * (len(told['strides']) > 1)} {maps}" if maps else ""
    widths = ", ".join(map(str, told["widths"]))
    return f"{told['architecture']}{f', {widths} channels' if widths else ''}{cells}"


def _parameters(told: dict[str, Any]) -> str:
    if told["parameters"] is None:
        return ""
    whole = f"; {told['total_parameters']:,} with it" if told["total_parameters"] != told["parameters"] else ""
    return f"{told['parameters']:,}{' without the head' if whole else ''}{whole}"


_RESIZING = {"bicubic": "bicubic, antialiased", "spline": "cubic splines"}


def resizing(told: dict[str, Any]) -> str:
    """How images come to the input size, in words; empty where any size will do."""
    size, ways = told["input_size"], list(dict.fromkeys(entry["resize"] for entry in told["takes"]))
    if size is None:
        return ""
    cut = f"the shorter side to {round(size / told['crop'])}, then the centre of " if told["crop"] != 1 else "to "
    how = " and ".join(_RESIZING.get(way, way) for way in ways)
    return f"after normalising, {cut}{size} x {size} pixels: {how}"


def task_text(task: weights.Task) -> str:
    """What a head answers, in words."""
    size = f"{task.size} x {task.size} pixels"
    return f"{task.kind}, {task.method} on {task.data_set} ({size}); {len(task.classes)} classes"


def result_text(task: weights.Task, paper: str) -> str:
    """How well it does by its paper, and that this was not checked."""
    if task.result is None:
        return f"{task.metric}; the paper's number is not recorded here"
    source = f"by the paper ({paper}), as third parties quote its tables"
    return f"{task.metric} {task.result:g} % {source}; not checked here"


def _weights(record: weights.Record) -> str:
    if not record.source:
        return "none are published; only random ones can be made"
    place = address(record)
    if record is TERRASENSE:
        return f"[{record.address}]({place}) on the Hugging Face Hub, checked by the SHA-256 that the Hub states"
    what = f"[{record.address if record.scheme != 'github' else place.removeprefix('https://')}]({place})"
    what = what if place else f"`{record.address}`, in the package"
    size = f", {record.size:,} bytes" if record.size else ""
    return f"{what}{size}; {checked(record)}"


def _table(entry: dict[str, Any]) -> str:
    """One input: its shape, units and statistics in a line, and its bands in order in a table."""
    bands = entry["bands"]
    units = " and ".join(dict.fromkeys(units_text(band) for band in bands if band["units"]))
    by = entry["statistics"] and f"statistics {' and '.join(f'`{name}`' for name in entry['statistics'])}"
    head = [f"**`{entry['name']}`**: {entry['title']}", f"`{shape_text(entry['shape'])}`", units, by]
    lines = ["; ".join(filter(None, [*head, entry["note"]])) + "."]
    if not bands:
        return lines[0]
    columns = [key for key in ("p1", "p99", "mean", "std") if any(band[key] is not None for band in bands)]
    if "p1" in columns:
        lines[0] += " Values are clipped to the 1st and 99th percentile and brought to 0..1; mean and std are of these."
    titles = ["", "band", "name here", "wavelength", "m per pixel", *columns]
    right = ["---:", "---", "---", "---", "---:", *["---:"] * len(columns)]
    lines += ["", _line(titles), f"|{'|'.join(right)}|"]
    for i, band in enumerate(bands):
        shown = band["sensor_name"] + ("" if band["read"] else " (not read)")
        span = _wavelength(band["wavelength_nm"])
        gsd = "" if band["gsd"] is None else f"{band['gsd']:g}"
        values = ["" if band[key] is None else f"{band[key]:.6g}" for key in columns]
        lines.append(_line([str(i), shown, f"`{band['name']}`", span, gsd, *values]))
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _wavelength(span: tuple[float, float] | None) -> str:
    if span is None:
        return ""
    if span[0] < 1e6:
        return f"{span[0]:g}-{span[1]:g} nm"
    return f"{span[0] / 1e7:.2f}-{span[1] / 1e7:.2f} cm"


def units_text(band: dict[str, Any]) -> str:
    """A band's units in words."""
    if band["units"] == "dn" and band["wavelength_nm"]:
        return MEANING["dn"].replace("dn", _UNITS["dn"])
    return _UNITS[band["units"]]


def shape_text(shape: dict[str, int]) -> str:
    """A shape as in docstrings.

    >>> shape_text({"batch": -1, "bands": 12, "height": 224, "width": 224})
    '(B, 12, 224, 224)'
    """
    return f"({', '.join(_AXES.get(name, name) if size < 0 else str(size) for name, size in shape.items())})"


def span_text(low: float, high: float) -> str:
    """Metres per pixel, lowest and highest."""
    return f"{low:g} m" if low == high else f"{low:g} to {high:g} m"
