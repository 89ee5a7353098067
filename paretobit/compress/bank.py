"""The bank: the model on each of the schemes that a plan may choose, all rounded in one walk through the original.

Statistics are the full-precision model's, so no tensor's rounding hangs on how another one is stored, and any mixture
of the bank's tensors stands for a plan before the plan is carried out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from paretobit import __version__, hardware
from paretobit.arch.spec import band
from paretobit.checkpoint.base import Checkpoint
from paretobit.compress import apply, methods
from paretobit.compress.apply import Job, Part
from paretobit.compress.corpus import Corpus
from paretobit.compress.units import Units
from paretobit.planfile import ROTATE, Plan, is_embedding, uniform
from paretobit.progress import say
from paretobit.scheme import parse
from paretobit.sizes import human, tensor_bytes
from paretobit.work import MANIFEST, Work, write_atomically

KIND = "bank"
# GPTQ among matrices on a trellis: it makes up for what the stream lacks as these do, and one factoring serves a tap.
BESIDE_TRELLIS = {"gptq": {"act_order": False, "asymmetric": 0.65, "residual": 1.1, "trusted": True}}


def uniform_plan(source: Checkpoint, scheme: str) -> Plan:
    """Every matrix on one scheme by the method that suits it, every tap turned: what the bank holds of a scheme."""
    method = methods.default(parse(scheme).weight)
    lookup = methods.for_lookup(method, {}, source.arch.tied)
    made = uniform(source.arch, source.hash, scheme, scheme, (method, lookup, method), BESIDE_TRELLIS)
    return replace(made, transforms=({"method": ROTATE, "seed": 0},))


def get(source: Checkpoint, schemes: Sequence[str], corpus: Corpus, out: Path, device: str) -> dict[str, Units]:
    """Scheme -> the model on it, made in the folder `out` unless it lies there already; resumable, block by block."""
    fingerprint = {
        "model": source.hash, "schemes": list(schemes), "calibration": corpus.record, "version": __version__,
        "isa": hardware.isa(), "device": device,
    }  # fmt: skip
    work = Work(out, KIND, fingerprint)
    plans = {scheme: uniform_plan(source, scheme) for scheme in schemes}
    if not work.finished(overwrite=True):
        shapes = source.arch.shapes()
        nbytes = sum(
            tensor_bytes(layer.scheme, shapes[n]) for plan in plans.values() for n, layer in plan.layers.items()
        )
        say(f"{source.name} on {', '.join(schemes)}: {human(nbytes)} of disk, kept in {out}")
        with work.open(overwrite=True):
            parts = [
                Part(Job(source, plan, corpus.ids, sequential=False, device=device), work, f"{scheme}-")
                for scheme, plan in plans.items()
            ]
            made = apply.round_all(parts)
            with work.publish() as folder:
                for file in (file for files in made for file in files):
                    work.take(file, folder)
                manifest = {"kind": KIND, "fingerprint": fingerprint}
                write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())
    return {scheme: Units(source, plan, sorted(out.glob(f"{scheme}-*"))) for scheme, plan in plans.items()}


class Mixture:
    """What a choice of schemes makes of the bank, for a decoder: each matrix from its scheme's model, the rest the
    original's. chosen: matrix -> scheme."""

    def __init__(self, source: Checkpoint, bank: Mapping[str, Units], chosen: Mapping[str, str]) -> None:
        self.source, self.bank, self.chosen, self.arch = source, bank, chosen, source.arch
        self._last: tuple[str, np.ndarray] | None = None  # of an embedding that is read in pieces

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        bands = self.arch.bands(name) if is_embedding(name) else (name,)
        if not set(bands) <= set(self.chosen):
            return self.source.read(name, rows)
        if rows is None:
            return np.concatenate([self._band(part) for part in bands])
        if self._last is None or self._last[0] != name:
            self._last = name, self.read(name)
        return self._last[1][rows]

    def _band(self, name: str) -> np.ndarray:
        whole, rows = band(name)
        return self.bank[self.chosen[name]].tensor(whole, rows=rows).numpy()
