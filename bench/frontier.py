"""The frontier of size and KL divergence: every way to make one model small, measured alike.

    python -m bench.frontier demo:smollm2 demo:gemma3 [--only ours|FAMILY] [--calib self|leads|FILE]
                             [--tokens 32768] [--text FILE] [--windows 80] [--point NAME ...] [--again]
                             [--pair A B ...] [--rows FILE] [--beside DOCUMENT] [--draw FOLDER] [--json]

Contestants are listed in bench/frontier_points.py: paretobit's methods, embedding included, and llama.cpp's types with
an importance matrix. All calibrate on the same tokens (leads: articles like those held out, but others), and our
decoder evaluates all of them against the same original on the same windows, as docs/evaluation.md says; a GGUF file's
values are those that llama.cpp computes with. Sizes are of all that is needed to compute logits, without a tokenizer.

What is measured is remembered window by window in the cache folder (frontier/rows.jsonl), so a second run, or one with
more windows, only measures what is missing; --again makes the chosen points anew. `*` marks a row made by another state
of paretobit's sources. `○` marks a grid of 4 bits and more with groups of at most 32: the demo models were dequantized
from such grids, so these rows show how well the source's own levels are found again, and they stay out of the frontier.
Ends with what the table says on the acceptance bars of bench/frontier_report.py, and, where models were planned, how
they compare with all blocks on one scheme (bench/frontier_planned.py; --beside: and with llama.cpp's types as a
document's table has them). --draw writes frontier-MODEL.svg, or planned-MODEL.svg (needs matplotlib). --rows keeps what
is measured in a file, instead of in the cache. --known measures nothing and prints what is known.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from bench import frontier_planned
from bench.frontier_picture import draw, written
from bench.frontier_points import Calibration, Point, points
from bench.frontier_report import LLAMA, bars, pair_line, table
from bench.frontier_rows import Original, Row, Rows, key_of, measure, window_id
from paretobit import hardware, open_model
from paretobit.checkpoint.base import Checkpoint
from paretobit.compress.corpus import gather
from paretobit.errors import ParetobitError
from paretobit.evals.text import encode_windows, read_text
from paretobit.runtime.tokenizer import Tokenizer


def wanted(given: argparse.Namespace) -> list[Point]:
    found = points(given.only)
    if given.point:
        unknown = set(given.point) - {point.name for point in found}
        if unknown:
            raise SystemExit(f"no point {', '.join(sorted(unknown))}; there are: {', '.join(p.name for p in found)}")
        found = sorted((p for p in found if p.name in given.point), key=lambda p: given.point.index(p.name))
    return found


def rows_of(model: str, source: Checkpoint, text: Path, given: argparse.Namespace) -> list[Row]:
    """A row of every point that can be made; says on stderr which cannot, and why."""
    calibration = Calibration(given.calib, given.tokens, gather(source, given.calib, given.tokens, 0, "cpu"))
    windows = encode_windows(Tokenizer(source.companions), read_text(text), limit=given.windows)
    original, known, ids = None, Rows(given.rows), [window_id(window) for window in windows]
    for point in [] if given.known else wanted(given):
        if known.get(key_of(point, source, calibration), ids) is None or given.again:
            original = original or Original(source, windows)
            try:
                measure(point, model, source, calibration, windows, original, known, given.again)
            except ParetobitError as why:
                print(f"skipped {point.name}: {why}", file=sys.stderr)
    rows = (known.get(key_of(point, source, calibration), ids) for point in points(given.only))
    print(f"\n{source.name}: {len(windows)} windows of {text.name}; calibration {calibration.corpus.source}, "
          f"{calibration.corpus.ids.size} tokens; {hardware.isa()}")  # fmt: skip
    return [row for row in rows if row is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="+")
    parser.add_argument("--only", help="ours, or a family: the second column of the table")
    parser.add_argument("--calib", default="self")
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--text", help="held-out text (default: the demo's)")
    parser.add_argument("--windows", type=int, default=80)
    parser.add_argument("--point", action="append", help="measure only this one; may be repeated, and sets the order")
    parser.add_argument("--again", action="store_true", help="measure anew what is already known")
    parser.add_argument("--known", action="store_true", help="measure nothing: print what is known")
    parser.add_argument("--pair", nargs=2, action="append", default=[], metavar=("A", "B"), help="KL of A less B's")
    parser.add_argument("--rows", type=Path, help="a file of rows to read and add to (default: the cache's)")
    parser.add_argument("--beside", type=Path, help="a document whose tables have more rows, such as docs/frontier.md")
    parser.add_argument("--draw", help="folder for the pictures")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if given.text is None:
        from paretobit.checkpoint.demo_text import held_out_text

        given.text = held_out_text()
    if given.calib == "leads":
        from paretobit.checkpoint.demo_text import other_text

        given.calib = str(other_text())
    for model in given.model:
        source = open_model(model)
        rows = rows_of(model, source, Path(given.text), given)
        if given.json:
            print(json.dumps([row.to_json() for row in rows], indent=1))
            continue
        if not rows:
            print("no rows")
            continue
        print(f"the original: perplexity {rows[0].reference_perplexity:.2f}, {source.bits16 / 1e6:.1f} MB in 16 bits\n")
        print("\n".join([table(rows), "", *bars(rows), *(pair_line(rows, a, b) for a, b in given.pair)]), flush=True)
        name, title = model.rpartition(":")[2].rpartition("/")[2], f"{model}: {len(rows[0].per_window['nll'])} windows"
        beside = written(given.beside.read_text()).get(name, []) if given.beside else []
        beside = [row for row in beside if row.family == LLAMA]  # ours may have had another text
        print("\n".join(["", *frontier_planned.lines(rows, beside)]), flush=True)
        if given.draw and frontier_planned.planned(rows):
            frontier_planned.draw(rows, beside, title, Path(given.draw) / f"planned-{name}.svg")
        elif given.draw:
            draw(rows, title, Path(given.draw) / f"frontier-{name}.svg")


if __name__ == "__main__":
    main()
