"""Do the planner's predictions hold? Divergence predicted and measured: of single schemes, random mixtures, choices.

    python -m bench.planner demo:smollm2 demo:gemma3 [--calib leads] [--tokens 32768] [--random 30] [--draw docs]

Measured is what the bank's tensors have when put together, on 8 windows of the calibration text; the sum is that of the
cost table, and predicted what the planner makes of it before it has measured anything. Random mixtures draw a mean
width between 2 and 6 bits, and for each matrix a scheme near it.
Prints how much of what matrices cost comes from errors at the first position, which all others attend to; a table,
Spearman's rank correlation and the ratios' spread; --draw writes planner-MODEL.svg (needs matplotlib).
What is measured stays in the cache.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.pictures import picture
from paretobit import hardware, open_model
from paretobit.budget import BYTES
from paretobit.checkpoint.demo_text import other_text
from paretobit.compress.apply import Job
from paretobit.costs import Costs
from paretobit.planfile import is_embedding
from paretobit.scheme import parse
from paretobit.sizes import tensor_bytes
from paretobit.verbs.planning import Planner, planner_for
from paretobit.verbs.quantize import SCHEMES

UNIFORM, RANDOM, CHOSEN = KINDS = ("one scheme", "random", "chosen")
COLOURS = {UNIFORM: "#4477aa", RANDOM: "#999999", CHOSEN: "#228833"}
CHOSEN_BITS = (2.0, 2.25, 2.5, 2.75, 3.0, 3.25, 3.6, 4.0, 4.25)


@dataclass(frozen=True)
class Row:
    kind: str
    name: str
    bits: float  # of the matrices, over their weights
    predicted: float
    measured: float


def uniform(planner: Planner) -> Iterator[tuple[str, dict[str, str]]]:
    """Blocks on one scheme, the embedding on the same, and one and two steps wider."""
    schemes = planner.table.schemes
    names = [name for names in planner.members.values() for name in names]
    for i, blocks in enumerate(schemes):
        for ends in schemes[i : i + (3 if parse(blocks).weight.bits < 5 else 1)]:
            yield f"{blocks}, embedding {ends}", {name: ends if is_embedding(name) else blocks for name in names}


def random_mixtures(planner: Planner, count: int) -> Iterator[tuple[str, dict[str, str]]]:
    schemes = planner.table.schemes
    bits = np.array([parse(scheme).weight.bits for scheme in schemes])
    for seed in range(count):
        random = np.random.default_rng(seed)
        mean, spread = random.uniform(2, 6), random.uniform(0.3, 1.5)
        odds = np.exp(-(((bits - mean) / spread) ** 2) / 2)
        picked = {group: str(random.choice(schemes, p=odds / odds.sum())) for group in planner.members}
        yield f"seed {seed}", {name: picked[group] for group, names in planner.members.items() for name in names}


def chosen(planner: Planner) -> Iterator[tuple[str, dict[str, str]]]:
    parameters = planner.source.parameters
    for bits in CHOSEN_BITS:
        yield f"--fit {bits}bpw", dict(planner.choose({BYTES: bits * parameters / 8}).schemes)


def rows_of(planner: Planner, count: int) -> list[Row]:
    shapes, found = planner.source.arch.shapes(), list[Row]()
    weights = sum(shapes[name][0] * shapes[name][1] for names in planner.members.values() for name in names)
    for kind, plans in zip(KINDS, (uniform(planner), random_mixtures(planner, count), chosen(planner)), strict=True):
        for name, schemes in plans:
            nbytes = sum(tensor_bytes(parse(scheme), shapes[matrix]) for matrix, scheme in schemes.items())
            added, _ = planner.table.costs.predicted(schemes)
            predicted, measured = planner.mixture(schemes), planner.table.measured.divergence(schemes)
            row = Row(kind, name, 8 * nbytes / weights, predicted, measured)
            print(f"| {kind} | {name} | {row.bits:.2f} | {added:.4f} | {predicted:.4f} | {measured:.4f} |", flush=True)
            found.append(row)
    return found


def at_first(costs: Costs) -> str:
    """Of what matrices of a kind cost together, what the first position does: the median over schemes."""
    whole, first = costs.mean(), costs.first.mean(0)
    kinds: dict[str, list[int]] = {}
    for i, name in enumerate(costs.names):
        kinds.setdefault(name.split(".")[-2], []).append(i)
    shares = {kind: np.median(first[rows].sum(0) / whole[rows].sum(0)) for kind, rows in kinds.items()}
    return "from the first position: " + ", ".join(f"{kind} {share:.0%}" for kind, share in sorted(shares.items()))


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of ranks; the values are all different."""
    ranks = (np.argsort(np.argsort(x)) for x in (a, b))
    return float(np.corrcoef(*ranks)[0, 1])


def summary(rows: list[Row]) -> str:
    lines = []
    for kind in KINDS:
        some = [row for row in rows if row.kind == kind]
        ratio = np.array([row.measured / row.predicted for row in some])
        rank = spearman(np.array([row.predicted for row in some]), np.array([row.measured for row in some]))
        lines.append(
            f"{kind}: {len(some)} plans, rank correlation {rank:.4f}, measured ÷ predicted {np.median(ratio):.3f} "
            f"({ratio.min():.3f}–{ratio.max():.3f})"
        )
    return "\n".join(lines)


def draw(rows: list[Row], model: str, path: Path) -> None:
    with picture(path, (6, 6)) as axes:
        everything = [value for row in rows for value in (row.predicted, row.measured)]
        ends = [min(everything), max(everything)]
        axes.plot(ends, ends, color="#cccccc", zorder=1)
        for kind in KINDS:
            some = [row for row in rows if row.kind == kind]
            axes.scatter(
                [r.predicted for r in some], [r.measured for r in some], 18, COLOURS[kind], label=kind, zorder=2
            )
        axes.set(xscale="log", yscale="log", xlabel="predicted KL divergence, nats", ylabel="measured", title=model)
        axes.legend()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="+")
    parser.add_argument("--calib", default="self")
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--schemes", default=SCHEMES)
    parser.add_argument("--random", type=int, default=30)
    parser.add_argument("--draw", help="folder for the pictures")
    given = parser.parse_args()
    calib = str(other_text()) if given.calib == "leads" else given.calib
    for model in given.model:
        source = open_model(model)
        text = (calib, given.tokens, 0)
        planner, corpus = planner_for(source, given.schemes, False, lambda plan, s=source: Job(s, plan, None), text)
        print(f"\n{source.name}, calibration {corpus.source}, {hardware.isa()}\n")
        print(at_first(planner.table.costs) + "\n")
        print("| kind | plan | bits per weight | sum | predicted | measured |\n|---|---|---|---|---|---|", flush=True)
        rows = rows_of(planner, given.random)
        print("\n" + summary(rows), flush=True)
        if given.draw:
            draw(rows, model, Path(given.draw) / f"planner-{model.rpartition(':')[2].rpartition('/')[2]}.svg")


if __name__ == "__main__":
    main()
