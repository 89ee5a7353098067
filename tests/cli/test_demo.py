"""The demo: every row of its table, and a second run over what another version left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import paretobit as pb
from paretobit.verbs import demo as module


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, text: Path, tmp_path: Path) -> None:
    """The demo at a tiny model's scale, without downloads."""
    monkeypatch.setenv("PARETOBIT_CACHE", str(tmp_path))
    monkeypatch.setattr("paretobit.checkpoint.demo_text.held_out_text", lambda: text)
    for name, value in (("CALIBRATION_TOKENS", 1024), ("WINDOWS", 2), ("NEW_TOKENS", 3)):
        monkeypatch.setattr(module, name, value)


def test_a_second_demo_reuses_results_but_not_another_versions(small: None, model: Path, tmp_path: Path) -> None:
    first = pb.demo(model=str(model))
    assert [row.name for row in first.rows] == [
        "original, 16 bits",
        "w4g64 rtn",
        "w4g64 gptq",
        "w3g64 rtn",
        "w3g64 gptq",
        "w3t trellis",
    ]
    assert first.rows[0].kl_divergence == 0 and all(row.kl_divergence > 0 for row in first.rows[1:])
    [folder] = (tmp_path / "demo-runs").iterdir()
    manifest = folder / "w3g64-gptq" / "paretobit.json"
    before = manifest.read_bytes()
    found = json.loads(before)
    found["fingerprint"]["version"] = "0.0.1"
    manifest.write_text(json.dumps(found))
    kept = (folder / "w4g64-gptq" / "paretobit.json").stat().st_mtime_ns
    second = pb.demo(model=str(model))
    assert manifest.read_bytes() == before
    assert (folder / "w4g64-gptq" / "paretobit.json").stat().st_mtime_ns == kept
    assert [row.kl_divergence for row in second.rows] == [row.kl_divergence for row in first.rows]


def test_a_folder_of_the_users_own_is_not_overwritten(small: None, model: Path, tmp_path: Path) -> None:
    pb.demo(model=str(model), out=str(tmp_path / "mine"))
    manifest = tmp_path / "mine" / "w4g64-rtn" / "paretobit.json"
    found = json.loads(manifest.read_bytes())
    found["fingerprint"]["version"] = "0.0.1"
    manifest.write_text(json.dumps(found))
    with pytest.raises(pb.ParetobitError, match="already holds another result: version was 0.0.1"):
        pb.demo(model=str(model), out=str(tmp_path / "mine"))
