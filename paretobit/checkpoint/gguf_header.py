"""The header of a GGUF file (version 2 and 3), proven against the file's size before anything is allocated.

Layout (ggml's docs/gguf.md): magic, version, counts; key-value pairs; one description per tensor; padding to the
alignment; the tensors, each padded to the alignment, in the order of their descriptions.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paretobit.errors import ParetobitError
from paretobit.tensorfile import DAMAGED, RegularFile

MAGIC = b"GGUF"
VERSIONS = (2, 3)
SCALARS: dict[int, np.dtype] = {  # value type -> numpy type; 7 is bool, 8 string, 9 array
    0: np.dtype("u1"), 1: np.dtype("i1"), 2: np.dtype("<u2"), 3: np.dtype("<i2"), 4: np.dtype("<u4"),
    5: np.dtype("<i4"), 6: np.dtype("<f4"), 7: np.dtype("u1"), 10: np.dtype("<u8"), 11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}  # fmt: skip
BOOL, STRING, ARRAY = 7, 8, 9
MAX_KEYS = 1 << 16  # published files have about 50
MAX_TENSORS = 1 << 17  # published files have at most a few thousand
MAX_STRINGS = 1 << 22  # over all arrays: vocabulary and merges of published models stay below 2^20
MAX_NAME = 1 << 16  # bytes; the format's own limit on a key
MAX_TEXT = 1 << 24  # bytes of one string; chat templates take less than 2^16
MAX_NUMBERS = 1 << 24  # entries of one array
MAX_DEPTH = 3  # arrays of arrays of arrays: nobody writes more
MAX_DIMS = 4  # GGML_MAX_DIMS
WINDOW = 1 << 20  # bytes of the header read at a time


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: shape with rows first (numpy's order), and where its bytes lie in the file.

    block values share block_bytes bytes; a row is a whole number of blocks.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    block: int
    block_bytes: int
    start: int
    nbytes: int

    @property
    def row_bytes(self) -> int:
        return self.shape[-1] // self.block * self.block_bytes


@dataclass(frozen=True)
class GgufHeader:
    """metadata: numbers, bools and strings as such, arrays as numpy arrays (strings and nested ones as lists)."""

    version: int
    metadata: dict[str, object]
    tensors: dict[str, GgufTensor]


def read_header(file: RegularFile) -> GgufHeader:
    """The header of an open GGUF file. Raises ParetobitError on anything that the format does not allow."""
    return _Reader(file).header()


class _Reader:
    """A cursor over the header; every length is compared with what the file still holds before it is used."""

    def __init__(self, file: RegularFile) -> None:
        self.file, self.path = file, Path(file.path)
        self.at = 0  # offset in the file of the next byte
        self.window, self.window_start = b"", 0
        self.strings_left = MAX_STRINGS

    def bad(self, what: str) -> ParetobitError:
        return ParetobitError(f"{self.path}: {what}", hint=DAMAGED)

    def need(self, size: int, what: str) -> None:
        if size > self.file.size - self.at:
            raise self.bad(f"{what} takes {size} bytes at {self.at}, the file has {self.file.size}")

    def take(self, size: int, what: str) -> bytes:
        first = self.at - self.window_start
        if first + size > len(self.window):
            self.need(size, what)
            self.window = self.file.read(min(max(size, WINDOW), self.file.size - self.at), self.at)
            self.window_start, first = self.at, 0
        self.at += size
        return self.window[first : first + size]

    def number(self, kind: str, what: str) -> int:
        (value,) = struct.unpack("<" + kind, self.take(struct.calcsize(kind), what))
        return value

    def count(self, least: int, most: int, what: str) -> int:
        """A 64-bit count of things that take at least `least` bytes each."""
        value = self.number("Q", what)
        if value > most:
            raise self.bad(f"{value} {what}, at most {most} are accepted")
        self.need(value * least, f"{value} {what}")
        return value

    def text(self, what: str, most: int = MAX_TEXT) -> str:
        size = self.number("Q", what)
        if size > most:
            raise self.bad(f"{what} has {size} bytes, at most {most} are accepted")
        # Tokens need not be UTF-8; whoever uses a value refuses the surrogates that mark such bytes.
        return self.take(size, what).decode("utf-8", "surrogateescape")

    def header(self) -> GgufHeader:
        if self.take(4, "the magic") != MAGIC:
            raise self.bad("not a GGUF file")
        version = self.number("I", "the version")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            raise ParetobitError(
                f"{self.path}: " + ("a big-endian GGUF" if swapped else f"GGUF version {version}"),
                hint="versions 2 and 3, little-endian, are read: convert the model again",
            )
        tensors = self.count(8 + 4 + 8 + 4 + 8, MAX_TENSORS, "tensors")
        pairs = self.count(8 + 4 + 1, MAX_KEYS, "metadata keys")
        metadata: dict[str, object] = {}
        for _ in range(pairs):
            key = self.text("a metadata key", MAX_NAME)
            if key in metadata:
                raise self.bad(f"metadata key {key[:100]!r} stands twice")
            metadata[key] = self.value(self.number("I", "a value type"), key, 0)
        return GgufHeader(version, metadata, self.tensors(tensors, metadata.get("general.alignment", 32)))

    def value(self, kind: int, key: str, depth: int) -> object:
        if kind == STRING:
            return self.text(f"{key[:100]!r}")
        if kind == ARRAY:
            return self.array(key, depth + 1)
        if kind not in SCALARS:
            raise self.bad(f"{key[:100]!r} has the unknown value type {kind}")
        value = self.scalars(kind, 1, key)[0]
        return bool(value) if kind == BOOL else value.item()

    def scalars(self, kind: int, count: int, key: str) -> np.ndarray:
        dtype = SCALARS[kind]
        values = np.frombuffer(self.take(count * dtype.itemsize, f"{key[:100]!r}"), dtype)
        if kind == BOOL:
            if values.size and values.max() > 1:
                raise self.bad(f"{key[:100]!r} holds a bool that is neither 0 nor 1")
            return values.astype(bool)
        return values

    def array(self, key: str, depth: int) -> object:
        if depth > MAX_DEPTH:
            raise self.bad(f"{key[:100]!r} nests arrays more than {MAX_DEPTH} deep")
        kind, what = self.number("I", "an array's type"), f"entries in {key[:100]!r}"
        if kind in (STRING, ARRAY):
            count = self.count(8 if kind == STRING else 12, self.strings_left, what)
            self.strings_left -= count
            if kind == STRING:
                return [self.text(key) for _ in range(count)]
            return [self.array(key, depth + 1) for _ in range(count)]
        if kind not in SCALARS:
            raise self.bad(f"{key[:100]!r} has the unknown array type {kind}")
        return self.scalars(kind, self.count(SCALARS[kind].itemsize, MAX_NUMBERS, what), key)

    def tensors(self, count: int, alignment: object) -> dict[str, GgufTensor]:
        if type(alignment) is not int or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise self.bad(f"general.alignment is {alignment!r}, a power of two is needed")
        described = [self.tensor() for _ in range(count)]
        data = self.at + -self.at % alignment
        tensors: dict[str, GgufTensor] = {}
        expected = 0
        for name, shape, kind, offset in described:
            type_name, block, block_bytes = self.type_of(kind, name)
            if name in tensors:
                raise self.bad(f"tensor {name[:100]!r} stands twice")
            if shape[-1] % block:
                raise self.bad(f"tensor {name[:100]!r} has rows of {shape[-1]}, {type_name} packs {block} values")
            if offset != expected:
                raise self.bad(f"tensor {name[:100]!r} starts at {offset}, {expected} was expected (overlap or hole)")
            nbytes = math.prod(shape) // block * block_bytes
            if data + offset + nbytes > self.file.size:
                raise self.bad(
                    f"tensor {name[:100]!r} {shape} ends at {data + offset + nbytes}, the file at {self.file.size}"
                )
            tensors[name] = GgufTensor(name, shape, type_name, block, block_bytes, data + offset, nbytes)
            expected = offset + nbytes + -nbytes % alignment
        return tensors

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """(name, shape with rows first, type number, offset in the data) of the next description."""
        name = self.text("a tensor name", MAX_NAME)
        dims = self.number("I", "a number of dimensions")
        if not 1 <= dims <= MAX_DIMS:
            raise self.bad(f"tensor {name[:100]!r} has {dims} dimensions")
        shape = tuple(self.number("Q", "a dimension") for _ in range(dims))[::-1]
        if not all(1 <= n <= 1 << 40 for n in shape):
            raise self.bad(f"tensor {name[:100]!r} has the impossible shape {shape}")
        return name, shape, self.number("I", "a tensor type"), self.number("Q", "a tensor offset")

    def type_of(self, kind: int, name: str) -> tuple[str, int, int]:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            known = GGMLQuantizationType(kind)
            return known.name, *GGML_QUANT_SIZES[known]
        except (ValueError, KeyError):
            raise ParetobitError(
                f"{self.path}: tensor {name[:100]!r} has the unknown type {kind}",
                hint="the file is damaged, or made by a fork with types of its own: convert the model again",
            ) from None
