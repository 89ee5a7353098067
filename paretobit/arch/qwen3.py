"""Qwen 3 (dense): RMSNorm on every head of q and k before the rotation, and heads of their own width."""

from __future__ import annotations

from paretobit.arch.spec import Family

FAMILY = Family(
    model_type="qwen3",
    gguf="qwen3",
    defaults={
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e4,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
        "head_dim": 128,
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    qk_norm=True,
    windows="some",
    small_kv=True,
)
