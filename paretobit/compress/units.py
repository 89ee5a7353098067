"""What rounding left on disk, read as a model: the matrices of finished units in the model's basis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from paretobit.artifact import stored_rows
from paretobit.checkpoint.base import Checkpoint
from paretobit.compress.basis import basis_of, restored
from paretobit.planfile import Plan, taps
from paretobit.qtensor import QTensor
from paretobit.scheme import FLOATS
from paretobit.tensorfile import SafetensorsFile


class Units:
    """Matrices as rounded under `plan`; whatever it leaves in floating point is the original's, `source`'s."""

    def __init__(self, source: Checkpoint, plan: Plan, files: Sequence[Path]) -> None:
        self.source, self.plan, self.arch = source, plan, source.arch
        self._where = {name: file for file in map(SafetensorsFile, files) for name in file.tensors}
        self._tap_of = {n: tap for tap in taps(self.arch) for n in tap.consumers}

    def quantized(self, name: str) -> bool:
        return name in self.plan.layers and self.plan.layers[name].scheme.weight.kind not in FLOATS

    def raw(self, name: str) -> np.ndarray:
        """An array as the file holds it."""
        return self._where[name].read_raw(name)

    def tensor(self, name: str, device: torch.device | str = "cpu", rows: slice = slice(None)) -> Tensor:
        """float32, `rows` of a matrix as rounded (out, in); a trellis's are whole rings of 64."""
        if not self.quantized(name):
            return torch.from_numpy(self.source.read(name, rows)).to(device)
        return restored(self.qtensor(name, rows), basis_of(self.plan, self._tap_of[name]), device)

    def qtensor(self, name: str, rows: slice = slice(None)) -> QTensor:
        """`rows` of a rounded matrix as stored, in its own basis."""
        (out, width), grid = self.source.shape(name), self.plan.layers[name].scheme.weight
        return stored_rows(lambda array: self._where[array].map(array), name, grid, (out, width), rows)
