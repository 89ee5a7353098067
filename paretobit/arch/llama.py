"""Llama 1–3 and everything published under `model_type: llama` (SmolLM2, TinyLlama, Yi …)."""

from __future__ import annotations

from paretobit.arch.spec import Family

FAMILY = Family(
    model_type="llama",
    gguf="llama",
    defaults={
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e4,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
    },
    small_kv=True,
    gguf_permuted=True,
)
