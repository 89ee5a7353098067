"""The compiled part, behind checks. Every function equals its numpy definition bit for bit, on every ISA.

Definitions: `packing` (bytes), `qtensor` (numbers), `scales` (the search). Callers use these functions; tests
compare the two.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from paretobit import packing, scales, trellis
from paretobit.errors import ParetobitError
from paretobit.qtensor import QTensor
from paretobit.rotation import Rotation
from paretobit.scheme import FLOATS, TRELLIS_BITS, Grid

ISA_VARIABLE = "PARETOBIT_ISA"
TRELLIS_BLOCK = 128  # columns that the search takes at once
ZERO_KINDS = {"stored": 0, "twos": 1, "mid": 2}
# Levels, a float's kind or a trellis's bits, in the order of `Format` in csrc/matrix.h.
FORMATS: tuple[object, ...] = (
    2, 3, 4, 8, 16, 32, 64, 255, "fp16", "bf16", "fp32", *(f"t{bits:g}" for bits in TRELLIS_BITS),
)  # fmt: skip


def available() -> tuple[str, ...]:
    """The instruction sets that this machine and this build can use, best first; the last is "scalar"."""
    return tuple(_module().available())


def isa() -> str:
    """The instruction set in use: the best available, or what PARETOBIT_ISA names.

    Raises ParetobitError where that is not available here.
    """
    names, forced = available(), os.environ.get(ISA_VARIABLE, "")
    if not forced:
        return names[0]
    if forced not in names:
        raise ParetobitError(f"{ISA_VARIABLE}={forced} is not available here", hint=f"choose from {', '.join(names)}")
    return forced


def pack(
    codes: np.ndarray, grid: Grid, *, threads: int | None = None
) -> np.ndarray:  # (out, in) -> (tiles, tile_bytes)
    """`packing.pack`."""
    at = packing.Layout.of(grid, packing.matrix(codes, "codes"))
    out = np.empty((at.tiles, at.tile_bytes), np.uint8)
    _call("pack", np.ascontiguousarray(codes), format_of(grid), at.group, out, _threads(threads))
    return out


def unpack(packed: np.ndarray, grid: Grid, shape: tuple[int, int], *, threads: int | None = None) -> np.ndarray:
    """`packing.unpack`: codes uint8 of `shape` (out, in) from packed uint8 (tiles, tile_bytes)."""
    at = packing.Layout.of(grid, shape)
    packing.check_packed(packed, (at.tiles, at.tile_bytes))
    out = np.empty(shape, np.uint8)
    _call("unpack", np.ascontiguousarray(packed), format_of(grid), at.group, out, _threads(threads))
    return out


def dequant(q: QTensor, *, threads: int | None = None) -> np.ndarray:  # (out, in) float32
    """`q.dequant()`."""
    rows, columns = packing.matrix(q.codes, "codes")
    groups = q.grid.groups(columns)
    out = np.empty((rows, columns), np.float32)
    zero = None if q.zero is None else np.ascontiguousarray(q.zero)
    _check_scale(q.scale, rows, groups)
    if zero is not None and packing.matrix(zero, "zero points") != (rows, groups):
        raise ParetobitError(f"zero points of shape {zero.shape}", hint=f"this matrix takes {(rows, groups)}")
    codes, offset = np.ascontiguousarray(q.codes), 0.0 if zero is not None else q.grid.offset
    if q.grid.kind == "trellis":
        values = trellis.values(trellis.of_grid(q.grid))
        _call("dequant_trellis", codes, _words(q.scale), int(2 * q.grid.bits), values, out, _threads(threads))
        return out
    _call("dequant", codes, _words(q.scale), zero, q.grid.group or columns, offset, out, _threads(threads))
    return out


def scale_search(
    w: np.ndarray, importance: np.ndarray | None, grid: Grid, *, threads: int | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """(scale float16 (out, groups), zero uint8 (out, groups) or None) with the least weighted squared error.

    w: float32 (out, in), finite; importance: float32 (in,), finite, at least 0, or None for all ones. See `scales`.
    Raises ParetobitError on other inputs.
    """
    return scale_search_with_error(w, importance, grid, threads=threads)[:2]


def scale_search_with_error(
    w: np.ndarray, importance: np.ndarray | None, grid: Grid, *, threads: int | None = None
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """`scales.scale_search_with_error`: third comes each group's error, float32 (out, groups)."""
    h = scales.checked(w, importance, grid)
    rows, columns = w.shape
    groups = grid.groups(columns)
    scale, error = np.empty((rows, groups), np.uint16), np.empty((rows, groups), np.float32)
    stored = grid.zero == "stored"
    zero = np.empty((rows, groups), np.uint8) if stored else None
    offset = 0.0 if stored else grid.offset
    at = (
        grid.levels,
        min(grid.group or columns, columns),
        ZERO_KINDS[grid.zero],
        offset,
        *scales.factors(grid),
    )
    _call("scale_search", np.ascontiguousarray(w), h, *at, scale, zero, error, isa(), _threads(threads))
    return scale.view(np.float16), zero, error


