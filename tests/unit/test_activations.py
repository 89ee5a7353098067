"""Activations of 8 bits: against integers in numpy, through a whole model, and what a packed model says of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import paretobit as pb
from paretobit.artifact import PLAN, TENSORS, Artifact
from paretobit.checkpoint import open_model
from paretobit.compress.activations import Rounding, rounded, rounding
from paretobit.compress.model import Decoder
from paretobit.compress.ranges import ranges
from paretobit.errors import ParetobitError
from paretobit.planfile import static
from paretobit.runtime.session import Session
from paretobit.scheme import Grid, parse
from tests.checkpoints import tiny_llama_folder
from tests.commands import Command
from tests.reference import calibration_ids

pytestmark = pytest.mark.usefixtures("quick")

TOKENS = 5 * 512


def integers(x: np.ndarray, grid: Grid, largest: float) -> np.ndarray:  # (tokens, width)
    """The same in numpy: integer codes, one group of columns after the other, and their scales."""
    out = np.empty_like(x)
    group = grid.group or x.shape[1]
    for start in range(0, x.shape[1], group):
        part = x[:, start : start + group]
        top = np.full((len(x), 1), largest, np.float32) if grid.kind == "static" else np.abs(part).max(1, keepdims=True)
        scale = np.maximum(top / np.float32(127), np.float32(1e-30))
        codes = np.clip(np.rint(part / scale), -127, 127).astype(np.int8)
        out[:, start : start + group] = codes.astype(np.float32) * scale
    return out


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8g16", "w8a8g32", "w8a8s"])
def test_activations_are_whole_multiples_of_their_scale(scheme: str) -> None:
    grid = parse(scheme).activation
    assert grid is not None and str(parse(scheme)) == scheme
    x = np.random.default_rng(0).standard_normal((7, 70)).astype(np.float32) * np.logspace(-2, 2, 70, dtype=np.float32)
    x[0], x[1, 0], x[2, :3] = 0, 127, (0.5, 1.5, -2.5)  # nothing to round; ties
    found = rounded(torch.from_numpy(x.copy()), grid, 60.0).numpy()
    assert np.array_equal(found, integers(x, grid, 60.0))
    assert len(np.unique(found[5] / (60 / 127))) <= 255 or grid.group


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama_folder(tmp_path_factory.mktemp("models") / "tiny", model_type=request.param, tied=False)


@pytest.mark.parametrize("scheme", ["w8a8", "w8g32a8g32", "w8a8s"])
def test_a_packed_model_is_computed_as_its_schemes_say(folder: Path, text: Path, tmp_path: Path, scheme: str) -> None:
    out = tmp_path / "out"
    pb.quantize(str(folder), to=scheme, embed=scheme, method="rtn", out=str(out), calib=str(text), tokens=TOKENS)
    packed, seen = Artifact(out), set[str]()
    assert {tap.name for tap in static(packed.plan, packed.arch)} == set(packed.ranges)

    class Integers(Rounding):
        def __call__(self, tap: str, x: torch.Tensor) -> torch.Tensor:
            seen.add(tap)
            grid = packed.schemes["model.layers.0.mlp.up_proj.weight"].activation
            assert grid is not None
            flat = integers(x.reshape(-1, x.shape[-1]).numpy(), grid, packed.ranges.get(tap, 0.0))
            return torch.from_numpy(flat).reshape(x.shape)

    ids = calibration_ids(open_model(str(folder)), text, TOKENS)[:1, :64]
    made = Decoder(packed, rounded=rounding(packed)).logits(ids)
    assert np.array_equal(made, Decoder(packed, rounded=Integers({})).logits(ids))
    assert len(seen) == 4 * packed.arch.layers + 1
    assert not np.array_equal(made, Decoder(packed).logits(ids))


def test_static_ranges_are_those_of_calibration(folder: Path, text: Path, tmp_path: Path) -> None:
    """With inputs of the full-precision model; sequential ones are the rounded model's, and so not the same."""
    source = open_model(str(folder))
    wanted = ranges(source, calibration_ids(source, text, TOKENS))
    found = {}
    for inputs in ("full", "sequential"):
        out = tmp_path / inputs
        pb.quantize(
            str(folder), to="w4a8s", embed="w8a8s", method="rtn", out=str(out), calib=str(text), tokens=TOKENS,
            inputs=inputs,
        )  # fmt: skip
        found[inputs] = Artifact(out).ranges
    assert found["full"] == pytest.approx(wanted, rel=1e-5)
    assert found["sequential"].keys() == wanted.keys() and found["sequential"] != pytest.approx(wanted, rel=1e-3)


