"""GGUF files: read back to the bit by our reader, tokenizer and metadata complete, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import paretobit as pb
from paretobit.checkpoint.gguf_tokenizer import recover
from paretobit.errors import ParetobitError
from paretobit.runtime.tokenizer import Tokenizer
from tests.checkpoints import CORPUS
from tests.commands import Command
from tests.packed import YARN, Shelf

TEXTS = (CORPUS, " two  spaces", "12345 O'Neill's\n\n\tété 漢字 🚀", "<|im_start|>user\nHi<|im_end|>\n", "")
FAMILIES = ("llama", "llama, untied", "llama, biases", "llama, linear", "llama, llama3", "llama, yarn", "qwen2")


@pytest.mark.parametrize("family", FAMILIES)
def test_our_reader_gives_every_value_back(shelf: Shelf, family: str, tmp_path: Path) -> None:
    packed = shelf(family, "w4g32")
    done = pb.export(str(packed.folder), to="gguf", path=str(tmp_path / "m.gguf"))
    assert done.lossy == () and done.kl_divergence is None
    again = pb.open_model(tmp_path / "m.gguf")
    assert again.arch == packed.arch
    for name in packed.names():
        assert np.array_equal(again.read(name), packed.read(name)), name
    ours, theirs = Tokenizer(packed.companions), Tokenizer(again.companions)
    for text in TEXTS:
        assert theirs.encode(text) == ours.encode(text)
    assert theirs.eos_ids[0] == ours.eos_ids[0] and theirs.bos_id == ours.bos_id
    assert again.companions["chat_template.jinja"] == packed.companions["chat_template.jinja"]


def test_gemma_with_its_windows(shelf: Shelf, tmp_path: Path) -> None:
    """Norms come back within the rounding of adding 1, which is how the model computes with them."""
    packed = shelf("gemma3, as published", "w8g32")
    pb.export(str(packed.folder), to="gguf", path=str(tmp_path / "m.gguf"))
    again = pb.open_model(tmp_path / "m.gguf")
    assert (again.arch.windows, again.arch.ropes) == (packed.arch.windows, packed.arch.ropes)
    for name in packed.names():
        one = np.float32(name.endswith("norm.weight"))
        assert np.array_equal(again.read(name) + one, packed.read(name) + one), name


def test_a_sentencepiece_tokenizer_comes_back(shelf: Shelf, tmp_path: Path) -> None:
    """Pieces with scores: the file's own tokenizer, read, written and read again, cuts text alike."""
    files = recover(sentencepiece(), "pieces")
    folder = copied(shelf("gemma3, as published", "w8g32").folder, tmp_path / "packed", files)
    pb.export(str(folder), to="gguf", path=str(tmp_path / "m.gguf"))
    again = pb.open_model(tmp_path / "m.gguf")
    ours, theirs = Tokenizer(files), Tokenizer(again.companions)
    for text in (*TEXTS, "the capital of the town"):
        assert theirs.encode(text) == ours.encode(text), text
        assert theirs.decode(theirs.encode(text)) == text
    assert theirs.bos_id == ours.bos_id == 2 and theirs.eos_ids == ours.eos_ids
    kept = again.header.metadata
    assert kept["tokenizer.ggml.token_type"][:7].tolist() == [3, 3, 3, 2, 3, 3, 6]


def sentencepiece() -> dict[str, object]:
    """Metadata of 290 pieces: special ones, all bytes, words in pieces with falling scores."""
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    types = [3, 3, 3, 2, 3, 3] + [6] * 256
    pieces += [f"<0x{byte:02X}>" for byte in range(256)]
    words = ["th", "▁th", "▁the", "he", "▁to", "wn", "▁town", "ca", "▁ca", "pi", "▁capi", "ta", "l", "t", "h", "e"]
    words += ["▁", "o", "w", "n", "c", "a", "p", "i", "f", "▁o"]
    types += [1] * len(words)
    scores = [0.0] * 262 + [-float(i) for i in range(len(words))]
    names = {"bos": 2, "eos": 1, "unknown": 3, "padding": 0}
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [*pieces, *words],
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.add_space_prefix": False,
        **{f"tokenizer.ggml.{name}_token_id": i for name, i in names.items()},
    }


def copied(folder: Path, to: Path, files: dict[str, bytes]) -> Path:
    """A packed model with these files beside its tensors."""
    shutil.copytree(folder, to)
    for name, content in files.items():
        (to / name).write_bytes(content)
    return to


def test_what_no_type_holds_is_refused_unless_lossy(shelf: Shelf, text: Path, tmp_path: Path, command: Command) -> None:
    packed = shelf.trellis("llama", {"mlp": "w2t", "self_attn": "w3t"}, [{"method": "rotate", "seed": 1}])
    out = ("export", packed.folder, "--to", "gguf", "-o", tmp_path / "m.gguf")
    told = command(*out).error
    assert "on w6g32 exactly: it is stored rotated" in told and "(15 tensors in all)" in told
    assert "add --lossy" in told and not list(tmp_path.glob("m.gguf*"))
    done = command(*out, "--lossy", "--text", text, "--json")
    found = json.loads(done.out)
    assert found["tensors"] == {"Q8_0": 1, "Q4_0": 14, "F32": 5} and len(found["lossy"]) == 15
    assert 0 < found["kl_divergence"] < 1 and "calibration.txt" in found["measured_on"]
    again = pb.open_model(tmp_path / "m.gguf")
    for name in packed.names():  # four bits over 32 columns: the error of rounding, and no more than that
        gap = np.linalg.norm(again.read(name) - packed.read(name)) / np.linalg.norm(packed.read(name))
        assert gap < 0.12, name
    shown = command(*out, "--lossy", "--text", text, "--overwrite").out
    assert "rounded once more" in shown and "this costs a KL divergence of" in shown


@pytest.mark.parametrize(
    ("family", "changes", "what"),
    [
        ("mistral, window", {}, "some layers see 7 positions only"),
        ("qwen2, window", {}, "some layers see 7 positions only"),
        ("gemma3", {"query_pre_attn_scalar": 16}, "some layers see 7 positions only"),
        ("gemma3", {}, "attention is scaled by"),
        ("llama", {"rope_scaling": YARN | {"attention_factor": 1.5}}, "YaRN has a temperature"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise(
    shelf: Shelf, family: str, changes: dict, what: str, tmp_path: Path
) -> None:
    packed = shelf(family, "w8g32", **changes)
    with pytest.raises(ParetobitError, match=what):
        pb.export(str(packed.folder), to="gguf", path=str(tmp_path / "m.gguf"))


@pytest.mark.parametrize("change", ["cut", "normalizer", "kind"])
def test_a_tokenizer_that_gguf_has_no_words_for(shelf: Shelf, change: str, tmp_path: Path) -> None:
    packed = shelf("llama", "w8g32")
    tokenizer = json.loads(packed.companions["tokenizer.json"])
    if change == "cut":
        tokenizer["pre_tokenizer"]["pretokenizers"].insert(0, {"type": "Split", "pattern": {"String": "e"},
                                                               "behavior": "Isolated", "invert": False})  # fmt: skip
    elif change == "normalizer":
        tokenizer["normalizer"] = {"type": "Lowercase"}
    else:
        tokenizer["pre_tokenizer"] = {"type": "Whitespace"}
    folder = copied(packed.folder, tmp_path / "packed", {"tokenizer.json": json.dumps(tokenizer).encode()})
    with pytest.raises(ParetobitError, match="which GGUF cannot express"):
        pb.export(str(folder), to="gguf", path=str(tmp_path / "m.gguf"))
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]
