"""Calibration text: a file, or what the model itself writes (`self`), as windows of token ids."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from paretobit.checkpoint.base import Checkpoint
from paretobit.errors import ParetobitError
from paretobit.evals.text import read_text, windows
from paretobit.progress import Advance, progress
from paretobit.runtime.tokenizer import Tokenizer
from paretobit.work import cache_folder, disk_errors

if TYPE_CHECKING:
    from paretobit.compress.model import Decoder

WINDOW = 512
SELF = "self"
SEQUENCES_AT_ONCE = 16
UNSEEN, LEAST_UNSEEN = 80, 8  # windows to judge by


@dataclass(frozen=True)
class Corpus:
    """ids: int64 (windows, 512); source: what it came from, for the record; hash: of the ids."""

    ids: np.ndarray
    source: str

    @property
    def hash(self) -> str:
        return hashlib.sha256(np.ascontiguousarray(self.ids, "<i8").tobytes()).hexdigest()

    @property
    def record(self) -> dict[str, object]:
        """What a result remembers of the text it was made with."""
        return {"source": self.source, "tokens": int(self.ids.size), "hash": self.hash}

    def shard(self, index: int, of: int) -> np.ndarray:
        """Every of-th window from `index` on. Raises if that leaves none."""
        part = self.ids[index::of]
        if not len(part):
            raise ParetobitError(f"shard {index}/{of} of {len(self.ids)} windows is empty", hint="use fewer shards")
        return part


def gather(source: Checkpoint, calib: str, tokens: int, seed: int, device: str) -> Corpus:
    """`tokens` tokens of calibration text for this model, in whole windows.

    Raises ParetobitError when the file is unreadable or too short, or the model has no tokenizer to read it with.
    """
    for name, value, least in (("tokens", tokens, 1), ("seed", seed, 0)):
        if value < least:
            raise ParetobitError(f"--{name} {value} is out of range", hint=f"give {least} or more")
    count = max(1, tokens // WINDOW)
    if calib == SELF:
        return Corpus(_own_text(source, count, seed, device), f"self, seed {seed}")
    found = _from_file(source, calib, count)
    return Corpus(found[_picked(len(found), count)], Path(calib).name)


def unseen(source: Checkpoint, calib: str, tokens: int, seed: int, device: str, count: int = UNSEEN) -> Corpus:
    """At most `count` windows of the same kind of text as `gather` takes with the same arguments, none of them its.

    Raises ParetobitError where the file has nothing else.
    """
    if calib == SELF:
        return gather(source, SELF, count * WINDOW, seed + 1, device)
    taken = max(1, tokens // WINDOW)
    found = _from_file(source, calib, taken)
    rest = np.delete(found, _picked(len(found), taken), 0)
    if len(rest) < LEAST_UNSEEN:
        raise ParetobitError(
            f"{calib} has {len(rest)} windows of text beside the {len(found) - len(rest)} of calibration, too few to "
            "judge by",
            hint="give a text of its own: --check FILE",
        )
    return Corpus(rest[_picked(len(rest), count)], f"{Path(calib).name}, what calibration leaves")


def _from_file(source: Checkpoint, calib: str, count: int) -> np.ndarray:
    """int64 (windows, 512), about twice `count` where the file has as many."""
    if "tokenizer.json" not in source.companions:
        raise ParetobitError(f"{source.name} has no tokenizer to read {calib} with", hint="use --calib self")
    tokenizer = Tokenizer(source.companions)
    text = _spread(read_text(Path(calib)), count)
    return windows(tokenizer.encode(text, add_special=False), WINDOW, tokenizer.bos_id, None)


def _picked(there: int, wanted: int) -> np.ndarray:
    """Which of so many windows are taken: all, or so many evenly spaced."""
    return np.arange(there) if there <= wanted else np.linspace(0, there - 1, wanted).astype(int)


def _spread(text: str, count: int, pieces: int = 16) -> str:
    """At most ten characters for each token of `count` windows, twice what they usually take, from all over the text: a
    long file is neither encoded as a whole nor judged by its first pages."""
    length = count * WINDOW * 10 // pieces
    if len(text) <= pieces * length:
        return text
    return "\n\n".join(text[i * len(text) // pieces :][:length] for i in range(pieces))


def _own_text(source: Checkpoint, count: int, seed: int, device: str) -> np.ndarray:
    """What the model writes when nobody asks it anything: sampled at temperature 1 from a random first token.

    Sequences come in rounds of 16, each with a seed of its own, kept in the cache by model hash: a longer request only
    samples the rounds that are missing. (LLM-QAT, arXiv 2305.17888, section 3.1, is where data-free text comes from.)
    """
    folder = cache_folder() / "self" / source.hash[:32]
    rounds = [folder / f"seed{seed}-round{i}.npy" for i in range(-(-count // SEQUENCES_AT_ONCE))]
    missing = [path for path in rounds if not path.exists()]
    if missing:
        from paretobit.compress.model import Decoder

        bos_id = Tokenizer(source.companions).bos_id if "tokenizer.json" in source.companions else None
        decoder = Decoder(source, device=device, keep=True)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with progress("the model writes its calibration text", len(missing) * (WINDOW - 1)) as advance:
            for path in missing:
                ids = _one_round(decoder, [seed, rounds.index(path)], bos_id, advance)
                beside = path.with_name(f"{path.stem}.{os.getpid()}.npy")
                with disk_errors(path):
                    np.save(beside, ids, allow_pickle=False)
                    beside.rename(path)
    return np.concatenate([np.load(path, allow_pickle=False) for path in rounds])[:count].astype(np.int64)


def _one_round(decoder: Decoder, seeds: list[int], bos_id: int | None, advance: Advance) -> np.ndarray:
    """int64 (16, 512): sixteen texts, each from a random first token, after BOS where the tokenizer adds one."""
    import torch

    from paretobit.compress.sampling import stream

    random = np.random.default_rng(seeds)
    first = torch.from_numpy(random.integers(0, decoder.arch.vocab, (SEQUENCES_AT_ONCE, 1)))
    if bos_id is not None:
        first = torch.cat([torch.full_like(first, bos_id), first], 1)
    generator = torch.Generator(decoder.device).manual_seed(int(random.integers(1 << 31)))
    columns = [first]
    for column in stream(decoder, first, WINDOW - first.shape[1], 1.0, generator):
        columns.append(column.cpu()[:, None])
        advance(1)
    return torch.cat(columns, 1).numpy()
