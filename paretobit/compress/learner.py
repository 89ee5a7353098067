"""The model in training: latent float32 weights of every tensor, and the ranges of those with a grid (compress/methods/
paretoq.py). What it computes with is what will be packed, to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paretobit.arch.spec import EMBED, FINAL_NORM, HEAD
from paretobit.artifact import float_arrays, stored
from paretobit.checkpoint.base import Checkpoint
from paretobit.compress.grid import dequant
from paretobit.compress.methods import paretoq
from paretobit.compress.model import Decoder
from paretobit.compress.units import Units
from paretobit.planfile import Plan
from paretobit.scheme import FLOATS, Grid, parse

WITHIN = 0.499  # of a step: how far a latent weight may start from the level it was rounded to
RANGE = " range"  # after a tensor's name: its ranges among the parameters
KINDS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Learner:
    """`parameters` by name, float32, each with a gradient of its own. `source` gives what they start from.

    rounded: the same model as another method rounded it under the plan's grids; its codes and scales are what training
    starts with. Latent weights are then the source's, as near as these codes allow.
    """

    def __init__(self, source: Checkpoint, plan: Plan, rounded: Units | None, start: str, device: str) -> None:
        self.plan, self.arch = plan, source.arch
        self.decoder = Decoder(source, device=device, keep=False)
        self.grids: dict[str, Grid] = {
            name: layer.scheme.weight for name, layer in plan.layers.items() if layer.scheme.weight.kind not in FLOATS
        }
        self.parameters: dict[str, Tensor] = {}
        for name in self.arch.shapes():
            weight, alpha = torch.from_numpy(source.read(name)), None
            if name in self.grids:
                if rounded is None:
                    alpha = paretoq.initial(weight, self.grids[name], start)
                else:
                    weight, alpha = _beside(weight, rounded, name, self.grids[name])
                self.parameters[name + RANGE] = alpha.to(device).requires_grad_()
            self.parameters[name] = weight.to(device).requires_grad_()
        self._ends: dict[str, Tensor] = {}

    # ---- what distill.one_step computes with

    def value(self, name: str) -> Tensor:
        """A tensor as it will be stored, float32."""
        weight = self.parameters[name]
        if name in self.grids:
            return paretoq.fake(weight, self.parameters[name + RANGE], self.grids[name])
        kind = self._kind(name)
        if kind == torch.float32:
            return weight
        return weight + (weight.detach().to(kind).float() - weight.detach())

    def _kind(self, name: str) -> torch.dtype:
        """Of a tensor without a grid: as planned, norms and biases in bf16."""
        layer = self.plan.layers.get(name)
        return KINDS[layer.scheme.weight.kind] if layer else torch.bfloat16

    def weights(self, layer: int) -> dict[str, Tensor]:
        return {name: self.value(name) for name in self.arch.block_shapes(layer)}

    def watch(self, name: str, y: Tensor) -> Tensor:
        return y

    def embed(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self._ends[EMBED]) * self.arch.embed_scale

    def logits(self, x: Tensor) -> Tensor:
        z = self.decoder.normed(x, self.value(FINAL_NORM))
        return F.linear(z, self._ends[EMBED if self.arch.tied else HEAD])

    @contextmanager
    def holding(self, ends: dict[str, Tensor]) -> Iterator[None]:
        """Compute with these as embedding and head."""
        self._ends = ends
        try:
            yield
        finally:
            self._ends = {}

    @contextmanager
    def ends(self) -> Iterator[None]:
        """Hold embedding and head as stored for all that one step computes; then pass their gradients on."""
        with torch.enable_grad():
            made = {name: self.value(name) for name in ((EMBED,) if self.arch.tied else (EMBED, HEAD))}
        held = {name: value.detach().requires_grad_() for name, value in made.items()}
        with self.holding(held):
            yield
        for name, value in held.items():
            if value.grad is not None:
                made[name].backward(value.grad)

    # ---- what it has learned

    def codes(self, name: str) -> Tensor:
        """uint8 (out, in) of a tensor with a grid."""
        with torch.no_grad():
            alpha = self.parameters[name + RANGE]
            return paretoq.codes(self.parameters[name], alpha, self.grids[name]).to(torch.uint8)

    @torch.no_grad()
    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays of the packed model's file."""
        found: dict[str, np.ndarray] = {}
        for name, value in self.parameters.items():
            if name in self.grids:
                q = paretoq.pack(value, self.parameters[name + RANGE], self.grids[name])
                found |= {name + suffix: array for suffix, array in stored(q).items()}
            elif not name.endswith(RANGE):
                layer = self.plan.layers.get(name)
                scheme = layer.scheme if layer else parse("bf16")
                found[name] = float_arrays(self.value(name).cpu().numpy(), scheme)[1]
        return found


def _beside(weight: Tensor, rounded: Units, name: str, grid: Grid) -> tuple[Tensor, Tensor]:
    """(latent weights, ranges) that round to what another method made of `weight`."""
    q = rounded.qtensor(name)
    scale = paretoq.spread(torch.from_numpy(q.scale.astype(np.float32)), grid, weight.shape[1])
    level = dequant(q)
    least = -WITHIN * scale.abs()
    return level + (weight - level).clamp(least, -least), paretoq.of_scale(q.scale.astype(np.float32), grid)
