"""What the server counts, for Prometheus (its text format, by prometheus_client) and for the page."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Registry:
    """Metrics of a process; those of each model are labelled with its name."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=self._registry)

        def of(kind: Any, name: str, what: str, *labels: str, **more: object) -> Any:
            return kind(f"paretobit_{name}", what, ("model", *labels), registry=self._registry, **more)

        self.requests = of(Counter, "answers", "Answers by how they ended: eos, stop, length, cancelled, error.", "end")
        self.prompt_tokens = of(Counter, "prompt_tokens", "Tokens of prompts.")
        self.cached_tokens = of(Counter, "cached_prompt_tokens", "Tokens of prompts that the prefix cache held.")
        self.said_tokens = of(Counter, "generated_tokens", "Tokens of answers.")
        self.computed_tokens = of(Counter, "computed_tokens", "Tokens that went through the model.")
        self.lookups = of(Counter, "prefix_lookups", "Prompts looked up in the prefix cache.", "hit")
        self.busy_seconds = of(Counter, "busy_seconds", "Seconds in which the model computed.")
        self.drafted = of(Gauge, "draft_tokens", "Tokens that were guessed ahead.")
        self.accepted = of(Gauge, "draft_tokens_accepted", "Guesses that came true.")
        self.running = of(Gauge, "running", "Answers being made.")
        self.waiting = of(Gauge, "waiting", "Requests in the queue.")
        self.kept = of(Gauge, "kept_prefixes", "Token sequences in the prefix cache.")
        self.kv_bytes = of(Gauge, "kv_bytes", "Bytes of key-value caches, running and kept.")
        self.first = of(Histogram, "first_token_seconds", "From a free slot to the first token.", buckets=SECONDS)
        self.steps = of(Histogram, "step_seconds", "Time between two tokens of an answer.", buckets=SECONDS)

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self._registry)


class Metrics:
    """The metrics of one model, as the engine tells them."""

    def __init__(self, registry: Registry | None = None, name: str = "model") -> None:
        self._all, self._name = registry or Registry(), name

    def _of(self, metric: Any, *labels: str) -> Any:
        return metric.labels(self._name, *labels)

    def load(self, running: int, waiting: int) -> None:
        self._of(self._all.running).set(running)
        self._of(self._all.waiting).set(waiting)

    def prompt(self, tokens: int, cached: int) -> None:
        self._of(self._all.prompt_tokens).inc(tokens)
        self._of(self._all.cached_tokens).inc(cached)
        self._of(self._all.lookups, "yes" if cached else "no").inc()

    def first(self, seconds: float) -> None:
        self._of(self._all.first).observe(seconds)

    def step(self, seconds: float, computed: int, said: int, kept: int, kv_bytes: int) -> None:
        self._of(self._all.busy_seconds).inc(seconds)
        self._of(self._all.computed_tokens).inc(computed)
        self._of(self._all.said_tokens).inc(said)
        self._of(self._all.kept).set(kept)
        self._of(self._all.kv_bytes).set(kv_bytes)
        if said:
            self._of(self._all.steps).observe(seconds)

    def guesses(self, proposed: int, accepted: int) -> None:
        self._of(self._all.drafted).set(proposed)
        self._of(self._all.accepted).set(accepted)

    def ended(self, how: str) -> None:
        self._of(self._all.requests, how).inc()
