"""Decoder topologies: one data file per `model_type`."""

from paretobit.arch.resolve import resolve
from paretobit.arch.spec import Arch, Family, Rope, Tap

__all__ = ["Arch", "Family", "Rope", "Tap", "resolve"]
