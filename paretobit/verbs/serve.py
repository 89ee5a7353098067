"""serve: an OpenAI-compatible server, and a page to chat on. Needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from paretobit.errors import ParetobitError
from paretobit.progress import say
from paretobit.verbs.answers import Activations, Threads
from paretobit.verbs.verb import Option, Verb

if TYPE_CHECKING:
    from paretobit.server.launch import Server


class Serving:
    """A server that listens already, so that `url` is known; run() loads the models and answers until a signal, or
    until stop() is called in another thread."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.url = server.url

    def run(self) -> None:
        self.server.run()

    def stop(self) -> None:
        self.server.stop()

    def to_json(self) -> dict[str, Any]:
        """Once it has ended: where it was reached."""
        self.run()
        return {"url": self.url, "models": list(self.server.settings.names)}


def serve(
    *outs: str,
    host: Annotated[str, Option("Address to listen on; one that others reach needs --api-key-file.")] = "127.0.0.1",
    port: Annotated[int, Option("Port to listen on; 0: any that is free.")] = 8080,
    parallel: Annotated[int, Option("Answers that are made at once.")] = 4,
    ctx: Annotated[int, Option("Tokens of a prompt and its answer at most, if the model holds as many.")] = 4096,
    queue: Annotated[int, Option("Requests that may wait; more are told to come back later.")] = 64,
    cache_mb: Annotated[float, Option("Megabytes of key-value caches, beyond which no old prompt is kept.")] = 256.0,
    api_key_file: Annotated[str | None, Option("Keys that let in, one a line; without, anybody is let in.")] = None,
    insecure: Annotated[bool, Option("Let others in without a key.")] = False,
    metrics: Annotated[bool, Option("Figures for Prometheus at /metrics.")] = False,
    draft: Annotated[str | None, Option("A smaller packed model of the same kind that guesses ahead.")] = None,
    speculate: Annotated[bool | None, Option("Guess ahead from the text so far (default: yes).")] = None,
    threads: Threads = None,
    activations: Activations = "int8",
) -> Serving:
    """Serve packed models to OpenAI's clients and, at /, to people with a browser.

    Several models take turns. From Python, call run() of the result. Raises ParetobitError on options that make no
    sense, on an address that is taken or that others reach without a key, and where OUT is not a packed model.
    """
    try:
        from paretobit.server.launch import Server, Settings
    except ImportError as why:
        raise ParetobitError(f"serving needs {why.name}", hint="pip install 'paretobit[serve]'") from None
    settings = Settings(
        outs, host, port, parallel, ctx, queue, cache_mb, api_key_file, insecure, metrics, draft,
        speculate is not False, threads, activations,
    )  # fmt: skip
    return Serving(Server(settings))


def show(serving: Serving) -> None:
    """Answer until Ctrl-C or SIGTERM; running answers are finished up to a limit."""
    say(f"loading; {serving.url}")
    serving.run()


VERB = Verb("serve", serve, show)
