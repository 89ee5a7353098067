"""What 8-bit activations cost, and what SmoothQuant and AWQ bring. One row a model, one line a promise.

    python -m bench.activations [MODEL ...] [--windows 8] [--tokens 8192] [--calib self] [--text FILE]
                                [--only activations,weights,outliers] [--awq w3g64] [--trellis w2t]
                                [--keep FOLDER]

MODEL: demo:smollm2 and demo:gemma3 by default. KL is to the original, in nats, mean ± standard error over windows of
512 tokens; the head's activations stay floats. Beside ours stands llama.cpp's Q8_0: its weights as its own rounding
makes them (the gguf package's), embedding included, times activations rounded in blocks of 32 as its kernels do, by
the code that rounds ours; once with the head's activations rounded too, as it does, and once without, which is what
ours are held against. All weights of "activations" are rounded to nearest. Packed models that --keep holds already
are taken as they are.

"outliers" measures no MODEL but two tiny ones of its own, which learn a text and get a few channels 256 times as large
planted behind their norms, with the columns that read them divided by as much (tests/outliers.py). What is promised is
perplexity.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.methods import remembered
from bench.runtime import Line
from paretobit import Artifact, hardware, open_model, quantize
from paretobit.checkpoint.base import Checkpoint
from paretobit.compress.activations import At, Rounding
from paretobit.compress.model import Decoder
from paretobit.evals.divergence import Comparison, compare, paired
from paretobit.evals.perplexity import Logits
from paretobit.evals.text import encode_windows, read_text
from paretobit.planfile import taps
from paretobit.scheme import parse
from paretobit.verbs.evaluate import open_decoder
from tests.checkpoints import CORPUS
from tests.outliers import learned, planted

MODELS = ("demo:smollm2", "demo:gemma3")
STATIC, TOKEN, GROUPED, BLOCK = SCHEMES = ("w8a8s", "w8a8", "w8g32a8", "w8g32a8g32")
SMOOTH, AWQ, TURN = ("smoothquant",), ("awq",), ("rotate",)
Q8_0 = "Q8_0 (blocks of 32)"
FAMILIES = ("llama", "gemma3_text")
BROKEN, RESTORED = 2, 1.02  # perplexity, relative to the original's
HEAD = "head_in"
ROWS = 8192  # of a matrix at a time


class PeerWeights:
    """`source` with every matrix as llama.cpp's Q8_0 holds it."""

    def __init__(self, source: Checkpoint) -> None:
        self.source, self.arch = source, source.arch

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        from gguf import GGMLQuantizationType, quants

        found = self.source.read(name, rows)
        if found.ndim == 1:
            return found
        kind = GGMLQuantizationType.Q8_0
        pieces = (found[start : start + ROWS] for start in range(0, len(found), ROWS))
        return np.concatenate([quants.dequantize(quants.quantize(piece, kind), kind) for piece in pieces])


def peer(source: Checkpoint, head: bool) -> Logits:
    """Logits of Q8_0 weights times activations in blocks of 32; head: those of the head too."""
    grid = parse(BLOCK).activation
    assert grid is not None
    names = [tap.name for tap in taps(source.arch) if tap.kind != "residual" and (head or tap.name != HEAD)]
    return Decoder(PeerWeights(source), rounded=Rounding({name: At(grid) for name in names})).logits


@dataclass
class Bench:
    """One model, its windows, and what is made of it."""

    name: str
    given: argparse.Namespace
    folder: Path

    def __post_init__(self) -> None:
        from paretobit.checkpoint.demo_text import held_out_text

        self.source = open_model(self.name)
        logits, self.tokenizer = open_decoder(self.source, None)
        self.original = remembered(logits)
        text = self.given.text or held_out_text()
        self.windows = encode_windows(self.tokenizer, read_text(text), limit=self.given.windows)
        print(f"\n{self.source.name}, {len(self.windows)} windows of {Path(text).name}, calibration", end=" ")
        print(f"{Path(self.given.calib).name}, {self.given.tokens} tokens; {hardware.isa()}\n")
        print("| scheme | method | transform | MB | KL | perplexity | same top-1 | seconds |\n" + "|---" * 8 + "|")

    def packed(self, scheme: str, method: str, transform: tuple[str, ...] = ()) -> Comparison:
        """Quantize and measure; prints the row."""
        out = self.folder / "-".join((self.source.name, scheme, method, *transform))
        fit = quantize(
            self.name, to=scheme, method=method, transform=transform, out=str(out), calib=self.given.calib,
            tokens=self.given.tokens,
        )  # fmt: skip
        found = self.measured(open_decoder(Artifact(out), None)[0])
        self.show((scheme, method, " + ".join(transform), f"{fit.size_bytes / 1e6:.1f}"), found, fit.seconds)
        return found

    def measured(self, logits: Logits) -> Comparison:
        return compare(logits, self.windows, self.original, bos_id=self.tokenizer.bos_id)

    def show(self, cells: Sequence[str], found: Comparison, seconds: float) -> None:
        kl, same = found.kl_divergence or {}, found.share("same_top1")[0] or 0.0
        quality = f"{kl['mean']:.5f} ± {kl['stderr'] or 0:.5f} | {found.perplexity:.2f} | {same:.1%} | {seconds:.0f}"
        print(f"| {' | '.join(cells)} | {quality} |", flush=True)

    def at_most(self, what: str, a: Comparison, b: Comparison, most: float | None) -> Line:
        """The promise that the KL of a is at most so much of b's; no promise where that is None."""
        ratio = kl(a) / kl(b)
        gap = paired(a, b)
        shown = f"{ratio:.3f} × (paired {gap['kl_difference']:+.5f} ± {gap['kl_difference_stderr'] or 0:.5f})"
        of = Line(f"KL {what}, {self.source.name}", shown)
        return of if most is None else replace(of, wanted=f"≤ {most:g} ×", met=ratio <= most)


