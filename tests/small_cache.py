"""Attention through a small key-value cache in numpy: in the very order of csrc/layers.inl's float32 operations, and as
plain as can be in float64."""

from __future__ import annotations

import numpy as np

from paretobit import kv
from paretobit.kv import KV, POSITIONS

F = np.float32


def exponential(x: np.ndarray) -> np.ndarray:
    """csrc/layers.inl's e^x."""
    inside = np.maximum(F(-87.3), np.minimum(F(88), x))
    n = (inside * F(1.44269504) + F(12582912)) - F(12582912)
    r = (inside - n * F(0.693359375)) - n * F(-2.12194440e-4)
    y = np.full_like(r, F(1.9875691500e-4))
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        y = y * r + F(c)
    y = (y * (r * r) + r) + F(1)
    return np.where(x < F(-87.3), F(0), np.ldexp(y, n.astype(np.int32))).astype(F)


def tree_sum(lanes: np.ndarray) -> np.float32:  # (16,)
    for half in (8, 4, 2, 1):
        lanes = lanes[:half] + lanes[half : 2 * half]
    return lanes[0]


def product(codes: np.ndarray, scale: np.ndarray, levels: int, x: np.ndarray, int8: bool) -> np.ndarray:
    """The rows of codes (rows, n), each with its scale, times x (n,): blocks of 64 columns, added one by one."""
    total = np.zeros(len(codes), F)
    for at in range(0, len(x), 64):
        part, own = x[at : at + 64], codes[:, at : at + 64].astype(np.int32)
        if int8:
            most = np.abs(part).max()
            eight = np.rint(part * (F(127) / most if most > 0 else F(0))).astype(np.int32)
            dots = ((2 * own - (levels - 1)) * eight).sum(1)
            total = total + dots.astype(F) * (scale * (F(0.5) * (most / F(127))))
            continue
        parts = np.zeros((4, len(codes)), F)
        for column in range(own.shape[1]):
            parts[column % 4] += (own[:, column].astype(F) - F((levels - 1) / 2)) * part[column]
        total = total + ((parts[0] + parts[1]) + (parts[2] + parts[3])) * scale
    return total


class State:
    """A query's softmax so far."""

    def __init__(self, head_dim: int) -> None:
        self.most = F(-np.inf)
        self.sums, self.values = np.zeros(16, F), np.zeros(head_dim, F)

    def weigh(self, scores: np.ndarray) -> np.ndarray:  # (64,) -> (64,)
        top = scores.max()
        if self.most < top:
            factor = exponential(np.array([self.most - top]))[0]
            self.sums, self.values, self.most = self.sums * factor, self.values * factor, top
        weights = exponential(scores - self.most)
        for at in range(0, POSITIONS, 16):
            self.sums = self.sums + weights[at : at + 16]
        return weights


