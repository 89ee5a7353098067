"""What several processes share of a training, and how its state survives on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from paretobit.checkpoint import open_model
from paretobit.compress.shards import Shards
from paretobit.compress.train import Recipe, Training
from paretobit.compress.trainable import trained
from paretobit.compress.world import World
from paretobit.errors import ParetobitError
from paretobit.planfile import uniform
from paretobit.work import Work


class Alone(World):
    """One of several processes whose others are not there."""

    def wait(self) -> None:
        pass

    def sums(self, values: Sequence[float]) -> list[float]:
        return list(values)


def training(model: Path, folder: Path, recipe: Recipe, world: World) -> Training:
    source = open_model(model)
    ids = np.random.default_rng(0).integers(0, source.arch.vocab, (6, 32))
    plan = trained(uniform(source.arch, source.hash, "w2", None, ("rtn",) * 3, {}), {})
    return Training(source, plan, ids, None, Work(folder / "out", "model", {}), recipe, "cpu", world)


def test_processes_share_a_step_s_windows(model: Path, tmp_path: Path) -> None:
    recipe = Recipe(4, None, batch=4)
    one = training(model, tmp_path, recipe, World())
    both = [training(model, tmp_path, recipe, Alone(rank, 2)) for rank in range(2)]
    names = [set(run.learner.parameters) for run in both]
    assert not names[0] & names[1] and names[0] | names[1] == set(one.learner.parameters)
    for step in range(4):
        for run in (one, *both):
            run.step = step
        parts = [run.batch() for run in both]
        assert torch.equal(torch.stack(parts, 1).flatten(0, 1), one.batch())
    with pytest.raises(ParetobitError, match="do not divide among 3 processes"):
        training(model, tmp_path, recipe, World(0, 3))


def test_a_state_counts_when_all_its_parts_are_there(tmp_path: Path) -> None:
    work = Work(tmp_path / "out", "model", {})
    work.folder.mkdir()
    two, one = ([Shards(work, Alone(rank, size)) for rank in range(size)] for size in (2, 1))

    def keep(shards: list[Shards], number: int, ranks: tuple[int, ...]) -> None:
        for rank in ranks:
            shards[rank].write("state", {"n": np.array([number]), f"of {rank}": np.array([rank])}, number)

    def found() -> int | None:
        whole = one[0].read("state")
        return None if whole is None else int(whole.read_raw("n")[0])

    keep(two, 5, (0,))
    assert found() is None
    keep(two, 5, (1,))
    assert found() == 5
    keep(two, 8, (1,))  # killed before the first process has written its part
    assert found() == 5
    keep(two, 8, (0,))
    assert found() == 8 and len(list(work.folder.iterdir())) == 2
    whole = one[0].read("state")
    assert whole is not None and {"of 0", "of 1"} < set(whole.tensors) and whole.read_raw("of 1")[0] == 1
    assert one[0].read("other") is None
    keep(one, 8, (0,))  # the same moment, kept by another number of processes
    assert found() == 8 and [path.name for path in work.folder.iterdir()] == ["state-8.0of1.safetensors"]


def test_processes_keep_about_as_much_each() -> None:
    sizes = {"a": 100, "b": 60, "c": 50, "d": 1, "e": 1}
    owners = World(0, 2).owners(sizes)
    assert owners == World(1, 2).owners(dict(reversed(sizes.items())))
    kept = [sum(n for name, n in sizes.items() if owners[name] == rank) for rank in range(2)]
    assert sum(kept) == 212 and max(kept) <= 111
    assert set(World().owners(sizes).values()) == {0}
