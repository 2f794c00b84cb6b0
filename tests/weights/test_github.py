"""Assets of GitHub releases: which one is found, what is checked, and what GitHub may answer."""

from __future__ import annotations

import hashlib
import json
import traceback
from pathlib import Path
from urllib.parse import quote

import pytest
import timm
import torch
from safetensors.torch import save_file

import eo_zoo
from eo_zoo import weights
from eo_zoo.errors import DownloadError, InputError, WeightsError
from eo_zoo.weights import download, github
from tests.hub_server import File, HubServer
from tests.weights.toys import LAYOUT, check_toy, leftovers, load, record, toy_bytes

TAG = "v1.0.0"
SOURCE = f"github://owner/repo/{TAG}"
PAGE = f"https://github.com/owner/repo/releases/tag/{TAG}"


@pytest.fixture(autouse=True)
def api(hub, monkeypatch):
    monkeypatch.setenv("GITHUB_API_URL", f"{hub.url}/")
    for name in ("GITHUB_TOKEN", "GH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return hub


def asset(hub: HubServer, name: str, data: bytes, **other: object) -> dict[str, object]:
    """Put a file on the server, and give what the API says of it."""
    hub.add("owner/repo", f"releases/download/{TAG}/{name}", data)
    return {
        "name": name,
        "browser_download_url": f"{hub.url}/owner/repo/releases/download/{TAG}/{name}",
        "size": len(data),
        "digest": f"sha256:{hashlib.sha256(data).hexdigest()}",
        "state": "uploaded",
        **other,
    }


def file_of(hub: HubServer, name: str) -> File:
    return hub.files["owner/repo", f"releases/download/{TAG}/{name}"]


def publish(hub: HubServer, *assets: dict[str, object], tag: str = TAG) -> File:
    answer = {"tag_name": tag, "assets": list(assets)}
    return hub.add("repos/owner", f"repo/releases/tags/{quote(tag, safe='')}", json.dumps(answer).encode())


def fails(says: str, kind: type[Exception] = DownloadError, source: str = SOURCE) -> str:
    with pytest.raises(kind, match=says) as caught:
        load(record(source=source))
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))
    return str(caught.value)


# ------------------------------------------------------------------------------------------- which asset it is


def test_the_one_asset_is_found_checked_and_kept(tmp_path, api, cache, monkeypatch):
    data = toy_bytes(tmp_path)
    publish(api, asset(api, "notes.txt", b"x"), asset(api, "Checkpoint-999.PTH", data), asset(api, "code.zip", b"y"))
    tensors, origin = load(record(source=SOURCE))
    check_toy(tensors)
    assert origin == weights.Origin("toy.pretrain", SOURCE, hashlib.sha256(data).hexdigest(), True)
    assert [path for _, path, _ in api.requests] == [
        f"/repos/owner/repo/releases/tags/{TAG}", f"/owner/repo/releases/download/{TAG}/Checkpoint-999.PTH",
    ]  # fmt: skip
    asked = api.headers[0]
    assert asked["accept"] == "application/vnd.github+json" and asked["x-github-api-version"] == "2022-11-28"
    pin = weights.pinned(record(source=SOURCE))
    assert (pin["sha256"], pin["size"], pin["verified"]) == (origin.sha256, len(data), True)
    (kept,) = cache.glob("*.safetensors")
    assert kept.name == f"repo-{TAG}-{origin.sha256[:16]}-{LAYOUT}.safetensors" and leftovers(cache) == []
    monkeypatch.setenv("EO_ZOO_OFFLINE", "1")
    check_toy(load(record(source=SOURCE))[0])
    assert len(api.requests) == 2


def test_of_several_one_is_named(tmp_path, api, cache):
    one, two = toy_bytes(tmp_path), toy_bytes(tmp_path, 2.0)
    publish(
        api,
        asset(api, "base.pth", one),
        asset(api, "large.safetensors", two),
        asset(api, "tiny.pt", one),
        asset(api, "base.pth.md5", b"x"),
    )
    says = fails("holds 3 files of weights, base.pth, large.safetensors, tiny.pt: name one")
    assert f'weights="{SOURCE}/base.pth"' in says and f"Fetch {PAGE} by hand" in says and "weights=PATH" in says
    assert api.count("GET") == 1 and leftovers(cache) == []
    for name, value in (("base.pth", 1.0), ("large.safetensors", 2.0)):
        check_toy(load(record(source=f"{SOURCE}/{name}"))[0], value)
        assert len(list(cache.glob(f"{Path(name).stem}-*-{LAYOUT}.safetensors"))) == 1


