"""Compilers and machines, real or emulated, on which the native programs are built and run.

A tool that is missing fails the test that needs it and names the package: scripts/native-tools installs them all.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
HERE = Path("tests/native")
# As CMakeLists.txt has them, without its optimisation: rigs choose their own.
FLAGS = ("-std=c++17", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Icsrc", "-Itests/native")
DEBIAN = {
    "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu",
    "aarch64-linux-gnu-objdump": "g++-aarch64-linux-gnu",
    "clang++": "clang libclang-rt-14-dev",
    "g++": "g++",
    "mmdebstrap": "mmdebstrap",
    "node": "nodejs",
    "objdump": "binutils",
    "qemu-aarch64": "qemu-user",
    "qemu-x86_64": "qemu-user",
    "readelf": "binutils",
}
KERNELS = {"available.cpp", "cache.cpp", "dispatch.cpp", "pack.cpp", "rotation.cpp"}  # of csrc/, and all of csrc/isa/
SESSION = {*KERNELS, "decoder.cpp", "model.cpp", "session.cpp"}  # these need threads


@dataclass(frozen=True)
class Program:
    """core: what it needs of csrc/, by name; sources: what else it is made of; link: what links it."""

    core: set[str]
    sources: tuple[Path, ...]
    link: tuple[str, ...] = ()


def _native(*names: str) -> tuple[Path, ...]:
    return tuple(HERE / f"{name}.cpp" for name in (*names, "matrices", "reference"))


FUZZERS = {"kernels": KERNELS, "model": SESSION, "sampler": {"sampler.cpp"}}
PROGRAMS = {
    "conformance": Program(KERNELS, _native("conformance", "cases", "layer_cases", "search_cases")),
    "decoder": Program(SESSION, _native("decoder", "decoder_models")),
}
for _name, _core in FUZZERS.items():
    _source = Path(f"tests/fuzz/{_name}.cpp")
    PROGRAMS[f"fuzz-{_name}"] = Program(_core, (_source,), ("-fsanitize=fuzzer",))
    PROGRAMS[f"replay-{_name}"] = Program(_core, (_source, Path("tests/fuzz/replay.cpp")))


def tool(name: str) -> str:
    """The path of a program; fails with the package that has it."""
    found = shutil.which(name)
    assert found, f"{name} is not installed: scripts/native-tools gets it from Debian's {DEBIAN[name]}"
    return found


def zig(*arguments: str) -> tuple[str, ...]:
    """Zig's C++ compiler, which brings the C and C++ libraries of other systems with it."""
    assert importlib.util.find_spec("ziglang"), "no ziglang: pip install -e '.[cross]'"
    return (sys.executable, "-m", "ziglang", "c++", *arguments)


def core_sources() -> tuple[Path, ...]:
    """What CMakeLists.txt builds without Python."""
    listed = re.search(r"add_library\(paretobit_core STATIC([^)]*)\)", (ROOT / "CMakeLists.txt").read_text())
    assert listed, "CMakeLists.txt names no core"
    return tuple(Path(name) for name in listed.group(1).split())


@dataclass(frozen=True)
class Rig:
    """compiler: a name on the path, or a whole command; swaps: sources that take the place of others."""

    name: str
    compiler: str | tuple[str, ...]
    flags: tuple[str, ...] = ("-O2",)
    link: tuple[str, ...] = ("-pthread",)
    swaps: dict[str, Path] = field(default_factory=dict, hash=False)
    extra: tuple[Path, ...] = ()

    def command(self) -> tuple[str, ...]:
        return (tool(self.compiler),) if isinstance(self.compiler, str) else self.compiler

    def sources(self, program: Program) -> list[Path]:
        isas = "dispatch.cpp" in program.core
        core = [s for s in core_sources() if s.name in program.core or (isas and s.parent.name == "isa")]
        chosen = [self.swaps.get(str(source), source) for source in core]
        return [*chosen, *program.sources, *self.extra]


