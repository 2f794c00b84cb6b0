"""MMEarth's reader on small files in the data set's layout."""

from __future__ import annotations

import json
import os
import pickle
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from eo_zoo.errors import InputError, MissingExtra
from eo_zoo.models.multimae import MultiMae
from eo_zoo.models.multimae_domains import DOMAINS
from eo_zoo.train.mmearth import MMEarth
from eo_zoo.train.multimae import MultiMaePretraining
from tests.train.mmearth_data import CODES, band_stats, level_of, tiles, write

h5py = pytest.importorskip("h5py")

# of the 13 bands in the files' order, from the model's description; ours go by name
INDICES = {"rgb": [3, 2, 1], "ired": [4, 5, 6], "sired": [11, 12], "ebands": [7, 8]}


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "data_1M_v001_64")


def plain(path, **options):
    """Without mirroring, at the files' own size."""
    return MMEarth(path, **{"size": 64, "hflip": 0, **options})


def standardised(domain, values, stats, level):
    own = stats[f"sentinel2_{level}"]
    mean, std = (np.array(own[key])[INDICES[domain], None, None] for key in ("mean", "std"))
    return torch.from_numpy((values[INDICES[domain]] - mean) / std).float()


# ---- values ----


def test_items(path):
    dataset = MMEarth(path)
    assert len(dataset) == 4 and len(MMEarth(path, "val")) == 2
    item = dataset[0]
    assert set(item) == {key for name in DOMAINS for key in (name, f"{name}_mask")}
    for name, domain in DOMAINS.items():
        shape = (14, 14) if domain.classes else (domain.channels, 56, 56)
        assert item[name].shape == item[f"{name}_mask"].shape == shape
        assert item[name].dtype == (torch.int64 if domain.classes else torch.float32)
        assert item[f"{name}_mask"].dtype == torch.bool and item[f"{name}_mask"].all()
    assert MMEarth(path, domains=["depth", "rgb"])[0].keys() == {"rgb", "rgb_mask", "depth", "depth_mask"}


@pytest.mark.parametrize("merged", [False, True])
def test_bands_and_statistics_of_each_level(tmp_path, merged):
    """Both levels are standardised by their own statistics, in both of the data set's layouts of the metadata."""
    arrays = tiles()
    dataset, stats = plain(write(tmp_path, arrays, merged=merged)), band_stats(arrays)
    rows = json.loads((tmp_path / "data_1M_v001_64_splits.json").read_text())["train"]
    assert {level_of(row) for row in rows} == {"l2a", "l1c"}
    for row, item in zip(rows, dataset, strict=True):
        for domain in INDICES:
            expected = standardised(domain, arrays["sentinel2"][row], stats, level_of(row))
            torch.testing.assert_close(item[domain], expected, rtol=0, atol=1e-5)


def test_resized_as_the_public_code(path):
    """Bilinear, no antialiasing, standardised before."""
    arrays = tiles()
    row = MMEarth(path).rows[1]
    expected = standardised("rgb", arrays["sentinel2"][row], band_stats(arrays), level_of(row))
    expected = F.interpolate(expected[None], (56, 56), mode="bilinear")[0]
    torch.testing.assert_close(MMEarth(path, hflip=0)[1]["rgb"], expected, rtol=0, atol=1e-5)


def test_elevation_is_standardised_by_itself(path):
    """Of the middle 80 % of the sorted values; slope, the second channel, is not read."""
    dataset = plain(path)
    raw = torch.from_numpy(tiles()["aster"][dataset.rows[0], 0].astype("float32"))
    ordered = raw.flatten().sort().values
    inner = ordered[int(0.1 * len(ordered)) : int(0.9 * len(ordered))]
    expected = (raw - inner.mean()) / inner.var().sqrt()
    torch.testing.assert_close(dataset[0]["depth"][0], expected, rtol=1e-4, atol=1e-4)


def test_labels_are_classes_of_nearest_pixels(path):
    dataset = plain(path)
    codes = tiles()["esa_worldcover"][dataset.rows[0], 0]
    labels = dataset[0]["semseg"]
    assert labels.shape == (16, 16)
    torch.testing.assert_close(labels, torch.from_numpy(np.searchsorted(CODES, codes[2::4, 2::4])))


# ---- what is missing ----


