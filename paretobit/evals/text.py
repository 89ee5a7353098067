"""Evaluation text: files to strings, token ids to windows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from paretobit.errors import ParetobitError

WINDOW = 512
CHARACTERS = 12  # a token, generously: English has 4 to 5


class Tokenizer(Protocol):
    """What evaluation needs of a tokenizer. `bos_id` is None unless the tokenizer adds BOS by itself."""

    bos_id: int | None
    eos_ids: tuple[int, ...]

    def encode(self, text: str, add_special: bool = True) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


def read_bytes(path: str | Path) -> bytes:
    """The file's bytes. Raises ParetobitError where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ParetobitError(
            f"cannot read '{path}': {error.strerror or error}", hint="name a readable text or JSONL file"
        ) from error


def json_lines(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of each non-blank line of JSONL. Raises ParetobitError naming the line."""
    for number, line in enumerate(_decode(path, read_bytes(path)).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ParetobitError(
                f"'{path}', line {number}: not JSON ({error})", hint="one JSON object a line"
            ) from None
        if not isinstance(row, dict):
            raise ParetobitError(f"'{path}', line {number}: not a JSON object", hint="one JSON object a line")
        yield number, row


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, or of a `.jsonl` file: every row's `text`, joined by blank lines.

    Raises ParetobitError for an unreadable or empty file, bytes that are not UTF-8, a row without a string
    `text`.
    """
    text = _jsonl_text(path) if Path(path).suffix.lower() == ".jsonl" else _decode(path, read_bytes(path))
    if not text.strip():
        raise ParetobitError(f"'{path}' holds no text", hint="evaluation needs some thousands of words")
    return text


def _jsonl_text(path: str | Path) -> str:
    parts = []
    for number, row in json_lines(path):
        if not isinstance(row.get("text"), str):
            raise ParetobitError(
                f"'{path}', line {number}: no string field 'text'", hint='write {"text": "…"} on every line'
            )
        parts.append(row["text"])
    return "\n\n".join(parts)


def _decode(path: str | Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ParetobitError(
            f"'{path}' is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}",
            hint="convert it, for example with iconv -t utf-8",
        ) from None


def windows(
    ids: Sequence[int] | np.ndarray, size: int = WINDOW, bos_id: int | None = None, limit: int | None = None
) -> np.ndarray:  # (n, size) int64
    """Consecutive windows without overlap; what is left at the end is dropped. At most `limit` windows.

    ids come from `encode(text, add_special=False)`. A `bos_id` replaces the first token of every window
    (llama.cpp's protocol), so the scored positions do not depend on it. Raises ParetobitError where not one
    window fits.
    """
    if size < 4:
        raise ParetobitError(f"windows of {size} tokens score nothing", hint="use 512, the protocol's size")
    if limit is not None and limit < 1:
        raise ParetobitError(f"{limit} windows score nothing", hint="ask for at least one window")
    tokens = np.asarray(ids, dtype=np.int64)
    count = len(tokens) // size
    if count == 0:
        raise ParetobitError(
            f"the text has {len(tokens)} tokens, one window needs {size}",
            hint=f"give a longer text; 80 windows ({80 * size} tokens) make a dependable figure",
        )
    count = count if limit is None else min(count, limit)
    cut = tokens[: count * size].reshape(count, size).copy()
    if bos_id is not None:
        cut[:, 0] = bos_id
    return cut


def encode_windows(
    tokenizer: Tokenizer, text: str, size: int = WINDOW, limit: int | None = None
) -> np.ndarray:  # (n, size) int64
    """`windows` of a text under the tokenizer's own ids and BOS."""
    if limit is not None:
        # No need to encode a whole corpus. One window to spare, since the last tokens depend on the cut.
        ids = tokenizer.encode(text[: CHARACTERS * size * limit], add_special=False)
        if len(ids) >= size * (limit + 1):
            return windows(ids, size, tokenizer.bos_id, limit)
    return windows(tokenizer.encode(text, add_special=False), size, tokenizer.bos_id, limit)
