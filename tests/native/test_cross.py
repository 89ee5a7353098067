"""The C++ on other machines than this one: the same bits on every ISA, and no instruction that a machine may lack.

`conformance` compares every ISA it can run with plain loops, `decoder` whole models; the last line that either prints
is a digest of all output bits, which must be this machine's on every platform.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from native import rigs
from native.rigs import HERE, ROOT, Builds, Rig

pytestmark = pytest.mark.cross

AVX512 = {"avx512_vbmi", "avx512_vnni", "avx512"}


def test_this_machine(expected: Callable[[str], str]) -> None:
    assert re.fullmatch("[0-9a-f]{16}", expected("conformance"))
    assert re.fullmatch("[0-9a-f]{16}", expected("decoder"))


@pytest.mark.parametrize("engine", ["wasmtime", "node"])
def test_webassembly(builds: Builds, expected: Callable[[str], str], engine: str) -> None:
    if engine == "node":
        command = (rigs.tool("node"), "--no-warnings", str(ROOT / HERE / "wasi.mjs"))
    else:
        command = (sys.executable, str(ROOT / HERE / "wasi.py"))
    program = builds.program(rigs.wasm(), "conformance")
    assert rigs.run(*command, program, "--list") == ["wasm", "scalar"]
    assert rigs.run(*command, program)[-1] == expected("conformance")


def test_avx512_on_a_machine_without_it(builds: Builds, expected: Callable[[str], str]) -> None:
    program = builds.program(rigs.emulated(), "conformance")
    assert set(rigs.run(program, "--list")) == AVX512 | {"avx_vnni", "avx2", "scalar"}
    assert rigs.run(program)[-1] == expected("conformance")
    for rig, instructions in ((rigs.emulated(), set()), (rigs.native(), {"vpdpbusd"})):
        used = mnemonics(builds, rig, "csrc/isa/avx512_vnni.cpp")
        assert used & {"vpdpbusd"} == instructions, f"{rig.name} is not what it seems"


@pytest.mark.parametrize("rig", [rigs.fuzzed, lambda: rigs.sanitized("thread")], ids=["address", "thread"])
def test_sanitizers_find_nothing(builds: Builds, expected: Callable[[str], str], rig: Callable[[], Rig]) -> None:
    for name in ("conformance", "decoder"):
        assert rigs.run(builds.program(rig(), name))[-1] == expected(name)


@pytest.mark.parametrize("target", ["aarch64-macos", "x86_64-macos", "x86_64-windows-gnu", "aarch64-windows-gnu"])
def test_compiles_for(builds: Builds, target: str) -> None:
    builds.objects(rigs.foreign(target), list(rigs.core_sources()))


# Instructions. An object holds those of its own ISA and nothing else: a wheel runs on any machine of its architecture.


def disassembly(builds: Builds, rig: Rig, source: str) -> str:
    objdump = "aarch64-linux-gnu-objdump" if rig.name == "aarch64" else "objdump"
    return builds.run(rigs.tool(objdump), "-d", "--no-show-raw-insn", builds.object(rig, Path(source)))


def mnemonics(builds: Builds, rig: Rig, source: str) -> set[str]:
    return instructions(disassembly(builds, rig, source))


def instructions(code: str) -> set[str]:
    return set(re.findall(r"^\s+[0-9a-f]+:\s+(?:(?:lock|rep\w*|notrack|bnd|\{vex\}) )?(\S+)", code, re.M))


# After SSE2: SSE3 to SSE4.2, VEX and EVEX (all that starts with v), and what came beside them.
LATER = re.compile(
    r"v\w+|addsub|h(add|sub)p|lddqu|mov(ddup|s[hl]dup|be)|p(abs|hadd|hsub|sign|maddub|mulhr|shufb|alignr)"
    r"|pblend|blend|p(min|max)(sb|sd|uw|ud)|pmov[sz]x|pmuld[q]|pmulld|ptest|round[ps]|dpp|insertps|extractps"
    r"|pinsr[bdq]|pextr[bdq]|packusdw|pcmpeqq|pcmpgtq|pcmp[ie]str|crc32|popcnt|[tl]zcnt|andn[lq]|bextr|bls|bzhi"
    r"|mulx|pdep|pext[lq]?$|rorx|s[ah]rx|shlx|aes|sha|pclmul|gf2p8|ad[co]x|xsave|rdrand"
)
OWN = {"avx2": "ymm", "avx_vnni": "ymm", "avx512": "zmm", "avx512_vnni": "zmm", "avx512_vbmi": "zmm"}


def test_no_object_has_instructions_beyond_its_own_isa(builds: Builds) -> None:
    for source in rigs.core_sources():
        holds_its_own(source, disassembly(builds, rigs.native(), str(source)))


def holds_its_own(source: Path, code: str) -> None:
    """code: what a compiler for x86-64 made of source, disassembled."""
    used = instructions(code)
    isa = source.stem if source.parent.name == "isa" else "scalar"
    if isa in OWN:
        assert OWN[isa] in code, f"{source} does not use {OWN[isa]}"
        assert isa not in ("avx2", "avx_vnni") or not re.search(r"%zmm|%[xy]mm(1[6-9]|2\d|3[01])|%k[0-7]", code), source
        assert ("vpdpbusd" in used) == ("vnni" in isa or isa == "avx512_vbmi"), source
        assert any(name.startswith(("vpermi2b", "vpermt2b")) for name in used) == (isa == "avx512_vbmi"), source
        assert any(name.startswith("vgf2p8") for name in used) == (isa in ("avx_vnni", "avx512_vbmi")), source
        assert not {name for name in used if name.startswith("vfm")}, f"{source} fuses multiply and add"
    else:
        assert not re.search("%[yz]mm", code), source
        assert not {name for name in used if LATER.match(name)}, source


def test_an_isa_defines_only_its_own_functions(builds: Builds) -> None:
    """Every other function could be shared, and the linker keep the copy that a machine cannot run."""
    for source in rigs.core_sources():
        if source.parent.name != "isa":
            continue
        named = re.findall(
            r"^[0-9a-f]+ <(.*)>:$", builds.run(rigs.tool("objdump"), "-dC", builds.object(rigs.native(), source)), re.M
        )
        foreign = [name for name in named if f"paretobit::{source.stem}::" not in name]
        assert not foreign, f"{source}: {foreign}"
