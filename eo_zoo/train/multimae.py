"""MultiMAE pretraining: every domain is reconstructed from the few tokens of any domains that are left visible.

Source: Sosa et al., ICIP 2025, arXiv:2505.14951, Bachmann et al., ECCV 2022, arXiv:2204.01678, and the public code at
0d9756e. The published run: AdamW (0.9, 0.95), weight decay 0.05, learning rate 1e-4 for 256 images, 512 at once, 1000
epochs of MMEarth, one of them warming up from 0; half of the images flipped; land cover decoded in float32.

Not copied: with uncertainty weighting there is one variance for each loss, where the public code has six for seven and
fails.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import Mlp, trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from eo_zoo import registry, weights
from eo_zoo.errors import InputError, WeightsError
from eo_zoo.layers.linear import by_onednn
from eo_zoo.models.multimae import (
    VARIANCES,
    MultiMae,
    init_blocks,
    position_table,
    resized_table,
)
from eo_zoo.models.multimae_domains import DOMAINS, Domain, check_tensor, known_domains, require_domain

NORM_RGB = "norm_rgb"  # a second output for rgb, of patches that are normalised each by itself
EPSILON = 1e-6
SHARE = 1 / 6  # of the tokens that stay visible: 49 of 294


class PretrainingOutput(NamedTuple):
    """One step on B places."""

    loss: Tensor  # scalar, the sum of the losses, weighted if that was asked for
    losses: dict[str, Tensor]  # by output, "norm_rgb" among them
    predictions: dict[str, Tensor]  # by output: (B, C, H, W), of semseg logits (B, 12, H / 4, W / 4)
    visible: dict[str, Tensor]  # by input: bool (B, tokens), as given or, where it was drawn, on the CPU


# ---- what is visible ----


def sample_visible(
    counts: Mapping[str, int],
    batch: int,
    visible: int | float,
    *,
    alphas: float | Sequence[float] = 1.0,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Which tokens stay visible: shares of the domains by a Dirichlet distribution, then any of each domain's.

    Shares are rounded; what is then missing is filled up, and what is too much dropped, at random.

    Args:
        counts: tokens of each domain.
        batch: B.
        visible: how many of all tokens stay in each of the B, or, from 0.0 to 1.0, their share.
        alphas: concentration, for all domains or one each: the lower, the more unequal are the shares.
        generator: of torch, on the CPU; its global one by default.

    Returns:
        By domain bool (B, tokens), on the CPU.

    Raises:
        InputError: more tokens than there are, or none; alphas that are not above 0 or not one a domain.
    """
    total = sum(counts.values())
    if isinstance(visible, float):
        if not 0 < visible <= 1:
            raise InputError(f"visible is {visible}, expected a share above 0.0, to 1.0, or a whole number of tokens")
        visible = max(1, round(visible * total))
    if not 1 <= visible <= total:
        raise InputError(f"visible is {visible}, expected 1 to {total}, the number of tokens of {', '.join(counts)}")
    shape = [alphas] * len(counts) if isinstance(alphas, int | float) else list(alphas)
    if len(shape) != len(counts) or not all(one > 0 for one in shape):
        raise InputError(f"alphas are {alphas}, expected a number above 0, or one for each of {', '.join(counts)}")
    # torch's own distribution takes no generator
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    shares = torch.from_numpy(np.random.default_rng(seed).dirichlet(shape, batch))
    wanted = (shares * visible).round()
    noise = torch.rand(batch, total, generator=generator).split(list(counts.values()), dim=1)
    hidden = [own.argsort(1).argsort(1) >= most for own, most in zip(noise, wanted.split(1, dim=1), strict=True)]
    rank = torch.cat(hidden, dim=1) + torch.rand(batch, total, generator=generator)
    kept = torch.zeros(batch, total, dtype=torch.bool).scatter(1, rank.argsort(1)[:, :visible], True)
    return dict(zip(counts, kept.split(list(counts.values()), dim=1), strict=True))


# ---- from tokens back to images ----


