"""What the user can afford and wants to keep, and the packed model that comes nearest: --fit and --keep."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from paretobit.artifact import Artifact
from paretobit.budget import BYTES, JOULES, MS, Budget, parse_fit
from paretobit.errors import ParetobitError
from paretobit.planfile import Plan
from paretobit.progress import say
from paretobit.scheme import parse
from paretobit.sizes import human, tensor_bytes
from paretobit.solve import Impossible
from paretobit.verbs.costing import COST
from paretobit.verbs.keeping import Judge, Judged, Metric, Try, parse_keep, parse_metric, search, smallest
from paretobit.verbs.needs import solver_or_hint
from paretobit.verbs.pacing import machine_of
from paretobit.verbs.planning import Chosen, Planner, planner_for, schemes_of
from paretobit.work import MANIFEST, Work, disk_errors, read_json

if TYPE_CHECKING:
    from paretobit.checkpoint.base import Checkpoint
    from paretobit.compress.apply import Job
    from paretobit.verbs.quantize import Fit


@dataclass(frozen=True)
class Wish:
    """--fit, --keep, --metric, --check, --schemes and --tied, as they were given."""

    fit: tuple[str, ...]
    keep: str | None
    metric: str | None
    check: str | None
    schemes: str
    tied: bool

    def __bool__(self) -> bool:
        return bool(self.fit or self.keep is not None)

    @property
    def share(self) -> float | None:
        return None if self.keep is None else parse_keep(self.keep)

    @property
    def measure(self) -> Metric:
        return parse_metric(self.metric)

    @property
    def promised(self) -> dict[str, float]:
        """What the plan's budget says beside the limits."""
        return {} if self.share is None else {self.measure.label: self.share}

    def spelled(self) -> str:
        """As on the command line, for people."""
        said = [*(f"--fit {wish}" for wish in self.fit), *([f"--keep {self.keep}"] if self.keep else [])]
        return " ".join([*said, *([f"--metric {self.measure.label}"] if self.metric else [])])


def check_wish(wish: Wish, beside: Mapping[str, object], processes: int) -> None:
    """Raise on options that contradict one another. beside: by name, those that --fit and --keep decide themselves."""
    asked = "--keep" if wish.keep is not None else "--fit" if wish.fit else None
    for name, value in beside.items():
        if asked and value:
            raise ParetobitError(f"{asked} and {name} exclude each other", hint="leave one of the two out")
    if asked and processes > 1:
        raise ParetobitError(
            f"{asked} plans in one process", hint="paretobit plan MODEL --fit … -o plan.json, then torchrun with --plan"
        )
    for name, value in (("--metric", wish.metric), ("--check", wish.check)):
        if value is not None and wish.keep is None:
            raise ParetobitError(f"{name} says how --keep is measured", hint="add --keep 95%")
    if wish.keep is not None:
        measure, _ = wish.measure, wish.share
        if measure.file is not None and wish.check is not None:
            raise ParetobitError(
                f"--metric {measure.name} is measured on its own rows, --check on text", hint="leave --check out"
            )
        for file in filter(None, (measure.file, wish.check)):
            if not Path(file).is_file():
                raise ParetobitError(f"{file}: no such file", hint="check the path")


def affordable(source: Checkpoint, wish: Wish) -> Budget:
    """What the wish allows. Raises, before the work, on what cannot be meant, or by no means be met."""
    budget, schemes = parse_fit(wish.fit, source.bits16, source.parameters), schemes_of(wish.schemes)
    shapes = (shape for shape in source.arch.shapes().values() if len(shape) == 2)
    least = sum(min(tensor_bytes(parse(scheme), shape) for scheme in schemes) for shape in shapes)
    if budget.bytes is not None and budget.bytes < least:
        raise ParetobitError(
            f"{wish.spelled()} cannot be met: the matrices of {source.name} alone take {human(least)} at least",
            hint="allow more, or name smaller schemes in --schemes",
        )
    return budget


def timed(budget: Budget) -> bool:
    """Whether it limits time or energy."""
    return budget.ms_per_token is not None or budget.joules_per_token is not None


