"""Qwen 2 and 2.5: biases on q, k and v; upper layers with a sliding window, if `use_sliding_window`."""

from __future__ import annotations

from paretobit.arch.spec import Family

FAMILY = Family(
    model_type="qwen2",
    gguf="qwen2",
    defaults={
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e4,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    qkv_bias=True,
    windows="some",
    small_kv=True,
)
