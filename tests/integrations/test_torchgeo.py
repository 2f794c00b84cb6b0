"""What needs no TorchGeo; the rest is on docs/torchgeo.md, which its own environment runs."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torchvision.models import WeightsEnum

import eo_zoo
from eo_zoo import sensors, weights
from eo_zoo.errors import DownloadError, InputError
from eo_zoo.integrations import torchgeo
from eo_zoo.integrations.torchgeo import SampleTransform, SmartiesVitBase_Weights, SmartiesVitNano_Weights

DEMO = SmartiesVitNano_Weights.DEMO
MEMBERS = [
    member for name in torchgeo.list_models() for member in torchgeo.get_model_weights(name).__members__.values()
]


class TestEnums:
    def test_every_published_weight_set_has_members(self):
        published = {name for name, record in weights.RECORDS.items() if record.source}
        assert {member.meta["name"] for member in MEMBERS} == published
        assert {member.meta["model"] for member in MEMBERS} == set(torchgeo.list_models())

    def test_they_are_torchvisions(self):
        assert isinstance(DEMO, WeightsEnum)
        assert str(DEMO) == "SmartiesVitNano_Weights.DEMO"
        assert SmartiesVitNano_Weights.verify("DEMO") is DEMO
        assert torchgeo.get_weight("SmartiesVitNano_Weights.DEMO") is DEMO
        assert torchgeo.get_model_weights("smarties_vit_nano") is SmartiesVitNano_Weights
        assert {"SmartiesVitNano_Weights", "smarties_vit_nano", "get_model"} <= set(dir(torchgeo))

    def test_one_for_each_sensor_and_no_member_is_another_ones_alias(self):
        assert list(SmartiesVitBase_Weights.__members__)[:4] == [
            "PRETRAIN", "PRETRAIN_S1", "PRETRAIN_RGB", "PRETRAIN_S2_L1C"
        ]  # fmt: skip
        assert len({id(member) for member in MEMBERS}) == len(MEMBERS)

    @pytest.mark.parametrize("member", MEMBERS, ids=str)
    def test_meta_is_the_records(self, member):
        record, meta = weights.RECORDS[member.meta["name"]], member.meta
        assert member.url.startswith(("https://", "package://"))
        assert (meta["license"], meta["repo"]) == (record.licence, record.repository)
        assert not meta["publication"].startswith("arXiv:")
        assert meta.get("terms") == record.terms
        assert meta["dataset"] == (record.task.data_set if record.task else record.trained_on)
        if record.inputs:
            assert {name: len(bands) for name, bands in meta["bands"].items()} == meta["in_chans"]
            assert set(meta["bands"]) == set(record.inputs)
            return
        assert len(meta["bands"]) == meta["in_chans"]
        assert ("num_classes" in meta) == (record.task is not None)
        if record.task:
            assert meta["num_classes"] == len(meta["classes"]) == len(record.task.classes)
        if record.together:
            assert meta["sensor"] == " and ".join(record.sensors)
        else:
            assert sensors.resolve_bands(meta["bands"], meta["sensor"]) == sensors.get_sensor(meta["sensor"]).band_names

    def test_bands_are_written_as_torchgeo_writes_them(self):
        assert DEMO.meta["bands"] == ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8a", "B9", "B11", "B12"]

    def test_addresses_are_where_the_files_are(self):
        assert SmartiesVitBase_Weights.PRETRAIN.url == (
            "https://huggingface.co/gsumbul/SMARTIES-v1-ViT-B/resolve/main/smarties-v1-vitb.safetensors"
        )
        assert torchgeo.MarsBaseSar_Weights.PRETRAIN.url.startswith("https://zenodo.org/records/17800805/files/")
        assert "/releases/tag/v1.0.0" in torchgeo.MultimaeEoBase_Weights.PRETRAIN.url

    @pytest.mark.parametrize(("bands", "expected"), [(["B1", "B8a"], 2), (["B01", "B8A"], 2)])
    def test_torchgeos_two_spellings_are_both_taken(self, bands, expected):
        model = torchgeo.smarties_vit_nano(weights=DEMO, bands=bands)
        assert model.bands == ("aerosol", "near_infrared_3") and len(model.bands) == expected

    def test_copies_and_pickles_are_the_member_itself(self):
        # Lightning sends tasks, which hold it, to other processes
        for member in MEMBERS:
            assert copy.deepcopy(member) is member
            assert pickle.loads(pickle.dumps(member)) is member


class TestWeights:
    def test_state_dict_is_the_verified_model(self, tmp_path):
        own = eo_zoo.create_model("smarties_vit_nano").state_dict()
        given = DEMO.get_state_dict(progress=True, check_hash=True, weights_only=True, model_dir=tmp_path)
        assert given.keys() == own.keys()
        assert all(torch.equal(given[name], own[name]) for name in own)

    def test_loading_never_goes_through_torch_hub(self, monkeypatch):
        monkeypatch.setenv("EO_ZOO_OFFLINE", "1")
        monkeypatch.setattr(torch.hub, "load_state_dict_from_url", None)
        with pytest.raises(DownloadError, match="offline mode"):
            SmartiesVitBase_Weights.PRETRAIN.get_state_dict(progress=True, check_hash=True)

    def test_a_changed_file_is_refused(self, monkeypatch):
        record = weights.RECORDS["smarties_vit_nano.demo"]
        bad = weights.Record(**{**vars(record), "sha256": "0" * 64})
        monkeypatch.setitem(weights.RECORDS, record.name, bad)
        with pytest.raises(eo_zoo.errors.WeightsError):
            DEMO.get_state_dict(check_hash=False)

    def test_first_layer_is_as_torchgeo_compares_it(self):
        # it drops a checkpoint's first layer where these differ
        model = torchgeo.smarties_vit_nano()
        first, *_ = model.named_children()
        assert first[0] == "patch_embed" and not list(first[1].named_children())
        assert first[1].in_channels == DEMO.get_state_dict()["patch_embed.weight"].shape[1]


class TestModels:
    def test_the_members_weights_and_bands(self):
        model = torchgeo.smarties_vit_nano(weights=SmartiesVitNano_Weights.DEMO_S1, num_classes=3)
        assert model.weights_origin.verified and model.training
        assert model(torch.zeros(1, 2, 112, 112)).shape == (1, 3)
        same = torchgeo.get_model("smarties_vit_nano", "SmartiesVitNano_Weights.DEMO_S1")
        assert torch.equal(same.patch_embed.weight, model.patch_embed.weight)

    def test_random_without_weights(self):
        assert torchgeo.smarties_vit_nano().weights_origin is None

    @pytest.mark.parametrize(
        ("call", "said"),
        [
            (lambda: torchgeo.get_model("smarties_nano"), "unknown model 'smarties_nano'. Did you mean"),
            (lambda: torchgeo.get_weight("SmartiesVitNano_Weights.DEM"), "SmartiesVitNano_Weights.DEMO'"),
            (
                lambda: torchgeo.smarties_vit_base(weights=DEMO),
                "holds no weights of smarties_vit_base: expected one of",
            ),
        ],
    )
    def test_bad_names_are_told(self, call, said):
        with pytest.raises(InputError, match=said):
            call()

    def test_other_names_are_attribute_errors(self):
        with pytest.raises(AttributeError, match="no attribute 'resnet18'"):
            torchgeo.resnet18  # noqa: B018


class TestTransforms:
    def test_images_are_transformed_as_by_the_models_own(self):
        x = 1000 + 2000 * torch.rand(2, 12, 40, 40)
        own = eo_zoo.create_transform("smarties_vit_nano", "S2")(x)
        assert torch.equal(DEMO.transforms(x), own)
        assert torch.equal(DEMO.transforms(x[0]), own[0])
        radar = -20 * torch.rand(1, 2, 40, 40)
        expected = eo_zoo.create_transform("smarties_vit_nano", "S1")(radar)
        assert torch.equal(SmartiesVitNano_Weights.DEMO_S1.transforms(radar), expected)

    def test_samples_keep_what_is_not_an_image(self):
        x = 1000 + 2000 * torch.rand(2, 12, 40, 40)
        mask = torch.arange(1600).view(1, 40, 40).repeat(2, 1, 1)
        sample = {"image": x, "mask": mask, "label": torch.tensor([1, 2]), "crs": "EPSG:4326"}
        made = DEMO.transforms(sample)
        assert torch.equal(made["image"], DEMO.transforms(x))
        assert made["label"] is sample["label"] and made["crs"] == "EPSG:4326"
        assert torch.equal(sample["mask"], mask)  # the caller's own is not changed
        expected = torch.nn.functional.interpolate(mask[:, None].double(), (112, 112), mode="nearest-exact")[:, 0]
        assert torch.equal(made["mask"], expected.long())

    def test_what_does_not_fit_is_told(self):
        with pytest.raises(InputError, match="no 'image', only label"):
            DEMO.transforms({"label": torch.tensor(1)})
        cropped = torchgeo.SmartiesVitLarge_Weights.RESISC45_FINETUNE.transforms
        sample = {"image": torch.full((3, 256, 256), 90.0), "mask": torch.zeros(256, 256)}
        with pytest.raises(InputError, match="takes no mask"):
            cropped(sample)
        assert SampleTransform(eo_zoo.create_transform("smarties_vit_nano", "RGB", size=96))(sample)["mask"].shape == (
            96, 96
        )  # fmt: skip
