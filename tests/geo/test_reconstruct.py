from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eo_zoo.errors import InputError, WeightsError
from eo_zoo.geo.domains import open_domains
from eo_zoo.geo.job import Log
from eo_zoo.geo.panels import GAP, HEAD, LABELS, LAND_COVER, SIDE, Row, draw
from eo_zoo.geo.reconstruct import Reconstruction, reconstruct_raster
from eo_zoo.models.multimae import MultiMae
from eo_zoo.models.multimae_domains import DOMAINS
from eo_zoo.train.multimae import MultiMaePretraining, sample_visible
from tests.geo.rasters import ORIGIN, s2_folder, smooth, write_raster
from tests.models.multimae import official, save

SIZE, PATCHES = 56, 49


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> dict[str, Any]:
    """80 x 80 pixels of 10 m; elevation is not known in the upper left, and the land cover's left is forest."""
    folder = tmp_path_factory.mktemp("place")
    dem = smooth(20, 40, 40, 100, 900).astype(np.float32)
    dem[:12, :12] = -9999
    codes = np.full((80, 80), 10, np.uint8)
    codes[:, 40:] = 80
    return {
        "s2": s2_folder(folder / "s2", size=800),
        "dem": write_raster(folder / "dem.tif", dem, pixel=20, nodata=-9999),
        "worldcover": write_raster(folder / "worldcover.tif", codes),
    }


@pytest.fixture(scope="module")
def model() -> MultiMaePretraining:
    torch.manual_seed(0)
    encoder = MultiMae(embed_dim=64, depth=2, num_heads=4, drop_path_rate=0.9)  # random if it is not in eval mode
    return MultiMaePretraining(encoder, decoder_dim=32, decoder_depth=1, decoder_heads=8).eval()


@pytest.fixture
def run(place, model, tmp_path):
    def call(sources: Any = place, model: Any = model, **options: Any) -> Reconstruction:
        sources = {sources: place[sources]} if isinstance(sources, str) else sources
        return reconstruct_raster(sources, model, tmp_path / "out.png", overwrite=True, **options)

    return call


def panel(path: Path, row: int, column: int) -> np.ndarray:
    """One picture, (SIDE, SIDE, 3)."""
    top, left = HEAD + row * (SIDE + GAP), LABELS + column * (SIDE + GAP)
    with Image.open(path) as page:
        return np.asarray(page)[top : top + SIDE, left : left + SIDE]


