"""A hundred ways to spoil what a command reads: (what, kind of input, how). `test_hundred.py` tries each.

Nothing here could by luck leave a valid file: every change is to something that the format or the command needs.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.checkpoints import tiny_gguf

Damage = Callable[[Path], object]
WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
MATRIX = "model.layers.1.mlp.up_proj.weight"
RTN, GPTQ = {"scheme": "w3", "method": "rtn"}, {"scheme": "w3", "method": "gptq", "params": {"damp": "x"}}
DEEP = b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"
LATIN1 = "Été à la plage, où règne la paix. ".encode("latin-1") * 400


def change_header(path: Path, change: Callable[[dict], object]) -> None:
    """Rewrite a safetensors file's header after `change`; the data stay."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def header(change: Callable[[dict], object]) -> Damage:
    return lambda place: change_header(place / WEIGHTS, change)


def write(name: str, content: bytes) -> Damage:
    return lambda place: (place / name).write_bytes(content)


def cut(name: str, share: float) -> Damage:
    """Keep this share of a file."""

    def damage(place: Path) -> None:
        path = place / name if name else place
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    return damage


def remove(*names: str) -> Damage:
    return lambda place: [(place / name).unlink() for name in names]


def instead(name: str, make: Callable[[Path], object]) -> Damage:
    """Something else under the file's name."""

    def damage(place: Path) -> None:
        (place / name).unlink()
        make(place / name)

    return damage


def patch(at: int, new: bytes, name: str = "") -> Damage:
    """Overwrite bytes of a file, counted from its end where `at` is negative."""

    def damage(place: Path) -> None:
        path = place / name if name else place
        raw = bytearray(path.read_bytes())
        start = at if at >= 0 else len(raw) + at
        raw[start : start + len(new)] = new
        path.write_bytes(raw)

    return damage


def field(name: str, *keys: str | int, to: object = None) -> Damage:
    """Set a field of a JSON file, or take it out."""

    def damage(place: Path) -> None:
        path = place / name if name else place
        facts = json.loads(path.read_text())
        inside = facts
        for key in keys[:-1]:
            inside = inside[key]
        if to is None:
            del inside[keys[-1]]
        else:
            inside[keys[-1]] = to
        path.write_text(json.dumps(facts))

    return damage


def data(raw: bytes, name: str) -> int:
    """Where a safetensors file holds the bytes of tensor `name`."""
    (length,) = struct.unpack("<Q", raw[:8])
    return 8 + length + json.loads(raw[8 : 8 + length])[name]["data_offsets"][0]


def value(number: float) -> Damage:
    """A weight that is not finite."""

    def damage(place: Path) -> None:
        patch(data((place / WEIGHTS).read_bytes(), MATRIX) + 4 * 77, np.float32(number).tobytes(), WEIGHTS)(place)

    return damage


def infinite_scale(place: Path) -> None:
    patch(data((place / WEIGHTS).read_bytes(), MATRIX + ".scale") + 2 * 40, b"\x00\x7c", WEIGHTS)(place)


