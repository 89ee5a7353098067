"""Speed of the trellis' Viterbi search, a core and all of them, beside the float32 products of the same run.

    python -m bench.encode [--rows 4096] [--columns 512] [--rounds 5]

Million weights a second, median of the rounds with the smallest and the largest; every weight is passed three times.
The last column is the limit: how many times longer a search takes than its bare arithmetic (256 windows · 3 turns · 2
operations a weight) would at the speed of a 2048 × 2048 product.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from paretobit import hardware, native, trellis
from paretobit.scheme import TRELLIS_BITS, parse

WINDOW_OPERATIONS = 256 * 3 * 2


def product_flops() -> float:
    a = np.random.default_rng(0).standard_normal((2048, 2048)).astype(np.float32)
    a @ a
    start = time.perf_counter()
    a @ a
    return 2 * 2048**3 / (time.perf_counter() - start)


def spread(speeds: list[float]) -> str:
    return f"{statistics.median(speeds):.1f} ({min(speeds):.1f}–{max(speeds):.1f})"


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
    for scheme in (f"w{bits}t" for bits in TRELLIS_BITS):
        grid, products = parse(scheme).weight, []
        speeds: dict[int, list[float]] = {threads: [] for threads in sorted({1, cores})}
        x = np.random.default_rng(1).standard_normal((given.rows, given.columns)).astype(np.float32)
        x *= np.float32(trellis.deviation(grid))
        for _ in range(given.rounds):
            products.append(product_flops())
            for threads, found in speeds.items():
                start = time.perf_counter()
                native.trellis_encode(x, weight, grid, threads=threads)
                found.append(x.size / (time.perf_counter() - start) / 1e6)
        bare = statistics.median(products) / WINDOW_OPERATIONS / 1e6
        one, every = (spread(speeds[threads]) for threads in (1, cores))
        print(f"| {scheme} | {one} | {every} | {bare / statistics.median(speeds[cores]):.2f} |")


if __name__ == "__main__":
    main()