def enlarged(picture: np.ndarray) -> np.ndarray:
    return picture.repeat(SIDE // SIZE, 0).repeat(SIDE // SIZE, 1)


# red, green and blue of each domain
MIXED = {
    "rgb": lambda x: x,
    "ired": lambda x: x[[2, 1, 0]],
    "sired": lambda x: torch.stack([x[1], x.mean(0), x[0]]),
    "ebands": lambda x: torch.stack([x[0], x.mean(0), x[1]]),
}


def colours(x: torch.Tensor, like: torch.Tensor) -> np.ndarray:
    """Bytes (rows, columns, 3), each channel between the percentiles of ``like``."""
    values, reference = x.double().numpy(), like.double().numpy()
    low, high = (np.percentile(reference, share, axis=(1, 2), keepdims=True) for share in (2, 98))
    return np.round(255 * ((values - low) / (high - low)).clip(0, 1)).astype(np.uint8).transpose(1, 2, 0)


def window(place: dict[str, Any], row: int, col: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    with open_domains(place, Log(lambda *told: None)) as stack:
        pixels = stack.window(row, col, SIZE)
        return pixels.tiles(), pixels.masks()


class TestNumbers:
    def test_losses_are_those_of_pretraining(self, run, place, model):
        result = run(visible=60, seed=5)
        data, masks = window(place, 12, 12)
        generator = torch.Generator().manual_seed(5)
        visible = sample_visible(dict.fromkeys(data, PATCHES), 1, 60, generator=generator)
        with torch.no_grad():
            expected = model(data | masks, visible=visible)
        assert list(result.domains) == list(DOMAINS)
        for name, own in result.domains.items():
            assert own.given and own.patches == PATCHES and own.visible == visible[name].sum()
            assert own.loss == pytest.approx(expected.losses[name].item(), rel=1e-6)
            torch.testing.assert_close(result.predictions[name], expected.predictions[name][0])
        assert sum(own.visible for own in result.domains.values()) == 60
        assert result.domains["rgb"].norm_loss == pytest.approx(expected.losses["norm_rgb"].item(), rel=1e-6)
        assert result.domains["depth"].norm_loss is None

    def test_psnr_and_accuracy_are_of_what_is_hidden_and_known(self, run, place):
        result = run(visible=150, row=0, col=0)
        data, masks = window(place, 0, 0)
        visible = sample_visible(dict.fromkeys(data, PATCHES), 1, 150, generator=torch.Generator().manual_seed(0))
        known = masks["depth_mask"][0, 0].numpy()
        assert not known.all()
        hidden = ~visible["depth"][0].view(7, 7).numpy().repeat(8, 0).repeat(8, 1)
        truth, made = data["depth"][0, 0].double().numpy(), result.predictions["depth"][0].double().numpy()
        peak = truth[known].max() - truth[known].min()
        psnr = 10 * math.log10(peak**2 / ((truth - made)[hidden & known] ** 2).mean())
        assert result.domains["depth"].psnr == pytest.approx(psnr, rel=1e-5)
        assert result.domains["depth"].accuracy is None
        hidden = ~visible["semseg"][0].view(7, 7).numpy().repeat(2, 0).repeat(2, 1)
        right = result.predictions["semseg"].argmax(0).numpy() == data["semseg"][0].numpy()
        assert result.domains["semseg"].accuracy == pytest.approx(right[hidden].mean())
        assert result.domains["semseg"].psnr is None
        assert result.nodata == pytest.approx(1 - np.concatenate([m.numpy().ravel() for m in masks.values()]).mean())

    def test_the_peak_is_of_what_is_known(self, run, tmp_path):
        """Missing values, which are 0 for the model, are far from the others here."""
        values = 20_000 + np.random.default_rng(0).integers(0, 1000, (3, 80, 80)).astype(np.uint16)
        values[:, :20, :20] = 0
        bands = write_raster(tmp_path / "rgb.tif", values, nodata=0, descriptions=["B04", "B03", "B02"])
        result = run({"s2": bands}, row=0, col=0, visible=1.0)
        with open_domains({"s2": bands}, Log(lambda *told: None)) as stack:
            truth = stack.window(0, 0, SIZE).tiles()["rgb"][0]
        assert result.domains["rgb"].psnr is None  # all 49 patches are visible
        result = run({"s2": bands}, row=0, col=0)
        assert result.domains["rgb"].visible == 8  # a sixth
        known = truth[truth != 0]
        error = result.domains["rgb"].loss
        psnr = 10 * math.log10((known.max() - known.min()) ** 2 / error)
        assert result.domains["rgb"].psnr == pytest.approx(psnr, rel=1e-3)

    def test_nothing_hidden_tells_nothing(self, run):
        result = run("s2", visible=1.0)
        assert [own.visible for own in result.domains.values()] == [PATCHES] * 4 + [0] * 2
        assert all(own.loss is own.psnr is own.accuracy is own.norm_loss is None for own in result.domains.values())

    @pytest.mark.parametrize(
        ("options", "shown"),
        [
            ({"given": ["depth", "rgb"]}, ["rgb", "depth"]),
            ({"hide": ["semseg"]}, ["rgb", "ired", "sired", "ebands", "depth"]),
            ({"given": ["semseg"], "visible": 3}, ["semseg"]),
        ],
    )
    def test_domains_that_are_not_given_are_judged(self, run, options, shown):
        result = run(**options)
        assert [name for name, own in result.domains.items() if own.given] == shown
        for name, own in result.domains.items():
            assert own.loss is not None, name  # all have a truth
            assert own.given or own.visible == 0

    def test_a_domain_that_is_not_given_is_not_looked_at(self, run, place, tmp_path):
        other = write_raster(tmp_path / "other.tif", smooth(33, 40, 40, 0, 2000).astype(np.float32), pixel=20)
        first, second = run(hide=["depth"]), run(place | {"dem": other}, hide=["depth"])
        assert first.domains["depth"].loss != second.domains["depth"].loss
        assert all(torch.equal(first.predictions[name], second.predictions[name]) for name in first.predictions)

    def test_seed(self, run):
        first, again, other = run(), run(), run(seed=1)
        assert first.domains == again.domains != other.domains

    def test_a_share_is_one_of_the_given_domains(self, run):
        assert sum(own.visible for own in run(visible=0.25).domains.values()) == round(0.25 * 6 * PATCHES)
        assert run(given=["rgb"], visible=0.001).domains["rgb"].visible == 1

    def test_nodata_is_in_no_number(self, run, place, tmp_path):
        empty = write_raster(tmp_path / "empty.tif", np.full((40, 40), -9999, np.float32), pixel=20, nodata=-9999)
        own = run(place | {"dem": empty}).domains["depth"]
        assert own.given and own.loss is own.psnr is None


class TestResult:
    def test_window(self, run, place):
        middle, moved = run(), run(row=3, col=24)
        assert (middle.row, middle.col, moved.row, moved.col, moved.size) == (12, 12, 3, 24, SIZE)
        assert (moved.transform.c, moved.transform.f) == (ORIGIN[0] + 24 * 10, ORIGIN[1] - 3 * 10)
        data, _ = window(place, 3, 24)
        np.testing.assert_array_equal(panel(moved.path, 0, 3), enlarged(colours(data["rgb"][0], data["rgb"][0])))
        left, bottom = ORIGIN[0] + 10 * 10, ORIGIN[1] - 60 * 10
        part = run(bbox=(left, bottom, left + 600, bottom + 600))
        assert (part.row, part.col, part.transform.c) == (2, 2, left + 20)

    def test_plain_values(self, run):
        facts = json.loads(json.dumps(run("s2").to_dict()))
        assert facts["path"].endswith("out.png") and facts["crs"] == "EPSG:32632" and facts["seed"] == 0
        assert facts["model"] == "MultiMae" and facts["weights"] == "unknown: the module was given"
        assert facts["domains"]["rgb"].keys() == {"given", "visible", "patches", "loss", "norm_loss", "psnr"}
        assert facts["domains"]["semseg"] == {"given": False, "visible": 0, "patches": PATCHES}

    def test_summary(self, run):
        lines = run("s2").summary().splitlines()
        assert (
            lines[0].startswith("rgb: ")
            and "of 49 patches visible, loss " in lines[0]
            and lines[5] == "semseg: not given"
        )
        assert "out.png: 56 x 56 pixels" in lines[6]

    def test_the_module_stays_as_it_is(self, run, model):
        model.train()
        try:
            first = run("s2")
            assert model.training and not any(p.grad is not None for p in model.parameters())
        finally:
            model.eval()
        assert first.domains == run("s2").domains

    def test_a_failed_picture_leaves_the_old_one(self, run, tmp_path, monkeypatch):
        (tmp_path / "out.png").write_bytes(b"old")

        def broken(page: Image.Image, path: Path, **options: Any) -> None:
            path.write_bytes(b"half")
            raise OSError("full")

        monkeypatch.setattr(Image.Image, "save", broken)
        with pytest.raises(OSError, match="full"):
            run("s2")
        assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
        assert (tmp_path / "out.png").read_bytes() == b"old"


class TestPicture:
    """Hidden is hatched, visible is as given, and all columns have the truth's colours."""

    def test_columns(self, run, place):
        result = run(visible=100, seed=2)
        data, _ = window(place, 12, 12)
        seen = sample_visible(dict.fromkeys(data, PATCHES), 1, 100, generator=torch.Generator().manual_seed(2))
        for row, name in enumerate(("rgb", "ired", "sired", "ebands")):
            given, masked, made, truth = (panel(result.path, row, column) for column in range(4))
            visible = seen[name][0].view(7, 7).numpy().repeat(SIDE // 7, 0).repeat(SIDE // 7, 1)
            assert visible.any() and not visible.all()
            np.testing.assert_array_equal(given, truth)
            np.testing.assert_array_equal(masked[visible], truth[visible])
            np.testing.assert_array_equal(made[visible], truth[visible])
            assert {tuple(pixel) for pixel in masked[~visible]} == {(190,) * 3, (228,) * 3}
            shown, guess = MIXED[name](data[name][0]), MIXED[name](result.predictions[name])
            np.testing.assert_array_equal(truth, enlarged(colours(shown, shown)))
            np.testing.assert_array_equal(made[~visible], enlarged(colours(guess, shown))[~visible])

    def test_land_cover_has_its_own_colours(self, run):
        result = run(given=["rgb"])
        truth = panel(result.path, 5, 3)
        assert {tuple(pixel) for pixel in truth.reshape(-1, 3)} == {(0, 100, 0), (0, 100, 200)}
        assert (truth[:, 0] == (0, 100, 0)).all()  # forest in the west
        found = {tuple(pixel) for pixel in panel(result.path, 5, 2).reshape(-1, 3)}
        assert found == {LAND_COVER[one][1] for one in result.predictions["semseg"].argmax(0).unique()}

    def test_what_no_raster_holds(self, run):
        result = run("s2")
        for row in (4, 5):
            given, masked, made, truth = (panel(result.path, row, column) for column in range(4))
            assert given.min() < 20  # "not given" is written on it
            assert {tuple(pixel) for pixel in masked.reshape(-1, 3)} == {(190,) * 3, (228,) * 3}
            assert len(np.unique(made.reshape(-1, 3), axis=0)) > 1 and (truth[10:40, 10:40] == 255).all()

    def test_unknown_is_white(self, run):
        result = run(row=0, col=0)
        assert (panel(result.path, 4, 3)[:8, :8] == 255).all() and (panel(result.path, 4, 0)[:8, :8] == 255).all()
        assert (panel(result.path, 4, 3)[-8:, -8:] != 255).any()

    def test_elevation_rises_from_dark_to_bright(self, tmp_path):
        heights = np.arange(64.0).reshape(1, 8, 8)
        draw(tmp_path / "a.png", [Row("depth", heights, heights, np.ones((1, 1), bool))])
        light = panel(tmp_path / "a.png", 0, 3)[::28, ::28].mean(-1).ravel()
        assert (np.diff(light[2:-2]) > 0).mean() > 0.9 and light[0] < 90 < 150 < light[-1]

    def test_any_classes(self, tmp_path):
        labels = np.array([[0, 1], [1, 0]])
        draw(tmp_path / "a.png", [Row("semseg", labels, labels, None)], [("one", (1, 2, 3)), ("two", (4, 5, 6))])
        assert panel(tmp_path / "a.png", 0, 3)[0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"given": ["rbg"]}, "given has 'rbg', but the inputs hold rgb, ired, sired, ebands, depth, semseg"),
        ({"given": ["rgb"], "hide": ["depth"]}, "given and hide say the same in two ways"),
        ({"hide": list(DOMAINS)}, "no domain is left to be shown"),
        ({"given": []}, "no domain is left to be shown"),
        ({"visible": 0}, "visible is 0, expected 1 to 294, the number of tokens of rgb"),
        ({"visible": 50, "given": ["rgb"]}, "visible is 50, expected 1 to 49, the number of tokens of rgb"),
        ({"visible": 1.5}, "visible is 1.5, expected a share"),
        ({"visible": math.nan}, "visible is nan, expected a share"),
        ({"seed": -1}, "seed is -1, expected a whole number"),
        ({"row": 25}, "row is 25, expected 0 to 24"),
        ({"col": -1}, "col is -1, expected 0 to 24"),
        ({"resolution": 20}, "the inputs share 40 x 40 pixels of 20 m, fewer than the 56 x 56"),
        ({"model": "smarties_vit_nano"}, "smarties_vit_nano reconstructs nothing: take multimae_eo_base"),
        ({"weights": "x.pth"}, "weights belong to a model's name"),
        ({"stats": "nothing"}, "nothing"),
    ],
)
def test_bad_input(run, tmp_path, options, sentence):
    with pytest.raises(InputError, match=sentence) as raised:
        run(**options)
    assert "\n" not in str(raised.value) and not list(tmp_path.glob("*.png"))


