"""A model as the server has it: its name, its engine, and what it answers with."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from paretobit.runtime.generate import Model
from paretobit.server.engine import Engine
from paretobit.server.errors import ApiError
from paretobit.server.grammar import Grammars


@dataclass
class Served:
    """id: what clients call it by."""

    id: str
    model: Model
    engine: Engine
    grammars: Grammars
    size_bytes: int
    created: int = field(default_factory=lambda: int(time.time()))


class Catalogue:
    """The models of a server; empty while they are loaded."""

    def __init__(self) -> None:
        self.models: dict[str, Served] = {}

    def open(self, served: Sequence[Served]) -> None:
        self.models = {each.id: each for each in served}

    def find(self, name: str | None) -> Served:
        """Raises ApiError where there is no such model; without a name, the first."""
        if not self.models:
            raise ApiError(503, "the model is being loaded", None, "loading", retry_after="1")
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            known = ", ".join(self.models)
            raise ApiError(
                404, f"there is no model '{name[:100]}'; this server has {known}", "model", "model_not_found"
            )
        return self.models[name]