def test_fill_values_become_masks(tmp_path):
    arrays = tiles()
    arrays["sentinel2"][:, 3, 10, 20] = 0  # B4: red
    arrays["aster"][:, 0, 5:9, 7] = [-32768, -9999, 32767, -1001]
    arrays["aster"][:, 1] = -32768  # slope
    arrays["esa_worldcover"][:, 0, 2, 2], arrays["esa_worldcover"][:, 0, 2, 6] = 0, 255
    item = plain(write(tmp_path, arrays))[0]
    mask = torch.ones(3, 64, 64, dtype=torch.bool)
    mask[0, 10, 20] = False
    assert torch.equal(item["rgb_mask"], mask) and item["rgb"][0, 10, 20] == 0
    assert item["ired_mask"].all()
    assert not item["depth_mask"][0, 5:9, 7].any() and item["depth_mask"].sum() == 64 * 64 - 4
    assert (item["depth"][0, 5:9, 7] == 0).all() and item["depth"].abs().max() < 10
    assert item["semseg"][0, 0] == item["semseg"][0, 1] == 11
    assert not item["semseg_mask"][0, :2].any() and item["semseg_mask"].sum() == 16 * 16 - 2


def test_nothing_missing_gets_through_resizing(tmp_path):
    """A value is real only if all that it is made of are: a gap changes no value where the mask is True."""
    arrays = tiles()
    whole = MMEarth(write(tmp_path / "whole", arrays), hflip=0)[0]
    arrays["sentinel2"][:, 3, 10:12, 20] = 0
    (tmp_path / "gap").mkdir()
    stats = (tmp_path / "whole" / "data_1M_v001_64_band_stats.json").read_text()
    path = write(tmp_path / "gap", arrays)
    path.with_name("data_1M_v001_64_band_stats.json").write_text(stats)
    gap = MMEarth(path, hflip=0)[0]
    mask = gap["rgb_mask"]
    assert 0 < (~mask).sum() <= 12
    assert torch.equal(gap["rgb"][mask], whole["rgb"][mask]) and (gap["rgb"][~mask] == 0).all()


def test_a_file_of_floats_with_nan_everywhere(tmp_path):
    """Files that were saved again as floats; a whole array, band or tile may be missing."""
    arrays = {key: values.astype("float32") for key, values in tiles().items()}
    stats = band_stats(arrays)
    arrays["sentinel2"][:, :, ::7], arrays["sentinel2"][:, 4] = np.nan, np.inf
    arrays["aster"][::2], arrays["aster"][1::2, :, 3] = -np.inf, np.nan
    arrays["esa_worldcover"][:, :, ::2] = np.nan
    path = write(tmp_path, arrays)
    path.with_name("data_1M_v001_64_band_stats.json").write_text(json.dumps(stats))
    for batch in DataLoader(MMEarth(path), batch_size=2):
        for name, domain in DOMAINS.items():
            assert batch[name].isfinite().all()
            gone = batch[name][~batch[f"{name}_mask"]]
            assert gone.numel() and (gone == (11 if domain.classes else 0)).all()
        assert not batch["ired_mask"][:, 0].any()
        assert batch["rgb_mask"].any() and batch["semseg_mask"].any()
    flat = [not item["depth_mask"].any() for item in MMEarth(path)]
    assert any(flat) and not all(flat)


def test_what_is_missing_counts_in_no_loss(tmp_path):
    """A batch goes into pretraining as it is; a band that is missing has no say in the loss, though it has values."""
    arrays = tiles()
    arrays["sentinel2"][:, 3], arrays["aster"][:3] = 0, -32768  # red everywhere; half of the elevation
    arrays["esa_worldcover"][:, :, :32] = 0
    path = write(tmp_path, arrays)
    change(path, "band_stats", band_stats(tiles()))
    torch.manual_seed(0)
    model = MultiMaePretraining(MultiMae(embed_dim=32, depth=1, num_heads=2), decoder_dim=32, decoder_depth=1)
    batch = next(iter(DataLoader(MMEarth(path), batch_size=4)))

    def losses(data):
        return model(data, generator=torch.Generator().manual_seed(0), visible=shown).losses

    shown = {name: torch.arange(49).expand(4, 49) < 8 for name in DOMAINS}  # the same patches of each
    plain_losses = losses(batch)
    sum(plain_losses.values()).backward()
    assert all(loss.isfinite() and loss > 0 for loss in plain_losses.values())
    batch["rgb"][:, 0, 16:] = 7.0  # hidden patches of the missing band
    batch["semseg"][:, 4:7] = 0  # "no data" before
    assert losses(batch) == plain_losses


# ---- mirroring and workers ----


