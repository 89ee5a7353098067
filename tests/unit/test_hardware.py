"""Cores, caches and memory as made-up trees of /proc and /sys report them; profiles that nobody vouches for."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from paretobit import hardware, native
from paretobit.errors import ParetobitError
from paretobit.hardware import Cache, Hardware, Power, Published, Speeds
from paretobit.profile import FIXED

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


def cache(root: Path, index: str, **fields: str) -> None:
    for name, value in fields.items():
        write(root, f"sys/devices/system/cpu/cpu0/cache/{index}/{name}", value + "\n")


def test_caches(root):
    cache(root, "index3", level="3", type="Unified", size="36864K", shared_cpu_list="0-7,16-23")
    cache(root, "index0", level="1", type="Data", size="48K", shared_cpu_list="0,16")
    cache(root, "index1", level="1", type="Instruction", size="32K", shared_cpu_list="0,16")
    cache(root, "index2", level="2", type="Unified", size="2M", shared_cpu_list="0")
    assert hardware.caches(root) == (
        Cache(1, "data", 48 << 10, 2), Cache(2, "unified", 2 << 20, 1), Cache(3, "unified", 36 << 20, 16),
    )  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"level": "1", "type": "Data"},
        {"level": "one", "type": "Data", "size": "1K"},
        {"level": "1", "type": "Data", "size": "1KB"},
        {"level": "1", "type": "Data", "size": "-1K"},
        {"level": "1", "type": "Data", "size": "9" * 40},
    ],
)
def test_caches_that_make_no_sense_are_left_out(root, fields):
    cache(root, "index0", **fields)
    assert hardware.caches(root) == ()


@pytest.mark.parametrize(("spelled", "cpus"), [("", 1), ("x", 1), ("3-1", 1), ("0-3,8", 5), ("7", 1), ("0-", 1)])
def test_shared_processors(root, spelled, cpus):
    cache(root, "index0", level="2", type="Unified", size="1M", shared_cpu_list=spelled)
    assert hardware.caches(root) == (Cache(2, "unified", 1 << 20, cpus),)


BY_THREADS = {1: 12.5, 2: 24.0}
NS = {"w4g64": BY_THREADS, "bf16": {}}
DISTANCE = {1 << 20: {1: 0.0}, 1 << 25: {1: 0.5, 2: 1.0}}
SPEEDS = Speeds(
    BY_THREADS, {1: 13.0, 2: 25.5}, {1: 130.0}, NS, {"w4g64": {1: 0.01}, "bf16": {}}, DISTANCE,
    {name: {1: 0.0, 2: 7.5} for name in FIXED}, {name: {} for name in FIXED},
)  # fmt: skip
POWER, PUBLISHED = Power(2.5, 1e-10, "a book"), Published(5.6, "a paper")
PROFILE = Hardware("avx2", 2, "x", 3, (Cache(1, "data", 32768, 2),), SPEEDS, POWER, PUBLISHED)


def test_a_profile_comes_back(tmp_path, monkeypatch):
    assert hardware.load_profile(hardware.save_profile(PROFILE, tmp_path / "new" / "p.json")) == PROFILE
    bare = dataclasses.replace(PROFILE, speeds=None, caches=(), power=None, published=None)
    assert hardware.load_profile(hardware.save_profile(bare, tmp_path / "bare.json")) == bare
    assert json.loads((tmp_path / "bare.json").read_text())["speeds"] is None


def test_what_was_measured_is_no_part_of_the_hash():
    assert PROFILE.hash == Hardware("avx2", 2, "x", 3).hash == "0aea27c99145957e"


def test_each_machine_has_its_own_profile(tmp_path, monkeypatch):
    monkeypatch.setenv("PARETOBIT_CACHE", str(tmp_path))
    assert hardware.load_profile() is None
    with pytest.raises(ParetobitError, match=r"p\.json"):
        hardware.load_profile(tmp_path / "p.json")
    path = hardware.save_profile(PROFILE)
    assert path.parent == tmp_path and hardware.describe().hash in path.name
    assert hardware.load_profile() == PROFILE
    monkeypatch.setattr(hardware, "cores", lambda: 77)
    assert hardware.load_profile() is None


def changed(**fields: object) -> dict:
    return {**json.loads(json.dumps(PROFILE.to_json())), **fields}


def speeds(**fields: object) -> dict:
    return changed(speeds={**changed()["speeds"], **fields})


HOSTILE = {
    "not an object": [],
    "another kind": changed(kind="model"),
    "an older version": changed(version=1),
    "another version": changed(version=3),
    "a version that is true": changed(version=True),
    "no isa": {k: v for k, v in changed().items() if k != "isa"},
    "an isa of escapes": changed(isa="\x1b[2J"),
    "a cpu without end": changed(cpu="x" * 1000),
    "half a core": changed(cores=1.5),
    "no cores": changed(cores=0),
    "cores that are true": changed(cores=True),
    "memory beyond measure": changed(memory_bytes=1 << 70),
    "caches that are no list": changed(caches={}),
    "a cache that is no object": changed(caches=[3]),
    "a cache without size": changed(caches=[{"level": 1, "kind": "data", "shared_by": 1}]),
    "a cache for nobody": changed(caches=[{"level": 1, "kind": "data", "bytes": 1, "shared_by": 0}]),
    "caches without end": changed(caches=[{"level": 1, "kind": "data", "bytes": 1, "shared_by": 1}] * 5000),
    "speeds that are no object": changed(speeds=[1]),
    "speeds without a field": changed(speeds={}),
    "a speed by name": speeds(read_gb_s={"fast": 1.0}),
    "a speed of no threads": speeds(read_gb_s={"0": 1.0}),
    "a speed of 10^9 threads": speeds(read_gb_s={"1" + "0" * 9: 1.0}),
    "a speed of zero": speeds(read_gb_s={"1": 0}),
    "a speed that is true": speeds(read_gb_s={"1": True}),
    "a speed that is text": speeds(read_gb_s={"1": "12"}),
    "a speed of ten to the 400": speeds(read_gb_s={"1": 10**400}),
    "a speed of NaN": speeds(cached_read_gb_s={"1": float("nan")}),
    "a speed of infinity": speeds(best_read_gb_s={"1": float("inf")}),
    "no size": speeds(distance={"all": {"1": 0.5}}),
    "a size of zero": speeds(distance={"0": {"1": 0.5}}),
    "further than memory": speeds(distance={"1024": {"1": 1.01}}),
    "nearer than the core": speeds(distance={"1024": {"1": -0.01}}),
    "a part that is not known": speeds(fixed_ns={**{name: {} for name in FIXED}, "coffee": {}}),
    "a part too few": speeds(far_fixed_ns={name: {} for name in FIXED[1:]}),
    "a part that gives time back": speeds(fixed_ns={name: {"1": -1.0} for name in FIXED}),
    "schemes that are measured near but not far": speeds(cached_ns_per_weight={"w4": {"1": 1.0}}),
    "power that is a number": changed(power=5.0),
    "power of nobody's": changed(power={"core_watts": 5.0, "joules_per_byte": 1e-10}),
    "power with an empty source": changed(power={"core_watts": 5.0, "joules_per_byte": 1e-10, "source": ""}),
    "power of nothing": changed(power={"core_watts": 0, "joules_per_byte": 1e-10, "source": "x"}),
    "a byte that gives energy": changed(power={"core_watts": 5.0, "joules_per_byte": -1e-10, "source": "x"}),
    "published without a source": changed(published={"read_gb_s": 5.0}),
    "published by an escape": changed(published={"read_gb_s": 5.0, "source": "\x1b[2J"}),
    "published standstill": changed(published={"read_gb_s": 0.0, "source": "x"}),
    "no scheme": speeds(ns_per_weight={"w7": {"1": 1.0}}),
    "a scheme without end": speeds(ns_per_weight={"w4g" + "6" * 99999: {"1": 1.0}}),
    "times that are no object": speeds(cached_ns_per_weight={"w4": 1.0}),
    "schemes without end": speeds(ns_per_weight={f"w4g{i}": {} for i in range(16, 5000)}),
}


@pytest.mark.parametrize("facts", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_profile_is_refused_by_name(tmp_path, facts):
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(facts))
    with pytest.raises(ParetobitError, match=r"profile\.json") as told:
        hardware.load_profile(path)
    assert len(str(told.value)) < 1000 and told.value.hint


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"\xff", b"[" * 100000, b'{"a":' * 500 + b"1" + b"}" * 500, b" " * 2_000_000]
)
def test_a_profile_that_is_no_json(tmp_path, raw):
    path = tmp_path / "profile.json"
    path.write_bytes(raw)
    with pytest.raises(ParetobitError, match=r"profile\.json"):
        hardware.load_profile(path)


def test_every_device_is_a_profile_that_names_its_source():
    assert {"pi4", "pi5", "pixel8", "n100", "orin-nano", "snapdragon8gen3"} <= set(hardware.devices())
    for name in hardware.devices():
        found = hardware.find(name)
        assert found.published is not None and len(found.published.source) > 20
        assert 1 < found.published.read_gb_s < 200
        assert found.speeds is None  # nothing of it was measured here


def test_a_machine_is_found_by_its_file(tmp_path):
    path = hardware.save_profile(PROFILE, tmp_path / "machine.json")
    assert hardware.find(path) == hardware.find(str(path)) == PROFILE


@pytest.mark.parametrize("name", ["", "pi", "../devices/pi4", "no/such/file.json", "x" * 5000, "\0"])
def test_an_unknown_machine_is_refused_with_the_names_there_are(name):
    with pytest.raises(ParetobitError, match="no device is called") as told:
        hardware.find(name)
    assert all(device in told.value.hint for device in hardware.devices())
