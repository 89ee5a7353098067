"""inspect: what is in a packed model, tensor by tensor. Needs no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from paretobit.verbs.verb import Verb


@dataclass(frozen=True)
class Tensor:
    name: str
    shape: tuple[int, ...]
    scheme: str
    method: str
    bytes: int
    bits_per_weight: float


@dataclass(frozen=True)
class Contents:
    """tensors in model order; size_bytes: what computing logits needs; other_bytes: tokenizer, card, results;
    fallbacks: what is stored otherwise than asked, and why."""

    path: str
    tensors: tuple[Tensor, ...]
    size_bytes: int
    other_bytes: int
    bits_per_weight: float
    parameters: int
    fallbacks: tuple[dict[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def inspect_artifact(out: str) -> Contents:
    """List every tensor of a packed model: scheme, shape, bytes, bits per weight; totals; what fell back and why.

    Raises ParetobitError if OUT is not a packed model or is damaged.
    """
    import math
    from pathlib import Path

    from paretobit.artifact import Artifact

    made = Artifact(Path(out))
    rows = []
    for name in made.names():
        layer = made.plan.layers.get(name)
        shape, nbytes = made.shape(name), made.nbytes(name)
        method = layer.method if layer else "as it was"
        rows.append(Tensor(name, shape, str(made.schemes[name]), method, nbytes, 8 * nbytes / math.prod(shape)))
    return Contents(
        str(out), tuple(rows), made.size_bytes, made.other_bytes, made.bits_per_weight, made.parameters,
        tuple(made.manifest["fallbacks"]),
    )  # fmt: skip


def show(contents: Contents) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from paretobit.sizes import human

    table = Table("tensor", "shape", "scheme", "method", "bytes", "bits per weight", box=None)
    for t in contents.tensors:
        table.add_row(
            t.name,
            " × ".join(map(str, t.shape)),
            t.scheme,
            t.method,
            str(t.bytes),
            f"{t.bits_per_weight:.3f}",
        )
    total = (
        f"{human(contents.size_bytes)} ({contents.size_bytes} bytes) to compute logits, "
        f"{contents.bits_per_weight:.3f} bits per weight over all {contents.parameters} parameters; "
        f"{human(contents.other_bytes)} of tokenizer, card and results"
    )
    fell = [f"{f['name']}: {f['stored']} instead of {f['asked']} ({f['why']})" for f in contents.fallbacks]
    return Group(table, "", total, *(map(Text, fell) if fell else ["nothing is stored otherwise than asked"]))


VERB = Verb("inspect", inspect_artifact, show)
