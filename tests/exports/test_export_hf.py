"""A plain folder: transformers loads it and computes what the packed model's dequantized weights compute."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import paretobit as pb
from tests.exported import IDS, assert_close
from tests.packed import Shelf

FAMILIES = ("llama", "llama, untied", "llama, llama3", "qwen3", "gemma3", "gemma3, linear")


def loaded(path: Path, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """Logits of IDS by transformers."""
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    with torch.inference_mode():
        return model(torch.from_numpy(IDS)).logits.float().numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_computes_the_same(shelf: Shelf, family: str, tmp_path: Path) -> None:
    packed = shelf(family, "w3g32")
    done = pb.export(str(packed.folder), to="hf", path=str(tmp_path / "plain"))
    assert done.lossy == () and done.tensors == {"float32": len(packed.names())}
    assert_close(loaded(tmp_path / "plain"), packed)


def test_what_was_rotated_is_turned_back(shelf: Shelf, tmp_path: Path) -> None:
    turned = [{"method": "rotate", "seed": 3}]
    packed = shelf.trellis("gemma3", {"mlp": "w2t", "self_attn": "w3t"}, turned)
    pb.export(str(packed.folder), to="hf", path=str(tmp_path / "plain"))
    assert_close(loaded(tmp_path / "plain"), packed)


def test_it_is_a_model_like_any_other(shelf: Shelf, tmp_path: Path) -> None:
    """Our own reader gives every value back; tokenizer and template travel along; 16 bits are what was asked for."""
    packed = shelf("llama", "w4g64")
    pb.export(str(packed.folder), to="hf", path=str(tmp_path / "plain"))
    again = pb.open_model(tmp_path / "plain")
    for name in packed.names():
        assert np.array_equal(again.read(name), packed.read(name)), name
    assert again.companions == packed.companions and "chat_template.jinja" in again.companions
    done = pb.export(str(packed.folder), to="hf", path=str(tmp_path / "half"), dtype="float16")
    assert done.notes and "rounded to float16, as asked" in done.notes[0] and done.kl_divergence is None
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    assert config["torch_dtype"] == "float16" and config["architectures"] == ["LlamaForCausalLM"]
    half = pb.open_model(tmp_path / "half")
    for name in packed.names():
        assert np.array_equal(half.read(name), packed.read(name).astype(np.float16).astype(np.float32)), name
