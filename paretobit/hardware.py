"""What this process may use of this machine: instruction set, physical cores, memory, as cgroups allow.

`paretobit probe` measures how fast it is and saves all of it as a profile: JSON, checked on the way in.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from paretobit.errors import ParetobitError
from paretobit.native import isa
from paretobit.scheme import parse
from paretobit.work import cache_folder, disk_errors, parse_json, read_bytes, write_atomically

__all__ = [
    "Cache", "Hardware", "Speeds", "caches", "cores", "cpu_name", "describe", "isa", "load_profile", "memory_available",
    "memory_limit", "profile_path", "save_profile", "text_of",
]  # fmt: skip

ROOT = Path("/")  # of /proc and /sys; tests give a made-up tree
PROFILE_KIND, PROFILE_VERSION = "hardware", 1
MOST_PROFILE_BYTES, MOST_ENTRIES = 1 << 20, 4096


@dataclass(frozen=True)
class Cache:
    """One cache of the first processor. kind: "data" or "unified"; shared_by: logical processors that share it."""

    level: int
    kind: str
    bytes: int
    shared_by: int


@dataclass(frozen=True)
class Speeds:
    """What `probe` measured, medians. Keys of the inner mappings are thread counts.

    read_gb_s, best_read_gb_s, cached_read_gb_s: GB/s read in order, from memory (median, best) and from the cache that
    is a core's own; ns_per_weight, cached_ns_per_weight: by scheme ("w4g64"), nanoseconds of wall time a weight takes
    in a matrix times one vector, read from memory and from that cache.
    """

    read_gb_s: Mapping[int, float]
    best_read_gb_s: Mapping[int, float]
    cached_read_gb_s: Mapping[int, float]
    ns_per_weight: Mapping[str, Mapping[int, float]]
    cached_ns_per_weight: Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class Hardware:
    """What speed and, across machines, the last bits of a result depend on.

    isa: instruction set in use; cores: physical; cpu: its name; memory_bytes: what the process may take; caches: data
    caches from the first level on, as far as the system tells; speeds: None where nothing was measured.
    """

    isa: str
    cores: int
    cpu: str
    memory_bytes: int
    caches: tuple[Cache, ...] = ()
    speeds: Speeds | None = None

    @cached_property
    def hash(self) -> str:
        """16 hex digits, equal on machines of one kind. Memory is left out, which varies from boot to boot, and so is
        everything measured."""
        facts = {"isa": self.isa, "cores": self.cores, "cpu": self.cpu}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """The profile as `save_profile` writes it; speeds null where nothing was measured."""
        return {"kind": PROFILE_KIND, "version": PROFILE_VERSION, **asdict(self), "hash": self.hash}


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
    return cache_folder() / f"hardware-{Hardware(isa(), cores(), cpu_name(), 0).hash}.json"


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


def read_profile(text: str | bytes, source: str) -> Hardware:
    """Parse and validate a profile. Raises ParetobitError naming `source` and the field."""
    facts = parse_json(text, source)
    version = facts.get("version")
    if facts.get("kind") != PROFILE_KIND or type(version) is not int or version != PROFILE_VERSION:
        raise _bad(source, f"kind {_short(facts.get('kind'))}, version {_short(version)}")
    try:
        return Hardware(
            isa=_name(facts, "isa"),
            cores=_count_in(facts, "cores"),
            cpu=_name(facts, "cpu"),
            memory_bytes=_count_in(facts, "memory_bytes"),
            caches=tuple(_cache(value) for value in _checked(facts, "caches", list)),
            speeds=None if facts.get("speeds") is None else _speeds(_checked(facts, "speeds", dict)),
        )
    except _Refused as why:
        raise _bad(source, str(why)) from None


class _Refused(Exception):
    """What is wrong with a field."""


def _bad(source: str, what: str) -> ParetobitError:
    return ParetobitError(f"{source} is not a hardware profile: {what}", hint="make one with paretobit probe")


def _short(value: object) -> str:
    return reprlib.repr(value)


def _checked(facts: Mapping[str, Any], name: str, kind: type) -> Any:
    value: Any = facts.get(name)
    if type(value) is not kind or (isinstance(value, list | dict) and len(value) > MOST_ENTRIES):
        raise _Refused(f"{name} is {_short(value)}")
    return value


def _name(facts: Mapping[str, Any], name: str) -> str:
    value: str = _checked(facts, name, str)
    if not value.isprintable() or len(value) > 200:
        raise _Refused(f"{name} is {_short(value)}")
    return value


def _count_in(facts: Mapping[str, Any], name: str) -> int:
    value: int = _checked(facts, name, int)
    if not 1 <= value < 1 << 60:
        raise _Refused(f"{name} is {_short(value)}")
    return value


def _cache(value: object) -> Cache:
    if not isinstance(value, dict):
        raise _Refused(f"a cache is {_short(value)}")
    counts = {name: _count_in(value, name) for name in ("level", "bytes", "shared_by")}
    return Cache(kind=_name(value, "kind"), **counts)


def _speeds(facts: Mapping[str, Any]) -> Speeds:
    return Speeds(
        _by_threads(facts, "read_gb_s"),
        _by_threads(facts, "best_read_gb_s"),
        _by_threads(facts, "cached_read_gb_s"),
        _by_scheme(facts, "ns_per_weight"),
        _by_scheme(facts, "cached_ns_per_weight"),
    )


def _by_scheme(facts: Mapping[str, Any], name: str) -> dict[str, dict[int, float]]:
    table = _checked(facts, name, dict)
    for spelled in table:
        try:
            known = len(spelled) < 40 and parse(spelled)
        except ParetobitError:
            known = False
        if not known:
            raise _Refused(f"{name} holds {_short(spelled)}, which is no scheme")
    return {spelled: _by_threads(table, spelled) for spelled in table}


def _by_threads(facts: Mapping[str, Any], name: str) -> dict[int, float]:
    found = {}
    for threads, value in _checked(facts, name, dict).items():
        if not re.fullmatch(r"[1-9][0-9]{0,5}", threads):
            raise _Refused(f"{name} holds {_short(threads)}, which is no number of threads")
        if type(value) not in (int, float) or not 0 < value < 1e12:
            raise _Refused(f"{name} of {threads} threads is {_short(value)}")
        found[int(threads)] = float(value)
    return found


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
