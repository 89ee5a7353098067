"""Models for tests of the server: a tiny one with random weights, packed, which says nonsense, always the same."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import paretobit as pb
from paretobit.compress import estimate
from paretobit.runtime.generate import Model
from paretobit.runtime.sampler import Sampling
from paretobit.server.engine import Engine
from paretobit.server.job import Event, Job, Wish
from paretobit.server.launch import Server
from tests.checkpoints import tiny_llama_folder


def packed(folder: Path, to: str = "w4g32", name: str = "tiny", **changes: object) -> Path:
    """A packed tiny model at folder / name; `changes` go into its config.json."""
    source = tiny_llama_folder(folder / f"{name}-model", **changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimate, "matmul_flops", lambda seconds=0.3: 1e10)
        patch.setenv("PARETOBIT_CACHE", str(folder / "cache"))
        pb.quantize(str(source), to=to, method="rtn", out=str(folder / name))
    return folder / name


class Asked:
    """An answer that a test waits for."""

    def __init__(self, engine: Engine, prompt: Sequence[int], wish: Wish) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        self.job: Job = engine.job(prompt, wish, self.events.put)
        engine.submit(self.job)

    def next(self) -> Event:
        return self.events.get(timeout=60)

    def read(self) -> tuple[str, str]:
        """(text, finish) once it is over."""
        text = ""
        while True:
            event = self.next()
            if event.error is not None:
                raise event.error
            text += event.text
            if event.finish:
                return text, event.finish


def greedy(most: int, **more: object) -> Wish:
    return Wish(Sampling(), most, **more)


def alone(model: Model, prompt: Sequence[int], most: int, sampling: Sampling | None = None) -> str:
    """What the model says with nothing beside it."""
    with_it = model.stream(list(prompt), sampling or Sampling(), most)
    return with_it.read()


@contextmanager
def running(*outs: Path | str, **options: object) -> Iterator[Server]:
    """A server on a free port, ready."""
    server = pb.serve(*map(str, outs), port=0, **options).server
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        end = time.monotonic() + 60
        while not server.catalogue.models:
            assert time.monotonic() < end and thread.is_alive()
            time.sleep(0.01)
        yield server
    finally:
        server.stop()
        thread.join(60)
        assert not thread.is_alive()


def idle(server: Server) -> None:
    """Until nothing runs or waits."""
    end = time.monotonic() + 30
    while any(each.engine.load != (0, 0) for each in server.catalogue.models.values()):
        assert time.monotonic() < end, [each.engine.load for each in server.catalogue.models.values()]
        time.sleep(0.01)


def slow_down(server: Server, seconds: float = 0.02) -> None:
    """Each step takes so long at least: as a large model's do."""
    for each in server.catalogue.models.values():
        session, step = each.model.session, each.model.session.step

        def slowly(work: Any, step: Any = step) -> Any:
            time.sleep(seconds)
            return step(work)

        session.step = slowly  # type: ignore[method-assign]
