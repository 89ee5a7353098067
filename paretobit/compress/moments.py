"""Adam, each tensor at its own share of the rate; and what an interrupted training goes on from: parameters and Adam's
moments of them, as arrays of a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Arrays(Protocol):
    """A file's, by name."""

    def read_float32(self, name: str) -> np.ndarray: ...


def adamw(parameters: Mapping[str, Tensor], shares: Mapping[str, float]) -> torch.optim.AdamW:
    """ParetoQ's: without decay. A group's "share" is what its rate is to be multiplied by; no parameters are fine."""
    groups = [{"params": [value], "share": shares[name]} for name, value in parameters.items()]
    return torch.optim.AdamW(groups or [{"params": []}], betas=(0.9, 0.95), weight_decay=0.0, fused=True)


def at_rate(optimizer: torch.optim.Adam, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("share", 1.0)


def fill(parameters: Iterable[Tensor]) -> None:
    """Zeros for gradients where there are none: every parameter takes every step."""
    for value in parameters:
        value.grad = torch.zeros_like(value) if value.grad is None else value.grad


def kept(parameters: Mapping[str, Tensor], optimizer: torch.optim.Adam) -> dict[str, np.ndarray]:
    """Arrays of all parameters, each of which has taken a step."""
    found: dict[str, np.ndarray] = {}
    for name, value in parameters.items():
        state = optimizer.state[value]
        parts = {"value": value.detach(), "first": state["exp_avg"], "second": state["exp_avg_sq"]}
        found |= {f"{kind} {name}": part.cpu().numpy() for kind, part in parts.items()}
    return found


def restore(file: Arrays, parameters: Mapping[str, Tensor], optimizer: torch.optim.Adam, step: int) -> None:
    """Go on from what `kept` gave after `step` steps."""
    for name, value in parameters.items():
        read = {kind: torch.from_numpy(file.read_float32(f"{kind} {name}")) for kind in ("value", "first", "second")}
        with torch.no_grad():
            value.copy_(read["value"])
        moments = {"exp_avg": read["first"].to(value.device), "exp_avg_sq": read["second"].to(value.device)}
        optimizer.state[value] = {"step": torch.tensor(float(step), device=value.device), **moments}
