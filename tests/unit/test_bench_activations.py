"""The bench of 8-bit activations: its rows on a tiny model, and the peer it holds them against."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from bench import activations
from paretobit.checkpoint import open_model

pytestmark = pytest.mark.usefixtures("quick")


def test_the_peer_s_weights_are_q8_0_s(model: Path) -> None:
    source = open_model(str(model))
    peer, name = activations.PeerWeights(source), "model.layers.0.mlp.up_proj.weight"
    whole, block = source.read(name), source.read(name)[5, 32:64]
    scale = np.float32(np.float16(np.abs(block).max() / 127))
    error = np.abs(peer.read(name)[5, 32:64] - block)
    assert 0 < error.max() <= 0.51 * scale  # codes come from the scale before it is rounded to fp16
    assert np.array_equal(peer.read(name, slice(5, 6))[0], peer.read(name)[5]) and whole.shape == peer.read(name).shape
    norm = "model.layers.0.input_layernorm.weight"
    assert np.array_equal(peer.read(norm), source.read(norm))


def test_every_row_and_promise_is_printed(
    model: Path, text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("activations", model, "--windows", 1, "--tokens", 1024, "--calib", text, "--text", text, "--awq", "w3g32")
    monkeypatch.setattr(sys, "argv", [*map(str, words), "--only", "activations,weights"])
    activations.main()
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith(("| w", "| Q8_0"))]
    assert [row[0].removeprefix("| ") for row in rows] == [
        *(scheme for scheme in activations.SCHEMES for _ in range(2)), *["w8a8"] * 2, *[activations.Q8_0] * 2,
        *["w3g32"] * 4, *["w2t"] * 2,
    ]  # fmt: skip
    found = [float(row[4].split()[0]) for row in rows]
    assert found[0] > found[6] and found[10] > found[11], "one scale for all costs more, and so does the head"
    judged = [line for line in lines if line.startswith(("met", "MISSED"))]
    assert len(judged) == 11
    ratio = float(judged[0].split(": ")[1].split()[0])
    assert ratio == pytest.approx(found[1] / found[0], abs=2e-3)
    assert all(line.startswith("met") == (float(line.split(": ")[1].split()[0]) <= float(line.split("≤ ")[1][:-2]))
               for line in judged)  # fmt: skip


def test_planted_outliers_are_judged_by_perplexity(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["activations", "--only", "outliers"])
    monkeypatch.setattr(activations, "FAMILIES", ("llama",))
    activations.main()
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("| w")]
    assert [row[2].strip() for row in rows] == ["", "smoothquant"] * 3
    judged = [line for line in lines if line.startswith(("met", "MISSED"))]
    ratios, found = [float(line.split(": ")[1].split()[0]) for line in judged], [float(row[5]) for row in rows]
    assert found[0] / found[1] == pytest.approx(ratios[0] / ratios[1], rel=0.02)
    assert all(line.startswith("met") for line in judged) and "≥ 2 ×" in judged[0] and "≤ 1.02 ×" in judged[1]
