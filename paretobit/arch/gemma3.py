"""Gemma 3, the text model: four norms a block, norms around one, five local layers to each global one.

Local layers see a sliding window and rotate with a base of their own. Published configs leave most sizes out.
"""

from __future__ import annotations

from paretobit.arch.spec import Family

FAMILY = Family(
    model_type="gemma3_text",
    aliases=("gemma3",),
    gguf="gemma3",
    defaults={
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
    },
    qk_norm=True,
    post_norms=True,
    norm_offset=1.0,
    scale_embedding=True,
    windows="some",
    small_kv=True,
    gguf_rename={
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
)
