"""Stand-ins for a scene and a model, so that tiling, blending and writing are tested without either."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from affine import Affine
from rasterio.crs import CRS
from torch import Tensor, nn

from eo_zoo.sensors import Statistics

BANDS = ("blue_1", "green_2", "red_2")
PATCH, TILE, CHANNELS = 4, 24, 5


def statistics(bands: tuple[str, ...] = BANDS) -> Statistics:
    n = len(bands)
    return Statistics(
        name="fake", sensor="S2", units="dn", bands=bands,
        mean=(0.4,) * n, std=(0.25,) * n, p1=(0.0,) * n, p99=(1000.0,) * n,
    )  # fmt: skip


class FakeScene:
    """A scene over arrays (bands, rows, columns). Reads are recorded in ``reads``."""

    sensor = "S2"
    units = "dn"

    def __init__(
        self,
        values: np.ndarray,
        valid: np.ndarray | None = None,
        *,
        bands: tuple[str, ...] = BANDS,
        origin: tuple[float, float] = (300_000.0, 4_000_000.0),
        gsd: float = 10.0,
    ) -> None:
        self.values = values.astype(np.float32)
        self.valid = np.ones(values.shape, bool) if valid is None else valid
        self.bands = bands
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.reads: list[tuple[int, int, int, int]] = []
        self.grid = SimpleNamespace(
            crs=CRS.from_epsg(32629),
            transform=Affine(gsd, 0, origin[0], 0, -gsd, origin[1]),
            width=values.shape[2],
            height=values.shape[1],
            gsd=gsd,
        )

    def sample(self) -> dict[str, np.ndarray]:
        return {band: self.values[i][self.valid[i]] for i, band in enumerate(self.bands)}

    def read(self, row: int, col: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        self.reads.append((row, col, height, width))
        # What an invalid pixel holds is nobody's business: here it is NaN beyond the raster.
        values = np.full((len(self.values), height, width), np.nan, np.float32)
        valid = np.zeros(values.shape, bool)
        part = np.s_[:, row : row + height, col : col + width]
        shape = self.values[part].shape
        values[:, : shape[1], : shape[2]] = self.values[part]
        valid[:, : shape[1], : shape[2]] = self.valid[part]
        return values, valid


@dataclass(frozen=True)
class Origin:
    name: str | None = "fake_net.demo"
    source: str = "/somewhere/secret/fake.safetensors"
    sha256: str = "ab" * 32
    verified: bool = True


class FakeModel(nn.Module):
    """Patches projected at random and mixed over the whole tile, with timm's methods; 3 layers.

    A cell's features depend on where in the tile it lies and on the other cells, as a transformer's do:
    without blending, neighbouring tiles disagree.
    """

    def __init__(
        self, *, bands: int = len(BANDS), mixing: float = 0.1, global_pool: str = "token", tile: int = TILE
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        cells = (tile // PATCH) ** 2
        self.project = nn.Conv2d(bands, CHANNELS, PATCH, PATCH)
        self.mix = nn.Parameter(torch.eye(cells) + mixing * torch.rand(cells, cells, generator=generator))
        with torch.no_grad():
            self.project.weight.copy_(torch.rand(self.project.weight.shape, generator=generator) - 0.3)
            self.project.bias.copy_(torch.rand(CHANNELS, generator=generator))
        self.global_pool = global_pool
        self.feature_info = [{"num_chs": CHANNELS, "reduction": PATCH} for _ in range(3)]
        self.pretrained_cfg = {"input_size": (bands, tile, tile), "architecture": "fake_net"}
        self.weights_origin = Origin()
        self.batches: list[int] = []

    def forward_features(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        return torch.einsum("bcn,nm->bcm", self.project(x).flatten(2), self.mix).transpose(1, 2)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x.mean(dim=1) if self.global_pool == "avg" else x[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self, x: Tensor, indices: list[int], norm: bool = False, intermediates_only: bool = False
    ) -> list[Tensor]:
        side = x.shape[-1] // PATCH
        features = self.forward_features(x).transpose(1, 2).unflatten(2, (side, side))
        return [features * (index + 1) for index in indices]


def noise(height: int, width: int, *, bands: int = len(BANDS), seed: int = 0) -> np.ndarray:
    """Values from 0 to 1100, so that some are clipped by ``statistics()``."""
    return np.random.default_rng(seed).uniform(0, 1100, (bands, height, width)).astype(np.float32)
