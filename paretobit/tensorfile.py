"""Safetensors files: a strict reader that allocates nothing before the header is proven, and a streaming writer.

Format: 8 bytes little-endian header length, a JSON object {name: {dtype, shape, data_offsets}}, then the tensors'
bytes without holes, as the safetensors project describes it. bf16 travels as uint16 words: numpy has no such type.
"""

from __future__ import annotations

import json
import math
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np

from paretobit.errors import ParetobitError
from paretobit.work import disk_errors, sync

DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype("u1"), "U8": np.dtype("u1"), "I8": np.dtype("i1"), "F8_E4M3": np.dtype("u1"),
    "F8_E5M2": np.dtype("u1"), "U16": np.dtype("<u2"), "I16": np.dtype("<i2"), "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"), "U32": np.dtype("<u4"), "I32": np.dtype("<i4"), "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"), "I64": np.dtype("<i8"), "F64": np.dtype("<f8"),
}  # fmt: skip
FLOAT_DTYPES = ("F32", "F16", "BF16")
MAX_HEADER = 100_000_000  # the cap of the format's reference reader
MAX_RANK = 32  # numpy takes no more than this in all its versions
ALIGNMENT = 64  # the writer starts the data on a cache line, so that mapped tensors may be read with vector loads
CHUNK = 1 << 24  # bytes converted at a time: bounds the working memory beside the result

DAMAGED = "the file is damaged: make or fetch it again"


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: bytes start…end of the data that follows the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class RegularFile:
    """A file descriptor that reads by position (pread), so threads may share it. Refuses anything but regular files:
    a named pipe in a model folder must not hang the reader."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        with disk_errors(self.path):
            self._handle = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        status = os.fstat(self._handle)
        if not stat.S_ISREG(status.st_mode):
            os.close(self._handle)
            self._handle = -1
            raise ParetobitError(f"{self.path} is not a regular file", hint="name a model file")
        self.size = status.st_size

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` (bytes) from `offset`. Raises ParetobitError when the file ends before."""
        done = 0
        while done < len(buffer):
            try:
                got = os.preadv(self._handle, [buffer[done:]], offset + done)
            except OSError as why:
                raise ParetobitError(f"{self.path}: {why.strerror}", hint="check the disk") from None
            if got == 0:
                raise ParetobitError(
                    f"{self.path} ends at byte {offset + done}, {offset + len(buffer)} were expected",
                    hint=DAMAGED,
                )
            done += got

    def read(self, size: int, offset: int) -> bytes:
        """`size` bytes from `offset`; the caller has checked that the file holds them."""
        if size < 0 or offset < 0 or offset + size > self.size:
            raise ParetobitError(f"{self.path} has {self.size} bytes, {offset + size} were expected", hint=DAMAGED)
        buffer = bytearray(size)
        self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def __del__(self) -> None:
        if getattr(self, "_handle", -1) >= 0:
            os.close(self._handle)


def row_range(name: str, shape: tuple[int, ...], rows: slice | None) -> tuple[int, int]:
    """(first, end) rows that `rows` selects of a tensor of `shape`; steps are refused."""
    if rows is None:
        return 0, shape[0] if shape else 1
    if not shape or rows.step not in (None, 1):
        raise ValueError(f"{name}: rows of shape {shape} cannot be sliced by {rows}")
    first, end, _ = rows.indices(shape[0])
    return first, max(first, end)


