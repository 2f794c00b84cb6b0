"""An official or self-trained SMARTIES checkpoint to a folder that timm reads.

    python converters/smarties.py smarties-v1-vitb.safetensors -o folder [--model smarties_vit_base]
    timm.create_model("local-dir:folder", pretrained=True)   # after import eo_zoo

The decoder is left out, and so is a head, unless the model is given with the tag that it belongs to
(``--model smarties_vit_base.eurosat_finetune``). Strict otherwise: a tensor that is missing, unknown or of another
shape stops it. The folder is written beside, read back, compared tensor by tensor, and only then renamed.
"""

import sys

from folder import main

if __name__ == "__main__":
    sys.exit(main(__doc__, "smarties", "smarties_vit_base"))
