"""What a verb needs beyond the base install."""

from __future__ import annotations

import importlib.util

from paretobit.errors import ParetobitError


def torch_or_hint(verb: str) -> None:
    """Raise unless torch is installed."""
    if importlib.util.find_spec("torch") is None:
        raise ParetobitError(f"{verb} needs torch", hint="pip install paretobit[compress]")


def pick_device(device: str | None) -> str:
    """`device`, or cuda where there is one, else cpu."""
    import torch

    if device and device.startswith("cuda") and not torch.cuda.is_available():
        raise ParetobitError("--device cuda: torch sees no CUDA device", hint="leave --device out")
    return device or ("cuda" if torch.cuda.is_available() else "cpu")
