"""export: a packed model in the format of another runtime, the same numbers in it or a plain refusal."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from paretobit.errors import ParetobitError
from paretobit.verbs.verb import Option, Verb

if TYPE_CHECKING:
    from paretobit.artifact import Artifact
    from paretobit.exporters import Format, Stored

WINDOWS = 8  # of 512 tokens that the cost of another rounding is measured on


@dataclass(frozen=True)
class Exported:
    """What was written. tensors: how many of each of the format's types; lossy: those that were rounded once more;
    notes: what is worth knowing; kl_divergence: what that cost, in nats a token to the packed model, None where nothing
    was rounded.
    """

    path: str
    format: str
    size_bytes: int
    tensors: dict[str, int]
    lossy: tuple[dict[str, str], ...]
    notes: tuple[str, ...]
    kl_divergence: float | None = None
    kl_stderr: float | None = None
    measured_on: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def export(
    out: str,
    *,
    to: Annotated[str, Option("Format: hf, gguf, compressed-tensors or onnx.")],
    path: Annotated[str, Option("File or folder to write.", "-o", "--path")],
    lossy: Annotated[bool, Option("Round once more what the format cannot hold, and say what that cost.")] = False,
    bits: Annotated[
        int | None, Option("Of what --lossy rounds: 4 or 8, for gguf 5 too (default: no fewer than now).")
    ] = None,
    dtype: Annotated[str | None, Option("Of what is not quantized: float32, float16 or bfloat16.")] = None,
    int8: Annotated[bool, Option("Static 8-bit activations (onnx): QuantizeLinear before every product.")] = False,
    text: Annotated[str | None, Option("Text to measure and calibrate on (default: the model's own).")] = None,
    overwrite: Annotated[bool, Option("Replace what an earlier export left at -o.")] = False,
) -> Exported:
    """Write a packed model for transformers, llama.cpp, vLLM or ONNX Runtime.

    Every value is the packed model's own; what a format cannot hold is refused by name unless --lossy. Raises
    ParetobitError on bad input; then nothing stands at -o that was not there before.
    """
    from paretobit.artifact import Artifact
    from paretobit.checkpoint import open_model
    from paretobit.exporters import Request, find
    from paretobit.exporters.joined import joined

    form, packed = find(to), open_model(out)
    if not isinstance(packed, Artifact):
        raise ParetobitError(f"{out} is not a packed model", hint="quantize it first, then export what that wrote")
    packed = joined(packed)
    if int8 and not getattr(form, "INT8", False):
        raise ParetobitError(f"{to} has no static 8-bit activations", hint="leave --int8 out, or use --to onnx")
    if dtype is not None and dtype not in form.DTYPES:
        raise ParetobitError(f"--dtype {dtype} is not one of {to}'s", hint=f"choose from {', '.join(form.DTYPES)}")
    if text is not None and not (lossy or int8):
        raise ParetobitError("--text is for --lossy and --int8", hint="leave it out: nothing is measured")
    if bits is not None and (not lossy or not 1 <= bits <= 8):
        raise ParetobitError(f"--bits {bits} is for --lossy, and at most 8", hint="for example --lossy --bits 8")
    request = Request(dtype or form.DTYPES[0], int8, bits or 0)
    stored = form.holds(packed, request)
    check_losses(packed, stored, lossy, to)
    costs = int8 or any(found.loss for found in stored.values())
    corpus = _corpus(packed, text) if costs else None
    if int8 and corpus is not None:
        from paretobit.compress.ranges import ranges

        request = replace(request, ranges=ranges(packed, corpus[0]))
    with published(Path(path), form.SUFFIX, overwrite) as partial:
        form.write(packed, partial, stored, request)
        kl, error = _cost(packed, form, partial, corpus[0]) if corpus else (None, None)
        size = sum(file.stat().st_size for file in [partial, *partial.rglob("*")] if file.is_file())
    rounded = tuple(
        {"name": name, "scheme": str(packed.schemes[name]), "stored": found.kind, "why": found.loss}
        for name, found in stored.items()
        if found.loss
    )
    notes = tuple(f"{name}: {found.note}" for name, found in stored.items() if found.note)
    kinds = dict(Counter(found.kind for found in stored.values()))
    return Exported(path, to, size, kinds, rounded, _gathered(notes), kl, error, corpus[1] if corpus else "")


def check_losses(packed: Artifact, stored: Mapping[str, Stored], lossy: bool, to: str) -> None:
    """Raise on what the format cannot hold, unless it may be rounded once more."""
    losses = {name: found.loss for name, found in stored.items() if found.loss}
    if losses and not lossy:
        name = next(iter(losses))
        more = f" ({len(losses)} tensors in all)" if len(losses) > 1 else ""
        raise ParetobitError(
            f"{to} cannot hold {name} on {packed.schemes[name]} exactly: {losses[name]}{more}",
            hint="add --lossy to round once more and see what it costs, or export to hf",
        )


def _gathered(notes: tuple[str, ...]) -> tuple[str, ...]:
    """One line for all tensors of which the same is said."""
    by_text: dict[str, list[str]] = {}
    for note in notes:
        name, _, what = note.partition(": ")
        by_text.setdefault(what, []).append(name)
    return tuple(
        f"{names[0]}: {what}" if len(names) == 1 else f"{len(names)} tensors: {what}" for what, names in by_text.items()
    )


@contextmanager
def published(path: Path, suffix: str, overwrite: bool) -> Iterator[Path]:
    """A path to write at, which becomes `path` when the block ends well, and goes when it does not."""
    from paretobit.work import Work, disk_errors, sync

    kind = "folder" if not suffix else "file"
    if path.name in ("", "..") or (suffix and path.suffix != suffix):
        raise ParetobitError(f"-o {path} does not name a {kind}", hint=f"choose another, such as model{suffix}")
    with Work(path, "export", {"export": kind}).open(overwrite=False) as work, disk_errors(path):
        made, old = work.path("out"), work.path("old")
        try:
            _check_free(path, suffix, overwrite)
            _remove(made)  # of an export that was killed
            _remove(old)
            yield made
            for file in sorted(made.rglob("*")) if made.is_dir() else []:
                sync(file)
            sync(made)
            if path.is_dir():
                path.rename(old)
            made.rename(path)
            sync(path.parent)
        finally:
            work.remove()


def _check_free(path: Path, suffix: str, overwrite: bool) -> None:
    from paretobit.exporters.folder import MARK
    from paretobit.work import read_json

    if path.is_symlink() or (path.exists() and path.is_dir() == bool(suffix)):
        raise ParetobitError(f"{path} is in the way, and is no {'file' if suffix else 'folder'}", hint="choose another")
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not overwrite:
        raise ParetobitError(f"{path} is there already", hint="choose another -o, or add --overwrite")
    config = path / "config.json"
    if path.is_dir() and (not config.is_file() or read_json(config).get(MARK) != "paretobit"):
        raise ParetobitError(f"{path} holds no exported model", hint="choose another -o")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _corpus(packed: Artifact, text: str | None) -> tuple[Any, str]:
    """(windows int64 (n, 512), what they are) to measure on."""
    from paretobit.verbs.needs import torch_or_hint

    torch_or_hint("export --lossy")
    from paretobit.compress.corpus import SELF, WINDOW, gather

    found = gather(packed, text or SELF, WINDOWS * WINDOW, 0, "cpu")
    return found.ids, f"{len(found.ids)} windows of 512 tokens of {found.source}"


def _cost(packed: Artifact, form: Format, partial: Path, ids: Any) -> tuple[float, float | None]:
    """KL divergence of what was written to the packed model, and its standard error."""
    from paretobit.checkpoint import open_model
    from paretobit.compress.model import Decoder
    from paretobit.evals.divergence import compare

    opened = getattr(form, "logits", None)
    written = opened(partial, packed) if opened else Decoder(open_model(partial)).logits
    found = compare(written, ids, Decoder(packed).logits).kl_divergence
    assert found is not None and found["mean"] is not None
    return found["mean"], found["stderr"]


def show(done: Exported) -> str:
    from paretobit.sizes import human

    kinds = ", ".join(f"{count} as {kind}" for kind, count in done.tensors.items())
    lines = [f"{done.path}: {human(done.size_bytes)} for {done.format}; tensors: {kinds}"]
    if done.lossy:
        first = done.lossy[0]
        lines.append(
            f"{len(done.lossy)} tensors were rounded once more, such as {first['name']}, {first['scheme']} to "
            f"{first['stored']}: {first['why']}"
        )
    lines += [f"note: {note}" for note in done.notes]
    if done.kl_divergence is not None:
        lines.append(
            f"this costs a KL divergence of {done.kl_divergence:.4f} ± {done.kl_stderr or 0:.4f} nats to the packed "
            f"model, on {done.measured_on}"
        )
    return "\n".join(lines)


VERB = Verb("export", export, show)
