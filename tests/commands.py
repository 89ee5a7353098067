"""How commands end, and what they leave on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    """How a command ended: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The error of a command that failed as all should: code 2, nothing on stdout, one line that ends in a hint,
        and before it only lines of progress."""
        lines = self.err.splitlines()
        assert (self.code, self.out) == (2, ""), (self.code, self.out, self.err)
        assert [line for line in lines if line.startswith("error:")] == lines[-1:], self.err
        assert "Traceback" not in self.err and "; hint: " in lines[-1], self.err
        return lines[-1]


Command = Callable[..., Outcome]


def contents(folder: Path) -> dict[str, bytes]:
    """Relative path -> bytes of every file under `folder`."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
