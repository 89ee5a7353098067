"""The solver against every combination there is, and what it says where nothing fits."""

from __future__ import annotations

import itertools
import math
import os

import numpy as np
import pytest

from paretobit.errors import ParetobitError
from paretobit.solve import Choice, Impossible, Solution, quiet, solve, totals

Groups = dict[str, list[Choice]]


def made(seed: int, groups: int, choices: int) -> Groups:
    """Random groups whose larger choices cost less, as schemes do, with some noise."""
    random = np.random.default_rng(seed)
    found: Groups = {}
    for group in range(groups):
        weight = random.uniform(1, 10)
        found[f"g{group}"] = [
            Choice(f"w{k}", {
                "cost": weight * 4.0**-k * random.uniform(0.5, 2), "bytes": k * random.uniform(0.9, 1.1),
                "ms": random.uniform(0.5, 1.5),
            })
            for k in range(1, choices + 1)
        ]  # fmt: skip
    return found


def by_hand(groups: Groups, limits: dict[str, float], minimize: str, fixed: dict[str, float]) -> float:
    """The least of `minimize` over all combinations that fit; infinite where none does."""
    best = math.inf
    for keys in itertools.product(*([c.key for c in choices] for choices in groups.values())):
        found = totals(groups, dict(zip(groups, keys, strict=True)), fixed)
        if all(found[name] <= limit for name, limit in limits.items()):
            best = min(best, found[minimize])
    return best


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("limits", [{"bytes": 11.0}, {"bytes": 12.0, "ms": 4.5}, {"ms": 4.0}])
def test_it_finds_the_best_of_all_combinations(seed: int, limits: dict[str, float]) -> None:
    groups, fixed = made(seed, 5, 4), {"bytes": 0.7}
    best = by_hand(groups, limits, "cost", fixed)
    found = solve(groups, limits, "cost", fixed)
    assert found.totals["cost"] == pytest.approx(best, rel=1e-5)
    assert all(found.totals[name] <= limit for name, limit in limits.items())
    assert found.totals == totals(groups, found.picked, fixed)
    assert 0 <= found.gap <= 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_the_smallest_of_a_given_quality_is_the_same_question(seed: int) -> None:
    groups = made(seed, 5, 4)
    best = by_hand(groups, {"cost": 2.0}, "bytes", {})
    assert solve(groups, {"cost": 2.0}, "bytes").totals["bytes"] == pytest.approx(best, rel=1e-5)


def test_what_came_out_before_can_be_left_out() -> None:
    groups, seen = made(3, 4, 3), list[Solution]()
    for _ in range(5):
        seen.append(solve(groups, {"bytes": 9.0}, "cost", exclude=[found.picked for found in seen]))
    costs = [found.totals["cost"] for found in seen]
    assert costs == sorted(costs)
    everything = []
    for keys in itertools.product(*([c.key for c in choices] for choices in groups.values())):
        found = totals(groups, dict(zip(groups, keys, strict=True)))
        if found["bytes"] <= 9.0:
            everything.append(found["cost"])
    assert costs == pytest.approx(sorted(everything)[:5])


def test_a_limit_that_nothing_meets_is_named_with_the_least_there_is() -> None:
    groups = made(0, 3, 3)
    least = 1 + sum(min(c.uses["bytes"] for c in choices) for choices in groups.values())
    with pytest.raises(Impossible, match=r"bytes cannot be 1\.5: .*; hint: ") as why:
        solve(groups, {"ms": 100.0, "bytes": 1.5}, "cost", {"bytes": 1.0})
    assert (why.value.limit, why.value.least) == ("bytes", pytest.approx(least))


def test_limits_that_exclude_each_other_are_named_together() -> None:
    small, fast = ({"cost": 1, "bytes": nbytes, "ms": ms} for nbytes, ms in ((1, 9), (9, 1)))
    groups = {"a": [Choice("small", small), Choice("fast", fast)]}
    with pytest.raises(Impossible, match="nothing fits bytes ≤ 2 and ms ≤ 2 together") as why:
        solve(groups, {"bytes": 2, "ms": 2}, "cost")
    assert why.value.limit is None


def test_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(ParetobitError, match="a choice's cost is not a finite number"):
        solve({"a": [Choice("x", {"cost": math.nan, "bytes": 1})]}, {"bytes": 2}, "cost")
    with pytest.raises(ParetobitError, match="nothing to choose from"):
        solve({"a": []}, {"bytes": 2}, "cost")


def test_thousands_of_variables_are_solved_to_the_end() -> None:
    """A model of 80 blocks with its seven matrices set free, eight schemes each, and two limits."""
    groups = made(1, 561, 8)
    found = solve(groups, {"bytes": 561 * 2.7, "ms": 561 * 0.95}, "cost")
    assert found.gap < 1e-3
    assert found.totals["bytes"] > 0.98 * 561 * 2.7


def test_nothing_the_solver_writes_reaches_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet():
        os.write(1, b"a note of the solver's")
    os.write(1, b"data")
    assert capfd.readouterr().out == "data"
