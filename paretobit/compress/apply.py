"""Checkpoint + Plan -> finished units on disk, block by block, resumable.

A unit is what one step leaves behind: `block-007.safetensors` with the packed tensors of block 7, and in the end
`ends.safetensors` with embedding, final norm and head. Between two blocks the hidden states are saved, so a killed job
goes on with the block it was in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from paretobit.arch import Tap
from paretobit.arch.spec import EMBED, FINAL_NORM, HEAD
from paretobit.artifact import float_arrays, load_stored, stored
from paretobit.checkpoint.base import Checkpoint
from paretobit.compress import calibrate, estimate, guide, methods, recover
from paretobit.compress.basis import Basis, basis_of, restored
from paretobit.compress.model import Decoder
from paretobit.compress.recover import Recipe
from paretobit.compress.stats import BESIDE, GUIDE, TapStats
from paretobit.compress.statsfile import StatsFolder
from paretobit.compress.world import World
from paretobit.planfile import Layer, Plan, is_embedding
from paretobit.progress import progress, say
from paretobit.qtensor import QTensor
from paretobit.scheme import FLOATS
from paretobit.tensorfile import SafetensorsFile, write_arrays
from paretobit.trellis import RING
from paretobit.work import Work

ROWS_PER_CHUNK = 8192


@dataclass
class Job:
    """Everything that decides the result.

    windows: int64 (n, tokens), this process's share; None where no method reads data. sequential: inputs of a block
    come from the blocks already rounded; else all statistics are the full-precision model's, from `stats` if given.
    recover: None where the plan decides.
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
        return found - (set() if self.sequential else BESIDE) - (set() if self.stats is None else {GUIDE})


def quantized(layer: Layer) -> bool:
    return layer.scheme.weight.kind not in FLOATS


def announce(job: Job) -> None:
    """Say how long it will take and how much memory it will need."""
    needs = job.needs(job.plan.layers) if job.stats is None else frozenset()
    tokens = 0 if job.windows is None else job.windows.size
    arch = job.source.arch
    shapes, layers = arch.shapes(), job.plan.layers.items()
    searched = sum(math.prod(shapes[name]) for name, layer in layers if layer.scheme.weight.kind == "trellis")
    extra = estimate.Extra(searched, tokens * job.recipe.epochs if job.recovers else 0)
    say(estimate.lines(job.source.name, arch, tokens, needs, ROWS_PER_CHUNK, extra))


def run(job: Job, work: Work) -> list[Path]:
    """Do what is not done yet; returns the units in file order. Raises ParetobitError on bad weights or a full disk."""
    arch = job.source.arch
    units = [work.path(f"block-{i:03d}.safetensors") for i in range(arch.layers)]
    ends = work.path("ends.safetensors")
    decoder = Decoder(job.source, device=job.device, keep=False)
    everything = job.needs(job.plan.layers)
    streams = bool(everything) and job.stats is None
    guided = None
    if streams and GUIDE in everything and not ends.exists():
        assert job.windows is not None
        path = work.path(f"guide.r{job.world.rank}.safetensors")
        guided = guide.get(path, decoder, job.windows, job.world)
    with torch.inference_mode(), progress(f"quantizing {job.source.name}", arch.layers + 1) as advance:
        walk, first = None, job.world.least(next((i for i, unit in enumerate(units) if not unit.exists()), len(units)))
        if streams:
            assert job.windows is not None
            walk, at = calibrate.resume(work, decoder, job.windows, job.world, bool(BESIDE & everything), first)
            walk.guide = guided
            for layer in range(at, first):
                original = decoder.weights(layer)
                walk.replay(layer, original | _rounded(job, layer, units[layer], original), original)
        advance(first)
        for layer in range(first, arch.layers):
            _block(job, decoder, walk, layer, units[layer])
            if walk is not None:
                calibrate.save(work, job.world, walk, layer + 1)
            advance(1)
        if not ends.exists():
            _ends(job, decoder, walk, ends)
        advance(1)
    made = [*units, ends]
    if job.recovers:
        assert job.windows is not None
        made.append(recover.run(job.source, job.plan, job.windows, made, work, job.recipe, job.device, job.world))
    return made


def _block(job: Job, decoder: Decoder, walk: calibrate.Walk | None, layer: int, unit: Path) -> None:
    """Quantize one block and write its unit."""
    arch = job.source.arch
    weights = decoder.weights(layer)
    packed: dict[str, np.ndarray] = {}
    shapes = arch.block_shapes(layer)

    def visit(tap: Tap, stats: TapStats | None) -> None:
        owner = arch.taps(layer).index(tap) % job.world.size
        basis = basis_of(job.plan, tap)
        if basis is not None and stats is not None:
            stats = basis.stats(stats)
        for names in _alike(job.plan, tap.consumers, shapes):
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

    if walk is not None:
        walk.block(layer, weights, job.needs(weights), job.world, visit)
    else:
        for tap in arch.taps(layer):
            reads = job.stats is not None and job.needs(tap.consumers)
            visit(tap, job.stats.tap(tap, job.device) if job.stats and reads else None)
    for name in weights:
        if name not in job.plan.layers:
            packed[name] = float_arrays(weights[name].cpu().numpy(), None)[1]
    _write(job, unit, packed)


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


def _ends(job: Job, decoder: Decoder, walk: calibrate.Walk | None, unit: Path) -> None:
    """Embedding, final norm and head. A tied matrix is rounded once, under the head's statistics."""
    source, arch = job.source, job.source.arch
    packed = {FINAL_NORM: float_arrays(source.read(FINAL_NORM), None)[1]}
    for name in (EMBED,) if arch.tied else (EMBED, HEAD):
        stats, needs = None, job.needs([name])
        if needs and name in arch.head_tap.consumers:
            if walk is not None:
                stats = walk.head(needs, job.world)
            elif job.stats is not None:
                stats = job.stats.tap(arch.head_tap, job.device)

        tap = arch.head_tap if name in arch.head_tap.consumers else arch.embed_tap
        basis = basis_of(job.plan, tap)
        if basis is not None and stats is not None:
            stats = basis.stats(stats)

        def rows(part: slice, name: str = name, basis: Basis | None = basis) -> Tensor:
            w = torch.from_numpy(source.read(name, part)).to(job.device)
            return w if basis is None else basis.forward(w)

        packed.update(_arrays(name, round_rows(job, job.plan.layers[name], rows, source.shape(name), stats, 0)))
    _write(job, unit, packed)


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
    parts = [slice(i, min(i + ROWS_PER_CHUNK, shape[0])) for i in range(0, shape[0], ROWS_PER_CHUNK)]
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
