"""What a verb needs beyond the base install."""

from __future__ import annotations

import importlib.util
import re

from paretobit.errors import ParetobitError


def torch_or_hint(verb: str) -> None:
    """Raise unless torch is installed."""
    if importlib.util.find_spec("torch") is None:
        raise ParetobitError(f"{verb} needs torch", hint="pip install paretobit[compress]")


def pick_device(device: str | None) -> str:
    """`device`, or cuda where there is one, else cpu."""
    import torch

    if device and not re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", device):
        raise ParetobitError(f"--device {device} is unknown", hint="choose from cpu, cuda, cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device and device.startswith("cuda") and int(device.partition(":")[2] or 0) >= count:
        raise ParetobitError(f"--device {device}: torch sees {count} CUDA devices", hint="leave --device out")
    return device or ("cuda" if torch.cuda.is_available() else "cpu")
