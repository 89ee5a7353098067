"""State of which every process keeps a part, on disk: it counts when all parts are there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paretobit.compress.world import World
from paretobit.tensorfile import SafetensorsFile, write_arrays
from paretobit.work import Work

PART = re.compile(r"(?P<stem>.+)-(?P<number>\d+)\.(?P<rank>\d+)of(?P<size>\d+)\.safetensors")


class Whole:
    """All parts of one state, read as one file; what several parts have is the same in each."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self._where = {name: file for file in map(SafetensorsFile, files) for name in file.tensors}
        self.tensors = self._where.keys()

    def read_raw(self, name: str) -> np.ndarray:
        return self._where[name].read_raw(name)

    def read_float32(self, name: str) -> np.ndarray:
        return self._where[name].read_float32(name)


@dataclass(frozen=True)
class Shards:
    """States of a job, by name. Another number of processes may read them than wrote them."""

    work: Work
    world: World

    def write(self, stem: str, arrays: Mapping[str, np.ndarray], number: int = 0) -> list[Path]:
        """Keep this process's part of the state with that number, and then forget others of that name. All its files.

        Until all parts are written, an earlier state is still whole.
        """
        world, size = self.world, self.world.size
        write_arrays(self._path(stem, number, world.rank, size), arrays)
        world.wait()
        if world.leads:
            for (other, _rank, its_size), path in self._parts(stem):
                if (other, its_size) != (number, size):
                    path.unlink()
        return [self._path(stem, number, rank, size) for rank in range(size)]

    def read(self, stem: str) -> Whole | None:
        """The latest state of that name of which no part is missing. Nobody may write until all have read."""
        there = {key for key, _ in self._parts(stem)}
        whole = [(n, size) for n, rank, size in there if not rank and all((n, r, size) in there for r in range(size))]
        if not whole:
            return None
        number, size = max(whole)
        return Whole([self._path(stem, number, rank, size) for rank in range(size)])

    def _path(self, stem: str, number: int, rank: int, size: int) -> Path:
        return self.work.path(f"{stem}-{number}.{rank}of{size}.safetensors")

    def _parts(self, stem: str) -> list[tuple[tuple[int, int, int], Path]]:
        """((number, rank, size), file) of all parts of states of that name."""
        found = []
        for path in self.work.folder.iterdir():
            part = PART.fullmatch(path.name)
            if part and part["stem"] == stem:
                found.append(((int(part["number"]), int(part["rank"]), int(part["size"])), path))
        return found
