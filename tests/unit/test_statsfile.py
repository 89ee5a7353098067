"""Statistics in shards: collected apart, merged by sum, good for a whole quantization; nothing else passes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import tiny_llama_folder

import paretobit as pb
from paretobit.artifact import TENSORS, Artifact
from paretobit.checkpoint import open_model
from paretobit.compress.statsfile import StatsFolder
from paretobit.errors import ParetobitError
from paretobit.work import MANIFEST
from tests.commands import contents
from tests.reference import activations, assert_sums, calibration_ids

TOKENS = 10 * 512
SHARDS = 3

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def made(model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the shards 0, 1, 2 of three, their sum `merged`, and the unsharded `whole`."""
    folder = tmp_path_factory.mktemp("statistics")
    options = {"to": "w3g16", "calib": str(text), "tokens": TOKENS}
    for i in range(SHARDS):
        pb.quantize(str(model), out=str(folder / str(i)), shard=f"{i}/{SHARDS}", **options)
    pb.quantize(str(model), out=str(folder / "whole"), shard="0/1", **options)
    pb.merge(*(str(folder / str(i)) for i in range(SHARDS)), out=str(folder / "merged"))
    return folder


def test_merged_shards_are_the_sums_over_all_tokens(made: Path, model: Path, text: Path) -> None:
    """Each shard's batches are its own, so its activations are those of a forward pass over just that shard: float32
    products of other shapes may round otherwise. Their sums, merged, must be the sums over all of them."""
    source = open_model(model)
    ids = calibration_ids(source, text, TOKENS)
    parts = [activations(source, ids[i::SHARDS]) for i in range(SHARDS)]
    merged, whole = StatsFolder(made / "merged"), StatsFolder(made / "whole")
    once = activations(source, ids)
    for tap in [*source.arch.taps(0), *source.arch.taps(1), source.arch.head_tap]:
        for folder, x in ((merged, [y for part in parts for y in part[tap.name]]), (whole, once[tap.name])):
            stats = folder.tap(tap)
            assert stats.n == TOKENS
            assert_sums(stats.hessian, x, x, f"hessian of {tap.name}")
            assert torch.equal(stats.absmax, torch.cat(x).abs().amax(0))
            assert_sums(stats.absmean[None], [torch.ones(len(y), 1) for y in x], [y.abs() for y in x], "absmean")
    # At the first tap no product has been formed yet: the activations are equal to the bit, merged or not, and both
    # sums lie within float32's bound n·u/(1 - n·u) of the same exact one.
    first = source.arch.taps(0)[0]
    x = torch.cat(once[first.name]).double()
    bound = 2 * (TOKENS + 2) * 2.0**-24 / (1 - (TOKENS + 2) * 2.0**-24) * (x.abs().T @ x.abs())
    assert ((merged.tap(first).hessian - whole.tap(first).hessian).abs() <= bound).all()


def test_a_shard_holds_its_own_windows_only(made: Path, model: Path, text: Path) -> None:
    source = open_model(model)
    ids = calibration_ids(source, text, TOKENS)
    first, counts = source.arch.taps(0)[0], []
    for i in range(SHARDS):
        stats = StatsFolder(made / str(i)).tap(first)
        x = activations(source, ids[i::SHARDS])[first.name]
        counts.append(stats.n)
        assert_sums(stats.hessian, x, x, f"hessian of shard {i}")
    assert counts == [4 * 512, 3 * 512, 3 * 512]


def test_statistics_give_an_artifact(made: Path, model: Path, text: Path, tmp_path: Path) -> None:
    """Unsharded statistics are those of `--inputs full`, summed in the same order: the same bytes."""
    for name in ("whole", "merged"):
        pb.quantize(str(model), to="w3g16", stats=str(made / name), out=str(tmp_path / name))
    options = {"to": "w3g16", "calib": str(text), "tokens": TOKENS, "inputs": "full"}
    pb.quantize(str(model), out=str(tmp_path / "direct"), **options)
    assert contents(tmp_path / "whole")[TENSORS] == contents(tmp_path / "direct")[TENSORS]
    assert Artifact(tmp_path / "merged").manifest["calibration"]["tokens"] == TOKENS
    a, b, source = Artifact(tmp_path / "whole"), Artifact(tmp_path / "merged"), open_model(model)
    for name in a.plan.layers:
        # Sums that differ in their last bits flip a code here and there; another matrix would differ everywhere.
        assert (a.qtensor(name).codes != b.qtensor(name).codes).mean() < 0.01, name
        assert ((b.read(name) - source.read(name)) ** 2).mean() < 0.2 * (source.read(name) ** 2).mean(), name


def test_merging_in_steps_and_in_any_order(made: Path, tmp_path: Path) -> None:
    shards = [str(made / str(i)) for i in range(SHARDS)]
    pb.merge(shards[2], shards[0], out=str(tmp_path / "two"))
    result = pb.merge(shards[1], str(tmp_path / "two"), out=str(tmp_path / "all"))
    assert (result.shards, result.of, result.tokens) == ((0, 1, 2), 3, TOKENS)
    name = "model.layers.1.down_in.safetensors"
    one, other = (StatsFolder(folder) for folder in (made / "merged", tmp_path / "all"))
    tap = tap_of(one, name)
    # Two additions in either order, each rounded once: 2u of at most the sum of the absolute values, on both sides.
    bound = 4 * 2.0**-24 * sum(StatsFolder(Path(shard)).tap(tap).hessian.abs() for shard in shards)
    assert ((one.tap(tap).hessian - other.tap(tap).hessian).abs() <= bound).all()
    assert torch.equal(one.tap(tap).absmax, other.tap(tap).absmax)
    before = contents(tmp_path / "all")
    pb.merge(shards[1], str(tmp_path / "two"), out=str(tmp_path / "all"))
    assert contents(tmp_path / "all") == before


