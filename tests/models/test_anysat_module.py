"""AnySat as a module: initial weights, timm's conventions, memory, types."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from eo_zoo.errors import InputError
from eo_zoo.models import anysat
from eo_zoo.models.anysat_blocks import PatchEncoder
from eo_zoo.models.anysat_series import SeriesProjector
from tests.models.families import anysat_inputs


def nano(**kwargs: object) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("anysat_nano", **kwargs)


class TestInitialWeights:
    def test_all_are_filled(self):
        """A model made on the meta device has no values but those that init_weights gives it."""
        with torch.device("meta"):
            model = nano(num_classes=3)
        model.to_empty(device="cpu")
        for tensor in model.state_dict().values():
            tensor.fill_(float("nan"))
        model.init_weights()
        assert [name for name, tensor in model.state_dict().items() if tensor.isnan().any()] == []
        norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm | nn.GroupNorm)]
        assert all(norm.weight.eq(1).all() and not norm.bias.any() for norm in norms)

    def test_are_those_of_the_public_code(self):
        model = nano(depth=4)
        stds = {name: parameter.std().item() for name, parameter in model.named_parameters() if parameter.numel() > 1}
        assert stds["cls_token"] == pytest.approx(0.02, rel=0.3)
        assert stds["pool.distance"] == pytest.approx(0.02, rel=0.2)
        assert stds["projectors.s2.query"] == pytest.approx(0.5, rel=0.2)
        assert stds["projectors.s2.key.weight"] == pytest.approx(0.5, rel=0.05)
        for i in range(4):
            block = f"patch_encoder.blocks.{i}"
            assert stds[f"{block}.attn.distance"] == pytest.approx(0.02, rel=0.2)
            assert stds[f"{block}.attn.qkv.weight"] == pytest.approx(0.02, rel=0.05)
            for name in ("attn.proj", "mlp.fc2"):  # smaller block by block
                assert stds[f"{block}.{name}.weight"] == pytest.approx(0.02 / (2 * (i + 1)) ** 0.5, rel=0.05)
        zeros = {name for name, parameter in model.named_parameters() if not parameter.any()}
        assert {"pool.query", "patch_encoder.cls_token", "projectors.s2.pad"} <= zeros

    def test_origin_is_forgotten(self):
        model = nano()
        model.load_state_dict(nano().state_dict())
        assert model.weights_origin is not None
        model.init_weights()
        assert model.weights_origin is None


class TestConventions:
    def test_stochastic_depth_grows_to_the_last_block(self):
        model = nano(drop_path_rate=0.4)
        drops = [getattr(block.drop_path, "drop_prob", 0.0) for block in model.patch_encoder.blocks]
        assert drops == pytest.approx([0.0, 0.4])
        drops = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]
        assert [*drops, model.pool.drop_path.drop_prob] == pytest.approx([0.0, 0.2, 0.4])

    def test_dropout_as_in_training(self):
        projectors = nano().projectors
        rates = {name: part.out_drop.p for name, part in projectors.items() if isinstance(part, SeriesProjector)}
        assert rates.pop("s2") == 0.0 and set(rates.values()) == {0.2}
        assert projectors["s2"].attn_drop.p == 0.1 and projectors["l8"].layers[3].drop.p == 0.2

    def test_dropout_before_the_classifier(self):
        model, features = nano(drop_rate=0.999), torch.ones(1, 37, 128)
        assert not torch.equal(model.forward_head(features), features[:, 0])
        assert torch.equal(model.eval().forward_head(features), features[:, 0])

    def test_a_new_head_is_as_the_model(self):
        model = nano().bfloat16()
        model.reset_classifier(3)
        assert model.head.weight.dtype == torch.bfloat16

    @pytest.mark.parametrize("patch_size", [None, 20])
    def test_features_only(self, patch_size):
        maps = nano(features_only=True, patch_size=patch_size)
        reduction = (patch_size or 10) // 10
        assert maps.feature_info.reduction() == [reduction] * 3
        made = maps(anysat_inputs(["aerial", "s2"]))
        assert [one.shape for one in made] == [(2, 128, 6 // reduction, 6 // reduction)] * 3

    @torch.no_grad()
    def test_intermediates_are_means_over_inputs(self):
        """Of modis, which has no map, they are no part."""
        model, data = nano().eval(), anysat_inputs(["s2", "spot", "modis"])
        seen: list[torch.Tensor] = []
        hook = model.blocks[0].register_forward_hook(lambda block, args, made: seen.append(made))
        maps = model.forward_intermediates(data, intermediates_only=True, patch_size=20)
        hook.remove()
        s2, spot = seen[0][:, 2:11], seen[0][:, 11:]
        assert seen[0].shape[1] == 20
        torch.testing.assert_close(maps[0], ((s2 + spot) / 2).mT.reshape(2, 128, 3, 3))
        lists = model.forward_intermediates(data, intermediates_only=True, patch_size=20, output_fmt="NLC")
        torch.testing.assert_close(lists[0], (s2 + spot) / 2)
        with pytest.raises(TypeError, match="patchsize"):  # and not silently the default
            model.forward_intermediates(data, patchsize=20)

    @torch.no_grad()
    def test_the_mean_of_the_patches(self):
        model, data = nano(global_pool="avg").eval(), anysat_inputs(["s2", "modis"])
        torch.testing.assert_close(model(data), model(data, output="patch").mean(dim=(1, 2)))

    @torch.no_grad()
    def test_tables_of_a_tile_of_one_patch(self, monkeypatch):
        """Its patches' tokens are as many as the class token's, and have a place all the same."""
        model, asked, table = nano().eval(), [], anysat.bucket_table
        monkeypatch.setattr(anysat, "bucket_table", lambda *key: asked.append(key[:3]) or table(*key))
        for names, prefix in ((["s2", "spot"], 1), (["s2", "spot", "modis"], 2)):
            model(anysat_inputs(names), 60)
            assert asked[-1] == (1, prefix, 2)
        assert table(1, 2, 2, torch.device("cpu"), torch.int64).tolist() == [[7] * 4, [7] * 4, [7, 7, 3, 3]]

    def test_layer_decay_and_weight_decay(self):
        model = nano()
        groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5, no_weight_decay_list=[])
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        scale = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
        order = ["projectors.s2.query", "patch_encoder.blocks.0.norm1.weight", "patch_encoder.blocks.1.norm1.weight"]
        order += ["blocks.0.norm1.weight", "blocks.1.norm1.weight", "pool.query"]
        assert [scale[name] for name in order] == sorted(scale[name] for name in order)
        assert len({scale[name] for name in order}) == 6 and scale["pool.query"] == 1
        assert {"projectors.s2.query", "projectors.s2.pad", "pool.query", "cls_token"} <= model.no_weight_decay()

    def test_the_same_numbers_from_copies_in_threads(self):
        model = nano().eval()
        data = anysat_inputs(["s2"])
        assert torch.equal(nn.DataParallel(model)(data), model(data))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", ["s2", "l8"])
def test_series_as_the_paper_writes_it(name, train):
    """Nothing folded together; with dropout in training too."""
    projector = nano(inputs=[name]).train(train).projectors[name]
    for norm in (m for m in projector.modules() if isinstance(m, nn.GroupNorm)):
        nn.init.normal_(norm.weight, 1.0, 0.3)
        nn.init.normal_(norm.bias)
    data = anysat_inputs([name], masks=False, dates=5)
    x, days = data[name], data[f"{name}_dates"]
    with torch.no_grad():
        torch.manual_seed(5)
        found = projector(x, days, memory=2**30)
        torch.manual_seed(5)
        rows = x.permute(0, 3, 4, 1, 2).flatten(0, 2)  # pixels, T, C
        features = projector.layers(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])
        if projector.in_norm is not None:
            features = projector.in_norm(features.mT).mT
        j = torch.arange(8)
        angle = days[..., None] / (366.0 if name == "l8" else 367.0) ** (2 * (j // 2) / 8)
        code = torch.where(j % 2 == 0, angle.sin(), angle.cos()).repeat(1, 1, 16)
        features = features + code.repeat_interleave(36, 0)
        keys = nn.functional.linear(features, projector.key["weight"]).unflatten(-1, (16, 8))
        attention = ((keys * projector.query).sum(-1) / 8**0.5).softmax(dim=1)  # pixels, T, heads
        attention = projector.attn_drop(attention.unflatten(0, (2, 36))).flatten(0, 1)
        pooled = torch.einsum("nth,nthd->nhd", attention, features.unflatten(-1, (16, 8))).flatten(1)
        expected = projector.out_norm(projector.out_drop(projector.out(pooled))).unflatten(0, (2, 36))
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-5)


class TestMemory:
    def pieces_of(self, monkeypatch, **kwargs) -> dict[str, list[int]]:
        """How many patches, and how many pixels of the series, were computed at a time."""
        found: dict[str, list[int]] = {"patches": [], "pixels": []}
        encode, piece = PatchEncoder.forward, SeriesProjector._piece

        def of_patches(self: PatchEncoder, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
            found["patches"].append(len(x))
            return encode(self, x, *args, **kwargs)

        def of_pixels(self: SeriesProjector, rows: torch.Tensor, *args) -> torch.Tensor:
            found["pixels"].append(rows[..., 0, 0].numel())
            return piece(self, rows, *args)

        monkeypatch.setattr(PatchEncoder, "forward", of_patches)
        monkeypatch.setattr(SeriesProjector, "_piece", of_pixels)
        with torch.no_grad():
            nano(**kwargs).eval()(anysat_inputs(["s2"], masks=False, extent=120))
        monkeypatch.undo()
        return found

    def test_little_of_it_makes_small_pieces(self, monkeypatch):
        assert self.pieces_of(monkeypatch) == {"patches": [288], "pixels": [288]}
        rows = 3 * 128 * 4  # bytes of a row of features
        found = self.pieces_of(monkeypatch, memory=60 * rows)
        assert sum(found["patches"]) == sum(found["pixels"]) == 288
        assert max(found["patches"]) <= 30 and max(found["pixels"]) <= 20  # of 2 tokens, of 3 dates

    @pytest.mark.parametrize(("valid", "train", "rows"), [(100, False, 101), (100, True, 216), (212, False, 216)])
    def test_masked_rows_are_computed_once(self, valid, train, rows):
        """Not with dropout, which makes them differ, and not where there are few."""
        model, data, seen = nano(inputs=["l8"]).train(train), anysat_inputs(["l8"]), []
        mask = torch.zeros(216, dtype=torch.bool)
        mask[torch.randperm(216)[:valid]] = True
        model.projectors["l8"].layers.register_forward_pre_hook(lambda layers, args: seen.append(len(args[0])))
        model({**data, "l8_mask": mask.view(2, 3, 1, 6, 6)})
        assert seen == [rows]

    def held(self, *, checkpointing: bool, train: bool = True) -> int:
        """Bytes kept for the backward pass, parameters aside."""
        model = nano(inputs=["s2"]).train(train)
        model.set_grad_checkpointing(checkpointing)
        own, kept = {p.data_ptr() for p in model.parameters()}, {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.data_ptr() not in own:
                kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            made = model(anysat_inputs(["s2"], masks=False))
        return sum(kept.values()) if made.requires_grad else 0

    def test_checkpointing_keeps_a_fraction(self):
        plain = self.held(checkpointing=False)
        assert self.held(checkpointing=True) < plain / 4
        assert self.held(checkpointing=True, train=False) > plain / 2  # not in evaluation mode


class TestTypes:
    @torch.no_grad()
    def test_days_are_not_rounded(self):
        """bfloat16 has no 257: dates stay as they are in a model of that type."""
        low = nano(inputs=["s2"]).eval().bfloat16()
        data = anysat_inputs(["s2"], masks=False)
        data["s2"] = data["s2"].bfloat16()
        one, two = (
            low({**data, "s2_dates": torch.full((2, 3), day)}, output="dense").float() for day in (256.0, 257.0)
        )
        code = low.projectors["s2"]._date_code(torch.tensor([[256.0, 257.0]]))
        assert not torch.equal(one, two) and code.dtype == torch.float32

    @torch.no_grad()
    def test_another_type_under_autocast(self):
        model, data = nano().eval(), anysat_inputs(["s2", "spot"])
        low = {key: x.bfloat16() if x.is_floating_point() else x for key, x in data.items()}
        with torch.autocast("cpu", torch.bfloat16):
            made = model(low).float()
        assert nn.functional.cosine_similarity(made, model(data)).min() > 0.999
        with pytest.raises(InputError, match=r"holds torch\.bfloat16, the model torch\.float32"):
            model(low)

    @torch.no_grad()
    def test_many_dates_in_half_precision(self):
        data = anysat_inputs(["s2"], batch=1, dates=1500, masks=False)
        model = nano(inputs=["s2"]).eval()
        low = copy.deepcopy(model).half()({**data, "s2": data["s2"].half()}).float()
        assert nn.functional.cosine_similarity(low, model(data)).item() > 0.9999

    @torch.no_grad()
    def test_strides_do_not_matter(self):
        model, data = nano().eval(), anysat_inputs(["aerial", "s2"], masks=False)
        turned = {key: x.transpose(-1, -2) if x.ndim > 3 else x for key, x in data.items()}
        dense = model(turned, 20, "dense")
        assert torch.equal(dense, model({key: x.contiguous() for key, x in turned.items()}, 20, "dense"))
        one = {key: x[:1] for key, x in data.items()}
        three = {key: x.expand(3, *x.shape[1:]) for key, x in one.items()}
        torch.testing.assert_close(model(three, 20)[2:], model(one, 20), atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_patch_sizes_of_numpy(self):
        model, data = nano().eval(), anysat_inputs(["s2"])
        for size in (np.int64(20), 20.0, np.float32(20)):
            assert torch.equal(model(data, size, "patch"), model(data, 20, "patch"))

    @torch.no_grad()
    def test_many_patches_compiled(self):
        """The warning is for eager calls: it would break the graph."""
        anysat._warn_many.cache_clear()
        torch._dynamo.reset()
        model = nano(depth=1, inputs=["s2"]).eval()
        data = anysat_inputs(["s2"], batch=1, extent=330, dates=1, masks=False)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(data), model(data), atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_other_shapes_compiled(self):
        torch._dynamo.reset()
        model = nano(depth=1, inputs=["s2"]).eval()
        compiled = torch.compile(model, backend="eager")
        for batch, dates, extent in ((1, 3, 60), (2, 5, 80)):
            data = anysat_inputs(["s2"], batch=batch, dates=dates, extent=extent, masks=False)
            torch.testing.assert_close(compiled(data, 20), model(data, 20), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("inputs", [[], ["modis"]])
def test_a_model_needs_an_input_with_a_map(inputs):
    with pytest.raises(InputError, match=r"inputs are \[.*\], expected one or more of aerial, .*l8$"):
        nano(inputs=inputs)


def test_defaults_of_calls_are_checked_at_construction():
    with pytest.raises(InputError, match="output is 'pixel', expected one of tile, patch, dense, all"):
        nano(output="pixel")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"s2_mask_dates": 1}, "unknown input 's2_mask_dates'"),
        (
            {"s2_mask": torch.ones(1, 3, 10, 6, 6, dtype=torch.bool)},
            r"s2_mask has the shape \(1, 3, 10, 6, 6\), expected",
        ),
        ({"s2_mask": torch.ones(2, 3, 1, 6, 6, dtype=torch.bool, device="meta")}, "s2_mask is on meta, s2 on cpu"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(InputError, match=message):
        nano()(anysat_inputs(["s2"]) | change)


def test_a_tile_as_treesatai_stores_it():
    with pytest.raises(InputError, match=r"cover 60\.8 m, expected a multiple of 10 m: crop them to 60 m"):
        nano()({"aerial": torch.zeros(1, 4, 304, 304)})
