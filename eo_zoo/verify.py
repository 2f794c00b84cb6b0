"""Whether weights are what they were: hashes, names, shapes and types, finite values, and one forward pass.

Loading from the cache believes what was verified when it came; this hashes every byte again.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from eo_zoo import registry, weights
from eo_zoo.errors import InputError, MissingExtra, WeightsError
from eo_zoo.identify import identify, open_source
from eo_zoo.models import golden
from eo_zoo.progress import progress_bar
from eo_zoo.terrasense import MODEL_TYPES
from eo_zoo.weights import cache, inventory, sharded, sources, stored
from eo_zoo.weights.sound import require_sound

#: Of the weights that come with the package: what `eo-zoo verify NAME --json` gives as "output".
GOLDENS = sources.DATA / "goldens.json"


@dataclass
class Finding:
    """What was found of one weight set, file or folder. A check that was not made, or not passed, is not in it."""

    name: str
    path: Path
    size: int  # bytes
    sha256: str | None = None  # of the file
    hash: str | None = None  # what it was compared with, in words
    tensors: str | None = None  # the model that names, shapes and types fit
    values: str | None = None  # "finite"
    golden: str | None = None  # what became of the forward pass, in words
    output: dict[str, Any] | None = None  # of the forward pass, see eo_zoo.models.golden.measure
    notes: list[str] = field(default_factory=list)
    error: str | None = None  # what is wrong and what to do, a sentence

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self) | {"path": str(self.path)}


@dataclass(frozen=True)
class _Job:
    finding: Finding
    check: Callable[[Finding], None]

    def run(self) -> Finding:
        try:
            self.check(self.finding)
        except (InputError, MissingExtra, OSError) as error:
            self.finding.error = str(error)
        return self.finding


def verify(
    what: str | Path | None = None, *, cache_dir: str | Path | None = None, progress: bool | None = None
) -> list[Finding]:
    """Check weights anew, byte by byte.

    Args:
        what: an architecture or architecture.tag (what of it is in the cache or comes with the package); the folder of
            a model; a checkpoint; None for all that is in the cache or comes with the package.
        cache_dir: the cache.
        progress: a bar on stderr; by default where that is a terminal.

    Returns:
        A finding for each weight set, file or folder; its ``error`` is None where all is well.

    Raises:
        InputError: there is no such thing, or nothing of it here.
    """
    root = weights.cache_root(cache_dir)
    jobs = list(_jobs(root, what))
    with progress_bar("verifying", len(jobs), progress, unit="weight sets") as advance:
        found = []
        for job in jobs:
            found.append(job.run())
            advance(1)
    return found


def _jobs(root: Path, what: str | Path | None) -> Iterator[_Job]:
    if what is None:
        yield from _kept(root, list(weights.RECORDS), every=True)
        return
    names = [what] if what in weights.RECORDS else registry.list_tags(str(what))
    path = Path(what).expanduser()
    if isinstance(what, str) and names:
        yield from _named(root, what, [str(name) for name in names])
    elif path.is_dir():
        yield _folder_job(path)
    elif path.is_file():
        yield from _file_jobs(root, path)
    elif path.suffix or len(path.parts) > 1 or isinstance(what, Path):
        raise InputError(f"{path} is not there: give a checkpoint, the folder of a model, or a model's name")
    else:
        registry.get_record(str(what))  # raises, and gives the nearest names


def _named(root: Path, what: str, names: list[str]) -> Iterator[_Job]:
    jobs = list(_kept(root, names))
    if not jobs:
        weights.require_published(weights.RECORDS[names[0]])
        raise InputError(f"{what} is not in {root}: `eo-zoo download {what}` fetches and verifies it")
    yield from jobs


def _kept(root: Path, names: list[str], *, every: bool = False) -> Iterator[_Job]:
    """What the cache and the package hold of these weight sets; with ``every``, all that the cache holds."""
    for name in names:
        if weights.RECORDS[name].scheme == "package":
            path = sources.DATA / weights.RECORDS[name].address
            size = path.stat().st_size if path.is_file() else 0
            yield _Job(Finding(name, path, size), functools.partial(_bundled, weights.RECORDS[name]))
    for entry in inventory.entries(root):
        for name in entry.names:
            if every or name in names:
                yield from _entry_jobs(root, entry, name)
    pins = [cache.pin_path(root, weights.RECORDS[name]) for name in names]
    for path in sorted((root / "pins").glob("*.json")):
        if (every or path in pins) and not _readable(path):
            yield _Job(Finding(path.name, path, path.stat().st_size), _pin)


def _entry_jobs(root: Path, entry: inventory.Entry, name: str) -> Iterator[_Job]:
    checks = {"weights": _conversion, "download": _download}
    name = name if name in weights.RECORDS else entry.path.name
    if entry.kind in checks:
        yield _Job(Finding(name, entry.path, entry.size), functools.partial(checks[entry.kind], root))


def _file_jobs(root: Path, path: Path) -> Iterator[_Job]:
    kept = next((entry for entry in inventory.entries(root) if entry.path == path.absolute()), None)
    if kept is not None:
        for name in kept.names:
            yield from _entry_jobs(root, kept, name)
    else:
        yield _Job(Finding(str(path), path, path.stat().st_size), functools.partial(_file, root))


# ------------------------------------------------------------------------------------------ what is checked


def _bundled(record: weights.Record, finding: Finding) -> None:
    if not finding.path.is_file():
        raise WeightsError(f"{finding.path} is missing: install eo-zoo again")
    finding.sha256 = cache.digest(finding.path)
    if finding.sha256 != record.sha256:
        raise WeightsError(cache.differs(finding.path, finding.sha256, record.sha256, "install eo-zoo again"))
    finding.hash = "as published"
    tensors = weights.read(finding.path)
    _sound(finding, tensors)
    model = _filled(finding, golden.build(record.name), tensors)
    _compare(finding, model, json.loads(GOLDENS.read_text()).get(record.name))


def _conversion(root: Path, finding: Finding) -> None:
    """A file that models are filled from: against the note that was made when it was written."""
    record, path = weights.RECORDS.get(finding.name), finding.path
    remedy = f"remove it by `eo-zoo cache clear {finding.name}` and load it again"
    try:
        note = cache.read_note(path)
    except WeightsError as error:
        raise WeightsError(f"{error}; {remedy}") from error
    if finding.size != note["bytes"]:
        raise WeightsError(f"{path} has {finding.size:,} bytes, expected {note['bytes']:,}: cut short; {remedy}")
    finding.sha256 = cache.digest(path)
    if finding.sha256 != note["sha256"]:
        raise WeightsError(cache.differs(path, finding.sha256, note["sha256"], remedy))
    finding.hash = "as written"
    tensors = weights.read(path)
    _sound(finding, tensors)
    header = stored.metadata(path)
    finding.hash = "as written"
    tensors = weights.read(path)
    _sound(finding, tensors)
    known = _known(root, record) if record else None
    if header.get("eo_zoo.layout") not in {one.layout for one in weights.RECORDS.values()} or known not in (
        None,
        header.get("eo_zoo.sha256"),
    ):
        finding.notes.append("of no published weight set, or an earlier one: nothing but hash and values was checked")
        return
    model = _filled(finding, golden.build(record.name), tensors) if record else _identified(finding)
    if model is not None:
        key = record.name if record else str(finding.tensors)
        _compare(finding, model, note["goldens"].get(key), lambda made: cache.add_golden(path, key, made))


def _download(root: Path, finding: Finding) -> None:
    """An official file that waits for its conversion: against the record, the pin, or the part of it in its name."""
    record, path = weights.RECORDS.get(finding.name), finding.path
    expected = cache.known_hash(root, record)[0] if record else path.stem[-16:]
    finding.sha256 = cache.digest(path)
    if expected is None or not finding.sha256.startswith(expected):
        raise WeightsError(
            cache.differs(path, finding.sha256, expected, f"remove it by `eo-zoo cache clear {finding.name}`")
        )
    finding.hash = "as it came"
    finding.notes.append("not converted yet: that is done and checked when it is loaded")


def _readable(pin: Path) -> bool:
    try:
        return bool(cache.read_facts(pin))
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _pin(finding: Finding) -> None:
    raise WeightsError(f"the pinned hash {finding.path} is damaged: delete it, and the next download pins it anew")


def _file(root: Path, finding: Finding) -> None:
    """Any checkpoint: against what is known of published files, if it is one of them."""
    finding.sha256 = cache.digest(finding.path)
    names = list(weights.published(finding.path, finding.sha256, cache_dir=root))
    finding.hash = f"of {' and '.join(names)}" if names else "nothing to compare it with"
    tensors = weights.read(finding.path)
    _sound(finding, tensors)
    model = _filled(finding, golden.build(names[0]), tensors) if names else _identified(finding)
    if model is not None:
        _compare(finding, model, None)


def _known(root: Path, record: weights.Record) -> str | None:
    try:
        return cache.known_hash(root, record)[0]
    except WeightsError:  # a damaged pin
        return None


# ----------------------------------------------------------------------------------------- folders of models


def _folder_job(folder: Path) -> _Job:
    config = folder / "config.json"
    if not config.is_file():
        raise InputError(f"{folder} has no config.json: expected the folder of a model, as eo-zoo convert makes it")
    facts = sharded.read_json(config)
    vlm = facts.get("model_type") in MODEL_TYPES
    if not vlm and facts.get("architecture") not in registry.list_models():
        raise InputError(f"{config} is of the architecture {facts.get('architecture')!r}, which is none of eo_zoo's")
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    return _Job(Finding(str(folder), folder, size), _answering if vlm else _folder)


def _folder(finding: Finding) -> None:
    _hashes(finding)
    tensors = weights.read(finding.path)
    _sound(finding, tensors)
    try:
        model = golden.build(f"local-dir:{finding.path}")
    except (TypeError, ValueError, LookupError, RuntimeError) as error:
        config = finding.path / "config.json"
        raise WeightsError(f"{config} describes no model that can be built: {error}; write the folder again") from error
    _compare(finding, _filled(finding, model, tensors), None)


def _answering(finding: Finding) -> None:
    """A folder of TerraSense: there is no forward pass of 8 B parameters."""
    _hashes(finding)
    try:
        tensors, finding.tensors = _fits_config(finding.path)
    except MissingExtra as error:
        finding.notes.append(f"names and shapes were not compared with config.json: {error}")
        tensors = sharded.read_folder(finding.path)
    read = tensors.reader()
    for name in tensors.shapes:
        require_sound({name: read(name)}, str(finding.path))
    finding.values = "finite"
    finding.notes.append("no forward pass is made of a model of this size")


def _fits_config(folder: Path) -> tuple[sharded.LazyTensors, str]:
    from eo_zoo.vlm.convert import check  # which needs an extra

    checked = check(folder)
    return checked.tensors, str(checked.config["model_type"])


def _hashes(finding: Finding) -> None:
    """Compare a folder's files with what was noted when it was converted."""
    noted = (finding.path / sharded.MANIFEST).is_file()
    found = list(sharded.hashes(finding.path).values())
    finding.hash = "as converted" if noted else "nothing to compare it with"
    finding.sha256 = found[0] if len(found) == 1 else None


