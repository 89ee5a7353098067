"""The README's table of schemes and formats is what exports do: every cell is tried, read back and compared.

To renew the table, copy what the test prints when it fails. Figures of KL are another's: `python -m bench.exports`
measures them on real models; the test leaves them alone.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

import paretobit as pb
from paretobit.artifact import Artifact
from paretobit.exporters import Request, find
from paretobit.planfile import is_embedding
from tests.packed import Shelf

README = Path(__file__).parent.parent.parent / "README.md"
BEGIN, END = "<!-- exports: begin -->\n", "<!-- exports: end -->"
SCHEMES = (
    "w8g32", "w8", "w6g64", "w6", "w5", "w4g64", "w4g32s", "w4", "w3g64", "w3", "w2g64", "w2", "w1.58", "w1", "w4g16",
    "w4t", "w3t", "w2t", "bf16",
)  # fmt: skip
FORMATS = ("hf", "gguf", "compressed-tensors", "onnx", "onnx --int8")
WIDE = {"hidden_size": 64, "intermediate_size": 256}  # down_proj has rows for the types of 256 columns
COST = re.compile(r": KL [0-9.]+")


def packed_on(shelf: Shelf, scheme: str) -> Artifact:
    """The blocks' matrices on `scheme`; a trellis with the rotations that it comes with."""
    if scheme.endswith("t"):
        return shelf.trellis("llama", {"_proj": scheme}, [{"method": "rotate", "seed": 0}])
    return shelf("llama", scheme, **WIDE)


def check_exact(packed: Artifact, form: str, folder: Path) -> None:
    """What was written gives every weight back. Nothing of ours reads ONNX: test_export_onnx.py compares logits."""
    path, options = folder / ("m.gguf" if form == "gguf" else form), {"dtype": "float32"}
    done = pb.export(str(packed.folder), to=form, path=str(path), **options, overwrite=True)
    assert done.lossy == ()
    again = pb.open_model(path)
    for name in packed.names():
        assert np.array_equal(again.read(name), packed.read(name)), (form, name)


def cell(packed: Artifact, form: str, folder: Path) -> tuple[str, str]:
    """(types of the blocks' matrices, in italics where these are rounded once more; why they are)."""
    name, _, int8 = form.partition(" --")
    stored = find(name).holds(packed, Request("float32", bool(int8)))
    matrices = [how for of, how in stored.items() if len(packed.shape(of)) == 2 and not is_embedding(of)]
    kinds = ", ".join(sorted({how.kind for how in matrices}))
    losses = {how.loss for how in matrices if how.loss}
    if losses:
        (why,) = losses
        return f"*{kinds}*", why
    if name != "onnx" and not any(how.loss for how in stored.values()):
        check_exact(packed, name, folder)
    return kinds, ""


def table(shelf: Shelf, folder: Path) -> str:
    """Markdown: a row for every scheme, then why cells are in italics."""
    lines = ["| scheme | " + " | ".join(FORMATS) + " |", "|" + "---|" * (len(FORMATS) + 1)]
    reasons: dict[str, list[tuple[str, str]]] = {}
    for scheme in SCHEMES:
        packed = packed_on(shelf, scheme)
        cells = []
        for form in FORMATS:
            text, why = cell(packed, form, folder)
            cells.append(text)
            if why:
                reasons.setdefault(re.sub(r"for \d+", "for some", why), []).append((form, scheme))
        lines.append(f"| {scheme} | " + " | ".join(cells) + " |")
    for why, where in reasons.items():
        forms, schemes = (", ".join(dict.fromkeys(part)) for part in zip(*where, strict=True))
        lines += ["", f"{schemes} in {forms}: {why}."]
    return "\n".join(lines) + "\n"


def test_the_table_in_the_readme(shelf: Shelf, tmp_path: Path) -> None:
    wanted = table(shelf, tmp_path)
    _, _, rest = README.read_text().partition(BEGIN)
    found, end, _ = rest.partition(END)
    assert end and COST.sub("", found) == wanted, f"the README's table should be\n{wanted}"
    assert len(COST.findall(found)) == 10
