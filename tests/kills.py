"""Processes that are killed at random moments while they download and convert, and what they leave.

    python -m tests.kills COUNT [--model anysat_tiny] [--seed 0]

COUNT kills, half of them of downloads with their first conversion, half of what writes folders and files. After each,
all that is there is compared with what an undisturbed run leaves; then the same is done again, in the same place. Each
kind of work gives a line of JSON. It is a process of its own, for it imports all once and forks, which threads do not
bear.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.std import tqdm

import eo_zoo
from eo_zoo import hf, weights
from eo_zoo.convert import convert, export_original
from eo_zoo.models.anysat import AnySat
from eo_zoo.verify import verify
from eo_zoo.weights import cache, stored
from tests.hub_server import HubServer

NANO = "smarties_vit_nano.demo"
SENT_IN = 0.25  # seconds
BEFORE, DOWNLOAD, CONVERSION, AFTER = "before the first byte", "during the download", "while converting", "afterwards"
WHOLE, ABSENT, AS_BEFORE = "whole", "absent", "as before"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def same(found: dict[str, Tensor], truth: dict[str, Tensor]) -> bool:
    return found.keys() == truth.keys() and all(
        found[name].dtype == one.dtype and torch.equal(found[name], one) for name, one in truth.items()
    )


def parts(place: Path) -> list[Path]:
    return list(place.rglob(".*.part"))


def files(place: Path) -> list[Path]:
    return [path for path in sorted(place.rglob("*")) if path.is_file()]


class Work:
    """Something that a process does in a folder, and what may be there when it is killed."""

    def __init__(self, name: str, do: Callable[[Path], object]) -> None:
        self.name, self.do = name, do

    def prepare(self, place: Path) -> None:
        """Make what is there before."""

    def left(self, place: Path) -> str:
        """WHOLE, ABSENT or AS_BEFORE; raises AssertionError for anything else."""
        raise NotImplementedError

    def stage(self, place: Path) -> str:
        """How far a killed process came."""
        raise NotImplementedError

    def require_done(self, place: Path) -> None:
        """Raise AssertionError unless all is there, and nothing else."""
        assert self.left(place) == WHOLE and not parts(place), files(place)


class FirstLoad(Work):
    """A record's file is fetched, checked, converted and kept."""

    note = ""  # of the conversion that an undisturbed run left

    def __init__(self, name: str, do: Callable[[Path], object], official: bytes, truth: dict[str, Tensor]) -> None:
        super().__init__(name, do)
        self.official, self.truth = official, truth

    def left(self, place: Path) -> str:
        root, conversion = place / "cache", self.conversion(place)
        for path in files(root):
            kind, *rest = path.relative_to(root).parts
            if path in parts(root):
                continue
            if kind == "notes":
                note = cache.read_facts(path)
                assert note["sha256"] == (self.note or note["sha256"]), path
                assert not conversion or note["sha256"] == cache.digest(conversion), path
            elif kind == "pins":
                pin = cache.read_facts(path)
                assert (pin["sha256"], pin["size"]) == (sha(self.official), len(self.official)), path
            elif kind == "downloads" and rest[0].endswith(".partial"):
                assert path.suffix == ".json" or self.official.startswith(path.read_bytes()), path
            elif kind == "downloads":
                assert path.read_bytes() == self.official, path
            elif kind != "locks":
                assert path == conversion and same(stored.read(path), self.truth), path
                assert stored.metadata(path)["eo_zoo.sha256"] == sha(self.official), path
        assert not conversion or cache.note_of(conversion).is_file(), conversion
        return WHOLE if conversion else ABSENT

    def stage(self, place: Path) -> str:
        if self.conversion(place):
            return AFTER
        downloads = files(place / "cache" / "downloads")
        sizes = {path.stat().st_size for path in downloads if path.suffix != ".json"} - {0}
        return CONVERSION if len(self.official) in sizes else DOWNLOAD if sizes else BEFORE

    def require_done(self, place: Path) -> None:
        super().require_done(place)
        root = place / "cache"
        kinds = Counter(path.relative_to(root).parts[0] for path in files(root) if path.parent.name != "locks")
        assert kinds == {"notes": 1, "pins": 1, self.conversion(place).name: 1}, kinds
        assert not list((root / "downloads").iterdir())
        self.note = self.note or cache.digest(self.conversion(place))

    def conversion(self, place: Path) -> Any:
        return next((place / "cache").glob("*.safetensors"), None)


