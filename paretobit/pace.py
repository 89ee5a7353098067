"""Milliseconds and joules that decoding a token takes, predicted from a plan and a profile of the machine.

What a matrix takes is its weights times what `probe` measured for its scheme, between a core's own cache and memory by
how far away a working set of the model's size lies; the rest is counted (`work`) and multiplied by what each of it was
found to take. At an assumed size all of it is a sum over matrices: columns for a solver, as tables of kernels' times
are (Zhang et al., "nn-Meter", MobiSys 2021). Of a device of which only its bandwidth is published, bytes over bandwidth
is all that can be said: no token takes less, and `Pace.bound` says so.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from paretobit.arch.spec import EMBED, Arch, band
from paretobit.errors import ParetobitError
from paretobit.planfile import Plan, cut, rotation, taps
from paretobit.profile import ASSUMED_POWER, Hardware, Power, Speeds
from paretobit.scheme import FLOATS, Scheme, parse, spell
from paretobit.sizes import tensor_bytes

CONTEXT = 288  # positions attended to: the middle of what `bench` decodes, 64 tokens after a prompt of 256
KV_BYTES = 2  # of a key's or value's element
NS, S = 1e-6, 1e-3  # in milliseconds; of a millisecond in seconds


@dataclass(frozen=True)
class Pace:
    """What decoding takes on one machine, for models of about `nbytes` read a token (weights and key-value cache).

    threads: that share the work; context: positions that a token attends to. Raises ParetobitError, as its methods do,
    where the machine's profile holds no speeds.
    """

    arch: Arch
    hardware: Hardware
    threads: int
    nbytes: float
    context: int = CONTEXT

    def __post_init__(self) -> None:
        if self.hardware.speeds is None and self.hardware.published is None:
            raise ParetobitError(
                f"the profile of {self.hardware.cpu} holds no speeds", hint="measure the machine: paretobit probe"
            )

    @property
    def bound(self) -> bool:
        """Whether times are lower bounds ("at least"), from published bandwidth alone; else they are predictions."""
        return self.hardware.speeds is None

    @property
    def power(self) -> Power:
        """What joules are modelled with; `str` of it is the source to print beside them."""
        return self.hardware.power or ASSUMED_POWER

    def matrix_ms(self, name: str, scheme: Scheme) -> float:
        """Milliseconds a token of matrix `name` on `scheme`; an embedding apart from the head is only looked up."""
        if self._is_lookup(name):
            return 0.0
        rows, columns = self._shapes[name]
        if self.hardware.speeds is None:
            return self._least_ms(tensor_bytes(scheme, (rows, columns)))
        return NS * rows * columns * self.ns_per_weight(scheme)

    def fixed_ms(self, turned: Collection[str] = ()) -> float:
        """Milliseconds a token whatever the schemes are. turned: the taps whose activations are rotated; sampling is
        left out."""
        counts, speeds = work(self.arch, self.context, turned), self.hardware.speeds
        if speeds is None:
            return self._least_ms(kv_bytes(self.arch, self.context))
        far, found = self.distance(), 0.0
        for name, count in counts.items():
            near, added = (at_threads(table[name], self.threads) for table in (speeds.fixed_ns, speeds.far_fixed_ns))
            found += NS * count * (near + far * added)
        return found

    def matrix_joules(self, name: str, scheme: Scheme) -> float:
        """Joules a token, modelled from `matrix_ms` and bytes by `power`."""
        nbytes = 0 if self._is_lookup(name) else tensor_bytes(scheme, self._shapes[name])
        return self.power.joules(S * self.matrix_ms(name, scheme), self.threads, nbytes)

    def fixed_joules(self, turned: Collection[str] = ()) -> float:
        """Joules a token whatever the schemes are, modelled likewise."""
        return self.power.joules(S * self.fixed_ms(turned), self.threads, kv_bytes(self.arch, self.context))

    def ns_per_weight(self, scheme: Scheme) -> float:
        """Nanoseconds of wall time a weight takes on `scheme` in a model of this size."""
        assert self.hardware.speeds is not None
        near, memory = scheme_ns(self.hardware.speeds, scheme, self.threads)
        return near + self.distance() * (memory - near)

    def distance(self) -> float:
        """How far from a core's own cache towards memory a model of this size seems to lie, 0 to 1."""
        assert self.hardware.speeds is not None
        return distance(self.hardware.speeds, self.nbytes, self.threads)

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return self.arch.shapes()

    def _is_lookup(self, name: str) -> bool:
        return band(name)[0] == EMBED and not self.arch.tied

    def _least_ms(self, nbytes: float) -> float:
        assert self.hardware.published is not None
        return 1e3 * nbytes / (1e9 * self.hardware.published.read_gb_s)


@dataclass(frozen=True)
class Predicted:
    """Of one plan. bound: see `Pace.bound`; source: of the joules, which are modelled."""

    ms_per_token: float
    joules_per_token: float
    bound: bool
    source: str


