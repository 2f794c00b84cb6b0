from __future__ import annotations

import contextlib

import pytest
from huggingface_hub import constants

from eo_zoo.weights import download
from tests.hub_server import HubServer


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """No Hub, and nothing of the user's: huggingface_hub reads its environment once, at import."""
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    with contextlib.suppress(ImportError):  # before 2.0 it does not ask its Hub who is calling
        monkeypatch.setattr("huggingface_hub.utils._detect_agent._registry", {})
    monkeypatch.setattr(download, "FIRST_WAIT", 0.01)


@pytest.fixture
def hub(monkeypatch):
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"
