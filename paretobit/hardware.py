"""What this process may use of this machine: instruction set, physical cores, memory, as cgroups allow.

`paretobit probe` measures how fast it is and saves all of it as a profile (profile.py); devices/ holds what is
published of other machines.
"""

from __future__ import annotations

import json
import os
import platform
import re
import reprlib
from pathlib import Path

from paretobit.errors import ParetobitError
from paretobit.native import isa
from paretobit.profile import (
    MOST_PROFILE_BYTES,
    PROFILE_VERSION,
    Cache,
    Hardware,
    Power,
    Published,
    Speeds,
    read_profile,
)
from paretobit.work import cache_folder, disk_errors, read_bytes, write_atomically

__all__ = [
    "Cache", "Hardware", "Power", "Published", "Speeds", "caches", "cores", "cpu_name", "describe", "devices", "find",
    "isa", "load_profile", "memory_available", "memory_limit", "profile_path", "save_profile", "text_of",
]  # fmt: skip

ROOT = Path("/")  # of /proc and /sys; tests give a made-up tree
DEVICES = Path(__file__).parent / "devices"


def describe() -> Hardware:
    """This machine. Raises ParetobitError where PARETOBIT_ISA names what it does not have."""
    return Hardware(isa(), cores(), cpu_name(), memory_limit(), caches())


def cores(root: Path = ROOT) -> int:
    """Physical cores this process may keep busy: those it may run on, at most the cgroup's quota, at least 1."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    topology = root / "sys/devices/system/cpu"
    siblings = {text_of(topology / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in usable}
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
    for line in text_of(root / "proc/cpuinfo").splitlines():
        if line.startswith(("model name", "Model")):
            return line.split(":", 1)[-1].strip()
    return platform.machine()


def cpu_flags(root: Path = ROOT) -> frozenset[str]:
    """What the first processor says that it can do; empty where the system does not tell."""
    lines = text_of(root / "proc/cpuinfo").splitlines()
    found = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(found.partition(":")[2].split())


def caches(root: Path = ROOT) -> tuple[Cache, ...]:
    """The first processor's data caches, smallest level first; empty where the system does not tell."""
    found = []
    for folder in (root / "sys/devices/system/cpu/cpu0/cache").glob("index[0-9]*"):
        level, kind, size = (text_of(folder / name) for name in ("level", "type", "size"))
        match = re.fullmatch(r"([0-9]{1,12})([KMG]?)", size)
        if match and level.isdecimal() and kind in ("Data", "Unified"):
            nbytes = int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]]
            found.append(Cache(int(level), kind.lower(), nbytes, _cpus(text_of(folder / "shared_cpu_list"))))
    return tuple(sorted(found, key=lambda cache: cache.level))


def _cpus(spelled: str) -> int:
    """How many processors a list such as "0-3,8" names; at least one."""
    ranges = [part.partition("-")[::2] for part in spelled.split(",")]
    return max(1, sum(int(last or first) - int(first) + 1 for first, last in ranges if (first + last).isdecimal()))


def profile_path() -> Path:
    """Where the profile of the machine in use is kept: PARETOBIT_ISA, more cores or another machine give another."""
    this = Hardware(isa(), cores(), cpu_name(), 0)
    return cache_folder() / f"hardware-{PROFILE_VERSION}-{this.hash}.json"  # an older version's is passed over


def save_profile(hardware: Hardware, path: Path | None = None) -> Path:
    """Write `hardware` as JSON to `path` (default: `profile_path()`); returns the path.

    Raises ParetobitError where it cannot be written.
    """
    path = profile_path() if path is None else path
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(hardware.to_json(), indent=1) + "\n").encode())
    return path


def load_profile(path: Path | None = None) -> Hardware | None:
    """The profile at `path`, or this machine's own, None where that has not been made yet.

    Raises ParetobitError naming the file and the field on anything that save_profile would not write.
    """
    if path is None:
        path = profile_path()
        if not path.exists():
            return None
    return read_profile(read_bytes(path, MOST_PROFILE_BYTES), str(path))


def devices() -> tuple[str, ...]:
    """The names of the devices of which something is published."""
    return tuple(sorted(path.stem for path in DEVICES.glob("*.json")))


def find(name: str | Path) -> Hardware:
    """The machine called `name`: one of `devices()`, or the profile that `probe -o` wrote there.

    Raises ParetobitError naming the devices where there is no such machine, and as `load_profile` does.
    """
    if str(name) in devices():
        return read_profile(read_bytes(DEVICES / f"{name}.json", MOST_PROFILE_BYTES), str(name))
    path = Path(name).expanduser()
    try:
        there = path.is_file()
    except (OSError, ValueError):  # too long for a path, or with a zero in it
        there = False
    if not there:
        raise ParetobitError(
            f"no device is called {reprlib.repr(str(name))}, and no profile lies there",
            hint=f"choose from {', '.join(devices())}, or give the file that paretobit probe -o FILE wrote",
        )
    return read_profile(read_bytes(path, MOST_PROFILE_BYTES), str(path))


def _cpu_quota(root: Path) -> float | None:
    """Cores' worth of time the cgroups grant, None without a limit. cpu.max: "<microseconds|max> <period>"."""
    quotas = []
    for folder in _groups(root, ""):
        quota, _, period = text_of(folder / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit():
            quotas.append(int(quota) / int(period))
    for folder in _groups(root, "cpu"):  # version 1: -1 means no limit
        quota, period = text_of(folder / "cpu.cfs_quota_us"), text_of(folder / "cpu.cfs_period_us")
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
            limit, usage = text_of(folder / limit_file), text_of(folder / usage_file)
            if limit.isdigit() and usage.isdigit():
                stat = dict(
                    line.split() for line in text_of(folder / "memory.stat").splitlines() if line.count(" ") == 1
                )
                found.append((int(limit), int(usage) - int(stat.get("inactive_file", "0"))))
    return found


def _groups(root: Path, controller: str) -> list[Path]:
    """Folders of this process's cgroup and its parents. controller: "" is version 2, a name version 1."""
    for line in text_of(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if controller in names.split(","):
            mount = root / "sys/fs/cgroup" / controller
            parts = [part for part in path.split("/") if part not in ("", "..")]
            return [mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]
    return []


def _meminfo(root: Path, field: str) -> int:
    for line in text_of(root / "proc/meminfo").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def text_of(path: Path) -> str:
    """What a small file of the system's says, stripped; empty where it says nothing."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
