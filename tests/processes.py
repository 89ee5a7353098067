"""The command line in processes that may be killed or stopped. They are forked from a server that has loaded torch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SECONDS = 60.0  # after which a process counts as hung
CHANGES = ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate")

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "tokenizers",
        "torch",
        "paretobit.cli",
        "paretobit.compress.apply",
        "paretobit.compress.corpus",
        "paretobit.compress.methods.gptq",
        "paretobit.compress.methods.rtn",
        "paretobit.reports.card",
        "paretobit.verbs.quantize",
    ]
)


@dataclass(frozen=True)
class Ended:
    """code: exit code, or minus the signal; err: both outputs; touched: how often it touched files that are watched."""

    code: int
    err: str
    touched: int


class Running:
    """One `paretobit …` in a process of its own.

    watch: a folder; the process counts how often it opens, makes, renames or removes something there, and before the
    `at`-th time it sends itself `signal_number`, or, with an `error`, is told by the system of that error number.
    largest: bytes that no file may outgrow: the system refuses the write in the middle. save: states are saved after
    every block, otherwise as seldom as can be; left to the clock, two runs would not touch the disk equally often.
    cache: the cache folder, by default the environment's.
    """

    def __init__(
        self,
        *arguments: object,
        watch: Path,
        log: Path,
        at: int = 0,
        signal_number: int = signal.SIGKILL,
        error: int = 0,
        largest: int = 0,
        save: bool = True,
        cache: Path | None = None,
    ) -> None:
        self.log, self.count = log, log.with_suffix(".count")
        given = ([str(x) for x in arguments], str(watch), str(log), str(self.count))
        how = (at, signal_number, error, largest, save, cache)
        self.process = _context.Process(target=_run, args=(*given, *how), daemon=True)
        self.process.start()

    def kill(self) -> None:
        self.process.kill()

    def wait_until_stopped(self) -> None:
        """Return once the process has stopped itself."""
        end = time.monotonic() + SECONDS
        while Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < end and self.process.is_alive(), self.log.read_text()
            time.sleep(0.01)

    def go_on(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def end(self) -> Ended:
        self.process.join(SECONDS)
        if self.process.is_alive():
            self.process.kill()
            raise AssertionError(f"it hangs: {self.log.read_text()}")
        touched = int(self.count.read_text() or 0) if self.count.exists() else 0  # empty: killed as it was written
        code = self.process.exitcode
        assert code is not None
        return Ended(code, self.log.read_text() if self.log.exists() else "", touched)


def _run(
    arguments: list[str],
    watch: str,
    log: str,
    count: str,
    at: int,
    signal_number: int,
    error: int,
    largest: int,
    save: bool,
    cache: Path | None,
) -> None:
    """What the forked process does."""
    import resource

    import torch

    from paretobit.cli import main
    from paretobit.compress import calibrate, estimate

    torch.set_num_threads(1)
    if cache is not None:
        os.environ["PARETOBIT_CACHE"] = str(cache)
    estimate.matmul_flops = lambda **how: 1e10
    calibrate.SAVING_SHARE = 0 if save else 1e9
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    touched = 0

    def hook(event: str, given: tuple) -> None:
        nonlocal touched
        if event in CHANGES:
            # Removing a tree works with names relative to open folders: those count as well.
            relative = event in ("os.remove", "os.rmdir") and given[1] >= 0
            if relative or str(given[0]).startswith(watch):
                touched += 1
                if touched == at and error:
                    raise OSError(error, os.strerror(error), str(given[0]))
                if touched == at:
                    os.kill(os.getpid(), signal_number)

    sys.addaudithook(hook)
    if largest:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    code = 0
    try:
        main(arguments)
    except SystemExit as stop:
        code = int(stop.code or 0)
    sys.stdout.flush()
    sys.stderr.flush()
    if not largest:
        Path(count).write_text(str(touched))
    os._exit(code)


def kill_until_done(arguments: Sequence[object], folder: Path, steps: int) -> int:
    """Run a command undisturbed into folder/whole/out, and into folder/killed/out killed again and again, each time
    after one of `steps` parts of what it touches; each has a cache of its own. Returns how often it was killed."""

    def start(name: str, at: int = 0) -> Ended:
        inside = folder / name
        inside.mkdir(exist_ok=True)
        how = {"watch": inside, "log": folder / "log", "cache": inside / "cache", "at": at}
        return Running(*arguments, "-o", inside / "out", **how).end()  # type: ignore[arg-type]

    whole = start("whole")
    assert whole.code == 0, whole.err
    kills = 0
    while (ended := start("killed", whole.touched // steps)).code == -signal.SIGKILL:
        kills += 1
        assert kills < 20, "it does not get on"
    assert ended.code == 0, ended.err
    return kills
