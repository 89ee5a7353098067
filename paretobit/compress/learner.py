"""The model in training: latent float32 weights of every tensor, and the ranges of those with a grid, of which training
methods (compress/methods/) make what is stored. What it computes with is what will be packed, to the bit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paretobit.arch.spec import EMBED, FINAL_NORM, HEAD
from paretobit.artifact import float_arrays, stored
from paretobit.checkpoint.base import Checkpoint
from paretobit.compress import methods
from paretobit.compress.basis import basis_of
from paretobit.compress.model import Decoder
from paretobit.compress.shards import Whole
from paretobit.compress.units import Units
from paretobit.compress.world import World
from paretobit.planfile import Plan, taps
from paretobit.qtensor import QTensor
from paretobit.scheme import FLOATS, Grid, Scheme, parse

RANGE = " range"  # after a tensor's name: its ranges, or scales, among the parameters
HELD = "held "  # before a tensor's name: the codes held on to, among what is saved
KINDS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Learner:
    """`parameters` by name, float32, each with a gradient of its own. `source` gives what they start from.

    Of several processes each keeps some of the tensors, `owner` says who keeps which, and lends them out whenever the
    model is computed: parameters and grids are this process's, `planned` are the grids of all. rounded: the same model
    as other methods rounded it under the plan's grids; its codes and scales are what training starts with. A rotated
    matrix is trained in the basis in which it is stored.
    """

    def __init__(
        self, source: Checkpoint, plan: Plan, rounded: Units | None, device: str, world: World | None = None
    ) -> None:
        self.plan, self.arch, self._world = plan, source.arch, world or World()
        self._shapes = source.arch.shapes()
        self.owner = self._world.owners({name: math.prod(shape) for name, shape in self._shapes.items()})
        mine = [name for name in self._shapes if self.owner[name] == self._world.rank]
        self.decoder = Decoder(source, device=device, keep=False)
        layers = plan.layers.items()
        self.planned = {name: x.scheme.weight for name, x in layers if x.scheme.weight.kind not in FLOATS}
        self.grids = {name: grid for name, grid in self.planned.items() if name in mine}
        self._method = {name: methods.load(plan.layers[name].method, "train") for name in self.grids}
        found = {consumer: basis_of(plan, tap) for tap in taps(self.arch) for consumer in tap.consumers}
        self._basis = {name: found.get(name) for name in self.grids}
        self.parameters: dict[str, Tensor] = {}
        self.held: dict[str, Any] = dict.fromkeys(self.grids)
        codes: dict[str, np.ndarray | None] = {}
        for name in mine:
            weight = torch.from_numpy(source.read(name)).to(device)
            if name in self.grids:
                q, basis, layer = rounded and rounded.qtensor(name), self._basis[name], plan.layers[name]
                params = methods.make_params(layer.method, layer.params, "train")
                turned = weight if basis is None else basis.forward(weight)
                weight, alpha, codes[name] = self._method[name].begin(turned.cpu(), self.grids[name], q, params)
                self.parameters[name + RANGE] = alpha.to(device).requires_grad_()
            self.parameters[name] = weight.to(device).requires_grad_()
        self.hold({name: held for name, held in codes.items() if held is not None})
        self._ends: dict[str, Tensor] = {}

    @property
    def names(self) -> list[str]:
        """Of all processes' parameters, in one order."""
        return [*self._shapes, *(name + RANGE for name in self.planned)]

    def _of(self, name: str) -> tuple[Tensor, Tensor, Grid]:
        return self.parameters[name], self.parameters[name + RANGE], self.grids[name]

    @torch.no_grad()
    def refresh(self, names: Iterable[str] | None = None) -> None:
        """Choose anew what methods hold on to between steps, of these tensors, or of all."""
        self.held |= {name: self._method[name].hold(*self._of(name)) for name in names or self.grids}

    def hold(self, codes: dict[str, np.ndarray]) -> None:
        """Hold on to these codes, which `packed` gave, by name."""
        for name, kept in codes.items():
            self.held[name] = self._method[name].kept(kept, self.grids[name], self.parameters[name].device)

    def held_codes(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """By name, the codes that methods hold on to: what `hold` takes."""
        return {name: self.packed(name).codes for name in names if self.held[name] is not None}

    def hold_saved(self, state: Whole) -> None:
        """Hold on to the codes that a state has under HELD and their tensors' names, of this process's tensors."""
        found = {name: HELD + name for name in self.grids}
        self.hold({name: state.read_raw(kept) for name, kept in found.items() if kept in state.tensors})

    # ---- what distill.one_step computes with

    def value(self, name: str) -> Tensor:
        """A tensor as it will be stored, float32, in the model's basis."""
        made = self._own(name) if name in self.parameters else None
        return self._world.lent(made, self._shapes[name], self.owner[name])

    def _own(self, name: str) -> Tensor:
        """One of this process's tensors, as `value` gives it."""
        if name in self.grids:
            made: Tensor = self._method[name].fake(*self._of(name), self.held[name])
            basis = self._basis[name]
            return made if basis is None else basis.restored(made)
        weight, kind = self.parameters[name], KINDS[self._scheme(name).weight.kind]
        if kind == torch.float32:
            return weight
        return weight + (weight.detach().to(kind).float() - weight.detach())

    def _scheme(self, name: str) -> Scheme:
        """Of a tensor without a grid: as planned, norms and biases in bf16."""
        return self.plan.layers[name].scheme if name in self.plan.layers else parse("bf16")

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

    @torch.no_grad()
    def packed(self, name: str) -> QTensor:
        """A tensor with a grid as it will be stored."""
        made: QTensor = self._method[name].pack(*self._of(name), self.held[name])
        return made

    @torch.no_grad()
    def arrays(self) -> dict[str, np.ndarray]:
        """This process's arrays of the packed model's file."""
        found: dict[str, np.ndarray] = {}
        for name in self.parameters:
            if name in self.grids:
                found |= {name + suffix: array for suffix, array in stored(self.packed(name)).items()}
            elif not name.endswith(RANGE):
                found[name] = float_arrays(self._own(name).cpu().numpy(), self._scheme(name))[1]
        return found
