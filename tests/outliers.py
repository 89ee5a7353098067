"""A tiny model that has learned its text, and functions with outliers planted in activations or keys."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from paretobit.arch import resolve
from paretobit.checkpoint import open_model
from paretobit.compress.model import Decoder
from paretobit.runtime.tokenizer import Tokenizer
from paretobit.tensorfile import TensorWriter
from tests.checkpoints import CORPUS, tiny_config, tiny_llama_folder, write_tokenizer

WINDOW, BATCH, STEPS, RATE = 64, 6, 80, 6e-3
TIMES = 256.0  # a power of two: planting changes no bit of the function where norms have no offset


def write_model(path: Path, config: dict, weights: dict[str, np.ndarray]) -> Path:
    """A Hugging Face folder with these float32 weights."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    with TensorWriter(path / "model.safetensors", {n: ("F32", w.shape) for n, w in weights.items()}) as writer:
        for name, value in weights.items():
            writer.write(name, value)
    write_tokenizer(path)
    return path


def learned(path: Path, model_type: str = "llama") -> Path:
    """A folder with a model that says CORPUS by heart, more or less: its perplexity is far below the vocabulary's."""
    config = tiny_config(model_type, num_hidden_layers=2)
    rng, arch = np.random.default_rng(0), resolve(config)
    weights = {
        name: torch.tensor(rng.standard_normal(shape) * shape[-1] ** -0.5, dtype=torch.float32)
        if len(shape) == 2
        else torch.full(shape, 1.0 - arch.norm_offset)
        for name, shape in arch.shapes().items()
    }
    seed = write_model(path.with_suffix(".seed"), config, {name: w.numpy() for name, w in weights.items()})
    source = open_model(str(seed))
    ids = torch.tensor(Tokenizer(source.companions).encode(CORPUS * 8, add_special=False))
    decoder = Decoder(source)
    decoder._kept = {name: w.requires_grad_() for name, w in weights.items()}
    optimizer = torch.optim.Adam(weights.values(), RATE)
    for step in range(STEPS):
        starts = rng.integers(0, len(ids) - WINDOW - 1, BATCH)
        x = torch.stack([ids[s : s + WINDOW + 1] for s in starts])
        loss = F.cross_entropy(decoder.head(decoder.hidden(x[:, :-1])).flatten(0, 1), x[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / STEPS)
        optimizer.step()
    shutil.rmtree(seed)
    return write_model(path, config, {name: w.detach().numpy() for name, w in weights.items()})


def planted(path: Path, model: Path, channels: int = 2, times: float = TIMES) -> Path:
    """`model` with a few channels behind each of its blocks' norms `times` as large: norm × s, columns ÷ s."""
    source = open_model(str(model))
    weights = {name: source.read(name) for name in source.names()}
    rng, offset = np.random.default_rng(1), np.float32(source.arch.norm_offset)
    for layer in range(source.arch.layers):
        for tap in source.arch.taps(layer):
            if tap.kind == "norm":
                chosen = rng.choice(tap.width, channels, replace=False)
                norm = weights[tap.producer]
                norm[chosen] = (norm[chosen] + offset) * np.float32(times) - offset
                for name in tap.consumers:
                    weights[name][:, chosen] /= np.float32(times)
    return write_model(path, source.config, weights)


def planted_keys(folder: Path, times: float) -> tuple[Path, Path]:
    """A tiny llama with random weights, and the same function with keys `times` as large in two channels of every head,
    which rotary embedding turns into each other, and queries so much smaller there. `times` is a power of two."""
    plain = tiny_llama_folder(folder / "plain", head_dim=64, num_key_value_heads=4)
    source = open_model(str(plain))
    weights, dim = {name: source.read(name) for name in source.names()}, source.arch.head_dim
    for layer in range(source.arch.layers):
        for part, scale in (("k_proj", times), ("q_proj", 1 / times)):
            heads = weights[f"model.layers.{layer}.self_attn.{part}.weight"].reshape(-1, dim, source.arch.hidden)
            heads[:, [5, 5 + dim // 2]] *= np.float32(scale)
    return plain, write_model(folder / "outliers", source.config, weights)