def fitting(planner: Planner, budget: Budget, wish: Wish) -> Chosen:
    """The best that meets the limits, by measurement. Raises ParetobitError with the nearest that can be had."""
    try:
        return planner.refined(budget.limits())
    except Impossible:
        asked, hint = nearest(planner, budget.limits())
        raise ParetobitError(f"{wish.spelled()} cannot be met: {asked}", hint=hint) from None


UNITS = {MS: "ms", JOULES: "J"}


def nearest(planner: Planner, limits: Mapping[str, float]) -> tuple[str, str]:
    """(which limit cannot be met and the least that can be had, a hint that can be followed)."""
    for name, limit in limits.items():
        least = amount(planner, name, {})
        if least > limit:
            return f"the least that {planner.source.name} can take is {spelled(name, least)}", offer(name, least)
    # Each can be met alone: hold on to all but the first, and see how little of that is left to be had.
    first, *others = limits
    least = amount(planner, first, {name: limits[name] for name in others})
    kept = " and ".join(spelled(name, limits[name]) for name in others)
    return f"within {kept}, {planner.source.name} takes {spelled(first, least)} at least", offer(first, least)


def amount(planner: Planner, name: str, limits: Mapping[str, float]) -> float:
    """The least of it that can be had within limits; of time, as timed here."""
    found, machine = planner.choose(limits, name), planner.machine
    if name == BYTES or machine is None:
        return found.size
    if machine.here:
        machine.time(found.plan, found.used[MS])  # predictions are set right by it
        found = planner.choose(limits, name)
    return found.used[name]


def spelled(name: str, value: float) -> str:
    return f"{human(int(value))} ({value:.0f} bytes)" if name == BYTES else f"{value:.4g} {UNITS[name]} a token"


def offer(name: str, least: float) -> str:
    more = f"{-(-int(least) // 1000) + 1}kB" if name == BYTES else f"{1.02 * least:.4g}{UNITS[name]}"
    return f"--fit {more}, or smaller schemes among --schemes"


def keeping(planner: Planner, budget: Budget, wish: Wish, divergence: float) -> Chosen:
    """The smallest that is expected to stay within so many nats and meets the wishes; where there is none, the best
    that does. Raises ParetobitError as `fitting`."""
    try:
        return planner.refined({**budget.limits(), COST: divergence}, BYTES)
    except Impossible:
        return fitting(planner, budget, wish)


def expected(planner: Planner, budget: Budget, wish: Wish) -> Chosen:
    """What meets the wish by expectation, with nothing carried out."""
    if wish.share is None:
        return fitting(planner, budget, wish)
    found = keeping(planner, budget, wish, wish.measure.divergence(wish.share))
    share = wish.measure.share(found.predicted)
    say(f"about {share:.1%} of {wish.measure.label} to be expected; quantize --keep makes candidates and measures them")
    return found


def granted(
    source: Checkpoint, wish: Wish, job_of: Callable[[Plan], Job], text: tuple[str, int, int], out: Path,
    overwrite: bool,
) -> Fit:  # fmt: skip
    """Make the packed model that meets the wish. job_of: carries a plan out; text: --calib, --tokens and --seed."""
    solver_or_hint("--keep" if wish.keep is not None else "--fit")
    budget, promised = affordable(source, wish), wish.promised
    if wish.keep is not None and not overwrite:
        check_place(out, source, promised)

    def carry(plan: Plan, into: Path, again: bool) -> Fit:
        from paretobit.verbs.quantize import carry_out

        return carry_out(job_of(plan), text, None, into, [], again)

    planner, _ = planner_for(source, wish.schemes, wish.tied, job_of, text, promised)
    if timed(budget):
        planner.machine = machine_of(planner.source, None, budget, planner.table.folder, planner.table.schemes)
    if wish.share is None:
        return carry(fitting(planner, budget, wish).plan, out, overwrite)
    return kept(planner, budget, wish, wish.share, Candidates(planner, wish, text, carry), out, overwrite)