def test_a_head_without_a8_keeps_its_floats(folder: Path, tmp_path: Path) -> None:
    pb.quantize(str(folder), to="w8a8", method="rtn", out=str(tmp_path / "out"))
    made = rounding(Artifact(tmp_path / "out"))
    assert made is not None and "head_in" not in made.at
    assert rounding(open_model(str(folder))) is None


def test_the_native_runtime_keeps_to_its_own_blocks(folder: Path, text: Path, tmp_path: Path) -> None:
    """A scheme's a8 changes no bit of what it computes: weights are the same, and ranges are not read."""
    ids, found = np.arange(3, 40)[None], []
    for scheme in ("w8", "w8a8", "w8a8s"):
        pb.quantize(str(folder), to=scheme, method="rtn", out=str(tmp_path / scheme), calib=str(text), tokens=TOKENS)
        found.append(Session(Artifact(tmp_path / scheme), threads=1).logits(ids))
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


@pytest.fixture
def statically(folder: Path, text: Path, tmp_path: Path) -> Path:
    out = tmp_path / "out"
    pb.quantize(str(folder), to="w8a8s", method="rtn", out=str(out), calib=str(text), tokens=TOKENS)
    return out


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_a_range_that_is_none_is_refused(statically: Path, tmp_path: Path, value: float) -> None:
    shutil.copytree(statically, tmp_path / "copy")
    path = tmp_path / "copy" / TENSORS
    raw, start = bytearray(path.read_bytes()), 8 + int.from_bytes(path.read_bytes()[:8], "little")
    first = json.loads(raw[8:start])["model.layers.1.o_in.range"]["data_offsets"][0]
    raw[start + first : start + first + 4] = np.float32(value).tobytes()
    path.write_bytes(raw)
    with pytest.raises(ParetobitError, match="o_in"):
        rounding(Artifact(tmp_path / "copy"))


def test_a_plan_that_asks_for_ranges_which_are_not_there_is_refused(statically: Path, tmp_path: Path) -> None:
    shutil.copytree(statically, tmp_path / "copy")
    path = tmp_path / "copy" / PLAN
    for old, new, named in (("w8a8s", "w8a8", "unknown tensor"), ("w8a8", "w8a8s", None)):
        path.write_text(path.read_text().replace(f'"{old}"', f'"{new}"'))
        if named:
            with pytest.raises(ParetobitError, match=named):
                Artifact(tmp_path / "copy")
    facts = json.loads(path.read_text())
    facts["layers"]["lm_head.weight"]["scheme"] = "w8a8s"
    path.write_text(json.dumps(facts))
    with pytest.raises(ParetobitError, match=r"head_in.range"):
        Artifact(tmp_path / "copy")


def test_consumers_of_one_activation_agree(statically: Path, tmp_path: Path) -> None:
    shutil.copytree(statically, tmp_path / "copy")
    facts = json.loads((tmp_path / "copy" / PLAN).read_text())
    facts["layers"]["model.layers.0.self_attn.k_proj.weight"]["scheme"] = "w8"
    (tmp_path / "copy" / PLAN).write_text(json.dumps(facts))
    with pytest.raises(ParetobitError, match="cannot be rounded in two ways"):
        Artifact(tmp_path / "copy")


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8g32"])
def test_a_wish_does_not_weigh_activations(command: Command, folder: Path, tmp_path: Path, scheme: str) -> None:
    done = command("quantize", folder, "--fit", "60%", "--schemes", f"w4,{scheme}", "-o", tmp_path / "out")
    assert done.code == 2 and f"{scheme} rounds activations" in done.err and "hint: plan with w8" in done.err


def test_what_cannot_be_measured_is_refused(command: Command, folder: Path, tmp_path: Path) -> None:
    done = command("quantize", folder, "--to", "w3ta8s", "-o", tmp_path / "out")
    assert done.code == 2 and "attn_in is rotated" in done.err and "hint:" in done.err
