"""What all tests share: a tiny model, text to calibrate on, the command line in this process, and no network."""

from __future__ import annotations

import errno
import os
import socket
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.append(str(Path(__file__).parent.parent))  # tests import tests.checkpoints, however pytest was started
from tests.commands import Command, Outcome

# How fast a machine draws examples says nothing of the code, and no test is timed.
settings.register_profile("any speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any speed")

LOCAL = ("127.0.0.1", "::1", "localhost")


@pytest.fixture(autouse=True)
def no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that asks for the network without being marked `slow` is told that there is none."""
    if "slow" in request.keywords:
        return
    connect, getaddrinfo = socket.socket.connect, socket.getaddrinfo

    def local_connect(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in LOCAL:
            raise OSError(errno.ENETUNREACH, "tests have no network")
        connect(self, address)

    def local_getaddrinfo(host: object, *arguments: object, **named: object) -> list:
        if host not in (None, *LOCAL):
            raise socket.gaierror(socket.EAI_NONAME, "tests have no network")
        return getaddrinfo(host, *arguments, **named)

    monkeypatch.setattr(socket.socket, "connect", local_connect)
    monkeypatch.setattr(socket, "getaddrinfo", local_getaddrinfo)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a two-layer model with tied embeddings and random weights. Read only."""
    from checkpoints import tiny_llama_folder

    return tiny_llama_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of more than twelve windows of 512 tokens of the tiny tokenizer. Read only."""
    from checkpoints import CORPUS

    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    path.write_text("".join(f"{i}. {CORPUS}\n" for i in range(60)))
    return path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Jobs do not measure the machine before they start, and their cache is the test's own."""
    from paretobit.compress import estimate

    monkeypatch.setattr(estimate, "matmul_flops", lambda **how: 1e10)
    monkeypatch.setenv("PARETOBIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache folder for all tests of a module: a table is measured once, as a user would have it."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def shared_cache(quick: None, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs use the module's cache instead of the test's own."""
    monkeypatch.setenv("PARETOBIT_CACHE", str(cache))


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], quick: None) -> Command:
    """Run the command line in this process: command("inspect", folder) -> Outcome."""
    from paretobit.cli import main

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Outcome(code, *capsys.readouterr())

    return run