class Golden(FirstLoad):
    """As it is when a model is made, whose output is then noted."""

    def require_done(self, place: Path) -> None:
        super().require_done(place)
        (finding,) = verify(NANO, cache_dir=place / "cache")
        assert finding.error is None and finding.golden == "as recorded", finding


class Writing(Work):
    """A file or folder ``out`` is written: it is as an undisturbed run writes it, or not there."""

    def __init__(
        self, name: str, do: Callable[[Path], object], right: Callable[[Path], bool], out: str = "out"
    ) -> None:
        super().__init__(name, do)
        self.out, self.right = out, right
        self.reference: dict[str, str] = {}

    def content(self, place: Path) -> dict[str, str]:
        """Hashes of the files; of torch's, which hold the name of the hidden one, of the tensors."""
        out = place / self.out
        if out.suffix == ".pth":
            tensors = weights.read(out) if out.exists() else {}
            return {name: sha(one.numpy().tobytes()) for name, one in tensors.items()}
        found = [out] if out.is_file() else [path for path in files(out) if path not in parts(out)]
        return {str(path.relative_to(out)): cache.digest(path) for path in found}

    def left(self, place: Path) -> str:
        found = self.content(place)
        if not (place / self.out).exists():
            return ABSENT
        if not self.reference:
            assert self.right(place / self.out), place
            self.reference = found
        assert found == self.reference, {name for name, _ in found.items() ^ self.reference.items()}
        return WHOLE

    def stage(self, place: Path) -> str:
        return AFTER if (place / self.out).exists() else CONVERSION if parts(place) else BEFORE

    def require_done(self, place: Path) -> None:
        super().require_done(place)
        assert [path.name for path in place.iterdir() if path.name != "cache"] == [self.out]


class Rewriting(Writing):
    """A folder of other weights is there before, and may be so afterwards; without a configuration it is none."""

    def __init__(self, *args: Any, old: Path) -> None:
        super().__init__(*args)
        self.old = old

    def prepare(self, place: Path) -> None:
        shutil.copytree(self.old, place / self.out)

    def left(self, place: Path) -> str:
        found = self.content(place)
        if "config.json" not in found:
            return ABSENT
        old = {path.name: cache.digest(path) for path in files(self.old)}
        return AS_BEFORE if found == old else super().left(place)

    def stage(self, place: Path) -> str:
        return CONVERSION if parts(place) else AFTER if self.left(place) == WHOLE else BEFORE


# ---------------------------------------------------------------------------------------- what is killed


def downloads(server: HubServer, official: Path, truth: dict[str, Tensor], nano: Path) -> Iterator[Work]:
    """A file of the Hub, of GitHub, and of a server that states no hash; and a model with all that it keeps."""
    data = official.read_bytes()
    repo, file = "owner/repo", official.name
    server.add(repo, file, data).lasts = SENT_IN
    url = f"{server.url}/{repo}/releases/download/v1/{file}"
    server.add(repo, f"releases/download/v1/{file}", data, lfs=False).lasts = SENT_IN
    asset = {"name": file, "browser_download_url": url, "size": len(data), "state": "uploaded"}
    server.add("repos/owner", "repo/releases/tags/v1", json.dumps({"tag_name": "v1", "assets": [asset]}).encode())
    for source in (f"hf://{repo}/{file}", f"github://{repo}/v1/{file}", url):
        record = weights.Record("anysat_any.kills", source, layout=AnySat.layout, licence="")
        do = functools.partial(_load, record)
        yield FirstLoad(f"first load, {record.scheme}", do, data, truth)
    data = nano.read_bytes()
    server.add(repo, nano.name, data).lasts = SENT_IN
    own = eo_zoo.create_model(NANO).state_dict()
    weights.RECORDS[NANO] = replace(weights.RECORDS[NANO], source=f"hf://{repo}/{nano.name}", sha256=None, size=None)
    yield Golden("first model, hf", lambda place: eo_zoo.create_model(NANO), data, own)


