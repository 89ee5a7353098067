"""For training loops of one's own: a model on its grids as a torch module, and from there to a packed model.

model = pb.prepare("model-dir", "w2")
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
loss = torch.nn.functional.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
loss.backward(); optimizer.step()
pb.save_quantized(model, "out")
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from paretobit import __version__
from paretobit.arch.spec import EMBED, HEAD
from paretobit.artifact import FORMAT, Artifact, assemble, describe
from paretobit.checkpoint import open_model
from paretobit.checkpoint.base import Checkpoint
from paretobit.compress import methods
from paretobit.compress.learner import Learner
from paretobit.compress.model import finish
from paretobit.errors import ParetobitError
from paretobit.planfile import FULL, Plan, is_embedding, uniform
from paretobit.scheme import FLOATS
from paretobit.tensorfile import write_arrays
from paretobit.work import Work

PARETOQ = "paretoq"


class Trainable(nn.Module):
    """`source` with every matrix on its grid under `plan`. Parameters are latent weights, ranges and norms, float32."""

    def __init__(self, source: Checkpoint, plan: Plan, device: str = "cpu") -> None:
        super().__init__()
        self.source, self.plan = source, plan
        self.learner = Learner(source, plan, None, device)
        for name, value in self.learner.parameters.items():
            held = nn.Parameter(value.detach())
            self.learner.parameters[name] = held
            self.register_parameter(name.replace(".", "/"), held)  # a dot would be a module's

    def refresh(self) -> None:
        """To be called every few steps where matrices are on a trellis: search their paths anew."""
        self.learner.refresh()

    def forward(self, ids: Tensor) -> Tensor:  # (b, t) int64 -> (b, t, vocab) float32
        learner = self.learner
        ends = {name: learner.value(name) for name in ((EMBED,) if learner.arch.tied else (EMBED, HEAD))}
        with learner.holding(ends):
            x = learner.embed(ids)
            for layer in range(learner.arch.layers):
                x = finish(learner.decoder.block(layer, learner.weights(layer), x))
            return learner.logits(x)


def prepare(model: str, to: str, embed: str | None = None, start: str = "mean", device: str = "cpu") -> Trainable:
    """MODEL on the grid `to` (embedding and head on `embed`, by default one step wider), ready to be trained.

    start: what ranges begin with, see paretoq.Params. Raises ParetobitError on a bad model, or a grid not trainable.
    """
    source = open_model(model)
    plan = uniform(source.arch, source.hash, to, embed, ("",) * 3, {})
    return Trainable(source, trained(plan, {PARETOQ: {"start": start}}), device)


def trained(plan: Plan, params: Mapping[str, Mapping[str, object]]) -> Plan:
    """The plan with every matrix trained by the method that suits its grid, with that method's params.

    Raises ParetobitError on a grid that none trains, naming a tensor; of the blocks first, whose grid was asked for.
    """
    layers = {}
    for name, layer in sorted(plan.layers.items(), key=lambda item: is_embedding(item[0])):
        grid = layer.scheme.weight
        method = PARETOQ if grid.kind in FLOATS else methods.trainer(grid)
        if method is None:
            fitting = f"w{grid.bits:g}" + (f"g{grid.group}s" if grid.group else "")
            raise ParetobitError(f"{name} cannot be trained on {layer.scheme}", hint=f"train it on {fitting}")
        layers[name] = replace(layer, method=method, params=params.get(method, {}))
    return replace(plan, layers={name: layers[name] for name in plan.layers})


def save_quantized(model: Trainable, out: str, overwrite: bool = False) -> Artifact:
    """Pack what `model` has learned into the folder `out`; its weights are what `model` computes with, to the bit.

    Raises ParetobitError on values that are not finite, and where something else is in the way.
    """
    for name, value in model.learner.parameters.items():
        if not torch.isfinite(value).all():
            raise ParetobitError(f"{name} is not finite", hint="train with a smaller learning rate")
    source = model.source
    facts = {"format": FORMAT, "model": source.hash, "inputs": FULL, "version": __version__, "training": "of one's own"}
    work = Work(Path(out), "model", facts)
    work.finished(overwrite)
    with work.open(overwrite):
        model.learner.refresh()
        unit = work.path("trained.safetensors")
        write_arrays(unit, model.learner.arrays())
        manifest = describe(source, facts, {"source": "none"}, [])
        with work.publish() as folder:
            assemble(folder, source, model.plan, manifest, [unit])
    return Artifact(Path(out))
