"""From a budget to a plan: what tensors may choose from, and the choice that fits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from paretobit import bands
from paretobit.arch.spec import EMBED, HEAD, band
from paretobit.artifact import exact_bf16, packed_size
from paretobit.budget import BYTES, JOULES, MS
from paretobit.costs import WORTH, allowed, carried_out, factors, side
from paretobit.errors import ParetobitError
from paretobit.planfile import ROTATE, Plan, is_embedding, taps
from paretobit.progress import say
from paretobit.scheme import parse
from paretobit.sizes import human, tensor_bytes
from paretobit.solve import Choice, Impossible, solve, totals
from paretobit.verbs.costing import COST, Table

if TYPE_CHECKING:
    from paretobit.checkpoint.base import Checkpoint
    from paretobit.compress.apply import Job
    from paretobit.compress.corpus import Corpus
    from paretobit.pace import Pace
    from paretobit.verbs.pacing import Machine

# ADDED: the sum of costs, which nats of the packed model follow (COST); MIXTURE: nats of the bank's tensors together.
ADDED, MIXTURE = "added", "mixture"
AGREES = 0.05  # a time measured and predicted as close as this: no more to correct
# Divergences as close: the bank's tensors together differ from their sum so much, by how much text they were rounded on
# and which way, while packed models do not (docs/decisions/015-left.md). Only beyond it do measurements correct costs.
USUAL = 0.5
ROUNDS = 6
MOST_TRIES, SAME_SIZE = 6, 0.05  # until a choice has the size that its speed was predicted for

Completed = Callable[[Plan], tuple[Plan, Mapping[str, object]]]
Members = Mapping[str, tuple[str, ...]]  # of every group that is stored alike, by its first


@dataclass(frozen=True)
class Chosen:
    """A choice of a scheme for every matrix.

    predicted: nats a token of the packed model; mixture: of the bank's tensors, from the table; measured: the same,
    nan where nobody looked; size: bytes of the packed model; gap: see solve.Solution; used: milliseconds and joules a
    token, empty without a machine; timed: milliseconds as measured on a blank model, nan where nobody did.
    """

    schemes: Mapping[str, str]
    plan: Plan
    predicted: float
    mixture: float
    size: int
    gap: float
    measured: float = math.nan
    used: Mapping[str, float] = field(default_factory=dict)
    timed: float = math.nan

    @property
    def usual(self) -> bool:
        """Whether the bank's tensors have what was predicted, as far as that matters."""
        return max(self.measured, self.mixture) <= (1 + USUAL) * min(self.measured, self.mixture)


