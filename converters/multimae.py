"""A MultiMAE checkpoint of the public code to a folder that timm and transformers read, and back; or one of its image
domains to a plain ViT.

    python converters/multimae.py checkpoint-999.pth -o folder
    python converters/multimae.py folder --export checkpoint.pth
    timm.create_model("local-dir:folder", pretrained=True)   # after import eo_zoo

    python converters/multimae.py checkpoint-999.pth -o vit --vit rgb --img-size 224
    timm.create_model("local-dir:vit", pretrained=True)      # needs timm alone

It is ``eo-zoo convert`` for one family, but for ``--vit``: see there for its options. Output adapters, optimizer and
arguments in the file are left out, and with ``--vit`` the other domains too, which the file need not hold then. The
repository of the published weights states no licence: the folder is for your own use.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

import eo_zoo
from eo_zoo.cli import main
from eo_zoo.files import require_new
from eo_zoo.hf.folder import place
from eo_zoo.models.multimae_vit import save_vit, to_vit

vit_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@vit_app.command()
def convert_to_vit(
    checkpoint: Path,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to make.")],
    vit: Annotated[str, typer.Option(metavar="DOMAIN", help="rgb, ired, sired, ebands or depth.")],
    model: Annotated[str, typer.Option(help="Architecture.")] = "multimae_eo_base",
    img_size: Annotated[int | None, typer.Option(help="Pixels a side of the ViT's images; 56.")] = None,
) -> None:
    """Write a folder with one domain's path as timm's ViT."""
    require_new(output)
    made = to_vit(eo_zoo.create_model(model, weights=checkpoint, in_domains=(vit,)), vit, img_size=img_size)
    place(output, made, lambda beside: save_vit(made, beside))
    print(f"{output}: every tensor read back and equal")


if __name__ == "__main__":
    alone = any(one.partition("=")[0] == "--vit" for one in sys.argv[1:])
    main(sys.argv[1:], vit_app) if alone else main(["convert", "--family", "multimae", *sys.argv[1:]])
