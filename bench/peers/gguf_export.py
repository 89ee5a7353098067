"""A model as a GGUF file in 16 bits, for llama.cpp to quantize: the inverse of paretobit's GGUF reader.

No tokenizer goes in: files are compared by the bytes of their weights, and speed needs token ids only. Llama and
Gemma 3 with plain rotary embeddings: what the comparisons use.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paretobit.arch.resolve import families
from paretobit.arch.spec import Family
from paretobit.checkpoint.base import Checkpoint
from paretobit.checkpoint.gguf_config import TOP_NAMES, block_names

EXPORTED = ("llama", "gemma3")


def export(source: Checkpoint, path: Path) -> None:
    """Write `source` to `path`: matrices in fp16, vectors in fp32. Ends the program on a model it cannot express."""
    import gguf

    name, family = gguf_family(source)
    writer = gguf.GGUFWriter(path, name)
    for key, value in metadata(source, name).items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"{name}.{key}", value)
    writer.add_string("tokenizer.ggml.model", "none")
    theirs = {canonical: stored for stored, canonical in TOP_NAMES.items()}
    theirs |= {ours: stored for stored, ours in block_names(family).items()}
    names = source.names()
    for tensor in names:
        dtype = np.float16 if len(source.shape(tensor)) == 2 else np.float32
        values = int(np.prod(source.shape(tensor)))
        writer.add_tensor_info(
            stored_name(tensor, theirs), source.shape(tensor), np.dtype(dtype), values * np.dtype(dtype).itemsize
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in names:
        values = converted(source, family, tensor)
        writer.write_tensor_data(values.astype(np.float16 if values.ndim == 2 else np.float32))
    writer.close()


def gguf_family(source: Checkpoint) -> tuple[str, Family]:
    """(GGUF architecture, family) of a model; ends the program on one that is not among EXPORTED."""
    for name in EXPORTED:
        for family in families()[name]:
            if family.model_type == source.arch.model_type:
                return name, family
    raise SystemExit(f"{source.name}: only {', '.join(EXPORTED)} are exported for the comparison")


def metadata(source: Checkpoint, name: str) -> dict[str, int | float]:
    """Keys of the architecture, without its name."""
    arch = source.arch
    found: dict[str, int | float] = {
        "context_length": arch.max_positions,
        "embedding_length": arch.hidden,
        "block_count": arch.layers,
        "feed_forward_length": arch.intermediate,
        "attention.head_count": arch.heads,
        "attention.head_count_kv": arch.kv_heads,
        "attention.key_length": arch.head_dim,
        "attention.value_length": arch.head_dim,
        "attention.layer_norm_rms_epsilon": float(arch.norm_eps),
        "rope.dimension_count": arch.head_dim,
        "vocab_size": arch.vocab,
    }
    for rope, window in zip(arch.ropes, arch.windows, strict=True):
        if rope.kind != "default":
            raise SystemExit(f"{source.name}: scaled rotary embeddings are not exported")
        found["rope.freq_base_swa" if window else "rope.freq_base"] = rope.theta
        if window:
            found["attention.sliding_window"] = window
    return found


def stored_name(tensor: str, theirs: dict[str, str]) -> str:
    """GGUF's name of a tensor."""
    if tensor in theirs:
        return theirs[tensor]
    _, _, layer, rest = tensor.split(".", 3)
    part, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{theirs[part]}.{kind}"


def converted(source: Checkpoint, family: Family, tensor: str) -> np.ndarray:
    """Values as llama.cpp's converter leaves them: rotated rows interleaved, what norms add to their weight added."""
    values = source.read(tensor)
    heads = {"q_proj": source.arch.heads, "k_proj": source.arch.kv_heads}.get(tensor.split(".")[-2])
    if family.gguf_permuted and heads:
        half = source.arch.head_dim // 2
        values = values.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(values.shape)
    if family.norm_offset and tensor.endswith("norm.weight"):
        values = values + np.float32(family.norm_offset)
    return np.ascontiguousarray(values)
