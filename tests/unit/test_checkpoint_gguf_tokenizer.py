"""Tokenizers recovered from GGUF metadata: equal to the original (byte level) and to SentencePiece's own algorithm."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from checkpoints import CORPUS, SPECIAL, TEMPLATE, tiny_gguf, tiny_tokenizer
from tokenizers import Tokenizer as Library

from paretobit.checkpoint import open_model
from paretobit.checkpoint.gguf_pretokenizers import PRETOKENIZERS
from paretobit.checkpoint.gguf_tokenizer import recover
from paretobit.errors import ParetobitError
from paretobit.runtime.tokenizer import Tokenizer

TEXTS = (
    "The capital of France is",
    "def area(width, height):\n\treturn  width*height   # 12.5 %\r\n\n\n",
    "Le café est à côté; naïve ünïcödé, 日本語のテキスト, Русский, 😀👨‍👩‍👧 e\u0301",
    "don't DON'T we'll 123456 3.14 a_b __init__  \u00a0\u2003x",
    "<|im_start|>user\nhi<|im_end|> <|endoftext|>",
    "",
    " ",
)


@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_equals_the_original(tmp_path: Path, text: str) -> None:
    recovered = Tokenizer(open_model(tiny_gguf(tmp_path / "m.gguf")).companions)
    original = Library.from_str(tiny_tokenizer())
    ids = recovered.encode(text)
    assert ids == original.encode(text).ids
    assert recovered.decode(ids, skip_special=False) == text


def test_companions_of_a_gguf(tmp_path: Path) -> None:
    files = open_model(tiny_gguf(tmp_path / "m.gguf")).companions
    assert list(files) == ["chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    assert files["chat_template.jinja"].decode() == TEMPLATE
    assert json.loads(files["tokenizer_config.json"])["eos_token"] == SPECIAL[2]
    assert json.loads(files["generation_config.json"])["eos_token_id"] == [2, 0]  # EOS, and <|endoftext|> by name


@pytest.mark.parametrize(("extra", "bos"), [(True, 1), (False, None)])
def test_add_bos_is_honoured(tmp_path: Path, extra: bool, bos: int | None) -> None:
    path = tiny_gguf(tmp_path / "m.gguf", extra={"tokenizer.ggml.add_bos_token": extra})
    tokenizer = Tokenizer(open_model(path).companions)
    assert tokenizer.bos_id == bos
    assert tokenizer.encode("a")[:-1] == ([1] if extra else [])


@pytest.mark.parametrize(("pre", "bos"), [("llama-bpe", 1), ("qwen2", None), ("smollm", None)])
def test_bos_where_the_file_is_silent(tmp_path: Path, pre: str, bos: int | None) -> None:
    path = tiny_gguf(tmp_path / "m.gguf", extra={"tokenizer.ggml.pre": pre, "tokenizer.ggml.add_bos_token": None})
    assert Tokenizer(open_model(path).companions).bos_id == bos


def test_eos_after_bos(tmp_path: Path) -> None:
    flags = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    tokenizer = Tokenizer(open_model(tiny_gguf(tmp_path / "m.gguf", extra=flags)).companions)
    assert tokenizer.encode("a") == [1, *tokenizer.encode("a", add_special=False), 2] and tokenizer.bos_id == 1


@pytest.mark.parametrize("pre", sorted(PRETOKENIZERS))
def test_every_pretokenizer_loses_nothing(tmp_path: Path, pre: str) -> None:
    path = tiny_gguf(tmp_path / "m.gguf", extra={"tokenizer.ggml.pre": pre})
    tokenizer = Tokenizer(open_model(path).companions)
    for text in TEXTS:
        if "\u0301" not in text:  # some compose it, as their models' tokenizers do
            assert tokenizer.decode(tokenizer.encode(text, add_special=False), skip_special=False) == text


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["I", "'ll", " buy", " 12345", " eggs", "!!", "\n\n", " OK"]),
        ("smollm", ["I", "'ll", " buy", " ", "1", "2", "3", "4", "5", " eggs", "!!", "\n\n", " OK"]),
        ("llama-bpe", ["I", "'ll", " buy", " ", "123", "45", " eggs", "!!\n\n", " OK"]),
        ("qwen2", ["I", "'ll", " buy", " ", "1", "2", "3", "4", "5", " eggs", "!!\n\n", " OK"]),
        ("deepseek-v3", ["I", "'ll", " buy", " ", "123", "45", " eggs", "!!\n\n", " OK"]),
        ("tekken", ["I", "'ll", " buy", " ", "1", "2", "3", "4", "5", " eggs", "!!\n\n", " OK"]),
        ("gpt-4o", ["I'll", " buy", " ", "123", "45", " eggs", "!!\n\n", " OK"]),
    ],
)
def test_where_texts_are_cut(tmp_path: Path, pre: str, pieces: list[str]) -> None:
    """The cuts that each model family documents for the same text."""
    path = tiny_gguf(tmp_path / "m.gguf", extra={"tokenizer.ggml.pre": pre})
    library = Library.from_str(open_model(path).companions["tokenizer.json"].decode())
    text = "I'll buy 12345 eggs!!\n\n OK"
    assert [text[a:b] for _, (a, b) in library.pre_tokenizer.pre_tokenize_str(text)] == pieces


def test_an_unknown_pretokenizer_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny_gguf(tmp_path / "m.gguf", extra={"tokenizer.ggml.pre": "novel"})
    assert "tokenizer.json" in open_model(path).companions
    assert "pre-tokenizer 'novel' is not known" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["t5", "rwkv", None])
def test_what_cannot_be_recovered_is_said(tmp_path: Path, kind: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny_gguf(tmp_path / "m.gguf", extra={"tokenizer.ggml.model": kind})
    assert set(open_model(path).companions) == {"chat_template.jinja"}
    assert "cannot be recovered; bring the model's tokenizer.json" in capsys.readouterr().err


# A SentencePiece vocabulary with room for ambiguity: runs, overlaps, pieces with several splits.
PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
WORDS = [
    "▁",
    *"abcde",
    "é",
    "ab",
    "bc",
    "abc",
    "aa",
    "aaa",
    "aaaa",
    "▁a",
    "▁ab",
    "de",
    "cde",
    "ca",
    "▁▁",
    "▁▁▁",
    "ee",
    "éa",
]
WORDS += ["dea", "bca", "▁abc", "eeee", "deab", "cab"]


def sentencepiece(add_prefix: bool, seed: int) -> dict[str, object]:
    rng = random.Random(seed)
    order = rng.sample(range(len(WORDS)), len(WORDS))  # a better score for every other: no ties
    scores = [0.0] * len(PIECES) + [-float(i) for i in order]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": PIECES + WORDS,
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.token_type": np.array([2, 3, 3] + [6] * 256 + [1] * len(WORDS), np.int32),
        "tokenizer.ggml.add_space_prefix": add_prefix,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def merged(text: str, metadata: dict[str, object]) -> list[int]:
    """SentencePiece BPE by definition: join the neighbours whose union scores best, the leftmost of equals."""
    vocab = {token: i for i, token in enumerate(PIECES + WORDS)}
    scores = metadata["tokenizer.ggml.scores"]
    prefix = "▁" if metadata["tokenizer.ggml.add_space_prefix"] and text else ""
    symbols = list(prefix + text.replace(" ", "▁"))
    while True:
        unions = [(a + b, i) for i, (a, b) in enumerate(pairwise(symbols)) if a + b in vocab]
        if not unions:
            break
        best, at = max(unions, key=lambda union: (scores[vocab[union[0]]], -union[1]))
        symbols[at : at + 2] = [best]
    known = [[vocab[s]] if s in vocab else [vocab[f"<0x{byte:02X}>"] for byte in s.encode()] for s in symbols]
    return [i for ids in known for i in ids]


@pytest.mark.parametrize("add_prefix", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_sentencepiece_equals_its_definition(seed: int, add_prefix: bool) -> None:
    metadata = sentencepiece(add_prefix, seed)
    tokenizer = Tokenizer(recover(metadata, "test"))
    rng = random.Random(100 + seed)
    for _ in range(200):
        text = "".join(rng.choice("aaabbccdee é😀\n") for _ in range(rng.randrange(1, 30)))
        assert tokenizer.encode(text) == [1, *merged(text, metadata)], text
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_sentencepiece_adds_bos_by_default_and_knows_its_ends() -> None:
    metadata = sentencepiece(True, 0)
    tokenizer = Tokenizer(recover(metadata, "test"))
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, (2,))
    tokenizer = Tokenizer(recover({**metadata, "tokenizer.ggml.add_bos_token": False}, "test"))
    assert tokenizer.bos_id is None


def test_special_tokens_cut_the_text_and_user_defined_ones_stay_text() -> None:
    metadata = sentencepiece(False, 0)
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "<turn>", "\n\n"]
    metadata["tokenizer.ggml.scores"] = np.append(metadata["tokenizer.ggml.scores"], np.float32([-1000, -1000]))
    metadata["tokenizer.ggml.token_type"] = np.append(metadata["tokenizer.ggml.token_type"], np.int32([3, 4]))
    tokenizer = Tokenizer(recover(metadata, "test"))
    turn, newlines = len(PIECES + WORDS), len(PIECES + WORDS) + 1
    ids = tokenizer.encode("a<turn>b\n\nc", add_special=False)
    assert ids[1] == turn and ids[3] == newlines and len(ids) == 5
    assert tokenizer.decode(ids) == "ab\n\nc"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokens", ["a"] * (len(PIECES) + len(WORDS)), "a token stands twice"),
        ("tokens", [*PIECES, *WORDS[:-1], "\udcff"], "not UTF-8"),
        ("tokens", [*PIECES, *WORDS[:-1], "x" * 2000], "more than 1024 characters"),
        ("tokens", [], "not a list of strings"),
        ("tokens", np.arange(4), "not a list of strings"),
        ("scores", np.zeros(3, np.float32), "scores is not a list of"),
        ("scores", np.full(len(PIECES) + len(WORDS), np.nan, np.float32), "finite"),
        ("token_type", np.zeros(3, np.int32), "token_type is not a list of"),
    ],
)
def test_damaged_vocabularies_are_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(ParetobitError, match=message):
        recover({**sentencepiece(True, 0), f"tokenizer.ggml.{key}": value}, "test")


@pytest.mark.parametrize("merge", ["nospace", "a zz", "zz a", "", " ", "T hq"])
def test_damaged_merges_are_refused(tmp_path: Path, merge: str) -> None:
    path = tiny_gguf(tmp_path / "m.gguf", extra={"tokenizer.ggml.merges": [merge]})
    with pytest.raises(ParetobitError, match="merge"):
        _ = open_model(path).companions


def test_corpus_words_become_few_tokens(tmp_path: Path) -> None:
    """The merges are really used: trained text takes fewer tokens than bytes."""
    tokenizer = Tokenizer(open_model(tiny_gguf(tmp_path / "m.gguf")).companions)
    assert len(tokenizer.encode(CORPUS)) < 0.8 * len(CORPUS.encode())
