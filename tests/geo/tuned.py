"""A stand-in for a tuned model and its records, so that classifying is tested without weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eo_zoo import create_transform
from eo_zoo.geo.classify import Prediction
from eo_zoo.geo.predict import predict_raster
from eo_zoo.sensors import get_sensor, normalize
from eo_zoo.weights import RECORDS, Record, Task
from tests.geo import rasters
from tests.geo.fakes import BANDS, Origin, statistics

CLASSES = ("water", "forest", "urban")
SIZE, INPUT = 16, 24  # pixels a side of the data set's images, and of the model's input
X, Y = rasters.ORIGIN


class FakeTuned(nn.Module):
    """One class a band, of the last ones: the logits are the bands' means, of pixels weighted by their place.

    For segmentation they are the pixels of an image of SIZE x SIZE, raised towards its corner: neighbouring windows
    disagree.
    """

    def __init__(self, kind: str = "scene", *, bands: int = len(BANDS), classes: int = len(CLASSES)) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.kind, self.classes = kind, classes
        self.pretrained_cfg = {"architecture": "fake_net", "tag": kind, "input_size": (bands, INPUT, INPUT)}
        self.weights_origin = Origin(name=f"fake_net.{kind}")
        self.calls: list[tuple[tuple[int, ...], dict[str, Any]]] = []

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        self.calls.append((tuple(x.shape), options))
        self.autocast = torch.is_autocast_enabled("cpu")
        place = torch.linspace(0.5, 1.5, INPUT)
        x = self.scale * (x * place * place[:, None])[:, -self.classes :]
        if self.kind == "segmentation":
            return F.interpolate(x, (SIZE, SIZE), mode="bilinear", align_corners=False)
        if "generator" in options:
            x = x + torch.rand(len(x), 1, 1, 1, generator=options["generator"])
        return x.mean(dim=(2, 3))


@pytest.fixture(autouse=True)
def records(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record for each kind of task, "fake_net.KIND", and one of two sensors together."""
    common: dict[str, Any] = dict(source="package://none", layout="", licence="none", resize="spline")

    def add(tag: str, kind: str, **facts: Any) -> None:
        task = Task(kind, CLASSES, "FakeSet", "fine-tuned", "accuracy", 98.5, SIZE)
        monkeypatch.setitem(RECORDS, f"fake_net.{tag}", Record(name=f"fake_net.{tag}", task=task, **facts, **common))

    sets = {"S2": "smarties/S2-L2A", "S1": "smarties/S1"}
    for kind in ("scene", "multi-label", "segmentation"):
        add(kind, kind, sensors=("S2",), accepts=BANDS, statistics={"S2": sets["S2"]}, gsd={"S2": (10.0, 10.0)})
    both = (*get_sensor("S2").band_names, *get_sensor("S1").band_names)
    add("together", "multi-label", sensors=("S2", "S1"), accepts=both, statistics=sets, together=True)


def raster(path: Path, values: np.ndarray, **options: Any) -> Path:
    return rasters.write_raster(path, values, descriptions=["B02", "B03", "B04"], **options)


def run(source: Any, out: Path | None = None, kind: str = "scene", **options: Any) -> Prediction:
    options.setdefault("model", FakeTuned(kind))
    model = options.pop("model")
    return predict_raster(source, model, out, **{"stats": statistics(), "units": "dn", **options})


def prepared(values: np.ndarray, valid: np.ndarray | None = None, kind: str = "scene") -> Tensor:
    """What a model gets: normalised, 0 where invalid, then resized."""
    x = torch.from_numpy(normalize(values.astype(np.float32), statistics()))
    x = x if valid is None else torch.where(torch.from_numpy(valid), x, 0.0)
    return create_transform(f"fake_net.{kind}", bands=BANDS, size=INPUT)[1:](x.float()[None])


def logits(values: np.ndarray, valid: np.ndarray | None = None, kind: str = "scene") -> Tensor:
    with torch.no_grad():
        return FakeTuned(kind)(prepared(values, valid, kind))[0]


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read()
