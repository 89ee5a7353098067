"""The scale search: for every group the fp16 scale, and the stored zero point, with the least squared error.

    minimize over s, z:   sum_i h_i * (w_i - s * (q_i - z))^2,   q_i the code nearest to w_i / s + z

The error is not convex in s: each code that flips adds a dent. So the search is wide, then narrow:

1. Candidates: the scale at which the group's range just fits, times the coarse factors, at each zero point around
   the one that fits. Two's grids are tried at both signs: -2^(b-1) has no positive partner, so it matters which side
   it covers.
2. Candidate k runs in lane k mod 16, and each of the sixteen lanes keeps its best. Those are refit twice: the
   least-squares scale for their codes, sum(h w q) / sum(h q q), and new codes for that scale.
3. Sixteen scales around the best, at its zero point, each refit once.

Every scale is rounded to fp16 before its codes are chosen: the errors compared are those of stored numbers.

This file is the definition; csrc/search.inl equals it bit for bit. What that takes: float32 throughout and one
rounding an operation, each candidate's sums run over the group's weights first to last, w / s is w * (1 / s), ties
round to even, and of equal errors the first candidate's stays.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from paretobit.errors import ParetobitError
from paretobit.scheme import Grid

LANES = 16
ZEROS = 5  # stored zero points tried around the one that fits the range
REFITS = 2
HALF_MAX = np.float32(65504)
# Lowest factor for whole rows, by levels: the fewer there are, the further it pays to clip into heavy tails. Groups
# with a stored zero point have lighter tails: the square root of it.
LOWEST = {2: 0.02, 3: 0.03, 4: 0.04, 8: 0.08, 16: 0.15, 32: 0.2, 64: 0.25, 255: 0.3}
HIGHEST = 1.35  # an unimportant extreme can make it pay to stretch the grid


class Candidates(NamedTuple):
    """One candidate a lane. scale, zero, error: float32 (rows, lanes)."""

    scale: np.ndarray
    zero: np.ndarray
    error: np.ndarray


class Factors(NamedTuple):
    """What the fitting scale is multiplied by. coarse: float32 (a multiple of 16,), fine: float32 (16,)."""

    coarse: np.ndarray
    fine: np.ndarray


def factors(grid: Grid) -> Factors:
    """The candidate factors of a grid: a geometric series, and sixteen steps between two of its neighbours."""
    count = 2 * LANES if grid.zero == "stored" else 4 * LANES
    lowest = LOWEST[grid.levels] ** (0.5 if grid.zero == "stored" else 1)
    step = np.log(lowest / HIGHEST) / (count - 1)
    coarse = HIGHEST * np.exp(step * np.arange(count))
    fine = np.exp(step * ((np.arange(LANES) + 0.5) / (LANES / 2) - 1))
    return Factors(coarse.astype(np.float32), fine.astype(np.float32))


def checked(w: np.ndarray, importance: np.ndarray | None, grid: Grid) -> np.ndarray | None:
    """The importance to use. Raises ParetobitError unless the search is defined for these inputs.

    A group whose columns all weigh nothing would leave its scale to chance: there every column weighs 1.
    """
    if grid.kind != "affine" or grid.levels not in LOWEST:
        raise ParetobitError(
            f"no scale search on a {grid.kind} grid of {grid.levels} levels", hint="use an affine grid"
        )
    if w.ndim != 2 or w.shape[1] < 1 or w.dtype != np.float32:
        raise ParetobitError(f"weights of shape {w.shape}, {w.dtype}", hint="give a matrix of float32")
    if not np.isfinite(w).all():
        raise ParetobitError("weights that are not finite", hint="the checkpoint is damaged, or a step overflowed")
    if importance is None:
        return None
    if importance.shape != w.shape[1:] or importance.dtype != np.float32:
        raise ParetobitError(
            f"importance of shape {importance.shape}, {importance.dtype} for {w.shape[1]} columns",
            hint="one float32 a column",
        )
    if not (np.isfinite(importance) & (importance >= 0)).all():
        raise ParetobitError("importance is negative or not finite", hint="give finite weights from 0 up")
    starts = np.arange(0, len(importance), grid.group or len(importance))
    dead = ~np.logical_or.reduceat(importance > 0, starts)
    return np.where(np.repeat(dead, grid.group or len(importance))[: len(importance)], np.float32(1), importance)


def scale_search_with_error(
    w: np.ndarray, importance: np.ndarray | None, grid: Grid
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """(scale float16 (out, groups), zero uint8 (out, groups) or None, error float32 (out, groups)).

    w: float32 (out, in), finite; importance: float32 (in,), finite, at least 0, or None for all ones. A group of
    zeros gets scale 0 and zero point 0. Slow: use `native`'s. Raises ParetobitError on other inputs.
    """
    h = checked(w, importance, grid)
    rows, columns = w.shape
    groups, group = grid.groups(columns), grid.group or columns
    h = np.ones(columns, np.float32) if h is None else h
    scale = np.empty((rows, groups), np.float16)
    zero = np.empty((rows, groups), np.uint8)
    error = np.empty((rows, groups), np.float32)
    with np.errstate(all="ignore"):  # overflow, 0/0 and the like lose every comparison
        for g in range(groups):
            part = slice(g * group, (g + 1) * group)
            scale[:, g], zero[:, g], error[:, g] = _search_group(w[:, part], h[part], grid)
    return scale, zero if grid.zero == "stored" else None, error


def _search_group(w: np.ndarray, h: np.ndarray, grid: Grid) -> Candidates:  # (rows, n), (n,) -> (rows,) each
    coarse, fine = factors(grid)
    fit, zeros, signs = _trials(w, grid)
    best = None
    for v, sign in enumerate(signs):
        for k in range(0, len(coarse), LANES):
            scale = half(fit[:, None] * coarse[k : k + LANES]) * sign
            found = _swept(w, h, scale, np.broadcast_to(zeros[v][:, None], scale.shape), grid)[0]
            best = found if best is None else _better(best, found)
    assert best is not None
    first = _best_lane(_refit(w, h, best.scale, best.zero, grid, REFITS))
    scale = half(first.scale[:, None] * fine)
    zero = np.broadcast_to(first.zero[:, None], scale.shape)
    return _better(first, _best_lane(_refit(w, h, scale, zero, grid, 1)))


def _trials(w: np.ndarray, grid: Grid) -> tuple[np.ndarray, list[np.ndarray], list[np.float32]]:
    """(scale at which each row's range fits (rows,), zero points to try, (rows,) each, and their signs)."""
    low, high = np.minimum(w.min(axis=1), 0), np.maximum(w.max(axis=1), 0)
    top = np.float32(grid.levels - 1)
    one = np.float32(1)
    if grid.zero == "stored":
        fit = (high - low) / top
        centre = np.where(fit > 0, np.floor(-low / fit + np.float32(0.5)), np.float32(0))
        count = min(ZEROS, grid.levels)
        start = np.maximum(np.minimum(centre - np.float32(ZEROS // 2), top + 1 - np.float32(count)), 0)
        return fit, [start + np.float32(v) for v in range(count)], [one] * count
    offset = np.float32(grid.offset)
    reach = offset if grid.zero == "mid" else offset - np.float32(0.5)
    zero = np.full(len(w), offset)
    signs = [one] if grid.zero == "mid" else [one, -one]
    return np.maximum(-low, high) / reach, [zero] * len(signs), signs


def _swept(
    w: np.ndarray, h: np.ndarray, scale: np.ndarray, zero: np.ndarray, grid: Grid
) -> tuple[Candidates, np.ndarray, np.ndarray]:
    """The candidates' errors, and the sums of h*w*q and h*q*q, (rows, lanes), added up weight by weight."""
    inverse = np.where(scale * scale > 0, 1 / scale, np.float32(0))
    half = np.float32(0.5 if grid.zero == "mid" and grid.levels % 2 == 0 else 0)
    low, high = -zero, np.float32(grid.levels - 1) - zero
    error, wq, qq = (np.zeros_like(scale) for _ in range(3))
    for i in range(w.shape[1]):
        x = w[:, i : i + 1]
        q = np.rint(np.minimum(np.maximum(x * inverse, low), high) - half) + half
        miss = x - scale * q
        error += (h[i] * miss) * miss
        wq += (h[i] * x) * q
        qq += (h[i] * q) * q
    return Candidates(scale, zero, error), wq, qq


def _refit(w: np.ndarray, h: np.ndarray, scale: np.ndarray, zero: np.ndarray, grid: Grid, rounds: int) -> Candidates:
    """Least-squares scale for the codes of each candidate, new codes for that scale; kept where the error falls."""
    best, wq, qq = _swept(w, h, scale, zero, grid)
    for _ in range(rounds):
        fitted = wq / qq
        scale = half(np.where(fitted * best.scale > 0, fitted, best.scale))
        trial, wq, qq = _swept(w, h, scale, zero, grid)
        best = _better(best, trial)
    return best


def _better(a: Candidates, b: Candidates) -> Candidates:
    lower = b.error < a.error
    return Candidates(*(np.where(lower, y, x) for x, y in zip(a, b, strict=True)))


def _best_lane(c: Candidates) -> Candidates:  # (rows, lanes) -> (rows,)
    rows = np.arange(len(c.error))
    lane = c.error.argmin(axis=1)
    return Candidates(*(x[rows, lane] for x in c))


def half(x: np.ndarray) -> np.ndarray:
    """float32 values of the nearest fp16 numbers; what is too large becomes the largest."""
    return np.clip(x, -HALF_MAX, HALF_MAX).astype(np.float16).astype(np.float32)
