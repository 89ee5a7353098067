"""Damaged and malicious model files: nothing but ParetobitError comes out, nothing hangs, nothing big is allocated.

A mutation may also leave the file valid (a flipped bit of a weight): then reading succeeds.
"""

from __future__ import annotations

import json
import random
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import tiny_gguf, tiny_llama_folder

from paretobit.checkpoint import open_model
from paretobit.checkpoint.gguf_header import read_header
from paretobit.errors import ParetobitError
from paretobit.runtime.tokenizer import Tokenizer
from paretobit.tensorfile import RegularFile, SafetensorsFile

MOST_MEMORY = 64 << 20  # bytes; the tiny models take 0.4 MB, their tokenizers 2 MB
MOST_SECONDS = 20  # an honest read takes 0.1
HUGE = [1 << 20, (1 << 31) - 1, 1 << 32, 1 << 60, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]


def survives(path: Path) -> ParetobitError | None:
    """Open the model and read all of it. Returns the one allowed error; any other exception fails the test."""
    start = time.monotonic()
    tracemalloc.start()
    try:
        checkpoint = open_model(path)
        for name in checkpoint.names():
            checkpoint.read(name)
        files = checkpoint.companions
        if "tokenizer.json" in files:
            Tokenizer(files).encode("The capital of France is")
        return None
    except ParetobitError as error:
        assert len(str(error)) < 2000  # hostile names must not flood the terminal
        return error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MOST_MEMORY
        assert time.monotonic() - start < MOST_SECONDS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama_folder(tmp_path_factory.mktemp("hf") / "m", "bfloat16")


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return tiny_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf").read_bytes()


@pytest.fixture
def broken(folder: Path, tmp_path: Path) -> Callable[[bytes], Path]:
    """A copy of the folder with other bytes as its safetensors file."""

    def make(content: bytes) -> Path:
        for file in folder.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        (tmp_path / "model.safetensors").write_bytes(content)
        return tmp_path

    return make


def flipped(content: bytes, rng: random.Random, most: int) -> bytes:
    """`content` with one to four random bits of its first `most` bytes flipped."""
    raw = bytearray(content)
    for _ in range(rng.randrange(1, 5)):
        raw[rng.randrange(min(most, len(raw)))] ^= 1 << rng.randrange(8)
    return bytes(raw)


def spliced(content: bytes, rng: random.Random, most: int) -> bytes:
    """A random run of the first bytes removed, doubled, or overwritten by a length that no file has."""
    at, size = rng.randrange(most), rng.randrange(1, 40)
    middle = (b"", content[at : at + size] * 2, struct.pack("<Q", rng.choice(HUGE)))[rng.randrange(3)]
    return content[:at] + middle + content[at + size :]


def header_of(content: bytes) -> dict:
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size])


def with_header(content: bytes, header: dict | str | bytes) -> bytes:
    (size,) = struct.unpack("<Q", content[:8])
    text = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


