import numpy as np
import pytest

from paretobit.errors import ParetobitError
from paretobit.evals.text import encode_windows, read_text, windows


class Bytes:
    """A tokenizer of bytes that adds BOS 256 only where it is asked to."""

    bos_id = 256
    eos_ids = (257,)

    def encode(self, text, add_special=True):
        return ([self.bos_id] if add_special else []) + list(text.encode())

    def decode(self, ids):
        return bytes(ids).decode()


def test_windows_are_consecutive_and_do_not_overlap():
    cut = windows(range(1, 27), size=8)
    assert cut.dtype == np.int64
    assert cut.tolist() == [list(range(1, 9)), list(range(9, 17)), list(range(17, 25))]
    assert windows(range(26), size=8, limit=2).shape == (2, 8)
    assert windows(range(26), size=8, limit=99).shape == (3, 8)


def test_bos_replaces_the_first_token_and_leaves_the_rest_and_the_input():
    ids = np.arange(32)
    cut = windows(ids, size=16, bos_id=99)
    assert cut[:, 0].tolist() == [99, 99]
    assert cut[:, 1:].tolist() == [list(range(1, 16)), list(range(17, 32))]
    assert ids.tolist() == list(range(32))


def test_text_is_encoded_without_specials():
    cut = encode_windows(Bytes(), "abcdefghij", size=5)
    assert cut.tolist() == [[256, *b"bcde"], [256, *b"ghij"]]


def test_a_limit_encodes_no_more_than_it_needs():
    class Watched(Bytes):
        def encode(self, text, add_special=True):
            lengths.append(len(text))
            return super().encode(text, add_special)

    lengths = []
    text = "".join(chr(97 + i * i % 26) for i in range(5000))
    assert encode_windows(Watched(), text, 16, 3).tolist() == encode_windows(Bytes(), text, 16)[:3].tolist()
    assert lengths == [12 * 16 * 3]
    sparse = " " * 2000 + text[:100]  # a tokenizer that drops spaces finds too little in the first part
    few = type("Few", (Bytes,), {"encode": lambda self, text, add_special=True: list(text.replace(" ", "").encode())})
    assert encode_windows(few(), sparse, 16, 3).tolist() == encode_windows(few(), text[:100], 16, 3).tolist()


def test_too_short_a_text_says_how_many_tokens_it_has_and_needs():
    with pytest.raises(ParetobitError, match=r"has 511 tokens, one window needs 512"):
        windows(range(511))
    assert windows(range(512)).shape == (1, 512)
    with pytest.raises(ParetobitError, match="0 windows"):
        windows(range(512), limit=0)
    with pytest.raises(ParetobitError, match="windows of 3 tokens"):
        windows(range(512), size=3)


def test_read_text(tmp_path):
    plain = tmp_path / "plain.txt"
    plain.write_bytes("\ufeffcafé\n\nnext".encode())
    assert read_text(plain) == "café\n\nnext"
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "one\\u2028still one", "x": 1}\n\n{"text": "two"}\n', encoding="utf-8")
    assert read_text(rows) == "one\u2028still one\n\ntwo"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("latin.txt", "café".encode("latin-1"), r"latin.txt' is not UTF-8: byte 3 is 0xe9"),
        ("empty.txt", b" \n", "empty.txt' holds no text"),
        ("empty.jsonl", b"\n", "empty.jsonl' holds no text"),
        ("bad.jsonl", b'{"text": "a"}\n{"text"', "bad.jsonl', line 2: not JSON"),
        ("list.jsonl", b"[1]", "list.jsonl', line 1: not a JSON object"),
        ("other.jsonl", b'{"text": "a"}\n\n{"body": "b"}', "other.jsonl', line 3: no string field 'text'"),
        ("number.jsonl", b'{"text": 3}', "number.jsonl', line 1: no string field 'text'"),
        ("deep.jsonl", b"[" * 200_000, "deep.jsonl', line 1: not JSON"),
    ],
)
def test_read_text_refuses(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ParetobitError, match=message):
        read_text(tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ParetobitError, match=r"cannot read '.*none\.txt'"):
        read_text(tmp_path / "none.txt")
