"""eval: a packed model against its original, on text and tasks nobody calibrated on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from paretobit.errors import ParetobitError
from paretobit.progress import progress, say
from paretobit.verbs.answers import Kv
from paretobit.verbs.needs import torch_or_hint
from paretobit.verbs.verb import Option, Verb

if TYPE_CHECKING:
    from paretobit.artifact import Artifact
    from paretobit.checkpoint.base import Checkpoint
    from paretobit.evals.divergence import Comparison
    from paretobit.evals.perplexity import Logits
    from paretobit.evals.tasks import TaskResult
    from paretobit.runtime.tokenizer import Tokenizer

TORCH, NATIVE = RUNTIMES = ("torch", "native")
Runtime = Annotated[
    str | None, Option("What computes OUT: torch, or native, as run and chat do (default: torch, with --kv native).")
]
Figure = tuple[str, float | None, float | None, int, str]


@dataclass(frozen=True)
class Evaluation:
    """What eval measured. text: None where only tasks ran; tasks: one a file; difference: against --versus, paired.

    activations: the native runtime's int8 activations against float32 ones, None where torch computed; kv: its small
    key-value cache against one in fp16, None where there is none; cache: how it is kept;
    size_bytes, other_bytes, bits_per_weight: None where the model is not a packed one.
    """

    model: str
    size_bytes: int | None
    other_bytes: int | None
    bits_per_weight: float | None
    text: Comparison | None
    tasks: tuple[TaskResult, ...] = ()
    difference: dict[str, Any] | None = None
    activations: Comparison | None = None
    kv: Comparison | None = None
    cache: str = "16"
    seconds: float = field(default=0.0, compare=False)

    def to_json(self) -> dict[str, Any]:
        sizes = {key: getattr(self, key) for key in ("model", "size_bytes", "other_bytes", "bits_per_weight")}
        measured = self.text.to_json() if self.text else {}
        return {
            **sizes,
            **measured,
            "tasks": [task.to_json() for task in self.tasks],
            "difference": self.difference,
            "activations": self.activations.to_json() if self.activations else None,
            "kv": {"cache": self.cache, **self.kv.to_json()} if self.kv else None,
        }

    def __str__(self) -> str:
        return show(self)


def evaluate(
    out: str,
    *,
    against: Annotated[str | None, Option("The original model; without it there is perplexity only.")] = None,
    text: Annotated[str | None, Option("Held-out text: FILE.txt or FILE.jsonl with a field text.")] = None,
    tasks: Annotated[tuple[str, ...], Option("Task file (JSONL, see docs/evaluation.md); may be repeated.")] = (),
    versus: Annotated[str | None, Option("Another packed model, compared pairwise on the same windows.")] = None,
    windows: Annotated[int, Option("At most this many windows of 512 tokens; 0 = the whole text.")] = 80,
    rows: Annotated[int, Option("At most this many rows a task, evenly spaced; 0 = all.")] = 0,
    runtime: Runtime = None,
    kv: Kv = None,
    device: Annotated[str | None, Option("cpu or cuda (default: cuda where there is one).")] = None,
) -> Evaluation:
    """Measure a packed model: perplexity, KL divergence to the original, agreement, tasks.

    Results are appended to OUT/results.jsonl and to its model card; with --against and --text, OUT/details.json holds
    where the two differ, for report. Raises ParetobitError on bad input.
    """
    import time

    from paretobit.artifact import Artifact
    from paretobit.checkpoint import open_model
    from paretobit.evals.divergence import paired

    runtime, cache = _check(against, text, tasks, versus, runtime, kv)
    started = time.monotonic()
    source = open_model(out)
    candidate, tokenizer = _open(source, runtime, device, cache)
    original = open_model(against) if against else None
    kept = all(fits(model) for model in (source, original) if model is not None)
    reference = open_decoder(original, device)[0] if original else None
    compared = difference = None
    losses: dict[str, Comparison] = {}
    if text is not None:
        compared = _compare(out, candidate, reference, tokenizer, Path(text), windows)
        if runtime == NATIVE:
            losses = _native_losses(out, source, candidate, tokenizer, Path(text), windows, cache)
        if versus is not None:
            other = _open(open_model(versus), runtime, device, cache)[0]
            rival = _compare(versus, other, reference, tokenizer, Path(text), windows)
            difference = {"versus": versus} | paired(compared, rival)
    context = source.arch.max_positions
    scored = tuple(_score(out, candidate, reference, tokenizer, Path(task), rows or None, context) for task in tasks)
    packed = source if isinstance(source, Artifact) else None
    seconds = time.monotonic() - started
    result = Evaluation(out, None, None, None, compared, scored, difference, **losses, cache=cache, seconds=seconds)
    if packed:
        sizes = {key: getattr(packed, key) for key in ("size_bytes", "other_bytes", "bits_per_weight")}
        result = replace(result, **sizes)
        limit = (f" --windows {windows}" if text else "") + (f" --rows {rows}" if rows else "")
        limit += ("" if runtime == TORCH else f" --runtime {runtime}") + (
            "" if losses.get("kv") is None else f" --kv {cache}"
        )
        _remember(packed, result, f" --against {original.name}" if original else "", text or "", tasks, limit)
        if original is not None and reference is not None and compared is not None:
            command = f"paretobit eval THIS --against {original.name} --text {Path(text or '').name}{limit}"
            writers = (reference, candidate) if kept else None
            _keep_details(packed, compared, tokenizer, original, command, writers)
    return result


def _check(
    against: str | None, text: str | None, tasks: Sequence[str], versus: str | None, runtime: str | None, kv: Kv
) -> tuple[str, str]:
    """(runtime, key-value cache) to use. Raises ParetobitError on options that do not go together."""
    from paretobit.kv import parse, spell

    cache = parse(kv)
    small = cache is not None
    runtime = runtime or (NATIVE if small else TORCH)
    if runtime not in RUNTIMES:
        raise ParetobitError(f"--runtime {runtime} is unknown", hint=f"choose from {', '.join(RUNTIMES)}")
    if runtime == TORCH and small:
        raise ParetobitError("--kv is for the native runtime", hint=f"say --runtime {NATIVE}, or leave --runtime out")
    if runtime == TORCH or against is not None:
        torch_or_hint("eval")
    if text is None and not tasks:
        raise ParetobitError("nothing to evaluate on", hint="add --text FILE.txt or --tasks FILE.jsonl")
    if versus is not None and (against is None or text is None):
        raise ParetobitError("--versus compares two models on --text against --against", hint="give both")
    return runtime, spell(cache)


def _native_losses(
    out: str, source: Checkpoint, candidate: Logits, tokenizer: Tokenizer, text: Path, windows: int, cache: str
) -> dict[str, Comparison]:
    """What the native runtime rounds on its own: activations, and the small key-value cache where there is one."""
    exact = open_session(source, "fp32", cache)[0]
    losses = {"activations": _compare(f"{out}'s activations", candidate, exact, tokenizer, text, windows)}
    if cache != "16":
        halves = open_session(source)[0]
        losses["kv"] = _compare(f"{out}'s key-value cache", candidate, halves, tokenizer, text, windows)
    return losses


def _open(source: Checkpoint, runtime: str, device: str | None, cache: str) -> tuple[Logits, Tokenizer]:
    return open_decoder(source, device) if runtime == TORCH else open_session(source, cache=cache)


def open_logits(name: str, device: str | None = None) -> tuple[Logits, Tokenizer]:
    """(logits, tokenizer) of any model that paretobit opens: what evals and the lm-eval adapter call."""
    from paretobit.checkpoint import open_model

    torch_or_hint("eval")
    return open_decoder(open_model(name), device)


def open_decoder(source: Checkpoint, device: str | None) -> tuple[Logits, Tokenizer]:
    """The torch decoder's logits, weights kept in memory where they fit into half of what is free. Activations are
    rounded as a packed model's schemes say."""
    from paretobit.compress.activations import rounding
    from paretobit.compress.model import Decoder
    from paretobit.compress.world import pick_device
    from paretobit.runtime.tokenizer import Tokenizer

    decoder = Decoder(source, pick_device(device), fits(source), rounding(source))
    return decoder.logits, Tokenizer(source.companions)


