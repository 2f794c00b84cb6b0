"""What MultiMAE makes of the hidden part of a place: one window of real rasters in, the usual picture out."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from affine import Affine
from torch import Tensor

from eo_zoo import registry
from eo_zoo.errors import InputError
from eo_zoo.geo import job
from eo_zoo.geo.checks import check_weights, writable
from eo_zoo.geo.domains import open_domains
from eo_zoo.geo.grid import Grid
from eo_zoo.geo.job import Log, Report
from eo_zoo.geo.opening import Source, is_several, record_for
from eo_zoo.geo.panels import SAID, Row, draw
from eo_zoo.models.multimae import MultiMae
from eo_zoo.models.multimae_domains import DOMAINS
from eo_zoo.sensors import Statistics
from eo_zoo.train.multimae import (
    NORM_RGB,
    SHARE,
    MultiMaePretraining,
    PretrainingOutput,
    pretraining_model,
    sample_visible,
)


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How well one domain was reconstructed where it was hidden; None where nothing tells.

    Args:
        given: whether the model was shown any of it.
        visible: patches shown.
        patches: of the whole window.
        loss: as in pretraining: the mean squared error of normalised values, of depth the absolute one, of semseg the
            cross entropy.
        norm_loss: of rgb: that of the second output, whose patches are normalised each by itself.
        psnr: of images: peak signal-to-noise ratio in dB; the peak is the range of the window's values.
        accuracy: of semseg: share of the labels that are right.
    """

    given: bool
    visible: int
    patches: int
    loss: float | None = None
    norm_loss: float | None = None
    psnr: float | None = None
    accuracy: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without those of other domains."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def lines(self) -> list[str]:
        """Of text, for the picture and the summary."""
        said = [f"{self.visible} of {self.patches} patches visible" if self.given else "not given"]
        forms = {"loss {:.3f}": self.loss, "PSNR {:.1f} dB": self.psnr, "accuracy {:.1%}": self.accuracy}
        return said + [form.format(value) for form, value in forms.items() if value is not None]


