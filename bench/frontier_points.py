"""The contestants of bench/frontier.py: what is compared, and how each is made.

A point says all that decides its bytes; `make` gives back the model to measure. To add ours, add a line to OURS: a
scheme that `quantize` refuses is skipped with its message, so lines may stand here before their code does.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import paretobit
from bench.peers.gptq import Replaced
from bench.peers.llama_cpp import VERSION, kept
from bench.peers.llama_quantize import TYPES, is_fine, quantized
from bench.peers.rounders import LIBRARIES, rounded
from paretobit import __version__, quantize
from paretobit.artifact import Artifact
from paretobit.checkpoint.base import Checkpoint, hash_files
from paretobit.compress import methods
from paretobit.compress.corpus import Corpus
from paretobit.planfile import uniform
from paretobit.scheme import parse

FINE_BITS, FINE_GROUP = 4, 32  # grids that can hold the levels of a model dequantized from 4 bits in groups of 32


@cache
def sources() -> str:
    """A hash of the package's Python files: what a row was made by."""
    digest, folder = hashlib.sha256(), Path(paretobit.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


@dataclass(frozen=True)
class Calibration:
    """What --calib and --tokens name, and the windows they lead to; the same for everybody."""

    calib: str
    tokens: int
    corpus: Corpus


@dataclass(frozen=True)
class Made:
    """A model to measure. nbytes: what its runtime reads, without a tokenizer; note: what else is worth a word."""

    model: Any  # a Checkpoint, as far as the decoder reads one, with a hash
    nbytes: int
    seconds: float
    command: str
    note: str = ""


@dataclass(frozen=True)
class Ours:
    """One `paretobit quantize`; more: further options, by their Python names. mix: schemes of the block matrices whose
    names end so, where a plan says otherwise than `scheme`."""

    scheme: str
    method: str
    more: dict[str, Any] = field(default_factory=dict)
    label: str = ""  # where `more` needs a short name
    mix: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        if self.scheme == "plan":
            return self.label
        shown = self.label or ", ".join(f"{key} {value}" for key, value in (*self.more.items(), *self.mix))
        return f"{self.scheme} {self.method}" + (f", {shown}" if shown else "")

    @property
    def family(self) -> str:
        return self.method

    @property
    def source_grid(self) -> bool:
        if self.scheme == "plan":
            return False
        grid = parse(self.scheme).weight
        return grid.kind == "affine" and grid.bits >= FINE_BITS and (grid.group or 1 << 30) <= FINE_GROUP

    def key(self, calibration: Calibration) -> dict[str, object]:
        reads = {} if self.method == "rtn" else {"calibration": calibration.corpus.hash}
        more = {key: _content(value) if key == "plan" else value for key, value in self.more.items()}
        facts = {"scheme": self.scheme, "method": self.method, "more": more, "version": __version__}
        return facts | ({"mix": self.mix} if self.mix else {}) | reads

    def make(self, name: str, source: Checkpoint, calibration: Calibration, again: bool = False) -> Made:
        to: dict[str, Any] = {} if self.scheme == "plan" else {"to": self.scheme}
        if to and self.method != methods.default(parse(self.scheme).weight):  # an embedding may be on another grid
            to["method"] = self.method
        if self.mix:
            to = {"plan": str(self._plan(source))}
        options = {**to, **self.more, "calib": calibration.calib, "tokens": calibration.tokens}
        out = self._path(source)
        # quantize leaves a finished model alone, even one that older code has made
        stamp = out.with_name(out.name + ".sources")
        if again or not stamp.exists() or stamp.read_text() != sources():
            shutil.rmtree(out, ignore_errors=True)
        fit = quantize(name, out=str(out), overwrite=True, **options)
        stamp.write_text(sources())
        # a file by its name alone: rows are kept, and where it lay says nothing elsewhere
        words = [f"--{key} {Path(str(item)).name}" for key, value in options.items() for item in _listed(value)]
        command = f"paretobit quantize {name} {' '.join(words)} -o OUT"
        return Made(Artifact(out), fit.size_bytes, fit.seconds, command)

    def _path(self, source: Checkpoint, ending: str = "") -> Path:
        return kept(source, "frontier") / "".join(c if c.isalnum() else "-" for c in self.name + ending)

    def _plan(self, source: Checkpoint) -> Path:
        """A file with the plan of a mixture."""
        plan = uniform(source.arch, source.hash, self.scheme, None, (self.method,) * 3, {})
        layers = dict(plan.layers)
        for ending, scheme in self.mix:
            layers |= {
                name: replace(layer, scheme=parse(scheme))
                for name, layer in layers.items()
                if name.endswith(f"{ending}.weight")
            }
        path = self._path(source, ".plan")
        path.write_text(replace(plan, layers=layers).to_json())
        return path


@dataclass(frozen=True)
class Llama:
    """A type of llama.cpp's, with an importance matrix from the calibration tokens."""

    kind: str
    family = "llama.cpp"

    @property
    def name(self) -> str:
        return self.kind

    @property
    def source_grid(self) -> bool:
        return is_fine(self.kind)

    def key(self, calibration: Calibration) -> dict[str, object]:
        return {"type": self.kind, "version": VERSION, "calibration": calibration.corpus.hash}

    def make(self, name: str, source: Checkpoint, calibration: Calibration, again: bool = False) -> Made:
        from paretobit.checkpoint.gguf import GgufCheckpoint

        made = quantized(source, self.kind, calibration.corpus, again)
        note = f"{made.fine_share:.0%} of its weights in types of 4 bits and more"
        return Made(GgufCheckpoint(made.path), made.path.stat().st_size, made.seconds, made.command, note)


@dataclass(frozen=True)
class Peer:
    """The blocks rounded by another library, all else as in our GPTQ's file of the same scheme, which has the size that
    counts: both grids need the same bits."""

    scheme: str
    library: str

    @property
    def name(self) -> str:
        return f"{self.scheme} {self.library}"

    @property
    def family(self) -> str:
        return self.library

    source_grid = False

    def key(self, calibration: Calibration) -> dict[str, object]:
        return {"scheme": self.scheme, "library": self.library, "calibration": calibration.corpus.hash}

    def make(self, name: str, source: Checkpoint, calibration: Calibration, again: bool = False) -> Made:
        found = rounded(source, self.library, self.scheme, calibration.corpus, again)
        beside = Ours(self.scheme, "gptq").make(name, source, calibration)
        model = Replaced(beside.model, found.weights(), hash_files([found.path]))
        command = f"{self.library} {found.version} with the embedding of {beside.command}"
        return Made(model, beside.nbytes, found.seconds, command)


Point = Ours | Llama | Peer

# ---- the list. Trellis rows go to the end of OURS, and mixtures: by `mix`, or "plan" with {"plan": FILE} and a label.

AFFINE = ("w8g64", "w6g64", "w5g64", "w4g64", "w4g128", "w3g64", "w3g128", "w2g64", "w2g32")
TRELLIS = ("w4t", "w3t", "w2t", "w1t")
# The embedding as narrow as the blocks, and two steps wider: beside the default these are what one can ask for by hand.
EMBEDS = (("w2t", "w2t"), ("w2t", "w3t"), ("w3t", "w2t"), ("w3t", "w3t"), ("w3t", "w5"), ("w4t", "w6"))
NARROW = (("gate_proj", "w2t"), ("up_proj", "w2t"))
# Eight sizes of each demo model, of which four or more are those of one scheme.
WISHES = ("2.033", "2.25", "2.454", "2.75", "3.243", "3.6", "4.032", "4.4")  # SmolLM2
WISHES += ("2.404", "2.656", "3.03", "3.4")  # Gemma 3, with 2.033, 2.25, 4.032 and 4.4
OURS: tuple[Point, ...] = (
    *(Ours(scheme, method) for method in ("rtn", "gptq") for scheme in AFFINE),
    *(Ours(scheme, "gptq") for scheme in ("w4g32", "w6g32")),
    *(Ours(scheme, "trellis") for scheme in TRELLIS),
    Ours("w4t", "trellis", {"embed": "w4t"}),
    *(Ours(scheme, "trellis", {"recover": False}, "not trained") for scheme in ("w3t", "w2t")),
    Ours("w3t", "trellis", mix=(("k_proj", "w4t"), ("v_proj", "w4t"))),
    Ours("w3t", "trellis", mix=NARROW),
    Ours("w3t", "trellis", {"recover": False}, "gate_proj w2t, up_proj w2t, not trained", NARROW),
    Ours("w2t", "trellis", mix=(("v_proj", "w3t"),)),
    *(Ours(scheme, "trellis", {"embed": embed}) for scheme, embed in EMBEDS),
    *(
        Ours("w4t", "trellis", {"embed": embed, "recover": True}, f"embed {embed}, recovered")
        for embed in ("w2t", "w3t", "w4t", "w5", "w6")
    ),
    *(Ours("plan", "planned", {"fit": (f"{wish}bpw",)}, f"--fit {wish}bpw") for wish in WISHES),
)
# Rows of neither demo model divide by 256, so most types leave the embedding at 8 bits or so; IQ4_NL is the smallest
# type with groups of 32, what somebody who wants a small file asks for.
SMALL_EMBEDDING = tuple(f"{kind}+IQ4_NL" for kind in ("Q3_K_M", "IQ3_XXS", "IQ2_M", "IQ2_XXS", "IQ1_M"))
PEERS = tuple(Peer(scheme, library) for library in LIBRARIES for scheme in ("w3g64", "w2g64"))
LLAMA: tuple[Point, ...] = tuple(Llama(kind) for kind in (*TYPES, *SMALL_EMBEDDING))


def points(only: str | None) -> list[Point]:
    """All contestants, or those of `only`: "ours" or a family."""
    everybody = (*LLAMA, *OURS, *PEERS)
    if only is None:
        return list(everybody)
    return [point for point in everybody if only == point.family or (only == "ours" and isinstance(point, Ours))]


def _content(path: object) -> str:
    """What identifies a file that an option names: a plan is its content, not where it lies."""
    file = Path(str(path))
    return hash_files([file]) if file.is_file() else str(path)


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [value]
