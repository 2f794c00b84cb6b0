"""One contract for every registered model: the smallest of each family quickly, all of them under ``slow``."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import timm
import torch
from torch import nn

from eo_zoo import list_models, registry, weights
from tests.models.families import FAMILIES, family_of, test_every_family_has_a_row  # noqa: F401 - collected here

NAMES = [
    pytest.param(name, marks=[] if name == family_of(name).smallest else pytest.mark.slow, id=name)
    for name in list_models()
]


@pytest.fixture(scope="class", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="class")
def model(name):
    """Random weights, eval mode, shared by the tests of one model: none of them may change it."""
    torch.manual_seed(0)
    return timm.create_model(name).eval()


class TestContract:
    def inputs(self, name, batch=2, sensor=None):
        sensor = sensor or registry.get_record(name).sensors[0]
        return family_of(name).inputs(name, sensor, batch)

    def test_is_an_ordinary_timm_citizen(self, name, model):
        assert name in timm.list_models(module="*") or name in timm.list_models()
        assert model.num_features == model.feature_info[-1]["num_chs"]
        assert isinstance(model.get_classifier(), nn.Module)
        assert model.no_weight_decay() <= {n for n, _ in model.named_parameters()} | {
            "reg_token",
            "dist_token",
        }
        groups = timm.models.group_parameters(model, model.group_matcher())
        assert sorted(name for group in groups.values() for name in group) == sorted(
            n for n, _ in model.named_parameters()
        )

    @torch.no_grad()
    def test_features_and_head(self, name, model):
        x, kwargs = self.inputs(name)
        features = model.forward_features(x, **kwargs)
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (2, model.num_features)
        torch.testing.assert_close(model(x, **kwargs), pooled)
        assert pooled.isfinite().all() and pooled.std() > 0

    @torch.no_grad()
    def test_eval_is_deterministic_and_batch_independent(self, name, model):
        x, kwargs = self.inputs(name, batch=3)
        together = model(x, **kwargs)
        assert torch.equal(together, model(x, **kwargs))
        alone = torch.cat([model(x[i : i + 1], **kwargs) for i in range(3)])
        torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(together[0], together[1], atol=1e-3)

    @torch.no_grad()
    def test_forward_intermediates(self, name, model):
        x, kwargs = self.inputs(name)
        final, maps = model.forward_intermediates(x, **kwargs)
        torch.testing.assert_close(final, model.forward_features(x, **kwargs))
        assert len(maps) == len(model.feature_info)
        for one, made in zip(model.feature_info, maps, strict=True):
            side = x.shape[-1] // one["reduction"]
            assert made.shape == (2, one["num_chs"], side, side)
        chosen = model.forward_intermediates(x, indices=[0, len(maps) - 1], intermediates_only=True, **kwargs)
        torch.testing.assert_close(chosen, [maps[0], maps[-1]])

    @torch.no_grad()
    def test_features_only(self, name):
        strides = family_of(name).strides
        if strides is None:
            return
        model = timm.create_model(name, features_only=True).eval()
        assert tuple(model.feature_info.reduction()) == strides(name)
        x, _ = self.inputs(name)
        maps = model(x)
        for made, channels, stride in zip(maps, model.feature_info.channels(), strides(name), strict=True):
            assert made.shape == (2, channels, x.shape[-1] // stride, x.shape[-1] // stride)

    def test_reset_classifier(self, name, model):
        model = copy.deepcopy(model)
        x, kwargs = self.inputs(name)
        before = model(x, **kwargs)
        model.reset_classifier(7)
        assert model(x, **kwargs).shape == (2, 7) and model.num_classes == 7
        model.reset_classifier(0, "avg")
        assert not torch.allclose(model(x, **kwargs), before)
        model.reset_classifier(0, "token")
        assert model(x, **kwargs).shape == (2, model.num_features)
        assert timm.create_model(name, num_classes=5)(x, **kwargs).shape == (2, 5)

    def test_every_parameter_gets_a_gradient(self, name, model):
        model = copy.deepcopy(model).train()
        reached: set[str] = set()
        for sensor in registry.get_record(name).sensors:
            model.zero_grad(set_to_none=True)
            x, kwargs = self.inputs(name, batch=1, sensor=sensor)
            model(x, **kwargs).square().sum().backward()
            reached |= {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert reached == {n for n, _ in model.named_parameters()}

    def test_gradient_checkpointing_changes_nothing(self, name, model):
        x, kwargs = self.inputs(name, batch=1)
        gradients = []
        for enable in (False, True):
            one = copy.deepcopy(model).train()
            one.set_grad_checkpointing(enable)
            one(x, **kwargs).square().sum().backward()
            gradients.append({n: p.grad for n, p in one.named_parameters() if p.grad is not None})
        torch.testing.assert_close(*gradients)

    @torch.no_grad()
    def test_bfloat16(self, name, model):
        x, kwargs = self.inputs(name)
        exact = model(x, **kwargs)
        low = copy.deepcopy(model).bfloat16()(x.bfloat16(), **kwargs).float()
        assert nn.functional.cosine_similarity(low, exact).min() > 0.999

    @torch.no_grad()
    def test_export(self, name, model):
        x, kwargs = self.inputs(name)
        graph = torch.export.export(model, (x,), kwargs).module()
        torch.testing.assert_close(graph(x, **kwargs), model(x, **kwargs), atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_compiles_without_graph_breaks(self, name, model):
        torch._dynamo.reset()
        x, kwargs = self.inputs(name)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, **kwargs), model(x, **kwargs), atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_round_trips(self, name, model):
        x, kwargs = self.inputs(name)
        expected = model(x, **kwargs)
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        other = timm.create_model(name).eval()
        other.load_state_dict(torch.load(file, weights_only=True))
        for again in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(again(x, **kwargs), expected)

    def test_is_created_on_the_meta_device(self, name):
        with torch.device("meta"):
            model = timm.create_model(name)
        assert all(p.is_meta for p in model.parameters())
        assert sum(p.numel() for p in model.parameters()) == registry.parameter_count(name)

    def test_info_tells_the_whole_record(self, name):
        facts = registry.info(name)
        assert facts["bands"] and facts["licence"] and facts["citation"] and facts["trained_on"]
        for sensor, statistics in facts["statistics"].items():
            assert sensor in facts["sensors"] and statistics["sensor"] == sensor
        for sensor, (low, high) in facts["gsd"].items():
            assert sensor in facts["sensors"] and 0 < low <= high
        assert facts["name"] in weights.RECORDS

    def test_pretrained_without_weights_raises_or_verifies(self, name, tmp_path, monkeypatch):
        """No network and no cache: a bundled weight set loads, verified; any other raises, never random."""
        monkeypatch.setenv("EO_ZOO_OFFLINE", "1")
        if registry.get_record(name).source.startswith("package://"):
            assert timm.create_model(name, pretrained=True).weights_origin.verified
        else:
            with pytest.raises(Exception, match="offline"):
                timm.create_model(name, pretrained=True, cache_dir=tmp_path)


def test_quick_lane_covers_every_family():
    quick = {param.values[0] for param in NAMES if not param.marks}
    assert quick == {family.smallest for family in FAMILIES.values()}
