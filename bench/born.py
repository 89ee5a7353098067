"""Models born quantized: one small decoder trained from nothing at every width, on the same tokens in the same order.

    python -m bench.born [--widths fp32 w4 w3 w2 w1.58 w1] [--steps 400] [--batch 4] [--data leads|FILE] [--text FILE]
                         [--budget w1] [--rate 0.001] [--windows 200] [--known] [--draw FOLDER]

Every width is trained twice: with the parameters of the default new model (6 blocks, 256 wide, bytes as tokens: 4.9 M),
and with as many as fit into the bytes that this model takes at --budget. Seed, data, order and steps are the same in
all runs; every matrix, embedding included, has the width. Finished runs stay in the cache and are not repeated.

Every model gets the learning rate that suits it: from --rate on, twice and half the best so far are tried until neither
is better, by the loss on the data's last twentieth, which no run is trained on.

The loss shown is the packed model's, in nats a byte of another text, which nothing was chosen by. --draw writes
born.svg.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import paretobit
from bench.pictures import picture
from paretobit import hardware
from paretobit.arch import resolve
from paretobit.artifact import Artifact
from paretobit.compress.scratch import completed
from paretobit.evals.text import read_text
from paretobit.planfile import uniform
from paretobit.scheme import parse
from paretobit.sizes import tensor_bytes
from paretobit.work import cache_folder, write_atomically

WIDTHS = ("fp32", "w4", "w3", "w2", "w1.58", "w1")
HEAD = 32  # of width
BLOCKS = 6
APART = 20  # one part of the data in so many is what rates are chosen by
PARAMETERS, BYTES = "parameters", "bytes"


@dataclass(frozen=True)
class Born:
    """One trained model. equal: what it has as much of as its rivals; chosen, loss: nats a byte of the data's last part
    and of the text that is shown; minutes: a processor's, training it."""

    scheme: str
    equal: str
    width: int
    rate: float
    parameters: int
    bytes: int
    chosen: float
    loss: float
    minutes: float


@dataclass(frozen=True)
class Texts:
    """What runs are trained on, what their rate is chosen by, and what is shown."""

    learned: Path
    choosing: Path
    shown: Path

    @classmethod
    def of(cls, data: Path, shown: Path, folder: Path) -> Texts:
        """With `data` cut in two, in `folder`."""
        text = read_text(data)
        cut = len(text) - len(text) // APART
        parts = {folder / f"{data.stem}.txt": text[:cut], folder / f"{data.stem}-end.txt": text[cut:]}
        folder.mkdir(parents=True, exist_ok=True)
        for path, part in parts.items():
            write_atomically(path, part.encode())
        return cls(*parts, shown)


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
    widths = [width for width in range(HEAD, 1024, HEAD) if size(config(width, HEAD // 2), scheme) < nbytes]
    tried = [config(width, mlp) for width in widths or [HEAD] for mlp in range(HEAD // 2, 12 * width, HEAD // 2)]

    def miss(of: dict[str, object]) -> tuple[bool, float]:
        ratio = int(str(of["intermediate_size"])) / int(str(of["hidden_size"]))
        off = abs(size(of, scheme) / nbytes - 1)
        return off > 0.02, abs(ratio - 8 / 3) if off <= 0.02 else off

    return min(tried, key=miss)


def born(of: dict[str, object], scheme: str, equal: str, rate: float, texts: Texts, given: argparse.Namespace) -> Born:
    """Trained, or found trained. Raises Unknown where it is not, and training is not wanted."""
    name = f"{scheme}-{of['hidden_size']}x{of['intermediate_size']}-{rate:g}"
    folder = cache_folder() / "born" / f"{texts.learned.stem}-{given.steps}x{given.batch}"
    folder.mkdir(parents=True, exist_ok=True)
    row, out, path = folder / f"{name}.row.json", folder / name, folder / f"{name}.config.json"
    if not row.exists():
        if given.known:
            raise Unknown
        path.write_text(json.dumps(of))
        begun = time.process_time()
        fit = paretobit.train(from_scratch=str(path), to=scheme, embed=scheme, data=str(texts.learned), rate=rate,
                              steps=given.steps, batch=given.batch, out=str(out))  # fmt: skip
        minutes = (time.process_time() - begun) / 60
        chosen, shown = (loss(out, text, given.windows) for text in (texts.choosing, texts.shown))
        facts = {"bytes": fit.size_bytes, "chosen": chosen, "loss": shown, "minutes": minutes}
        write_atomically(row, json.dumps(facts | {"parameters": Artifact(out).parameters}).encode())
    return Born(scheme, equal, int(str(of["hidden_size"])), rate, **json.loads(row.read_text()))


class Unknown(Exception):
    """A run that was not done."""


def loss(packed: Path, text: Path, windows: int) -> float:
    found = paretobit.evaluate(str(packed), text=str(text), windows=windows).text
    assert found is not None
    return math.log(found.perplexity)


def at_best_rate(run: Callable[[float], Born], rate: float) -> Born:
    """The run whose rate is better than half of it and twice."""
    best = run(rate)
    for factor in (0.5, 2.0):
        while (other := run(best.rate * factor)).chosen < best.chosen:
            best = other
    return best


def table(rows: Sequence[Born], equal: str) -> str:
    lines = ["| width | parameters | bytes | rate | validation loss | minutes |", "|---" * 6 + "|"]
    for row in rows:
        if row.equal == equal:
            counts = f"{row.parameters / 1e6:.2f} M | {row.bytes / 1e6:.3f} MB"
            lines.append(f"| {row.scheme} | {counts} | {row.rate:g} | {row.loss:.4f} | {row.minutes:.1f} |")
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
    parser.add_argument("--text", type=Path, help="held-out text (default: the demo's)")
    parser.add_argument("--budget", default="w1", choices=WIDTHS, help="whose bytes all get")
    parser.add_argument("--rate", type=float, default=1e-3, help="the learning rate that is tried first")
    parser.add_argument("--windows", type=int, default=200)
    parser.add_argument("--known", action="store_true", help="train nothing: print what is known")
    parser.add_argument("--draw", help="folder for the picture")
    given = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from paretobit.checkpoint.demo_text import held_out_text, other_text

    data = other_text() if given.data == "leads" else Path(given.data)
    texts = Texts.of(data, given.text or held_out_text(), cache_folder() / "born")
    usual = config(256)
    nbytes, rows = size(usual, given.budget), []
    for equal in (PARAMETERS, BYTES):
        for scheme in given.widths:
            of = usual if equal == PARAMETERS or scheme == given.budget else fitting(nbytes, scheme)
            with suppress(Unknown):
                rows += [at_best_rate(partial(born, of, scheme, equal, texts=texts, given=given), given.rate)]
    tokens = given.steps * given.batch * 512
    print(f"{tokens} bytes of {data.name}, loss on {given.windows} windows of {texts.shown.name}; {hardware.isa()}")
    for equal in (PARAMETERS, BYTES):
        print(f"\nEqual {equal}:\n\n{table(rows, equal)}")
    if given.draw:
        draw(rows, Path(given.draw) / "born.svg")


if __name__ == "__main__":
    main()
