"""Our GPTQ beside llm-compressor's: same weights, calibration tokens and evaluation, embedding and head left in floats.

    pip install '.[compress]' llmcompressor
    python bench/peers/gptq.py --calib FILE [--text FILE ...] [--model demo:smollm2] [--scheme w3g64]
                               [--tokens 8192] [--windows 40] [--peer METHOD/OBSERVER ...] [--also gptq.damp=0.02 ...]

Both sides start from one folder of float32 safetensors, written here from the (dequantized) model, and calibrate on the
token ids that `paretobit quantize --calib FILE` makes. llm-compressor runs at its documented defaults: act-order
"static", damping 0.01, inputs from the blocks rounded so far. It is given each of its three ways to choose a group's
range: memoryless_minmax (its default), memoryless_mse, and imatrix_mse, which weighs columns by the mean square of
their inputs. Its weights are read back from the model, checked to lie on the scheme's grid, and evaluated by the
decoder that evaluates ours; its own forward pass must agree with that. Its scales stay float32 where ours are fp16;
both are counted as 16 bits, and zero points as each format packs them: 3 bits there, 4 here. Without --text the
evaluation text is the demo's. The column "KL less ours" is the method's KL less that of our GPTQ, paired by window:
above zero, ours is better.

Seconds are from the loaded model to rounded weights; ours include writing the packed model.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from paretobit import hardware, open_model, quantize
from paretobit.artifact import Artifact
from paretobit.checkpoint.base import Checkpoint
from paretobit.compress.corpus import gather
from paretobit.evals.divergence import Comparison, compare, paired
from paretobit.evals.perplexity import Logits
from paretobit.evals.text import encode_windows, read_text
from paretobit.runtime.tokenizer import Tokenizer
from paretobit.scheme import Grid, parse
from paretobit.tensorfile import TensorWriter

OBSERVERS = ("memoryless_minmax", "memoryless_mse", "imatrix_mse")
DEFAULT_PEERS = ("rtn/memoryless_minmax", "rtn/memoryless_mse", *(f"gptq/{name}" for name in OBSERVERS))
SAME_LOGITS = 1e-2  # two float32 decoders differ by about 1e-4 in a logit; a wrong weight by far more


@dataclass
class Candidate:
    """One quantized model. weights: what replaces the original's tensors, float32; bits: a weight, scales included."""

    method: str
    version: str
    weights: dict[str, np.ndarray]
    bits: float
    seconds: float


class Replaced:
    """A checkpoint with some tensors replaced, as the decoder wants it. hash: of those tensors, where one is needed."""

    def __init__(self, source: Checkpoint, weights: dict[str, np.ndarray], hash: str = "") -> None:
        self.arch, self.hash, self._source, self._weights = source.arch, hash, source, weights

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        if name not in self._weights:
            return self._source.read(name, rows)
        return np.array(self._weights[name] if rows is None else self._weights[name][rows])


def matrices(source: Checkpoint) -> list[str]:
    """Names of the blocks' matrices: what both sides quantize."""
    arch = source.arch
    blocks = (arch.block_shapes(layer) for layer in range(arch.layers))
    return [name for block in blocks for name, shape in block.items() if len(shape) == 2]


def bits_per_weight(grid: Grid, source: Checkpoint) -> float:
    """Codes, 16-bit scales and packed zero points over the weights of the quantized matrices."""
    bits = weights = 0.0
    for name in matrices(source):
        rows, columns = source.shape(name)
        weights += rows * columns
        bits += rows * columns * math.log2(grid.levels)
        bits += rows * grid.groups(columns) * (16 + (math.log2(grid.levels) if grid.zero == "stored" else 0))
    return bits / weights


# ---- what both start from


def export(source: Checkpoint, folder: Path) -> None:
    """The model as a Hugging Face folder in float32."""
    entries = {name: ("F32", source.shape(name)) for name in source.names()}
    with TensorWriter(folder / "model.safetensors", entries, {"format": "pt"}) as writer:
        for name in entries:
            writer.write(name, source.read(name))
    (folder / "config.json").write_text(json.dumps({**source.config, "dtype": "float32"}))
    for name, content in source.companions.items():
        (folder / name).write_bytes(content)


# ---- the peer


def recipe(method: str, observer: str, grid: Grid) -> Any:
    """llm-compressor's modifier for our grid, at its defaults but for the grid and the observer."""
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier

    if grid.kind != "affine" or grid.zero == "mid":
        raise SystemExit("llm-compressor has affine grids with a stored or a two's complement zero point")
    weights: dict[str, Any] = {"num_bits": int(grid.bits), "type": "int", "symmetric": grid.zero != "stored"}
    weights |= {"observer": observer, "strategy": "group" if grid.group else "channel"}
    if grid.group:
        weights["group_size"] = grid.group
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    modifier = {"gptq": GPTQModifier, "rtn": QuantizationModifier}[method]
    return modifier(config_groups=groups, ignore=["lm_head"])