class Cache:
    """One key-value head: halves by block, and blocks of codes. Tokens come one at a time."""

    def __init__(self, scheme: KV, head_dim: int, int8: bool, window: int) -> None:
        self.kv, self.head_dim, self.int8, self.window = scheme, head_dim, int8, window
        self.halves: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.codes: dict[int, kv.Block] = {}

    def attend(self, position: int, q: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
        """q (group, head_dim) float32, key and value (head_dim,) float16 -> (group, head_dim)."""
        own, at = divmod(position, POSITIONS)
        keys, values = self.halves.setdefault(own, tuple(np.zeros((2, POSITIONS, self.head_dim), np.float16)))
        keys[at], values[at] = key, value
        recent = own - self.kv.window // POSITIONS
        for block in range(1, recent):
            if block not in self.codes:
                self.codes[block] = kv.encode(*self.halves[block], self.kv)
            if block < recent - 1:
                self.halves.pop(block, None)
        return np.stack([self._query(position, one) for one in q])

    def truncate(self, length: int) -> None:
        whole = length // POSITIONS
        for block in range(max(0, whole - self.kv.window // POSITIONS), -(-length // POSITIONS)):
            if block not in self.halves:
                self.halves[block] = kv.decode(self.codes[block])
        self.halves = {block: found for block, found in self.halves.items() if block * POSITIONS < length}
        self.codes = {block: found for block, found in self.codes.items() if block < whole}

    def _query(self, position: int, q: np.ndarray) -> np.ndarray:
        state, oldest = State(self.head_dim), max(0, position + 1 - self.window)
        for block in range(oldest // POSITIONS, position // POSITIONS + 1):
            places = block * POSITIONS + np.arange(POSITIONS)
            seen = (places >= oldest) & (places <= position)
            coded = 0 < block < position // POSITIONS - self.kv.window // POSITIONS
            (self._coded if coded else self._plain)(state, block, q, seen)
        return state.values / tree_sum(state.sums)

    def _plain(self, state: State, block: int, q: np.ndarray, seen: np.ndarray) -> None:
        keys, values = (half.astype(F) for half in self.halves[block])
        scores = np.zeros(POSITIONS, F)
        for channel in range(self.head_dim):
            scores = scores + q[channel] * keys[:, channel]
        weights = state.weigh(np.where(seen, scores, F(-np.inf)))
        for place in np.flatnonzero(seen):
            state.values = state.values + weights[place] * values[place]

    def _coded(self, state: State, block: int, q: np.ndarray, seen: np.ndarray) -> None:
        found, levels = self.codes[block], self.kv.levels
        scale, centre = found.key_scale.astype(F), found.key_centre.astype(F)
        x, rows = (q * scale, np.ones(POSITIONS, F)) if self.kv.by_channel else (q, scale)
        lanes = np.zeros(16, F)
        for at in range(0, self.head_dim, 16):
            part = q[at : at + 16] * centre[at : at + 16]
            lanes[: len(part)] = lanes[: len(part)] + part
        scores = product(found.key_codes, rows, levels, x, self.int8) + tree_sum(lanes)
        weights = state.weigh(np.where(seen, scores, F(-np.inf))) * found.value_scale.astype(F)
        ones = np.ones(self.head_dim, F)
        state.values = state.values + product(found.value_codes.T, ones, levels, weights, self.int8)


def mixed_attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, window: int | None, scale: float, scheme: KV
) -> np.ndarray:
    """Causal attention of float64 q (b, heads, t, head_dim) to k, v (b, kv_heads, t, head_dim), of which every token
    reads each position as `scheme` has it for that token. Returns (b, t, heads · head_dim)."""
    b, heads, t, d = q.shape
    turn = kv.rotation(d).forward(np.eye(d, dtype=np.float32)).astype(np.float64) if scheme.rotate else np.eye(d)
    halves = np.stack([k @ turn, v @ turn]).astype(np.float16)  # (2, b, kv_heads, t, d)
    codes = halves.astype(np.float64)
    for index in np.ndindex(b, k.shape[1]):
        for start in range(0, t - POSITIONS + 1, POSITIONS):
            at = (slice(None), *index, slice(start, start + POSITIONS))
            found = kv.encode(*halves[at], scheme)
            zero, key_scale = (scheme.levels - 1) / 2, found.key_scale.astype(np.float64)
            key_scale = key_scale if scheme.by_channel else key_scale[:, None]
            keys = found.key_centre + key_scale * (found.key_codes - zero)
            codes[at] = keys, found.value_scale.astype(np.float64)[:, None] * (found.value_codes - zero)
    own, block = np.arange(t)[:, None] // POSITIONS, np.arange(t)[None] // POSITIONS
    coded = (block > 0) & (block < own - scheme.window // POSITIONS)
    behind = np.arange(t)[:, None] - np.arange(t)[None]
    hidden = (behind < 0) | (behind >= (window or t))
    group = heads // k.shape[1]
    (half_keys, half_values), (keys, values) = (x.astype(np.float64).repeat(group, 2) for x in (halves, codes))
    turned = q @ turn * scale
    scores = np.where(coded, turned @ keys.swapaxes(-1, -2), turned @ half_keys.swapaxes(-1, -2))
    weights = np.exp(np.where(hidden, -np.inf, scores - np.where(hidden, -np.inf, scores).max(-1, keepdims=True)))
    weights /= weights.sum(-1, keepdims=True)
    out = (np.where(coded, weights, 0) @ values + np.where(coded, 0, weights) @ half_values) @ turn.T
    return out.swapaxes(1, 2).reshape(b, t, heads * d)
