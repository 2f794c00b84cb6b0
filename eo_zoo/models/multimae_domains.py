"""The domains of MultiMAE meets Earth observation: what each is, and how raw values become what the model takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from eo_zoo.errors import InputError, nearest

#: ESA WorldCover's codes and names. A code's place here is its class id; 255 is what MMEarth calls no data.
WORLDCOVER = {
    10: "tree cover", 20: "shrubland", 30: "grassland", 40: "cropland", 50: "built-up", 60: "bare or sparse vegetation",
    70: "snow and ice", 80: "permanent water", 90: "herbaceous wetland", 95: "mangroves", 100: "moss and lichen",
    255: "no data",
}  # fmt: skip
NO_DATA = list(WORLDCOVER).index(255)


@dataclass(frozen=True)
class Domain:
    """One key of the model's input dict."""

    name: str
    channels: int  # of the image; of "semseg" its classes
    stride: int = 1  # pixels a side of the image for one value
    classes: bool = False  # integer class ids (B, h, w) instead of floats (B, C, H, W)

    @property
    def order(self) -> str:
        """The named order of its bands, see ``eo_zoo.sensors.get_order``."""
        return f"multimae/{self.name}"

    def patch(self, size: int) -> int:
        """Values a side of a patch of ``size`` pixels; raises InputError if that is no whole number."""
        if size < 1 or size % self.stride:
            one = f": {self.name} has one value for {self.stride} x {self.stride} pixels" * (self.stride > 1)
            raise InputError(f"patch_size is {size}, expected a multiple of {self.stride}{one}")
        return size // self.stride

    def extent(self, x: Tensor) -> tuple[int, int]:
        """Pixels of the image that x covers, rows and columns."""
        return x.shape[-2] * self.stride, x.shape[-1] * self.stride


DOMAINS = {
    one.name: one
    for one in (
        Domain("rgb", 3),
        Domain("ired", 3),
        Domain("sired", 2),
        Domain("ebands", 2),
        Domain("depth", 1),
        Domain("semseg", len(WORLDCOVER), stride=4, classes=True),
    )
}
#: The rasters that hold them.
RASTERS = {"s2": ("rgb", "ired", "sired", "ebands"), "dem": ("depth",), "worldcover": ("semseg",)}


# ---- from raw values ----


def classes_of(codes: Tensor) -> Tensor:
    """ESA WorldCover's codes to class ids 0..11, int64; 0, its files' nodata, is 11 ("no data"), as 255 is.

    Args:
        codes: of any shape, whole numbers of any type.

    Raises:
        InputError: a code that WorldCover does not have.
    """
    known = torch.tensor(list(WORLDCOVER), device=codes.device)
    found = torch.where(codes == 0, 255, codes)
    # asked of each class, as a table could be asked for no value that it has not
    same = found[..., None] == known
    if not torch.compiler.is_compiling() and not (hit := same.any(-1)).all():
        strange = found[~hit].unique()
        shown = ", ".join(f"{value:g}" for value in strange[:5].tolist())
        raise InputError(
            f"{int((~hit).sum())} land-cover values are no ESA WorldCover code ({shown}): expected "
            f"{', '.join(map(str, WORLDCOVER))} or 0; another map has to be brought to these classes first"
        )
    return same.int().argmax(-1)


def standardize_depth(x: Tensor, valid: Tensor | None = None) -> Tensor:
    """Elevation of each image by itself, as in pretraining: the mean and variance are those of its middle 80 %.

    That makes up for any mean and, but for flat ground, any scale: 1e-6 is added to the variance.

    Args:
        x: (..., 1, H, W), floats.
        valid: bool, of x's shape: what is not counts for nothing and is 0 afterwards; all by default.
    """
    values = x.flatten(-3).float()
    usable = torch.ones_like(values, dtype=torch.bool) if valid is None else valid.flatten(-3)
    ordered = values.masked_fill(~usable, torch.inf).sort(dim=-1).values  # what is not valid lies at the end
    count = usable.sum(-1, keepdim=True)
    low, high = count // 10, count * 9 // 10
    place = torch.arange(values.shape[-1], device=x.device)
    inner = (place >= low) & (place < high)
    number = inner.sum(-1, keepdim=True).clamp(min=1)
    kept = torch.where(inner, ordered, 0)
    mean = kept.sum(-1, keepdim=True) / number
    spread = torch.where(inner, kept - mean, 0).square().sum(-1, keepdim=True) / (number - 1).clamp(min=1)
    made = torch.where(usable, (values - mean) / (spread + 1e-6).sqrt(), 0)
    return made.view_as(x).to(x.dtype)


