"""What it costs to hand packed models over to formats that cannot hold them, and to formats that can: nothing.

    python -m bench.exports OUT... [--to gguf ...] [--bits 4,8] [--text FILE] [--json]

OUT are packed models. Each is exported to each format, with another rounding where that is needed, at every width of
--bits; the KL divergence is of what was written, as our readers (ONNX: ONNX Runtime) read it, to the packed model, on
8 windows of the text, which is the model's own without --text. Nothing is kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import paretobit as pb
from paretobit.exporters import find, names
from paretobit.verbs.export import Exported


def export(out: str, form: str, bits: int, text: str | None, folder: Path) -> Exported:
    path = folder / f"exported{find(form).SUFFIX}"
    return pb.export(out, to=form, path=str(path), lossy=True, bits=bits, text=text, overwrite=True)


def table(rows: list[tuple[str, int, Exported]]) -> str:
    lines = ["| packed model | format | at least | MB | KL |", "|---|---|---|---|---|"]
    for out, bits, done in rows:
        kl = "0, exact" if done.kl_divergence is None else f"{done.kl_divergence:.4f} ± {done.kl_stderr or 0:.4f}"
        lines.append(f"| {Path(out).name} | {done.format} | {bits} bits | {done.size_bytes / 1e6:.1f} | {kl} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="+")
    parser.add_argument("--to", action="append", choices=names(), help="may be repeated (default: all but hf)")
    parser.add_argument("--bits", default="4,8")
    parser.add_argument("--text")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for out in given.out:
            for form in given.to or [name for name in names() if name != "hf"]:
                for bits in map(int, given.bits.split(",")):
                    rows.append((out, bits, export(out, form, bits, given.text, Path(scratch))))
                    print(table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    if given.json:
        print(json.dumps([{"packed": out, "bits": bits, **done.to_json()} for out, bits, done in rows], indent=1))
    else:
        print(table(rows))


if __name__ == "__main__":
    main()