class SafetensorsFile:
    """One safetensors file, opened and checked. Raises ParetobitError on anything the format does not allow.

    tensors: name -> TensorInfo, in file order; metadata: the header's free text.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._file = RegularFile(self.path)
        header = self._header()
        self.metadata: dict[str, str] = self._metadata(header.pop("__metadata__", {}))
        tensors = {name: self._tensor(name, entry) for name, entry in header.items()}
        self.tensors = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)))
        self._check_layout()

    def _bad(self, what: str) -> ParetobitError:
        return ParetobitError(f"{self.path}: {what}", hint=DAMAGED)

    def _header(self) -> dict:
        size = self._file.size
        if size < 8:
            raise self._bad(f"{size} bytes are no safetensors file")
        (length,) = struct.unpack("<Q", self._file.read(8, 0))
        if length > min(MAX_HEADER, size - 8):
            raise self._bad(f"the header claims {length} bytes, the file has {size}")
        self.data_start = 8 + length
        self.data_size = size - self.data_start
        text = self._file.read(length, 8)
        if not text.startswith(b"{"):
            raise self._bad("the header does not start with '{'")
        try:
            header = json.loads(text.decode("utf-8"), object_pairs_hook=self._pairs)
        except (ValueError, RecursionError) as why:
            raise self._bad(f"the header is not valid JSON ({why})") from None
        if not isinstance(header, dict):
            raise self._bad("the header is not an object")
        return header

    def _pairs(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name stands twice")
        return found

    def _metadata(self, value: object) -> dict[str, str]:
        if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
            raise self._bad("__metadata__ is not an object of strings")
        return value

    def _tensor(self, name: str, entry: object) -> TensorInfo:
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise self._bad(f"tensor {name[:100]!r} is not described by dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise self._bad(f"tensor {name[:100]!r} has the unknown dtype {str(dtype)[:20]!r}")
        if not _counts(shape) or len(shape) > MAX_RANK:
            raise self._bad(f"tensor {name[:100]!r} has the impossible shape {str(shape)[:80]}")
        if not _counts(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= self.data_size:
            raise self._bad(
                f"tensor {name[:100]!r} lies at {str(offsets)[:80]}, outside {self.data_size} bytes of data"
            )
        # Zero-sized tensors must not smuggle in dimensions whose strides overflow.
        if math.prod(max(n, 1) for n in shape) * DTYPES[dtype].itemsize >= 1 << 62:
            raise self._bad(f"tensor {name[:100]!r} has the impossible shape {str(shape)[:80]}")
        if offsets[1] - offsets[0] != math.prod(shape) * DTYPES[dtype].itemsize:
            raise self._bad(f"tensor {name[:100]!r} ({dtype}, {shape}) does not take {offsets[1] - offsets[0]} bytes")
        return TensorInfo(dtype, tuple(shape), offsets[0], offsets[1])

    def _check_layout(self) -> None:
        at = 0
        for name, info in self.tensors.items():
            if info.start != at:
                raise self._bad(f"tensor {name[:100]!r} starts at {info.start}, {at} was expected (overlap or hole)")
            at = info.end
        if at != self.data_size:
            raise self._bad(f"{self.data_size - at} bytes belong to no tensor")

    def read_raw(self, name: str, rows: slice | None = None) -> np.ndarray:
        """The stored values of `rows` (all by default) of the first axis, read by pread into a fresh array."""
        info = self.tensors[name]
        first, end = row_range(name, info.shape, rows)
        row_shape = info.shape[1:]
        row_bytes = math.prod(row_shape) * DTYPES[info.dtype].itemsize
        out = np.empty((end - first, *row_shape) if info.shape else (), DTYPES[info.dtype])
        if out.nbytes:
            view = out.reshape(-1).view(np.uint8).data
            self._file.read_into(view, self.data_start + info.start + first * row_bytes)
        return out

    def read_float32(self, name: str, rows: slice | None = None) -> np.ndarray:
        """float32 values of `rows`; working memory beside the result stays below a few CHUNKs.

        Raises ParetobitError on a dtype other than F32, F16, BF16 and on values that are not finite.
        """
        info = self.tensors[name]
        if info.dtype not in FLOAT_DTYPES:
            raise ParetobitError(
                f"{self.path}: {name} is stored as {info.dtype}",
                hint="paretobit reads float32, float16 and bfloat16 weights; give it the model before quantization",
            )
        if not info.shape:
            return finite(self.path, name, to_float32(info.dtype, self.read_raw(name)))
        first, end = row_range(name, info.shape, rows)
        out = np.empty((end - first, *info.shape[1:]), np.float32)
        step = max(1, CHUNK // max(1, 4 * math.prod(info.shape[1:])))
        for at in range(first, end, step):
            to = min(at + step, end)
            out[at - first : to - first] = finite(
                self.path, name, to_float32(info.dtype, self.read_raw(name, slice(at, to)))
            )
        return out

    def map(self, name: str) -> np.ndarray:
        """A read-only view of the tensor's bytes in the page cache; nothing is read before it is touched."""
        info = self.tensors[name]
        start = self.data_start + info.start
        return self._mapped[start : start + info.end - info.start].view(DTYPES[info.dtype]).reshape(info.shape)

    @cached_property
    def _mapped(self) -> np.ndarray:  # (size,) uint8
        """The whole file: one mapping serves all tensors, since each takes a system call and an address range."""
        return np.asarray(np.memmap(self.path, np.uint8, mode="r", shape=(self._file.size,)))