@pytest.mark.parametrize(
    ("names", "wanted", "says"),
    [
        (["a.zip", "b.txt"], "", "holds no .pth, .pt or .safetensors asset, only a.zip, b.txt"),
        ([], "", "holds no .pth, .pt or .safetensors asset, only the source code"),
        (["base.pth"], "/large.pth", "holds no asset large.pth, only base.pth"),
    ],
)
def test_without_the_asset_it_is_said_what_there_is(api, names, wanted, says):
    publish(api, *(asset(api, name, b"x") for name in names))
    assert f"release {TAG} of owner/repo {says}" in fails("could not be fetched", source=SOURCE + wanted)


def test_an_unfinished_upload_is_no_asset(tmp_path, api):
    broken = asset(api, "broken.pth", b"", state="starter", digest=None)
    publish(api, broken)
    for source in (SOURCE, f"{SOURCE}/broken.pth"):
        fails(rf"the upload of broken.pth to release {TAG} of owner/repo is not finished .starter.: try", source=source)
    publish(api, broken, asset(api, "whole.pth", toy_bytes(tmp_path)))
    check_toy(load(record(source=SOURCE))[0])


def test_a_tag_with_a_slash(tmp_path, api, cache):
    publish(api, asset(api, "toy.pth", toy_bytes(tmp_path)), tag="weights/v1")
    check_toy(load(record(source="github://owner/repo/weights%2Fv1"))[0])
    assert api.requests[0][1] == "/repos/owner/repo/releases/tags/weights%2Fv1"
    (kept,) = cache.glob("*.safetensors")
    assert kept.name.startswith("repo-weights-v1-")


@pytest.mark.parametrize("address", ["owner/repo", "owner", "", "owner/repo/v1/a/b", "owner/repo/v1/..", "o?/repo/v1"])
def test_an_address_that_is_none(address):
    with pytest.raises(InputError, match=r"names no release: expected github://OWNER/REPO/TAG"):
        record(source=f"github://{address}")


# ------------------------------------------------------------------------------------------ what GitHub states


def test_another_digest_is_thrown_away(tmp_path, api, cache):
    data = toy_bytes(tmp_path)
    publish(api, asset(api, "toy.pth", data, digest=f"sha256:{'0' * 64}"))
    fails("is stated as 0000.*damaged on the way, and not used", WeightsError)
    assert leftovers(cache) == [] and not (cache / "pins").exists() and not list(cache.glob("*.safetensors"))
    publish(api, asset(api, "toy.pth", data))
    check_toy(load(record(source=SOURCE))[0])


@pytest.mark.parametrize("digest", [None, "sha512:0", "sha256:c0ffee", ""])
def test_without_a_digest_it_is_pinned_as_it_came(tmp_path, api, cache, caplog, digest):
    publish(api, asset(api, "toy.pth", toy_bytes(tmp_path), digest=digest))
    assert not load(record(source=SOURCE))[1].verified and "nothing confirms" in caplog.text
    next(cache.glob("*.safetensors")).unlink()
    publish(api, asset(api, "toy.pth", toy_bytes(tmp_path, 2.0), digest=digest))
    fails("changed since its first use", WeightsError)


def test_an_old_answer_without_the_field(tmp_path, api):
    entry = asset(api, "toy.pth", toy_bytes(tmp_path))
    del entry["digest"]
    publish(api, entry)
    check_toy(load(record(source=SOURCE))[0])


def test_a_changed_digest_is_told_before_the_download(tmp_path, api, cache):
    publish(api, asset(api, "toy.pth", toy_bytes(tmp_path)))
    load(record(source=SOURCE))
    next(cache.glob("*.safetensors")).unlink()
    publish(api, asset(api, "toy.pth", toy_bytes(tmp_path, 2.0)))
    fails("changed since its first use", WeightsError)
    assert api.count("GET") == 3


def test_another_size_is_told_before_anything_is_written(tmp_path, api, cache):
    data = toy_bytes(tmp_path)
    publish(api, asset(api, "toy.pth", data, size=len(data) + 1))
    fails(f"has {len(data)} bytes, toy.pretrain has {len(data) + 1}: not used", WeightsError)
    assert leftovers(cache) == []


def test_a_cut_download_is_gone_on_with(tmp_path, api, cache, monkeypatch):
    monkeypatch.setattr(download, "CHUNK", 10)
    publish(api, asset(api, "toy.pth", toy_bytes(tmp_path)))
    file_of(api, "toy.pth").cut_after = 50
    check_toy(load(record(source=SOURCE))[0])
    assert api.ranges() == [None, None, "bytes=50-"] and leftovers(cache) == []


