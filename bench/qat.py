"""What training buys: the same bytes rounded, rounded with scales trained, and trained for so many steps or minutes.

    python -m bench.qat demo:smollm2 [--calib leads|FILE] [--minutes 30] [--steps 16 64] [--windows 80]
                        [--schemes w2,w2t] [--known] [--draw FOLDER]

Every row is measured as bench/frontier.py measures its own, on windows that nothing has seen, and remembered beside
them: a second run measures what is missing. Rounding calibrates on 32,768 tokens of the text, training reads all of it.
A budget, in steps of 1,024 tokens or in minutes, is a whole schedule, from its first rate to nothing, so the rows of
one scheme are runs of their own; what they say of longer ones is a straight line through the logarithms of divergence
and tokens, extrapolated, and no measurement. Steps lead to the same rows on a machine that is busy.

Ends with the bars: `w2` trained at most half the divergence of the best affine rounding of as many bytes with scales
trained, `w2t` at most 0.9 of what recovery makes of it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import paretobit
from bench.frontier_points import Calibration, Made, Ours, Point, sources
from bench.frontier_rows import Original, Row, Rows, key_of, measure, window_id
from bench.peers.llama_cpp import kept
from bench.pictures import picture
from paretobit import hardware, open_model
from paretobit.artifact import Artifact
from paretobit.checkpoint.base import Checkpoint, hash_files
from paretobit.compress.corpus import gather
from paretobit.evals.text import encode_windows, read_text
from paretobit.planfile import ROTATE, uniform
from paretobit.runtime.tokenizer import Tokenizer

HALF, LESS = 0.5, 0.9
PASSES = 5  # of two operations a parameter and token: teacher, forward, forward again, backward twice
GPU = 4e14  # operations a second that one large GPU does of these: a guess, and called one


@dataclass(frozen=True)
class Trained:
    """One `paretobit train` of so many minutes, or steps."""

    scheme: str
    minutes: float | None = None
    steps: int | None = None
    family = "trained"
    source_grid = False

    @property
    def name(self) -> str:
        return f"{self.scheme} trained " + (f"{self.steps} steps" if self.steps else f"{self.minutes:g} min")

    def key(self, calibration: Calibration) -> dict[str, object]:
        whole = self.minutes and float(self.minutes).is_integer()  # 30 and 30.0 are one row
        effort = {"steps": self.steps} if self.steps else {"minutes": int(self.minutes) if whole else self.minutes}
        return {"scheme": self.scheme, **effort, "data": hash_files([Path(calibration.calib)])}

    def folder(self, source: Checkpoint) -> Path:
        effort = f"{self.steps}-steps" if self.steps else f"{self.minutes:g}"
        return kept(source, "trained") / f"{self.scheme}-{effort}"

    def make(self, name: str, source: Checkpoint, calibration: Calibration, again: bool = False) -> Made:
        out = self.folder(source)
        stamp = out.with_name(out.name + ".sources")
        if again or not stamp.exists() or stamp.read_text() != sources():
            shutil.rmtree(out, ignore_errors=True)
        time = None if self.minutes is None else f"{self.minutes * 60:g}s"
        fit = paretobit.train(name, to=self.scheme, data=calibration.calib, time=time, steps=self.steps, out=str(out),
                              overwrite=True)  # fmt: skip
        stamp.write_text(sources())
        effort = f"--steps {self.steps}" if time is None else f"--time {time}"
        command = f"paretobit train {name} --to {self.scheme} --data {Path(calibration.calib).name} {effort} -o OUT"
        return Made(Artifact(out), fit.size_bytes, fit.seconds, command, f"{self.tokens(source)} tokens")

    def tokens(self, source: Checkpoint) -> int:
        """Tokens that training has read, each as often as it was read."""
        rows = map(json.loads, (self.folder(source) / "training.jsonl").read_text().splitlines())
        return max(int(row.get("tokens", 0)) for row in rows)


def turned(source: Checkpoint, scheme: str) -> Ours:
    """GPTQ onto an affine grid in the basis that the trellis uses: rotated."""
    plan = uniform(source.arch, source.hash, scheme, None, ("gptq",) * 3, {})
    path = kept(source, "trained") / f"{scheme}-rotated.plan"
    path.write_text(replace(plan, transforms=({"method": ROTATE, "seed": 0},)).to_json())
    return Ours("plan", "gptq", {"plan": str(path), "recover": True}, f"{scheme} rotated, scales trained")


def contestants(
    source: Checkpoint, schemes: Sequence[str], minutes: Sequence[float], steps: Sequence[int]
) -> list[Point | Trained]:
    found: list[Point | Trained] = []
    for scheme in schemes:
        if scheme.endswith("t"):
            found += [Ours(scheme, "trellis")]
        else:
            found += [Ours(scheme, "gptq"), Ours(scheme, "gptq", {"recover": True}, "scales trained")]
            found += [turned(source, scheme)]
        found += [Trained(scheme, steps=count) for count in steps] + [Trained(scheme, span) for span in minutes]
    return found


def table(rows: Sequence[Row]) -> str:
    lines = ["| what | MB | bits per weight | KL | perplexity | same top-1 | tokens |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        kl, error = row.mean("kl_divergence")
        cells = [row.name, f"{row.bytes / 1e6:.2f}", f"{row.bits_per_weight:.3f}", f"{kl:.4f} ± {error or 0:.4f}"]
        cells += [f"{row.perplexity:.2f}", f"{row.mean('same_top1')[0]:.1%}", row.note.removesuffix(" tokens")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def seen(row: Row) -> float:
    """Tokens that it was trained on."""
    return float(row.note.split()[0])


def trained(rows: Sequence[Row], scheme: str) -> list[Row]:
    """Those of a scheme, by tokens."""
    return sorted((r for r in rows if r.family == "trained" and r.name.split()[0] == scheme), key=seen)


def line(rows: Sequence[Row]) -> tuple[float, float]:
    """(slope, start) of the straight line through the logarithms of tokens and divergence."""
    slope, start = np.polyfit(np.log([seen(row) for row in rows]), np.log([row.kl for row in rows]), 1)
    return float(slope), float(start)


def gpu_hour(parameters: int) -> float:
    """Tokens."""
    return GPU * 3600 / (2 * PASSES * parameters)


def curve(rows: Sequence[Row], parameters: int) -> str:
    """The line, and where it leads."""
    (slope, start), hour = line(rows), gpu_hour(parameters)
    at = {hours: float(np.exp(start + slope * np.log(hour * hours))) for hours in (0.1, 1, 10)}
    guessed = ", ".join(f"{hours:g} h {kl:.3f}" for hours, kl in at.items())
    return (f"{rows[0].name.split()[0]}: KL falls as tokens^{slope:.3f}; extrapolated to a GPU of {GPU:.0e} operations "
            f"a second ({hour:.1e} tokens an hour, both guesses): {guessed}")  # fmt: skip


def bars(rows: Sequence[Row]) -> list[str]:
    found = []
    for scheme, factor in (("w2", HALF), ("w2t", LESS)):
        mine = trained(rows, scheme)
        most = max((row.bytes for row in mine), default=0)
        before = [row for row in rows if row.family != "trained" and row.bytes <= 1.01 * most
                  and (row.family == "trellis") == scheme.endswith("t")]  # fmt: skip
        if mine and before:
            best, rival = min(mine, key=lambda row: row.kl), min(before, key=lambda row: row.kl)
            ratio = best.kl / rival.kl
            verdict = "met   " if ratio <= factor else "MISSED"
            found.append(f"{verdict} {best.name}: {best.kl:.4f} = {ratio:.2f} × {rival.name}'s, {factor} wanted")
    return found


def draw(rows: Sequence[Row], schemes: Sequence[str], parameters: int, path: Path) -> None:
    """Tokens against divergence; each line goes on, dashed, to what a GPU would see in an hour."""
    with picture(path, (7, 4.5)) as axes:
        for scheme in schemes:
            mine = trained(rows, scheme)
            if not mine:
                continue
            drawn = axes.plot([seen(row) for row in mine], [row.kl for row in mine], "o-", label=f"{scheme} trained")
            if len(mine) > 1:
                slope, start = line(mine)
                ends = np.array([seen(mine[-1]), gpu_hour(parameters)])
                axes.plot(ends, np.exp(start) * ends**slope, "--", color=drawn[0].get_color(), linewidth=1)
        for row in rows:
            if row.family != "trained":
                axes.axhline(row.kl, linestyle=":", linewidth=1, color="grey")
                axes.annotate(
                    row.name, (1, row.kl), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8
                )
        axes.set(xscale="log", yscale="log", xlabel="tokens seen", ylabel="KL divergence (nats)")
        axes.legend()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calib", default="leads")
    parser.add_argument("--minutes", type=float, nargs="*", default=[30.0])
    parser.add_argument("--steps", type=int, nargs="*", default=[16, 64])
    parser.add_argument("--windows", type=int, default=80)
    parser.add_argument("--schemes", default="w2,w2t")
    parser.add_argument("--known", action="store_true", help="measure nothing: print what is known")
    parser.add_argument("--draw", help="folder for the picture")
    given = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from paretobit.checkpoint.demo_text import held_out_text, other_text

    calib = str(other_text()) if given.calib == "leads" else given.calib
    source, text = open_model(given.model), Path(held_out_text())
    calibration = Calibration(calib, 32768, gather(source, calib, 32768, 0, "cpu"))
    windows = encode_windows(Tokenizer(source.companions), read_text(text), limit=given.windows)
    ids, known, rows, original = [window_id(window) for window in windows], Rows(), [], None
    schemes = given.schemes.split(",")
    for point in contestants(source, schemes, given.minutes, given.steps):
        key = key_of(point, source, calibration)  # type: ignore[arg-type]
        if known.get(key, ids) is None and not given.known:
            original = original or Original(source, windows)
            measure(point, given.model, source, calibration, windows, original, known)  # type: ignore[arg-type]
        rows += [row for row in [known.get(key, ids)] if row is not None]
    print(f"{source.name}: {len(windows)} windows of {text.name}; {Path(calib).name}; {hardware.isa()}\n")
    print("\n".join([table(rows), "", *bars(rows)]))
    for scheme in schemes:
        if len(mine := trained(rows, scheme)) > 1:
            print(curve(mine, source.parameters))
    if given.draw:
        draw(rows, schemes, source.parameters, Path(given.draw) / f"qat-{given.model.rpartition(':')[2]}.svg")


if __name__ == "__main__":
    main()
