"""A released MaRS encoder, or one of a pretraining checkpoint, to a folder that timm and transformers read, and back.

    python converters/mars.py mars_base_sar_encoder_only.pth -o folder
    python converters/mars.py checkpoint-11.pth -o folder --part encoder_rgb
    python converters/mars.py folder --export mars.pth
    timm.create_model("local-dir:folder", pretrained=True)   # after import eo_zoo

It is ``eo-zoo convert`` for one family: see there for its options. The final norm, which is not released, stays at 1
and 0. The folder is for your own use: MaRS is released for academic research only, and its weights may not be hosted
elsewhere.
"""

import sys

from eo_zoo.cli import main

if __name__ == "__main__":
    main(["convert", "--family", "mars", *sys.argv[1:]])
