"""A SMARTIES checkpoint, encoder or pretraining, to a folder that timm and transformers read, and back.

    python converters/smarties.py smarties-v1-vitb.safetensors -o folder
    python converters/smarties.py tuned.pth -o folder --model smarties_vit_base.eurosat_finetune
    python converters/smarties.py folder --export smarties.safetensors
    timm.create_model("local-dir:folder", pretrained=True)   # after import eo_zoo

It is ``eo-zoo convert`` for one family: see there for its options. The decoder is left out. A head is kept; what its
classes and bands are, only the tag of a published set tells.
"""

import sys

from eo_zoo.cli import main

if __name__ == "__main__":
    main(["convert", "--family", "smarties", *sys.argv[1:]])