def fits(source: Checkpoint) -> bool:
    """Whether its weights in float32 take less than half of the memory that is free."""
    from paretobit import hardware

    return 2 * source.bits16 < hardware.memory_available() // 2


def open_session(source: Checkpoint, activations: str = "int8", cache: str = "16") -> tuple[Logits, Tokenizer]:
    """The native runtime's logits. Raises ParetobitError on anything but a packed model."""
    from paretobit.artifact import Artifact
    from paretobit.runtime.session import Session
    from paretobit.runtime.tokenizer import Tokenizer

    if not isinstance(source, Artifact):
        raise ParetobitError(f"--runtime native runs packed models, not {source.name}", hint="quantize it first")
    return Session(source, activations=activations, kv=cache).logits, Tokenizer(source.companions)


def _compare(
    name: str, candidate: Logits, reference: Logits | None, tokenizer: Tokenizer, text: Path, limit: int
) -> Comparison:
    from paretobit.evals.divergence import compare
    from paretobit.evals.text import WINDOW, encode_windows, read_text

    held_out = read_text(text)
    found = encode_windows(tokenizer, held_out, WINDOW, limit or None)
    with progress(f"evaluating {name}", len(found)) as advance:
        return compare(candidate, found, reference, bos_id=tokenizer.bos_id, advance=advance)


