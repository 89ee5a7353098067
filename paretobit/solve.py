"""The choice: of the schemes that each group of tensors may have, those that together cost least and fit.

A multiple-choice knapsack with several constraints, solved exactly as a mixed-integer program by HiGHS (Huangfu and
Hall, "Parallelizing the dual revised simplex method", 2018), through scipy. What is minimized and what is limited are
names of the same columns, so the smallest model of a given quality is the same question as the best of a given size.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from paretobit.errors import ParetobitError

SECONDS = 30.0
INFEASIBLE = 2  # scipy's milp
GAP = 1e-6


@dataclass(frozen=True)
class Choice:
    """One way to store a group. uses: what it takes of each resource, by name; cost counts as one of them."""

    key: str
    uses: Mapping[str, float]


@dataclass(frozen=True)
class Solution:
    """picked: group -> key of its choice; totals: of every resource; gap: how far from the optimum it may be at most,
    as a share of the objective (0 where proven optimal)."""

    picked: Mapping[str, str]
    totals: Mapping[str, float]
    gap: float


class Impossible(ParetobitError):
    """No choice fits. limit: the name of one that cannot be met even alone, or None; least: what it takes at least."""

    def __init__(self, limit: str | None, least: float | None, message: str, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.limit, self.least = limit, least


def solve(
    groups: Mapping[str, Sequence[Choice]],
    limits: Mapping[str, float],
    minimize: str,
    fixed: Mapping[str, float] | None = None,
    exclude: Sequence[Mapping[str, str]] = (),
) -> Solution:
    """One choice a group, so that no resource exceeds its limit and `minimize` is least.

    fixed: what is used whatever is chosen. exclude: earlier picks, none of which is to come out again. Raises
    Impossible where nothing fits, naming the limit and the least that can be had.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    fixed = fixed or {}
    columns = [(name, choice) for name, choices in groups.items() for choice in choices]
    if not all(groups.values()) or not columns:
        raise ParetobitError("a group has nothing to choose from", hint="give each at least one scheme")
    uses = {name: _column(columns, name) for name in {minimize, *limits}}
    check_reachable(groups, limits, fixed)
    start = np.cumsum([0, *(len(choices) for choices in groups.values())])
    one_each = np.zeros((len(groups), len(columns)))
    for row, (left, right) in enumerate(itertools.pairwise(start)):
        one_each[row, left:right] = 1
    constraints = [LinearConstraint(one_each, 1, 1)]
    for name, limit in limits.items():
        unit = max(float(np.abs(uses[name]).max()), 1e-300)  # HiGHS' tolerances are absolute
        constraints.append(LinearConstraint(uses[name] / unit, -np.inf, (limit - fixed.get(name, 0)) / unit))
    for picked in exclude:
        chosen = np.array([picked.get(name) == choice.key for name, choice in columns], float)
        constraints.append(LinearConstraint(chosen, -np.inf, len(groups) - 1))
    unit = max(float(np.abs(uses[minimize]).max()), 1e-300)
    with quiet():
        found = milp(
            uses[minimize] / unit, integrality=np.ones(len(columns)), bounds=Bounds(0, 1), constraints=constraints,
            options={"time_limit": SECONDS, "mip_rel_gap": GAP},
        )  # fmt: skip
    if found.x is None and found.status != INFEASIBLE:
        raise ParetobitError(
            f"the solver gave up: {found.message}", hint="add --tied, or name fewer schemes in --schemes"
        )
    if found.x is None:
        names = " and ".join(f"{name} ≤ {limit:g}" for name, limit in limits.items())
        raise Impossible(None, None, f"nothing fits {names} together", "allow more of one of them")
    picked = {name: choice.key for (name, choice), taken in zip(columns, found.x, strict=True) if taken > 0.5}
    return Solution(picked, totals(groups, picked, fixed), float(found.mip_gap or 0))


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing reaches standard output until the block ends: some versions of HiGHS write notes there, past Python."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # there is none
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def totals(
    groups: Mapping[str, Sequence[Choice]], picked: Mapping[str, str], fixed: Mapping[str, float] | None = None
) -> dict[str, float]:
    """What the picked choices use of every resource, with what is `fixed`."""
    found: dict[str, Any] = dict(fixed or {})
    for name, choices in groups.items():
        (choice,) = (choice for choice in choices if choice.key == picked[name])
        for resource, value in choice.uses.items():
            found[resource] = found.get(resource, 0) + value
    return found


def check_reachable(
    groups: Mapping[str, Sequence[Choice]], limits: Mapping[str, float], fixed: Mapping[str, float]
) -> None:
    """Raise Impossible for a limit that not even the thriftiest choices meet."""
    for name, limit in limits.items():
        least = fixed.get(name, 0) + sum(min(c.uses[name] for c in choices) for choices in groups.values())
        if least > limit:
            raise Impossible(
                name, least, f"{name} cannot be {limit:g}: the least there is takes {least:g}", f"allow {least:g}"
            )


def _column(columns: Sequence[tuple[str, Choice]], name: str) -> np.ndarray:
    found = np.array([choice.uses[name] for _, choice in columns], float)
    if not np.isfinite(found).all():
        raise ParetobitError(f"a choice's {name} is not a finite number", hint="measure the costs again")
    return found
