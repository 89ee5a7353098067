"""What a verb needs beyond the base install."""

from __future__ import annotations

import importlib.util

from paretobit.errors import ParetobitError


def torch_or_hint(verb: str) -> None:
    """Raise unless torch is installed."""
    if importlib.util.find_spec("torch") is None:
        raise ParetobitError(f"{verb} needs torch", hint="pip install paretobit[compress]")
