from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from eo_zoo.files import replacing, sweep


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


def test_sweep_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    kept = {f".other.tif.{dead.pid}-ab.part", f".out[1].tif.{os.getpid()}-ab.part", "out[1].tif"}
    for name in (*kept, f".out[1].tif.{dead.pid}-ab.part"):
        (tmp_path / name).touch()
    sweep(tmp_path / "out[1].tif")
    assert {path.name for path in tmp_path.iterdir()} == kept
