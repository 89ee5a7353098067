"""The engine: one thread that advances all answers of a model together, a token or a piece of a prompt each.

Requests join and leave between steps. A step takes at most `Session.chunk` tokens: first one of every answer that is
being said, then guesses of what follows, then equal parts of prompts, so that a long one holds up neither the others'
answers nor a short one. Each token's logits are the same to the bit as if it were computed alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from paretobit.errors import ParetobitError
from paretobit.runtime.generate import Model
from paretobit.server.drafts import Drafter, Speculation
from paretobit.server.job import Busy, Closing, Event, Job, Wish
from paretobit.server.metrics import Metrics
from paretobit.server.prefixes import Prefixes

BESIDE = 32  # tokens of prompts in a step while answers are being said: what those wait for
MOST_PARALLEL = 32

log = logging.getLogger("paretobit.server")


class Engine:
    """Answers jobs, `parallel` at once and `queue` more waiting; cache_bytes: bound of the prefix cache.

    turn: a lock that engines of several models share, so that one at a time uses the processor.
    """

    def __init__(
        self,
        model: Model,
        parallel: int = 4,
        queue: int = 64,
        cache_bytes: int = 256 << 20,
        drafter: Drafter | None = None,
        turn: AbstractContextManager[Any] | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        if not 1 <= parallel <= MOST_PARALLEL:
            raise ParetobitError(f"{parallel} answers at once", hint=f"choose from 1 to {MOST_PARALLEL}")
        if queue < 1:
            raise ParetobitError(f"a queue of {queue}", hint="at least one request must be able to wait")
        self.model, self.parallel, self.queue = model, parallel, queue
        self.metrics = metrics or Metrics()
        self.prefixes = Prefixes(model.session, cache_bytes)
        self.speculation = Speculation(drafter)
        self._turn: AbstractContextManager[Any] = turn or nullcontext()
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._closing = False
        self.steps = self.said = self._kv_bytes = 0
        self.busy_seconds = 0.0
        self._pace = 5.0  # seconds a request, a running mean
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    @property
    def load(self) -> tuple[int, int]:
        """(answers being made, requests waiting)."""
        with self._changed:
            return len(self._running), len(self._waiting)

    def job(self, prompt: Sequence[int], wish: Wish, tell: Callable[[Event], object]) -> Job:
        """Raises ParetobitError on what cannot be answered."""
        return Job(self.model, prompt, wish, tell)

    def submit(self, job: Job, admitted: bool = False) -> None:
        """Answer it when its turn comes. Raises Closing, and Busy where the queue is full, but for a request's
        further answers."""
        with self._changed:
            waiting = len(self._waiting)
            if self._closing:
                raise Closing
            if waiting >= self.queue and not admitted:
                raise Busy(waiting, 1 + int(self._pace * (waiting + 1) / self.parallel))
            self._waiting.append(job)
            self._changed.notify()

    def close(self) -> None:
        """Stop after the step in progress; what runs is told so."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _loop(self) -> None:
        while self._admit():
            try:
                self._step()
            except Exception as why:
                log.exception("a step failed")
                self._fail_all(why)
        self._fail_all(Closing())
        self.prefixes.clear()

    def _admit(self) -> bool:
        """Wait for work, and take what may run. False to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._running or self._waiting)
            if self._closing:
                return False
            for job in [job for job in self._waiting if job.cancelled]:
                self._waiting.remove(job)
                job.release()
                self.metrics.ended("cancelled")
            while self._waiting and len(self._running) < self.parallel:
                self._begin(self._waiting.popleft())
            self.metrics.load(len(self._running), len(self._waiting))
        return True

    def _begin(self, job: Job) -> None:
        if job.wish.score:  # which needs the logits of the whole prompt
            job.slot = self.model.session.open()
        else:
            running = [(other.slot, other.tokens) for other in self._running]
            job.slot, job.cached = self.prefixes.open(job.prompt, running)
            self.metrics.prompt(len(job.prompt), job.cached)
        job.tokens, job.since = job.prompt[: job.cached], time.monotonic()
        self._running.append(job)

    def _end(self, job: Job, how: str) -> None:
        with self._changed:
            self._running.remove(job)
        self._forget_guesses(job)
        self._pace += 0.2 * (time.monotonic() - job.since - self._pace)
        self.speculation.forget(job)
        self.prefixes.keep(job.slot, job.tokens)
        job.release()
        self.metrics.ended(how)

    def _step(self) -> None:
        for job in [job for job in self._running if job.cancelled]:
            self._end(job, "cancelled")
        work = self._plan()
        if not work:
            return
        self.prefixes.shrink()
        try:
            with self._turn:
                start = time.perf_counter()
                rows = self.model.session.step([(job.slot, tokens, first) for job, tokens, first in work])
                seconds = time.perf_counter() - start
        except ParetobitError as why:
            if not self.prefixes.clear():  # with that memory it may go; without, nothing will change
                self._fail_all(why)
            return
        count = sum(len(tokens) for _, tokens, _ in work)
        if not any(job.prefilling for job, _, _ in work):
            self.speculation.took(count, seconds)
        said = 0
        for (job, tokens, first), logits in zip(work, rows, strict=True):
            said += self._take(job, tokens, first, logits)
        self.steps, self.said, self.busy_seconds = self.steps + 1, self.said + said, self.busy_seconds + seconds
        self.metrics.guesses(self.speculation.proposed, self.speculation.accepted)
        self._kv_bytes = self.model.session.kv_bytes
        self.metrics.step(seconds, count, said, len(self.prefixes), self._kv_bytes)

    def _plan(self) -> list[tuple[Job, list[int], int]]:
        """[(job, its next tokens, the first whose logits are wanted)]."""
        talking = [job for job in self._running if not job.prefilling]
        reading = [job for job in self._running if job.prefilling]
        room = self.model.session.chunk - len(talking)
        for job in talking:
            job.pending = job.pending[:1]
        drafts = {} if reading else self.speculation.draft(talking, room)
        work = []
        for job in talking:
            job.pending += drafts.get(job, [])
            work.append((job, job.pending, 0))
        room = min(room, BESIDE) if talking else room
        # The fewest tokens first: what they do not use of their share goes to the others.
        for at, job in enumerate(sorted(reading, key=lambda job: len(job.prompt) - len(job.tokens))):
            share = -(-room // (len(reading) - at))
            tokens = job.prompt[len(job.tokens) : len(job.tokens) + share]
            room -= len(tokens)
            if tokens:
                last = len(job.tokens) + len(tokens) == len(job.prompt)
                work.append((job, tokens, 0 if job.wish.score else len(tokens) - last))
        return work

    def _take(self, job: Job, tokens: list[int], first: int, logits: np.ndarray) -> int:
        """Go on with a job whose `tokens` were computed; how many tokens it said."""
        try:
            if job.prefilling:
                return self._read(job, tokens, logits)
            return self._speak(job, tokens, logits)
        except Exception as why:
            if not isinstance(why, ParetobitError):
                log.exception("an answer failed")
            job.fail(why)
            self._end(job, "error")
            return 0

    def _read(self, job: Job, tokens: list[int], logits: np.ndarray) -> int:
        at = len(job.tokens)
        job.tokens += tokens
        if job.wish.score:
            follow = job.prompt[at + 1 : at + 1 + len(tokens)]
            job.score(follow, logits[: len(follow)])
        if len(job.tokens) < len(job.prompt):
            return 0
        self.metrics.first(time.monotonic() - job.since)
        return self._say(job, logits[-1])

    def _speak(self, job: Job, tokens: list[int], logits: np.ndarray) -> int:
        right = said = 0
        for at, row in enumerate(logits):
            job.tokens.append(tokens[at])
            said += self._say(job, row)
            if job not in self._running or job.pending[0] != next(iter(tokens[at + 1 :]), None):
                break
            right += 1
        if job in self._running:
            self._forget_guesses(job)
            if len(tokens) > 1:
                self.speculation.learn(job, len(tokens) - 1, right)
        return said

    def _forget_guesses(self, job: Job) -> None:
        """The slot holds what was said, not what was guessed in vain."""
        if self.model.session.length(job.slot) > len(job.tokens):
            self.model.session.truncate(job.slot, len(job.tokens))

    def _say(self, job: Job, row: np.ndarray) -> int:
        token = job.say(row)
        if token is None:
            self._end(job, job.words.finish or "length")
            return 1
        job.pending = [token]
        return 1

    def _fail_all(self, why: Exception) -> None:
        with self._changed:
            failed, self._waiting = [*self._running, *self._waiting], deque()
        for job in failed:
            job.fail(why)
            if job in self._running:
                self._end(job, "error")

    def stats(self) -> dict[str, Any]:
        """Figures for people who look at the page."""
        running, waiting = self.load
        return {
            "running": running,
            "waiting": waiting,
            "generated_tokens": self.said,
            "busy_seconds": self.busy_seconds,
            "kv_bytes": self._kv_bytes,
            "kept_prefixes": len(self.prefixes),
        }
