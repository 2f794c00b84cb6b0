"""An AnySat encoder, or one of its whole pretraining state, to a folder that timm and transformers read, and back.

    python converters/anysat.py AnySat.pth -o folder
    python converters/anysat.py AnySat_full.pth -o folder --part teacher
    python converters/anysat.py folder --export AnySat.pth
    timm.create_model("local-dir:folder", pretrained=True)   # after import eo_zoo

It is ``eo-zoo convert`` for one family: see there for its options. The predictor is left out.
"""

import sys

from eo_zoo.cli import main

if __name__ == "__main__":
    main(["convert", "--family", "anysat", *sys.argv[1:]])
