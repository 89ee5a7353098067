"""Does a wish of milliseconds hold? Models planned for `--fit Nms`, timed again after all of them are planned.

    python -m bench.wishes demo:smollm2 9ms 10ms 12ms 15ms [--calib leads] [--tokens 32768] [--rounds 5]

Predictions come from a profile made at the start, and every plan is timed once while it is being made, as `--fit` does;
nothing that was timed before is remembered. What was planned is then timed round after round, plan after plan, as blank
models of its shapes and schemes (paretobit/evals/blank.py), which compute what the packed ones do. Prints a table:
what the table of costs expects, milliseconds predicted and timed while planning, and measured ÷ wished. A wish that
cannot be met prints what can be had.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paretobit import hardware, open_model
from paretobit.budget import MS
from paretobit.checkpoint.base import Checkpoint
from paretobit.checkpoint.demo_text import other_text
from paretobit.compress.apply import Job
from paretobit.errors import ParetobitError
from paretobit.sizes import human
from paretobit.speed import Spread
from paretobit.verbs.pacing import Machine, timed_ms
from paretobit.verbs.planning import Chosen, Planner, planner_for
from paretobit.verbs.probe import measure_machine
from paretobit.verbs.quantize import SCHEMES
from paretobit.verbs.wishes import Wish, affordable, fitting


@dataclass(frozen=True)
class Granted:
    """A wish, in milliseconds a token, and the plan that is to meet it."""

    wish: float
    found: Chosen


def granted(planner: Planner, wishes: list[str], schemes: str) -> Iterator[Granted]:
    for text in wishes:
        wish = Wish((text,), None, None, None, schemes, False)
        budget = affordable(planner.source, wish)
        try:
            found = fitting(planner, budget, wish)
        except ParetobitError as impossible:
            print(f"{impossible}\n", flush=True)
            continue
        yield Granted(budget.limits()[MS], found)


def timed(source: Checkpoint, wishes: list[Granted], rounds: int) -> Iterator[tuple[Granted, Spread]]:
    """Milliseconds a token of each, over rounds in which all have their turn."""
    times: list[list[float]] = [[] for _ in wishes]
    for _ in range(rounds):
        for one, found in zip(wishes, times, strict=True):
            found.append(timed_ms(source, one.found.plan, hardware.cores()).median)
    for one, found in zip(wishes, times, strict=True):
        yield one, Spread.of(found)


def row(one: Granted, measured: Spread, parameters: int) -> str:
    found = one.found
    cells = (
        f"{one.wish:g}", human(found.size), f"{8 * found.size / parameters:.2f}", f"{found.predicted:.3f}",
        f"{found.timed:.2f}", measured.text(2), f"{measured.median / one.wish:.3f}",
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("wish", nargs="+", help="such as 12ms")
    parser.add_argument("--calib", default="self")
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--schemes", default=SCHEMES)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    source = open_model(given.model)
    text = (str(other_text()) if given.calib == "leads" else given.calib, given.tokens, 0)
    planner, _ = planner_for(source, given.schemes, False, lambda plan: Job(source, plan, None), text)
    print(f"{hardware.cpu_name()}, {hardware.cores()} cores, {hardware.isa()}; {source.name}\n", flush=True)
    profile = measure_machine((hardware.cores(),))
    with tempfile.TemporaryDirectory() as folder:
        planner.machine = Machine(source, profile, True, Path(folder) / "timed.jsonl")
        found = list(granted(planner, given.wish, given.schemes))
        print(
            "| wish, ms | size | bits per weight | KL expected | timed while planning | measured ms | measured ÷ wish |"
        )
        print("|---|---|---|---|---|---|---|")
        ratios = []
        for one, measured in timed(source, found, given.rounds):
            ratios.append(measured.median / one.wish)
            print(row(one, measured, source.parameters), flush=True)
    if ratios:
        off = np.abs(np.array(ratios) - 1)
        print(f"\n{len(ratios)} wishes: |measured ÷ wish − 1| median {np.median(off):.1%}, worst {off.max():.1%}")


if __name__ == "__main__":
    main()
