"""The bench of the small key-value cache: its figures on a tiny model, and what it holds them against."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from bench import kv
from paretobit.artifact import Artifact
from tests.checkpoints import CORPUS
from tests.packed import Shelf


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return Shelf(tmp_path_factory.mktemp("packed"))("llama", "w8")


def test_divergence_is_the_sum_of_its_formula() -> None:
    rng = np.random.default_rng(0)
    exact, found = rng.standard_normal((2, 50, 7)).astype(np.float32)
    p, q = (np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum(1, keepdims=True) for x in (exact, found))
    kl, same = kv.divergence(exact, found)
    assert abs(kl - (p * np.log(p / q)).sum(1).mean()) < 1e-12
    assert same == (exact.argmax(1) == found.argmax(1)).mean()
    assert kv.divergence(exact, exact) == (0.0, 1.0)


def test_every_part_prints_its_lines(
    packed: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(CORPUS * 20)
    words = ("kv", packed.folder, "--text", text, "--contexts", "300,512,8192", "--windows", 2, "--rounds", 2)
    asked = ("--kv", "8", "--kv", "4", "--kv", "4p", "--only", "divergence,memory,speed")
    monkeypatch.setattr(sys, "argv", [*map(str, words), *asked])
    kv.main()
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith(f"| {packed.name}")]
    assert [row[1:3] for row in rows] == [[c, s] for c in ("300", "512") for s in ("8", "4", "4p")]  # 8192 is too long
    assert float(rows[0][3].split()[0]) < float(rows[1][3].split()[0])
    judged = [line for line in lines if line.startswith(("met", "MISSED"))]
    assert sum("bits rotated" in line for line in judged) == 2
    assert sum("cache" in line and "8192 tokens" in line for line in judged) == 3
    assert sum("decoding with" in line and "512 tokens" in line for line in judged) == 3


def test_planted_outliers_are_judged(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["kv", "--only", "outliers"])
    monkeypatch.setattr(kv, "PLANTED", 2)
    kv.main()
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith(("| plain", "| outliers"))]
    found = {(row[0][2:], row[2]): float(row[3].split()[0]) for row in rows}
    judged = [line for line in lines if line.startswith(("met", "MISSED"))]
    for bits, line in zip("43", judged, strict=True):
        ratio = found["outliers", bits] / found["outliers", f"{bits}p"]
        assert line.startswith("met") and float(line.split(": ")[1].split()[0]) == pytest.approx(ratio, abs=6e-3)
