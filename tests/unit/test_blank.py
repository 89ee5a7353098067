"""Blank models run as real ones do, and leave nothing behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from paretobit import open_model, speed
from paretobit.arch.spec import EMBED
from paretobit.artifact import Artifact
from paretobit.errors import ParetobitError
from paretobit.evals import blank as blanks
from paretobit.evals.blank import blank, measured_ms
from paretobit.planfile import Plan, uniform
from paretobit.runtime.session import Session
from tests.checkpoints import tiny_llama_folder

SCHEMES = (*speed.SCHEMES, "w4g32", "w2t4", "fp16", "fp32")


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("PARETOBIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def plan_of(source: object, scheme: str) -> Plan:
    return uniform(source.arch, source.hash, scheme, None, ("rtn",) * 3, {})  # type: ignore[attr-defined]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_runs_and_gives_finite_logits(model: Path, scheme: str, cache: Path) -> None:
    source = open_model(model)
    plan = plan_of(source, scheme)
    with blank(source, plan) as packed:
        assert packed.plan == plan and packed.folder.parent == cache
        assert {str(packed.schemes[name]) for name in plan.layers if name != EMBED} == {scheme}
        logits = Session(packed).logits(np.arange(12)[None])
        assert np.isfinite(logits).all() and logits.std() > 0
        sizes = [packed.nbytes(name) for name in plan.layers]
    assert sum(sizes) > 0 and not list(cache.iterdir())


@pytest.mark.parametrize(
    ("model_type", "traits"),
    [
        ("llama", {"tied": False}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("qwen3", {"tied": False}),
        ("gemma3_text", {"query_pre_attn_scalar": 24, "sliding_window": 7, "sliding_window_pattern": 2}),
    ],
)
def test_every_kind_of_architecture_runs(tmp_path: Path, model_type: str, traits: dict) -> None:
    source = open_model(tiny_llama_folder(tmp_path / "model", model_type=model_type, **traits))
    for scheme in ("w3t", "w4g64"):
        with blank(source, plan_of(source, scheme)) as packed:
            assert np.isfinite(Session(packed).logits(np.arange(12)[None])).all()


def test_no_number_is_subnormal(model: Path) -> None:
    source = open_model(model)
    with blank(source, plan_of(source, "w2g64")) as packed:
        for name, info in packed.file.tensors.items():
            if info.dtype != "U8":
                assert (packed.file.read_float32(name) >= 0.0099).all(), name


def test_it_goes_after_an_exception(model: Path, cache: Path) -> None:
    source = open_model(model)
    with pytest.raises(KeyboardInterrupt), blank(source, plan_of(source, "w4")) as packed:
        assert packed.folder.is_dir()
        raise KeyboardInterrupt
    assert not list(cache.iterdir())


def test_what_a_killed_process_left_goes_after_a_day(model: Path, cache: Path) -> None:
    source, old, new = open_model(model), cache / "blank-old", cache / "blank-new"
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").touch()
    os.utime(old, (0, 0))
    with blank(source, plan_of(source, "w4")):
        assert not old.exists() and new.exists()


def test_a_full_disk_is_told_and_nothing_stays(model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_model(model)

    def full(*given: object) -> bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(blanks, "header", full)
    with (
        pytest.raises(ParetobitError, match="the disk is full; hint: free some space"),
        blank(source, plan_of(source, "w4")),
    ):
        pass
    assert not list(cache.iterdir())


def test_a_cache_that_cannot_be_is_told(model: Path, cache: Path) -> None:
    cache.touch()
    source = open_model(model)
    with pytest.raises(ParetobitError, match="there is a file in the way"), blank(source, plan_of(source, "w4")):
        pass


def test_milliseconds_are_measured_once_a_round(model: Path, cache: Path) -> None:
    source = open_model(model)
    found = measured_ms(source, plan_of(source, "w4"), 1, prompt=5, tokens=3, rounds=4)
    assert found.n == 4 and 0 < found.least <= found.median <= found.most
    assert not list(cache.iterdir())
    with pytest.raises(ParetobitError, match="exceed the context"):
        measured_ms(source, plan_of(source, "w4"), 1, prompt=600, tokens=3, rounds=1)


def test_milliseconds_are_the_median_tokens_after_the_prompt(model: Path) -> None:
    """A clock on which one token of the five takes ten seconds, the others one each."""
    source, now, asked = open_model(model), [0.0], [0]

    def clock() -> float:
        asked[0] += 1
        now[0] += 10.0 if asked[0] % 6 == 3 else 1.0
        return now[0]

    with blank(source, plan_of(source, "w4")) as packed:
        assert isinstance(packed, Artifact)
        found = blanks.decode_ms(packed, 1, prompt=2, tokens=5, rounds=3, clock=clock)
    assert (found.least, found.most, found.n) == (1000.0, 1000.0, 3)
