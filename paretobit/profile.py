"""What is known of a machine's speed and power, as JSON that is checked on the way in: the profile that `probe` writes,
and what is published of machines that nobody here has.
"""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from paretobit.errors import ParetobitError
from paretobit.scheme import parse
from paretobit.work import parse_json

PROFILE_KIND, PROFILE_VERSION = "hardware", 2
MOST_PROFILE_BYTES, MOST_ENTRIES, MOST_TEXT = 1 << 20, 4096, 200
# What a decoded token takes beside its matrices, each thing counted by `pace.work`.
FIXED = ("token", "block", "pass", "turn", "attend", "kv", "logit")


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
    in a matrix times one vector, read from memory and from that cache; distance: by bytes that are read over and over,
    how far from that cache towards memory they seem to lie, 0 to 1; fixed_ns, far_fixed_ns: by name (FIXED), what each
    of the things that `pace.work` counts takes where all lies near, and what is added where it comes from memory.
    """

    read_gb_s: Mapping[int, float]
    best_read_gb_s: Mapping[int, float]
    cached_read_gb_s: Mapping[int, float]
    ns_per_weight: Mapping[str, Mapping[int, float]]
    cached_ns_per_weight: Mapping[str, Mapping[int, float]]
    distance: Mapping[int, Mapping[int, float]]
    fixed_ns: Mapping[str, Mapping[int, float]]
    far_fixed_ns: Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class Power:
    """core_watts: of a busy core; joules_per_byte: of bytes that leave memory; source: who says so."""

    core_watts: float
    joules_per_byte: float
    source: str

    def joules(self, seconds: float, cores: float, nbytes: float) -> float:
        """Of so many seconds on so many busy cores with so many bytes read."""
        return self.core_watts * cores * seconds + self.joules_per_byte * nbytes

    def __str__(self) -> str:
        picojoules = 1e12 * self.joules_per_byte
        return f"{self.core_watts:g} W a busy core and {picojoules:.0f} pJ a byte from memory, {self.source}"


# Horowitz, "Computing's energy problem" (ISSCC 2014): 1.3 to 2.6 nJ for 64 bits from DRAM, here its middle. What a core
# draws is an assumption.
ASSUMED_POWER = Power(5.0, 1.95e-9 / 8, "not measured")


@dataclass(frozen=True)
class Published:
    """read_gb_s: what others measured, or what the maker says at most; source: who says so."""

    read_gb_s: float
    source: str


@dataclass(frozen=True)
class Hardware:
    """What speed and, across machines, the last bits of a result depend on.

    isa: instruction set in use; cores: physical; cpu: its name; memory_bytes: what the process may take; caches: data
    caches from the first level on, as far as the system tells; speeds: None where nothing was measured; power: None
    where nothing is known of it; published: None of a machine that was measured.
    """

    isa: str
    cores: int
    cpu: str
    memory_bytes: int
    caches: tuple[Cache, ...] = ()
    speeds: Speeds | None = None
    power: Power | None = None
    published: Published | None = None

    @cached_property
    def hash(self) -> str:
        """16 hex digits, equal on machines of one kind. Memory is left out, which varies from boot to boot, and so is
        everything measured."""
        facts = {"isa": self.isa, "cores": self.cores, "cpu": self.cpu}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """The profile as `save_profile` writes it; speeds null where nothing was measured."""
        return {"kind": PROFILE_KIND, "version": PROFILE_VERSION, **asdict(self), "hash": self.hash}


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
            power=None if facts.get("power") is None else _power(_checked(facts, "power", dict)),
            published=None if facts.get("published") is None else _published(_checked(facts, "published", dict)),
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


def _name(facts: Mapping[str, Any], name: str, most: int = MOST_TEXT) -> str:
    value: str = _checked(facts, name, str)
    if not value.isprintable() or len(value) > most:
        raise _Refused(f"{name} is {_short(value)}")
    return value


def _count_in(facts: Mapping[str, Any], name: str) -> int:
    value: int = _checked(facts, name, int)
    if not 1 <= value < 1 << 60:
        raise _Refused(f"{name} is {_short(value)}")
    return value


def _number(facts: Mapping[str, Any], name: str, low: float, high: float) -> float:
    value: Any = facts.get(name)
    if not _is_number(value, low, high):
        raise _Refused(f"{name} is {_short(value)}")
    return float(value)


def _is_number(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and low <= value <= high


def _cache(value: object) -> Cache:
    if not isinstance(value, dict):
        raise _Refused(f"a cache is {_short(value)}")
    counts = {name: _count_in(value, name) for name in ("level", "bytes", "shared_by")}
    return Cache(kind=_name(value, "kind"), **counts)


def _power(facts: Mapping[str, Any]) -> Power:
    watts, joules = _number(facts, "core_watts", 1e-6, 1e6), _number(facts, "joules_per_byte", 0, 1)
    return Power(watts, joules, _source(facts))


def _published(facts: Mapping[str, Any]) -> Published:
    return Published(_number(facts, "read_gb_s", 1e-6, 1e9), _source(facts))


def _source(facts: Mapping[str, Any]) -> str:
    value = _name(facts, "source", 10 * MOST_TEXT)
    if not value:
        raise _Refused("source is empty")
    return value


def _speeds(facts: Mapping[str, Any]) -> Speeds:
    near, memory = (_by_scheme(facts, name) for name in ("cached_ns_per_weight", "ns_per_weight"))
    if set(near) != set(memory):
        raise _Refused("cached_ns_per_weight does not hold the schemes of ns_per_weight")
    return Speeds(
        _by_threads(facts, "read_gb_s"),
        _by_threads(facts, "best_read_gb_s"),
        _by_threads(facts, "cached_read_gb_s"),
        memory,
        near,
        _by_bytes(facts, "distance"),
        _by_part(facts, "fixed_ns"),
        _by_part(facts, "far_fixed_ns"),
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


def _by_bytes(facts: Mapping[str, Any], name: str) -> dict[int, dict[int, float]]:
    table = _checked(facts, name, dict)
    for nbytes in table:
        if not re.fullmatch(r"[1-9][0-9]{0,17}", nbytes):
            raise _Refused(f"{name} holds {_short(nbytes)}, which is no number of bytes")
    return {int(nbytes): _by_threads(table, nbytes, 0, 1) for nbytes in table}


def _by_part(facts: Mapping[str, Any], name: str) -> dict[str, dict[int, float]]:
    table = _checked(facts, name, dict)
    if set(table) != set(FIXED):
        raise _Refused(f"{name} does not hold just {', '.join(FIXED)}")
    return {part: _by_threads(table, part, 0) for part in FIXED}


def _by_threads(facts: Mapping[str, Any], name: str, low: float = 1e-12, high: float = 1e12) -> dict[int, float]:
    found = {}
    table = _checked(facts, name, dict)
    for threads in table:
        if not re.fullmatch(r"[1-9][0-9]{0,5}", threads):
            raise _Refused(f"{name} holds {_short(threads)}, which is no number of threads")
        value: Any = table[threads]
        if not _is_number(value, low, high):
            raise _Refused(f"{name} of {threads} threads is {_short(value)}")
        found[int(threads)] = float(value)
    return found
