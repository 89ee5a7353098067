"""Folders whose matrices are integer codes already: GPTQ, AWQ and compressed-tensors ("pack-quantized").

In all of them w = scale · (code - zero), codes of 2, 4 or 8 bits side by side in int32 words, the first lowest:

- GPTQ (AutoGPTQ, GPTQModel): `qweight` packed along the inputs, `scales` and `qzeros` by group, zeros packed along the
  outputs and, unless the format is "gptq_v2", stored less 1; `g_idx` is each input's group.
- AWQ (AutoAWQ, "gemm"): packed along the outputs, in the order 0 2 4 6 1 3 5 7.
- compressed-tensors: `weight_packed` along the inputs, `weight_zero_point` along the outputs where there is one,
  otherwise the middle.

A matrix whose groups are runs of columns and whose scales are fp16 numbers is a `QTensor`, without another rounding.
"""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from paretobit.checkpoint.base import hash_files
from paretobit.checkpoint.hf import CONFIG, HfCheckpoint, canonical
from paretobit.errors import ParetobitError
from paretobit.qtensor import QTensor
from paretobit.scheme import parse
from paretobit.tensorfile import SafetensorsFile, finite, row_range, to_float32
from paretobit.work import read_json

CONFIG_KEY = "quantization_config"
HINT = "take the model before quantization, or one that is stored so"
AGAIN = "say --to SCHEME to round it once more"
INTERLEAVED = [0, 4, 1, 5, 2, 6, 3, 7]  # where AWQ's fields of a word have the outputs 0 … 7


@dataclass(frozen=True)
class Codes:
    """One matrix. codes: uint8 (out, in); scale: float32 (out, groups); zero: int16 (out, groups); group_of: (in,)."""

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    group_of: np.ndarray

    def values(self) -> np.ndarray:  # (out, in)
        """float32, each product rounded once."""
        steps = self.codes.astype(np.int16) - self.zero[:, self.group_of]
        return self.scale[:, self.group_of] * steps.astype(np.float32)


