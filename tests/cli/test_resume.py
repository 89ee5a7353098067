"""A killed job goes on where it was, and ends in the same bytes; whatever stands in its way is left alone."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest

from paretobit.compress.methods import gptq
from paretobit.errors import ParetobitError
from paretobit.verbs.quantize import quantize
from paretobit.work import MANIFEST
from tests.commands import Command, contents
from tests.processes import Running

KILLS = 20


@dataclass(frozen=True)
class Job:
    """The command whose runs are killed, and how an undisturbed run ended."""

    arguments: tuple[object, ...]
    files: dict[str, bytes]
    touched: dict[bool, int]
    seconds: float

    def start(self, folder: Path, *more: object, **how: object) -> Running:
        log = folder.with_suffix(".log")
        return Running(*self.arguments, "-o", folder / "out", *more, watch=folder, log=log, **how)

    def finish(self, folder: Path) -> None:
        """Give the command once more: it must end well, with the right bytes and nothing beside them."""
        ended = self.start(folder).end()
        assert ended.code == 0, ended.err
        assert contents(folder / "out") == self.files
        assert [path.name for path in folder.iterdir()] == ["out"]


@pytest.fixture(scope="module")
def job(model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """GPTQ with the asymmetric term: sequential inputs, and the full-precision states carried beside them."""
    arguments = ("quantize", model, "--to", "w3g16", "--calib", text, "--tokens", 1024, "--set", "gptq.asymmetric=0.5")
    touched, found = {}, []
    for save in (True, False):
        folder = tmp_path_factory.mktemp("undisturbed")
        started = time.monotonic()
        ended = Job(arguments, {}, {}, 0).start(folder, save=save).end()
        assert ended.code == 0, ended.err
        assert ended.touched > 60  # else most of the work would lie between two moments
        found.append(contents(folder / "out"))
        touched[save] = ended.touched
    assert found[0] == found[1]
    return Job(arguments, found[0], touched, time.monotonic() - started)


def killed_and_finished(job: Job, folder: Path, moment: float, save: bool) -> None:
    folder.mkdir()
    at = 1 + int(moment * job.touched[save] + 1e-6)
    assert job.start(folder, at=at, save=save).end().code == -signal.SIGKILL
    job.finish(folder)


def moments() -> list[float]:
    """Twenty places along a run, from 0 to 1, seeded."""
    return np.random.default_rng(20).random(KILLS).round(3).tolist()


@pytest.mark.parametrize(("moment", "save"), list(zip(moments(), cycle([True, False]), strict=False)))
def test_killed_at_any_moment_it_ends_in_the_same_bytes(job: Job, tmp_path: Path, moment: float, save: bool) -> None:
    """The moments are changes to the file system, since only those can leave something half done."""
    killed_and_finished(job, tmp_path / "place", moment, save)


@pytest.mark.slow
@pytest.mark.parametrize("save", [True, False])
def test_killed_at_every_moment_it_ends_in_the_same_bytes(job: Job, tmp_path: Path, save: bool) -> None:
    for at in range(job.touched[save]):
        killed_and_finished(job, tmp_path / f"place{at}", at / job.touched[save], save)


def test_killed_again_and_again_at_any_time_it_comes_to_its_end(job: Job, tmp_path: Path) -> None:
    """By the clock, so in the middle of writes and of computing too; each run goes on where the last was killed."""
    folder, random = tmp_path / "place", np.random.default_rng(7)
    folder.mkdir()
    for _ in range(12):
        running = job.start(folder)
        time.sleep(random.uniform(0, job.seconds))
        running.kill()
        running.end()
    job.finish(folder)


def test_killed_while_it_replaces_another_result(job: Job, tmp_path: Path) -> None:
    """Until the last moment the old result is there, and then the new one, whole."""
    for moment in (0.5, 0.95, 0.99):
        folder = tmp_path / f"place{moment}"
        folder.mkdir()
        first = Running(*job.arguments, "--embed", "w8", "-o", folder / "out", watch=folder, log=tmp_path / "log")
        assert first.end().code == 0
        old = contents(folder / "out")
        at = 1 + int(moment * job.touched[True])
        assert job.start(folder, "--overwrite", at=at).end().code == -signal.SIGKILL
        if (folder / "out").exists():
            assert contents(folder / "out") in (old, job.files)
        else:
            assert contents(folder / "out.work" / "old") == old
        assert job.start(folder, "--overwrite").end().code == 0
        job.finish(folder)


@pytest.mark.parametrize("forgotten", [False, True], ids=["with states", "without states"])
def test_finished_blocks_are_not_rounded_again(
    model: Path, text: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, forgotten: bool
) -> None:
    """Two blocks of four taps and the head: interrupted in the sixth matrix, all of the second block is still to do."""
    calls, run = 0, gptq.run

    def counted(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return run(*arguments)

    monkeypatch.setattr(gptq, "run", counted)
    arguments = ("quantize", model, "--to", "w3", "--calib", text, "--tokens", 512, "-o", tmp_path / "out")
    stopped = command(*arguments)
    assert (stopped.code, stopped.out) == (130, "") and not (tmp_path / "out").exists()
    assert stopped.err.splitlines()[-1] == "interrupted; hint: repeat the command to go on where it stopped"
    if forgotten:
        for state in (tmp_path / "out.work").glob("state-*"):
            state.unlink()
    assert command(*arguments).code == 0
    assert calls == 6 + 4 + 1
    assert command(*arguments[:-1], tmp_path / "undisturbed").code == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_the_second_of_two_processes_is_told(job: Job, tmp_path: Path, command: Command) -> None:
    folder = tmp_path / "place"
    folder.mkdir()
    first = job.start(folder, at=job.touched[True] // 2, signal_number=signal.SIGSTOP)
    first.wait_until_stopped()
    try:
        for more in ((), ("--overwrite",)):
            told = command(*job.arguments, "-o", folder / "out", *more).error
            assert f"{folder / 'out'}.work is in use by another process; hint: wait for it" in told
    finally:
        first.go_on()
    assert first.end().code == 0
    assert contents(folder / "out") == job.files


def test_a_finished_result_is_left_as_it_is(model: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "out"
    arguments = ("quantize", model, "--to", "w3g64", "--method", "rtn", "-o", out)
    assert command(*arguments).code == 0
    times = {path: path.stat().st_mtime_ns for path in (out, *out.iterdir())}
    for more in ((), ("--overwrite",)):
        again = command(*arguments, *more)
        assert again.code == 0 and "nothing to do" in again.err
        assert {path: path.stat().st_mtime_ns for path in (out, *out.iterdir())} == times


DIFFERENT = {
    "plan": ("--to", "w4g64", "--tokens", 512),
    "calibration": ("--to", "w3g64", "--tokens", 1024),
    "inputs": ("--to", "w3g64", "--tokens", 512, "--inputs", "full"),
}


@pytest.mark.parametrize("unfinished", [False, True], ids=["OUT", "OUT.work"])
def test_what_differs_is_named(model: Path, text: Path, tmp_path: Path, command: Command, unfinished: bool) -> None:
    out = tmp_path / "out"
    base = ("quantize", model, "--calib", text, "-o", out)
    assert command(*base, "--to", "w3g64", "--tokens", 512).code == 0
    if unfinished:
        fingerprint = json.loads((out / MANIFEST).read_text())["fingerprint"]
        out.rename(tmp_path / "elsewhere")
        (tmp_path / "out.work").mkdir()
        (tmp_path / "out.work" / "fingerprint.json").write_text(json.dumps(fingerprint))
    before = contents(tmp_path)
    for key, options in DIFFERENT.items():
        told = command(*base, *options).error
        assert f"{key} was " in told and told.rpartition("hint: ")[2].endswith("add --overwrite"), told
        assert not any(f"{other} was " in told for other in DIFFERENT if other != key), told
        left = contents(tmp_path)
        left.pop("out.work/lock", None)
        assert left == before
    assert command(*base, *DIFFERENT["plan"], "--overwrite").code == 0
    assert (
        json.loads((out / "plan.json").read_text())["layers"]["model.layers.0.mlp.up_proj.weight"]["scheme"] == "w4g64"
    )


@pytest.mark.parametrize("more", [(), ("--overwrite",)], ids=["", "--overwrite"])
def test_what_is_somebodys_own_is_never_touched(model: Path, tmp_path: Path, command: Command, more: tuple) -> None:
    file, folder, work = tmp_path / "file", tmp_path / "folder", tmp_path / "free.work"
    file.write_text("mine")
    for place in (folder, work):
        place.mkdir()
        (place / "thesis.tex").write_text("mine")
    for out in (file, folder, tmp_path / "free", file / "below", model, tmp_path):
        told = command("quantize", model, "--to", "w3", "--method", "rtn", "-o", out, *more).error
        assert "hint: choose another" in told
    assert contents(tmp_path) == dict.fromkeys(("file", "folder/thesis.tex", "free.work/thesis.tex"), b"mine")


def test_python_raises_what_the_command_line_prints(model: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "file").write_text("mine")
    told = command("quantize", model, "--to", "w3", "--method", "rtn", "-o", tmp_path / "file").error
    with pytest.raises(ParetobitError) as caught:
        quantize(str(model), to="w3", method="rtn", out=str(tmp_path / "file"))
    assert told == f"error: {caught.value}"
