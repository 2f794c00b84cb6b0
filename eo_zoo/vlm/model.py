"""TerraSense in this process, on transformers' own classes.

Source: the public README and demonstration of TerraSense-CASM/TerraSense (Apache-2.0), an instruction-tuned Qwen-VL of
8 B parameters. Which generation it is, its ``config.json`` says; no code from the weights' repository is run.
"""

from __future__ import annotations

import contextlib
import copy
import json
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from eo_zoo.errors import DownloadError, InputError, MissingExtra, WeightsError, nearest, require
from eo_zoo.terrasense import OFFICIAL
from eo_zoo.vlm.engine import FACTORS, Answer, Generation, Question, limits, prepared
from eo_zoo.vlm.tasks import Asker
from eo_zoo.weights import cache, sources

CLASSES = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}
DTYPES = ("auto", "bfloat16", "float16", "float32")
QUANTIZATIONS = ("8bit", "4bit")
FEW = 4  # names in a message


class TerraSense(Asker):
    """A Qwen-VL model, its processor, and the tasks of `Asker` on top.

    Args:
        model: of one of transformers' classes ``Qwen2VLForConditionalGeneration``, ``Qwen2_5_VL...``, ``Qwen3VL...``.
        processor: the one that belongs to it.
        name: as it is called in results.
        revision: commit of the weights.
        batch_size: questions that are answered at a time, as the windows of a large image.

    Raises:
        InputError: a model of another kind.
    """

    def __init__(
        self, model: Any, processor: Any, *, name: str = "", revision: str | None = None, batch_size: int = 4
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}, expected 1 or more")
        self.model_type: str = _known(type(model.config).model_type, name or type(model).__name__)
        self.model, self.processor = model.eval(), processor
        self.name = name or model.config.name_or_path
        self.revision = revision
        self.at_a_time = batch_size

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path = OFFICIAL,
        *,
        revision: str | None = None,
        dtype: Any = None,
        device_map: Any = None,
        quantization: Any = None,
        token: str | bool | None = None,
        batch_size: int = 4,
    ) -> Self:
        """The model with its weights; every one must be there, and none may be left over.

        Args:
            path_or_id: a folder, or a repository of the Hugging Face Hub.
            revision: branch, tag or commit there.
            dtype: of the weights, as ``torch.bfloat16`` or "bfloat16"; "auto" for what they are stored as. By default
                bfloat16 on a GPU and float32 on a CPU, as published.
            device_map: as transformers has it: "auto", "cpu", "cuda:0", a dict; False for none. By default "auto"
                where there is a GPU.
            quantization: "8bit" or "4bit" (the extra "quantized"), or a quantization configuration of transformers.
            token: of the Hub; None for that of ``hf auth login``.
            batch_size: see the class.

        Raises:
            InputError: it is not of Qwen2-VL, Qwen2.5-VL or Qwen3-VL, or an argument does not fit.
            WeightsError: weights are missing, left over, of another shape, or only there as pickles.
            DownloadError: it cannot be fetched.
            MissingExtra: accelerate or bitsandbytes is needed, and not installed.
        """
        import huggingface_hub
        import torch
        import transformers

        if isinstance(dtype, str) and dtype not in DTYPES:
            raise InputError(f"dtype is '{dtype}'. {nearest(dtype, DTYPES)}")
        name = str(path_or_id)
        if device_map is None:
            device_map = "auto" if torch.cuda.is_available() else False
        if device_map or quantization is not None:
            require("accelerate", "vlm")
        with sources.access(token=token):
            config = _config(name, revision)
            off = sources.offline() is not None
        commit = None if Path(name).is_dir() else config.parent.name  # the snapshot's
        where: dict[str, Any] = dict(
            revision=commit, token=token, local_files_only=off, cache_dir=huggingface_hub.constants.HF_HUB_CACHE
        )
        with _told(name), quietly():
            family = CLASSES[_known(json.loads(config.read_text(encoding="utf-8")).get("model_type"), name)]
            model, info = getattr(transformers, f"{family}ForConditionalGeneration").from_pretrained(
                name,
                dtype=dtype or (torch.bfloat16 if torch.cuda.is_available() else torch.float32),
                device_map=device_map or None,
                quantization_config=_quantized(quantization),
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # refused below, with all else that does not fit
                output_loading_info=True,
                **where,
            )
            processor = getattr(transformers, f"{family}Processor").from_pretrained(name, **where)
        _require_whole(info, name)
        if processor.tokenizer.convert_tokens_to_ids("<|image_pad|>") != model.config.image_token_id:
            raise WeightsError(f"{name}: the files of its tokenizer are missing, or another model's")
        if commit:
            _require_verified(config.parent)
        return cls(model, processor, name=name, revision=commit, batch_size=batch_size)

    # ---- answers ----

    def answer(self, questions: Sequence[Question], generation: Generation) -> list[Answer]:
        """See `Asker`. The tokens of one question alone are those of the published snippet.

        Several at a time are padded, which changes the last bits of what is computed: where two tokens are about
        equally likely, the answer may be another one.
        """
        if not questions:
            return []
        inputs, seen = self._inputs(questions, generation)
        with _seeded(generation.seed):
            made = self.model.generate(**inputs, **self._sampling(generation))
        return [
            self._answer(ids[inputs["input_ids"].shape[1] :].tolist(), sizes, generation)
            for ids, sizes in zip(made, seen, strict=True)
        ]

    def pieces(self, question: Question, generation: Generation) -> Iterator[str]:
        """See `Asker`."""
        from transformers import StoppingCriteriaList, TextIteratorStreamer

        inputs, _ = self._inputs([question], generation)
        streamer = TextIteratorStreamer(
            self.processor.tokenizer,
            skip_prompt=True,
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        failed: list[BaseException] = []
        left = threading.Event()

        def work() -> None:
            try:
                with _seeded(generation.seed):
                    self.model.generate(
                        **inputs,
                        **self._sampling(generation),
                        streamer=streamer,
                        stopping_criteria=StoppingCriteriaList([lambda ids, scores, **_: _all(ids, left.is_set())]),
                    )
            except BaseException as error:  # noqa: BLE001 - raised again where the words are waited for
                failed.append(error)
            finally:
                streamer.end()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield from filter(None, streamer)
        finally:
            left.set()  # whoever reads no further need not wait for the rest
            thread.join()
        if failed:
            raise failed[0]

    def likelihoods(self, question: Question, options: Sequence[str], generation: Generation) -> list[float]:
        """See `Asker`: the image is looked at once, and each option is then read after it, to its end token."""
        import torch

        inputs, _ = self._inputs([question], generation)
        tokenizer = self.processor.tokenizer
        with torch.inference_mode():
            first = self.model(**inputs, use_cache=True)
            logs = []
            for option in options:
                ids = tokenizer(option, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
                given = torch.tensor([ids], device=self.model.device)
                scores = first.logits[:, -1:]
                if len(ids) > 1:
                    scores = torch.cat([scores, self._continued(inputs, first, given[:, :-1])], dim=1)
                every = torch.log_softmax(scores.float(), dim=-1)
                logs.append(float(every.gather(2, given[..., None]).sum()))
        return logs

    def _continued(self, inputs: Any, first: Any, ids: Any) -> Any:
        """Logits (1, n, V) after each of the tokens (1, n) that follow a question."""
        import torch

        # an image takes fewer places than tokens: rope_deltas says how many
        start = inputs["input_ids"].shape[1] + self.model.model.rope_deltas
        places = (start + torch.arange(ids.shape[1], device=ids.device)).expand(3, 1, -1)
        return self.model(
            input_ids=ids, position_ids=places, past_key_values=copy.deepcopy(first.past_key_values), use_cache=True
        ).logits

    def _inputs(self, questions: Sequence[Question], generation: Generation) -> tuple[Any, list[tuple[Any, ...]]]:
        """The processor's tensors, and width and height of each question's images as the model sees them."""
        processor = self.processor
        texts, images = [], []
        for question in questions:
            content: list[dict[str, Any]] = [{"type": "image"} for _ in question.images]
            content.append({"type": "text", "text": question.prompt})
            messages = [{"role": "user", "content": content}]
            texts.append(processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
            images += [prepared(image) for image in question.images]
        inputs = processor(
            text=texts,
            images=images,
            padding=True,
            padding_side="left",
            return_tensors="pt",
            **limits(processor.image_processor, generation),
        )
        patch = processor.image_processor.patch_size
        sizes = iter([(columns * patch, rows * patch) for _, rows, columns in inputs["image_grid_thw"].tolist()])
        return inputs.to(self.model.device), [tuple(next(sizes) for _ in q.images) for q in questions]

    def _sampling(self, generation: Generation) -> dict[str, Any]:
        made: dict[str, Any] = {"max_new_tokens": generation.max_new_tokens}
        if generation.temperature:
            made |= {"do_sample": True, "temperature": generation.temperature, "top_p": generation.top_p}
        elif generation.temperature is not None:
            # what the weights' own configuration says of sampling would be warned of
            made |= {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return made

    def _answer(self, ids: list[int], seen: tuple[Any, ...], generation: Generation) -> Answer:
        ends = self.model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        stop = next((place for place, one in enumerate(ids) if one in ends), None)
        kept = ids if stop is None else ids[: stop + 1]
        text = self.processor.batch_decode([kept], skip_special_tokens=True, clean_up_tokenization_spaces=False)[0]
        return Answer(text, tuple(kept), seen, stop is not None or len(kept) < generation.max_new_tokens)


def _all(ids: Any, value: bool) -> Any:
    import torch

    return torch.full((ids.shape[0],), value, dtype=torch.bool, device=ids.device)


@contextlib.contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Random numbers of a seed of their own, and none where gradients are not wanted."""
    import torch

    with torch.inference_mode():
        if seed is None:
            yield
            return
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield


# ---- loading ----


def _config(name: str, revision: str | None) -> Path:
    """config.json of a folder, or of a repository at one commit."""
    folder = Path(name)
    if not folder.is_dir():
        if folder.is_absolute() or name.startswith(".") or folder.exists():
            raise InputError(f"{name}: not a folder; expected a model's folder or a repository of the Hub")
        return sources.fresh(name, "config.json", revision=revision)
    if revision is not None:
        raise InputError(f"{name} is a folder, which has no revision {revision}: leave revision out")
    if (folder / "config.json").is_file():
        return folder / "config.json"
    if (folder / "adapter_config.json").is_file():
        raise InputError(
            f"{name}: a LoRA adapter, which is no model by itself: merge it with its base model first, with eo-zoo sft "
            "merge"
        )
    raise InputError(f"{name}: there is no config.json in this folder; expected a model's folder")


def _require_verified(snapshot: Path) -> None:
    """The Hub's cache calls a file by the SHA-256 that the Hub states for it: what is in it must have this."""
    for path in sorted(snapshot.glob("*.safetensors")):
        stated = path.resolve().name
        if not cache.is_sha256(stated):
            raise WeightsError(f"{path.name} of {snapshot}: the Hub states no SHA-256 for it, so it cannot be verified")
        if cache.remembered_digest(cache.cache_root(), path.resolve()) != stated:
            raise WeightsError(
                f"{path.name} of {snapshot} is damaged: its SHA-256 is not the one that the Hub states; remove "
                f"{path.resolve()} to have it fetched again"
            )


def _known(model_type: Any, name: str) -> str:
    if model_type not in FACTORS:
        raise InputError(
            f"{name}: its model type is '{model_type}', expected one of {', '.join(FACTORS)}: TerraSense is a Qwen-VL "
            "model, and others write places in other ways"
        )
    return str(model_type)


def _quantized(quantization: Any) -> Any:
    if not isinstance(quantization, str):
        return quantization
    if quantization not in QUANTIZATIONS:
        raise InputError(
            f"quantization is '{quantization}', expected {' or '.join(QUANTIZATIONS)}, or a quantization configuration "
            "of transformers"
        )
    require("bitsandbytes", "quantized")
    import torch
    from transformers import BitsAndBytesConfig

    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
    )


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """transformers' and the Hub's errors as one sentence of ours."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
    from huggingface_hub.errors import StrictDataclassError as WrongConfig
    from safetensors import SafetensorError

    try:
        yield
    except (InputError, DownloadError, MissingExtra):
        raise
    except RepositoryNotFoundError as error:
        raise InputError(f"{name}: there is no such repository on the Hub, or it needs a token") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, ConnectionError) as error:
        raise DownloadError(f"{name}: cannot be fetched ({_first_line(error)})") from error
    except SafetensorError as error:
        raise WeightsError(f"{name}: a file of weights is damaged or cut off: copy it again ({error})") from error
    # whatever a device or a dtype that cannot be, or a tokenizer that is not there, brings about, too
    except (OSError, ValueError, TypeError, RuntimeError, ImportError, WrongConfig) as error:
        text = _first_line(error)
        if "safetensors" in text:
            raise WeightsError(
                f"{name}: there are no weights as safetensors, and pickles are not opened: convert them with "
                f"converters/terrasense.py ({text})"
            ) from error
        raise (InputError if Path(name).is_dir() else DownloadError)(f"{name}: cannot be loaded ({text})") from error


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' reports, which end in an error of ours, and its bar where nobody looks on."""
    from transformers.utils import logging

    before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bar:
            logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split("\n\n")[0].split())


def _require_whole(info: dict[str, Any], name: str) -> None:
    """Every weight from the file, and every one in it used: nothing random in silence."""
    wrong = []
    for kind, said in (
        ("missing_keys", "are missing"),
        ("unexpected_keys", "are not of this model"),
        ("mismatched_keys", "have another shape"),
        ("error_msgs", "failed"),
    ):
        keys = sorted(str(key[0] if isinstance(key, tuple) else key) for key in info.get(kind) or ())
        if keys:
            more = f" and {len(keys) - FEW} more" if len(keys) > FEW else ""
            wrong.append(f"{len(keys)} {said}: {', '.join(keys[:FEW])}{more}")
    if wrong:
        raise WeightsError(f"{name}: its weights do not fit its config.json: {'; '.join(wrong)}")
