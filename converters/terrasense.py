"""What training leaves of a TerraSense model, or of another Qwen-VL, to a folder that transformers and vLLM load.

    python converters/terrasense.py SOURCE -o FOLDER
    python converters/terrasense.py ADAPTER -o FOLDER --base MODEL --dtype bfloat16
    python converters/terrasense.py SOURCE --check        # reads headers only, writes nothing

SOURCE is a folder with pytorch_model.bin or model.safetensors, whole or in shards, a DeepSpeed checkpoint of ZeRO 1, 2
or 3 (a folder with the file ``latest``, or one global_step itself), or a LoRA adapter of PEFT, merged into the model
given with ``--base``. All names and shapes are compared with the model of config.json before anything is written;
tensors are read one by one, so that memory stays near one shard. The folder is written beside, read back, compared
tensor by tensor, and only then renamed.
"""

import argparse
import sys
from pathlib import Path

from folder import finish

from eo_zoo.vlm.convert import DTYPES, check, convert


def main() -> int:
    """Parse the arguments and convert; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--base", type=Path, metavar="FOLDER", help="of the model that the source was trained from")
    parser.add_argument("--shard-size", default="5GB", metavar="SIZE", help="of each file at most; 5GB")
    parser.add_argument("--dtype", choices=DTYPES, help="of all tensors; as they are stored")
    parser.add_argument("--check", action="store_true", help="only tell whether the source fits its config.json")
    given = parser.parse_args()
    wanted = dict(base=given.base, shard_size=given.shard_size, dtype=given.dtype)
    if given.check == (given.output is not None):
        parser.error("give either --output FOLDER or --check")

    def work() -> None:
        checked = check(given.source, **wanted) if given.check else convert(given.source, given.output, **wanted)
        print(f"{given.source}: {checked.summary}")

    return finish(given.output, work)


if __name__ == "__main__":
    sys.exit(main())
