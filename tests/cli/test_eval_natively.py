"""eval --runtime native: what run and chat compute, measured by the code that measures torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import paretobit as pb
from tests.commands import Command


@pytest.fixture(scope="module")
def packed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("natively") / "w2"
    pb.quantize(str(model), to="w2g16", method="rtn", out=str(out))
    return out


def test_rounding_activations_costs_little_beside_the_weights(
    packed: Path, model: Path, text: Path, command: Command
) -> None:
    measured = ("eval", packed, "--against", model, "--text", text, "--windows", 2, "--json")
    exact = json.loads(command(*measured).out)
    found = json.loads(command(*measured, "--runtime", "native").out)
    weights, activations = found["kl_divergence"]["mean"], found["activations"]["kl_divergence"]["mean"]
    assert exact["activations"] is None
    assert 0 < activations < weights / 10  # 8 bits a block beside 2 bits a group


def test_no_torch_is_needed_without_an_original(
    packed: Path, text: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    done = command("eval", packed, "--text", text, "--windows", 1, "--runtime", "native", "--json")
    found = json.loads(done.out)
    assert found["perplexity"] > 1 and found["activations"]["kl_divergence"]["mean"] > 0
    assert "torch" in command("eval", packed, "--text", text, "--windows", 1).error


def test_only_packed_models_and_known_runtimes(packed: Path, model: Path, text: Path, command: Command) -> None:
    assert "quantize it first" in command("eval", model, "--text", text, "--runtime", "native").error
    assert "torch, native" in command("eval", packed, "--text", text, "--runtime", "onnx").error


def test_the_card_repeats_the_command(packed: Path, text: Path, command: Command) -> None:
    command("eval", packed, "--text", text, "--windows", 1, "--runtime", "native")
    rows = [json.loads(line) for line in (packed / "results.jsonl").read_text().splitlines()]
    assert any(row["command"].endswith("--windows 1 --runtime native") for row in rows)


def test_a_small_cache_is_measured_against_fp16(packed: Path, text: Path, command: Command) -> None:
    measured = ("eval", packed, "--text", text, "--windows", 2)
    losses = []
    for kv in ("8", "2"):
        found = json.loads(command(*measured, "--kv", kv, "--json").out)
        assert found["kv"]["cache"] == kv and found["activations"] is not None
        losses.append(found["kv"]["kl_divergence"]["mean"])
    assert 0 < 10 * losses[0] < losses[1]
    assert json.loads(command(*measured, "--runtime", "native", "--json").out)["kv"] is None
    assert "kv cache       4c against 16 bits: KL" in command(*measured, "--kv", "4c").out
    rows = [json.loads(line) for line in (packed / "results.jsonl").read_text().splitlines()]
    assert any(row["command"].endswith("--windows 2 --runtime native --kv 4c") for row in rows)
    assert "leave --runtime out" in command(*measured, "--kv", "4", "--runtime", "torch").error
    assert "16, 8, 4, 3 or 2" in command(*measured, "--kv", "7").error
