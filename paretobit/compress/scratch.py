"""A model that knows nothing yet: a small llama with random weights, and a tokenizer of bytes or trained on the data.

Weights are drawn as GPT-2's were (Radford et al. 2019): deviation 0.02, and 1/√(2 · layers) of it where a block adds to
the residual stream, so that depth does not amplify.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from paretobit.arch import resolve
from paretobit.errors import ParetobitError
from paretobit.evals.text import read_text
from paretobit.work import cache_folder, disk_errors, read_json

SMALL: Mapping[str, object] = {
    "model_type": "llama", "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": True,
}  # fmt: skip
BYTES, END = 257, "<|endoftext|>"  # a vocabulary of bytes and an end
SPREAD = 0.02
ADDS = ("o_proj.weight", "down_proj.weight")


def completed(config: Mapping[str, object]) -> dict[str, object]:
    """A config with what it leaves open: SMALL's values, heads that share no keys, the usual width of an MLP."""
    found = {**SMALL, **config}
    width, heads = found["hidden_size"], found["num_attention_heads"]
    if type(width) is not int or type(heads) is not int or width < 1 or heads < 1:
        raise ParetobitError("hidden_size or num_attention_heads is no positive number", hint="mend the config")
    found.setdefault("num_key_value_heads", heads)
    found.setdefault("intermediate_size", 32 * math.ceil(width * 8 / 3 / 32))
    found.setdefault("vocab_size", BYTES)
    return found


def create(config_file: Path, data: Path, seed: int) -> Path:
    """A Hugging Face folder in the cache with the model that `config_file` describes; the same call finds it again.

    vocab_size above 257 gets a byte-level BPE trained on the text of `data`. Raises ParetobitError on a bad config.
    """
    config = completed(read_json(config_file))
    arch, text = resolve(config), read_text(data)
    if arch.vocab < BYTES:
        raise ParetobitError(f"{config_file}: vocab_size {arch.vocab} holds not every byte", hint=f"{BYTES} or more")
    of_text = sha256(text.encode()).hexdigest() if arch.vocab > BYTES else ""
    name = sha256(json.dumps([config, seed, of_text], sort_keys=True).encode()).hexdigest()[:24]
    folder = cache_folder() / "scratch" / name
    if folder.is_dir():
        return folder
    from paretobit.tensorfile import write_arrays

    beside = folder.with_name(f"{name}.partial")
    with disk_errors(folder):
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        tokenizer = _tokenizer(text, arch.vocab)
        end = tokenizer.token_to_id(END)
        config |= {"eos_token_id": end, "bos_token_id": end, "architectures": ["LlamaForCausalLM"]}
        (beside / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True))
        tokenizer.save(str(beside / "tokenizer.json"))
        facts = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "add_bos_token": False}
        (beside / "tokenizer_config.json").write_text(json.dumps(facts, indent=1))
        write_arrays(beside / "model.safetensors", weights(arch, seed))
        beside.rename(folder)
    return folder


def weights(arch: Any, seed: int) -> dict[str, np.ndarray]:
    """float32 by name; norms 1 (0 where the architecture adds 1 itself)."""
    random, found = np.random.default_rng(seed), {}
    for name, shape in arch.shapes().items():
        if name.endswith("norm.weight"):
            found[name] = np.full(shape, 1 - arch.norm_offset, np.float32)
        elif len(shape) == 1:
            found[name] = np.zeros(shape, np.float32)
        else:
            deviation = SPREAD / math.sqrt(2 * arch.layers) if name.endswith(ADDS) else SPREAD
            found[name] = random.standard_normal(shape, np.float32) * np.float32(deviation)
    return found


def _tokenizer(text: str, vocab: int) -> Any:
    """Byte-level: of bytes alone, or with merges learned from the text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator([text] if vocab > BYTES else [], trainer)
    return tokenizer
