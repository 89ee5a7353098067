"""The cost table: the nats of KL divergence that each tensor adds on each scheme, reused by every plan."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paretobit.arch.spec import EMBED, HEAD, band
from paretobit.errors import ParetobitError
from paretobit.planfile import is_embedding
from paretobit.tensorfile import SafetensorsFile, write_arrays
from paretobit.work import DAMAGED, MANIFEST, read_json, write_atomically

KIND, VERSION = "costs", 3
FILE, ARRAYS = "costs.safetensors", ("costs", "first")
MOST_SCHEMES = 64
BLOCKS, ENDS, REST = 0, 1, "all other schemes"  # a table of schemes: of blocks; of embedding and head
# What a cost must be multiplied by for sums to meet what the bank's tensors have when put together: second order is too
# little at few bits, and for an embedding above all, whose error stands in every position of a window and in the head.
# Of SmolLM2-135M and Gemma 3 270M, with 8,192 tokens and 32,768 (docs/planner.md).
TOGETHER = (
    {"w1t": 1.7, "w1.5t": 1.4, "w2t": 1.12, "w2.5t": 1.07, "w3t": 1.02, REST: 1.0},
    {"w1t": 3.4, "w1.5t": 2.3, "w2t": 1.5, "w2.5t": 1.3, "w3t": 1.15, "w3.5t": 1.1, "w4t": 1.07, REST: 1.0},
)
SPREAD = 0.5  # of these between models that differ from those two, a share
# A packed model has a S / (1 + b S) nats on text calibration has not seen, S the sum of its costs, each times WORTH (1
# where nothing stands): rounding fits its own text, but where much is wrong, what follows makes up for much. Of 29
# models that were carried out, to 4 % (docs/decisions/015-left.md); few of them had anything at 1 bit.
WORTH, CARRIED_OUT = {"w1t": 1.6, "w1.5t": 1.25}, (1.255, 0.361)
# All later positions attend to the first one, whatever it is (Xiao et al., "Efficient streaming language models with
# attention sinks", 2023): much of what keys and values cost is one error of one token there. Of that so much is left
# when a plan is carried out: 0.35 by models of Gemma 3, 0.48 by those of SmolLM2 (docs/decisions/017-first.md).
FIRST = 0.4
# Of what embedding and head cost, a part is taken to be spread evenly over the vocabulary, whatever the text at hand
# uses: other texts have other words (docs/decisions/018-bands.md).
EVENLY = 0.2
LUCK = math.log(30)  # two costs of one matrix may be so far off what is usual between their schemes
NOISE = 0.05  # of a measurement, a share


@dataclass(frozen=True)
class Costs:
    """The costs of one model.

    model: the checkpoint's hash; calibration: of what text; names: its matrices; schemes: as `scheme.parse` reads them;
    per_window: float32 (windows, names, schemes), nats a token, measured on each window of text by itself; first: what
    of that comes from errors at the window's first position.
    """

    model: str
    calibration: Mapping[str, Any]
    names: tuple[str, ...]
    schemes: tuple[str, ...]
    per_window: np.ndarray = field(repr=False)
    first: np.ndarray = field(repr=False)

    @property
    def hash(self) -> str:
        """Of the values."""
        return hashlib.sha256(np.stack([self.per_window, self.first]).astype("<f4").tobytes()).hexdigest()

    def mean(self) -> np.ndarray:  # (names, schemes)
        return self.per_window.mean(0, dtype=np.float64)

    def typical(self) -> np.ndarray:  # (names, schemes)
        """The mean, FIRST of what the first position costs, without luck: a block's matrix as far apart on two schemes
        as matrices are in the median.

        What bands of embedding and head cost, EVENLY of it the same for every row.
        What an error does to one outstanding token can be much of what it costs, and hangs on which way it points.
        Rounded anew when a plan is carried out, it points elsewhere; a choice by the mean prefers what was lucky.
        What is further off than luck takes it stays as it was measured.
        """
        found = self.mean() - (1 - FIRST) * self.first.mean(0, dtype=np.float64)
        for end in (EMBED, HEAD):
            bands = {i: band(name)[1] for i, name in enumerate(self.names) if band(name)[0] == end}
            if len(bands) > 1:
                at, sizes = list(bands), np.array([rows.stop - rows.start for rows in bands.values()])
                evenly = np.outer(sizes / sizes.sum(), found[at].sum(0))
                found[at] = (1 - EVENLY) * found[at] + EVENLY * evenly
        rows = [i for i, name in enumerate(self.names) if side(name) == BLOCKS and (found[i] > 0).all()]
        if rows:
            logs = np.log(found[rows])
            schemes = np.median(logs - np.median(logs, 1, keepdims=True), 0)
            fitted = np.median(logs - schemes, 1, keepdims=True) + schemes
            found[rows] = np.exp(np.where(np.abs(logs - fitted) < LUCK, fitted, logs))
        return found

    def predicted(self, chosen: Mapping[str, str]) -> tuple[float, float | None]:
        """(nats, standard error over windows) of a choice of a scheme for every matrix; what it leaves out is exact."""
        at = {name: i for i, name in enumerate(self.names)}
        columns = [(at[name], self.schemes.index(scheme)) for name, scheme in chosen.items()]
        sums = sum((self.per_window[:, i, j].astype(np.float64) for i, j in columns), np.zeros(len(self.per_window)))
        stderr = float(sums.std(ddof=1)) / len(sums) ** 0.5 if len(sums) > 1 else None
        return float(sums.mean()), stderr

    def write(self, folder: Path, fingerprint: Mapping[str, object]) -> None:
        """As a folder's files."""
        values = (self.per_window, self.first)
        write_arrays(folder / FILE, {name: of.astype(np.float32) for name, of in zip(ARRAYS, values, strict=True)})
        manifest = {
            "kind": KIND, "version": VERSION, "fingerprint": fingerprint, "model": self.model,
            "calibration": self.calibration, "names": self.names, "schemes": self.schemes,
        }  # fmt: skip
        write_atomically(folder / MANIFEST, (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode())


def read(folder: Path) -> Costs:
    """What `write` wrote. Raises ParetobitError naming the file and what is wrong with it."""
    path = Path(folder) / MANIFEST
    facts = read_json(path)
    if facts.get("kind") != KIND or facts.get("version") != VERSION:
        raise ParetobitError(f"{folder} holds no cost table of version {VERSION}", hint="make it with paretobit plan")
    if not isinstance(facts.get("model"), str) or not isinstance(facts.get("calibration"), dict):
        raise ParetobitError(f"{path}: model or calibration is missing", hint=DAMAGED)
    for name in ("names", "schemes"):
        given = facts.get(name)
        if not isinstance(given, list) or not all(isinstance(x, str) for x in given) or len(set(given)) != len(given):
            raise ParetobitError(f"{path}: {name} is no list of different names", hint=DAMAGED)
    if not 1 <= len(facts["schemes"]) <= MOST_SCHEMES:
        raise ParetobitError(f"{path}: {len(facts['schemes'])} schemes", hint=DAMAGED)
    file = SafetensorsFile(Path(folder) / FILE)
    shapes = {file.tensors[name].shape if name in file.tensors else () for name in ARRAYS}
    shape: tuple[int, ...] = shapes.pop()
    if shapes or len(shape) != 3 or shape[0] < 1 or shape[1:] != (len(facts["names"]), len(facts["schemes"])):
        raise ParetobitError(f"{file.path}: the shapes of costs do not fit {MANIFEST}", hint=DAMAGED)
    per_window, first = (file.read_float32(name) for name in ARRAYS)
    if (first < 0).any() or (first > per_window).any():
        raise ParetobitError(f"{file.path}: a cost is negative", hint=DAMAGED)
    return Costs(
        facts["model"], facts["calibration"], tuple(facts["names"]), tuple(facts["schemes"]), per_window, first
    )


def merge(tables: Sequence[Costs]) -> Costs:
    """One table from several of the same model and schemes, measured on different windows.

    Raises ParetobitError where they do not belong together.
    """
    tables = sorted(tables, key=lambda table: table.hash)  # whatever order they are given in
    first = tables[0]
    for other in tables[1:]:
        for what in ("model", "names", "schemes"):
            if getattr(other, what) != getattr(first, what):
                raise ParetobitError(f"cost tables of different {what}", hint="merge tables of one model and command")
    values = (np.concatenate([getattr(table, what) for table in tables]) for what in ("per_window", "first"))
    made = Costs(first.model, first.calibration, first.names, first.schemes, *values)
    if len(np.unique(made.per_window, axis=0)) < len(made.per_window):
        raise ParetobitError("cost tables that share a window", hint="give every shard once")
    return made


def factors(costs: Costs, measured: Sequence[tuple[Mapping[str, str], float]]) -> np.ndarray:
    """What costs must be multiplied by for predictions to meet what was measured of some choices, in nats: float64
    (2, schemes), of blocks and of embedding and head. Least squares of relative errors around TOGETHER (ridge)."""
    prior = np.array([of.get(scheme, of[REST]) for of in TOGETHER for scheme in costs.schemes])
    at, mean = {name: i for i, name in enumerate(costs.names)}, costs.mean()
    shares = np.zeros((len(measured), 2, len(costs.schemes)))
    for row, (schemes, nats) in enumerate(measured):
        for name, scheme in schemes.items():
            column = costs.schemes.index(scheme)
            shares[row, side(name), column] += mean[at[name], column] / nats
    rows = shares.reshape(-1, prior.size) / NOISE
    left = 1 / NOISE - rows @ prior
    moved = np.linalg.solve(rows.T @ rows + np.diag((SPREAD * prior) ** -2), rows.T @ left)
    return np.clip(prior + moved, prior / 4, prior * 4).reshape(2, -1)


def carried_out(added: float) -> float:
    """Nats a token to be expected of a packed model, by the sum of its tensors' costs."""
    return CARRIED_OUT[0] * added / (1 + CARRIED_OUT[1] * added)


def allowed(nats: float) -> float:
    """The sum of costs of which so many nats are expected; infinity where none has so many."""
    left = CARRIED_OUT[0] - CARRIED_OUT[1] * nats
    return nats / left if left > 0 else math.inf


def side(name: str) -> int:
    return ENDS if is_embedding(name) else BLOCKS
