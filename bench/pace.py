"""Do predicted milliseconds hold? Random plans of a model, predicted from the machine's profile and measured.

    python -m bench.pace demo:smollm2 demo:gemma3 [--plans 20] [--threads 1,2] [--context 288]
                         [--alternate] [--fastest]

A plan draws a mean width and for each tap's matrices a scheme near it; where one is a trellis, all taps turn. Measured
are blank models (paretobit/evals/blank.py), predictions come from one profile made before. Where neighbours slow the
machine, now more, now less, --alternate times the matrices' schemes again before and after every plan and takes the
mean of both predictions: what is judged then is the model, not how long a profile stays true. --fastest takes the
fastest of all repetitions on both sides instead of medians: what a busy machine does where nobody holds it up. Prints
a table, and median and worst of the errors.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from paretobit import hardware, open_model
from paretobit.checkpoint.base import Checkpoint
from paretobit.evals.blank import blank, decode_ms
from paretobit.pace import CONTEXT, predict
from paretobit.planfile import ROTATE, Layer, Plan, taps
from paretobit.profile import Hardware
from paretobit.scheme import parse
from paretobit.sizes import human
from paretobit.speed import Matrices, Pick, Spread
from paretobit.verbs.bench import parse_threads
from paretobit.verbs.probe import measure_machine

SCHEMES = ("w1t", "w1.5t", "w2t", "w2.5t", "w3t", "w3.5t", "w4t", "w2", "w3", "w4", "w4g64", "w5", "w6", "w8")
TOKENS = 32
AGAIN = 0.06  # seconds a scheme


@dataclass(frozen=True)
class Row:
    """A plan at one number of threads: sizes in bytes, times in milliseconds a token."""

    model: str
    seed: int
    size: int
    threads: int
    predicted: float
    measured: Spread
    judged: float  # of what was measured: the median, or the fastest

    @property
    def error(self) -> float:
        return self.predicted / self.judged - 1

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


class Profile:
    """This machine's, timed again where that is wanted."""

    def __init__(self, teams: tuple[int, ...], alternate: bool, pick: Pick) -> None:
        self.teams, self.machine = teams, measure_machine(teams, SCHEMES, pick)
        self.matrices = Matrices(max(teams), pick) if alternate else None

    def now(self, plan: Plan) -> Hardware:
        if self.matrices is None:
            return self.machine
        schemes = {str(layer.scheme) for layer in plan.layers.values()}
        memory, near, distance = self.matrices.tables(self.teams, schemes, AGAIN, lambda amount: None)
        assert self.machine.speeds is not None
        speeds = replace(
            self.machine.speeds, ns_per_weight=memory, cached_ns_per_weight=near, distance=distance
        )  # fmt: skip
        return replace(self.machine, speeds=speeds)


def rows_of(source: Checkpoint, profile: Profile, given: argparse.Namespace, pick: Pick) -> Iterator[Row]:
    prompt = max(0, given.context - TOKENS // 2)
    for seed in range(given.plans):
        plan = random_plan(source, seed)
        with blank(source, plan) as packed:
            before = profile.now(plan)
            ms = {
                threads: decode_ms(packed, threads, prompt=prompt, tokens=TOKENS, rounds=given.rounds, pick=pick)
                for threads in profile.teams
            }
            after = profile.now(plan)
            for threads, measured in ms.items():
                judged = pick((measured.least, measured.median, measured.most))
                both = [
                    predict(source.arch, plan, machine, threads, given.context).ms_per_token
                    for machine in (before, after)
                ]
                yield Row(source.name, seed, packed.size_bytes, threads, sum(both) / 2, measured, judged)


def summary(rows: list[Row]) -> str:
    lines = []
    for model, threads in dict.fromkeys((row.model, row.threads) for row in rows):
        some = [row for row in rows if (row.model, row.threads) == (model, threads)]
        errors = np.array([abs(row.error) for row in some])
        bias = np.median([row.error for row in some])
        lines.append(
            f"{model}, {threads} thread(s), {len(some)} plans: |predicted ÷ measured − 1| median "
            f"{np.median(errors):.1%}, worst {errors.max():.1%}; median of signed errors {bias:+.1%}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="+")
    parser.add_argument("--plans", type=int, default=20)
    parser.add_argument("--threads", help="numbers of threads, such as 1,2 (default: 1 and all cores)")
    parser.add_argument("--alternate", action="store_true", help="time matrices again around every plan")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--context", type=int, default=CONTEXT, help="positions that a token attends to")
    parser.add_argument("--fastest", action="store_true", help="judge the fastest repetitions, not medians")
    given = parser.parse_args()
    pick: Pick = min if given.fastest else statistics.median
    teams = parse_threads(given.threads, hardware.cores()) if given.threads else tuple({1, hardware.cores()})
    print(f"{hardware.cpu_name()}, {hardware.cores()} cores, {hardware.isa()}; {given.context} positions\n")
    print("| model | seed | size | threads | predicted ms | measured ms | error |\n|---|---|---|---|---|---|---|")
    rows: list[Row] = []
    profile = Profile(teams, given.alternate, pick)
    for model in given.model:
        for row in rows_of(open_model(model), profile, given, pick):
            rows.append(replace(row, model=model))
            print(rows[-1], flush=True)
    print("\n" + summary(rows))


if __name__ == "__main__":
    main()
