"""Time and memory of GPTQ on a whole model, as a ratio to the matrix products it cannot do without.

    python bench/quantize.py [--model demo:smollm2] [--tokens 32768] [--runs 3]

The limit: (2 · tokens · block parameters + 2 · tokens · Σ over taps of width²) ÷ the sgemm speed of the same run, that
is, one forward pass of the blocks and one Gram matrix a tap, at the speed of a large square product. Product and
quantization alternate; the ratio's smallest and largest value show the spread. Each run is a process of its own, for
its peak memory.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def sgemm(seconds: float = 3.0) -> float:
    """Median float32 operations a second of a 2048 × 2048 product with torch's own thread count."""
    import torch

    a, speeds = torch.randn(2048, 2048), []
    a @ a
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        a @ a
        speeds.append(2 * 2048**3 / (time.perf_counter() - start))
    return statistics.median(speeds)


def one_run(model: str, tokens: int, scheme: str, inputs: str, out: str, calib: str) -> None:
    """Quantize in this process between two measurements of the product; print what was measured as JSON."""
    import torch

    from paretobit import hardware, open_model, quantize
    from paretobit.compress import apply, estimate

    source = open_model(model)
    before = sgemm()
    fit = quantize(model, to=scheme, out=out, calib=calib, tokens=tokens, inputs=inputs, recover=False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    speed = (before + sgemm()) / 2
    arch = source.arch
    shapes = [shape for layer in range(arch.layers) for shape in arch.block_shapes(layer).values() if len(shape) == 2]
    widths = [tap.width for layer in range(arch.layers) for tap in arch.taps(layer)]
    work = 2 * tokens * (sum(map(math.prod, shapes)) + sum(w * w for w in widths))
    needs = frozenset({"hessian", "cross"} if inputs == "sequential" else {"hessian"})
    facts = {"seconds": fit.seconds, "limit": work / speed, "peak": peak, "gflops": speed / 1e9}
    facts["predicted_seconds"] = estimate.seconds(arch, tokens, needs, speed)
    facts["predicted_peak"] = estimate.peak_bytes(arch, tokens, needs, apply.ROWS_PER_CHUNK)
    print(json.dumps(facts | {"isa": hardware.isa(), "threads": torch.get_num_threads()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo:smollm2")
    parser.add_argument("--scheme", default="w3g64")
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--calib", help="text file (default: the demo's text)")
    parser.add_argument("--inputs", choices=["full", "sequential", "both"], default="both")
    parser.add_argument("--one", nargs=2, metavar=("INPUTS", "OUT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.calib is None:
        from paretobit.checkpoint.demo_text import held_out_text

        given.calib = str(held_out_text())
    if given.one:
        one_run(given.model, given.tokens, given.scheme, given.one[0], given.one[1], given.calib)
        return
    kinds = ["full", "sequential"] if given.inputs == "both" else [given.inputs]
    found: dict[str, list[dict]] = {kind: [] for kind in kinds}
    for _ in range(given.runs):
        for kind in kinds:
            folder = Path(tempfile.mkdtemp())
            command = [
                sys.executable,
                __file__,
                "--model",
                given.model,
                "--scheme",
                given.scheme,
                "--calib",
                given.calib,
            ]
            command += ["--tokens", str(given.tokens), "--one", kind, str(folder / "out")]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[kind].append(json.loads(done.stdout))
            shutil.rmtree(folder)
    for kind, runs in found.items():
        ratios = sorted(run["seconds"] / run["limit"] for run in runs)
        peak = max(run["peak"] for run in runs) / 1e9
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} … {ratios[-1]:.2f})"
        seconds = statistics.median(run["seconds"] for run in runs)
        at = runs[-1]
        print(f"{kind} inputs: {spread} × the matrix products; {seconds:.0f} s, peak {peak:.2f} GB")
        print(f"  predicted {at['predicted_seconds']:.0f} s, {at['predicted_peak'] / 1e9:.2f} GB")
        print(f"  {given.model} {given.scheme}, {given.tokens} tokens; {at['gflops']:.0f} GFLOP/s, {at['isa']}, "
              f"{at['threads']} threads")  # fmt: skip


if __name__ == "__main__":
    main()
