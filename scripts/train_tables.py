#!/usr/bin/env python3
"""Trains the tables of paretobit/trellis.py on unit Gaussian numbers and prints them with their measured error.

    python scripts/train_tables.py [--bits 1,1.5,2,2.5,3,3.5,4] [--window 8] [--starts 8] [--hops 60] [--seed 0]

Codes by Viterbi search, then the entries by least squares for those codes, in turns: Lloyd's algorithm on a trellis. It
ends in one of very many local optima, so the best is shaken and settles again, `hops` times. Everything is seeded. The
error is of 8,192 rows × 2,000 columns that no training saw; the bound is 4^-bits.
"""

from __future__ import annotations

import argparse

import numpy as np

from paretobit import native, trellis
from paretobit.scheme import TRELLIS_BITS, parse

MOST = 127  # the largest level
LOW = np.arange(256) & 15
HIGH = np.arange(256) >> 4


def search(x: np.ndarray, entries: np.ndarray, deviation: float, bits: float) -> tuple[np.ndarray, np.ndarray, float]:
    """(how often each window occurs (256,), the sum of x there (256,), mean squared error) of unit Gaussian x."""
    codes = np.empty(x.shape, np.uint8)
    scale = np.full(len(x), 1 / deviation, np.float32)
    weight = np.ones(len(x), np.float32)
    for start in range(0, x.shape[1], native.TRELLIS_BLOCK):
        count = min(native.TRELLIS_BLOCK, x.shape[1] - start)
        at = (start, count, None, None, scale, weight, entries, int(2 * bits), codes, None, None, native.isa(), 2)
        native._call("trellis", x, *at)
    found = trellis.windows(codes, bits).ravel()
    level = (entries[LOW] + entries[16 + HIGH]).astype(np.float64) - 63.5
    error = float(np.mean((x.ravel() - level[found] / deviation) ** 2))
    return np.bincount(found, minlength=256), np.bincount(found, x.ravel(), minlength=256), error


def least_squares(count: np.ndarray, total: np.ndarray, free: bool) -> np.ndarray:  # (32,)
    """Real entries, in standard deviations, that fit the sums; free: the high table too."""
    design = np.zeros((256, 32))
    design[np.arange(256), LOW] = 1
    if free:
        design[np.arange(256), 16 + HIGH] = 1
    normal = design.T @ (count[:, None] * design) + 1e-7 * count.sum() * np.eye(32)
    return np.linalg.solve(normal, design.T @ total)


def to_entries(real: np.ndarray, free: bool) -> tuple[np.ndarray, float]:
    """(uint8 entries, levels a standard deviation): as large as 0 … 127 allow, the middle at 63.5."""
    low, high = real[:16], real[16:] if free else np.zeros(16)
    deviation = (MOST - 1) / (np.ptp(low) + np.ptp(high))
    a = np.rint((low - low.min()) * deviation)
    # value = (a + b - 63.5) / deviation: b makes up for the shift of a, and what is off centre stays off
    b = np.rint((high + low.min()) * deviation + MOST / 2)
    b = np.clip(b - min(0, b.min()), 0, MOST - a.max())
    return np.concatenate([a, b]).astype(np.uint8), float(deviation)


def settle(
    real: np.ndarray, bits: float, free: bool, rng: np.random.Generator, rounds: int, columns: int
) -> np.ndarray:
    """Lloyd's turns from `real` entries on fresh numbers."""
    for _ in range(rounds):
        entries, deviation = to_entries(real, free)
        count, total, _ = search(rng.standard_normal((columns, 512)).astype(np.float32), entries, deviation, bits)
        real = least_squares(count, total, free)
    return real


def train(bits: float, window: int, starts: int, hops: int, seed: int) -> tuple[np.ndarray, float]:
    """(entries, deviation): the best of some random starts and of the tables there are, then shaken again and again."""
    free, rng = window == 8, np.random.default_rng([seed, int(2 * bits), window])
    judge = np.random.default_rng([seed, 1]).standard_normal((2048, 512)).astype(np.float32)

    def judged(real: np.ndarray) -> tuple[float, np.ndarray]:
        return search(judge, *to_entries(real, free), bits)[2], real

    found = []
    if (bits, window) in trellis.TABLES:
        low, high, deviation = trellis.TABLES[bits, window]
        found.append(judged(np.array([*low, *(np.array(high) - 63.5)]) / deviation))
    for _ in range(starts):
        found.append(judged(settle(rng.standard_normal(32) * (0.7 if free else 1.0), bits, free, rng, 24, 512)))
    best = min(found, key=lambda f: f[0])
    for hop in range(hops):
        shaken = best[1] + rng.standard_normal(32) * rng.choice([0.02, 0.05, 0.1, 0.2])
        new = judged(settle(shaken, bits, free, rng, 6, 1024))
        if new[0] < best[0]:
            best = new
            print(f"bits {bits}, hop {hop}: {best[0]:.5f}", flush=True)
    return to_entries(best[1], free)


def measure(entries: np.ndarray, deviation: float, bits: float) -> float:
    """Mean squared error of 8,192 rows × 2,000 columns of unit Gaussian numbers, seeded."""
    rng = np.random.default_rng(20)
    errors = [
        search(rng.standard_normal((8192, 500)).astype(np.float32), entries, deviation, bits)[2] for _ in range(4)
    ]
    return float(np.mean(errors))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", default=",".join(f"{bits}" for bits in TRELLIS_BITS))
    parser.add_argument("--window", type=int, choices=[4, 8], default=8)
    parser.add_argument("--starts", type=int, default=8)
    parser.add_argument("--hops", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for text in given.bits.split(","):
        bits = parse(f"w{text}t{given.window}").weight.bits
        entries, deviation = train(bits, given.window, given.starts, given.hops, given.seed)
        low, high = (tuple(int(e) for e in part) for part in (entries[:16], entries[16:]))
        error = measure(entries, deviation, bits)
        print(f"    ({bits}, {given.window}): ({low}, {high}, {deviation:.3f}),")
        print(f"error {error:.5f}: {4**bits * error:.3f} × 4^-{bits}", flush=True)


if __name__ == "__main__":
    main()
