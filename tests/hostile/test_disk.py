"""A disk that is full or may not be written to: one clear line, nothing half made, and the work goes on afterwards."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tests.commands import Outcome, contents
from tests.processes import Ended, Running

SIZES = (8, 24, 48, 100, 160, 200, 280, 320)  # kB of a disk: the job needs more, and runs out in another place each
LARGEST = (
    500,
    5_000,
    30_000,
    60_000,
)  # bytes of a file: manifest, plan, units and states outgrow them

# Runs in a mount namespace of its own, so that whatever happens no mount is left behind.
PROGRAM = """
import contextlib, io, json, os, subprocess, sys
import torch
from paretobit.cli import main
from paretobit.compress import estimate

torch.set_num_threads(1)
estimate.matmul_flops = lambda **how: 1e10

def run(*arguments):
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(list(arguments))
        except SystemExit as stop:
            code = stop.code
    return [code, out.getvalue(), err.getvalue(), sorted(os.listdir(disk))]

def mount(options, *more):
    subprocess.run(["mount", "-o", options, *more, disk], check=True)

disk, job, text, keep = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3], sys.argv[4]
out, found = disk + "/out", []
for size in json.loads(sys.argv[5]):
    mount(f"size={size}k", "-t", "tmpfs", "tmpfs")
    full = run(*job, "-o", out)
    mount("remount,size=4m")
    found.append([full, run(*job, "-o", out)])
    subprocess.run(["cp", "-r", out, f"{keep}/{size}"], check=True)
    subprocess.run(["umount", disk], check=True)
mount("size=4m,ro", "-t", "tmpfs", "tmpfs")
locked = run(*job, "-o", out)
mount("remount,rw")
run(*job, "-o", out)
mount("remount,ro")
found.append([locked, run(*job, "-o", out), run("inspect", out), run("eval", out, "--text", text, "--windows", "1")])
json.dump(found, sys.__stdout__)
"""


@cache
def namespace() -> tuple[str, ...]:
    """The command before a program that may mount; empty where this machine lets nobody."""
    for prefix in (("unshare", "-m"), ("unshare", "-rm")):
        try:
            tried = subprocess.run([*prefix, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True)
        except FileNotFoundError:
            return ()
        if tried.returncode == 0:
            return prefix
    return ()


@pytest.fixture(scope="module")
def job(model: Path, text: Path) -> tuple[str, ...]:
    return ("quantize", str(model), "--to", "w3g16", "--calib", str(text), "--tokens", "512")


@pytest.fixture(scope="module")
def undisturbed(job: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], int]:
    """What the job makes, and how often it touches the disk."""
    folder = tmp_path_factory.mktemp("undisturbed")
    ended = Running(*job, "-o", folder / "out", watch=folder, log=folder.with_suffix(".log")).end()
    assert ended.code == 0, ended.err
    return contents(folder / "out"), ended.touched


def failed(ended: Ended) -> str:
    return Outcome(ended.code, "", ended.err).error


def finish(job: tuple[str, ...], folder: Path, files: dict[str, bytes]) -> None:
    ended = Running(*job, "-o", folder / "out", watch=folder, log=folder.with_suffix(".log")).end()
    assert ended.code == 0, ended.err
    assert contents(folder / "out") == files and [path.name for path in folder.iterdir()] == ["out"]


def test_a_full_disk_anywhere_is_one_line_and_finished_work_is_kept(
    job: tuple[str, ...], undisturbed: tuple[dict[str, bytes], int], tmp_path: Path
) -> None:
    """The system says that the disk is full where the job touches it for the n-th time, at twelve seeded n."""
    files, touched = undisturbed
    for at in np.random.default_rng(3).choice(np.arange(1, touched), 12, replace=False):
        folder = tmp_path / f"place{at}"
        folder.mkdir()
        log = tmp_path / f"{at}.log"
        ended = Running(*job, "-o", folder / "out", watch=folder, log=log, at=int(at), error=errno.ENOSPC).end()
        if ended.code == 0:  # it only looked for something to clear away
            assert contents(folder / "out") == files
            continue
        assert "the disk is full; hint: free some space and repeat the command" in failed(ended), at
        assert not (folder / "out").exists() or contents(folder / "out") == files
        finish(job, folder, files)


@pytest.mark.parametrize("largest", LARGEST)
def test_a_write_refused_in_the_middle_leaves_nothing_half_written(
    job: tuple[str, ...], undisturbed: tuple[dict[str, bytes], int], tmp_path: Path, largest: int
) -> None:
    folder = tmp_path / "place"
    folder.mkdir()
    log = tmp_path / "log"
    ended = Running(*job, "-o", folder / "out", watch=folder, log=log, largest=largest).end()
    assert "file too large; hint: " in failed(ended)
    assert [path.name for path in folder.iterdir()] == ["out.work"]
    finish(job, folder, undisturbed[0])


def small_and_locked_disk(
    job: tuple[str, ...], undisturbed: tuple[dict[str, bytes], int], text: Path, tmp_path: Path
) -> None:
    place, keep = tmp_path / "disk", tmp_path / "keep"
    place.mkdir()
    keep.mkdir()
    command = [*namespace(), sys.executable, "-c", PROGRAM, place, json.dumps(job), text, keep, json.dumps(SIZES)]
    done = subprocess.run([str(x) for x in command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    *small, (locked, again, listed, measured) = json.loads(done.stdout)
    for size, ((*full, left), (*after, whole)) in zip(SIZES, small, strict=True):
        told = Outcome(*full).error
        assert f"{place}/" in told and "the disk is full; hint: free some space and repeat the command" in told, size
        assert "out" not in left
        assert after[0] == 0 and whole == ["out"]
        assert contents(keep / str(size)) == undisturbed[0]
    assert "the file system is read-only; hint: choose a folder you may write to" in Outcome(*locked[:3]).error
    assert locked[3] == []
    assert again[0] == 0 and "nothing to do" in again[2]  # a finished result needs no writing
    assert listed[0] == 0 and "bits per weight" in listed[1]
    assert measured[0] == 0 and "perplexity" in measured[1]
    assert "warning: the results are not kept: " in measured[2]


# Where a machine lets nobody mount, the tests above must do: they need no rights.
if namespace():
    test_a_small_disk_and_a_locked_one = small_and_locked_disk