class CrossAttention(nn.Module):
    """Queries (B, n, d) ask context (B, m, d)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        """(B, n, d)."""
        q = self.q(queries).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv(context).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class OutputAdapter(nn.Module):
    """The visible tokens of all domains to one domain's image.

    Args:
        domain: what comes out.
        context: names of the domains that the encoder takes.
        embed_dim: of the encoder.
        dim: d, width in here.
        depth: blocks behind the cross-attention.
        num_heads: of attention.
        patch_size: in pixels.
    """

    pos_emb: Tensor

    def __init__(
        self,
        domain: Domain,
        context: Iterable[str],
        *,
        embed_dim: int,
        dim: int,
        depth: int,
        num_heads: int,
        patch_size: int,
    ) -> None:
        super().__init__()
        self.domain, self.patch = domain, domain.patch(patch_size)
        norm = functools.partial(nn.LayerNorm, eps=EPSILON)
        self.task_embeddings = nn.ParameterDict({name: nn.Parameter(torch.zeros(1, 1, dim)) for name in context})
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("pos_emb", position_table(dim, patch_size).to(self.mask_token.device))
        self.proj_context = nn.Linear(embed_dim, dim)
        self.query_norm, self.context_norm, self.out_norm = norm(dim), norm(dim), norm(dim)
        self.decoder = CrossAttention(dim, num_heads)
        self.mlp = Mlp(dim, 4 * dim)
        self.decoder_transformer = nn.Sequential(
            *(Block(dim, num_heads, qkv_bias=True, norm_layer=norm) for _ in range(depth))
        )
        self.out_proj = nn.Linear(dim, domain.channels * self.patch**2)
        by_onednn(self)
        init_blocks(self)
        for embedding in self.task_embeddings.values():
            trunc_normal_(embedding, std=0.02)

    def forward(self, encoded: Tensor, index: Tensor, names: Sequence[str], grid: tuple[int, int], own: str) -> Tensor:
        """Encoded visible tokens to an image, or class logits, (B, C, rows, columns).

        Args:
            encoded: (B, V + 1, D), the global token last.
            index: (B, V), where each visible token lies among all tokens of all domains.
            names: of the domains given, in their order.
            grid: rows and columns of patches.
            own: the domain whose tokens become the queries, if it is among those given.
        """
        positions = resized_table(self.pos_emb, grid, "bilinear")  # 1, N, d
        known = self.task_embeddings
        places = torch.cat([positions + known[name] if name in known else positions for name in names], dim=1)
        context = self.proj_context(encoded)  # B, V + 1, d
        spread = index[..., None].expand(-1, -1, context.shape[-1])
        places = places.to(context.dtype).expand(len(context), -1, -1)
        seen = context[:, :-1] + places.gather(1, spread)
        if own in names:
            at, count = names.index(own) * positions.shape[1], positions.shape[1]
            queries = (self.mask_token.to(places.dtype) + places).scatter(1, spread, seen)[:, at : at + count]
        else:
            queries = self.mask_token + positions + known.get(own, 0)
            queries = queries.to(context.dtype).expand(len(context), -1, -1)
        context = torch.cat([seen, context[:, -1:]], dim=1)
        y = self.decoder(self.query_norm(queries), self.context_norm(context))  # no residual, as published
        y = y + self.mlp(self.out_norm(y))
        y = self.out_proj(self.decoder_transformer(y))  # B, N, C * p * p
        y = y.view(len(y), *grid, self.domain.channels, self.patch, self.patch)
        return y.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


# ---- the whole ----


class MultiMaePretraining(nn.Module):
    """An encoder with the output adapters that reconstruct every domain.

    Args:
        encoder: the model to pretrain, without a classifier; it is trained in place.
        out_domains: what is reconstructed; the encoder's domains by default.
        decoder_dim: width of the output adapters.
        decoder_depth: their blocks.
        decoder_heads: their attention heads.
        norm_rgb: reconstruct rgb a second time, with each patch normalised by itself.
        weighting: "sum" of the losses, or "uncertainty": exp(-s) loss + s with a learned s each.

    Raises:
        InputError: an unknown domain or weighting, or an encoder with a classifier.
    """

    def __init__(
        self,
        encoder: MultiMae,
        *,
        out_domains: Sequence[str] | None = None,
        decoder_dim: int = 128,
        decoder_depth: int = 2,
        decoder_heads: int = 8,
        norm_rgb: bool = True,
        weighting: str = "sum",
    ) -> None:
        super().__init__()
        if not isinstance(encoder, MultiMae):
            raise InputError(f"the encoder is a {type(encoder).__name__}, expected a MultiMae")
        if encoder.num_classes:
            raise InputError("the encoder has a classifier, which is not trained here: give it num_classes=0")
        if weighting not in ("sum", "uncertainty"):
            raise InputError(f"weighting is {weighting!r}, expected 'sum' or 'uncertainty'")
        if decoder_dim % decoder_heads or decoder_dim % 4:
            raise InputError(
                f"decoder_dim is {decoder_dim}, expected a multiple of 4 and of the {decoder_heads} decoder_heads"
            )
        names = known_domains(encoder.in_domains if out_domains is None else out_domains, "out_domains")
        self.encoder = encoder
        outputs = {name: name for name in names} | ({NORM_RGB: "rgb"} if norm_rgb and "rgb" in names else {})
        self.output_adapters = nn.ModuleDict(
            {
                output: OutputAdapter(
                    DOMAINS[name],
                    encoder.in_domains,
                    embed_dim=encoder.embed_dim,
                    dim=decoder_dim,
                    depth=decoder_depth,
                    num_heads=decoder_heads,
                    patch_size=encoder.patch_size,
                )
                for output, name in outputs.items()
            }
        )
        self.log_vars = nn.Parameter(torch.zeros(len(outputs))) if weighting == "uncertainty" else None

    def no_weight_decay(self) -> set[str]:
        """Names of the learned tokens, of the domains' and classes' vectors, and of the losses' variances."""
        ends = ("global_tokens", "class_emb.weight", "mask_token", VARIANCES)
        return {name for name, _ in self.named_parameters() if name.endswith(ends) or ".task_embeddings." in name}

    def forward(
        self,
        data: Mapping[str, Tensor],
        *,
        visible: int | float | Mapping[str, Tensor] = SHARE,
        targets: Mapping[str, Tensor] | None = None,
        alphas: float | Sequence[float] = 1.0,
        generator: torch.Generator | None = None,
    ) -> PretrainingOutput:
        """Loss of one step: of the hidden tokens, and of outputs that are no input everything.

        Args:
            data: domains as ``MultiMae.forward`` takes them, depth standardised by image (see
                ``multimae_domains.standardize_depth``), and, where wanted, ``<domain>_mask``, bool, True where valid:
                (B, C or 1, H, W), of semseg (B, H / 4, W / 4). What is not counts in no loss.
            visible: how many tokens of all domains together stay visible, or their share, a sixth as published, see
                ``sample_visible``; or which, by domain bool (B, tokens), as many in each of the B.
            targets: what outputs are compared with instead of the inputs, in the same form, masks too; outputs that
                are no input need one.
            alphas: see ``sample_visible``, as for ``generator``.
            generator: of what is drawn.

        Raises:
            InputError: inputs that ``MultiMae.forward`` does not take, an output without a target, or masks and choices
                of other shapes.
        """
        domains, valid = _without_masks(data)
        wanted, wanted_valid = _without_masks(targets or {})
        for name in wanted:
            require_domain(name)
        wanted, valid = {**domains, **wanted}, {**valid, **wanted_valid}
        predictions, shown, grid = self._reconstruct(domains, visible, alphas, generator)
        losses = {}
        for output, made in predictions.items():
            name = _domain_of(output)
            if name not in wanted:
                raise InputError(f"there is nothing to compare {name} with: give it in targets, or among the inputs")
            target = _target(name, wanted[name], valid.get(name), made)
            hidden = ~shown[name] if name in shown else torch.ones(len(made), grid[0] * grid[1], dtype=torch.bool)
            losses[output] = self._loss(output, made.float(), target, hidden.to(made.device), valid.get(name), grid)
        return PretrainingOutput(self._weighted(losses), losses, predictions, shown)

    @torch.no_grad()
    def reconstruct(
        self,
        data: Mapping[str, Tensor],
        *,
        visible: int | float | Mapping[str, Tensor] | None = None,
        alphas: float | Sequence[float] = 1.0,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Every output, by name, from the visible tokens of any domains.

        Args:
            data: as ``forward`` takes it; masks are not needed.
            visible: as there; all tokens if None.
            alphas: as there.
            generator: as there.

        Returns:
            (B, C, H, W) each, in the normalised units of the inputs; of semseg logits (B, 12, H / 4, W / 4).

        Raises:
            InputError: as ``forward``.
        """
        return self._reconstruct(_without_masks(data)[0], visible, alphas, generator)[0]

    def _reconstruct(
        self,
        data: Mapping[str, Tensor],
        visible: int | float | Mapping[str, Tensor] | None,
        alphas: float | Sequence[float],
        generator: torch.Generator | None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], tuple[int, int]]:
        """Predictions, what was visible, and rows and columns of patches."""
        parts, grid = self.encoder.embed(data)
        names, tokens = list(parts), torch.cat(list(parts.values()), dim=1)
        counts = dict.fromkeys(names, grid[0] * grid[1])
        batch, total = tokens.shape[:2]
        if isinstance(visible, Mapping):
            shown = _checked(visible, counts, batch)
        else:
            most = total if visible is None else visible
            shown = sample_visible(counts, batch, most, alphas=alphas, generator=generator)
        every = torch.cat([shown[name] for name in names], dim=1).to(tokens.device)
        index = every.nonzero()[:, 1].view(batch, -1)  # B, V
        encoded = self.encoder.encode(tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1])))
        predictions = {}
        for output, adapter in self.output_adapters.items():
            if DOMAINS[_domain_of(output)].classes:  # in float32 whatever surrounds it, as published
                with torch.autocast(encoded.device.type, enabled=False):
                    given = encoded.to(self.encoder.global_tokens.dtype)
                    predictions[output] = adapter(given, index, names, grid, _domain_of(output))
            else:
                predictions[output] = adapter(encoded, index, names, grid, _domain_of(output))
        return predictions, shown, grid

    def _loss(
        self, output: str, made: Tensor, target: Tensor, hidden: Tensor, valid: Tensor | None, grid: tuple[int, int]
    ) -> Tensor:
        """Mean over the hidden and valid values of each image, then over the images that have any; else 0."""
        domain = DOMAINS[_domain_of(output)]
        if target.shape != (made.shape[:1] + made.shape[2:] if domain.classes else made.shape):
            raise InputError(f"{domain.name} to compare with is {tuple(target.shape)}, the output {tuple(made.shape)}")
        if valid is not None and (valid.dtype != torch.bool or valid.expand_as(target).shape != target.shape):
            raise InputError(
                f"{domain.name}_mask is {valid.dtype} {tuple(valid.shape)}, expected bool as {domain.name}"
            )
        patch = made.shape[-1] // grid[1]
        use = hidden.unflatten(1, grid).repeat_interleave(patch, 1).repeat_interleave(patch, 2)
        use = use if domain.classes else use[:, None].expand_as(target)
        if valid is not None:
            use = use & valid
        if domain.classes:
            error = F.cross_entropy(made, target.long(), reduction="none")
        elif output == NORM_RGB:
            error = (made - _normalised(target, valid, patch)).square()
        else:
            error = (made - target).abs() if domain.name == "depth" else (made - target).square()
        count = use.flatten(1).sum(1)
        mean = torch.where(use, error, 0).flatten(1).sum(1) / count.clamp(min=1)
        return mean.sum() / (count > 0).sum().clamp(min=1)

    def _weighted(self, losses: Mapping[str, Tensor]) -> Tensor:
        stacked = torch.stack(list(losses.values()))
        if self.log_vars is None:
            return stacked.sum()
        # an output without anything hidden told nothing, of its variance neither
        return torch.where(stacked != 0, torch.exp(-self.log_vars) * stacked + self.log_vars, 0).sum()

    # ---- weights ----

    def load_tensors(self, tensors: Mapping[str, Tensor], what: str = "the pretraining checkpoint") -> None:
        """Fill the encoder and the output adapters, strictly, from tensors under our names or the public code's.

        Outputs that are not this model's are left out.

        Raises:
            WeightsError: a tensor is missing, unknown or of another shape.
        """
        self.load_state_dict(self.fitted(MultiMae.from_official(tensors), what))

    def fitted(self, ours: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
        """A checkpoint's tensors under the names of ``MultiMae.from_official`` to this model's; raises so.

        The losses' variances stay as they are if the checkpoint has none.
        """
        outputs = {
            name: tensor
            for name, tensor in _of_outputs(ours, what).items()
            if name.split(".")[1] in self.output_adapters
        }
        encoder, _ = self.encoder.adapt(dict(ours))
        own = self.state_dict()
        given = {f"encoder.{name}": tensor for name, tensor in encoder.items()} | outputs
        if self.log_vars is not None:
            given[VARIANCES] = ours.get(VARIANCES, own[VARIANCES])
        weights.check_fit(given, own, what=what)
        return given


def pretraining_model(
    name: str = "multimae_eo_base",
    pretrained: bool = True,
    *,
    weights: str | Path | None = None,
    cache_dir: str | Path | None = None,
    **kwargs: Any,
) -> MultiMaePretraining:
    """A model with its output adapters, in eval mode, by default with its verified weights.

    Args:
        name: architecture, or architecture.tag.
        pretrained: False gives random weights.
        weights: a local checkpoint of pretraining instead; what it holds decides the domains and the adapters' sizes.
        cache_dir: where downloads and converted weights are kept.
        **kwargs: of ``MultiMae`` and ``MultiMaePretraining``; of the outputs in the weights, fewer may be chosen.

    Raises:
        InputError: unknown name, or arguments that do not fit.
        WeightsError: the weights are damaged, another model's, or hold no output adapters.
        DownloadError: they cannot be fetched.
    """
    ours = inspect.signature(MultiMaePretraining).parameters
    own: dict[str, Any] = {key: kwargs.pop(key) for key in list(kwargs) if key in ours}
    if not pretrained and weights is None:
        return MultiMaePretraining(_encoder(name, **kwargs), **own).eval()
    tensors, origin = _obtain(name, weights, cache_dir)
    held = _parts(tensors, "input_adapters")
    if known_domains(kwargs.pop("in_domains", held), "in_domains") != held:
        raise InputError(
            f"the output adapters of {origin} were trained beside {', '.join(held)}: leave in_domains out, as any of "
            "them may be given to the model"
        )
    encoder = _encoder(name, in_domains=held, **kwargs)
    model = MultiMaePretraining(encoder, **{**_sizes(tensors, str(origin)), **own})
    model.load_tensors(tensors, str(origin))
    model.encoder.weights_origin = origin
    return model.eval()


def _encoder(name: str, **kwargs: Any) -> MultiMae:
    """A registered model with random weights, if it is a MultiMAE."""
    model = registry.create_model(name, False, **kwargs)
    if not isinstance(model, MultiMae):
        raise InputError(
            f"{name} has no output adapters: expected one of {', '.join(registry.list_models('multimae'))}"
        )
    return model


def _obtain(
    name: str, source: str | Path | None, cache_dir: str | Path | None
) -> tuple[dict[str, Tensor], weights.Origin]:
    """All tensors of a record or a local file."""
    return weights.load(
        registry.get_record(name) if source is None else weights.given(source, name.partition(".")[0]),
        MultiMae.from_official,
        layout=MultiMae.layout,
        cache_dir=cache_dir,
    )


def _parts(tensors: Mapping[str, Tensor], of: str) -> tuple[str, ...]:
    """Names of a file's input or output adapters, the domains in their own order."""
    found = {name.split(".")[1] for name in tensors if name.startswith(f"{of}.")}
    return tuple(name for name in (*DOMAINS, NORM_RGB) if name in found)


def _of_outputs(tensors: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """The output adapters' tensors, of which there have to be some."""
    found = {name: tensor for name, tensor in tensors.items() if name.startswith("output_adapters.")}
    if not found:
        raise WeightsError(f"{what} holds an encoder only; to reconstruct, its output adapters are needed too")
    return found


def _sizes(tensors: Mapping[str, Tensor], what: str) -> dict[str, Any]:
    """How the output adapters of a file are built; the heads are not told by it."""
    outputs = _parts(_of_outputs(tensors, what), "output_adapters")
    start = f"output_adapters.{outputs[0]}."
    if f"{start}mask_token" not in tensors:
        raise WeightsError(f"{what} holds no {start}mask_token: its output adapters are not whole")
    blocks = {name.split(".")[3] for name in tensors if name.startswith(f"{start}decoder_transformer.")}
    return dict(
        out_domains=[name for name in outputs if name != NORM_RGB],
        norm_rgb=NORM_RGB in outputs,
        decoder_dim=tensors[f"{start}mask_token"].shape[-1],
        decoder_depth=len(blocks),
    )


def _domain_of(output: str) -> str:
    return "rgb" if output == NORM_RGB else output


def _without_masks(data: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The domains, and the masks by domain."""
    if not isinstance(data, Mapping):
        raise InputError(f"expected a dict of domains ({', '.join(DOMAINS)}), got {type(data).__name__}")
    masks = {name.removesuffix("_mask"): x for name, x in data.items() if str(name).endswith("_mask")}
    strange = next((name for name in masks if name not in data), None)
    if strange is not None:
        raise InputError(f"{strange}_mask is given without {strange}")
    return {name: x for name, x in data.items() if not str(name).endswith("_mask")}, masks


def _target(name: str, x: Any, valid: Any, made: Tensor) -> Tensor:
    """What an output is compared with, after a check that it can be; 0 where it is not valid."""
    domain, shape = DOMAINS[name], tuple(made[:, 0].shape if DOMAINS[name].classes else made.shape)
    if isinstance(x, Tensor) and tuple(x.shape) != shape:
        raise InputError(f"{name} to compare with is {tuple(x.shape)}, the output {shape}")
    if valid is not None:
        shapes = {shape} if domain.classes else {shape, (shape[0], 1, *shape[2:])}
        if not isinstance(valid, Tensor) or valid.dtype != torch.bool or tuple(valid.shape) not in shapes:
            found = f"{valid.dtype} {tuple(valid.shape)}" if isinstance(valid, Tensor) else type(valid).__name__
            raise InputError(f"{name}_mask is {found}, expected bool {shape}")
        # 0 times NaN would be NaN, in gradients too
        x = torch.where(valid, x, 0) if isinstance(x, Tensor) else x
    check_tensor(domain, x)
    return x


def _checked(visible: Mapping[str, Tensor], counts: Mapping[str, int], batch: int) -> dict[str, Tensor]:
    """A choice of tokens of all domains given, after a check that it is one."""
    if set(visible) != set(counts):
        raise InputError(f"visible is given for {', '.join(visible)}, the inputs are {', '.join(counts)}")
    for name, count in counts.items():
        one = visible[name]
        if not isinstance(one, Tensor) or one.dtype != torch.bool or tuple(one.shape) != (batch, count):
            found = f"{one.dtype} {tuple(one.shape)}" if isinstance(one, Tensor) else type(one).__name__
            raise InputError(f"visible {name} is {found}, expected bool ({batch}, {count})")
    total = torch.stack([one.sum(1).cpu() for one in visible.values()]).sum(0)
    if total.min() != total.max():
        raise InputError(
            f"{int(total.min())} to {int(total.max())} tokens are visible: expected as many in each of the batch"
        )
    return dict(visible)


def _normalised(x: Tensor, valid: Tensor | None, patch: int) -> Tensor:
    """Images (B, C, H, W), each patch standardised over the valid values of all its channels (unbiased variance)."""
    batch, channels, height, width = x.shape

    def patches(x: Tensor) -> Tensor:  # B, C, rows, p, columns, p
        return x.view(batch, channels, height // patch, patch, width // patch, patch)

    values = patches(x)
    use = patches(torch.ones_like(x) if valid is None else valid.expand_as(x).to(x.dtype))
    axes = (1, 3, 5)
    count = use.sum(axes, keepdim=True)
    mean = (values * use).sum(axes, keepdim=True) / count.clamp(min=1)
    variance = ((values - mean).square() * use).sum(axes, keepdim=True) / (count - 1).clamp(min=1)
    return ((values - mean) / (variance + EPSILON).sqrt()).view_as(x)
