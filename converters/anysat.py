"""An official AnySat encoder, or one of its whole pretraining state, to a folder that timm reads.

    python converters/anysat.py AnySat.pth -o folder
    python converters/anysat.py AnySat_full.pth -o folder --model anysat_base.teacher
    timm.create_model("local-dir:folder", pretrained=True)   # after import eo_zoo

The tag says which encoder of a whole state is wanted, ``anysat_base.student`` or ``anysat_base.teacher``; the predictor
is left out. Strict otherwise: a tensor that is missing, unknown or of another shape stops it. The folder is written
beside, read back, compared tensor by tensor, and only then renamed.
"""

import sys

from folder import main

if __name__ == "__main__":
    sys.exit(main(__doc__, "anysat", "anysat_base"))
