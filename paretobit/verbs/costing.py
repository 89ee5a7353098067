"""The cost table of one model and text, measured once and kept; and what mixtures of the bank's tensors really have."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretobit import bands
from paretobit.costs import Costs
from paretobit.errors import ParetobitError
from paretobit.work import Work, cache_folder, disk_errors, remember, remembered

if TYPE_CHECKING:
    from paretobit.checkpoint.base import Checkpoint
    from paretobit.compress.corpus import Corpus
    from paretobit.compress.model import Decoder, Source
    from paretobit.compress.units import Units

COST = "kl_divergence"
COST_WINDOWS, MEASURE_WINDOWS = 16, 8
EVERY = slice(None)


class Table:
    """The costs of one model on some schemes, measured on a corpus; bank and table lie in the cache and serve every
    later wish. given: a folder of costs that were measured elsewhere."""

    def __init__(
        self, source: Checkpoint, corpus: Corpus, schemes: Sequence[str], device: str, given: Path | None = None
    ) -> None:
        from paretobit import __version__, hardware

        self.source, self.corpus, self.schemes, self.device = source, corpus, tuple(schemes), device
        self.cuts = bands.candidates(source.arch)
        self.given = given
        self.fingerprint = {
            "model": source.hash, "schemes": list(schemes), "calibration": corpus.record, "windows": COST_WINDOWS,
            "version": __version__, "isa": hardware.isa(), "device": device,
        }  # fmt: skip
        digest = hashlib.sha256(json.dumps(self.fingerprint, sort_keys=True).encode()).hexdigest()
        self.folder = cache_folder() / "plans" / source.hash[:16] / digest[:16]

    @property
    def banded(self) -> Checkpoint:
        """The source in all bands that may have schemes of their own."""
        return bands.InBands(self.source, self.cuts)

    @cached_property
    def bank(self) -> dict[str, Units]:
        from paretobit.compress import bank

        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        return bank.get(self.source, self.schemes, self.corpus, self.folder / "bank", self.device)

    @cached_property
    def costs(self) -> Costs:
        from paretobit import costs

        if self.given is None:
            return self.measure(self.folder / "costs", self.fingerprint, overwrite=True)
        found = costs.read(self.given)
        if (found.model, found.schemes) != (self.source.hash, self.schemes):
            raise ParetobitError(
                f"{self.given} holds costs of another model, or of other schemes: {', '.join(found.schemes)}",
                hint="measure them with paretobit plan MODEL --shard i/N and the same --schemes",
            )
        return found

    def measure(self, folder: Path, fingerprint: dict[str, object], overwrite: bool, shard: slice = EVERY) -> Costs:
        """The costs on a shard of the windows, as a folder; nothing is done where it lies there already."""
        from paretobit import costs
        from paretobit.compress import sensitivity

        work = Work(folder, costs.KIND, {**fingerprint, "table": costs.VERSION})
        if not work.finished(overwrite):
            models = self.bank
            windows = sensitivity.windows_of(self.corpus.ids, COST_WINDOWS)[shard]
            with work.open(overwrite):
                found = sensitivity.measure(self.source, models, windows, work, self.device, self.cuts)
                made = sensitivity.table(self.source, models, self.corpus.record, found, self.cuts)
                with work.publish() as into:
                    made.write(into, work.fingerprint)
        return costs.read(folder)

    @cached_property
    def measured(self) -> Measured:
        return Measured(self)


class Measured:
    """Divergences of mixtures that were really computed, remembered beside the table."""

    def __init__(self, table: Table) -> None:
        self.table, self.path = table, table.folder / "measured.jsonl"
        self.rows: list[dict[str, Any]] = list(_read_rows(self.path, set(table.schemes)))

    def divergence(self, schemes: Mapping[str, str]) -> float:
        """Nats a token to the original, of the bank's tensors of these schemes."""
        for row in self.rows:
            if row["schemes"] == schemes:
                return row[COST]
        from paretobit.compress.bank import Mixture
        from paretobit.compress.sensitivity import windows_of
        from paretobit.evals.divergence import compare

        windows = windows_of(self.table.corpus.ids, MEASURE_WINDOWS)
        mixture = Mixture(self.table.banded, self.table.bank, schemes)
        found = compare(self._decoder(mixture).logits, windows, self._original.logits)
        assert found.kl_divergence is not None
        row = {"schemes": dict(schemes), COST: found.kl_divergence["mean"]}
        self.rows.append(row)
        remember(self.path, row)
        return row[COST]

    @cached_property
    def _original(self) -> Decoder:
        return self._decoder(self.table.source)

    def _decoder(self, model: Source) -> Decoder:
        from paretobit import hardware
        from paretobit.compress.model import Decoder

        keep = 4 * self.table.source.bits16 < hardware.memory_available() // 2
        return Decoder(model, device=self.table.device, keep=keep)


def _read_rows(path: Path, schemes: set[str]) -> Iterable[dict[str, Any]]:
    """What was measured of these schemes."""
    for row in remembered(path):
        if not isinstance(row.get("schemes"), dict) or type(row.get(COST)) is not float:
            continue
        if set(row["schemes"].values()) <= schemes and row[COST] > 0:
            yield row
