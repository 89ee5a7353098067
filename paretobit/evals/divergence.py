"""A model against its original, token by token: perplexity, KL divergence, agreement of the arg-max, Δp.

KL(p‖q) = Σ p·(ln p - ln q), p the original's softmax and q the candidate's, in nats. With x, y their logits
and m, Z the peak and the sum of exp(logit - peak):

    KL = Σ e^(x-m_x)·(x - y) / Z_x - (m_x - m_y) - (ln Z_x - ln Z_y)

No logarithm of a probability is taken, so a q that underflows still counts in full.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from paretobit.errors import ParetobitError
from paretobit.evals.perplexity import (
    Logits,
    batch_size,
    call,
    first_position,
    mean_stderr,
    ratio_stderr,
    row_chunks,
    score_rows,
    scored_tokens,
)

ENOUGH_WINDOWS = 80
WORST_WINDOWS = 2  # whose tokens are kept one by one: memory does not grow with the text
SAME_REFERENCE = 1e-3  # nats a window: batch shapes and machines move it by 1e-5, another model by far more


@dataclass(frozen=True)
class Window:
    """One window token by token. index: among the windows; tokens: (size,) int64; of each scored position (scored,):
    top, reference_top: arg-max of the candidate and of the original, int64; p, reference_p: what each gives to its own;
    kl: nats."""

    index: int
    tokens: np.ndarray
    top: np.ndarray
    p: np.ndarray
    reference_top: np.ndarray
    reference_p: np.ndarray
    kl: np.ndarray

    @property
    def flips(self) -> int:
        return int((self.top != self.reference_top).sum())


@dataclass(frozen=True)
class Comparison:
    """Measurements of one candidate, and of its original where there was one.

    per_window: float64 (windows,) means over each window's scored tokens: `nll`, `hit`, and with an original
    `reference_nll`, `reference_hit`, `kl_divergence`, `same_top1`, `squared_delta_p`. kl: (tokens,) per
    token, or None. worst: the windows in which the arg-max differs most often, WORST_WINDOWS of them. Standard errors
    are over windows: tokens of one window are correlated, windows far less so.
    """

    protocol: str
    windows: int
    tokens: int
    windows_sha256: str
    per_window: dict[str, np.ndarray] = field(repr=False)
    kl: np.ndarray | None = field(repr=False)
    worst: tuple[Window, ...] = field(default=(), repr=False)

    @property
    def perplexity(self) -> float:
        return float(np.exp(np.mean(self.per_window["nll"])))

    @property
    def reference_perplexity(self) -> float | None:
        return None if self.kl is None else float(np.exp(np.mean(self.per_window["reference_nll"])))

    @property
    def ln_perplexity_ratio(self) -> tuple[float | None, float | None]:
        """ln(perplexity / original's) and its paired standard error."""
        if self.kl is None:
            return None, None
        return mean_stderr(self.per_window["nll"] - self.per_window["reference_nll"])

    @property
    def kl_divergence(self) -> dict[str, float | None] | None:
        """mean, stderr, median, p99, p999 and max over tokens, nats."""
        if self.kl is None:
            return None
        median, p99, p999 = (float(q) for q in np.quantile(self.kl, (0.5, 0.99, 0.999)))
        mean, stderr = mean_stderr(self.per_window["kl_divergence"])
        top = float(self.kl.max())
        return {"mean": mean, "stderr": stderr, "median": median, "p99": p99, "p999": p999, "max": top}

    @property
    def rms_delta_p(self) -> float | None:
        """Root mean square of p_candidate(true token) - p_original(true token)."""
        return None if self.kl is None else float(np.sqrt(np.mean(self.per_window["squared_delta_p"])))

    @property
    def next_token_accuracy_retained(self) -> tuple[float | None, float | None]:
        """Accuracy ÷ original's, and its paired standard error by the delta method."""
        if self.kl is None:
            return None, None
        return ratio_stderr(self.per_window["hit"], self.per_window["reference_hit"])

    def share(self, key: str) -> tuple[float | None, float | None]:
        """Mean and standard error of a per-window measurement, (None, None) where it was not measured."""
        return mean_stderr(self.per_window[key]) if key in self.per_window else (None, None)

    def to_json(self) -> dict[str, Any]:
        """The keys of `eval --json` but for the sizes, and more; None where there was no original."""
        nll, nll_stderr = mean_stderr(self.per_window["nll"])
        same, same_stderr = self.share("same_top1")
        accuracy, accuracy_stderr = self.share("hit")
        ln_ratio, ln_ratio_stderr = self.ln_perplexity_ratio
        retained, retained_stderr = self.next_token_accuracy_retained
        return {
            "perplexity": self.perplexity,
            "kl_divergence": self.kl_divergence,
            "same_top1": same,
            "next_token_accuracy": accuracy,
            "tokens": self.tokens,
            "protocol": self.protocol,
            "perplexity_stderr": None if nll_stderr is None else float(np.exp(nll)) * nll_stderr,
            "same_top1_stderr": same_stderr,
            "next_token_accuracy_stderr": accuracy_stderr,
            "reference_perplexity": self.reference_perplexity,
            "reference_next_token_accuracy": self.share("reference_hit")[0],
            "ln_perplexity_ratio": ln_ratio,
            "ln_perplexity_ratio_stderr": ln_ratio_stderr,
            "next_token_accuracy_retained": retained,
            "next_token_accuracy_retained_stderr": retained_stderr,
            "rms_delta_p": self.rms_delta_p,
            "windows": self.windows,
            "windows_sha256": self.windows_sha256,
        }


def protocol(size: int, bos: bool) -> str:
    """The protocol in words, as it stands in every result."""
    first, count = first_position(size), scored_tokens(size)
    start = "BOS replaces the first token" if bos else "no BOS"
    scored = f"positions {first}-{size - 2} predict the next ({count} a window)"
    return f"windows of {size} tokens, {start}, {scored}"


def compare(
    candidate: Logits,
    windows: np.ndarray,
    reference: Logits | None = None,
    *,
    bos_id: int | None = None,
    advance: Callable[[float], None] | None = None,
) -> Comparison:
    """Score `candidate` on windows (n, size) int64, and against `reference` where given.

    bos_id: what `windows` was made with; it only names the protocol. advance hears of windows done. Both
    models see the same batches, never more than about 300 MB of logits each. Raises ParetobitError naming the
    window of non-finite logits, or for vocabularies that differ or do not cover the text.
    """
    count, size = windows.shape
    models = {"the model": candidate}
    if reference is not None:
        models["the original"] = reference
    tokens: list[dict[str, np.ndarray]] = []  # per batch: name -> (b, scored)
    worst: list[Window] = []
    start, batch = 0, 1  # one window alone tells how wide the vocabulary is
    while start < count:
        rows = windows[start : start + batch]
        scores, vocab = _score_batch(models, rows, start)
        worst = _worst(worst, scores, rows, start)
        tokens.append({name: values for name, values in scores.items() if name not in GUESSES})
        batch = batch_size(scored_tokens(size), vocab)
        start += len(rows)
        if advance is not None:
            advance(len(rows))
    merged = {name: np.concatenate([scores[name] for scores in tokens]) for name in tokens[0]}
    return Comparison(
        protocol=protocol(size, bos_id is not None),
        windows=count,
        tokens=count * scored_tokens(size),
        windows_sha256=hashlib.sha256(np.ascontiguousarray(windows, dtype="<i8").tobytes()).hexdigest(),
        per_window={name: values.mean(axis=1) for name, values in merged.items()},
        kl=merged["kl_divergence"].reshape(-1) if reference is not None else None,
        worst=tuple(worst),
    )


GUESSES = ("top", "p", "reference_top", "reference_p")


def _worst(known: list[Window], scores: dict[str, np.ndarray], rows: np.ndarray, start: int) -> list[Window]:
    """The worst of those `known` and of a batch; of windows alike the earlier. Arrays are copied: the batch goes."""
    if "kl_divergence" not in scores:
        return []
    found = list(known)
    for i, tokens in enumerate(rows):
        top, p, reference_top, reference_p = (scores[name][i].copy() for name in GUESSES)
        ids = top.astype(np.int64), p, reference_top.astype(np.int64), reference_p
        found.append(Window(start + i, tokens.copy(), *ids, scores["kl_divergence"][i].copy()))
    return sorted(found, key=lambda window: (-window.flips, window.index))[:WORST_WINDOWS]


def _score_batch(models: dict[str, Logits], rows: np.ndarray, start: int) -> tuple[dict[str, np.ndarray], int]:
    """name -> (b, scored) float64 of a batch of windows, and the vocabulary size. The logits die with it."""
    first = first_position(rows.shape[1])
    outs = {name: call(logits, rows[:, :-1], first) for name, logits in models.items()}
    vocabs = {name: out.shape[2] for name, out in outs.items()}
    vocab = vocabs["the model"]
    if len(set(vocabs.values())) > 1:
        raise ParetobitError(
            f"the model has {vocab} vocabulary entries, the original {vocabs['the original']}",
            hint="compare a model with the one it was made from",
        )
    if rows.min() < 0 or rows.max() >= vocab:
        raise ParetobitError(
            f"the text holds tokens {rows.min()} to {rows.max()}, the model has {vocab} entries",
            hint="use the tokenizer that belongs to the model",
        )
    targets = rows[:, first + 1 :].reshape(-1)
    flat = {name: out.reshape(-1, vocab) for name, out in outs.items()}
    scores = {name: values.reshape(len(rows), -1) for name, values in _score_tokens(flat, targets).items()}
    _check_finite(scores, start)
    return scores, vocab


def _score_tokens(flat: dict[str, np.ndarray], targets: np.ndarray) -> dict[str, np.ndarray]:
    """Per-token scores (n,) float64 from logits (n, vocab) of the model and, if there, of the original."""
    ours, theirs = flat["the model"], flat.get("the original")
    names = ["nll", "hit"]
    if theirs is not None:
        names += ["reference_nll", "reference_hit", "kl_divergence", "same_top1", "squared_delta_p", *GUESSES]
    n, vocab = ours.shape
    out = {name: np.empty(n) for name in names}
    chunk = next(row_chunks(n, vocab)).stop
    scratch = [np.empty((chunk, vocab), dtype=np.float32) for _ in range(2)]
    for at in row_chunks(n, vocab):
        goal = targets[at]
        q = score_rows(ours[at], goal, scratch[0])
        out["nll"][at], out["hit"][at] = q.nll, q.top == goal
        if theirs is None:
            continue
        p = score_rows(theirs[at], goal, scratch[1])
        out["reference_nll"][at], out["reference_hit"][at] = p.nll, p.top == goal
        out["same_top1"][at] = p.top == q.top
        # Token ids fit a float64 exactly; exp(peak - peak) is 1.
        out["top"][at], out["p"][at] = q.top, 1 / q.total
        out["reference_top"][at], out["reference_p"][at] = p.top, 1 / p.total
        with np.errstate(over="ignore", invalid="ignore"):
            gap = np.subtract(theirs[at], ours[at], out=q.exps)  # q.exps has been added up and is free
            np.multiply(p.exps, gap, out=p.exps)
            shift = p.peak.astype(np.float64) - q.peak + np.log(p.total) - np.log(q.total)
            kl = p.exps.sum(axis=1, dtype=np.float64) / p.total - shift
            out["squared_delta_p"][at] = np.square(np.exp(-q.nll) - np.exp(-p.nll))
        # KL is never negative: what is below zero is rounding, about 1e-7. NaN stays NaN.
        out["kl_divergence"][at] = np.maximum(kl, 0.0)
    return out


def _check_finite(scores: dict[str, np.ndarray], start: int) -> None:
    kinds = {"nll": "the model's logits", "reference_nll": "the original's logits", "kl_divergence": "the KL"}
    for name, what in kinds.items():
        bad = np.argwhere(~np.isfinite(scores[name])) if name in scores else np.empty((0, 2))
        if len(bad):
            window, position = bad[0]
            raise ParetobitError(
                f"{what} of window {start + window} are not finite at scored position {position}",
                hint="the model is damaged or overflows; try a wider grid or another method",
            )


def paired(a: Comparison, b: Comparison) -> dict[str, float | int | bool | None]:
    """How `a` differs from `b` on the same windows against the same original: a - b, paired by window.

    kl_difference (nats), ln_perplexity_ratio (a ÷ b), same_top1_difference and
    next_token_accuracy_difference, each with `_stderr`; `kl_lower`: a's KL is lower, on at least 80 windows
    or by more than one paired standard error. Raises ParetobitError where the two cannot be paired.
    """
    if a.windows_sha256 != b.windows_sha256:
        raise ParetobitError("the two were measured on different windows", hint="evaluate both on the same text")
    if (a.kl is None) != (b.kl is None) or (
        a.kl is not None
        and np.abs(a.per_window["reference_nll"] - b.per_window["reference_nll"]).max() > SAME_REFERENCE
    ):
        raise ParetobitError("the two were measured against different originals", hint="use the same --against")
    names = {"nll": "ln_perplexity_ratio", "hit": "next_token_accuracy_difference"}
    if a.kl is not None:
        names |= {"kl_divergence": "kl_difference", "same_top1": "same_top1_difference"}
    out: dict[str, float | int | bool | None] = {"windows": a.windows}
    for key, name in names.items():
        out[name], out[f"{name}_stderr"] = mean_stderr(a.per_window[key] - b.per_window[key])
    if a.kl is not None:
        out["kl_lower"] = _holds(out["kl_difference"], out["kl_difference_stderr"], a.windows)
    return out


def _holds(difference: Any, stderr: Any, windows: int) -> bool:
    return difference < 0 and (windows >= ENOUGH_WINDOWS or (stderr is not None and -difference > stderr))
