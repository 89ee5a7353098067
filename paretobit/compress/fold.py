"""Channel factors moved from where an activation is born into what multiplies it: the same function, other numbers.

A tap's activation x is made by a norm, by v_proj (a head's output is a mean of its rows) or by up_proj (a factor of
the product with the gate), all of them linear in their weights. With the producer's channel j divided by s_j and column
j of all consumers multiplied by it, W x = (W diag(s)) (x / s). Nothing is left to do at run time. Which s is good is
a method's business (compress/methods/, KIND "transform").

Norms are stored in bf16. Not the factor but the norm's new weight is rounded, then the factor is what the weight that
is stored lacks of the old one: float32's rounding of one product and one quotient is all that the function changes by.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from paretobit.arch import Arch, Tap
from paretobit.arch.spec import EMBED
from paretobit.artifact import float_arrays
from paretobit.checkpoint.base import Checkpoint
from paretobit.compress import calibrate, methods
from paretobit.compress.basis import basis_of
from paretobit.compress.model import Decoder
from paretobit.compress.sites import Site
from paretobit.compress.stats import SAMPLE, TapStats
from paretobit.compress.statsfile import StatsFolder
from paretobit.compress.world import World
from paretobit.errors import ParetobitError
from paretobit.planfile import Plan, activation, folding, taps
from paretobit.progress import progress, say
from paretobit.scheme import FLOATS, parse
from paretobit.tensorfile import SafetensorsFile, write_arrays
from paretobit.work import Work

LEAST, MOST = 2.0**-12, 2.0**12  # of a factor: half-precision scales of weights must hold what it leaves
MATRIX, BIAS = ".weight", ".bias"


def foldable(plan: Plan, arch: Arch) -> list[Tap]:
    """The taps whose factors have where to go: matrices that are rounded anyway, and a norm or such a matrix before.

    A tied head has none: its columns are the embedding's, which is also looked up.
    """

    def is_rounded(name: str) -> bool:
        return name in plan.layers and plan.layers[name].scheme.weight.kind not in FLOATS

    return [
        tap
        for tap in taps(arch)
        if tap.kind != "residual" and EMBED not in tap.consumers and all(map(is_rounded, tap.consumers))
        and (tap.kind == "norm" or is_rounded(tap.producer))
    ]  # fmt: skip


def shared(arch: Arch, tap: Tap) -> Tensor:  # (width,) int64
    """Which of the producer's channels each channel of a tap is: query heads share the values of their group's head."""
    channels = torch.arange(tap.width)
    if tap.kind != "heads":
        return channels
    head, within = channels // arch.head_dim, channels % arch.head_dim
    return head // (arch.heads // arch.kv_heads) * arch.head_dim + within


def gained(weight: np.ndarray, offset: float) -> np.ndarray:  # (width,)
    """What a norm multiplies by, as the decoders compute it in float32."""
    return weight + np.float32(offset) if offset else weight


def exact(
    weight: np.ndarray, factors: np.ndarray, offset: float
) -> tuple[np.ndarray, np.ndarray]:  # (width,), (width,) -> (width,), (width,)
    """(a norm's new weight, which bf16 holds, the factors that it really has) near the wished factors.

    A channel that the norm puts out, or would put out at bf16's next value, keeps its weight.
    """
    gain = gained(weight, offset).astype(np.float64)
    words = float_arrays((gain / factors - offset).astype(np.float32), parse("bf16"))[1]
    new = (words.astype(np.uint32) << 16).view(np.float32)
    left = gained(new, offset).astype(np.float64)
    real = np.divide(gain, left, out=np.ones_like(gain), where=left != 0)
    good = (left != 0) & (gain != 0) & (real >= LEAST) & (real <= MOST)
    return np.where(good, new, weight).astype(np.float32), np.where(good, real, 1).astype(np.float32)


class Folded(Checkpoint):
    """`source` with factors folded in: the same function, and the same name and hash, since plans are made for it.

    factors: tap name -> (producer's channels,) float32; norms: name -> the new weight (width,).
    """

    def __init__(self, source: Checkpoint, factors: Mapping[str, np.ndarray], norms: Mapping[str, np.ndarray]) -> None:
        self.source, self.norms = source, norms
        self.name, self.arch, self.config = source.name, source.arch, source.config
        self.rows: dict[str, np.ndarray] = {}
        self.columns: dict[str, np.ndarray] = {}
        for tap in taps(source.arch):
            if tap.name in factors:
                spread = factors[tap.name][shared(source.arch, tap).numpy()]
                self.columns |= dict.fromkeys(tap.consumers, spread)
                if tap.kind != "norm":
                    bias = tap.producer.removesuffix(MATRIX) + BIAS
                    self.rows |= dict.fromkeys((tap.producer, bias), factors[tap.name])

    @property
    def hash(self) -> str:
        return self.source.hash

    @cached_property
    def companions(self) -> dict[str, bytes]:
        return self.source.companions

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        part = slice(None) if rows is None else rows
        if name in self.norms:
            return self.norms[name][part].copy()
        found = self.source.read(name, rows)
        if name in self.columns:
            found = found * self.columns[name]
        if name in self.rows:
            factors = self.rows[name][part]
            found = found / (factors[:, None] if found.ndim == 2 else factors)
        return found


class FoldedStats(StatsFolder):
    """Statistics of the model before, as those of the model with the factors folded in."""

    def __init__(self, folder: Path, arch: Arch, factors: Mapping[str, np.ndarray]) -> None:
        super().__init__(folder)
        self.arch, self.factors = arch, factors

    def tap(self, tap: Tap, device: str = "cpu") -> TapStats:
        stats = super().tap(tap, device)
        if tap.name in self.factors:
            by = 1 / torch.from_numpy(self.factors[tap.name]).to(device)[shared(self.arch, tap).to(device)]
            assert stats.absmax is not None and stats.absmean is not None and stats.hessian is not None
            stats.absmax, stats.absmean = stats.absmax * by, stats.absmean * by
            stats.hessian = stats.hessian * by[:, None] * by
        return stats


def folded(
    source: Checkpoint, plan: Plan, windows: np.ndarray | None, stats: StatsFolder | None, work: Work,
    device: str, world: World,
) -> tuple[Checkpoint, StatsFolder | None]:  # fmt: skip
    """(source, statistics) under the plan's fold, if it has one. Its factors are found once and kept in `work`.

    Raises ParetobitError where the statistics hold nothing that the method reads.
    """
    if folding(plan) is None:
        return source, stats
    path = work.path("factors.safetensors")
    if not world.least(int(path.exists())):
        arrays = _found(source, plan, windows, stats, device, world)
        if world.leads:
            write_arrays(path, arrays)
        world.wait()
    file = SafetensorsFile(path)
    held = {name: file.read_float32(name) for name in file.tensors}
    norms = {name: held.pop(name) for name in list(held) if name.endswith(MATRIX)}
    after = None if stats is None else FoldedStats(stats.folder, source.arch, held)
    return Folded(source, held, norms), after


def _found(
    source: Checkpoint, plan: Plan, windows: np.ndarray | None, stats: StatsFolder | None, device: str, world: World
) -> dict[str, np.ndarray]:
    """Tap name -> its factors, norm's name -> its new weight, after the full-precision model's activations."""
    name, given = folding(plan) or ("", {})
    method, params = methods.load(name, "transform"), methods.make_params(name, given, "transform")
    needs, arch = frozenset(method.needs(params)), source.arch
    if stats is not None and SAMPLE in needs:
        raise ParetobitError(
            f"{name} searches on activations, and --stats holds sums only", hint=f"fix it: --set {name}.alpha=0.5"
        )
    places = {tap.name: tap for tap in foldable(plan, arch)}
    decoder, found, notes = Decoder(source, device=device, keep=False), dict[str, np.ndarray](), dict[str, str]()

    def visit(tap: Tap, seen: TapStats) -> None:
        if tap.name not in places or not world.leads:
            return
        weights = {n: torch.from_numpy(source.read(n)).to(device) for n in tap.consumers}
        layers = {n: plan.layers[n] for n in tap.consumers}
        site = Site.of(weights, layers, shared(arch, tap).to(device), activation(plan, tap), basis_of(plan, tap))
        wished, notes[tap.name] = method.run(site, seen, params)
        if bool((wished == 1).all()):
            return
        factors = wished.clamp(LEAST, MOST).cpu().numpy().astype(np.float32)
        if tap.kind == "norm":
            old = source.read(tap.producer)
            found[tap.producer], factors = exact(old, factors, arch.norm_offset)
        found[tap.name] = factors

    with torch.inference_mode(), progress(f"{name} on {source.name}", arch.layers + 1) as advance:
        if stats is not None:
            for tap in places.values():
                visit(tap, stats.tap(tap, device))
        else:
            assert windows is not None
            walk = calibrate.Walk(decoder, calibrate.embed(decoder, torch.from_numpy(windows).to(device)))
            for layer in range(arch.layers):
                walk.block(layer, decoder.weights(layer), needs, world, visit)
                advance(1)
            if arch.head_tap.name in places:
                visit(arch.head_tap, walk.head(needs, world))
        advance(1)
    for kind in dict.fromkeys(tap.rpartition(".")[2] for tap in notes):
        say(f"{name} {kind}: {' '.join(note for tap, note in notes.items() if tap.rpartition('.')[2] == kind)}")
    return found
