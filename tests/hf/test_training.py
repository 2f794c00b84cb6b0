"""transformers' Trainer and pipelines on real images: crops of the scene in examples/sahara."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Trainer, TrainingArguments, pipeline

from eo_zoo import hf
from eo_zoo.errors import InputError
from tests.hf.cases import CASES

rasterio = pytest.importorskip("rasterio", reason="reads the scene")
SCENE = Path(__file__).parents[2] / "examples" / "sahara"
BANDS = ["B04", "B03", "B02", "B08"]
SIDE = 32


def scene() -> np.ndarray:
    """(bands, H, W), digital numbers."""
    parts = []
    for band in BANDS:
        with rasterio.open(SCENE / f"{band}.tif") as file:
            parts.append(file.read(1))
    return np.stack(parts)


def crops() -> tuple[list[np.ndarray], np.ndarray]:
    """Squares of the scene, and what they show: 0 dark rock and gravel, 1 bright sand and salt, told by their red."""
    image = scene()
    rows, columns = (side // SIDE for side in image.shape[1:])
    made = [image[:, r * SIDE : (r + 1) * SIDE, c * SIDE : (c + 1) * SIDE] for r in range(rows) for c in range(columns)]
    red = np.array([crop[0].mean() for crop in made])
    return made, (red > np.median(red)).astype(np.int64)


class Crops(torch.utils.data.Dataset):
    def __init__(self, pixel_values: torch.Tensor, labels: np.ndarray) -> None:
        self.pixel_values, self.labels = pixel_values, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.pixel_values[i], "labels": torch.tensor(self.labels[i])}


@pytest.fixture(scope="module")
def data():
    processor = hf.SmartiesImageProcessor.from_pretrained("smarties_vit_nano", bands=BANDS, size=56)
    images, labels = crops()
    chosen = np.random.default_rng(0).permutation(len(images))[:120]
    made = processor([images[i] for i in chosen], units="dn").pixel_values
    return Crops(made[:80], labels[chosen[:80]]), Crops(made[80:], labels[chosen[80:]])


def arguments(folder: Path, **kwargs: object) -> TrainingArguments:
    common = dict(
        per_device_train_batch_size=40, per_device_eval_batch_size=40, learning_rate=0.01, report_to="none",
        use_cpu=True, disable_tqdm=True, logging_steps=1, seed=0,
    )  # fmt: skip
    return TrainingArguments(str(folder), **{**common, **kwargs})


def accuracy(predicted):
    return {"accuracy": float((predicted.predictions.argmax(-1) == predicted.label_ids).mean())}


def test_trainer_fine_tunes_a_head_and_goes_on_from_a_checkpoint(data, tmp_path):
    pytest.importorskip("accelerate", reason="Trainer asks for it")
    train, held_out = data
    names = {0: "rock and gravel", 1: "sand and salt"}
    options = dict(bands=BANDS, id2label=names, global_pool="avg", img_size=56)
    torch.manual_seed(0)

    def frozen():
        model = hf.SmartiesForImageClassification.from_pretrained("smarties_vit_nano", **options)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".head." in name)
        return model

    model = frozen()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = Trainer(
        model, arguments(tmp_path, num_train_epochs=20, save_strategy="steps", save_steps=20), train_dataset=train,
        eval_dataset=held_out, compute_metrics=accuracy,
    )  # fmt: skip
    first = trainer.evaluate()
    trainer.train()
    last = trainer.evaluate()
    assert last["eval_loss"] < 0.6 * first["eval_loss"] and last["eval_accuracy"] > 0.8, (first, last)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"model.head.weight", "model.head.bias"}

    checkpoints = sorted(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    assert {"config.json", "model.safetensors"} <= {path.name for path in checkpoints[-1].iterdir()}
    again = hf.SmartiesForImageClassification.from_pretrained(checkpoints[-1])
    assert again.config.id2label == names
    with torch.no_grad():
        assert torch.equal(again(held_out.pixel_values).logits, model.eval()(held_out.pixel_values).logits)

    fresh = frozen()
    other = Trainer(fresh, arguments(tmp_path / "other", num_train_epochs=20, save_strategy="no"), train_dataset=train)
    other.train(resume_from_checkpoint=str(checkpoints[-1]))  # nothing is left to do: its weights are the checkpoint's
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in fresh.state_dict().items())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.family)
def test_trainer_takes_every_family(case, tmp_path):
    pytest.importorskip("accelerate", reason="Trainer asks for it")
    model = case.build(case.classifier, num_labels=2)
    given, _ = case.inputs(model, 4)
    rows = [{**{key: x[i] for key, x in given.items()}, "labels": torch.tensor(i % 2)} for i in range(4)]
    options = dict(max_steps=6, per_device_train_batch_size=4, save_strategy="no", learning_rate=1e-3)
    # the names of a dict's inputs are not in the signature of forward
    trainer = Trainer(
        model, arguments(tmp_path, remove_unused_columns=False, gradient_checkpointing=True, **options),
        train_dataset=rows,
    )  # fmt: skip
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 6 and losses[-1] < losses[0]


def picture() -> Image.Image:
    stretched = np.clip(scene()[:3, :224, :224] / 8000 * 255, 0, 255).astype(np.uint8)
    return Image.fromarray(stretched.transpose(1, 2, 0))


def test_pipelines(tmp_path):
    options = dict(sensor="RGB")
    processor = hf.SmartiesImageProcessor.from_pretrained("smarties_vit_nano", **options)
    model = hf.SmartiesModel.from_pretrained("smarties_vit_nano", **options)
    extract = pipeline("image-feature-extraction", model=model, image_processor=processor)
    pixel_values = processor(picture()).pixel_values
    with torch.no_grad():
        expected = model(pixel_values)
    assert torch.equal(torch.tensor(extract(picture())), expected.last_hidden_state)
    pooled = torch.tensor(extract(picture(), pool=True))
    assert torch.equal(pooled.reshape(-1), expected.pooler_output.reshape(-1))

    hf.export("smarties_vit_nano", tmp_path / "folder", num_classes=2, **options)
    classify = pipeline("image-classification", model=str(tmp_path / "folder"))
    assert type(classify.image_processor) is hf.SmartiesImageProcessor
    scores = classify([picture(), picture()])
    assert len(scores) == 2 and abs(sum(one["score"] for one in scores[0]) - 1) < 1e-5


def test_a_pipeline_of_another_sensor_says_why(caplog):
    caplog.set_level(logging.WARNING)
    model = hf.SmartiesModel.from_pretrained("smarties_vit_nano")
    processor = hf.SmartiesImageProcessor.from_pretrained("smarties_vit_nano")
    extract = pipeline("image-feature-extraction", model=model, image_processor=processor)
    with pytest.raises(InputError):
        extract(picture())
