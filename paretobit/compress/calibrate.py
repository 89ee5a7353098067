"""Calibration: text streams through the model one block at a time, and every tap's activations are summed up.

A `Walk` holds the hidden states of all windows between two blocks. `block` starts the block's generator for every
batch, stops all of them at each tap in turn, and hands the tap's statistics to `visit`. A visitor that replaces the
weights of the tap's consumers changes what flows on ("sequential": later taps see the already rounded model); a visitor
that leaves them alone gives statistics of the full-precision model. Both are the same loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paretobit.arch import Arch, Tap
from paretobit.compress.guide import Guide
from paretobit.compress.model import Decoder, finish
from paretobit.compress.stats import BESIDE, GUIDE, LAG, TapStats
from paretobit.compress.world import World
from paretobit.tensorfile import SafetensorsFile, write_arrays
from paretobit.work import Work

Visit = Callable[[Tap, TapStats], None]
TOKENS_PER_BATCH = 4096
PAIRED_VALUES = 1 << 26  # of the full-precision model's hidden states: 256 MB, 16,384 tokens of a hidden size of 4096
SMALL_GAIN = 0.1  # of the mean square of a norm's weights: channels that count less than this are not chased
SAVING_SHARE = 20  # states are saved when this many times the duration of a save has passed since the last one


@dataclass
class Walk:
    """Hidden states (windows, tokens, hidden) before the next block: `hidden` of the model as rounded so far, and, for
    methods that correct towards it, `full` of the full-precision model, for the first windows. guide: how tokens count.
    """

    decoder: Decoder
    hidden: Tensor
    full: Tensor | None = None
    guide: Guide | None = None
    saved_at: float = 0.0
    saving_took: float = 0.0

    def batches(self, states: Tensor) -> list[Tensor]:
        return list(states.split(_windows_per_batch(states)))

    def _token_weights(self, tap: Tap, needs: frozenset[str]) -> list[Tensor] | list[None]:
        """How much the tokens of each batch count at a tap; alike where none of these needs is a guide."""
        if self.guide is None or GUIDE not in needs:
            return [None] * len(self.batches(self.hidden))
        return list(self.guide.tokens[tap.name].split(_windows_per_batch(self.hidden)))

    def block(self, layer: int, weights: dict[str, Tensor], needs: frozenset[str], world: World, visit: Visit) -> None:
        """Run one block over all windows; `visit(tap, stats)` may change `weights` of the tap's consumers.

        `needs` are the statistics to collect. With `full` states the block also runs with the weights as they are now,
        unchanged, beside the visited ones.
        """
        runs = [self.decoder.block(layer, weights, x) for x in self.batches(self.hidden)]
        beside = []
        if self.full is not None:
            original = dict(weights)
            beside = [self.decoder.block(layer, original, x) for x in self.batches(self.full)]
        for tap in self.decoder.arch.taps(layer):
            kinds = needs if tap.writes else needs - {LAG}
            stats = TapStats.empty(tap.width, kinds, self.hidden.device, self.decoder.arch.hidden)
            weights_of = self._token_weights(tap, needs)
            for i, run in enumerate(runs):
                _, x, stream = next(run)
                _, full, ahead = next(beside[i]) if i < len(beside) else (None, None, None)
                weight, behind = weights_of[i], None
                if stats.lag is not None:
                    heard, behind = self._lacking(tap, weights, x, stream, ahead)
                    weight = heard if weight is None else weight * heard
                stats.add(x, full, weight, behind)
                del x, stream, full, ahead, behind
            world.reduce(stats)
            if stats.lag is not None and tap.norm is not None:
                gain = weights[tap.norm] + self.decoder.arch.norm_offset
                stats.lag *= (gain / (gain.square() + SMALL_GAIN * gain.square().mean()))[:, None]
            visit(tap, stats.complete())
        self.hidden = _gather(runs, self.hidden)
        if self.full is not None:
            self.full = _gather(beside, self.full)

    def _lacking(
        self, tap: Tap, weights: dict[str, Tensor], x: Tensor, stream: Tensor, ahead: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """How much an error of a writer's outputs counts at each token (b, t), and what they would have to add for the
        stream to be the full-precision model's, `ahead`, if that is known (b, t, hidden).

        Every norm that reads the stream divides by its size: a few tokens carry one hundreds of times as large as the
        others', and would decide by themselves. A norm on the way into the stream divides by the outputs' size, taken
        as it is before rounding; its weights are left to the caller.
        """
        eps = self.decoder.arch.norm_eps
        heard = 1 / (stream.square().mean(-1) + eps)
        behind = None if ahead is None else ahead - stream
        if tap.norm is not None:
            size = F.linear(x, weights[tap.consumers[0]]).square().mean(-1) + eps
            heard = heard / size
            behind = None if behind is None else behind * size.sqrt()[..., None]
        return heard, behind

    def replay(self, layer: int, weights: dict[str, Tensor], original: dict[str, Tensor]) -> None:
        """Run a block that is already rounded: the states become what `block` left, bit for bit."""
        self.hidden = _gather([self.decoder.block(layer, weights, x) for x in self.batches(self.hidden)], self.hidden)
        if self.full is not None:
            self.full = _gather([self.decoder.block(layer, original, x) for x in self.batches(self.full)], self.full)

    def head(self, needs: frozenset[str], world: World) -> TapStats:
        """Statistics of what the head multiplies: the normed output of the last block."""
        tap = self.decoder.arch.head_tap
        stats = TapStats.empty(tap.width, needs - BESIDE, self.hidden.device)
        for x, weight in zip(self.batches(self.hidden), self._token_weights(tap, needs), strict=True):
            stats.add(self.decoder.head_input(x), weight=weight)
        world.reduce(stats)
        return stats.complete()


def paired_tokens(arch: Arch) -> int:
    """Most tokens that the full-precision model walks beside; a mean over them is what is corrected towards."""
    return PAIRED_VALUES // arch.hidden


def _windows_per_batch(states: Tensor) -> int:
    return max(1, TOKENS_PER_BATCH // states.shape[1])


def _gather(runs: list, states: Tensor) -> Tensor:
    """Finish the batches one after another into the old states' memory."""
    start = 0
    while runs:
        out = finish(runs.pop(0))
        states[start : start + out.shape[0]] = out
        start += out.shape[0]
    return states


