"""A compressed-tensors folder, for vLLM and transformers: matrices of 4 or 8 bits, eight or four to an int32.

The format "pack-quantized" as its package writes it: w = scale · (code - zero), a scale for a group of a row's columns
or for the row, zero points packed along the rows. Every affine grid fits 4 or 8 bits to the bit: half steps become
whole ones, narrow codes lie in wide fields. Embedding and head have no quantized form that vLLM reads. A scheme with
8-bit activations becomes "int-quantized": an int8 matrix, one scale for a row, activations rounded token by token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paretobit.artifact import Artifact
from paretobit.exporters import Request, Stored
from paretobit.exporters.folder import plain_config, stored_as, words, write_documents
from paretobit.exporters.steps import Steps, nearest, read, row_pieces, span, unfit, width
from paretobit.planfile import is_embedding, taps
from paretobit.scheme import FLOATS, STATIC, Grid
from paretobit.tensorfile import DTYPES as SIZES
from paretobit.tensorfile import TensorWriter

DTYPES = ("float16", "bfloat16", "float32")
SUFFIX = ""
PACKED, INT8, BOTH = "pack-quantized", "int-quantized", "mixed-precision"
TOKENS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
ZEROS = "has zero points, which transformers loads with CompressedTensorsConfig(dequantize=True) only"
OTHERWISE = "its activations are rounded token by token, as this format is read, not as the scheme says"
APART = "is packed otherwise than what reads the same activation, and vLLM joins these; plan with --tied for it"
MIXED = "has zero points beside matrices packed otherwise, which transformers does not load; vLLM's layout has them"


@dataclass(frozen=True)
class Packing:
    """How one matrix lies in the file. group: columns of a scale, None for the whole row; zeros: stored, or the middle.

    int8: activations too; instead: the scheme that it is rounded to once more, or "".
    """

    bits: int
    group: int | None
    zeros: bool
    instead: str = ""
    int8: bool = False

    @property
    def format(self) -> str:
        return INT8 if self.int8 else PACKED

    def __str__(self) -> str:
        if self.int8:
            return "int8 with int8 activations"
        return f"int{self.bits}{'' if self.group is None else f'g{self.group}'}{'z' if self.zeros else ''}"

    def arguments(self) -> dict[str, object]:
        """As config.json says it."""
        facts = {"num_bits": self.bits, "type": "int", "symmetric": not self.zeros, "dynamic": False}
        strategy = "channel" if self.group is None else "group"
        return {**facts, "strategy": strategy, "group_size": self.group, "actorder": None}

    def entries(self, rows: int, columns: int, scale: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Suffix -> (dtype, shape) of its arrays, scales in the dtype `scale`."""
        if self.int8:
            return {"": ("I8", (rows, columns)), "_scale": (scale, (rows, 1))}
        groups, per_word = columns // (self.group or columns), 32 // self.bits
        found: dict[str, tuple[str, tuple[int, ...]]] = {
            "_shape": ("I64", (2,)),
            "_packed": ("I32", (rows, -(-columns // per_word))),
            "_scale": (scale, (rows, groups)),
        }
        return found | ({"_zero_point": ("I32", (-(-rows // per_word), groups))} if self.zeros else {})

    def arrays(self, of: Steps) -> dict[str, np.ndarray]:
        if self.int8:
            return {"": of.values.astype(np.int8), "_scale": of.scale}
        held = of.regrouped(self.group or of.codes.shape[1])
        middle = np.int16(1 << self.bits - 1)
        codes = held.codes if self.zeros else (held.values + middle).astype(np.uint8)
        return {
            "_shape": np.array(of.codes.shape, np.int64),
            "_packed": pack(codes, self.bits),
            "_scale": held.scale,
            "_zero_point": np.ascontiguousarray(pack(held.zero.T, self.bits).T),
        }


def pack(codes: np.ndarray, bits: int) -> np.ndarray:  # (rows, n) -> (rows, n · bits / 32)
    """int32: codes of 4 or 8 bits side by side, the first lowest; what is missing in the last word is 0."""
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % (32 // bits))))
    joined = padded if bits == 8 else padded[:, 0::2] | padded[:, 1::2] << 4
    return np.ascontiguousarray(joined).view("<i4")


def packing(grid: Grid, columns: int) -> Packing:
    """What holds every matrix on an affine grid."""
    group = None if grid.group is None or grid.group > columns else width(grid, columns)
    low, high = span(grid)
    if grid.zero == "stored" and grid.levels <= 16 and not -8 <= low <= high <= 7:
        return Packing(4, group, True)
    return Packing(4 if low >= -8 and high <= 7 else 8, group, False)


def rounded_packing(kept: int, columns: int) -> Packing:
    """What a matrix that lies on no grid is rounded to, at 4 or 8 bits."""
    shared = math.gcd(columns, 32)
    group = shared if shared >= 16 else None
    scheme = f"w{kept}{'' if group is None else f'g{group}'}{'s' if kept == 4 and group else ''}"
    return Packing(kept, group, False, scheme)


def packings(packed: Artifact, request: Request) -> dict[str, tuple[Packing, str]]:
    """Every matrix that is packed -> how, and why it is rounded once more, or ""."""
    found = {}
    for name in packed.plan.layers:
        scheme, grid = packed.schemes[name], packed.schemes[name].weight
        if not is_embedding(name) and grid.kind not in FLOATS:
            why, columns = unfit(packed, name), packed.shape(name)[1]
            if scheme.activation is not None:
                why = why or ("" if width(grid, columns) == columns else "8-bit activations need a scale for the row")
                found[name] = (Packing(8, None, False, "w8" if why else "", int8=True), why)
                continue
            found[name] = (
                rounded_packing(nearest(grid, request.bits, (4, 8)), columns) if why else packing(grid, columns),
                why,
            )
    return found


def holds(packed: Artifact, request: Request) -> dict[str, Stored]:
    chosen = packings(packed, request)
    zeros = ZEROS if len({how for how, _ in chosen.values()}) == 1 else MIXED
    apart = _apart(packed, {name: how for name, (how, _) in chosen.items()})
    note = "" if request.dtype == "float32" else f"stored as {request.dtype}; --dtype float32 keeps every bit"
    found = {}
    for name in packed.names():
        if name in chosen:
            how, why = chosen[name]
            asked = packed.schemes[name].activation
            otherwise = OTHERWISE if asked is not None and (asked.kind == STATIC or asked.group is not None) else ""
            notes = zeros if how.zeros else otherwise, APART if name in apart else ""
            found[name] = Stored(str(how), why, "; ".join(filter(None, notes)))
        else:
            found[name] = Stored(request.dtype, note=f"not quantized in this format, {note}" if note else "")
    return found


def _apart(packed: Artifact, chosen: Mapping[str, Packing]) -> set[str]:
    """Matrices that read one activation and are not all packed alike."""
    together = [tap.consumers for tap in taps(packed.arch)]
    return {name for names in together if len({chosen.get(name) for name in names}) > 1 for name in names}


def write(packed: Artifact, path: Path, stored: Mapping[str, Stored], request: Request) -> None:
    path.mkdir()
    chosen = {name: how for name, (how, _) in packings(packed, request).items()}
    scale = "F32" if request.dtype == "float32" else "F16"  # fp16 already; whoever unpacks computes in the scale's type
    entries: dict[str, tuple[str, tuple[int, ...]]] = {}
    origin: dict[str, tuple[str, str]] = {}
    for name in stored:
        shape = packed.shape(name)
        if name in chosen:
            parts = chosen[name].entries(shape[0], shape[1], scale)
            entries |= {name + suffix: entry for suffix, entry in parts.items()}
            origin |= {name + suffix: (name, suffix) for suffix in parts}
        else:
            entries[name] = (stored_as(request.dtype), shape)
    # Widest values first, so that each lies aligned; a tensor's arrays come from one reading all the same.
    entries = dict(sorted(entries.items(), key=lambda entry: -SIZES[entry[1][0]].itemsize))
    with TensorWriter(path / "model.safetensors", entries, {"format": "pt"}) as writer:
        for entry in entries:
            if entry in origin:
                name, suffix = origin[entry]
                array = chosen[name].arrays(read(packed, name, chosen[name].instead))[suffix]
                writer.write(entry, array.astype(SIZES[entries[entry][0]], copy=False))
            else:
                for rows in row_pieces(packed, entry):
                    writer.write(entry, words(packed.read(entry, rows), request.dtype))
    more = {"quantization_config": _config(packed, chosen)} if chosen else {}
    write_documents(path, packed, plain_config(packed, request.dtype, **more))


def _config(packed: Artifact, chosen: Mapping[str, Packing]) -> dict[str, object]:
    """What config.json says of the quantization: a group of modules for every packing."""
    modules: dict[Packing, list[str]] = {}
    for name, how in chosen.items():
        modules.setdefault(how, []).append(name.removesuffix(".weight"))
    linear = [name.removesuffix(".weight") for name in packed.plan.layers if not is_embedding(name)]
    every = len(modules) == 1 and len(chosen) == len(linear)
    formats = sorted({how.format for how in modules})
    groups = {
        f"group_{i}": {
            "targets": ["Linear"] if every else names,
            "weights": how.arguments(),
            "input_activations": TOKENS if how.int8 else None,
            "output_activations": None,
            "format": how.format,
        }
        for i, (how, names) in enumerate(modules.items())
    }
    ignored = ["lm_head", *(name for name in linear if f"{name}.weight" not in chosen)]
    form = formats[0] if len(formats) == 1 else BOTH
    facts = {"quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed"}
    return {**facts, "config_groups": groups, "ignore": ignored, "kv_cache_scheme": None}
