"""Before the work starts: how long it will take and how much memory it will need at most.

The time is counted work over the speed of a matrix product measured now; the constants are the measured cost of what is
not a matrix product. docs/scale.md holds the prediction against what was measured.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from paretobit.arch import Arch
from paretobit.compress.backward import LOGITS
from paretobit.compress.calibrate import paired_tokens
from paretobit.compress.recover import NOTHING_KEPT, SMALL, Room
from paretobit.compress.stats import BESIDE, GUIDE, LAG

BASE_BYTES = 500e6  # python, torch and its thread pools
WEIGHT_SECONDS = 4.5e-8  # reading, scale search and packing, a weight
COLUMN_SECONDS = 2.5e-8  # the column loop of error feedback, a weight
ELEMENT_SECONDS = 6e-9  # attention, norms, activations: a token, layer and channel
LOGIT_COPIES = 6  # of a piece of logits, alive together where gradients are taken
SEARCH_SECONDS = 5e-8  # the Viterbi search, a weight, all threads
GUIDE_PASSES, RECOVERY_PASSES = 3, 5  # forward passes that they cost: forward, forward again, backward; the original
WITH_GRAPHS, WITH_STATES = 1.0, 0.5  # of recovery's that are saved where these are kept
FACTOR_PRODUCTS = 3  # products of width³ that factoring a tap's Hessian costs; twice that with `cross`
FACTOR_MATRICES = 3  # (width, width) matrices held while factoring, beside the statistics


@dataclass(frozen=True)
class Extra:
    """Work beside calibration. searched: weights whose codes are found by a Viterbi search; recovered: tokens, as often
    as recovery sees them; half: whether its products are of bf16 numbers; kept: what it has room for."""

    searched: int = 0
    recovered: int = 0
    half: bool = False
    kept: Room = NOTHING_KEPT


def matmul_flops(products: int = 4, dtype: torch.dtype = torch.float32) -> float:
    """Operations a second of a 2048 × 2048 product, the median of a few."""
    a, took = torch.randn(2048, 2048).to(dtype), []
    for _ in range(products):
        start = time.perf_counter()
        a @ a
        took.append(time.perf_counter() - start)
    return 2 * 2048**3 / statistics.median(took)


def work_flops(arch: Arch, tokens: int, needs: frozenset[str]) -> float:
    """Matrix-product work of calibration: blocks run over all tokens, and a Gram matrix a tap (twice with `cross`), one
    with the stream for `lag`."""
    streams = _streams(arch, tokens, needs)
    shapes = [shape for layer in range(arch.layers) for shape in arch.block_shapes(layer).values()]
    blocks = sum(math.prod(shape) for shape in shapes if len(shape) == 2)
    grams = sum(tap.width**2 for layer in range(arch.layers) for tap in arch.taps(layer)) + arch.hidden**2
    lags = sum(tap.width for layer in range(arch.layers) for tap in arch.taps(layer) if tap.writes) * arch.hidden
    return 2.0 * tokens * (streams * (blocks + grams) + (streams - 1) * lags * (LAG in needs))


def _streams(arch: Arch, tokens: int, needs: frozenset[str]) -> float:
    """Models that calibration walks through: the rounded one, and beside it the original for some of the tokens."""
    return 1 + min(1, paired_tokens(arch) / max(tokens, 1)) if BESIDE & needs else 1


def seconds(arch: Arch, tokens: int, needs: frozenset[str], flops: float, extra: Extra = Extra(),
            half_flops: float = 0.0) -> float:  # fmt: skip
    """Predicted duration of one quantization. flops, half_flops: operations a second of float32 and bf16 products."""
    shapes = [s for s in arch.shapes().values() if len(s) == 2]
    total = WEIGHT_SECONDS * sum(map(math.prod, shapes))
    if needs:
        streams = _streams(arch, tokens, needs)
        cubes = sum(tap.width**3 for layer in range(arch.layers) for tap in arch.taps(layer))
        feedback = sum(rows * width**2 for rows, width in shapes)
        products = work_flops(arch, tokens, needs) + streams * (2.0 * FACTOR_PRODUCTS * cubes + feedback)
        total += ELEMENT_SECONDS * streams * tokens * arch.layers * (arch.hidden + arch.intermediate)
        total += products / flops + COLUMN_SECONDS * sum(map(math.prod, shapes))
        if GUIDE in needs:
            total += GUIDE_PASSES * 2.0 * tokens * sum(map(math.prod, shapes)) / flops
    total += SEARCH_SECONDS * extra.searched
    recovering = half_flops if extra.half else flops
    passes = RECOVERY_PASSES - WITH_GRAPHS * extra.kept.graphs - WITH_STATES * extra.kept.states
    return total + passes * 2.0 * extra.recovered * sum(map(math.prod, shapes)) / recovering


def peak_bytes(arch: Arch, tokens: int, needs: frozenset[str], vocab_rows: int, extra: Extra = Extra()) -> float:
    """Predicted peak memory: one block with activations and its widest tap's statistics, the embedding's codes, or what
    recovery and guidance hold: small models whole, of others the head, of both logits and states of a batch."""
    if extra.recovered or GUIDE in needs:
        parameters = sum(map(math.prod, arch.shapes().values()))
        held = parameters if parameters <= SMALL else arch.vocab * arch.hidden
        batch = 4 * 2048 * arch.hidden * arch.layers + 4 * LOGIT_COPIES * LOGITS + extra.kept.nbytes
        beside = peak_bytes(arch, tokens, needs - {GUIDE}, vocab_rows)
        return max(beside, BASE_BYTES + 4 * 2 * held + batch)
    block = max(4 * sum(map(math.prod, arch.block_shapes(layer).values())) for layer in range(arch.layers))
    ends = 2.0 * arch.vocab * arch.hidden + 4 * 6 * vocab_rows * arch.hidden
    if not needs:
        return BASE_BYTES + max(2 * block, ends)
    streams = _streams(arch, tokens, needs)
    width = max(tap.width for tap in arch.taps(0))
    live = 4 * tokens * streams * (4.5 * arch.hidden + 2 * width)
    matrices = 4 * width**2 * (FACTOR_MATRICES + streams)
    return BASE_BYTES + max(live + matrices + streams * block, ends + 4 * tokens * streams * arch.hidden)


def lines(name: str, arch: Arch, tokens: int, needs: Iterable[str], vocab_rows: int, extra: Extra = Extra()) -> str:
    """The announcement, in words."""
    wanted = frozenset(needs)
    flops, half_flops = matmul_flops(), matmul_flops(dtype=torch.bfloat16) if extra.half else 0.0
    took = seconds(arch, tokens, wanted, flops, extra, half_flops)
    peak = peak_bytes(arch, tokens, wanted, vocab_rows, extra)
    text = f", {tokens} calibration tokens" if wanted else ""
    return f"{name}{text}: about {_minutes(took)} and {peak / 1e9:.1f} GB of memory ({flops / 1e9:.0f} GFLOP/s here)"


def _minutes(took: float) -> str:
    return f"{took:.0f} s" if took < 120 else f"{took / 60:.0f} min" if took < 7200 else f"{took / 3600:.1f} h"