def test_mirroring(tmp_path):
    arrays = tiles()
    arrays["sentinel2"][..., :9], arrays["aster"][..., :5], arrays["esa_worldcover"][..., :20] = 0, -32768, 0
    path = write(tmp_path, arrays)
    whole, mirrored = plain(path)[0], plain(path, hflip=1)[0]
    for key, x in whole.items():
        assert torch.equal(mirrored[key], x.flip(-1))
    half = MMEarth(path, size=64)
    kinds = []
    for _ in range(2):
        torch.manual_seed(0)
        kinds.append([torch.equal(half[0]["rgb"], whole["rgb"]) for _ in range(64)])
    assert kinds[0] == kinds[1] and 16 < sum(kinds[0]) < 48


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers(path, context):
    """After the parent has read, as after a first look at the data; and of two splits of one file."""
    dataset, other = plain(path), plain(path, split="val")
    serial, _ = list(dataset), other[0]
    workers = 2 if context == "fork" else 1  # a spawned one imports everything again
    loader = DataLoader(dataset, batch_size=1, num_workers=workers, multiprocessing_context=context)
    for item, batch in zip(serial, loader, strict=True):
        assert all(torch.equal(batch[key][0], x) for key, x in item.items())
    assert torch.equal(dataset[0]["rgb"], serial[0]["rgb"])


def test_each_process_opens_the_file(path):
    class Processes(MMEarth):
        def __getitem__(self, index):
            super().__getitem__(index)
            return os.getpid(), self._process

    dataset = Processes(path)
    assert dataset[0] == (os.getpid(), os.getpid())
    seen = list(DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork"))
    assert len({here for here, _ in seen}) == 2
    assert all(here == opened != os.getpid() for here, opened in seen)


def test_mirroring_in_workers_is_random_and_repeatable(tmp_path):
    dataset = MMEarth(write(tmp_path, tiles(count=26, pixels=16)), domains=["rgb"], size=16)
    plainly = [x["rgb"] for x in plain(dataset.path, domains=["rgb"], size=16)]

    def epochs(seed):
        generator = torch.Generator().manual_seed(seed)
        loader = DataLoader(dataset, batch_size=None, num_workers=2, generator=generator)
        return [[torch.equal(x["rgb"], own) for x, own in zip(loader, plainly, strict=True)] for _ in range(2)]

    first, second = epochs(0)
    assert epochs(0) == [first, second]
    assert first != second and first[::2] != first[1::2]  # another epoch, another worker


def test_a_copy_reads_for_itself(path):
    dataset = plain(path)
    first = dataset[0]["rgb"]
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[0]["rgb"], first)


# ---- which files ----


def test_the_file_its_folder_or_the_folder_of_that(tmp_path):
    names = {"MMEarth": "data_1M_v001", "MMEarth64": "data_1M_v001_64", "MMEarth100k": "data_100k_v001"}
    for pixels, (subset, name) in zip((128, 64, 128), names.items(), strict=True):
        file = write(tmp_path / name, tiles(count=4, pixels=pixels), name=name)
        assert MMEarth(file).path == MMEarth(file.parent).path == MMEarth(tmp_path, subset=subset).path == file
        assert MMEarth(file)[0]["rgb"].shape == (3, 56, 56)
        if subset == "MMEarth":
            assert MMEarth(tmp_path).path == file
    with pytest.raises(InputError, match=r"several files, data_1M_v001.h5, data_1M_v001_64.h5, data_100k_v001.h5"):
        MMEarth(tmp_path)
    with pytest.raises(InputError, match=r"has no data_1M_v001.h5: give"):
        MMEarth(tmp_path / "data_1M_v001_64", subset="MMEarth")
    with pytest.raises(InputError, match=r"unknown subset 'MMEarth46'\. Did you mean"):
        MMEarth(tmp_path, subset="MMEarth46")
    with pytest.raises(InputError, match=r"nowhere has no data_1M_v001.h5 or .*: give MMEarth's folder"):
        MMEarth(tmp_path / "nowhere")


def change(path, what, values):
    path.with_name(f"{path.stem}_{what}.json").write_text(values if isinstance(values, str) else json.dumps(values))


@pytest.mark.parametrize("what", ["splits", "tile_info", "band_stats"])
def test_a_missing_or_broken_json_file(path, what):
    change(path, what, '{"train": [')
    with pytest.raises(InputError, match=rf"{path.stem}_{what}.json(:| cannot be read as| )"):
        MMEarth(path)
    path.with_name(f"{path.stem}_{what}.json").unlink()
    with pytest.raises(InputError, match=rf"{path.stem}_{what}.json(: cannot be read| is missing: download it)"):
        MMEarth(path)


@pytest.mark.parametrize(
    "what, values, message",
    [
        ("splits", {"train": [0, 6]}, r"names place 6, but .*data_1M_v001_64.h5 has 6 tiles"),
        ("splits", {"train": [-1, 2]}, "names place -1"),
        ("splits", {"train": ["a"]}, "'train' holds other than whole numbers"),
        ("splits", {"train": []}, r"'train' is empty \(tiles: train 0\)"),
        ("splits", {"trian": [1]}, "has no split 'train'. Did you mean 'trian'?"),
        ("splits", [1, 2], "expected lists of places by split"),
        ("tile_info", {"100": {"S2_type": "l2b"}}, "tile '100' has no S2_type that is l2a or l1c"),
        ("tile_info", {"100": {"S2_DATE": "2019"}}, "tile '100' has no S2_type"),
        ("tile_info", {}, "expected facts by tile"),
        ("tile_info", [], "expected facts by tile"),
        ("band_stats", {"aster": {"mean": [1.0, 2.0], "std": [1.0, 2.0]}}, "has no sentinel2_l2a with 13 numbers"),
    ],
)
def test_json_files_of_other_content(path, what, values, message):
    change(path, what, values)
    with pytest.raises(InputError, match=message):
        MMEarth(path)


