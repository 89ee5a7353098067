"""Speculative decoding: guesses of what comes next, so that a step computes several tokens of an answer.

A guess costs a row in the step. The engine then draws each token from its own logits with the answer's own sampler, and
goes on as long as what it draws is what was guessed: what is said is the same to the token as without guesses, at any
temperature (Leviathan et al., arXiv 2211.17192, for guesses that are certain of themselves).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from paretobit.errors import ParetobitError
from paretobit.runtime.generate import Model
from paretobit.server.job import Job
from paretobit.server.prefixes import alike

LENGTHS = (0, 1, 2, 3, 4, 6, 8)  # of a guess
GRAM = 3  # tokens that must have been seen in this order before, for what followed them to be a guess
AGAIN = 64  # steps after which a job that does not guess tries it once
SMOOTH = 0.1  # weight of the newest figure in a running mean
CATCH_UP = 64  # tokens of a text that the draft model reads in a step before it guesses


class Drafter(Protocol):
    def draft(self, wanted: Mapping[Job, int]) -> dict[Job, list[int]]:
        """What may follow, for each job: at most so many tokens, none where nothing is guessed."""

    def forget(self, job: Job) -> None:
        """The job is over."""


@dataclass
class Seen:
    """Of one job: where tokens that follow each other stood last; how many of its tokens were looked at."""

    after: dict[tuple[int, ...], int] = field(default_factory=dict)
    count: int = 0


class PromptLookup:
    """Guesses that what followed the last GRAM tokens before follows them again: texts quote, and code repeats itself.
    (Saxena, "Prompt lookup decoding", 2023.)"""

    def __init__(self) -> None:
        self._seen: dict[Job, Seen] = {}

    def draft(self, wanted: Mapping[Job, int]) -> dict[Job, list[int]]:
        return {job: self._guess(job, most) for job, most in wanted.items()}

    def forget(self, job: Job) -> None:
        self._seen.pop(job, None)

    def _guess(self, job: Job, most: int) -> list[int]:
        seen, text = self._seen.setdefault(job, Seen()), job.tokens + job.pending
        for end in range(max(seen.count, GRAM), len(text)):
            seen.after[tuple(text[end - GRAM : end])] = end
        seen.count = len(text)
        at = seen.after.get(tuple(text[-GRAM:]))
        return [] if at is None else text[at : at + most]


@dataclass
class Held:
    """What the draft model has read of one job."""

    slot: int
    tokens: list[int] = field(default_factory=list)


class DraftModel:
    """Guesses with a smaller model of the same vocabulary, greedily. Raises ParetobitError where it has another."""

    def __init__(self, model: Model, target: Model) -> None:
        sample = range(0, target.tokenizer.vocab_size, 97)
        same = [model.tokenizer.text_of(token) == target.tokenizer.text_of(token) for token in sample]
        if model.session.arch.vocab != target.session.arch.vocab or not all(same):
            raise ParetobitError(
                "the draft model has another vocabulary than the model", hint="pack a draft from the same model"
            )
        self._session = model.session
        self._held: dict[Job, Held] = {}

    def draft(self, wanted: Mapping[Job, int]) -> dict[Job, list[int]]:
        guesses: dict[Job, list[int]] = {job: [] for job in wanted}
        coming = {job: part for job in wanted if (part := self._unread(job))}
        while coming:
            work = [(self._held[job].slot, part, len(part) - 1) for job, part in coming.items()]
            rows = self._session.step(work)
            read, coming = coming, {}
            for (job, part), row in zip(read.items(), rows, strict=True):
                held = self._held[job]
                held.tokens += part
                if len(held.tokens) < len(job.tokens) + 1 + len(guesses[job]):  # there is more of the text to read
                    continue
                guesses[job].append(int(row[-1].argmax()))
                if len(guesses[job]) < wanted[job]:
                    coming[job] = guesses[job][-1:]
        return guesses

    def forget(self, job: Job) -> None:
        held = self._held.pop(job, None)
        if held is not None:
            self._session.close(held.slot)

    def _unread(self, job: Job) -> list[int]:
        """What comes next of the job's text: CATCH_UP tokens at most, none where there is no room for guesses."""
        text = job.tokens + job.pending
        if len(text) + max(LENGTHS) > self._session.context:
            return []
        held = self._held.get(job) or self._held.setdefault(job, Held(self._session.open()))
        same = min(alike(held.tokens, text), len(text) - 1)  # the last one's logits are needed
        if same < len(held.tokens):
            self._session.truncate(held.slot, same)
            del held.tokens[same:]
        return text[same : same + CATCH_UP]


@dataclass
class Luck:
    """Of one job: the share of its guesses that came true, a running mean; steps since it guessed last."""

    share: float = 0.7
    idle: int = 0


class Speculation:
    """Decides how long guesses are, from what they cost and how often they come true; none where they do not pay.

    proposed, accepted: tokens guessed, and those that came true.
    """

    def __init__(self, drafter: Drafter | None) -> None:
        self._drafter = drafter
        self._luck: dict[Job, Luck] = {}
        self._seconds: dict[int, float] = {}  # of a step with so many tokens
        self._guessing = 0.0  # seconds a guessed token
        self.proposed = self.accepted = 0

    def draft(self, jobs: Sequence[Job], room: int) -> dict[Job, list[int]]:
        """The guesses for jobs that decode, of `room` tokens together at most."""
        if self._drafter is None or not jobs or room < 1:
            return {}
        each = room // len(jobs)
        wanted = {job: min(self._length(job, len(jobs)), each, job.left - 1) for job in jobs}
        start = time.perf_counter()
        drafts = self._drafter.draft({job: most for job, most in wanted.items() if most > 0})
        made = sum(map(len, drafts.values()))
        if made:
            took = (time.perf_counter() - start) / made
            self._guessing += SMOOTH * (took - self._guessing)
        return drafts

    def learn(self, job: Job, guessed: int, right: int) -> None:
        """So many tokens of a guess came true, before the first that did not."""
        self.proposed += guessed
        self.accepted += right
        luck = self._luck.setdefault(job, Luck())
        for true in [1.0] * right + [0.0] * (right < guessed):
            luck.share += SMOOTH * (true - luck.share)

    def took(self, tokens: int, seconds: float) -> None:
        """A step of so many tokens, none of them a prompt's, took so long."""
        before = self._seconds.get(tokens, seconds)
        self._seconds[tokens] = before + SMOOTH * (seconds - before)

    def forget(self, job: Job) -> None:
        self._luck.pop(job, None)
        if self._drafter is not None:
            self._drafter.forget(job)

    def _length(self, job: Job, jobs: int) -> int:
        """The length that brings the most tokens a second, by what was seen."""
        luck = self._luck.setdefault(job, Luck())
        share = min(luck.share, 0.99)

        def speed(length: int) -> float:
            tokens = jobs - 1 + (1 - share ** (length + 1)) / (1 - share)
            return tokens / (self._cost(jobs + length) + length * self._guessing)

        best = max(LENGTHS, key=speed) if self._seconds else 1
        luck.idle = 0 if best else luck.idle + 1
        if luck.idle >= AGAIN:
            luck.idle, best = 0, 1
        return best

    def _cost(self, tokens: int) -> float:
        """Seconds of such a step: as measured, or as the largest smaller one: what is not known gets tried."""
        known = [count for count in self._seconds if count <= tokens]
        return self._seconds[max(known)] if known else min(self._seconds.values())
