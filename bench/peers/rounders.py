"""Other libraries' rounding of a model's blocks, at their defaults: AutoRound, and llm-compressor's GPTQ.

    pip install '.[compress]' auto-round llmcompressor

Both start from one folder of float32 safetensors and calibrate on the same token ids as everybody in bench/frontier.py.
llm-compressor chooses its ranges with its best observer, imatrix_mse. What comes back must lie on the grid.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import numpy as np

from bench.peers.gptq import Candidate, check_levels, export, matrices, run_peer
from bench.peers.llama_cpp import kept
from paretobit.checkpoint.base import Checkpoint
from paretobit.compress.corpus import Corpus
from paretobit.errors import ParetobitError
from paretobit.scheme import Grid, parse
from paretobit.tensorfile import SafetensorsFile, write_arrays

Round = Callable[[Path, Checkpoint, np.ndarray, Grid], Candidate]


@dataclass(frozen=True)
class Rounded:
    """The blocks' matrices as a library rounded them, float32, in a file; version: the library's."""

    path: Path
    version: str
    seconds: float

    def weights(self) -> dict[str, np.ndarray]:
        file = SafetensorsFile(self.path)
        return {name: file.read_float32(name) for name in file.tensors}


def rounded(source: Checkpoint, library: str, scheme: str, corpus: Corpus, again: bool = False) -> Rounded:
    """Round with a library of LIBRARIES, once. Raises ParetobitError where it is not installed."""
    module, run = LIBRARIES[library]
    path = kept(source, "rounders") / f"{module}-{scheme}-{corpus.hash[:16]}.safetensors"
    facts = path.with_suffix(".json")
    if again or not facts.exists():
        try:
            import_module(module)
        except ImportError as why:
            raise ParetobitError(f"no {library}: {why}", hint="pip install it beside paretobit") from why
        grid = parse(scheme).weight
        with tempfile.TemporaryDirectory() as scratch:
            export(source, Path(scratch))
            found = run(Path(scratch), source, corpus.ids, grid)
        write_arrays(path, found.weights)
        facts.write_text(json.dumps({"version": found.version, "seconds": found.seconds}))
    return Rounded(path, **json.loads(facts.read_text()))


def auto_round(folder: Path, source: Checkpoint, windows: np.ndarray, grid: Grid) -> Candidate:
    """AutoRound (Cheng et al., arXiv 2309.05516), the algorithm's defaults: 200 steps of 8 windows a block."""
    import torch
    import transformers

    with contextlib.redirect_stdout(sys.stderr):
        from auto_round import AutoRound
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = [{"input_ids": torch.from_numpy(row), "attention_mask": torch.ones(len(row), dtype=torch.int64)}
           for row in windows]  # fmt: skip
    how = AutoRound(
        model, tokenizer, bits=int(grid.bits), group_size=grid.group or -1, sym=grid.zero != "stored",
        dataset=torch.utils.data.DataLoader(ids, batch_size=8), nsamples=len(windows), seqlen=windows.shape[1],
        batch_size=8, device_map="cpu",
    )  # fmt: skip
    started = time.monotonic()
    made, _ = how.quantize()
    seconds = time.monotonic() - started
    weights = {name: made.get_parameter(name).detach().float().numpy().copy() for name in matrices(source)}
    check_levels(weights, grid)
    return Candidate("AutoRound", version("auto-round"), weights, 0.0, seconds)


def llm_compressor(folder: Path, source: Checkpoint, windows: np.ndarray, grid: Grid) -> Candidate:
    return run_peer(folder, source, windows, grid, "gptq/imatrix_mse")


LIBRARIES: dict[str, tuple[str, Round]] = {
    "llm-compressor": ("llmcompressor", llm_compressor),
    "AutoRound": ("auto_round", auto_round),
}
