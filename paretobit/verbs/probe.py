"""probe: what this machine is and how fast, measured and kept as a hardware profile."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from paretobit.progress import progress
from paretobit.verbs.verb import Option, Verb

if TYPE_CHECKING:
    from paretobit.hardware import Hardware, Speeds
    from paretobit.speed import Pick


@dataclass(frozen=True)
class Probe:
    """A measured machine. available: instruction sets, best first; path: where the profile is kept."""

    hardware: Hardware
    available: tuple[str, ...]
    path: str

    def to_json(self) -> dict[str, Any]:
        return {**self.hardware.to_json(), "available": list(self.available), "path": self.path}


def probe(
    *,
    out: Annotated[str | None, Option("File to write (default: in the cache folder, one a machine).", "-o")] = None,
) -> Probe:
    """Measure this machine: read bandwidth, the time a weight takes on every grid, and what else a token takes.

    Takes about a minute and at most a quarter of the free memory. The profile is saved as JSON and used wherever a
    plan asks how fast this machine is; PARETOBIT_ISA and the number of cores make another one. Raises ParetobitError
    where memory or disk are missing.
    """
    from paretobit import hardware, native

    measured = measure_machine()
    path = hardware.save_profile(measured, Path(out) if out else None)
    return Probe(measured, native.available(), str(path))


def measure_machine(
    teams: Sequence[int] | None = None, schemes: Sequence[str] | None = None, pick: Pick = statistics.median
) -> Hardware:
    """This machine with its speeds. teams: numbers of threads for which matrices are timed (default: 1 and all cores);
    schemes: that are timed (default: all of speed.SCHEMES); pick: see speed.Matrices."""
    from paretobit import hardware, speed
    from paretobit.hardware import Speeds

    machine = hardware.describe()
    reading = thread_counts(machine.cores)
    teams = teams or ((1,) if machine.cores == 1 else (1, machine.cores))
    names = tuple(schemes or speed.SCHEMES)
    with progress("probing", 2 * len(reading) + len(teams) * (len(names) + 15)) as advance:
        read, cached = {}, {}
        for threads in reading:
            read[threads] = speed.read_speed(threads, 1.0)
            cached[threads] = speed.cached_read_speed(threads, 0.25)
            advance(2)
        tables = speed.Matrices(max(teams), pick).tables(teams, names, 0.2, advance)
        speeds = Speeds(
            {threads: found.median for threads, found in read.items()},
            {threads: found.most for threads, found in read.items()},
            {threads: found.median for threads, found in cached.items()},
            *tables, {}, {},
        )  # fmt: skip
        return replace(machine, speeds=_with_fixed(replace(machine, speeds=speeds), teams, pick, advance))


def _with_fixed(machine: Hardware, teams: Sequence[int], pick: Pick, advance: Callable[[float], None]) -> Speeds:
    """The machine's speeds with what a token takes beside its matrices."""
    from paretobit.evals.fixed import fixed_ns
    from paretobit.profile import FIXED

    near: dict[str, dict[int, float]] = {name: {} for name in FIXED}
    far: dict[str, dict[int, float]] = {name: {} for name in FIXED}
    for threads in teams:
        for table, found in zip((near, far), fixed_ns(machine, threads, pick), strict=True):
            for name in FIXED:
                table[name][threads] = found[name]
        advance(15)
    assert machine.speeds is not None
    return replace(machine.speeds, fixed_ns=near, far_fixed_ns=far)


def thread_counts(cores: int) -> tuple[int, ...]:
    """1, 2, 4 … and all cores."""
    return (*(1 << i for i in range(cores.bit_length()) if 1 << i < cores), cores)


def show(result: Probe) -> Any:
    from rich.console import Group
    from rich.table import Table

    from paretobit.sizes import human

    machine = result.hardware
    speeds = machine.speeds
    assert speeds is not None
    levels = ", ".join(f"L{c.level} {c.bytes >> 10} KiB ({c.kind}, shared by {c.shared_by})" for c in machine.caches)
    lines = [
        f"{machine.cpu}: {machine.cores} core(s), {human(machine.memory_bytes)}; {machine.isa} of "
        f"{', '.join(result.available)}",
        f"caches: {levels or 'unknown'}",
    ]
    read = Table("threads", box=None, header_style="bold")
    for column in ("memory GB/s", "best", "own cache GB/s"):
        read.add_column(column, justify="right")
    for threads, speed in speeds.read_gb_s.items():
        figures = (speed, speeds.best_read_gb_s[threads], speeds.cached_read_gb_s[threads])
        read.add_row(str(threads), *(f"{figure:.1f}" for figure in figures))
    grids = Table("ns a weight", box=None, header_style="bold")
    ends = list(next(iter(speeds.ns_per_weight.values())))
    for threads in ends:
        for where in ("memory", "cache"):
            grids.add_column(f"{threads} thread{'s' if threads > 1 else ''}, {where}", justify="right")
    for scheme, by_threads in speeds.ns_per_weight.items():
        near = speeds.cached_ns_per_weight[scheme]
        grids.add_row(scheme, *(f"{ns[threads]:.4f}" for threads in ends for ns in (by_threads, near)))
    return Group(*lines, "", read, "", grids, "", f"saved as {result.path}")


VERB = Verb("probe", probe, show)
