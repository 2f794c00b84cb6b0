"""Random models of the classes TerraSense may be of, small enough for any machine: ``python tests/vlm/tiny.py FOLDER``.

A folder as the Hub has it: two layers, a tokenizer of single bytes with Qwen's special tokens, processor, template.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] in ('image', 'image_url') %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CLASSES = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}


def build(folder: Path, model_type: str = "qwen2_5_vl", seed: int = 0) -> Path:
    """Write the folder; equal seeds give equal weights."""
    tokenizer = _tokenizer(folder)
    ids = dict(zip(SPECIAL, tokenizer.convert_tokens_to_ids(list(SPECIAL)), strict=True))
    name, third = CLASSES[model_type], model_type == "qwen3_vl"
    kind = getattr(transformers, f"{name}Processor")
    pixels = dict(patch_size=16 if third else 14, merge_size=2, min_pixels=56 * 56, max_pixels=12845056)
    if third:
        pixels |= dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    images = transformers.Qwen2VLImageProcessorFast if third else transformers.Qwen2VLImageProcessor
    videos = getattr(transformers, "Qwen3VLVideoProcessor" if third else "Qwen2VLVideoProcessor")
    kind(images(**pixels), tokenizer, videos(), chat_template=TEMPLATE).save_pretrained(folder)
    text = dict(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=ids["<|endoftext|>"], eos_token_id=ids["<|im_end|>"],
        pad_token_id=ids["<|endoftext|>"], tie_word_embeddings=False,
    )  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2]}
    text["rope_scaling"] = {**rope, "mrope_interleaved": True} if third else {**rope, "type": "mrope"}
    if third:
        text["head_dim"] = 8
    sight = {
        "qwen2_vl": dict(depth=2, embed_dim=32, hidden_size=32, num_heads=4, mlp_ratio=2),
        "qwen2_5_vl": dict(
            depth=2, hidden_size=32, intermediate_size=64, num_heads=4, out_hidden_size=32, fullatt_block_indexes=[1]
        ),
        "qwen3_vl": dict(
            depth=2, hidden_size=32, intermediate_size=64, num_heads=4, out_hidden_size=32, patch_size=16,
            num_position_embeddings=64, deepstack_visual_indexes=[0],
        ),
    }[model_type]  # fmt: skip
    config = getattr(transformers, f"{name}Config")(
        text_config=text,
        vision_config=sight,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, f"{name}ForConditionalGeneration")(config)
        for parameter in model.parameters():  # the usual 0.02 gives one token for ever, whatever the image
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    model.generation_config = transformers.GenerationConfig(
        do_sample=False, eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]], pad_token_id=ids["<|endoftext|>"]
    )
    model.save_pretrained(folder)
    return folder


def brief(folder: Path) -> Path:
    """Make the model of a folder end most answers after a few tokens, where nobody looks at what it says."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    with torch.no_grad():
        model.get_output_embeddings().weight[model.generation_config.eos_token_id] *= 8
    model.generation_config.min_new_tokens = 8  # an empty answer is a failure
    model.save_pretrained(folder)
    return folder


def _tokenizer(folder: Path) -> transformers.PreTrainedTokenizerBase:
    """Of single bytes; the id of byte b's letter is its place in the sorted alphabet."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bytewise,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
    )
    tokenizer.add_tokens(list(SPECIAL), special_tokens=True)
    tokenizer.save_pretrained(folder)
    return transformers.Qwen2TokenizerFast.from_pretrained(folder)


if __name__ == "__main__":
    build(Path(sys.argv[1]), *sys.argv[2:3])
