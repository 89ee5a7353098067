"""Block by block, before everything at once: each block learns to give what the original's block gives.

Source: the first phase of EfficientQAT (Chen et al., arXiv 2407.11062). Neither the head nor any other block takes part
in a step, so a step costs little and its graph is one block's; what earlier blocks get wrong is in a block's inputs,
for it to make up for. Unlike there, a token's squared error counts by the size of the original's state, as the next
norm will see it: otherwise the few tokens of huge states would be all that is learned.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from paretobit.arch.spec import EMBED, HEAD
from paretobit.compress import moments
from paretobit.compress.distill import halved
from paretobit.compress.learner import HELD, RANGE, Learner
from paretobit.compress.model import Decoder, finish
from paretobit.compress.shards import Shards
from paretobit.compress.world import World
from paretobit.errors import ParetobitError
from paretobit.progress import progress

FACTS = "facts"


@dataclass(frozen=True)
class Blocks:
    """batch: windows a step; passes: times that every block sees all of them; rate: of AdamW, along a cosine to 0 for
    every block; refresh: steps after which methods choose anew what they hold on to."""

    batch: int
    passes: int = 4
    rate: float = 2e-3
    refresh: int = 8


@dataclass(frozen=True)
class Trained:
    """A block's relative squared error when its training began and when it ended, and the seconds in between."""

    layer: int
    before: float
    after: float
    seconds: float


@dataclass
class Blockwise:
    """All blocks of `learner`, one after the other. windows: int64 (n, tokens), this process's share; shares: of the
    rate, by parameter; half: products are of bf16 numbers; shards: what finished blocks are kept in."""

    learner: Learner
    teacher: Decoder
    windows: np.ndarray
    shares: Mapping[str, float]
    recipe: Blocks
    half: bool
    shards: Shards
    world: World

    def __post_init__(self) -> None:
        self.device = self.learner.decoder.device
        count = self.world.least(len(self.windows)) // self.recipe.batch
        self.batches = torch.from_numpy(self.windows[: count * self.recipe.batch]).to(self.device).chunk(count)

    @torch.no_grad()
    def trained(self) -> list[Trained]:
        """What became of every block, in order; those that a killed run has finished are read.

        Raises ParetobitError, naming the block, where its error is not finite.
        """
        learner, teacher, arch, found = self.learner, self.teacher, self.learner.arch, []
        ends = {name: learner.value(name) for name in ((EMBED,) if arch.tied else (EMBED, HEAD))}
        with learner.holding(ends):
            x = [learner.embed(ids) for ids in self.batches]
        wanted = [teacher.embed(ids) for ids in self.batches]
        with progress("training block by block", arch.layers) as show:
            for layer in range(arch.layers):
                wanted = self._through(teacher, layer, teacher.weights(layer), wanted)
                found.append(self._known(layer) or self._block(layer, x, wanted))
                x = self._through(learner.decoder, layer, learner.weights(layer), x)
                show(1)
        return found

    def _through(self, decoder: Decoder, layer: int, weights: dict[str, Tensor], x: Sequence[Tensor]) -> list[Tensor]:
        with halved(self.device, self.half):
            return [finish(decoder.block(layer, weights, part)).float() for part in x]

    def _block(self, layer: int, x: list[Tensor], wanted: list[Tensor]) -> Trained:
        learner, recipe, started = self.learner, self.recipe, time.monotonic()
        named, grids = self._named(layer), [name for name in learner.arch.block_shapes(layer) if name in learner.grids]
        optimizer = moments.adamw(named, self.shares)
        order = np.concatenate([np.random.default_rng([layer, i]).permutation(len(x)) for i in range(recipe.passes)])
        steps, errors = len(order), []
        for step, at in enumerate(order.tolist()):
            with torch.enable_grad():
                (made,) = self._through(learner.decoder, layer, learner.weights(layer), x[at : at + 1])
                error = relative_error(made, wanted[at]) / self.world.size
                error.backward()  # type: ignore[no-untyped-call]
            errors.append(float(self.world.total(error.detach())))
            if not math.isfinite(errors[-1]):
                raise ParetobitError(
                    f"training block {layer} by itself failed at step {step + 1}: its error is not finite",
                    hint="repeat without --blocks",
                )
            moments.fill(named.values())
            moments.at_rate(optimizer, recipe.rate * (1 + math.cos(math.pi * (step + 0.5) / steps)) / 2)
            optimizer.step()
            optimizer.zero_grad()
            if (step + 1) % recipe.refresh == 0 or step + 1 == steps:
                learner.refresh(grids)
        ends = max(1, len(x) // 2)
        found = Trained(
            layer, float(np.mean(errors[:ends])), float(np.mean(errors[-ends:])), time.monotonic() - started
        )
        facts = np.array([found.before, found.after, found.seconds])
        held = {HELD + name: codes for name, codes in learner.held_codes(grids).items()}
        values = {name: value.detach().cpu().numpy() for name, value in named.items()}
        self.shards.write(f"block-{layer}", {FACTS: facts, **held, **values})
        return found

    def _known(self, layer: int) -> Trained | None:
        file = self.shards.read(f"block-{layer}")
        if file is None:
            return None
        for name, value in self._named(layer).items():
            value.copy_(torch.from_numpy(file.read_float32(name)))
        self.learner.hold_saved(file)
        return Trained(layer, *map(float, file.read_raw(FACTS)))

    def _named(self, layer: int) -> dict[str, Tensor]:
        named = self.learner.parameters
        both = (name + suffix for name in self.learner.arch.block_shapes(layer) for suffix in ("", RANGE))
        return {name: named[name] for name in both if name in named}


def relative_error(made: Tensor, wanted: Tensor) -> Tensor:  # (…, hidden) twice -> ()
    return ((made - wanted).square().sum(-1) / wanted.square().sum(-1)).mean()
