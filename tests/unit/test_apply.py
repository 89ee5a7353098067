"""What a method is handed, and what becomes of what it returns: checkpoint + plan -> artifact."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from checkpoints import tiny_llama_folder
from torch import Tensor

import paretobit as pb
from paretobit.arch.spec import EMBED, HEAD, Arch
from paretobit.artifact import PLAN, TENSORS, Artifact, float_arrays
from paretobit.checkpoint import open_model
from paretobit.checkpoint.base import Checkpoint
from paretobit.compress import calibrate, methods
from paretobit.compress.methods import rtn
from paretobit.errors import ParetobitError
from paretobit.planfile import read_plan
from paretobit.scheme import parse
from tests.commands import Command, contents
from tests.reference import activations, assert_sums, calibration_ids

TOKENS = 10 * 512  # two batches of the calibration loop

SPY = '''"""Rounds to nearest and remembers what it was handed."""
from dataclasses import dataclass
from paretobit.compress.methods import rtn
KIND = "round"
SEEN = []

@dataclass(frozen=True)
class Params:
    cross: bool = False
    lag: bool = False
    strength: float = 1.0

def needs(params):
    return {"hessian", "absmax", "absmean"} | ({"cross"} if params.cross else set()) | (
        {"lag"} if params.lag else set()
    )

def run(w, stats, grid, params):
    copy = lambda x: None if x is None else x.clone()
    numbers = map(copy, (stats.hessian, stats.cross, stats.absmax, stats.absmean, stats.lag))
    SEEN.append((w.clone(), stats.n, stats.paired, *numbers, params))
    return rtn.run(w, None, grid, rtn.Params())
'''

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def spy(tmp_path: Path) -> Iterator[ModuleType]:
    """A method that exists for this test only: one file in the folder of methods."""
    folder = tmp_path / "methods"
    folder.mkdir()
    (folder / "spy.py").write_text(SPY)
    methods.__path__.append(str(folder))
    importlib.invalidate_caches()
    yield importlib.import_module("paretobit.compress.methods.spy")
    methods.__path__.remove(str(folder))
    del sys.modules["paretobit.compress.methods.spy"]
    del methods.spy


class Mixed:
    """Embedding and head of one model, blocks of another: the model half way through sequential rounding."""

    def __init__(self, ends: Checkpoint, blocks: Checkpoint) -> None:
        self.arch: Arch = ends.arch
        self.ends, self.blocks = ends, blocks

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        return (self.blocks if name.startswith("model.layers.") else self.ends).read(name, rows)


def check(spy: ModuleType, source: Checkpoint, here: dict[str, list[Tensor]], full: dict | None, params: dict) -> None:
    """Everything that the spy saw equals sums over the activations `here` (and, for cross, `full`)."""
    arch = source.arch
    taps = [tap for layer in range(arch.layers) for tap in arch.taps(layer)] + ([arch.head_tap] if arch.tied else [])
    assert len(spy.SEEN) == len(taps)
    for tap, (w, n, paired, hessian, cross, absmax, absmean, lag, given) in zip(taps, spy.SEEN, strict=True):
        assert given == spy.Params(**params)
        assert lag is None
        assert torch.equal(w, torch.cat([torch.from_numpy(source.read(name)) for name in tap.consumers])), tap.name
        assert n == TOKENS
        x = here[tap.name]
        assert_sums(hessian, x, x, f"hessian of {tap.name}")
        assert torch.equal(hessian, hessian.T)
        assert torch.equal(absmax, torch.cat(x).abs().amax(0))
        assert_sums(absmean[None], [torch.ones(len(part), 1) for part in x], [part.abs() for part in x], "absmean")
        if full is None or tap.name == "head_in":
            assert cross is None
            continue
        away = [f - y for f, y in zip(full[tap.name], x, strict=False)]  # of the first windows only, where it is so
        assert paired == sum(map(len, away))
        if tap.name != arch.taps(0)[0].name:
            assert_sums(cross, away, x[: len(away)], f"cross of {tap.name}")
        else:
            assert not cross.any()  # nothing is rounded before the first tap


def test_full_precision_statistics_are_those_of_a_plain_forward(
    spy: ModuleType, model: Path, text: Path, tmp_path: Path
) -> None:
    out, source = str(tmp_path / "out"), open_model(model)
    options = {"method": "spy", "set": ("spy.cross=true",), "calib": str(text), "tokens": TOKENS}
    pb.quantize(str(model), to="w2g16", out=out, inputs="full", **options)
    check(spy, source, activations(source, calibration_ids(source, text, TOKENS)), None, {"cross": True})


@pytest.mark.parametrize("cross", [None, TOKENS, 8 * 512], ids=["no cross", "cross", "cross of the first batch"])
def test_sequential_statistics_are_those_of_the_model_rounded_so_far(
    spy: ModuleType, model: Path, text: Path, tmp_path: Path, cross: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a plain forward through the finished artifact every tap sees exactly the weights that were rounded before it,
    those of its own block included. Only the embedding, which is rounded last, is still the original."""
    out, source = str(tmp_path / "out"), open_model(model)
    monkeypatch.setattr(calibrate, "PAIRED_VALUES", source.arch.hidden * (4 * TOKENS if cross == TOKENS else 8 * 512))
    options = {"method": "spy", "set": (f"spy.cross={bool(cross)}",), "calib": str(text), "tokens": TOKENS}
    pb.quantize(str(model), to="w2g16", out=out, **options)
    ids = calibration_ids(source, text, TOKENS)
    rounded, full = activations(Mixed(source, Artifact(Path(out))), ids), activations(source, ids)
    taps = source.arch.taps(0)
    assert torch.equal(rounded[taps[0].name][0], full[taps[0].name][0])
    assert not torch.equal(rounded[taps[1].name][0], full[taps[1].name][0])  # true-sequential, inside the block too
    if cross == 8 * 512:
        full = {tap: batches[:1] for tap, batches in full.items()}
    check(spy, source, rounded, full if cross else None, {"cross": bool(cross)})


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_the_lag_is_of_the_residual_stream_beside_its_writers(
    spy: ModuleType, family: str, text: Path, tmp_path: Path
) -> None:
    """Their tokens count by the inverse of the stream's mean square, and behind a norm of the outputs by theirs too;
    other taps' tokens alike, and they have no lag."""
    model, out = tiny_llama_folder(tmp_path / "model", model_type=family), str(tmp_path / "out")
    source, arch = open_model(str(model)), open_model(str(model)).arch
    options = {"method": "spy", "set": ("spy.lag=true",), "calib": str(text), "tokens": TOKENS}
    pb.quantize(str(model), to="w2g16", out=out, **options)
    ids, ours, theirs = calibration_ids(source, text, TOKENS), {}, {}
    rounded = activations(Mixed(source, Artifact(Path(out))), ids, ours)
    activations(source, ids, theirs)
    norms = {"o_in": "post_attention", "down_in": "post_feedforward"}
    for tap, (w, n, paired, hessian, cross, _, _, lag, _) in zip(
        [tap for layer in range(arch.layers) for tap in arch.taps(layer)], spy.SEEN, strict=False
    ):
        assert n == TOKENS and cross is None
        before, _, kind = tap.name.rpartition(".")
        if kind not in norms:
            assert lag is None and paired == 0
            assert_sums(hessian, rounded[tap.name], rounded[tap.name], f"hessian of {tap.name}")
            continue
        # In front of a norm an error is divided by the outputs' size, and multiplied by the norm's weights.
        size, gain = [torch.ones(1)] * len(rounded[tap.name]), torch.ones(arch.hidden)
        if arch.post_norms:
            size = [((x @ w.T).square().mean(-1, keepdim=True) + arch.norm_eps).sqrt() for x in rounded[tap.name]]
            gain = torch.from_numpy(source.read(f"{before}.{norms[kind]}_layernorm.weight")) + arch.norm_offset
            gain = (gain**2 + 0.1 * (gain**2).mean()) / gain
        stream = [(s.square().mean(-1, keepdim=True) + arch.norm_eps).sqrt() for s in ours[tap.name]]
        x = [y / s / z for y, s, z in zip(rounded[tap.name], stream, size, strict=True)]
        assert paired == TOKENS and lag.shape == (arch.hidden, tap.width)
        assert_sums(hessian, x, x, f"hessian of {tap.name}")
        behind = [(f - o) / s for f, o, s in zip(theirs[tap.name], ours[tap.name], stream, strict=True)]
        if tap.name == arch.taps(0)[1].name:
            assert not lag.any()  # where the first block starts nothing is rounded yet
        else:
            assert_sums(lag * gain[:, None], behind, x, f"lag of {tap.name}")


