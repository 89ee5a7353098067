"""Embedding and head in bands of rows, each a matrix of its own with a scheme of its own.

A vocabulary is mostly rare words. Tokenizers number tokens by how common they were where the tokenizer was trained, so
a run of rows is about as common as its neighbours, and what it costs to store one in few bits falls from band to band
(docs/decisions/018-bands.md). A band goes by the matrix' name and its rows: "model.embed_tokens.weight[0:8192]".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from paretobit.arch import Arch
from paretobit.arch.spec import EMBED, HEAD, band
from paretobit.checkpoint.base import Checkpoint
from paretobit.planfile import Plan, cut, is_embedding
from paretobit.trellis import RING

EQUAL, HALVES = 16, 4  # bands of equal size; how often the first of them is halved


class InBands(Checkpoint):
    """A checkpoint with embedding and head in bands that begin at the rows `cuts`; both go by their own names, too."""

    def __init__(self, source: Checkpoint, cuts: tuple[int, ...]) -> None:
        self.source, self.name, self.config = source, source.name, source.config
        self.arch = replace(source.arch, cuts=cuts)

    @property
    def hash(self) -> str:
        return self.source.hash

    @property
    def companions(self) -> dict[str, bytes]:
        return self.source.companions

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        whole, own = band(name)
        if whole == name:
            return self.source.read(name, rows)
        if name not in self._shapes:
            raise KeyError(name)
        first, last, _ = (rows or slice(None)).indices(own.stop - own.start)
        return self.source.read(whole, slice(own.start + first, own.start + max(first, last)))


def under(source: Checkpoint, plan: Plan) -> Checkpoint:
    """The source in the bands of a plan, itself where it has them already."""
    cuts = cut(source.arch, plan).cuts
    if cuts == source.arch.cuts:
        return source
    return InBands(source.source if isinstance(source, InBands) else source, cuts)


def candidates(arch: Arch) -> tuple[int, ...]:
    """Where a vocabulary may be cut, whole rings of rows: into bands of one size, and finer where tokens are common."""
    step = -(-arch.vocab // (EQUAL * RING)) * RING
    first = {step // 2**i // RING * RING for i in range(1, HALVES + 1)} - {0}
    return tuple(sorted({*first, *range(step, arch.vocab, step)}))


def merged(arch: Arch, chosen: Mapping[str, str]) -> dict[str, str]:
    """A choice of a scheme for every matrix of `arch`, neighbouring bands that are alike made one. Embedding and head
    are cut at the same rows."""
    ends = [end for end in (EMBED, HEAD) if arch.bands(end)[0] in chosen]
    alike = [tuple(chosen[arch.bands(end)[i]] for end in ends) for i in range(len(arch.cuts) + 1)]
    changes = [i for i in range(1, len(alike)) if alike[i] != alike[i - 1]]
    joint = replace(arch, cuts=tuple(arch.cuts[i - 1] for i in changes))
    found = {name: scheme for name, scheme in chosen.items() if not is_embedding(name)}
    for at, end in enumerate(ends):
        found |= {part: alike[i][at] for part, i in zip(joint.bands(end), (0, *changes), strict=True)}
    return found


def joined(arch: Arch, name: str, rows: slice | None, read: Callable[[str, slice | None], np.ndarray]) -> np.ndarray:
    """`rows` of embedding or head out of its bands, each `read(band, rows of it)`."""
    first, last, _ = (rows or slice(None)).indices(arch.vocab)
    found = []
    for part in arch.bands(name):
        own = band(part)[1]
        a, b = max(first, own.start) - own.start, min(last, own.stop) - own.start
        if a < b:
            found.append(read(part, slice(a, b)))
    return np.concatenate(found) if found else np.empty((0, arch.hidden), np.float32)
