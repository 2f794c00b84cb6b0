"""Pretrain a small MultiMAE on the Sentinel-2 scene in examples/sahara: the losses, their curves, a reconstruction.

    python examples/pretrain_multimae.py

It learns from random squares of 56 x 56 pixels and is judged by nine squares of a corner that it never sees, the same
patches hidden each time; it fails if the loss of any domain does not fall. The same seed gives the same losses on the
same machine. Takes one to two minutes on a CPU.

The bands of rgb, ired, sired and ebands are real. The repository holds no elevation model and no land-cover map, so the
other two domains are STAND-INS made from the same scene; they are neither elevation nor land cover:

- depth: B9, which is in no other domain and has pixels of 600 m here, so a smooth surface;
- semseg: nine classes, thirds of brightness by thirds of redness (B4 / B2).
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from tqdm import tqdm

from eo_zoo import sensors
from eo_zoo.geo import open_scene
from eo_zoo.geo.panels import SAID, Row, draw
from eo_zoo.models.multimae import MultiMae
from eo_zoo.models.multimae_domains import DOMAINS, RASTERS, resized, standardize_depth
from eo_zoo.train.multimae import MultiMaePretraining, sample_visible

SCENE = Path(__file__).parent / "sahara"
SIZE, VISIBLE = 56, 49  # pixels of a square; its patches that the model is shown, of 49 in each domain
HELD_OUT = 3 * SIZE  # pixels a side of the corner, bottom right, that is not trained on
ENDS = 20  # steps whose median is a loss at the beginning and at the end
STAND_INS = {"depth": "stand-in: B9 at 600 m, not elevation", "semseg": "stand-in: kinds of colour, not land cover"}
LIGHTS, HUES = {"dark": 80, "medium": 145, "bright": 215}, {"pale": (9, 10, 11), "brown": (11, 9, 5), "red": (11, 5, 4)}
CLASSES = [
    (f"{light}, {hue}", tuple(value * part // 10 for part in parts))
    for light, value in LIGHTS.items()
    for hue, parts in HUES.items()
]
COLOURS = ["#d55e00", "#0072b2", "#009e73", "#cc79a7", "#000000", "#e69f00", "#56b4e9"]  # told apart by all eyes
Batch = dict[str, Tensor]


def read_domains() -> Batch:
    """All domains of the whole scene: (1, C, H, W), bands normalised by what is trained on; labels (1, H, W)."""
    names = sensors.get_sensor("S2").band_names
    with open_scene(SCENE, default_sensor="S2", accepts=names, target_units="dn") as scene:
        values, _ = scene.read(0, 0, scene.grid.height, scene.grid.width)
        band = dict(zip(scene.bands, torch.from_numpy(values), strict=True))
    seen = torch.ones(scene.grid.height, scene.grid.width, dtype=torch.bool)
    seen[-HELD_OUT:, -HELD_OUT:] = False
    normal = {name: (x - x[seen].mean()) / x[seen].std() for name, x in band.items()}
    domains = {
        name: torch.stack([normal[one] for one in sensors.get_order(DOMAINS[name].order)])[None]
        for name in RASTERS["s2"]
    }
    b2, b4, b9 = (band[name] for name in sensors.resolve_bands(["B2", "B4", "B9"], "S2"))
    looks = F.avg_pool2d(torch.stack([sum(band.values()), b4 / b2]), 5, 1, padding=2, count_include_pad=False)
    thirds = torch.tensor([1 / 3, 2 / 3])
    light, hue = (torch.bucketize(one, one[seen].quantile(thirds)) for one in looks)
    return domains | {"depth": b9[None, None], "semseg": (3 * light + hue)[None]}


def squares(scene: Batch, corners: list[tuple[int, int]]) -> Batch:
    """The squares with these top-left pixels, in one batch, as the model takes them."""
    batch = {name: torch.cat([x[..., r : r + SIZE, c : c + SIZE] for r, c in corners]) for name, x in scene.items()}
    return batch | {"depth": standardize_depth(batch["depth"]), "semseg": resized("semseg", batch["semseg"], SIZE)}


def random_squares(scene: Batch, count: int, generator: torch.Generator) -> Batch:
    """Squares that do not touch the held-out corner, half of them mirrored."""
    height, width = scene["rgb"].shape[-2:]
    corners: list[tuple[int, int]] = []
    while len(corners) < count:
        row, col = (int(torch.randint(side - SIZE + 1, (), generator=generator)) for side in (height, width))
        if row + SIZE <= height - HELD_OUT or col + SIZE <= width - HELD_OUT:
            corners.append((row, col))
    mirrored = torch.rand(count, generator=generator) < 0.5
    batch = squares(scene, corners)
    return {
        name: torch.stack([one.flip(-1) if m else one for one, m in zip(x, mirrored, strict=True)])
        for name, x in batch.items()
    }


def held_out(scene: Batch, seed: int) -> tuple[Batch, Batch]:
    """The nine squares of the corner, and which of their patches are visible."""
    starts = [range(side - HELD_OUT, side, SIZE) for side in scene["rgb"].shape[-2:]]
    batch = squares(scene, [(row, col) for row in starts[0] for col in starts[1]])
    counts = dict.fromkeys(batch, (SIZE // 8) ** 2)
    generator = torch.Generator().manual_seed(seed)
    return batch, sample_visible(counts, len(batch["rgb"]), VISIBLE, generator=generator)


def train(
    model: MultiMaePretraining, scene: Batch, *, steps: int, batch: int, rate: float, seed: int
) -> dict[str, list[float]]:
    """AdamW as in the published run; the rate rises at first and falls at last. Held-out losses before each step."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.05)
    rise, fall = max(1, steps // 20), max(1, steps // 5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda i: min((i + 1) / rise, 1, (steps - i) / fall))
    judged_by, visible = held_out(scene, seed)
    losses: dict[str, list[float]] = {}
    progress = tqdm(range(steps))
    for _ in progress:
        with torch.no_grad():
            for name, one in model(judged_by, visible=visible).losses.items():
                losses.setdefault(name, []).append(one.item())
        loss = model(random_squares(scene, batch, generator), visible=VISIBLE, generator=generator).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        progress.set_postfix(loss=f"{sum(own[-1] for own in losses.values()):.3f}")
    return losses


def draw_curves(losses: dict[str, list[float]], path: Path) -> None:
    """Each held-out loss over the steps on a logarithmic axis, its name at the line's end."""
    left, top, wide, high, margin = 56, 36, 670, 440, 140
    steps, every = len(losses["rgb"]), [loss for own in losses.values() for loss in own]
    least, most = math.log(min(every) / 1.1), math.log(max(every) * 1.1)

    def at(step: float, loss: float) -> tuple[float, float]:
        return left + wide * step / max(steps - 1, 1), top + high * (most - math.log(loss)) / (most - least)

    page = Image.new("RGB", (left + wide + margin, top + high + 36), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    ticks = [digit * 10.0**power for power in range(-4, 3) for digit in (1, 1.5, 2, 3, 4, 5, 6, 8)]
    for tick in (tick for tick in ticks if least <= math.log(tick) <= most):
        pen.line([at(0, tick), at(steps - 1, tick)], "gainsboro")
        pen.text((left - 8, at(0, tick)[1]), f"{tick:g}", "black", font, anchor="rm")
    for step in range(0, steps + 1, max(1, steps // 8)):
        pen.text((at(step, 1)[0], top + high + 8), str(step), "black", font, anchor="mt")
    pen.text((left, 10), "loss of what is hidden, on squares that are not trained on, by step", "black", font)
    order = sorted(losses, key=lambda name: losses[name][-1], reverse=True)
    label = top - 18.0
    for name, colour in zip(order, COLOURS, strict=True):
        pen.line([at(step, loss) for step, loss in enumerate(losses[name])], colour, 2, joint="curve")
        x, y = at(steps - 1, losses[name][-1])
        label = max(label + 18, y)  # names must not lie on each other
        pen.line([(x, y), (x + 14, label)], colour)
        pen.text((x + 18, label), f"{name} {losses[name][-1]:.3g}", colour, font, anchor="lm")
    page.save(path)


def draw_reconstruction(model: MultiMaePretraining, scene: Batch, path: Path, *, seed: int, square: int) -> None:
    """One of the held-out squares, as ``eo-zoo reconstruct`` draws it."""
    batch, visible = held_out(scene, seed)
    with torch.no_grad():
        made = model.eval().reconstruct(batch, visible=visible)
    rows = []
    for name, x in batch.items():
        side = SIZE // 8
        seen = visible[name][square].view(side, side).numpy()
        prediction = made[name][square].argmax(0) if DOMAINS[name].classes else made[name][square]
        lines = (STAND_INS.get(name, SAID[name]), "", f"{seen.sum()} of {seen.size} patches visible")
        rows.append(Row(name, x[square].numpy(), prediction.numpy(), seen, lines))
    draw(path, rows, CLASSES)


def main() -> None:
    """Parse the arguments, train, draw, and tell whether every loss fell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the two pictures")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-3, help="largest learning rate")
    parser.add_argument("--weighting", choices=("sum", "uncertainty"), default="sum", help="how losses are added up")
    parser.add_argument("--square", type=int, default=4, choices=range(9), help="of the held-out ones, to draw")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)
    model = MultiMaePretraining(
        MultiMae(embed_dim=128, depth=2, num_heads=4),
        decoder_dim=64,
        decoder_depth=1,
        decoder_heads=4,
        weighting=arguments.weighting,
    )
    for adapter in model.output_adapters.values():
        # random outputs would be unlearned first, which takes most of so few steps
        torch.nn.init.zeros_(adapter.out_proj.weight)
    scene = read_domains()
    losses = train(model, scene, steps=arguments.steps, batch=arguments.batch, rate=arguments.rate, seed=arguments.seed)
    draw_curves(losses, arguments.out / "multimae_losses.png")
    draw_reconstruction(
        model, scene, arguments.out / "multimae_reconstruction.png", seed=arguments.seed, square=arguments.square
    )
    risen, ends = [], min(ENDS, -(-arguments.steps // 4))
    for name, own in losses.items():
        first, last = np.median(own[:ends]), np.median(own[-ends:])
        print(f"{name:>8}: {first:.3f} to {last:.3f}")
        risen += [name] * bool(last >= first)
    print(f"written: multimae_losses.png and multimae_reconstruction.png in {arguments.out}")
    if risen:
        sys.exit(f"the loss of {', '.join(risen)} did not fall in {arguments.steps} steps: give --steps more")


if __name__ == "__main__":
    main()
