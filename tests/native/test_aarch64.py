"""The C++ on ARM processors, under QEMU: the same bits as here, and no instruction that a processor may lack.

A file of its own, so that a second worker has it while the first compiles what test_cross.py runs.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from native import rigs
from native.rigs import Builds
from native.test_cross import mnemonics

pytestmark = pytest.mark.cross

QEMU = {  # processor -> what kernels it has
    "cortex-a53": {"neon"},
    "cortex-a76": {"neon", "neon_dotprod"},
    "max": {"neon", "neon_dotprod", "neon_i8mm"},
}


@pytest.mark.parametrize("processor", QEMU)
def test_aarch64(builds: Builds, expected: Callable[[str], str], processor: str) -> None:
    machine = (rigs.tool("qemu-aarch64"), "-cpu", processor)
    conformance = builds.program(rigs.aarch64(), "conformance")
    assert set(rigs.run(*machine, conformance, "--list")) == QEMU[processor] | {"scalar"}
    assert rigs.run(*machine, conformance)[-1] == expected("conformance")
    assert rigs.run(*machine, builds.program(rigs.aarch64(), "decoder"))[-1] == expected("decoder")


def test_no_aarch64_object_has_instructions_beyond_its_own_isa(builds: Builds) -> None:
    for source in rigs.core_sources():
        used = mnemonics(builds, rigs.aarch64(), str(source))
        assert ("sdot" in used) == (source.stem == "neon_dotprod"), source
        assert ("usdot" in used) == (source.stem == "neon_i8mm"), source
        assert not used & {"fmla", "fmls", "fmadd", "fmsub"}, f"{source} fuses multiply and add"
        assert not {name for name in used if name.startswith(("ldadd", "cas", "swp", "ldapr", "sqrdml"))}, source
