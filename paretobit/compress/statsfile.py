"""Statistics of the full-precision model as a folder: collected in shards, merged by sum, used by many plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paretobit.arch import Arch, Tap
from paretobit.checkpoint.base import Checkpoint
from paretobit.compress.calibrate import resume, save
from paretobit.compress.model import Decoder
from paretobit.compress.stats import ABSMAX, ABSMEAN, HESSIAN, MERGEABLE, TapStats
from paretobit.compress.world import World
from paretobit.errors import ParetobitError
from paretobit.progress import progress
from paretobit.tensorfile import SafetensorsFile, TensorWriter
from paretobit.work import DAMAGED, MANIFEST, Work, disk_errors, read_json

NEEDS = frozenset(MERGEABLE)
KIND = "statistics"


class StatsFolder:
    """A finished folder of statistics. `manifest` tells model, calibration, shards and tokens."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / MANIFEST).is_file():
            raise ParetobitError(f"{folder} holds no statistics", hint="make it with `paretobit quantize --shard i/N`")
        self.manifest = read_json(self.folder / MANIFEST)
        if self.manifest.get("kind") != KIND:
            raise ParetobitError(f"{folder} is not a statistics folder", hint="name what --shard or merge wrote")
        _check(self.manifest, str(self.folder / MANIFEST))

    def tap(self, tap: Tap, device: str = "cpu") -> TapStats:
        """The statistics of one tap, read when asked for."""
        path, width = self.folder / f"{tap.name}.safetensors", tap.width
        if not path.is_file():
            raise ParetobitError(f"{path} is missing", hint="collect the statistics again")
        file = SafetensorsFile(path)
        shapes = {HESSIAN: (width * (width + 1) // 2,), ABSMAX: (width,), ABSMEAN: (width,)}
        if {name: tensor.shape for name, tensor in file.tensors.items()} != shapes:
            raise ParetobitError(
                f"{path}: not statistics of a tap of width {width}", hint="collect the statistics again"
            )
        read = {name: torch.from_numpy(file.read_float32(name)).to(device) for name in shapes}
        hessian = torch.zeros(width, width, device=device)
        hessian[_upper(width, device)] = read[HESSIAN]
        return TapStats(width, self.manifest["tokens"], read[ABSMAX], read[ABSMEAN], hessian).complete()

    def check_for(self, source: Checkpoint) -> None:
        """Raise unless these are this model's statistics over all shards."""
        if self.manifest.get("model") != source.hash:
            raise ParetobitError(f"{self.folder}: statistics of another model", hint="collect them from this model")
        have, of = self.manifest["shards"], self.manifest["of"]
        if have != list(range(of)):
            raise ParetobitError(
                f"{self.folder} holds shards {have} of {of}",
                hint="merge all of them: paretobit merge S0 S1 … -o S",
            )


def _check(manifest: Mapping[str, Any], source: str) -> None:
    """Raise ParetobitError naming `source` and the field unless the facts of a statistics folder are there."""
    kinds = {"model": str, "calibration": dict, "config": dict, "shards": list, "of": int, "tokens": int}
    for name, kind in kinds.items():
        if type(manifest.get(name)) is not kind:
            raise ParetobitError(f"{source}: {name} is not a {kind.__name__}", hint=DAMAGED)
    shards, of = manifest["shards"], manifest["of"]
    if (
        not all(type(shard) is int and 0 <= shard < of for shard in shards)
        or sorted(set(shards)) != shards
        or not shards
    ):
        raise ParetobitError(f"{source}: shards {str(shards)[:80]} of {of} are impossible", hint=DAMAGED)
    if manifest["tokens"] < 1 or not isinstance(manifest["calibration"].get("source"), str):
        raise ParetobitError(f"{source}: tokens or the calibration's source is missing", hint=DAMAGED)


def _upper(width: int, device: torch.device | str) -> torch.Tensor:
    return torch.ones(width, width, dtype=torch.bool, device=device).triu_()


def _write(path: Path, stats: TapStats) -> None:
    """The Hessian's upper triangle row by row (half the bytes), and the channels' sums."""
    assert stats.hessian is not None and stats.absmax is not None and stats.absmean is not None
    arrays = {
        HESSIAN: stats.hessian[_upper(stats.width, stats.hessian.device)].cpu().numpy(),
        ABSMAX: stats.absmax.cpu().numpy(),
        ABSMEAN: stats.absmean.cpu().numpy(),
    }
    entries = {name: ("F32", array.shape) for name, array in arrays.items()}
    with disk_errors(path), TensorWriter(path, entries, {}) as writer:
        for name, array in arrays.items():
            writer.write(name, array)


def collect(source: Checkpoint, windows: np.ndarray, work: Work, device: str = "cpu") -> list[Path]:
    """Statistics of every tap of the full-precision model over `windows` (n, tokens), one file a tap; resumable."""
    decoder, arch = Decoder(source, device=device, keep=False), source.arch
    made: list[Path] = []

    def visit(tap: Tap, stats: TapStats) -> None:
        _write(_file(work, tap), stats)

    with torch.inference_mode(), progress(f"statistics of {source.name}", arch.layers + 1) as advance:
        done = [all(_file(work, tap).exists() for tap in arch.taps(layer)) for layer in range(arch.layers)]
        first = next((layer for layer in range(arch.layers) if not done[layer]), arch.layers)
        walk, at = resume(work, decoder, windows, World(), False, first)
        for layer in range(at, first):
            walk.replay(layer, decoder.weights(layer), {})
        advance(first)
        for layer in range(first, arch.layers):
            walk.block(layer, decoder.weights(layer), NEEDS, World(), visit)
            save(work, World(), walk, layer + 1)
            advance(1)
        visit(arch.head_tap, walk.head(NEEDS, World()))
        advance(1)
    for layer in range(arch.layers):
        made += [_file(work, tap) for tap in arch.taps(layer)]
    return [*made, _file(work, arch.head_tap)]


def _file(work: Work, tap: Tap) -> Path:
    return work.path(f"{tap.name}.safetensors")


def check_shards(folders: Sequence[StatsFolder]) -> dict[str, Any]:
    """The manifest of these shards' sum. Raises when they do not belong together."""
    first = folders[0].manifest
    shards: list[int] = []
    for folder in folders:
        for key in ("model", "calibration", "of"):
            if folder.manifest.get(key) != first.get(key):
                raise ParetobitError(
                    f"{folder.folder}: {key} differs from {folders[0].folder}'s",
                    hint="merge shards of one command only",
                )
        shards += folder.manifest["shards"]
    if len(set(shards)) != len(shards):
        raise ParetobitError(f"shards {sorted(shards)} overlap", hint="name every shard once")
    tokens = sum(folder.manifest["tokens"] for folder in folders)
    return {**first, "shards": sorted(shards), "tokens": tokens}


def merge(folders: Sequence[StatsFolder], arch: Arch, into: Path) -> None:
    """Add the shards' statistics up into the folder `into`, one tap in memory at a time."""
    taps = [tap for layer in range(arch.layers) for tap in arch.taps(layer)]
    with progress("merging statistics", len(taps) + 1) as advance:
        for tap in [*taps, arch.head_tap]:
            total = folders[0].tap(tap)
            for folder in folders[1:]:
                total.merge(folder.tap(tap))
            _write(into / f"{tap.name}.safetensors", total)
            advance(1)
