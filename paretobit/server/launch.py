"""From packed models to a server that runs: what `paretobit serve` starts."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from pathlib import Path

import anyio.to_thread

from paretobit.artifact import Artifact
from paretobit.errors import ParetobitError
from paretobit.progress import say
from paretobit.runtime.generate import load
from paretobit.server import listen
from paretobit.server.app import app
from paretobit.server.drafts import Drafter, DraftModel, PromptLookup
from paretobit.server.engine import MOST_PARALLEL, Engine
from paretobit.server.grammar import Grammars
from paretobit.server.guard import check_reach, is_loopback, read_keys
from paretobit.server.metrics import Metrics, Registry
from paretobit.server.served import Catalogue, Served

MB = 1_000_000


@dataclass(frozen=True)
class Settings:
    """What `paretobit serve` can be told; the verb's options say what each means."""

    outs: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 8080
    parallel: int = 4
    ctx: int | None = None
    queue: int = 64
    cache_mb: float = 256
    api_key_file: str | None = None
    insecure: bool = False
    metrics: bool = False
    draft: str | None = None
    speculate: bool = True
    threads: int | None = None
    activations: str = "int8"
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        names = [Path(out).resolve().name for out in self.outs]
        if not names:
            raise ParetobitError("no packed model is named", hint="paretobit serve OUT")
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ParetobitError(f"two models are called {twice}", hint="give folders of different names")
        if self.draft is not None and len(names) > 1:
            raise ParetobitError("--draft goes with one model", hint="serve them apart")
        for name, value, least, most in (
            ("--port", self.port, 0, 65535),
            ("--parallel", self.parallel, 1, MOST_PARALLEL),
            ("--queue", self.queue, 1, 1 << 16),
            ("--cache-mb", self.cache_mb, 0, 1 << 24),
        ):
            if not least <= value <= most:
                raise ParetobitError(f"{name} {value} is out of range", hint=f"give {least} to {most}")
        object.__setattr__(self, "names", tuple(names))


class Server:
    """A server that listens already, so that its port is known; run() answers until it is told to stop.

    Raises ParetobitError on settings that make no sense, on a host that others reach without a key, and where the
    address is taken.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        keys = read_keys(settings.api_key_file) if settings.api_key_file is not None else []
        check_reach(settings.host, keys, settings.insecure)
        for out in (*settings.outs, *([settings.draft] if settings.draft else [])):
            Artifact(Path(out))
        self.catalogue = Catalogue()
        self._registry = Registry()
        shown = self._registry if settings.metrics else None
        self._uvicorn = listen.server(app(self.catalogue, shown, keys, is_loopback(settings.host)))
        self._socket = listen.bind(settings.host, settings.port)
        host, self.port = settings.host, self._socket.getsockname()[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def run(self) -> None:
        """Load the models and answer, until a signal or stop(). Raises ParetobitError where one cannot be loaded."""
        asyncio.run(self._run())

    def stop(self) -> None:
        """Take no more requests, finish running answers up to a limit, and end run(). From any thread."""
        self._uvicorn.should_exit = True

    async def _run(self) -> None:
        loading = asyncio.create_task(anyio.to_thread.run_sync(self._load))
        loading.add_done_callback(self._loaded)
        try:
            await self._uvicorn.serve([self._socket])
        finally:
            await loading
            for served in self.catalogue.models.values():
                await anyio.to_thread.run_sync(served.engine.close)

    def _loaded(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is not None:
            self.stop()

    def _load(self) -> None:
        turn = threading.Lock()
        found = [self._open(out, name, turn) for out, name in zip(self.settings.outs, self.settings.names, strict=True)]
        self.catalogue.open(found)
        say(f"ready: {', '.join(self.settings.names)} at {self.url}")

    def _open(self, out: str, name: str, turn: threading.Lock) -> Served:
        s = self.settings
        artifact = Artifact(Path(out))
        context = None if s.ctx is None else min(s.ctx, artifact.arch.max_positions)
        model = load(out, s.threads, s.activations, context)
        drafter: Drafter | None = PromptLookup() if s.speculate else None
        if s.draft is not None:
            drafter = DraftModel(load(s.draft, s.threads, s.activations), model)
        engine = Engine(model, s.parallel, s.queue, int(s.cache_mb * MB), drafter, turn, Metrics(self._registry, name))
        return Served(name, model, engine, Grammars(model), artifact.size_bytes)
