"""From a registered name to a model with its weights, the same way for every family."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from timm.models import build_model_with_cfg, resolve_pretrained_cfg
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys
from torch.overrides import TorchFunctionMode

from eo_zoo import sensors, weights
from eo_zoo.errors import InputError, WeightsError
from eo_zoo.weights import sharded
from eo_zoo.weights.checkpoint import IncompleteError
from eo_zoo.weights.plan import Layout, Plan, best

_logger = logging.getLogger(__name__)
NEW_HEAD = "a new head is random until it is trained"


class StrictLoading(nn.Module):
    """Mixin: official checkpoints through the family's key table, all tensors accounted for.

    A family gives its name, ``layout`` (name and version of its table), ``layouts`` and, where tensors depend on how
    the model was built, ``adapt``.
    """

    family: ClassVar[str]
    layout: ClassVar[str]
    unseen: ClassVar[str]  # the argument that no tensor tells, of sizes that are not registered
    alike: ClassVar[str] = ""  # whose tensors have the names and shapes of ours too
    spare: ClassVar[Mapping[str, str]] = {}  # mapped tensors that ``adapt`` leaves out: pattern of names, and why
    families: ClassVar[dict[str, type[StrictLoading]]] = {}
    weights_origin: weights.Origin | None = None
    model_args: Mapping[str, Any] = {}  # what it was built with, but for classes and what follows from the rest
    head: nn.Module

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "layout"):  # a base of several has none
            StrictLoading.families[cls.layout] = cls

    @classmethod
    def layouts(cls, names: Collection[str]) -> tuple[Layout, ...]:
        """The forms that checkpoints of the family have, ours too; ``names`` are those of the one at hand."""
        # there is no table that fits every family
        raise NotImplementedError

    @classmethod
    def plan(cls, names: Collection[str]) -> Plan:
        """What becomes of a checkpoint's tensors, by the layout that knows the most of their names."""
        return best(cls.layouts(names), names)

    @classmethod
    def from_official(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Official names to ours, ours stay; raises WeightsError for a name that the family's table does not hold."""
        return cls.plan(tensors).require_known(cls.family).apply(tensors)

    @classmethod
    def implied(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """The arguments of the model whose tensors, under our names, these are; raises LookupError for any others."""
        # sizes are in other places in each family
        raise NotImplementedError

    @classmethod
    def held(cls, plan: Plan, mapped: Mapping[str, Tensor]) -> dict[str, Mapping[str, Tensor]]:
        """The models in what ``plan`` mapped, each by the names of its tensors; "" where there can be but one."""
        return {"": mapped}

    @classmethod
    def behind(cls, layout: str, part: str, name: str) -> str:
        """What ``held`` took a name of a part's from."""
        return name

    def adapt(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Fit mapped tensors to this instance.

        Returns:
            The tensors, and the named exceptions: parameters that may stay as initialised, each with the reason.
        """
        return tensors, {}

    def init_weights(self, *args: Any, **kwargs: Any) -> None:
        """The family's initial (random) weights."""
        self.weights_origin = None
        # timm's model behind this mixin has it
        super().init_weights(*args, **kwargs)  # type: ignore[misc]

    def load_weights(
        self, source: weights.Record | str | Path, *, cache_dir: str | Path | None = None, own_head: bool = False
    ) -> None:
        """Fill the model from a weight record or a local file, strictly.

        Args:
            source: the record, or the path of a checkpoint in the official layout or ours.
            cache_dir: where downloads and converted weights are kept.
            own_head: the head has to come from the file too. Otherwise one that the file has not, or for another
                number of classes, stays random, which is told.

        Raises:
            WeightsError: the file is damaged, hostile, or its tensors are not exactly this model's.
            DownloadError: it has to be fetched and cannot be.
        """
        tensors, origin = self.obtain(source, cache_dir=cache_dir, own_head=own_head)
        super().load_state_dict(tensors, strict=True)
        self.weights_origin = origin
        _logger.info("%s: loaded %s", type(self).__name__, origin)

    def obtain(
        self, source: weights.Record | str | Path, *, cache_dir: str | Path | None = None, own_head: bool = False
    ) -> tuple[dict[str, Tensor], weights.Origin]:
        """The tensors that ``load_weights`` would fill the model with; raises as it does."""
        with self._sized(source):
            tensors, origin = weights.load(source, self.from_official, layout=self.layout, cache_dir=cache_dir)
            matched = self._matched(tensors, str(origin), own_head=own_head)
        from eo_zoo.models import golden  # which builds models itself

        golden.remember(origin, tensors, layout=self.layout, cache_dir=cache_dir)
        return matched, origin

    @contextlib.contextmanager
    def _sized(self, source: weights.Record | str | Path) -> Iterator[None]:
        """While a file is loaded that is too small for this architecture, say so, before and if it fails."""
        size = source.size if isinstance(source, weights.Record) else _size_of(Path(source).expanduser())
        values = sum(parameter.numel() for name, parameter in self.named_parameters() if not name.startswith("head."))
        if size is None or size >= 4 * values:
            yield
            return
        kind = "the published " if isinstance(source, weights.Record) else ""
        fact = (
            f"{kind}{size:,} bytes cannot hold this architecture's {values:,} values, {4 * values:,} bytes in float32"
        )
        if isinstance(source, weights.Record):
            _logger.warning("%s: %s, so loading will probably fail", source.name, fact)
        try:
            yield
        except IncompleteError as error:
            raise WeightsError(f"{error}; {fact}: the file itself is incomplete") from error

    def _matched(self, tensors: dict[str, Tensor], what: str, *, own_head: bool = False) -> dict[str, Tensor]:
        own = super().state_dict()
        tensors, fresh = self.adapt(tensors)
        mine, given = ({n: t.shape for n, t in d.items() if n.startswith("head.")} for d in (own, tensors))
        classes = {n: s[1:] for n, s in mine.items()} == {n: s[1:] for n, s in given.items()} and mine != given
        if not mine or (not own_head and (not given or classes)):
            # Asked for by num_classes: either no head at all, or one for another number of classes than the file's.
            tensors = {name: tensor for name, tensor in tensors.items() if name not in given}
            fresh |= dict.fromkeys(mine, NEW_HEAD)
        weights.check_fit(tensors, own, optional=fresh, what=what)
        for reason in dict.fromkeys(fresh.values()):
            names = ", ".join(name for name in fresh if fresh[name] == reason)
            level = logging.WARNING if reason == NEW_HEAD else logging.INFO
            _logger.log(level, "%s, not from %s: %s", names, what, reason)
        return {**{name: own[name] for name in fresh}, **tensors}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's, but an official checkpoint's names are accepted too (timm's ``checkpoint_path=``)."""
        if strict and set(state_dict) - set(super().state_dict()):
            super().load_state_dict(self._matched(self.from_official(state_dict), "the state dict"), strict=True)
            return _IncompatibleKeys([], [])
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        # torch calls this for every module that gets tensors, also as a part of a larger one
        self.weights_origin = weights.Origin(None, "a state dict", "", verified=False)
        super()._load_from_state_dict(*args, **kwargs)


def count(names: Collection[str], before: str) -> int:
    """How many numbers follow ``before`` in names, as "blocks." in "blocks.11.norm1.weight"; they start at 0.

    Raises:
        KeyError: one is missing.
    """
    numbers = {name.removeprefix(before).partition(".")[0] for name in names if name.startswith(before)}
    missing = {str(i) for i in range(len(numbers))} - numbers
    if missing or not numbers:
        raise KeyError(f"{before}{min(missing, default='0')}")
    return len(numbers)


def _size_of(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def cfgs_for(architecture: str, img_size: int, **common: Any) -> dict[str, dict[str, Any]]:
    """timm's pretrained configurations for the architecture's records; the first tag is the default."""
    return {
        name: dict(
            custom_load=True,
            first_conv=None,
            input_size=(len(record.bands), img_size, img_size),
            classifier="head",
            num_classes=len(record.task.classes) if record.task else 0,
            label_names=record.task.classes if record.task else None,
            crop_pct=record.crop,
            license=record.licence,
            origin_url=record.repository,
            paper_ids=record.paper,
            description=record.title,
            **_location(record.source),
            **input_cfg(record, None if record.together else record.sensors[0], record.bands),
            **common,
        )
        for name, record in weights.RECORDS.items()
        if name.partition(".")[0] == architecture
    }


def input_cfg(record: weights.Record | None, sensor: str | None, bands: Sequence[str]) -> dict[str, Any]:
    """timm's mean and std for these bands; 0 and 1 where none are recorded.

    They follow the clipping, where there is one. Without it those of uint8 images are for values of 0 to 1, as timm's
    own transforms make them of such images.
    """
    recorded = dict(record.statistics) if record else {}
    if sensor is not None:
        name = sensors.get_sensor(sensor).name
        recorded = {name: recorded[name]} if name in recorded else {}
    every = list(map(sensors.get_statistics, recorded.values()))
    for group in [every] if record and record.together else [[one] for one in every]:
        known: dict[str, tuple[float, float]] = {}
        for one in group:
            scale = 255.0 if one.units == "uint8" and one.p1 is None else 1.0
            known |= {name: (m / scale, s / scale) for name, m, s in zip(one.bands, one.mean, one.std, strict=True)}
        if set(bands) <= set(known):
            mean, std = zip(*(known[band] for band in bands), strict=True)
            return dict(mean=mean, std=std)
    return dict(mean=(0.0,) * len(bands), std=(1.0,) * len(bands))


def record_of(variant: str, pretrained_cfg: Any = None) -> weights.Record | None:
    """The record that a timm configuration (a tag, a dict, or the default) stands for, if it is one of ours."""
    tag = resolve_pretrained_cfg(variant, pretrained_cfg).tag
    return weights.RECORDS.get(f"{variant}.{tag}")


def _location(source: str) -> dict[str, str]:
    # timm only lists and shows these; loading goes through eo_zoo.weights
    if not source:
        return {}
    scheme, _, path = source.partition("://")
    if scheme != "hf":
        return dict(url=source)
    owner, repo, file = path.split("/", 2)
    return dict(hf_hub_id=f"{owner}/{repo}", hf_hub_filename=file)


class Unfilled(TorchFunctionMode):
    """While it holds, tensors that are to be filled with random numbers are left as they are.

    Families draw truncated normals by timm: torch's ``trunc_normal_`` draws again until all fit, which here is never.
    """

    random = (
        torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.erfinv_,
        nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_,
    )  # fmt: skip

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.random:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def build(
    cls: type[StrictLoading],
    variant: str,
    pretrained: bool,
    *,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: str | Path | None = None,
    **kwargs: Any,
) -> Any:
    """timm's builder, with the weights put in by us at construction.

    timm's own loading turns strictness off and goes on in several cases, and cannot verify a file; so it is told
    ``pretrained=False``, and the model it gets to wrap (``features_only``) is already filled.
    """
    cfg = resolve_pretrained_cfg(variant, pretrained_cfg, dict(pretrained_cfg_overlay or {}))
    own_head = kwargs.get("num_classes") in (None, cfg.num_classes)

    def construct(**model_args: Any) -> nn.Module:
        # With the head from the file too, no random number survives the loading: half of the time is saved.
        with Unfilled() if pretrained and own_head else contextlib.nullcontext():
            model = cls(**model_args)
        follows = ("num_classes", "in_chans")
        model.model_args = {name: value for name, value in model_args.items() if name not in follows}
        if pretrained and any(parameter.is_meta for parameter in model.parameters()):
            raise InputError(
                "weights cannot be loaded on the meta device: create the model with pretrained=False there"
            )
        if pretrained and cfg.state_dict:
            model.load_state_dict(
                model._matched(cls.from_official(cfg.state_dict), "the state dict", own_head=own_head)
            )
        elif pretrained:
            model.load_weights(_source(variant, cfg, cache_dir), cache_dir=cache_dir, own_head=own_head)
        return model

    return build_model_with_cfg(
        construct,
        variant,
        False,
        pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay=pretrained_cfg_overlay,
        cache_dir=cache_dir,
        **kwargs,
    )


def _source(variant: str, cfg: Any, cache_dir: str | Path | None) -> weights.Record | Path:
    if cfg.source == "local-dir":
        folder = Path(cfg.file)
        return folder / sharded.SAFETENSORS if (folder / sharded.SAFETENSORS).is_file() else folder
    if cfg.file:
        return weights.given(cfg.file, variant)
    record = weights.RECORDS.get(f"{variant}.{cfg.tag}")
    default = resolve_pretrained_cfg(variant, cfg.tag if record else None)
    if cfg.url and cfg.url != default.url:
        raise InputError(f"weights are not fetched from just any address ({cfg.url}): download it and give file=PATH")
    if cfg.hf_hub_id and (cfg.hf_hub_id, cfg.hf_hub_filename) != (default.hf_hub_id, default.hf_hub_filename):
        file = cfg.hf_hub_filename or "model.safetensors"
        repository, _, revision = cfg.hf_hub_id.partition("@")
        return weights.hosted(
            variant, repository, file, revision=revision or None, cache_dir=cache_dir, licence=cfg.license or ""
        )
    if record is None:
        raise InputError(f"no weights are published for {variant}.{cfg.tag}: pretrained=False gives random ones")
    return record
