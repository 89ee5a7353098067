"""Before the work starts: how long it will take and how much memory it will need at most.

The time is counted work over the speed of a matrix product measured now; the constants are the measured cost of what is
not a matrix product. docs/scale.md holds the prediction against what was measured.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

import torch

from paretobit.arch import Arch
from paretobit.compress.stats import CROSS

BASE_BYTES = 420e6  # python, torch and its thread pools
SEARCH_SECONDS = 1 / 25e6  # scale search and packing, a weight
FEEDBACK_SECONDS = 1.2e-8  # a weight and 128 columns of error feedback
COLUMN_SECONDS = 6e-5  # one step of the column loop
FACTOR_SHARE = 4.0  # a factorization runs at a fraction of a product's speed: width³ operations weigh so much


def matmul_flops(seconds: float = 0.3) -> float:
    """float32 operations a second of a 1024 × 1024 product, best of as many as fit into `seconds`."""
    a, best = torch.randn(1024, 1024), 0.0
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        a @ a
        best = max(best, 2 * 1024**3 / (time.perf_counter() - start))
    return best


def work_flops(arch: Arch, tokens: int, needs: frozenset[str]) -> float:
    """Matrix-product work of calibration: blocks run over all tokens, and a Gram matrix a tap (twice with `cross`)."""
    streams = 2 if CROSS in needs else 1
    shapes = [shape for layer in range(arch.layers) for shape in arch.block_shapes(layer).values()]
    blocks = sum(math.prod(shape) for shape in shapes if len(shape) == 2)
    grams = sum(tap.width**2 for layer in range(arch.layers) for tap in arch.taps(layer)) + arch.hidden**2
    return 2.0 * tokens * streams * (blocks + grams)


def seconds(arch: Arch, tokens: int, needs: frozenset[str], flops: float) -> float:
    """Predicted duration of one quantization."""
    shapes = [s for s in arch.shapes().values() if len(s) == 2]
    total = SEARCH_SECONDS * sum(map(math.prod, shapes))
    if needs:
        widths = [tap.width for layer in range(arch.layers) for tap in arch.taps(layer)]
        total += (work_flops(arch, tokens, needs) + FACTOR_SHARE * sum(w**3 for w in widths)) / flops
        total += sum(COLUMN_SECONDS * s[1] + FEEDBACK_SECONDS * math.prod(s) for s in shapes)
    return total


def peak_bytes(arch: Arch, tokens: int, needs: frozenset[str], vocab_rows: int) -> float:
    """Predicted peak memory: one block with activations and its widest tap's statistics, or the embedding's codes."""
    block = max(4 * sum(map(math.prod, arch.block_shapes(layer).values())) for layer in range(arch.layers))
    ends = 2.0 * arch.vocab * arch.hidden + 4 * 6 * vocab_rows * arch.hidden
    if not needs:
        return BASE_BYTES + max(2 * block, ends)
    streams = 2 if CROSS in needs else 1
    width = max(tap.width for tap in arch.taps(0))
    live = 4 * tokens * streams * (3 * arch.hidden + width)
    statistics = 4 * width**2 * (5 + 3 * (streams - 1))
    return BASE_BYTES + max(live + statistics + 2 * block, ends + 4 * tokens * streams * arch.hidden)


def lines(name: str, arch: Arch, tokens: int, needs: Iterable[str], vocab_rows: int) -> str:
    """The announcement, in words."""
    wanted = frozenset(needs)
    flops = matmul_flops()
    took, peak = seconds(arch, tokens, wanted, flops), peak_bytes(arch, tokens, wanted, vocab_rows)
    text = f", {tokens} calibration tokens" if wanted else ""
    return f"{name}{text}: about {_minutes(took)} and {peak / 1e9:.1f} GB of memory ({flops / 1e9:.0f} GFLOP/s here)"


def _minutes(took: float) -> str:
    return f"{took:.0f} s" if took < 120 else f"{took / 60:.0f} min" if took < 7200 else f"{took / 3600:.1f} h"