def twice(place: Path) -> None:
    """A tensor's name stands twice in the header."""
    raw = (place / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    entry = json.dumps({MATRIX: json.loads(raw[8 : 8 + length])[MATRIX]})[1:-1]
    text = raw[8 : 8 + length].rstrip()[:-1] + b"," + entry.encode() + b"}"
    (place / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def itself(path: Path) -> None:
    path.symlink_to(path.name)


def only_a_pickle(place: Path) -> None:
    (place / WEIGHTS).unlink()
    (place / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": [1.0]}))


def gguf(**changes: object) -> Damage:
    return lambda place: tiny_gguf(place, **changes)


def gguf_value_not_finite(place: Path) -> None:
    """The norms are F32 and the last tensors of a block: one value becomes infinite."""
    raw = bytearray(place.read_bytes())
    ones = raw.rfind(np.ones(1, np.float32).tobytes())
    raw[ones : ones + 4] = np.float32("inf").tobytes()
    place.write_bytes(raw)


def larger_ids(place: Path) -> None:
    """The tokenizer of a larger model: its ids are outside this one's vocabulary."""
    path = place / "tokenizer.json"
    facts = json.loads(path.read_text())
    vocab = facts["model"]["vocab"]
    facts["model"]["vocab"] = {token: i + (500 if i >= 3 else 0) for token, i in vocab.items()}
    path.write_text(json.dumps(facts))


LAYER = ("layers", MATRIX)

WEIGHT_FILES: list[tuple[str, Damage]] = [
    ("empty", write(WEIGHTS, b"")),
    ("seven bytes", cut(WEIGHTS, 0.00001)),
    ("cut in the header", cut(WEIGHTS, 0.005)),
    ("cut in the data", cut(WEIGHTS, 0.6)),
    ("a byte too many", lambda p: (p / WEIGHTS).write_bytes((p / WEIGHTS).read_bytes() + b"\0")),
    ("a header longer than the file", patch(0, struct.pack("<Q", 1 << 60), WEIGHTS)),
    ("a header that is no JSON", patch(8, b"{{{{", WEIGHTS)),
    ("a web page", write(WEIGHTS, b"<!DOCTYPE html><html>404 Not Found</html>" * 100)),
    ("a tensor that starts too early", header(lambda h: h[MATRIX]["data_offsets"].__setitem__(0, 0))),
    ("a negative offset", header(lambda h: h[MATRIX]["data_offsets"].__setitem__(0, -4))),
    ("a negative dimension", header(lambda h: h[MATRIX].update(shape=[-96, -64]))),
    ("an unknown type", header(lambda h: h[MATRIX].update(dtype="F7"))),
    ("a whole-number type", header(lambda h: h[MATRIX].update(dtype="I32"))),
    ("a transposed tensor", header(lambda h: h[MATRIX]["shape"].reverse())),
    ("a tensor under another name", header(lambda h: h.update({"model.layers.9.x": h.pop(MATRIX)}))),
    ("a name that stands twice", twice),
    ("a value that is not a number", value(float("nan"))),
    ("a value that is infinite", value(float("-inf"))),
    ("a folder", instead(WEIGHTS, Path.mkdir)),
    ("a named pipe", instead(WEIGHTS, os.mkfifo)),
    ("a link to itself", instead(WEIGHTS, itself)),
    ("no weights", remove(WEIGHTS)),
    ("a pickle", only_a_pickle),
]
INDEX_FILES: list[tuple[str, Damage]] = [
    ("empty", write(INDEX, b"")),
    ("deep", write(INDEX, DEEP)),
    ("no weight_map", field(INDEX, "weight_map")),
    ("an empty weight_map", field(INDEX, "weight_map", to={})),
    ("a list", field(INDEX, "weight_map", to=["a.safetensors"])),
    ("a shard that is a number", field(INDEX, "weight_map", MATRIX, to=7)),
    ("a path out of the folder", field(INDEX, "weight_map", MATRIX, to="../../etc/passwd.safetensors")),
    ("a shard that is missing", field(INDEX, "weight_map", MATRIX, to="model-00009.safetensors")),
    ("a lost shard", remove(SHARDS[1])),
    ("no index", remove(INDEX)),
    ("one shard twice", lambda p: shutil.copy(p / SHARDS[0], p / SHARDS[1])),
]  # fmt: skip
CONFIGS: list[tuple[str, Damage]] = [
    ("missing", remove(CONFIG)),
    ("empty", write(CONFIG, b"")),
    ("cut", cut(CONFIG, 0.7)),
    ("not UTF-8", write(CONFIG, b'{"model_type": "\xff\xfe"}')),
    ("a list", write(CONFIG, b"[1, 2]")),
    ("deep", write(CONFIG, DEEP)),
    ("no model_type", field(CONFIG, "model_type")),
    ("an unknown model_type", field(CONFIG, "model_type", to="mamba")),
    ("a width that is a text", field(CONFIG, "hidden_size", to="64")),
    ("a negative number of layers", field(CONFIG, "num_hidden_layers", to=-2)),
    ("very many layers", field(CONFIG, "num_hidden_layers", to=4000)),
    ("too many layers to be true", field(CONFIG, "num_hidden_layers", to=10**15)),
    ("heads that do not divide", field(CONFIG, "num_key_value_heads", to=3)),
    ("a huge vocabulary", field(CONFIG, "vocab_size", to=1 << 24)),
    ("an epsilon that is not a number", field(CONFIG, "rms_norm_eps", to=float("nan"))),
    ("an unknown rope", field(CONFIG, "rope_scaling", to={"rope_type": "spiral", "factor": 2.0})),
]
TOKENIZERS: list[tuple[str, Damage]] = [
    ("missing", remove("tokenizer.json")),
    ("empty", write("tokenizer.json", b"")),
    ("cut", cut("tokenizer.json", 0.5)),
    ("an empty object", write("tokenizer.json", b"{}")),
    ("binary", write("tokenizer.json", bytes(range(256)) * 10)),
    ("another model's", larger_ids),
    ("a broken tokenizer_config.json", write("tokenizer_config.json", b"{")),
    ("a generation_config.json that is a list", write("generation_config.json", b"[]")),
]
GGUFS: list[tuple[str, Damage]] = [
    ("empty", lambda p: p.write_bytes(b"")),
    ("another magic", patch(0, b"GGML")),
    ("version 99", patch(4, struct.pack("<I", 99))),
    ("big-endian", patch(4, struct.pack(">I", 3))),
    ("very many tensors", patch(8, struct.pack("<Q", 1 << 50))),
    ("very many keys", patch(16, struct.pack("<Q", 1 << 50))),
    ("a key longer than the file", patch(24, struct.pack("<Q", 1 << 40))),
    ("cut in the metadata", cut("", 0.02)),
    ("cut in the tensors", cut("", 0.8)),
    ("an unknown architecture", gguf(extra={"general.architecture": "mamba"})),
    ("no width", gguf(extra={"llama.embedding_length": None})),
    ("a strange alignment", gguf(extra={"general.alignment": 33})),
    ("a tensor too many", gguf(tensors={"blk.0.ffn_gate_exps.weight": np.zeros((4, 64), np.float32)})),
    ("a value that is infinite", gguf_value_not_finite),
    ("a text file", lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n")),
]
PLANS: list[tuple[str, Damage]] = [
    ("empty", lambda p: p.write_bytes(b"")),
    ("cut", cut("", 0.5)),
    ("another version", field("", "version", to=7)),
    ("of another model", field("", "model", to="0" * 64)),
    ("a tensor missing", field("", *LAYER)),
    ("a tensor too many", field("", "layers", "model.layers.7.mlp.up_proj.weight", to=RTN)),
    ("an unknown scheme", field("", *LAYER, "scheme", to="w7g64")),
    ("an unknown method", field("", *LAYER, "method", to="magic")),
    ("an unknown parameter", field("", *LAYER, "params", to={"damp": 1})),
    ("a parameter that is no number", field("", *LAYER, to=GPTQ)),
    ("a folder", lambda p: (p.unlink(), p.mkdir())),
]  # fmt: skip
ARTIFACTS: list[tuple[str, Damage]] = [
    ("no plan", remove("plan.json")),
    ("cut tensors", cut(WEIGHTS, 0.9)),
    ("format 1", field("paretobit.json", "format", to=1)),
    ("a plan that calls for more bits", field("plan.json", *LAYER, "scheme", to="w4g64")),
    ("an infinite scale", infinite_scale),
]
STATISTICS: list[tuple[str, Damage]] = [
    ("no manifest", remove("paretobit.json")),
    ("of another model", field("paretobit.json", "model", to="0" * 64)),
    ("a shard missing", field("paretobit.json", "of", to=2)),
    ("cut sums", cut("model.layers.0.o_in.safetensors", 0.9)),
]
TEXTS: list[tuple[str, Damage]] = [
    ("missing", lambda p: p.unlink()),
    ("empty", lambda p: p.write_bytes(b"")),
    ("blank", lambda p: p.write_text(" \n" * 9999)),
    ("too short", lambda p: p.write_text("Hello, world.\n")),
    ("Latin-1", lambda p: p.write_bytes(LATIN1)),
    ("binary", lambda p: p.write_bytes(np.random.default_rng(0).bytes(20000))),
    ("a folder", lambda p: (p.unlink(), p.mkdir())),
]


TABLES = {
    "weights": WEIGHT_FILES, "index": INDEX_FILES, "config": CONFIGS, "tokenizer": TOKENIZERS, "gguf": GGUFS,
    "plan": PLANS, "artifact": ARTIFACTS, "statistics": STATISTICS, "text": TEXTS,
}  # fmt: skip
HUNDRED = [(kind, what, damage) for kind, table in TABLES.items() for what, damage in table]
