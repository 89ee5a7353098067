"""Size, counted one way everywhere: what the runtime needs to compute logits, over all parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass

from paretobit.packing import TILE, Layout, zero_bits
from paretobit.scheme import FLOATS, Scheme


@dataclass(frozen=True)
class Part:
    """One stored array of a tensor: what is appended to the tensor's name, safetensors dtype and shape."""

    suffix: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * {"U8": 1, "F16": 2, "BF16": 2, "F32": 4}[self.dtype]


def parts(scheme: Scheme, shape: tuple[int, ...]) -> tuple[Part, ...]:
    """The arrays that hold a tensor of `shape` on `scheme`, in file order."""
    grid = scheme.weight
    if grid.kind in FLOATS:
        return (Part("", {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}[grid.kind], shape),)
    at = Layout.of(grid, shape)
    found: tuple[Part, ...] = (
        Part(".codes", "U8", (at.tiles, at.tile_bytes)),
        Part(".scale", "F16", (at.tiles, at.groups, at.tile)),
    )
    if grid.zero == "stored":
        found += (Part(".zero", "U8", (at.tiles, at.groups, TILE * zero_bits(grid.levels) // 8)),)
    return found


def tensor_bytes(scheme: Scheme, shape: tuple[int, ...]) -> int:
    return sum(part.nbytes for part in parts(scheme, shape))


def human(n: float) -> str:
    """Decimal bytes: 59.0 MB, as the size rule says (MB = 10^6)."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= scale:
            return f"{n / scale:.1f} {unit}"
    return f"{n:.0f} B"
