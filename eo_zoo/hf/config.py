"""Configurations: a registered model's name and the arguments it is built with, in one JSON that timm reads too."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import timm
import torch
from transformers import PretrainedConfig

from eo_zoo import registry, weights
from eo_zoo.errors import InputError, nearest
from eo_zoo.models._build import StrictLoading
from eo_zoo.weights import sources

# What a model is built with and users change; everything else goes into ``model_args``.
_COMMON = ("img_size", "global_pool", "drop_rate", "drop_path_rate")
_SMARTIES = ("bands", "sensor", "dynamic_img_size", "head", "mix", "proj_drop_rate", "attn_drop_rate")
# What transformers itself changes in a configuration while it loads a model.
_OWN = (
    "architecture", "model_args", "num_labels", "id2label", "label2id", "problem_type", "output_hidden_states",
    "output_attentions", "return_dict", "semantic_loss_ignore_index", "out_indices", "out_features", "pretraining",
)  # fmt: skip
_KEPT = ("input_size", "mean", "std", "label_names", "crop_pct", "classifier", "license")


def resolve(name: str | Path) -> weights.Record | None:
    """The weight set that a name means: one of eo_zoo, or the official repository that holds a single default one.

    None for anything else, and for a folder of that name, which comes first.
    """
    text = str(name)
    if Path(text).is_dir():
        return None
    if text in weights.RECORDS or text in registry.list_models():
        return registry.get_record(text)
    architecture = _official().get(text.lower())
    return registry.get_record(architecture) if architecture else None


@functools.cache
def _official() -> dict[str, str]:
    """By owner/repository, in lower case: the architecture whose default weight set lies there."""
    found: dict[str, str] = {}
    for architecture in registry.list_models():
        record = registry.get_record(architecture)
        if record.scheme in ("hf", "github"):
            owner, repository = record.source.partition("://")[2].split("/")[:2]
            found[f"{owner}/{repository}".lower()] = architecture
    return found


class EoZooConfig(PretrainedConfig):
    """Base of the families' configurations.

    Args:
        architecture: a name of ``eo_zoo.list_models()``, with or without the tag of a weight set.
        model_args: arguments the model is built with, as of ``timm.create_model``; the common ones may also be given
            by themselves: ``SmartiesConfig("smarties_vit_base", bands=["B04", "B03", "B02"])``.
        pretrained_cfg: as timm keeps it beside them: tag, statistics, licence.
        out_indices: of a backbone: which maps, counted from 0 or, if negative, from the last; or name them by
            ``out_features``, "stage1", "stage2" ...
        pretraining: arguments of the pretraining model's decoder, where the family has one.
        **kwargs: as of transformers' configurations. ``num_labels`` is 0 for features.

    Raises:
        InputError: an unknown architecture, or one of another family.
    """

    family: ClassVar[str] = ""  # what the names of its architectures begin with
    default: ClassVar[str] = ""  # the architecture that stands for it
    arguments: ClassVar[tuple[str, ...]] = _COMMON

    def __init__(
        self,
        architecture: str | None = None,
        model_args: dict[str, Any] | None = None,
        pretrained_cfg: dict[str, Any] | None = None,
        out_indices: list[int] | None = None,
        out_features: list[str] | None = None,
        pretraining: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        record = registry.get_record(architecture or self.default)
        if not record.name.startswith(self.family):
            known = ", ".join(registry.list_models(f"{self.family}*"))
            raise InputError(f"{type(self).__name__} is for {known}; got '{architecture}'")
        self.architecture, _, tag = record.name.partition(".")
        own = {name: kwargs.pop(name) for name in self.arguments if name in kwargs}
        self.model_args = {**(model_args or {}), **own}
        self.pretrained_cfg = {"tag": tag, **(pretrained_cfg or {})}
        self.pretraining = pretraining
        self.semantic_loss_ignore_index = kwargs.pop("semantic_loss_ignore_index", 255)
        classes = kwargs.pop("num_classes", None)
        kwargs.pop("label_names", None)  # timm's form of id2label
        if kwargs.get("label2id") and not kwargs.get("id2label"):
            kwargs["id2label"] = {i: name for name, i in kwargs["label2id"].items()}
        if not kwargs.get("id2label") and "num_labels" not in kwargs:
            names = record.task.classes if record.task and classes is None else ()
            if names:
                kwargs |= {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
                if record.task and record.task.kind == "multi-label":
                    kwargs.setdefault("problem_type", "multi_label_classification")
            else:
                kwargs["num_labels"] = classes or 0
        if labels := kwargs.get("id2label"):  # the one that counts
            kwargs |= {"id2label": {int(i): name for i, name in labels.items()}}
            kwargs |= {"label2id": {name: i for i, name in kwargs["id2label"].items()}}
            if kwargs.setdefault("num_labels", len(labels)) != len(labels):
                raise InputError(f"num_labels is {kwargs['num_labels']}, but id2label has {len(labels)} names")
        super().__init__(**kwargs)
        self.out_indices, self.out_features = out_indices, out_features
        self._stored_labels: int | None = None  # classes of the weights it lies beside, whatever is asked for later

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # transformers 5 makes a dataclass of every configuration that has no __init__ of its own; mypy takes no such
        # assignment
        cls.__init__ = EoZooConfig.__init__  # type: ignore[method-assign]
        super().__init_subclass__(**kwargs)

    # ---- names ----

    @property
    def name(self) -> str:
        """Architecture and tag, or the architecture alone where the tag is none of ours."""
        full = f"{self.architecture}.{self.pretrained_cfg.get('tag')}"
        return full if full in weights.RECORDS else self.architecture

    # ---- the model ----

    def build(self, num_classes: int | None = None) -> StrictLoading:
        """The model, with random weights.

        Raises:
            InputError: arguments that do not fit.
        """
        classes = self.num_labels if num_classes is None else num_classes
        made = create(self.name, classes, self.model_args)
        if not isinstance(made, StrictLoading):
            raise InputError(f"{self.name} with {self.model_args} is a {type(made).__name__}, no plain model")
        return made

    def skeleton(self) -> Any:
        """The model without a head, on the meta device, shared by all configurations that are equal."""
        return _skeleton(self.name, json.dumps(self.model_args, sort_keys=True))

    @property
    def hidden_size(self) -> int:
        """D, the width of the features."""
        return int(self.skeleton().num_features)

    @property
    def num_channels(self) -> int:
        """Bands of an image."""
        return int(self.skeleton().pretrained_cfg["input_size"][0])

    @property
    def image_size(self) -> int:
        """Pixels a side of an image."""
        return int(self.skeleton().pretrained_cfg["input_size"][-1])

    @property
    def stage_names(self) -> list[str]:
        """Names of the maps that a backbone can give."""
        return [f"stage{i + 1}" for i in range(len(self.skeleton().feature_info))]

    def describe(self, model: Any) -> None:
        """Become the configuration of this very model: its arguments, classes and timm's own facts."""
        size = getattr(getattr(model, "patch_embed", None), "img_size", None)
        self.model_args = dict(model.model_args) | ({"img_size": list(size)} if size else {})
        if hasattr(model, "global_pool"):
            self.model_args["global_pool"] = model.global_pool
        if self.num_labels != model.num_classes:
            self.update({"num_labels": model.num_classes})
        known = model.pretrained_cfg
        kept = {key: known[key] for key in _KEPT if known.get(key) is not None}
        self.pretrained_cfg = {"tag": self.pretrained_cfg.get("tag"), **kept, "num_classes": model.num_classes}
        try:
            json.dumps(self.model_args)
        except TypeError as error:
            raise InputError(
                f"the model was built with arguments that no JSON holds ({error}): {self.model_args}"
            ) from error

    # ---- JSON ----

    def to_dict(self) -> dict[str, Any]:
        """As transformers', and with what timm looks for."""
        made: dict[str, Any] = super().to_dict()
        made.pop("_stored_labels", None)
        made |= {"num_classes": self.num_labels, "num_features": self.hidden_size}
        if self.num_labels and self.id2label:
            made["label_names"] = list(self.id2label.values())
        return made

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers'; arguments of the model among ``kwargs`` are taken too.

        Raises:
            InputError: it names no architecture of this family.
        """
        given = dict(config_dict)
        if not isinstance(given.get("architecture"), str):
            known = ", ".join(registry.list_models(f"{cls.family}*"))
            raise InputError(f"the configuration names no architecture, which is one of {known}: save the model anew")
        asked = str(kwargs.pop("architecture", None) or given["architecture"])
        if asked.partition(".")[0] != given["architecture"].partition(".")[0]:
            raise InputError(f"the configuration is of {given['architecture']}, not of {asked}")
        given.pop("num_features", None)
        stored = {len(given[key]) for key in ("id2label", "label_names") if given.get(key)}
        stored |= {given[key] for key in ("num_classes", "num_labels") if given.get(key) is not None}
        if len(stored) > 1:
            raise InputError(
                f"the configuration has {' and '.join(map(str, sorted(stored)))} classes, in id2label, label_names, "
                "num_classes or num_labels: make them agree"
            )
        own = {name: kwargs.pop(name) for name in cls.arguments if name in kwargs}
        if own.keys() & {"bands", "sensor"}:  # the one decides what the other means
            own = {"bands": None, "sensor": None, **own}
        given["model_args"] = {**(given.get("model_args") or {}), **own}
        classes = next(iter(stored), 0)
        names = ("num_labels", "id2label", "label2id")
        labels: dict[str, Any] = {name: kwargs.pop(name) for name in names if name in kwargs}
        if not given.get("id2label") or labels.keys() - {"num_labels"} or labels.get("num_labels", classes) != classes:
            for name in names:
                given.pop(name, None)
        given |= labels
        made = super().from_dict(given, **kwargs)
        config = made[0] if isinstance(made, tuple) else made
        config._stored_labels = classes
        return made

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """As transformers', of a folder or a repository; also of a model of ``eo_zoo``, or an official repository.

        Raises:
            InputError: a model of another family, or no such one.
            DownloadError: it is not in the cache of huggingface_hub, and cannot be fetched.
        """
        record = resolve(pretrained_model_name_or_path)
        if record is None:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        return cls.from_dict(cls(record.name).to_dict(), **kwargs)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What config.json of a folder or repository holds, and the arguments that are not of fetching it."""
        found = read_facts(pretrained_model_name_or_path, "config.json", kwargs)
        kind = found.get("model_type", cls.model_type)  # timm writes none
        if kind != cls.model_type:
            raise InputError(
                f"{pretrained_model_name_or_path} is of a '{kind}' model, {cls.__name__} reads '{cls.model_type}': "
                "AutoModel knows"
            )
        return found, kwargs

    @classmethod
    def split(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Take out of ``kwargs`` what is the configuration's."""
        return {name: kwargs.pop(name) for name in (*cls.arguments, *_OWN) if name in kwargs}


def read_facts(name: Any, file: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The JSON object in a file of a folder or repository; ``kwargs`` lose what says how it is fetched.

    Raises:
        InputError: there is no such folder, no name of a repository, or no JSON object in it.
        DownloadError: it is not in the cache of huggingface_hub, and cannot be fetched.
    """
    hub = {key: kwargs.pop(key, None) for key in ("cache_dir", "revision", "subfolder")}
    force, token, offline = (kwargs.pop(key, None) for key in ("force_download", "token", "local_files_only"))
    for key in ("proxies", "trust_remote_code", "use_fast", "_from_auto", "_from_pipeline"):
        kwargs.pop(key, None)
    with sources.access(token=token, offline=bool(offline)):
        path = _find(str(name), file, force=bool(force), **hub)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}): write it, or fetch it by force_download=True") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a {type(found).__name__}, expected a JSON object")
    return found


def _find(name: str, file: str, *, force: bool, cache_dir: Any, revision: str | None, subfolder: str | None) -> Path:
    """Where a file of a folder or repository lies; ``name`` may be its own path."""
    place = Path(name).expanduser()
    if place.is_file():
        return place
    if place.is_dir():
        if not (path := place / (subfolder or "") / file).is_file():
            raise InputError(f"{path} is not there: expected a folder that save_pretrained wrote")
        return path
    if not re.fullmatch(r"[^/\\]+/[^/\\]+", name):
        raise InputError(
            f"'{name}' is no model of eo_zoo, no folder, and no OWNER/NAME of a repository. "
            f"{nearest(name, registry.list_models())}"
        )
    inside = f"{subfolder}/{file}" if subfolder else file
    return sources.fresh(name, inside, revision=revision, cache_dir=cache_dir, force=force)


@functools.lru_cache(maxsize=16)
def _skeleton(name: str, arguments: str) -> Any:
    with torch.device("meta"):
        return create(name, 0, json.loads(arguments))


def create(name: str, classes: int | None, arguments: Mapping[str, Any]) -> Any:
    """A model by timm, with random weights; raises InputError for arguments that it cannot be built with."""
    try:
        return timm.create_model(name, pretrained=False, num_classes=classes, **arguments)
    except (TypeError, AssertionError, ArithmeticError) as error:  # timm asserts that heads divide the width
        raise InputError(f"{name} cannot be built with {dict(arguments)}: {error}") from error


class SmartiesConfig(EoZooConfig):
    """Of SMARTIES: see ``EoZooConfig`` and ``eo_zoo.models.smarties``."""

    model_type = "smarties"
    family = "smarties_vit_"
    default = "smarties_vit_base"
    arguments = _COMMON + _SMARTIES


class MarsConfig(EoZooConfig):
    """Of MaRS: see ``EoZooConfig`` and ``eo_zoo.models.mars``."""

    model_type = "mars"
    family = "mars_"
    default = "mars_base_rgb"
    arguments = (*_COMMON, "bands", "sensor", "strict_img_size")


class AnySatConfig(EoZooConfig):
    """Of AnySat: see ``EoZooConfig`` and ``eo_zoo.models.anysat``."""

    model_type = "anysat"
    family = "anysat_"
    default = "anysat_base"
    arguments = (
        "inputs",
        "part",
        "global_pool",
        "patch_size",
        "output_modality",
        "memory",
        "drop_rate",
        "drop_path_rate",
    )


class MultiMaeEoConfig(EoZooConfig):
    """Of MultiMAE meets EO: see ``EoZooConfig`` and ``eo_zoo.models.multimae``."""

    model_type = "multimae_eo"
    family = "multimae_eo_"
    default = "multimae_eo_base"
    arguments = (*_COMMON, "in_domains", "patch_size")
