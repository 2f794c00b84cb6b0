from __future__ import annotations

import copy
import itertools
import json
import logging
from datetime import UTC, date, datetime

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

import eo_zoo
from eo_zoo.errors import InputError, WeightsError
from eo_zoo.layers.positions import kept
from eo_zoo.models import anysat, anysat_blocks
from eo_zoo.models.anysat_inputs import INPUTS, fitting
from eo_zoo.models.anysat_series import SeriesProjector, pieces
from tests.models.families import anysat_inputs
from tests.procedural import PARITY, days, forge, manifest, uniform, weight

ROOT = PARITY.parents[2]
CASES = json.loads((PARITY / "anysat.cases.json").read_text())
ALONE = [name for name in INPUTS if name != "modis"]
COMBINATIONS = [*((name,) for name in ALONE), *itertools.combinations(INPUTS, 2), tuple(INPUTS)]
COARSE = {"l7", "alos"}


def made(case: str, name: str, shape: list[int], kind: str) -> torch.Tensor:
    if kind == "days":
        return days(f"{case}/{name}", shape)
    values = uniform(f"{case}/{name}", shape)
    return values if kind == "uniform" else values > -1


def image_order(released: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Dense maps of 2 m cells as the public code returns them, put where they belong."""
    batch, side, _, width = released.shape
    s = patch_size // 10
    n = side // (5 * s)
    cells = released.view(batch, n, 5 * s, n, 5 * s, width).permute(0, 1, 3, 2, 4, 5)
    cells = cells.reshape(batch, n, n, s, s, 5, 5, width).permute(0, 1, 3, 5, 2, 4, 6, 7)
    return cells.reshape(batch, side, side, width)


@torch.no_grad()
def check_cases(size: str, model: nn.Module, *names: str) -> int:
    """Compare with all expected results of a size, or of some of its cases."""
    expected = load_file(PARITY / f"anysat_{size}.safetensors")
    rows = [row for row in CASES if row["size"] == size and (not names or row["case"] in names)]
    for row in rows:
        data = {name: made(row["case"], name, shape, kind) for name, shape, kind in row["inputs"]}
        call = dict(patch_size=row["patch_size_m"], output=row["output"], output_modality=row["output_modality"])
        found = model(data, **call, order="released")
        assert list(found.shape) == row["shape"]
        wanted = expected[row["key"]]
        close = (found[..., :: row["last_dim_stride"]] - wanted).abs().max() <= 1e-4 * wanted.abs().max()
        assert close, row["key"]
        if row["output"] == "dense" and row["output_modality"].startswith("aerial"):
            assert torch.equal(model(data, **call), image_order(found, row["patch_size_m"]))
    return len(rows)


def official(size: str) -> dict[str, torch.Tensor]:
    return forge(manifest(f"anysat_{size}"), {})


def save(tensors: dict[str, torch.Tensor], path, **beside) -> str:
    torch.save({"state_dict": tensors, **beside}, path)
    return str(path)


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory):
    return save(official("tiny"), tmp_path_factory.mktemp("tiny") / "AnySat.pth")


def tiny(path=None, **kwargs):
    overlay = dict(file=str(path)) if path else None
    return timm.create_model(
        "anysat_tiny", pretrained=path is not None, pretrained_cfg_overlay=overlay, **kwargs
    ).eval()


def nano(**kwargs) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("anysat_nano", **kwargs).eval()
    for parameter in model.parameters():
        if not parameter.any():  # learned tokens and questions start at 0
            nn.init.normal_(parameter, std=0.5)
    return model


@pytest.fixture(scope="module")
def model():
    """Random weights, eval mode: no test may change it."""
    return nano()


class TestParity:
    def test_tiny_cases_agree(self, tiny_file):
        model = tiny(tiny_file)
        assert check_cases("tiny", model) == 60
        assert not model.weights_origin.verified

    def test_timms_checkpoint_path(self, tmp_path):
        """As timm reads it: the tensors under ``state_dict``."""
        path = save(official("tiny"), tmp_path / "AnySat.pth")
        assert check_cases("tiny", timm.create_model("anysat_tiny", checkpoint_path=path).eval(), "s2", "planted") == 10

    def test_no_tensor_of_the_file_is_lost(self, tiny_file):
        rows = manifest("anysat_tiny")
        assert sum(torch.Size(shape).numel() for _, shape, _ in rows) == sum(
            tensor.numel() for tensor in tiny(tiny_file).state_dict().values()
        )

    @pytest.mark.slow
    def test_base_cases_agree_through_timm_and_hub(self, tmp_path):
        path = save(official("base"), tmp_path / "AnySat.pth")
        overlay = dict(file=path)
        assert check_cases("base", timm.create_model("anysat_base", True, pretrained_cfg_overlay=overlay).eval()) == 26
        assert check_cases("base", timm.create_model("anysat_base", checkpoint_path=path).eval(), "planted") == 2
        by_hub = torch.hub.load(str(ROOT), "anysat_base", source="local", weights=path)
        assert check_cases("base", by_hub, "aerial_s2_s1asc") == 8
        alias = torch.hub.load(
            str(ROOT), "anysat", source="local", pretrained=True, flash_attn=False, device="cpu", weights=path
        )
        assert check_cases("base", alias, "spot_s1") == 8
        assert not alias.training and alias.output == "patch" and by_hub.output == "tile"

    @pytest.mark.slow
    def test_base_fits_its_manifest(self):
        rows = manifest("anysat_base")
        assert len(rows) == 418
        with torch.device("meta"):
            model = timm.create_model("anysat_base")
        values = sum(tensor.numel() for tensor in model.state_dict().values())
        assert values == sum(torch.Size(shape).numel() for _, shape, _ in rows) == 125_905_447


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory):
    rows = manifest("anysat_tiny_pretraining")
    tensors = {f"model.{key}": tensor for key, tensor in forge(rows, {}).items()}
    encoder = [key.removeprefix("encoder.") for key, *_ in rows if key.startswith("encoder.")]
    tensors |= {f"target_encoder.{key}": weight(key, tensors[f"model.encoder.{key}"].shape) for key in encoder}
    beside = {"epoch": 3, "pytorch-lightning_version": "2.1", "optimizer_states": [{"state": {}}], "loops": {}}
    return save(tensors, tmp_path_factory.mktemp("full") / "AnySat_full.pth", **beside)


class TestWholeState:
    """``AnySat_full.pth``: student, teacher and predictor, as Lightning saves them."""

    INPUTS = ("aerial", "s2", "s1-asc")  # of the forged one

    def test_the_teacher(self, whole_file):
        """The forged one has the values that the expected results were made with."""
        model = tiny(whole_file, part="teacher", inputs=self.INPUTS)
        assert check_cases("tiny", model, "aerial_s2_s1asc") == 12

    def test_the_student(self, whole_file):
        student, teacher = (
            tiny(whole_file, part=part, inputs=self.INPUTS).state_dict() for part in ("student", "teacher")
        )
        assert torch.equal(student["cls_token"], weight("encoder.cls_token", (1, 1, 256)))
        assert torch.equal(teacher["cls_token"], weight("cls_token", (1, 1, 256)))
        different = [name for name in student if not torch.equal(student[name], teacher[name])]
        assert different == list(student)

    @pytest.mark.parametrize("part", ["student", "teacher"])
    def test_a_tag_chooses(self, part):
        with torch.device("meta"):
            assert timm.create_model(f"anysat_base.{part}").part == part
            assert timm.create_model("anysat_base").part is None
        record = eo_zoo.registry.get_record(f"anysat_base.{part}")
        assert record.source.endswith("AnySat_full.pth")

    def test_which_one_has_to_be_said(self, whole_file):
        with pytest.raises(WeightsError, match=r"more than one encoder \(student, teacher\).*part='student'"):
            tiny(whole_file, inputs=self.INPUTS)

    def test_a_student_alone_needs_no_choice(self, tmp_path):
        """As the public code's pretraining module itself names them, without Lightning's ``model.``."""
        path = save(forge(manifest("anysat_tiny_pretraining"), {}), tmp_path / "student.pth")
        for part in (None, "student"):
            model = tiny(path, part=part, inputs=self.INPUTS)
            assert torch.equal(model.cls_token, weight("encoder.cls_token", (1, 1, 256)))
        with pytest.raises(WeightsError, match="the file holds no teacher, only a student"):
            tiny(path, part="teacher", inputs=self.INPUTS)

    def test_inputs_that_the_file_lacks_are_named(self, whole_file):
        with pytest.raises(WeightsError, match=r"missing \(projectors\.aerial_flair\."):
            tiny(whole_file, part="teacher")


class TestLoading:
    def fails(self, tmp_path, tensors, **kwargs) -> str:
        with pytest.raises(WeightsError) as caught:
            tiny(save(tensors, tmp_path / "x.pth"), **kwargs)
        return str(caught.value)

    def test_unknown(self, tmp_path):
        for name in ("surprise", "projector_s3.pad_parameter", "blocks.1.attn.wk.weight", "predictor.mask_token"):
            says = self.fails(tmp_path, {**official("tiny"), name: torch.zeros(1)})
            assert f"1 tensors are not of a checkpoint of AnySat: {name}" in says

    def test_missing(self, tmp_path):
        tensors = official("tiny")
        del tensors["projector_l8.patch_embed.inconv.8.bias"]
        assert "1 missing (projectors.l8.layers.2.linear.bias)" in self.fails(tmp_path, tensors)

    def test_wrong_shape(self, tmp_path):
        tensors = official("tiny")
        tensors["blocks.0.mlp.fc1.bias"] = torch.zeros(7)
        assert "blocks.0.mlp.fc1.bias is (7,), expected (1024,)" in self.fails(tmp_path, tensors)

    def test_half_of_a_pair(self, tmp_path):
        tensors = official("tiny")
        del tensors["blocks.2.attn.wv.weight"]
        assert "pool.kv.weight is made of 2 parts; missing: wv" in self.fails(tmp_path, tensors)
        tensors["blocks.2.attn.wv.weight"] = torch.zeros(256, 7)
        says = "blocks.2.attn.wk.weight, blocks.2.attn.wv.weight belong together as pool.kv.weight"
        assert says in self.fails(tmp_path, tensors)

    def test_another_size(self, tmp_path):
        path = save(official("tiny"), tmp_path / "tiny.pth")
        with pytest.raises(WeightsError, match=r"cls_token is \(1, 1, 256\), expected \(1, 1, 128\)"):
            eo_zoo.create_model("anysat_nano", weights=path)

    def test_fewer_inputs_take_fewer_tensors(self, tiny_file):
        model = tiny(tiny_file, inputs=["s1", "spot"])
        assert set(model.projectors) == {"s1", "spot"}
        assert check_cases("tiny", model, "spot_s1") == 10
        with pytest.raises(InputError, match="unknown input 's2'"):
            model(anysat_inputs(["s2"]))

    def test_our_own_files_come_back(self, tiny_file, tmp_path):
        torch.save(tiny(tiny_file).state_dict(), tmp_path / "ours.pth")
        assert check_cases("tiny", tiny(tmp_path / "ours.pth"), "spot_s1") == 10

    def test_filling_draws_nothing(self, tiny_file, monkeypatch):
        """torch's trunc_normal_ draws again until all values are small, which memory with other values never is."""

        def endless(*args, **kwargs):
            raise AssertionError("this may never end")

        monkeypatch.setattr(nn.init, "trunc_normal_", endless)
        torch.manual_seed(3)
        before = torch.get_rng_state()
        tiny(tiny_file)
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_head_is_new(self, tiny_file, caplog):
        model = tiny(tiny_file, num_classes=5)
        assert "head.weight" in caplog.text and "random" in caplog.text
        assert model(anysat_inputs(["spot"])).shape == (2, 5)

    def test_unpublished(self):
        for make in (
            lambda: timm.create_model("anysat_small", pretrained=True),
            lambda: eo_zoo.create_model("anysat_tiny"),
        ):
            with pytest.raises(InputError, match=r"no weights are published for anysat_\w+: pretrained=False gives"):
                make()

    def test_an_unknown_part_or_input(self):
        with pytest.raises(InputError, match="unknown input 'sentinel'"):
            nano(inputs=["sentinel"])
        with pytest.raises(InputError, match="part is 'pupil', expected one of"):
            nano(part="pupil")


class TestCalls:
    @pytest.fixture(autouse=True)
    def _no_grad(self):
        with torch.no_grad():
            yield

    def test_outputs_agree_with_each_other(self, model):
        data = anysat_inputs(["aerial", "s2"])
        tile, patch, everything = (model(data, 20, output) for output in ("tile", "patch", "all"))
        assert tile.shape == (2, 128) and patch.shape == (2, 3, 3, 128)
        torch.testing.assert_close(torch.cat([tile[:, None], patch.flatten(1, 2)], dim=1), everything)
        assert torch.equal(model.forward_features(data, patch_size=20), everything)
        dense = model(data, 20, "dense")
        assert dense.shape == (2, 30, 30, 256)  # of the first input
        assert torch.equal(dense, model(data, 20, "dense", "aerial"))
        for name, cells in (("aerial", 10), ("s2", 2)):
            dense = model(data, 20, "dense", name)[..., :128]
            torch.testing.assert_close(dense, patch.repeat_interleave(cells, 1).repeat_interleave(cells, 2))

    def test_scale_is_the_older_way(self, model):
        data = anysat_inputs(["s2"])
        assert torch.equal(model(data, scale=3), model(data, patch_size=30))
        assert torch.equal(model(data, scale=3), model(data, 30, scale=3))
        with pytest.raises(InputError, match="scale 2 means a patch size of 20 m, but 30 m is given too"):
            model(data, 30, scale=2)

    def test_defaults_of_a_call_are_those_of_construction(self, model):
        data = anysat_inputs(["s2", "spot"])
        own = nano(patch_size=20, output="dense", output_modality="spot")
        assert torch.equal(own(data), model(data, 20, "dense", "spot"))
        assert torch.equal(own(data, 10, "tile"), model(data, 10))
        assert torch.equal(model(data), model(data, 10)) and model(data).shape == (2, 128)
        assert model(anysat_inputs(["l7"]), output="patch").shape == (2, 2, 2, 128)  # 30 m by default

    def test_parameter_groups_run_from_the_input_to_the_head(self):
        model = nano(num_classes=3)
        layer = timm.models.group_parameters(model, model.group_matcher(), reverse=True)
        expected = {
            "projectors.s2.pad": 0, "patch_encoder.cls_token": 0, "patch_encoder.blocks.0.attn.distance": 1,
            "patch_encoder.blocks.1.norm1.weight": 2, "patch_encoder.norm.bias": 2, "cls_token": 2,
            "blocks.0.norm1.weight": 3, "blocks.1.mlp.fc2.bias": 4, "pool.query": 5, "head.weight": 5,
        }  # fmt: skip
        assert {name: layer[name] for name in expected} == expected
        coarse = timm.models.group_parameters(model, model.group_matcher(coarse=True), reverse=True)
        assert [coarse[name] for name in expected] == [0, 0, 1, 1, 1, 1, 2, 2, 3, 3]

    def test_the_order_of_the_dict_is_that_of_the_inputs(self, model):
        """Tokens know their patch, but no input's place in the dict."""
        data = anysat_inputs(["s2", "spot", "modis"])
        backwards = dict(reversed(data.items()))
        torch.testing.assert_close(model(data), model(backwards), atol=1e-5, rtol=1e-5)

    def test_logits_are_of_the_tile_only(self):
        data = anysat_inputs(["spot"])
        model = nano(num_classes=3)
        assert model(data).shape == (2, 3) and model(data, output="patch").shape == (2, 6, 6, 128)

    @pytest.mark.parametrize("patch_size", [10, 20, 60])
    def test_a_changed_sub_patch_shows_in_its_own_cell(self, model, patch_size):
        """Of the planted places the first is a corner, the others are spread over cells of 10 m and patches."""
        places = [(0, 0), (1, 0), (0, 1), (4, 5), (7, 23), (13, 11), (29, 2), (29, 29)]
        image = anysat_inputs(["aerial"], batch=1)["aerial"]
        planted = image.repeat(len(places), 1, 1, 1)
        for i, (row, column) in enumerate(places):
            planted[i, :, 10 * row : 10 * row + 10, 10 * column : 10 * column + 10] += 3
        before, after = (model({"aerial": x}, patch_size, "dense")[..., 128:] for x in (image, planted))
        changes = (after - before).norm(dim=-1)
        for change, (row, column) in zip(changes, places, strict=True):
            assert divmod(int(change.argmax()), 30) == (row, column)
            cells = patch_size // 2
            inside = torch.zeros(30, 30, dtype=torch.bool)
            top, left = row // cells * cells, column // cells * cells
            inside[top : top + cells, left : left + cells] = True
            assert not change[~inside].any() and change[inside].all()  # its patch's sub-patches see it, no others

    @pytest.mark.parametrize("name", ["spot", "naip", "s2", "l7"])
    def test_the_same_for_coarser_inputs(self, model, name):
        data = anysat_inputs([name], batch=1, extent=120, masks=False)
        pixels = INPUTS[name].pixels
        planted = {key: tensor.clone() for key, tensor in data.items()}
        planted[name][..., pixels : 2 * pixels, 3 * pixels : 4 * pixels] += 3
        before, after = (model(one, 60, "dense")[..., 128:] for one in (data, planted))
        change = (after - before).norm(dim=-1)[0]
        assert divmod(int(change.argmax()), change.shape[1]) == (1, 3)

    def test_the_released_order_is_the_images_where_cells_are_sub_patches(self, model):
        data = anysat_inputs(["aerial", "s2"])
        assert torch.equal(model(data, 10, "dense"), model(data, 10, "dense", order="released"))
        assert torch.equal(model(data, 20, "dense", "s2"), model(data, 20, "dense", "s2", order="released"))
        assert not torch.equal(model(data, 20, "dense"), model(data, 20, "dense", order="released"))

    def test_dates_in_any_form(self, model):
        data = anysat_inputs(["s2"], batch=1)
        texts = [["2020-01-01", "2020-02-29", "2020-12-31"]]
        forms = {
            "tensor": torch.tensor([[1, 60, 366]]),
            "floats": torch.tensor([[1.0, 60.0, 366.0]], dtype=torch.float64),
            "numbers": [[1, 60, 366]],
            "texts": texts,
            "dates": [[date.fromisoformat(text) for text in texts[0]]],
            "datetimes": [[datetime.fromisoformat(text).replace(hour=12, tzinfo=UTC) for text in texts[0]]],
            "numpy": np.array(texts, dtype="datetime64[ns]"),
        }
        found = {form: model({**data, "s2_dates": given}) for form, given in forms.items()}
        assert all(torch.equal(one, found["tensor"]) for one in found.values())
        assert not torch.allclose(found["tensor"], model({**data, "s2_dates": torch.tensor([[0, 59, 365]])}))

    def test_days_beyond_a_year_are_warned_about(self, model, caplog):
        data = anysat_inputs(["s2"], batch=1)
        model({**data, "s2_dates": torch.tensor([[0.0, 12.0, 366.0]])})
        assert not caplog.text
        model({**data, "s2_dates": torch.tensor([[1, 12, 2020]])})
        assert "dates run from 1 to 2020, beyond the days of a year" in caplog.text

    def test_many_patches_are_warned_about_once(self, model, caplog):
        data = anysat_inputs(["s2"], batch=1, extent=330, dates=1)
        anysat._warn_many.cache_clear()
        for _ in range(2):
            assert model(data, output="patch").shape == (1, 33, 33, 128)
        assert caplog.text.count("33 x 33 patches of 10 m") == 1


class TestMasks:
    @pytest.fixture(autouse=True)
    def _no_grad(self):
        with torch.no_grad():
            yield

    def test_what_is_masked_has_no_influence(self, model):
        data = anysat_inputs(["s2"])
        mask = torch.rand(data["s2"].shape, generator=torch.Generator().manual_seed(2)) > 0.4  # each value by itself
        expected = model({**data, "s2_mask": mask}, output="dense")
        for value in (0.0, 1e30, float("nan"), float("-inf")):
            hidden = data["s2"].masked_fill(~mask, value)
            assert torch.equal(model({**data, "s2": hidden, "s2_mask": mask}, output="dense"), expected), value
        assert not torch.allclose(expected, model({**data, "s2_mask": torch.ones_like(mask)}, output="dense"))

    def test_a_mask_changes_its_own_pixel_only(self, model):
        data = anysat_inputs(["s2"], masks=False)
        mask = torch.ones(2, 3, 1, 6, 6, dtype=torch.bool)
        expected = model(data, output="dense")[..., 128:]
        mask[0, 1, :, 2, 5] = False
        changed = (model({**data, "s2_mask": mask}, output="dense")[..., 128:] - expected).abs().amax(-1)
        assert changed[0, 2, 5] > 1e-3
        changed[0, 2, 5] = 0
        assert changed.max() < 1e-5

    @pytest.mark.parametrize("channels", [1, 10])
    def test_a_mask_that_hides_nothing_equals_none(self, model, channels):
        data = anysat_inputs(["s2"], masks=False)
        mask = torch.ones(2, 3, channels, 6, 6, dtype=torch.bool)
        assert torch.equal(model({**data, "s2_mask": mask}), model(data))

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
    def test_rows_computed_once_give_the_same_numbers(self, model, share, monkeypatch):
        data = anysat_inputs(["s2", "l7"])
        for name in ("s2", "l7"):
            data[f"{name}_mask"] = torch.rand(data[f"{name}_mask"].shape) < share
        sparse = model(data, output="all")
        monkeypatch.setattr(SeriesProjector, "_worthwhile", lambda self, valid: False)
        torch.testing.assert_close(model(data, output="all"), sparse, atol=1e-5, rtol=1e-5)
        assert sparse.isfinite().all()

    def test_gradients_do_not_see_what_is_hidden(self, model):
        model = copy.deepcopy(model)
        data = anysat_inputs(["s2"])
        mask = data["s2_mask"]
        hidden = data["s2"].masked_fill(~mask, float("nan")).requires_grad_()
        with torch.enable_grad():
            model({**data, "s2": hidden}).square().sum().backward()
        assert hidden.grad.isfinite().all() and not hidden.grad.masked_select(~mask).any()
        assert model.projectors["s2"].pad.grad.isfinite() and model.projectors["s2"].pad.grad != 0

    def test_values_that_count_have_to_be_finite(self, model):
        data = anysat_inputs(["s2", "spot"])
        data["s2"][0, 0, :, 0, 0] = float("nan")
        data["s2_mask"][0, 0, :, 0, 0] = True
        with pytest.raises(InputError, match=r"s2 holds 10 values that are not finite.*s2_mask"):
            model(data)


class TestPieces:
    def test_runs_are_even(self):
        assert pieces(12, 1, 5) == [4, 4, 4] and pieces(7, 10, 20) == [1] * 7 and pieces(5, 1, 100) == [5]
        for count, rows, limit in itertools.product((1, 11, 36, 97), (1, 7, 50), (1, 60, 4000)):
            assert sum(pieces(count, rows, limit)) == count
            assert max(pieces(count, rows, limit)) * rows <= max(limit, rows)

    @torch.no_grad()
    @pytest.mark.parametrize("memory", [1, 30_000, 300_000, 2**30])
    def test_the_memory_does_not_change_the_results(self, model, memory):
        data = anysat_inputs(["aerial", "s2", "l8"])
        other = nano(memory=memory)
        torch.testing.assert_close(other(data, 20, "dense"), model(data, 20, "dense"), atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("memory", [None, 100_000])
    def test_checkpointing_does_not_change_the_gradients(self, memory):
        data = anysat_inputs(["spot", "s2", "s1"])
        gradients = []
        for enable in (False, True):
            model = nano(memory=memory, drop_path_rate=0.2).train()
            model.set_grad_checkpointing(enable)
            torch.manual_seed(1)  # dropout too
            model(data, 20, "dense", "s2").square().mean().backward()
            gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        torch.testing.assert_close(*gradients)


def step(model: nn.Module, data: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """One forward and backward pass: the result and the gradients."""
    model.zero_grad(set_to_none=True)
    made = model(data, output="all")
    made.square().mean().backward()
    return made.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def fits(names: tuple[str, ...], extent: int) -> list[int]:
    return fitting(extent, 30 if COARSE & set(names) else 10)


class TestCombinations:
    @pytest.mark.parametrize("extent", [60, pytest.param(120, marks=pytest.mark.slow)])
    def test_every_one_runs_forward_and_backward(self, extent):
        model = nano(depth=1)
        for names in COMBINATIONS:
            data = anysat_inputs(names, batch=1, extent=extent, dates=2)
            patches = extent // fits(names, extent)[0]
            made, gradients = step(model, data)
            assert made.shape == (1, 1 + patches**2, 128) and made.isfinite().all(), names
            reached = {name for name in names if gradients[f"projectors.{name.replace('-', '_')}.{first(name)}"].any()}
            assert reached == set(names)

    @pytest.mark.parametrize("extent", [60, 120])
    @pytest.mark.parametrize("names", [("aerial", "l7"), ("alos",), ("spot", "s2", "modis")], ids="+".join)
    def test_every_patch_size_that_fits(self, model, names, extent):
        data = anysat_inputs(names, batch=1, extent=extent, dates=2)
        for patch_size in fits(names, extent):
            with torch.no_grad():
                assert model(data, patch_size, "patch").shape[1] == extent // patch_size
        for patch_size in {10, 20, 25, 30, 40, 70, 120} - set(fits(names, extent)):
            with pytest.raises(InputError, match=f"a patch size of {patch_size} m does not fit"):
                model(data, patch_size)

    @pytest.mark.parametrize("name", ["l7", "alos"])
    def test_tiles_of_which_30_m_are_no_part(self, model, name):
        data = anysat_inputs([name], extent=90) | anysat_inputs(["s2"], extent=100)
        with pytest.raises(InputError, match=rf"{name} 90 m \(3 pixels of 30 m\), s2 100 m \(10 pixels of 10 m\)"):
            model(data)

    @pytest.mark.parametrize("names", [("aerial", "s2"), ("l7", "s1-asc", "modis")], ids="+".join)
    def test_compiled_equals_eager(self, names):
        check_compiled(names, 60, "aot_eager")

    # Pairs through torch's tracer, which takes seconds, and inputs alone through its autograd too. To generate code
    # takes a minute or more each, so that is done for all inputs together.
    @pytest.mark.slow
    @pytest.mark.parametrize("extent", [60, 120])
    @pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
    def test_every_one_compiled(self, names, extent):
        check_compiled(names, extent, "eager" if len(names) == 2 else "aot_eager")

    @pytest.mark.slow
    def test_all_together_through_inductor(self):
        check_compiled(tuple(INPUTS), 60, "inductor")


def first(name: str) -> str:
    return "layers.0.linear.weight" if INPUTS[name].series else "embed.weight"


def check_compiled(names: tuple[str, ...], extent: int, backend: str) -> None:
    torch._dynamo.reset()
    model = nano(depth=1)
    data = anysat_inputs(names, batch=1, extent=extent, dates=2)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    made, gradients = step(compiled, data)
    expected, wanted = step(model, data)
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)
    gradients = {name.removeprefix("_orig_mod."): gradient for name, gradient in gradients.items()}
    torch.testing.assert_close(gradients, wanted, atol=1e-5, rtol=1e-4)


class TestTracing:
    """Tables are kept by shape: nothing that a tracer made may stay in them."""

    DATA = anysat_inputs(["s2", "l7", "modis"])

    def low(self):
        return {key: tensor.bfloat16() if tensor.is_floating_point() else tensor for key, tensor in self.DATA.items()}

    @pytest.fixture(autouse=True)
    def _no_tables(self, monkeypatch):
        """None that another test made."""
        for name in ("position_table", "bucket_table"):
            monkeypatch.setattr(anysat, name, kept(getattr(anysat, name).__wrapped__))

    def create(self):
        return nano(depth=1, inputs=["s2", "l7", "modis"])

    def expected(self):
        with torch.no_grad():
            return self.create()(self.DATA, output="all")

    def trains(self, model):
        made, gradients = step(model, self.DATA)
        torch.testing.assert_close(made, self.expected(), atol=1e-5, rtol=1e-5)
        assert all(gradient.isfinite().all() for gradient in gradients.values())

    @pytest.mark.parametrize("called_before", [False, True])
    def test_export(self, called_before):
        model = self.create()
        call = dict(output="all")
        with torch.no_grad():
            if called_before:
                model(self.DATA, **call)
            graph = torch.export.export(model, (self.DATA,), call).module()
            torch.testing.assert_close(graph(self.DATA, **call), self.expected(), atol=1e-5, rtol=1e-5)
        self.trains(model)

    @torch.no_grad()
    def test_export_of_another_type(self):
        """Tables are converted to it, and what a tracer converts is none."""
        model, data = self.create().bfloat16(), self.low()
        graph = torch.export.export(model, (data,)).module()
        torch.testing.assert_close(graph(data), model(data))

    def test_compiled_first(self):
        torch._dynamo.reset()
        model = self.create()
        with torch.no_grad():
            made = torch.compile(model, fullgraph=True, backend="aot_eager")(self.DATA, output="all")
        torch.testing.assert_close(made, self.expected(), atol=1e-5, rtol=1e-5)
        self.trains(model)

    def test_inference_mode_first(self):
        model = self.create()
        with torch.inference_mode():
            model(self.DATA)
        self.trains(model)
        with torch.inference_mode():  # a compiled graph over tables that eager calls made
            torch._dynamo.reset()
            made = torch.compile(model, fullgraph=True, backend="aot_eager")(self.DATA, output="all")
        torch.testing.assert_close(made, self.expected(), atol=1e-5, rtol=1e-5)

    def test_tables_follow_the_type(self):
        model = self.create()
        with torch.no_grad():
            model(self.DATA)
            made = copy.deepcopy(model).bfloat16()(self.low(), output="all")
            back = model(self.DATA, output="all")
            with torch.autocast("cpu", torch.bfloat16):
                mixed = model(self.DATA, output="all").float()
        assert made.dtype == torch.bfloat16 and torch.equal(back, self.expected())
        assert nn.functional.cosine_similarity(mixed, self.expected(), dim=-1).min() > 0.9999
        assert nn.functional.cosine_similarity(made.float(), self.expected(), dim=-1).min() > 0.9999

    def test_tables_are_made_once(self, model, monkeypatch):
        with torch.no_grad():
            model(self.DATA, output="all")
            for name in ("sincos_positions", "np"):  # all that they are made by
                monkeypatch.setattr(anysat_blocks, name, None)
            model(self.DATA, output="all")


def bad(**changes):
    """Inputs that fit but for what is changed; None takes a key away."""
    data = {**anysat_inputs(["aerial", "s2"]), **changes}
    return {key: value for key, value in data.items() if value is not None}


ZEROS = torch.zeros
BAD_INPUTS = {
    "no dict": (
        ZEROS(2, 10, 6, 6), {},
        r"AnySat takes a dict of inputs by name, got Tensor: \{'s2': .*names are aerial, aerial-flair",
    ),
    "empty": ({}, {}, "the dict is empty: give at least one of aerial, "),
    "no dict for a map": (ZEROS(2, 10, 6, 6), dict(output="dense"), "AnySat takes a dict of inputs by name"),
    "modis alone for a map": (anysat_inputs(["modis"]), dict(output="dense"), "modis goes with others only"),
    "unknown": (bad(planet=ZEROS(2, 1)), {}, r"unknown input 'planet'. Known: aerial, aerial-flair, alos, "),
    "another mark": (bad(aerial_flair=ZEROS(2, 1)), {}, r"unknown input 'aerial_flair'. Did you mean 'aerial-flair'"),
    "one letter less": (bad(s2_date=ZEROS(2, 1)), {}, r"unknown input 's2_date'. Did you mean 's2_dates'"),
    "another case": (bad(S2=ZEROS(2, 1)), {}, r"unknown input 'S2'. Did you mean 's2'\?"),
    "unknown dates": (bad(s22_dates=ZEROS(2, 3)), {}, r"unknown input 's22_dates'. Did you mean 's2_dates'"),
    "not text": ({3: ZEROS(2, 1)}, {}, r"unknown input 3"),
    "dates of an image": (bad(aerial_dates=ZEROS(2, 3)), {}, "aerial_dates: aerial is a single image"),
    "mask of an image": (bad(aerial_mask=ZEROS(2, 4, 300, 300).bool()), {}, "aerial_mask: aerial is a single image"),
    "dates alone": (bad(s1_dates=ZEROS(2, 3)), {}, "s1_dates is given without s1: give both or none"),
    "no dates": (bad(s2_dates=None), {}, r"s2 is a time series: give s2_dates too, \(2, 3\) days of the year"),
    "shape of dates": (
        bad(s2_dates=torch.ones(3)), {}, r"s2_dates has the shape \(3,\), expected \(2, 3\): a day for each date"
    ),
    "number of dates": (bad(s2_dates=[["2020-01-01"] * 4] * 2), {}, r"s2_dates has the shape \(2, 4\), expected"),
    "no date": (bad(s2_dates=[["2020-01-01", "yesterday", "2020-01-03"]] * 2), {}, "'yesterday' is no date"),
    "dates with NaN": (bad(s2_dates=torch.full((2, 3), float("nan"))), {}, "the dates hold NaN"),
    "no tensor": (bad(aerial=np.zeros((2, 4, 300, 300))), {}, r"aerial is ndarray, expected a tensor \(B, 4, H, W\)"),
    "a series without dates' axis": (bad(s2=ZEROS(2, 10, 6, 6)), {}, r"s2 has the shape .* \(B, T, 10, H, W\)"),
    "an image with dates' axis": (bad(aerial=ZEROS(2, 1, 4, 300, 300)), {}, r"aerial has the shape .* \(B, 4, H, W\)"),
    "channels": (bad(s2=ZEROS(2, 3, 12, 6, 6)), {}, r"s2 has 12 channels, expected 10: B02, B03, "),
    "channels of aerial": (bad(aerial=ZEROS(2, 3, 300, 300)), {}, r"aerial has 3 channels, expected 4: NIR, R, G, B"),
    "not square": (bad(s2=ZEROS(2, 3, 10, 6, 8)), {}, "s2 is 6 x 8 pixels, expected a square image"),
    "no pixels": (bad(s2=ZEROS(2, 3, 10, 0, 0)), {}, "s2 is empty"),
    "no dates at all": (bad(s2=ZEROS(2, 0, 10, 6, 6)), {}, "s2 is empty"),
    "integers": (bad(aerial=ZEROS(2, 4, 300, 300).byte()), {}, "aerial holds torch.uint8, expected floats: normalise"),
    "double": (bad(aerial=ZEROS(2, 4, 300, 300).double()), {}, "holds torch.float64, the model torch.float32: convert"),
    "modis in pixels": (
        bad(modis=ZEROS(2, 3, 7, 6, 6), modis_dates=torch.ones(2, 3)), {},
        "modis is 6 x 6 pixels, expected 1 x 1: one pixel covers the tile",
    ),
    "modis alone": (anysat_inputs(["modis"]), {}, "modis goes with others only.*give at least one more input"),
    "samples": (bad(aerial=ZEROS(3, 4, 300, 300)), {}, "different numbers of samples: aerial 3, s2 2"),
    "extents": (
        bad(aerial=ZEROS(2, 4, 304, 304)), {},
        r"different extents: aerial 60\.8 m \(304 pixels of 0\.2 m\), s2 60 m \(6 pixels of 10 m\); crop",
    ),
    "kind of mask": (bad(s2_mask=torch.ones(2, 3, 10, 6, 6)), {}, "s2_mask holds torch.float32, expected a bool"),
    "no mask tensor": (bad(s2_mask=[True]), {}, "s2_mask holds list, expected a bool tensor"),
    "shape of mask": (bad(s2_mask=torch.ones(2, 3, 6, 6).bool()), {}, r"s2_mask has the shape .*\(2, 3, 10, 6, 6\)"),
    "NaN in an image": (bad(aerial=ZEROS(2, 4, 300, 300).log()), {}, "aerial holds 720000 values.* give 0 there"),
    "infinite": (bad(s2=ZEROS(2, 3, 10, 6, 6).log(), s2_mask=None), {}, "s2 holds 2160 values that are not finite"),
    "no multiple of 10": (
        bad(), dict(patch_size=15), r"patch size of 15 m does not fit: expected a multiple of 10 m that divides the "
        r"extent of 60 m: 10, 20, 30, 60"
    ),
    "no divisor": (bad(), dict(patch_size=40), "patch size of 40 m does not fit"),
    "zero": (bad(), dict(patch_size=0), "patch size of 0 m does not fit"),
    "scale": (bad(), dict(scale=4), "patch size of 40 m does not fit"),
    "not for 30 m": (
        anysat_inputs(["s2", "l7"]), dict(patch_size=20),
        r"20 m does not fit: expected a multiple of 30 m \(with l7, whose pixels are 30 m\).*: 30, 60",
    ),
    "text for a patch size": (bad(), dict(patch_size="20"), "patch_size is '20', expected a number of metres"),
    "extent": (
        {"s2": ZEROS(1, 1, 10, 5, 5), "s2_dates": torch.ones(1, 1), "aerial": ZEROS(1, 4, 255, 255)}, {},
        r"aerial 51 m",
    ),
    "pixels left over": ({"spot": ZEROS(1, 3, 64, 64)}, {}, "64 m, expected a multiple of 10 m: crop them to 60 m"),
    "too small": ({"spot": ZEROS(1, 3, 8, 8)}, {}, "cover 8 m, expected a multiple of 10 m: give at least 10 m"),
    "output": (bad(), dict(output="pixel"), "output is 'pixel', expected one of tile, patch, dense, all"),
    "modality": (
        bad(), dict(output="dense", output_modality="s1"),
        "output_modality is 's1', expected one of the inputs that have a map: aerial, s2",
    ),
    "modality of modis": (
        anysat_inputs(["s2", "modis"]), dict(output="dense", output_modality="modis"), "output_modality is 'modis'"
    ),
    "order": (bad(), dict(output="dense", order="plain"), "order is 'plain', expected one of image, released"),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize(("data", "call", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_bad_input_is_one_sentence(model, data, call, message):
    with pytest.raises(InputError, match=message) as caught:
        model(data, **call)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


class TestHub:
    def load(self, name, **kwargs):
        return torch.hub.load(str(ROOT), name, source="local", **kwargs)

    def test_the_calls_of_the_original_documentation(self, tmp_path, monkeypatch, caplog):
        """Its snippets, but for the repository's name; the weights of tiny stand for those of base."""
        caplog.set_level(logging.INFO)
        anysat._say_flash.cache_clear()
        path = save(official("tiny"), tmp_path / "AnySat.pth")
        model = self.load("anysat", pretrained=True, flash_attn=False, device="cpu", model_size="tiny", weights=path)
        from hubconf import AnySat

        other = AnySat.from_pretrained("tiny", flash_attn=False, device="cpu", weights=path)
        assert caplog.text.count("flash_attn is ignored") == 1
        data = anysat_inputs(["aerial", "spot", "s2"], batch=1, dates=12, masks=False)
        with torch.no_grad():
            assert model(data, patch_size=10, output="tile").shape == (1, 256)
            assert model(data, patch_size=10, output="patch").shape == (1, 6, 6, 256)
            assert model(data, patch_size=20).shape == (1, 3, 3, 256)  # patch, where nothing else is said
            assert model(data, patch_size=20, output="dense", output_modality="aerial").shape == (1, 30, 30, 512)
            assert model(data, patch_size=20, output="dense", output_modality="s2").shape == (1, 6, 6, 512)
            assert model(data, scale=2).shape == (1, 3, 3, 256)
            assert torch.equal(model(data, 20), other(data, 20))
        assert not model.training and not other.training

    def test_random_ones(self):
        from hubconf import AnySat

        assert AnySat("tiny", flash_attn=True).weights_origin is None
        assert self.load("anysat", pretrained=False, model_size="tiny").output == "patch"
        assert self.load("anysat_tiny", pretrained=False, flash_attn=False, device="cpu").output == "tile"

    def test_what_is_not_there(self):
        from hubconf import AnySat

        with pytest.raises(InputError, match="no weights are published for anysat_small"):
            AnySat.from_pretrained("small")
        with pytest.raises(InputError, match="unknown model 'anysat_huge'"):
            self.load("anysat", model_size="huge")

    def test_help(self):
        import hubconf

        assert 'output="patch"' in hubconf.anysat.__doc__ and 'output="tile"' in hubconf.anysat.__doc__
        assert "none are published" in hubconf.anysat_tiny.__doc__ and "s1-asc" in hubconf.anysat_tiny.__doc__
