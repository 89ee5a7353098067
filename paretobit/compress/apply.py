"""Checkpoint + Plan -> finished units on disk, block by block, resumable.

A unit is what one step leaves behind: `block-007.safetensors` with the packed tensors of block 7, and in the end
`ends.safetensors` with embedding, final norm and head. Between two blocks the hidden states are saved, so a killed job
goes on with the block it was in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from paretobit.arch import Tap
from paretobit.arch.spec import EMBED, FINAL_NORM, HEAD
from paretobit.artifact import RANGE, float_arrays, load_stored, stored
from paretobit.bands import under
from paretobit.checkpoint.base import Checkpoint
from paretobit.compress import calibrate, estimate, fold, guide, methods, recover
from paretobit.compress.basis import Basis, basis_of, restored
from paretobit.compress.model import Decoder
from paretobit.compress.recover import Recipe
from paretobit.compress.stats import ABSMAX, BESIDE, GUIDE, TapStats
from paretobit.compress.statsfile import StatsFolder
from paretobit.compress.world import World, fast_in_half
from paretobit.errors import ParetobitError
from paretobit.pieces import pieces
from paretobit.planfile import Layer, Plan, activation, folding, is_embedding
from paretobit.progress import progress, say
from paretobit.qtensor import QTensor
from paretobit.scheme import FLOATS, STATIC
from paretobit.tensorfile import SafetensorsFile, write_arrays
from paretobit.trellis import RING
from paretobit.work import Work

ROWS_PER_CHUNK = 8192


@dataclass
class Job:
    """Everything that decides the result.

    windows: int64 (n, tokens), this process's share; None where no method reads data. sequential: inputs of a block
    come from the blocks already rounded; else all statistics are the full-precision model's, from `stats` if given.
    recover: None where the plan decides. The source becomes one in the plan's bands.
    """

    source: Checkpoint
    plan: Plan
    windows: np.ndarray | None
    sequential: bool = True
    stats: StatsFolder | None = None
    recover: bool | None = None
    recipe: Recipe = field(default_factory=Recipe)
    device: str = "cpu"
    world: World = field(default_factory=World)

    def __post_init__(self) -> None:
        self.source = under(self.source, self.plan)

    @property
    def recovers(self) -> bool:
        """Whether scales and norms are trained afterwards: as asked, else where blocks are on a trellis of few bits."""
        if self.recover is not None or self.windows is None:
            return bool(self.recover)
        grids = [layer.scheme.weight for name, layer in self.plan.layers.items() if not is_embedding(name)]
        return any(grid.kind == "trellis" and grid.bits <= 3 for grid in grids)

    def needs(self, names: Iterable[str]) -> frozenset[str]:
        """Statistics that the plan's methods read for these tensors; of two models where inputs are sequential."""
        layers = [self.plan.layers[name] for name in names if name in self.plan.layers]
        found = frozenset().union(*(methods.needs(layer.method, layer.params) for layer in layers if quantized(layer)))
        found |= {ABSMAX} if any(map(is_static, layers)) else set()
        return found - (set() if self.sequential else BESIDE) - (set() if self.stats is None else {GUIDE})

    @property
    def reads(self) -> bool:
        """Whether anything reads calibration text."""
        return bool(self.needs(self.plan.layers)) or bool(self.recover) or folding(self.plan) is not None


def is_static(layer: Layer) -> bool:
    return layer.scheme.activation is not None and layer.scheme.activation.kind == STATIC


def quantized(layer: Layer) -> bool:
    return layer.scheme.weight.kind not in FLOATS


def announce(job: Job) -> None:
    """Say how long it will take and how much memory it will need."""
    needs = job.needs(job.plan.layers) if job.stats is None else frozenset()
    tokens = 0 if job.windows is None else job.windows.size
    arch = job.source.arch
    shapes, layers = arch.shapes(), job.plan.layers.items()
    searched = sum(math.prod(shapes[name]) for name, layer in layers if layer.scheme.weight.kind == "trellis")
    recovered = tokens * job.recipe.epochs if job.recovers else 0
    kept = recover.NOTHING_KEPT
    if job.windows is not None and recovered:
        kept = recover.room(arch, job.recipe, job.windows, job.device, job.world)
    extra = estimate.Extra(searched, recovered, bool(recovered) and fast_in_half(job.device), kept)
    say(estimate.lines(job.source.name, arch, tokens, needs, ROWS_PER_CHUNK, extra))


