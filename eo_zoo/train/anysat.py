"""AnySat pretraining: the hidden patches' vectors are predicted from the visible ones, and inputs brought together.

Source: Astruc et al., CVPR 2025, arXiv:2412.14123, and the public code at e03e72e. A student sees the visible patches
of each input, some of them replaced by a learned token; a predictor guesses what its teacher, an average of its past
selves, makes of the whole tile. Kept as released: the predictor counts patches in a table that begins with the class
token's row, so each patch has the position of the one before it; one random number makes both the size and the shape
of a batch's target blocks.

Not copied, but for the first two with ``released_indices``:

- without modis, the first token of the first input is dropped before the visible ones are looked up, so that the k-th
  input (from 0) gives patch i + 1 - k, or one of its neighbour's, where i is meant; a single input alone crashes;
- with modis, the pooling block asks for a visible patch at the position of the one before it;
- the teacher drops features at random; here it is in evaluation mode;
- which patches hold valid values is found in squares of 3 x 3 pixels whatever the patch size, sorted by sample where
  vectors are sorted by input, with an error unless all inputs have masks, and the mean counts patches without any;
- of a series with one date, date dropout leaves none; here one stays;
- where the targets leave nothing of a tile to see, the student sees some of them; here the blocks are drawn again;
- where images of a batch have more visible patches than the one with fewest, the first ones row by row are taken, so
  that the tiles' upper parts are seen more often; here any.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from eo_zoo import weights
from eo_zoo.errors import InputError, WeightsError
from eo_zoo.models.anysat import AnySat
from eo_zoo.models.anysat_blocks import bucket_table, init_residual, position_table
from eo_zoo.models.anysat_inputs import CELL, INPUTS, check, days

TARGETS = 4  # blocks of a tile that are predicted


class PretrainingOutput(NamedTuple):
    """One step on B tiles of N patches: M blocks of K patches each are predicted from V visible ones."""

    loss: Tensor  # scalar, the sum of the parts
    parts: dict[str, Tensor]  # "prediction" and "contrastive"
    predicted: Tensor  # (M, B, K, D)
    target: Tensor  # (M, B, K, D), the teacher's
    visible: Tensor  # (B, V), indices of patches, row by row
    targets: Tensor  # (M, B, K), indices of patches


class AnySatPretraining(nn.Module):
    """A student with its teacher and the predictor; afterwards the student or the teacher is used without the rest.

    Batches of several data sets can come in turn, each with inputs and a patch size of its own. The published run: five
    data sets, patches of 10 and 20 m (TreeSatAI-TS, FLAIR), 30 m (PLANTED), 40, 80 and 160 m (PASTIS-HD, S2NAIP), AdamW
    with weight decay 0.05, learning rate 5e-5, a tenth of it after 10 epochs without progress.

    What a batch does not hold gets no gradient: ``DistributedDataParallel`` needs ``find_unused_parameters=True``.

    Args:
        encoder: the student, without a classifier; it is trained in place. The teacher begins as its copy.
        predictor_depth: blocks of the predictor, which is as wide as the encoder.
        predictor_heads: its attention heads.
        modality_drop: share of the visible (input, patch) pairs that is replaced by a learned token, of those that are
            left when each patch has kept one input.
        date_drop: share of the dates of each series that the student does not see.
        momentum: of the teacher, at the first and at the last step.
        released_indices: look patches up as the public code does, see above.

    Raises:
        InputError: an encoder with a classifier, or of a width that the heads do not divide.
    """

    def __init__(
        self,
        encoder: AnySat,
        *,
        predictor_depth: int = 4,
        predictor_heads: int = 16,
        modality_drop: float = 0.5,
        date_drop: float = 0.5,
        momentum: tuple[float, float] = (0.996, 1.0),
        released_indices: bool = False,
    ) -> None:
        super().__init__()
        if encoder.num_classes:
            raise InputError("the encoder has a classifier, which is not trained here: give it num_classes=0")
        for name, share in (("modality_drop", modality_drop), ("date_drop", date_drop)):
            if not 0 <= share < 1:
                raise InputError(f"{name} is {share}, expected a share from 0 to below 1")
        self.modality_drop, self.date_drop = modality_drop, date_drop
        self.momentum, self.released_indices = momentum, released_indices
        self.encoder = encoder
        self.teacher: AnySat = copy.deepcopy(encoder).requires_grad_(False).eval()
        self.predictor = Predictor(encoder.embed_dim, predictor_depth, predictor_heads)
        self.masked_token = nn.Parameter(torch.zeros(1, 1, encoder.embed_dim))

    def train(self, mode: bool = True) -> AnySatPretraining:
        """As torch's, but the teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(
        self,
        data: Mapping[str, Any],
        patch_size: int | None = None,
        *,
        visible: Tensor | None = None,
        targets: Tensor | None = None,
        keep: Tensor | None = None,
        noise: Tensor | None = None,
        dates: Mapping[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> PretrainingOutput:
        """Loss of one step.

        Args:
            data: as ``AnySat.forward`` takes it.
            patch_size: in metres, as there.
            visible: (B, V), patches that the student sees, row by row from 0; with ``targets``, else both are drawn by
                ``sample_masks``.
            targets: (M, B, K), patches to predict, in M blocks.
            keep: (B, V), which input each visible patch keeps in any case, counted in the dict's order without modis.
            noise: (B, inputs * V), input by input; of the other (input, patch) pairs those with the smallest stay.
            dates: for series by name: (B, T'), indices of the dates that the student sees.
            generator: of all that is not given; without it torch's own, on the CPU.

        Raises:
            InputError: inputs that ``AnySat.forward`` does not take, tiles of one patch, or tensors of another shape
                or beyond their range.
        """
        if patch_size is None:
            patch_size = self.encoder.patch_size
        names, patch_size, patches = check(data, patch_size, self.encoder.inputs)
        batch, count, device = len(data[names[0]]), patches**2, self.masked_token.device
        if (visible is None) != (targets is None):
            raise InputError("visible and targets go together: give both or neither")
        if visible is None or targets is None:
            visible, targets = sample_masks(batch, patches, generator=generator)
        visible = _indices("visible", visible, (batch, "V"), count).to(device)
        targets = _indices("targets", targets, ("M", batch, "K"), count).to(device)

        with torch.no_grad():
            whole = self.teacher.forward_features(data, patch_size=patch_size)[:, 1:]
            target = _take(F.layer_norm(whole, whole.shape[-1:]), targets)
        seen = self._drop_dates(data, names, dates, generator)
        vectors = {
            name: self.encoder.encode_patches(name, seen, patch_size, patches)[:, 0].unflatten(0, (batch, -1))
            for name in names
        }  # B, N, D
        modis = vectors.pop("modis", None)
        each = torch.stack(list(vectors.values()))
        contrastive = contrastive_loss(each, torch.stack([_valid_patches(name, seen, patches) for name in vectors]))
        table = position_table(each.shape[-1], patches, patch_size / CELL, 1, each.device, each.dtype)[0]
        tokens = (each + table[1:]).transpose(0, 1).flatten(1, 2)
        tokens = self._visible(tokens, visible, len(vectors), shifted=self.released_indices and modis is None)
        tokens = self._drop_inputs(tokens, visible.shape[1], keep, noise, generator)
        latent = self._encode(tokens, modis, visible, table, patches)
        predicted = self.predictor(latent, visible, targets, table)
        parts = {"prediction": F.smooth_l1_loss(predicted, target), "contrastive": contrastive}
        return PretrainingOutput(parts["prediction"] + contrastive, parts, predicted, target, visible, targets)

    @torch.no_grad()
    def update_teacher(self, step: int, steps: int) -> float:
        """Move the teacher towards the student, after each step of the optimiser.

        Args:
            step: number of the step, from 0. (The public code moves the teacher just before the optimiser's step.)
            steps: of the whole run; the momentum goes linearly from its first value to its last.

        Returns:
            The momentum: the share of itself that the teacher kept.

        Raises:
            InputError: a step that is not of the run.
        """
        if not 0 <= step <= steps or steps < 1:
            raise InputError(f"step {step} of {steps}, expected one from 0 to the number of steps")
        first, last = self.momentum
        momentum = first + (last - first) * step / steps
        for mine, students in zip(self.teacher.parameters(), self.encoder.parameters(), strict=True):
            mine.lerp_(students, 1 - momentum)
        return momentum

    # ---- the student ----

    def _drop_dates(
        self,
        data: Mapping[str, Any],
        names: Sequence[str],
        given: Mapping[str, Tensor] | None,
        generator: torch.Generator | None,
    ) -> dict[str, Any]:
        """The same data with fewer dates."""
        seen, series = dict(data), [name for name in names if INPUTS[name].series]
        for name in given or ():
            if name not in series:
                raise InputError(f"dates are given for {name!r}, expected one of the batch's series: {_listed(series)}")
        for name in series:
            batch, count = data[name].shape[:2]
            if given and name in given:
                index = _indices(f"dates of {name}", given[name], (batch, "T'"), count)
            elif self.date_drop:
                left = max(1, int(count * (1 - self.date_drop)))
                index = _rand((batch, count), generator).argsort(dim=1)[:, :left]
            else:
                continue
            masks = {key: data[key] for key in (f"{name}_mask",) if data.get(key) is not None}
            for key, x in {name: data[name], f"{name}_dates": days(name, data), **masks}.items():
                seen[key] = _take(x, index)
        return seen

    def _visible(self, tokens: Tensor, visible: Tensor, inputs: int, *, shifted: bool) -> Tensor:
        """Of the tokens (B, inputs * N, D), those of visible patches (B, inputs * V, D)."""
        count = tokens.shape[1] // inputs
        order = torch.arange(inputs, device=visible.device)[:, None]
        first = order * count
        if shifted:
            if inputs == 1:
                raise InputError(
                    "released_indices goes with two or more inputs, or with modis: one alone crashes there"
                )
            first = order * (count - 1) + 1
        return _take(tokens, (visible[:, None] + first).flatten(1))

    def _drop_inputs(
        self,
        tokens: Tensor,
        count: int,
        keep: Tensor | None,
        noise: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Tokens (B, inputs * V, D) of V visible patches, some of them replaced."""
        batch, length, _ = tokens.shape
        inputs = length // count
        if keep is None:
            keep = torch.randint(inputs, (batch, count), generator=generator, device=_device(generator))
        keep = _indices("keep", keep, (batch, count), inputs).to(tokens.device)
        if noise is None:
            noise = _rand((batch, length), generator)
        if noise.shape != (batch, length) or not noise.is_floating_point():
            raise InputError(
                f"noise holds {noise.dtype} of shape {tuple(noise.shape)}, expected numbers of shape "
                f"({batch}, {length}): one for each visible patch of each input"
            )
        kept = keep * count + torch.arange(count, device=keep.device)
        noise = noise.to(tokens.device).scatter(1, kept, math.inf)
        others = noise.argsort(dim=1)[:, : int(count * (inputs - 1) * (1 - self.modality_drop))]
        stays = torch.zeros_like(noise, dtype=torch.bool).scatter(1, torch.cat([kept, others], dim=1), True)
        return torch.where(stays[..., None], tokens, self.masked_token.to(tokens.dtype))

    def _encode(self, tokens: Tensor, modis: Tensor | None, visible: Tensor, table: Tensor, patches: int) -> Tensor:
        """Tokens of visible patches (B, inputs * V, D) to what the student makes of each patch (B, V, D)."""
        encoder = self.encoder
        inputs = tokens.shape[1] // visible.shape[1]
        first = encoder.cls_token.to(tokens.dtype).expand(len(tokens), -1, -1)
        prefix = [first] if modis is None else [first, modis]
        tokens = torch.cat([*prefix, tokens], dim=1)
        *_, tokens = encoder.run_blocks(tokens)
        # rows of tables that begin with the class token's; modis has its bucket, for it has no place either
        asked = F.pad(visible + 1, (1, 0))
        keys = F.pad((visible + 1).repeat(1, inputs), (len(prefix), 0))
        buckets = bucket_table(patches, 1, 1, tokens.device, torch.int64)[asked[:, :, None], keys[:, None]]
        places = F.pad(visible, (1, 0)) if self.released_indices and modis is not None else asked
        return encoder.pool(tokens, table[places], buckets)[:, 1:]

    # ---- the official checkpoint ----

    def load_official(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill student, teacher and predictor from a pretraining state's tensors (see ``eo_zoo.weights.read``).

        Left out by name: projectors of inputs that the encoder was built without.

        Raises:
            WeightsError: a tensor is missing, unknown or of another shape.
        """
        ours = {_our_name(name): tensor for name, tensor in tensors.items() if OWN.fullmatch(name)}
        if not ours:
            raise WeightsError("this file holds no pretraining state; load an encoder's file into the encoder itself")
        encoders = AnySat.from_official(tensors)
        for start, part in (("student.", "encoder."), ("teacher.", "teacher.")):
            one = {name.removeprefix(start): t for name, t in encoders.items() if name.startswith(start)}
            ours |= {part + name: tensor for name, tensor in self.encoder.adapt(one)[0].items()}
        weights.check_fit(ours, self.state_dict(), what="the pretraining state")
        self.load_state_dict(ours)


class Predictor(nn.Module):
    """What the student makes of visible patches to what the teacher should make of others."""

    def __init__(self, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise InputError(f"the predictor has {heads} heads, expected a number that divides the width {dim}")
        self.embed = nn.Linear(dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, qkv_bias=True, norm_layer=nn.LayerNorm) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.proj = nn.Linear(dim, dim)
        nn.init.normal_(self.mask_token, std=0.02)
        init_residual(self, self.blocks)

    def forward(self, context: Tensor, visible: Tensor, targets: Tensor, table: Tensor) -> Tensor:
        """Context (B, V, D) of patches (B, V) to vectors (M, B, K, D) of patches (M, B, K).

        Args:
            context: the student's vectors.
            visible: their patches.
            targets: patches to predict.
            table: positions (1 + N, D), the class token's row first. Rows are taken by the patches' numbers as they
                are, so each patch has the position of the one before it, as released.
        """
        shape = targets.shape
        context = (self.embed(context) + table[visible]).expand(shape[0], -1, -1, -1)
        asked = self.mask_token + table[targets]
        first = self.cls_token.expand(*shape[:2], -1, -1)
        x = torch.cat([first.to(context.dtype), context, asked.to(context.dtype)], dim=2).flatten(0, 1)
        for block in self.blocks:
            x = block(x)
        return self.proj(self.norm(x[:, -shape[2] :])).unflatten(0, shape[:2])


# ---- which patches ----


def sample_masks(batch: int, side: int, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Visible patches (B, V) and four blocks of target patches (4, B, K) of square tiles, without common ones.

    Sizes are drawn for the batch, places for each tile: target blocks of 0.2 to 0.8 of the tile with an aspect of 0.75
    to 1.5, and a square of 0.85 to 1 of it, of which what is not a target is visible. No block spans the tile. Where
    nothing is left to see, that tile's blocks are drawn again.

    Args:
        batch: tiles.
        side: patches a side, 2 or more.
        generator: its device is the result's; without it torch's own, on the CPU.

    Raises:
        InputError: tiles of one patch.
    """
    if side < 2:
        raise InputError("the tiles are one patch each, so nothing can be hidden: give a smaller patch size")
    device = _device(generator)
    block = _block_size(side, (0.2, 0.8), (0.75, 1.5), generator)
    square = _block_size(side, (0.85, 1.0), (1.0, 1.0), generator)
    targets = torch.zeros(TARGETS, batch, side**2, dtype=torch.bool, device=device)
    seen = torch.zeros(batch, side**2, dtype=torch.bool, device=device)
    while (missing := (~seen.any(dim=1)).nonzero()[:, 0]).numel():
        targets[:, missing] = _place((TARGETS, len(missing)), side, block, generator)
        seen[missing] = _place((len(missing),), side, square, generator) & ~targets[:, missing].any(dim=0)
    # as many in each tile: those with the least noise
    noise = _rand((batch, side**2), generator).masked_fill(~seen, math.inf)
    visible = noise.argsort(dim=1)[:, : int(seen.sum(dim=1).min())].sort(dim=1).values
    return visible, targets.nonzero()[:, -1].view(TARGETS, batch, -1)


def _block_size(
    side: int, area: tuple[float, float], aspect: tuple[float, float], generator: torch.Generator | None
) -> tuple[int, int]:
    """Rows and columns: one random number for the area, a share of the tile, and the aspect, as released."""
    random = float(_rand((), generator))
    cells = int(side**2 * (area[0] + random * (area[1] - area[0])))
    ratio = aspect[0] + random * (aspect[1] - aspect[0])
    rows, columns = round(math.sqrt(cells * ratio)), round(math.sqrt(cells / ratio))
    return min(max(rows, 1), side - 1), min(max(columns, 1), side - 1)


def _place(shape: tuple[int, ...], side: int, size: tuple[int, int], generator: torch.Generator | None) -> Tensor:
    """Blocks somewhere in their tiles: (*shape, side * side), True inside."""
    device = _device(generator)
    inside = []
    for length in size:
        start = torch.randint(side - length + 1, (*shape, 1), generator=generator, device=device)
        place = torch.arange(side, device=device)
        inside.append((place >= start) & (place < start + length))
    return (inside[0][..., :, None] & inside[1][..., None, :]).flatten(-2)


# ---- loss ----


def contrastive_loss(vectors: Tensor, valid: Tensor | None = None, *, temperature: float = 0.1) -> Tensor:
    """How well a patch is told from all others by what other inputs show of it.

    For each vector: log of the summed exponentials of its cosines / temperature to all vectors, less that to the same
    patch's in other inputs; both without the vectors of the same input of the same tile. The mean over all that have
    such a counterpart, and 0 if none has, as with one input.

    Args:
        vectors: (inputs, B, N, D).
        valid: (inputs, B, N), False where there is nothing to see; that vector takes no part.
        temperature: of the cosines.
    """
    inputs, batch, count = vectors.shape[:3]
    x = F.normalize(vectors.float().flatten(0, 2), dim=-1)
    with torch.autocast(x.device.type, enabled=False):  # a tenth of bfloat16's digits is too few
        logits = x @ x.T / temperature
    tile = torch.arange(inputs * batch, device=x.device).repeat_interleave(count)
    out = tile[:, None] == tile
    if valid is not None:
        out |= ~valid.flatten()
    logits = logits.masked_fill(out, -math.inf)  # also keeps the gradients of rows without a number from spreading
    same = logits.view(inputs, batch * count, inputs, -1).diagonal(dim1=1, dim2=3)  # input, other input, patch
    found = same.isfinite().any(dim=1).flatten()
    if valid is not None:
        found = found & valid.flatten()
    terms = (logits.logsumexp(dim=1) - same.logsumexp(dim=1).flatten())[found]
    return terms.sum() / max(terms.numel(), 1)


def _valid_patches(name: str, data: Mapping[str, Any], patches: int) -> Tensor:
    """(B, N): which patches have a valid value on any date."""
    x, mask = data[name], data.get(f"{name}_mask")
    if mask is None:
        return torch.ones(len(x), patches**2, dtype=torch.bool, device=x.device)
    pixels = mask.flatten(1, 2).any(dim=1)  # B, H, W
    return pixels.unflatten(2, (patches, -1)).unflatten(1, (patches, -1)).any(dim=4).any(dim=2).flatten(1)


# ---- shared ----

OWN = re.compile(r"(?:model\.)?(?:(predictor)\.(?:predictor_)?(.+)|(masked_token))")


def _our_name(official: str) -> str:
    return OWN.sub(lambda m: m[3] or f"{m[1]}.{m[2]}", official)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Of x (B, N, ...) the items by an index (..., B, K)."""
    return x[torch.arange(len(x), device=x.device)[:, None], index.to(x.device)]


def _rand(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    return torch.rand(shape, generator=generator, device=_device(generator))


def _device(generator: torch.Generator | None) -> torch.device:
    return generator.device if generator else torch.device("cpu")


def _indices(what: str, given: Tensor, shape: tuple[int | str, ...], limit: int) -> Tensor:
    """``given``, if it is indices below ``limit`` of that shape, in which a letter stands for any number."""
    fits = given.ndim == len(shape) and given.numel() and given.dtype == torch.long
    if not fits or any(n != m for n, m in zip(shape, given.shape, strict=True) if isinstance(n, int)):
        raise InputError(
            f"{what}: {given.dtype} of shape {tuple(given.shape)}, expected torch.int64 of shape ({_listed(shape)})"
        )
    if given.min() < 0 or given.max() >= limit:
        raise InputError(
            f"{what}: indices from {int(given.min())} to {int(given.max())}, expected from 0 to {limit - 1}"
        )
    return given


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))
