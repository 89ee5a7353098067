"""Do predicted milliseconds hold? Random plans of a model, predicted from the machine's profile and measured.

    python -m bench.pace demo:smollm2 demo:gemma3 [--plans 20] [--threads 1,2] [--every 5] [--context 288]

A plan draws a mean width and for each tap's matrices a scheme near it; where one is a trellis, all taps turn. Measured
are blank models (paretobit/evals/blank.py). Machines change their speed: the profile is made anew before every --every
plans, and each of them is judged by the one before it. Prints a table, and medians and worst of the errors.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from paretobit import hardware, open_model
from paretobit.checkpoint.base import Checkpoint
from paretobit.evals.blank import blank, decode_ms
from paretobit.pace import CONTEXT, predict
from paretobit.planfile import ROTATE, Layer, Plan, taps
from paretobit.scheme import parse
from paretobit.sizes import human
from paretobit.speed import Spread
from paretobit.verbs.bench import parse_threads
from paretobit.verbs.probe import measure_machine

SCHEMES = ("w1t", "w2t", "w3t", "w4t", "w2", "w3", "w4", "w4g64", "w5", "w6", "w8")
TOKENS = 32


@dataclass(frozen=True)
class Row:
    """A plan at one number of threads: sizes in bytes, times in milliseconds a token."""

    model: str
    seed: int
    size: int
    threads: int
    predicted: float
    measured: Spread

    @property
    def error(self) -> float:
        return self.predicted / self.measured.median - 1

    def __str__(self) -> str:
        cells = (
            self.model, self.seed, human(self.size), self.threads, f"{self.predicted:.3f}", self.measured.text(3),
            f"{self.error:+.1%}",
        )  # fmt: skip
        return "| " + " | ".join(map(str, cells)) + " |"


def random_plan(source: Checkpoint, seed: int) -> Plan:
    """A scheme for each tap's matrices, near a mean width from 1.5 to 8 bits."""
    random = np.random.default_rng(seed)
    bits = np.array([parse(scheme).weight.bits for scheme in SCHEMES])
    mean, spread = random.uniform(1.5, 8), random.uniform(0.5, 2)
    odds = np.exp(-(((bits - mean) / spread) ** 2) / 2)
    layers: dict[str, Layer] = {}
    for tap in taps(source.arch):
        scheme = parse(str(random.choice(SCHEMES, p=odds / odds.sum())))
        layers |= {name: Layer(scheme, "rtn") for name in tap.consumers}
    turns = any(layer.scheme.weight.kind == "trellis" for layer in layers.values())
    return Plan(source.hash, layers, ({"method": ROTATE, "seed": 0},) if turns else ())


def rows_of(source: Checkpoint, given: argparse.Namespace, teams: tuple[int, ...]) -> Iterator[Row]:
    machine = None
    for seed in range(given.plans):
        if machine is None or seed % given.every == 0:
            machine = measure_machine(teams, SCHEMES)
            print(f"profile made again before seed {seed}", file=sys.stderr)
        plan = random_plan(source, seed)
        with blank(source, plan) as packed:
            for threads in teams:
                found = predict(source.arch, plan, machine, threads, given.context)
                prompt = max(0, given.context - TOKENS // 2)
                ms = decode_ms(packed, threads, prompt=prompt, tokens=TOKENS, rounds=given.rounds)
                yield Row(source.name, seed, packed.size_bytes, threads, found.ms_per_token, ms)


def summary(rows: list[Row]) -> str:
    lines = []
    for model, threads in dict.fromkeys((row.model, row.threads) for row in rows):
        some = [row for row in rows if (row.model, row.threads) == (model, threads)]
        errors = np.array([abs(row.error) for row in some])
        best = np.array([abs(row.predicted / row.measured.least - 1) for row in some])
        lines.append(
            f"{model}, {threads} thread(s), {len(some)} plans: |predicted ÷ measured − 1| median "
            f"{np.median(errors):.1%}, worst {errors.max():.1%}; against the fastest round median {np.median(best):.1%}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="+")
    parser.add_argument("--plans", type=int, default=20)
    parser.add_argument("--threads", help="numbers of threads, such as 1,2 (default: 1 and all cores)")
    parser.add_argument("--every", type=int, default=5, help="plans between two profiles")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--context", type=int, default=CONTEXT, help="positions that a token attends to")
    given = parser.parse_args()
    teams = parse_threads(given.threads, hardware.cores()) if given.threads else tuple({1, hardware.cores()})
    print(f"{hardware.cpu_name()}, {hardware.cores()} cores, {hardware.isa()}; {given.context} positions\n")
    print("| model | seed | size | threads | predicted ms | measured ms | error |\n|---|---|---|---|---|---|---|")
    rows: list[Row] = []
    for model in given.model:
        source = open_model(model)
        for row in rows_of(source, given, teams):
            rows.append(replace(row, model=model))
            print(rows[-1], flush=True)
    print("\n" + summary(rows))


if __name__ == "__main__":
    main()
