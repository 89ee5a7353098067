"""Choosing the next token: what may be asked, checked, before the native sampler does it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from paretobit import native
from paretobit.errors import ParetobitError

LARGEST_SEED = (1 << 64) - 1
LARGEST_PENALTY = 1e3
HINT_BIAS = "write ID=VALUE, for example 262=-5; ID=-inf rules a token out"


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen from logits. Applied in this order, which is that of Hugging Face's generate:

    logit_bias          {token: what is added to its logit}; -inf rules it out
    repetition_penalty  positive logits of tokens in the prompt or the answer are divided by it, negative ones
                        multiplied (Keskar et al., CTRL, arXiv 1909.05858, and llama.cpp)
    presence_penalty    subtracted from the logit of each token that is in the answer (OpenAI's definition)
    frequency_penalty   subtracted as often as a token is in the answer
    temperature         divides logits; 0 is greedy: the best token, of equal ones the lowest
    top_k               only the k best tokens, 0 for all
    top_p               only the fewest best tokens that together have this probability
    min_p               only tokens at least this times as probable as the best

    The temperature comes before the truncations, so that top_p and min_p cut the distribution that is drawn from.
    Equal tokens rank by number. The generator is SplitMix64, one step a token: equal seeds give equal tokens on every
    machine whose logits are equal. Raises ParetobitError on values that make no sense.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        most = f"{LARGEST_PENALTY:g}"
        self._check("temperature", lambda x: 0 <= x < math.inf, "give 0 for greedy, or about 0.7 for variety")
        self._check("top_k", lambda x: x >= 0, "give a number of tokens, or 0 for all", int)
        self._check("top_p", lambda x: 0 < x <= 1, "give more than 0, and at most 1, which keeps all")
        self._check("min_p", lambda x: 0 <= x <= 1, "give 0, which keeps all, to 1")
        self._check(
            "repetition_penalty",
            lambda x: 0 < x <= LARGEST_PENALTY,
            f"give more than 0, at most {most}; 1 is none, 1.1 some",
        )
        for name in ("presence_penalty", "frequency_penalty"):
            self._check(name, lambda x: abs(x) <= LARGEST_PENALTY, f"give -{most} to {most}; 0 is none")
        self._check("seed", lambda x: 0 <= x <= LARGEST_SEED, "give 0 to 2^64 - 1", int)
        for token, bias in self.logit_bias.items():
            if not _is(token, int) or token < 0 or not _is(bias, float) or math.isnan(bias) or bias == math.inf:
                raise ParetobitError(f"logit_bias {token!r}={bias!r} makes no sense", hint=HINT_BIAS)

    def _check(self, name: str, holds: Any, hint: str, kind: type = float) -> None:
        value = getattr(self, name)
        if not _is(value, kind) or not holds(value):
            raise ParetobitError(f"{name} {value!r} is out of range", hint=hint)


def _is(value: object, kind: type) -> bool:
    allowed = (int, np.integer) if kind is int else (int, float, np.integer, np.floating)
    return isinstance(value, allowed) and not isinstance(value, bool)


def parse_bias(pairs: Iterable[str]) -> dict[int, float]:
    """("262=-5", "7=-inf") -> {262: -5.0, 7: -inf}."""
    bias = {}
    for pair in pairs:
        token, _, value = pair.partition("=")
        try:
            bias[int(token)] = float(value)
        except ValueError:
            raise ParetobitError(f"logit bias '{pair}' is not ID=VALUE", hint=HINT_BIAS) from None
    return bias


class Sampler:
    """Draws the tokens of answers, one after the other. vocab: logits of a token. Not for two threads at once.

    Raises ParetobitError where `sampling` biases a token that the model does not have.
    """

    def __init__(self, sampling: Sampling, vocab: int) -> None:
        self.vocab = vocab
        s = sampling
        foreign = next((token for token in s.logit_bias if token >= vocab), None)
        if foreign is not None:
            raise ParetobitError(f"logit_bias: token {foreign} is not one of {vocab}", hint=HINT_BIAS)
        penalties = (s.repetition_penalty, s.presence_penalty, s.frequency_penalty)
        bias = [(int(token), float(value)) for token, value in s.logit_bias.items()]
        kept = (min(int(s.top_k), vocab), float(s.top_p), float(s.min_p))
        self._native = native.sampler(float(s.temperature), *kept, *map(float, penalties), bias, int(s.seed))

    def start(self, prompt: Sequence[int] | np.ndarray) -> None:
        """A new answer begins, to `prompt`: penalties forget the last one. The generator goes on."""
        self._native.start(np.ascontiguousarray(prompt, np.int64).reshape(-1))

    def sample(self, logits: np.ndarray, allowed: np.ndarray | None = None) -> int:  # (vocab,) float32, (vocab,) bool
        """The next token of the answer, one of those that are `allowed`. Raises ParetobitError on logits that are NaN
        or +inf, or all -inf."""
        if allowed is not None:
            logits = np.where(allowed, logits, np.float32(-np.inf))
        return self._call(self._native.sample, logits)

    def distribution(self, logits: np.ndarray) -> np.ndarray:  # (vocab,) float32 -> (vocab,) float64
        """The probability that sample() gives each token. Draws nothing."""
        out = np.empty(self.vocab)
        self._call(self._native.distribution, logits, out)
        return out

    def _call(self, function: Any, logits: np.ndarray, *more: np.ndarray) -> Any:
        if logits.shape != (self.vocab,):
            raise ParetobitError(f"logits of shape {logits.shape}", hint=f"give float32 ({self.vocab},)")
        try:
            return function(np.ascontiguousarray(logits, np.float32), *more)
        except ValueError as why:
            hint = (
                "the model is damaged, or its activations overflow: run it with --activations fp32, or quantize again"
            )
            raise ParetobitError(str(why), hint=hint) from None