def test_a_head_of_its_own_is_rounded_with_its_inputs_and_the_lookup_without(
    spy: ModuleType, text: Path, tmp_path: Path
) -> None:
    folder = tiny_llama_folder(tmp_path / "untied", tied=False)
    fit = pb.quantize(str(folder), to="w3g16", method="spy", out=str(tmp_path / "out"), calib=str(text), tokens=TOKENS)
    made, source = Artifact(tmp_path / "out"), open_model(folder)
    assert (made.plan.layers[EMBED].method, made.plan.layers[HEAD].method) == ("rtn", "spy")
    assert f"{EMBED}: rtn instead of spy (no statistics of a lookup to round by)" in fit.notes
    *_, (w, n, _, hessian, *_) = spy.SEEN
    assert len(spy.SEEN) == 9 and n == TOKENS and torch.equal(w, torch.from_numpy(source.read(HEAD)))
    x = activations(Mixed(source, made), calibration_ids(source, text, TOKENS))["head_in"]
    assert_sums(hessian, x, x, "hessian of head_in")


def test_a_method_is_one_file(spy: ModuleType, model: Path, text: Path, tmp_path: Path, command: Command) -> None:
    options = ("--to", "w3g64", "--calib", text, "--tokens", 512)
    done = command("quantize", model, *options, "--method", "spy", "--set", "spy.strength=2.5", "-o", tmp_path / "a")
    assert done.code == 0, done.err
    assert spy.SEEN[0][-1] == spy.Params(strength=2.5)
    assert Artifact(tmp_path / "a").plan.layers[EMBED].params == {"strength": "2.5"}
    wrong = ("quantize", model, *options, "-o", tmp_path / "b")
    assert "choose from gptq, rtn, spy" in command(*wrong, "--method", "spies").error
    missing = command(*wrong, "--method", "spy", "--set", "spy.power=1").error
    assert "spy has no parameter 'power'; hint: it has cross, lag, strength" in missing
    assert "spy.strength = 'much' is not a float" in command(*wrong, "--set", "spy.strength=much").error
    assert not (tmp_path / "b").exists()


