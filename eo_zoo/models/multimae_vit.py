"""One image domain of a MultiMAE as a plain vision transformer of timm, and back.

The path of one domain through MultiMAE is a vision transformer: the global token is its class token, the table of
positions its own with zeros for that token, and there is no norm at its end. So every tensor of one has its place in
the other, and nothing is computed but the table's size.

    vit = to_vit(eo_zoo.create_model("multimae_eo_base"), "rgb")
    save_vit(vit, "folder")
    timm.create_model("local-dir:folder", pretrained=True)  # needs timm alone
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.layers import Attention, DropPath, Mlp, PatchDropout, PatchEmbed, to_2tuple
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from eo_zoo import registry, sensors
from eo_zoo.errors import InputError
from eo_zoo.files import replacing_all
from eo_zoo.models._build import input_cfg
from eo_zoo.models.multimae import MultiMae
from eo_zoo.models.multimae_domains import DOMAINS, require_domain

_logger = logging.getLogger(__name__)
ARCHITECTURE = "vit_base_patch8_224"  # timm's name that arguments are added to: all sizes are among them
PARTS = (PatchEmbed, Block, Attention, Mlp)
SIZES = ("embed_dim", "depth", "num_heads", "img_size", "patch_size")
COMPUTES = ("forward_features", "_pos_embed")
INERT = (nn.Identity, nn.Dropout, DropPath, PatchDropout)  # nothing, once a model is trained
FIXED = dict(fixed_input_size=True, crop_pct=1.0, first_conv="patch_embed.proj", classifier="head")
KEPT = ("mean", "std", "license", "description")


def to_vit(model: MultiMae, domain: str = "rgb", *, img_size: int | tuple[int, int] | None = None) -> VisionTransformer:
    """A plain ViT of timm that makes the same tokens of one domain's images, its class token being the global one.

    Args:
        model: its tensors are copied; a head is not.
        domain: any but semseg, which holds classes.
        img_size: pixels of the ViT's images, the model's by default; the table of positions is resized to them as
            MultiMAE does at each call. At 224 (28 x 28 patches of 8 pixels) it is the stored one, bit for bit.

    Returns:
        ``forward_features`` gives (B, 1 + rows * columns, D), the class token first; of the model's type, device and
        mode. Its positions are trainable, as timm's are: see ``from_vit``.

    Raises:
        InputError: the domain is none of the model's or no image, or the patches do not divide the size.
    """
    arguments = _arguments_of(model, domain, img_size)
    size = dict(input_size=(arguments["in_chans"], *arguments["img_size"]))
    plain = _plain(arguments, _config(model, domain) | size)
    adapter = model.input_adapters[domain]
    # an InputAdapter's
    rows = adapter.positions(plain.patch_embed.grid_size)  # type: ignore[operator]
    tensors = {
        "cls_token": model.global_tokens,
        "pos_embed": torch.cat([torch.zeros_like(rows[:, :1]), rows], dim=1),
        **_shared(model.state_dict(), f"input_adapters.{domain}.proj.", "patch_embed.proj."),
        **_shared(model.state_dict(), "blocks.", "blocks."),
    }
    plain.load_state_dict({name: tensor.detach().clone() for name, tensor in tensors.items()}, assign=True)
    return plain.train(model.training)


def from_vit(vit: VisionTransformer, domain: str = "rgb", *, into: MultiMae | None = None) -> MultiMae:
    """A MultiMAE whose path of one domain makes the same tokens as a ViT: one of ``to_vit``, or any plain one.

    What the ViT adds to its class token for its place goes into the global token. Its head, with any pooling norm, is
    not taken. To begin pretraining from a ViT of other images, of MAE or ImageNet, give ``into``: a new model with all
    domains, whose other adapters stay random.

    Args:
        vit: without register or distillation tokens, layer scale, norms of queries and keys, or a norm at its end.
        domain: that it is for: any but semseg.
        into: the model to fill; its blocks, shared by all domains, become the ViT's, its other adapters stay. By
            default a new one of this domain alone, of the ViT's size.

    Raises:
        InputError: the ViT has what MultiMAE has not, it is of another size than ``into``, or its table of positions
            is for another number of patches than the stored one and differs from it.
    """
    _check_domain(domain)
    given = _arguments(vit)
    model = into
    if model is None:
        model = MultiMae(in_domains=(domain,), **{name: given[name] for name in SIZES}).train(vit.training)
        model.to(next(vit.parameters()))
    _check_fit(vit, _plain(_arguments_of(model, domain, given["img_size"])))
    if not isinstance(vit.head, nn.Identity):
        _logger.info("the ViT's head is not taken over")
    patches = vit.patch_embed.num_patches
    own, table = vit.pos_embed.detach().split([vit.pos_embed.shape[1] - patches, patches], dim=1)
    adapter = f"input_adapters.{domain}"
    tensors = {
        "global_tokens": vit.cls_token + own if own.shape[1] else vit.cls_token,
        f"{adapter}.pos_emb": _stored(table, vit.patch_embed.grid_size, model.get_submodule(adapter)),
        **_shared(vit.state_dict(), "patch_embed.proj.", f"{adapter}.proj."),
        **_shared(vit.state_dict(), "blocks.", "blocks."),
    }
    model.load_state_dict({**model.state_dict(), **tensors})
    return model


def save_vit(vit: VisionTransformer, folder: str | Path) -> None:
    """Write a ViT of ``to_vit``, trained further or not, so that ``timm.create_model("local-dir:FOLDER",
    pretrained=True)`` gives it back, without this package.

    Args:
        vit: with a head or without.
        folder: made if it is not there; gets ``model.safetensors`` and ``config.json``, which replace those in it.

    Raises:
        InputError: it is none that ``to_vit`` makes.
    """
    arguments = _arguments(vit)
    plain = _plain(arguments)
    _check_fit(vit, plain)
    tensors = {name: tensor.contiguous() for name, tensor in vit.state_dict().items()}
    if strange := {name for name, _ in _shapes(vit) ^ _shapes(plain)}:
        raise InputError(f"timm would not build this ViT again: {_some(strange)} would have another shape or no place")
    known = getattr(vit, "pretrained_cfg", {})
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": vit.num_classes,
        "num_features": vit.num_features,
        "global_pool": vit.global_pool,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": (arguments["in_chans"], *arguments["img_size"]),
            "num_classes": vit.num_classes,
            **{name: known[name] for name in KEPT if known.get(name) is not None},
            **FIXED,
        },
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing_all(folder / "model.safetensors", folder / "config.json") as (weights, text):
        save_file(tensors, weights, metadata={"format": "pt"})
        text.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


# ---- both kinds of model, as arguments of timm's ViT ----


def _check_domain(domain: str) -> None:
    require_domain(domain)
    if DOMAINS[domain].classes:
        images = ", ".join(name for name, one in DOMAINS.items() if not one.classes)
        raise InputError(f"{domain} holds class ids, a ViT takes images: expected one of {images}")


def _arguments_of(model: MultiMae, domain: str, img_size: int | tuple[int, int] | None) -> dict[str, Any]:
    """Of the ViT that is a model's path of a domain."""
    _check_domain(domain)
    if not isinstance(model, MultiMae):
        raise InputError(f"expected a MultiMae, got {type(model).__name__}")
    if domain not in model.in_domains:
        raise InputError(f"the model was built without {domain}: it has {', '.join(model.in_domains)}")
    height, width = to_2tuple(model.img_size if img_size is None else img_size)
    if min(height, width) < 1 or height % model.patch_size or width % model.patch_size:
        raise InputError(f"img_size {height} x {width} is not a multiple of the patch size {model.patch_size}")
    return dict(
        img_size=(height, width),
        patch_size=model.patch_size,
        in_chans=DOMAINS[domain].channels,
        num_classes=0,
        global_pool="avg" if model.global_pool == "avg" else "token",
        embed_dim=model.embed_dim,
        depth=len(model.blocks),
        num_heads=model.get_submodule("blocks.0.attn").num_heads,
        final_norm=False,
    )