def test_an_encoder_or_one_input_are_not_enough(run, place, model):
    with pytest.raises(InputError, match="MultiMae reconstructs nothing: take multimae_eo_base, or a MultiMaePretr"):
        run(model=model.encoder)
    with pytest.raises(InputError, match="the inputs are given by name: --input s2=INPUT"):
        run([place["s2"]])


def test_outputs_are_checked(place, model, tmp_path):
    with pytest.raises(InputError, match=r"expected a name that ends in \.png"):
        reconstruct_raster(place, model, tmp_path / "out.tif")
    (tmp_path / "there.png").touch()
    with pytest.raises(InputError, match="exists; choose another name"):
        reconstruct_raster(place, model, tmp_path / "there.png")


def test_all_nodata(run, tmp_path):
    empty = write_raster(tmp_path / "empty.tif", np.full((80, 80), -9999, np.float32), nodata=-9999)
    with pytest.raises(InputError, match="the window is all nodata"):
        run({"dem": empty})


class TestWeights:
    def test_an_encoder_alone_is_one_sentence(self, run, tmp_path):
        path = save(official("tiny", "encoder"), tmp_path / "encoder.pth")
        with pytest.raises(WeightsError, match="holds an encoder only"):
            run(model="multimae_eo_base", weights=path)

    def test_weights_are_there_or_nothing_is(self, run, tmp_path, monkeypatch):
        """No random weights by accident."""
        monkeypatch.setenv("EO_ZOO_OFFLINE", "1")
        with pytest.raises(Exception, match="EO_ZOO_OFFLINE"):
            run(model="multimae_eo_base")
        with pytest.raises(InputError, match="no weights"):
            run(model="multimae_eo_large")
        assert not list(tmp_path.glob("*.png"))
