"""Memory that a process holds, as the system counts it: Linux only, None elsewhere."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paretobit.evals.latency import started

PROC = Path("/proc")
EVERY = 0.005  # seconds between two looks at another process


@dataclass(frozen=True)
class Resident:
    """Bytes in memory: all of it, what is the process's own, and pages of mapped files (weights, libraries).

    File pages are shared with every process that maps the same file and can be dropped by the kernel at any time.
    """

    total: int
    own: int
    file: int


def resident(pid: int | None = None, proc: Path = PROC) -> Resident | None:
    """What process `pid` (default: this one) has in memory now; None where the system does not tell or it has ended."""
    fields = {"VmRSS": 0, "RssAnon": 0, "RssFile": 0}
    try:
        lines = (proc / ("self" if pid is None else str(pid)) / "status").read_text().splitlines()
    except OSError:
        return None
    found = {}
    for line in lines:
        name, _, value = line.partition(":")
        number, _, unit = value.strip().partition(" ")
        if name in fields and number.isdecimal() and unit == "kB":
            found[name] = int(number) << 10
    return Resident(*(found[name] for name in fields)) if found.keys() == fields.keys() else None


def watch(command: Sequence[str]) -> Resident | None:
    """The most that a process had in memory while it ran, looked at every few milliseconds; None where the system does
    not tell. Its output is thrown away. Raises ParetobitError with the last line of its standard error where it fails.
    """
    if resident() is None:
        return None
    most = None
    with started(command, subprocess.DEVNULL) as process:
        while process.poll() is None:
            now = resident(process.pid)
            if now is not None and (most is None or now.total > most.total):
                most = now
            time.sleep(EVERY)
    return most
