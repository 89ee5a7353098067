"""ggml's types: which holds which grid, and blocks that the gguf package decodes to the very weights."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from paretobit.exporters.gguf_types import TYPES, encoded, smallest
from paretobit.exporters.steps import half_steps, span, steps
from paretobit.qtensor import QTensor
from paretobit.scheme import Grid, parse

# The smallest standard type of rows of 256 and of rows of 96 columns.
EXPECTED = {
    "w1": ("TQ2_0", "Q4_0"),
    "w1g64": ("Q4_0", "Q4_0"),
    "w1.58": ("TQ2_0", "Q4_0"),
    "w1.58g32": ("Q4_0", "Q4_0"),
    "w2": ("Q2_K", "Q4_0"),
    "w2z": ("Q2_K", "Q4_0"),
    "w2g64": ("Q4_0", "Q4_0"),
    "w3": ("Q3_K", "Q4_0"),
    "w3z": ("Q4_0", "Q4_0"),
    "w3g64": ("Q4_0", "Q4_0"),
    "w4": ("Q4_0", "Q4_0"),
    "w4z": ("Q4_K", "Q5_0"),
    "w4g256": ("Q4_K", "Q5_0"),
    "w4g64": ("Q5_0", "Q5_0"),
    "w4g32s": ("Q4_0", "Q4_0"),
    "w5": ("Q5_0", "Q5_0"),
    "w5z": ("Q5_K", "Q8_0"),
    "w6": ("Q6_K", "Q8_0"),
    "w6g32": ("Q8_0", "Q8_0"),
    "w6z": ("Q8_0", "Q8_0"),
    "w8": ("Q8_0", "Q8_0"),
    "w8g32": ("Q8_0", "Q8_0"),
    "w4g16": (None, None),
    "w8g48": (None, None),
}


def random(grid: Grid, rows: int, columns: int, seed: int = 0) -> QTensor:
    """Every code and zero point, scales of both signs."""
    rng = np.random.default_rng(seed)
    groups = grid.groups(columns)
    scale = (rng.standard_normal((rows, groups)) * 0.05).astype(np.float16)
    zero = rng.integers(0, grid.levels, (rows, groups), np.uint8) if grid.zero == "stored" else None
    return QTensor(rng.integers(0, grid.levels, (rows, columns), np.uint8), scale, zero, grid)


@pytest.mark.parametrize("scheme", EXPECTED)
def test_the_smallest_type_that_holds_a_grid(scheme: str) -> None:
    found = [smallest(parse(scheme).weight, columns) for columns in (256, 96)]
    assert tuple(kind and kind.name for kind in found) == EXPECTED[scheme]


@pytest.mark.parametrize("columns", [256, 768, 96])
@pytest.mark.parametrize("scheme", EXPECTED)
def test_blocks_give_back_every_weight(scheme: str, columns: int) -> None:
    grid = parse(scheme).weight
    q = random(grid, 24, columns)
    for kind in TYPES:
        if kind.holds(grid, columns):
            raw = encoded(kind.name, steps(q, "a"), grid)
            found = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind.name])
            assert np.array_equal(found, q.dequant()), kind.name


def test_every_type_is_tried() -> None:
    """Each holds some grid above, so none went unchecked."""
    tried = {kind.name for kind in TYPES for s in EXPECTED if kind.holds(parse(s).weight, 256)}
    assert tried == {kind.name for kind in TYPES}


@pytest.mark.parametrize("scheme", EXPECTED)
def test_span(scheme: str) -> None:
    grid = parse(scheme).weight
    low, high = span(grid)
    zeros = range(grid.levels) if grid.zero == "stored" else [grid.offset * (2 if half_steps(grid) else 1)]
    step = 2 if half_steps(grid) else 1
    values = {step * code - zero for code in range(grid.levels) for zero in zeros}
    assert (low, high) == (min(values), max(values))
