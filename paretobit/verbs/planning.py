"""From a budget to a plan: the model's cost table, what its tensors may choose from, and the choice that fits."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paretobit.artifact import exact_bf16, packed_size
from paretobit.budget import BYTES
from paretobit.errors import ParetobitError
from paretobit.planfile import ROTATE, Layer, Plan, is_embedding, taps
from paretobit.progress import say
from paretobit.scheme import parse
from paretobit.sizes import human, tensor_bytes
from paretobit.solve import Choice, Impossible, solve, totals
from paretobit.work import Work, cache_folder, disk_errors

if TYPE_CHECKING:
    from paretobit.checkpoint.base import Checkpoint
    from paretobit.compress.apply import Job
    from paretobit.compress.corpus import Corpus
    from paretobit.compress.model import Decoder, Source
    from paretobit.compress.units import Units
    from paretobit.costs import Costs

COST, MIXTURE = "kl_divergence", "mixture"  # nats of the packed model, and of the bank's tensors put together
# What is left of a block matrix' cost where it is rounded as `quantize` does, with inputs of blocks already rounded,
# corrected towards the original's, and recovered. The bank has nothing of that. Of SmolLM2-135M (docs/planner.md).
LEFT = {"w1t": 0.42, "w2t": 0.52, "w3t": 0.75, "w4t": 0.88}
# What a cost of the table must be multiplied by for sums to meet what was measured, and how much that differs between
# models: second order is too little at few bits, and for an embedding above all, whose error stands in every position
# of a window and in the head. Blocks; embedding and head. Of SmolLM2-135M (docs/planner.md).
BLOCKS, ENDS = 0, 1
FACTORS = (
    {"w1t": (1.4, 0.4), "w2t": (1.25, 0.2), "w3t": (1.05, 0.08)},
    {"w1t": (3.4, 1.5), "w2t": (2.2, 0.7), "w3t": (1.3, 0.3), "w4t": (1.1, 0.1)},
)
KNOWN = (1.02, 0.05)  # of all the others
NOISE = 0.05  # of a measurement, a share
COST_WINDOWS, MEASURE_WINDOWS = 16, 8
AGREES = 0.05  # measured and predicted divergence as close as this: no more to correct
ROUNDS = 4
EVERY = slice(None)

Completed = Callable[[Plan], tuple[Plan, Mapping[str, object]]]


class Table:
    """The costs of one model on some schemes, measured on a corpus; bank and table lie in the cache and serve every
    later wish. given: a folder of costs that were measured elsewhere."""

    def __init__(
        self, source: Checkpoint, corpus: Corpus, schemes: Sequence[str], device: str, given: Path | None = None
    ) -> None:
        from paretobit import __version__, hardware

        self.source, self.corpus, self.schemes, self.device = source, corpus, tuple(schemes), device
        self.given = given
        self.fingerprint = {
            "model": source.hash, "schemes": list(schemes), "calibration": corpus.record, "windows": COST_WINDOWS,
            "version": __version__, "isa": hardware.isa(), "device": device,
        }  # fmt: skip
        digest = hashlib.sha256(json.dumps(self.fingerprint, sort_keys=True).encode()).hexdigest()
        self.folder = cache_folder() / "plans" / source.hash[:16] / digest[:16]

    @cached_property
    def bank(self) -> dict[str, Units]:
        from paretobit.compress import bank

        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        return bank.get(self.source, self.schemes, self.corpus, self.folder / "bank", self.device)

    @cached_property
    def costs(self) -> Costs:
        from paretobit import costs

        if self.given is None:
            return self.measure(self.folder / "costs", self.fingerprint, overwrite=True)
        found = costs.read(self.given)
        if (found.model, found.schemes) != (self.source.hash, self.schemes):
            raise ParetobitError(
                f"{self.given} holds costs of another model, or of other schemes: {', '.join(found.schemes)}",
                hint="measure them with paretobit plan MODEL --shard i/N and the same --schemes",
            )
        return found

    def measure(self, folder: Path, fingerprint: dict[str, object], overwrite: bool, shard: slice = EVERY) -> Costs:
        """The costs on a shard of the windows, as a folder; nothing is done where it lies there already."""
        from paretobit import costs
        from paretobit.compress import sensitivity

        work = Work(folder, costs.KIND, fingerprint)
        if not work.finished(overwrite):
            models = self.bank
            windows = sensitivity.windows_of(self.corpus.ids, COST_WINDOWS)[shard]
            with work.open(overwrite):
                found = sensitivity.measure(self.source, models, windows, work, self.device)
                made = sensitivity.table(self.source, models, self.corpus.record, found)
                with work.publish() as into:
                    made.write(into, work.fingerprint)
        return costs.read(folder)

    @cached_property
    def measured(self) -> Measured:
        return Measured(self)


@dataclass(frozen=True)
class Chosen:
    """A choice of a scheme for every matrix.

    predicted: nats a token of the packed model; mixture: of the bank's tensors, from the table; measured: the same,
    nan where nobody looked; size: bytes of the packed model; gap: see solve.Solution.
    """

    schemes: Mapping[str, str]
    plan: Plan
    predicted: float
    mixture: float
    size: int
    gap: float
    measured: float = math.nan


class Planner:
    """Chooses from a table. free: every matrix by itself, not all that read one tap alike; completed: a plan with its
    settings, and what the packed model will say of itself, as both count as size; promised: what a plan's budget says
    beside its limits; measured: choices and their nats, by which the table is corrected."""

    def __init__(
        self, table: Table, completed: Completed, free: bool = False, promised: Mapping[str, float] | None = None
    ) -> None:
        self.table, self.source, self.completed, self.promised = table, table.source, completed, promised or {}
        self.members = self._members(free)
        self.measured: list[tuple[Mapping[str, str], float]] = []

    def _members(self, free: bool) -> dict[str, tuple[str, ...]]:
        together = [tap.consumers for tap in taps(self.source.arch)]
        return {names[0]: names for names in ([(n,) for tap in together for n in tap] if free else together)}

    def groups(self) -> dict[str, list[Choice]]:
        costs, shapes = self.table.costs, self.source.arch.shapes()
        row = {name: i for i, name in enumerate(costs.names)}
        mean, factor = costs.mean(), factors(costs, self.measured)
        left = np.array([LEFT.get(scheme, 1.0) for scheme in costs.schemes])
        found = {}
        for group, names in self.members.items():
            mixture = mean[[row[name] for name in names]].sum(0) * factor[_side(group)]
            cost = mixture if is_embedding(group) else mixture * left
            found[group] = [
                Choice(scheme, {
                    COST: float(cost[column]), MIXTURE: float(mixture[column]),
                    BYTES: sum(tensor_bytes(parse(scheme), shapes[name]) for name in names),
                })
                for column, scheme in enumerate(costs.schemes)
            ]  # fmt: skip
        return found

    def choose(self, limits: Mapping[str, float], minimize: str = COST) -> Chosen:
        """The best that fits. Raises Impossible naming what cannot be met.

        What stands around the tensors depends on the choice: what it takes beyond the last try is set aside.
        """
        groups, spent = self.groups(), 0.0
        while True:
            found = solve(groups, limits, minimize, {BYTES: spent})
            made = self._chosen(found.picked, found.totals, found.gap, limits)
            if made.size <= limits.get(BYTES, made.size):
                return made
            spent += max(1.0, made.size - limits[BYTES])

    def mixture(self, schemes: Mapping[str, str]) -> float:
        """Nats expected of the bank's tensors of these schemes."""
        return totals(self.groups(), {group: schemes[group] for group in self.members})[MIXTURE]

    def one_scheme(self, limits: Mapping[str, float], minimize: str = COST) -> Chosen | None:
        """The best that fits and has all blocks on one scheme, embedding and head on one; None where none fits."""
        groups, fits = self.groups(), []
        for blocks, ends in itertools.product(self.table.schemes, repeat=2):
            picked = {group: ends if is_embedding(group) else blocks for group in groups}
            used = totals(groups, picked)
            if all(used[name] <= limit for name, limit in limits.items()):
                fits.append((used[minimize], picked, used))
        for _, picked, used in sorted(fits, key=lambda fit: fit[0]):
            made = self._chosen(picked, used, 0.0, limits)
            if made.size <= limits.get(BYTES, made.size):
                return made
        return None

    def _chosen(
        self, picked: Mapping[str, str], used: Mapping[str, float], gap: float, limits: Mapping[str, float]
    ) -> Chosen:
        schemes = {name: picked[group] for group, names in self.members.items() for name in names}
        plan, manifest = self.completed(self._plan(schemes, used[COST], limits))
        size = packed_size(self.source, plan, manifest, self._exact)
        return Chosen(schemes, plan, used[COST], used[MIXTURE], size, gap)

    def _plan(self, schemes: Mapping[str, str], predicted: float, limits: Mapping[str, float]) -> Plan:
        layers: dict[str, Layer] = {}
        for name, scheme in schemes.items():
            layers[name] = self._uniform[scheme].layers[name]
        turned = ({"method": ROTATE, "seed": 0},)
        budget = {name: float(value) for name, value in {**limits, **self.promised}.items() if name != COST}
        return Plan(self.source.hash, layers, turned, budget=budget or None, predicted={COST: predicted})

    @cached_property
    def _uniform(self) -> dict[str, Plan]:
        from paretobit.compress.bank import uniform_plan

        return {scheme: uniform_plan(self.source, scheme) for scheme in self.table.schemes}

    @cached_property
    def _floats(self) -> dict[str, bool]:
        names = [name for name in self.source.names() if len(self.source.shape(name)) == 1]
        return {name: exact_bf16(self.source.read(name)) is not None for name in names}

    def _exact(self, name: str) -> bool:
        return self._floats.get(name, False)

    def refined(self, limits: Mapping[str, float], minimize: str = COST) -> Chosen:
        """The best that fits by what was measured: choose, measure the choice on the bank, correct, choose again. One
        scheme for all blocks is measured first: no choice shall be worse.

        Corrected by this search's own choices alone: the same wish leads to the same plan whatever was asked before.
        """
        seen: list[Chosen] = []
        for number in range(1 + ROUNDS):
            self.measured = [(found.schemes, found.measured) for found in seen]
            try:
                found = self.choose(limits, minimize) if number else self.one_scheme(limits, minimize)
            except Impossible:  # it was possible by the table alone
                if not seen:
                    raise
                break
            if found is None or any(found.schemes == earlier.schemes for earlier in seen):
                continue
            measured = self.table.measured.divergence(found.schemes)
            seen.append(replace(found, measured=measured, predicted=found.predicted * measured / found.mixture))
            what = "a plan" if number else "one scheme for all blocks"
            say(f"{what}, {human(found.size)}: its tensors' KL {found.mixture:.4f} predicted, {measured:.4f} measured")
            if number and abs(measured / found.mixture - 1) < AGREES:
                break
        # What was measured may be more than the limit that the choice was made for.
        fits = [found for found in seen if found.predicted <= limits.get(COST, math.inf) * (1 + AGREES)]
        if minimize == BYTES and fits:
            return min(fits, key=lambda found: found.size)
        return min(seen, key=lambda found: found.predicted)


