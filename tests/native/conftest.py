"""What the tests on other machines share: builds, kept between runs, and what this machine computes."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
from native import rigs
from native.rigs import Builds


@pytest.fixture(scope="session")
def builds() -> Builds:
    return Builds()


@pytest.fixture(scope="session")
def expected(builds: Builds) -> Callable[[str], str]:
    """Program -> the digest of all its output on this machine."""
    return functools.cache(lambda name: rigs.run(builds.program(rigs.native(), name))[-1])
