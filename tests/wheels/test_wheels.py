"""What `scripts/wheels` makes: tags, content, links, instructions; and that it runs, also on older machines."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from native import rigs
from native.rigs import ROOT
from native.test_cross import LATER, holds_its_own, instructions
from packaging.utils import parse_wheel_filename
from wheels import pythons
from wheels.pythons import Python

pytestmark = pytest.mark.cross

ALL = [(version, arch) for arch in pythons.DEBIAN for version in pythons.RELEASES]
TAGS = {"3.11": "cp311-cp311", "3.13": "cp312-abi3"}  # the Python that builds and runs it -> what it is for
# Processors by qemu's names: the oldest that numpy still runs on, and what each must then choose from.
MACHINES = {
    "x86_64": {"Nehalem": {"scalar"}, "Haswell": {"avx2", "scalar"}},
    "aarch64": {"cortex-a53": {"neon", "scalar"}, "max": {"neon_i8mm", "neon_dotprod", "neon", "scalar"}},
}
LIBRARIES = {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
OBJECTS = ROOT / "build/wheels/objects"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """(version, architecture) -> the wheel, built now."""
    out = tmp_path_factory.mktemp("dist")
    rigs.run(sys.executable, ROOT / "scripts/wheels", "--out", out)
    files = {}
    for version, arch in ALL:
        (files[version, arch],) = out.glob(f"*-{TAGS[version]}-*_{arch}.whl")
    assert len(list(out.glob("*.whl"))) == len(ALL)
    return files


@pytest.fixture(scope="session", params=ALL, ids="-".join)
def wheel(request: pytest.FixtureRequest, made: dict[tuple[str, str], Path]) -> tuple[Python, Path]:
    return Python(*request.param), made[request.param]


def test_tags(wheel: tuple[Python, Path]) -> None:
    """What the name promises is what is inside, and no glibc newer than 2.28 is among it."""
    python, path = wheel
    promised = {str(tag) for tag in parse_wheel_filename(path.name)[3]}
    (name,) = (n for n in zipfile.ZipFile(path).namelist() if n.endswith(".dist-info/WHEEL"))
    assert set(re.findall("^Tag: (.*)$", zipfile.ZipFile(path).read(name).decode(), re.M)) == promised
    form = rf"{TAGS[python.version]}-manylinux(_2_(\d+)|2014)_{python.arch}"
    for tag in promised:
        found = re.fullmatch(form, tag)
        assert found and int(found[2] or 17) <= 28, tag


def test_stable_abi(made: dict[tuple[str, str], Path]) -> None:
    """Nothing of CPython but what 3.12 promises to keep."""
    for (version, _), path in made.items():
        if version != "3.11":
            said = rigs.run(pythons.script("abi3audit"), "--strict", "--report", path)
            assert '"is_abi3": true' in " ".join(said), said


def test_content(wheel: tuple[Python, Path]) -> None:
    """The package's files and one compiled module; no tests, no sources, and small."""
    python, path = wheel
    tracked = subprocess.run(["git", "ls-files", "paretobit"], cwd=ROOT, capture_output=True, text=True, check=True)
    names = set(zipfile.ZipFile(path).namelist())
    names = {name for name in names if ".dist-info/" not in name and not name.endswith("/")}
    ending = "abi3" if "abi3" in TAGS[python.version] else f"cpython-311-{python.arch}-linux-gnu"
    assert names == {*tracked.stdout.split(), f"paretobit/_native.{ending}.so"}
    assert path.stat().st_size < 1_500_000


def test_links_against_the_c_library_alone(wheel: tuple[Python, Path], tmp_path: Path) -> None:
    _, path = wheel
    (name,) = (n for n in zipfile.ZipFile(path).namelist() if n.endswith(".so"))
    dynamic = rigs.run(rigs.tool("readelf"), "--dynamic", "--wide", zipfile.ZipFile(path).extract(name, tmp_path))
    needed = {line.rsplit("[")[1].rstrip("]") for line in dynamic if "(NEEDED)" in line}
    assert "libc.so.6" in needed
    assert needed <= LIBRARIES
    assert not [line for line in dynamic if "PATH)" in line]


# Instructions of the very objects that went into the wheels.


def test_no_object_needs_a_newer_processor(made: dict[tuple[str, str], Path]) -> None:
    checked = set()
    for path in (OBJECTS / "x86_64/CMakeFiles").rglob("*.o"):
        source = Path(str(path).rpartition(".dir/")[2].removesuffix(".o"))
        holds_its_own(source, disassembled(path))
        checked.add(source)
    assert checked >= {*rigs.core_sources(), Path("csrc/bind.cpp")}