# --------------------------------------------------------------------------------------------- what may happen


@pytest.mark.parametrize("status", [403, 429])
@pytest.mark.parametrize("token", [None, "SECRET"])
@pytest.mark.parametrize(
    ("reset", "says"),
    [
        ("1893456000", "after 2030-01-01 00:00 UTC"),
        (None, "in an hour"),
        ("soon", "in an hour"),
        ("9" * 18, "in an h"),
        ("9" * 12, "in an h"),
    ],
)
def test_the_limit_of_requests_tells_when(api, monkeypatch, status, token, reset, says):
    if token:
        monkeypatch.setenv("GITHUB_TOKEN", token)
    answer = publish(api)
    answer.status = status
    answer.headers = (("X-RateLimit-Remaining", "0"), *([("X-RateLimit-Reset", reset)] if reset else []))
    message = fails(rf"limit of requests is reached .{status}.: try again {says}")
    assert ("with a token in GITHUB_TOKEN, which raises the limit" in message) == (token is None)
    assert api.count("GET") == 1


def test_other_refusals(api, monkeypatch):
    answer = publish(api)
    answer.status, answer.headers = 403, (("X-RateLimit-Remaining", "41"),)
    fails(r"GitHub refuses to answer .403.: after many requests try again in some minutes")
    answer.status = 404
    fails(
        rf"there is no public release {TAG} of owner/repo: {api.url}/repos/owner/repo/releases/tags/{TAG} answers 404"
    )
    answer.status = 500
    fails("the server answers with an error .500.")
    answer.status = 401
    fails("access is refused .401.")
    asked = api.count("GET")
    monkeypatch.setenv("GH_TOKEN", "SECRET")
    answer.status = 401
    fails("the token in GITHUB_TOKEN or GH_TOKEN is refused .401.: renew it")
    assert api.headers[-1]["authorization"] == "Bearer SECRET" and api.count("GET") == asked + 1


def test_passing_faults_are_waited_out(tmp_path, api):
    publish(api, asset(api, "toy.pth", toy_bytes(tmp_path))).failures = [502, 429]
    check_toy(load(record(source=SOURCE))[0])
    assert api.count("GET") == 4


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"<html>log in</html>", "answers with a page instead of JSON: a login on the way"),
        (b"[]", "answers, but not with a release"),
        (b"{}", "answers, but not with a release"),
        (b'{"assets": [{"name": "a.pth", "size": "many"}]}', "answers, but not with a release"),
        (b'{"assets": null}', "answers, but not with a release"),
        (b'{"assets": [{"name": "a", "browser_download_url": "", "size": Infinity}]}', "answers, but not with a rel"),
    ],
)
def test_what_is_no_answer(api, answer, says):
    publish(api).sent = answer
    fails(rf"{api.url}/repos/owner/repo/releases/tags/{TAG} {says}")


@pytest.fixture
def elsewhere():
    with HubServer() as other:
        yield other


def test_the_token_is_for_the_api_alone(tmp_path, api, elsewhere, monkeypatch):
    """The asset is on another host, and that one sends to a third address, as GitHub does."""
    monkeypatch.setenv("GITHUB_TOKEN", " SECRET\n")
    data = toy_bytes(tmp_path)
    publish(api, asset(elsewhere, "toy.pth", data))
    elsewhere.add("storage/bucket", "blob", data)
    file_of(elsewhere, "toy.pth").redirect = "/storage/bucket/blob?sig=SECRET"
    check_toy(load(record(source=SOURCE))[0])
    assert [headers.get("authorization") for headers in api.headers] == ["Bearer SECRET"]
    assert [path for _, path, _ in elsewhere.requests][1] == "/storage/bucket/blob?sig=SECRET"
    assert not any("authorization" in headers for headers in elsewhere.headers)
    elsewhere.files["storage/bucket", "blob"].status = 403
    fails("access is refused .403.", source=f"{SOURCE}/toy.pth")


@pytest.mark.parametrize("same", [True, False])
def test_a_renamed_repository(tmp_path, api, elsewhere, monkeypatch, same):
    """The API redirects; to another host the token does not follow."""
    monkeypatch.setenv("GITHUB_TOKEN", "SECRET")
    new = api if same else elsewhere
    new.files["repositories/1", "releases"] = publish(new, asset(new, "toy.pth", toy_bytes(tmp_path)))
    api.add("repos/owner", f"repo/releases/tags/{TAG}", b"").redirect = f"{new.url}/repositories/1/releases"
    check_toy(load(record(source=SOURCE))[0])
    follower = next(h for h, (_, path, _) in zip(new.headers, new.requests, strict=True) if path.startswith("/reposit"))
    assert follower.get("authorization") == ("Bearer SECRET" if same else None)