@dataclass
class Part:
    """A job among those that one walk serves, and where its units go: `key` stands before their names."""

    job: Job
    work: Work
    key: str = ""

    @property
    def ends(self) -> Path:
        return self.work.path(f"{self.key}ends.safetensors")

    def unit(self, layer: int) -> Path:
        return self.work.path(f"{self.key}block-{layer:03d}.safetensors")


def run(job: Job, work: Work) -> list[Path]:
    """Do what is not done yet; returns the units in file order. Raises ParetobitError on bad weights or a full disk."""
    source, stats = fold.folded(job.source, job.plan, job.windows, job.stats, work, job.device, job.world)
    job = replace(job, source=source, stats=stats)
    (made,) = round_all([Part(job, work)])
    if job.recovers:
        assert job.windows is not None
        made.append(recover.run(job.source, job.plan, job.windows, made, work, job.recipe, job.device, job.world))
    return made


def round_all(parts: Sequence[Part]) -> list[list[Path]]:
    """The units of every part, all of them rounded in one walk through the model, as far as they are not done yet.

    Parts share everything but the plan; several need inputs of the full-precision model, not sequential ones.
    """
    job, work = parts[0].job, parts[0].work
    if len(parts) > 1 and any(part.job.sequential for part in parts):
        raise ParetobitError("sequential inputs are those of one plan", hint="round several plans with full inputs")
    arch = job.source.arch
    decoder = Decoder(job.source, device=job.device, keep=False)
    everything = frozenset().union(*(part.job.needs(part.job.plan.layers) for part in parts))
    streams = bool(everything) and job.stats is None
    guided = None
    if streams and GUIDE in everything and not all(part.ends.exists() for part in parts):
        assert job.windows is not None
        path = work.path(f"guide.r{job.world.rank}.safetensors")
        guided = guide.get(path, decoder, job.windows, job.world)
    what = f"quantizing {job.source.name}" if len(parts) == 1 else f"rounding {job.source.name} {len(parts)} ways"
    with torch.inference_mode(), progress(what, arch.layers + 1) as advance:
        missing = (i for i in range(arch.layers) if not all(part.unit(i).exists() for part in parts))
        walk, first = None, job.world.least(next(missing, arch.layers))
        if streams:
            assert job.windows is not None
            walk, at = calibrate.resume(work, decoder, job.windows, job.world, bool(BESIDE & everything), first)
            walk.guide = guided
            for layer in range(at, first):
                original = decoder.weights(layer)
                walk.replay(layer, original | _rounded(job, layer, parts[0].unit(layer), original), original)
        advance(first)
        for layer in range(first, arch.layers):
            _block(parts, decoder, walk, layer)
            if walk is not None:
                calibrate.save(work, job.world, walk, layer + 1)
            advance(1)
        if not all(part.ends.exists() for part in parts):
            _ends(parts, decoder, walk)
        advance(1)
    return [[*(part.unit(layer) for layer in range(arch.layers)), part.ends] for part in parts]


def _block(parts: Sequence[Part], decoder: Decoder, walk: calibrate.Walk | None, layer: int) -> None:
    """Quantize one block and write its units."""
    world, arch = parts[0].job.world, parts[0].job.source.arch
    weights = decoder.weights(layer)
    packed: list[dict[str, np.ndarray]] = [{} for _ in parts]

    def visit(tap: Tap, stats: TapStats | None) -> None:
        turned = Turned(tap, stats, alone=len(parts) == 1)
        for part, arrays in zip(parts, packed, strict=True):
            arrays.update(_tap(part.job, walk, layer, tap, *turned.under(part.job.plan), weights))

    if walk is not None:
        needs = frozenset().union(*(part.job.needs(weights) for part in parts))
        walk.block(layer, weights, needs, world, visit)
    else:
        for tap in arch.taps(layer):
            visit(tap, _kept_stats(parts, tap, tap.consumers))
    for part, arrays in zip(parts, packed, strict=True):
        for name in weights:
            if name not in part.job.plan.layers:
                arrays[name] = float_arrays(weights[name].cpu().numpy(), None)[1]
        _write(part.job, part.unit(layer), arrays)