def resized(name: str, x: Tensor, size: int | tuple[int, int]) -> Tensor:
    """A domain's values at ``size`` pixels of the image, rows and columns; what has the size already is returned.

    Images are resized bilinearly without antialiasing, as in pretraining. Labels become their nearest neighbours; the
    public code interpolates the numbers of classes, which makes up classes that are not there.

    Args:
        name: of the domain.
        x: (B, C, H, W), of semseg labels (B, h, w).
        size: pixels; of semseg the labels are a quarter of them.
    """
    domain = DOMAINS[name]
    rows, columns = (size, size) if isinstance(size, int) else size
    target = (rows // domain.stride, columns // domain.stride)
    if x.shape[-2:] == target:
        return x
    if not domain.classes:
        return F.interpolate(x, target, mode="bilinear", align_corners=False)
    return F.interpolate(x[:, None].float(), target, mode="nearest-exact")[:, 0].to(x.dtype)


# ---- what a model is given ----


def known_domains(names: str | Iterable[str] | None, what: str) -> tuple[str, ...]:
    """A choice of domains in their own order, all of them for None.

    Args:
        names: of domains; a single one may be given as it is.
        what: the option's name, for messages.

    Raises:
        InputError: a name that is no domain's, or none at all.
    """
    chosen = tuple(DOMAINS) if names is None else (names,) if isinstance(names, str) else tuple(names)
    for name in chosen:
        require_domain(name)
    if not chosen:
        raise InputError(f"{what} is empty: give at least one of {', '.join(DOMAINS)}")
    return tuple(name for name in DOMAINS if name in chosen)


def require_domain(name: Any) -> None:
    """Raise InputError for a name that is no domain's."""
    if name not in DOMAINS:
        masks = str(name).removesuffix("_mask") in DOMAINS
        more = "Masks are for pretraining: leave them out here" if masks else nearest(str(name), DOMAINS)
        raise InputError(f"unknown domain {name!r}. {more}")


def check(data: Any, domains: tuple[str, ...], patch_size: int) -> tuple[dict[str, Tensor], tuple[int, int]]:
    """The domains as a dict, and the rows and columns of patches.

    Args:
        data: a dict of domains, or one image of the only domain, else of rgb.
        domains: that the model has.
        patch_size: in pixels.

    Raises:
        InputError: a domain is unknown or not the model's, or shapes, types or values do not fit.
    """
    if isinstance(data, Tensor):
        if len(domains) > 1 and "rgb" not in domains:
            raise InputError(f"got one tensor, but the model has no rgb: give a dict of {', '.join(domains)}")
        data = {domains[0] if len(domains) == 1 else "rgb": data}
    if not isinstance(data, Mapping):
        raise InputError(f"expected a dict of domains ({', '.join(domains)}) or an image, got {type(data).__name__}")
    if not data:
        raise InputError(f"the dict is empty: give at least one of {', '.join(domains)}")
    for name, x in data.items():
        require_domain(name)
        if name not in domains:
            raise InputError(f"the model was built without {name}: it has {', '.join(domains)}")
        check_tensor(DOMAINS[name], x)
    (first, x), *others = data.items()
    extent = DOMAINS[first].extent(x)
    for name, other in others:
        if len(other) != len(x):
            raise InputError(f"{name} holds {len(other)} images, {first} {len(x)}: expected as many of each")
        if (own := DOMAINS[name].extent(other)) != extent:
            raise InputError(
                f"{name} covers {_pixels(own)} pixels, {first} {_pixels(extent)}: expected the same extent of all "
                "(semseg has one label for 4 x 4 pixels)"
            )
    if extent[0] % patch_size or extent[1] % patch_size or 0 in extent:
        raise InputError(f"the images are {_pixels(extent)} pixels, expected multiples of the patch size {patch_size}")
    return dict(data), (extent[0] // patch_size, extent[1] // patch_size)


def _pixels(extent: tuple[int, int]) -> str:
    return f"{extent[0]} x {extent[1]}"


def check_tensor(domain: Domain, x: Any) -> None:
    """Raise InputError unless x is a batch of the domain's images or labels."""
    if not isinstance(x, Tensor):
        raise InputError(f"{domain.name} is of type {type(x).__name__}, expected a tensor")
    shape = tuple(x.shape)
    if domain.classes:
        if len(shape) != 3:
            raise InputError(
                f"{domain.name} is {shape}, expected class ids (B, H / {domain.stride}, W / {domain.stride})"
            )
        if x.is_floating_point() or x.dtype == torch.bool or x.is_complex():
            raise InputError(
                f"{domain.name} holds {x.dtype}, expected whole class ids from 0 to {domain.channels - 1}: "
                "multimae_domains.classes_of makes them of WorldCover's codes"
            )
        if not torch.compiler.is_compiling() and x.numel():
            low, high = (bound.item() for bound in x.long().aminmax())
            if low < 0 or high >= domain.channels:
                raise InputError(
                    f"{domain.name} holds class ids from {low} to {high}, expected 0 to {domain.channels - 1}: "
                    "multimae_domains.classes_of makes them of WorldCover's codes"
                )
        return
    if len(shape) != 4 or shape[1] != domain.channels:
        raise InputError(f"{domain.name} is {shape}, expected images (B, {domain.channels}, H, W)")
    if not x.is_floating_point():
        raise InputError(f"{domain.name} holds {x.dtype}, expected normalised floats: see eo_zoo.create_transform")
    if not torch.compiler.is_compiling() and not x.isfinite().all():
        raise InputError(f"{domain.name} holds NaN or infinite values: set what is missing to 0 after normalising")
