"""What every source of a model offers: topology, tensors read by name and rows, and the small files beside them."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np

from paretobit.arch.spec import Arch
from paretobit.tensorfile import CHUNK, RegularFile

# Files beside the weights that travel with a model: what turns text into tokens and back, and how to generate.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
)


class Checkpoint(ABC):
    """A model on disk: a Hugging Face folder, a GGUF file or a packed artifact, opened but not read.

    name: what reports call it; arch: its topology; config: the content of a Hugging Face config.json.
    Tensors have Hugging Face names, the keys of `arch.shapes()`; the head of a tied model is its embedding.
    """

    name: str
    arch: Arch
    config: dict

    @property
    @abstractmethod
    def hash(self) -> str:
        """sha256 (hex) over the files that hold the tensors."""

    @property
    @abstractmethod
    def companions(self) -> dict[str, bytes]:
        """Content of the files named in COMPANIONS, as far as the model has them."""

    @abstractmethod
    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """float32 values of tensor `name`, or of `rows` of its first axis, C-contiguous and finite.

        Memory beside the result is bounded by the reader's chunk. Raises KeyError on an unknown name, ParetobitError
        on a file that is damaged or holds values that are not finite.
        """

    def names(self) -> list[str]:
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return self.arch.shapes()

    @property
    def parameters(self) -> int:
        """Values in all tensors, a tied matrix counted once."""
        return sum(math.prod(shape) for shape in self._shapes.values())

    @property
    def bits16(self) -> int:
        """Bytes of the model at 16 bits a parameter, the yardstick of every saving."""
        return 2 * self.parameters


def hash_files(paths: Iterable[Path]) -> str:
    """sha256 (hex) over the bytes of `paths`, one after the other."""
    digest = hashlib.sha256()
    buffer = bytearray(CHUNK)
    for path in paths:
        file = RegularFile(path)
        for at in range(0, file.size, CHUNK):
            part = memoryview(buffer)[: min(CHUNK, file.size - at)]
            file.read_into(part, at)
            digest.update(part)
    return digest.hexdigest()
