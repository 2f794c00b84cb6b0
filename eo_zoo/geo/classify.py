"""A tuned model's answer to an open scene: the classes of one image, or what is needed for a map of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eo_zoo.errors import InputError
from eo_zoo.geo import job, output
from eo_zoo.geo.stream import Encode, Raster, normalised
from eo_zoo.weights import Task

MOSTLY_MISSING = 0.5  # share of invalid values in an image from which on the user is warned


@dataclass(frozen=True, kw_only=True)
class Prediction(job.Result):
    """Classes of one image, or a map of them, as ``Result`` has it.

    Of an image, ``scores`` are every class's, 0 to 1, highest first, and ``predicted`` the classes that it is given:
    the highest of a scene, of several labels all from the threshold on. Of a map, ``shape`` is (bands, rows, columns),
    and ``shares`` the share of the cells with a value that each class has, largest first, without those that do not
    occur.
    """

    model: str
    weights: str
    task: Task
    threshold: float | None = None  # of several labels
    scores: dict[str, float] | None = None
    predicted: tuple[str, ...] = ()
    shape: tuple[int, int, int] | None = None
    shares: dict[str, float] | None = None
    scores_path: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ``transform`` is GDAL's six numbers."""
        task = self.task
        about: dict[str, Any] = {
            "model": self.model,
            "weights": self.weights,
            "task": task.kind,
            "data_set": task.data_set,
            "method": task.method,
            "metric": task.metric,
            "paper_result": task.result,
        }
        about |= {} if self.threshold is None else {"threshold": self.threshold}
        if self.shape is None:
            about |= {"predicted": list(self.predicted), "scores": self.scores}
        else:
            path = None if self.scores_path is None else str(self.scores_path)
            about |= {"classes": task.classes, "shape": self.shape, "shares": self.shares, "scores_path": path}
        return about | super().to_dict()

    def summary(self, top: int = 5) -> str:
        """The ``top`` classes, and what was written where, in a few lines."""
        if self.shape is None:
            rows = [(name, f"{score:.3f}") for name, score in (self.scores or {}).items()][:top]
            rows = [(f"{'*' if name in self.predicted else ' '} {name}", score) for name, score in rows]
            what = f"{self.path or 'image'}: {'; '.join(self.predicted) or 'no class'}"
        else:
            rows = [(f"  {name}", f"{share:.1%}") for name, share in (self.shares or {}).items()][:top]
            what = f"{self.path}: {self.shape[1]} x {self.shape[2]} cells, {self.nodata:.1%} nodata"
        width = max((len(name) for name, _ in rows), default=0)
        table = [f"{name:<{width}}  {number:>6}" for name, number in rows]
        scores = [f"{self.scores_path}: scores"] if self.scores_path else []
        return "\n".join([*table, *self.told(what), *scores])


@dataclass(frozen=True, kw_only=True)
class PredictOptions(job.JobOptions):
    """How to classify; see ``predict_raster`` for the meaning of each.

    Raises:
        InputError: a value is out of range.
    """

    window: int = 0  # of a map
    stride: int = 0
    threshold: float = 0.5
    scores: Path | None = None

    @property
    def is_map(self) -> bool:
        """Whether a map is wanted, not the classes of the whole image."""
        return self.out is not None and self.out.suffix.lower() in output.TIFF

    def __post_init__(self) -> None:
        """Check the values, before anything is opened."""
        super().__post_init__()
        if not 0 <= self.threshold <= 1:
            raise InputError(f"threshold is {self.threshold}, expected a score from 0 to 1")


