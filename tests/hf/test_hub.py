"""Models from and to the Hugging Face Hub, by transformers, timm and ``eo_zoo``: a server here stands in for it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
import timm
import torch
import transformers
from huggingface_hub import constants
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel

import eo_zoo
import eo_zoo.hf as hf
from eo_zoo import registry, weights
from eo_zoo.errors import DownloadError, InputError, WeightsError
from eo_zoo.weights import download
from tests import forged
from tests.hub_server import COMMIT, HubServer, commit_of
from tests.models.families import FAMILIES
from tests.models.test_multimae_weights import release

REPO = "me/nano"
WEIGHTS = "model.safetensors"
SMALL = dict(img_size=64, embed_dim=32, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), window_size=2)  # of MaRS


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """No Hub, nothing of the user's, and no waiting: some is done by huggingface_hub itself."""
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(tmp_path / "hf"), raising=False)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)  # it remembers its Hub
    with contextlib.suppress(ImportError):  # before 2.0 it does not ask its Hub who is calling
        monkeypatch.setattr("huggingface_hub.utils._detect_agent._registry", {})
    monkeypatch.setattr(download, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(time, "sleep", lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.01)))


@pytest.fixture
def hub(monkeypatch):
    with HubServer() as server:
        yield server.stand_in(monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The bundled model in the form that is pushed."""
    folder = tmp_path_factory.mktemp("made") / "nano"
    hf.export("smarties_vit_nano", folder)
    return folder


@pytest.fixture
def repository(hub, folder):
    """It, on the Hub."""
    publish(hub, folder)
    return hub


def publish(hub: HubServer, folder: Path, repo: str = REPO, subfolder: str = "", *, scale: float = 1.0, **kwargs):
    """Put a folder there, as git does; ``scale`` makes other weights."""
    for path in folder.iterdir():
        data = path.read_bytes()
        if path.name == WEIGHTS and scale != 1:
            data = scaled(data, scale)
        hub.add(repo, subfolder + path.name, data, lfs=path.name == WEIGHTS, **kwargs)


def scaled(data: bytes, scale: float) -> bytes:
    return bytes_of({name: tensor * scale for name, tensor in tensors_of(data).items()}, {"format": "pt"})


def same(model: nn.Module, expected: nn.Module, scale: float = 1.0) -> bool:
    """Whether the tensors are equal, bit for bit; a model may be in its transformers class."""
    found, wanted = (getattr(one, "model", one).state_dict() for one in (model, expected))
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name] * scale) for name in wanted)


@pytest.fixture(scope="module")
def nano():
    return eo_zoo.create_model("smarties_vit_nano")


def sentence(error: BaseException) -> str:
    """What is said, if it is one sentence without what is secret."""
    text = str(error)
    assert "\n" not in text and len(text) < 800, text
    return text


def asked(hub: HubServer, name: str = WEIGHTS, method: str = "GET") -> list[str]:
    return [path for how, path, _ in hub.requests if how == method and path.endswith(name)]


DOORS = {
    "SmartiesModel": hf.SmartiesModel.from_pretrained,
    "AutoModel": AutoModel.from_pretrained,
    "timm": lambda name, **kwargs: timm.create_model(f"hf-hub:{name}", pretrained=True, **kwargs).eval(),
}
doors = pytest.mark.parametrize("load", DOORS.values(), ids=DOORS)


# ---------------------------------------------------------------------------------------------- once, and then again


@doors
def test_the_first_time_it_is_downloaded_the_second_time_it_is_there(repository, nano, load):
    first = load(REPO)
    assert same(first, nano) and not first.training
    origin = first.weights_origin
    data = repository.files[REPO, WEIGHTS].data
    assert origin.source == f"hf://{REPO}/{WEIGHTS}" and origin.verified
    assert origin.sha256 == hashlib.sha256(data).hexdigest()
    assert len(asked(repository)) == 1 and len(asked(repository, "/config.json")) == 1
    repository.requests.clear()
    assert same(load(REPO), nano)
    assert not asked(repository) and not asked(repository, "/config.json") and not asked(repository, method="HEAD")


def test_all_doors_share_one_download(repository, nano):
    for load in DOORS.values():
        assert same(load(REPO), nano)
    assert len(asked(repository)) == 1
    x = torch.rand(2, 12, 112, 112)
    with torch.inference_mode():
        answers = [AutoModel.from_pretrained(REPO)(x).pooler_output, DOORS["timm"](REPO)(x), nano(x)]
    assert torch.equal(answers[0], answers[2]) and torch.equal(answers[1], answers[2])


def test_the_processor_comes_too(repository):
    processor = AutoImageProcessor.from_pretrained(REPO)
    assert isinstance(processor, hf.SmartiesImageProcessor)
    image = torch.randint(0, 4000, (12, 120, 120))
    expected = hf.SmartiesImageProcessor("smarties_vit_nano")(image).pixel_values
    assert torch.equal(processor(image).pixel_values, expected) and not asked(repository)


# ------------------------------------------------------------------------------------------------------- offline


@pytest.mark.parametrize("how", ["HF_HUB_OFFLINE", "EO_ZOO_OFFLINE", "local_files_only"])
def test_without_network(repository, nano, monkeypatch, how):
    options = {how: True} if how == "local_files_only" else {}
    with monkeypatch.context() as patch:
        if not options:
            patch.setenv(how, "1")
        with pytest.raises(DownloadError, match=rf"config.json of me/nano is not in .*offline mode is on .{how}.") as e:
            hf.SmartiesModel.from_pretrained(REPO, **options)
        assert "the path of such a folder" in sentence(e.value) and not repository.requests
        with patch.context() as online:
            online.delenv(how, raising=False)
            hf.SmartiesConfig.from_pretrained(REPO)  # the weights are not there yet
        repository.requests.clear()
        with pytest.raises(DownloadError, match=rf"offline mode is on .{how}.*model.safetensors by hand") as caught:
            hf.SmartiesModel.from_pretrained(REPO, **options)
        sentence(caught.value)
    hf.SmartiesModel.from_pretrained(REPO)
    repository.requests.clear()
    if not options:
        monkeypatch.setenv(how, "1")
    assert same(hf.SmartiesModel.from_pretrained(REPO, **options), nano) and not repository.requests
    assert same(hf.SmartiesModel.from_pretrained(REPO, force_download=True, **options), nano)
    assert not repository.requests
    if options:
        assert same(AutoModel.from_pretrained(REPO, **options), nano)
        assert not [path for _, path, _ in repository.requests if not path.endswith("/adapter_config.json")]  # PEFT's


def test_offline_in_a_process_of_its_own(tmp_path, repository):
    """As on a machine without network: HF_HUB_OFFLINE is set before Python starts."""
    code = (
        "import eo_zoo.hf, timm, torch; from transformers import AutoImageProcessor, AutoModel\n"
        f"m, t = AutoModel.from_pretrained({REPO!r}), timm.create_model('hf-hub:{REPO}', pretrained=True).eval()\n"
        f"p = AutoImageProcessor.from_pretrained({REPO!r})\n"
        "x = p(torch.full((12, 112, 112), 900)).pixel_values\n"
        "print(torch.equal(m(x).pooler_output, t(x)))"
    )
    AutoModel.from_pretrained(REPO), AutoImageProcessor.from_pretrained(REPO)
    repository.requests.clear()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hf")}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == "True", ran.stderr
    assert not repository.requests


def test_the_hub_is_down_after_the_first_time(repository, nano):
    hf.SmartiesModel.from_pretrained(REPO)
    repository.files[REPO, "config.json"].status = 503
    assert same(hf.SmartiesModel.from_pretrained(REPO), nano)


# ------------------------------------------------------------------------------------------------------ revisions


@pytest.mark.parametrize("by", ["branch", "commit"])
@doors
def test_two_revisions_side_by_side_are_never_mixed(repository, folder, nano, load, by):
    publish(repository, folder, revision="tuned", scale=2.0)
    config = json.loads((folder / "config.json").read_text())
    config["model_args"]["drop_rate"] = 0.25
    repository.add(REPO, "config.json", json.dumps(config).encode(), lfs=False, revision="tuned")
    revision = "tuned" if by == "branch" else commit_of("tuned")

    def tuned():
        if load is DOORS["timm"]:
            return load(f"{REPO}@{revision}")
        return load(REPO, revision=revision)

    for _ in range(2):
        assert same(load(REPO), nano) and same(tuned(), nano, 2.0)
    built = getattr(tuned(), "model", None) or tuned()
    assert built.model_args["drop_rate"] == 0.25 and "drop_rate" not in json.loads((folder / "config.json").read_text())
    assert len(asked(repository)) == 2


@doors
def test_a_branch_that_moved_on_is_followed(repository, folder, nano, load):
    """Configuration and weights together, and what was there before stays at its commit."""
    assert same(load(REPO), nano)
    publish(repository, folder, revision=COMMIT)
    repository.commit = "f" * 40
    publish(repository, folder, scale=3.0)
    assert same(load(REPO), nano, 3.0)
    name, options = (f"{REPO}@{COMMIT}", {}) if load is DOORS["timm"] else (REPO, {"revision": COMMIT})
    assert same(load(name, **options), nano)


def test_a_new_commit_with_the_same_weights_fetches_none(repository, tmp_path, nano):
    """As after a change of the card."""
    hf.SmartiesModel.from_pretrained(REPO)
    repository.commit = "f" * 40
    again = hf.SmartiesModel.from_pretrained(REPO)
    assert same(again, nano) and again.weights_origin.verified and len(asked(repository)) == 1
    pins = [json.loads(path.read_text()) for path in (tmp_path / "cache" / "pins").iterdir()]
    assert {pin["commit"] for pin in pins} == {COMMIT, "f" * 40}
    assert {pin["size"] for pin in pins} == {len(repository.files[REPO, WEIGHTS].data)}


def test_a_revision_or_a_folder_that_is_not_there(repository):
    with pytest.raises(DownloadError, match=r"config.json of me/nano .*there is no such revision .404") as caught:
        hf.SmartiesModel.from_pretrained(REPO, revision="absent")
    sentence(caught.value)
    with pytest.raises(DownloadError, match=r"deep/config.json of me/nano .*there is no such file .404") as caught:
        hf.SmartiesModel.from_pretrained(REPO, subfolder="deep")
    sentence(caught.value)


def test_a_subfolder(hub, folder, nano):
    publish(hub, folder, subfolder="small/")
    for load in (hf.SmartiesModel.from_pretrained, AutoModel.from_pretrained):
        assert same(load(REPO, subfolder="small"), nano)
        assert same(load(folder.parent, subfolder=folder.name), nano)
    assert len(asked(hub)) == 1 and f"/resolve/{COMMIT}/" in asked(hub)[0]


def test_a_file_of_ones_own(hub, folder, tmp_path, nano):
    (tmp_path / "own.safetensors").write_bytes(scaled((folder / WEIGHTS).read_bytes(), 2.0))
    model = hf.SmartiesModel.from_pretrained("smarties_vit_nano", weights=tmp_path / "own.safetensors")
    assert same(model, nano, 2.0) and not hub.requests


def test_a_cache_of_ones_own(repository, tmp_path, nano):
    assert same(hf.SmartiesModel.from_pretrained(REPO, cache_dir=tmp_path / "own"), nano)
    assert f"/resolve/{COMMIT}/" in asked(repository)[0]  # the commit of the configuration that lies there
    assert (tmp_path / "own").is_dir() and not any((tmp_path / name).exists() for name in ("hf", "cache"))


# ---------------------------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize("given", ["argument", "environment"])
def test_a_token_is_for_the_hub_alone(repository, nano, monkeypatch, tmp_path, given):
    if given == "environment":
        monkeypatch.setenv("HF_TOKEN", "hf_SECRET")
    options = {"token": "hf_SECRET"} if given == "argument" else {}
    with HubServer() as cdn:
        for name in ("config.json", WEIGHTS):
            file = repository.files[REPO, name]
            cdn.add("bucket/of", name, file.data)
            file.redirect = f"{cdn.url}/bucket/of/{name}?X-Amz-Signature=SIGNED"
        assert same(hf.SmartiesModel.from_pretrained(REPO, **options), nano)
        sent = [headers.get("authorization") for headers in repository.headers]
        assert sent and set(sent) == {"Bearer hf_SECRET"}
        assert len(cdn.headers) == 2 and not any("authorization" in headers for headers in cdn.headers)
        repository.headers.clear()
        hf.SmartiesModel.from_pretrained(REPO, token=False, revision=COMMIT, force_download=True)
        assert repository.headers and not any("authorization" in headers for headers in repository.headers)
        cdn.files["bucket/of", WEIGHTS].status = 403
        with pytest.raises(DownloadError, match=r"access is refused .403") as caught:
            hf.SmartiesModel.from_pretrained(REPO, weights=None, cache_dir=tmp_path / "other", **options)
    shown = "".join(traceback.format_exception(caught.value))
    assert "SECRET" not in shown and "SIGNED" not in shown


# ------------------------------------------------------------------------------------------- what is not there


def test_what_is_missing_is_named(hub, folder):
    with pytest.raises(DownloadError, match=r"config.json of me/nano .*no such repository .404.*OWNER/NAME") as caught:
        hf.SmartiesModel.from_pretrained(REPO)
    sentence(caught.value)
    hub.add(REPO, WEIGHTS, (folder / WEIGHTS).read_bytes())
    with pytest.raises(DownloadError, match=r"config.json of me/nano .*no such file .404.*push_to_hub") as caught:
        hf.SmartiesModel.from_pretrained(REPO)
    sentence(caught.value)
    del hub.files[REPO, WEIGHTS]
    hub.add(REPO, "config.json", (folder / "config.json").read_bytes(), lfs=False)
    hub.add(REPO, "pytorch_model.bin", b"\x80\x02")
    for load in DOORS.values():
        with pytest.raises(DownloadError, match=r"me/nano holds no model.safetensors at \w+ .404.*a pickle") as caught:
            load(REPO)
        assert "weights=PATH" in sentence(caught.value)
    assert not asked(hub, "pytorch_model.bin") and not asked(hub, "pytorch_model.bin", "HEAD")


@pytest.mark.parametrize("status", [401, 403])
def test_a_private_repository(repository, status):
    for name in ("config.json", WEIGHTS):
        file = repository.files[REPO, name]
        file.status = status
        with pytest.raises(DownloadError, match=rf"refused .{status}.*hf auth login") as caught:
            hf.SmartiesModel.from_pretrained(REPO)
        sentence(caught.value)
        file.status = None


@pytest.mark.parametrize("name", ["smarties_vit_giant", "smarties_vit_nano.other", "me/nano/model.safetensors", "/no"])
def test_names_that_mean_nothing(hub, name):
    with pytest.raises(InputError, match="is no model of eo_zoo, no folder, and no OWNER/NAME") as caught:
        hf.SmartiesModel.from_pretrained(name)
    sentence(caught.value)
    with pytest.raises(InputError, match="cannot be OWNER/NAME of a repository"):
        hf.SmartiesModel.from_pretrained("a--b/c..d")
    assert not hub.requests


def test_a_folder_without_its_files(tmp_path, folder):
    with pytest.raises(InputError, match=r"config.json is not there: expected a folder that save_pretrained wrote"):
        hf.SmartiesModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(InputError, match=r"holds no model.safetensors: expected a folder that save_pretrained wrote"):
        hf.SmartiesModel.from_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(WeightsError, match="a plain pickle"):
        hf.SmartiesModel.from_pretrained(tmp_path)


# ----------------------------------------------------------------------------------------------- passing faults


@pytest.mark.parametrize("file", ["config.json", WEIGHTS])
@pytest.mark.parametrize("failures", [[429], [429, 429, 500], [503, 502, 504]], ids=str)
def test_passing_faults_are_waited_out(repository, nano, file, failures):
    repository.files[REPO, file].failures = list(failures)
    repository.files[REPO, file].headers = (("Retry-After", "0"),)
    assert same(hf.SmartiesModel.from_pretrained(REPO), nano)
    assert not repository.files[REPO, file].failures


@pytest.mark.parametrize("file", ["config.json", WEIGHTS])
def test_faults_that_stay_are_one_sentence(repository, file):
    repository.files[REPO, file].status = 500
    with pytest.raises(DownloadError, match=r"could not be fetched: the server answers with an error .500.") as caught:
        hf.SmartiesModel.from_pretrained(REPO)
    sentence(caught.value)


def test_no_server_at_all(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match=r"config.json of me/nano .*the connection failed") as caught:
        hf.SmartiesModel.from_pretrained(REPO)
    sentence(caught.value)


def test_a_download_that_broke_off_is_gone_on_with(repository, nano, monkeypatch):
    file = repository.files[REPO, WEIGHTS]
    file.cut_after = 1_000_000
    monkeypatch.setattr(download, "TRIES", 1)
    with pytest.raises(DownloadError, match="the connection failed"):
        hf.SmartiesModel.from_pretrained(REPO)
    assert same(hf.SmartiesModel.from_pretrained(REPO), nano)
    spans = [span for method, path, span in repository.requests if method == "GET" and path.endswith(WEIGHTS)]
    assert spans[0] is None and 0 < int(spans[1].removeprefix("bytes=").removesuffix("-")) <= 1_000_000


# ------------------------------------------------------------------------------------------------- broken files


def test_other_bytes_than_the_hub_states(repository, nano, tmp_path):
    file = repository.files[REPO, WEIGHTS]
    file.sent = file.data[:-1] + bytes([file.data[-1] ^ 1])
    with pytest.raises(WeightsError, match="damaged on the way") as caught:
        hf.SmartiesModel.from_pretrained(REPO)
    sentence(caught.value)
    assert not list((tmp_path / "cache").glob("*.safetensors"))
    file.sent = None
    assert same(hf.SmartiesModel.from_pretrained(REPO), nano)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data[: len(data) // 2], "ends after .* promised: download it again"),
        (lambda data: data[:100], "within its header"),
        (lambda data: b"", "the file is empty"),
        (lambda data: b"<html>log in</html>", "web page"),
        (lambda data: bytes_of({"weight": torch.ones(3)}), "not of a checkpoint of"),
        (lambda data: scaled(data, 1)[:8] + b"x" + scaled(data, 1)[9:], "is not a checkpoint"),
    ],
    ids=["cut", "cut early", "empty", "page", "foreign", "no header"],
)
def test_a_broken_file_on_the_hub_itself(hub, folder, change, says):
    publish(hub, folder)
    hub.add(REPO, WEIGHTS, change((folder / WEIGHTS).read_bytes()))
    for load in DOORS.values():
        with pytest.raises(WeightsError, match=says) as caught:
            load(REPO)
        sentence(caught.value)


def test_tensors_of_another_architecture(repository, tmp_path):
    other = timm.create_model("mars_base_rgb", **SMALL)
    hf.wrap(other).save_pretrained(tmp_path / "mars")
    repository.add(REPO, WEIGHTS, (tmp_path / "mars" / WEIGHTS).read_bytes())
    with pytest.raises(WeightsError, match=r"has the layout 'mars-rgb-\d', this model reads 'smarties-\d'"):
        hf.SmartiesModel.from_pretrained(REPO)
    wide = timm.create_model("smarties_vit_nano", embed_dim=64, num_heads=2)
    hf.wrap(wide).save_pretrained(tmp_path / "wide")
    repository.add("me/wide", WEIGHTS, (tmp_path / "wide" / WEIGHTS).read_bytes())
    repository.files["me/wide", "config.json"] = repository.files[REPO, "config.json"]
    with pytest.raises(WeightsError, match=r"does not fit the model: \d+ of another shape") as caught:
        hf.SmartiesModel.from_pretrained("me/wide")
    assert "\n" not in str(caught.value)


def config_with(folder: Path, **changes: object) -> bytes:
    stored = json.loads((folder / "config.json").read_text()) | changes
    return json.dumps({key: value for key, value in stored.items() if value is not None}).encode()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (b"<!DOCTYPE html><title>Log in</title>", r"config.json is no JSON .*force_download=True"),
        (b"\xff\xfe\x00", r"config.json is no JSON"),
        (b"[1, 2]", r"config.json holds a list, expected a JSON object"),
        (b"{}", r"names no architecture, which is one of smarties_vit_base"),
        (dict(model_type="bert"), r"is of a 'bert' model, SmartiesConfig reads 'smarties'"),
        (dict(architecture=None), r"names no architecture, which is one of smarties_vit_base"),
        (dict(architecture="smarties_vit_giant"), r"unknown model 'smarties_vit_giant'. Did you mean"),
        (dict(architecture="mars_base_rgb"), r"SmartiesConfig is for smarties_vit_base.*got 'mars_base_rgb'"),
        (dict(model_args={"noses": 2}), r"smarties_vit_nano.demo cannot be built with .*noses"),
        (dict(model_args={"bands": ["B99"]}), r"B99"),
    ],
    ids=["page", "bytes", "list", "empty", "bert", "no architecture", "unknown", "mars", "argument", "band"],
)
def test_a_broken_configuration(repository, folder, changes, says):
    data = changes if isinstance(changes, bytes) else config_with(folder, **changes)
    repository.add(REPO, "config.json", data, lfs=False)
    with pytest.raises(InputError, match=says) as caught:
        hf.SmartiesModel.from_pretrained(REPO)
    sentence(caught.value)
    assert not asked(repository)


def test_another_familys_class(repository):
    with pytest.raises(InputError, match=r"is of a 'smarties' model, MarsConfig reads 'mars': AutoModel"):
        hf.MarsModel.from_pretrained(REPO)


def test_what_timm_pushed_is_read_too(repository, folder, nano):
    """Its configuration has no model_type."""
    stored = json.loads((folder / "config.json").read_text())
    kept = ("architecture", "num_classes", "num_features", "pretrained_cfg", "model_args")
    timms = {key: stored[key] for key in kept}
    repository.add(REPO, "config.json", json.dumps(timms).encode(), lfs=False)
    assert same(hf.SmartiesModel.from_pretrained(REPO), nano)


# ------------------------------------------------------------------------------------------------- code and pickles


@pytest.mark.parametrize("trust", [None, False, True])
@pytest.mark.parametrize("kind", [hf.SmartiesModel, AutoModel, AutoConfig])
def test_code_in_a_repository_is_never_run(repository, folder, tmp_path, nano, monkeypatch, kind, trust):
    if trust and kind is not hf.SmartiesModel and transformers.__version__.startswith("4."):
        pytest.skip("before 5 the Auto classes of transformers run it where they are told to")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    canary = tmp_path / "canary"
    code = f"open({str(canary)!r}, 'w')\nfrom eo_zoo.hf import SmartiesConfig as Config, SmartiesModel as Model\n"
    auto_map = {"AutoConfig": "code.Config", "AutoModel": "code.Model"}
    repository.add(REPO, "config.json", config_with(folder, auto_map=auto_map), lfs=False)
    repository.add(REPO, "code.py", code.encode(), lfs=False)
    options = {} if trust is None else {"trust_remote_code": trust}
    made = kind.from_pretrained(REPO, **options)
    assert isinstance(made, hf.SmartiesConfig) or (type(made) is hf.SmartiesModel and same(made, nano))
    assert not canary.exists() and not asked(repository, "code.py")


def test_a_pickle_under_the_name_of_safetensors(repository, tmp_path):
    class Canary:
        def __reduce__(self):
            return open, (str(tmp_path / "canary"), "w")

    torch.save({"blocks.0.norm1.weight": Canary()}, tmp_path / "pickle")
    repository.add(REPO, WEIGHTS, (tmp_path / "pickle").read_bytes())
    with pytest.raises(WeightsError, match=r"refused: it asks to run .*nothing was executed"):
        hf.SmartiesModel.from_pretrained(REPO)
    assert not (tmp_path / "canary").exists()


# ---------------------------------------------------------------------------------------------------------- pushes


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "mars"])
def test_what_is_pushed_comes_back_by_all_doors(hub, family):
    made = FAMILIES[family]
    torch.manual_seed(0)
    model = timm.create_model(made.smallest, **made.small).eval()
    if family == "smarties":
        address = hf.wrap(model).push_to_hub("me/mine", token="hf_SECRET")
    else:
        address = eo_zoo.push_to_hub(model, "me/mine", token="hf_SECRET", own_weights=True)
    assert address == f"{hub.url}/me/mine/commit/{COMMIT}"
    files = {name for _, name in hub.files}
    assert files == {"config.json", WEIGHTS, "preprocessor_config.json", "README.md"}
    card = hub.files["me/mine", "README.md"].data.decode()
    assert "library_name: transformers" in card and 'AutoModel.from_pretrained("me/mine")' in card
    assert "SECRET" not in "".join(file.data.decode(errors="replace") for file in hub.files.values())
    assert same(AutoModel.from_pretrained("me/mine"), model)
    assert same(type(hf.wrap(model)).from_pretrained("me/mine"), model)
    assert same(DOORS["timm"]("me/mine"), model)
    assert len(asked(hub)) == 1
    processor = AutoImageProcessor.from_pretrained("me/mine")
    assert processor.name.partition(".")[0] == made.smallest
    config = AutoConfig.from_pretrained("me/mine")
    assert config.architectures == [type(hf.wrap(model)).__name__]


def test_pushed_again_the_new_weights_come_and_the_card_stays(hub, nano):
    model = hf.SmartiesModel.from_pretrained("smarties_vit_nano")
    model.push_to_hub(REPO, token="hf_SECRET")
    hub.add(REPO, "README.md", b"my own words", lfs=False)
    assert same(AutoModel.from_pretrained(REPO), nano)
    hub.commit = "e" * 40
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    model.push_to_hub(REPO, token="hf_SECRET", commit_message="Trained further")
    assert hub.files[REPO, "README.md"].data == b"my own words"
    for load in DOORS.values():
        assert same(load(REPO), model)


def test_a_branch_to_push_to(hub, nano):
    eo_zoo.push_to_hub(nano, REPO, token="hf_SECRET", revision="tuned")
    assert not any(repo == REPO for repo, _ in hub.files)
    assert same(hf.SmartiesModel.from_pretrained(REPO, revision="tuned"), nano)
    with pytest.raises(DownloadError, match="no such revision"):
        hf.SmartiesModel.from_pretrained(REPO)


def test_saved_and_pushed_at_once(hub, tmp_path, nano):
    model = hf.SmartiesModel.from_pretrained("smarties_vit_nano")
    model.save_pretrained(tmp_path / "nano", push_to_hub=True, repo_id=REPO, token="hf_SECRET")
    assert same(hf.SmartiesModel.from_pretrained(tmp_path / "nano"), nano)
    assert same(hf.SmartiesModel.from_pretrained(REPO), nano)


def test_mars_is_not_pushed(hub, tmp_path):
    model = timm.create_model("mars_base_sar", **SMALL)
    torch.save(model.state_dict(), tmp_path / "mars.pth")
    loaded = eo_zoo.create_model("mars_base_sar", weights=tmp_path / "mars.pth", **SMALL)
    wrapped = hf.wrap(loaded)
    with pytest.raises(InputError, match="own_weights=True"):
        hf.wrap(model).push_to_hub("me/mars", token="hf_SECRET")
    refused = pytest.raises(InputError, match=r"mars_base_\w+ may not be pushed to a hub: .*academic research")
    with refused as caught:
        eo_zoo.push_to_hub(wrapped, "me/mars", token="hf_SECRET", own_weights=True)
    sentence(caught.value)
    with refused:
        wrapped.push_to_hub("me/mars", token="hf_SECRET", own_weights=True)
    with refused:
        wrapped.save_pretrained(tmp_path / "out", push_to_hub=True, repo_id="me/mars")
    assert not hub.requests and not (tmp_path / "out").exists()
    wrapped.save_pretrained(tmp_path / "out")  # for oneself
    assert same(AutoModel.from_pretrained(tmp_path / "out"), loaded)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: other" in card and "academic research" in card and '.from_pretrained("FOLDER")' in card
    with refused:
        AutoModel.from_pretrained(tmp_path / "out").push_to_hub("me/mars", own_weights=True)


# ------------------------------------------------------------------------------------------- official repositories


OFFICIAL = {
    "gsumbul/SMARTIES-v1-ViT-B": (hf.SmartiesModel, "smarties_vit_base"),
    "gsumbul/SMARTIES-v1-ViT-L": (hf.SmartiesModel, "smarties_vit_large"),
    "g-astruc/AnySat": (hf.AnySatModel, "anysat_base"),
    "josesosajs/multimae-meets-eo": (hf.MultiMaeEoModel, "multimae_eo_base"),
    "mars_base_sar": (hf.MarsModel, "mars_base_sar"),
}


def put_where_it_is_published(record: weights.Record, path: Path, hub: HubServer, monkeypatch) -> None:
    """On the Hub, in a release on GitHub, or, as if it were Zenodo, on a mirror."""
    if record.scheme == "hf":
        owner, name, file = record.address.split("/", 2)
        hub.add(f"{owner}/{name}", file, path.read_bytes())
    elif record.scheme == "github":
        monkeypatch.setenv("GITHUB_API_URL", hub.url)
        release(hub, path.read_bytes())
    else:
        monkeypatch.setenv("EO_ZOO_MIRROR", str(path.parents[len(Path(record.address).parents) - 1]))
        with path.open("rb") as file:
            md5 = hashlib.file_digest(file, "md5").hexdigest()
        forgery = dataclasses.replace(record, md5=md5, size=path.stat().st_size)
        monkeypatch.setitem(weights.RECORDS, record.name, forgery)


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_repositories_need_no_configuration(hub, name):
    kind, architecture = OFFICIAL[name]
    config = kind.config_class.from_pretrained(name.upper() if "/" in name else name)
    assert config.architecture == architecture and not hub.requests
    assert config.name == registry.get_record(architecture).name


@pytest.mark.slow
@pytest.mark.parametrize("name", OFFICIAL)
def test_official_repositories_give_what_eo_zoo_gives(hub, tmp_path, monkeypatch, name):
    kind, architecture = OFFICIAL[name]
    record = registry.get_record(architecture)
    path = tmp_path / "mirror" / record.address
    forged.save(record, path)
    put_where_it_is_published(record, path, hub, monkeypatch)
    model = kind.from_pretrained(name)
    assert model.weights_origin.verified and model.weights_origin.source == record.source
    fetched = len(hub.requests)
    assert same(model, eo_zoo.create_model(architecture)) and len(hub.requests) == fetched
