"""What the formats that are a Hugging Face folder share: config.json, the files beside it, tensors as floats."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from paretobit.artifact import float_arrays
from paretobit.checkpoint.base import Checkpoint
from paretobit.scheme import parse
from paretobit.work import write_atomically

KINDS = {"float32": ("fp32", "F32"), "float16": ("fp16", "F16"), "bfloat16": ("bf16", "BF16")}
MARK = "quantized_by"  # in config.json: what tells an export, which may be replaced, from somebody's model
CLASSES = {"gemma3_text": "Gemma3ForCausalLM"}  # others are called like their model_type, then ForCausalLM


def plain_config(source: Checkpoint, dtype: str, **more: object) -> dict[str, object]:
    """config.json of the text model with its weights in `dtype`; what speaks of another storage goes."""
    text = source.config.get("text_config")
    config = {**source.config, **text} if isinstance(text, dict) else dict(source.config)
    for name in ("text_config", "vision_config", "quantization_config", "dtype", "torch_dtype", "_name_or_path"):
        config.pop(name, None)
    kind, arch = source.arch.model_type, source.arch
    named = CLASSES.get(kind, f"{kind.capitalize()}ForCausalLM")
    facts = {
        MARK: "paretobit",
        "model_type": kind,
        "architectures": [named],
        "tie_word_embeddings": arch.tied,
        "torch_dtype": dtype,
    }
    return {**config, **facts, **more}


def write_documents(folder: Path, source: Checkpoint, config: Mapping[str, object]) -> None:
    """config.json, tokenizer, template and licence."""
    write_atomically(folder / "config.json", (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
    for name, content in sorted(source.companions.items()):
        write_atomically(folder / name, content)


def stored_as(dtype: str) -> str:
    """How a safetensors file calls it."""
    return KINDS[dtype][1]


def words(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values as the file holds them. Raises ParetobitError where they do not fit."""
    return float_arrays(values, parse(KINDS[dtype][0]))[1]
