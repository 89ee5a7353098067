"""What an interrupted training goes on from: parameters and Adam's moments of them, as arrays of a file."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from paretobit.tensorfile import SafetensorsFile


def kept(parameters: Mapping[str, Tensor], optimizer: torch.optim.Adam) -> dict[str, np.ndarray]:
    """Arrays of all parameters, each of which has taken a step."""
    found: dict[str, np.ndarray] = {}
    for name, value in parameters.items():
        state = optimizer.state[value]
        parts = {"value": value.detach(), "first": state["exp_avg"], "second": state["exp_avg_sq"]}
        found |= {f"{kind} {name}": part.cpu().numpy() for kind, part in parts.items()}
    return found


def restore(file: SafetensorsFile, parameters: Mapping[str, Tensor], optimizer: torch.optim.Adam, step: int) -> None:
    """Go on from what `kept` gave after `step` steps."""
    for name, value in parameters.items():
        read = {kind: torch.from_numpy(file.read_float32(f"{kind} {name}")) for kind in ("value", "first", "second")}
        with torch.no_grad():
            value.copy_(read["value"])
        moments = {"exp_avg": read["first"].to(value.device), "exp_avg_sq": read["second"].to(value.device)}
        optimizer.state[value] = {"step": torch.tensor(float(step), device=value.device), **moments}