def disassembled(path: Path) -> str:
    # How clang writes bsf where the operand is not 0: a processor without tzcnt ignores the prefix.
    return "\n".join(rigs.run(rigs.tool("objdump"), "-d", "--no-show-raw-insn", path)).replace("tzcnt", "bsf")


def test_no_library_that_zig_links_needs_a_newer_processor(made: dict[tuple[str, str], Path]) -> None:
    checked = set()
    for path in (ROOT / "build/zig/x86_64").rglob("*.a"):
        assert not {name for name in instructions(disassembled(path)) if LATER.match(name)}, path
        checked.add(path.name)
    assert checked >= {"libc++.a", "libc++abi.a", "libunwind.a"}


# They run.


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.packed import Shelf

    return Shelf(tmp_path_factory.mktemp("shelf"))("llama", "w3g32").folder


@pytest.fixture(scope="session")
def expected(packed: Path) -> list[str]:
    """What this machine says with the plainest of its kernels."""
    return spoken((sys.executable,), packed, {"PARETOBIT_ISA": "scalar"})


def spoken(command: tuple[str, ...], packed: Path, environment: dict[str, str]) -> list[str]:
    words = (
        ["inspect", str(packed)],
        ["run", str(packed), "The capital of France is", "-n", "24", "--temperature", "0"],
    )
    environment = {"COLUMNS": "100", "PYTHONNOUSERSITE": "1", **environment}
    return [line for said in words for line in rigs.run(*command, "-m", "paretobit", *said, environment=environment)]


def alone(folder: Path) -> dict[str, str]:
    """What lets an interpreter see the folder's packages and none of the working directory's."""
    return {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}


@pytest.fixture(scope="session")
def installed(
    made: dict[tuple[str, str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    """(version, architecture) -> the folder of the wheel and what it depends on, as pip chooses for that machine."""
    folders: dict[tuple[str, str], Path] = {}

    def install(version: str, arch: str) -> Path:
        if (version, arch) not in folders:
            folder = folders[version, arch] = tmp_path_factory.mktemp(f"{arch}-{version}")
            platforms = [f"--platform=manylinux_2_{minor}_{arch}" for minor in range(17, 29)]
            rigs.run(sys.executable, "-m", "pip", "install", "--quiet", "--target", folder, "--only-binary=:all:",
                     f"--python-version={version}", *platforms, made[version, arch])  # fmt: skip
        return folders[version, arch]

    return install


@pytest.mark.parametrize(("version", "arch"), ALL)
def test_says_what_this_machine_says(
    installed: Callable[[str, str], Path], packed: Path, expected: list[str], version: str, arch: str
) -> None:
    python, folder = pythons.unpacked(version, arch), installed(version, arch)
    assert len(expected) > 5
    for processor, isas in MACHINES[arch].items():
        command, environment = python.command(processor), alone(folder)
        if arch == "x86_64":  # numpy's OpenBLAS takes an emulated Nehalem for a Haswell, and dies
            environment["OPENBLAS_CORETYPE"] = processor
        code = "from paretobit import native; print(native.__file__, *native.available())"
        where, *found = rigs.run(*command, "-c", code, environment=environment)[0].split()
        assert where.startswith(str(folder))
        assert set(found) == isas
        assert spoken(command, packed, environment) == expected


def test_this_machine_takes_its_best_kernels(installed: Callable[[str, str], Path]) -> None:
    """The wheel's compiler leaves out no instruction set that the machine's own compiler has."""
    from paretobit import native

    for version in pythons.RELEASES:
        environment = alone(installed(version, pythons.HERE))
        code = "from paretobit import native; print(*native.available())"
        command = pythons.unpacked(version, pythons.HERE).command()
        assert rigs.run(*command, "-c", code, environment=environment)[0].split() == list(native.available())


def test_cibuildwheel_builds_the_same() -> None:
    """The configuration that a build service follows."""
    lines = rigs.run(pythons.script("cibuildwheel"), "--print-build-identifiers", "--platform", "linux",
                     "--archs", ",".join(pythons.DEBIAN), ROOT)  # fmt: skip
    assert set(lines) == {f"{tag}-manylinux_{arch}" for tag in ("cp311", "cp312") for arch in pythons.DEBIAN}
