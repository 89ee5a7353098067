"""Packed models for formats that have one type a tensor: embedding and head in one piece, whatever their bands."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from paretobit.arch.spec import EMBED, HEAD
from paretobit.artifact import Artifact
from paretobit.planfile import is_embedding


def joined(packed: Artifact) -> Artifact:
    """The packed model, without bands; itself where it has none."""
    return Joined(packed) if packed.arch.cuts else packed


class Joined(Artifact):
    """Embedding and head have the scheme of their widest band, and no codes: they are read as numbers."""

    def __init__(self, packed: Artifact) -> None:
        self.packed, self.name, self.folder = packed, packed.name, packed.folder
        self.manifest, self.config, self.file = packed.manifest, packed.config, packed.file
        self.arch = replace(packed.arch, cuts=())
        layers = {name: layer for name, layer in packed.plan.layers.items() if not is_embedding(name)}
        for end in self.ends:
            bands = [packed.plan.layers[name] for name in packed.arch.bands(end)]
            layers[end] = max(bands, key=lambda layer: layer.scheme.weight.bits)
        self.plan = replace(packed.plan, layers=layers)
        exact = {name: packed.schemes[name] for name in self._shapes if name not in layers}
        self.schemes = {name: layers[name].scheme if name in layers else exact[name] for name in self._shapes}

    @property
    def ends(self) -> tuple[str, ...]:
        return (EMBED,) if self.arch.tied else (EMBED, HEAD)

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        return self.packed.read(name, rows)

    def nbytes(self, name: str) -> int:
        return sum(map(self.packed.nbytes, self.packed.arch.bands(name) if name in self.ends else (name,)))
