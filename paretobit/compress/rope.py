"""Rotary embedding in torch: tables of `arch.rope.frequencies`, grown as far as positions are asked for."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from paretobit.arch.rope import frequencies
from paretobit.arch.spec import Arch, Rope
from paretobit.errors import ParetobitError


class Rotary:
    """Turns heads by their position; channel i of a head turns with channel i + head_dim/2."""

    def __init__(self, arch: Arch, device: torch.device) -> None:
        self._head_dim, self._most, self._device = arch.head_dim, arch.max_positions, device
        self._tables: dict[Rope, tuple[Tensor, Tensor]] = {}

    def __call__(self, rope: Rope, x: Tensor, start: int) -> Tensor:
        """x (b, t, heads, head_dim) at positions start … start + t - 1, rotated."""
        stop = start + x.shape[1]
        cos, sin = self._upto(rope, stop)
        return torch.addcmul(x * cos[start:stop], x.roll(self._head_dim // 2, -1), sin[start:stop])

    def _upto(self, rope: Rope, stop: int) -> tuple[Tensor, Tensor]:
        """(cos, cos) and (-sin, sin) of `stop` positions or more, each (positions, 1, head_dim)."""
        if rope not in self._tables or len(self._tables[rope][0]) < stop:
            if stop > self._most:
                raise ParetobitError(
                    f"{stop} tokens are beyond the model's context of {self._most}", hint="shorten the text"
                )
            positions = min(self._most, 1 << (stop - 1).bit_length())
            radians, factor = frequencies(rope, self._head_dim)
            # float64, since a float32 angle at position 10⁴ is wrong by 10⁻³
            angles = np.outer(np.arange(positions), radians)[:, None, :]
            cos, sin = factor * np.cos(angles), factor * np.sin(angles)
            self._tables[rope] = self._table(cos, cos), self._table(-sin, sin)
        return self._tables[rope]

    def _table(self, *halves: np.ndarray) -> Tensor:
        with torch.inference_mode(False):  # the next caller may want gradients
            return torch.from_numpy(np.concatenate(halves, -1).astype(np.float32)).to(self._device)
