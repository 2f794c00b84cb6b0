"""What all families share: one module of ``eo_zoo.models`` inside a transformers model, loaded and saved strictly.

Tensors keep timm's names in the files, so that one folder serves transformers, timm and ``eo_zoo``.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling, ImageClassifierOutput

from eo_zoo import publish, weights
from eo_zoo.errors import InputError, WeightsError
from eo_zoo.files import replacing, replacing_all
from eo_zoo.hf.config import EoZooConfig, resolve
from eo_zoo.models._build import Unfilled
from eo_zoo.version import __version__
from eo_zoo.weights import sharded, sources, stored
from eo_zoo.weights.sharded import LazyTensors

_logger = logging.getLogger(__name__)
FILE = "model.safetensors"
_NO_ATTENTIONS = (
    "attentions are not given: the blocks compute them fused (scaled_dot_product_attention), which never holds them; "
    "leave output_attentions out"
)


_REGISTER = nn.Module.register_parameter


@contextlib.contextmanager
def _parameters_of_their_own() -> Iterator[None]:
    """transformers 4 builds models with parameters on the meta device, but not buffers, some of which timm computes
    from parameters: inside another model, as a decoder's backbone, ours is built whole.
    """
    given = nn.Module.register_parameter
    setattr(nn.Module, "register_parameter", _REGISTER)  # noqa: B010 - mypy takes no assignment to a method
    try:
        yield
    finally:
        setattr(nn.Module, "register_parameter", given)  # noqa: B010 - as above


class EoZooModel(PreTrainedModel):
    """Base of the families' models; ``model`` is the module that timm and ``eo_zoo`` give, head included."""

    config_class = EoZooConfig
    config: EoZooConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    gradient_checkpointing = False
    accepts_loss_kwargs = False
    model_tags: ClassVar[list[str]] = ["earth-observation", "eo-zoo", "timm"]
    _supports_sdpa = True
    _no_split_modules: ClassVar[list[str]] = ["Block", "SwinTransformerV2Block"]
    model: Any

    def __init__(self, config: EoZooConfig, module: nn.Module | None = None) -> None:
        super().__init__(config)
        if module is None:
            with _parameters_of_their_own():
                module = self.module_for(config)
        self.model = module
        self.post_init()

    @classmethod
    def module_for(cls, config: EoZooConfig) -> nn.Module:
        """The module that the class wraps, with random weights."""
        return config.build(0)

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """timm's facts of the weights, by which ``eo_zoo.info`` knows a model."""
        return dict(self._encoder().pretrained_cfg)

    @property
    def weights_origin(self) -> weights.Origin | None:
        """Where the weights came from; None for random ones."""
        return self._encoder().weights_origin

    def _encoder(self) -> Any:
        return getattr(self.model, "encoder", self.model)

    # ---- what transformers asks of a model ----

    def _init_weights(self, module: Any) -> None:
        # Weights are drawn where the module is built; on the meta device, buffers that no file holds are not.
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        self._encoder().set_grad_checkpointing(enable)
        self.gradient_checkpointing = enable

    def get_input_embeddings(self) -> nn.Module | None:
        """The patch embedding; None where there is one for each kind of input."""
        return getattr(self._encoder(), "patch_embed", None)

    # ---- loading ----

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *args: Any,
        config: Any = None,
        state_dict: Mapping[str, Tensor] | None = None,
        weights: str | Path | None = None,
        cache_dir: str | Path | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        subfolder: str = "",
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """A model in eval mode with its weights, strictly: every tensor of the file has a place, and every place one.

        A head is new and random, which is told, only where the file has none or the number of classes is changed here
        (``num_labels=``, ``id2label=``).

        Args:
            pretrained_model_name_or_path: a model of ``eo_zoo``, with or without tag ("smarties_vit_base"), an official
                repository ("gsumbul/SMARTIES-v1-ViT-B"), a folder of ``save_pretrained``, or a repository that holds
                one.
            *args: nothing; transformers' own signature.
            config: instead of the one that lies with the weights.
            state_dict: tensors to load instead of a file's; as transformers has it.
            weights: a local checkpoint instead, in the official layout or ours; or ``github://OWNER/REPO/TAG/ASSET``.
            cache_dir: where downloads are kept, those of ``eo_zoo`` and of huggingface_hub.
            revision: branch, tag or commit of a repository on the Hub.
            token: for the Hub; False for none, by default that of ``hf auth login``.
            local_files_only: no network.
            force_download: fetch the configuration again; weights are known by their hash, and are not.
            subfolder: of the folder or repository.
            output_loading_info: give (model, what transformers tells of the loading).
            **kwargs: the model's own (``bands``, ``sensor``, ``img_size``, ``num_labels``, ...), and transformers'
                (``dtype``, ``device_map``, ``quantization_config``, ...).

        Raises:
            InputError: no such model, or arguments that do not fit.
            WeightsError: the weights are damaged or another model's.
            DownloadError: they cannot be fetched.
        """
        name = pretrained_model_name_or_path
        hub = dict(
            cache_dir=cache_dir, revision=revision, token=token, local_files_only=local_files_only,
            force_download=force_download, subfolder=subfolder or "",
        )  # fmt: skip
        changes = cls.config_class.split(kwargs)
        if not isinstance(config, PretrainedConfig):
            config = cls.config_class.from_pretrained(name if config is None else config, **hub, **changes)
        elif not isinstance(config, cls.config_class):
            raise InputError(f"config is a {type(config).__name__}, {cls.__name__} takes a {cls.config_class.__name__}")
        else:
            stored, config = config._stored_labels, copy.deepcopy(config)
            if changes:
                config = config.from_dict(config.to_dict(), **changes)
            config._stored_labels = stored
        if state_dict is None:
            source = cls._source(name, config, weights, hub)
            with sources.access(token=token, offline=local_files_only):
                module, origin = cls._load(config, source, cache_dir)
        else:
            module, origin = cls.module_for(config), None
        kwargs["dtype"] = _dtype(kwargs.pop("torch_dtype", None), kwargs.pop("dtype", None), config)
        module.to(kwargs["dtype"])  # transformers casts no buffers
        if state_dict is None:
            state_dict = {f"model.{key}": tensor for key, tensor in module.state_dict().items()}
        kwargs.pop("ignore_mismatched_sizes", None)  # a head of another size is known by num_labels
        kwargs.pop("trust_remote_code", None)  # there is none
        kwargs.pop("use_safetensors", None)  # nothing else is read
        # By what transformers' Auto classes hand over a folder of peft, of which they gave us the base model's name.
        adapter = dict(kwargs.pop("adapter_kwargs", None) or {})
        place = adapter.pop("_adapter_model_path", None)
        frozen = [key for key, parameter in module.named_parameters() if not parameter.requires_grad]
        # Given the module, transformers does not build it without its values, which not all of timm's bear.
        model, told = super().from_pretrained(
            None, config=config, state_dict=dict(state_dict), module=module, output_loading_info=True, **kwargs
        )
        wrong = {what: told[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys") if told.get(what)}
        if wrong:
            raise WeightsError(f"{name}: {wrong}")
        for key in frozen:  # transformers 5 makes new parameters of them
            model.model.get_parameter(key).requires_grad_(False)
        model.config._name_or_path = model.name_or_path = str(name)
        if origin is not None:
            model._encoder().weights_origin = origin
        if place is not None:
            model.load_adapter(place, adapter_kwargs=adapter | ({"token": token} if token else {}))
        return (model, told) if output_loading_info else model

    @classmethod
    def _source(
        cls, name: Any, config: EoZooConfig, given: str | Path | None, hub: Mapping[str, Any]
    ) -> weights.Record | Path:
        """Where the weights are."""
        revision, subfolder, cache_dir = hub["revision"], hub["subfolder"], hub["cache_dir"]
        if given is not None:
            return weights.given(given, config.architecture)
        record = resolve(name)
        if record is not None:
            weights.require_published(record)
            return record if revision in (None, "main") else _of_revision(record, revision)
        folder = Path(str(name)) / subfolder
        if folder.is_dir():
            if not sharded.has_weights(folder):
                raise InputError(f"{folder} holds no {FILE}: expected a folder that save_pretrained wrote")
            return folder / FILE if (folder / FILE).is_file() else folder
        path = f"{subfolder}/{FILE}" if subfolder else FILE
        return weights.hosted(config.architecture, str(name), path, revision=revision, cache_dir=cache_dir)

    @classmethod
    def _load(
        cls, config: EoZooConfig, source: weights.Record | Path, cache_dir: str | Path | None
    ) -> tuple[nn.Module, weights.Origin | None]:
        """The module filled from a file, and where that came from."""
        own_head = config.num_labels == config._stored_labels
        with Unfilled() if own_head else contextlib.nullcontext():
            module: Any = cls.module_for(config)
        module.load_weights(source, cache_dir=cache_dir, own_head=own_head)
        return module, module.weights_origin

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's; names as they are in the files are taken too, as Trainer gives them when it goes on."""
        if not any(name.startswith("model.") for name in state_dict):
            state_dict = {f"model.{name}": tensor for name, tensor in state_dict.items()}
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    # ---- saving ----

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        state_dict: Mapping[str, Tensor] | None = None,
        push_to_hub: bool = False,
        is_main_process: bool = True,
        **kwargs: Any,
    ) -> None:
        """Write a folder that transformers, timm (``local-dir:FOLDER``) and ``eo_zoo`` read: configuration, weights and
        a card. Each file is written beside and renamed.

        Args:
            save_directory: made if it is not there; its files of these names are replaced, but a card stays.
            state_dict: tensors instead of the model's own, as Trainer gathers them.
            push_to_hub: upload too; see ``push_to_hub`` for what ``repo_id``, ``token``, ``commit_message``, ... mean.
            is_main_process: False writes nothing: another process does.
            **kwargs: transformers' others; those about shards and pickles have no meaning here.

        Raises:
            InputError: weights that may not be hosted elsewhere, if it is to be uploaded.
            WeightsError: the tensors are not those of this class, as inside ``peft.get_peft_model`` or with
                DistributedDataParallel's prefix: the folder could not be read back, and is not written.
            OSError: the folder cannot be written.
        """
        if push_to_hub:
            asked = {key: kwargs[key] for key in ("token", "private", "commit_message", "revision") if key in kwargs}
            self.push_to_hub(kwargs.get("repo_id") or Path(save_directory).name, **asked)
        if not is_main_process:
            return
        if getattr(self, "_hf_peft_config_loaded", False):  # of add_adapter: the adapter alone, as transformers does
            return super().save_pretrained(save_directory, state_dict=state_dict, **kwargs)
        folder, config = Path(save_directory), self._described()
        tensors = self._in_file(self.state_dict() if state_dict is None else state_dict)
        if tensors:  # for DeepSpeed's ZeRO 3 Trainer gives none, and writes its own
            with torch.device("meta"):
                expected = type(self).module_for(copy.copy(config)).state_dict()
            weights.check_fit(tensors, self._in_file(expected), what=f"{folder} is not written: what is to be saved")
        folder.mkdir(parents=True, exist_ok=True)
        with replacing_all(folder / FILE, folder / "config.json") as (file, text):
            stored.save(tensors, file, metadata=self._header())
            text.write_text(_json(config), encoding="utf-8")
            for old in (f"{FILE}{sharded.INDEX}", "conversion.json"):  # of the weights that were there
                (folder / old).unlink(missing_ok=True)
        if not (folder / "README.md").exists():
            with replacing(folder / "README.md") as card:
                card.write_text(publish.card(self), encoding="utf-8")

    def write(self, folder: Path, tensors: LazyTensors, *, shard_size: str) -> dict[str, str]:
        """Write configuration and weights into an empty folder, from tensors that are read one by one.

        Args:
            folder: it is not renamed: see ``eo_zoo.files.making``.
            tensors: the module's, by its own names; this model may be on the meta device.
            shard_size: of each file at most, as "5GB".

        Returns:
            The SHA-256 of each file of tensors, by its name.

        Raises:
            InputError: no such size.
            WeightsError: what was read back differs.
            OSError: the disk is full.
        """
        config = self._described()
        types = [str(tensor.dtype) for tensor in tensors.shapes.values() if tensor.is_floating_point()]
        config.dtype = max(types, key=types.count).removeprefix("torch.")
        own = tensors.renamed({self._name_in_file(name): name for name in tensors.shapes})
        hashes = sharded.write_folder(own, folder, shard_size=shard_size, metadata=self._header())
        (folder / "config.json").write_text(_json(config), encoding="utf-8")
        return hashes

    def _described(self) -> EoZooConfig:
        config: EoZooConfig = copy.deepcopy(self.config)
        config.describe(self._encoder())
        config.architectures = [type(self).__name__]
        config.dtype = str(self.dtype).removeprefix("torch.")
        encoder = self._encoder()
        takes = {
            what: list(getattr(encoder, what)) for what in ("bands", "inputs", "in_domains") if hasattr(encoder, what)
        }
        origin = encoder.weights_origin
        config.eo_zoo = {"version": __version__, "sha256": origin.sha256 if origin else None, **takes}
        return config

    def _header(self) -> dict[str, str]:
        return {"format": "pt", "eo_zoo.layout": self._encoder().layout}

    def _in_file(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {self._name_in_file(name.removeprefix("model.")): tensor for name, tensor in tensors.items()}

    def _name_in_file(self, name: str) -> str:
        return name

    def push_to_hub(self, repo_id: str, *, own_weights: bool = False, **kwargs: Any) -> str:
        """Upload what ``save_pretrained`` writes; see ``eo_zoo.push_to_hub`` for arguments and errors."""
        return publish.push_to_hub(self, repo_id, own_weights=own_weights, **kwargs)

    # ---- calls ----

    def _cast(self, x: Any) -> Any:
        """Floating tensors, of a dict too, in the model's own type, unless autocast chooses it."""
        if isinstance(x, Mapping):
            return {name: self._cast(one) for name, one in x.items()}
        if isinstance(x, Tensor) and x.is_floating_point() and not torch.is_autocast_enabled(x.device.type):
            return x.to(self.dtype)
        return x

    def _asked(
        self, output_hidden_states: bool | None, output_attentions: bool | None, return_dict: bool | None
    ) -> tuple[bool, bool]:
        """Whether hidden states are wanted, and whether a ModelOutput is."""
        if output_attentions or (output_attentions is None and getattr(self.config, "output_attentions", False)):
            raise InputError(_NO_ATTENTIONS)
        hidden = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return bool(hidden), bool(self.config.return_dict if return_dict is None else return_dict)

    def _encode(self, x: Any, hidden: bool, call: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...] | None]:
        """What ``forward_features`` gives, and what the blocks give, if that is wanted."""
        if not hidden:
            return self.model.forward_features(x, **call), None
        last, states = self._hidden(x, call)
        return last, tuple(states)

    def _hidden(self, x: Any, call: dict[str, Any]) -> tuple[Tensor, list[Any]]:
        last, states = self.model.forward_intermediates(x, **call)
        return last, states


def _json(config: EoZooConfig) -> str:
    facts = config.to_dict()
    facts.pop("_name_or_path", None)  # a path of this machine is nobody's business
    return json.dumps(facts, indent=2, sort_keys=True) + "\n"


def _dtype(older: Any, given: Any, config: EoZooConfig) -> torch.dtype:
    """What a model is to be held in; where nothing is given, float32 or, as transformers 5 does, the file's."""
    wanted = older if given is None else given
    if wanted is None:
        wanted = "auto" if int(transformers.__version__.partition(".")[0]) > 4 else torch.float32
    if wanted == "auto":
        wanted = getattr(config, "dtype", None) or torch.float32
    found = getattr(torch, wanted, None) if isinstance(wanted, str) else wanted
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(f"dtype is {wanted!r}, expected a floating type, as torch.bfloat16 or 'float16'")
    return found


def _of_revision(record: weights.Record, revision: str) -> weights.Record:
    if record.scheme != "hf":
        raise InputError(f"revision='{revision}' is of a repository on the Hub; {record.name} is {record.source}")
    return dataclasses.replace(record, revision=revision, sha256=None, md5=None, size=None)


class Features(EoZooModel):
    """Tokens or maps, and the pooled vector."""

    def _features(
        self,
        x: Any,
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **call: Any,
    ) -> Any:
        """What ``forward`` gives, of whatever the family takes; ``call`` is the module's.

        Returns:
            ``last_hidden_state``, what ``forward_features`` of the module gives; ``pooler_output`` (B, D); and
            ``hidden_states``, what each block makes, where ``output_hidden_states`` asks for it. A tuple of them with
            ``return_dict=False``.

        Raises:
            InputError: inputs that do not fit, or ``output_attentions``.
        """
        hidden, as_dict = self._asked(output_hidden_states, output_attentions, return_dict)
        last, states = self._encode(self._cast(x), hidden, call)
        made = BaseModelOutputWithPooling(
            last_hidden_state=last, pooler_output=self.model.forward_head(last, pre_logits=True), hidden_states=states
        )
        return made if as_dict else made.to_tuple()


class ImageFeatures(Features):
    """Of normalised images."""

    def forward(self, pixel_values: Tensor, **call: Any) -> Any:
        """Features of images (B, bands, H, W), float, as the family's image processor gives them; see ``_features``."""
        return self._features(pixel_values, **call)


def require_labels(config: EoZooConfig) -> None:
    """Raise InputError where a classifier's number of classes is not known."""
    if not config.num_labels:
        raise InputError(
            f"{config.name} has no classifier: give the number of classes, num_labels=10, or their names, id2label="
        )


class Classifier(EoZooModel):
    """Logits, and their loss."""

    output: ClassVar[type] = ImageClassifierOutput

    @classmethod
    def module_for(cls, config: EoZooConfig) -> nn.Module:
        """The module with a head for the configuration's classes."""
        require_labels(config)
        return config.build()

    @property
    def num_labels(self) -> int:
        """Number of classes."""
        return int(self.model.num_classes)

    def _logits(
        self,
        x: Any,
        labels: Tensor | None = None,
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **call: Any,
    ) -> Any:
        """What ``forward`` gives, of whatever the family takes; ``call`` is the module's.

        Args:
            x: the inputs.
            labels: (B,) whole numbers of classes, or (B, num_labels) floats of 0 and 1 for several labels an image.
            output_hidden_states: give what each block makes, too.
            output_attentions: not given by any of these models: they are computed fused.
            return_dict: False for a tuple.
            **call: what ``forward`` of the module takes.

        Returns:
            ``loss``, where there are labels, ``logits`` (B, num_labels), and ``hidden_states``, where wanted.

        Raises:
            InputError: inputs that do not fit, or attentions.
        """
        hidden, as_dict = self._asked(output_hidden_states, output_attentions, return_dict)
        x = self._cast(x)
        if hidden:
            last, states = self._encode(x, hidden, call)
            logits = self._head(last, states, x)
        else:
            logits, states = self.model(x, **call), None
        loss = None if labels is None else self._loss(logits, labels)
        made = self.output(loss=loss, logits=logits, hidden_states=states)
        return made if as_dict else made.to_tuple()

    def _head(self, last: Tensor, states: Any, x: Any) -> Tensor:
        """Logits of what was encoded of ``x``."""
        logits: Tensor = self.model.forward_head(last)
        return logits

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = self.loss_function(labels, logits, self.config)
        return loss


class ImageClassifier(Classifier):
    """Of normalised images."""

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **call: Any) -> Any:
        """Logits of images (B, bands, H, W), float, as the family's image processor gives them; see ``_logits``."""
        return self._logits(pixel_values, labels, **call)


