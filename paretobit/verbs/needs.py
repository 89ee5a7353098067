"""What a verb needs beyond the base install."""

from __future__ import annotations

import importlib.util

from paretobit.errors import ParetobitError


def torch_or_hint(verb: str) -> None:
    """Raise unless torch is installed."""
    _installed_or_hint(verb, "torch")


def solver_or_hint(verb: str) -> None:
    """Raise unless what plans is installed."""
    _installed_or_hint(verb, "scipy")


def _installed_or_hint(verb: str, module: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ParetobitError(f"{verb} needs {module}", hint="pip install paretobit[compress]")