class Candidates:
    """Plans carried out beside the cost table until one of them becomes the result."""

    def __init__(
        self, planner: Planner, wish: Wish, text: tuple[str, int, int], carry: Callable[[Plan, Path, bool], Fit]
    ) -> None:
        from paretobit.compress import corpus

        table = planner.table
        self.folder, self.carry = table.folder / "candidates", carry
        held_out = None
        if wish.measure.file is None:
            if wish.check is None:
                held_out = corpus.unseen(planner.source, *text, table.device)
            else:
                held_out = corpus.gather(planner.source, wish.check, corpus.UNSEEN * corpus.WINDOW, 0, table.device)
        self.judge = Judge(planner.source, wish.measure, held_out, table.device, table.folder / "kept.jsonl")

    def key(self, chosen: Chosen) -> str:
        plan = replace(chosen.plan, predicted={}, budget=None)
        return hashlib.sha256(plan.to_json().encode()).hexdigest()[:16]

    def made(self, chosen: Chosen) -> Path:
        """The folder of the packed model, made unless it lies there."""
        path = self.folder / self.key(chosen)
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        if not (path / MANIFEST).is_file():  # published in one rename: it is there, or it is not
            self.carry(chosen.plan, path, True)
        return path

    def measured(self, chosen: Chosen) -> Judged:
        key = self.key(chosen)
        return self.judge.remembered(key) or self.judge.judge(key, Artifact(self.made(chosen)))

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def kept(
    planner: Planner, budget: Budget, wish: Wish, share: float, candidates: Candidates, out: Path, overwrite: bool
) -> Fit:
    """Search, then turn the smallest candidate that keeps the share into OUT."""
    started = time.monotonic()

    def choose(divergence: float) -> Chosen:
        return keeping(planner, budget, wish, divergence)

    tried = search(wish.measure, share, choose, candidates.measured)
    best = smallest(tried, share)
    if best is None:
        most = max(tried, key=lambda t: t.found.kept)
        raise ParetobitError(
            f"{wish.spelled()} cannot be met: the best tried has {human(most.chosen.size)} and keeps "
            f"{most.found.text()} of {wish.measure.label}",
            hint=f"--keep {100 * most.found.kept // 0.1 / 10:g}%" + (", or allow more" if wish.fit else ""),
        )
    fit = hand_over(candidates, best, wish, planner.source, out, overwrite, time.monotonic() - started)
    candidates.clear()
    return fit


def hand_over(
    candidates: Candidates, best: Try, wish: Wish, source: Checkpoint, out: Path, overwrite: bool, seconds: float
) -> Fit:
    """Make the candidate's files OUT's own, and write down what it keeps."""
    from paretobit import hardware
    from paretobit.artifact import RESULTS
    from paretobit.reports.card import write_card
    from paretobit.reports.results import Result, append
    from paretobit.verbs.quantize import Fit

    work = Work(out, "model", {})
    folder = candidates.made(best.chosen)
    work.fingerprint = read_json(folder / MANIFEST)["fingerprint"]
    if work.finished(overwrite):
        say(f"{out} is already this result: nothing to do")
    else:
        with work.open(overwrite), work.publish() as into:
            for file in sorted(folder.iterdir()):
                work.take(file, into)
            packed, found = Artifact(into), best.found
            command = f"paretobit quantize {source.name} {wish.spelled()} -o THIS"
            about = packed.hash, hardware.describe().hash, command
            row = Result(wish.measure.result, found.kept, "", found.n, found.stderr, *about)
            append(into / RESULTS, [row])
            write_card(into)
    made = Artifact(out)
    samples = "rows" if wish.measure.file else "unseen windows"
    note = f"keeps {best.found.text()} of {wish.measure.label} on {best.found.n} {samples}"
    return Fit(str(out), made.size_bytes, source.bits16, made.bits_per_weight, seconds, (note,))


def check_place(out: Path, source: Checkpoint, promised: Mapping[str, float]) -> None:
    """Raise before the search where OUT holds anything but an earlier result of such a wish."""
    if not (out.is_dir() and any(out.iterdir())):
        return
    made = Artifact(out) if (out / MANIFEST).exists() else None
    budget = (made and made.plan.budget) or {}
    if made is None or made.plan.model != source.hash or not promised.items() <= budget.items():
        raise ParetobitError(f"{out} already holds something else", hint="choose another -o, or add --overwrite")