class Measured:
    """Divergences of mixtures that were really computed, remembered beside the table."""

    def __init__(self, table: Table) -> None:
        self.table, self.path = table, table.folder / "measured.jsonl"
        self.rows: list[dict[str, Any]] = list(_read_rows(self.path, set(table.schemes)))

    def divergence(self, schemes: Mapping[str, str]) -> float:
        """Nats a token to the original, of the bank's tensors of these schemes."""
        for row in self.rows:
            if row["schemes"] == schemes:
                return row[COST]
        from paretobit.compress.bank import Mixture
        from paretobit.compress.sensitivity import windows_of
        from paretobit.evals.divergence import compare

        windows = windows_of(self.table.corpus.ids, MEASURE_WINDOWS)
        mixture = Mixture(self.table.source, self.table.bank, schemes)
        found = compare(self._decoder(mixture).logits, windows, self._original.logits)
        assert found.kl_divergence is not None
        row = {"schemes": dict(schemes), COST: found.kl_divergence["mean"]}
        self.rows.append(row)
        with disk_errors(self.path), open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")
        return row[COST]

    @cached_property
    def _original(self) -> Decoder:
        return self._decoder(self.table.source)

    def _decoder(self, model: Source) -> Decoder:
        from paretobit import hardware
        from paretobit.compress.model import Decoder

        keep = 4 * self.table.source.bits16 < hardware.memory_available() // 2
        return Decoder(model, device=self.table.device, keep=keep)


