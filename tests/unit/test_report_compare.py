"""Which figures a report puts beside each other, against plain definitions."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from paretobit.reports.charts import LETTERS, ROOM, SPOTS, Axis, points
from paretobit.reports.compare import Reading, frontier, headlines, holds, readings, smallest, tasks
from paretobit.reports.results import Result
from paretobit.reports.subjects import Subject

SUBJECT = Subject("a", "tiny", "h", 1000, 8000, 2.0, 1, (), (), 0, None, None)
ROW = Result("kl_divergence", 0.5, "nats", 80, 0.01, "x", "machine", "eval text")


def subject(label: str, *rows: Result, size: int = 1000) -> Subject:
    return replace(SUBJECT, label=label, size_bytes=size, rows=rows)


@pytest.mark.parametrize("seed", range(20))
def test_the_frontier_is_what_nobody_beats(seed: int) -> None:
    random = np.random.default_rng(seed)
    points = [tuple(map(float, point)) for point in random.integers(0, 6, (12, 2))]  # ties and twins are common
    for (x, y), best in zip(points, frontier(points), strict=True):
        beaten = False
        for a, b in points:
            beaten |= (a < x and b <= y) or (a <= x and b < y)
        assert best == (not beaten)


def test_what_most_were_measured_by_is_compared() -> None:
    other = replace(ROW, value=0.1, command="eval other text")
    later = replace(ROW, value=0.4)
    models = [subject("a", ROW, other), subject("b", other), subject("c", later, replace(other, value=0.2))]
    found = readings(models, ("kl_divergence",))
    assert [(r.value, r.alike) for r in found if r] == [(0.1, True), (0.1, True), (0.2, True)]
    # With the other text's rows gone from two, the first text wins, and who lacks it says so.
    models = [subject("a", ROW), subject("b", other), subject("c", later), subject("d")]
    found = readings(models, ("kl_divergence",))
    assert [r and (r.value, r.alike) for r in found] == [(0.5, True), (0.1, False), (0.4, True), None]
    assert readings(models, ("perplexity",)) == [None] * 4


def test_of_equals_the_latest_counts() -> None:
    other = replace(ROW, value=0.1, command="eval other text")
    (found,) = readings([subject("a", ROW, other)], ("kl_divergence",))
    assert found == Reading(0.1, 0.01, 80, "measured", "eval other text")


def test_speed_and_energy_compare_on_one_machine_only() -> None:
    speed = Result("decode_tokens_per_s", 100, "tokens/s", 5, None, "x", "machine", "bench")
    models = [subject("a", speed), subject("b", replace(speed, value=50)), subject("c", replace(speed, hardware="pi"))]
    assert [h.speed and h.speed.alike for h in headlines(models)] == [True, True, False]


def test_time_a_token_stands_in_for_speed() -> None:
    row = Result("ms_per_token", 4.0, "ms", 5, None, "x", "machine", "bench")
    (found,) = headlines([subject("a", row)])
    assert found.speed and found.speed.value == 250


def test_energy_saved_is_counted_from_the_largest() -> None:
    row = Result("joules_per_token_modelled", 0.2, "J", 5, None, "x", "machine", "bench")
    wide, small = subject("wide", row, size=9000), subject("small", replace(row, value=0.05), size=10)
    found = headlines([small, wide])
    assert found[0].saved_joules == pytest.approx(0.75) and found[1].saved_joules is None
    assert found[0].joules and found[0].joules.how == "modelled"
    assert headlines([small])[0].saved_joules is None


def test_measured_energy_goes_before_modelled() -> None:
    modelled = Result("joules_per_token_modelled", 0.2, "J", 5, None, "x", "machine", "bench")
    measured = replace(modelled, metric="joules_per_token", value=0.3)
    for rows in ((modelled, measured), (measured, modelled)):
        (found,) = headlines([subject("a", *rows)])
        assert found.joules and (found.joules.value, found.joules.how) == (0.3, "measured")


def test_the_perplexity_ratio_is_that_of_the_logarithm() -> None:
    row = replace(ROW, metric="ln_perplexity_ratio", value=math.log(1.25), stderr=0.04)
    (found,) = headlines([subject("a", row)])
    assert found.ratio and found.ratio.value == pytest.approx(1.25) and found.ratio.stderr == pytest.approx(0.05)
    (found,) = headlines([subject("a", replace(row, value=1e5))])
    assert found.ratio is None


def test_tasks_are_averaged_over_those_that_all_share() -> None:
    def task(name: str, value: float) -> Result:
        return replace(ROW, metric=f"{name} retained", value=value, stderr=0.03, command=f"eval {name}")

    models = [subject("a", task("x", 0.8), task("y", 0.6)), subject("b", task("x", 0.9)), subject("c")]
    first, second, none = tasks(models)
    assert first and second and none is None
    assert (first.value, second.value, first.n, first.alike) == (0.8, 0.9, 1, True)
    (both,) = tasks(models[:1])
    assert both and both.value == pytest.approx(0.7) and both.stderr == pytest.approx(math.hypot(0.03, 0.03) / 2)
    apart = tasks([models[0], subject("d", task("z", 0.5))])
    assert [r and r.alike for r in apart] == [False, False]


@pytest.mark.parametrize(
    ("value", "stderr", "n", "held"),
    [
        (0.949, 0.0, 80, False),
        (0.95, 0.04, 80, True),
        (0.951, 0.002, 20, False),
        (0.953, 0.002, 20, True),
        (0.96, None, 20, False),
        (0.96, None, 80, True),
    ],
)
def test_a_bar_is_met_on_many_windows_or_by_more_than_the_error(
    value: float, stderr: float | None, n: int, held: bool
) -> None:
    assert holds(Reading(value, stderr, n, "measured", "")) == held


def test_the_smallest_that_keeps_enough() -> None:
    sizes, kept = (300, 100, 200), (0.99, 0.90, 0.96)
    models = [subject(str(size), size=size) for size in sizes]
    assert smallest(models, [Reading(share, 0.001, 80, "measured", "") for share in kept]) == 2
    assert smallest(models, [None, None, None]) is None


@pytest.mark.parametrize("seed", range(10))
def test_names_cover_neither_marks_nor_each_other(seed: int) -> None:
    random = np.random.default_rng(seed)
    n = 7
    models = [subject(f"model {i}") for i in range(n)]
    across = [Reading(float(x), None, 1, "measured", "") for x in random.uniform(10, 300, n)]
    kl = [Reading(float(10**y), 0.0, 1, "measured", "") for y in random.uniform(-4, 1, n)]
    rows = points(Axis("size", "MB"), models, across, kl)
    assert [row["model"] for row in rows] == [model.label for model in models]
    low, high = min(row["x"] for row in rows), max(row["x"] for row in rows)
    top, bottom = (math.log(edge(row["kl"] for row in rows)) for edge in (max, min))
    places = [
        ((row["x"] - low) / (high - low) * ROOM[0], (top - math.log(row["kl"])) / (top - bottom) * ROOM[1])
        for row in rows
    ]
    boxes = []
    for row, (x, y) in zip(rows, places, strict=True):
        if row["spot"] is not None:
            dx, dy = SPOTS[row["spot"]]
            long = 0.6 * LETTERS * len(row["short"])
            left = x + dx - (long if dx < 0 else 0)
            boxes.append((left, left + long, y + dy - LETTERS / 2, y + dy + LETTERS / 2))
    assert len(boxes) >= 4  # few have no room at all
    for i, a in enumerate(boxes):
        for x, y in places:
            assert not (a[0] < x < a[1] and a[2] < y < a[3])
        for b in boxes[:i]:
            assert a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] or b[3] <= a[2]