class Builds:
    """Builds programs under a folder, two objects at a time; what is there and still right is not built again."""

    def __init__(self, folder: Path = ROOT / "build/native") -> None:
        self.folder = folder
        self.environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(folder / "zig")}

    def run(self, *command: str | Path) -> str:
        """What a compiler prints; a warning is an error."""
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stderr[-6000:]}"
        return done.stdout

    def object(self, rig: Rig, source: Path) -> Path:
        # As in CMakeLists.txt: -O3 unrolls its loops over single bytes for minutes.
        less = ("-O2",) if source.name == "scalar.cpp" and "-O3" in rig.flags else ()
        command = (*rig.command(), *FLAGS, *rig.flags, *less, "-c", str(source))
        path = self.folder / rig.name / (str(source).replace("/", "_") + ".o")
        key, made_of = path.with_suffix(".key"), _digest(command, source)
        if not key.exists() or key.read_text() != made_of:
            path.parent.mkdir(parents=True, exist_ok=True)
            key.unlink(missing_ok=True)
            part = path.with_suffix(f".{os.getpid()}.o")  # two runs may build the same one at once
            self.run(*command, "-o", part)
            part.rename(path)
            key.write_text(made_of)
        return path

    def objects(self, rig: Rig, sources: list[Path]) -> list[Path]:
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(functools.partial(self.object, rig), sources))

    def program(self, rig: Rig, name: str) -> Path:
        program = PROGRAMS[name]
        objects = self.objects(rig, rig.sources(program))
        path = self.folder / rig.name / name
        part = path.with_name(f"{name}.{os.getpid()}")
        self.run(*rig.command(), *rig.flags, *objects, "-o", part, *rig.link, *program.link)
        part.rename(path)
        return path


def _digest(command: tuple[str, ...], source: Path) -> str:
    """Of all that goes into an object; headers are taken to be in every one."""
    headers = sorted(p for folder in ("csrc", "tests/native", "tests/fuzz") for p in (ROOT / folder).rglob("*")
                     if p.suffix in {".h", ".inl"})  # fmt: skip
    digest = hashlib.sha256(repr(command).encode())
    for path in (ROOT / source, *headers):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def run(*command: str | Path, environment: dict[str, str] | None = None) -> list[str]:
    """The lines that a program prints; it must end with 0."""
    done = subprocess.run(command, env={**os.environ, **(environment or {})}, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-6000:]}"
    return done.stdout.splitlines()


def native() -> Rig:
    """As the package is built."""
    return Rig("native", "g++", ("-O3", "-Wno-maybe-uninitialized"))


def plain() -> Rig:
    """Built in seconds."""
    return Rig("plain", "g++", ("-O0",))


def aarch64() -> Rig:
    return Rig("aarch64", "aarch64-linux-gnu-g++", ("-O3", "-Wno-maybe-uninitialized"), ("-static", "-pthread"))


def wasm() -> Rig:
    """WebAssembly has no exceptions here: a throw ends the program."""
    flags = ("-msimd128", "-O3")
    return Rig("wasm", zig("-target", "wasm32-wasi"), flags, (), extra=(HERE / "no_exceptions.cpp",))


def emulated() -> Rig:
    """AVX-512 in portable C, from SIMDe; not inlined, which takes GCC ten times as long."""
    try:
        files = distribution("cmeel-simde").files or []
    except PackageNotFoundError:
        raise AssertionError("no SIMDe: pip install -e '.[cross]'") from None
    header = next(file for file in files if file.match("simde/x86/avx512.h"))
    include = Path(header.locate()).parents[2]
    flags = ("-O1", "-Wno-psabi", "-DSIMDE_NO_INLINE", "-DPARETOBIT_BEGIN(features)=", "-DPARETOBIT_END=",
             "-Itests/native/emulated", "-isystem", str(include))  # fmt: skip
    swaps = {"csrc/available.cpp": HERE / "emulated/available.cpp"}
    return Rig("emulated", "g++", flags, swaps=swaps)


def sanitized(kind: str) -> Rig:
    """kind: what -fsanitize takes. Checks for null and object sizes double the build and are what ASan finds anyway."""
    checks = (f"-fsanitize={kind}", "-fno-sanitize=null,object-size", "-fno-sanitize-recover=all")
    return Rig("sanitized-" + kind.replace(",", "-"), "clang++", ("-O1", "-g1", *checks))


def fuzzed() -> Rig:
    """Every fault that sanitizers see, and what libFuzzer needs to see where an input leads."""
    rig = sanitized("address,undefined")
    return replace(rig, flags=(*rig.flags, "-fsanitize=fuzzer-no-link"))


def foreign(target: str) -> Rig:
    """Compiled, not run: macOS and Windows."""
    return Rig(target, zig("-target", target))


def fuzz_options(seconds: float, finds: Path) -> list[str]:
    """finds: what the path of an input that ends the program begins with."""
    limits = ["-timeout=20", "-rss_limit_mb=2048", "-malloc_limit_mb=1024", "-max_len=6000", "-len_control=20"]
    return [f"-max_total_time={max(1, round(seconds))}", f"-artifact_prefix={finds}", *limits]