def _kept_stats(parts: Sequence[Part], tap: Tap, names: Sequence[str]) -> TapStats | None:
    """A tap's statistics from the folder that the jobs were given, if they have one and read any for these tensors."""
    job = parts[0].job
    reads = job.stats is not None and any(part.job.needs(names) for part in parts)
    return job.stats.tap(tap, job.device) if job.stats and reads else None


class Turned:
    """A tap's statistics in the basis of each plan, turned once for all plans that share one.

    alone: one plan only, for which the statistics as collected may be given up.
    """

    def __init__(self, tap: Tap, stats: TapStats | None, alone: bool) -> None:
        self.tap, self.stats, self.alone = tap, stats, alone
        self.known: dict[bytes, TapStats] = {}

    def under(self, plan: Plan) -> tuple[Basis | None, TapStats | None]:
        basis = basis_of(plan, self.tap)
        if basis is None or self.stats is None:
            return basis, self.stats
        key = basis.rotation.signs.tobytes()
        if key not in self.known:
            self.known[key] = basis.stats(self.stats if self.alone else replace(self.stats))
        return basis, self.known[key]


def _tap(
    job: Job, walk: calibrate.Walk | None, layer: int, tap: Tap, basis: Basis | None, stats: TapStats | None,
    weights: dict[str, Tensor],
) -> dict[str, np.ndarray]:  # fmt: skip
    """What the file holds for a tap's consumers. Where inputs are sequential, `weights` become the rounded ones."""
    arch = job.source.arch
    packed = _range(job.plan, tap, stats)
    owner = arch.taps(layer).index(tap) % job.world.size
    for names in _alike(job.plan, tap.consumers, arch.block_shapes(layer)):
        # Rows do not interact: consumers with one plan are one matrix, and its column loop runs once.
        stack = torch.cat([weights[name] for name in names])
        if basis is not None:
            stack = basis.forward(stack)
        if stats is not None and walk is not None and walk.guide is not None:
            stats.row_weight = walk.guide.row_weight(names)
        rounded = round_rows(job, job.plan.layers[names[0]], stack.__getitem__, stack.shape, stats, owner)
        start = 0
        for name in names:
            part = slice(start, start + len(weights[name]))
            start = part.stop
            packed.update(_arrays(name, rounded, part))
            if job.sequential and isinstance(rounded, QTensor):
                weights[name] = restored(rounded.rows(part), basis, stack.device)
    return packed


def _range(plan: Plan, tap: Tap, stats: TapStats | None) -> dict[str, np.ndarray]:
    """The array that holds the range of a tap's activation, where it has one scale for all tokens."""
    grid = activation(plan, tap)
    if grid is None or grid.kind != STATIC:
        return {}
    assert stats is not None and stats.absmax is not None
    return {tap.name + RANGE: stats.absmax.max().float().cpu().numpy()[None]}


def _rounded(job: Job, layer: int, unit: Path, weights: Iterable[str]) -> dict[str, Tensor]:
    """What a finished block's matrices are to the blocks after it: the unit's, where inputs are sequential."""
    names = [name for name in weights if name in job.plan.layers and quantized(job.plan.layers[name])]
    file = SafetensorsFile(unit)
    tap_of = {name: tap for tap in job.source.arch.taps(layer) for name in tap.consumers}
    found = {}
    for name in names if job.sequential else ():
        grid, (rows, columns) = job.plan.layers[name].scheme.weight, job.source.shape(name)
        q = load_stored(file.read_raw, name, grid, (rows, columns))
        found[name] = restored(q, basis_of(job.plan, tap_of[name]), job.device)
    return found


