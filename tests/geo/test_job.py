"""What runs over a scene share: what is told, the model at work, names and devices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from affine import Affine

from eo_zoo.geo import opening
from eo_zoo.geo.checks import find_device
from eo_zoo.geo.job import JobOptions, coarser, true_colour, weights_of
from eo_zoo.geo.stream import lacking
from tests.geo.fakes import FakeModel, FakeScene, Origin, noise
from tests.geo.test_embed import run


def test_coarser_pixels_of_a_rotated_grid():
    assert coarser(Affine(2, 1, 5, -1, -2, 7), 3) == Affine(6, 3, 5, -3, -6, 7)


def test_values_that_are_mostly_clipped_are_told_with_a_way_out(tmp_path):
    values = noise(40, 40)
    values[1, :24] = 5000
    [text] = run(FakeScene(values), tmp_path / "out.tif").warnings
    assert text.startswith("6") and text.endswith("give others with stats, or check the units")


def test_a_full_disk_is_told_before(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100}))
    result = run(FakeScene(noise(40, 40)), tmp_path / "out.tif")
    assert "may take" in result.warnings[0]
    assert "choose another folder, or out_dtype float16" in result.warnings[0]


def test_a_local_files_folder_is_not_told_in_the_output():
    model = FakeModel()
    model.weights_origin = Origin(name=None, verified=False)
    assert weights_of(model) == f"fake.safetensors sha256 {'ab' * 32} unverified"


def test_a_preview_is_grey_where_a_colour_is_missing():
    assert true_colour(FakeScene(noise(4, 4), bands=("near_infrared_1", "green_2", "red_2"))).bands == [0]
    assert true_colour(FakeScene(noise(4, 4))).bands == [2, 1, 0]


def test_a_folders_name_is_the_sources():
    assert opening.source_name("/data/S2A.SAFE/") == "S2A.SAFE"


def test_a_module_stays_where_it_is():
    assert find_device(None, torch.nn.Linear(1, 1, device="meta")).type == "meta"


@pytest.mark.parametrize(("found", "taken"), [({"avx512_bf16": True}, "bfloat16"), ({"avx512_f": True}, "float32")])
def test_auto_is_bfloat16_only_where_the_cpu_has_it(found, taken, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert JobOptions(dtype="auto").dtype == taken


def test_the_least_number_of_valid_values_is_exact():
    assert not lacking(np.array([7 / 100]), 0.07)[0]  # 0.07 * 100 is a little more than 7
    assert lacking(np.array([6 / 100, 0]), 0.07).all() and lacking(np.zeros(1), 0)[0]


def test_a_module_of_ones_own_is_set_to_eval(tmp_path):
    class Noisy(FakeModel):
        def forward_features(self, x):
            assert not self.training
            return super().forward_features(x)

    run(FakeScene(noise(24, 24)), tmp_path / "out.tif", Noisy().train())


def test_a_module_comes_back_in_the_mode_it_was(tmp_path):
    model = FakeModel().train()
    run(FakeScene(noise(24, 24)), tmp_path / "out.tif", model)
    assert model.training