def _load(record: weights.Record, place: Path) -> None:
    weights.load(record, AnySat.from_official, layout=AnySat.layout)


def conversions(name: str, folder: Path, truth: dict[str, Tensor], model: Any) -> Iterator[Work]:
    """Both ways, in one file and in several, and what transformers calls."""
    official, ours, old = (folder / kind for kind in ("official.pth", "ours", "old"))

    def loads(folder: Path, dtype: torch.dtype = torch.float32) -> bool:
        if (folder / "conversion.json").exists():
            (finding,) = verify(folder)
            assert finding.error is None, finding
        made = eo_zoo.create_model(name, weights=folder).state_dict()
        return same(made, {key: one.to(dtype).to(one.dtype) for key, one in truth.items()})

    def mapped(file: Path) -> bool:
        return same(AnySat.from_official(weights.read(file)), truth)

    def do(call: Callable[..., object], source: Path, out: str, **kwargs: Any) -> Callable[[Path], object]:
        return lambda place: call(source, place / out, **kwargs)

    yield Writing("convert", do(convert, official, "out"), loads)
    half = functools.partial(loads, dtype=torch.bfloat16)
    yield Writing("convert in shards", do(convert, ours, "out", dtype="bfloat16", shard_size="4MB"), half)
    for file in ("out.safetensors", "out.pth"):
        yield Writing(f"export_original {file}", do(export_original, ours, file), mapped, file)
    weights_file = ours / "model.safetensors"
    yield Writing("hf.export", lambda place: hf.export(name, place / "out", weights=weights_file), loads)
    yield Rewriting("save_pretrained onto another", lambda place: model.save_pretrained(place / "out"), loads, old=old)


# --------------------------------------------------------------------------------------------- and how


def start(work: Work, place: Path, step: int | None = None) -> int:
    """A child, in a process group of its own, that does the work, or kills itself before a step: see `die_before`."""
    assert threading.active_count() == 1, threading.enumerate()
    child = os.fork()
    if child:
        with contextlib.suppress(OSError):  # it may have done so itself, and be over
            os.setpgid(child, child)
        return child
    code = 1
    try:
        os.setpgid(0, 0)
        if step is not None:
            die_before(step, place)
        do(work, place)
        code = 0
    except BaseException:  # noqa: BLE001 - nothing may return from here into the parent's code
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def die_before(step: int, place: Path) -> None:
    """Kill this process before it makes, renames or removes something in a folder for that time, counted from 0."""
    left = step + 1

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
        if (changes or (event == "open" and arguments[2] & os.O_CREAT)) and str(place) in os.fsdecode(arguments[0]):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def do(work: Work, place: Path) -> None:
    os.environ["EO_ZOO_CACHE"] = str(place / "cache")
    work.do(place)


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextlib.contextmanager
def fresh(work: Work) -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="kills-"))
    try:
        work.prepare(place)
        yield place
    finally:
        shutil.rmtree(place)


def undisturbed(work: Work) -> float:
    """Seconds that it takes."""
    with fresh(work) as place:
        do(work, place)  # imports what is imported late
        work.require_done(place)
    times = []
    for _ in range(2):
        with fresh(work) as place:
            began = time.monotonic()
            assert wait(start(work, place)) == 0, work.name
            times.append(time.monotonic() - began)
            work.require_done(place)
    return min(times)


