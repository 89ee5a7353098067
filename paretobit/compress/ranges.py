"""The largest activation at every tap: what static 8-bit activations are scaled by."""

from __future__ import annotations

import numpy as np
import torch

from paretobit.compress.model import Decoder, Source

BATCH = 4  # windows at a time


@torch.inference_mode()
def ranges(source: Source, ids: np.ndarray) -> dict[str, float]:
    """Tap name -> the largest magnitude of its activation over windows ids, int64 (n, size)."""
    decoder, found = Decoder(source), dict[str, float]()

    def seen(name: str, x: torch.Tensor) -> None:
        found[name] = max(found.get(name, 0.0), float(x.abs().max()))

    for batch in torch.from_numpy(ids).split(BATCH):
        x = decoder.embed(batch)
        for layer in range(decoder.arch.layers):
            steps = decoder.block(layer, decoder.weights(layer), x)
            while True:
                try:
                    name, y, _ = next(steps)
                except StopIteration as stop:
                    x = stop.value
                    break
                seen(name, y)
        seen(decoder.arch.head_tap.name, decoder.head_input(x))
    return found
