"""Training by TRL's SFTTrainer, with the published recipe: the language model learns, the vision tower is frozen.

Source: "Fine-tuning with LLaMA-Factory" in the public README of TerraSense-CASM/TerraSense (Apache-2.0).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eo_zoo.errors import InputError, require
from eo_zoo.progress import progress_bar
from eo_zoo.vlm.engine import Generation
from eo_zoo.vlm.model import TerraSense, quietly
from eo_zoo.vlm.sft.collate import Collator, row
from eo_zoo.vlm.sft.sharegpt import Conversation

SCHEDULES = ("cosine", "linear", "constant", "constant_with_warmup")
ATTENTIONS = ("flash_attention_2", "sdpa", "eager")
WORKERS = 16  # processes that read images, as published; no more than there are processors


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train; the defaults are the published values, and LLaMA-Factory's own where none is published.

    Args:
        lora: train LoRA adapters on all linear layers of what is not frozen, else all its weights.
        lora_rank: of the adapters.
        lora_alpha: their scale; twice the rank if None.
        lora_dropout: before them.
        freeze_vision: leave the vision tower as it is.
        freeze_projector: leave what joins it to the language model as it is.
        learning_rate: at its highest.
        schedule: how it falls, one of SCHEDULES.
        warmup: share of the steps in which it rises.
        epochs: times through the data.
        max_steps: instead of ``epochs``.
        batch_size: conversations at a time on each device.
        accumulation: batches a step.
        weight_decay: of the optimizer, AdamW.
        cutoff: tokens of a conversation at most.
        skip_long: leave longer ones out, instead of an error.
        min_pixels: smaller images are enlarged to this.
        max_pixels: larger images are reduced to this.
        bf16: compute in bfloat16; where the device can, if None.
        checkpointing: compute activations twice instead of keeping them.
        attention: flash_attention_2, sdpa or eager; the first where it is installed and can be, if None.
        deepspeed: configuration file of DeepSpeed.
        workers: processes that read images; up to 16 if None.
        log_steps: steps from one reported loss to the next.
        save_steps: steps from one checkpoint to the next.
        keep: checkpoints kept, the last ones.
        seed: of the order and of adapters.

    Raises:
        InputError: a value is out of range.
    """

    lora: bool = False
    lora_rank: int = 8
    lora_alpha: int | None = None
    lora_dropout: float = 0.0
    freeze_vision: bool = True
    freeze_projector: bool = True
    learning_rate: float = 1e-5
    schedule: str = "cosine"
    warmup: float = 0.1
    epochs: float = 3.0
    max_steps: int | None = None
    batch_size: int = 1
    accumulation: int = 16
    weight_decay: float = 0.0
    cutoff: int = 16384
    skip_long: bool = False
    min_pixels: int = Generation.min_pixels or 0
    max_pixels: int = Generation.max_pixels or 0
    bf16: bool | None = None
    checkpointing: bool = True
    attention: str | None = None
    deepspeed: Path | None = None
    workers: int | None = None
    log_steps: int = 10
    save_steps: int = 500
    keep: int = 2
    seed: int = 42

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("lora_rank", "batch_size", "accumulation", "cutoff", "log_steps", "save_steps", "keep"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, expected 1 or more")
        if self.max_steps is not None and self.max_steps < 1:
            raise InputError(f"max_steps is {self.max_steps}, expected 1 or more")
        for name in ("learning_rate", "epochs"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}, expected more than 0")
        if self.schedule not in SCHEDULES:
            raise InputError(f"schedule is '{self.schedule}', expected one of {', '.join(SCHEDULES)}")
        if not 0 <= self.warmup < 1:
            raise InputError(f"warmup is {self.warmup}, expected a share of the steps, 0 or more and less than 1")
        if not 0 <= self.lora_dropout < 1:
            raise InputError(f"lora_dropout is {self.lora_dropout}, expected 0 or more and less than 1")
        if self.attention not in (None, *ATTENTIONS):
            raise InputError(
                f"attention is '{self.attention}', expected {', '.join(ATTENTIONS[:2])} or {ATTENTIONS[2]}"
            )
        if self.deepspeed is not None and not self.deepspeed.is_file():
            raise InputError(f"{self.deepspeed}: there is no such DeepSpeed configuration")
        self.generation()

    def generation(self) -> Generation:
        """The limits of an image's pixels, checked."""
        return Generation(min_pixels=self.min_pixels, max_pixels=self.max_pixels)

    @property
    def trained(self) -> tuple[str, ...]:
        """Parts of the model that learn: language, vision, projector."""
        return ("language", *["vision"] * (not self.freeze_vision), *["projector"] * (not self.freeze_projector))


@dataclass(frozen=True)
class Trained:
    """What training gave.

    Args:
        output: folder of the model, or of the adapter.
        examples: conversations that were learnt from.
        skipped: conversations that were longer than the cutoff.
        steps: of the optimizer, in all.
        parameters: numbers that were trained.
        losses: (step, loss) as reported, the loss a mean over the steps since the last one.
        seconds: the time it took.
    """

    output: Path
    examples: int
    skipped: int
    steps: int
    parameters: int
    losses: tuple[tuple[int, float], ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self) | {"output": str(self.output)}

    def summary(self) -> str:
        """One line."""
        falls = " to ".join(f"{loss:.4g}" for _, loss in dict.fromkeys((self.losses[0], self.losses[-1])))
        skipped = f", {self.skipped} longer ones left out" if self.skipped else ""
        return (
            f"{self.output}: {self.examples} conversations{skipped}, {self.steps} steps, {self.parameters:,} "
            f"parameters trained, loss {falls}, {self.seconds:.0f} s"
        )


def train(
    conversations: Sequence[Conversation],
    model: str,
    output: Path,
    *,
    recipe: Recipe | None = None,
    revision: str | None = None,
    resume: bool = False,
    progress: bool | None = None,
    report: Callable[[str, str], None] = lambda kind, text: None,
) -> Trained:
    """Fine-tune a model on conversations.

    Args:
        conversations: see `eo_zoo.vlm.sft.sharegpt.read`.
        model: folder, or repository of the Hub, of Qwen2-VL, Qwen2.5-VL or Qwen3-VL weights.
        output: a new folder: the model, or with LoRA the adapter, and its processor; checkpoints below it.
        recipe: the published one if None.
        revision: branch, tag or commit of the weights.
        resume: go on from the last checkpoint in ``output``.
        progress: show bars on stderr; by default if that is a terminal.
        report: is told each choice and each loss, as (kind, sentence): note or warning.

    Raises:
        InputError: no data, too long ones, a folder that exists, a device or a model that does not fit.
        MissingExtra: trl, peft or accelerate is not installed.
    """
    recipe = recipe or Recipe()
    checkpoint = _checkpoint(output, resume)
    if not conversations:
        raise InputError("there is no conversation to learn from")
    for module in ("accelerate", "trl", "peft"):
        require(module, "sft")
    started = time.monotonic()
    settings = _settings(recipe, output)  # before the model is loaded: ZeRO-3 shares it out as it is read
    base = _load(model, revision, recipe, settings)
    stored = base.model.dtype
    collator = Collator(base.processor, base.model_type, recipe.generation(), recipe.cutoff)
    kept = _short(conversations, collator, recipe, progress)
    skipped = len(conversations) - len(kept)
    if skipped:
        report("warning", f"{skipped} of {len(conversations)} conversations are longer than the cutoff and left out")
    freeze(base.model, recipe.trained)
    trainer = _trainer(base.model, kept, collator, recipe, settings)
    every = list(trainer.model.parameters())
    parameters = sum(one.numel() for one in every if one.requires_grad)
    report("note", f"{parameters:,} of {sum(one.numel() for one in every):,} parameters are trained")
    with quietly(), _followed(trainer, progress, report):
        trainer.train(resume_from_checkpoint=checkpoint)
        if not recipe.lora and not recipe.deepspeed:
            trainer.model.to(stored)
        trainer.save_model(str(output))
    (output / "training_args.bin").unlink(missing_ok=True)  # a pickle
    told = trainer.state.log_history
    history = [(entry["step"], entry["loss"]) for entry in told if "loss" in entry]
    # fewer steps than one report takes: the mean of all
    history = history or [(entry["step"], entry["train_loss"]) for entry in told if "train_loss" in entry]
    seconds = time.monotonic() - started
    return Trained(output, len(kept), skipped, trainer.state.global_step, parameters, tuple(history), seconds)


def part(name: str) -> str:
    """What a parameter or module belongs to: language, vision or projector.

    Qwen3-VL's deepstack mergers are counted to the vision tower, as LLaMA-Factory does.

    >>> part("model.visual.blocks.0.attn.qkv"), part("model.visual.merger.mlp.0"), part("lm_head")
    ('vision', 'projector', 'language')
    """
    if ".visual.merger." in f".{name}.":
        return "projector"
    return "vision" if ".visual." in f".{name}." else "language"


def freeze(model: Any, trained: Sequence[str]) -> None:
    """Let exactly these parts learn."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part(name) in trained)


def linear_layers(model: Any, trained: Sequence[str]) -> list[str]:
    """Names of the linear layers of these parts; the head, which gives the tokens, is none of them."""
    from torch import nn

    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [name for name in linear if part(name) in trained and name != "lm_head"]


def _load(name: str, revision: str | None, recipe: Recipe, settings: Any) -> TerraSense:
    """The model on this process's device, or shared out by DeepSpeed."""
    import torch
    from transformers.utils import is_flash_attn_2_available

    cuda = settings.device.type == "cuda"
    base = TerraSense.from_pretrained(
        name,
        revision=revision,
        dtype=torch.bfloat16 if settings.bf16 else torch.float32,
        device_map=False if recipe.deepspeed else {"": str(settings.device)} if cuda else None,
    )
    fast = settings.bf16 and cuda and is_flash_attn_2_available()
    base.model.set_attn_implementation(recipe.attention or ("flash_attention_2" if fast else "sdpa"))
    return base


def _checkpoint(output: Path, resume: bool) -> str | None:
    if not resume:
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise InputError(f"{output} exists: give another folder, or --resume to go on from its last checkpoint")
        return None
    from transformers.trainer_utils import get_last_checkpoint

    found = get_last_checkpoint(str(output)) if output.is_dir() else None
    if found is None:
        raise InputError(f"{output}: there is no checkpoint to go on from; leave --resume out to start")
    return found


def _settings(recipe: Recipe, output: Path) -> Any:
    """TRL's configuration."""
    import torch

    trl = require("trl", "sft")
    if recipe.deepspeed is not None:
        require("deepspeed", "sft")
    bf16 = recipe.bf16
    if bf16 is None:
        bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    warmup = recipe.warmup if recipe.schedule != "constant" else 0
    known = trl.SFTConfig.__dataclass_fields__  # of transformers 5 or 4.57
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    ratio = "warmup_ratio" if "warmup_ratio" in known else "warmup_steps"
    return trl.SFTConfig(
        output_dir=str(output),
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.schedule,
        **{checkpointing: recipe.checkpointing, ratio: warmup},
        num_train_epochs=recipe.epochs,
        max_steps=recipe.max_steps or -1,
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.accumulation,
        weight_decay=recipe.weight_decay,
        bf16=bf16,
        use_cpu=not torch.accelerator.is_available(),
        deepspeed=str(recipe.deepspeed) if recipe.deepspeed else None,
        dataloader_pin_memory=torch.cuda.is_available(),
        dataloader_num_workers=min(WORKERS, os.cpu_count() or 1) if recipe.workers is None else recipe.workers,
        logging_steps=recipe.log_steps,
        save_steps=recipe.save_steps,
        save_total_limit=recipe.keep,
        seed=recipe.seed,
        max_length=None,  # a cut could go through an image; the collator checks
        report_to="none",
        disable_tqdm=True,  # its bar writes losses to stdout
    )


def _short(
    conversations: Sequence[Conversation], collator: Collator, recipe: Recipe, progress: bool | None
) -> list[Conversation]:
    """Those that are not longer than the cutoff."""
    from eo_zoo.vlm.pictures import open_picture

    lengths = []
    with progress_bar("measuring", len(conversations), progress, "conversations") as tick:
        for conversation in conversations:
            sizes = []
            for path in conversation.images:
                with open_picture(path) as picture:
                    sizes.append(picture.size)
            lengths.append(collator.length(conversation, sizes))
            tick(1)
    kept = [one for one, length in zip(conversations, lengths, strict=True) if length <= recipe.cutoff]
    if not kept or (len(kept) < len(lengths) and not recipe.skip_long):
        raise InputError(
            f"{len(lengths) - len(kept)} of {len(lengths)} conversations are longer than the cutoff, {recipe.cutoff} "
            f"tokens; the longest, of {conversations[lengths.index(max(lengths))].images[0]}, has {max(lengths)}: "
            "shorten them, raise --cutoff, lower --max-pixels, or leave them out with --skip-long"
        )
    return kept


def _trainer(model: Any, kept: Sequence[Conversation], collator: Collator, recipe: Recipe, settings: Any) -> Any:
    import torch
    from transformers import PrinterCallback

    datasets, peft, trl = (require(module, "sft") for module in ("datasets", "peft", "trl"))
    adapters = None
    if recipe.lora:
        adapters = peft.LoraConfig(
            r=recipe.lora_rank,
            lora_alpha=recipe.lora_alpha or 2 * recipe.lora_rank,
            lora_dropout=recipe.lora_dropout,
            target_modules=linear_layers(model, recipe.trained),
            task_type="CAUSAL_LM",
        )
    elif not recipe.deepspeed:
        for parameter in model.parameters():
            if parameter.requires_grad:  # steps of 1e-5 are lost in bfloat16
                parameter.data = parameter.data.to(torch.float32)

    class Trainer(trl.SFTTrainer):  # type: ignore[name-defined]  # trl is imported when it is asked for
        def create_model_card(self, *args: Any, **kwargs: Any) -> None:
            """None: TRL's names no model, and shows how to ask about a time machine."""

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            """Strictly: Trainer's own takes the names in Qwen2-VL's files for others, and goes on without them."""
            if recipe.lora or self.is_deepspeed_enabled or self.is_fsdp_enabled:
                super()._load_from_checkpoint(resume_from_checkpoint, model)
                return
            stored = TerraSense.from_pretrained(resume_from_checkpoint, dtype=torch.float32, device_map="cpu")
            self.model.load_state_dict(stored.model.state_dict())

    trainer = Trainer(
        model,
        settings,
        train_dataset=datasets.Dataset.from_list([row(one) for one in kept]),
        data_collator=collator,
        processing_class=collator.processor,
        peft_config=adapters,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


@contextlib.contextmanager
def _followed(trainer: Any, progress: bool | None, report: Callable[[str, str], None]) -> Iterator[None]:
    """A bar of the steps, and each loss."""
    from transformers import TrainerCallback

    with contextlib.ExitStack() as stack:

        class Teller(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                self.tick = stack.enter_context(progress_bar("training", state.max_steps, progress, "steps"))
                self.tick(state.global_step)

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                self.tick(1)
                control.should_log |= state.global_step == state.max_steps

            def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                entry = state.log_history[-1]
                if "loss" in entry and state.is_world_process_zero:
                    report("note", f"step {state.global_step} of {state.max_steps}: loss {entry['loss']:.4g}")

        trainer.add_callback(Teller())
        yield
