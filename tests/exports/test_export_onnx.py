"""ONNX folders: ONNX Runtime computes what the packed model computes, at once, token by token and in padded batches."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import paretobit as pb
from paretobit import hardware
from paretobit.artifact import Artifact
from paretobit.compress.model import Decoder
from paretobit.errors import ParetobitError
from paretobit.exporters.onnx import session
from tests.exported import IDS, assert_close, logits
from tests.packed import FAMILIES, Shelf

SCHEMES = ("w8g32", "w8", "w4g32s", "w4g64", "w4", "w4z", "w3g16", "w2", "w1.58g32", "w1", "w6g48", "w5z", "fp32")


def exported(packed: Artifact, path: Path, **options: object) -> Path:
    done = pb.export(str(packed.folder), to="onnx", path=str(path), **options)
    assert not done.lossy
    onnx.checker.check_model(str(path / "model.onnx"))
    return path


@pytest.mark.parametrize(
    ("family", "scheme"), [*(("llama", scheme) for scheme in SCHEMES), *(("gemma3", scheme) for scheme in SCHEMES[:4])]
)
def test_onnx_runtime_computes_the_same(shelf: Shelf, family: str, scheme: str, tmp_path: Path) -> None:
    packed = shelf(family, scheme)
    run = session(exported(packed, tmp_path / "onnx"), packed.arch)
    assert_close(run(IDS)["logits"], packed)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(shelf: Shelf, family: str, tmp_path: Path) -> None:
    packed = shelf(family, "w4g32")
    assert_close(session(exported(packed, tmp_path / "onnx"), packed.arch)(IDS)["logits"], packed)


@pytest.mark.parametrize("family", ["llama", "mistral, window", "gemma3"])
def test_token_by_token_with_the_cache(shelf: Shelf, family: str, tmp_path: Path) -> None:
    """The cache that comes back goes in again; windows cut it off by position."""
    packed = shelf(family, "w4g32")
    run = session(exported(packed, tmp_path / "onnx"), packed.arch)
    before, found = None, []
    for part in np.split(IDS, [20, 21, 22, 30, 31], axis=1):
        before = run(part, before)
        found.append(before["logits"])
    assert before is not None and before["present.0.key"].shape == (2, 2, 40, 16)
    assert_close(np.concatenate(found, axis=1), packed)


def test_a_padded_batch(shelf: Shelf, tmp_path: Path) -> None:
    """Two prompts of unequal length, the shorter one filled up on its left: each as if it were alone."""
    packed = shelf("gemma3", "w4g32")
    path, arch, short = exported(packed, tmp_path / "onnx"), packed.arch, 33
    ids, mask = IDS.copy(), np.ones_like(IDS)
    ids[1, : 40 - short] = mask[1, : 40 - short] = 0
    feed = {"input_ids": ids, "attention_mask": mask, "position_ids": np.maximum(mask.cumsum(1) - 1, 0)}
    empty = np.zeros((2, arch.kv_heads, 0, arch.head_dim), np.float32)
    feed |= {f"past_key_values.{i}.{part}": empty for i in range(arch.layers) for part in ("key", "value")}
    run = onnxruntime.InferenceSession(str(path / "model.onnx"), providers=["CPUExecutionProvider"])
    found = run.run(["logits"], feed)[0]
    wanted = [Decoder(packed).logits(ids[:1])[0], Decoder(packed).logits(ids[1:, 40 - short :])[0]]
    assert np.abs(found[0] - wanted[0]).max() < 2e-5 * np.abs(wanted[0]).max()
    assert np.abs(found[1, 40 - short :] - wanted[1]).max() < 2e-5 * np.abs(wanted[1]).max()


class Rounded(Decoder):
    """The torch decoder with activations at every tap rounded to 8 bits of the largest that the text had."""

    scales: Mapping[str, float]

    def block(self, layer, weights, x, cache=None, start=0):  # type: ignore[no-untyped-def]
        steps = super().block(layer, weights, x, cache, start)
        try:
            while True:
                name, y, stream = next(steps)
                y.copy_(self.rounded(name, y))
                yield name, y, stream
        except StopIteration as stop:
            return stop.value

    def head_input(self, x: torch.Tensor) -> torch.Tensor:
        return self.rounded("head_in", super().head_input(x))

    def rounded(self, name: str, y: torch.Tensor) -> torch.Tensor:
        scale = self.scales[name] / 127
        return torch.clamp(torch.round(y / scale), -128, 127) * scale


# Without VNNI, ONNX Runtime adds pairs of products in 16 bits, which codes of 8 bits overflow: nothing of the file's.
SATURATES = platform.machine() == "x86_64" and not any("vnni" in flag for flag in hardware.cpu_flags())
OVERFLOWS = pytest.mark.xfail(SATURATES, reason="this processor has no VNNI", strict=False)


@pytest.mark.parametrize("scheme", [pytest.param("w8", marks=OVERFLOWS), "w4"])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_static_int8(shelf: Shelf, family: str, scheme: str, text: Path, tmp_path: Path) -> None:
    """A reference that rounds at the same taps differs by no more than the few roundings that fall on the other side:
    much less than all of them together move the logits."""
    packed = shelf(family, scheme)
    done = pb.export(str(packed.folder), to="onnx", path=str(tmp_path / "onnx"), int8=True, text=str(text))
    assert done.kl_divergence is not None and 0 < done.kl_divergence < 0.05 and "calibration.txt" in done.measured_on
    nodes = onnx.load(tmp_path / "onnx" / "model.onnx", load_external_data=False).graph.node
    taps = [tap for layer in range(packed.arch.layers) for tap in packed.arch.taps(layer)]
    assert sum(node.op_type == "QuantizeLinear" for node in nodes) == len(taps) + 1
    assert not any(node.op_type == "MatMulNBits" for node in nodes)
    weights = {
        x.name: onnx.numpy_helper.to_array(x) for x in onnx.load(tmp_path / "onnx" / "model.onnx").graph.initializer
    }
    scales = [weights[node.input[1]] * 127 for node in nodes if node.op_type == "QuantizeLinear"]
    reference = Rounded(packed)
    reference.scales = dict(zip([*(tap.name for tap in taps), "head_in"], map(float, scales), strict=True))
    found, wanted, exact = session(tmp_path / "onnx", packed.arch)(IDS)["logits"], reference.logits(IDS), logits(packed)
    assert np.linalg.norm(found - wanted) < 0.1 * np.linalg.norm(wanted - exact)


def test_what_it_cannot_hold(shelf: Shelf, text: Path, tmp_path: Path) -> None:
    turned = shelf.trellis("llama", {"mlp": "w2t", "self_attn": "w3t"}, [{"method": "rotate", "seed": 1}])
    out = {"to": "onnx", "path": str(tmp_path / "onnx")}
    with pytest.raises(ParetobitError, match="it is stored rotated"):
        pb.export(str(turned.folder), **out)
    with pytest.raises(ParetobitError, match="powers of two from 16 are needed"):
        pb.export(str(shelf("llama", "w4g24").folder), **out)
    done = pb.export(str(turned.folder), **out, lossy=True, text=str(text))
    assert len(done.lossy) == 15 and done.kl_divergence is not None and 0 < done.kl_divergence < 1
    assert done.tensors == {"int8": 1, "float32": 5, "int4": 14}


def test_integer_products_need_a_scale_for_the_row(shelf: Shelf, text: Path, tmp_path: Path) -> None:
    packed, out = shelf("llama", "w8g32"), {"to": "onnx", "path": str(tmp_path / "onnx"), "int8": True}
    with pytest.raises(ParetobitError, match="products of integers need one for the row"):
        pb.export(str(packed.folder), **out)
    done = pb.export(str(packed.folder), **out, text=str(text), lossy=True)
    assert done.tensors == {"int8": 15, "float32": 5} and done.kl_divergence is not None
    assert 0 < done.kl_divergence < 0.05
