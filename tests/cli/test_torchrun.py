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
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import tiny_llama_folder

from paretobit.artifact import Artifact
from paretobit.checkpoint import open_model
from paretobit.compress.stats import TapStats
from paretobit.compress.world import World, join

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


def lockstep(rank: int, port: int, answers: multiprocessing.Queue) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank)}
    world = join()
    stats = of_rank(rank)
    world.reduce(stats)
    ids = world.share_ids(np.arange(12, dtype=np.int64).reshape(3, 4) if world.leads else None)
    owned = world.share(torch.full((3,), float(rank)), owner=1)
    least = world.least(rank + 5)
    sums = [stats.hessian.numpy(), stats.cross.numpy(), stats.absmean.numpy(), stats.absmax.numpy()]
    answers.put((rank, stats.n, sums, ids, owned.numpy(), least))
    world.wait()
    world.leave()


def test_two_processes_agree_on_sums_and_shares() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = [context.Process(target=lockstep, args=(rank, port, answers)) for rank in range(2)]
    for process in processes:
        process.start()
    got = sorted((answers.get(timeout=100) for _ in processes), key=lambda answer: answer[0])
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    both = of_rank(0)
    both.merge(of_rank(1))
    for _, n, sums, ids, owned, least in got:
        assert n == ROWS
        # Two float32 numbers have one sum: no tolerance.
        for ours, expected in zip(sums, (both.hessian, both.cross, both.absmean, both.absmax), strict=True):
            assert np.array_equal(ours, expected.numpy())
        assert np.array_equal(ids, np.arange(12).reshape(3, 4))
        assert owned.tolist() == [1.0] * 3
        assert least == 5


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
