"""Supervised fine-tuning of TerraSense: data, training, merging, evaluation; needs the extra "sft"."""
