"""What transformers' users count on, for every family, and for every class of it."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

import eo_zoo
from eo_zoo import hf
from eo_zoo.convert import convert
from eo_zoo.errors import InputError, WeightsError
from tests.hf.cases import CASES, CLASSES, DECODER
from tests.models.families import multimae_inputs

families = pytest.mark.parametrize("case", CASES, ids=lambda case: case.family)
classes = pytest.mark.parametrize("case, kind, kwargs", CLASSES, ids=lambda one: getattr(one, "__name__", ""))


def outputs(model, given):
    """Everything that a call gives, random choices seeded."""
    torch.manual_seed(1)
    with torch.no_grad():
        return [leaf for leaf in tree_leaves(dict(model(**given))) if isinstance(leaf, torch.Tensor)]


def checkpointed(model):
    return any(getattr(module, "grad_checkpointing", False) for module in model.modules())


def equal(first, second):
    return len(first) == len(second) > 0 and all(map(torch.equal, first, second))


@classes
class TestEveryClass:
    def test_what_is_saved_is_read_back_equal(self, case, kind, kwargs, tmp_path):
        model = case.build(kind, **kwargs)
        given, _ = case.inputs(model)
        folder = tmp_path / "saved"
        model.save_pretrained(folder)
        again, told = kind.from_pretrained(folder, output_loading_info=True)
        assert not told["missing_keys"] and not told["unexpected_keys"] and not again.training
        assert again.name_or_path == str(folder) and model.config.architectures is None
        assert equal(outputs(again, given), outputs(model, given))
        mine, its = dict(model.model.named_buffers()), dict(again.model.named_buffers())
        assert mine.keys() == its.keys() and all(torch.equal(its[name], tensor) for name, tensor in mine.items())
        assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
        again.save_pretrained(tmp_path / "again")
        first, second = ((place / "model.safetensors").read_bytes() for place in (folder, tmp_path / "again"))
        assert first == second
        facts, same = (json.loads((place / "config.json").read_text()) for place in (folder, tmp_path / "again"))
        encoder = getattr(model.model, "encoder", model.model)
        taken = next(getattr(encoder, what) for what in ("bands", "inputs", "in_domains") if hasattr(encoder, what))
        assert list(taken) in facts["eo_zoo"].values() and facts["num_features"] == encoder.num_features
        assert facts["pretrained_cfg"]["mean"] == list(encoder.pretrained_cfg["mean"])
        assert facts.pop("eo_zoo")["sha256"] is None and len(same.pop("eo_zoo")["sha256"]) == 64
        assert facts == same and str(tmp_path) not in (tmp_path / "again" / "README.md").read_text()

    def test_the_file_serves_timm_and_every_other_class(self, case, kind, kwargs, tmp_path):
        model = case.build(kind, **kwargs)
        model.save_pretrained(tmp_path)
        encoder = getattr(model.model, "encoder", model.model)
        by_timm = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
        assert by_timm.state_dict().keys() == encoder.state_dict().keys()
        for other in (by_timm, case.features.from_pretrained(tmp_path).model):
            for name, tensor in other.state_dict().items():
                assert torch.equal(tensor, encoder.state_dict()[name])

    def test_copies_are_equal(self, case, kind, kwargs):
        model = case.build(kind, **kwargs)
        given, _ = case.inputs(model)
        expected = outputs(model, given)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert equal(outputs(other, given), expected)

    def test_a_tuple_instead_of_a_model_output(self, case, kind, kwargs):
        model = case.build(kind, **kwargs)
        given, _ = case.inputs(model)
        torch.manual_seed(1)
        with torch.no_grad():
            made = model(**given, return_dict=False)
        assert isinstance(made, tuple) and equal(list(tree_leaves(made)), outputs(model, given))

    def test_types(self, case, kind, kwargs, tmp_path):
        case.build(kind, **kwargs).save_pretrained(tmp_path)
        low = kind.from_pretrained(tmp_path, dtype=torch.bfloat16)
        held = [tensor for tensor in low.state_dict().values() if tensor.is_floating_point()]
        assert low.dtype == torch.bfloat16 and all(tensor.dtype == torch.bfloat16 for tensor in held)
        given, _ = case.inputs(low)
        expected = outputs(low, given)  # float32 images are brought to it
        assert all(tensor.isfinite().all() for tensor in expected)
        low.save_pretrained(tmp_path / "low")
        again = kind.from_pretrained(tmp_path / "low", dtype="auto")
        assert again.dtype == torch.bfloat16 and equal(outputs(again, given), expected)

    def test_device_map(self, case, kind, kwargs, tmp_path):
        pytest.importorskip("accelerate", reason="transformers asks for it")
        model = case.build(kind, **kwargs)
        given, _ = case.inputs(model)
        model.save_pretrained(tmp_path)
        for device_map in ("auto", "cpu", {"": "cpu"}):
            placed = kind.from_pretrained(tmp_path, device_map=device_map)
            assert placed.device.type == "cpu" and equal(outputs(placed, given), outputs(model, given))

    def test_gradient_checkpointing_changes_nothing(self, case, kind, kwargs):
        gradients = []
        for enable in (False, True):
            model = case.build(kind, **kwargs).train()
            assert model.supports_gradient_checkpointing
            if enable:
                model.gradient_checkpointing_enable()
            assert model.is_gradient_checkpointing == enable == checkpointed(model)
            torch.manual_seed(1)
            given, _ = case.inputs(model)
            made = model(**given)
            loss = made.loss if "loss" in made else None
            (sum(t.square().sum() for t in tree_leaves(dict(made))) if loss is None else loss).backward()
            gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
            model.gradient_checkpointing_disable()
            assert not model.is_gradient_checkpointing and not checkpointed(model)
        assert len(gradients[0]) > 10
        torch.testing.assert_close(*gradients)

    def test_a_missing_or_unknown_tensor_raises(self, case, kind, kwargs, tmp_path):
        case.build(kind, **kwargs).save_pretrained(tmp_path)
        # copies: the file that they are mapped from is written over
        whole = {key: tensor.clone() for key, tensor in load_file(tmp_path / "model.safetensors").items()}
        name = next(name for name in whole if name.startswith("blocks.0.") or name.startswith("layers.0.blocks.0."))
        wrong = {
            "missing": {key: tensor for key, tensor in whole.items() if key != name},
            "strange": whole | {"blocks.0.strange": torch.zeros(1)},
            name: whole | {name: torch.zeros(3, 5)},
        }
        for word, tensors in wrong.items():
            save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
            with pytest.raises(WeightsError, match=word):
                kind.from_pretrained(tmp_path, ignore_mismatched_sizes=True)

    def test_names_of_a_file_are_taken_by_load_state_dict(self, case, kind, kwargs, tmp_path):
        """Trainer goes on from a checkpoint so, and without strictness, which would hide that nothing fits."""
        model, other = case.build(kind, **kwargs), kind(case.configured(**kwargs)).eval()
        model.save_pretrained(tmp_path)
        told = other.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
        assert not told.missing_keys and not told.unexpected_keys
        given, _ = case.inputs(model)
        assert equal(outputs(other, given), outputs(model, given))
        with pytest.raises((RuntimeError, WeightsError)):
            other.load_state_dict({"model.strange": torch.zeros(1)})

    def test_attentions_are_refused_with_the_reason(self, case, kind, kwargs):
        model = case.build(kind, **kwargs)
        given, _ = case.inputs(model)
        with pytest.raises(InputError, match=r"attentions are not given.*fused"):
            model(**given, output_attentions=True)


@families
class TestFeatures:
    def test_they_are_the_modules_own(self, case):
        model = case.build(case.features)
        given, plain = case.inputs(model)
        x, call = plain["x"], plain["call"]
        with torch.no_grad():
            made = model(**given, **call)
            last = model.model.forward_features(x, **call)
            assert torch.equal(made.last_hidden_state, last)
            assert torch.equal(made.pooler_output, model.model.forward_head(last, pre_logits=True))
            assert torch.equal(made[0], made.last_hidden_state) and made.hidden_states is None
            if case.family != "anysat":  # which asks for the tile alone there
                assert torch.equal(made.pooler_output, model.model(x, **call))

    def test_hidden_states(self, case):
        model = case.build(case.features)
        given, plain = case.inputs(model)
        with torch.no_grad():
            made = model(**given, output_hidden_states=True)
            expected = model(**given)
            maps = model.model.forward_intermediates(plain["x"], intermediates_only=True, **plain["call"])
        torch.testing.assert_close(made.last_hidden_state, expected.last_hidden_state)
        torch.testing.assert_close(made.pooler_output, expected.pooler_output)
        assert len(made.hidden_states) == len(maps) == case.stages
        for state, one in zip(made.hidden_states, maps, strict=True):
            for part in tree_leaves(one):
                tokens = part.flatten(2).transpose(1, 2)
                if state.ndim == 4:
                    assert torch.equal(state, part)
                else:  # among the tokens, in their order, are the map's
                    found = [torch.equal(state[:, i : i + tokens.shape[1]], tokens) for i in range(state.shape[1])]
                    assert any(found)
        by_config = case.build(case.features, output_hidden_states=True)
        assert len(by_config(**given).hidden_states) == case.stages

    def test_one_folder_by_all_three_doors(self, case, tmp_path):
        module = case.build(case.features).model
        hf.wrap(module).save_pretrained(tmp_path)
        by_hf = AutoModel.from_pretrained(tmp_path)
        by_timm = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        name = case.configured().name
        ours = eo_zoo.create_model(name, weights=tmp_path / "model.safetensors", **by_hf.config.model_args)
        _, plain = case.inputs(by_hf)
        x, call = plain["x"], plain["call"]
        with torch.no_grad():
            expected = module.forward_features(x, **call)
            for other in (by_hf.model, by_timm, ours):
                assert torch.equal(other.forward_features(x, **call), expected)
                assert torch.equal(other(x, **call), module(x, **call))

    def test_names_of_types(self, case, tmp_path):
        case.build(case.features).save_pretrained(tmp_path)
        for asked in (dict(dtype=torch.float16), dict(dtype="float16"), dict(torch_dtype=torch.float16)):
            low = case.features.from_pretrained(tmp_path, **asked)
            assert low.dtype == torch.float16
        low.save_pretrained(tmp_path)
        assert case.features.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32
        newer = int(transformers.__version__.partition(".")[0]) > 4  # which takes the file's own
        assert case.features.from_pretrained(tmp_path).dtype == (torch.float16 if newer else torch.float32)

    def test_info_knows_it(self, case, tmp_path):
        model = case.build(case.features)
        assert eo_zoo.info(model)["weights"] == "random"
        model.save_pretrained(tmp_path)
        facts = eo_zoo.info(case.features.from_pretrained(tmp_path))
        assert facts["name"].partition(".")[0] == model.config.architecture and "unverified" in facts["weights"]

    def test_training_mode(self, case):
        model = case.build(case.features, drop_path_rate=0.5).train()
        given, _ = case.inputs(model)
        first, second = (model(**given).pooler_output for _ in range(2))
        assert not torch.equal(first, second) and all(parameter.requires_grad for parameter in model.parameters())
        model.eval()
        assert torch.equal(model(**given).pooler_output, model(**given).pooler_output)

    def test_parameters_of_the_head_are_not_there(self, case, tmp_path):
        case.build(case.classifier, num_labels=3).save_pretrained(tmp_path)
        model = case.features.from_pretrained(tmp_path)
        assert not any(".head" in name for name, _ in model.named_parameters())
        model.save_pretrained(tmp_path / "features")
        stored = json.loads((tmp_path / "features" / "config.json").read_text())
        assert stored["num_classes"] == 0 and stored["architectures"] == [case.features.__name__]


@families
class TestClassification:
    def test_loss_of_labels(self, case):
        given, plain = {}, {}
        for problem, labels in {
            "single_label_classification": torch.tensor([0, 2]),
            "multi_label_classification": torch.tensor([[0.0, 1, 1], [1, 0, 0]]),
            "regression": torch.randn(2, 3),
        }.items():
            model = case.build(case.classifier, num_labels=3, problem_type=problem)
            given, plain = case.inputs(model)
            made = model(**given, labels=labels)
            assert made.logits.shape == (2, 3)
            assert torch.equal(made.logits, model.model(plain["x"], **plain["call"]))
            criterion = {
                "single_label_classification": torch.nn.functional.cross_entropy,
                "multi_label_classification": torch.nn.functional.binary_cross_entropy_with_logits,
                "regression": torch.nn.functional.mse_loss,
            }[problem]
            torch.testing.assert_close(made.loss, criterion(made.logits, labels))
            made.loss.backward()
            assert model.model.head is not None and all(p.grad is not None for p in model.model.head.parameters())
        assert "loss" not in model(**given)

    def test_hidden_states(self, case):
        model = case.build(case.classifier, num_labels=3)
        given, _ = case.inputs(model)
        made = model(**given, output_hidden_states=True)
        assert len(made.hidden_states) == case.stages
        torch.testing.assert_close(made.logits, model(**given).logits)

    def test_the_head_is_resized_where_that_is_asked(self, case, tmp_path, caplog):
        model = case.build(case.classifier, num_labels=3)
        model.save_pretrained(tmp_path)
        caplog.clear()
        names = {0: "water", 1: "forest"}
        for asked in (dict(num_labels=5), dict(id2label=names, label2id={v: k for k, v in names.items()})):
            other = case.classifier.from_pretrained(tmp_path, **asked)
            classes = asked.get("num_labels", 2)
            assert other.config.num_labels == other.model.num_classes == classes
            assert "a new head is random until it is trained" in caplog.text
            kept = {n: t for n, t in other.state_dict().items() if ".head." not in n}
            assert len(kept) > 10 and all(torch.equal(t, model.state_dict()[n]) for n, t in kept.items())
            auto = AutoModelForImageClassification.from_pretrained(tmp_path, **asked)
            assert type(auto) is case.classifier and auto.config.num_labels == classes
        assert other.config.id2label == names
        other.save_pretrained(tmp_path / "other")
        again = case.classifier.from_pretrained(tmp_path / "other")
        given, _ = case.inputs(model)
        assert again.config.id2label == names and equal(outputs(again, given), outputs(other, given))
        assert timm.create_model(f"local-dir:{tmp_path / 'other'}", pretrained=True).num_classes == 2

    def test_a_head_that_was_not_asked_for_raises(self, case, tmp_path):
        model = case.build(case.classifier, num_labels=3)
        model.save_pretrained(tmp_path)
        stored = json.loads((tmp_path / "config.json").read_text())
        for key in ("id2label", "label2id", "label_names"):
            stored.pop(key, None)
        (tmp_path / "config.json").write_text(json.dumps(stored | {"num_classes": 4}))
        with pytest.raises(WeightsError, match="head"):
            case.classifier.from_pretrained(tmp_path)
        case.build(case.features).save_pretrained(tmp_path / "features")
        with pytest.raises(InputError, match="has no classifier: give the number of classes, num_labels=10"):
            case.classifier.from_pretrained(tmp_path / "features")
        for asked in (dict(num_labels=2), dict(config=case.configured(num_labels=2))):
            made = case.classifier.from_pretrained(tmp_path / "features", **asked)
            assert made.model.num_classes == 2

    def test_autocast(self, case):
        model = case.build(case.classifier, num_labels=3)
        given, _ = case.inputs(model)
        with torch.autocast("cpu", torch.bfloat16):
            assert model(**given).logits.isfinite().all()


class TestBackbone:
    @pytest.mark.parametrize("case", [case for case in CASES if case.backbone], ids=lambda case: case.family)
    def test_maps_are_the_modules_own(self, case):
        model = case.build(case.backbone, out_indices=[0, -1])
        size = model.config.image_size
        x = torch.randn(2, model.config.num_channels, size, size)
        with torch.no_grad():
            made = model(x)
            maps = model.model.forward_intermediates(x, intermediates_only=True)
            every = model(x, output_hidden_states=True)
        assert [tuple(one.shape[1:2]) for one in made.feature_maps] == [(c,) for c in model.channels]
        assert equal(list(made.feature_maps), [maps[0], maps[-1]]) and equal(list(every.hidden_states), maps)
        assert model.out_features == ["stage1", f"stage{len(maps)}"] and len(model.stage_names) == case.stages
        assert case.build(case.backbone).out_features == model.stage_names[-1:]
        by_name = case.build(case.backbone, out_features=["stage2"])
        assert by_name.out_indices == [1] and len(by_name(x).feature_maps) == 1
        assert type(AutoBackbone.from_config(case.configured(out_indices=[1]))) is case.backbone
        for wrong in (dict(out_indices=[9]), dict(out_features=["stage9"])):
            with pytest.raises(InputError, match="expected"):
                case.build(case.backbone, **wrong)

    @pytest.mark.parametrize("case", [case for case in CASES if case.backbone], ids=lambda case: case.family)
    def test_under_a_decoder_of_transformers(self, case, tmp_path):
        backbone = case.configured(out_indices=[0, 1, 2, -1] if case.stages > 3 else [0, 1, -1])
        config = UperNetConfig(
            backbone_config=backbone, hidden_size=16, pool_scales=[1, 2], auxiliary_in_channels=32, num_labels=3,
            use_auxiliary_head=False,
        )  # fmt: skip
        model = UperNetForSemanticSegmentation(config).eval()
        assert type(model.backbone) is case.backbone
        size = backbone.image_size
        x = torch.randn(2, backbone.num_channels, size, size)
        made = model(x, labels=torch.randint(3, (2, size, size)))
        assert made.logits.shape == (2, 3, size, size)
        made.loss.backward()
        assert any(p.grad is not None and p.grad.any() for p in model.backbone.parameters())
        model.save_pretrained(tmp_path)
        again = UperNetForSemanticSegmentation.from_pretrained(tmp_path)  # built on the meta device
        with torch.no_grad():
            assert equal(list(again.backbone(x).feature_maps), list(model.backbone(x).feature_maps))


class TestAuto:
    @families
    def test_each_auto_class_finds_its_own(self, case, tmp_path):
        case.build(case.features).save_pretrained(tmp_path)
        assert type(AutoConfig.from_pretrained(tmp_path)) is case.config
        assert type(AutoModel.from_pretrained(tmp_path)) is case.features
        assert type(AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=2)) is case.classifier
        for kind, auto in (
            (hf.SmartiesForSemanticSegmentation, AutoModelForSemanticSegmentation),
            (hf.SmartiesForPreTraining, AutoModelForPreTraining),
            (hf.MultiMaeEoForPreTraining, AutoModelForPreTraining),
        ):
            if kind in [other for other, _ in case.others]:
                kwargs = dict(case.others)[kind]
                case.build(kind, **kwargs).save_pretrained(tmp_path / kind.__name__)
                assert type(auto.from_pretrained(tmp_path / kind.__name__)) is kind

    def test_arguments_of_the_model_reach_it(self, tmp_path):
        hf.SmartiesModel.from_pretrained("smarties_vit_nano").save_pretrained(tmp_path)
        for model in (
            AutoModel.from_pretrained(tmp_path, bands=["B04", "B03"], img_size=56),
            hf.SmartiesModel.from_pretrained("smarties_vit_nano", bands=["B04", "B03"], img_size=56),
        ):
            assert model.model.bands == ("red_2", "green_2") and model.config.image_size == 56
            assert model(torch.randn(1, 2, 56, 56)).last_hidden_state.shape == (1, 50, 128)
            model.save_pretrained(tmp_path / "two")
            assert AutoModel.from_pretrained(tmp_path / "two").model.bands == ("red_2", "green_2")
        radar = AutoModel.from_pretrained(tmp_path / "two", sensor="S1", img_size=112)
        assert radar.model.bands == ("microwave_1", "microwave_2")
        other = hf.SmartiesModel.from_pretrained("smarties_vit_nano", config=tmp_path / "two")
        assert other.model.bands == ("red_2", "green_2")
        config = hf.SmartiesConfig("smarties_vit_nano")
        asked = dict(config=config, bands=["B04"], output_hidden_states=True)
        other = hf.SmartiesModel.from_pretrained("smarties_vit_nano", **asked)
        assert other.model.bands == ("red_2",) and other.config.output_hidden_states
        assert not config.model_args and not config.output_hidden_states  # the caller's own

    def test_what_does_not_fit_is_told(self, tmp_path):
        with pytest.raises(InputError, match=r"SmartiesConfig is for smarties_vit_base.*got 'mars_base_rgb"):
            hf.SmartiesModel.from_pretrained("mars_base_rgb")
        with pytest.raises(InputError, match="no weights are published for anysat_nano"):
            hf.AnySatModel.from_pretrained("anysat_nano")
        with pytest.raises(InputError, match="unknown model 'smarties_vit_huge'"):
            hf.SmartiesConfig("smarties_vit_huge")
        with pytest.raises(InputError, match="does not project"):
            hf.SmartiesModel.from_pretrained("smarties_vit_nano", sensor="S2-L1C", bands=["B10"])
        with pytest.raises(InputError, match="dtype is 'int8'"):
            hf.SmartiesModel.from_pretrained("smarties_vit_nano", dtype="int8")
        hf.SmartiesModel.from_pretrained("smarties_vit_nano").save_pretrained(tmp_path)
        (tmp_path / "model.safetensors").unlink()
        with pytest.raises(InputError, match=r"holds no model.safetensors"):
            AutoModel.from_pretrained(tmp_path)


class TestSmarties:
    def test_the_public_classs_calls(self):
        model = hf.SmartiesModel.from_pretrained("smarties_vit_nano")
        plain = eo_zoo.create_model("smarties_vit_nano")
        image = torch.randn(2, 12, 112, 112)
        with torch.no_grad():
            assert torch.equal(model(image, sensor_type="S2"), plain(image))
            assert torch.equal(model(image[:, :2], sensor_type="S1"), plain(image[:, :2], sensor="S1"))
            three = model(image[:, [1, 2, 3]], bands=["blue_1", "green_2", "red_2"])
            assert torch.equal(three, plain(image[:, [1, 2, 3]], bands=["blue_1", "green_2", "red_2"]))
            tokens = model(image, bands=list(plain.bands), all_tokens=True)
            assert tokens.shape == (2, 197, 128)
            assert torch.equal(tokens, model(image, output_hidden_states=True).hidden_states[-1])
            assert torch.equal(plain.norm(tokens), plain.forward_features(image))
            low = hf.SmartiesModel.from_pretrained("smarties_vit_nano", dtype=torch.bfloat16)
            assert low(image, all_tokens=True).dtype == torch.bfloat16
            assert model(image, sensor_type="S2", return_dict=True).pooler_output.shape == (2, 128)
        with pytest.raises(InputError, match="give one of them"):
            model(image, sensor_type="S2", sensor="S1")

    def test_segmentation(self):
        config = hf.SmartiesConfig("smarties_vit_nano", num_labels=3)
        model = hf.SmartiesForSemanticSegmentation(config).eval()
        image = torch.randn(2, 12, 112, 112)
        made = model(image)
        assert made.logits.shape == (2, 3, 96, 96) and torch.equal(made.logits, model.model(image))
        labels = torch.randint(3, (2, 112, 112))
        labels[:, :50] = 255
        made_with = model(image, labels=labels, output_hidden_states=True)
        loss = made_with.loss
        assert len(made_with.hidden_states) == 4
        sized = torch.nn.functional.interpolate(made.logits, (112, 112), mode="bilinear")
        torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(sized, labels, ignore_index=255))
        assert torch.equal(model(image, labels=labels.to(torch.uint8)).loss, loss)  # as masks are stored
        with pytest.raises(InputError, match="num_labels=10"):
            hf.SmartiesForSemanticSegmentation(hf.SmartiesConfig("smarties_vit_nano"))

    def test_a_tuned_weight_sets_classes(self):
        config = hf.SmartiesConfig("smarties_vit_base.eurosat_finetune")
        assert config.id2label[9] == "SeaLake" and config.label2id["SeaLake"] == 9 and config.num_channels == 13
        several = hf.SmartiesConfig.from_pretrained("smarties_vit_base.bigearthnets2_finetune")
        assert several.problem_type == "multi_label_classification" and several.num_labels == 19


class TestAnySat:
    def test_the_public_codes_calls(self):
        [case] = [case for case in CASES if case.family == "anysat"]
        model = case.build(hf.AnySatModel)
        given, _ = case.inputs(model)
        with torch.no_grad():
            for output in ("tile", "patch", "all", "dense"):
                made = model(given, patch_size=10, output=output)
                assert torch.equal(made, model.model(given, patch_size=10, output=output))
            assert torch.equal(model(given, 20, output="patch"), model.model(given, patch_size=20, output="patch"))
            assert torch.equal(model(given, 20, "patch"), model.model(given, patch_size=20, output="patch"))
            named = {key: x for key, x in given.items() if key.endswith(("_dates", "_mask"))}
            rest = {key: x for key, x in given.items() if key not in named}
            assert torch.equal(model(rest, **named).pooler_output, model(given).pooler_output)
            low = copy.deepcopy(model).to(torch.bfloat16)
            assert low(given, 20, output="tile").dtype == torch.bfloat16


class TestMultiMae:
    def test_images_by_the_name_that_pipelines_give_them(self):
        config = hf.MultiMaeEoConfig(model_args=dict(embed_dim=32, depth=1, num_heads=2, in_domains=["rgb"]))
        model, x = hf.MultiMaeEoModel(config).eval(), torch.randn(1, 3, 56, 56)
        assert torch.equal(model(pixel_values=x).pooler_output, model({"rgb": x}).pooler_output)


class TestPretraining:
    def seeded(self, call):
        torch.manual_seed(1)
        with torch.no_grad():
            return call()

    def test_smarties_pairs(self):
        model = hf.SmartiesForPreTraining(hf.SmartiesConfig("smarties_vit_nano", pretraining=DECODER)).eval()
        assert (model.model.decoder_embed.out_features, len(model.model.decoder_blocks)) == (32, 1)
        first, second = torch.randn(2, 1, 12, 112, 112)
        bands = model.model.encoder.bands
        for pair, call in ((None, {}), (second, {}), (second, {"second_bands": bands[::-1]})):
            made = self.seeded(lambda pair=pair, call=call: model(first, pair, **call))
            named = {"first_bands": bands, "second_bands": bands, **call}
            other = first if pair is None else pair
            plain = self.seeded(lambda other=other, named=named: model.model(first, other, **named))
            assert torch.equal(made.loss, plain.loss) and torch.equal(made.visible, plain.mask == 0)
            assert all(map(torch.equal, made.predictions, (plain.first, plain.second)))
        with pytest.raises(InputError, match="gives no hidden states"):
            model(first, output_hidden_states=True)

    def test_multimae_domains(self):
        arguments = dict(embed_dim=32, depth=1, num_heads=2, in_domains=["rgb", "depth"])
        config = hf.MultiMaeEoConfig(model_args=arguments, pretraining=dict(DECODER, norm_rgb=False))
        model = hf.MultiMaeEoForPreTraining(config).eval()
        assert sorted(model.model.output_adapters) == ["depth", "rgb"]
        x = multimae_inputs(["rgb", "depth"], 1)
        made, plain = (self.seeded(call) for call in (lambda: model(**x), lambda: model.model(x)))
        assert set(made.losses) == {"rgb", "depth"} and equal(*(tree_leaves(one.losses) for one in (made, plain)))
        assert equal(*(tree_leaves((one.loss, one.predictions, one.visible)) for one in (made, plain)))


class TestWhatIsAskedFor:
    """Found by trying: each of these once gave a wrong answer without a word."""

    @pytest.mark.parametrize("case", [case for case in CASES if case.backbone], ids=lambda case: case.family)
    def test_maps_in_the_order_they_are_asked_for(self, case):
        model = case.build(case.backbone, out_indices=[2, 0, 2])
        given, _ = case.inputs(model)
        with torch.no_grad():
            made, every = model(**given), model(**given, output_hidden_states=True)
        expected = [every.hidden_states[index] for index in (2, 0, 2)]
        assert equal(list(made.feature_maps), expected) and equal(list(every.feature_maps), expected)
        assert [one.shape[1] for one in made.feature_maps] == model.channels

    def test_names_of_classes(self, tmp_path):
        kind, names = hf.SmartiesForImageClassification, {0: "x", 1: "y", 2: "z"}
        kind.from_pretrained("smarties_vit_nano", id2label=names).save_pretrained(tmp_path)
        other = {0: "a", 1: "b", 2: "c"}
        for asked, expected in (
            ({}, names),
            (dict(num_labels=3), names),
            (dict(id2label={"0": "a", "1": "b", "2": "c"}), other),
            (dict(label2id={"b": 0}), {0: "b"}),
        ):
            for given in ({}, dict(config=AutoConfig.from_pretrained(tmp_path))):
                config = kind.from_pretrained(tmp_path, **given, **asked).config
                assert config.id2label == expected and config.label2id == {n: i for i, n in expected.items()}
        with pytest.raises(InputError, match="num_labels is 5, but id2label has 3 names"):
            hf.SmartiesConfig("smarties_vit_nano", num_labels=5, id2label=names)
        facts = json.loads((tmp_path / "config.json").read_text())
        for wrong in (dict(num_classes=5), dict(num_labels=9), dict(id2label={"0": "x"})):
            (tmp_path / "config.json").write_text(json.dumps(facts | wrong))
            with pytest.raises(InputError, match="make them agree"):
                kind.from_pretrained(tmp_path)

    def test_a_configuration_of_another_model(self, tmp_path):
        hf.SmartiesModel.from_pretrained("smarties_vit_nano").save_pretrained(tmp_path)
        for config in (hf.MarsConfig(), transformers.ViTConfig()):
            with pytest.raises(InputError, match="SmartiesModel takes a SmartiesConfig"):
                hf.SmartiesModel.from_pretrained(tmp_path, config=config)
        with pytest.raises(InputError, match="is of smarties_vit_nano, not of smarties_vit_base"):
            hf.SmartiesModel.from_pretrained(tmp_path, architecture="smarties_vit_base")
        with pytest.raises(InputError, match="is of a repository on the Hub; mars_base_sar"):
            hf.MarsModel.from_pretrained("mars_base_sar", revision="v2")
        assert hf.SmartiesModel.from_pretrained(tmp_path, subfolder=None).config.name == "smarties_vit_nano.demo"

    def test_a_head_for_pixels_is_not_one_for_images(self, tmp_path):
        config = hf.SmartiesConfig("smarties_vit_nano", num_labels=3)
        hf.SmartiesForSemanticSegmentation(config).save_pretrained(tmp_path)
        assert not config.model_args  # the caller's own
        with pytest.raises(InputError, match="load it by SmartiesForSemanticSegmentation"):
            AutoModelForImageClassification.from_pretrained(tmp_path)

    def test_nothing_is_written_that_could_not_be_read(self, tmp_path):
        model = hf.SmartiesForImageClassification(hf.SmartiesConfig("smarties_vit_nano", num_labels=3))
        model.save_pretrained(tmp_path)
        before = (tmp_path / "model.safetensors").read_bytes()
        whole = model.state_dict()
        for wrong in (
            {f"module.{name}": tensor for name, tensor in whole.items()},
            {name: tensor for name, tensor in whole.items() if name != "model.head.weight"},
            whole | {"strange": torch.zeros(1)},
        ):
            with pytest.raises(WeightsError, match="is not written"):
                model.save_pretrained(tmp_path, state_dict=wrong)
        model.model.head = torch.nn.Linear(128, 7)
        with pytest.raises(WeightsError, match=r"head.weight is \(7, 128\), expected \(3, 128\)"):
            model.save_pretrained(tmp_path)
        assert (tmp_path / "model.safetensors").read_bytes() == before

    def test_what_does_not_learn_stays_so(self, tmp_path):
        model = hf.SmartiesForPreTraining(hf.SmartiesConfig("smarties_vit_nano", pretraining=DECODER))
        model.save_pretrained(tmp_path)
        again = hf.SmartiesForPreTraining.from_pretrained(tmp_path)
        learning = [{name for name, p in one.named_parameters() if p.requires_grad} for one in (model, again)]
        assert learning[0] == learning[1] and "model.encoder.pos_embed" not in learning[1]

    def test_adapters(self, tmp_path):
        peft = pytest.importorskip("peft", reason="makes them")
        kind, base, x = hf.SmartiesForImageClassification, tmp_path / "base", torch.randn(1, 12, 112, 112)
        kind(hf.SmartiesConfig("smarties_vit_nano", num_labels=3)).save_pretrained(base)
        lora = peft.LoraConfig(target_modules=["qkv"], init_lora_weights=False)
        own, given = kind.from_pretrained(base), kind.from_pretrained(base)
        own.add_adapter(lora)
        own.eval().save_pretrained(tmp_path / "own")
        around = peft.get_peft_model(given, lora).eval()
        around.save_pretrained(tmp_path / "around")
        other = kind.from_pretrained(base)
        other.load_adapter(tmp_path / "own")
        found = AutoModelForImageClassification.from_pretrained(tmp_path / "around")
        with torch.no_grad():
            assert torch.equal(other.eval()(x).logits, own(x).logits)
            assert torch.equal(found(x).logits, around(pixel_values=x).logits)
            assert not torch.equal(found(x).logits, kind.from_pretrained(base)(x).logits)
        with pytest.raises(WeightsError, match="is not written"):
            given.save_pretrained(tmp_path / "inside")


def test_wrap_takes_no_copy_and_nothing_else():
    module = eo_zoo.create_model("smarties_vit_nano", bands=["B04", "B08"], num_classes=4)
    model = hf.wrap(module)
    assert type(model) is hf.SmartiesForImageClassification and model.model is module and not model.training
    assert model.config.num_labels == 4 and model.config.model_args["bands"] == ["B04", "B08"]
    assert hf.wrap(model) is model
    module.reset_classifier(0, "avg")
    averaged = hf.wrap(module)
    assert type(averaged) is hf.SmartiesModel and averaged.config.model_args["global_pool"] == "avg"
    with pytest.raises(InputError, match="arguments that no JSON holds"):
        hf.wrap(timm.create_model("smarties_vit_nano", act_layer=torch.nn.ReLU))
    segmenting = timm.create_model("smarties_vit_nano", head="segmentation", num_classes=2)
    assert type(hf.wrap(segmenting)) is hf.SmartiesForSemanticSegmentation and hf.wrap(segmenting).training
    for other in (torch.nn.Linear(2, 2), timm.create_model("smarties_vit_nano", features_only=True)):
        with pytest.raises(InputError, match="is not a model of eo_zoo"):
            hf.wrap(other)


def test_export(tmp_path):
    hf.export("smarties_vit_nano", tmp_path / "new" / "nano", bands=["B04", "B03", "B02"])
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"nano"}
    files = {path.name for path in (tmp_path / "new" / "nano").iterdir()}
    assert files == {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
    model = AutoModel.from_pretrained(tmp_path / "new" / "nano")
    image = torch.randn(1, 3, 112, 112)
    expected = eo_zoo.create_model("smarties_vit_nano")(image, bands=["B04", "B03", "B02"])
    assert torch.equal(model(image).pooler_output, expected)
    with pytest.raises(InputError, match="exists: remove it"):
        hf.export("smarties_vit_nano", tmp_path / "new" / "nano")
    with pytest.raises(InputError, match="no weights are published"):
        hf.export("anysat_nano", tmp_path / "none")
    assert not (tmp_path / "none").exists()
    hf.export("anysat_nano", tmp_path / "random", pretrained=False)
    assert "Weights: random" in (tmp_path / "random" / "README.md").read_text()


def test_an_export_that_is_read_back_differently_is_not_kept(tmp_path, monkeypatch):
    other = timm.create_model("smarties_vit_nano")
    monkeypatch.setattr("eo_zoo.hf.folder.save", lambda model, place: hf.wrap(other).save_pretrained(place))
    with pytest.raises(WeightsError, match="what was read back differs"):
        hf.export("smarties_vit_nano", tmp_path / "nano")
    assert not list(tmp_path.iterdir())


def test_saving_onto_a_converted_folder_leaves_nothing_that_tells_of_the_old_weights(tmp_path):
    hf.export("smarties_vit_nano", tmp_path / "nano")
    convert(tmp_path / "nano", tmp_path / "out", shard_size="1MB")
    other = hf.wrap(timm.create_model("smarties_vit_nano"))
    other.save_pretrained(tmp_path / "out")
    assert not {"conversion.json", "model.safetensors.index.json"} & {one.name for one in (tmp_path / "out").iterdir()}
    by_folder = eo_zoo.create_model("smarties_vit_nano", weights=tmp_path / "out").state_dict()
    assert all(torch.equal(by_folder[name], tensor) for name, tensor in other.model.state_dict().items())
