"""From GGUF metadata to the config.json of the same model, and from GGUF tensor names to Hugging Face's.

Key names and their meaning follow llama.cpp (gguf-py/gguf/constants.py, convert_hf_to_gguf.py). A key that changes
the function and has no place in a config is refused, never dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from paretobit.arch.resolve import families
from paretobit.arch.spec import EMBED, FINAL_NORM, HEAD, Family
from paretobit.checkpoint.gguf_header import GgufHeader
from paretobit.checkpoint.gguf_rope import rope_fields
from paretobit.errors import ParetobitError

EMBED_STORED, ROPE_FREQS = "token_embd.weight", "rope_freqs.weight"
TOP_NAMES = {EMBED_STORED: EMBED, "output_norm.weight": FINAL_NORM, "output.weight": HEAD}
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

# Keys that change the function: every value but these neutral ones is refused.
NEUTRAL: dict[str, tuple[object, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.causal": (True,),
    "attention.scale": (0.0,),
    "attention.temperature_scale": (0.0,),
    "logit_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "use_parallel_residual": (False,),
    "pooling_type": (0,),
}
GEMMA3_27B_LAYERS = 62  # the one Gemma 3 whose query scale is not its head's width, known by its depth


def config_of(header: GgufHeader, path: Path, rope_freqs: np.ndarray | None) -> tuple[dict[str, object], Family]:
    """The model's config.json and family. `rope_freqs`: the tensor of that name, where the file has one.

    Raises ParetobitError on an unknown architecture, contradicting values and traits that paretobit lacks.
    """
    keys = Keys(header.metadata, path)
    family = _family(keys)
    for name, neutral in NEUTRAL.items():
        value = keys.number(name, None)
        if value is not None and value not in neutral:
            raise keys.bad(name, value, "this trait is not supported; the model cannot be reproduced without it")
    if EMBED_STORED not in header.tensors or len(header.tensors[EMBED_STORED].shape) != 2:
        raise ParetobitError(f"{path}: no {EMBED_STORED} matrix", hint="name the file that holds the whole model")
    if (keys.number("split.count", 0, plain=True) or 0) > 1:
        raise ParetobitError(f"{path} is one part of several", hint="join them: llama-gguf-split --merge")
    heads = keys.number("attention.head_count")
    head_dim, hidden, layers = _head_dim(keys, heads), keys.number("embedding_length"), keys.number("block_count")
    config: dict[str, object] = {
        "model_type": family.model_type,
        "hidden_size": hidden,
        "intermediate_size": keys.number("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.number("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab_size": header.tensors[EMBED_STORED].shape[0],
        "max_position_embeddings": keys.number("context_length"),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "attention_bias": "blk.0.attn_output.bias" in header.tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in header.tensors,
    }
    config |= rope_fields(keys, head_dim, rope_freqs)
    config |= _windows(keys, family)
    if "query_pre_attn_scalar" in family.defaults:
        config["query_pre_attn_scalar"] = hidden // heads if layers == GEMMA3_27B_LAYERS else head_dim
    for name in ("bos", "eos"):
        token = keys.number(f"tokenizer.ggml.{name}_token_id", None, plain=True)
        if token is not None:
            config[f"{name}_token_id"] = token
    return config, family


class Keys:
    """Checked access to metadata; names without `plain` are those of the architecture ("llama.block_count")."""

    def __init__(self, metadata: Mapping[str, object], path: Path) -> None:
        self.metadata, self.path = metadata, path
        name = metadata.get("general.architecture")
        if not isinstance(name, str):
            raise ParetobitError(f"{path}: general.architecture is missing", hint="convert the model again")
        self.architecture = name

    def name(self, name: str) -> str:
        return f"{self.architecture}.{name}"

    def bad(self, name: str, value: object, hint: str) -> ParetobitError:
        return ParetobitError(f"{self.path}: {self.name(name)} is {str(value)[:80]}", hint=hint)

    def number(self, name: str, *default: Any, plain: bool = False) -> Any:
        """A number or bool; an array counts when all its entries agree. Raises without it and without `default`.

        float32 values come as the shortest decimal that rounds to them: 1e-05, not 9.999999747378752e-06.
        """
        key = name if plain else self.name(name)
        value = self.metadata.get(key)
        if isinstance(value, np.ndarray):
            if not value.size or (value != value[0]).any():
                raise ParetobitError(
                    f"{self.path}: {key} differs from layer to layer", hint="such models are not supported"
                )
            value = value[0].item()
        if value is None and default:
            return default[0]
        if not isinstance(value, int | float):
            raise ParetobitError(
                f"{self.path}: {key} " + ("is missing" if value is None else f"is {str(value)[:80]!r}, not a number"),
                hint="convert the model again",
            )
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def text(self, name: str, default: str) -> str:
        value = self.metadata.get(self.name(name), default)
        if not isinstance(value, str):
            raise self.bad(name, value, "a string is needed: convert the model again")
        return value


def _family(keys: Keys) -> Family:
    group = families().get(keys.architecture)
    if not group:
        raise ParetobitError(
            f"{keys.path}: the architecture {keys.architecture[:80]!r} is not known",
            hint=f"known are {', '.join(sorted(families()))}",
        )
    # Mistral's files call themselves llama; what tells them apart is the window on every layer.
    if keys.number("attention.sliding_window", 0):
        return next((family for family in group if family.windows != "none"), group[0])
    return group[0]


def _windows(keys: Keys, family: Family) -> dict[str, object]:
    window = keys.number("attention.sliding_window", 0)
    if not window:
        return {"sliding_window": None} if family.windows != "none" else {}
    if family.windows == "none":
        raise keys.bad("attention.sliding_window", window, f"{family.model_type} has no windows here")
    fields: dict[str, object] = {"sliding_window": window}
    if "use_sliding_window" in family.defaults:
        fields |= {"use_sliding_window": True, "max_window_layers": 0}
    if "rope_local_base_freq" in family.defaults:
        fields["rope_local_base_freq"] = keys.number("rope.freq_base_swa", family.defaults["rope_local_base_freq"])
    pattern = keys.metadata.get(keys.name("attention.sliding_window_pattern"))
    if isinstance(pattern, int) and "sliding_window_pattern" in family.defaults:
        fields["sliding_window_pattern"] = pattern
    elif isinstance(pattern, np.ndarray) and pattern.dtype == bool:
        fields["layer_types"] = ["sliding_attention" if local else "full_attention" for local in pattern.tolist()]
    elif pattern is not None:
        raise keys.bad("attention.sliding_window_pattern", pattern, "such a pattern is not supported")
    return fields


def _head_dim(keys: Keys, heads: object) -> int:
    """The width of a head: key_length, or what the heads share of the hidden size; values and rotation must agree."""
    hidden = keys.number("embedding_length")
    if type(heads) is not int or type(hidden) is not int or heads < 1:
        raise keys.bad("attention.head_count", heads, "a positive number of heads is needed: convert the model again")
    default = hidden // heads
    width = keys.number("attention.key_length", default)
    for name in ("attention.value_length", "rope.dimension_count"):
        if (value := keys.number(name, width)) != width:
            raise keys.bad(name, value, f"heads {width} wide need the same here; such models are not supported")
    return width


def block_names(family: Family) -> dict[str, str]:
    """GGUF block tensor ("attn_q") -> Hugging Face's ("self_attn.q_proj") of a family."""
    return {**BLOCK_NAMES, **family.gguf_rename}


def canonical(stored: str, family: Family) -> str | None:
    """Hugging Face's name of a GGUF tensor, None for one that is no weight of the model."""
    if stored in TOP_NAMES:
        return TOP_NAMES[stored]
    blk, _, rest = stored.partition(".")
    layer, _, rest = rest.partition(".")
    part, _, kind = rest.rpartition(".")
    ours = block_names(family).get(part)
    if blk != "blk" or not layer.isascii() or not layer.isdigit() or ours is None:
        return None
    return f"model.layers.{layer}.{ours}.{kind}"
