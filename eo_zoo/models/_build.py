"""From a registered name to a model with its weights, the same way for every family."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from timm.models import build_model_with_cfg, resolve_pretrained_cfg
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from eo_zoo import sensors, weights
from eo_zoo.errors import InputError

_logger = logging.getLogger(__name__)
NEW_HEAD = "a new head is random until it is trained"


class StrictLoading(nn.Module):
    """Mixin: official checkpoints through the family's key table, all tensors accounted for.

    A family gives ``layout`` (name and version of its table), ``from_official`` and, where tensors depend on how
    the model was built, ``adapt``.
    """

    layout: ClassVar[str]
    families: ClassVar[dict[str, type[StrictLoading]]] = {}
    weights_origin: weights.Origin | None = None
    head: nn.Module

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        StrictLoading.families[cls.layout] = cls

    @staticmethod
    def from_official(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Official names to ours; raises WeightsError for a name the family's table does not hold."""
        # there is no table that fits every family
        raise NotImplementedError

    def adapt(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Fit mapped tensors to this instance.

        Returns:
            The tensors, and the named exceptions: parameters that may stay as initialised, each with the reason.
        """
        return tensors, {}

    def load_weights(self, source: weights.Record | str | Path, *, cache_dir: str | Path | None = None) -> None:
        """Fill the model from a weight record or a local file, strictly.

        Raises:
            WeightsError: the file is damaged, hostile, or its tensors are not exactly this model's.
            DownloadError: it has to be fetched and cannot be.
        """
        tensors, origin = weights.load(source, self.from_official, layout=self.layout, cache_dir=cache_dir)
        self._fill(tensors, str(origin))
        self.weights_origin = origin
        _logger.info("%s: loaded %s", type(self).__name__, origin)

    def _fill(self, tensors: dict[str, Tensor], what: str) -> None:
        own = super().state_dict()
        tensors, fresh = self.adapt(tensors)
        mine, given = ({n: t.shape for n, t in d.items() if n.startswith("head.")} for d in (own, tensors))
        if not mine or not given or (set(mine) == set(given) and mine != given):
            # Asked for by num_classes: either no head at all, or one of another size than the file's.
            tensors = {name: tensor for name, tensor in tensors.items() if name not in given}
            fresh |= dict.fromkeys(mine, NEW_HEAD)
        weights.check_fit(tensors, own, optional=fresh, what=what)
        for name, reason in fresh.items():
            _logger.log(
                logging.WARNING if reason == NEW_HEAD else logging.INFO, "%s, not in %s: %s", name, what, reason
            )
        missing = {name: own[name] for name in fresh}
        super().load_state_dict({**missing, **tensors}, strict=True)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's, but an official checkpoint's names are accepted too (timm's ``checkpoint_path=``)."""
        if strict and set(state_dict) - set(super().state_dict()):
            self._fill(self.from_official(state_dict), "the state dict")
            return _IncompatibleKeys([], [])
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        # torch calls this for every module that gets tensors, also as a part of a larger one
        self.weights_origin = weights.Origin(None, "a state dict", "", verified=False)
        super()._load_from_state_dict(*args, **kwargs)


def cfgs_for(prefix: str, **common: Any) -> dict[str, dict[str, Any]]:
    """timm's pretrained configurations for the records whose name begins so; the first tag is the default."""
    return {
        name: dict(
            custom_load=True,
            first_conv=None,
            classifier="head",
            num_classes=0,
            crop_pct=1.0,
            license=record.licence,
            origin_url=record.repository,
            paper_ids=record.paper,
            description=record.title,
            **_location(record.source),
            **input_cfg(record, record.sensors[0], sensors.get_sensor(record.sensors[0]).band_names),
            **common,
        )
        for name, record in weights.RECORDS.items()
        if name.startswith(prefix)
    }


def input_cfg(record: weights.Record | None, sensor: str | None, bands: Sequence[str]) -> dict[str, Any]:
    """timm's mean and std for these bands: those that follow the clipping; 0 and 1 where none are recorded."""
    recorded = dict(record.statistics) if record else {}
    if sensor is not None:
        name = sensors.get_sensor(sensor).name
        recorded = {name: recorded[name]} if name in recorded else {}
    for statistics in map(sensors.get_statistics, recorded.values()):
        if set(bands) <= set(statistics.bands):
            chosen = statistics.select(bands)
            return dict(mean=chosen.mean, std=chosen.std)
    return dict(mean=(0.0,) * len(bands), std=(1.0,) * len(bands))


def record_of(variant: str, pretrained_cfg: Any = None) -> weights.Record | None:
    """The record that a timm configuration (a tag, a dict, or the default) stands for, if it is one of ours."""
    tag = resolve_pretrained_cfg(variant, pretrained_cfg).tag
    return weights.RECORDS.get(f"{variant}.{tag}")


def _location(source: str) -> dict[str, str]:
    # timm only lists and shows these; loading goes through eo_zoo.weights
    scheme, _, path = source.partition("://")
    if scheme != "hf":
        return dict(url=source)
    owner, repo, file = path.split("/", 2)
    return dict(hf_hub_id=f"{owner}/{repo}", hf_hub_filename=file)


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

    def construct(**model_args: Any) -> nn.Module:
        model = cls(**model_args)
        if pretrained and any(parameter.is_meta for parameter in model.parameters()):
            raise InputError(
                "weights cannot be loaded on the meta device: create the model with pretrained=False there"
            )
        if pretrained and cfg.state_dict:
            model._fill(cls.from_official(cfg.state_dict), "the state dict")
        elif pretrained:
            model.load_weights(_source(variant, cfg), cache_dir=cache_dir)
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


def _source(variant: str, cfg: Any) -> weights.Record | Path:
    if cfg.source == "local-dir":
        return Path(cfg.file) / "model.safetensors"
    if cfg.file:
        return Path(cfg.file)
    record = weights.RECORDS.get(f"{variant}.{cfg.tag}")
    default = resolve_pretrained_cfg(variant, cfg.tag if record else None)
    if cfg.url and cfg.url != default.url:
        raise InputError(f"weights are not fetched from just any address ({cfg.url}): download it and give file=PATH")
    if cfg.hf_hub_id and (cfg.hf_hub_id, cfg.hf_hub_filename) != (default.hf_hub_id, default.hf_hub_filename):
        file = cfg.hf_hub_filename or "model.safetensors"
        return weights.Record(f"{variant}.hub", f"hf://{cfg.hf_hub_id}/{file}", layout="", licence=cfg.license or "")
    if record is None:
        raise InputError(f"no weights are published for {variant}.{cfg.tag}: pretrained=False gives random ones")
    return record
