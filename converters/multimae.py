"""A MultiMAE checkpoint of the public code to a folder that timm reads, or one of its image domains to a plain ViT.

    python converters/multimae.py checkpoint-999.pth -o folder
    timm.create_model("local-dir:folder", pretrained=True)   # after import eo_zoo

    python converters/multimae.py checkpoint-999.pth -o vit --vit rgb --img-size 224
    timm.create_model("local-dir:vit", pretrained=True)      # needs timm alone

The output adapters, optimizer and arguments in the file are left out, and with ``--vit`` the other domains too, which
the file need not hold then. Strict otherwise: a tensor that is missing, unknown or of another shape stops it. The
folder is written beside, read back, compared tensor by tensor, and only then renamed. The repository of the published
weights states no licence: the folder is for your own use.
"""

import sys
from pathlib import Path

from folder import finish, options

import eo_zoo
from eo_zoo.files import require_new
from eo_zoo.hf.folder import export, place
from eo_zoo.models.multimae_vit import save_vit, to_vit


def convert_to_vit(checkpoint: Path, folder: Path, *, model: str, domain: str, img_size: int | None) -> None:
    """Write ``folder`` with one domain's path as timm's ViT; raises as ``export``, and InputError for the domain."""
    require_new(folder)
    vit = to_vit(eo_zoo.create_model(model, weights=checkpoint, in_domains=(domain,)), domain, img_size=img_size)
    place(folder, vit, lambda beside: save_vit(vit, beside))


def main() -> int:
    """Parse the arguments and convert; gives the exit code."""
    parser = options(__doc__, "multimae", "multimae_eo_base")
    parser.add_argument("--vit", metavar="DOMAIN", help="rgb, ired, sired, ebands or depth: a plain ViT of this one")
    parser.add_argument("--img-size", type=int, metavar="N", help="pixels a side of the ViT's images; 56")
    given = parser.parse_args()
    if given.img_size is not None and given.vit is None:
        parser.error("--img-size is of the ViT: give --vit DOMAIN with it")
    if given.vit is None:
        return finish(given.output, lambda: export(given.model, given.output, weights=given.checkpoint))
    wanted = dict(model=given.model, domain=given.vit, img_size=given.img_size)
    return finish(given.output, lambda: convert_to_vit(given.checkpoint, given.output, **wanted))


if __name__ == "__main__":
    sys.exit(main())