def resume(
    work: Work, decoder: Decoder, windows: np.ndarray, world: World, beside: bool, done: int
) -> tuple[Walk, int]:
    """A walk of which the first `done` blocks are finished, and the block it stands before: `replay` covers the rest.

    It starts from the last saved states, at the embedding where there are none. windows (n, tokens) int64: this
    process's share. beside: carry the full-precision states too.
    """
    saved = [layer for layer in range(1, done + 1) if _state(work, world, layer).exists()]
    layer = world.least(max(saved, default=0))
    if layer:
        file = SafetensorsFile(_state(work, world, layer))
        states = {name: torch.from_numpy(file.read_float32(name)).to(decoder.device) for name in file.tensors}
        return Walk(decoder, states["hidden"], states.get("full")), layer
    hidden = embed(decoder, torch.from_numpy(windows).to(decoder.device))
    together = _windows_per_batch(hidden)
    batches = max(1, paired_tokens(decoder.arch) // world.size // (together * hidden.shape[1]))
    paired = batches * together
    return Walk(decoder, hidden, hidden[:paired].clone() if beside else None), 0


def save(work: Work, world: World, walk: Walk, layer: int) -> None:
    """Keep the states before `layer` and drop older ones, unless saving has lately cost too much of the time.

    What is skipped costs a resumed job one forward pass through blocks already rounded, nothing else.
    """
    start = time.monotonic()
    if not world.least(int(start - walk.saved_at >= SAVING_SHARE * walk.saving_took)):
        return
    states = {"hidden": walk.hidden} | ({"full": walk.full} if walk.full is not None else {})
    write_arrays(_state(work, world, layer), {name: value.cpu().numpy() for name, value in states.items()})
    # Every process must have its state of this block before any forgets an older one.
    world.wait()
    for old in range(1, layer):
        _state(work, world, old).unlink(missing_ok=True)
    walk.saved_at = time.monotonic()
    walk.saving_took = walk.saved_at - start


def _state(work: Work, world: World, layer: int) -> Path:
    return work.path(f"state-{layer:03d}.r{world.rank}.safetensors")


def embed(decoder: Decoder, windows: Tensor) -> Tensor:
    """(windows, tokens) int64 -> hidden states before block 0."""
    return torch.cat([decoder.embed(w) for w in windows.split(16)])
