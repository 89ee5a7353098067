"""The largest activation at every tap: what static 8-bit activations are scaled by."""

from __future__ import annotations

import numpy as np
import torch

from paretobit.arch import Tap
from paretobit.compress.calibrate import Walk, embed
from paretobit.compress.model import Decoder, Source
from paretobit.compress.stats import ABSMAX, TapStats
from paretobit.compress.world import World

NEEDS = frozenset({ABSMAX})


@torch.inference_mode()
def ranges(source: Source, ids: np.ndarray) -> dict[str, float]:
    """Tap name -> the largest magnitude of its activation over windows ids, int64 (n, size)."""
    decoder, found = Decoder(source), dict[str, float]()

    def visit(tap: Tap, stats: TapStats) -> None:
        assert stats.absmax is not None
        found[tap.name] = float(stats.absmax.max())

    walk = Walk(decoder, embed(decoder, torch.from_numpy(ids)))
    for layer in range(decoder.arch.layers):
        walk.block(layer, decoder.weights(layer), NEEDS, World(), visit)
    visit(decoder.arch.head_tap, walk.head(NEEDS, World()))
    return found
