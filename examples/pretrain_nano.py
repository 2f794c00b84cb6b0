"""Pretrain ``smarties_vit_nano`` with the project's own masked-autoencoder loss.

    python examples/pretrain_nano.py --data DIR

DIR holds the openly licensed images the bundled weights were made from:

- ``sentinel2_l2a_29RKH/B01.tif`` ... ``B12.tif``: Sentinel-2 L2A, western Sahara;
- ``sentinel1_vv_db.tif``: Sentinel-1 GRD, VV in dB;
- ``treesatai_tile/aerial.tif`` (near infrared, red, green, blue) and ``series.h5`` (TreeSatAI-TS, CC-BY 4.0).

Writes the weights, the statistics and a picture of the loss. The same command gives the same weights on the same
machine. Takes about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import rasterio
import timm
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from rasterio.enums import Resampling
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

import eo_zoo
from eo_zoo.models.smarties import SmartiesVisionTransformer
from eo_zoo.sensors import Statistics, get_sensor, normalize, resolve_bands
from eo_zoo.train.smarties import SmartiesMaskedAutoencoder, repeat_bands

SIZE = 112
S2 = get_sensor("S2").band_names
TREESAT = resolve_bands(["B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12"], "S2")
AERIAL = ("near_infrared_1", "red_1", "green_1", "blue_3")
RGB = ("red_1", "green_1", "blue_3")
Pair = tuple[tuple[Tensor, tuple[str, ...]], tuple[Tensor, tuple[str, ...]]]


def read_images(folder: Path) -> dict[str, np.ndarray]:
    """All images as float32, missing values NaN."""
    sahara = []
    for band in get_sensor("S2").bands:
        with rasterio.open(folder / "sentinel2_l2a_29RKH" / f"{band.sensor_name}.tif") as file:
            sahara.append(file.read(1, out_shape=(1098, 1098), resampling=Resampling.bilinear))
    with rasterio.open(folder / "sentinel1_vv_db.tif") as file:
        radar = file.read(masked=True).filled(np.nan)
    with rasterio.open(folder / "treesatai_tile" / "aerial.tif") as file:
        aerial = file.read()
    with h5py.File(folder / "treesatai_tile" / "series.h5") as file:
        optical = file["sen-2-data"][:]
        clear = file["sen-2-masks"][:].reshape(len(optical), -1).max(1) < 10
        series = [file[f"sen-1-{orbit}-data"][:] for orbit in ("asc", "des")]
    return {
        "sahara": np.stack(sahara).astype(np.float32),
        "radar": radar.astype(np.float32),
        "aerial": aerial.astype(np.float32),
        "forest": optical[clear],
        "forest_radar": 10 * np.log10(np.concatenate(series).clip(1e-4)),
    }


def percentiles(samples: list[np.ndarray]) -> dict[str, float]:
    """p1, p99 and the mean and std after clipping to them, every source counting the same."""
    samples = [sample[np.isfinite(sample)].ravel() for sample in samples]
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.choice(sample, 20_000) for sample in samples]).astype(np.float64)
    p1, p99 = np.percentile(values, [1, 99])
    scaled = ((values - p1) / (p99 - p1)).clip(0, 1)
    return {"p1": p1, "p99": p99, "mean": scaled.mean(), "std": scaled.std()}


def statistics(images: dict[str, np.ndarray]) -> dict[str, Statistics]:
    """The nano model's own statistics, from the images it is trained on."""
    optical = []
    for i, band in enumerate(S2):
        forest = [images["forest"][:, TREESAT.index(band)]] if band in TREESAT else []
        optical.append(percentiles([images["sahara"][i], *forest]))
    vv = percentiles([images["radar"], images["forest_radar"][:, 0]])
    vh = percentiles([images["forest_radar"][:, 1]])
    aerial = [percentiles([channel]) for channel in images["aerial"]]
    rows = {
        "nano/S2-L2A": ("S2", "dn", S2, optical),
        "nano/S1": ("S1", "db", ("microwave_1", "microwave_2"), [vv, vh]),
        "nano/RGB": ("RGB", "uint8", RGB, aerial[1:]),
        "nano/aerial": ("AERIAL", "uint8", AERIAL, aerial),
    }
    return {
        name: Statistics(
            name=name,
            sensor=sensor,
            units=units,
            bands=tuple(bands),
            source="examples/pretrain_nano.py",
            **{key: tuple(round(float(v[key]), 4) for v in values) for key in ("mean", "std", "p1", "p99")},
        )
        for name, (sensor, units, bands, values) in rows.items()
    }