def kl(found: Comparison) -> float:
    """Mean, nats."""
    assert found.kl_divergence is not None
    return float(found.kl_divergence["mean"] or 0.0)


def relative(found: Comparison) -> float:
    """Perplexity ÷ the original's."""
    assert found.reference_perplexity is not None
    return found.perplexity / found.reference_perplexity


def activation_lines(bench: Bench) -> Iterator[Line]:
    """W8A8 at three granularities, plain and smoothed, beside Q8_0; a scale a token also with rotated taps."""
    plain, smooth = {}, {}
    for scheme in SCHEMES:
        plain[scheme] = bench.packed(scheme, "rtn")
        smooth[scheme] = bench.packed(scheme, "rtn", SMOOTH)
    turned = bench.packed(TOKEN, "rtn", TURN)
    both = bench.packed(TOKEN, "rtn", SMOOTH + TURN)
    theirs = {}
    for head in (True, False):
        started = time.monotonic()
        theirs[head] = bench.measured(peer(bench.source, head))
        bench.show(
            (Q8_0, "", "" if head else "head's activations in floats", ""), theirs[head], time.monotonic() - started
        )
    for scheme in SCHEMES:
        yield bench.at_most(f"{scheme} smoothed ÷ plain", smooth[scheme], plain[scheme], 0.8)
    yield bench.at_most(f"{BLOCK} smoothed ÷ Q8_0", smooth[BLOCK], theirs[False], 1.1)
    for what, found in ((TOKEN, smooth[TOKEN]), (GROUPED, smooth[GROUPED]), (f"{TOKEN} rotated and", both)):
        yield bench.at_most(f"{what} smoothed ÷ Q8_0", found, theirs[False], 3)
    yield bench.at_most(f"{TOKEN} rotated and smoothed ÷ rotated", both, turned, 1)


def weight_lines(bench: Bench) -> Iterator[Line]:
    """AWQ before each rounding; nothing is promised of a trellis."""
    awq, trellis = bench.given.awq, bench.given.trellis
    for scheme, method, most in ((awq, "rtn", 1), (awq, "gptq", 1), (trellis, "trellis", None)):
        plain, scaled = (bench.packed(scheme, method, transform) for transform in ((), AWQ))
        yield bench.at_most(f"{scheme} awq+{method} ÷ {method}", scaled, plain, most)


def outlier_lines(given: argparse.Namespace, folder: Path) -> Iterator[Line]:
    """Models with outlier channels planted: rounding breaks them, and smoothing restores them."""
    text = folder / "corpus.txt"
    text.write_text(CORPUS * 40)
    for family in FAMILIES:
        model = planted(folder / f"{family}-outliers", learned(folder / family, family))
        own = {"text": text, "calib": str(text), "tokens": 2048, "windows": 4}
        bench = Bench(str(model), argparse.Namespace(**vars(given) | own), folder)
        for scheme in (STATIC, TOKEN, BLOCK):
            found, restored = (relative(bench.packed(scheme, "rtn", transform)) for transform in ((), SMOOTH))
            what = f"perplexity ÷ the original's, {scheme}, outliers planted in {family}"
            yield Line(what, f"{found:.3f} ×", f"≥ {BROKEN:g} ×", found >= BROKEN)
            yield Line(f"{what}, smoothed", f"{restored:.3f} ×", f"≤ {RESTORED:g} ×", restored <= RESTORED)


MODEL_PARTS = {"activations": activation_lines, "weights": weight_lines}
PARTS = (*MODEL_PARTS, "outliers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--calib", default="self")
    parser.add_argument("--text", type=Path, help="held-out text (default: the demo's)")
    parser.add_argument("--awq", default="w3g64", help="the scheme that AWQ is tried on")
    parser.add_argument("--trellis", default="w2t", help="and the trellis")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--keep", type=Path, help="where packed models stay (default: nowhere)")
    given = parser.parse_args()
    parts, lines = given.only.split(","), list[Line]()
    with tempfile.TemporaryDirectory() as folder:
        asked = [of_model for part, of_model in MODEL_PARTS.items() if part in parts]
        for model in given.models if asked else ():
            bench = Bench(model, given, given.keep or Path(folder))
            for of_model in asked:
                lines += of_model(bench)
        if "outliers" in parts:
            lines += outlier_lines(given, Path(folder))
    print("", *lines, sep="\n")


if __name__ == "__main__":
    main()