def _score(
    name: str,
    candidate: Logits,
    reference: Logits | None,
    tokenizer: Tokenizer,
    path: Path,
    rows: int | None,
    context: int,
) -> TaskResult:
    from paretobit.evals.tasks import evaluate_task, read_task

    task = read_task(path, rows)
    with progress(f"{task.name} on {name}", 1.0) as advance:
        return evaluate_task(task, tokenizer, candidate, reference, max_tokens=context, advance=advance)


def _remember(packed: Artifact, result: Evaluation, against: str, text: str, tasks: Sequence[str], limit: str) -> None:
    """Append the figures to the model's results and renew its card; a folder that cannot be written only warns."""
    from paretobit import hardware
    from paretobit.artifact import RESULTS
    from paretobit.reports.card import write_card
    from paretobit.reports.results import Result, append

    machine, found = hardware.describe().hash, []
    for metric, value, stderr, n, measured_on in _figures(result, text, tasks):
        if value is not None:
            unit = "nats" if metric in ("kl_divergence", "ln_perplexity_ratio") else ""
            command = f"paretobit eval THIS{against} {measured_on}{limit}"
            found.append(Result(metric, value, unit, n, stderr, packed.hash, machine, command))
    try:
        append(packed.folder / RESULTS, found)
        write_card(packed.folder)
    except ParetobitError as why:
        say(f"warning: the results are not kept: {why}")


def _keep_details(
    packed: Artifact,
    compared: Comparison,
    tokenizer: Tokenizer,
    original: Checkpoint,
    command: str,
    writers: tuple[Logits, Logits] | None,
) -> None:
    """Write details.json; a folder that cannot be written only warns. writers: the original and the packed model, None
    where they are read from disk at every use, so that each word would take as long as the whole text."""
    from paretobit.reports import details
    from paretobit.verbs.details import continuations, details_of

    names, context = (original.name, packed.name), min(original.arch.max_positions, packed.arch.max_positions)
    written = continuations(names, writers, tokenizer, context, packed.arch.vocab) if writers else ([], TOO_LARGE)
    try:
        details.write(packed.folder, details_of(packed, compared, tokenizer, original.name, command, written))
    except ParetobitError as why:
        say(f"warning: the details are not kept: {why}")


TOO_LARGE = "the weights do not fit into half of the free memory, so letting them write would take too long"
TEXT_METRICS = (
    *("perplexity", "ln_perplexity_ratio", "same_top1"),
    *("next_token_accuracy", "next_token_accuracy_retained"),
)


