"""Grids, schemes and their grammar: `w3g64`, `w2`, `w1.58`, `w8a8`, `w8g32a8g32`, `bf16`.

A `Grid` says which values a weight may take; a `Scheme` pairs a weight grid with an optional activation
grid. Both are plain facts: no method, no code path hangs on them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from paretobit.errors import ParetobitError

TRELLIS_BITS = (1, 1.5, 2, 2.5, 3, 3.5, 4)
LEVELS = {1: 2, 1.58: 3, 2: 4, 3: 8, 4: 16, 5: 32, 6: 64, 8: 255}
FLOATS = ("bf16", "fp16", "fp32")
LEVEL_ZERO = 63.5  # where a trellis's levels 0 … 127 have their zero
SPELLING = re.compile(
    r"w(?P<bits>1\.58|[1-3]\.5|[1-9][0-9]?)(?:t(?P<trellis>[48])?(?P<is_trellis>))?"
    r"(?:g(?P<group>[1-9][0-9]{0,7}))?(?P<zero>[sz])?(?P<act>a8(?:s|g(?P<act_group>[1-9][0-9]{0,7}))?)?"
)


@dataclass(frozen=True)
class Grid:
    """The values a weight may take: `scale * (code - zero)` for affine grids.

    kind:   "affine", "lut", "trellis" or "float" (stored as it is: bf16, fp16, fp32); of activations "affine", whose
            scales are each token's own, or "static": one scale for all tokens, known from calibration
    bits:   nominal bits a code (1.58 for three levels)
    levels: number of codes; 8 bits have 255, so that code - zero stays in [-127, 127]
    group:  columns that share a scale; None = the whole row (of activations: a token's). The last may be ragged.
    zero:   "mid" ((levels - 1) / 2), "twos" (2^(bits-1)) or "stored" (an integer code per group)
    """

    kind: str
    bits: float
    levels: int
    group: int | None = None
    zero: str = "twos"

    def groups(self, columns: int) -> int:
        """Scales per row of `columns` weights."""
        return 1 if self.group is None else math.ceil(columns / self.group)

    @property
    def offset(self) -> float:
        """What is subtracted from a code (a trellis: from a level) when the zero point is not stored."""
        if self.kind == "trellis":
            return LEVEL_ZERO
        return (self.levels - 1) / 2 if self.zero == "mid" else float(1 << round(self.bits) >> 1)


@dataclass(frozen=True)
class Scheme:
    """How one tensor is stored (`weight`) and what multiplies it (`activation`, None = float)."""

    weight: Grid
    activation: Grid | None = None

    def __str__(self) -> str:
        return spell(self)


STATIC = "static"


def parse(text: str) -> Scheme:
    """The scheme that `text` spells. Raises ParetobitError on anything outside the grammar."""
    if text in FLOATS:
        return Scheme(Grid(text, 32 if text == "fp32" else 16, 0, None, "mid"))
    match = SPELLING.fullmatch(text)
    if match is None:
        raise ParetobitError(
            f"'{text}' is not a scheme",
            hint="write w<bits>[t|g<group>][s|z][a8[s|g<group>]], for example w3g64, w8, w8a8 or bf16",
        )
    bits: float = float(match["bits"]) if "." in match["bits"] else int(match["bits"])
    trellis = match["is_trellis"] is not None
    some = TRELLIS_BITS if trellis else sorted(LEVELS)
    if bits not in some:
        raise ParetobitError(f"'{text}': {match['bits']} bits are not supported", hint=f"choose from {list(some)}")
    group = int(match["group"]) if match["group"] else None
    if group is not None and group < 16:
        raise ParetobitError(f"'{text}': groups start at 16 columns", hint=f"w{match['bits']}g16 is the finest")
    activation = _activation(text, match)
    if trellis:
        return Scheme(_trellis(text, bits, match), activation)
    if match["zero"] == "z" and (bits == 8 or bits < 2):
        raise ParetobitError(
            f"'{text}': {match['bits']} bits have no stored zero point", hint=f"use {text.replace('z', '')}"
        )
    zero = "stored" if _stored_zero(bits, group, match["zero"]) else symmetric_zero(bits)
    return Scheme(Grid("affine", bits, LEVELS[bits], group, zero), activation)


def _activation(text: str, match: re.Match) -> Grid | None:
    """`a8`: a scale a token; `a8g32`: for every 32 channels of a token; `a8s`: one for all, from calibration."""
    if match["act"] is None:
        return None
    group = int(match["act_group"]) if match["act_group"] else None
    if group is not None and group < 16:
        raise ParetobitError(f"'{text}': groups start at 16 channels", hint="a8g16 is the finest")
    return Grid(STATIC if match["act"] == "a8s" else "affine", 8, LEVELS[8], group, "mid")


def _trellis(text: str, bits: float, match: re.Match) -> Grid:
    if match["group"] or match["zero"]:
        raise ParetobitError(f"'{text}' is not a trellis", hint="w1t, w1.5t … w4t take neither group nor zero point")
    window = int(match["trellis"] or 8)
    if window == 4 and not isinstance(bits, int):
        raise ParetobitError(f"'{text}' is not a trellis", hint=f"its window has eight bits: w{bits}t")
    return Grid("trellis", bits, 1 << window, None, "mid")


def _stored_zero(bits: float, group: int | None, letter: str | None) -> bool:
    if letter is not None:
        return letter == "z"
    return 2 <= bits <= 4 and group is not None


def symmetric_zero(bits: float) -> str:
    """ParetoQ's grids: half steps at 1 and 2 bits, two's complement above; 255 levels are symmetric at 8."""
    return "twos" if bits in (3, 4, 5, 6) else "mid"


def spell(scheme: Scheme) -> str:
    """The shortest text that parses back to `scheme`."""
    grid = scheme.weight
    if grid.kind in FLOATS:
        return grid.kind
    act = "" if scheme.activation is None else _spell_activation(scheme.activation)
    if grid.kind == "trellis":
        return f"w{grid.bits:g}t{'' if grid.levels == 256 else 4}{act}"
    group = "" if grid.group is None else f"g{grid.group}"
    default = _stored_zero(grid.bits, grid.group, None)
    letter = "" if (grid.zero == "stored") == default else ("s" if default else "z")
    return f"w{grid.bits:g}{group}{letter}{act}"


def _spell_activation(grid: Grid) -> str:
    return "a8s" if grid.kind == STATIC else "a8" if grid.group is None else f"a8g{grid.group}"


def wider(scheme: Scheme) -> Scheme:
    """The default for embedding and head: the same family, one step wider, at most 8 bits; above the widest trellis
    comes a scale for the whole row, which in the trellis's basis suits as well. The head's activations stay floats."""
    grid = scheme.weight
    if grid.kind in FLOATS:
        return scheme
    if grid.kind == "trellis":
        return parse("w5" if grid.bits == 4 else "w4t")
    step = {1: 2, 1.58: 4, 2: 4, 3: 4, 4: 6, 5: 6, 6: 8, 8: 8}[grid.bits]
    group = "" if grid.group is None else f"g{grid.group}"
    symmetric = "s" if _stored_zero(grid.bits, grid.group, None) and grid.zero != "stored" else ""
    return parse(f"w{step}{group}{symmetric}")
