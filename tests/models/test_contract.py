"""One contract for every registered model: the smallest of each family quickly, all of them under ``slow``."""

from __future__ import annotations

import copy
import functools
import io
import pickle

import pytest
import timm
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from eo_zoo import list_models, registry, weights
from tests.models.families import FAMILIES, family_of, test_every_family_has_a_row  # noqa: F401 - collected here

CASES = [
    *(pytest.param((family.smallest, family.small), id=family.smallest) for family in FAMILIES.values()),
    *(
        pytest.param((name, family_of(name).full), marks=pytest.mark.slow, id=f"{name}-full")
        for name in list_models()
        if family_of(name).small or name != family_of(name).smallest
    ),
]


@pytest.fixture(scope="class", params=CASES)
def case(request):
    return request.param


@pytest.fixture(scope="class")
def name(case):
    return case[0]


@pytest.fixture(scope="class")
def create(case):
    """timm.create_model for the case's name and size."""
    return functools.partial(timm.create_model, case[0], **case[1])


@pytest.fixture(scope="class")
def model(create):
    """Random weights, eval mode, shared by the tests of one model: none of them may change it."""
    torch.manual_seed(0)
    model = create().eval()
    for parameter in model.parameters():
        if not parameter.any():  # branches that start closed would hide what is behind them
            nn.init.normal_(parameter, std=0.02)
    return model


def part_of(x, i):
    """One sample of a batch, or of a dict of batches."""
    return tree_map(lambda tensor: tensor[i : i + 1], x)


def side_of(x):
    """Pixels a side of the image, or of the first one in a dict."""
    return tree_leaves(x)[0].shape[-1]


class TestContract:
    def inputs(self, name, model, batch=2, sensor=None):
        sensor = sensor or registry.get_record(name).sensors[0]
        return family_of(name).inputs(model, sensor, batch)

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
        x, kwargs = self.inputs(name, model)
        features = model.forward_features(x, **kwargs)
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (2, model.num_features)
        torch.testing.assert_close(model(x, **kwargs), pooled)
        assert pooled.isfinite().all() and pooled.std() > 0

    @torch.no_grad()
    def test_eval_is_deterministic_and_batch_independent(self, name, model):
        x, kwargs = self.inputs(name, model, batch=3)
        together = model(x, **kwargs)
        assert torch.equal(together, model(x, **kwargs))
        alone = torch.cat([model(part_of(x, i), **kwargs) for i in range(3)])
        torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(together[0], together[1], atol=1e-3)

    @torch.no_grad()
    def test_forward_intermediates(self, name, model):
        x, kwargs = self.inputs(name, model)
        final, maps = model.forward_intermediates(x, **kwargs)
        torch.testing.assert_close(final, model.forward_features(x, **kwargs))
        assert len(maps) == len(model.feature_info)
        for one, made in zip(model.feature_info, maps, strict=True):
            side = side_of(x) // one["reduction"]
            for part in tree_leaves(made):  # a dict of maps where the inputs have maps of their own
                assert part.shape == (2, one["num_chs"], side, side)
        chosen = model.forward_intermediates(x, indices=[0, len(maps) - 1], intermediates_only=True, **kwargs)
        torch.testing.assert_close(chosen, [maps[0], maps[-1]])

    @torch.no_grad()
    def test_features_only(self, name, create, model):
        strides = family_of(name).strides
        if strides is None:
            return
        pyramid = create(features_only=True).eval()
        assert tuple(pyramid.feature_info.reduction()) == strides(name)
        x, _ = self.inputs(name, pyramid.model)  # which may take less than the whole model
        maps = pyramid(x)
        for made, channels, stride in zip(maps, pyramid.feature_info.channels(), strides(name), strict=True):
            [made] = tree_leaves(made)
            assert made.shape == (2, channels, side_of(x) // stride, side_of(x) // stride)

    def test_reset_classifier(self, name, create, model):
        model = copy.deepcopy(model)
        x, kwargs = self.inputs(name, model)
        before = model(x, **kwargs)
        model.reset_classifier(7)
        assert model(x, **kwargs).shape == (2, 7) and model.num_classes == 7
        own, other = family_of(name).pools
        model.reset_classifier(0, other)
        assert not torch.allclose(model(x, **kwargs), before)
        model.reset_classifier(0, own)
        assert model(x, **kwargs).shape == (2, model.num_features)
        assert create(num_classes=5)(x, **kwargs).shape == (2, 5)

    def test_every_parameter_gets_a_gradient(self, name, model):
        model = copy.deepcopy(model)  # eval mode: stochastic depth leaves blocks out
        reached: set[str] = set()
        for sensor in registry.get_record(name).sensors:
            model.zero_grad(set_to_none=True)
            x, kwargs = self.inputs(name, model, batch=1, sensor=sensor)
            model(x, **kwargs).square().sum().backward()
            reached |= {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert reached == {n for n, _ in model.named_parameters()}

    def test_gradient_checkpointing_changes_nothing(self, name, model):
        x, kwargs = self.inputs(name, model, batch=1)
        gradients = []
        for enable in (False, True):
            one = copy.deepcopy(model).train()
            one.set_grad_checkpointing(enable)
            torch.manual_seed(0)  # for stochastic depth
            one(x, **kwargs).square().sum().backward()
            gradients.append({n: p.grad for n, p in one.named_parameters() if p.grad is not None})
        torch.testing.assert_close(*gradients)

    @torch.no_grad()
    def test_bfloat16(self, name, model):
        x, kwargs = self.inputs(name, model)
        exact = model(x, **kwargs)
        x = tree_map(lambda tensor: tensor.bfloat16() if tensor.is_floating_point() else tensor, x)
        low = copy.deepcopy(model).bfloat16()(x, **kwargs).float()
        assert nn.functional.cosine_similarity(low, exact).min() > 0.999

    @torch.no_grad()
    def test_export(self, name, model):
        x, kwargs = self.inputs(name, model)
        graph = torch.export.export(model, (x,), kwargs).module()
        torch.testing.assert_close(graph(x, **kwargs), model(x, **kwargs), atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_compiles_without_graph_breaks(self, name, model):
        torch._dynamo.reset()
        x, kwargs = self.inputs(name, model)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, **kwargs), model(x, **kwargs), atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_round_trips(self, name, create, model):
        x, kwargs = self.inputs(name, model)
        expected = model(x, **kwargs)
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        other = create().eval()
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
        """No network and no cache: a bundled weight set loads, verified; any other raises, and none ever is random."""
        monkeypatch.setenv("EO_ZOO_OFFLINE", "1")
        source = registry.get_record(name).source
        if source.startswith("package://"):
            assert timm.create_model(name, pretrained=True).weights_origin.verified
        else:
            with pytest.raises(Exception, match="offline" if source else "no weights are published"):
                timm.create_model(name, pretrained=True, cache_dir=tmp_path)


def test_every_model_is_covered():
    assert {case.values[0][0] for case in CASES} == set(list_models())
