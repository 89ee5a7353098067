"""A model as a GGUF file in 16 bits, for llama.cpp to quantize.

No tokenizer goes in: files are compared by the bytes of their weights, and speed needs token ids only.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paretobit.arch.resolve import known
from paretobit.checkpoint.base import Checkpoint
from paretobit.checkpoint.gguf_config import ROPE_FREQS
from paretobit.exporters.gguf import add, converted, metadata, rope_divisors, stored_name


def export(source: Checkpoint, path: Path) -> None:
    """Write `source` to `path`: matrices in fp16, vectors in fp32. Raises ParetobitError on a model that llama.cpp
    would compute otherwise."""
    import gguf

    writer = gguf.GGUFWriter(path, known()[source.arch.model_type].gguf)
    for key, value in {**metadata(source), "tokenizer.ggml.model": "none"}.items():
        add(writer, key, value)
    divisors = rope_divisors(source)
    names = source.names()
    if divisors is not None:
        writer.add_tensor_info(ROPE_FREQS, divisors.shape, divisors.dtype, divisors.nbytes)
    for tensor in names:
        shape = source.shape(tensor)
        dtype = np.dtype(np.float16 if len(shape) == 2 else np.float32)
        writer.add_tensor_info(stored_name(source, tensor), shape, dtype, int(np.prod(shape)) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if divisors is not None:
        writer.write_tensor_data(divisors)
    for tensor in names:
        values = converted(source, tensor)
        writer.write_tensor_data(values.astype(np.float16 if values.ndim == 2 else np.float32))
    writer.close()