SCHEMES = ("w1", "w1.58", "w2", "w3g64", "w4g17", "w5", "w6g16", "w8", "w2g16s", "w3g48", "bf16", "fp16", "fp32", "w4")


def mixed_plan(model: Path, tmp_path: Path) -> Path:
    """A plan by RTN in which neighbours have different schemes, all of SCHEMES in turn."""
    pb.quantize(str(model), to="w8", method="rtn", out=str(tmp_path / "first"))
    facts = json.loads((tmp_path / "first" / PLAN).read_text())
    for i, name in enumerate(facts["layers"]):
        facts["layers"][name]["scheme"] = SCHEMES[i % len(SCHEMES)]
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps(facts))
    return path


@pytest.mark.parametrize("tied", [True, False])
def test_every_tensor_gets_the_scheme_that_its_plan_says(tmp_path: Path, tied: bool) -> None:
    folder = tiny_llama_folder(tmp_path / "model", tied=tied)
    path = mixed_plan(folder, tmp_path)
    pb.quantize(str(folder), plan=str(path), out=str(tmp_path / "out"))
    made, source = Artifact(tmp_path / "out"), open_model(folder)
    plan = read_plan(path.read_text(), "plan")
    assert {str(layer.scheme) for layer in plan.layers.values()} == {str(parse(text)) for text in SCHEMES}
    assert made.plan == plan
    for name in source.names():
        original, found = source.read(name), made.read(name)
        layer = plan.layers.get(name)
        if layer is None or layer.scheme.weight.levels == 0:
            assert np.array_equal(found, original), name  # multiples of 2^-7: every float scheme holds them
        else:
            expected = rtn.run(torch.from_numpy(original), None, layer.scheme.weight, rtn.Params()).dequant()
            assert np.array_equal(found, expected), name
    listed = {t.name: (t.scheme, t.method) for t in pb.inspect_artifact(str(tmp_path / "out")).tensors}
    for name, layer in plan.layers.items():
        assert listed[name] == (str(layer.scheme), "rtn")


