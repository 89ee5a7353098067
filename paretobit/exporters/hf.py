"""A plain Hugging Face folder: every tensor dequantized, in the model's own basis, as float32 by default."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from paretobit.artifact import Artifact
from paretobit.exporters import Request, Stored
from paretobit.exporters.folder import KINDS, plain_config, stored_as, words, write_documents
from paretobit.exporters.steps import row_pieces
from paretobit.tensorfile import TensorWriter

DTYPES = tuple(KINDS)
SUFFIX = ""


def holds(packed: Artifact, request: Request) -> dict[str, Stored]:
    """Every value in float32; in 16 bits only what is stored in them already."""
    note = "" if request.dtype == "float32" else f"values are rounded to {request.dtype}, as asked"
    return {name: Stored(request.dtype, note=note) for name in packed.names()}


def write(packed: Artifact, path: Path, stored: Mapping[str, Stored], request: Request) -> None:
    path.mkdir()
    entries = {name: (stored_as(request.dtype), packed.shape(name)) for name in stored}
    with TensorWriter(path / "model.safetensors", entries, {"format": "pt"}) as writer:
        for name in entries:
            for rows in row_pieces(packed, name):
                writer.write(name, words(packed.read(name, rows), request.dtype))
    write_documents(path, packed, plain_config(packed, request.dtype))
