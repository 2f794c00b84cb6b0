"""The record of TerraSense-Base, which answers in words and is no module of timm; see ``eo_zoo.vlm``."""

from __future__ import annotations

from eo_zoo.models.mars import RGB
from eo_zoo.weights import Record

OFFICIAL = "TerraSense-CASM/TerraSense-Base"
MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")  # one of which config.json names
RECORD = Record(
    name="terrasense_base",
    title="TerraSense-Base, a vision-language model of 8 B parameters",
    source=f"hf://{OFFICIAL}",
    layout="",
    licence="unknown",
    terms="no licence of the weights is stated; the terms of Qwen-VL, which they derive from, and of the 21 data sets "
    "hold, and the authors recommend research and academic use",
    redistributable=False,
    sensors=("RGB",),
    accepts=RGB,
    trained_on="TS-Instruct, more than 300,000 instructions out of 21 public data sets, by supervised fine-tuning with "
    "vision tower and projector frozen",
    citation="TerraSense-CASM: TerraSense-Base, huggingface.co/TerraSense-CASM/TerraSense-Base",
    repository="https://github.com/TerraSense-CASM/TerraSense",
)
