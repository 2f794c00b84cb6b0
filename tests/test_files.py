from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from eo_zoo.errors import InputError
from eo_zoo.files import making, replacing, replacing_all, sweep


def test_replacing_takes_the_name_only_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "out[1].tif"
    out.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(out) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert out.read_text() == "old"
    with replacing(out) as temporary:
        temporary.write_text("new")
        assert out.read_text() == "old" and temporary.parent == tmp_path and temporary.name.startswith(".")
    assert out.read_text() == "new" and [out] == list(tmp_path.iterdir())


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as one, replacing(tmp_path / "a") as two:
        assert one != two
        one.write_text("1")
        two.write_text("2")
        inode = one.stat().st_ino
    # the last to finish is the one that was opened first; it was renamed, not copied
    assert (tmp_path / "a").read_text() == "1" and (tmp_path / "a").stat().st_ino == inode


def test_of_two_makers_the_second_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="out exists"), making(tmp_path / "out") as second:
        (second / "b").touch()
        with making(tmp_path / "out") as first:
            (first / "a").touch()
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")} == {"out", "out/a"}


@pytest.mark.parametrize("steps", range(3))
def test_weights_are_never_beside_the_configuration_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    places = [tmp_path / "weights", tmp_path / "config"]
    for place in places:
        place.write_text("old")
    done = []

    def rename(old: Path, new: Path) -> None:
        if len(done) == steps:
            raise KeyboardInterrupt  # here it is killed
        done.append(new.name)
        old.rename(new)

    monkeypatch.setattr(os, "replace", rename)
    with contextlib.suppress(KeyboardInterrupt), replacing_all(*places) as parts:
        for part in parts:
            part.write_text("new")
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found == [{"weights": "old"}, {"weights": "new"}, {"weights": "new", "config": "new"}][steps]


def test_bytes_are_on_the_disk_before_they_get_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    with replacing(tmp_path / "file") as part:
        part.write_text("x")
    with making(tmp_path / "folder") as beside:
        (beside / "inner").mkdir()
        (beside / "inner" / "file").write_text("y")
    assert synced == [path.stat().st_ino for path in (tmp_path / "file", tmp_path / "folder" / "inner" / "file")]


def test_writing_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in ("a", "b"):
        (tmp_path / f".{name}.{dead.pid}-ab.part").touch()
    (tmp_path / f".a.{10**30}-ab.part").touch()  # no process has that number
    with replacing(tmp_path / "a") as part:
        part.touch()
    with making(tmp_path / "b"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", f".a.{10**30}-ab.part"}


def test_sweep_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    kept = {f".other.tif.{dead.pid}-ab.part", f".out[1].tif.{os.getpid()}-ab.part", "out[1].tif"}
    for name in (*kept, f".out[1].tif.{dead.pid}-ab.part"):
        (tmp_path / name).touch()
    sweep(tmp_path / "out[1].tif")
    assert {path.name for path in tmp_path.iterdir()} == kept
