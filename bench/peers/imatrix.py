"""llama.cpp's importance matrix from the token windows that everybody else calibrates on.

    python -m bench.peers.imatrix demo:smollm2 --text FILE [--windows 16]

An importance matrix is, for each matrix of the blocks, the mean square of every input channel over the calibration
tokens: the diagonal of the Hessian that GPTQ uses. llama-imatrix computes it from text, so its tokens would be others
than ours; here our decoder computes it from token ids, and it is written in llama-imatrix's own GGUF format. As
llama-imatrix does by default, embedding and head are left out, and every position of a window counts.

Run alone, it computes both on the same text and prints how much they differ, which needs a model whose tokenizer adds
no BOS (where one does, llama-imatrix puts it before the text and its windows start one token earlier). On SmolLM2's
4-bit file and 8 windows of Wikipedia leads the 210 matrices differ by 0.12 % in the median and 1.9 % at most: llama.cpp
multiplies such a file with activations rounded to 8 bits, ours in float32.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bench.peers.llama_tools import tools
from paretobit import open_model
from paretobit.checkpoint.base import Checkpoint
from paretobit.evals.text import encode_windows, read_text
from paretobit.exporters.gguf import stored_name

WINDOWS_AT_ONCE = 8


def squares(source: Checkpoint, windows: np.ndarray) -> dict[str, np.ndarray]:
    """GGUF tensor name -> float64 (columns,), the sum over all tokens of windows (n, tokens) of x² of each channel."""
    import torch

    from paretobit.compress import calibrate
    from paretobit.compress.model import Decoder

    arch = source.arch
    decoder = Decoder(source, device="cpu", keep=False)
    found: dict[str, np.ndarray] = {}
    with torch.inference_mode():
        states = list(calibrate.embed(decoder, torch.from_numpy(windows)).split(WINDOWS_AT_ONCE))
        for layer in range(arch.layers):
            weights, sums = decoder.weights(layer), {}
            for i, x in enumerate(states):
                steps = decoder.block(layer, weights, x)
                try:
                    while True:
                        tap, y, _ = next(steps)
                        sums[tap] = sums.get(tap, 0) + y.double().square().sum((0, 1)).numpy()
                except StopIteration as stop:
                    states[i] = stop.value
            for tap in arch.taps(layer):
                found |= {stored_name(source, name): sums[tap.name] for name in tap.consumers}
    return found


def write(path: Path, sums: Mapping[str, np.ndarray], windows: np.ndarray, text: str) -> None:
    """An importance matrix as llama-imatrix writes it: sums of squares, and of how many tokens."""
    import gguf

    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [text])
    writer.add_uint32("imatrix.chunk_count", windows.shape[0])
    writer.add_uint32("imatrix.chunk_size", windows.shape[1])
    for name, values in sorted(sums.items()):
        writer.add_tensor(f"{name}.in_sum2", values.astype(np.float32)[None])
        writer.add_tensor(f"{name}.counts", np.full((1, 1), windows.size, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read(path: Path) -> dict[str, np.ndarray]:
    """GGUF tensor name -> float32 (columns,), the mean squares in an importance matrix of ours or of llama-imatrix."""
    import gguf

    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    ends = ".in_sum2"
    names = [name.removesuffix(ends) for name in tensors if name.endswith(ends)]
    return {name: tensors[name + ends].reshape(-1) / tensors[f"{name}.counts"].item() for name in names}


def differences(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> np.ndarray:
    """‖ours - theirs‖ / ‖theirs‖ of every matrix. Ends the program where they do not name the same ones."""
    if ours.keys() != theirs.keys():
        raise SystemExit(f"only in one of the two: {', '.join(sorted(ours.keys() ^ theirs.keys()))}")
    return np.array([np.linalg.norm(ours[name] - theirs[name]) / np.linalg.norm(theirs[name]) for name in ours])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file or a demo model: llama-imatrix needs its tokenizer")
    parser.add_argument("--text", required=True)
    parser.add_argument("--windows", type=int, default=16)
    given = parser.parse_args()
    from paretobit.runtime.tokenizer import Tokenizer

    source = open_model(given.model)
    tokenizer = Tokenizer(source.companions)
    if tokenizer.bos_id is not None:
        raise SystemExit(f"{source.name}: its tokenizer adds BOS, so the two would see other windows")
    windows = encode_windows(tokenizer, read_text(given.text), limit=given.windows)
    ours = {name: values / windows.size for name, values in squares(source, windows).items()}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "imatrix.gguf"
        command = [tools()["llama-imatrix"], "-m", source.path, "-f", given.text, "-o", out, "--no-ppl"]  # type: ignore[attr-defined]
        size = ["-c", str(windows.shape[1]), "-b", str(windows.shape[1]), "--chunks", str(len(windows))]
        subprocess.run([*command, *size], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        apart = differences(ours, read(out))
    print(f"{source.name}: {len(apart)} matrices, {windows.size} tokens; relative difference from llama-imatrix: "
          f"median {np.median(apart):.2%}, largest {apart.max():.2%}")  # fmt: skip


if __name__ == "__main__":
    main()