@dataclass(frozen=True, kw_only=True)
class Reconstruction(job.Result):
    """What came out, as ``Result`` has it; ``transform`` is the window's, ``nodata`` the share of its values missing.

    ``model`` and ``weights`` tell what reconstructed, ``row``, ``col`` and ``size`` the window in pixels of the ground
    that the inputs share, ``seed`` the choice of patches.
    """

    model: str
    weights: str
    row: int
    col: int
    size: int
    seed: int
    domains: dict[str, Quality]
    predictions: dict[str, Tensor] = field(repr=False)  # (C, H, W) in normalised units, of semseg logits

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the predictions."""
        own = {name: getattr(self, name) for name in ("model", "weights", "row", "col", "size", "seed")}
        return super().to_dict() | own | {"domains": {name: one.to_dict() for name, one in self.domains.items()}}

    def summary(self) -> str:
        """What came out and where it is, in a few lines."""
        lines = [f"{name}: {', '.join(one.lines())}" for name, one in self.domains.items()]
        return "\n".join([*lines, *self.told(f"{self.path}: {self.size} x {self.size} pixels")])


def reconstruct_raster(
    sources: Mapping[str, Source],
    model: str | MultiMaePretraining = "multimae_eo_base",
    out: str | Path = "reconstruction.png",
    *,
    weights: str | Path | None = None,
    cache_dir: str | Path | None = None,
    visible: int | float = SHARE,
    given: Sequence[str] | None = None,
    hide: Sequence[str] | None = None,
    seed: int = 0,
    row: int | None = None,
    col: int | None = None,
    sensor: str | None = None,
    bands: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    stats: str | Path | Statistics | Mapping[str, Any] | None = None,
    units: str | Mapping[str, str] | None = None,
    boa_offset: float | Mapping[str, float] | None = None,
    nodata: float | Mapping[str, float] | None = None,
    bbox: tuple[float, float, float, float] | None = None,
    bbox_crs: str | None = None,
    resolution: float | None = None,
    overwrite: bool = False,
    report: Report | None = None,
) -> Reconstruction:
    """Hide patches of one window, let the model reconstruct every domain, and draw both beside the truth.

    The picture has a row a domain, also of those that were not given, and the columns input, masked, reconstruction
    and truth; see ``eo_zoo.geo.panels.draw``.

    Args:
        sources: rasters of one place, any of "s2", "dem" and "worldcover"; see ``embed_raster``, also for ``sensor``,
            ``bands``, ``stats``, ``units``, ``boa_offset``, ``nodata``, ``bbox``, ``bbox_crs`` and ``resolution``.
        model: a registered name, or a module with its output adapters.
        out: a .png.
        weights: a local checkpoint of pretraining instead of the published one.
        cache_dir: where weights are kept.
        visible: patches of all given domains together that the model is shown, or from 0.0 to 1.0 their share, a sixth
            as in pretraining; how many of each domain is drawn at random, see ``eo_zoo.train.multimae.sample_visible``.
        given: domains that the model is shown, of those in the inputs; by default all. The others are truth alone.
        hide: instead of ``given``, the domains that it is not shown.
        seed: of the patches that stay visible.
        row: of the window's first pixel, counted from the corner of the ground that all inputs cover (in ``bbox``); by
            default the window is in the middle.
        col: its column.
        overwrite: replace an existing picture.
        report: see ``embed_raster``.

    Raises:
        InputError: input, options or values that cannot be used.
        WeightsError: the weights are damaged, another model's, or hold no output adapters.
        DownloadError: the weights or an input cannot be fetched.
        OSError: the picture cannot be written.
    """
    started = time.perf_counter()
    encoder = _encoder(model)
    if not is_several(sources):
        raise InputError('the inputs are given by name: --input s2=INPUT ({"s2": INPUT} in Python), dem and worldcover')
    path = writable("out", out, (".png",), overwrite, *sources.values())
    if path is None:
        raise InputError("the picture has to be written somewhere: give out, the path of a .png")
    check_weights(weights, model)
    log, size = Log(report), min(encoder.img_size)
    with open_domains(
        sources, log, takes=encoder.in_domains, record=record_for(encoder), patch=encoder.patch_size, sensor=sensor,
        bands=bands, stats=stats, units=units, boa_offset=boa_offset, nodata=nodata, bbox=bbox, bbox_crs=bbox_crs,
        resolution=resolution,
    ) as stack:  # fmt: skip
        grid, place = stack.grid, _place(stack.grid, size, row, col)
        pixels = stack.window(*place, size)
        data, masks = pixels.tiles(), pixels.masks()
    known = torch.cat([one.flatten() for one in masks.values()])
    if not known.any():
        raise InputError("the window is all nodata: there is nothing to reconstruct; choose another with row and col")
    shown = _draw_visible(_given(data, given, hide), (size // encoder.patch_size) ** 2, visible, seed)
    module = pretraining_model(model, weights=weights, cache_dir=cache_dir) if isinstance(model, str) else model
    output = _run(module, data | masks, shown, size)
    views = [
        _View(name, output, (size // encoder.patch_size,) * 2, data.get(name), masks.get(f"{name}_mask"))
        for name in DOMAINS
        if name in output.predictions
    ]
    domains = {view.name: view.quality() for view in views}
    draw(path, [view.row(domains[view.name].lines()) for view in views])
    t = grid.transform
    return Reconstruction(
        path=path,
        crs=grid.crs,
        transform=Affine(t.a, 0, t.c + place[1] * t.a, 0, t.e, t.f + place[0] * t.e),
        nodata=1 - known.double().mean().item(),
        notes=tuple(log.notes),
        warnings=tuple(log.warnings),
        clipped={},
        seconds=time.perf_counter() - started,
        model=job.name_of(module.encoder),
        weights=job.weights_of(module.encoder),
        row=place[0],
        col=place[1],
        size=size,
        seed=seed,
        domains=domains,
        predictions={name: one[0] for name, one in output.predictions.items()},
    )


def _encoder(model: str | MultiMaePretraining) -> MultiMae:
    """The module's encoder, or one without memory that tells a named model's sizes before weights are fetched.

    Raises:
        InputError: another model.
    """
    if isinstance(model, MultiMaePretraining):
        return model.encoder
    name = model if isinstance(model, str) else type(model).__name__
    with torch.device("meta"):
        encoder = registry.create_model(model, pretrained=False) if isinstance(model, str) else None
    if not isinstance(encoder, MultiMae):
        raise InputError(f"{name} reconstructs nothing: take multimae_eo_base, or a MultiMaePretraining")
    return encoder


def _place(grid: Grid, size: int, row: int | None, col: int | None) -> tuple[int, int]:
    """First row and column of the window."""
    if min(grid.height, grid.width) < size:
        raise InputError(
            f"the inputs share {grid.width} x {grid.height} pixels of {grid.gsd:.3g} m, fewer than the {size} x {size} "
            "that the model sees: give a larger area, or a finer resolution"
        )
    place = []
    for name, start, length in (("row", row, grid.height), ("col", col, grid.width)):
        last = length - size
        if start is not None and not 0 <= start <= last:
            raise InputError(f"{name} is {start}, expected 0 to {last}: the window of {size} pixels ends in the raster")
        place.append(last // 2 if start is None else start)
    return place[0], place[1]


def _given(there: Iterable[str], given: Sequence[str] | None, hide: Sequence[str] | None) -> list[str]:
    """The domains that the model is shown."""
    names = list(there)
    for option, chosen in (("given", given), ("hide", hide)):
        strange = next((name for name in chosen or () if name not in names), None)
        if strange is not None:
            raise InputError(f"{option} has '{strange}', but the inputs hold {', '.join(names)}")
    if given is not None and hide is not None:
        raise InputError("given and hide say the same in two ways: give one of them")
    found = [name for name in names if (given is None or name in given) and name not in (hide or ())]
    if not found:
        raise InputError(f"no domain is left to be shown to the model: leave some of {', '.join(names)}")
    return found


def _draw_visible(names: Sequence[str], patches: int, visible: int | float, seed: int) -> dict[str, Tensor]:
    """Bool (1, patches) of each domain."""
    if not 0 <= seed < 2**63:
        raise InputError(f"seed is {seed}, expected a whole number from 0 to 2**63 - 1")
    return sample_visible(dict.fromkeys(names, patches), 1, visible, generator=torch.Generator().manual_seed(seed))


def _run(
    module: MultiMaePretraining, known: Mapping[str, Tensor], visible: Mapping[str, Tensor], size: int
) -> PretrainingOutput:
    """Predictions and losses on the CPU; what no raster holds counts in none."""
    training, device = module.training, module.encoder.global_tokens.device
    there = {name: one.to(device) for name, one in known.items()}
    targets = dict(there)
    for name in (name for name in module.output_adapters if name in DOMAINS and name not in known):
        domain, side = DOMAINS[name], size // DOMAINS[name].stride
        empty = torch.zeros(1, domain.channels, side, side)
        empty = empty[:, 0].long() if domain.classes else empty
        targets |= {name: empty.to(device), f"{name}_mask": empty.bool().to(device)}
    given = {name: one for name, one in there.items() if name.removesuffix("_mask") in visible}
    module.eval()
    try:
        with torch.no_grad():
            output = module(given, visible=visible, targets=targets)
    finally:
        module.train(training)
    return output._replace(
        losses={name: one.cpu() for name, one in output.losses.items()},
        predictions={name: one.float().cpu() for name, one in output.predictions.items()},
    )


@dataclass(frozen=True)
class _View:
    """One domain of what came out, with its truth and what of it is known, if there is any."""

    name: str
    output: PretrainingOutput
    grid: tuple[int, int]  # rows and columns of patches
    truth: Tensor | None
    valid: Tensor | None

    @property
    def visible(self) -> Tensor:
        """Bool (rows, columns) of patches."""
        none = torch.zeros(1, math.prod(self.grid), dtype=torch.bool)
        return self.output.visible.get(self.name, none)[0].view(self.grid)

    def quality(self) -> Quality:
        """Of what is hidden and known."""
        name, output, visible = self.name, self.output, self.visible
        found = Quality(given=name in output.visible, visible=int(visible.sum()), patches=visible.numel())
        if self.truth is None or self.valid is None:
            return found
        made, truth, valid = output.predictions[name][0], self.truth[0], self.valid[0]
        patch = truth.shape[-1] // self.grid[1]
        use = ~visible.repeat_interleave(patch, 0).repeat_interleave(patch, 1) & valid
        if not use.any():
            return found
        found = replace(found, loss=output.losses[name].item())
        if DOMAINS[name].classes:
            return replace(found, accuracy=(made.argmax(0) == truth)[use].float().mean().item())
        if name == "rgb" and NORM_RGB in output.losses:
            found = replace(found, norm_loss=output.losses[NORM_RGB].item())
        peak, error = truth[valid].max() - truth[valid].min(), (made - truth)[use].square().mean()
        return replace(found, psnr=10 * (peak.square() / error).log10().item()) if peak > 0 and error > 0 else found

    def row(self, lines: Sequence[str]) -> Row:
        """Of the picture."""
        made, truth, classes = self.output.predictions[self.name][0], self.truth, DOMAINS[self.name].classes
        if truth is not None and self.valid is not None:
            truth = truth[0] if classes else truth[0].masked_fill(~self.valid[0], torch.nan)
        return Row(
            self.name,
            None if truth is None else truth.numpy(),
            (made.argmax(0) if classes else made).numpy(),
            self.visible.numpy() if self.name in self.output.visible else None,
            (SAID[self.name], "", *lines),
        )
