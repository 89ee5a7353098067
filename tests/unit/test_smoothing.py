"""SmoothQuant and AWQ: the searches against brute force, outliers that only they survive, options and refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import paretobit as pb
from paretobit.artifact import PLAN, TENSORS, Artifact
from paretobit.checkpoint import open_model
from paretobit.compress import fold
from paretobit.compress.activations import rounded
from paretobit.compress.grid import dequant
from paretobit.compress.methods import awq, gptq, rtn, smoothquant
from paretobit.compress.sites import ROWS, Site
from paretobit.compress.stats import ABSMAX, ABSMEAN, HESSIAN, SAMPLE, TapStats
from paretobit.compress.statsfile import StatsFolder
from paretobit.planfile import Layer, rotation, taps
from paretobit.scheme import parse
from tests.checkpoints import CORPUS
from tests.commands import Command
from tests.outliers import learned, planted

pytestmark = pytest.mark.usefixtures("quick")
WIDTH, TOKENS = 48, 300


def problem(scheme: str, seed: int = 0, method: str = "rtn") -> tuple[Site, Tensor, TapStats]:
    """Two matrices behind a tap whose channels differ a hundredfold, its inputs, and their statistics."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(TOKENS, WIDTH, generator=random) @ torch.randn(WIDTH, WIDTH, generator=random) / WIDTH**0.5
    x *= torch.logspace(-1, 1, WIDTH)[torch.randperm(WIDTH, generator=random)]
    weights = {name: torch.randn(rows, WIDTH, generator=random) for name, rows in (("q", 20), ("k", 12))}
    layer = Layer(parse(scheme), method, {"weighted": True})
    stats = TapStats.empty(WIDTH, frozenset({ABSMAX, ABSMEAN, HESSIAN, SAMPLE}))
    stats.add(x)
    stats.sample = x  # all of them, so that brute force sees the same
    grid = layer.scheme.activation
    return Site.of(weights, dict.fromkeys(weights, layer), torch.arange(WIDTH), grid), x, stats.complete()


def normed(s: Tensor) -> Tensor:
    return s / s.log().mean().exp()


@pytest.mark.parametrize("method", ["rtn", "gptq"])
@pytest.mark.parametrize("seed", range(3))
def test_awq_takes_the_exponent_with_the_least_error_of_outputs(seed: int, method: str) -> None:
    site, x, stats = problem("w3g16", seed, method)
    found, note = awq.run(site, stats, awq.Params(steps=10))
    grid, errors = parse("w3g16").weight, []
    for step in range(11):
        s, error = normed(x.abs().mean(0) ** (step / 10)), 0.0
        seen = TapStats.empty(WIDTH, frozenset({HESSIAN}))
        seen.add(x / s)
        seen.complete()
        for w in site.weights.values():
            if method == "rtn":
                q = rtn.nearest(w * s, grid, x.square().sum(0) / s.square())
            else:
                q = gptq.run(w * s, seen, grid, gptq.Params())
            error += float(((x.double() @ (dequant(q) / s - w).double().T) ** 2).sum())
        errors.append(error)
    best = int(np.argmin(errors))
    assert note == f"{best / 10:.2f}" and errors[best] < errors[0]
    assert torch.allclose(found, normed(x.abs().mean(0) ** (best / 10)), rtol=1e-5)


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8s", "w8g16a8g16"])
def test_smoothquant_takes_the_exponent_with_the_least_error_of_outputs(scheme: str) -> None:
    site, x, stats = problem(scheme)
    found, note = smoothquant.run(site, stats, smoothquant.Params(steps=10))
    every = torch.stack([w.abs().amax(0) for w in site.weights.values()]).amax(0)
    wanted, errors = torch.cat([x @ w.T for w in site.weights.values()], -1), {}
    choices = {"-": torch.ones(WIDTH)}
    choices |= {f"{a / 10:.2f}": normed(x.abs().amax(0) ** (a / 10) / every ** (1 - a / 10)) for a in range(11)}
    grid = parse(scheme).activation
    for name, s in choices.items():
        assert grid is not None
        seen = rounded(x / s, grid, float((x / s).abs().max()))
        outs = [seen @ dequant(rtn.nearest(w * s, parse(scheme).weight)).T for w in site.weights.values()]
        apart = (torch.cat(outs, -1) - wanted).square().sum(1)
        errors[name] = float((apart / wanted.square().sum(1)).mean())
    best = min(errors, key=errors.__getitem__)
    assert note == best and errors[best] < errors["-"]
    assert torch.allclose(found, choices[best], rtol=1e-5)