class TestSafetensors:
    @pytest.mark.parametrize("seed", range(25))
    def test_flipped_bits(self, folder: Path, broken: Callable[[bytes], Path], seed: int) -> None:
        content = (folder / "model.safetensors").read_bytes()
        survives(broken(flipped(content, random.Random(seed), 3000)))

    @pytest.mark.parametrize("seed", range(15))
    def test_spliced_headers(self, folder: Path, broken: Callable[[bytes], Path], seed: int) -> None:
        content = (folder / "model.safetensors").read_bytes()
        survives(broken(spliced(content, random.Random(seed), 2500)))

    @pytest.mark.parametrize("share", [0, 0.00002, 0.00005, 0.001, 0.01, 0.02, 0.3, 0.6, 0.99, 0.999999])
    def test_truncation(self, folder: Path, broken: Callable[[bytes], Path], share: float) -> None:
        content = (folder / "model.safetensors").read_bytes()
        assert survives(broken(content[: int(share * len(content))])) is not None

    def test_trailing_bytes(self, folder: Path, broken: Callable[[bytes], Path]) -> None:
        content = (folder / "model.safetensors").read_bytes()
        assert "belong to no tensor" in str(survives(broken(content + b"\0")))

    @pytest.mark.parametrize("length", [0, 1, 7, *HUGE])
    def test_header_lengths(self, folder: Path, broken: Callable[[bytes], Path], length: int) -> None:
        content = (folder / "model.safetensors").read_bytes()
        assert survives(broken(struct.pack("<Q", length) + content[8:])) is not None

    @pytest.mark.parametrize(
        "change",
        [
            {"dtype": "F33"}, {"dtype": None}, {"dtype": ["F32"]}, {"dtype": "I64"},
            {"shape": [-1, 64]}, {"shape": [300.0, 64]}, {"shape": [True, 64]}, {"shape": "300"}, {"shape": None},
            {"shape": [1 << 62, 1 << 62]}, {"shape": [0, 1 << 63]}, {"shape": [300, 64] + [1] * 40},
            {"shape": [[300], 64]}, {"data_offsets": [0]}, {"data_offsets": [64, 0]}, {"data_offsets": [-64, 0]},
            {"data_offsets": [0, 1 << 63]},
            {"data_offsets": [2, 38402]}, {"data_offsets": None}, {"data_offsets": [0.0, 38400.0]}, {"extra": 1},
        ],
        ids=str,
    )  # fmt: skip
    def test_wrong_entries(self, folder: Path, broken: Callable[[bytes], Path], change: dict) -> None:
        content = (folder / "model.safetensors").read_bytes()
        header = header_of(content)
        header["model.embed_tokens.weight"] |= change
        error = survives(broken(with_header(content, header)))
        assert "model.embed_tokens.weight" in str(error) or "model.layers.0" in str(error)

    @pytest.mark.parametrize(
        "header",
        [
            "[]", "{", "", "null", "{}", '{"a":1}', '{"a":{}}', '{"__metadata__":[]}', '{"__metadata__":{"a":1}}',
            '{"a":' * 50_000 + "1" + "}" * 50_000, "[" * 100_000, '{"a":' + "9" * 50_000 + "}", b'{"\xff":1}',
            '{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
            '{"a":NaN}', " {}",
        ],
        ids=lambda header: str(header)[:20],
    )  # fmt: skip
    def test_wrong_headers(self, folder: Path, broken: Callable[[bytes], Path], header: str | bytes) -> None:
        content = (folder / "model.safetensors").read_bytes()
        assert survives(broken(with_header(content, header))) is not None

    def test_overlaps_and_holes(self, tmp_path: Path) -> None:
        for second in ([2, 6], [8, 12], [0, 4]):
            entries = {
                name: {"dtype": "U8", "shape": [4], "data_offsets": at} for name, at in (("a", [0, 4]), ("b", second))
            }
            text = json.dumps(entries).encode()
            (tmp_path / "x").write_bytes(struct.pack("<Q", len(text)) + text + bytes(max(4, second[1])))
            with pytest.raises(ParetobitError, match=r"'b' starts at \d, \d was expected \(overlap or hole\)"):
                SafetensorsFile(tmp_path / "x")

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
    @pytest.mark.parametrize(
        "content", [b"", b"[]", b"{", b"[" * 100_000, b'{"weight_map":[]}', b'{"weight_map":{}}', b"\xff"]
    )
    def test_broken_json(self, broken: Callable[[bytes], Path], name: str, content: bytes) -> None:
        path = broken(b"")
        if name != "config.json":
            (path / "model.safetensors").unlink()
        (path / name).write_bytes(content)
        assert name in str(survives(path)) or "model_type" in str(survives(path))


def at(content: bytes, key: bytes) -> int:
    """Where the value of a metadata key (after its type) starts."""
    return content.index(struct.pack("<Q", len(key)) + key) + 8 + len(key) + 4


def put(content: bytes, where: int, form: str, value: int) -> bytes:
    return content[:where] + struct.pack(form, value) + content[where + struct.calcsize(form) :]


