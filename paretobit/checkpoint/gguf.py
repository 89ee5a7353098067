"""A GGUF file as a checkpoint: tensors dequantized by rows, config.json and tokenizer files recovered from metadata."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np

from paretobit.arch import resolve
from paretobit.arch.spec import Arch
from paretobit.checkpoint.base import Checkpoint, hash_files
from paretobit.checkpoint.gguf_config import ROPE_FREQS, canonical, config_of
from paretobit.checkpoint.gguf_header import GgufTensor, read_header
from paretobit.errors import ParetobitError
from paretobit.tensorfile import DAMAGED, RegularFile, finite, row_range

VALUES_AT_ONCE = 1 << 18  # dequantized at a time: stays in the caches, and bounds the memory beside the result


class GgufCheckpoint(Checkpoint):
    """One GGUF file with a whole decoder. Its values are the dequantized ones: what llama.cpp computes with.

    Raises ParetobitError on a damaged file, an unknown architecture, and tensors missing, extra or misshapen.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path = Path(path)
        self.name = name or self.path.name
        _require_gguf(self.path)
        self._file = RegularFile(self.path)
        self.header = read_header(self._file)
        rope = self.header.tensors.get(ROPE_FREQS)
        self.config, self.family = config_of(
            self.header, self.path, None if rope is None else self._values(rope, ROPE_FREQS, 0, 1)
        )
        self.arch: Arch = resolve(self.config)
        self._where = self._map_names()

    def _map_names(self) -> dict[str, GgufTensor]:
        shapes = self.arch.shapes()
        where: dict[str, GgufTensor] = {}
        for stored, tensor in self.header.tensors.items():
            ours = canonical(stored, self.family)
            if ours in shapes:
                where[ours] = tensor
            elif stored != ROPE_FREQS:
                raise ParetobitError(
                    f"{self.path}: tensor {stored[:100]} is not part of a {self.arch.model_type} "
                    f"of {self.arch.layers} layers",
                    hint="only plain decoders are read: no experts, adapters, fused projections or vision parts",
                )
        for name, shape in shapes.items():
            if name not in where:
                raise ParetobitError(f"{self.path}: tensor {name} is missing", hint=DAMAGED)
            if where[name].shape != shape:
                raise ParetobitError(
                    f"{self.path}: {where[name].name} has shape {where[name].shape}, the metadata call for {shape}",
                    hint=DAMAGED,
                )
        return where

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        tensor = self._where[name]
        first, end = row_range(name, tensor.shape, rows)
        if self.family.gguf_permuted and (heads := self._rotated(name)):
            values = self._unpermuted(tensor, name, first, end, heads)
        elif len(tensor.shape) == 1:
            values = self._values(tensor, name, 0, 1)[first:end]
        else:
            values = self._values(tensor, name, first, end)
        if self.family.norm_offset and name.endswith("norm.weight"):
            values = values - np.float32(self.family.norm_offset)  # llama.cpp's converter bakes it in
        return np.ascontiguousarray(values)

    def _rotated(self, name: str) -> int:
        """Heads of a projection whose rows the rotary embedding turns, 0 for any other tensor."""
        return {"q_proj": self.arch.heads, "k_proj": self.arch.kv_heads}.get(name.split(".")[-2], 0)

    def _unpermuted(self, tensor: GgufTensor, name: str, first: int, end: int, heads: int) -> np.ndarray:
        """Rows first…end of a q or k projection in Hugging Face's order.

        llama.cpp rotates neighbouring channels, Hugging Face channels half a head apart; its converter (`permute` of
        LlamaModel) moves row s·d/2 + j of each head of width d to row 2j + s. Heads are read whole and put back.
        """
        width = self.arch.head_dim
        if len(tensor.shape) == 1:
            whole = self._values(tensor, name, 0, 1)
            return whole.reshape(heads, width // 2, 2).swapaxes(1, 2).reshape(-1)[first:end]
        out = np.empty((end - first, tensor.shape[1]), np.float32)
        for head in range(first // width, -(-end // width)):
            at = head * width
            values = (
                self._values(tensor, name, at, at + width).reshape(width // 2, 2, -1).swapaxes(0, 1).reshape(width, -1)
            )
            low, high = max(first, at), min(end, at + width)
            out[low - first : high - first] = values[low - at : high - at]
        return out

    def _values(self, tensor: GgufTensor, name: str, first: int, end: int) -> np.ndarray:
        """float32 rows first…end of a stored tensor, called `name` in messages; a vector is one row, and comes flat."""
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        kind = GGMLQuantizationType[tensor.type_name]
        columns = tensor.shape[-1]
        out = np.empty((end - first) * columns, np.float32)
        step = max(1, VALUES_AT_ONCE // tensor.block)  # blocks are independent of each other, so rows do not matter
        start, blocks = tensor.start + first * tensor.row_bytes, out.size // tensor.block
        for at in range(0, blocks, step):
            count = min(step, blocks - at)
            raw = self._file.read(count * tensor.block_bytes, start + at * tensor.block_bytes)
            with np.errstate(all="ignore"):  # what is not finite is reported by name, not by numpy's warnings
                try:
                    values = dequantize(np.frombuffer(raw, np.uint8).reshape(1, -1), kind)
                except NotImplementedError:
                    raise ParetobitError(
                        f"{self.path}: tensor {tensor.name} is stored as {tensor.type_name}",
                        hint="this type cannot be read: convert the model to another one, such as Q8_0",
                    ) from None
            out[at * tensor.block : (at + count) * tensor.block] = finite(self.path, name, values).reshape(-1)
        return out.reshape((columns,) if len(tensor.shape) == 1 else (end - first, columns))

    @cached_property
    def hash(self) -> str:
        return hash_files([self.path])

    @cached_property
    def companions(self) -> dict[str, bytes]:
        from paretobit.checkpoint.gguf_tokenizer import recover

        return recover(self.header.metadata, self.name)


def _require_gguf(path: Path) -> None:
    """The gguf package decodes the quantized types; it is small, but not everybody's."""
    try:
        import gguf.quants  # noqa: F401
    except ImportError:
        raise ParetobitError(f"{path}: reading GGUF files needs the gguf package", hint="pip install gguf") from None