class Backbone(EoZooModel):
    """Feature maps for transformers' decoders: ``AutoBackbone``, ``UperNetForSemanticSegmentation`` and others."""

    has_attentions = False

    def __init__(self, config: EoZooConfig, module: nn.Module | None = None) -> None:
        super().__init__(config, module)
        self.stage_names = config.stage_names
        self.num_features = [info["num_chs"] for info in self.model.feature_info]
        self.out_indices = self._wanted(config)

    def _wanted(self, config: EoZooConfig) -> list[int]:
        """Which maps, counted from 0."""
        count = len(self.stage_names)
        if config.out_features:
            unknown = [name for name in config.out_features if name not in self.stage_names]
            if unknown:
                raise InputError(f"out_features holds {unknown}, expected some of {', '.join(self.stage_names)}")
            return [self.stage_names.index(name) for name in config.out_features]
        wanted = [-1] if config.out_indices is None else list(config.out_indices)
        if not all(-count <= index < count for index in wanted):
            raise InputError(f"out_indices is {wanted}, expected numbers below {count}")
        return [index % count for index in wanted]

    @property
    def out_features(self) -> list[str]:
        """Names of the maps it gives."""
        return [self.stage_names[index] for index in self.out_indices]

    @property
    def out_feature_channels(self) -> dict[str, int]:
        """Channels of every map it could give, by name."""
        return dict(zip(self.stage_names, self.num_features, strict=True))

    @property
    def channels(self) -> list[int]:
        """Channels of the maps it gives."""
        return [self.num_features[index] for index in self.out_indices]

    def forward_with_filtered_kwargs(self, *args: Any, **kwargs: Any) -> BackboneOutput:
        """``forward``, as transformers' decoders call it."""
        return self(*args, **kwargs)

    def forward(
        self,
        pixel_values: Tensor,
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **call: Any,
    ) -> Any:
        """Maps (B, D, h, w), as ``forward_intermediates`` of the module gives them.

        Args:
            pixel_values: (B, bands, H, W), float, as the family's image processor gives them.
            output_hidden_states: give the maps of all blocks, too.
            output_attentions: not given by any of these models: they are computed fused.
            return_dict: False for a tuple.
            **call: what ``forward_intermediates`` of the module takes.

        Raises:
            InputError: images that do not fit, or attentions.
        """
        hidden, as_dict = self._asked(output_hidden_states, output_attentions, return_dict)
        # they come in the blocks' order, each once
        wanted = range(len(self.stage_names)) if hidden else sorted(set(self.out_indices))
        maps = self.model.forward_intermediates(
            self._cast(pixel_values), list(wanted), intermediates_only=True, stop_early=True, **call
        )
        made_by = dict(zip(wanted, maps, strict=True))
        chosen = tuple(made_by[index] for index in self.out_indices)
        made = BackboneOutput(feature_maps=chosen, hidden_states=tuple(maps) if hidden else None)
        return made if as_dict else made.to_tuple()