def up(n: int, size: int) -> int:
    return -(-n // size)


Read = Callable[[str], np.ndarray]


def fields(words: np.ndarray, bits: int) -> np.ndarray:  # (rows, n) -> (rows, n · 32 / bits)
    """uint8 codes of int32 words."""
    octets = np.ascontiguousarray(words).view(np.uint8)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return (octets[..., None] >> shifts & np.uint8((1 << bits) - 1)).reshape(len(words), -1)


def gptq(read: Read, shape: tuple[int, int], bits: int, facts: Mapping[str, object]) -> Codes:
    rows, columns = shape
    codes = fields(read("qweight").T, bits)[:, :columns]
    zero = fields(read("qzeros"), bits)[:, :rows].T.astype(np.int16)
    if facts.get("checkpoint_format", "gptq") != "gptq_v2":
        zero = zero + np.int16(1)
    return Codes(codes, read("scales").T, zero, read("g_idx"))


def awq(read: Read, shape: tuple[int, int], bits: int, facts: Mapping[str, object]) -> Codes:
    rows, columns = shape
    scale = read("scales").T
    codes, zero = (
        fields(words, bits).reshape(-1, 8)[:, INTERLEAVED].reshape(len(words), -1)[:, :rows].T
        for words in (read("qweight"), read("qzeros"))
    )
    return Codes(codes, scale, zero.astype(np.int16), np.arange(columns) // up(columns, scale.shape[1]))


def compressed_tensors(read: Read, shape: tuple[int, int], bits: int, facts: Mapping[str, object]) -> Codes:
    rows, columns = shape
    scale = read("weight_scale").reshape(rows, -1)
    codes = fields(read("weight_packed"), bits)[:, :columns]
    zero = np.full(scale.shape, 1 << bits - 1, np.int16)
    if (stored := read("weight_zero_point")).size:
        zero = fields(stored.T, bits)[:, :rows].T.astype(np.int16)
    groups = np.arange(columns) // up(columns, scale.shape[1])
    return Codes(codes, scale, zero, found if (found := read("weight_g_idx")).size else groups)


@dataclass(frozen=True)
class Layout:
    """parts: name of each array -> (dtypes, shape), of rows, columns, groups and codes a word; optional: may be absent;
    neutral: what config.json must say, field -> values (None: nothing), so that a variant is not taken for this one.
    """

    decode: Callable[[Read, tuple[int, int], int, Mapping[str, object]], Codes]
    parts: Mapping[str, tuple[tuple[str, ...], Callable[[int, int, int, int], tuple[int, ...]]]]
    widths: tuple[int, ...]
    optional: tuple[str, ...] = ()
    neutral: Mapping[str, tuple[object, ...]] | None = None


SCALES = ("F16", "BF16", "F32")
LAYOUTS: Mapping[str, Layout] = {
    "gptq": Layout(
        gptq,
        {
            "qweight": (("I32",), lambda rows, columns, groups, per: (up(columns, per), rows)),
            "qzeros": (("I32",), lambda rows, columns, groups, per: (groups, up(rows, per))),
            "scales": (SCALES, lambda rows, columns, groups, per: (groups, rows)),
            "g_idx": (("I32",), lambda rows, columns, groups, per: (columns,)),
        },
        (2, 4, 8),
        neutral={"checkpoint_format": (None, "", "gptq", "gptq_v2")},
    ),
    "awq": Layout(
        awq,
        {
            "qweight": (("I32",), lambda rows, columns, groups, per: (columns, up(rows, per))),
            "qzeros": (("I32",), lambda rows, columns, groups, per: (groups, up(rows, per))),
            "scales": (SCALES, lambda rows, columns, groups, per: (groups, rows)),
        },
        (4,),
        neutral={"version": (None, "gemm", "GEMM"), "zero_point": (None, True)},
    ),
    "compressed-tensors": Layout(
        compressed_tensors,
        {
            "weight_packed": (("I32",), lambda rows, columns, groups, per: (rows, up(columns, per))),
            "weight_scale": (SCALES, lambda rows, columns, groups, per: (rows, groups)),
            "weight_shape": (("I64", "I32"), lambda rows, columns, groups, per: (2,)),
            "weight_zero_point": (("I32",), lambda rows, columns, groups, per: (up(rows, per), groups)),
            "weight_g_idx": (("I32", "I64"), lambda rows, columns, groups, per: (columns,)),
        },
        (2, 4, 8),
        ("weight_zero_point", "weight_g_idx"),
        neutral={"format": ("pack-quantized",), "sparsity_config": (None, {})},
    ),
}


def is_quantized(folder: Path) -> bool:
    """Whether a folder's config.json says that it is stored in one of LAYOUTS."""
    path = folder / CONFIG
    found = read_json(path).get(CONFIG_KEY) if path.is_file() else None
    kind = found.get("quant_method") if isinstance(found, dict) else None
    return isinstance(kind, str) and kind in LAYOUTS


class QuantizedCheckpoint(HfCheckpoint):
    """A folder with packed matrices among its tensors; `qtensor` gives them as they are, `read` their values.

    Raises ParetobitError on variants of the formats that would be read wrongly.
    """

    def __init__(self, folder: Path) -> None:
        self.facts: dict = read_json(folder / CONFIG)[CONFIG_KEY]
        self.layout = LAYOUTS[self.facts["quant_method"]]
        for name, values in (self.layout.neutral or {}).items():
            if (value := self.facts.get(name)) not in values:
                raise ParetobitError(
                    f"{folder}: {CONFIG_KEY}.{name} is {reprlib.repr(value)}, which is not read", hint=HINT
                )
        super().__init__(folder)
        self.config = {key: value for key, value in self.config.items() if key != CONFIG_KEY}

    @cached_property
    def hash(self) -> str:
        """What config.json says of the codes changes their meaning: it counts as well."""
        facts = json.dumps(self.facts, sort_keys=True).encode()
        return hashlib.sha256(hash_files(file.path for file in self._files).encode() + facts).hexdigest()

    def _is_part(self, file: SafetensorsFile, stored: str) -> bool:
        stem, _, part = canonical(stored).rpartition(".")
        name = f"{stem}.weight"
        if part not in self.layout.parts or len(self._shapes.get(name, ())) != 2:
            return False
        self.packed.setdefault(name, {})[part] = (file, stored)
        return True

    def _check_shapes(self) -> None:
        super()._check_shapes()
        for name, found in self.packed.items():
            for part in self.layout.parts:
                if part not in found and part not in self.layout.optional:
                    raise ParetobitError(f"{self.folder}: {name} has no {part}", hint="fetch the model again")
            self._bits(name)

    def _bits(self, name: str) -> int:
        """Of a code, by the shapes of the arrays: what all of them agree on."""
        (rows, columns), found = self.shape(name), self.packed[name]
        tensors = {part: file.tensors[stored] for part, (file, stored) in found.items()}
        scales = next((info.shape for part, info in tensors.items() if "scale" in part), ())
        groups = int(np.prod(scales)) // rows
        for bits in self.layout.widths:
            if 1 <= groups <= columns and all(
                info.dtype in self.layout.parts[part][0]
                and info.shape == self.layout.parts[part][1](rows, columns, groups, 32 // bits)
                for part, info in tensors.items()
            ):
                return bits
        shapes = ", ".join(f"{part} {info.dtype} {info.shape}" for part, info in tensors.items())
        raise ParetobitError(
            f"{self.folder}: {name}, {rows} × {columns}, has {shapes}",
            hint=f"codes of {', '.join(map(str, self.layout.widths))} bits are read",
        )

    def codes(self, name: str) -> Codes:
        """One packed matrix. Raises ParetobitError on groups that are none and on values that are not finite."""
        found = self.packed[name]

        def part(part: str) -> np.ndarray:
            if part not in found:
                return np.empty(0, np.int32)
            file, stored = found[part]
            raw, kind = file.read_raw(stored), file.tensors[stored].dtype
            return finite(file.path, stored, to_float32(kind, raw)) if kind in SCALES else raw

        rows, columns = self.shape(name)
        of = self.layout.decode(part, (rows, columns), self._bits(name), self.facts)
        if of.group_of.min() < 0 or of.group_of.max() >= of.scale.shape[1]:
            raise ParetobitError(f"{self.folder}: {name} has groups beyond its scales", hint="fetch the model again")
        return of

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        if name not in self.packed:
            return super().read(name, rows)
        first, end = row_range(name, self.shape(name), rows)
        return finite(self.folder, name, np.ascontiguousarray(self.codes(name).values()[first:end]))

    def qtensor(self, name: str) -> QTensor:
        """A packed matrix on one of our grids, to the bit. Raises ParetobitError where there is none."""
        of, bits = self.codes(name), self._bits(name)
        columns, groups = of.codes.shape[1], of.scale.shape[1]
        group = max(1, int((of.group_of == 0).sum()))
        scale = of.scale.astype(np.float16)
        why = ""
        if not np.array_equal(of.group_of, np.arange(columns) // group):
            why = "its groups are no runs of columns (act-order)"
        elif not np.array_equal(scale.astype(np.float32), of.scale):
            why = "its scales are no fp16 numbers"
        elif groups > 1 and group < 16:
            why = f"its groups have {group} columns, fewer than 16"
        grid = parse(f"w{bits}{'' if groups == 1 else f'g{group}'}{'z' if bits < 8 else ''}").weight
        codes, zero = of.codes, of.zero
        if not why and (zero == 1 << bits - 1).all() and bits > 2:
            grid = parse(f"w{bits}{'' if groups == 1 else f'g{group}'}s").weight
            codes, why = (codes, "") if bits < 8 else _symmetric(codes)
            return self._checked(name, QTensor(codes, scale, None, grid), why)
        if not why and bits == 8:
            why = "its 8 bits have zero points"
        elif not why and zero.max() >= grid.levels:
            why = f"a zero point is {zero.max()}, beyond its {grid.levels} codes"
        return self._checked(name, QTensor(codes, scale, zero.astype(np.uint8), grid), why)

    def _checked(self, name: str, q: QTensor, why: str) -> QTensor:
        if why:
            raise ParetobitError(f"{self.folder}: {name} is on no grid of ours: {why}", hint=AGAIN)
        return QTensor(np.ascontiguousarray(q.codes), np.ascontiguousarray(q.scale), q.zero, q.grid)


def _symmetric(codes: np.ndarray) -> tuple[np.ndarray, str]:
    """Codes around 128 as those of 255 levels, and why not."""
    if (codes == 0).any():
        return codes, "it has the value -128, and 255 levels end at -127"
    return codes - np.uint8(1), ""
