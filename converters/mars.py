"""A released MaRS encoder, or one of a pretraining checkpoint, to a folder that timm reads.

    python converters/mars.py mars_base_sar_encoder_only.pth -o folder --model mars_base_sar
    python converters/mars.py checkpoint-11.pth -o folder --model mars_base_rgb
    timm.create_model("local-dir:folder", pretrained=True)   # after import eo_zoo

The model's name says which of the two encoders is wanted. The final norm, which is not released, stays at 1 and 0.
Strict otherwise: a tensor that is missing, unknown or of another shape stops it. The folder is written beside, read
back, compared tensor by tensor, and only then renamed. It is for your own use: MaRS is released for academic research
only, and its weights may not be hosted elsewhere.
"""

import sys

from folder import main

if __name__ == "__main__":
    sys.exit(main(__doc__, "mars", "mars_base_rgb"))