def run_peer(folder: Path, source: Checkpoint, windows: np.ndarray, grid: Grid, which: str) -> Candidate:
    """Quantize the exported folder with llm-compressor; checks grid and forward pass of what it made."""
    import datasets
    import torch
    import transformers

    with contextlib.redirect_stdout(sys.stderr):  # where its logger writes is settled at import
        from llmcompressor import oneshot
        from loguru import logger

    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    method, _, observer = which.partition("/")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = {"input_ids": windows.tolist(), "attention_mask": np.ones_like(windows).tolist()}
    started = time.monotonic()
    oneshot(
        model=model,
        dataset=datasets.Dataset.from_dict(rows),
        recipe=recipe(method, observer, grid),
        num_calibration_samples=len(windows),
        max_seq_length=windows.shape[1],
        shuffle_calibration_samples=False,
    )
    seconds = time.monotonic() - started
    weights = {}
    for name in matrices(source):
        module = model.get_submodule(name.removesuffix(".weight"))
        check_grid(name, module, grid)
        weights[name] = module.weight.detach().float().numpy().copy()
        if method == "rtn":  # llm-compressor rounds these in the forward pass
            weights[name] = on_grid(module, grid)
    check_forward(model, Replaced(source, weights), windows[:1])
    spoken = f"llm-compressor {method.upper()}, {observer}"
    return Candidate(spoken, version("llmcompressor"), weights, bits_per_weight(grid, source), seconds)


