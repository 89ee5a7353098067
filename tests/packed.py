"""Packed models for tests: tiny decoders of every family and trait, quantized by rounding to nearest.

And the decoder that the native one must equal: the torch one in float64, with the two roundings that the native one
adds on purpose: keys and values to fp16, activations to int8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import paretobit as pb
from paretobit import trellis
from paretobit.artifact import Artifact, assemble, stored
from paretobit.compress import estimate, model
from paretobit.compress.model import Decoder
from paretobit.kv import KV
from paretobit.qtensor import QTensor
from paretobit.runtime.session import Session
from paretobit.scheme import FLOATS, Grid, parse
from paretobit.tensorfile import write_arrays
from tests.checkpoints import tiny_llama_folder
from tests.small_cache import mixed_attention

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
WINDOW = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}
GEMMA = {"query_pre_attn_scalar": 24, "sliding_window": 7, "sliding_window_pattern": 2}
FAMILIES: dict[str, tuple[str, dict]] = {
    "llama": ("llama", {}),
    "llama, untied": ("llama", {"tied": False}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, heads of 20": ("llama", {"head_dim": 20}),
    "llama, one key-value head": ("llama", {"num_key_value_heads": 1}),
    "llama, no groups": ("llama", {"num_key_value_heads": 4}),
    "llama, groups of 6": ("llama", {"num_attention_heads": 6, "num_key_value_heads": 1}),
    "llama, linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.5}}),
    "llama, llama3": ("llama", {"rope_scaling": LLAMA3}),
    "llama, yarn": ("llama", {"rope_scaling": YARN}),
    "mistral, window": ("mistral", {"sliding_window": 7, "tied": False}),
    "qwen2": ("qwen2", {}),
    "qwen2, window": ("qwen2", WINDOW),
    "qwen3": ("qwen3", {"tied": False}),
    "gemma3": ("gemma3_text", GEMMA),
    "gemma3, linear": ("gemma3_text", GEMMA | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    "gemma3, as published": ("gemma3_text", {"sliding_window_pattern": 6, "num_hidden_layers": 7}),
}


def trellis_codes(random: np.random.Generator, shape: tuple[int, int], bits: float) -> np.ndarray:
    """Any codes uint8 (out, in) of a trellis."""
    return random.integers(0, 16, shape, np.uint8) & trellis.largest_codes(shape[0], bits)[:, None]


class Shelf:
    """Makes each packed model once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: dict[tuple, Artifact] = {}
        self.count = 0

    def __call__(self, family: str, scheme: str, **changes: object) -> Artifact:
        """The blocks' matrices on `scheme`, embedding and head one step wider; `changes` go into config.json."""
        key = (family, scheme, repr(sorted(changes.items())))
        if key not in self.made:
            self.made[key] = self.quantize(*self._model(family, changes), to=scheme, method="rtn")
        return self.made[key]

    def mixed(self, family: str, schemes: Mapping[str, str]) -> Artifact:
        """Like "w4g32", but tensors whose names contain a key of `schemes` are on its value."""
        plan = self(family, "w4g32").plan
        layers = dict(plan.layers)
        for part, scheme in schemes.items():
            found = {name: replace(layer, scheme=parse(scheme)) for name, layer in layers.items() if part in name}
            assert found, part
            layers |= found
        source, where = self._model(family, {})
        (where / "plan.json").write_text(replace(plan, layers=layers).to_json())
        return self.quantize(source, where, plan=str(where / "plan.json"))

    def trellis(self, family: str, schemes: Mapping[str, str], transforms: Sequence[Mapping] = ()) -> Artifact:
        """Like `mixed`, but matrices on a trellis hold random codes, at the spread of the weights they replace; with
        the plan's `transforms`, whose bases nobody's weights were turned into: any weights are as good as others."""
        base, random = self(family, "w4g32"), np.random.default_rng(len(schemes))
        layers, arrays = dict(base.plan.layers), {}
        for name in base.names():
            scheme = next((parse(scheme) for part, scheme in schemes.items() if part in name and name in layers), None)
            if scheme is None:
                arrays |= {key: base.file.map(key) for key in base.file.tensors if key in (name, *suffixed(name))}
                continue
            layers[name], grid, shape = replace(layers[name], scheme=scheme), scheme.weight, base.shape(name)
            codes = trellis_codes(random, shape, grid.bits)
            scale = base.read(name).std(1, keepdims=True) / np.float32(trellis.deviation(grid))
            q = QTensor(codes, scale.astype(np.float16), None, grid)
            arrays |= {name + suffix: array for suffix, array in stored(q).items()}
        self.count += 1
        where = self.folder / str(self.count)
        (where / "packed").mkdir(parents=True)
        write_arrays(where / "unit.safetensors", arrays)
        plan = replace(base.plan, layers=layers, transforms=tuple(transforms))
        assemble(where / "packed", base, plan, base.manifest, [where / "unit.safetensors"])
        return Artifact(where / "packed")

    def _model(self, family: str, changes: Mapping[str, object]) -> tuple[Path, Path]:
        model_type, traits = FAMILIES[family]
        self.count += 1
        where = self.folder / str(self.count)
        return tiny_llama_folder(where / "model", model_type=model_type, **{**traits, **changes}), where

    def quantize(self, source: Path, where: Path, **options: str) -> Artifact:
        """The model in folder `source`, packed under `where`."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(estimate, "matmul_flops", lambda **how: 1e10)
            patch.setenv("PARETOBIT_CACHE", str(where / "cache"))
            pb.quantize(str(source), out=str(where / "packed"), **options)
        return Artifact(where / "packed")


def suffixed(name: str) -> list[str]:
    return [name + suffix for suffix in (".codes", ".scale", ".zero")]


def round_activations(x: Tensor, grid: Grid) -> Tensor:
    """Blocks of 64 columns of a group (80 for three levels): int8 by the largest, computed in float32 as the kernel."""
    n, block = x.shape[-1], 80 if grid.levels == 3 else 64
    group = min(grid.group or n, n)
    out = x.clone()
    for start in range(0, n, group):
        end = min(start + group, n)
        for at in range(start, end, block):
            part = x[..., at : min(at + block, end)].float()
            most = part.abs().amax(-1, keepdim=True)
            codes = torch.where(most > 0, torch.round(part * (127 / most)), 0)
            out[..., at : min(at + block, end)] = codes * (most / 127)
    return out


class Reference(Decoder):
    """The torch decoder in float64, keys and values rounded to fp16, with int8=True activations to int8 too.

    kv: how the cache keeps them instead. noise: standard deviation of what is added to every activation that a matrix
    multiplies, drawn from `seed`, in units of 2⁻²⁴ of their root mean square.
    """

    def __init__(
        self, source: Artifact, int8: bool = False, noise: float = 0.0, seed: int = 0, kv: KV | None = None
    ) -> None:
        super().__init__(source)
        self.packed, self.int8, self.noise, self.kv = source, int8, noise, kv
        self.random = torch.Generator().manual_seed(seed)

    def _load(self, name: str, rows: slice | None = None) -> Tensor:
        return super()._load(name, rows).double()

    def _spoil(self, x: Tensor, consumer: str) -> Tensor:
        size = self.noise * 2.0**-24 * x.square().mean(-1, keepdim=True).sqrt()
        x = x + size * torch.randn(x.shape, generator=self.random, dtype=x.dtype)
        grid, rotation = self.packed.schemes[consumer].weight, self.packed.rotation(consumer)
        if not self.int8 or grid.kind in FLOATS:
            return x
        if rotation is None:
            return round_activations(x, grid)
        turn = torch.from_numpy(rotation.forward(np.eye(rotation.width, dtype=np.float32))).double()
        return round_activations(x @ turn, grid) @ turn.T

    @torch.inference_mode()
    def logits(self, tokens: np.ndarray, first: int = 0) -> np.ndarray:
        plain = model._attend

        def attend(q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float) -> Tensor:
            if self.kv is None:
                return plain(q, k.half().double(), v.half().double(), window, scale)
            found = mixed_attention(q.numpy(), k.numpy(), v.numpy(), window, scale, self.kv)
            return torch.from_numpy(found)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model, "_attend", attend)
            x = self.embed(torch.from_numpy(tokens))
            for layer in range(self.arch.layers):
                x = self._through(layer, x)
        y = self._spoil(self.head_input(x[:, first:]), self.arch.head_tap.consumers[0])
        return self.multiplied_by_head(y).numpy()

    def _through(self, layer: int, x: Tensor) -> Tensor:
        consumers = {tap.name: tap.consumers[0] for tap in self.arch.taps(layer)}
        steps = self.block(layer, self.weights(layer), x)
        while True:
            try:
                tap, y, _ = next(steps)
            except StopIteration as stop:
                return stop.value
            y.copy_(self._spoil(y, consumers[tap]))


def one_by_one(session: Session, tokens: list[int]) -> np.ndarray:  # -> (tokens, vocab) float32
    """The logits of tokens that come one at a time."""
    slot = session.open()
    return np.stack([session.feed(slot, [token]) for token in tokens])
