"""Tasks scored by likelihood: multiple choice, greedy continuation, minimal pairs.

The three kinds of rows of a JSONL file, told apart by their fields (docs/evaluation.md):
    {"query", "choices", "gold"}              the likeliest choice after the query
    {"context", "continuation"}               is the continuation what greedy decoding writes?
    {"sentence_good", "sentence_bad"}         the good sentence is likelier
Contexts, splits and normalizations are those of EleutherAI's lm-evaluation-harness, so figures compare with
its tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paretobit.errors import ParetobitError
from paretobit.evals.perplexity import (
    LOGITS_BYTES,
    Logits,
    call,
    mean_stderr,
    ratio_stderr,
    row_chunks,
    score_rows,
)
from paretobit.evals.text import Tokenizer, json_lines

FIELDS = {
    "choice": ("query", "choices", "gold"),
    "continuation": ("context", "continuation"),
    "pair": ("sentence_good", "sentence_bad"),
}
HEADLINE = {"choice": "acc_norm", "continuation": "acc", "pair": "acc"}
BATCH_TOKENS = 8192  # padding included: bounds the model's own activations


@dataclass(frozen=True)
class Task:
    """Validated rows of one kind: "choice", "continuation" or "pair". lines: their numbers in the file."""

    name: str
    kind: str
    rows: tuple[dict[str, Any], ...]
    lines: tuple[int, ...]


@dataclass(frozen=True)
class Request:
    """One sequence to score: tokens[start:] given tokens[:start]; start ≥ 1."""

    tokens: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class TaskResult:
    """Scores of one task: metric -> float64 (rows,) for the candidate and, where measured, its original.

    chance: float64 (rows,), what guessing scores. truncated: rows whose context lost its start to
    `max_tokens`.
    """

    task: str
    kind: str
    truncated: int
    chance: np.ndarray = field(repr=False)
    candidate: dict[str, np.ndarray] = field(repr=False)
    reference: dict[str, np.ndarray] | None = field(repr=False)

    @property
    def metric(self) -> str:
        """The metric that flips and retention are about."""
        return HEADLINE[self.kind]

    @property
    def retained(self) -> tuple[float | None, float | None]:
        """(accuracy - chance) ÷ (original's - chance), and its paired standard error by the delta method.

        (None, None) without an original, or with one that is not above chance.
        """
        if self.reference is None:
            return None, None
        return ratio_stderr(self.candidate[self.metric] - self.chance, self.reference[self.metric] - self.chance)

    @property
    def flips(self) -> dict[str, float] | None:
        """Shares of rows that went from right to wrong and from wrong to right against the original."""
        if self.reference is None:
            return None
        now, before = self.candidate[self.metric] > 0, self.reference[self.metric] > 0
        return {
            "right_to_wrong": float(np.mean(before & ~now)),
            "wrong_to_right": float(np.mean(~before & now)),
        }

    def to_json(self) -> dict[str, Any]:
        """Every metric with its standard error over rows; None where there was no original."""
        retained, retained_stderr = self.retained
        out: dict[str, Any] = {"task": self.task, "kind": self.kind, "metric": self.metric}
        out |= {"rows": len(self.chance), "truncated": self.truncated, "chance": float(np.mean(self.chance))}
        out |= _summary(self.candidate)
        out |= {"reference": None, "difference": None, "difference_stderr": None}
        if self.reference is not None:
            out["reference"] = _summary(self.reference)
            change = self.candidate[self.metric] - self.reference[self.metric]
            out["difference"], out["difference_stderr"] = mean_stderr(change)
        return out | {"flips": self.flips, "retained": retained, "retained_stderr": retained_stderr}


def _summary(scores: dict[str, np.ndarray]) -> dict[str, float | None]:
    out: dict[str, float | None] = {}
    for name, values in scores.items():
        mean, stderr = mean_stderr(values)
        if name == "nll":  # of a whole continuation; exp(mean) is what the harness calls lambada's perplexity
            name, mean = "perplexity", float(np.exp(mean))
            stderr = None if stderr is None else mean * stderr
        out[name], out[f"{name}_stderr"] = mean, stderr
    return out


def read_task(path: str | Path, limit: int | None = None) -> Task:
    """A task file; with `limit`, that many rows evenly spaced over the file (files are often sorted).

    Raises ParetobitError naming the line of a row that has the wrong fields, types or kind.
    """
    kind, rows, lines = "", [], []
    for number, row in json_lines(path):
        found = next((k for k, fields in FIELDS.items() if all(f in row for f in fields)), None)
        if found is None or (kind and found != kind):
            wanted = [kind] if kind else FIELDS
            forms = " or ".join("{" + ", ".join(FIELDS[k]) + "}" for k in wanted)
            raise ParetobitError(
                f"'{path}', line {number}: the row has not the fields of a task", hint=f"write {forms}"
            )
        kind = found
        problem = _problem(kind, row)
        if problem:
            raise ParetobitError(f"'{path}', line {number}: {problem}", hint="see docs/evaluation.md for the format")
        rows.append(row)
        lines.append(number)
    if not rows:
        raise ParetobitError(f"'{path}' has no rows", hint="one JSON object a line")
    if limit is not None and limit < 1:
        raise ParetobitError(f"{limit} rows score nothing", hint="ask for at least one row")
    count = len(rows) if limit is None else min(limit, len(rows))
    keep = [i * len(rows) // count for i in range(count)]
    return Task(Path(path).stem, kind, tuple(rows[i] for i in keep), tuple(lines[i] for i in keep))


def _problem(kind: str, row: dict[str, Any]) -> str | None:
    texts = {name: row[name] for name in FIELDS[kind] if name not in ("choices", "gold")}
    if kind == "choice":
        choices, gold = row["choices"], row["gold"]
        if not isinstance(choices, list) or len(choices) < 2:
            return "'choices' is not a list of two texts or more"
        texts |= {f"choices[{i}]": choice for i, choice in enumerate(choices)}
        if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(choices):
            return f"'gold' is {gold!r}, not the index of one of {len(choices)} choices"
    for name, text in texts.items():
        if not isinstance(text, str) or not text.strip():
            return f"'{name}' is not a text"
    return None


def prompt(query: str) -> str:
    """The context of a choice: a "Question:" that is its own line gets an "Answer:" line after it."""
    query = query.rstrip()
    asks = query.startswith("Question:") or "\nQuestion:" in query
    return f"{query}\nAnswer:" if asks and not query.endswith("Answer:") else query


def pairs(kind: str, row: dict[str, Any]) -> list[tuple[str, str]]:
    """The (context, continuation) texts to score for one row; one space joins them."""
    if kind == "choice":
        context = prompt(row["query"])
        return [(context, f" {choice.strip()}") for choice in row["choices"]]
    if kind == "continuation":
        return [(row["context"].rstrip(), f" {row['continuation'].strip()}")]
    return [("", row["sentence_good"]), ("", row["sentence_bad"])]


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> Request:
    """Tokens of both texts together and where the continuation starts (the harness's `_encode_pair`).

    The whole string is encoded once, for tokens may not be what the two parts would give; the context's own
    encoding without its trailing spaces says where to split. BOS stands in front where the tokenizer adds it.
    An empty context becomes BOS or, without one, end-of-text, after which documents start in training. Of
    several end tokens that is the lowest: a vocabulary has its end-of-text before a chat's end-of-turn.
    """
    stripped = context.rstrip()
    whole = tokenizer.encode(context + continuation, add_special=False)
    split = len(tokenizer.encode(stripped, add_special=False)) if stripped else 0
    split = max(min(split, len(whole) - 1), 0)  # merged into the context's last token: that token is scored
    prefix = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    if prefix and whole[:1] == prefix:  # a chat template wrote it already
        prefix, split = [], max(split, 1)
    if split == 0 and not prefix:
        if not tokenizer.eos_ids:
            raise ParetobitError(
                "the tokenizer has neither BOS nor end-of-text to score a first token after",
                hint="name an eos token in the model's tokenizer_config.json",
            )
        prefix = [min(tokenizer.eos_ids)]
    if len(whole) <= split:
        raise ParetobitError(f"{continuation!r} encodes to no token", hint="there is nothing to score; drop it")
    return Request(tuple(prefix + whole), len(prefix) + split)


def truncate(request: Request, max_tokens: int | None) -> Request:
    """The request with at most `max_tokens` inputs: the start of the context goes, the continuation stays."""
    excess = 0 if max_tokens is None else len(request.tokens) - 1 - max_tokens
    if excess <= 0:
        return request
    if excess > request.start - 1:
        raise ParetobitError(
            f"a continuation has {len(request.tokens) - request.start} tokens, the model takes {max_tokens}",
            hint="shorten the row or raise the limit",
        )
    return Request(request.tokens[excess:], request.start - excess)


def score(
    logits: Logits, requests: Sequence[Request], advance: Callable[[float], None] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Log-likelihood (n,) float64 of each continuation, and whether greedy decoding writes it (n,) bool.

    Requests that need the same logits share them (one-token choices after one query). Batches are padded on
    the right, where a causal model does not look. Raises ParetobitError naming the request of non-finite
    logits.
    """
    likelihood, greedy = np.empty(len(requests)), np.empty(len(requests), dtype=bool)
    sharing: dict[tuple[int, ...], list[int]] = {}
    for i, request in enumerate(requests):
        sharing.setdefault(request.tokens[:-1], []).append(i)
    starts = {inputs: min(requests[i].start for i in who) for inputs, who in sharing.items()}
    queue = sorted(sharing, key=lambda inputs: (len(inputs), starts[inputs]), reverse=True)
    done, vocab = 0, None
    while done < len(queue):
        batch = _take(queue[done:], starts, vocab)
        first = min(starts[inputs] for inputs in batch) - 1
        tokens = np.zeros((len(batch), len(batch[0])), dtype=np.int64)
        for row, inputs in zip(tokens, batch, strict=True):
            row[: len(inputs)] = inputs
        out = call(logits, tokens, first)
        vocab = out.shape[2]
        for rows, inputs in zip(out, batch, strict=True):
            for i in sharing[inputs]:
                likelihood[i], greedy[i] = _score_request(rows, first, requests[i], i)
        del out, rows  # views of the batch's logits; the next batch needs the room
        if advance is not None:
            advance(sum(len(sharing[inputs]) for inputs in batch))
        done += len(batch)
    return likelihood, greedy


def _take(
    queue: Sequence[tuple[int, ...]], starts: dict[tuple[int, ...], int], vocab: int | None
) -> list[tuple[int, ...]]:
    """The next batch: as much of the queue (longest first) as fits; one while the vocabulary is unknown."""
    longest, first = len(queue[0]), starts[queue[0]] - 1
    batch = [queue[0]]
    if vocab is None:
        return batch
    for inputs in queue[1:]:
        first = min(first, starts[inputs] - 1)
        rows = len(batch) + 1
        if rows * longest > BATCH_TOKENS or 4 * vocab * rows * (longest - first) > LOGITS_BYTES:
            break
        batch.append(inputs)
    return batch


def _score_request(rows: np.ndarray, first: int, request: Request, index: int) -> tuple[float, bool]:
    """rows: (positions, vocab) logits from position `first` on."""
    targets = np.asarray(request.tokens[request.start :])
    rows = rows[request.start - 1 - first :][: len(targets)]
    if targets.max() >= rows.shape[1]:
        raise ParetobitError(
            f"token {targets.max()} is outside the model's {rows.shape[1]} vocabulary entries",
            hint="use the tokenizer that belongs to the model",
        )
    total, greedy = 0.0, True
    chunk = next(row_chunks(*rows.shape)).stop
    scratch = np.empty((chunk, rows.shape[1]), dtype=np.float32)
    for at in row_chunks(*rows.shape):
        scored = score_rows(rows[at], targets[at], scratch)
        total -= float(scored.nll.sum())
        greedy &= bool((scored.top == targets[at]).all())
    if not np.isfinite(total):
        raise ParetobitError(
            f"the model's logits are not finite at request {index + 1}",
            hint="the model is damaged or overflows; try a wider grid or another method",
        )
    return total, greedy


def evaluate_task(
    task: Task,
    tokenizer: Tokenizer,
    candidate: Logits,
    reference: Logits | None = None,
    *,
    max_tokens: int | None = None,
    advance: Callable[[float], None] | None = None,
) -> TaskResult:
    """Score `candidate`, and `reference` where given, on a task. advance hears of the share done (0…1).

    max_tokens: the longest input the model takes; longer contexts lose their start and are counted as
    truncated.
    """
    requests, truncated = [], 0
    for row, line in zip(task.rows, task.lines, strict=True):
        try:
            full = [encode_pair(tokenizer, *pair) for pair in pairs(task.kind, row)]
            short = [truncate(request, max_tokens) for request in full]
        except ParetobitError as error:
            raise ParetobitError(f"{task.name}, line {line}: {error.message}", hint=error.hint) from None
        truncated += short != full
        requests += short
    models = [candidate] if reference is None else [candidate, reference]
    step = len(models) * len(requests)
    tell = None if advance is None else lambda amount: advance(amount / step)
    scores = [_metrics(task, *score(logits, requests, tell)) for logits in models]
    chance = {
        "choice": [1 / len(row.get("choices", "?")) for row in task.rows],
        "continuation": 0.0,
        "pair": 0.5,
    }
    return TaskResult(
        task=task.name,
        kind=task.kind,
        truncated=truncated,
        chance=np.broadcast_to(np.asarray(chance[task.kind], dtype=np.float64), (len(task.rows),)),
        candidate=scores[0],
        reference=scores[1] if reference is not None else None,
    )


def _metrics(task: Task, likelihood: np.ndarray, greedy: np.ndarray) -> dict[str, np.ndarray]:
    """Metric -> (rows,) float64 from the requests' scores, in the rows' order."""
    if task.kind == "continuation":
        return {"acc": greedy.astype(np.float64), "nll": -likelihood}
    if task.kind == "pair":
        good, bad = likelihood[0::2], likelihood[1::2]
        return {"acc": (good > bad).astype(np.float64)}
    out: dict[str, list[bool]] = {"acc_norm": [], "acc": [], "acc_bytes": []}
    ends = np.cumsum([len(row["choices"]) for row in task.rows])
    for row, scores in zip(task.rows, np.split(likelihood, ends[:-1]), strict=True):
        choices = [choice.strip() for choice in row["choices"]]
        out["acc_norm"].append(_best(scores, map(len, choices)) == row["gold"])
        out["acc"].append(_best(scores, [1] * len(choices)) == row["gold"])
        out["acc_bytes"].append(_best(scores, (len(choice.encode()) for choice in choices)) == row["gold"])
    return {name: np.asarray(values, dtype=np.float64) for name, values in out.items()}


def _best(scores: np.ndarray, lengths: Iterable[int]) -> int:
    return int(np.argmax(scores / np.fromiter(lengths, dtype=np.float64)))
