"""Where packed models go: one file a format, called like it. A format refuses what it cannot hold exactly.

A format's file has, beside helpers of its own:

- `DTYPES`: what the tensors that it does not quantize can be stored as, the default first;
- `SUFFIX`: how the name of its file ends, "" where it writes a folder;
- `holds(packed, request) -> {name: Stored}`: how it would store every tensor, decided from schemes and shapes alone;
- `write(packed, path, stored, request)`: the export, at a path where nothing is yet;
- where our own readers do not read it, `logits(path, packed)`: what computes from it, for measuring;
- `INT8 = True` where it can have static 8-bit activations.

Formats read tensors one at a time: memory is bounded by the largest of them.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from paretobit.errors import ParetobitError

if TYPE_CHECKING:
    from paretobit.artifact import Artifact


@dataclass(frozen=True)
class Stored:
    """How a format stores one tensor. kind: the format's own name of that.

    loss: why it is another rounding, which is done with --lossy only, empty where every value survives;
    note: what is worth saying all the same.
    """

    kind: str
    loss: str = ""
    note: str = ""


@dataclass(frozen=True)
class Request:
    """What the user asked for. dtype: one of the format's DTYPES; int8: whether activations are to be static int8;
    bits: the least of what is rounded once more.

    ranges: the largest magnitude of the activations at every tap, for these; `holds` does without.
    """

    dtype: str
    int8: bool = False
    bits: int = 0
    ranges: Mapping[str, float] = field(default_factory=dict)


class Format(Protocol):
    DTYPES: tuple[str, ...]
    SUFFIX: str

    def holds(self, packed: Artifact, request: Request) -> dict[str, Stored]: ...

    def write(self, packed: Artifact, path: Path, stored: Mapping[str, Stored], request: Request) -> None: ...


def names() -> list[str]:
    """The formats there are, as --to spells them."""
    modules = (info.name for info in pkgutil.iter_modules(__path__))
    return [name.replace("_", "-") for name in modules if hasattr(_module(name), "SUFFIX")]


def find(name: str) -> Format:
    """Raises ParetobitError on a format that there is not."""
    if name not in names():
        raise ParetobitError(f"--to {name} is unknown", hint=f"choose from {', '.join(names())}")
    return cast(Format, _module(name.replace("-", "_")))


def _module(name: str) -> object:
    return importlib.import_module(f"{__name__}.{name}")
