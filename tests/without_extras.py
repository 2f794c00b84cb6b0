"""The lane without extras, in an environment with the base dependencies alone (no pytest there).

    python tests/without_extras.py path/to/eo-zoo

Every registered model builds and runs, the timm and hub doors import nothing heavy, and the command line names the
pip line of what is missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import timm
import torch

import eo_zoo


def check(condition: bool, what: str) -> None:
    if not condition:
        sys.exit(f"failed: {what}")
    print(f"ok: {what}")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.argv[1], *arguments], capture_output=True, text=True, check=False)


def main() -> None:
    print(f"torch {torch.__version__}, timm {timm.__version__}")
    for extra in ("rasterio", "pytest", "h5py", "openai", "trl"):
        check(importlib.util.find_spec(extra) is None, f"{extra} is not here")
    for name in eo_zoo.list_models():
        model = timm.create_model(name).eval()
        x: object = torch.randn(1, *model.pretrained_cfg["input_size"])
        if "s2" in eo_zoo.registry.get_record(name).inputs:  # a dict, of which a series of Sentinel-2 is the first
            series = torch.randn(1, 3, *model.pretrained_cfg["input_size"])
            x = {"s2": series, "s2_dates": [["2020-01-01", "2020-02-29", "2020-12-31"]]}
        with torch.inference_mode():
            check(bool(model(x).isfinite().all()), f"{name} builds and runs")
    check(eo_zoo.create_model("smarties_vit_nano").weights_origin.verified, "bundled weights are verified")
    for heavy in ("transformers", "rasterio"):
        check(heavy not in sys.modules, f"{heavy} was not imported")

    from eo_zoo import hf

    image = torch.full((12, 112, 112), 1500.0)
    prepared = hf.SmartiesImageProcessor.from_pretrained("smarties_vit_nano")(image)
    vector = hf.SmartiesModel.from_pretrained("smarties_vit_nano")(**prepared).pooler_output
    check(vector.shape == (1, 128), "transformers' classes and processors work")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pth"
        torch.save({"model": model.state_dict(), "args": argparse.Namespace(lr=1e-3)}, path)
        again = eo_zoo.create_model(name, weights=path, cache_dir=folder).state_dict()
        same = all(torch.equal(again[key], value) for key, value in model.state_dict().items())
        check(same, "a pickle with argparse.Namespace inside loads")
        there = run("convert", str(path), "-o", f"{folder}/model")
        check(there.returncode == 0, f"a checkpoint is recognised and converted: {there.stdout or there.stderr}")
        back = run("convert", f"{folder}/model", "--export", f"{folder}/public.pth")
        check(back.returncode == 0, f"and exported: {back.stdout or back.stderr}")
        verified = run("verify", f"{folder}/model")
        check(verified.returncode == 0, f"and verified: {verified.stdout or verified.stderr}")

    listed = run("list", "--json")
    check(
        {row["name"].partition(".")[0] for row in json.loads(listed.stdout)} == set(eo_zoo.list_models()),
        "list",
    )
    check(run("info", "smarties_vit_base").returncode == 0, "info")
    check(run("describe", "smarties_vit_base", "--format", "mlm").returncode == 0, "describe --format mlm")
    with tempfile.TemporaryDirectory() as folder:
        result = run("embed", "scene.tif", "-o", str(Path(folder) / "out.tif"))
        line = 'pip install "eo-zoo[geo]"'
        check(
            result.returncode == 1 and line in result.stderr,
            f"embed names the pip line: {result.stderr.strip()}",
        )
        check(not list(Path(folder).iterdir()), "and writes nothing")
    for words in (("ask", "scene.tif", "What?"), ("detect", "scene.tif", "ship", "-o", "ships.geojson")):
        result = run(*words)
        line = 'pip install "eo-zoo[vlm]"'
        check(result.returncode == 1 and line in result.stderr, f"{words[0]} names the pip line")


if __name__ == "__main__":
    main()
