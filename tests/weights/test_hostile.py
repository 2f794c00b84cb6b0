"""Every hostile file is refused with its reason, nothing of it runs, and what is harmless beside tensors is read."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

import eo_zoo
from eo_zoo import weights
from eo_zoo.errors import InputError, WeightsError
from eo_zoo.weights import cache, pickles
from tests.weights import hostile, hostile_archives, hostile_folders, hostile_pickles, hostile_safetensors  # noqa: F401
from tests.weights.toys import LAYOUT, Mapping, check_toy, load, record, toy

COLLECTION = hostile.COLLECTION


def refusal(name: str, folder: Path, canary: Path) -> str:
    """What is wrong with how a hostile file is refused; empty if nothing is."""
    one = COLLECTION[name]
    path = one.make(folder, canary)
    start = time.perf_counter()
    try:
        hostile.READERS[one.kind](path)
    except InputError as error:
        said = str(error)
    except Exception as error:  # noqa: BLE001 - any other is what is looked for
        return f"{type(error).__name__}: {error}"[:500]
    else:
        return "it was read"
    took = time.perf_counter() - start
    if not re.search(one.says, said):
        return f"it is refused otherwise: {said[:500]}"
    if "\n" in said or len(said) > 2000 or not said.isprintable():
        return f"it is refused with more than a sentence: {said[:200]!r}"
    if canary.exists():
        return "the canary was made"
    return f"it took {took:.1f} s" if took > 5 else ""


def refusals(names: Iterable[str], folder: Path) -> dict[str, str]:
    """Those that are not refused as they should be, and why."""
    faults = {}
    for number, name in enumerate(names):
        place = folder / str(number)
        place.mkdir()
        faults[name] = refusal(name, place, folder / "canary")
    return {name: fault for name, fault in faults.items() if fault}


@pytest.mark.parametrize("group", sorted({name.partition("-")[0] for name in COLLECTION}))
def test_refused_with_the_reason(tmp_path, group):
    assert refusals([name for name in COLLECTION if name.startswith(f"{group}-")], tmp_path) == {}
    assert not list((tmp_path / "cache").glob("*.safetensors"))


def test_nothing_runs_in_a_process_of_its_own(tmp_path):
    """Where no module is imported yet that a payload could have wanted."""
    (tmp_path / f"{hostile.CANARY_MODULE}.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w').close()")
    environment = {"PATH": "/usr/bin:/bin", "EO_ZOO_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1",
                   "PYTHONPATH": f"{Path(eo_zoo.__file__).parents[1]}:{tmp_path}"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "tests.weights.test_hostile", str(tmp_path)],
        capture_output=True, text=True, env=environment, cwd=Path(eo_zoo.__file__).parents[1], timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told == {"files": len(COLLECTION), "faults": {}, "events": []}
    assert not (tmp_path / "canary").exists()


def test_the_payloads_would_make_the_canary(tmp_path):
    """Read as Python reads pickles, in a process that is thrown away."""
    canary, module = tmp_path / "canary", tmp_path / f"{hostile.CANARY_MODULE}.py"
    module.write_text(f"open({str(canary)!r}, 'w').close()")
    touch = f"open('{canary}', 'w').close()"
    for call in (
        ("posix", "system", f"touch {canary}"), ("builtins", "eval", touch),
        ("builtins", "__import__", hostile.CANARY_MODULE),
    ):  # fmt: skip
        program = b"\x80\x02" + hostile.name_of(*call[:2]) + b"(" + hostile.text(call[2]) + b"tR."
        script = f"import pickle, sys; sys.path.append({str(tmp_path)!r}); pickle.loads({program!r})"
        subprocess.run([sys.executable, "-c", script], check=True)
        canary.unlink()


@pytest.mark.parametrize("write", [hostile.archive, hostile.legacy])
@pytest.mark.parametrize("name", hostile_pickles.BESIDE)
def test_what_lies_beside_tensors_is_not_followed(tmp_path, name, write):
    program = hostile.checkpoint_of(hostile_pickles.BESIDE[name])
    start = time.perf_counter()
    tensors, _ = load(write(tmp_path / "w.pth", program))
    assert torch.equal(tensors["new.weight"], torch.arange(1.0, 13).reshape(3, 4))
    assert time.perf_counter() - start < 5


def test_too_many_instructions(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "MAX_INSTRUCTIONS", 1000)
    with pytest.raises(WeightsError, match="more than 1,000 pickle instructions"):
        load(hostile.archive(tmp_path / "w.pth", b"\x80\x02(" + b"N" * 1000 + b"t."))


@pytest.mark.parametrize("name", [
    "run-posix.system-zip", "run-builtins.eval-legacy", "tensor-stride-beyond-zip", "zip-overlapping",
    "safetensors-overlapping", "safetensors-cut-at-50", "values-nan-zip", "values-zeros-safetensors",
])  # fmt: skip
def test_models_refuse_them_too(tmp_path, name):
    path = COLLECTION[name].make(tmp_path, tmp_path / "canary")
    with pytest.raises(WeightsError):
        eo_zoo.create_model("anysat_nano", weights=path)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("kind", ["nan", "zeros"])
def test_values_are_looked_at_in_files_of_our_own_layout_too(tmp_path, kind):
    tensors = Mapping()(toy())
    for tensor in tensors.values():
        tensor.fill_(torch.nan if kind == "nan" and tensor.is_floating_point() else 0)
    path = tmp_path / "ours.safetensors"
    weights.stored.save(tensors, path, metadata={"eo_zoo.layout": LAYOUT})
    says = "not finite" if kind == "nan" else "nothing but zeros"
    for source in (path, record(source=f"file://{path}")):
        with pytest.raises(WeightsError, match=says):
            load(source)


def test_single_tensors_may_be_zero(tmp_path):
    tensors = toy()
    tensors["old.zeros"], tensors["old.none"] = torch.zeros(4, 4), torch.empty(0, 4)
    torch.save(tensors, tmp_path / "w.pth")
    assert torch.equal(load(tmp_path / "w.pth")[0]["new.zeros"], torch.zeros(4, 4))


def test_all_archives_of_torch_save_are_read(tmp_path):
    """What the checks of archives expect is what this release of torch writes."""
    tied = torch.arange(6.0)
    saved = {
        **toy(), "old.view": tied[2:5], "old.turned": tied.reshape(2, 3).T, "old.none": torch.empty(0, 3),
        "old.parameter": torch.nn.Parameter(tied + 1), "old.wide": torch.arange(3).to(torch.uint16),
        "old.eight": torch.ones(3).to(torch.float8_e5m2), "old.complex": torch.ones(2, dtype=torch.complex64),
        "old.named": torch.nn.Buffer(tied + 2), "old.bits": tied > 2, "old.scalar": torch.tensor(2.5).double(),
    }  # fmt: skip
    saved["old.parameter"].note = "kept by torch, not read"
    for zipped in (True, False):
        torch.save({"model": saved}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
        found = weights.read(tmp_path / "w.pth")
        assert found.keys() == saved.keys()
        for name, tensor in saved.items():
            assert found[name].dtype == tensor.dtype and found[name].stride() == tensor.stride(), name
            assert torch.equal(found[name].to(torch.complex64), tensor.to(torch.complex64)), name
        shared = {found[name].untyped_storage().data_ptr() for name in ("old.view", "old.turned")}
        assert len(shared) == 1


@pytest.mark.parametrize("text", ["[" * 100_000, '{"sha256":' * 50_000, '{"sha256": ["x"]}', "9" * 5000, "\0", "{}"])
def test_notes_in_the_cache_that_are_none(tmp_path, text):
    path = cache.pin_path(tmp_path / "cache", record())
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(WeightsError, match="delete"):
        load(record())
    torch.save(toy(), tmp_path / "w.pth")
    load(tmp_path / "w.pth")
    hashes = tmp_path / "cache" / "hashes"
    hashes.mkdir(exist_ok=True)
    for note in list(hashes.iterdir()) or [hashes / "other.json"]:
        note.write_text(text)
    check_toy(load(tmp_path / "w.pth")[0])


def test_the_longest_pickles_are_read_in_seconds(tmp_path):
    """A sixth of as many instructions as are let through."""
    start = time.perf_counter()
    with pytest.raises(WeightsError):
        load(hostile.archive(tmp_path / "w.pth", b"\x80\x02(" + b"N" * (pickles.MAX_INSTRUCTIONS // 6) + b"t."))
    assert (time.perf_counter() - start) * 6 < 15


EVENTS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "shutil.rmtree", "socket.connect")


def main(folder: Path) -> None:
    """Read the whole collection, and tell what went wrong and what was begun."""
    for one in ("file", "zero"):  # whatever reading imports is imported now
        hostile.READERS[one](_sound(folder, one))
    events: list[str] = []
    begun = [False]

    def hook(event: str, arguments: tuple) -> None:
        if begun[0] and (event in EVENTS or (event == "import" and arguments[0] == hostile.CANARY_MODULE)):
            events.append(f"{event} {arguments}"[:200])

    sys.addaudithook(hook)
    begun[0] = True
    faults = refusals(COLLECTION, folder)
    begun[0] = False
    print(json.dumps({"files": len(COLLECTION), "faults": faults, "events": events}))


def _sound(folder: Path, kind: str) -> Path:
    from tests.weights import zero_files

    if kind == "zero":
        return zero_files.save(hostile_folders.WEIGHTS, folder / "zero", world=1)
    torch.save(toy(), folder / "w.pth")
    return folder / "w.pth"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
