"""One answer that the engine makes: what was asked, how far it is, and what it tells of every token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from paretobit.errors import ParetobitError
from paretobit.runtime.generate import Model, check_room
from paretobit.runtime.sampler import Sampler, Sampling
from paretobit.runtime.streaming import Words


@dataclass(frozen=True)
class Likely:
    """A token's log-probability, natural logarithm, by the model alone: before bias, penalties, temperature and cuts.

    logprob: None of a prompt's first token. best: the likeliest tokens in its place, (token, log-probability).
    """

    token: int
    logprob: float | None
    best: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Event:
    """What happened at a token. text: what is new; likely: of tokens since the last event, where asked for; finish: ""
    while it runs, then "eos", "stop" or "length"; error: why it ended instead."""

    text: str = ""
    likely: tuple[Likely, ...] = ()
    finish: str = ""
    error: Exception | None = None


class Constraint(Protocol):
    """What may be said next, after tokens that were."""

    def allowed(self) -> np.ndarray:  # (vocab,) bool
        ...

    def push(self, token: int) -> bool:
        """`token` was said; whether nothing more can follow."""


@dataclass(frozen=True)
class Wish:
    """How an answer is made.

    most: tokens, None for as many as the context holds. top: None, or tell log-probabilities, and of so many likeliest
    tokens too. score: of the prompt's tokens as well, with the first event. continues: the text goes on from the
    prompt's. shown: special tokens that the text spells out. constraint: makes a fresh one.
    """

    sampling: Sampling
    most: int | None = None
    stop: tuple[str, ...] = ()
    top: int | None = None
    score: bool = False
    continues: bool = False
    shown: Mapping[int, str] = field(default_factory=dict)
    constraint: Callable[[], Constraint] | None = None


class Job:
    """An answer to `prompt`, tokens. tell: is given every Event, on the engine's thread.

    Raises ParetobitError on what does not fit the model or its context. cached: tokens of the prompt that were not
    computed for this; tokens: those in its slot. pending: those that come next, and the first of them has been said.
    """

    def __init__(self, model: Model, prompt: Sequence[int], wish: Wish, tell: Callable[[Event], object]) -> None:
        context = model.session.context
        most = max(1, context - len(prompt)) if wish.most is None else wish.most
        check_room(len(prompt), max(most, 1), context + (most == 0))
        self.prompt, self.wish, self.tell, self.most = list(prompt), wish, tell, most
        self.words = Words(model.tokenizer, most, wish.stop, self.prompt if wish.continues else (), wish.shown)
        self.sampler = Sampler(wish.sampling, model.session.arch.vocab)
        self.constraint = None if wish.constraint is None else wish.constraint()
        self.sampler.start(self.prompt)
        self.cancelled = False
        self.slot, self.since = -1, 0.0
        self.cached = 0
        self.tokens: list[int] = []
        self.pending: list[int] = []
        self._likely: list[Likely] = []

    @property
    def prefilling(self) -> bool:
        return not self.pending

    @property
    def left(self) -> int:
        """Tokens that may still be said."""
        return self.most - len(self.words.tokens)

    def cancel(self) -> None:
        """Nobody waits for it any more: it ends before the next token. From any thread."""
        self.cancelled = True

    def score(self, tokens: Sequence[int], logits: np.ndarray) -> None:  # (n, vocab)
        """Note what the model thought of a prompt's `tokens`, one for each row."""
        if not self._likely:
            self._likely.append(Likely(self.prompt[0], None))
        rows = zip(tokens, logits, strict=True)
        self._likely += [likely(row, token, self.wish.top or 0) for token, row in rows]

    def say(self, logits: np.ndarray) -> int | None:  # (vocab,)
        """Choose the next token and tell of it; None where the answer is over."""
        if self.most == 0:
            self._tell("", "length")
            return None
        allowed = None if self.constraint is None else self.constraint.allowed()
        token = self.sampler.sample(logits, allowed)
        text = self.words.push(token)
        if self.wish.top is not None and (not self.words.finish or self.words.tokens[-1:] == [token]):
            self._likely.append(likely(logits, token, self.wish.top))
        over = self.constraint is not None and self.constraint.push(token)
        if over and not self.words.finish:
            text += self.words.end()
        elif over and self.words.finish == "length":  # it is whole all the same
            self.words.finish = "eos"
        self._tell(text, self.words.finish)
        return None if self.words.finish else token

    def release(self) -> None:
        """It is over: what is large goes at once, as the rest, whom it tells knows it too, waits to be collected."""
        del self.sampler, self.constraint
        self.tokens, self.pending = [], []

    def fail(self, why: Exception) -> None:
        self.tell(Event(error=why))

    def _tell(self, text: str, finish: str) -> None:
        if text or finish:
            noted, self._likely = tuple(self._likely), []
            self.tell(Event(text, noted, finish))


def likely(logits: np.ndarray, token: int, top: int) -> Likely:  # (vocab,)
    """The log-probability of `token` and of the `top` likeliest."""
    exact = logits.astype(np.float64)
    total = exact.max() + np.log(np.exp(exact - exact.max()).sum())
    best = np.argpartition(-exact, min(top, len(exact) - 1))[:top] if top else np.empty(0, int)
    order = best[np.lexsort((best, -exact[best]))]
    return Likely(token, float(exact[token] - total), tuple((int(i), float(exact[i] - total)) for i in order))


class Closing(ParetobitError):
    """The server ends before the answer does."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down", hint="ask again when it is back")


class Busy(ParetobitError):
    """The queue is full: come back later."""

    def __init__(self, waiting: int, seconds: int) -> None:
        super().__init__(f"{waiting} requests wait already", hint=f"try again in about {seconds} s")
        self.seconds = seconds