def _counts(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def to_float32(dtype: str, raw: np.ndarray) -> np.ndarray:
    """float32 from the stored words of an F32, F16 or BF16 tensor."""
    if dtype == "BF16":
        wide = raw.astype("<u4")
        wide <<= 16
        return wide.view("<f4")
    return raw.astype(np.float32, copy=False)


def finite(path: Path, name: str, values: np.ndarray) -> np.ndarray:
    """`values`, or a ParetobitError that names the tensor when one of them is infinite or not a number."""
    if not np.isfinite(values).all():
        raise ParetobitError(
            f"{path}: tensor {name} holds values that are not finite",
            hint="the training or conversion of this model went wrong: fetch or make it again",
        )
    return values


def header(entries: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """What stands before the tensors of a file that holds `entries`, name -> (dtype, shape), in this order."""
    facts: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    at = 0
    for name, (dtype, shape) in entries.items():
        end = at + math.prod(shape) * DTYPES[dtype].itemsize
        facts[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(facts, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


class TensorWriter:
    """Writes a safetensors file: the header first, then each tensor as it comes, in the order of `entries`.

    Works on `path.partial`; a clean end of the `with` block syncs and renames it, an exception removes it. Equal
    entries, metadata and values give equal bytes. A tensor may come in pieces, first rows first.
    Raises ParetobitError on a full disk and ValueError on arrays that contradict `entries`.
    """

    def __init__(
        self,
        path: Path,
        entries: Mapping[str, tuple[str, tuple[int, ...]]],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.path = Path(path)
        self._partial = self.path.with_name(self.path.name + ".partial")
        self._entries = {name: (dtype, tuple(int(n) for n in shape)) for name, (dtype, shape) in entries.items()}
        self._order = iter(self._entries)
        self._name: str | None = None
        self._left = 0
        with disk_errors(self.path):
            self._out = open(self._partial, "wb")  # noqa: SIM115 (closed by close or abort)
        with self._cleaned():
            self._out.write(header(self._entries, metadata or {}))

    def write(self, name: str, array: np.ndarray) -> None:
        """Append `array` to tensor `name`: the whole of it, or its next rows."""
        with self._cleaned():
            if self._left == 0:
                self._advance(name)
            dtype, shape = self._entries[name]
            if name != self._name or array.dtype != DTYPES[dtype] or array.nbytes > self._left:
                raise ValueError(f"{name}: {array.dtype} {array.shape} does not go on {self._name} {dtype} {shape}")
            self._out.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            self._left -= array.nbytes

    def _advance(self, name: str) -> None:
        """Step to `name`, over tensors without bytes."""
        for expected in self._order:
            dtype, shape = self._entries[expected]
            self._name, self._left = expected, math.prod(shape) * DTYPES[dtype].itemsize
            if expected == name:
                return
            if self._left:
                break
        raise ValueError(f"{name} is out of order: {self._name} comes next")

    def close(self) -> None:
        """Check that every byte came, sync, and rename to the final path."""
        with self._cleaned():
            rest = [n for n in self._order if math.prod(self._entries[n][1])]
            if self._left or rest:
                raise ValueError(f"{self.path}: {self._name if self._left else rest[0]} is incomplete")
            self._out.flush()
            os.fsync(self._out.fileno())
            self._out.close()
            self._partial.rename(self.path)
            sync(self.path.parent)

    def abort(self) -> None:
        """Drop the unfinished file."""
        with suppress(OSError):  # what is still buffered does not fit on a full disk either
            self._out.close()
        with suppress(OSError):
            self._partial.unlink(missing_ok=True)

    @contextmanager
    def _cleaned(self) -> Iterator[None]:
        try:
            with disk_errors(self.path):
                yield
        except BaseException:
            self.abort()
            raise

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write `arrays` to a safetensors file, widest values first, so that each lies aligned; then by name.

    uint16 arrays are bf16 words: paretobit stores no other.
    """
    names = {kind: name for name, kind in DTYPES.items() if name not in ("BOOL", "F8_E4M3", "F8_E5M2", "U16")}
    order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    entries = {name: (names[arrays[name].dtype], arrays[name].shape) for name in order}
    with TensorWriter(path, entries) as writer:
        for name in entries:
            writer.write(name, arrays[name])
