"""Cores and memory as made-up trees of /proc and /sys report them."""

import dataclasses
import os
from pathlib import Path

import pytest

from paretobit import hardware, native

GIB = 1 << 30


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """Four logical processors on two cores, 16 GiB, 8 of them free, no cgroup."""
    write(tmp_path, "proc/meminfo", f"MemTotal: {16 * GIB // 1024} kB\nMemAvailable: {8 * GIB // 1024} kB\n")
    for cpu in range(4):
        write(tmp_path, f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", f"{cpu % 2},{cpu % 2 + 2}\n")
    affinity(monkeypatch, {0, 1, 2, 3})
    return tmp_path


def affinity(monkeypatch, cpus: set[int]) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cpus, raising=False)


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_siblings_are_one_core(root):
    assert hardware.cores(root) == 2


def test_affinity_limits_cores(root, monkeypatch):
    affinity(monkeypatch, {1, 3})
    assert hardware.cores(root) == 1


def test_without_topology_every_processor_is_a_core(tmp_path, monkeypatch):
    affinity(monkeypatch, {0, 1, 5})
    assert hardware.cores(tmp_path) == 3


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 2), ("150000 100000", 1), ("50000 100000", 1), ("800000 100000", 2)]
)
def test_version_2_quota(root, quota, cores):
    write(root, "proc/self/cgroup", "0::/a/b\n")
    write(root, "sys/fs/cgroup/a/cpu.max", quota + "\n")  # the parent's limit counts
    assert hardware.cores(root) == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", 2), ("100000", 1)])
def test_version_1_quota(root, quota, cores):
    write(root, "proc/self/cgroup", "3:cpuacct,cpu:/job\n0::/\n")
    write(root, "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", quota + "\n")
    write(root, "sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000\n")
    assert hardware.cores(root) == cores


def test_memory_without_cgroup(root):
    assert hardware.memory_limit(root) == 16 * GIB
    assert hardware.memory_available(root) == 8 * GIB


def test_the_tightest_cgroup_counts_and_cache_is_free(root):
    write(root, "proc/self/cgroup", "0::/a/b\n")
    write(root, "sys/fs/cgroup/a/memory.max", f"{12 * GIB}\n")
    write(root, "sys/fs/cgroup/a/memory.current", f"{11 * GIB}\n")
    write(root, "sys/fs/cgroup/a/memory.stat", f"anon {2 * GIB}\ninactive_file {9 * GIB}\n")
    write(root, "sys/fs/cgroup/a/b/memory.max", "max\n")
    write(root, "sys/fs/cgroup/a/b/memory.current", "1\n")
    assert hardware.memory_limit(root) == 12 * GIB
    assert hardware.memory_available(root) == 8 * GIB  # less than the 10 GiB that the group leaves
    write(root, "sys/fs/cgroup/a/memory.stat", f"anon {6 * GIB}\ninactive_file {5 * GIB}\n")
    assert hardware.memory_available(root) == 6 * GIB


def test_version_1_memory_and_a_group_over_its_limit(root):
    write(root, "proc/self/cgroup", "4:memory:/job\n")
    write(root, "sys/fs/cgroup/memory/job/memory.limit_in_bytes", f"{GIB}\n")
    write(root, "sys/fs/cgroup/memory/job/memory.usage_in_bytes", f"{2 * GIB}\n")
    assert hardware.memory_limit(root) == GIB
    assert hardware.memory_available(root) == 0


def test_a_hostile_cgroup_path_stays_inside_its_mount(root):
    write(root, "proc/self/cgroup", "0::/../../etc/../a\n")
    assert all((root / "sys/fs/cgroup") in (folder, *folder.parents) for folder in hardware._groups(root, ""))


def test_the_hash_tells_machines_apart_but_not_their_free_memory(monkeypatch):
    this = hardware.describe()
    assert this.isa == native.isa()
    assert this.cores == hardware.cores() >= 1
    assert hardware.memory_available() <= this.memory_bytes
    assert dataclasses.replace(this, memory_bytes=1).hash == this.hash
    for change in ({"isa": "other"}, {"cores": this.cores + 1}, {"cpu": "other"}):
        assert dataclasses.replace(this, **change).hash != this.hash
    # 16 hex digits of the SHA-256 of {"cores": 2, "cpu": "x", "isa": "avx2"}: the same on every run
    assert hardware.Hardware("avx2", 2, "x", 3).hash == "0aea27c99145957e"
