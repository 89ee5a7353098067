"""Tiny models for tests: random weights, a trained byte-level tokenizer, as a Hugging Face folder or a GGUF file.

The weights are multiples of 2^-7 in (-1, 1), plus 1 for norms: float32, float16 and bfloat16 hold them exactly, so
every storage must give back `tiny_weights(config)` to the bit.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np

from paretobit.arch import resolve
from paretobit.arch.spec import EMBED, FINAL_NORM, HEAD
from paretobit.tensorfile import TensorWriter

CORPUS = (
    "The capital of France is Paris. The capital of Italy is Rome. The river runs through the old town, and the people "
    "of the town walk along it in the evening. def area(width, height):\n    return width * height\n\n"
    "It was the best of times, it was the worst of times; 12 ships, 345 sails and 6,789 ropes. Le café est à côté. "
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@cache
def tiny_tokenizer() -> str:
    """tokenizer.json of a byte-level BPE with 300 tokens, trained on CORPUS, cut as SmolLM2 cuts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    return tokenizer.to_str()


def tiny_config(model_type: str = "llama", tied: bool = True, **changes: object) -> dict[str, object]:
    """A two-layer decoder, 64 wide, with the tokenizer's 300 tokens."""
    config: dict[str, object] = {
        "model_type": model_type,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 300,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if model_type.startswith("gemma3"):
        config |= {"query_pre_attn_scalar": 16, "sliding_window": 8, "rope_local_base_freq": 10000.0}
    return {**config, **changes}


def tiny_weights(config: dict[str, object], seed: int = 0) -> dict[str, np.ndarray]:
    """float32 values of every tensor of `config`, drawn in the order of its names."""
    rng = np.random.default_rng(seed)
    arch = resolve(config)
    weights = {}
    for name, shape in arch.shapes().items():
        values = np.clip(np.round(rng.standard_normal(shape) * 0.15 * 128), -127, 127) / 128
        around = 1.0 if name.endswith("norm.weight") and not arch.norm_offset else 0.0
        weights[name] = (np.round(values * 32) / 32 / 2 + around if values.ndim == 1 else values).astype(np.float32)
    return weights


def stored_words(values: np.ndarray, dtype: str) -> np.ndarray:
    """`values` as a safetensors file holds them: bf16 as uint16 words."""
    if dtype == "bfloat16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(dtype)


def tiny_llama_folder(
    path: Path,
    dtype: str = "float32",
    tied: bool = True,
    shards: int = 1,
    model_type: str = "llama",
    prefix: str = "",
    **changes: object,
) -> Path:
    """A Hugging Face folder at `path` (created) with config, weights in `dtype`, tokenizer, template. Returns `path`.

    shards > 1 adds an index file; `prefix` goes before every tensor's name; `changes` go into config.json.
    """
    path.mkdir(parents=True, exist_ok=True)
    config = tiny_config(model_type, tied, **changes)
    weights = tiny_weights(config)
    (path / "config.json").write_text(json.dumps(config, indent=1))
    names = list(weights)
    files = ["model.safetensors"]
    if shards > 1:
        files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
        index = {prefix + name: files[i % shards] for i, name in enumerate(names)}
        (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    for i, file in enumerate(files):
        mine = names[i :: len(files)]
        with TensorWriter(path / file, {prefix + n: (STORED[dtype], weights[n].shape) for n in mine}) as writer:
            for name in mine:
                writer.write(prefix + name, stored_words(weights[name], dtype))
    write_tokenizer(path)
    return path


def write_tokenizer(path: Path) -> None:
    """tokenizer.json and the small files beside it."""
    (path / "tokenizer.json").write_text(tiny_tokenizer())
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": SPECIAL[2], "bos_token": SPECIAL[1]}))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    (path / "chat_template.jinja").write_text(TEMPLATE)


GGUF_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GGUF_BLOCK_GEMMA3 = {
    **GGUF_BLOCK,
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def permute(weights: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k as a llama GGUF orders them: channel i is followed by its rotary partner, i + half."""
    head_dim = len(weights) // heads
    order = np.arange(head_dim).reshape(2, -1).T.reshape(-1)
    return weights[(head_dim * np.arange(heads)[:, None] + order).reshape(-1)]


def gguf_values(config: dict[str, object], weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """GGUF name -> values, permuted and offset as llama.cpp's converter does."""
    kind = str(config["model_type"])
    block = GGUF_BLOCK_GEMMA3 if kind.startswith("gemma3") else GGUF_BLOCK
    top = {EMBED: "token_embd.weight", FINAL_NORM: "output_norm.weight", HEAD: "output.weight"}
    values = {}
    for name, value in weights.items():
        if kind == "llama" and ".q_proj." in name:
            value = permute(value, int(config["num_attention_heads"]))
        if kind == "llama" and ".k_proj." in name:
            value = permute(value, int(config["num_key_value_heads"]))
        if kind.startswith("gemma3") and name.endswith("norm.weight"):
            value = value + 1
        if name not in top:
            _, _, layer, rest = name.split(".", 3)
            part, suffix = rest.rsplit(".", 1)
            values[f"blk.{layer}.{block[part]}.{suffix}"] = value
        else:
            values[top[name]] = value
    return values


def blocks(value: np.ndarray, qtype: str, seed: int = 0) -> np.ndarray:
    """`value` in `qtype`, as gguf.quants writes it; random valid blocks, uint8 (rows, bytes), where it cannot."""
    import gguf

    kind = gguf.GGMLQuantizationType[qtype]
    try:
        return gguf.quants.quantize(value, kind)
    except NotImplementedError:
        size, nbytes = gguf.GGML_QUANT_SIZES[kind]
        rng, count = np.random.default_rng(seed), value.size // size
        raw = rng.integers(0, 256, (4 * count + 64, nbytes), np.uint8)
        with np.errstate(all="ignore"):  # random float16 scales: one in 32 is infinite or not a number
            good = np.isfinite(gguf.quants.dequantize(raw, kind)).all(axis=1)
        return raw[good][:count].reshape(value.shape[0], -1)


def tiny_gguf(
    path: Path,
    qtype: str = "Q8_0",
    tied: bool = True,
    model_type: str = "llama",
    width: int = 64,
    extra: dict[str, object] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
) -> Path:
    """The same tiny model as a GGUF file: matrices in `qtype`, vectors in F32. Returns `path`.

    Types that gguf.quants cannot write hold random blocks. K types need width=256. `extra`: metadata to add or
    replace ({key: integer, float, bool, string or list}, None leaves a key out); `tensors`: more tensors, in F32.
    """
    import gguf

    inner = 256 if width == 256 else width * 3 // 2
    config = tiny_config(model_type, tied, hidden_size=width, intermediate_size=inner, head_dim=width // 4)
    name = "gemma3" if model_type.startswith("gemma3") else model_type
    writer = gguf.GGUFWriter(str(path), name)
    metadata: dict[str, object] = {
        f"{name}.block_count": 2,
        f"{name}.context_length": 512,
        f"{name}.embedding_length": width,
        f"{name}.feed_forward_length": inner,
        f"{name}.attention.head_count": 4,
        f"{name}.attention.head_count_kv": 2,
        f"{name}.attention.key_length": width // 4,
        f"{name}.attention.value_length": width // 4,
        f"{name}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{name}.rope.freq_base": 10000.0,
        **({f"{name}.attention.sliding_window": 8} if name == "gemma3" else {}),
        **_tokenizer_metadata(),
        **(extra or {}),
    }
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in metadata.items():
        if value is not None:
            add.get(type(value), writer.add_array)(key, value)
    kind = gguf.GGMLQuantizationType[qtype]
    for stored, values in gguf_values(config, tiny_weights(config)).items():
        if values.ndim == 1:
            writer.add_tensor(stored, values)
        else:
            writer.add_tensor(stored, blocks(values, qtype), raw_dtype=kind)
    for stored, values in (tensors or {}).items():
        writer.add_tensor(stored, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tokenizer_metadata() -> dict[str, object]:
    model = json.loads(tiny_tokenizer())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token in tokens],
        "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in model["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }
