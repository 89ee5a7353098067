"""Models born quantized: one small decoder trained from nothing at every width, on the same tokens in the same order.

    python -m bench.born [--widths fp32 w4 w3 w2 w1.58 w1] [--steps 400] [--batch 4] [--data leads|FILE] [--text FILE]
                         [--budget w2] [--windows 200] [--known] [--draw FOLDER]

Every width is trained twice: with the parameters of the default new model (6 blocks, 256 wide, bytes as tokens: 4.9 M),
and with as many as fit into the bytes that this model takes at --budget. Seed, data, order and steps are the same in
all runs; every matrix, embedding included, has the width. Finished runs stay in the cache and are not repeated.

The loss is the packed model's, in nats a byte of a text that no run has seen. --draw writes born.svg.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import paretobit
from bench.pictures import picture
from paretobit import hardware
from paretobit.arch import resolve
from paretobit.artifact import Artifact
from paretobit.compress.scratch import completed
from paretobit.planfile import uniform
from paretobit.scheme import parse
from paretobit.sizes import tensor_bytes
from paretobit.work import cache_folder

WIDTHS = ("fp32", "w4", "w3", "w2", "w1.58", "w1")
HEAD = 32  # of width
BLOCKS = 6
PARAMETERS, BYTES = "parameters", "bytes"


@dataclass(frozen=True)
class Born:
    """One trained model. equal: what it has as much of as its rivals; loss: nats a byte; minutes: of training."""

    scheme: str
    equal: str
    width: int
    parameters: int
    bytes: int
    loss: float
    minutes: float


def config(width: int, mlp: int | None = None) -> dict[str, object]:
    found: dict[str, object] = {"hidden_size": width, "num_attention_heads": width // HEAD, "num_hidden_layers": BLOCKS}
    return completed(found | ({} if mlp is None else {"intermediate_size": mlp}))


def size(of: dict[str, object], scheme: str) -> int:
    """Bytes of such a model's tensors packed, every matrix on `scheme`."""
    arch = resolve(of)
    plan = uniform(arch, "", scheme, scheme, ("",) * 3, {}).layers
    kinds = {name: plan[name].scheme if name in plan else parse("bf16") for name in arch.shapes()}
    return sum(tensor_bytes(kinds[name], shape) for name, shape in arch.shapes().items())


def fitting(nbytes: int, scheme: str) -> dict[str, object]:
    """The config nearest to so many bytes, its MLP as near as can be to 8/3 of its width."""
    usual = [width for width in range(HEAD, 1024, HEAD) if size(config(width), scheme) < 1.3 * nbytes]
    tried = [config(width, mlp) for width in usual[-2:] or [HEAD] for mlp in range(2 * width, 4 * width, HEAD // 2)]

    def miss(of: dict[str, object]) -> tuple[bool, float]:
        ratio = int(str(of["intermediate_size"])) / int(str(of["hidden_size"]))
        off = abs(size(of, scheme) / nbytes - 1)
        return off > 0.02, abs(ratio - 8 / 3) if off <= 0.02 else off

    return min(tried, key=miss)


def born(of: dict[str, object], scheme: str, equal: str, given: argparse.Namespace) -> Born | None:
    """Trained, or found trained; None where neither may be."""
    name = f"{scheme}-{of['hidden_size']}x{of['intermediate_size']}"
    folder = cache_folder() / "born" / f"{Path(given.data).stem}-{given.steps}x{given.batch}"
    folder.mkdir(parents=True, exist_ok=True)
    row, out, path = folder / f"{name}.row.json", folder / name, folder / f"{name}.config.json"
    if not row.exists():
        if given.known:
            return None
        path.write_text(json.dumps(of))
        begun = time.monotonic()
        fit = paretobit.train(from_scratch=str(path), to=scheme, embed=scheme, data=given.data, steps=given.steps,
                              batch=given.batch, out=str(out))  # fmt: skip
        minutes = (time.monotonic() - begun) / 60
        found = paretobit.evaluate(str(out), text=given.text, windows=given.windows)
        assert found.text is not None
        facts = {"bytes": fit.size_bytes, "loss": math.log(found.text.perplexity), "minutes": minutes}
        row.write_text(json.dumps(facts | {"parameters": Artifact(out).parameters}))
    return Born(scheme, equal, int(str(of["hidden_size"])), **json.loads(row.read_text()))


def table(rows: Sequence[Born], equal: str) -> str:
    lines = ["| width | parameters | bytes | validation loss | minutes |", "|---|---|---|---|---|"]
    for row in rows:
        if row.equal == equal:
            counts = f"{row.parameters / 1e6:.2f} M | {row.bytes / 1e6:.3f} MB"
            lines.append(f"| {row.scheme} | {counts} | {row.loss:.4f} | {row.minutes:.1f} |")
    return "\n".join(lines)


def draw(rows: Sequence[Born], path: Path) -> None:
    """Bytes against loss: a line a width, through its two models."""
    with picture(path, (8, 5)) as axes:
        for scheme in WIDTHS:
            mine = sorted((row for row in rows if row.scheme == scheme), key=lambda row: row.bytes)
            axes.plot([row.bytes / 1e6 for row in mine], [row.loss for row in mine], "o-", label=scheme)
            for row in mine:
                axes.annotate(f"{row.parameters / 1e6:.1f} M", (row.bytes / 1e6, row.loss), (4, 4),
                              textcoords="offset points", fontsize=7)  # fmt: skip
        axes.set(xscale="log", xlabel="MB", ylabel="validation loss, nats a byte")
        axes.set_title("Born quantized: the same tokens at every width")
        axes.grid(alpha=0.25, which="both")
        axes.legend()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", nargs="+", default=list(WIDTHS), choices=WIDTHS)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--data", default="leads")
    parser.add_argument("--text", help="held-out text (default: the demo's)")
    parser.add_argument("--budget", default="w2", choices=WIDTHS, help="whose bytes all get")
    parser.add_argument("--windows", type=int, default=200)
    parser.add_argument("--known", action="store_true", help="train nothing: print what is known")
    parser.add_argument("--draw", help="folder for the picture")
    given = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from paretobit.checkpoint.demo_text import held_out_text, other_text

    given.data = str(other_text()) if given.data == "leads" else given.data
    given.text = given.text or str(held_out_text())
    usual = config(256)
    nbytes, rows = size(usual, given.budget), []
    for equal in (PARAMETERS, BYTES):
        for scheme in given.widths:
            of = usual if equal == PARAMETERS or scheme == given.budget else fitting(nbytes, scheme)
            rows += [row for row in [born(of, scheme, equal, given)] if row is not None]
    tokens = given.steps * given.batch * 512
    print(f"{tokens} bytes of {Path(given.data).name}, loss on {given.windows} windows of {Path(given.text).name}; "
          f"{hardware.isa()}")  # fmt: skip
    for equal in (PARAMETERS, BYTES):
        print(f"\nEqual {equal}:\n\n{table(rows, equal)}")
    if given.draw:
        draw(rows, Path(given.draw) / "born.svg")


if __name__ == "__main__":
    main()
