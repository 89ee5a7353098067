"""The key-value cache in a few bits: what a scheme is, and the numbers that it stands for.

Attention reads all keys and values for every token, so at long contexts they outweigh the model. Here the first and the
newest positions stay in fp16; blocks of 64 positions in between are kept in 8, 4, 3 or 2 bits and read as they are:

1. Queries, keys and values of a head are rotated (`rotation`) after the rotary embedding. q·k does not change by it,
   and what attention gives is rotated back; but outlier channels, which would set the scale of all others, are spread
   (QuaRot, Ashkboos et al. 2024). Keys and values are rounded to fp16.
2. A token reads its own block, the `window // 64` before it and the very first one in fp16, all others as codes. So it
   depends on positions alone which is which, never on how the tokens came. The first positions are where attention goes
   that has nowhere to go (Xiao et al. 2023): an error there would reach every token.
3. A block's keys leave their mean over its positions behind, a centre a channel: keys have much in common. Then values
   and keys are rounded row by row, a row being a position, or of keys a channel (KIVI, Liu et al. 2024):
   x = centre + scale · (code − (levels − 1) / 2), centre and scale fp16 (`rounded`).

`encode` and `decode` define the numbers; csrc/cache.cpp equals them bit for bit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from paretobit.errors import ParetobitError
from paretobit.rotation import Rotation
from paretobit.scales import half as stored

POSITIONS = 64  # of a block, as csrc/kernels.h
LEVELS = {8: 255, 4: 16, 3: 8, 2: 4}
STEPS = np.arange(24, 8, -1, dtype=np.float32) / np.float32(24)  # of the scale at which a row's range just fits
MOST_HEAD = 1024  # channels, as csrc/kernels.h
SPELLING = re.compile(r"([0-9]{1,9})(c?)(p?)(?:w([0-9]{1,9}))?")
HINT = "16, 8, 4, 3 or 2; c: keys' scales by channel; p: plain, not rotated; w128: so many of the newest in fp16"


@dataclass(frozen=True)
class KV:
    """bits: 8, 4, 3 or 2; by_channel: keys have scales by channel, not by position; rotate: step 1 above; window: the
    newest positions that are read in fp16 at least, a multiple of 64. Spelled `BITS[c][p][wWINDOW]`."""

    bits: int
    by_channel: bool = False
    rotate: bool = True
    window: int = POSITIONS

    def __str__(self) -> str:
        window = "" if self.window == POSITIONS else f"w{self.window}"
        return f"{self.bits}{'c' * self.by_channel}{'p' * (not self.rotate)}{window}"

    @property
    def levels(self) -> int:
        return LEVELS[self.bits]


def parse(text: str | int | None) -> KV | None:
    """ "4" -> KV(4); None for "16" and None: all in fp16. Raises ParetobitError on anything else."""
    found = SPELLING.fullmatch(str(text).strip()) if text is not None else None
    if text is None or (found and found[0] == "16"):
        return None
    window = int(found[4]) if found and found[4] else POSITIONS
    if not found or int(found[1]) not in LEVELS or window % POSITIONS:
        raise ParetobitError(f"a key-value cache of '{str(text)[:40]}'", hint=HINT)
    return KV(int(found[1]), bool(found[2]), not found[3], window)


def spell(kv: KV | None) -> str:
    """What `parse` reads."""
    return "16" if kv is None else str(kv)


def rotation(head_dim: int) -> Rotation:
    """What turns every head of queries, keys and values: one for all, for the same tokens must meet in one basis."""
    return Rotation.of(head_dim, 0, "kv")


@dataclass(frozen=True)
class Block:
    """64 positions of one head. codes: uint8 (64, head_dim); key_scale: float16 (64,), or by channel (head_dim,);
    key_centre: float16 (head_dim,); value_scale: float16 (64,)."""

    kv: KV
    key_codes: np.ndarray
    key_scale: np.ndarray
    key_centre: np.ndarray
    value_codes: np.ndarray
    value_scale: np.ndarray


def encode(keys: np.ndarray, values: np.ndarray, kv: KV) -> Block:  # (64, head_dim) float16 each
    """A block's codes. keys, values: as they lie in fp16, rotated where the scheme says so."""
    k, v = keys.astype(np.float32), values.astype(np.float32)
    centre = np.zeros(k.shape[1], np.float32)
    for row in k:
        centre = centre + row
    centre = (centre / np.float32(len(k))).astype(np.float16)
    rest = k - centre.astype(np.float32)
    codes, scale = rounded(rest.T if kv.by_channel else rest, kv.levels)
    return Block(kv, codes.T if kv.by_channel else codes, scale, centre, *rounded(v, kv.levels))


def decode(block: Block) -> tuple[np.ndarray, np.ndarray]:  # (64, head_dim) float16 each
    """(keys, values) that a block's codes stand for, rounded to fp16."""
    zero = np.float32((block.kv.levels - 1) / 2)
    scale, value_scale = block.key_scale.astype(np.float32), block.value_scale.astype(np.float32)[:, None]
    scale = scale if block.kv.by_channel else scale[:, None]
    keys = scale * (block.key_codes - zero) + block.key_centre.astype(np.float32)
    return keys.astype(np.float16), (value_scale * (block.value_codes - zero)).astype(np.float16)


def rounded(x: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray]:  # (rows, n) -> (rows, n), (rows,)
    """(codes uint8, scales float16) of float32 rows: of sixteen scales, the one with the least squared error.

    They go from the scale at which the row's largest just fits down to 3/8 of it, rounded to fp16 before codes are
    chosen; errors add up from the first element to the last, and of equal ones the larger scale stays.
    """
    zero, half = np.float32((levels - 1) / 2), np.float32(0.5 if levels % 2 == 0 else 0)
    scales = stored(np.abs(x).max(1, keepdims=True) / zero * STEPS)

    def points(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale * scale > 0)
        return np.rint(np.clip(x * inverse, -zero, zero) - half) + half

    error = np.zeros_like(scales)
    for i in range(x.shape[1]):
        miss = x[:, i : i + 1] - scales * points(x[:, i : i + 1], scales)
        error += miss * miss
    best = np.take_along_axis(scales, error.argmin(1)[:, None], 1)
    return (points(x, best) + zero).astype(np.uint8), best[:, 0].astype(np.float16)


def block_bytes(kv: KV | None, head_dim: int) -> int:
    """Of 64 positions of one head: fp16, or codes, padded to tiles of 32 and units of 16, scales and centres."""
    if kv is None:
        return 2 * POSITIONS * (head_dim + _up(head_dim, 16))
    beside = 2 * (head_dim if kv.by_channel else POSITIONS) + 2 * head_dim
    codes = POSITIONS * (_up(head_dim, 16) + _up(head_dim, 32)) * kv.bits // 8
    return codes + _up(beside, 64) + 2 * POSITIONS


def cache_bytes(kv: KV | None, layers: int, kv_heads: int, head_dim: int, tokens: int) -> int:
    """Of the cache of one sequence that `tokens` were appended to: what `Session.kv_bytes` says. Of a small cache the
    halves of a block more than the window needs stay, so that the newest tokens can be taken back."""
    heads, blocks = layers * kv_heads, -(-tokens // POSITIONS)
    if kv is None:
        return heads * blocks * block_bytes(None, head_dim)
    coded = max(0, blocks - 2 - kv.window // POSITIONS)
    halves = blocks - max(0, coded - 1)
    return heads * (halves * block_bytes(None, head_dim) + coded * block_bytes(kv, head_dim))


def _up(n: int, to: int) -> int:
    return -(-n // to) * to
