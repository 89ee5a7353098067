"""Recovery: after rounding, train what is continuous (a factor on every row's scales, and the norms) so that the packed
model's predictions come closer to the original's, on text; codes stay as they are.

Source: distillation (compress/distill.py); training scales alone end to end is EfficientQAT's second phase (Chen et
al., arXiv 2407.11062, section 3.3). A matrix with row factors m gives m ∘ (W x), so no gradient of a matrix is ever
computed: a step costs forward and backward of the packed model, forward again where memory is short, and, the first
time, forward of the original.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paretobit.arch import Arch
from paretobit.arch.spec import EMBED, FINAL_NORM, HEAD
from paretobit.artifact import float_arrays
from paretobit.checkpoint.base import Checkpoint
from paretobit.compress import moments
from paretobit.compress.backward import whole_bytes
from paretobit.compress.distill import as_predicted, halved, one_step, states_of
from paretobit.compress.model import Decoder
from paretobit.compress.units import Units
from paretobit.compress.world import World, fast_in_half, memory_free
from paretobit.errors import ParetobitError
from paretobit.planfile import Plan, is_embedding
from paretobit.progress import progress
from paretobit.scales import HALF_MAX
from paretobit.tensorfile import SafetensorsFile, write_arrays
from paretobit.work import Work

SMALL = 6e8  # parameters of a model that is held in memory whole, twice
SAVE_SECONDS = 60
SPARE = 4  # a part of the memory that is free, which may be used to be faster


@dataclass(frozen=True)
class Recipe:
    """epochs: times that every window is seen; batch: windows a step; rate: of Adam, on factors that start at 1, with a
    cosine to 0. Each bit beyond 2 halves a rate twice, as it does the squared error that is to be repaired."""

    epochs: int = 2
    batch: int = 2
    rate: float = 4e-3


@dataclass(frozen=True)
class Room:
    """What is kept where memory allows, so that nothing is computed twice. graphs: of all blocks, of a batch; states:
    what the original's head multiplies, of all windows; nbytes: what both take."""

    graphs: bool = False
    states: bool = False
    nbytes: int = 0


NOTHING_KEPT = Room()


def room(arch: Arch, recipe: Recipe, windows: np.ndarray, device: str, world: World) -> Room:
    """For windows (n, tokens), this process's share. Graphs hold on to every block's matrices: a model that is not held
    whole keeps none."""
    spare = memory_free(device) // (SPARE * world.size)
    parameters = sum(map(math.prod, arch.shapes().values()))
    of_graphs = whole_bytes(arch, recipe.batch * windows.shape[1])
    of_states = 4 * windows.size * arch.hidden
    graphs, states = parameters <= SMALL and of_graphs <= spare, of_states <= spare
    return Room(graphs, states, graphs * of_graphs + states * of_states)


class Original:
    """What a decoder's head multiplies on windows (n, tokens), computed once if `keep`. Every window by itself, so that
    an interrupted run goes on with the same bits."""

    def __init__(self, decoder: Decoder, windows: np.ndarray, keep: bool) -> None:
        self.decoder, self.windows, self.keep = decoder, windows, keep
        self._kept: dict[int, Tensor] = {}

    def states(self, which: np.ndarray) -> Tensor:  # (b,) -> (b, tokens, hidden)
        return torch.stack([self._window(int(i)) for i in which])

    def _window(self, i: int) -> Tensor:
        if i in self._kept:
            return self._kept[i]
        found = states_of(self.decoder, torch.from_numpy(self.windows[i : i + 1]))[0]
        if self.keep:
            self._kept[i] = found
        return found


