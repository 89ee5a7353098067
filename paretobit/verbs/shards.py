"""One shard of a calibration: statistics of the full-precision model, to be merged with others'."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from paretobit.errors import ParetobitError
from paretobit.verbs.quantize import Fit

if TYPE_CHECKING:
    from paretobit.checkpoint.base import Checkpoint


def collect_shard(
    source: Checkpoint,
    out: Path,
    shard: str,
    calib: str,
    tokens: int,
    seed: int,
    device: str,
    overwrite: bool,
) -> Fit:
    """The full-precision model's statistics over one shard of the calibration text, as a folder."""
    from paretobit import __version__
    from paretobit.compress import statsfile
    from paretobit.compress.corpus import gather
    from paretobit.work import MANIFEST, Work, write_atomically

    started = time.monotonic()
    index, of = parse_shard(shard)
    corpus = gather(source, calib, tokens, seed, device)
    fingerprint = {"model": source.hash, "calibration": corpus.record, "shard": shard, "version": __version__}
    work = Work(out, statsfile.KIND, fingerprint)
    if not work.finished(overwrite):
        part = corpus.shard(index, of)
        with work.open(overwrite):
            files = statsfile.collect(source, part, work, device)
            manifest = {
                "kind": statsfile.KIND, "fingerprint": fingerprint, "model": source.hash, "calibration": corpus.record,
                "config": source.config, "shards": [index], "of": of, "tokens": int(part.size),
            }  # fmt: skip
            with work.publish() as folder:
                for file in files:
                    work.take(file, folder)
                write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())
    size = sum(file.stat().st_size for file in out.iterdir())
    return Fit(str(out), size, source.bits16, 0.0, time.monotonic() - started, (f"statistics of shard {shard}",))


def parse_shard(text: str) -> tuple[int, int]:
    """ "1/4" -> (1, 4)."""
    index, _, of = text.partition("/")
    if not (index.isdecimal() and of.isdecimal() and int(index) < int(of)):
        raise ParetobitError(f"'{text}' is not a shard", hint="write i/N with 0 ≤ i < N, for example --shard 0/4")
    return int(index), int(of)
