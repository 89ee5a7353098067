"""One real `w8g32` model in every format, each loaded by what it is for: the logits agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import paretobit as pb
from paretobit.artifact import Artifact
from paretobit.compress.model import Decoder
from paretobit.exporters.onnx import session
from paretobit.runtime.tokenizer import Tokenizer
from tests.checkpoints import CORPUS

pytestmark = pytest.mark.slow


def by_transformers(path: Path, ids: np.ndarray) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.inference_mode():
        return model(torch.from_numpy(ids)).logits.numpy()


@pytest.mark.parametrize("name", ["demo:smollm2", "demo:gemma3"])
def test_formats_agree(name: str, tmp_path: Path) -> None:
    """At default options: compressed-tensors keeps embedding and norms in float16, which may cost 0.05 of a logit."""
    pb.quantize(name, to="w8g32", method="rtn", out=str(tmp_path / "packed"))
    packed, found = Artifact(tmp_path / "packed"), {}
    ids = np.array([Tokenizer(packed.companions).encode(CORPUS)])
    for form in ("hf", "compressed-tensors", "gguf", "onnx"):
        path = tmp_path / ("m.gguf" if form == "gguf" else form)
        assert not pb.export(str(packed.folder), to=form, path=str(path)).lossy
        if form == "gguf":
            found[form] = Decoder(pb.open_model(path)).logits(ids)
        elif form == "onnx":
            found[form] = session(path, packed.arch)(ids)["logits"]
        else:
            found[form] = by_transformers(path, ids)
    exact = Decoder(packed).logits(ids)
    for form, logits in found.items():
        limit = 0.05 if form == "compressed-tensors" else 2e-5 * np.abs(exact).max()
        assert np.abs(logits - exact).max() < limit, form
    assert np.ptp([found[form] for form in ("hf", "compressed-tensors", "gguf")], axis=0).max() < 0.05
