"""Rotary frequencies of every kind, once, for the torch decoder and the native runtime alike.

A token at position p turns channel pair (i, i + d/2) of a head of width d by the angle p·f_i, with f_i =
theta^(-2i/d) (RoPE, arXiv 2104.09864). Each long-context variant replaces f_i by f_i·((1 - keep_i)/factor +
keep_i): it decides how much of the original frequency a pair keeps, and interpolates the rest.
"""

from __future__ import annotations

import math

from paretobit.arch.spec import Rope


def frequencies(rope: Rope, head_dim: int) -> tuple[list[float], float]:
    """Radians a position for each of the head_dim/2 channel pairs, and the factor on cos and sin."""
    params = dict(rope.params)
    plain = [rope.theta ** (-2 * i / head_dim) for i in range(head_dim // 2)]
    if rope.kind == "linear":
        keep = [0.0] * len(plain)
    elif rope.kind == "llama3":
        keep = [_llama3(f, params) for f in plain]
    elif rope.kind == "yarn":
        keep = _yarn(rope.theta, head_dim, params)
    else:
        return plain, 1.0
    factor = params["factor"]
    scaled = [f * ((1.0 - k) / factor + k) for f, k in zip(plain, keep, strict=True)]
    return scaled, params.get("attention_factor", 1.0)


def _clamp(x: float) -> float:
    return min(max(x, 0.0), 1.0)


def _llama3(frequency: float, params: dict[str, float]) -> float:
    """Llama 3.1: in the original context, over `high_freq` turns keep all, under `low_freq` nothing."""
    turns = params["original_positions"] * frequency / (2 * math.pi)
    return _clamp((turns - params["low_freq"]) / (params["high_freq"] - params["low_freq"]))


def _yarn(theta: float, head_dim: int, params: dict[str, float]) -> list[float]:
    """YaRN (arXiv 2309.00071, §3.2): a ramp from the pair that turns `beta_fast` times to `beta_slow`'s."""

    def pair(turns: float) -> float:
        wavelength = params["original_positions"] / turns
        return head_dim * math.log(wavelength / (2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(params["beta_fast"]), pair(params["beta_slow"])
    if params["truncate"]:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low or 0.001
    return [1.0 - _clamp((i - low) / width) for i in range(head_dim // 2)]
