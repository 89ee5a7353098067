"""Tokens to text as they come: what is given out is whole, final, and together what decode() says."""

from __future__ import annotations

import json

import pytest
from checkpoints import tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from paretobit.errors import ParetobitError
from paretobit.runtime.streaming import Detokenizer, StopStrings
from paretobit.runtime.tokenizer import Tokenizer

WORDS = ("a", "▁a", "▁", "▁▁", "b", "▁été", "日", "�", "<0xZZ>", "é", "▁you", "##s")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
LLAMA = [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
]
DECODERS = {
    "llama": {"type": "Sequence", "decoders": LLAMA},
    "gemma": {"type": "Sequence", "decoders": LLAMA[:3]},
    "nested": {"type": "Sequence", "decoders": [{"type": "Sequence", "decoders": LLAMA[:2]}, *LLAMA[2:]]},
    "metaspace": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    "none": None,
    # These change what they said: all text comes at the end.
    "wordpiece": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "replacing": {
        "type": "Sequence",
        "decoders": [*LLAMA[:3], {"type": "Replace", "pattern": {"String": "a b"}, "content": "c"}],
    },
    "regex": {
        "type": "Sequence",
        "decoders": [{"type": "Fuse"}, {"type": "Replace", "pattern": {"Regex": "a+"}, "content": "x"}],
    },
    "suffixes": {"type": "BPEDecoder", "suffix": "b"},
}
AT_THE_END = ("wordpiece", "replacing", "regex", "suffixes")


def pieces_tokenizer(decoder: dict | None) -> Tokenizer:
    """Tokens 0…: <s> (special), WORDS, then all bytes; the last token is an added one that is not special."""
    vocab = {text: at for at, text in enumerate(("<s>", *WORDS, *BYTES))}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": 0, "content": "<s>", "special": True, **flags},
        {"id": len(vocab), "content": "<tool>", "special": False, **flags},
    ]
    model = {"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": True, "unk_token": "<s>"}
    made = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": None, "post_processor": None, "decoder": decoder, "model": model,
    }  # fmt: skip
    return Tokenizer({"tokenizer.json": json.dumps(made).encode()})


TOKENIZERS = {
    "byte-level": Tokenizer({"tokenizer.json": tiny_tokenizer().encode()}),
    **{name: pieces_tokenizer(decoder) for name, decoder in DECODERS.items()},
}
COUNT = 1 + len(WORDS) + 256 + 1


def streamed(tokenizer: Tokenizer, ids: list[int], before: list[int] | None = None) -> list[str]:
    detokenizer = Detokenizer(tokenizer, before or [])
    return [*map(detokenizer.push, ids), detokenizer.end()]


def of_bytes(tokenizer: Tokenizer, text: str) -> list[int]:
    """The byte tokens of `text`, one a byte."""
    if tokenizer is TOKENIZERS["byte-level"]:
        spelled = [t for char in text for t in tokenizer._tokenizer.encode(char).tokens]
        return [tokenizer._tokenizer.token_to_id(c) for piece in spelled for c in piece]
    return [1 + len(WORDS) + byte for byte in text.encode()]


