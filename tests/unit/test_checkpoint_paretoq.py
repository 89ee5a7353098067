"""ParetoQ's folders: latent weights with `weight_clip_val`, as its training code saves them, made here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from checkpoints import tiny_config, tiny_weights, write_tokenizer

from paretobit.arch.spec import EMBED
from paretobit.artifact import Artifact
from paretobit.checkpoint import open_model
from paretobit.errors import ParetobitError
from paretobit.tensorfile import write_arrays
from tests.commands import Command

WIDTHS = (0, 1, 2, 3, 4)


def start(w: np.ndarray, width: int) -> np.ndarray:
    """Its initial ranges."""
    most = np.abs(w).max(1, keepdims=True)
    if width == 1:
        return np.abs(w).mean(1, keepdims=True)
    return most if width in (0, 2) else most / (2 ** (width - 1) - 1)


def on_grid(w: np.ndarray, alpha: np.ndarray, width: int) -> np.ndarray:
    """What its layers multiply by."""
    if width == 1:
        return np.where(w >= 0, alpha, -alpha)
    if width in (0, 2):
        levels, shift = (1.5, 0.0) if width == 0 else (2.0, 0.5)
        x = np.clip(w / alpha, -0.99, 0.99)
        return (np.round(x * levels - shift) + shift) / levels * alpha
    top = 2 ** (width - 1) - 1
    return np.clip(np.round(w / alpha), -top - 1, top) * alpha


def folder(path: Path, width: int, **changes: object) -> Path:
    path.mkdir()
    config = {**tiny_config(tied=False), "w_bits": width, **changes}
    arrays = {}
    for name, w in tiny_weights(tiny_config(tied=False)).items():
        arrays[name] = w
        if name.endswith("_proj.weight"):
            arrays[name.removesuffix("weight") + "weight_clip_val"] = start(w, width).astype(np.float32)
    (path / "config.json").write_text(json.dumps(config))
    write_arrays(path / "model.safetensors", arrays)
    write_tokenizer(path)
    return path


@pytest.mark.parametrize("width", WIDTHS)
def test_it_is_read_packed_and_run(tmp_path: Path, command: Command, width: int) -> None:
    model = folder(tmp_path / "m", width)
    source, plain = open_model(model), tiny_weights(tiny_config(tied=False))
    done = command("quantize", model, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    packed = Artifact(tmp_path / "out")
    name = "model.layers.1.mlp.down_proj.weight"
    for name, w in plain.items():
        alpha = start(w, width).astype(np.float32) if name.endswith("_proj.weight") else None
        wanted = w if alpha is None else on_grid(w, alpha, width)
        # a scale is rounded to half precision, 2^-11 of it, and nothing else
        np.testing.assert_allclose(source.read(name), wanted, rtol=0 if alpha is None else 2.0**-11, atol=1e-7)
        np.testing.assert_array_equal(packed.read(name), source.read(name))
        np.testing.assert_array_equal(source.read(name, slice(3, 40)), source.read(name)[3:40])
    scheme = {0: "w1.58", 1: "w1", 2: "w2", 3: "w3", 4: "w4"}[width]
    schemes = {n: str(layer.scheme) for n, layer in packed.plan.layers.items()}
    assert schemes["model.layers.0.self_attn.q_proj.weight"] == scheme and schemes[EMBED] == "bf16"
    assert "w_bits" not in packed.config
    assert command("run", tmp_path / "out", "The town", "-n", 4).code == 0


def test_without_ranges_it_is_an_ordinary_model(tmp_path: Path) -> None:
    ordinary = folder(tmp_path / "m", 2, w_bits=16)
    with pytest.raises(ParetobitError, match="weight_clip_val is not part of a llama"):
        open_model(ordinary)


@pytest.mark.parametrize(("width", "message"), [(7, "w_bits is 7; hint: 0"), (-1, "w_bits is -1")])
def test_widths_it_has_not(tmp_path: Path, width: int, message: str) -> None:
    with pytest.raises(ParetobitError, match=message):
        open_model(folder(tmp_path / "m", 2, w_bits=width))


def test_ranges_of_another_matrix(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", 2)
    weights = tiny_weights(tiny_config(tied=False))
    name = "model.layers.0.self_attn.k_proj.weight_clip_val"
    for shape in ((64, 1), (32,), (32, 2)):
        write_arrays(path / "model.safetensors", {**weights, name: np.ones(shape, np.float32)})
        with pytest.raises(ParetobitError, match="k_proj.weight has 32 rows"):
            open_model(path)
    write_arrays(path / "model.safetensors", {**weights, "dream.weight_clip_val": np.ones((4, 1), np.float32)})
    with pytest.raises(ParetobitError, match="has 0 rows"):
        open_model(path)
    write_arrays(path / "model.safetensors", {**weights, name: np.full((32, 1), np.nan, np.float32)})
    with pytest.raises(ParetobitError, match="not finite"):
        open_model(path).read("model.layers.0.self_attn.k_proj.weight")
