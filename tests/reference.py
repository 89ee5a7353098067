"""What calibration should see, computed in the plainest way: activations of a forward pass, and sums in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from paretobit.checkpoint.base import Checkpoint
from paretobit.compress.model import Decoder
from paretobit.evals.text import windows
from paretobit.runtime.tokenizer import Tokenizer

BATCH = 8  # windows of 512 tokens that the calibration loop takes at a time: equal batches give equal bits
UNIT = 2.0**-24  # unit roundoff of float32


def activations(
    source: object, ids: np.ndarray, streams: dict[str, list[Tensor]] | None = None
) -> dict[str, list[Tensor]]:
    """Tap -> its activations (tokens, width), a batch each, in a plain forward pass through `source`; `streams` is
    given the residual streams (tokens, hidden) beside them."""
    decoder = Decoder(source)
    found: dict[str, list[Tensor]] = {}
    with torch.inference_mode():
        for batch in torch.from_numpy(ids).split(BATCH):
            x = decoder.embed(batch)
            for layer in range(decoder.arch.layers):
                steps = decoder.block(layer, decoder.weights(layer), x)
                while True:
                    try:
                        tap, y, stream = next(steps)
                    except StopIteration as stop:
                        x = stop.value
                        break
                    found.setdefault(tap, []).append(y.flatten(0, 1).clone())
                    if streams is not None:
                        streams.setdefault(tap, []).append(stream.flatten(0, 1).clone())
            found.setdefault("head_in", []).append(decoder.head_input(x).flatten(0, 1))
    return found


def calibration_ids(source: Checkpoint, text: Path, tokens: int) -> np.ndarray:
    """The windows that quantize makes of the text, int64 (tokens // 512, 512)."""
    tokenizer = Tokenizer(source.companions)
    found = windows(tokenizer.encode(text.read_text(), add_special=False), 512, tokenizer.bos_id)
    assert len(found) > tokens // 512
    return found[np.linspace(0, len(found) - 1, tokens // 512).astype(int)]


def assert_sums(found: Tensor, left: list[Tensor], right: list[Tensor], what: str) -> None:
    """`found` is sum of left_i right_iᵀ over all tokens i, as float32 may add it up.

    The activations are the same bits on both sides. A float32 sum of n products, in any order, is off by at most
    n·u/(1 - n·u) times the sum of their absolute values (Higham, section 3.1); where a factor is itself a difference,
    its rounding counts as one more step.
    """
    a, b = (torch.cat(x).double() for x in (left, right))
    steps = (len(a) + 2) * UNIT
    bound = steps / (1 - steps) * (a.abs().T @ b.abs())
    exact = a.T @ b
    assert ((found.double() - exact).abs() <= bound).all(), what
    # The bound means something: another tap's statistics, or none, would lie far outside.
    assert exact.abs().max() > 100 * bound.max(), what
