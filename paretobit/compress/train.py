"""Training a model on the grids that it will be packed on, from a checkpoint or from nothing.

Source: ParetoQ (arXiv 2502.02631): AdamW without decay, one cosine to 0, every weight and range learned; the loss is
the KL divergence to the original (compress/distill.py) or the text itself. Ends with what `artifact.assemble` takes.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from paretobit.artifact import TRAINING
from paretobit.checkpoint.base import Checkpoint
from paretobit.compress import moments
from paretobit.compress.blockwise import Blocks, Blockwise
from paretobit.compress.distill import Target, as_original, as_text, halved, one_step
from paretobit.compress.learner import HELD, RANGE, Learner
from paretobit.compress.model import Decoder
from paretobit.compress.shards import Shards
from paretobit.compress.units import Units
from paretobit.compress.world import World
from paretobit.errors import ParetobitError
from paretobit.planfile import Plan
from paretobit.progress import progress
from paretobit.work import Work, remember, remembered

STATE, DONE = "training", "trained"
ORIGINAL, TEXT = LOSSES = ("original", "text")
WATCH = 25  # steps between two looks at the codes
BLOCK_RATE = 2.0  # of the rate, while a block is trained by itself
MOST_SHARE = 3.0  # of the rate, for norms, which are much larger than weights
MOST_LEVELS = 16  # whose shares anybody reads


@dataclass(frozen=True)
class Recipe:
    """What decides a training but model, plan and data.

    steps, seconds: how long, one of the two; batch: windows a step, `at_once` of them in memory together; rate: of
    AdamW on weights of the usual size, and on every tensor in proportion to its own, along one cosine to 0 after
    `warmup` of the way; loss: one of LOSSES; half: products are of bf16 numbers; refresh: steps after which methods
    choose anew what they hold on to; seed: of the data's order; blocks: windows on which every block is trained by
    itself first, 0 for none. That time comes out of `seconds`, and adds to `steps`.
    """

    steps: int | None
    seconds: float | None
    batch: int = 2
    at_once: int = 2
    rate: float = 2e-5
    warmup: float = 0.0
    largest_norm: float = 1.0
    loss: str = ORIGINAL
    half: bool = False
    refresh: int = 8
    seed: int = 0
    save_seconds: float = 300.0
    blocks: int = 0


@dataclass
class Training:
    """One run, step by step. windows: int64 (n, tokens), the same in every process.

    Several processes compute the same model, each on its part of a step's windows. Each keeps, trains and saves its own
    tensors of it (`Learner`), so that all together need the memory of one, but for a block.
    """

    source: Checkpoint
    plan: Plan
    windows: np.ndarray
    rounded: Units | None
    work: Work
    recipe: Recipe
    device: str
    world: World

    def __post_init__(self) -> None:
        if self.recipe.batch % self.world.size:
            raise ParetobitError(
                f"{self.recipe.batch} windows a step do not divide among {self.world.size} processes",
                hint="choose another --batch",
            )
        if len(self.windows) < self.recipe.batch:
            raise ParetobitError(
                f"the data has {len(self.windows)} windows of {self.windows.shape[1]} tokens, a step takes "
                f"{self.recipe.batch}",
                hint="give more text, or a smaller --batch",
            )
        self.learner = Learner(self.source, self.plan, self.rounded, self.device, self.world)
        self.shards = Shards(self.work, self.world)
        original = self.recipe.loss == ORIGINAL
        self.teacher = Decoder(self.source, device=self.device, half=self.recipe.half) if original else None
        named = self.learner.parameters
        self.optimizer = moments.adamw(named, self._shares())
        self.step, self.tokens, self.elapsed, self.spent = 0, 0, 0.0, 0.0
        self._first = {name: value.detach().clone() for name, value in named.items() if name.endswith(RANGE)}
        self._codes = {name: self.learner.packed(name).codes for name in self.learner.grids}
        self._looked = 0

    # ---- the way

    def way(self) -> float:
        """How much of the training is done, 0 to 1."""
        if self.recipe.steps is not None:
            return self.step / self.recipe.steps
        assert self.recipe.seconds is not None
        return min(1.0, self.elapsed / max(1e-9, self.recipe.seconds - self.spent))

    def rate(self) -> float:
        way, warmup = self.way(), self.recipe.warmup
        if self.recipe.steps is not None:
            way = (self.step + 0.5) / self.recipe.steps  # so that neither the first step nor the last is lost
        rising = min(1.0, way / warmup) if warmup else 1.0
        return self.recipe.rate * rising * (1 + math.cos(math.pi * way)) / 2

    @torch.no_grad()
    def _shares(self) -> dict[str, float]:
        """Of the rate, by parameter of any process: each moves in proportion to its size, matrices on the whole at the
        rate itself, a range as its weights but where it is smaller: a step of a grid of many levels. On trellises that
        have an original to keep to, each bit more than the coarsest grid's halves that twice, as it does the squared
        error that is to be repaired: a path has near neighbours, and a fine one changes at random by every step."""
        shapes, named = self.source.arch.shapes(), self.learner.parameters
        names = self.learner.names
        mine = [float(named[name].abs().mean()) if name in named else 0.0 for name in names]
        sizes = dict(zip(names, self.world.sums(mine), strict=True))
        counts = {name: math.prod(shape) for name, shape in shapes.items() if len(shape) > 1}
        usual = max(1e-12, sum(sizes[name] * n for name, n in counts.items()) / sum(counts.values()))
        planned, found = self.learner.planned, {}
        coarsest = min((grid.bits for grid in planned.values()), default=0)
        for name, size in sizes.items():
            matrix = name.removesuffix(RANGE)
            fine = self.teacher is not None and matrix in planned and planned[matrix].kind == "trellis"
            finer = 4.0 ** (coarsest - planned[matrix].bits) if fine else 1.0
            found[name] = finer * min(MOST_SHARE, min(size, sizes[matrix]) / usual)
        return found

    def batch(self) -> Tensor:
        """int64 (windows, tokens): this process's part of a step's windows, in an order that only the seed decides."""
        count, size = len(self.windows), self.recipe.batch
        places = range(self.step * size, (self.step + 1) * size)
        orders = {i // count: self._order(i // count) for i in places}
        chosen = [orders[i // count][i % count] for i in places]
        return torch.from_numpy(self.windows[chosen[self.world.rank :: self.world.size]]).to(self.device)

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.recipe.seed, epoch]).permutation(len(self.windows))

    # ---- one step

    def advance(self) -> float:
        """One step of the optimizer; returns the loss before it, in nats a token.

        Raises ParetobitError, naming step and tensor, where a number is not finite; nothing is changed then.
        """
        ids, world, named = self.batch(), self.world, self.learner.parameters
        self.optimizer.zero_grad()
        loss = 0.0
        with halved(self.device, self.recipe.half), self.learner.ends():
            for part in ids.split(self.recipe.at_once):
                share = len(part) / self.recipe.batch
                loss += share * one_step(self.learner, self._target(part), part, share)
        moments.fill(named.values())
        norms = {name: float(torch.linalg.vector_norm(value.grad)) for name, value in named.items()}  # type: ignore[arg-type]
        loss, squared = world.sums([loss, sum(norm**2 for norm in norms.values())])
        if not math.isfinite(loss + squared):
            raise self._diverged(norms, loss)
        norm = math.sqrt(squared)
        moments.at_rate(self.optimizer, self.rate())
        for value in named.values() if norm > self.recipe.largest_norm else ():
            assert value.grad is not None
            value.grad *= self.recipe.largest_norm / norm
        self.optimizer.step()
        if (self.step + 1) % self.recipe.refresh == 0:
            self.learner.refresh()
        self.step, self.tokens = self.step + 1, self.tokens + self.recipe.batch * self.windows.shape[1]
        return loss

    def _target(self, ids: Tensor) -> Target:
        return as_text(ids) if self.teacher is None else as_original(self.teacher, ids)

    def _diverged(self, norms: dict[str, float], loss: float) -> ParetobitError:
        names = [*self.learner.names, "the loss"]
        first = next((i for i, name in enumerate(names) if not math.isfinite(norms.get(name, 0.0))), len(names) - 1)
        what = names[self.world.least(first)].replace(RANGE, "'s range")
        if self.step:
            self._save()
        return ParetobitError(
            f"training failed at step {self.step + 1}: {what} is not finite (loss {loss:g})",
            hint="repeat with a smaller --rate; the state before it is kept",
        )

    # ---- all steps

    def run(self) -> list[Path]:
        """Train to the end, resuming what a killed run has saved; returns the files of the packed arrays."""
        done = self.shards.read(DONE)
        if done is not None:
            return done.files
        self._resume()
        self.world.wait()
        if not self.step:
            self._blocks()
            self._look(changed=False)
        start, saved_at = time.monotonic() - self.elapsed, time.monotonic()
        with progress(f"training {self.source.name}", 1.0) as show:
            shown, recent, first = 0.0, deque[float](maxlen=WATCH), (self.tokens, self.elapsed)
            while self.world.least(int(self.way() < 1)):
                loss = self.advance()
                self.elapsed = time.monotonic() - start
                self._log({"step": self.step, "tokens": self.tokens, "loss": loss})  # no times: reruns are equal
                if self.step - self._looked >= WATCH:
                    self._look()
                if self.world.least(int(time.monotonic() - saved_at > self.recipe.save_seconds)):
                    self._save()
                    saved_at = time.monotonic()
                recent.append(loss)
                pace = (self.tokens - first[0]) / max(1e-9, self.elapsed - first[1])
                what = "KL" if self.recipe.loss == ORIGINAL else "loss"
                show(self.way() - shown, f"{what} {sum(recent) / len(recent):.3f}, {pace:.0f} tokens/s")
                shown = self.way()
        if self.step % self.recipe.refresh:
            self.learner.refresh()
        if self.step > self._looked:
            self._look()
        return self.shards.write(DONE, self.learner.arrays())

    def _blocks(self) -> None:
        """Train block by block, where the recipe asks for it, on windows that steps come to last."""
        if not self.recipe.blocks:
            return
        assert self.teacher is not None
        chosen = self.windows[self._order(0)[-self.recipe.blocks :]][self.world.rank :: self.world.size]
        how = Blocks(self.recipe.batch // self.world.size, rate=BLOCK_RATE * self.recipe.rate)
        at = (chosen, self._shares(), how, self.recipe.half, self.shards, self.world)
        for found in Blockwise(self.learner, self.teacher, *at).trained():
            self._log({"step": 0, "block": found.layer, "error_before": found.before, "error_after": found.after})
            self.spent += found.seconds

    # ---- what is watched

    def _log(self, row: dict[str, object]) -> None:
        if self.world.leads:
            remember(self.work.path(TRAINING), row)

    @torch.no_grad()
    def _look(self, changed: bool = True) -> None:
        """Log what share of the codes changed since the last look, each level's share and how far ranges have moved."""
        over, learner = self.step - self._looked, self.learner
        rows: dict[str, list[str]] = {}
        for name in learner.planned:
            rows.setdefault(str(self.plan.layers[name].scheme), []).append(name)
        for scheme, members in rows.items():
            counts = np.zeros(learner.planned[members[0]].levels, np.int64)
            moved, drift, ranges = 0, 0.0, 0
            for name in members:
                if name not in learner.grids:
                    continue
                codes = learner.packed(name).codes
                moved += int((codes != self._codes[name]).sum())
                counts += np.bincount(codes.ravel(), minlength=len(counts))
                self._codes[name] = codes
                drifts = (learner.parameters[name + RANGE] / self._first[name + RANGE] - 1).abs()
                drift, ranges = drift + float(drifts.sum(dtype=torch.float64)), ranges + drifts.numel()
            flipped, drifted, of, *levels = self.world.sums([moved, drift, ranges, *counts.tolist()])
            count = sum(levels)
            row = {"step": self.step, "scheme": scheme, "over_steps": over, "range_drift": drifted / of}
            row |= {"changed": flipped / count} if changed else {}
            row |= {"levels": [n / count for n in levels]} if len(levels) <= MOST_LEVELS else {}
            self._log(row)
        self._looked = self.step

    # ---- what is kept

    def _save(self) -> None:
        """All that the rest of the run depends on."""
        counts = np.array([self.step, self.tokens, self._looked], np.int64)
        arrays = {"counts": counts, "seconds": np.array([self.elapsed, self.spent])}
        arrays |= moments.kept(self.learner.parameters, self.optimizer)
        arrays |= {f"codes {name}": codes for name, codes in self._codes.items()}
        arrays |= {HELD + name: codes for name, codes in self.learner.held_codes(self.learner.grids).items()}
        self.shards.write(STATE, arrays, self.step)

    def _resume(self) -> None:
        file = self.shards.read(STATE)
        if file is None:
            if self.world.leads:
                self.work.path(TRAINING).unlink(missing_ok=True)
            return
        self.step, self.tokens, self._looked = (int(n) for n in file.read_raw("counts"))
        self.elapsed, self.spent = (float(n) for n in file.read_raw("seconds"))
        moments.restore(file, self.learner.parameters, self.optimizer, self.step)
        self._codes = {name: file.read_raw(f"codes {name}") for name in self._codes}
        self.learner.hold_saved(file)
        if self.world.leads:
            self._forget_rows_after_save()

    def _forget_rows_after_save(self) -> None:
        kept = [row for row in remembered(self.work.path(TRAINING)) if row["step"] <= self.step]
        lines = "".join(json.dumps(row) + "\n" for row in kept)
        self.work.path(TRAINING).write_text(lines)
