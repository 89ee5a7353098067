"""Scores of single tokens from logits: log-likelihood and arg-max, in a few passes over float32.

Every pass works in scratch of about 1 MB, so that a block of rows stays in cache: with 262,144 vocabulary
entries one window's logits are 267 MB, and a second copy of them would cost more than the arithmetic.
Elements are float32 (as exact as the logits themselves); whatever is added up over the vocabulary is added in
float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from paretobit.errors import ParetobitError
from paretobit.pieces import pieces

# (tokens (b, t) int64, first) -> logits of positions first..t-1, float32 (b, t - first, vocab)
Logits = Callable[[np.ndarray, int], np.ndarray]

LOGITS_BYTES = 300_000_000  # of one model, one call
MAX_BATCH = 8  # windows a call: more would only grow the model's own activations
SCRATCH_ELEMENTS = 1 << 18


@dataclass(frozen=True)
class Rows:
    """What one pass leaves of n rows of logits. exps is scratch, valid until the next pass."""

    nll: np.ndarray  # (n,) float64, -log p(target)
    top: np.ndarray  # (n,) int64, the first arg-max
    peak: np.ndarray  # (n,) the largest logit
    total: np.ndarray  # (n,) float64, sum of exps
    exps: np.ndarray  # (n, vocab) float32, exp(logits - peak)


def first_position(size: int) -> int:
    """The first scored position of a window: 256 of 512. Position i predicts token i + 1."""
    return size // 2


def scored_tokens(size: int) -> int:
    """Predictions scored in a window: positions size//2 … size-2, so 255 of 512."""
    return size - 1 - first_position(size)


def row_chunks(rows: int, vocab: int) -> Iterator[slice]:
    """Slices over `rows` whose logits fit the scratch."""
    return pieces(rows, SCRATCH_ELEMENTS, vocab)


def score_rows(logits: np.ndarray, targets: np.ndarray, scratch: np.ndarray) -> Rows:
    """Log-likelihood and arg-max of each row: logits (n, vocab) float32, targets (n,), scratch (≥ n, vocab).

    Non-finite logits leave a non-finite nll.
    """
    at = np.arange(len(logits))
    top = logits.argmax(axis=1)  # NaN counts as the largest, so it ends up in `peak`
    peak = logits[at, top]
    exps = scratch[: len(logits)]
    with np.errstate(over="ignore", invalid="ignore"):
        np.subtract(logits, peak[:, None], out=exps)
        np.exp(exps, out=exps)
        total = exps.sum(axis=1, dtype=np.float64)
        shifted = logits[at, targets].astype(np.float64) - peak
    nll = np.log(total) - shifted
    nll[np.isneginf(logits.min(axis=1))] = np.inf  # a -inf elsewhere leaves the sum intact; still no valid logits
    return Rows(nll, top, peak, total, exps)


def call(logits: Logits, tokens: np.ndarray, first: int) -> np.ndarray:  # (b, t - first, vocab) float32
    """`logits(tokens, first)` with its contract checked: the shape, float32."""
    out = np.asarray(logits(tokens, first))
    wanted = (tokens.shape[0], tokens.shape[1] - first)
    if out.ndim != 3 or out.shape[:2] != wanted:
        raise ParetobitError(
            f"the model returned logits of shape {out.shape} for sequences and positions {wanted}",
            hint=f"logits(tokens, first) returns {(*wanted, 'vocab')}",
        )
    return out if out.dtype == np.float32 else out.astype(np.float32)


def batch_size(positions: int, vocab: int) -> int:
    """Sequences a call such that one model's logits stay within LOGITS_BYTES; at least one."""
    return int(np.clip(LOGITS_BYTES // (4 * positions * vocab), 1, MAX_BATCH))


def mean_stderr(values: np.ndarray) -> tuple[float, float | None]:
    """Mean and its standard error, s / sqrt(n) with n - 1 in the variance; None for a single value."""
    mean = float(np.mean(values))
    return mean, float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def ratio_stderr(top: np.ndarray, bottom: np.ndarray) -> tuple[float | None, float | None]:
    """mean(top) / mean(bottom) of paired samples, with its standard error by the delta method.

    d(a/b) = (da - r db) / b, so the error is that of the mean of (top_i - r bottom_i) / mean(bottom): what
    the two samples share cancels. (None, None) where the denominator is not positive.
    """
    below = float(np.mean(bottom))
    if below <= 0:
        return None, None
    ratio = float(np.mean(top)) / below
    return ratio, mean_stderr((top - ratio * bottom) / below)[1]