def test_heads_that_share_values_share_factors() -> None:
    """Four query heads on two value heads of three channels: a factor belongs to a row of v_proj."""
    site, x, stats = problem("w8a8")
    shared = (torch.arange(WIDTH) // 6 * 3) + torch.arange(WIDTH) % 3
    site = replace(site, shared=shared)
    wished, _ = smoothquant.run(site, stats, smoothquant.Params(alpha="0.5"))
    top = x.abs().amax(0)
    assert wished.shape == (WIDTH // 2,)
    assert site.pooled(top, "amax")[4] == max(top[7], top[10])
    assert site.pooled(top, "mean")[4] == pytest.approx(float(top[7] + top[10]) / 2)


def test_a_search_looks_at_rings_from_all_over() -> None:
    """The largest weight counts wherever it is; the search tries whole rings of 64 rows, first and last among them."""
    w = torch.arange(1000.0)[:, None] * torch.ones(WIDTH)
    site = Site.of({"q": w}, {}, torch.arange(WIDTH))
    kept = site.weights["q"][:, 0]
    assert (site.largest == 999).all() and ROWS - 64 < len(kept) <= ROWS
    starts = kept[::64]
    assert (starts % 64 == 0).all() and starts[0] == 0 and kept[-1] == 999 and len(set(starts.tolist())) == ROWS // 64
    assert Site.of({"q": w[:100]}, {}, torch.arange(WIDTH)).weights["q"].shape == (100, WIDTH)


def test_dead_channels_are_left_alone() -> None:
    site, _, stats = problem("w8a8")
    assert stats.absmax is not None and stats.absmean is not None
    stats.absmax[3] = stats.absmean[3] = 0
    for method, params in ((smoothquant, smoothquant.Params()), (awq, awq.Params())):
        found, _ = method.run(site, stats, params)
        assert found[3] == 1 and torch.isfinite(found).all() and (found > 0).all()


# ---- whole models


def made(folder: Path, model_type: str) -> tuple[Path, Path]:
    """A model that has learned its text, with outliers planted, and that text."""
    (folder / "text.txt").write_text(CORPUS * 40)
    return planted(folder / "planted", learned(folder / "plain", model_type)), folder / "text.txt"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return made(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def models(
    request: pytest.FixtureRequest, llama: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    return llama if request.param == "llama" else made(tmp_path_factory.mktemp("gemma"), request.param)


def perplexity(model: Path, text: Path) -> float:
    found = pb.evaluate(str(model), text=str(text), windows=4).text
    assert found is not None
    return found.perplexity


@pytest.mark.parametrize("scheme", ["w8a8s", "w8a8", "w8g32a8g32"])
def test_smoothquant_restores_what_outliers_break(models: tuple[Path, Path], tmp_path: Path, scheme: str) -> None:
    model, text = models
    exact, found = perplexity(model, text), {}
    for name in ((), "smoothquant"):
        out = tmp_path / f"{name}"
        pb.quantize(
            str(model), to=scheme, method="rtn", transform=name, out=str(out), calib=str(text), tokens=2048,
        )  # fmt: skip
        found[name] = perplexity(out, text) / exact
    assert found[()] >= 2 and found["smoothquant"] <= 1.02


def test_factors_come_before_a_rotation(models: tuple[Path, Path], tmp_path: Path) -> None:
    """All taps turn where that is asked for. That alone leaves too much of such outliers on 64 channels."""
    model, text = models
    exact, found = perplexity(model, text), {}
    for transform in (("rotate",), ("rotate", "smoothquant")):
        out = tmp_path / "-".join(transform)
        pb.quantize(str(model), to="w8a8", method="rtn", transform=transform, out=str(out), calib=str(text),
                    tokens=2048)  # fmt: skip
        packed = Artifact(out)
        assert [made["method"] for made in packed.plan.transforms] == sorted(transform, reverse=True)
        assert all(rotation(packed.plan, tap.name, tap.width) for tap in taps(packed.arch))
        found[len(transform)] = perplexity(out, text) / exact
    assert found[1] > 1.02 and found[2] <= 1.02


def divergence(out: Path, model: Path, text: Path) -> float:
    found = pb.evaluate(str(out), against=str(model), text=str(text), windows=4).text
    assert found is not None and found.kl_divergence is not None and found.kl_divergence["mean"] is not None
    return found.kl_divergence["mean"]


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_awq_helps_where_channels_differ(models: tuple[Path, Path], tmp_path: Path, method: str) -> None:
    model, text = models
    found = {}
    for name in ((), "awq"):
        out = tmp_path / f"{name}"
        pb.quantize(str(model), to="w3g32", method=method, transform=name, out=str(out), calib=str(text), tokens=2048)
        found[name] = divergence(out, model, text)
    assert found["awq"] < found[()]


def test_a_replay_has_the_same_bytes(llama: tuple[Path, Path], tmp_path: Path, command: Command) -> None:
    model, text = llama
    given = ("--calib", text, "--tokens", 1024)
    options = ("--to", "w4g16a8g16", "--transform", "smoothquant", "--set", "smoothquant.steps=4")
    assert command("quantize", model, *options, *given, "-o", tmp_path / "a").code == 0
    facts = json.loads((tmp_path / "a" / PLAN).read_text())
    assert facts["transforms"] == [{"method": "smoothquant", "params": {"steps": "4"}}]
    assert command("quantize", model, "--plan", tmp_path / "a" / PLAN, *given, "-o", tmp_path / "b").code == 0
    for file in (TENSORS, PLAN):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_awq_clips_with_rtn_only(llama: tuple[Path, Path], tmp_path: Path) -> None:
    model, text = llama
    pb.quantize(str(model), to="w4g32", method="rtn", transform="awq", out=str(tmp_path / "out"), calib=str(text),
                tokens=1024)  # fmt: skip
    layers = Artifact(tmp_path / "out").plan.layers
    assert {name for name, layer in layers.items() if layer.params == {"weighted": True}} == {
        name for name in layers if "embed" not in name
    }


def sharded(text: Path) -> tuple[object, ...]:
    return "--to", "w4", "--shard", "0/1", "--calib", text, "--tokens", 1024


def test_statistics_are_enough_for_what_reads_sums(llama: tuple[Path, Path], tmp_path: Path, command: Command) -> None:
    """--stats: factors and Hessians from sums of the model as it was; those of the folded model are the same."""
    model, text = llama
    assert command("quantize", model, *sharded(text), "-o", tmp_path / "s").code == 0
    used = ("--stats", tmp_path / "s", "-o", tmp_path / "out")
    assert command("quantize", model, "--to", "w3g32", "--transform", "awq", *used).code == 0
    refused = command("quantize", model, "--to", "w8a8", "--transform", "smoothquant", "--overwrite", *used)
    assert refused.code == 2 and "holds sums only" in refused.err and "smoothquant.alpha=0.5" in refused.err
    fixed = ("--set", "smoothquant.alpha=0.5", "--overwrite")
    assert command("quantize", model, "--to", "w8a8s", "--transform", "smoothquant", *fixed, *used).code == 0


def test_statistics_follow_the_factors(llama: tuple[Path, Path], tmp_path: Path, command: Command) -> None:
    model, text = llama
    source, rng = open_model(str(model)), np.random.default_rng(0)
    factors = {}
    for tap in source.arch.taps(0):
        if tap.kind != "norm":
            rows = int(fold.shared(source.arch, tap).max()) + 1
            factors[tap.name] = np.exp(rng.standard_normal(rows)).astype(np.float32)
    assert command("quantize", model, *sharded(text), "-o", tmp_path / "s").code == 0
    before, after = StatsFolder(tmp_path / "s"), fold.FoldedStats(tmp_path / "s", source.arch, factors)
    for tap in source.arch.taps(0):
        old, new = before.tap(tap), after.tap(tap)
        s = torch.ones(tap.width)
        if tap.name in factors:
            s = torch.from_numpy(factors[tap.name])[fold.shared(source.arch, tap)]
        for name in ("absmax", "absmean"):
            assert torch.allclose(getattr(new, name) * s, getattr(old, name), rtol=1e-6)
        assert torch.allclose(new.hessian * s[:, None] * s, old.hessian, rtol=1e-5)


SMOOTH = ("--to", "w8a8", "--transform", "smoothquant", "--set")
REFUSED = {
    "an unknown transform": (("--to", "w4", "--transform", "fold"), "--transform fold is unknown"),
    "two of a kind": (("--to", "w8a8", "--transform", "awq", "--transform", "smoothquant"), "awq and smoothquant"),
    "one twice": (("--to", "w8a8", "--transform", "rotate", "--transform", "rotate"), "rotate and rotate"),
    "smoothing for floats": (("--to", "w8", "--transform", "smoothquant"), "these stay floats"),
    "a transform beside a plan": (("--plan", "p.json", "--transform", "awq"), "--plan already decides"),
    "one beside a wish": (("--fit", "60%", "--transform", "awq"), "--transform"),
    "an exponent beyond": ((*SMOOTH, "smoothquant.alpha=2"), "alpha = 2"),
    "an exponent of words": ((*SMOOTH, "smoothquant.alpha=x"), "alpha = x"),
    "no steps": (("--to", "w4", "--transform", "awq", "--set", "awq.steps=0"), "awq.steps = 0"),
    "a parameter of nobody": (("--to", "w4", "--set", "awq.steps=3"), "no tensor is rounded by awq"),
    "weights for a trellis": (("--to", "w3t", "--method", "rtn", "--set", "rtn.weighted=on"), "not of a trellis"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str, model: Path, text: Path, tmp_path: Path, command: Command) -> None:
    options, said = REFUSED[name]
    done = command("quantize", model, *options, "--calib", text, "--tokens", 512, "-o", tmp_path / "out")
    assert done.code == 2 and said in done.err and "hint:" in done.err
    assert not (tmp_path / "out").exists()


def test_training_refuses_factors(llama: tuple[Path, Path], tmp_path: Path, command: Command) -> None:
    model, text = llama
    plan = ("--to", "w4g16", "--transform", "awq", "--method", "rtn", "--calib", text, "--tokens", 512)
    assert command("quantize", model, *plan, "-o", tmp_path / "out").code == 0
    done = command("train", model, "--plan", tmp_path / "out" / PLAN, "--data", text, "-o", tmp_path / "trained")
    assert done.code == 2 and "has factors" in done.err