def _arguments(vit: Any) -> dict[str, Any]:
    """What a ViT was built with, read from its modules."""
    if not isinstance(vit, VisionTransformer):
        raise InputError(f"expected a VisionTransformer of timm, got {type(vit).__name__}")
    patches = vit.patch_embed
    blocks = vit.blocks
    parts = [patches, *blocks, *(getattr(block, part, block) for block in blocks for part in ("attn", "mlp"))]
    strange = sorted({type(part).__name__ for part in parts if type(part) not in PARTS})
    if strange:
        expected = ", ".join(part.__name__ for part in PARTS)
        raise InputError(f"the ViT is made of {', '.join(strange)}, MultiMAE of timm's plain {expected}")
    if patches.patch_size[0] != patches.patch_size[1]:
        raise InputError(f"the ViT's patches are {patches.patch_size} pixels, MultiMAE's are square")
    return dict(
        img_size=patches.img_size,
        patch_size=patches.patch_size[0],
        in_chans=patches.proj.in_channels,
        num_classes=vit.num_classes,
        global_pool=vit.global_pool,
        embed_dim=vit.embed_dim,
        depth=len(blocks),
        num_heads=blocks[0].attn.num_heads,
        final_norm=False,
    )


def _plain(arguments: dict[str, Any], config: dict[str, Any] | None = None) -> VisionTransformer:
    """timm's ViT without values."""
    return timm.create_model(ARCHITECTURE, pretrained_cfg=config or {}, device="meta", **arguments)