def on_grid(module: Any, grid: Grid) -> np.ndarray:
    """The layer's weights rounded to nearest on its own scales and zero points, float32 (out, in).

    In llm-compressor's order of float32 operations: ties are common in a model that was 4 bits before.
    """
    scale = module.weight_scale.detach().float().numpy()[:, :, None]
    zero = np.float32(0)
    if hasattr(module, "weight_zero_point"):
        zero = module.weight_zero_point.detach().float().numpy().reshape(scale.shape)
    weight = module.weight.detach().float().numpy()
    half = np.float32(grid.levels // 2)
    codes = np.rint(np.clip(weight.reshape(*scale.shape[:2], -1) / scale + zero, -half, half - 1))
    return ((codes - zero) * scale).reshape(weight.shape)


def check_grid(name: str, module: Any, grid: Grid) -> None:
    """Stop unless the layer has one scale a group and, once rounded, whole codes in the grid's range."""
    rows, columns = module.weight.shape
    if tuple(module.weight_scale.shape) != (rows, grid.groups(columns)):
        raise SystemExit(f"{name}: scales of shape {tuple(module.weight_scale.shape)}")
    rounded = on_grid(module, grid)
    check_levels({name: rounded}, grid)
    args = module.quantization_scheme.weights
    if args.actorder is None:  # RTN: weights stay as they were, only the scales are set
        return
    # float32 scales times whole codes: exact to a few rounding errors of the weight
    if not np.allclose(rounded, module.weight.detach().float().numpy(), rtol=1e-5, atol=1e-7):
        raise SystemExit(f"{name}: weights are not on the grid of their scales")


def check_levels(weights: dict[str, np.ndarray], grid: Grid) -> None:
    """Stop where a group of one of the first rows has more values than the grid has levels."""
    for name, weight in weights.items():
        size = grid.group or weight.shape[1]
        for start in range(0, weight.shape[1], size):
            for row in weight[:8, start : start + size]:
                if len(np.unique(row)) > grid.levels:
                    raise SystemExit(f"{name}: more than {grid.levels} values in a group")


def check_forward(model: Any, source: Replaced, tokens: np.ndarray) -> None:
    """Stop unless the peer's own forward pass gives the logits that we evaluate."""
    import torch

    with torch.inference_mode():
        theirs = model(torch.from_numpy(tokens)).logits.float().numpy()
    gap = float(np.abs(theirs - decoder(source)(tokens, 0)).max())
    if not gap < SAME_LOGITS:
        raise SystemExit(f"llm-compressor's forward pass and ours differ by {gap:.3g} in a logit")
    print(f"forward passes agree to {gap:.1e}", file=sys.stderr)


# ---- ours


def run_ours(given: argparse.Namespace, source: Checkpoint, calibration: str, method: str, option: str) -> Candidate:
    """`paretobit quantize` with the embedding left as it is, and one `--set` option or none."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        fit = quantize(given.model, out=str(out), to=given.scheme, method=method, embed="fp32", calib=given.calib,
                       tokens=given.tokens, set=(option,) if option else (), device="cpu")  # fmt: skip
        return read_ours(out, source, calibration, method, option, fit.seconds)


def read_ours(out: Path, source: Checkpoint, calibration: str, method: str, option: str, seconds: float) -> Candidate:
    """The matrices of a packed model; `calibration` is the hash that its calibration windows must have."""
    packed = Artifact(out)
    used = packed.manifest["fingerprint"]["calibration"].get("hash")
    if method != "rtn" and used != calibration:
        raise SystemExit("ours was calibrated on other windows")
    names = matrices(source)
    bits = 8 * sum(packed.nbytes(name) for name in names) / sum(math.prod(source.shape(name)) for name in names)
    spoken = f"paretobit {method.upper()}" + (f", {option}" if option else "")
    return Candidate(spoken, version("paretobit"), {name: packed.read(name) for name in names}, bits, seconds)


# ---- evaluation


def decoder(source: Any) -> Logits:
    """Logits of a checkpoint, by our decoder."""
    import torch

    from paretobit.compress.model import Decoder

    made = Decoder(source, device="cpu")

    def logits(tokens: np.ndarray, first: int) -> np.ndarray:
        with torch.inference_mode():
            return made.logits(tokens, first)

    return logits


def recorded(logits: Logits, folder: Path) -> Logits:
    """The same logits, computed once and kept on disk: every candidate is compared with the same original."""
    known: dict[tuple[bytes, int], Path] = {}

    def read(tokens: np.ndarray, first: int) -> np.ndarray:
        key = (tokens.tobytes(), first)
        if key not in known:
            path = folder / f"logits-{len(known)}.npy"
            np.save(path, logits(tokens, first))
            known[key] = path
        return np.load(known[key])

    return read


def evaluate(source: Checkpoint, text: Path, count: int, candidates: list[Candidate]) -> list[Comparison]:
    """One comparison a candidate, with the original, on the first `count` windows of `text`."""
    tokenizer = Tokenizer(source.companions)
    windows = encode_windows(tokenizer, read_text(text), limit=count)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        original = recorded(decoder(source), Path(folder))
        for candidate in candidates:
            logits = decoder(Replaced(source, candidate.weights))
            found.append(compare(logits, windows, original, bos_id=tokenizer.bos_id))
            print(f"{text.name}: {candidate.method} measured", file=sys.stderr)
    return found


def table(candidates: list[Candidate], comparisons: list[Comparison]) -> str:
    """A Markdown table; our GPTQ is the last candidate, what the others are compared with."""
    header = "method | version | bits per weight | KL | perplexity | same top-1 | KL less ours | seconds"
    lines = [f"| {header} |", "|" + "---|" * (header.count("|") + 1)]
    ours = comparisons[-1]
    for candidate, found in zip(candidates, comparisons, strict=True):
        kl, same = found.kl_divergence or {}, found.share("same_top1")
        gap = "" if found is ours else _signed(paired(found, ours))
        cells = [
            candidate.method,
            candidate.version,
            f"{candidate.bits:.3f}",
            f"{kl['mean']:.4f} ± {kl['stderr'] or 0:.4f}",
            f"{found.perplexity:.2f}",
            f"{same[0]:.1%} ± {same[1] or 0:.1%}",
            gap,
            f"{candidate.seconds:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _signed(pair: dict[str, Any]) -> str:
    return f"{pair['kl_difference']:+.4f} ± {pair['kl_difference_stderr'] or 0:.4f}"


def report(given: argparse.Namespace, source: Checkpoint, candidates: list[Candidate]) -> None:
    """Print one table a text, under what it was made with."""
    import torch

    from paretobit.checkpoint.demo_text import held_out_text

    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "compressed-tensors"))
    print(f"{source.name} {given.scheme}; calibration {Path(given.calib).name}, {given.tokens} tokens; embedding and "
          f"head in floats; {hardware.isa()}, {torch.get_num_threads()} thread(s); {libraries}")  # fmt: skip
    for text in [Path(path) for path in given.text] or [held_out_text()]:
        comparisons = evaluate(source, text, given.windows, candidates)
        print(f"\n{text.name}: {comparisons[0].windows} windows, perplexity of the original "
              f"{comparisons[0].reference_perplexity:.2f}\n\n{table(candidates, comparisons)}", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo:smollm2")
    parser.add_argument("--scheme", default="w3g64")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--calib", required=True, help="calibration text (a file)")
    parser.add_argument("--text", action="append", default=[], help="evaluation text; may be repeated")
    parser.add_argument("--peer", action="append", help=f"METHOD/OBSERVER (default: {' '.join(DEFAULT_PEERS)})")
    parser.add_argument("--also", action="append", default=[], help="a second run of our GPTQ with this --set option")
    given = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    source, grid = open_model(given.model), parse(given.scheme).weight
    corpus = gather(source, given.calib, given.tokens, 0, "cpu")
    candidates = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "original"
        folder.mkdir()
        export(source, folder)
        for which in DEFAULT_PEERS if given.peer is None else given.peer:
            candidates.append(run_peer(folder, source, corpus.ids, grid, which))
    for method, option in (("rtn", ""), *(("gptq", option) for option in [*given.also, ""])):
        candidates.append(run_ours(given, source, corpus.hash, method, option))
    report(given, source, candidates)


if __name__ == "__main__":
    main()
