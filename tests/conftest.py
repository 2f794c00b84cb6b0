from __future__ import annotations

import os
import socket
import sys

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread_each():
    # two workers on two cores; also makes timings and sums comparable between machines
    torch.set_num_threads(int(os.environ.get("EO_ZOO_TEST_THREADS", "1")))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EO_ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("EO_ZOO_MIRROR", "EO_ZOO_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


def pytest_terminal_summary(terminalreporter):
    """Show what tests recorded under "figures", also where other processes ran them."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, value in getattr(report, "user_properties", []):
                if name == "figures":
                    terminalreporter.write_line(value)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run ``eo-zoo`` in this process: (exit code, stdout, stderr), the last as one line."""
    from eo_zoo import cli

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["eo-zoo", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, " ".join(err.split())

    return call


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """A test that reaches beyond this machine fails."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to reach {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
