"""A hundred spoilt inputs through the command line: each ends in one clear line, code 2, and no output."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import paretobit as pb
from tests.checkpoints import tiny_gguf, tiny_llama_folder
from tests.commands import Command
from tests.hostile.corruptions import HUNDRED

SECONDS = 20  # a case takes a tenth of a second; what takes so long hangs


@pytest.fixture(scope="module")
def good(model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One whole input of every kind. Read only."""
    folder = tmp_path_factory.mktemp("good")
    tiny_gguf(folder / "tiny.gguf")
    tiny_llama_folder(folder / "sharded", shards=2)
    pb.quantize(str(model), to="w3g64", method="rtn", out=str(folder / "packed"))
    pb.quantize(str(model), to="w3", shard="0/1", calib=str(text), tokens=512, out=str(folder / "statistics"))
    shutil.copy(folder / "packed" / "plan.json", folder / "plan.json")
    return {
        "weights": model, "index": folder / "sharded", "config": model, "tokenizer": model, "text": text,
        "gguf": folder / "tiny.gguf", "plan": folder / "plan.json", "artifact": folder / "packed",
        "statistics": folder / "statistics",
    }  # fmt: skip


@pytest.fixture
def deadline() -> Iterator[None]:
    """A hang ends as a failure of the test that hangs."""

    def late(number: int, frame: object) -> None:
        raise AssertionError(f"no end after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def arguments(kind: str, place: Path, model: Path, text: Path, out: Path) -> tuple[object, ...]:
    """The command that reads `place`."""
    if kind in ("weights", "index", "config", "gguf"):
        return ("quantize", place, "--to", "w3g64", "--method", "rtn", "-o", out)
    if kind == "artifact":
        return ("eval", place, "--text", text, "--windows", 1)
    option = {"plan": "--plan", "statistics": "--stats"}.get(kind, "--calib")
    more = (option, text if kind == "tokenizer" else place, *(() if kind == "plan" else ("--to", "w3")))
    return ("quantize", place if kind == "tokenizer" else model, *more, "--tokens", 512, "-o", out)


def test_there_are_a_hundred_and_each_is_another() -> None:
    assert len(HUNDRED) == 100
    assert len({(kind, what) for kind, what, _ in HUNDRED}) == 100


@pytest.mark.parametrize("kind", sorted({kind for kind, _, _ in HUNDRED}))
def test_the_whole_input_passes(
    kind: str, good: dict[str, Path], model: Path, text: Path, tmp_path: Path, command: Command
) -> None:
    """So it is the damage that the hundred fail of."""
    done = command(*arguments(kind, good[kind], model, text, tmp_path / "out"))
    assert done.code == 0, done.err


@pytest.mark.parametrize(("kind", "damage"), [(k, d) for k, _, d in HUNDRED], ids=[f"{k}: {w}" for k, w, _ in HUNDRED])
def test_a_spoilt_input_is_one_clear_line(
    kind: str, damage: Callable[[Path], object], good: dict[str, Path], model: Path, text: Path, tmp_path: Path,
    command: Command, deadline: None,
) -> None:  # fmt: skip
    whole, place, out = good[kind], tmp_path / good[kind].name, tmp_path / "out"
    shutil.copytree(whole, place) if whole.is_dir() else shutil.copy(whole, place)
    damage(place)
    told = command(*arguments(kind, place, model, text, out)).error
    assert len(told) < 1000 and not out.exists()
    hint = told.rpartition("; hint: ")[2]
    assert len(hint) > 5 and "Error" not in told and "object at 0x" not in told, told
