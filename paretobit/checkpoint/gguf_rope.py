"""The rotary settings of a GGUF file as config.json spells them, long-context variants included.

llama.cpp has keys for linear and YaRN scaling. Llama 3's variant it stores as a tensor of one divisor per channel pair;
its four parameters are recovered from that tensor and checked by computing it again.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from paretobit.arch.rope import frequencies
from paretobit.arch.spec import Rope

if TYPE_CHECKING:
    from paretobit.checkpoint.gguf_config import Keys

# Divisors are computed and stored in float32: a handful of roundings of 2^-24 each, of which the difference of two
# turns (old_context / wavelength - low) loses at most three bits.
DIVISOR_TOLERANCE = 1e-5
YARN_NEUTRAL = {
    "yarn_log_multiplier": 0.0,
    "yarn_ext_factor": 1.0,
    "yarn_attn_factor": 1.0,
    "attn_factor": 1.0,
    "alpha": 0.0,
}


def rope_fields(keys: Keys, head_dim: int, divisors: np.ndarray | None) -> dict[str, object]:
    """`rope_theta` and, where the positions are scaled, `rope_scaling`. Raises ParetobitError on other variants."""
    theta = float(keys.number("rope.freq_base", 10000.0))
    fields: dict[str, object] = {"rope_theta": theta}
    kind = keys.text("rope.scaling.type", "linear")
    factor = float(keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 0.0))) or 1.0
    for name, neutral in YARN_NEUTRAL.items():
        if (value := keys.number(f"rope.scaling.{name}", neutral)) != neutral:
            raise keys.bad(f"rope.scaling.{name}", value, "this rotary variant is not supported")
    if kind not in ("none", "linear", "yarn"):
        raise keys.bad("rope.scaling.type", kind, "supported are none, linear and yarn")
    scaled = kind != "none" and factor != 1.0
    if divisors is not None and not (divisors == 1).all():
        if scaled:
            raise keys.bad("rope.scaling.factor", factor, "two rotary scalings at once are not supported")
        fields["rope_scaling"] = _llama3(keys, theta, head_dim, divisors)
    elif scaled and kind == "linear":
        fields["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    elif scaled:
        original = keys.number("rope.scaling.original_context_length", keys.number("context_length"))
        fields["rope_scaling"] = {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original,
            "beta_fast": float(keys.number("rope.scaling.yarn_beta_fast", 32.0)),
            "beta_slow": float(keys.number("rope.scaling.yarn_beta_slow", 1.0)),
        }
    return fields


def _llama3(keys: Keys, theta: float, head_dim: int, divisors: np.ndarray) -> dict[str, object]:
    """Llama 3.1's parameters from its divisors (head_dim/2,).

    A pair that turns t times in the original context is divided by 1 above `high` turns and by `factor` below `low`;
    between, 1/divisor = (1 - k)/factor + k with k = (t - low)/(high - low), linear in the pair's frequency. So the
    slope and the offset of k give the original context and `high` for a given `low`, 1 in every published model.
    """
    refuse = keys.bad("rope_freqs", "not Llama 3's", "this rotary variant is not supported")
    if (
        not 1.0 < theta < 1e15
        or divisors.shape != (head_dim // 2,)
        or not (np.isfinite(divisors) & (divisors > 0)).all()
    ):
        raise refuse
    plain = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    wanted = divisors.astype(np.float64)
    factor = float(f"{wanted.max():.6g}")
    if factor <= 1:
        raise refuse
    keep = (1 / wanted - 1 / factor) / (1 - 1 / factor)
    between = (keep > 1e-4) & (keep < 1 - 1e-4)
    low, high, original = 1.0, 4.0, 8192.0  # what is published, where no pair lies between
    turns = plain[between] / (2 * math.pi)  # a position
    if between.sum() >= 2:
        slope, offset = np.polyfit(turns, keep[between], 1)
        if offset < 0 < slope:
            high = float(f"{1 - 1 / offset:.4g}")
            original = float(round(slope * (high - low)))
    elif between.any():
        original = float(round((low + keep[between][0] * (high - low)) / turns[0]))
    fields = {"factor": factor, "low_freq_factor": low, "high_freq_factor": high}
    if not (low < high < 1e6 and 1 <= original <= 1 << 30):
        raise refuse
    params = {"factor": factor, "original_positions": original, "low_freq": low, "high_freq": high}
    scaled, _ = frequencies(Rope(theta, "llama3", tuple(params.items())), head_dim)
    if np.abs(plain / np.array(scaled) / wanted - 1).max() > DIVISOR_TOLERANCE:
        raise refuse
    return {"rope_type": "llama3", **fields, "original_max_position_embeddings": int(original)}
