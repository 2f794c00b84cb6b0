"""What training leaves of a TerraSense model, or of another Qwen-VL, to a folder that transformers and vLLM load.

    python converters/terrasense.py SOURCE -o FOLDER
    python converters/terrasense.py ADAPTER -o FOLDER --base MODEL --dtype bfloat16
    python converters/terrasense.py SOURCE --check        # reads headers only, writes nothing

It is ``eo-zoo convert`` for one family: see there for its options. SOURCE is a folder with pytorch_model.bin or
model.safetensors, whole or in shards, a DeepSpeed checkpoint of ZeRO 1, 2 or 3 (a folder with the file ``latest``, or
one global_step itself), or a LoRA adapter of PEFT, merged into the model given with ``--base``. All names and shapes
are compared with the model of config.json before anything is written; tensors are read one by one, so that memory stays
near one shard.
"""

import sys

from eo_zoo.cli import main

if __name__ == "__main__":
    main(["convert", "--family", "terrasense", *sys.argv[1:]])
