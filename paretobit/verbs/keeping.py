"""--keep: the smallest model that keeps a share of the original's accuracy, found by making candidates and judging them
on text that nothing was calibrated on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from paretobit.errors import ParetobitError
from paretobit.progress import progress, say
from paretobit.sizes import human
from paretobit.work import remember, remembered

if TYPE_CHECKING:
    from paretobit.artifact import Artifact
    from paretobit.checkpoint.base import Checkpoint
    from paretobit.compress.corpus import Corpus
    from paretobit.evals.divergence import Comparison
    from paretobit.evals.perplexity import Logits
    from paretobit.evals.tasks import Task
    from paretobit.verbs.planning import Chosen

TRIES = 4
NOTHING_TO_GAIN = 0.98  # of the size of one that holds: no other is made to save less
MOST_LOSS, LEAST_LOSS = -math.log(0.01), 1e-4  # what chance leaves of a small share tells nothing
TASK = "task"


@dataclass(frozen=True)
class Metric:
    """What is kept. name: as --metric spells it; file: of a task.

    -ln(share kept) is taken as slope · nats ** power, of the divergence that the planner expects. slope is a first
    guess (SmolLM2-135M's, docs/planner.md) that every candidate corrects.
    """

    name: str
    slope: float
    power: float
    file: str | None = None

    @property
    def label(self) -> str:
        """Without the folders of a task's file: what plans and results say."""
        return self.name if self.file is None else f"{TASK}:{Path(self.file).name}"

    @property
    def result(self) -> str:
        """What `eval` calls it among its results."""
        if self.file is not None:
            return f"{Path(self.file).stem} retained"
        return self.name if self.name == SAME else f"{self.name}_retained"

    def share(self, nats: float) -> float:
        """What is expected to be kept at a divergence."""
        return math.exp(-self.slope * nats**self.power)

    def divergence(self, share: float, slope: float | None = None) -> float:
        """The nats at which so much is expected to be kept."""
        return (-math.log(share) / (slope or self.slope)) ** (1 / self.power)


NEXT_TOKEN, SAME = "next_token_accuracy", "same_top1"
METRICS = {
    NEXT_TOKEN: Metric(NEXT_TOKEN, 0.3, 1.0),
    SAME: Metric(SAME, 0.55, 0.5),
    "perplexity": Metric("perplexity", 0.9, 1.0),
}


def parse_metric(name: str | None) -> Metric:
    """One of METRICS, or `task:FILE`. Raises ParetobitError on anything else."""
    kind, _, file = (name or NEXT_TOKEN).partition(":")
    if kind == TASK and file:
        return Metric(f"{TASK}:{file}", 0.5, 1.0, file)
    if file or kind not in METRICS:
        raise ParetobitError(
            f"--metric {name} is unknown", hint=f"choose from {', '.join(METRICS)} and task:FILE.jsonl"
        )
    return METRICS[kind]


def parse_keep(text: str) -> float:
    """ "95%" -> 0.95. Raises ParetobitError on what is no share, and on all or nothing."""
    number = text.strip().removesuffix("%").strip()
    share = float(number) / 100 if number.replace(".", "", 1).isdecimal() and number.isascii() else math.nan
    if not text.strip().endswith("%") or not 0 < share < 1:
        raise ParetobitError(f"--keep {text} is no share", hint="write more than 0% and less than 100%, such as 95%")
    return share


@dataclass(frozen=True)
class Judged:
    """kept: share of the original's; stderr: its standard error over `n` windows, or rows of a task."""

    kept: float
    stderr: float | None
    n: int

    def text(self) -> str:
        error = "" if self.stderr is None else f" ± {100 * self.stderr:.2f}"
        return f"{100 * self.kept:.2f}{error} %"


@dataclass(frozen=True)
class Try:
    """A candidate that was made, and what it keeps."""

    chosen: Chosen
    found: Judged


def search(
    metric: Metric, share: float, choose: Callable[[float], Chosen], judge: Callable[[Chosen], Judged]
) -> Sequence[Try]:
    """Candidates in the order they were made. choose: the smallest plan expected to stay within so many nats (or what
    comes nearest); judge: makes it and measures."""
    allowed, slope, tried = -math.log(share), metric.slope, list[Try]()
    while len(tried) < TRIES:
        chosen = choose(metric.divergence(share, slope))
        held = smallest(tried, share)
        if held and chosen.size > NOTHING_TO_GAIN * held.chosen.size:
            break
        if any(chosen.schemes == earlier.chosen.schemes for earlier in tried):
            break
        found = judge(chosen)
        tried.append(Try(chosen, found))
        told(len(tried), tried[-1], metric, share)
        loss = -math.log(min(max(found.kept, 1e-12), 1.0))
        slope = min(max(loss, LEAST_LOSS), MOST_LOSS) / chosen.predicted**metric.power
        if found.kept < share:  # a tenth closer at least: what was measured may be all but enough
            slope = max(slope, allowed / (0.9 * chosen.predicted) ** metric.power)
        elif found.stderr is not None and found.kept - share <= found.stderr:
            break
    return tried


def smallest(tried: Sequence[Try], share: float) -> Try | None:
    """Of those that keep the share."""
    return min((t for t in tried if t.found.kept >= share), key=lambda t: t.chosen.size, default=None)


class Judge:
    """Measures what models keep of `source` on held-out text, and remembers it in the file `memory`."""

    def __init__(self, source: Checkpoint, metric: Metric, text: Corpus | None, device: str, memory: Path) -> None:
        self.source, self.metric, self.text, self.device, self.memory = source, metric, text, device, memory
        self.task: Task | None = None
        if metric.file is not None:
            from paretobit.evals.tasks import read_task

            self.task = read_task(metric.file)

    @cached_property
    def about(self) -> str:
        """What is measured, and on what."""
        on = self.text.hash if self.text else hashlib.sha256(Path(self.metric.file or "").read_bytes()).hexdigest()
        return f"{self.metric.label} {on}"

    def remembered(self, plan: str) -> Judged | None:
        for row in remembered(self.memory):
            known = type(row.get("kept")) is float and type(row.get("n")) is int and "stderr" in row
            if known and (row.get("plan"), row.get("about")) == (plan, self.about):
                return Judged(row["kept"], row["stderr"], row["n"])
        return None

    def judge(self, plan: str, made: Artifact) -> Judged:
        """What the packed model `made` of the plan with this hash keeps. Raises ParetobitError where the original has
        nothing to keep."""
        kept, stderr, n = self._task(made) if self.task else self._text(made)
        if kept is None:
            raise ParetobitError(
                f"{self.source.name} is no better than chance in {self.metric.name}", hint="choose another --metric"
            )
        remember(self.memory, {"plan": plan, "about": self.about, "kept": kept, "stderr": stderr, "n": n})
        return Judged(kept, stderr, n)

    def _text(self, made: Artifact) -> tuple[float | None, float | None, int]:
        from paretobit.evals.divergence import compare
        from paretobit.verbs.evaluate import open_decoder

        assert self.text is not None
        with progress(f"checking {human(made.size_bytes)} on unseen text", len(self.text.ids)) as advance:
            candidate = open_decoder(made, self.device)[0]
            found = compare(candidate, self.text.ids, self._reference, advance=advance)
        return (*kept_of(self.metric, found), found.windows)

    def _task(self, made: Artifact) -> tuple[float | None, float | None, int]:
        from paretobit.evals.tasks import evaluate_task
        from paretobit.verbs.evaluate import open_decoder

        assert self.task is not None
        with progress(f"{self.task.name} on {human(made.size_bytes)}", 1.0) as advance:
            candidate, tokenizer = open_decoder(made, self.device)
            context = self.source.arch.max_positions
            found = evaluate_task(self.task, tokenizer, candidate, self._reference, max_tokens=context, advance=advance)
        return (*found.retained, len(self.task.rows))

    @cached_property
    def _reference(self) -> Logits:
        from paretobit.verbs.evaluate import open_decoder

        return open_decoder(self.source, self.device)[0]


def kept_of(metric: Metric, found: Comparison) -> tuple[float | None, float | None]:
    """Share kept and its standard error: of next-token accuracy the paired ratio, of perplexity original ÷ quantized,
    of the arg-max the share that agrees."""
    if metric.name == NEXT_TOKEN:
        return found.next_token_accuracy_retained
    if metric.name == SAME:
        return found.share("same_top1")
    ratio, stderr = found.ln_perplexity_ratio
    assert ratio is not None
    kept = float(np.exp(-ratio))
    return kept, None if stderr is None else kept * stderr


def told(number: int, tried: Try, metric: Metric, share: float) -> None:
    say(
        f"candidate {number}, {human(tried.chosen.size)}: keeps {tried.found.text()} of {metric.label} on unseen text, "
        f"{100 * share:g} % are wanted"
    )
