"""training.jsonl of a packed model: how its training went, step by step.

The file comes with the model, so nobody vouches for it: every field is checked on the way in.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paretobit.artifact import TRAINING
from paretobit.reports.fields import Fields

MOST_BYTES = 64 << 20
MOST_LEVELS, MOST_NAME = 64, 40
STRETCHES = 150  # of steps, each one point of a curve
MOST_LOOKS = 300  # at one scheme's codes that are kept, evenly taken
HINT = f"delete {TRAINING}: only the report reads it"


@dataclass(frozen=True)
class Stretch:
    """Some steps in a row: tokens seen when they ended, and their mean loss in nats a token."""

    tokens: int
    loss: float


@dataclass(frozen=True)
class Look:
    """One look at all codes of a scheme: the share that changed over the last `over_steps` steps (None at the start),
    each level's share where there are few, and how far ranges have moved from where they began, a mean of ratios."""

    tokens: int
    over_steps: int
    changed: float | None
    levels: tuple[float, ...]
    drift: float


@dataclass(frozen=True)
class Block:
    """A block that was trained by itself: its outputs' relative squared error when that began and when it ended."""

    number: int
    before: float
    after: float


@dataclass(frozen=True)
class Training:
    """looks: by scheme, in order; blocks: none where they were not trained by themselves."""

    steps: int
    curve: tuple[Stretch, ...]
    looks: dict[str, tuple[Look, ...]]
    blocks: tuple[Block, ...]


def read(folder: Path) -> Training | None:
    """How the model in `folder` was trained, None where it was not. Raises ParetobitError naming file and field."""
    source = Fields(str(folder / TRAINING), HINT)
    content = source.content(MOST_BYTES)
    if content is None:
        return None
    tokens, steps = {0: 0}, list[Stretch]()
    looks: dict[str, list[Look]] = {}
    blocks: list[Block] = []
    for number, line in enumerate(content.split(b"\n")[:-1], 1):  # a kill may have cut the last line short
        facts = source.parsed(line, f", line {number}")
        step = source.count(source.field(facts, "step"), "step")
        if "loss" in facts:
            seen = source.count(source.field(facts, "tokens"), "tokens")
            if steps and seen < steps[-1].tokens:
                raise source.bad(f"tokens fall at step {step}")
            tokens[step] = seen
            steps.append(Stretch(seen, source.number(facts, "loss", -1e9, 1e9)))
        elif "block" in facts:
            ends = (source.number(facts, f"error_{when}", 0, 1e9) for when in ("before", "after"))
            blocks.append(Block(source.count(source.field(facts, "block"), "block"), *ends))
        else:
            scheme = source.text(facts, "scheme", MOST_NAME)
            if step not in tokens:
                raise source.bad(f"a look at step {step}, which is not there")
            looks.setdefault(scheme, []).append(_look(source, facts, tokens[step]))
    if not steps:
        return None
    seen_looks = {scheme: _thinned(rows) for scheme, rows in looks.items()}
    return Training(len(steps), _curve(steps), seen_looks, tuple(blocks))


def _look(source: Fields, facts: dict, tokens: int) -> Look:
    levels = source.items(facts, "levels", MOST_LEVELS) if "levels" in facts else []
    return Look(
        tokens,
        source.count(source.field(facts, "over_steps"), "over_steps"),
        source.number(facts, "changed", 0, 1) if "changed" in facts else None,
        tuple(source.checked(share, "a level's share", 0, 1) for share in levels),
        source.number(facts, "range_drift", 0, 1e9),
    )


def _curve(steps: list[Stretch]) -> tuple[Stretch, ...]:
    """Means over stretches of as many steps each."""
    size = -(-len(steps) // STRETCHES)
    parts = (steps[start : start + size] for start in range(0, len(steps), size))
    return tuple(Stretch(part[-1].tokens, sum(step.loss for step in part) / len(part)) for part in parts)


def _thinned(looks: list[Look]) -> tuple[Look, ...]:
    """The first and the last, and of those between what a curve needs."""
    step = -(-len(looks) // MOST_LOOKS)
    return tuple(look for i, look in enumerate(looks) if i % step == 0 or i == len(looks) - 1)
