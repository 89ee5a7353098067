"""Every rounding method at every width on one model: size, KL divergence, perplexity, agreement, as a Markdown table.

    python bench/methods.py demo:smollm2 [--tokens 8192 --windows 40 --calib self --text FILE --bits 8,4,3,2]

Everything counts, embedding included. All rows share the calibration text and the evaluated windows; the original's
logits are computed once and remembered (2 GB for SmolLM2, 11 GB for Gemma 3 at 40 windows). `±` is the standard error
over windows.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from paretobit import Artifact, hardware, open_model, quantize
from paretobit.evals.divergence import Comparison, compare, paired
from paretobit.evals.perplexity import Logits
from paretobit.evals.text import encode_windows, read_text
from paretobit.verbs.evaluate import open_decoder
from paretobit.verbs.quantize import Fit


def remembered(logits: Logits) -> Logits:
    """The same function, computed once for each batch."""
    known: dict[tuple[bytes, int], np.ndarray] = {}

    def answer(tokens: np.ndarray, first: int) -> np.ndarray:
        key = (tokens.tobytes(), first)
        if key not in known:
            known[key] = logits(tokens, first)
        return known[key]

    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--calib", default="self")
    parser.add_argument("--text", help="held-out text (default: the demo's)")
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--bits", default="8,4,3,2")
    parser.add_argument("--methods", default="rtn,gptq")
    given = parser.parse_args()
    if given.text is None:
        from paretobit.checkpoint.demo_text import held_out_text

        given.text = str(held_out_text())
    source = open_model(given.model)
    logits, tokenizer = open_decoder(source, None)
    original = remembered(logits)
    windows = encode_windows(tokenizer, read_text(Path(given.text)), limit=given.windows)
    text = Path(given.text).name
    print(
        f"{source.name}, {len(windows)} windows of {text}, calibration {given.calib}, {given.tokens} tokens;", end=" "
    )
    print(f"{hardware.isa()}\n\n| scheme | method | MB | bits/weight | KL | perplexity | same top-1 | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    folder = Path(tempfile.mkdtemp())
    for bits in given.bits.split(","):
        scheme, found = f"w{bits}g{given.group}", {}
        for method in given.methods.split(","):
            out = folder / f"{scheme}-{method}"
            fit = quantize(given.model, to=scheme, method=method, out=str(out), calib=given.calib, tokens=given.tokens)
            candidate = open_decoder(Artifact(out), None)[0]
            found[method] = compare(candidate, windows, original, bos_id=tokenizer.bos_id)
            print(row(scheme, method, fit, found[method]), flush=True)
            shutil.rmtree(out)
        if {"rtn", "gptq"} <= set(found):
            gain = paired(found["gptq"], found["rtn"])
            print(f"{scheme}: gptq - rtn: KL {gain['kl_difference']:+.4f} ± {gain['kl_difference_stderr']:.4f}, paired",
                  file=sys.stderr)  # fmt: skip
    one = next(iter(found.values()))
    print(f"\nThe original: perplexity {one.reference_perplexity:.2f}, {source.bits16 / 1e6:.1f} MB in 16 bits.")
    shutil.rmtree(folder)


def row(scheme: str, method: str, fit: Fit, found: Comparison) -> str:
    kl, same = found.kl_divergence or {}, found.share("same_top1")[0] or 0.0
    size = f"{fit.size_bytes / 1e6:.1f} | {fit.bits_per_weight:.3f}"
    quality = f"{kl['mean']:.4f} ± {kl['stderr']:.4f} | {found.perplexity:.2f} | {same:.1%}"
    return f"| {scheme} | {method} | {size} | {quality} | {fit.seconds:.0f} |"


if __name__ == "__main__":
    main()
