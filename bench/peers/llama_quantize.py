"""GGUF files that llama.cpp's quantizer makes from a model with an importance matrix, each made once and kept.

    python -m bench.peers.llama_quantize demo:smollm2 [--type Q3_K_M ...] [--calib self] [--tokens 32768]

The model is exported in 16 bits without a tokenizer, so a file's bytes are those of its weights. The importance
matrix comes from the calibration tokens that `paretobit quantize` takes for the same --calib and --tokens. A type
"IQ2_XXS+IQ4_NL" has its embedding in another type than llama.cpp's own choice (--token-embedding-type). Prints each
file's size beside the model's in 16 bits.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from bench.peers import imatrix
from bench.peers.gguf_export import export
from bench.peers.llama_cpp import VERSION, kept
from bench.peers.llama_tools import tools
from paretobit import hardware, open_model
from paretobit.checkpoint.base import Checkpoint
from paretobit.compress.corpus import Corpus, gather

TYPES = ("Q8_0", "Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_M", "Q3_K_S", "IQ3_XXS", "Q2_K", "IQ2_M", "IQ2_XXS", "IQ1_M")
FINE = ("IQ4", "Q4", "Q5", "Q6", "Q8")  # types of at least 4 bits; all of llama.cpp's have groups of at most 32


@dataclass(frozen=True)
class Quantized:
    """seconds: llama-quantize's; fine_share: of the weights, those in types of at least 4 bits."""

    path: Path
    seconds: float
    command: str

    @property
    def fine_share(self) -> float:
        import gguf

        fine = total = 0
        for tensor in gguf.GGUFReader(self.path).tensors:
            if len(tensor.shape) == 2:
                total += int(tensor.n_elements)
                fine += int(tensor.n_elements) * tensor.tensor_type.name.startswith(FINE)
        return fine / total


def is_fine(kind: str) -> bool:
    """A type of at least 4 bits: its grid can hold the levels of a model that was quantized to 4 bits before."""
    return kind.startswith(FINE)


def whole_file(source: Checkpoint) -> Path:
    """The model in 16 bits."""
    path = kept(source, "gguf16") / "whole.gguf"
    if not path.exists():
        beside = path.with_suffix(f".{os.getpid()}.partial")
        export(source, beside)
        beside.rename(path)
    return path


def importance(source: Checkpoint, corpus: Corpus) -> Path:
    """The importance matrix of a calibration text."""
    path = kept(source, "imatrix") / f"{corpus.hash[:16]}.gguf"
    if not path.exists():
        beside = path.with_suffix(f".{os.getpid()}.partial")
        imatrix.write(beside, imatrix.squares(source, corpus.ids), corpus.ids, corpus.source)
        beside.rename(path)
    return path


def quantized(source: Checkpoint, kind: str, corpus: Corpus, again: bool = False) -> Quantized:
    """The file of one type; seconds are 0 where it lay there already. Ends the program if llama.cpp refuses."""
    base, _, embedding = kind.partition("+")
    options = ["--token-embedding-type", embedding] if embedding else []
    shown = " ".join(["llama-quantize --imatrix IMATRIX", *options, "MODEL16.gguf OUT.gguf", base])
    path = kept(source, f"gguf-{corpus.hash[:16]}") / f"{kind}.gguf"
    started, seconds = time.monotonic(), 0.0
    if again or not path.exists():
        whole, matrix, beside = (
            whole_file(source),
            importance(source, corpus),
            path.with_suffix(f".{os.getpid()}.partial"),
        )
        started = time.monotonic()
        command = [tools()["llama-quantize"], "--imatrix", matrix, *options, whole, beside, base, hardware.cores()]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, errors="replace")
        if done.returncode:
            raise SystemExit(f"llama-quantize to {kind}:\n{(done.stdout + done.stderr)[-2000:]}")
        beside.rename(path)
        seconds = time.monotonic() - started
    return Quantized(path, seconds, shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--type", action="append", help=f"may be repeated (default: {' '.join(TYPES)})")
    parser.add_argument("--calib", default="self")
    parser.add_argument("--tokens", type=int, default=32768)
    given = parser.parse_args()
    source = open_model(given.model)
    corpus = gather(source, given.calib, given.tokens, 0, "cpu")
    print(
        f"llama.cpp of llama-cpp-python {VERSION}; {source.name}, calibration {corpus.source}, {corpus.ids.size} tokens"
        f"\n\n| type | bytes | ÷ 16 bits | weights in types of 4 bits and more | seconds |\n{'|---' * 5}|"
    )
    for kind in given.type or TYPES:
        made = quantized(source, kind, corpus)
        size = made.path.stat().st_size
        print(f"| {kind} | {size:,} | {size / source.bits16:.3f} | {made.fine_share:.0%} | {made.seconds:.0f} |")


if __name__ == "__main__":
    main()