# Half of all tokens are bytes with the high bit set, or the whole test would be about ASCII.
IDS = st.lists(st.one_of(st.integers(0, COUNT + 1), st.integers(1 + len(WORDS) + 128, COUNT - 2)), max_size=24)
TEXTS = st.text(st.sampled_from("a é日😀�\u0301"), max_size=6)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(ids=IDS, text=TEXTS)
def test_pieces_make_the_whole(name: str, ids: list[int], text: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = ids[: len(ids) // 2] + of_bytes(tokenizer, text) + ids[len(ids) // 2 :]
    pieces = streamed(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    if name in AT_THE_END:
        assert not any(pieces[:-1])
    for at in range(len(ids)):  # nothing given out is ever taken back
        assert tokenizer.decode(ids).startswith("".join(pieces[: at + 1]))


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name not in AT_THE_END])
@settings(max_examples=100, deadline=None, derandomize=True)
@given(before=st.lists(st.integers(0, len(WORDS)), max_size=20), ids=IDS)
def test_the_text_goes_on_from_the_prompt(name: str, before: list[int], ids: list[int]) -> None:
    tokenizer = TOKENIZERS[name]
    text = tokenizer.decode(before[-16:])
    if text and "\ufffd" not in text:
        assert (
            "".join(streamed(tokenizer, ids, before)) == tokenizer.decode(before + ids)[len(tokenizer.decode(before)) :]
        )


@pytest.mark.parametrize("name", ["byte-level", "llama", "gemma", "nested"])
def test_characters_come_whole(name: str) -> None:
    """Characters of one to four bytes, a token a byte, and a word after each: out with that word at the latest."""
    tokenizer = TOKENIZERS[name]
    word = tokenizer.encode("a")[0] if name == "byte-level" else 1
    for char in "aé日😀":
        ids = of_bytes(tokenizer, char)
        assert len(ids) == len(char.encode())
        pieces = streamed(tokenizer, [*ids, word])
        assert not any(pieces[: len(ids) - 1])
        assert (pieces[-3] + pieces[-2], pieces[-1]) == (char + "a", "")


def test_byte_level_characters_come_with_their_last_byte() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    ids = of_bytes(tokenizer, "日本😀é")
    assert [piece for piece in streamed(tokenizer, ids) if piece] == ["日", "本", "😀", "é"]


def test_a_run_of_byte_tokens_waits_for_its_end() -> None:
    """The library makes U+FFFD of every byte of a run that is not valid as a whole, characters before included."""
    tokenizer = TOKENIZERS["llama"]
    valid, half = of_bytes(tokenizer, "日"), of_bytes(tokenizer, "日")[:1]
    assert streamed(tokenizer, [*valid, 1]) == ["", "", "", "日a", ""]
    assert streamed(tokenizer, [*valid, 0, *half, 0, 1]) == ["", "", "", "", "", "", "\ufffd\ufffd\ufffd\ufffda", ""]
    assert streamed(tokenizer, [*valid, COUNT + 9, *valid]) == ["", "", "", "", "", "", "", "日日"]


def test_half_a_character_at_the_end() -> None:
    for name in ("byte-level", "gemma"):
        ids = of_bytes(TOKENIZERS[name], "日")[:2]
        assert "".join(streamed(TOKENIZERS[name], ids)) == TOKENIZERS[name].decode(ids)
        assert streamed(TOKENIZERS[name], ids)[:2] == ["", ""]


def test_the_first_space_after_a_prompt_stays() -> None:
    tokenizer = TOKENIZERS["llama"]
    space_a = 1 + WORDS.index("▁a")
    assert streamed(tokenizer, [space_a]) == ["a", ""]
    assert streamed(tokenizer, [space_a], before=[0, 1]) == [" a", ""]
    assert streamed(tokenizer, [space_a], before=[0]) == ["a", ""]  # nothing visible before: it comes first


def test_a_decoder_that_strips_the_end() -> None:
    tokenizer = pieces_tokenizer(
        {"type": "Sequence", "decoders": [*LLAMA[:3], {"type": "Strip", "content": "a", "start": 0, "stop": 1}]}
    )
    assert streamed(tokenizer, [5, 1, 1]) == ["", "", "", "ba"]
    with pytest.raises(ParetobitError, match=r"tokenizer\.json cannot decode"):  # the library panics on no text
        tokenizer.decode([0])


def test_numbers_that_are_no_tokens() -> None:
    with pytest.raises(ParetobitError, match="is not a token id"):
        Detokenizer(TOKENIZERS["byte-level"]).push(-1)


def stopped(stops: list[str], *texts: str) -> tuple[list[str], bool]:
    stop = StopStrings(stops)
    pieces = [stop.push(text) for text in texts]
    return [*pieces, stop.end()], stop.found


@pytest.mark.parametrize(
    ("stops", "texts", "pieces", "found"),
    [
        ([], ["a", "b"], ["a", "b", ""], False),
        (["END"], ["a E", "N", "D b"], ["a ", "", "", ""], True),
        (["END"], ["a E", "N", "x", "D"], ["a ", "", "ENx", "D", ""], False),
        (["END"], ["a", "EN"], ["a", "", "EN"], False),
        (["aab"], ["aa", "ab", "x"], ["", "a", "", ""], True),  # the beginning overlaps itself
        (["aab"], ["aa", "aa", "c"], ["", "aa", "aac", ""], False),
        (["abab"], ["ab", "a", "c"], ["", "", "abac", ""], False),
        (["abcd", "bc"], ["a", "b", "c", "d"], ["", "", "a", "", ""], True),  # bc is complete first
        (["abc", "c"], ["ab", "c"], ["", "", ""], True),  # both at once: the longer
        (["b", "abc"], ["abc"], ["a", ""], True),  # as if it had come letter by letter
        (["\n\n"], ["x\n", "\n"], ["x", "", ""], True),
        (["日本"], ["日", "本"], ["", "", ""], True),
        (["x"], ["xab"], ["", ""], True),
        (["x", "x"], ["ab"], ["ab", ""], False),
    ],
)
def test_stop_strings(stops: list[str], texts: list[str], pieces: list[str], found: bool) -> None:
    assert stopped(stops, *texts) == (pieces, found)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    texts=st.lists(st.text("abc", max_size=4), max_size=8),
)
def test_stop_strings_do_not_depend_on_where_text_is_cut(stops: list[str], texts: list[str]) -> None:
    whole = "".join(texts)
    # In plain words: letter by letter, until the text so far ends with a stop string; the longest counts.
    expected, found = whole, False
    for end in range(1, len(whole) + 1):
        complete = [stop for stop in stops if whole[:end].endswith(stop)]
        if complete:
            expected, found = whole[: end - max(map(len, complete))], True
            break
    pieces, was = stopped(stops, *texts)
    assert ("".join(pieces), was) == (expected, found)
    for at in range(len(texts)):
        held = "".join(texts[: at + 1]).removeprefix("".join(pieces[: at + 1]))
        if not found:  # held back only what may become a stop string
            assert not held or any(stop.startswith(held) and stop != held for stop in stops)


@pytest.mark.parametrize("stops", [[""], ["a", ""], [3], [None]])
def test_stop_strings_that_make_no_sense(stops: list) -> None:
    with pytest.raises(ParetobitError, match="a stop string is empty or no text"):
        StopStrings(stops)