def killed(work: Work, delay: float = 0.0, step: int | None = None) -> tuple[str | None, str]:
    """How far a process came that is killed after so many seconds, or before a step, (None: it was over), and what it
    left.
    """
    with fresh(work) as place:
        child = start(work, place, step)
        if step is None:
            time.sleep(delay)
            os.killpg(child, signal.SIGKILL)
        status = wait(child)
        assert status in (0, -signal.SIGKILL), status
        found = [str(path.relative_to(place)) for path in files(place)]
        try:
            stage, left = work.stage(place) if status else None, work.left(place)
            if isinstance(work, Writing) and left == WHOLE and not isinstance(work, Rewriting):
                return stage, left  # what exists is not written again
            assert wait(start(work, place)) == 0, "it fails the second time"
            work.require_done(place)
        except (AssertionError, OSError, ValueError, LookupError) as error:
            raise AssertionError(
                f"{work.name}, killed after {delay:.3f} s or before step {step}, left {found}: {error}"
            ) from error
        return stage, left


def together(work: Work, took: float) -> None:
    """Two at once: the first is killed while the second waits for it or works beside it, which then gets all done."""
    with fresh(work) as place:
        first = start(work, place)
        time.sleep(0.3 * took)
        second = start(work, place)
        time.sleep(0.1 * took)
        os.killpg(first, signal.SIGKILL)
        codes = wait(first), wait(second)
        assert 0 in codes, f"{work.name}: the second of two fails"
        assert work.left(place) == WHOLE, files(place)


def tried(work: Work, count: int, chance: random.Random, *, steps: bool, pair: bool) -> dict[str, Any]:
    """What became of ``count`` killed processes, and of those that were over before.

    With ``steps``, it is one before each step of the work; ``pair``: see `together`.
    """
    took = undisturbed(work)
    stages: Counter[str] = Counter()
    states: Counter[str] = Counter()
    over = 0
    while stages.total() < count and not (steps and over):
        done = stages.total() + over
        if steps:
            stage, left = killed(work, step=done)
        else:  # spread over the whole of it
            stage, left = killed(work, 1.05 * took * (done % count + chance.random()) / count)
        if stage is None:
            assert left == WHOLE, work.name
            over += 1
        else:
            stages[stage] += 1
            states[left] += 1
    if pair:
        together(work, took)
    ordered = {stage: stages[stage] for stage in (BEFORE, DOWNLOAD, CONVERSION, AFTER) if stages[stage]}
    return {"work": work.name, "seconds": round(took, 3), "killed": ordered, "left": dict(states), "over before": over}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int)
    parser.add_argument("--model", default="anysat_tiny")
    parser.add_argument("--few", action="store_true", help="one kind of download and one of conversion")
    parser.add_argument("--steps", action="store_true", help="at each change of the folder, not at random")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # no thread that watches bars
    logging.disable(logging.WARNING)
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="kills-") as made:
        folder = Path(made)
        os.environ["EO_ZOO_CACHE"] = str(folder / "cache")
        torch.manual_seed(options.seed)
        other, model = (hf.wrap(eo_zoo.create_model(options.model, pretrained=False)) for _ in range(2))
        other.save_pretrained(folder / "old")
        model.save_pretrained(folder / "ours")
        truth = model.model.state_dict()
        export_original(folder / "ours", folder / "official.pth")
        export_original(eo_zoo.weights.sources.DATA / "smarties_vit_nano.demo.safetensors", folder / "nano.pth")
        server = HubServer()
        os.environ |= {"HF_ENDPOINT": server.url, "GITHUB_API_URL": f"{server.url}/"}
        lanes = (
            list(downloads(server, folder / "official.pth", truth, folder / "nano.pth")),
            list(conversions(options.model, folder, truth, model)),
        )
        serving = os.fork()
        if not serving:
            server.quiet()  # of those who are killed while they listen
            with server:
                server.stopped.wait()
        try:
            for lane in lanes:
                works = lane[:1] if options.few else lane
                for i, work in enumerate(works):
                    each, more = divmod(options.count // 2, len(works))
                    count = each + (i < more)
                    print(json.dumps(tried(work, count, chance, steps=options.steps, pair=not options.few)), flush=True)
        finally:
            os.kill(serving, signal.SIGKILL)
            wait(serving)


if __name__ == "__main__":
    main()
