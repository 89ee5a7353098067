"""What plans take of time and energy, for the planner: predicted from a machine's profile, corrected by timing blank
models where the machine is this one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from paretobit import hardware
from paretobit.budget import JOULES, MS, Budget
from paretobit.hardware import Hardware
from paretobit.pace import CONTEXT, Pace, knows
from paretobit.planfile import Plan, taps
from paretobit.profile import ASSUMED_POWER
from paretobit.progress import say
from paretobit.scheme import parse
from paretobit.work import remember, remembered

if TYPE_CHECKING:
    from paretobit.checkpoint.base import Checkpoint
    from paretobit.speed import Spread

S = 1e-3  # of a millisecond


@dataclass
class Machine:
    """What runs the model. here: it is this one, and blank models can be timed; memory: a file for their times; slower:
    measured ÷ predicted, of the plans timed so far."""

    source: Checkpoint
    hardware: Hardware
    here: bool
    memory: Path
    slower: float = 1.0

    @property
    def threads(self) -> int:
        return self.hardware.cores

    def pace(self, nbytes: float) -> Pace:
        return Pace(self.source.arch, self.hardware, self.threads, nbytes)

    def takes(self, pace: Pace, names: tuple[str, ...], scheme: str) -> dict[str, float]:
        """Of these matrices on a scheme: milliseconds and joules a token."""
        grid = parse(scheme)
        ms = sum(pace.matrix_ms(name, grid) for name in names)
        joules = sum(pace.matrix_joules(name, grid) for name in names)
        return self._both(ms, joules)

    def fixed(self, pace: Pace) -> dict[str, float]:
        """Whatever is chosen, every tap being rotated."""
        turned = [tap.name for tap in taps(self.source.arch)]
        return self._both(pace.fixed_ms(turned), pace.fixed_joules(turned))

    def _both(self, ms: float, joules: float) -> dict[str, float]:
        waited = (self.slower - 1) * ms
        return {MS: ms + waited, JOULES: joules + self.waiting(waited)}

    def waiting(self, ms: float) -> float:
        """Joules of so many milliseconds more, with nothing read."""
        return (self.hardware.power or ASSUMED_POWER).joules(S * ms, self.threads, 0)

    def time(self, plan: Plan, predicted: float) -> float:
        """Milliseconds a token of the plan takes here, on a blank model; from now on predictions are set right by it.
        Remembered: the same plan takes the same time for ever, so that a wish leads to one result."""
        layers = {name: str(layer.scheme) for name, layer in plan.layers.items()}
        key = {"layers": layers, "hardware": self.hardware.hash, "threads": self.threads}
        found = self._remembered(key)
        if found is None:
            found = timed_ms(self.source, plan, self.threads).median
            remember(self.memory, {**key, MS: found})
        self.slower *= found / predicted
        return found

    def _remembered(self, key: Mapping[str, object]) -> float | None:
        for row in remembered(self.memory):
            if type(row.get(MS)) is float and {name: row.get(name) for name in key} == key:
                return row[MS]
        return None

    @property
    def about(self) -> str:
        """How its figures come about, for people."""
        pace = self.pace(1)
        kind = "at least, from published bandwidth" if pace.bound else f"predicted for {self.hardware.isa}"
        return f"ms a token: {kind}, {self.threads} threads ({self.hardware.cpu}); joules modelled: {pace.power}"


def timed_ms(source: Checkpoint, plan: Plan, threads: int) -> Spread:
    """Milliseconds a token on a blank model, around the context that predictions are for."""
    from paretobit.evals.blank import TOKENS, measured_ms

    context = min(CONTEXT, source.arch.max_positions - TOKENS // 2)
    return measured_ms(source, plan, threads, prompt=context - TOKENS // 2)


def machine_of(
    source: Checkpoint, name: str | None, budget: Budget, folder: Path, schemes: Sequence[str]
) -> Machine | None:
    """The machine called `name` (see hardware.find), else this one as probed, with these schemes; probed now where a
    limit of time or energy asks for it, None where nothing does and nobody has."""
    if name is not None:
        return Machine(source, hardware.find(name), False, folder / "timed.jsonl")
    found = hardware.load_profile()
    if found is not None and not knows(found, schemes):  # it was probed by a version that had fewer
        found = None
    if found is None and (budget.ms_per_token is not None or budget.joules_per_token is not None):
        from paretobit.verbs.probe import probe

        say("nobody has probed this machine yet: a minute of that first")
        found = probe().hardware
    return None if found is None else Machine(source, found, True, folder / "timed.jsonl")