def factors(costs: Costs, measured: Sequence[tuple[Mapping[str, str], float]]) -> np.ndarray:
    """What costs must be multiplied by for predictions to meet what was measured of some choices, in nats: float64
    (2, schemes), of blocks and of embedding and head. Least squares of relative errors around FACTORS (ridge)."""
    known = np.array([[of.get(scheme, KNOWN) for scheme in costs.schemes] for of in FACTORS])
    prior, spread = known[..., 0].ravel(), known[..., 1].ravel()
    at, mean = {name: i for i, name in enumerate(costs.names)}, costs.mean()
    shares = np.zeros((len(measured), 2, len(costs.schemes)))
    for row, (schemes, nats) in enumerate(measured):
        for name, scheme in schemes.items():
            column = costs.schemes.index(scheme)
            shares[row, _side(name), column] += mean[at[name], column] / nats
    rows = shares.reshape(-1, prior.size) / NOISE
    left = 1 / NOISE - rows @ prior
    moved = np.linalg.solve(rows.T @ rows + np.diag(spread**-2.0), rows.T @ left)
    return np.clip(prior + moved, prior / 4, prior * 4).reshape(2, -1)


def _side(name: str) -> int:
    return ENDS if is_embedding(name) else BLOCKS


def _read_rows(path: Path, schemes: set[str]) -> Iterable[dict[str, Any]]:
    """Whole lines of what was measured; one that a kill cut short is passed over."""
    if not path.exists():
        return
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if not isinstance(row, dict) or not isinstance(row.get("schemes"), dict) or type(row.get(COST)) is not float:
            continue
        if set(row["schemes"].values()) <= schemes and row[COST] > 0:
            yield row


