"""tokenizer.json, template and special tokens as GGUF metadata: the inverse of checkpoint.gguf_tokenizer.

Keys follow llama.cpp (gguf-py/gguf/constants.py). A byte-level tokenizer needs the name of how it cuts text, which is
found by cutting a text made to tell the known ways apart. A SentencePiece one needs scores, which order merges: minus
the rank of the first merge that makes a piece.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from paretobit.checkpoint.base import Checkpoint
from paretobit.checkpoint.gguf_pretokenizers import PRETOKENIZERS, WHOLE_WORDS_FIRST
from paretobit.checkpoint.gguf_tokenizer import BYTE, CONTROL, ID_KEYS, NORMAL, SPACE, UNKNOWN, UNUSED, USER_DEFINED
from paretobit.errors import ParetobitError
from paretobit.progress import say
from paretobit.runtime.tokenizer import GENERATION, PROBE, TEMPLATE, TOKENIZER, TOKENIZER_CONFIG, Tokenizer

BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
NO_MERGE = -1e6  # a score below all: what no merge makes is made last
HINT = "export to hf, where the tokenizer travels as it is"
# What the known ways of cutting text disagree on: digits, cases, contractions, signs, spaces, scripts.
TELLING = (
    "Hello, y'all! IT'S we'LL don't 1 22 333 4444 12345,67 x=3.14; a_b camelCaseWORDs  two   three\n\n\tfour \r\n end. "
    "été naïve Größe ŁÓDŹ 一二三ひらがなカタカナ 漢字123 ١٢٣ नमस्ते 🚀🦙 $%^ &*(){}[]<>|~`\\/ :-) ... #hash @you -- ---- "
    "/path/to/file.py\n if x == 0:\n        return None\n '''quoted''' \"say\" e\u0301 ½ Ⅷ ︎ \u200d  \n \n  !!!?\n"
)


def vocabulary(source: Checkpoint) -> dict[str, object]:
    """Metadata of the tokenizer, key -> number, text or list. Raises ParetobitError on what GGUF cannot express."""
    files = source.companions
    if TOKENIZER not in files:
        say(f"{source.name}: there is no {TOKENIZER}, so the file will have no tokenizer")
        return {"tokenizer.ggml.model": "none"}
    found = _Vocabulary(files, source)
    return found.metadata()


class _Vocabulary:
    def __init__(self, files: Mapping[str, bytes], source: Checkpoint) -> None:
        self.name, self.size = source.name, source.arch.vocab
        self.tokenizer = Tokenizer(files)  # refuses a broken one
        self.json: dict[str, Any] = json.loads(files[TOKENIZER])
        self.config, self.generation = (json.loads(files.get(name, b"{}")) for name in (TOKENIZER_CONFIG, GENERATION))
        self.model: dict[str, Any] = self.json["model"]
        self.template = files[TEMPLATE].decode() if TEMPLATE in files else self.config.get("chat_template")
        self.added: dict[int, dict[str, Any]] = {token["id"]: token for token in self.json.get("added_tokens") or []}
        self.ids = {**self.model.get("vocab", {}), **{token["content"]: i for i, token in self.added.items()}}

    def refused(self, what: str) -> ParetobitError:
        return ParetobitError(f"{self.name}: {what}, which GGUF cannot express", hint=HINT)

    def metadata(self) -> dict[str, object]:
        if self.model.get("type") != "BPE" or max(self.ids.values(), default=0) >= self.size:
            raise self.refused(f"the tokenizer is a {self.model.get('type')} of {len(self.ids)} tokens")
        merges = [pair if isinstance(pair, list) else _split(pair) for pair in self.model["merges"]]
        byte_level = "ByteLevel" in json.dumps(self.json.get("pre_tokenizer"))
        found = self._byte_level(merges) if byte_level else self._sentencepiece(merges)
        by_id = {i: text for text, i in self.ids.items()}
        found["tokenizer.ggml.tokens"] = [by_id.get(i, f"[PAD{i}]") for i in range(self.size)]
        found["tokenizer.ggml.token_type"] = [self._type(i, by_id.get(i), byte_level) for i in range(self.size)]
        if isinstance(self.template, str):
            found["tokenizer.chat_template"] = self.template
        return found | self._special()

    def _type(self, i: int, text: str | None, byte_level: bool) -> int:
        if text is None:
            return UNUSED
        if not byte_level and text == self.model.get("unk_token"):
            return UNKNOWN
        if i in self.added:
            return CONTROL if self.added[i].get("special") else USER_DEFINED
        return BYTE if not byte_level and BYTE_PIECE.fullmatch(text) else NORMAL

    def _byte_level(self, merges: list[list[str]]) -> dict[str, object]:
        if self.json.get("normalizer") and self.json["normalizer"].get("type") != "NFC":
            raise self.refused("the tokenizer changes the text before it cuts it")
        return {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": self._pre(),
            "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        }

    def _pre(self) -> str:
        """The name of how text is cut before it is merged."""
        wanted, whole = _cut(self.json["pre_tokenizer"]), bool(self.model.get("ignore_merges"))
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        for name, steps in PRETOKENIZERS.items():
            if (name in WHOLE_WORDS_FIRST) == whole and wanted == _cut(
                {"type": "Sequence", "pretokenizers": [*steps, level]}
            ):
                return name
        raise self.refused("the tokenizer cuts text in a way that llama.cpp has no name for")

    def _sentencepiece(self, merges: list[list[str]]) -> dict[str, object]:
        if not self.model.get("byte_fallback"):
            raise self.refused("the tokenizer is neither byte-level nor falls back to bytes")
        rank: dict[str, int] = {}
        for number, (left, right) in enumerate(merges):
            rank.setdefault(left + right, number)
        by_id = {i: text for text, i in self.ids.items()}
        scores = []
        for i in range(self.size):
            text = by_id.get(i, "")
            scores.append(-float(rank[text]) if text in rank else 0.0 if len(text) < 2 else NO_MERGE)
        steps = json.dumps([self.json.get("normalizer"), self.json.get("pre_tokenizer")], ensure_ascii=False)
        signs = (f'"prepend": "{SPACE}"', '"prepend_scheme": "first"', '"prepend_scheme": "always"')
        prefix = any(sign in steps for sign in signs)
        return {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.scores": scores,
            "tokenizer.ggml.add_space_prefix": prefix,
        }

    def _special(self) -> dict[str, object]:
        """BOS, EOS and the like: which they are, and which are added to a text."""
        found: dict[str, object] = {}
        for name, key in ID_KEYS.items():
            named = self.config.get(f"{name}_token")
            text = named.get("content") if isinstance(named, dict) else named
            if text is None and name == "unk":
                text = self.model.get("unk_token")
            if text in self.ids:
                found[f"tokenizer.ggml.{key}_token_id"] = self.ids[text]
        ends = [i for i in self.tokenizer.eos_ids if i < self.size]
        eos = found.setdefault("tokenizer.ggml.eos_token_id", ends[0]) if ends else None
        others = [i for i in ends if i != eos]
        if others:
            found["tokenizer.ggml.eot_token_id"] = others[0]
        plain, full = self.tokenizer.encode(PROBE, add_special=False), self.tokenizer.encode(PROBE)
        found["tokenizer.ggml.add_bos_token"] = self.tokenizer.bos_id is not None
        found["tokenizer.ggml.add_eos_token"] = full[-len(plain) :] != plain
        return found


def _split(merge: str) -> list[str]:
    """The two pieces of a merge that is one text; the first may start with a space, but they hold no other."""
    left, _, right = merge[1:].partition(" ")
    return [merge[:1] + left, right]


def _cut(steps: dict[str, Any]) -> list[str]:
    """TELLING as these steps cut it."""
    from tokenizers import Tokenizer as Library

    empty = {"type": "BPE", "vocab": {}, "merges": []}
    made = Library.from_str(json.dumps({"version": "1.0", "added_tokens": [], "pre_tokenizer": steps, "model": empty}))
    assert made.pre_tokenizer is not None
    return [piece for piece, _ in made.pre_tokenizer.pre_tokenize_str(TELLING)]
