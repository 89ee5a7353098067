"""What quantize does with a model that others have quantized, when nobody asks for another scheme: its codes stay."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from paretobit.errors import ParetobitError
from paretobit.progress import progress, say

if TYPE_CHECKING:
    import numpy as np

    from paretobit.checkpoint.base import Checkpoint
    from paretobit.checkpoint.hf import HfCheckpoint
    from paretobit.planfile import Layer
    from paretobit.verbs.quantize import Fit
    from paretobit.work import Work

GIVEN = "given"  # the method of a tensor whose codes came with the model
WHY = "the checkpoint has no codes for it"


OPTIONS = "--method, --embed, --transform, --metric, --check, --calib, --tokens, --seed, --set, --inputs, --stats"
OPTIONS += ", --shard, --recover"


def adoptable(source: Checkpoint) -> TypeGuard[HfCheckpoint]:
    """Whether a model has codes of its own."""
    from paretobit.checkpoint.hf import HfCheckpoint

    return isinstance(source, HfCheckpoint) and bool(source.packed)


def adopt(source: HfCheckpoint, out: Path, overwrite: bool, how: Sequence[object]) -> Fit:
    """Pack the codes that the model came with, without another rounding; what has none stays in floats.

    Raises ParetobitError on a matrix that lies on none of our grids, and if `how` to round is said, the values of
    OPTIONS: nothing asked for is dropped in silence.
    """
    from paretobit import __version__
    from paretobit.artifact import FORMAT, Artifact, assemble, describe
    from paretobit.planfile import Plan
    from paretobit.reports.card import write_card
    from paretobit.verbs.quantize import Fit
    from paretobit.work import Work

    said = [name for name, value in zip(OPTIONS.split(", "), how, strict=True) if value not in (None, (), {})]
    if said:
        raise ParetobitError(
            f"the model's own codes are kept, so {said[0]} has nothing to do",
            hint=f"add --to SCHEME to round once more, or drop {said[0]}",
        )
    started = time.monotonic()
    # No settings and no statistics enter: the same model gives the same bytes.
    fingerprint: dict[str, object] = {"format": FORMAT, "model": source.hash, "inputs": GIVEN, "version": __version__}
    work = Work(out, "model", fingerprint)
    if work.finished(overwrite):
        say(f"{out} is already this result: nothing to do")
    else:
        with work.open(overwrite):
            layers, units = _packed(source, work)
            floats = {name: str(layer.scheme) for name, layer in layers.items() if name not in source.packed}
            fallbacks = [{"name": n, "asked": "its own codes", "stored": s, "why": WHY} for n, s in floats.items()]
            manifest = describe(source, fingerprint, {"source": "none"}, fallbacks)
            with work.publish() as folder:
                assemble(folder, source, Plan(source.hash, layers), manifest, units)
                write_card(folder)
    made = Artifact(out)
    notes = tuple(f"{fell['name']}: {fell['stored']} ({fell['why']})" for fell in made.manifest["fallbacks"])
    return Fit(str(out), made.size_bytes, source.bits16, made.bits_per_weight, time.monotonic() - started, notes)


def _packed(source: HfCheckpoint, work: Work) -> tuple[dict[str, Layer], list[Path]]:
    """The plan's layers, and a file for every block with its tensors packed."""
    from paretobit.artifact import float_arrays, stored
    from paretobit.planfile import Layer
    from paretobit.scheme import Scheme, parse
    from paretobit.tensorfile import write_arrays

    layers: dict[str, Layer] = {}
    units: list[Path] = []
    names = source.names()
    with progress(f"packing {source.name}", len(names)) as advance:
        for _, block in groupby(names, lambda name: name.split(".")[:3]):
            arrays: dict[str, np.ndarray] = {}
            for name in block:
                if name in source.packed:
                    q = source.qtensor(name)
                    layers[name] = Layer(Scheme(q.grid), GIVEN)
                    arrays |= {name + suffix: array for suffix, array in stored(q).items()}
                else:
                    kind, arrays[name] = float_arrays(source.read(name), None)
                    if len(source.shape(name)) == 2:
                        layers[name] = Layer(parse({"BF16": "bf16", "F32": "fp32"}[kind]), GIVEN)
                advance(1)
            units.append(work.path(f"unit{len(units)}.safetensors"))
            write_arrays(units[-1], arrays)
    return layers, units