# ------------------------------------------------------------------------------------------- single checks


def _sound(finding: Finding, tensors: dict[str, Tensor]) -> None:
    require_sound(tensors, str(finding.path))
    finding.values = "finite"


def _filled(finding: Finding, model: Any, tensors: dict[str, Tensor]) -> Any:
    """The model with these tensors, in the official layout or ours."""
    golden.fill(model, model.from_official(tensors), str(finding.path))
    finding.tensors = model.pretrained_cfg["architecture"]
    return model


def _identified(finding: Finding) -> Any:
    """The model that a file of unknown origin is of, filled with it; None where that cannot be told."""
    try:
        found = identify(open_source(finding.path))
    except WeightsError:
        raise
    except InputError as error:
        finding.notes.append(f"no forward pass: {error}")
        return None
    bare: Any = found.model
    name = "{architecture}.{tag}".format(**bare.pretrained_cfg)
    model = golden.build(name, num_classes=bare.num_classes, **bare.model_args)
    return _filled(finding, model, dict(found.tensors))


def _compare(
    finding: Finding,
    model: Any,
    expected: dict[str, Any] | None,
    keep: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Let the model compute its golden, and compare it with the one that is known, or keep it as that."""
    made = finding.output = golden.measure(model)
    if expected is None or expected.get("rule") != made["rule"]:
        finding.golden = "computed"
        if keep is None:
            values = ", ".join(f"{value:g}" for value in made["values"])
            finding.notes.append(f"a forward pass gives {values}; mean {made['mean']:g}, deviation {made['std']:g}")
        else:
            try:
                keep(made)
                finding.golden = "recorded now"
            except OSError as error:
                finding.notes.append(f"its golden is not recorded: {error}")
        return
    apart = golden.differs(made, expected)
    if apart is not None:
        then, now = (", ".join(f"{k} {v}" for k, v in one["made_with"].items()) for one in (expected, made))
        raise WeightsError(
            f"{finding.name} no longer gives what it gave: a forward pass is {apart:.2g} standard deviations from the "
            f"recorded one, and at most {golden.TOLERANCE:g} is left to machines. The file is as it was, so what reads "
            f"it changed: recorded with {then}; now {now}. If that is meant, `eo-zoo cache clear {finding.name}` and "
            "load it again"
        )
    finding.golden = "as recorded"