def crop(image: Tensor, generator: np.random.Generator) -> Tensor:
    """A random square of half to the whole input size or more, turned at random, resized to the input size."""
    side = int(generator.integers(SIZE // 2, min(SIZE * 2, *image.shape[-2:]) + 1))
    row, column = (int(generator.integers(0, length - side + 1)) for length in image.shape[-2:])
    return turn(image[:, row : row + side, column : column + side], generator)


def turn(image: Tensor, generator: np.random.Generator) -> Tensor:
    """One of the eight symmetries, resized to the input size; unknown values become the mean."""
    image = torch.rot90(image, int(generator.integers(4)), (1, 2))
    image = image.flip(2) if generator.integers(2) else image
    image = torch.nan_to_num(image)[None]
    return F.interpolate(image, (SIZE, SIZE), mode="bilinear", antialias=image.shape[-1] > SIZE)


def make_sampler(images: dict[str, np.ndarray], table: dict[str, Statistics], seed: int) -> Callable[[int], Pair]:
    """A function from batch size to a pair of batches of one of the five kinds, all with 12 bands."""
    generator = np.random.default_rng(seed)
    norm = {
        "sahara": normalize(torch.from_numpy(images["sahara"]), table["nano/S2-L2A"]),
        "radar": normalize(torch.from_numpy(images["radar"]), table["nano/S1"].select(["VV"])),
        "aerial": normalize(torch.from_numpy(images["aerial"]), table["nano/aerial"]),
        "forest": normalize(torch.from_numpy(images["forest"]), table["nano/S2-L2A"].select(TREESAT)),
        "forest_radar": normalize(torch.from_numpy(images["forest_radar"]), table["nano/S1"]),
    }

    def one(kind: str, chosen: list[int]) -> tuple[Tensor, Tensor]:
        if kind == "sahara":
            image = crop(norm["sahara"], generator)
            return image, image[:, chosen].repeat(1, 4, 1, 1)
        if kind == "radar":
            image = crop(norm["radar"], generator).repeat(1, 12, 1, 1)
            return image, image
        if kind == "aerial":
            image = crop(norm["aerial"], generator)
            return image[:, 1:].repeat(1, 4, 1, 1), image.repeat(1, 3, 1, 1)
        day, night = (int(generator.integers(len(norm[key]))) for key in ("forest", "forest_radar"))
        both = turn(torch.cat([norm["forest"][day][chosen], norm["forest_radar"][night]]), generator)
        return both[:, :6].repeat(1, 2, 1, 1), both[:, 6:].repeat(1, 6, 1, 1)

    def sample(batch: int) -> Pair:
        kind = str(generator.choice(["sahara", "radar", "aerial", "forest"], p=[0.6, 0.1, 0.15, 0.15]))
        if kind == "sahara":
            # any three bands in the second image's place, so that every band meets every other
            chosen = sorted(generator.choice(12, 3, replace=False).tolist())
            names = S2, repeat_bands(torch.zeros(1, 3, 1, 1), [S2[i] for i in chosen])[1]
        elif kind == "radar":
            chosen, names = [], (("microwave_1",) * 12,) * 2
        elif kind == "aerial":
            chosen, names = [], (RGB * 4, AERIAL * 3)
        else:
            chosen = sorted(generator.choice(10, 6, replace=False).tolist())
            names = tuple(TREESAT[i] for i in chosen) * 2, ("microwave_1", "microwave_2") * 6
        first, second = zip(*(one(kind, chosen) for _ in range(batch)), strict=True)
        return (torch.cat(first), names[0]), (torch.cat(second), names[1])

    return sample


def train(
    sample: Callable[[int], Pair], *, steps: int, batch: int, seed: int
) -> tuple[SmartiesVisionTransformer, list[float]]:
    """AdamW, cosine schedule with warmup, as the published run at its size."""
    torch.manual_seed(seed)
    encoder = timm.create_model("smarties_vit_nano")
    model = SmartiesMaskedAutoencoder(encoder, decoder_dim=64, decoder_depth=2, decoder_heads=4, norm_pix_loss=False)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05)
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda i: min((i + 1) / warmup, 0.5 * (1 + math.cos(math.pi * i / steps)))
    )
    losses = []
    progress = tqdm(range(steps))
    for _ in progress:
        (first, first_bands), (second, second_bands) = sample(batch)
        loss = model(first, second, first_bands=first_bands, second_bands=second_bands).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        progress.set_postfix(loss=f"{np.mean(losses[-100:]):.3f}")
    return encoder.eval(), losses


def draw_curve(losses: list[float], path: Path) -> None:
    """The loss over the steps, averaged over fifty of them."""
    smooth = np.convolve(losses, np.ones(50) / 50, mode="valid")
    width, height, margin = 640, 320, 40
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    x = np.linspace(margin, width - 10, len(smooth))
    y = height - margin - smooth / smooth.max() * (height - 2 * margin)
    draw.line(list(zip(x.tolist(), y.tolist(), strict=True)), fill=(30, 90, 160), width=2)
    draw.line([(margin, 10), (margin, height - margin), (width - 10, height - margin)], fill="black")
    draw.text((margin, height - 30), f"{len(losses)} steps", fill="black")
    draw.text((margin + 5, 10), f"loss {smooth[0]:.3f} to {smooth[-1]:.3f}", fill="black")
    picture.save(path)


def main() -> None:
    """Parse the arguments, train, write."""
    package = Path(eo_zoo.__file__).parent / "data"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the images")
    parser.add_argument("--out", type=Path, default=package, help="where weights and statistics go")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    images = read_images(arguments.data)
    table = statistics(images)
    sample = make_sampler(images, table, arguments.seed)
    encoder, losses = train(sample, steps=arguments.steps, batch=arguments.batch, seed=arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}
    # the header says that these are our names already, so the file is used as it is
    header = {"eo_zoo.layout": encoder.layout}
    save_file(tensors, arguments.out / "smarties_vit_nano.demo.safetensors", metadata=header)
    # the aerial image's near infrared is only trained with, so its statistics are not recorded
    rows = [f'  "{name}": {json.dumps(one.to_dict())}' for name, one in table.items() if name != "nano/aerial"]
    (arguments.out / "statistics_nano.json").write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
    draw_curve(losses, arguments.out / "loss.png")
    print(f"loss {np.mean(losses[:50]):.3f} to {np.mean(losses[-200:]):.3f}; written to {arguments.out}")


if __name__ == "__main__":
    main()