def _ends(parts: Sequence[Part], decoder: Decoder, walk: calibrate.Walk | None) -> None:
    """Embedding, final norm and head. A tied matrix is rounded once, under the head's statistics."""
    source, arch, world = parts[0].job.source, parts[0].job.source.arch, parts[0].job.world
    packed = [{FINAL_NORM: float_arrays(source.read(FINAL_NORM), None)[1]} for _ in parts]
    for end in (EMBED,) if arch.tied else (EMBED, HEAD):
        names, stats = arch.bands(end), None
        tap = arch.head_tap if names[0] in arch.head_tap.consumers else arch.embed_tap
        if tap == arch.head_tap:
            needs = frozenset().union(*(part.job.needs(names) for part in parts))
            stats = walk.head(needs, world) if walk is not None and needs else _kept_stats(parts, tap, names)
        turned = Turned(tap, stats, len(parts) == 1)
        for part, arrays in zip(parts, packed, strict=True):
            basis, mine = turned.under(part.job.plan)
            if tap == arch.head_tap:
                arrays.update(_range(part.job.plan, tap, mine))
            for name in names:

                def rows(chunk: slice, name: str = name, basis: Basis | None = basis) -> Tensor:
                    w = torch.from_numpy(source.read(name, chunk)).to(parts[0].job.device)
                    return w if basis is None else basis.forward(w)

                layer = part.job.plan.layers[name]
                arrays.update(_arrays(name, round_rows(part.job, layer, rows, source.shape(name), mine, 0)))
    for part, arrays in zip(parts, packed, strict=True):
        _write(part.job, part.ends, arrays)


def _write(job: Job, unit: Path, packed: dict[str, np.ndarray]) -> None:
    if job.world.leads:
        write_arrays(unit, packed)
    job.world.wait()


def _alike(plan: Plan, names: Iterable[str], shapes: Mapping[str, tuple[int, ...]]) -> list[list[str]]:
    """The names, those with equal plans together; a trellis's rings hold rows of one matrix only."""
    groups: list[list[str]] = []
    for name in names:
        for group in groups:
            whole = plan.layers[name].scheme.weight.kind != "trellis" or shapes[group[-1]][0] % RING == 0
            if whole and plan.layers[group[0]] == plan.layers[name]:
                group.append(name)
                break
        else:
            groups.append([name])
    return groups


def _arrays(name: str, rounded: QTensor | np.ndarray, part: slice = slice(None)) -> dict[str, np.ndarray]:
    """What the file holds for these rows of a rounded (or float) matrix."""
    if isinstance(rounded, np.ndarray):
        return {name: rounded[part]}
    return {name + suffix: array for suffix, array in stored(rounded.rows(part)).items()}


def round_rows(
    job: Job,
    layer: Layer,
    rows: Callable[[slice], Tensor],
    shape: Sequence[int],
    stats: TapStats | None,
    owner: int,
) -> QTensor | np.ndarray:
    """A matrix on its planned grid, a chunk of rows at a time (rows do not interact), or its float array.

    `rows(slice)` gives float32 (part, in). With several processes the owner rounds and the others receive.
    """
    parts = list(pieces(shape[0], ROWS_PER_CHUNK))
    if not quantized(layer):
        return np.concatenate([float_arrays(rows(part).cpu().numpy(), layer.scheme)[1] for part in parts])
    grid, method = layer.scheme.weight, methods.load(layer.method)
    params = methods.make_params(layer.method, layer.params)
    groups = (shape[0], grid.groups(shape[1]))
    zero = np.empty(groups, np.uint8) if grid.zero == "stored" else None
    q = QTensor(np.empty((shape[0], shape[1]), np.uint8), np.empty(groups, np.float16), zero, grid)
    for part in parts if job.world.rank == owner else ():
        piece = method.run(rows(part), stats and stats.of_rows(part), grid, params)
        q.codes[part], q.scale[part] = piece.codes, piece.scale
        if zero is not None:
            zero[part] = piece.zero
    for array in (q.codes, q.scale.view(np.uint8), zero):
        if array is not None and job.world.size > 1:
            array[...] = job.world.share(torch.from_numpy(array).to(job.device), owner).cpu().numpy()
    return q
