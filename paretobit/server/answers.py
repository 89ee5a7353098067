"""From the engine's thread to asyncio: the answers of one request, their events in the order in which they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from functools import partial

from paretobit.server.engine import Engine
from paretobit.server.job import Event, Job, Wish


class Answers:
    """One answer to each (prompt, wish). Raises ParetobitError on what cannot be answered, Busy from start().

    The first is asked for alone: what it computes of a prompt, the others find in the prefix cache. Then as many as
    the engine runs at once, so that a request with many takes no more of the queue than one.
    """

    def __init__(self, engine: Engine, asked: Sequence[tuple[Sequence[int], Wish]]) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self.jobs: list[Job] = [
            engine.job(prompt, wish, partial(self._tell, at)) for at, (prompt, wish) in enumerate(asked)
        ]
        self._begun = self._over = 0

    def start(self) -> None:
        """Join the queue."""
        self._engine.submit(self.jobs[0])
        self._begun = 1

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """(which answer, what happened) until all are over. An error is raised, and ends them all."""
        while self._over < len(self.jobs):
            which, event = await self._events.get()
            if event.error is not None:
                raise event.error
            self._over += bool(event.finish)
            while self._begun < min(len(self.jobs), self._over + self._engine.parallel):
                self._engine.submit(self.jobs[self._begun], admitted=True)
                self._begun += 1
            yield which, event

    def cancel(self) -> None:
        """Nobody waits for them any more."""
        for job in self.jobs:
            job.cancel()

    @property
    def said(self) -> int:
        """Tokens of all answers."""
        return sum(len(job.words.tokens) for job in self.jobs)

    def _tell(self, which: int, event: Event) -> None:
        with suppress(RuntimeError):  # the loop has ended, and with it whoever waited
            self._loop.call_soon_threadsafe(self._events.put_nowait, (which, event))
