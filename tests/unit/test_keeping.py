"""The search behind --keep, on made-up models whose loss is known."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from paretobit.checkpoint import open_model
from paretobit.compress import corpus
from paretobit.errors import ParetobitError
from paretobit.evals.divergence import Comparison
from paretobit.verbs.keeping import METRICS, Judged, Metric, kept_of, parse_keep, parse_metric, search, smallest
from paretobit.verbs.planning import Chosen


def chosen(size: int) -> Chosen:
    """A model of so many bytes, whose divergence is expected to fall by e for every 10 bytes."""
    return Chosen({"all": str(size)}, None, math.exp(-size / 10), 0.0, size, 0.0)  # type: ignore[arg-type]


@dataclass
class World:
    """Sizes from 1 to `most` bytes; what they keep follows from the divergence that is expected, and noise."""

    slope: float
    power: float
    most: int = 200
    noise: float = 0.0
    stderr: float | None = 0.001
    made: int = 0

    def choose(self, nats: float) -> Chosen:
        return chosen(min(max(1, math.ceil(-10 * math.log(nats))), self.most))

    def judge(self, found: Chosen) -> Judged:
        self.made += 1
        wobble = self.noise * math.sin(found.size)
        return Judged(math.exp(-self.slope * found.predicted**self.power) + wobble, self.stderr, 80)

    def least(self, share: float) -> int:
        return next(
            s for s in range(1, self.most + 1) if math.exp(-self.slope * chosen(s).predicted ** self.power) >= share
        )


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95, 0.99])
@pytest.mark.parametrize("slope", [0.05, 0.3, 1.0, 5.0])
@pytest.mark.parametrize("power", [0.5, 1.0])
def test_the_smallest_that_keeps_the_share_is_found_in_a_few_tries(share: float, slope: float, power: float) -> None:
    """The first guess of the slope is off by factors: what is measured sets it right."""
    world = World(slope, power)
    tried = search(Metric("m", 0.3, power), share, world.choose, world.judge)
    best = smallest(tried, share)
    assert best is not None
    assert world.made == len(tried) <= 4
    assert best.found.kept >= share
    assert world.least(share) <= best.chosen.size <= world.least(share) + 2


@pytest.mark.parametrize("power", [0.7, 1.0, 1.4])
@pytest.mark.parametrize("noise", [0.0, 0.004])
def test_a_share_is_kept_by_measurement_where_the_law_is_another(power: float, noise: float) -> None:
    world = World(0.6, power, noise=noise, stderr=0.004)
    tried = search(METRICS["next_token_accuracy"], 0.95, world.choose, world.judge)
    best = smallest(tried, 0.95)
    assert best is not None
    assert best.found.kept >= 0.95
    assert best.chosen.size <= world.least(0.95) * 1.15


def test_where_nothing_keeps_it_the_best_was_tried() -> None:
    world = World(50.0, 1.0, most=30)
    tried = search(METRICS["next_token_accuracy"], 0.95, world.choose, world.judge)
    assert smallest(tried, 0.95) is None
    assert max(t.chosen.size for t in tried) == 30


def test_one_that_cannot_be_told_from_what_is_asked_is_enough() -> None:
    world = World(0.29, 1.0, stderr=0.01)
    assert len(search(METRICS["next_token_accuracy"], 0.95, world.choose, world.judge)) == 1


@pytest.mark.parametrize("said", ["95", "0.95", "0%", "100%", "101%", "-3%", "95%%", "", "%", "nan%", "٩٥%", "1e1%"])
def test_what_is_no_share_is_refused(said: str) -> None:
    with pytest.raises(ParetobitError, match="is no share"):
        parse_keep(said)


def test_shares_and_metrics_are_read() -> None:
    assert parse_keep(" 99.5 %") == pytest.approx(0.995)
    assert parse_metric(None).name == "next_token_accuracy"
    task = parse_metric("task:/some/where/arc.jsonl")
    assert (task.file, task.label) == ("/some/where/arc.jsonl", "task:arc.jsonl")
    for wrong in ("speed", "task:", "same_top1:x", ""):
        if wrong:
            with pytest.raises(ParetobitError, match="is unknown"):
                parse_metric(wrong)


def test_what_a_comparison_keeps() -> None:
    """By hand: two windows, right 0.2 and 0.4 of the time where the original was 0.4 and 0.4."""
    per_window = {
        "hit": np.array([0.2, 0.4]), "reference_hit": np.array([0.4, 0.4]), "same_top1": np.array([0.5, 0.7]),
        "nll": np.array([2.0, 3.0]), "reference_nll": np.array([1.9, 2.9]),
    }  # fmt: skip
    found = Comparison("p", 2, 4, "", per_window, np.ones(4))
    assert kept_of(METRICS["next_token_accuracy"], found) == pytest.approx((0.75, 0.25))
    assert kept_of(METRICS["same_top1"], found) == pytest.approx((0.6, 0.1))
    kept, stderr = kept_of(METRICS["perplexity"], found)
    assert kept == pytest.approx(math.exp(-0.1))
    assert stderr == pytest.approx(0, abs=1e-12)


def test_unseen_text_is_none_of_the_calibration(model: Path, text: Path) -> None:
    source = open_model(str(model))
    seen = corpus.gather(source, str(text), 2048, 0, "cpu").ids
    other = corpus.unseen(source, str(text), 2048, 0, "cpu").ids
    assert len(seen) == 4
    assert len(other) >= corpus.LEAST_UNSEEN
    windows = {row.tobytes() for row in seen}
    assert len(windows & {row.tobytes() for row in other}) == 0
    with pytest.raises(ParetobitError, match=r"too few to judge by.*--check FILE"):
        corpus.unseen(source, str(text), 1 << 20, 0, "cpu")
