"""Energy of a piece of work: measured by the processor's own counters where the system shows them, else modelled from
time and bytes; which of the two, and how, stands beside every figure.

Counters: RAPL through Linux' powercap (Documentation/power/powercap/powercap.rst): microjoules that only grow, and
start over at `max_energy_range_uj`. Modelled: busy cores times seconds and bytes that leave memory (profile.Power).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paretobit.errors import ParetobitError
from paretobit.hardware import text_of
from paretobit.profile import ASSUMED_POWER, Power
from paretobit.speed import Spread

ROOT = Path("/")  # of /sys; tests give a made-up tree
MEASURED, MODELLED = "measured", "modelled"
PARTS = ("package", "dram")  # what is added up: cores and graphics are parts of a package, psys is the whole board
MICRO = 1e-6
JOULES_PER_KWH = 3.6e6
MIX = "codecarbon/data/private_infra/global_energy_mix.json"


@dataclass(frozen=True)
class Counter:
    """One energy counter of the processor's. name: "package" or "dram"; limit: microjoules at which it starts over."""

    name: str
    path: Path
    limit: int

    def read(self) -> int:
        """Microjoules so far. Raises ParetobitError where the system keeps them to itself."""
        try:
            return int(self.path.read_text())
        except (OSError, ValueError) as why:
            raise ParetobitError(f"{self.path} cannot be read: {why}", hint=f"sudo chmod a+r {self.path}") from None


def counters(root: Path = ROOT) -> list[Counter]:
    """The packages' and memories' counters; empty where the system has none."""
    found = []
    for folder in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
        name = text_of(folder / "name").split("-")[0]
        limit = text_of(folder / "max_energy_range_uj")
        if name in PARTS and limit.isdecimal() and (folder / "energy_uj").exists():
            found.append(Counter(name, folder / "energy_uj", int(limit)))
    return found


def spent(before: Mapping[Counter, int], after: Mapping[Counter, int]) -> float:
    """Joules between two readings less than one turn of a counter apart."""
    return MICRO * sum((after[c] - before[c]) % (c.limit + 1) for c in before)


@dataclass(frozen=True)
class Energy:
    """joules: of one piece of work, above what the machine draws when idle; method: MEASURED or MODELLED; source: how;
    idle_watts: the baseline that was subtracted, None where the model has none; seconds: that one piece takes."""

    joules: Spread
    method: str
    source: str
    seconds: Spread
    idle_watts: Spread | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "joules": self.joules.to_json(),
            "method": self.method,
            "source": self.source,
            "seconds": self.seconds.to_json(),
            "idle_watts": self.idle_watts and self.idle_watts.to_json(),
        }


@dataclass
class Meter:
    """Runs work and says what it took. counters: [] models; idle_s: how long the baseline is watched before a run."""

    counters: Sequence[Counter] = field(default_factory=counters)
    power: Power = ASSUMED_POWER
    idle_s: float = 1.0
    clock: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep

    def measure(self, work: Callable[[], object], pieces: int, cores: int, nbytes: float, runs: int = 5) -> Energy:
        """`work()` does `pieces` alike, on so many busy cores, each of which reads `nbytes` from memory.

        Idle and work take turns: a neighbour's load then falls on both. Raises ParetobitError where counters cannot be
        read.
        """
        joules, seconds, idle = [], [], []
        for _ in range(runs):
            if self.counters:
                quiet, watched = self._spent(lambda: self.sleep(self.idle_s))
                idle.append(quiet / watched)
            used, took = self._spent(work)
            seconds.append(took / pieces)
            if self.counters:
                joules.append((used - idle[-1] * took) / pieces)
            else:
                joules.append(self.modelled(took / pieces, cores, nbytes))
        return Energy(
            Spread.of(joules),
            MEASURED if self.counters else MODELLED,
            self.source,
            Spread.of(seconds),
            Spread.of(idle) if idle else None,
        )

    def modelled(self, seconds: float, cores: int, nbytes: float) -> float:
        """Joules of so many seconds on so many busy cores with so many bytes read."""
        return self.power.joules(seconds, cores, nbytes)

    @property
    def source(self) -> str:
        if self.counters:
            names = " and ".join(sorted({counter.name for counter in self.counters}, reverse=True))
            return f"RAPL, {names}, idle subtracted"
        return str(self.power)

    def _spent(self, work: Callable[[], object]) -> tuple[float, float]:
        """(joules, seconds) of `work`; 0 joules without counters."""
        before, start = {c: c.read() for c in self.counters}, self.clock()
        work()
        took = self.clock() - start
        return spent(before, {c: c.read() for c in self.counters}), took


def carbon(joules: float, country: str) -> float:
    """Grams of CO2 equivalent that `joules` from the grid of a country (ISO code of three letters) stand for, by the
    mean intensities that codecarbon carries. Raises ParetobitError on a country that it does not know."""
    mix = intensities()
    if country not in mix:
        raise ParetobitError(f"no carbon intensity of the grid '{country}'", hint="give a code such as IND, DEU or USA")
    return joules / JOULES_PER_KWH * mix[country]


def intensities() -> dict[str, float]:
    """g CO2 equivalent a kWh by country, as codecarbon carries them. Raises ParetobitError where it is missing."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:  # its data alone: importing it starts with pandas
        table = json.loads(Path(str(distribution("codecarbon").locate_file(MIX))).read_text())
    except (PackageNotFoundError, OSError, ValueError) as why:
        raise ParetobitError(
            f"no carbon intensities: {why}", hint="pip install 'paretobit[energy]', or leave --grid out"
        ) from None
    return {code: float(facts["carbon_intensity"]) for code, facts in table.items()}
