"""probe: what this machine is and how fast, measured and kept as a hardware profile."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from paretobit.progress import progress
from paretobit.verbs.verb import Option, Verb

if TYPE_CHECKING:
    from paretobit.hardware import Hardware


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
    """Measure this machine: read bandwidth by thread count and the time a weight takes on every grid.

    Takes under a minute and at most a quarter of the free memory. The profile is saved as JSON and used wherever a
    plan asks how fast this machine is; PARETOBIT_ISA and the number of cores make another one. Raises ParetobitError
    where memory or disk are missing.
    """
    from dataclasses import replace

    from paretobit import hardware, native, speed
    from paretobit.hardware import Speeds

    machine = hardware.describe()
    team = thread_counts(machine.cores)
    ends = (1,) if machine.cores == 1 else (1, machine.cores)
    with progress("probing", 2 * len(team) + len(ends) * len(speed.SCHEMES)) as advance:
        read, cached = {}, {}
        for threads in team:
            read[threads] = speed.read_speed(threads, 1.0)
            cached[threads] = speed.cached_read_speed(threads, 0.25)
            advance(2)
        matrices = speed.Matrices(machine.cores)
        memory: dict[str, dict[int, float]] = {scheme: {} for scheme in speed.SCHEMES}
        near: dict[str, dict[int, float]] = {scheme: {} for scheme in speed.SCHEMES}
        for threads in ends:
            for scheme in speed.SCHEMES:
                memory[scheme][threads], near[scheme][threads] = matrices.ns_per_weight(scheme, threads)
                advance(1)
    speeds = Speeds(
        {threads: found.median for threads, found in read.items()},
        {threads: found.most for threads, found in read.items()},
        {threads: found.median for threads, found in cached.items()},
        memory,
        near,
    )
    measured = replace(machine, speeds=speeds)
    path = hardware.save_profile(measured, Path(out) if out else None)
    return Probe(measured, native.available(), str(path))


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
