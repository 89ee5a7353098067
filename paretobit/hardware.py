"""What this process may use of this machine: instruction set, physical cores, memory, as cgroups allow."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from paretobit.native import isa

__all__ = ["Hardware", "cores", "cpu_name", "describe", "isa", "memory_available", "memory_limit"]

ROOT = Path("/")  # of /proc and /sys; tests give a made-up tree


@dataclass(frozen=True)
class Hardware:
    """What speed and, across machines, the last bits of a result depend on.

    isa: instruction set in use; cores: physical; cpu: its name; memory_bytes: what the process may take.
    """

    isa: str
    cores: int
    cpu: str
    memory_bytes: int

    @cached_property
    def hash(self) -> str:
        """16 hex digits, equal on machines of one kind. Memory is left out: it varies from boot to boot."""
        facts = asdict(self)
        del facts["memory_bytes"]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def describe() -> Hardware:
    """This machine. Raises ParetobitError where PARETOBIT_ISA names what it does not have."""
    return Hardware(isa(), cores(), cpu_name(), memory_limit())


def cores(root: Path = ROOT) -> int:
    """Physical cores this process may keep busy: those it may run on, at most the cgroup's quota, at least 1."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    topology = root / "sys/devices/system/cpu"
    siblings = {_text(topology / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in usable}
    quota = _cpu_quota(root)
    return max(1, min(len(siblings), len(siblings) if quota is None else int(quota)))


def memory_limit(root: Path = ROOT) -> int:
    """Bytes this process may take at most: the machine's memory or the tightest cgroup limit."""
    return min([_meminfo(root, "MemTotal"), *(limit for limit, _ in _memory_groups(root))])


def memory_available(root: Path = ROOT) -> int:
    """Bytes free now without swapping; inside a cgroup also what its limit still leaves."""
    return max(0, min([_meminfo(root, "MemAvailable"), *(limit - used for limit, used in _memory_groups(root))]))


def cpu_name(root: Path = ROOT) -> str:
    """The processor's own name, or the architecture where it gives none."""
    for line in _text(root / "proc/cpuinfo").splitlines():
        if line.startswith(("model name", "Model")):
            return line.split(":", 1)[-1].strip()
    return platform.machine()


def _cpu_quota(root: Path) -> float | None:
    """Cores' worth of time the cgroups grant, None without a limit. cpu.max: "<microseconds|max> <period>"."""
    quotas = []
    for folder in _groups(root, ""):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit():
            quotas.append(int(quota) / int(period))
    for folder in _groups(root, "cpu"):  # version 1: -1 means no limit
        quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit():
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _memory_groups(root: Path) -> list[tuple[int, int]]:
    """(limit, used) in bytes of every cgroup around this process that has a limit.

    Page cache that the kernel drops when memory is short counts as free.
    """
    files = (
        ("", "memory.max", "memory.current"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    )
    found = []
    for controller, limit_file, usage_file in files:
        for folder in _groups(root, controller):
            limit, usage = _text(folder / limit_file), _text(folder / usage_file)
            if limit.isdigit() and usage.isdigit():
                stat = dict(line.split() for line in _text(folder / "memory.stat").splitlines() if line.count(" ") == 1)
                found.append((int(limit), int(usage) - int(stat.get("inactive_file", "0"))))
    return found


def _groups(root: Path, controller: str) -> list[Path]:
    """Folders of this process's cgroup and its parents. controller: "" is version 2, a name version 1."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if controller in names.split(","):
            mount = root / "sys/fs/cgroup" / controller
            parts = [part for part in path.split("/") if part not in ("", "..")]
            return [mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]
    return []


def _meminfo(root: Path, field: str) -> int:
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