def feed_back(
    rest: np.ndarray,
    start: int,
    upper: np.ndarray,
    pull: np.ndarray | None,
    scale: np.ndarray,
    zero: np.ndarray | float,
    group_of: np.ndarray,
    levels: int,
    codes: np.ndarray,
    *,
    threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """One block of GPTQ's column loop, in place: see `compress.methods.gptq`, whose loop it equals.

    rest: float32 or float64 (out, in), columns in rounding order, from `start` on those of the block; upper, pull:
    (block, block); scale, zero: (out, groups), or one zero for all; group_of: int64 (block,); codes: uint8 (out, in),
    filled in. Returns (errors, moved), each (out, block): what the columns after the block still have to be told.
    """
    errors = np.empty((rest.shape[0], len(upper)), rest.dtype)
    moved = None if pull is None else np.empty_like(errors)
    stored = isinstance(zero, np.ndarray)
    at = (zero if stored else None, 0.0 if stored else float(zero), group_of, levels, codes, errors, moved)
    _call("feed_back", rest, start, upper, pull, scale, *at, isa(), _threads(threads))
    return errors, moved


def trellis_feed_back(
    rest: np.ndarray,
    start: int,
    upper: np.ndarray | None,
    pull: np.ndarray | None,
    scale: np.ndarray,
    weight: np.ndarray,
    grid: Grid,
    codes: np.ndarray,
    *,
    count: int | None = None,
    threads: int | None = None,
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """`feed_back` on a trellis: rest float32 (out, in), left as it is; scale, weight: float32 (out,), of a row and of
    its squared error in levels. Without `upper` the `count` columns from `start` on are rounded by themselves. Up to
    128 columns at once.
    """
    count = len(upper) if upper is not None else count or rest.shape[1] - start
    errors = None if upper is None else np.empty((rest.shape[0], count), np.float32)
    moved = None if pull is None else np.empty((rest.shape[0], count), np.float32)
    at = (scale, weight, trellis.of_grid(grid), int(2 * grid.bits), codes, errors, moved)
    _call("trellis", rest, start, count, upper, pull, *at, isa(), _threads(threads))
    return errors, moved


def trellis_encode(
    x: np.ndarray, weight: np.ndarray, grid: Grid, *, scale: np.ndarray | None = None, threads: int | None = None
) -> np.ndarray:
    """`trellis.encode`: codes uint8 (out, in) of x float32 (out, in), rows weighted by float32 (out,). x is in
    levels, or in levels times scale (out,)."""
    codes = np.empty(x.shape, np.uint8)
    x, scale = np.ascontiguousarray(x, np.float32), np.ones(len(x), np.float32) if scale is None else scale
    for start in range(0, x.shape[1], TRELLIS_BLOCK):
        count = min(TRELLIS_BLOCK, x.shape[1] - start)
        trellis_feed_back(x, start, None, None, scale, weight, grid, codes, count=count, threads=threads)
    return codes


def fake(w: np.ndarray, scale: np.ndarray, grid: Grid, *, threads: int | None = None) -> np.ndarray:
    """float32 (out, in): the weights w, float32 (out, in), as stored on the grid with scale float32 (out, groups), none
    0; `compress.methods.paretoq.rounded`."""
    out = np.empty(w.shape, np.float32)
    _call("fake", *_fake(w, scale, grid), out, isa(), _threads(threads))
    return out


def fake_gradients(
    w: np.ndarray, scale: np.ndarray, grid: Grid, upstream: np.ndarray, slopes: Sequence[float], *,
    threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """(gradient at w (out, in), at the ranges (out, groups)) from `upstream` (out, in), all float32:
    `compress.methods.paretoq.gradients` with its `slopes`, but for the order of sums."""
    to_w, to_scale = np.empty(w.shape, np.float32), np.empty(scale.shape, np.float32)
    at = (np.ascontiguousarray(upstream), *slopes, to_w, to_scale)
    _call("fake_gradients", *_fake(w, scale, grid), *at, isa(), _threads(threads))
    return to_w, to_scale


def _fake(w: np.ndarray, scale: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray, int, float, float]:
    highest = grid.levels - 1 - grid.offset
    return np.ascontiguousarray(w), np.ascontiguousarray(scale), grid.group or w.shape[1], -grid.offset, highest


def divergence(
    wanted: np.ndarray, found: np.ndarray, factor: float, *, threads: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(KL divergence of the logits `found` from `wanted`, nats, float32 (rows,); factor times its gradient at `found`).

    wanted, found: (rows, vocab) float32, or bf16 as uint16; so is the gradient. To float32's accuracy
    `compress.distill.divergence`.
    """
    loss, gradient = np.empty(len(wanted), np.float32), np.empty_like(found)
    _call("divergence", wanted, found, factor, loss, gradient, isa(), _threads(threads))
    return loss, gradient


def rotate_inputs(rotation: Rotation, x: np.ndarray, *, threads: int | None = None) -> np.ndarray:
    """`rotation.forward`: float32 (..., width), of inputs or of the rows of a layer's weights."""
    return _rotated(rotation, x, False, threads)


def unrotate_inputs(rotation: Rotation, y: np.ndarray, *, threads: int | None = None) -> np.ndarray:
    """`rotation.inverse`: float32 (..., width)."""
    return _rotated(rotation, y, True, threads)


def _rotated(rotation: Rotation, x: np.ndarray, inverse: bool, threads: int | None) -> np.ndarray:
    rotation.check(x)
    rows = np.ascontiguousarray(x).reshape(-1, rotation.width)
    out = np.empty_like(rows)
    at = (rotation.order, np.ascontiguousarray(rotation.signs), rotation.factor(), inverse)
    _call("rotate_rows", *at, rows, out, isa(), _threads(threads))
    return out.reshape(x.shape)


def format_of(grid: Grid) -> int:
    """The number by which the kernels know a grid."""
    if grid.kind == "trellis":
        return FORMATS.index(f"t{grid.bits:g}")
    return FORMATS.index(grid.kind if grid.kind in FLOATS else grid.levels)


def table_of(grid: Grid) -> np.ndarray | None:
    """What the kernels look a trellis's levels up in, uint8 (32,); None of other grids."""
    return trellis.of_grid(grid) if grid.kind == "trellis" else None


def read_seconds(nbytes: int, threads: int, limit: float) -> list[float]:
    """Seconds in which `threads` threads together read `nbytes` of memory in order: at least three measurements, as
    many as fit into `limit` seconds.

    With the widest loads of this machine, whatever PARETOBIT_ISA says. Raises ParetobitError where there is no room
    for so much memory or so many threads.
    """
    return _timed("read_seconds", nbytes, threads, limit, available()[0])


def product_seconds(threads: int, limit: float) -> tuple[list[float], int]:
    """Seconds in which `threads` threads make products of int8, each added to a sum, by a plain loop of the
    instructions that the kernels use, on numbers at hand; and how many each thread makes. Measured likewise."""
    return _timed("product_seconds", threads, limit, isa()), _module().PRODUCTS


def multiply_seconds(
    grid: Grid, shape: tuple[int, int], arrays: Mapping[str, np.ndarray], *, threads: int, limit: float, count: int = 1
) -> list[float]:
    """Seconds of products of a packed matrix with `count` vectors in int8 (floats: in float32), measured likewise.

    shape: (out, in); arrays: what a file holds, flat, by suffix as in `sizes.parts`: ".codes" uint8, ".scale" float16,
    ".zero" uint8; of a float grid "" as uint8. Their values do not matter. Raises ParetobitError as `read_seconds`
    does, and on arrays of the wrong size.
    """
    scale = arrays.get(".scale")
    at = (
        format_of(grid),
        shape,
        min(grid.group or shape[1], shape[1]),
        round(2 * grid.offset) if scale is not None else 0,
    )
    stored = (arrays[".codes" if scale is not None else ""], None if scale is None else _words(scale))
    return _timed("multiply_seconds", *at, *stored, arrays.get(".zero"), count, threads, limit, isa(), table_of(grid))


def _timed(name: str, *arguments: Any) -> list[float]:
    try:
        found: list[float] = getattr(_module(), name)(*arguments)
    except (ValueError, RuntimeError, MemoryError) as why:
        raise ParetobitError(f"cannot measure: {why or 'not enough memory'}", hint="ask for fewer threads") from None
    return found


def sampler(*settings: Any) -> Any:
    """A compiled sampler; `runtime.sampler` says what its settings mean."""
    return _module().Sampler(*settings)


def _module() -> Any:
    try:
        from paretobit import _native
    except ImportError as why:
        raise ParetobitError(
            f"the compiled part of paretobit cannot be loaded ({why})",
            hint="install the package with a C++17 compiler at hand: pip install .",
        ) from None
    return _native


def _call(name: str, *arguments: Any) -> None:
    """Run a compiled function. Its ValueError is what only the data can show: the shapes were checked before."""
    function: Callable[..., None] = getattr(_module(), name)
    try:
        function(*arguments)
    except ValueError as why:
        raise packing.outside(str(why)) if name == "pack" else packing.damaged(str(why)) from None


def _threads(asked: int | None) -> int:
    if asked is not None:
        return max(1, asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_scale(scale: np.ndarray, rows: int, groups: int) -> None:
    if scale.dtype != np.float16 or scale.shape != (rows, groups):
        raise ParetobitError(
            f"scales of shape {scale.shape}, {scale.dtype}",
            hint=f"this matrix takes {(rows, groups)}, float16",
        )


def _words(scale: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(scale).view(np.uint16)