def tap_of(folder: StatsFolder, file: str) -> object:
    from paretobit.arch import resolve

    arch = resolve(folder.manifest["config"])
    return next(tap for layer in range(arch.layers) for tap in arch.taps(layer) if file == f"{tap.name}.safetensors")


def test_what_does_not_belong_together_is_refused(made: Path, model: Path, text: Path, tmp_path: Path) -> None:
    shards = [str(made / str(i)) for i in range(SHARDS)]
    out = str(tmp_path / "out")
    with pytest.raises(ParetobitError, match=r"shards \[0, 0, 1\] overlap.*hint: name every shard once"):
        pb.merge(shards[0], shards[1], shards[0], out=out)
    other = tiny_llama_folder(tmp_path / "other", intermediate_size=128)
    strangers = {
        "model": (other, {"shard": "1/3", "tokens": TOKENS}),
        "calibration": (model, {"shard": "1/3", "tokens": 3 * 512}),
        "of": (model, {"shard": "1/2", "tokens": TOKENS}),
    }
    for key, (source, options) in strangers.items():
        pb.quantize(str(source), to="w3g16", out=str(tmp_path / key), calib=str(text), **options)
        with pytest.raises(ParetobitError, match=f"{key}: {key} differs from {shards[0]}.*hint: merge shards of one"):
            pb.merge(shards[0], str(tmp_path / key), out=out)
    pb.merge(shards[0], shards[2], out=str(tmp_path / "partial"))
    with pytest.raises(ParetobitError, match=r"partial holds shards \[0, 2\] of 3; hint: merge all of them"):
        pb.quantize(str(model), to="w3g16", stats=str(tmp_path / "partial"), out=out)
    with pytest.raises(ParetobitError, match=r"statistics of another model; hint:"):
        pb.quantize(str(other), to="w3g16", stats=str(made / "merged"), out=out)
    with pytest.raises(ParetobitError, match=r"no folders given.*hint:"):
        pb.merge(out=out)
    for folder in (tmp_path / "none", model, tmp_path):
        with pytest.raises(ParetobitError, match=r"holds no statistics.*hint:"):
            pb.merge(str(folder), out=out)
    assert not Path(out).exists() and not Path(out + ".work").exists()


@pytest.mark.parametrize("shard", ["3/3", "-1/3", "1", "a/b", "0/0", "", "1/2/3", "²/3", "10/11"])
def test_impossible_shards(model: Path, text: Path, tmp_path: Path, shard: str) -> None:
    with pytest.raises(ParetobitError, match=r"hint: (write i/N|use fewer shards)"):
        pb.quantize(str(model), to="w3", shard=shard, calib=str(text), tokens=TOKENS, out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["shard", "stats"])
def test_sequential_inputs_in_shards_are_refused(model: Path, tmp_path: Path, option: str) -> None:
    options = {option: "0/3" if option == "shard" else str(tmp_path)}
    with pytest.raises(ParetobitError, match=r"not of sequential inputs; hint:.*torchrun"):
        pb.quantize(str(model), to="w3g16", inputs="sequential", out=str(tmp_path / "out"), **options)


BAD_FACTS = {
    "model": [None, 7],
    "calibration": [None, [], {}, {"source": 3}],
    "config": [None, 1, {}, {"model_type": "llama"}],
    "shards": [None, 3, [], [0, 0, 1], [1, 0, 2], [0, 1, 3], [0, 1, "2"], [-1, 0, 1]],
    "of": [None, "3", 0, -1, 2.5, True],
    "tokens": [None, "many", 0, -5, 1.5],
    "kind": ["model", None, 4],
}


@pytest.mark.parametrize(("field", "value"), [(k, v) for k, values in BAD_FACTS.items() for v in values])
def test_a_damaged_manifest_is_refused(made: Path, tmp_path: Path, field: str, value: object) -> None:
    shutil.copytree(made / "merged", tmp_path / "bad")
    path = tmp_path / "bad" / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(ParetobitError, match="; hint: "):
        pb.merge(str(tmp_path / "bad"), out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_damaged_sums_are_refused(made: Path, model: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp_in.safetensors"
    raw = (made / "merged" / name).read_bytes()
    bad = {
        "cut": raw[:-4],
        "empty": b"",
        "not finite": raw[:-4] + np.float32("inf").tobytes(),
        "of another tap": (made / "merged" / "model.layers.1.down_in.safetensors").read_bytes(),
    }
    for what, content in {**bad, "missing": None}.items():
        folder = tmp_path / what
        shutil.copytree(made / "merged", folder)
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
        with pytest.raises(ParetobitError, match=f"{name}.*; hint: "):
            pb.quantize(str(model), to="w3g16", stats=str(folder), out=str(tmp_path / "out"), overwrite=True)
        assert not (tmp_path / "out").exists()