class TestGguf:
    @pytest.mark.parametrize("seed", range(25))
    def test_flipped_bits(self, gguf: bytes, tmp_path: Path, seed: int) -> None:
        (tmp_path / "m.gguf").write_bytes(flipped(gguf, random.Random(seed), 12000))
        survives(tmp_path / "m.gguf")

    @pytest.mark.parametrize("seed", range(15))
    def test_spliced_headers(self, gguf: bytes, tmp_path: Path, seed: int) -> None:
        (tmp_path / "m.gguf").write_bytes(spliced(gguf, random.Random(seed), 12000))
        survives(tmp_path / "m.gguf")

    @pytest.mark.parametrize("share", [0, 0.00001, 0.0001, 0.0002, 0.01, 0.05, 0.08, 0.1, 0.5, 0.99])
    def test_truncation(self, gguf: bytes, tmp_path: Path, share: float) -> None:
        (tmp_path / "m.gguf").write_bytes(gguf[: int(share * len(gguf))])
        assert survives(tmp_path / "m.gguf") is not None

    @pytest.mark.parametrize("value", HUGE)
    @pytest.mark.parametrize("where", ["tensors", "keys", "key length", "string", "strings", "numbers", "array type"])
    def test_lengths(self, gguf: bytes, tmp_path: Path, where: str, value: int) -> None:
        place = {
            "tensors": 8,
            "keys": 16,
            "key length": 24,
            "string": at(gguf, b"tokenizer.ggml.pre"),
            "strings": at(gguf, b"tokenizer.ggml.tokens") + 4,
            "numbers": at(gguf, b"tokenizer.ggml.token_type") + 4,
            "array type": at(gguf, b"tokenizer.ggml.tokens") - 4,
        }[where]
        (tmp_path / "m.gguf").write_bytes(put(gguf, place, "<Q", value))
        assert survives(tmp_path / "m.gguf") is not None

    @pytest.mark.parametrize(
        ("place", "form", "value", "message"),
        [
            (0, "<I", 0, "not a GGUF file"),
            (4, "<I", 1, "GGUF version 1"),
            (4, "<I", 4, "GGUF version 4"),
            (4, ">I", 3, "big-endian"),
            (8, "<Q", 0, "no token_embd.weight"),
            (16, "<Q", 0, "not a|unknown|takes|dimensions|missing"),
        ],
    )
    def test_the_start(self, gguf: bytes, tmp_path: Path, place: int, form: str, value: int, message: str) -> None:
        (tmp_path / "m.gguf").write_bytes(put(gguf, place, form, value))
        with pytest.raises(ParetobitError, match=message):
            open_model(tmp_path / "m.gguf")

    @pytest.mark.parametrize(
        ("skip", "form", "value", "message"),
        [
            (0, "<I", 0, "has 0 dimensions"),
            (0, "<I", 5, "has 5 dimensions"),
            (0, "<I", 1 << 31, "dimensions"),
            (4, "<Q", 0, "impossible shape"),
            (4, "<Q", 1 << 62, "impossible shape"),
            (4, "<Q", (1 << 64) - 1, "impossible shape"),
            (4, "<Q", 65, "rows of 65"),
            (4, "<Q", 1 << 30, "ends at|overlap or hole"),
            (12, "<Q", 1 << 39, "ends at|overlap or hole"),
            (12, "<Q", 299, "overlap or hole|has shape"),
            (20, "<I", 1234, "unknown type 1234"),
            (20, "<I", 0, "ends at|overlap or hole"),
            (24, "<Q", 32, "overlap or hole"),
            (24, "<Q", (1 << 64) - 32, "overlap or hole"),
        ],
    )
    def test_tensors(self, gguf: bytes, tmp_path: Path, skip: int, form: str, value: int, message: str) -> None:
        name = b"token_embd.weight"
        place = gguf.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)
        (tmp_path / "m.gguf").write_bytes(put(gguf, place + skip, form, value))
        with pytest.raises(ParetobitError, match=message):
            open_model(tmp_path / "m.gguf")

    def test_names_that_stand_twice(self, gguf: bytes, tmp_path: Path) -> None:
        for old, new in ((b"blk.0.attn_q", b"blk.0.attn_k"), (b"llama.block_count", b"general.alignment")):
            content = gguf.replace(old, new)
            if old.startswith(b"llama"):
                content = content.replace(b"general.architecture", b"general.architect\0\0\0")
                content = content.replace(b"llama.context_length", b"general.architect\0\0\0")
            (tmp_path / "m.gguf").write_bytes(content)
            with pytest.raises(ParetobitError, match="stands twice"):
                open_model(tmp_path / "m.gguf")

    @pytest.mark.parametrize("depth", [4, 1000, 100_000])
    def test_nested_arrays(self, tmp_path: Path, depth: int) -> None:
        array = struct.pack("<IQ", 9, 1) * depth + struct.pack("<IQ", 4, 0)
        pair = struct.pack("<Q", 1) + b"k" + struct.pack("<I", 9) + array
        (tmp_path / "m.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + pair)
        with pytest.raises(ParetobitError, match="nests arrays more than 3 deep"):
            read_header(RegularFile(tmp_path / "m.gguf"))

    def test_arrays_of_many_empty_arrays(self, tmp_path: Path) -> None:
        """Amplification: 12 bytes an empty array. The total is bounded, whatever the nesting."""
        inner = struct.pack("<IQ", 9, 1000) + struct.pack("<IQ", 8, 0) * 1000
        pair = struct.pack("<Q", 1) + b"k" + struct.pack("<I", 9) + struct.pack("<IQ", 9, 10) + inner * 10
        (tmp_path / "m.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + pair)
        assert "general.architecture" in str(survives(tmp_path / "m.gguf"))

    def test_wrong_bools_and_types(self, gguf: bytes, tmp_path: Path) -> None:
        place = at(gguf, b"tokenizer.ggml.add_bos_token")
        for content, message in (
            (put(gguf, place, "<B", 2), "neither 0 nor 1"),
            (put(gguf, place - 4, "<I", 13), "unknown value type 13"),
        ):
            (tmp_path / "m.gguf").write_bytes(content)
            with pytest.raises(ParetobitError, match=message):
                open_model(tmp_path / "m.gguf")
