"""Resident memory as /proc tells it, of made-up and of real processes."""

from __future__ import annotations

import sys

import pytest

from paretobit.errors import ParetobitError
from paretobit.evals import memory
from paretobit.evals.memory import Resident, resident, watch

STATUS = "Name:\tpython3\nVmPeak:\t  99 kB\nVmRSS:\t  1500 kB\nRssAnon:\t   500 kB\nRssFile:\t  1000 kB\nThreads:\t1\n"


def test_status(tmp_path):
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "status").write_text(STATUS)
    assert resident(proc=tmp_path) == Resident(1500 << 10, 500 << 10, 1000 << 10)
    assert resident(12, proc=tmp_path) is None


@pytest.mark.parametrize("line", ["VmRSS:", "VmRSS: x kB", "VmRSS: 5 MB", "VmRSS: -1 kB", ""])
def test_a_status_that_makes_no_sense_tells_nothing(tmp_path, line):
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "status").write_text(STATUS.replace("VmRSS:\t  1500 kB", line))
    assert resident(proc=tmp_path) is None


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_the_most_of_a_process_counts():
    """30 MB held for a moment and given back are seen; so is what every interpreter takes."""
    quiet = watch(python("import time; time.sleep(0.1)"))
    held = watch(python("import time; held = b'x' * 30_000_000; time.sleep(0.3); del held"))
    assert quiet and held
    assert 29_000_000 < held.own - quiet.own < 34_000_000  # pages are whole, and the interpreter's own vary a little
    assert held.total >= held.own + held.file


def test_a_process_that_fails_is_an_error():
    with pytest.raises(ParetobitError, match="ended with 1: ValueError: why"):
        watch(python("raise ValueError('why')"))


def test_elsewhere_nothing_is_started(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "resident", lambda pid=None: None)
    assert watch([str(tmp_path / "there is no such program")]) is None