def test_a_token_that_cannot_be_sent_is_not_shown(api, monkeypatch):
    monkeypatch.setenv("GITHUB_TOKEN", "SECRET\nX: SECRET")
    fails("holds no token: there are spaces")
    assert api.requests == []


@pytest.mark.parametrize("base", ["http://api.example", "ftp://api.example", "api.example"])
def test_the_api_is_asked_over_https(api, monkeypatch, base):
    monkeypatch.setenv("GITHUB_API_URL", base)
    fails(f"GITHUB_API_URL is {base}, expected an address with https://")


def test_it_is_githubs_api_that_is_asked(monkeypatch):
    monkeypatch.delenv("GITHUB_API_URL")
    asked = []
    monkeypatch.setattr(github, "_ask", lambda _, url: asked.append(url))
    fails("answers, but not with a release")
    assert asked == [f"https://api.github.com/repos/owner/repo/releases/tags/{TAG}"]


def test_an_asset_is_fetched_over_https(api):
    publish(api, asset(api, "toy.pth", b"x", browser_download_url="ftp://files.example/toy.pth"))
    fails("ftp://files.example/toy.pth, which is not https")


def test_offline(api, monkeypatch):
    monkeypatch.setenv("EO_ZOO_OFFLINE", "1")
    says = fails("offline mode is on .EO_ZOO_OFFLINE")
    assert f"Fetch {PAGE} by hand" in says and api.requests == []


@pytest.mark.parametrize("kind", ["folder", "http"])
@pytest.mark.parametrize(("name", "there"), [("", f"repo-{TAG}.pth"), ("/toy.pth", "toy.pth")])
def test_a_mirror(tmp_path, api, monkeypatch, kind, name, there):
    data = toy_bytes(tmp_path)
    place = tmp_path / "mirror" / "github.com" / "owner" / "repo" / "releases" / "download" / TAG / there
    place.parent.mkdir(parents=True)
    monkeypatch.setenv("EO_ZOO_MIRROR", str(tmp_path / "mirror") if kind == "folder" else api.url)
    path = f"github.com/owner/repo/releases/download/{TAG}/{there}"
    says = fails("there is no file|no such file", source=SOURCE + name)
    assert path in says
    place.write_bytes(data)
    api.add("github.com/owner", path.removeprefix("github.com/owner/"), data)
    check_toy(load(record(source=SOURCE + name))[0])
    assert not any(asked.startswith("/repos") for _, asked, _ in api.requests)


# ----------------------------------------------------------------------------------------- as the user gives it


def test_as_the_weights_of_a_model(tmp_path, api):
    made = eo_zoo.create_model("smarties_vit_nano")
    save_file(made.state_dict(), tmp_path / "tuned.safetensors")
    data = (tmp_path / "tuned.safetensors").read_bytes()
    publish(api, asset(api, "tuned.safetensors", data), asset(api, "other.pth", b"x"))
    source = f"{SOURCE}/tuned.safetensors"
    given = eo_zoo.create_model("smarties_vit_nano", weights=source)
    overlay = timm.create_model("smarties_vit_nano", pretrained=True, pretrained_cfg_overlay=dict(file=source))
    for model in (given, overlay):
        assert all(torch.equal(tensor, made.state_dict()[name]) for name, tensor in model.state_dict().items())
        assert model.weights_origin.source == source and model.weights_origin.verified
    assert api.count("GET") == 2
    with pytest.raises(DownloadError, match=r"holds no asset missing.pth, only tuned"):
        eo_zoo.create_model("smarties_vit_nano", weights=f"github://owner/repo/{TAG}/missing.pth")
    with pytest.raises(InputError, match="names no release"):
        eo_zoo.create_model("smarties_vit_nano", weights="github://owner/repo")


def test_where_people_find_a_release():
    assert github.parse("github://a/b.c/v1+x/d-e.pth") == github.Release("a", "b.c", "v1+x", "d-e.pth")
    assert github.parse("github://a/b/weights%2Fv1").page == "https://github.com/a/b/releases/tag/weights/v1"
    assert github.parse("github://a/b/v%231").page == "https://github.com/a/b/releases/tag/v%231"
