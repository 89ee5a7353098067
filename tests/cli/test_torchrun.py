"""Several processes on one model: what gloo adds up, and the same command under torchrun."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import tiny_llama_folder

from paretobit.artifact import Artifact
from paretobit.checkpoint import open_model
from paretobit.compress.stats import TapStats
from paretobit.compress.train import Recipe, Training
from paretobit.compress.trainable import trained
from paretobit.compress.world import World, join
from paretobit.planfile import uniform
from paretobit.work import Work

NEEDS = frozenset({"hessian", "cross", "absmax", "absmean"})
WIDTH, ROWS = 40, 60


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(ROWS, WIDTH, generator=generator), torch.randn(ROWS, WIDTH, generator=generator)


def of_rank(rank: int) -> TapStats:
    """A third of the rows for the first process, the rest for the second."""
    part = slice(0, ROWS // 3) if rank == 0 else slice(ROWS // 3, None)
    stats = TapStats.empty(WIDTH, NEEDS)
    x, full = inputs()
    stats.add(x[part], full[part])
    return stats


def joined(rank: int, port: int) -> World:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank)}
    return join()


def in_two(work: Callable[..., None], *arguments: object) -> list[tuple]:
    """What work(rank, port, answers, …) puts into its queue, by rank, each in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = [context.Process(target=work, args=(rank, port, answers, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    got = sorted((answers.get(timeout=100) for _ in processes), key=lambda answer: answer[0])
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    return got


def lockstep(rank: int, port: int, answers: multiprocessing.Queue) -> None:
    world = joined(rank, port)
    stats = of_rank(rank)
    world.reduce(stats)
    ids = world.share_ids(np.arange(12, dtype=np.int64).reshape(3, 4) if world.leads else None)
    owned = world.share(torch.full((3,), float(rank)), owner=1)
    least = world.least(rank + 5)
    value = torch.arange(6.0).reshape(2, 3).requires_grad_()
    borrowed = world.lent(value * 2 if rank == 1 else None, (2, 3), owner=1)
    (borrowed * (rank + 1)).sum().backward()
    lent = (borrowed.tolist(), None if value.grad is None else value.grad.tolist())
    added = world.sums([1.5, rank])
    sums = [stats.hessian.numpy(), stats.cross.numpy(), stats.absmean.numpy(), stats.absmax.numpy()]
    answers.put((rank, stats.n, sums, ids, owned.numpy(), (least, lent, added)))
    world.wait()
    world.leave()


def test_two_processes_agree_on_sums_and_shares() -> None:
    got = in_two(lockstep)
    both = of_rank(0)
    both.merge(of_rank(1))
    for rank, n, sums, ids, owned, (least, lent, added) in got:
        assert n == ROWS
        # Two float32 numbers have one sum: no tolerance.
        for ours, expected in zip(sums, (both.hessian, both.cross, both.absmean, both.absmax), strict=True):
            assert np.array_equal(ours, expected.numpy())
        assert np.array_equal(ids, np.arange(12).reshape(3, 4))
        assert owned.tolist() == [1.0] * 3
        assert least == 5 and added == [3.0, 1.0]
        # What is lent is the owner's, and gradients of both, 1 and 2 times 2, come back to it alone.
        assert lent == ([[0.0, 2.0, 4.0], [6.0, 8.0, 10.0]], [[6.0] * 3] * 2 if rank == 1 else None)


def training(model: Path, folder: Path, world: World) -> Training:
    source = open_model(model)
    ids = np.random.default_rng(0).integers(0, source.arch.vocab, (8, 24))
    work = Work(folder / "out", "model", {})
    work.folder.mkdir(parents=True, exist_ok=True)
    plan = trained(uniform(source.arch, source.hash, "w2t", None, ("rtn",) * 3, {}), {})
    return Training(source, plan, ids, None, work, Recipe(20, None, batch=4, rate=1e-3), "cpu", world)


def half_of_it(rank: int, port: int, answers: multiprocessing.Queue, model: Path, folder: Path) -> None:
    world = joined(rank, port)
    run = training(model, folder, world)
    losses = [run.advance() for _ in range(9)]
    run._save()
    answers.put((rank, losses, sum(value.numel() for value in run.learner.parameters.values())))
    world.wait()
    world.leave()


def test_one_process_goes_on_with_what_two_have_trained(model: tuple[Path, Path], tmp_path: Path) -> None:
    alone = training(model[0], tmp_path / "alone", World())
    losses = [alone.advance() for _ in range(20)]
    (_, first, some), (_, second, others) = in_two(half_of_it, model[0], tmp_path / "two")
    assert first == second
    everything = sum(value.numel() for value in alone.learner.parameters.values())
    assert some + others == everything and 0.4 < some / everything < 0.6
    goes_on = training(model[0], tmp_path / "two", World())
    goes_on._resume()
    assert goes_on.step == 9
    rest = [goes_on.advance() for _ in range(11)]
    np.testing.assert_allclose(first + rest, losses, rtol=2e-3)  # a code on a tie may flip


def test_a_world_of_one_changes_nothing() -> None:
    world, stats = World(), of_rank(0)
    before = stats.hessian.clone()
    world.reduce(stats)
    assert torch.equal(stats.hessian, before) and world.leads and world.least(3) == 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("torchrun")
    tiny_llama_folder(folder / "model")
    words = random.Random(0)
    (folder / "text.txt").write_text(" ".join(f"{words.choice('abcdefgh')}{words.randrange(99)}" for _ in range(9000)))
    return folder / "model", folder / "text.txt"


def command(
    model: Path, text: Path, out: Path, processes: int, to: str = "w3g16", more: tuple[str, ...] = ()
) -> list[str]:
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    options = ["--to", to, "--calib", str(text), "--tokens", "4096", "-o", str(out), *more]
    return [*start, "paretobit", "quantize", str(model), *options]


def run(arguments: list[str]) -> subprocess.CompletedProcess:
    quiet = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(arguments, capture_output=True, text=True, env=quiet, timeout=300)


def test_torchrun_quantizes_like_one_process(model: tuple[Path, Path], tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert run(command(*model, alone, 1)).returncode == 0
    done = run(command(*model, together, 2))
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip().splitlines()) == 2, "the leader alone prints: the line and its one note"
    one, two = Artifact(alone), Artifact(together)
    assert two.manifest["fingerprint"]["processes"] == 2
    for name in one.plan.layers:
        # Sums in another order move a weight by some 1e-6 of a step: a code flips only where it lay that near to a tie,
        # one in a million, and takes the rest of its row along at worst.
        differs = (one.qtensor(name).codes != two.qtensor(name).codes).any(axis=1)
        assert differs.mean() < 0.05, f"{name}: {differs.sum()} rows of {len(differs)} differ"


def test_torchrun_guides_and_recovers_like_one_process(model: tuple[Path, Path], tmp_path: Path) -> None:
    """Targets are drawn and batches taken differently, so the results are alike, not equal."""
    made = {}
    for processes in (1, 2):
        out = tmp_path / str(processes)
        done = run(command(*model, out, processes, "w2t", ("--set", "trellis.guided=on")))
        assert done.returncode == 0, done.stderr
        made[processes] = Artifact(out)
    source = open_model(str(model[0]))
    for name in made[1].plan.layers:
        original = source.read(name)
        errors = [((made[n].read(name) - original) ** 2).mean() / (original**2).mean() for n in (1, 2)]
        assert 0 < errors[1] < 1.3 * errors[0], name


def test_torchrun_resumes_after_a_kill(model: tuple[Path, Path], tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(command(*model, whole, 2)).returncode == 0
    process = subprocess.Popen(command(*model, killed, 2), start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while not list(tmp_path.glob("killed.work/block-000.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not killed.exists(), "the kill came after the end: make the model larger"
    again = run(command(*model, killed, 2))
    assert again.returncode == 0, again.stderr
    for file in sorted(whole.iterdir()):
        assert (killed / file.name).read_bytes() == file.read_bytes(), file.name
