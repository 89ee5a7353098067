"""A llama of any size with random weights, as a Hugging Face folder in bf16: for speed and memory, not for quality.

    python bench/make_model.py OUT [--layers 22 --hidden 2048 --inter 5632 --heads 32 --kv-heads 4]

The defaults make 1.07 billion parameters (vocabulary 49,152, tied). Tensors are drawn and written one at a time.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from paretobit import open_model
from paretobit.arch import resolve
from paretobit.artifact import float_arrays
from paretobit.scheme import parse
from paretobit.tensorfile import TensorWriter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    for name, default in (
        ("layers", 22),
        ("hidden", 2048),
        ("inter", 5632),
        ("heads", 32),
        ("kv-heads", 4),
        ("seed", 0),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--tokenizer-of", default="demo:smollm2", help="the model whose tokenizer and vocabulary to take"
    )
    given = parser.parse_args()
    donor = open_model(given.tokenizer_of)
    config = {
        "model_type": "llama", "hidden_size": given.hidden, "intermediate_size": given.inter,
        "vocab_size": donor.arch.vocab,
        "num_hidden_layers": given.layers, "num_attention_heads": given.heads, "num_key_value_heads": given.kv_heads,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
    }  # fmt: skip
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "config.json").write_text(json.dumps(config, indent=1))
    for name, content in donor.companions.items():
        (given.out / name).write_bytes(content)
    random, bf16, shapes = np.random.default_rng(given.seed), parse("bf16"), resolve(config).shapes()
    entries = {name: ("BF16", shape) for name, shape in shapes.items()}
    with TensorWriter(given.out / "model.safetensors", entries, {"format": "pt"}) as writer:
        for name, shape in shapes.items():
            values = np.ones(shape) if len(shape) == 1 else 0.02 * random.standard_normal(shape, np.float32)
            writer.write(name, float_arrays(values.astype(np.float32), bf16)[1])
    print(f"{given.out}: {sum(int(np.prod(shape)) for shape in shapes.values()):,} parameters")


if __name__ == "__main__":
    main()
