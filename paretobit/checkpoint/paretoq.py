"""Folders as ParetoQ's training code saves them: latent weights, and beside each matrix on a grid its ranges.

`weight_clip_val` (out, 1) is α of every row and `w_bits` in config.json the width of all of them, 0 for three levels
(arXiv 2502.02631 and its code). What such a model computes with is not what `weight` holds, but that on its grid.
"""

from __future__ import annotations

import json
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np

from paretobit.checkpoint.base import hash_files
from paretobit.checkpoint.hf import CONFIG, HfCheckpoint, canonical
from paretobit.errors import ParetobitError
from paretobit.qtensor import QTensor
from paretobit.scales import HALF_MAX
from paretobit.scheme import Grid, parse
from paretobit.tensorfile import SafetensorsFile, row_range, to_float32
from paretobit.work import read_json

WIDTH, RANGES = "w_bits", "weight_clip_val"
SCHEMES = {0: "w1.58", 1: "w1", 2: "w2", 3: "w3", 4: "w4"}
LEAST = 1e-5  # of a range, as in ParetoQ's code: keeps rows of zeros finite


def step(grid: Grid) -> float:
    """scale ÷ α: what a range holds of the grid's steps."""
    return {1: 2.0, 1.58: 2 / 3, 2: 0.5}.get(grid.bits, 1.0)


def is_trained(folder: Path) -> bool:
    """Whether a folder's config.json says that its weights lie on one of ParetoQ's grids."""
    path = folder / CONFIG
    width = read_json(path).get(WIDTH) if path.is_file() else None
    return type(width) is int and width < 16


class TrainedCheckpoint(HfCheckpoint):
    """Such a folder; `qtensor` gives the matrices with ranges as codes, `read` their values.

    Raises ParetobitError on a width that ParetoQ has not, and on ranges that do not belong to a matrix.
    """

    def __init__(self, folder: Path) -> None:
        self.width = read_json(folder / CONFIG)[WIDTH]
        if self.width not in SCHEMES:
            raise ParetobitError(f"{folder}: {WIDTH} is {self.width}", hint="0 (ternary), 1, 2, 3 and 4 are read")
        super().__init__(folder)
        self.config = {key: value for key, value in self.config.items() if key != WIDTH}

    @cached_property
    def hash(self) -> str:
        """The width changes what the weights mean: it counts as well."""
        content = hash_files(file.path for file in self._files)
        return sha256((content + json.dumps(self.width)).encode()).hexdigest()

    def _is_part(self, file: SafetensorsFile, stored: str) -> bool:
        stem, _, part = canonical(stored).rpartition(".")
        if part != RANGES:
            return False
        name = f"{stem}.weight"
        rows, found = self._shapes.get(name, (0,))[0], file.tensors[stored]
        if found.shape != (rows, 1) or len(self._shapes[name]) != 2:
            raise ParetobitError(
                f"{file.path}: {stored} has shape {found.shape}, {name} has {rows} rows", hint="fetch the model again"
            )
        self.packed.setdefault(name, {})[part] = (file, stored)
        return True

    def _check_shapes(self) -> None:
        ranges, self.packed = self.packed, {}  # the weights themselves are there too
        super()._check_shapes()
        self.packed = ranges

    def qtensor(self, name: str) -> QTensor:
        """A matrix on its grid: codes as training chose them, scales rounded to half precision."""
        file, stored = self.packed[name][RANGES]
        alpha = np.maximum(to_float32(file.tensors[stored].dtype, file.read_raw(stored)), np.float32(LEAST))
        if not np.isfinite(alpha).all():
            raise ParetobitError(f"{file.path}: {stored} holds values that are not finite", hint="train it again")
        grid = parse(SCHEMES[self.width]).weight
        scale = np.minimum(alpha * np.float32(step(grid)), HALF_MAX).astype(np.float16)
        return QTensor(codes(super().read(name), alpha, grid), scale, None, grid)

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        if name not in self.packed:
            return super().read(name, rows)
        first, end = row_range(name, self.shape(name), rows)
        return self.qtensor(name).dequant(slice(first, end))


def codes(w: np.ndarray, alpha: np.ndarray, grid: Grid) -> np.ndarray:  # (out, in), (out, 1) -> (out, in)
    """uint8 codes of latent weights: the nearest level, ties as ParetoQ's code has them, to even levels."""
    half = np.float32(grid.offset % 1)
    u = w / (alpha * np.float32(step(grid)))
    return np.clip(np.round(u - half) + half + np.float32(grid.offset), 0, grid.levels - 1).astype(np.uint8)