def test_gptq_rounds_a_ragged_last_group(model: Path, text: Path, tmp_path: Path) -> None:
    fit = pb.quantize(str(model), to="w3g48", out=str(tmp_path / "out"), calib=str(text), tokens=512)
    made, source = Artifact(Path(fit.path)), open_model(model)
    for name, layer in made.plan.layers.items():
        rows, columns = source.shape(name)
        q = made.qtensor(name)
        assert q.scale.shape == (rows, -(-columns // 48))
        # Every group is used: a scale or a code that belongs to another group would lose most of the signal.
        for start in range(0, columns, 48):
            part = np.s_[:, start : start + 48]
            error, signal = made.read(name)[part] - source.read(name)[part], source.read(name)[part]
            # Uniform steps of 1/7 of a range of about five deviations: an error of 0.7² / 12 = 4 % of the variance, by
            # GPTQ up to twice that; a wrong group's scale or zero point costs more than the whole variance.
            assert (error**2).mean() < 0.15 * (signal**2).mean(), (name, start, layer)


def test_rtn_needs_neither_data_nor_tokenizer(model: Path, tmp_path: Path) -> None:
    bare = tiny_llama_folder(tmp_path / "bare")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        (bare / file).unlink()
    pb.quantize(str(bare), to="w3g64", method="rtn", out=str(tmp_path / "a"))
    assert Artifact(tmp_path / "a").manifest["calibration"] == {"source": "none"}
    assert not (tmp_path / "cache").exists()  # the model wrote no text
    pb.quantize(str(model), to="w3g64", method="rtn", out=str(tmp_path / "b"))
    assert (tmp_path / "a" / TENSORS).read_bytes() == (tmp_path / "b" / TENSORS).read_bytes()


def test_a_replayed_plan_gives_the_same_bytes(model: Path, text: Path, tmp_path: Path) -> None:
    calibration = {"calib": str(text), "tokens": 1024}
    pb.quantize(str(model), to="w3g64", out=str(tmp_path / "a"), set=("gptq.damp=0.05",), **calibration)
    plan = str(tmp_path / "a" / PLAN)
    pb.quantize(str(model), plan=plan, out=str(tmp_path / "b"), **calibration)
    first, second = contents(tmp_path / "a"), contents(tmp_path / "b")
    for name in (TENSORS, PLAN, "config.json", "tokenizer.json"):
        assert first[name] == second[name]
    pb.quantize(str(model), to="w3g64", out=str(tmp_path / "c"), **calibration)
    assert contents(tmp_path / "c")[TENSORS] != first[TENSORS]  # damp does matter


def test_the_outputs_path_never_enters_the_bytes(model: Path, text: Path, tmp_path: Path) -> None:
    places = [tmp_path / "a", tmp_path / "some" / "where" / "else with spaces"]
    for out in places:
        pb.quantize(str(model), to="w3g64", out=str(out), calib=str(text), tokens=1024)
    assert contents(places[0]) == contents(places[1])


def test_a_weight_that_is_not_finite_is_named_and_leaves_no_output(text: Path, tmp_path: Path) -> None:
    folder = tiny_llama_folder(tmp_path / "model")
    name, raw = "model.layers.1.mlp.up_proj.weight", (folder / "model.safetensors").read_bytes()
    info = pb.open_model(folder)._where[name][0]
    at = info.data_start + info.tensors[name].start
    (folder / "model.safetensors").write_bytes(raw[:at] + np.float32("nan").tobytes() + raw[at + 4 :])
    for method in ("rtn", "gptq"):
        with pytest.raises(ParetobitError, match=f"{name} holds values that are not finite.*hint:"):
            pb.quantize(str(folder), to="w3g64", method=method, out=str(tmp_path / method), calib=str(text), tokens=512)
        assert not (tmp_path / method).exists()


def test_float_schemes_round_as_ieee_says_and_refuse_what_does_not_fit() -> None:
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32) * 1e3
    kind, words = float_arrays(values, parse("bf16"))
    assert kind == "BF16"
    assert np.array_equal(words.view(np.int16), torch.from_numpy(values).bfloat16().view(torch.int16).numpy())
    kind, halves = float_arrays(values, parse("fp16"))
    assert kind == "F16" and np.array_equal(halves, values.astype(np.float16))
    kind, same = float_arrays(values, parse("fp32"))
    assert kind == "F32" and np.array_equal(same, values)
    assert float_arrays(values, None)[0] == "F32"
    short = torch.from_numpy(values).bfloat16().float().numpy()
    kind, words = float_arrays(short, None)
    assert kind == "BF16" and np.array_equal(torch.from_numpy(short).bfloat16().view(torch.int16), words.view(np.int16))
    with pytest.raises(ParetobitError, match="70000 do not fit fp16.*hint: store them as fp32"):
        float_arrays(np.float32([1, -70000]), parse("fp16"))
    with pytest.raises(ParetobitError, match="do not fit bf16.*hint:"):
        float_arrays(np.float32([np.finfo(np.float32).max]), parse("bf16"))
