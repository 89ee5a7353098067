"""Mistral 7B and its kin: Llama's block with a sliding window on every layer, where config.json sets one."""

from __future__ import annotations

from paretobit.arch.spec import Family

FAMILY = Family(
    model_type="mistral",
    gguf="llama",
    defaults={
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e4,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    qkv_bias=False,
    windows="all",
    small_kv=True,
    gguf_permuted=True,
)