class Planner:
    """Chooses from a table. tied: all that read one tap alike, not every matrix by itself; completed: a plan with its
    settings, and what the packed model will say of itself, as both count as size; promised: what a plan's budget says
    beside its limits; machine: what limits of time and energy are about; measured: choices and their nats, by which the
    table is corrected."""

    def __init__(
        self, table: Table, completed: Completed, tied: bool = False, promised: Mapping[str, float] | None = None,
        machine: Machine | None = None,
    ) -> None:  # fmt: skip
        self.table, self.source, self.completed, self.promised = table, table.banded, completed, promised or {}
        self.machine, self.members = machine, self._members(tied)
        self.measured: list[tuple[Mapping[str, str], float]] = []

    def _members(self, tied: bool) -> dict[str, tuple[str, ...]]:
        together = [tap.consumers for tap in taps(self.source.arch)]
        return {names[0]: names for names in (together if tied else [(n,) for tap in together for n in tap])}

    @cached_property
    def _ways(self) -> list[Members]:
        """To group what is alike: as `members`, and with embedding and head in one piece, which takes fewer words."""
        ends = [end for end in (EMBED, HEAD) if self.source.arch.bands(end)[0] in self.members]
        whole = {names[0]: names for names in map(self.source.arch.bands, ends)}
        cut_up = {name for names in whole.values() for name in names}
        blocks = {group: names for group, names in self.members.items() if group not in cut_up}
        return [self.members] if whole.items() <= self.members.items() else [self.members, blocks | whole]

    def groups(self, pace: Pace | None = None, members: Members | None = None) -> dict[str, list[Choice]]:
        """What there is to choose from, and what each takes. pace: for milliseconds and joules, too."""
        costs, shapes = self.table.costs, self.source.arch.shapes()
        row = {name: i for i, name in enumerate(costs.names)}
        mean, typical, together = costs.mean(), costs.typical(), factors(costs, self.measured)
        worth = together / factors(costs, []) * [WORTH.get(scheme, 1.0) for scheme in costs.schemes]
        found = {}
        for group, names in (members or self.members).items():
            rows = [row[name] for name in names]
            added, mixture = typical[rows].sum(0) * worth[side(group)], mean[rows].sum(0) * together[side(group)]
            found[group] = [
                Choice(scheme, {
                    ADDED: float(added[column]), MIXTURE: float(mixture[column]),
                    BYTES: sum(tensor_bytes(parse(scheme), shapes[name]) for name in names),
                    **(self.machine.takes(pace, names, scheme) if self.machine and pace else {}),
                })
                for column, scheme in enumerate(costs.schemes)
            ]  # fmt: skip
        return found

    def choose(self, limits: Mapping[str, float], minimize: str = ADDED) -> Chosen:
        """The best that fits. Raises Impossible naming what cannot be met."""
        found: list[Chosen] = []
        for number, members in enumerate(self._ways, 1):
            try:
                found.append(self._best(members, limits, minimize))
            except Impossible:
                if number == len(self._ways) and not found:
                    raise
        return min(found, key=lambda made: made.size if minimize == BYTES else made.predicted)

    def _best(self, members: Members, limits: Mapping[str, float], minimize: str) -> Chosen:
        """The best of one way to group matrices.

        What stands around the tensors depends on the choice: what it takes beyond the last try is set aside. So does
        speed, on the size of the whole: it is chosen again until the size is the one that was assumed.
        """
        spent, pace, tries = 0.0, self._pace(limits.get(BYTES, self.source.bits16 / 4)), 0
        while True:
            fixed = {BYTES: spent, **(self.machine.fixed(pace) if self.machine and pace else {})}
            found = solve(self.groups(pace, members), added_up(limits), minimize, fixed)
            made = self._chosen(members, found.picked, found.totals, found.gap, limits)
            if made.size > limits.get(BYTES, made.size):
                spent += max(1.0, made.size - limits[BYTES])
                continue
            tries += 1
            if pace is None or abs(pace.nbytes / made.size - 1) < SAME_SIZE or tries == MOST_TRIES:
                return made
            pace = self._pace(made.size)

    def _pace(self, nbytes: float) -> Pace | None:
        """How fast models of about that size are; None without a machine."""
        return self.machine.pace(nbytes) if self.machine else None

    def mixture(self, schemes: Mapping[str, str]) -> float:
        """Nats expected of the bank's tensors of these schemes."""
        return totals(self.groups(), {group: schemes[group] for group in self.members})[MIXTURE]

    def one_scheme(self, limits: Mapping[str, float], minimize: str = ADDED) -> Chosen | None:
        """The best that fits and has all blocks on one scheme, embedding and head on one; None where none fits."""
        pace, fits = self._pace(limits.get(BYTES, self.source.bits16 / 4)), []
        groups, fixed = self.groups(pace), self.machine.fixed(pace) if self.machine and pace else {}
        for blocks, ends in itertools.product(self.table.schemes, repeat=2):
            picked = {group: ends if is_embedding(group) else blocks for group in groups}
            used = totals(groups, picked, fixed)
            if all(used[name] <= limit for name, limit in added_up(limits).items()):
                fits.append((used[minimize], picked, used))
        for _, picked, used in sorted(fits, key=lambda fit: fit[0]):
            made = self._chosen(self.members, picked, used, 0.0, limits)
            if made.size <= limits.get(BYTES, made.size):
                return made
        return None

    def _chosen(
        self, members: Members, picked: Mapping[str, str], used: Mapping[str, float], gap: float,
        limits: Mapping[str, float],
    ) -> Chosen:  # fmt: skip
        schemes = {name: picked[group] for group, names in members.items() for name in names}
        takes = {name: used[name] for name in (MS, JOULES) if name in used}
        expected = {COST: carried_out(used[ADDED]), **{name: value for name, value in takes.items() if name in limits}}
        plan, manifest = self.completed(self._plan(schemes, expected, limits))
        size = packed_size(self.source, plan, manifest, self._exact)
        return Chosen(schemes, plan, expected[COST], used[MIXTURE], size, gap, used=takes)

    def _plan(self, schemes: Mapping[str, str], predicted: Mapping[str, float], limits: Mapping[str, float]) -> Plan:
        layers = {
            name: self._uniform[scheme].layers[band(name)[0]]
            for name, scheme in bands.merged(self.source.arch, schemes).items()
        }
        turned = ({"method": ROTATE, "seed": 0},)
        budget = {name: float(value) for name, value in {**limits, **self.promised}.items() if name != COST}
        machine = self.machine.hardware.hash if self.machine and not {MS, JOULES}.isdisjoint(limits) else None
        return Plan(self.source.hash, layers, turned, None, budget or None, machine, predicted)

    @cached_property
    def _uniform(self) -> dict[str, Plan]:
        from paretobit.compress.bank import uniform_plan

        return {scheme: uniform_plan(self.table.source, scheme) for scheme in self.table.schemes}

    @cached_property
    def _floats(self) -> dict[str, bool]:
        names = [name for name in self.source.names() if len(self.source.shape(name)) == 1]
        return {name: exact_bf16(self.source.read(name)) is not None for name in names}

    def _exact(self, name: str) -> bool:
        return self._floats.get(name, False)

    def refined(self, limits: Mapping[str, float], minimize: str = ADDED) -> Chosen:
        """The best that fits by what was measured: choose, measure the choice on the bank, and where that is not as
        predicted, correct and choose again. One scheme for all blocks is measured first: no choice shall be worse.

        Corrected by this search's own choices alone: the same wish leads to the same plan whatever was asked before.
        """
        seen: list[Chosen] = []
        clock = self.machine if self.machine and self.machine.here and not {MS, JOULES}.isdisjoint(limits) else None
        if clock:
            clock.slower = 1.0
        for number in range(1 + ROUNDS):
            wrong = not all(found.usual for found in seen)
            self.measured = [(found.schemes, found.measured) for found in seen] if wrong else []
            try:
                found = self.choose(limits, minimize) if number else self.one_scheme(limits, minimize)
            except Impossible:  # it was possible by the table alone
                if not seen:
                    raise
                break
            if found is None:
                continue
            if any(found.schemes == earlier.schemes for earlier in seen):  # and so would every other be
                break
            seen.append(self._looked_at(found, clock, "a plan" if number else "one scheme for all blocks"))
            if number and agree(found, seen[-1]):
                break
        return best_of(seen, limits, minimize)

    def _looked_at(self, found: Chosen, clock: Machine | None, what: str) -> Chosen:
        """With its divergence measured, on the bank, and its time, on a blank model."""
        measured = self.table.measured.divergence(found.schemes)
        lines = f"{what}, {human(found.size)}: its tensors' KL {found.mixture:.4f} predicted, {measured:.4f} measured"
        made = replace(found, measured=measured)
        if not made.usual:
            made = replace(made, predicted=found.predicted * measured / found.mixture)
        if clock:
            before, timed = found.used[MS], clock.time(found.plan, found.used[MS])
            joules = found.used[JOULES] + clock.waiting(timed - before)
            made = replace(made, timed=timed, used={MS: timed, JOULES: joules})
            lines += f"; {before:.2f} ms predicted, {timed:.2f} measured"
        say(lines)
        return made