class Student:
    """The packed model as rounded, with factors to be trained: 1 + `deltas[name]`, (out,) or of a norm (width,)."""

    def __init__(self, source: Checkpoint, plan: Plan, units: list[Path], device: str) -> None:
        self.plan, self.arch = plan, source.arch
        self.units = Units(source, plan, units)
        self.decoder = Decoder(source, device=device, keep=False)
        self.device = self.decoder.device
        shapes = self.arch.shapes()
        self.deltas = {
            name: torch.zeros(shape[0], device=self.device, requires_grad=True)
            for name, shape in shapes.items()
            if (len(shape) == 2 and self.units.quantized(name)) or name.endswith("norm.weight")
        }
        self._kept: dict[str, Tensor] = {}
        self._keep = sum(map(math.prod, shapes.values())) <= SMALL

    def share(self, name: str) -> float:
        """Of the recipe's rate: what a tensor's factors move by. Those of blocks and norms repair the error of all
        blocks, whatever their own share of it: they move by the blocks' mean width."""
        own = is_embedding(name) and name in self.plan.layers
        return min(1.0, 4 ** (2 - (self.plan.layers[name].scheme.weight.bits if own else self._mean_bits)))

    @cached_property
    def _mean_bits(self) -> float:
        """Of the blocks' quantized weights; 2 where there are none."""
        blocks = [name for name in self.plan.layers if self.units.quantized(name) and not is_embedding(name)]
        weights = {name: math.prod(self.arch.shapes()[name]) for name in blocks}
        bits = sum(weights[name] * self.plan.layers[name].scheme.weight.bits for name in blocks)
        return bits / sum(weights.values()) if blocks else 2.0

    def rounded(self, name: str) -> Tensor:
        """A matrix as rounded, float32 (out, in) in the model's basis; other tensors as the original's."""
        if name in self._kept:
            return self._kept[name]
        bands = self.arch.bands(name) if is_embedding(name) else (name,)
        value = torch.cat([self.units.tensor(band, self.device) for band in bands])
        if self._keep:
            self._kept[name] = value
        return value

    def norm(self, name: str) -> Tensor:
        """A trained norm's weight as the decoder takes it."""
        offset = self.arch.norm_offset
        return (self.rounded(name) + offset) * (1 + self.deltas[name]) - offset

    def weights(self, layer: int) -> dict[str, Tensor]:
        """Of a block. Row factors are not in there: `watch` applies them to what matrices give."""
        names = self.arch.block_shapes(layer)
        return {name: self.norm(name) if name.endswith("norm.weight") else self.rounded(name) for name in names}

    def watch(self, name: str, y: Tensor) -> Tensor:
        return y * (1 + self.deltas[name]) if name in self.deltas else y

    def factors(self, end: str) -> Tensor:
        """Of all rows of embedding or head: (vocab,)."""
        ones = (torch.ones(rows, device=self.device) for rows in np.diff([0, *self.arch.cuts, self.arch.vocab]))
        bands = zip(self.arch.bands(end), ones, strict=True)
        return torch.cat([one + self.deltas[name] if name in self.deltas else one for name, one in bands])

    def embed(self, ids: Tensor) -> Tensor:  # (b, t) -> (b, t, hidden)
        factor = self.factors(EMBED)[ids]
        return F.embedding(ids, self.rounded(EMBED)) * (self.arch.embed_scale * factor[..., None])

    def logits(self, x: Tensor) -> Tensor:  # (n, hidden) -> (n, vocab)
        z = self.decoder.normed(x, self.norm(FINAL_NORM))
        end = EMBED if self.arch.tied else HEAD
        return F.linear(z, self.rounded(end)) * self.factors(end)

    def arrays(self) -> dict[str, np.ndarray]:
        """What the trained factors change in the file: scales and norms."""
        found = {}
        for name, delta in self.deltas.items():
            if not self.units.quantized(name):
                words = torch.from_numpy(self.norm(name).detach().cpu().numpy()).bfloat16()
                found[name] = float_arrays(words.float().numpy(), None)[1]
                continue
            tiled = self.units.raw(f"{name}.scale")
            factor = np.ones(tiled.shape[0] * tiled.shape[2], np.float32)
            factor[: len(delta)] += delta.detach().cpu().numpy()
            scaled = tiled.astype(np.float32) * factor.reshape(tiled.shape[0], 1, tiled.shape[2])
            found[f"{name}.scale"] = np.clip(scaled, -HALF_MAX, HALF_MAX).astype(np.float16)
        return found


def run(source: Checkpoint, plan: Plan, windows: np.ndarray, units: list[Path], work: Work, recipe: Recipe,
        device: str, world: World) -> Path:  # fmt: skip
    """Train on windows (n, tokens) int64, this process's share; returns a file with the arrays that replace the units'.

    Products are of bf16 numbers where those are faster: SmolLM2 at 3 bits comes to 0.1989 nats instead of 0.1987 in a
    fifth of the time. Resumable. Several processes take as many steps as the one with the fewest windows, each with the
    sum of all gradients; the leader writes.
    """
    out, saved = work.path("recovered.safetensors"), work.path("recovery.safetensors")
    if world.least(int(out.exists())):
        return out
    student = Student(source, plan, units, device)
    parameters, half = sum(map(math.prod, source.arch.shapes().values())), fast_in_half(device)
    kept = room(source.arch, recipe, windows, device, world)
    original = Original(Decoder(source, device=device, keep=parameters <= SMALL, half=half), windows, kept.states)
    groups = [{"params": [delta], "share": student.share(name)} for name, delta in student.deltas.items()]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99), fused=True)
    count = world.least(len(windows))
    order = np.concatenate([np.random.default_rng(i).permutation(count) for i in range(recipe.epochs)])
    steps = [order[i : i + recipe.batch] for i in range(0, len(order), recipe.batch)]
    done, saved_at = 0, time.monotonic()
    if saved.exists():
        file = SafetensorsFile(saved)
        done = int(file.read_float32("step")[0])
        moments.restore(file, student.deltas, optimizer, done)
    world.wait()  # until all have read what is saved
    with progress(f"recovering {source.name}", len(steps)) as advance:
        advance(done)
        for step in range(done, len(steps)):
            moments.at_rate(optimizer, recipe.rate * (1 + math.cos(math.pi * step / len(steps))) / 2)
            optimizer.zero_grad()
            ids = torch.from_numpy(windows[steps[step]]).to(student.device)
            with halved(device, half):
                target = as_predicted(original.decoder, original.states(steps[step]))
                loss = one_step(student, target, ids, 1.0, kept.graphs)
            moments.fill(student.deltas.values())
            for delta in student.deltas.values():
                assert delta.grad is not None
                world.total(delta.grad)
            if not math.isfinite(world.sums([loss])[0]):
                raise diverged(step)
            optimizer.step()
            if not all(torch.isfinite(delta).all() for delta in student.deltas.values()):
                raise diverged(step)
            if world.leads and time.monotonic() - saved_at > SAVE_SECONDS:
                state = {"step": np.array([step + 1], np.float32), **moments.kept(student.deltas, optimizer)}
                write_arrays(saved, state)
                saved_at = time.monotonic()
            advance(1)
    if world.leads:
        write_arrays(out, student.arrays())
    world.wait()
    return out


def diverged(step: int) -> ParetobitError:
    return ParetobitError(f"recovery diverged at step {step}", hint="leave it out with --no-recover")
