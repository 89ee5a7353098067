"""The tokenizer of a GGUF file as the `tokenizers` library's tokenizer.json, with the small files that go with it.

Two kinds are recovered: "gpt2" (byte-level BPE, merges stored) and "llama" (SentencePiece BPE, scores stored). In the
second, text is merged pair by pair, the pair whose union has the best score first and the leftmost of equals; the
same order expressed as merges is: all splits of a piece into two pieces, pieces by falling score.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np

from paretobit.checkpoint.gguf_pretokenizers import BOS_BY_DEFAULT, NORMALIZES, PRETOKENIZERS, WHOLE_WORDS_FIRST
from paretobit.errors import ParetobitError
from paretobit.progress import say

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
MAX_PIECE = 1 << 10  # characters; bounds the quadratic number of substrings. Published pieces have at most 256
SPACE = "▁"
# Ends of a turn by name: a chat model stops at them, and GGUF files often name only one of theirs as EOS.
END_NAMES = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|eom_id|>", "<|endoftext|>", "<|end_of_text|>")
DEFAULT_IDS: dict[str, dict[str, int]] = {"llama": {"bos": 1, "eos": 2, "unk": 0}, "gpt2": {}}
ID_KEYS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "separator", "mask": "mask"}


def recover(metadata: Mapping[str, object], model: str) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json, chat_template.jinja and generation_config.json, as far as they follow.

    What cannot be recovered is said on stderr and left out; a damaged vocabulary raises ParetobitError.
    """
    kind, files = metadata.get("tokenizer.ggml.model"), {}
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str) and _is_text(template):
        files["chat_template.jinja"] = template.encode()
    if kind not in ("gpt2", "llama"):
        named = f"of kind {kind[:40]!r}" if isinstance(kind, str) else "missing"
        say(f"{model}: the tokenizer is {named}, and cannot be recovered; bring the model's tokenizer.json")
        return files
    source = _Source(metadata, kind, model)
    tokenizer = source.byte_level() if kind == "gpt2" else source.sentencepiece()
    files["tokenizer.json"] = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")).encode()
    files["tokenizer_config.json"] = _json(source.config())
    files["generation_config.json"] = _json(source.generation())
    return dict(sorted(files.items()))


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode()


def _is_text(text: str) -> bool:
    """False for strings that were not UTF-8: they hold surrogates, which JSON files cannot."""
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


