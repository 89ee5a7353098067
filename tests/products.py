"""What csrc/multiply.inl computes, in numpy: the definition of a packed matrix times activations (docs/FORMAT.md).

Every operation is one IEEE operation in float32, in the order of the text, so the kernels equal it bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from paretobit import _native, native, scheme, trellis
from paretobit.artifact import stored
from paretobit.packing import Layout
from paretobit.qtensor import QTensor

FLOATS = {kind: native.FORMATS.index(kind) for kind in scheme.FLOATS}


def blocks(q: QTensor) -> Iterator[tuple[int, slice]]:
    """(group, columns) of every activation block: at most four units, and never across groups."""
    at = Layout.of(q.grid, q.codes.shape)
    for group in range(at.groups):
        end = min((group + 1) * at.group, at.columns)
        for start in range(group * at.group, end, 4 * at.unit):
            yield group, slice(start, min(start + 4 * at.unit, end))


def quantize(x: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """int64 codes and the scale of one block of activations, float32."""
    largest = np.abs(x).max()
    if largest < 2.0**-100:  # 127 / largest would not be finite
        return np.zeros(len(x), np.int64), np.float32(0)
    return np.rint(x * (np.float32(127) / largest)).astype(np.int64), largest / np.float32(127)


def numbers(q: QTensor) -> np.ndarray:  # uint8 (out, in)
    """What the zero point is subtracted from: codes, or a trellis's levels."""
    return trellis.levels(q.codes, q.grid.bits, trellis.of_grid(q.grid)) if is_trellis(q) else q.codes


def is_trellis(q: QTensor) -> bool:
    return q.grid.kind == "trellis"


def product_int8(q: QTensor, x: np.ndarray) -> np.ndarray:  # x (in,) -> (out,)
    acc, stands = np.zeros(len(q.codes), np.float32), numbers(q)
    for group, columns in blocks(q):
        codes, scale = quantize(x[columns])
        # Whole or halves, and small enough for float32 to hold exactly.
        zero = q.zero[:, group].astype(np.float64) if q.zero is not None else q.grid.offset
        dots = stands[:, columns].astype(np.int64) @ codes - zero * codes.sum()
        acc = acc + dots.astype(np.float32) * (q.scale[:, group].astype(np.float32) * scale)
    return acc


def product_float(q: QTensor, x: np.ndarray) -> np.ndarray:  # x (in,) -> (out,)
    acc, stands = np.zeros(len(q.codes), np.float32), numbers(q)
    for group, columns in blocks(q):
        zero = q.zero[:, group].astype(np.float32) if q.zero is not None else np.float32(q.grid.offset)
        part = np.zeros((4, len(q.codes)), np.float32)
        for i, column in enumerate(range(columns.start, columns.stop)):
            part[i % 4] += (stands[:, column].astype(np.float32) - zero) * x[column]
        acc = acc + ((part[0] + part[1]) + (part[2] + part[3])) * q.scale[:, group].astype(np.float32)
    return acc


def product_rows(w: np.ndarray, x: np.ndarray) -> np.ndarray:  # w float32 (out, in), x (in,) -> (out,)
    """Sixteen lanes over the columns, then lane l with l + 8, l + 4, l + 2, l + 1."""
    columns = -(-w.shape[1] // 16) * 16
    w = np.pad(w, ((0, 0), (0, columns - w.shape[1])))
    x = np.pad(x, (0, columns - len(x)))
    lanes = np.zeros((len(w), 16), np.float32)
    for at in range(0, columns, 16):
        lanes = lanes + w[:, at : at + 16] * x[at : at + 16]
    for half in (8, 4, 2, 1):
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


def arguments(q: QTensor) -> tuple:
    """(format, group, twice_zero, codes, scale, zero) as the compiled functions take them."""
    arrays = stored(q)
    zero = arrays.get(".zero")
    flat = (arrays[".codes"].reshape(-1), arrays[".scale"].view(np.uint16).reshape(-1))
    twice = 0 if zero is not None else round(2 * q.grid.offset)
    group = q.grid.group or q.codes.shape[1]
    return native.format_of(q.grid), group, twice, *flat, None if zero is None else zero.reshape(-1)


def table(q: QTensor) -> np.ndarray | None:
    return trellis.of_grid(q.grid) if is_trellis(q) else None


def multiply(
    q: QTensor, x: np.ndarray, fp32: bool, isa: str, threads: int = 1, entries: np.ndarray | None = None
) -> np.ndarray:  # (n, in) -> (n, out)
    """entries: another table than a trellis's own."""
    entries = table(q) if entries is None else entries
    kind, group, twice, *arrays = arguments(q)
    out = np.empty((len(x), len(q.codes)), np.float32)
    _native.multiply(kind, x.shape[1], group, twice, *arrays, np.ascontiguousarray(x), out, fp32, isa, threads, entries)
    return out


def row(q: QTensor, index: int, isa: str) -> np.ndarray:  # (in,)
    kind, group, twice, *arrays = arguments(q)
    out = np.empty(q.codes.shape[1], np.float32)
    _native.row(kind, len(q.codes), group, twice, *arrays, index, out, isa, table(q))
    return out
