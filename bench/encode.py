"""Speed of the trellis' Viterbi search, a core and all of them, beside the float32 products of the same run.

    python -m bench.encode [--rows 4096] [--columns 512] [--rounds 5]

Million weights a second, median of the rounds with the smallest and the largest; a weight is searched three times round
its ring. "products" are weights · 256 windows · 3 turns · 2 operations over the speed of a 2048 × 2048 product: how many
times longer than the bare arithmetic of all windows a search takes.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from paretobit import hardware, native, trellis
from paretobit.scheme import parse

WINDOW_OPERATIONS = 256 * 3 * 2


def product_flops() -> float:
    a = np.random.default_rng(0).standard_normal((2048, 2048)).astype(np.float32)
    a @ a
    start = time.perf_counter()
    a @ a
    return 2 * 2048**3 / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    cores = hardware.cores()
    print(f"{native.isa()}, {cores} cores, {given.rows} × {given.columns} weights, {given.rounds} rounds\n")
    print(f"| scheme | M weights/s, 1 core | {cores} cores | × bare arithmetic at sgemm speed |")
    print("|---|---|---|---|")
    weight = np.ones(given.rows, np.float32)
    for scheme in ("w1t", "w2t", "w3t", "w4t"):
        grid, speeds, products = parse(scheme).weight, {1: [], cores: []}, []
        x = np.random.default_rng(1).standard_normal((given.rows, given.columns)).astype(np.float32)
        x *= np.float32(trellis.deviation(grid))
        for _ in range(given.rounds):
            products.append(product_flops())
            for threads, found in speeds.items():
                start = time.perf_counter()
                native.trellis_encode(x, weight, grid, threads=threads)
                found.append(x.size / (time.perf_counter() - start) / 1e6)
        bare = statistics.median(products) / WINDOW_OPERATIONS / 1e6
        one, all_ = (f"{statistics.median(s):.1f} ({min(s):.1f}–{max(s):.1f})" for s in speeds.values())
        print(f"| {scheme} | {one} | {all_} | {bare / statistics.median(speeds[cores]):.2f} |")


if __name__ == "__main__":
    main()
