"""Which figures of several models stand beside each other, who is on the frontier, and who is the smallest that keeps
enough."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from paretobit.budget import JOULES, MS
from paretobit.evals.divergence import ENOUGH_WINDOWS
from paretobit.reports.results import Result
from paretobit.reports.subjects import Subject, how

BAR = 0.95  # of the original's next-token accuracy
KEPT, SAME, KL, LN_RATIO = "next_token_accuracy_retained", "same_top1", "kl_divergence", "ln_perplexity_ratio"
SPEED = "decode_tokens_per_s"
TASK = " retained"  # how the metric of a task's share kept above chance ends

Key = Callable[[Result], Hashable]


@dataclass(frozen=True)
class Reading:
    """One figure of a model. stderr: None where there is none; alike: measured as most of the others' were, so that the
    two compare; how: measured or modelled."""

    value: float
    stderr: float | None
    n: int
    how: str
    command: str
    alike: bool = True


@dataclass(frozen=True)
class Headline:
    """What stands on top of a report for one model, None where nobody measured it. kept, same, tasks: shares; kl: nats;
    ratio: perplexity ÷ the original's; speed: tokens/s; joules: a token; saved_joules: share of `baseline`'s."""

    kept: Reading | None
    same: Reading | None
    tasks: Reading | None
    kl: Reading | None
    ratio: Reading | None
    speed: Reading | None
    joules: Reading | None
    saved_joules: float | None = None


def by_command(row: Result) -> Hashable:
    return row.metric, row.command


def by_machine(row: Result) -> Hashable:
    """Time and energy compare on one machine only."""
    return row.metric, row.command, row.hardware


def readings(subjects: Sequence[Subject], metrics: Sequence[str], key: Key = by_command) -> list[Reading | None]:
    """One figure a model: of the way of measuring that most of them share, the first of `metrics` and the latest row
    among equals; of a model that was not measured this way, its own latest, which is not alike."""
    counts = Counter(key(row) for subject in subjects for row in subject.rows if row.metric in metrics)
    if not counts:
        return [None] * len(subjects)

    def rank(row: Result) -> tuple[int, int]:
        return counts[key(row)], -list(metrics).index(row.metric)

    best = None
    for subject in subjects:
        for row in subject.rows:
            if row.metric in metrics and (best is None or rank(row) >= rank(best)):
                best = row
    assert best is not None
    found: list[Reading | None] = []
    for subject in subjects:
        ours = [row for row in subject.rows if row.metric in metrics]
        same = [row for row in ours if key(row) == key(best)]
        found.append(_reading((same or ours)[-1], bool(same)) if ours else None)
    return found


def _reading(row: Result, alike: bool) -> Reading:
    return Reading(row.value, row.stderr, row.n, how(row), row.command, alike)


def headlines(subjects: Sequence[Subject]) -> list[Headline]:
    """Of every model, in the order of `subjects`."""
    columns = [readings(subjects, (metric,)) for metric in (KEPT, SAME)]
    kl, ratio = readings(subjects, (KL,)), [_exp(r) for r in readings(subjects, (LN_RATIO,))]
    speed = readings(subjects, (SPEED,), by_machine)
    if not any(speed):
        speed = [_per_second(r) for r in readings(subjects, (MS,), by_machine)]
    joules = readings(subjects, (JOULES, f"{JOULES}_modelled"), by_machine)
    base = baseline(subjects, joules)
    saved = [None if base is None else _saved(joules[base], each) for each in joules]
    if base is not None:
        saved[base] = None
    rows = zip(*columns, tasks(subjects), kl, ratio, speed, joules, saved, strict=True)
    return [Headline(*row) for row in rows]


def baseline(subjects: Sequence[Subject], joules: Sequence[Reading | None]) -> int | None:
    """The model that energy saved is counted from: the largest of those measured alike; None of fewer than two."""
    known = [i for i, reading in enumerate(joules) if reading and reading.alike]
    return max(known, key=lambda i: subjects[i].size_bytes) if len(known) > 1 else None


def _saved(base: Reading | None, own: Reading | None) -> float | None:
    if base is None or own is None or not own.alike or base.value <= 0:
        return None
    return 1 - own.value / base.value


def _exp(reading: Reading | None) -> Reading | None:
    if reading is None or reading.value > 700:  # a model so broken has no ratio worth printing
        return None
    value = math.exp(reading.value)
    stderr = None if reading.stderr is None else value * reading.stderr
    return Reading(value, stderr, reading.n, reading.how, reading.command, reading.alike)


def _per_second(reading: Reading | None) -> Reading | None:
    if reading is None or reading.value <= 0:
        return None
    return Reading(1000 / reading.value, None, reading.n, reading.how, reading.command, reading.alike)


def tasks(subjects: Sequence[Subject]) -> list[Reading | None]:
    """The mean over tasks of what is kept above chance: of the tasks that all models with any share, or of a model's
    own where they share none."""
    own: list[dict[Hashable, Result]] = [
        {by_command(row): row for row in subject.rows if row.metric.endswith(TASK)} for subject in subjects
    ]
    shared = set.intersection(*(set(rows) for rows in own if rows)) if any(own) else set()
    found: list[Reading | None] = []
    for rows in own:
        used = [row for key, row in rows.items() if not shared or key in shared]
        if not used:
            found.append(None)
            continue
        errors = [row.stderr for row in used if row.stderr is not None]
        stderr = math.sqrt(sum(error**2 for error in errors)) / len(used) if len(errors) == len(used) else None
        mean = sum(row.value for row in used) / len(used)
        alone = sum(map(bool, own)) == 1
        found.append(Reading(mean, stderr, len(used), how(used[0]), used[0].command, bool(shared) or alone))
    return found


def frontier(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Of each point (cost, loss) whether no other is as good in both and better in one. The lower the better."""
    return [
        not any(
            a <= x and b <= y and (a, b) != (x, y)  # as good in both, and not the same
            for a, b in points
        )
        for x, y in points
    ]


def holds(reading: Reading) -> bool:
    """Whether a share kept is above the bar, and not by chance."""
    sure = reading.n >= ENOUGH_WINDOWS or (reading.stderr is not None and reading.value - BAR > reading.stderr)
    return reading.value >= BAR and sure


def smallest(subjects: Sequence[Subject], kept: Sequence[Reading | None]) -> int | None:
    """The number of the smallest model that keeps BAR, None where none does."""
    good = [i for i, reading in enumerate(kept) if reading is not None and holds(reading)]
    return min(good, key=lambda i: subjects[i].size_bytes) if good else None