def test_an_unknown_split(path):
    with pytest.raises(InputError, match="has no split 'validation'"):
        MMEarth(path, "validation")
    with pytest.raises(InputError, match=r"'test' is empty \(tiles: train 4, val 2, test 0\)"):
        MMEarth(path, "test")


def test_a_tile_that_the_facts_do_not_know(path):
    change(path, "tile_info", {"7": {"S2_type": "l2a"}})
    with pytest.raises(InputError, match=r"_tile_info.json has no tile '10\d', which .*.h5 has in place \d"):
        MMEarth(path)[0]


def test_no_l1c_at_all(path):
    """Then MMEarth's own statistics of L1C are all NaN, which is no fault."""
    stats = json.loads(path.with_name(f"{path.stem}_band_stats.json").read_text())
    stats["sentinel2_l1c"] = {"mean": [float("nan")] * 13, "std": [float("nan")] * 13}
    change(path, "band_stats", stats)
    with pytest.raises(InputError, match="has no usable mean and std of sentinel2_l1c"):
        MMEarth(path)
    change(path, "tile_info", {str(100 + place): {"S2_type": "l2a"} for place in range(6)})
    assert MMEarth(path)[0]["rgb"].isfinite().all()


@pytest.mark.parametrize(
    "array, values, message",
    [
        ("aster", None, r"has no array 'aster', which depth need; it has biome, canopy"),
        ("metadata", None, "has no array 'metadata' with a tile_id"),
        ("metadata", np.zeros(6), "has no array 'metadata' with a tile_id"),
        ("sentinel2", np.ones((6, 12, 8, 8)), r"sentinel2 is \(6, 12, 8, 8\), expected \(6 tiles, 13 bands, H, W\)"),
        ("esa_worldcover", np.ones((5, 1, 8, 8)), r"esa_worldcover is \(5, 1, 8, 8\), expected \(6 tiles, 1 bands"),
        (
            "esa_worldcover",
            np.full((6, 1, 8, 8), 11, "uint8"),
            r", tile 10\d: 64 land-cover values are no .* \(11\)",
        ),
    ],
)
def test_arrays_that_do_not_fit(path, array, values, message):
    with h5py.File(path, "r+") as file:
        del file[array]
        if values is not None:
            file[array] = values
    with pytest.raises(InputError, match=message):
        MMEarth(path)[0]


def test_an_array_that_nobody_asked_for_may_be_missing(path):
    with h5py.File(path, "r+") as file:
        del file["aster"]
    assert MMEarth(path, domains=["rgb", "semseg"])[0].keys() == {"rgb", "rgb_mask", "semseg", "semseg_mask"}


def test_a_damaged_file(path):
    dataset = plain(path)
    with h5py.File(path) as file:
        places = [file["sentinel2"].id.get_chunk_info(row) for row in range(6)]
    content = bytearray(path.read_bytes())
    for place in places:
        content[place.byte_offset : place.byte_offset + place.size] = bytes(place.size)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"cannot be read as HDF5 \(.*\): download it again"):
        dataset[0]
    cut = path.with_name("cut.h5")
    for size in (0, 100, 1000, 5000):
        cut.write_bytes(content[:size])
        for what in ("splits", "tile_info", "band_stats"):
            change(cut, what, path.with_name(f"{path.stem}_{what}.json").read_text())
        with pytest.raises(InputError, match=r"cannot be read as HDF5|no array 'metadata'"):
            MMEarth(cut)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"domains": ["rgb", "deptt"]}, "unknown domain 'deptt'. Did you mean 'depth'?"),
        ({"domains": []}, "domains is empty: give at least one of rgb"),
        ({"size": 58}, "size is 58, hflip 0.5; expected a multiple of 4"),
        ({"size": 0}, "size is 0"),
        ({"hflip": 1.5}, "hflip 1.5; expected .* from 0 to 1"),
    ],
)
def test_options_out_of_range(path, options, message):
    with pytest.raises(InputError, match=message):
        MMEarth(path, **options)


def test_beyond_the_end(path):
    with pytest.raises(IndexError):
        MMEarth(path)[4]


def test_without_h5py(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtra, match=r'pip install "eo-zoo\[train\]"'):
        MMEarth(path)
