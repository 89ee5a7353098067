"""Several sequences at once: what a step costs that gives each of them one token, against one alone and a prompt.

    python -m bench.batch OUT... [--threads 1] [--rounds 5] [--processor-time]

Run it from the repository's root. Numbers of sequences take turns in every round, a figure is the median of all rounds.
--processor-time counts the time that this process computes, for a machine on which others do too; with one thread only.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from paretobit.artifact import Artifact
from paretobit.runtime.session import Session
from paretobit.speed import Spread

COUNTS = (1, 2, 4, 8, 16)
BEFORE, STEPS, PROMPT = 32, 8, 256  # tokens that a sequence holds; of a measurement


def step_s(session: Session, slots: list[int], clock: Callable[[], float]) -> float:
    """Seconds of a step with one token of each slot; slots hold afterwards what they held."""
    tokens = np.random.default_rng(1).integers(0, session.arch.vocab, (STEPS, len(slots)))
    start = clock()
    for step in tokens:
        session.step([(slot, [int(token)], 0) for slot, token in zip(slots, step, strict=True)])
    seconds = (clock() - start) / STEPS
    for slot in slots:
        session.truncate(slot, BEFORE)
    return seconds


def prompt_s(session: Session, clock: Callable[[], float]) -> float:
    slot, prompt = session.open(), np.random.default_rng(2).integers(0, session.arch.vocab, PROMPT)
    start = clock()
    session.feed(slot, prompt.tolist())
    seconds = clock() - start
    session.close(slot)
    return seconds


def rows(out: Path, threads: int, rounds: int, clock: Callable[[], float]) -> None:
    session = Session(Artifact(out), threads)
    slots = [session.open() for _ in range(max(COUNTS))]
    for slot in slots:
        session.feed(slot, np.random.default_rng(slot).integers(0, session.arch.vocab, BEFORE).tolist())
    steps: dict[int, list[float]] = {count: [] for count in COUNTS}
    prompts = []
    for turn in range(rounds + 1):
        found = {count: step_s(session, slots[:count], clock) for count in COUNTS}
        prompt = PROMPT / prompt_s(session, clock)
        if turn:  # the first one warms caches up
            prompts.append(prompt)
            for count, seconds in found.items():
                steps[count].append(1e3 * seconds)
    prefill = Spread.of(prompts)
    for count in COUNTS:
        ms = Spread.of(steps[count])
        speed = 1e3 * count / ms.median
        print(
            f"| {out.name} | {threads} | {count} | {ms.text(2)} | {speed:.0f} | "
            f"{speed * Spread.of(steps[1]).median / 1e3:.2f} | {speed / prefill.median:.2f} |"
        )
    print(f"| {out.name} | {threads} | a prompt of {PROMPT} | | {prefill.text(0)} | | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="+")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processor-time", action="store_true")
    given = parser.parse_args()
    if given.processor_time and given.threads != 1:
        parser.error("--processor-time wants --threads 1: it adds up what all threads compute")
    print("| model | threads | sequences | ms a step | tokens/s | of one alone | of prefill |")
    print("|---|---|---|---|---|---|---|")
    for out in given.out:
        rows(out, given.threads, given.rounds, time.process_time if given.processor_time else time.perf_counter)


if __name__ == "__main__":
    main()