@dataclass(frozen=True)
class Classifier:
    """A task, and how a model is called to answer it.

    Args:
        task: its classes are the logits'.
        resize: brings normalised images (n, bands, H, W) to the model's size.
        call: further arguments of the model.
        told: what the output's tags say of them.
    """

    task: Task
    resize: nn.Module
    call: Mapping[str, Any] = field(default_factory=dict)
    told: Mapping[str, str] = field(default_factory=dict)

    @property
    def several(self) -> bool:
        """Whether an image may have several classes, or none."""
        return self.task.kind == "multi-label"

    @property
    def dense(self) -> bool:
        """Whether every pixel has a class."""
        return self.task.kind == "segmentation"

    def logits(self, model: nn.Module, side: int) -> Callable[[Tensor], Tensor]:
        """Normalised images to logits (n, classes), or, where the task is dense, (n, classes, side, side)."""

        def forward(x: Tensor) -> Tensor:
            with torch.autocast(x.device.type, enabled=False):  # images keep their precision, whatever the model's
                x = self.resize(x)
            made = model(x, **self.call)
            if made.shape[1] != len(self.task.classes):
                raise InputError(
                    f"the model gives {made.shape[1]} values, but the task has {len(self.task.classes)} classes"
                )
            if self.dense and made.shape[-1] != side:
                made = F.interpolate(made.float(), (side, side), mode="bilinear", align_corners=False)
            return made

        return forward

    def scores(self, logits: np.ndarray) -> np.ndarray:
        """Logits (classes, ...) to scores from 0 to 1: 1 in sum over the classes, or of each by itself."""
        made = torch.from_numpy(logits)
        return (made.sigmoid() if self.several else made.softmax(dim=0)).numpy()


@dataclass(frozen=True)
class Run:
    """A job whose model answers a task."""

    work: job.Job
    raster: Raster
    options: PredictOptions
    classifier: Classifier
    encode: Encode

    def tags(self) -> dict[str, str]:
        """How the output came about, for the end of the run."""
        task, options = self.classifier.task, self.options
        own = {"TASK": task.kind, "CLASSES": json.dumps(task.classes), "DATA_SET": task.data_set}
        own |= {"METHOD": task.method, "METRIC": task.metric}
        own |= {} if task.result is None else {"PAPER_RESULT": f"{task.result:g}"}
        own |= {"WINDOW": str(options.window), "STRIDE": str(options.stride)} if options.is_map else {}
        own |= {"THRESHOLD": str(options.threshold)} if self.classifier.several else {}
        return self.work.tags(own | {key.upper(): value for key, value in self.classifier.told.items()})

    def prediction(self, cell: int, missing: float, **own: Any) -> Prediction:
        """The result: ``cell`` pixels on one of the output's, and the share of what is missing."""
        return Prediction(
            model=self.work.name,
            weights=job.weights_of(self.work.model),
            task=self.classifier.task,
            threshold=self.options.threshold if self.classifier.several else None,
            **own,
            **self.work.facts(cell, missing),
        )


def classify_image(run: Run) -> Prediction:
    """The classes of the whole scene as one image, written as .json if that is asked for.

    Raises:
        InputError: the image is all nodata, or the model does not fit the task.
        OSError: the output cannot be written.
    """
    work, classifier = run.work, run.classifier
    raster, scene = run.raster, run.raster.scene
    values, valid = scene.read(0, 0, scene.grid.height, scene.grid.width)
    raster.tally.add(0, 0, values, valid)
    missing = 1 - float(valid.mean())
    if not valid.any():
        work.raise_empty("classify")
    if missing > MOSTLY_MISSING:
        work.log.warn(f"{missing:.0%} of the image's values are nodata, which the model gets as 0, the mean")
    [logits] = run.encode(normalised(values, valid, raster.statistics)[None])
    if not np.isfinite(logits).all():
        raise InputError("the model gave infinite or undefined scores: use dtype bfloat16 or float32")
    found = classifier.scores(logits)
    order = np.argsort(-found, kind="stable")
    scores = {classifier.task.classes[i]: round(float(found[i]), 6) for i in order}
    given = [name for name, score in scores.items() if score >= run.options.threshold]
    predicted = given if classifier.several else list(scores)[:1]
    tags = run.tags()
    if run.options.out is not None:
        content = {"predicted": predicted, "scores": scores, "paper_result": classifier.task.result, "nodata": missing}
        output.write_json(run.options.out, content, tags)
    return run.prediction(1, missing, scores=scores, predicted=tuple(predicted))
