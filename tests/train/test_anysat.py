from __future__ import annotations

import json
import math
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from eo_zoo import weights
from eo_zoo.errors import InputError, WeightsError
from eo_zoo.train.anysat import AnySatPretraining, contrastive_loss, sample_masks
from tests.procedural import PARITY, manifest, uniform, weight

EXPECTED = json.loads((PARITY / "anysat.pretraining.json").read_text())
TILE = Path(__file__).parents[1] / "data" / "treesatai"
TREES = {"aerial": (2, 4, 300, 300), "s2": (2, 5, 10, 6, 6), "s1-asc": (2, 5, 2, 6, 6)}
PLANTED = {
    "s2": (2, 5, 10, 12, 12), "s1": (2, 4, 3, 12, 12), "l7": (2, 4, 6, 4, 4), "alos": (2, 3, 3, 4, 4),
    "modis": (2, 6, 7, 1, 1),
}  # fmt: skip


def batch_of(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    data = {}
    for name, shape in shapes.items():
        data[name] = uniform(f"jepa/{name}", shape)
        if len(shape) == 5:
            days = (uniform(f"jepa/{name}_dates", shape[:2]) / 3**0.5 + 1) / 2 * 365
            data[f"{name}_dates"] = days.long().sort(dim=1).values
    return data


def randomness(patches: int, inputs: int, visible: int, each: int) -> dict[str, Tensor]:
    """What the expected numbers were made with: everything drawn from names."""
    order = uniform("jepa/patches", (2, patches)).argsort(dim=1)
    starts = range(visible, visible + 4 * each, each)
    return {
        "visible": order[:, :visible].sort(dim=1).values,
        "targets": torch.stack([order[:, start : start + each].sort(dim=1).values for start in starts]),
        "keep": ((uniform("jepa/keep", (2, visible)) / 3**0.5 + 1) / 2 * inputs).long(),
        "noise": (uniform("jepa/noise", (2, inputs * visible)) / 3**0.5 + 1) / 2,
    }


def forged() -> dict[str, Tensor]:
    """A whole state with the official names; the teacher's tensors are drawn from names without a prefix."""
    state = {key: weight(key, shape) for key, shape, _ in manifest("anysat_tiny_pretraining")}
    names = {key.removeprefix("encoder."): tensor.shape for key, tensor in state.items() if key.startswith("encoder.")}
    return state | {f"target_encoder.{name}": weight(name, shape) for name, shape in names.items()}


def planted() -> dict[str, Tensor]:
    """The same of a model for PLANTED, whose names no manifest lists: those of s2 and s1-asc, with other channels."""
    state = forged()
    projectors = {k: t.shape for k, t in state.items() if "projector_" in k}
    state = {k: t for k, t in state.items() if k not in projectors or "projector_s2" in k}
    for name, channels in (("s1", 3), ("l7", 6), ("alos", 3), ("modis", 7)):
        for key, shape in projectors.items():
            if "projector_s1-asc" in key:
                if key.endswith("inconv.0.weight"):
                    shape = (shape[0], channels)
                key = key.replace("s1-asc", name)
                state[key] = weight(key.removeprefix("target_encoder."), shape)
    return state


def tiny(inputs: dict[str, object], **kwargs: object) -> AnySatPretraining:
    encoder = timm.create_model("anysat_tiny", inputs=tuple(inputs))
    return AnySatPretraining(encoder, predictor_depth=2, date_drop=0, **kwargs).eval()


def nano(**kwargs: object) -> AnySatPretraining:
    torch.manual_seed(0)
    return AnySatPretraining(timm.create_model("anysat_nano"), **kwargs)


def small(**extra: Tensor) -> dict[str, Tensor]:
    """Two tiles of 40 m."""
    return batch_of({"spot": (2, 3, 40, 40), "s2": (2, 4, 10, 4, 4), "s1": (2, 3, 3, 4, 4)}) | extra


# ---- the original's numbers ----


@torch.no_grad()
def test_losses_agree(tmp_path):
    torch.save({"state_dict": forged()}, tmp_path / "AnySat_full.pth")
    model = tiny(TREES)
    model.load_official(weights.read(tmp_path / "AnySat_full.pth"))
    output = model(batch_of(TREES), EXPECTED["patch_size_m"], **randomness(36, 3, 18, 4))
    assert output.parts["prediction"].item() == pytest.approx(EXPECTED["prediction_loss"], rel=1e-5)
    assert output.parts["contrastive"].item() == pytest.approx(EXPECTED["contrastive_loss"], rel=1e-5)
    assert output.loss.item() == pytest.approx(EXPECTED["prediction_loss"] + EXPECTED["contrastive_loss"], rel=1e-5)
    assert output.predicted.abs().mean().item() == pytest.approx(EXPECTED["predicted_mean_abs"], rel=1e-5)
    assert output.target.abs().mean().item() == pytest.approx(EXPECTED["target_mean_abs"], rel=1e-5)
    assert list(output.predicted.flatten(0, 1).shape) == EXPECTED["predicted_shape"]


# Made with the public code's training-mode forward on the same names: what its indices give, without and with modis.
RELEASED = {"trees": (0.7297611236572266, 7.241540431976318), "planted": (0.7279032468795776, 4.878398418426514)}


@pytest.mark.parametrize("case", RELEASED)
@torch.no_grad()
def test_released_indices_agree(case):
    if case == "trees":
        shapes, state, given, patch_size = TREES, forged(), randomness(36, 3, 18, 4), 10
    else:
        shapes, state, given, patch_size = PLANTED, planted(), randomness(16, 4, 7, 2), 30
    outputs = []
    for released in (True, False):
        model = tiny(shapes, released_indices=released)
        model.load_official(state)
        outputs.append(model(batch_of(shapes), patch_size, **given))
    prediction, contrastive = RELEASED[case]
    assert outputs[0].parts["prediction"].item() == pytest.approx(prediction, rel=1e-5)
    assert outputs[0].parts["contrastive"].item() == pytest.approx(contrastive, rel=1e-5)
    # the switch changes the student's context and nothing else
    assert outputs[1].parts["prediction"].item() != pytest.approx(prediction, rel=1e-4)
    assert torch.equal(outputs[0].target, outputs[1].target)
    assert torch.equal(outputs[0].parts["contrastive"], outputs[1].parts["contrastive"])


def test_defaults_are_the_published_sizes():
    assert nano().predictor.mask_token.std().item() == pytest.approx(0.02, rel=0.3)
    with torch.device("meta"):
        model = AnySatPretraining(timm.create_model("anysat_base"))
    assert len(model.predictor.blocks) == 4 and model.predictor.blocks[0].attn.num_heads == 16
    assert model.momentum == (0.996, 1.0) and model.modality_drop == model.date_drop == 0.5
    assert not model.released_indices


def test_pretraining_state_is_strict():
    state, model = forged(), tiny(TREES)
    with pytest.raises(WeightsError, match="load an encoder's file into the encoder"):
        model.load_official({k.removeprefix("encoder."): t for k, t in state.items() if k.startswith("encoder.")})
    with pytest.raises(WeightsError, match=r"teacher\.cls_token"):
        model.load_official({k: t for k, t in state.items() if not k.startswith("target_encoder.")})
    with pytest.raises(WeightsError, match=r"predictor\.norm\.bias"):
        model.load_official({k: t for k, t in state.items() if k != "predictor.predictor_norm.bias"})
    with pytest.raises(WeightsError, match=r"strange"):
        model.load_official(state | {"predictor.strange": torch.zeros(1)})
    fewer = tiny({"s2": ..., "aerial": ...})
    fewer.load_official({f"model.{k}" if not k.startswith("target") else k: t for k, t in state.items()})
    assert torch.equal(fewer.teacher.cls_token, state["target_encoder.cls_token"])
    assert torch.equal(fewer.masked_token, state["masked_token"])


# ---- the contrastive term ----


def by_hand(vectors: Tensor, valid: Tensor) -> float:
    inputs, batch, count, _ = vectors.shape
    places = [(m, b, n) for m in range(inputs) for b in range(batch) for n in range(count) if valid[m, b, n]]
    terms = []
    for m, b, n in places:
        scores = {
            other: math.exp(F.cosine_similarity(vectors[m, b, n], vectors[other], dim=0).item() / 0.1)
            for other in places
            if other[:2] != (m, b)
        }
        same = [score for other, score in scores.items() if other[1:] == (b, n)]
        if same:
            terms.append(math.log(sum(scores.values())) - math.log(sum(same)))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("masked", [False, True])
def test_contrastive_loss_by_hand(masked):
    vectors = uniform("contrast", (3, 2, 4, 8))
    valid = torch.ones(3, 2, 4, dtype=torch.bool)
    if masked:
        valid[0, 0, 1] = valid[1, 1, :2] = False
        valid[1:, 0, 3] = False  # patch 3 of the first tile is seen by one input alone
    found = contrastive_loss(vectors, valid)
    assert found.item() == pytest.approx(by_hand(vectors, valid), rel=1e-5)
    if not masked:
        assert torch.equal(contrastive_loss(vectors), found)


def test_contrastive_loss_of_what_has_no_counterpart():
    vectors = uniform("contrast", (2, 1, 4, 8)).requires_grad_()
    assert contrastive_loss(vectors[:1]).item() == 0
    valid = torch.tensor([[[True, True, False, False]], [[True, False, True, False]]])
    loss = contrastive_loss(vectors, valid)
    loss.backward()
    assert loss.item() == pytest.approx(by_hand(vectors.detach(), valid), rel=1e-5)
    assert torch.isfinite(vectors.grad).all()
    assert vectors.grad.flatten(0, 2).abs().sum(1).ne(0).tolist() == [
        True,
        True,
        False,
        False,
        True,
        False,
        True,
        False,
    ]
    nothing = contrastive_loss(vectors, torch.zeros_like(valid))
    nothing.backward()
    assert nothing.item() == 0 and torch.isfinite(vectors.grad).all()


def test_masked_patches_take_no_part_in_the_contrast():
    """A cloud over a whole patch: what lies under it changes neither loss nor anything else."""
    model = nano(date_drop=0).eval()
    mask = torch.ones(2, 4, 1, 4, 4, dtype=torch.bool)
    mask[0, :, :, 2:, :2] = False  # patch 2 of the first tile

    def loss(data):
        return model(data, 20, generator=torch.Generator().manual_seed(0))

    data = small(s2_mask=mask)
    one, two = loss(data), loss(data | {"s2": torch.where(mask, data["s2"], 7.0)})
    assert torch.equal(one.loss, two.loss)
    vectors = {name: model.encoder.encode_patches(name, data, 20, 2).view(2, 4, -1) for name in ("spot", "s2", "s1")}
    valid = torch.ones(3, 2, 4, dtype=torch.bool)
    valid[1, 0, 2] = False
    expected = contrastive_loss(torch.stack(list(vectors.values())), valid)
    assert torch.equal(one.parts["contrastive"], expected)
    mask[0, 1, 0, 3, 1] = True  # one valid pixel on one date brings it back
    again = loss(data | {"s2_mask": torch.ones_like(mask)}).parts["contrastive"]
    assert not torch.allclose(loss(data).parts["contrastive"], one.parts["contrastive"])
    torch.testing.assert_close(again, loss({k: x for k, x in data.items() if k != "s2_mask"}).parts["contrastive"])


# ---- masks ----


@pytest.mark.parametrize("side", [2, 3, 4, 6, 16])
def test_blocks(side):
    generator = torch.Generator().manual_seed(side)
    shapes = set()
    for _ in range(40):
        visible, targets = sample_masks(3, side, generator=generator)
        assert targets.shape[:2] == (4, 3) and len(visible) == 3 and visible.numel()
        for b in range(3):
            assert len(set(visible[b].tolist())) == visible.shape[1]
            assert torch.equal(visible[b], visible[b].sort().values)
            assert not set(visible[b].tolist()) & set(targets[:, b].flatten().tolist())
            for place in (visible[b] // side, visible[b] % side):  # of a square that does not span the tile
                assert place.max() - place.min() < side - 1
            for block in targets[:, b]:
                rows, columns = (x.unique() for x in (block // side, block % side))
                assert len(block) == len(rows) * len(columns)  # a rectangle
                assert rows[-1] - rows[0] == len(rows) - 1 and columns[-1] - columns[0] == len(columns) - 1
                assert len(rows) < side and len(columns) < side
                shapes.add((len(rows), len(columns)))
    if side == 16:  # where rounding does not matter: from 0.2 to 0.8, from wide to high
        shares = [rows * columns / side**2 for rows, columns in shapes]
        assert 0.15 < min(shares) < 0.3 and 0.65 < max(shares) < 0.85 and len(shapes) > 7
        assert min(shapes)[0] < min(shapes)[1] and max(shapes)[0] > max(shapes)[1]


def test_no_part_of_a_tile_is_seen_more_often():
    """Where a tile has more patches left than another of its batch, any of them are taken."""
    generator = torch.Generator().manual_seed(0)
    drawn = [sample_masks(8, 6, generator=generator)[0].flatten() for _ in range(100)]
    patches = torch.cat(drawn)
    assert (patches // 6).float().mean() == pytest.approx(2.5, abs=0.15)
    assert (patches % 6).float().mean() == pytest.approx(2.5, abs=0.15)


def test_masks_are_reproducible():
    def draw(seed):
        return sample_masks(2, 6, generator=torch.Generator().manual_seed(seed))

    assert all(torch.equal(a, b) for a, b in zip(draw(1), draw(1), strict=True))
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(draw(1), draw(2), strict=True))


# ---- the student ----


def test_the_student_sees_the_visible_patches_alone():
    """What lies in other patches does not reach the prediction, though it reaches the teacher and the contrast."""
    model = nano(date_drop=0).eval()
    given = randomness(16, 3, 6, 2)
    data = small()
    one = model(data, 10, **given)
    hidden = torch.ones(2, 16, dtype=torch.bool).scatter(1, given["visible"], False).view(2, 1, 1, 4, 4)
    two = model(data | {"s2": data["s2"] + 3 * hidden, "s1": data["s1"] - 3 * hidden}, 10, **given)
    assert torch.equal(one.predicted, two.predicted)
    assert not torch.allclose(one.target, two.target)
    assert not torch.allclose(one.parts["contrastive"], two.parts["contrastive"])
    three = model(data | {"s2": data["s2"] + 3 * ~hidden, "s1": data["s1"] - 3 * ~hidden}, 10, **given)
    assert not torch.allclose(one.predicted, three.predicted)


def test_dropped_inputs_are_replaced():
    """Each patch keeps the input that is named, and a share of the others, those with the least noise."""
    given = randomness(16, 3, 6, 2) | {"keep": torch.ones(2, 6, dtype=torch.long)}
    only = nano(date_drop=0, modality_drop=0.999).eval()  # nothing else is left
    data = small()
    other = data | {"s2_dates": data["s2_dates"] + 5, "spot": -data["spot"]}
    one, two = (only(x, 10, **given).predicted for x in (data, other | {"s2": data["s2"]}))
    assert not torch.allclose(one, two)  # s2 is kept
    assert torch.equal(one, only(data | {"spot": -data["spot"], "s1": -data["s1"]}, 10, **given).predicted)
    half = nano(date_drop=0, modality_drop=0.5).eval()
    noise = torch.ones(2, 18)
    noise[:, 12:] = torch.arange(6) / 6  # all six places that are left go to s1
    one = half(data, 10, **given | {"noise": noise}).predicted
    assert torch.equal(one, half(data | {"spot": -data["spot"]}, 10, **given | {"noise": noise}).predicted)
    assert not torch.allclose(one, half(data | {"s1": -data["s1"]}, 10, **given | {"noise": noise}).predicted)


def test_dropped_dates():
    model, given, data = nano().eval(), randomness(16, 3, 6, 2), small()
    dates = {"s2": torch.tensor([[0, 2], [3, 1]]), "s1": torch.tensor([[1], [1]])}
    one = model(data, 10, **given, dates=dates)
    later = data["s2"].clone()
    later[0, 1] += 3
    later[1, 2] += 3
    two = model(data | {"s2": later}, 10, **given, dates=dates)
    assert torch.equal(one.predicted, two.predicted) and not torch.allclose(one.target, two.target)
    later[0, 0] += 3
    assert not torch.allclose(model(data | {"s2": later}, 10, **given, dates=dates).predicted, one.predicted)
    # half of them by default, with their masks; one stays where there is one
    calls = []
    encode = model.encoder.encode_patches
    model.encoder.encode_patches = lambda name, seen, *args: calls.append(seen) or encode(name, seen, *args)
    mask = torch.ones(2, 4, 1, 4, 4, dtype=torch.bool)
    model(data | {"s1": data["s1"][:, :1], "s1_dates": [["2020-01-01"], ["2020-05-01"]], "s2_mask": mask}, 10)
    assert calls[0]["s2"].shape == (2, 2, 10, 4, 4) and calls[0]["s2_mask"].shape == (2, 2, 1, 4, 4)
    assert calls[0]["s1"].shape == (2, 1, 3, 4, 4) and calls[0]["s1_dates"].tolist() == [[1], [122]]


def test_randomness_is_drawn_when_not_given():
    model, data = nano().eval(), small()

    def loss(seed):
        return model(data, 10, generator=torch.Generator().manual_seed(seed)).loss

    assert torch.equal(loss(1), loss(1)) and not torch.equal(loss(1), loss(2))
    assert not torch.equal(model(data, 10).loss, model(data, 10).loss)


@pytest.mark.parametrize("patch_size", [10, 20])
def test_several_data_sets_in_turn(patch_size):
    """Other inputs, extents and patch sizes from step to step; all that the batches hold gets a gradient."""
    model = nano()
    batches = [(small(), patch_size), (batch_of(PLANTED), 30), ({"spot": torch.randn(3, 3, 80, 80)}, 20)]
    for data, size in batches:
        output = model(data, size)
        assert torch.isfinite(output.loss) and output.predicted.shape == output.target.shape
        assert (output.parts["contrastive"] == 0) == (len(data) == 1)
        output.loss.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    unseen = (
        "teacher.",
        *(f"encoder.projectors.{name}." for name in ("aerial", "aerial_flair", "naip", "s1_asc", "l8")),
    )
    pads = {f"encoder.projectors.{name}.pad" for name in ("s2", "s1", "l7", "alos", "modis")}  # nothing is masked
    assert without - pads == {name for name, _ in model.named_parameters() if name.startswith(unseen)}


def test_bfloat16_autocast():
    model, given = nano(date_drop=0).eval(), randomness(16, 3, 6, 2)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(small(), 10, **given)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(model(small(), 10, **given).loss.item(), rel=0.02)


def test_the_contrast_is_exact_under_autocast():
    vectors = uniform("contrast", (3, 2, 4, 128))
    with torch.autocast("cpu", torch.bfloat16):
        found = contrastive_loss(vectors)
    assert torch.equal(found, contrastive_loss(vectors))
    low = vectors.bfloat16()
    assert torch.equal(contrastive_loss(low), contrastive_loss(low.float()))


# ---- the teacher ----


def test_the_teacher_is_an_average_without_gradient():
    model = nano()
    before = {name: tensor.clone() for name, tensor in model.teacher.state_dict().items()}
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(1.0)
    assert model.update_teacher(0, 100) == pytest.approx(0.996)
    assert model.update_teacher(50, 100) == pytest.approx(0.998)
    share = 0.996 * 0.998
    for name, parameter in model.teacher.named_parameters():
        expected = share * before[name] + (1 - share) * (before[name] + 1)
        torch.testing.assert_close(parameter, expected, rtol=1e-4, atol=1e-6)
        assert not parameter.requires_grad
    moved = [parameter.clone() for parameter in model.teacher.parameters()]
    assert model.update_teacher(100, 100) == 1.0
    assert all(torch.equal(a, b) for a, b in zip(moved, model.teacher.parameters(), strict=True))
    model(small(), 10).loss.backward()
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    for step, steps in ((-1, 10), (11, 10), (0, 0)):
        with pytest.raises(InputError, match="step"):
            model.update_teacher(step, steps)


def test_the_teacher_stays_in_evaluation_mode():
    model = nano()
    assert not model.train().teacher.training and model.encoder.training
    assert not model.eval().encoder.training


# ---- training on a real image ----


def tile() -> dict[str, object]:
    """20 m of TreeSatAI: 100 x 100 aerial pixels and 2 x 2 pixels of both series, clouds masked."""
    with rasterio.open(TILE / "aerial.tif") as file:
        aerial = torch.from_numpy(file.read()[:, 2:102, 2:102]).float()
    data: dict[str, object] = {"aerial": (aerial - aerial.mean((1, 2), True)) / aerial.std((1, 2), keepdim=True)}
    with h5py.File(TILE / "series.h5") as file:
        clear = torch.from_numpy(file["sen-2-masks"][:, :2].max(1, keepdims=True)) < 50
        for name, key in (("s2", "sen-2"), ("s1-asc", "sen-1-asc")):
            x = torch.from_numpy(file[f"{key}-data"][:]).float()
            good = x[clear.all(3).all(2)[:, 0]] if name == "s2" else x
            data[name] = (x - good.mean((0, 2, 3), True)) / good.std((0, 2, 3), keepdim=True)
            days = [re.search(r"_(\d{8})T", product.decode())[1] for product in file[f"{key}-products"][:]]
            data[f"{name}_dates"] = [[np.datetime64(f"{day[:4]}-{day[4:6]}-{day[6:]}") for day in days]]
    data["s2_mask"] = clear
    return {name: x[None] if isinstance(x, Tensor) else x for name, x in data.items()}


@pytest.mark.parametrize(
    ("names", "date_drop", "steps", "below"),
    [
        (("aerial", "s2"), 0.0, 40, 0.8),
        pytest.param(("aerial", "s2", "s1-asc"), 0.5, 200, 1.3, marks=pytest.mark.slow),
    ],
)
def test_training_on_a_real_image(names, date_drop, steps, below):
    """Both terms fall, the contrast below what vectors that are all alike would give: patches are told apart."""
    data = {key: x for key, x in tile().items() if key.removesuffix("_dates").removesuffix("_mask") in names}
    model, generator = nano(date_drop=date_drop), torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.05)

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        model.eval()
        parts = model(data, 10, generator=torch.Generator().manual_seed(1)).parts
        model.train()
        return {name: value.item() for name, value in parts.items()}

    before = evaluate()
    for step in range(steps):
        loss = model(data, 10, generator=generator).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        model.update_teacher(step, steps)
    after = evaluate()
    assert after["prediction"] < 0.5 * before["prediction"]
    alike = math.log(4 * (len(names) - 1)) - math.log(len(names) - 1)
    assert after["contrastive"] < min(below, before["contrastive"], alike)


# ---- bad input ----


@pytest.fixture(scope="module")
def untrained() -> AnySatPretraining:
    return nano()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"visible": torch.zeros(3, 6, dtype=torch.long)},
            r"visible: torch.int64 of shape \(3, 6\), expected .* \(2, V\)",
        ),
        ({"visible": torch.zeros(2, 6)}, "visible: torch.float32"),
        ({"visible": torch.full((2, 6), 16)}, "visible: indices from 16 to 16, expected from 0 to 15"),
        ({"targets": torch.zeros(2, 6, dtype=torch.long)}, r"targets: .* expected torch.int64 of shape \(M, 2, K\)"),
        ({"targets": None}, "visible and targets go together"),
        ({"keep": torch.zeros(2, 5, dtype=torch.long)}, r"keep: .*\(2, 5\), expected .*\(2, 6\)"),
        ({"keep": torch.full((2, 6), 3)}, "keep: indices from 3 to 3, expected from 0 to 2"),
        ({"noise": torch.zeros(2, 6)}, r"noise .*\(2, 6\), expected .*\(2, 18\)"),
        ({"dates": {"s2": torch.tensor([[4], [0]])}}, "dates of s2: indices from 0 to 4, expected from 0 to 3"),
        ({"dates": {"spot": torch.tensor([[0], [0]])}}, "dates are given for 'spot', expected .*: s2, s1"),
    ],
)
def test_wrong_randomness(untrained, wrong, message):
    with pytest.raises(InputError, match=message):
        untrained(small(), 10, **{**randomness(16, 3, 6, 2), **wrong})


def test_wrong_models_and_tiles():
    with pytest.raises(InputError, match="num_classes=0"):
        AnySatPretraining(timm.create_model("anysat_nano", num_classes=3))
    with pytest.raises(InputError, match="12 heads, expected a number that divides the width 128"):
        nano(predictor_heads=12)
    for share in (-0.1, 1.0):
        with pytest.raises(InputError, match="modality_drop is"):
            nano(modality_drop=share)
    with pytest.raises(InputError, match="smaller patch size"):
        nano()(small(), 40)
    with pytest.raises(InputError, match="two or more inputs"):
        nano(released_indices=True)({"spot": torch.randn(2, 3, 40, 40)}, 10)
    with pytest.raises(InputError, match="s2_dates"):
        nano()({"s2": torch.randn(2, 3, 10, 4, 4)}, 10)
