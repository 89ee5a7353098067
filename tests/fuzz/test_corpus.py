"""Inputs that ended a program once, and some that lead far into it, must not end it again.

`scripts/fuzz` starts from the same files under sanitizers; here the programs are built as fast as a compiler can.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from native import rigs

CORPUS = Path(__file__).parent / "corpus"


@pytest.mark.parametrize("name", rigs.FUZZERS)
def test_no_input_ends_the_program(name: str) -> None:
    inputs = list((CORPUS / name).iterdir())
    assert inputs, f"no inputs for {name}"
    program = rigs.Builds().program(rigs.plain(), f"replay-{name}")
    assert rigs.run(program, CORPUS / name)[-1] == f"{len(inputs)} inputs"


def test_every_corpus_has_its_program() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(rigs.FUZZERS)