def _config(model: MultiMae, domain: str) -> dict[str, Any]:
    """timm's configuration of the ViT that a model's path of a domain becomes."""
    order = DOMAINS[domain].order
    record = registry.record_of(model)
    return dict(
        architecture=ARCHITECTURE,
        license=record.licence if record else None,
        description=f"{record.title if record else 'MultiMAE'}, {domain}: {model.weights_origin or 'random weights'}",
        **input_cfg(record, sensors.sensor_of(order), sensors.get_order(order)),
        **FIXED,
    )


# ---- whether a ViT is what MultiMAE is ----


def _check_fit(vit: VisionTransformer, plain: VisionTransformer) -> None:
    """Raise InputError unless the ViT makes its tokens as the plain one does, which is of the wanted size."""
    found, wanted = _arguments(vit), _arguments(plain)
    for name in ("embed_dim", "depth", "num_heads", "patch_size", "in_chans"):
        if found[name] != wanted[name]:
            raise InputError(f"the ViT has {name} {found[name]}, expected {wanted[name]}, as MultiMAE has here")
    own, expected = ({name for name in one.state_dict() if _of_tokens(name)} for one in (vit, plain))
    if names := own - expected:
        raise InputError(f"the ViT has {_some(names)}, which MultiMAE has no place for")
    if names := expected - own:
        raise InputError(f"the ViT has no {_some(names)}, which MultiMAE needs")
    modules, plain_modules = _modules(vit), _modules(plain)
    for name in modules | plain_modules:
        mine, other = (one.get(name, "nothing") for one in (modules, plain_modules))
        if mine != other:
            raise InputError(f"the ViT's {name} is {mine}, MultiMAE's {other}")
    if any(getattr(type(vit), name) is not getattr(VisionTransformer, name) for name in COMPUTES):
        raise InputError(f"{type(vit).__name__} computes tokens in its own way, expected timm's VisionTransformer")
    if not isinstance(vit.norm, nn.Identity):
        raise InputError(
            f"the ViT ends with {vit.norm}, and MultiMAE has no norm behind its blocks: to leave it out, which changes "
            "the tokens, set vit.norm = torch.nn.Identity() first"
        )


def _some(names: set[str]) -> str:
    first, *others = sorted(names)
    return f"{first} and {len(others)} more" if others else first


def _of_tokens(name: str) -> bool:
    """Whether a module or tensor makes the tokens, the norm at their end aside."""
    return name.partition(".")[0] not in ("", "norm", "fc_norm", "attn_pool", "head", "head_drop")


def _modules(vit: VisionTransformer) -> dict[str, str]:
    """What makes a ViT's tokens: name -> kind and arguments."""
    return {
        name: f"{'LayerNorm' if isinstance(part, nn.LayerNorm) else type(part).__name__}({part.extra_repr()})"
        for name, part in vit.named_modules()
        if _of_tokens(name) and not isinstance(part, INERT)
    }


# ---- tensors ----


def _shapes(vit: VisionTransformer) -> set[tuple[str, torch.Size]]:
    return {(name, tensor.shape) for name, tensor in vit.state_dict().items()}


def _shared(tensors: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {new + name.removeprefix(old): tensor for name, tensor in tensors.items() if name.startswith(old)}


def _stored(table: Tensor, grid: tuple[int, int], adapter: nn.Module) -> Tensor:
    """What an adapter has to store for a ViT's table (1, rows * columns, D): that itself, or what it was made of."""
    given = table.transpose(1, 2).unflatten(2, grid)
    stored = adapter.get_buffer("pos_emb")
    if given.shape == stored.shape:
        return given
    close = 8 * torch.finfo(table.dtype).eps
    # an InputAdapter's
    made = adapter.positions(grid).to(table)  # type: ignore[operator]
    if torch.allclose(table, made, rtol=0, atol=close):
        return stored
    kept, has = (f"{rows} x {columns}" for rows, columns in (stored.shape[2:], grid))
    raise InputError(
        f"the ViT's positions, for {has} patches, are not MultiMAE's table of {kept} made smaller or larger: leave "
        "vit.pos_embed as it is in training, or give it that size before, by to_vit(img_size=) or vit.set_input_size"
    )
