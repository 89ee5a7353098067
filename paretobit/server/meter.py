"""Memory, and energy since the server started, for the page: measured where there are counters, else modelled."""

from __future__ import annotations

from typing import Any

from paretobit.errors import ParetobitError
from paretobit.evals.energy import MEASURED, MODELLED, Counter, counters, spent
from paretobit.evals.memory import resident
from paretobit.profile import ASSUMED_POWER
from paretobit.server.served import Catalogue


class Meter:
    """Energy is the whole processor's where measured, and that of computing tokens alone where modelled."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._counters = counters()
        self._before = self._read()
        self._joules = 0.0

    def read(self) -> dict[str, Any]:
        models = self._catalogue.models
        now = self._read()
        if now:
            self._joules += spent(self._before, now)
            self._before = now
        modelled = sum(
            ASSUMED_POWER.joules(e.busy_seconds, each.model.session.threads, e.steps * each.size_bytes)
            for each in models.values()
            for e in [each.engine]
        )
        memory = resident()
        return {
            "resident_bytes": None if memory is None else memory.total,
            "joules": self._joules if now else modelled,
            "energy": MEASURED if now else MODELLED,
            "models": {name: each.engine.stats() for name, each in models.items()},
        }

    def _read(self) -> dict[Counter, int]:
        """Empty where the system keeps its counters to itself."""
        try:
            return {counter: counter.read() for counter in self._counters}
        except ParetobitError:
            self._counters = []
            return {}