def schemes_of(text: str) -> list[str]:
    """ "w2t,w4" -> ["w2t", "w4"]. Raises ParetobitError on what is no scheme."""
    return [str(parse(scheme.strip())) for scheme in text.split(",")]


def planner_for(
    source: Checkpoint, schemes: str, free: bool, job_of: Callable[[Plan], Job], text: tuple[str, int, int],
    promised: Mapping[str, float] | None = None, costs: str | None = None,
) -> tuple[Planner, Corpus]:  # fmt: skip
    """What chooses among `schemes`, and the text it measured them on. job_of: what will carry a plan out; text:
    --calib, --tokens and --seed; promised: see Planner; costs: a folder with the table, measured elsewhere."""
    from paretobit.compress.corpus import gather
    from paretobit.verbs.quantize import describe_job, describe_model

    names, device = schemes_of(schemes), job_of(Plan(source.hash, {})).device
    corpus = gather(source, *text, device)

    def completed(plan: Plan) -> tuple[Plan, Mapping[str, object]]:
        job = job_of(plan)
        job.windows = corpus.ids
        return job.plan, describe_model(job, describe_job(job, corpus.record), corpus.record, [])

    table = Table(source, corpus, names, device, Path(costs) if costs else None)
    return Planner(table, completed, free, promised), corpus