class _Source:
    """Checked access to the tokenizer's metadata."""

    def __init__(self, metadata: Mapping[str, object], kind: str, model: str) -> None:
        self.metadata, self.kind, self.model = metadata, kind, model
        self.tokens = self._strings("tokens")
        self.types = self._types()
        self.ids = {name: self._id(name, key) for name, key in ID_KEYS.items()}
        pre = metadata.get("tokenizer.ggml.pre", "default")
        self.pre = pre if isinstance(pre, str) else "default"

    def bad(self, what: str) -> ParetobitError:
        return ParetobitError(
            f"{self.model}: {what}", hint="the file is damaged: fetch it again, or bring a tokenizer.json"
        )

    def _strings(self, name: str) -> list[str]:
        value = self.metadata.get(f"tokenizer.ggml.{name}")
        if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
            raise self.bad(f"tokenizer.ggml.{name} is not a list of strings")
        if not all(map(_is_text, value)):
            raise self.bad(f"tokenizer.ggml.{name} holds bytes that are not UTF-8")
        if name == "tokens":
            value = [text or f"[EMPTY_{i}]" for i, text in enumerate(value)]
            if len(set(value)) != len(value):
                raise self.bad("a token stands twice in the vocabulary")
            if max(map(len, value)) > MAX_PIECE:
                raise self.bad(f"a token has more than {MAX_PIECE} characters")
        return value

    def _types(self) -> list[int]:
        value = self.metadata.get("tokenizer.ggml.token_type")
        if value is None:
            return [NORMAL] * len(self.tokens)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu" or len(value) != len(self.tokens):
            raise self.bad(f"tokenizer.ggml.token_type is not a list of {len(self.tokens)} integers")
        return value.tolist()

    def _id(self, name: str, key: str) -> int | None:
        value = self.metadata.get(f"tokenizer.ggml.{key}_token_id", DEFAULT_IDS[self.kind].get(name))
        return value if type(value) is int and 0 <= value < len(self.tokens) else None

    def flag(self, name: str, default: bool) -> bool:
        value = self.metadata.get(f"tokenizer.ggml.{name}", default)
        return value if isinstance(value, bool) else default

    def byte_level(self) -> dict[str, object]:
        pre = self.pre
        if pre not in PRETOKENIZERS:
            say(f"{self.model}: the pre-tokenizer {pre[:40]!r} is not known; the default one may cut differently")
            pre = "default"
        vocab = {token: i for i, token in enumerate(self.tokens)}
        merges = []
        for merge in self._strings("merges"):
            left, _, right = merge[1:].partition(" ")  # a piece may start with a space, but holds no other
            left = merge[:1] + left
            if left not in vocab or right not in vocab or left + right not in vocab:
                raise self.bad(f"the merge {merge[:80]!r} does not join two tokens to a third")
            merges.append([left, right])
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        bos = self.flag("add_bos_token", self.pre in BOS_BY_DEFAULT)
        return self._file(
            normalizer={"type": "NFC"} if pre in NORMALIZES else None,
            pre_tokenizer={"type": "Sequence", "pretokenizers": [*PRETOKENIZERS[pre], byte_level]},
            post_processor=self._template(bos),
            decoder={**byte_level, "use_regex": True},
            model=_bpe(vocab, merges, None, ignore_merges=pre in WHOLE_WORDS_FIRST),
        )

    def sentencepiece(self) -> dict[str, object]:
        vocab = {token: i for i, token in enumerate(self.tokens)}
        prefix = self.flag("add_space_prefix", True)
        to_piece = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        to_text: dict[str, object] = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
        decoders: list[dict[str, object]] = [to_text, {"type": "ByteFallback"}, {"type": "Fuse"}]
        if prefix:
            decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        steps = [{"type": "Prepend", "prepend": SPACE}, to_piece] if prefix else [to_piece]
        unknown = None if self.ids["unk"] is None else self.tokens[self.ids["unk"]]
        return self._file(
            normalizer={"type": "Sequence", "normalizers": steps},
            pre_tokenizer=None,
            post_processor=self._template(self.flag("add_bos_token", True)),
            decoder={"type": "Sequence", "decoders": decoders},
            model=_bpe(vocab, self._merges(vocab), unknown, fuse_unk=True, byte_fallback=True),
        )

    def _merges(self, vocab: Mapping[str, int]) -> list[list[str]]:
        """All splits of every mergeable piece into two such pieces, the best score first.

        Among the splits of one piece and among equal scores the order is free: merges that compete for a position
        have different unions, and equal scores do not occur in trained vocabularies but for user-defined pieces.
        """
        scores = self.metadata.get("tokenizer.ggml.scores")
        if not isinstance(scores, np.ndarray) or len(scores) != len(self.tokens) or not np.isfinite(scores).all():
            raise self.bad(f"tokenizer.ggml.scores is not a list of {len(self.tokens)} finite numbers")
        parts = {t for t, kind in zip(self.tokens, self.types, strict=True) if kind in (NORMAL, USER_DEFINED, UNUSED)}
        order = sorted((t for t in parts if len(t) > 1), key=lambda t: (-float(scores[vocab[t]]), vocab[t]))
        merges = []
        for token in order:
            splits = ((token[:at], token[at:]) for at in range(1, len(token)))
            merges += sorted(
                ([a, b] for a, b in splits if a in parts and b in parts), key=lambda ab: (vocab[ab[0]], vocab[ab[1]])
            )
        return merges

    def _template(self, bos: bool) -> dict[str, object] | None:
        """What puts BOS before and EOS after the text, None where neither is added."""
        first = self.ids["bos"] if bos else None
        last = self.ids["eos"] if self.flag("add_eos_token", False) else None
        if first is None and last is None:
            return None

        def piece(token: int | None) -> list[dict[str, object]]:
            return [] if token is None else [{"SpecialToken": {"id": self.tokens[token], "type_id": 0}}]

        single, second = ([*piece(first), {"Sequence": {"id": x, "type_id": 0}}, *piece(last)] for x in "AB")
        special = {
            self.tokens[i]: {"id": self.tokens[i], "ids": [i], "tokens": [self.tokens[i]]}
            for i in (first, last)
            if i is not None
        }
        return {"type": "TemplateProcessing", "single": single, "pair": [*single, *second], "special_tokens": special}

    def _added(self) -> list[dict[str, object]]:
        """Control tokens are special; user-defined ones are plain text that is never cut.

        Old files mark the tokens they name as BOS or EOS as normal ones: those that look special are special.
        """
        kinds = (CONTROL, USER_DEFINED, UNKNOWN)
        always = {
            i for i in self.ids.values() if i is not None and self.tokens[i][0] == "<" and self.tokens[i][-1] == ">"
        }
        return [
            {
                "id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
                "special": self.types[i] != USER_DEFINED,
            }
            for i, text in enumerate(self.tokens)
            if self.types[i] in kinds or i in always
        ]  # fmt: skip

    def _file(self, **parts: object) -> dict[str, object]:
        return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": self._added(), **parts}

    def config(self) -> dict[str, object]:
        named = {f"{name}_token": self.tokens[i] for name, i in self.ids.items() if i is not None}
        length = next((v for k, v in self.metadata.items() if k.endswith(".context_length")), None)
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **({"model_max_length": length} if type(length) is int else {}),
            **named,
        }

    def generation(self) -> dict[str, object]:
        """Where generation stops: EOS, end of turn, and tokens whose names say so."""
        ends = [self.ids["eos"]]
        for key in ("eot", "eom"):
            value = self.metadata.get(f"tokenizer.ggml.{key}_token_id")
            ends.append(value if type(value) is int and 0 <= value < len(self.tokens) else None)
        names = set(END_NAMES)
        ends += [i for i, text in enumerate(self.tokens) if text in names and self.types[i] in (CONTROL, USER_DEFINED)]
        fields = {f"{name}_token_id": self.ids[name] for name in ("bos", "pad") if self.ids[name] is not None}
        return {**fields, "eos_token_id": list(dict.fromkeys(i for i in ends if i is not None))}


def _bpe(
    vocab: Mapping[str, int], merges: Sequence[Sequence[str]], unknown: str | None, **options: bool
) -> dict[str, object]:
    return {
        "type": "BPE", "dropout": None, "unk_token": unknown, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
        **options, "vocab": vocab, "merges": merges,
    }  # fmt: skip