def predict(arch: Arch, plan: Plan, hardware: Hardware, threads: int, context: int = CONTEXT) -> Predicted:
    """What a token of the plan takes, at the plan's own size."""
    arch = cut(arch, plan)
    pace = Pace(arch, hardware, threads, bytes_read(arch, plan, context), context)
    turned = turned_taps(arch, plan)
    schemes = {name: layer.scheme for name, layer in plan.layers.items()}
    ms = pace.fixed_ms(turned) + sum(pace.matrix_ms(name, scheme) for name, scheme in schemes.items())
    joules = pace.fixed_joules(turned) + sum(pace.matrix_joules(name, scheme) for name, scheme in schemes.items())
    return Predicted(ms, joules, pace.bound, f"modelled: {pace.power}")


def turned_taps(arch: Arch, plan: Plan) -> list[str]:
    """The taps whose activations the plan rotates."""
    return [tap.name for tap in taps(arch) if rotation(plan, tap.name, tap.width) is not None]


def bytes_read(arch: Arch, plan: Plan, context: int = CONTEXT) -> int:
    """Bytes that a token reads: all matrices but an embedding that is only looked up, and the key-value cache."""
    shapes = cut(arch, plan).shapes()
    read = [name for name in plan.layers if band(name)[0] != EMBED or arch.tied]
    return sum(tensor_bytes(plan.layers[name].scheme, shapes[name]) for name in read) + kv_bytes(arch, context)


def kv_bytes(arch: Arch, context: int) -> int:
    """Bytes of keys and values that a token attends to, in all blocks."""
    return 2 * KV_BYTES * arch.kv_heads * arch.head_dim * sum(_positions(arch, context))


def work(arch: Arch, context: int, turned: Collection[str] = ()) -> dict[str, float]:
    """How much there is to do for a token beside its matrices, by the names of `profile.FIXED`.

    token, block: the token itself, and blocks; pass: elements gone over by norms, sums, rotary embedding, activation
    function and rounding to int8; turn: elements that are rotated; attend: elements of keys that queries meet;
    kv: bytes of the key-value cache; logit: logits.
    """
    queries, keys = arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim
    norms = (4 if arch.post_norms else 2) * arch.hidden + (queries + keys if arch.qk_norm else 0)
    rounded = 2 * arch.hidden + queries + arch.intermediate
    passes = norms + rounded + 2 * arch.hidden + queries + keys + arch.intermediate
    width = {tap.name: tap.width for tap in taps(arch)}
    return {
        "token": 1,
        "block": arch.layers,
        "pass": arch.layers * passes + 2 * arch.hidden,
        "turn": sum(width[tap] for tap in turned),
        "attend": queries * sum(_positions(arch, context)),
        "kv": kv_bytes(arch, context),
        "logit": arch.vocab,
    }


def _positions(arch: Arch, context: int) -> list[int]:
    """By block, how many positions a token attends to."""
    return [context if window is None else min(context, window) for window in arch.windows]


def distance(speeds: Speeds, nbytes: float, threads: int) -> float:
    """How far `nbytes` read again and again seem to lie, 0 (a core's own cache) to 1 (memory): between measured sizes
    on a logarithmic scale."""
    sizes = sorted(speeds.distance)
    if not sizes:
        return 1.0
    values = [at_threads(speeds.distance[size], threads) for size in sizes]
    return float(np.interp(math.log(max(1.0, nbytes)), [math.log(size) for size in sizes], values))


def scheme_ns(speeds: Speeds, scheme: Scheme, threads: int) -> tuple[float, float]:
    """(ns a weight from a core's own cache, from memory). A scheme that was not measured takes what its nearest
    relative takes, by the bytes it has more or less."""
    spelled = spell(replace(scheme, activation=None))
    if spelled in speeds.ns_per_weight:
        other, ratio = spelled, 1.0
    else:
        other, ratio = _relative(scheme, speeds.ns_per_weight)
    near, memory = (at_threads(table[other], threads) for table in (speeds.cached_ns_per_weight, speeds.ns_per_weight))
    return near * max(1.0, ratio), memory * ratio


def knows(hardware: Hardware, schemes: Sequence[str]) -> bool:
    """Whether the profile says how fast every one of these is."""
    if hardware.speeds is None:
        return hardware.published is not None
    measured = {_kind(parse(spelled)) for spelled in hardware.speeds.ns_per_weight}
    return all(_kind(parse(scheme)) in measured for scheme in schemes)


def _relative(scheme: Scheme, measured: Collection[str]) -> tuple[str, float]:
    """(the measured scheme of the same kind and width, bytes ÷ its bytes)."""
    grid, shape = scheme.weight, (64, 4096)
    kin = [spelled for spelled in measured if _kind(parse(spelled)) == _kind(scheme)]
    if not kin:
        raise ParetobitError(f"the profile holds no speed of {scheme}", hint="measure the machine: paretobit probe")
    grouped = [spelled for spelled in kin if (parse(spelled).weight.group is None) == (grid.group is None)]
    other = (grouped or kin)[0]
    return other, tensor_bytes(scheme, shape) / tensor_bytes(parse(other), shape)


def _kind(scheme: Scheme) -> object:
    return "float" if scheme.weight.kind in FLOATS else (scheme.weight.kind, scheme.weight.bits)


def at_threads(table: Mapping[int, float], threads: int) -> float:
    """The value at a number of threads; in between, as if time were a part that threads share and one that they do
    not."""
    teams = sorted(table)
    if not teams:
        raise ParetobitError("the profile holds no speed of any number of threads", hint="make it with paretobit probe")
    return float(np.interp(-1 / threads, [-1 / team for team in teams], [table[team] for team in teams]))