def added_up(limits: Mapping[str, float]) -> dict[str, float]:
    """Limits of what adds up: nats of a packed model do not, costs do."""
    nats = {ADDED: allowed(limits[COST])} if COST in limits else {}
    return {**{name: limit for name, limit in limits.items() if name != COST}, **nats}


def agree(found: Chosen, looked_at: Chosen) -> bool:
    """Whether what was predicted and what was measured are as good as the same."""
    in_time = math.isnan(looked_at.timed) or abs(looked_at.timed / found.used[MS] - 1) < AGREES
    return looked_at.usual and in_time


def best_of(seen: Sequence[Chosen], limits: Mapping[str, float], minimize: str) -> Chosen:
    """What was measured may be more than the limits that the choices were made for: the best of those that stay within
    them. Raises Impossible where nothing is fast enough; of divergence, whatever comes nearest will do."""

    def within(found: Chosen, names: Sequence[str]) -> bool:
        takes = {COST: found.predicted, **found.used}
        return all(takes[name] <= (1 + AGREES) * limits[name] for name in names if name in limits)

    fast = [found for found in seen if within(found, (MS, JOULES))]
    if not fast:
        raise Impossible(None, None, "nothing that was timed is fast enough", "allow more time")
    close = [found for found in fast if within(found, (COST,))]
    if minimize == BYTES and close:
        return min(close, key=lambda found: found.size)
    return min(fast, key=lambda found: found.predicted)


def schemes_of(text: str) -> list[str]:
    """ "w2t,w4" -> ["w2t", "w4"]. Raises ParetobitError on what is no scheme, and on 8-bit activations."""
    found = [parse(scheme.strip()) for scheme in text.split(",")]
    for scheme in found:
        if scheme.activation is not None:
            raise ParetobitError(
                f"{scheme} rounds activations, and the costs that are measured are those of weights",
                hint=f"plan with {replace(scheme, activation=None)}, or quantize --to {scheme}",
            )
    return [str(scheme) for scheme in found]


def planner_for(
    source: Checkpoint, schemes: str, tied: bool, job_of: Callable[[Plan], Job], text: tuple[str, int, int],
    promised: Mapping[str, float] | None = None, costs: str | None = None,
) -> tuple[Planner, Corpus]:  # fmt: skip
    """What chooses among `schemes`, and the text it measured them on. job_of: what will carry a plan out; text:
    --calib, --tokens and --seed; promised: see Planner; costs: a folder with the table, measured elsewhere."""
    from paretobit.artifact import describe
    from paretobit.compress.corpus import gather
    from paretobit.verbs.quantize import describe_job

    names, device = schemes_of(schemes), job_of(Plan(source.hash, {})).device
    corpus = gather(source, *text, device)

    def completed(plan: Plan) -> tuple[Plan, Mapping[str, object]]:
        job = job_of(plan)
        job.windows = corpus.ids
        return job.plan, describe(job.source, describe_job(job, corpus.record), corpus.record, [])

    table = Table(source, corpus, names, device, Path(costs) if costs else None)
    return Planner(table, completed, tied, promised), corpus
