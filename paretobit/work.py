"""A job's work folder: what survives a kill, and what may stand where the output goes.

A job that writes OUT works in OUT.work/ under a fingerprint. The same command goes on from what lies there; a finished
OUT of the same fingerprint is left alone; anything else in the way is refused by name.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from paretobit.errors import ParetobitError

FINGERPRINT = "fingerprint.json"
LOCK = "lock"
MANIFEST = "paretobit.json"
PARTIAL = ".partial"  # what is appended to a file's name while it is written
DAMAGED = "the file is damaged: make or fetch it again"
MAX_DEPTH = 100  # of nested JSON: whatever goes on to walk the value must not run out of stack


class Work:
    """The folder OUT.work/ of one running job; holds a lock while it is open.

    `kind` says what OUT becomes ("model", "statistics"): a manifest of another kind is never overwritten.
    """

    def __init__(self, out: Path, kind: str, fingerprint: Mapping[str, object]) -> None:
        out = Path(out)
        if out.name in ("", ".."):
            raise ParetobitError(f"'{out}' does not name a folder to make", hint="choose another -o")
        with disk_errors(out):
            # A rename would replace a link instead of filling the folder that it leads to.
            self.out = Path(os.path.realpath(out)) if out.is_symlink() else out
            if self.out.is_symlink():
                raise ParetobitError(f"{out} is a link that leads to itself", hint="choose another -o")
        self.kind = kind
        self.fingerprint = json.loads(json.dumps(fingerprint))
        self.folder = self.out.with_name(self.out.name + ".work")

    def finished(self, overwrite: bool) -> bool:
        """True when OUT already is this job's result. Raises if something else is in its way."""
        with disk_errors(self.out):
            if not self.out.exists():
                return False
            if not self.out.is_dir():
                raise ParetobitError(f"{self.out} is a file, not a folder", hint="choose another -o")
            if not any(self.out.iterdir()):
                return False
            manifest = read_json(self.out / MANIFEST) if (self.out / MANIFEST).is_file() else {}
        if manifest.get("kind") != self.kind:
            raise ParetobitError(
                f"{self.out} is not empty and holds no paretobit {self.kind}", hint="choose another -o"
            )
        differs = self._differs(manifest.get("fingerprint"))
        if differs and not overwrite:
            raise ParetobitError(
                f"{self.out} already holds another result: {differs}",
                hint="choose another -o, or add --overwrite",
            )
        if not differs:
            self._tidy()
        return not differs

    @contextmanager
    def open(self, overwrite: bool, leads: bool = True) -> Iterator[Work]:
        """Create or resume the folder and lock it. Raises if it belongs to another job or process.

        Where several processes do one job, only the one that `leads` locks and claims; the others follow.
        """
        if not leads:
            yield self
            return
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._refuse_foreign()
            lock = os.open(self.folder / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        try:
            with disk_errors(self.folder):
                if not _locked(lock):
                    raise ParetobitError(
                        f"{self.folder} is in use by another process", hint="wait for it, or choose another -o"
                    )
            self._claim(overwrite)
            yield self
        finally:
            os.close(lock)

    def _claim(self, overwrite: bool) -> None:
        path = self.folder / FINGERPRINT
        if path.exists():
            differs = self._differs(read_json(path))
            if differs and not overwrite:
                raise ParetobitError(
                    f"{self.folder} holds the unfinished work of another command: {differs}",
                    hint="repeat that command, choose another -o, or add --overwrite",
                )
            if differs:
                self._empty()
        write_atomically(path, json.dumps(self.fingerprint, indent=1, sort_keys=True).encode())

    def _refuse_foreign(self) -> None:
        """Raise if the folder is somebody's own: it will be removed in the end."""
        if not (self.folder / FINGERPRINT).exists():
            ours = (LOCK, FINGERPRINT + PARTIAL)
            foreign = sorted(child.name for child in self.folder.iterdir() if child.name not in ours)
            if foreign:
                raise ParetobitError(
                    f"{self.folder} holds {foreign[0]}, which is not paretobit's", hint="choose another -o"
                )

    def _empty(self) -> None:
        """Remove everything but the lock, the fingerprint last: until then the folder can be told to be ours."""
        for child in sorted(self.folder.iterdir(), key=lambda path: path.name == FINGERPRINT):
            if child.name != LOCK:
                shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()

    def remove(self) -> None:
        """Leave nothing of the job."""
        self._empty()
        (self.folder / LOCK).unlink()
        self.folder.rmdir()

    def _tidy(self) -> None:
        """Remove the work folder of a job that was killed after its result had been renamed to OUT."""
        path = self.folder / FINGERPRINT
        with suppress(ParetobitError, OSError):
            self._refuse_foreign()
            if not path.exists() or not self._differs(read_json(path)):
                lock = os.open(self.folder / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
                try:
                    if _locked(lock):
                        self.remove()
                finally:
                    os.close(lock)

    def _differs(self, other: object) -> str:
        other = other if isinstance(other, dict) else {}
        keys = sorted(set(self.fingerprint) | set(other))
        rows = [
            f"{k} was {other.get(k)}, is {self.fingerprint.get(k)}"
            for k in keys
            if other.get(k) != self.fingerprint.get(k)
        ]
        return "; ".join(rows)

    def path(self, name: str) -> Path:
        return self.folder / name

    def take(self, file: Path, into: Path) -> None:
        """Put a finished file of the work folder into what is published, under its name. It also stays where it is: a
        job that is killed before the end finds it there."""
        with disk_errors(into / file.name):
            try:
                os.link(file, into / file.name)
            except OSError:  # a file system without links
                shutil.copyfile(file, into / file.name)

    @contextmanager
    def publish(self) -> Iterator[Path]:
        """Yield a fresh folder to fill; when the block ends it becomes OUT in one rename and the work folder goes."""
        made = self.folder / "out"
        with disk_errors(self.out):
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir()
            yield made
            for file in sorted(made.rglob("*")):
                sync(file)
            sync(made)
            if self.out.is_dir() and any(self.out.iterdir()):
                old = self.folder / "old"
                shutil.rmtree(old, ignore_errors=True)
                self.out.rename(old)
            made.rename(self.out)
            sync(self.out.parent)
            self.remove()


def _locked(handle: int) -> bool:
    """Lock an open lock file; False if another process holds it, or has just finished and removed it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(handle).st_nlink > 0


_SPACE = "free some space and repeat the command: finished work is kept"
_REASONS = {
    errno.ENOSPC: ("the disk is full", _SPACE),
    errno.EDQUOT: ("the disk quota is used up", _SPACE),
    errno.EROFS: ("the file system is read-only", "choose a folder you may write to"),
    errno.EACCES: ("permission denied", "choose a folder you may write to"),
    errno.EPERM: ("permission denied", "choose a folder you may write to"),
    errno.ENOTDIR: ("a part of the path is a file", "choose another path"),
    errno.EEXIST: ("there is a file in the way", "choose another path"),
}


@contextmanager
def disk_errors(what: Path) -> Iterator[None]:
    """Turn the operating system's refusals (full disk, read-only folder) into one clear error."""
    try:
        yield
    except BrokenPipeError:  # nobody reads the progress any more: not a matter of disks
        raise
    except OSError as why:
        unknown = (why.strerror or str(why)).lower()
        reason, hint = _REASONS.get(why.errno or 0, (unknown, "check the path and the disk"))
        raise ParetobitError(f"{why.filename or what}: {reason}", hint=hint) from why


def cache_folder() -> Path:
    """Where fetched models and measurements stay: $PARETOBIT_CACHE, or paretobit/ in the user's cache folder."""
    if own := os.environ.get("PARETOBIT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paretobit"


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside, fsync, rename: a reader sees the old file or the new one, never half."""
    beside = path.with_name(path.name + PARTIAL)
    with disk_errors(path):
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)


def remember(path: Path, row: Mapping[str, object]) -> None:
    """Add a row to a file of JSON lines, made if need be."""
    with disk_errors(path), open(path, "a") as file:
        file.write(json.dumps(row) + "\n")


def remembered(path: Path) -> Iterator[dict]:
    """The rows of such a file, none where there is no file. A line that a kill cut short is passed over."""
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    for line in lines:
        with suppress(ParetobitError):
            yield parse_json(line, str(path))


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_bytes(path: Path, limit: int = 64 << 20) -> bytes:
    """A whole file of at most `limit` bytes. Raises ParetobitError naming the file."""
    try:
        size = path.stat().st_size
        if size > limit:
            raise ParetobitError(f"{path} has {size} bytes, at most {limit} are accepted", hint=DAMAGED)
        return path.read_bytes()
    except OSError as why:
        raise ParetobitError(f"{path}: {why.strerror}", hint="check the path") from None


def read_json(path: Path) -> dict:
    """A JSON object from a file nobody vouches for. Raises ParetobitError naming the file."""
    return parse_json(read_bytes(path), str(path))


def parse_json(text: str | bytes, source: str) -> dict:
    """A JSON object nested at most MAX_DEPTH deep. Raises ParetobitError naming `source`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as why:
        raise ParetobitError(f"{source}: not valid JSON ({why})", hint=DAMAGED) from None
    if not isinstance(value, dict):
        raise ParetobitError(f"{source}: not a JSON object", hint=DAMAGED)
    level: list[dict | list] = [value]
    for _ in range(MAX_DEPTH):
        inner = (x for v in level for x in (v.values() if isinstance(v, dict) else v))
        level = [x for x in inner if isinstance(x, dict | list)]
    if level:
        raise ParetobitError(f"{source}: JSON nested more than {MAX_DEPTH} deep", hint=DAMAGED)
    return value