def _figures(result: Evaluation, text: str, tasks: Sequence[str]) -> Iterator[Figure]:
    """(metric, value, stderr, samples, what it was measured on) of everything worth remembering."""
    if result.text:
        measured, n, on = result.text.to_json(), result.text.windows, f"--text {Path(text).name}"
        kl = result.text.kl_divergence
        if kl:
            yield "kl_divergence", kl["mean"], kl["stderr"], n, on
        for metric in TEXT_METRICS:
            yield metric, measured[metric], measured[f"{metric}_stderr"], n, on
    for path, task in zip(tasks, result.tasks, strict=True):
        measured, on = task.to_json(), f"--tasks {Path(path).name}"
        value, stderr = measured[task.metric], measured[f"{task.metric}_stderr"]
        yield f"{task.task} {task.metric}", value, stderr, measured["rows"], on
        yield f"{task.task} retained", *task.retained, measured["rows"], on


def show(result: Evaluation) -> str:
    """The figures as people read them."""
    from paretobit.sizes import human

    lines = [result.model]
    if result.size_bytes is not None:
        lines.append(f"  size           {human(result.size_bytes)}, {result.bits_per_weight:.3f} bits per weight")
    if result.text is not None:
        lines += _text_lines(result.text)
    for name, what, loss in (
        ("activations", "int8 against float32", result.activations),
        ("kv cache", f"{result.cache} against 16 bits", result.kv),
    ):
        if loss is not None and loss.kl_divergence is not None:
            kl, same = loss.kl_divergence, loss.share("same_top1")[0]
            what += f": KL {kl['mean']:.5f} ± {kl['stderr'] or 0:.5f} nats, same top-1 {same:.2%}"
            lines.append(f"  {name:14} {what}")
    for task in result.tasks:
        lines.append(_task_line(task))
    if result.difference:
        kl, error = result.difference["kl_difference"], result.difference["kl_difference_stderr"]
        lines.append(f"  versus {result.difference['versus']}: KL {kl:+.4f} ± {error or 0:.4f} nats (paired)")
    return "\n".join(lines)


def _text_lines(text: Comparison) -> list[str]:
    lines = [f"  perplexity     {text.perplexity:.3f}"]
    kl = text.kl_divergence
    if kl is not None:
        ratio, error = text.ln_perplexity_ratio
        lines[0] += f" (original {text.reference_perplexity:.3f}, ln ratio {ratio:+.4f} ± {error or 0:.4f})"
        lines.append(
            f"  KL divergence  {kl['mean']:.4f} ± {kl['stderr'] or 0:.4f} nats; median {kl['median']:.4f}, "
            f"99 % {kl['p99']:.3f}, 99.9 % {kl['p999']:.3f}, max {kl['max']:.3f}"
        )
        same, same_error = text.share("same_top1")
        lines.append(f"  same top-1     {same:.2%} ± {same_error or 0:.2%}; RMS Δp {text.rms_delta_p:.2%}")
    hit, retained = text.share("hit")[0], text.next_token_accuracy_retained
    kept = "" if retained[0] is None else f", {retained[0]:.2%} ± {retained[1] or 0:.2%} of the original's"
    lines.append(f"  next token     {hit:.2%} right{kept}")
    lines.append(f"  measured on    {text.tokens} tokens: {text.protocol}")
    return lines


def _task_line(task: TaskResult) -> str:
    measured = task.to_json()
    line = f"  {task.task}: {task.metric} {measured[task.metric]:.2%} ± {measured[task.metric + '_stderr'] or 0:.2%}"
    if task.reference is not None and task.flips is not None:
        line += f" (original {measured['reference'][task.metric]:.2%}"
        if task.retained[0] is not None:
            line += f"; kept above chance {task.retained[0]:.1%} ± {task.retained[1] or 0:.1%}"
        line += f"; flips {task.flips['right_to_wrong']:.1%} to wrong, {task.flips['wrong_to_right']:.1%} to right)"
    return line


VERB = Verb("eval", evaluate, show)
