"""llama.cpp itself loads what was exported and computes the same model.

It is PyPI's llama-cpp-python, compiled once into the cache folder (some 7 minutes): slow. Tolerances: from a file in
float32 llama.cpp computes in float32 but for its cache of keys and values in fp16, 2⁻¹¹ of each: 0.5 % of the logits
bounds what two to seven layers make of that, while a wrong norm, rotation or window is off by far more than 5 %. With
quantized weights it rounds activations to 8 bits as well: the divergence of its own two files, one in float32 and one
quantized, of equal weights, is what that costs it, and ours to it may be no more than 1.5 times that.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import paretobit as pb
from bench.peers.llama_cpp import Peer, peer_python
from paretobit.artifact import Artifact
from paretobit.compress.model import Decoder
from paretobit.runtime.tokenizer import Tokenizer
from tests.packed import Shelf

pytestmark = pytest.mark.slow
FAMILIES = ("llama", "llama, biases", "llama, linear", "llama, llama3", "llama, yarn", "qwen2")
PROMPTS = np.random.default_rng(1).integers(3, 300, (12, 48))
WIDE = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}  # rows of the types of 256
QUANTIZED = {
    "w8g32": "Q8_0", "w4g32": "Q5_0", "w4g64s": "Q4_0", "w2": "Q2_K", "w3": "Q3_K", "w4z": "Q4_K", "w5z": "Q5_K",
    "w6": "Q6_K", "w1.58": "TQ2_0",
}  # fmt: skip


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    with Peer(peer_python(None)) as found:
        yield found


def theirs(peer: Peer, path: Path, prompts: np.ndarray = PROMPTS) -> np.ndarray:
    """Logits after the last token of each prompt."""
    peer.call("load", str(path), 1, prompts.shape[1] + 16)
    return np.array([peer.call("logits", [int(i) for i in prompt]) for prompt in prompts], np.float32)


def ours(packed: Artifact, prompts: np.ndarray = PROMPTS) -> np.ndarray:
    return Decoder(packed).logits(prompts, prompts.shape[1] - 1)[:, 0]


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Mean KL of softmax q to softmax p, nats."""
    a, b = (x.astype(np.float64) - np.logaddexp.reduce(x.astype(np.float64), -1, keepdims=True) for x in (p, q))
    return float((np.exp(a) * (a - b)).sum(-1).mean())


def written(packed: Artifact, path: Path) -> Path:
    pb.export(str(packed.folder), to="gguf", path=str(path))
    return path


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", [*FAMILIES, "qwen3", "gemma3, as published"])
def test_the_model_is_the_same(shelf: Shelf, peer: Peer, family: str, tied: bool, tmp_path: Path) -> None:
    packed = shelf(family, "fp32", tied=tied)
    found, wanted = theirs(peer, written(packed, tmp_path / "m.gguf")), ours(packed)
    assert np.linalg.norm(found - wanted) < 5e-3 * np.linalg.norm(wanted)


@pytest.mark.parametrize("scheme", QUANTIZED)
@pytest.mark.parametrize("family", ["llama", "gemma3, as published"])
def test_the_weights_are_the_same(shelf: Shelf, peer: Peer, family: str, scheme: str, tmp_path: Path) -> None:
    packed = shelf(family, scheme, **WIDE, query_pre_attn_scalar=64)
    done = pb.export(str(packed.folder), to="gguf", path=str(tmp_path / "m.gguf"))
    assert QUANTIZED[scheme] in done.tensors and not done.lossy
    rounded = theirs(peer, tmp_path / "m.gguf")
    pb.export(str(packed.folder), to="hf", path=str(tmp_path / "plain"))
    pb.quantize(str(tmp_path / "plain"), to="fp32", out=str(tmp_path / "whole"))
    whole = theirs(peer, written(Artifact(tmp_path / "whole"), tmp_path / "whole.gguf"))
    exact = ours(packed)
    assert divergence(exact, rounded) < 1.5 * divergence(whole, rounded)
    assert divergence(exact, whole) < 0.2 * divergence(whole, rounded)


@pytest.mark.parametrize("name", ["demo:smollm2", "demo:gemma3"])
def test_a_real_model(peer: Peer, name: str, tmp_path: Path) -> None:
    """Its tokenizer too: llama.cpp's tokens of a text are the model's own."""
    pb.quantize(name, to="w8g32", method="rtn", out=str(tmp_path / "packed"))
    packed = Artifact(tmp_path / "packed")
    path = written(packed, tmp_path / "m.gguf")
    text = "The capital of France is Paris.\n\n  It's 2026: x += 12345; été, 漢字 🚀 <|im_start|>user"
    tokens = Tokenizer(packed.companions).encode(text)
    prompts = np.array([tokens[i : i + 16] for i in range(8)])
    found = theirs(peer, path, prompts)
    assert peer.call("tokenize", text) == tokens
    pb.export(str(packed.folder), to="hf", path=str(tmp_path / "plain"))
    pb.quantize(str(tmp_path / "plain"), to="fp32", out=str(tmp_path / "whole"))
    whole = theirs(peer, written(Artifact(tmp_path / "whole"), tmp_path / "whole.gguf"), prompts)
    cost, own = divergence(ours(packed, prompts), found), divergence(whole, found)
    print(f"{name}: KL of llama.cpp's logits to ours {cost:.6f}, to its own from float32 {own:.6f}")
    assert cost < 1.5 * own
