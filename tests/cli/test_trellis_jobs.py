"""quantize onto the trellis, and everything that can be done with the result, on a tiny model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import paretobit as pb
from paretobit.arch.spec import EMBED, FINAL_NORM
from paretobit.artifact import Artifact
from paretobit.checkpoint import open_model
from paretobit.compress import backward, calibrate, guide, recover
from paretobit.compress.distill import as_original
from paretobit.compress.model import Decoder
from paretobit.compress.world import World
from paretobit.errors import ParetobitError
from paretobit.planfile import uniform
from paretobit.runtime.session import Session
from paretobit.scheme import parse
from tests.commands import Command, contents

TOKENS = 1024


def made(model: Path, text: Path, out: Path, to: str = "w2t", **options: object) -> Artifact:
    pb.quantize(str(model), to=to, out=str(out), calib=str(text), tokens=TOKENS, **options)
    return Artifact(out)


@pytest.fixture(scope="module")
def packed(model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """w2t, recovered. Read only."""
    out = tmp_path_factory.mktemp("trellis") / "w2t"
    made(model, text, out)
    return out


def test_one_word_is_enough(packed: Path, command: Command) -> None:
    found = json.loads(command("inspect", packed, "--json").out)
    schemes = {tensor["name"]: (tensor["scheme"], tensor["method"]) for tensor in found["tensors"]}
    assert schemes[EMBED] == ("w4t", "trellis")
    matrices = {scheme for name, scheme in schemes.items() if name.endswith("_proj.weight")}
    assert matrices == {("w2t", "trellis")}
    assert command("run", packed, "The town", "-n", 4).code == 0


def check_runtimes_agree(source: Artifact) -> None:
    """The native cache keeps keys and values in fp16, rounded at 2^-11; all else is float32 in another order."""
    ids = np.random.default_rng(0).integers(0, source.arch.vocab, (2, 40))
    theirs = Decoder(source).logits(ids)
    ours = Session(source, activations="fp32").logits(ids)
    assert np.abs(ours - theirs).max() < 4 * 2**-11 * np.abs(theirs).max()


@pytest.mark.parametrize("scheme", ["w1t", "w2t", "w3t", "w4t", "w2t4"])
def test_native_and_torch_agree(model: Path, text: Path, tmp_path: Path, quick: None, scheme: str) -> None:
    check_runtimes_agree(made(model, text, tmp_path / "out", scheme, recover=False))


def test_a_mixture_goes_through_a_plan(packed: Path, model: Path, text: Path, tmp_path: Path, quick: None) -> None:
    plan = json.loads((packed / "plan.json").read_text())
    for name, layer in plan["layers"].items():
        if "down_proj" in name:
            layer["scheme"] = "w3t"
        if "v_proj" in name:
            layer["scheme"], layer["method"] = "w4g64", "gptq"
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    pb.quantize(str(model), plan=str(tmp_path / "plan.json"), out=str(tmp_path / "out"), calib=str(text), tokens=TOKENS)
    mixed = Artifact(tmp_path / "out")
    assert {str(scheme) for scheme in mixed.schemes.values()} >= {"w2t", "w3t", "w4t", "w4g64"}
    check_runtimes_agree(mixed)


def test_recovery_lowers_the_divergence(packed: Path, model: Path, text: Path, tmp_path: Path, quick: None) -> None:
    """On the very text it was trained on, which says only that the gradients point down."""
    plain = made(model, text, tmp_path / "plain", recover=False)
    assert all(
        Artifact(packed).qtensor(n).codes.tobytes() == plain.qtensor(n).codes.tobytes() for n in plain.plan.layers
    )
    with_it, without = (
        pb.evaluate(str(folder), against=str(model), text=str(text), windows=2).to_json()["kl_divergence"]["mean"]
        for folder in (packed, tmp_path / "plain")
    )
    assert with_it < without


def test_gradients_are_those_of_the_whole_model(model: Path, text: Path, tmp_path: Path, quick: None) -> None:
    """Factors' gradients, block by block and with all graphs kept, against autograd through everything at once."""
    source = open_model(str(model))
    packed = made(model, text, tmp_path / "out", "w2t", recover=False)
    student = recover.Student(source, packed.plan, [tmp_path / "out" / "model.safetensors"], "cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for delta in student.deltas.values():
            delta.copy_(0.1 * torch.randn(delta.shape, generator=generator))
    ids = torch.arange(24).reshape(2, 12) % source.arch.vocab
    target, ways = as_original(Decoder(source), ids), []
    for whole in (False, True):
        loss = recover.one_step(student, target, ids, 1.0, whole)
        ways.append((loss, {name: delta.grad.clone() for name, delta in student.deltas.items()}))
        for delta in student.deltas.values():
            delta.grad = None
    found = ways[0][1]
    assert ways[0][0] == ways[1][0] and all(torch.equal(found[name], ways[1][1][name]) for name in found)
    x = student.embed(ids)
    decoder = student.decoder
    with decoder.watched(student.watch):
        for layer in range(source.arch.layers):
            x = backward.finish(decoder.block(layer, student.weights(layer), x))
    logits = decoder.normed(x, student.norm(FINAL_NORM)) @ student.rounded(EMBED).T * (1 + student.deltas[EMBED])
    p = torch.from_numpy(Decoder(source).logits(ids.numpy())).log_softmax(-1)
    expected = (p.exp() * (p - logits.log_softmax(-1))).sum(-1).mean()
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-4)
    for name, delta in student.deltas.items():
        assert (found[name] - delta.grad).norm() <= 1e-3 * delta.grad.norm() + 1e-7, name


def test_the_guide_is_the_squared_gradient(model: Path, text: Path, quick: None) -> None:
    """Token weights against autograd through the whole model, for targets drawn by the same generator."""
    source = open_model(str(model))
    decoder, ids = Decoder(source), np.arange(30).reshape(2, 15) % source.arch.vocab
    found = guide.measure(decoder, ids, World(), lambda n: None)
    name, outputs = "model.layers.0.mlp.down_proj.weight", []

    def keep(matrix: str, y: torch.Tensor) -> torch.Tensor:
        if matrix == name:
            y.retain_grad()
            outputs.append(y)
        return y

    x = decoder.embed(torch.from_numpy(ids)).requires_grad_()
    with decoder.watched(keep):
        for layer in range(source.arch.layers):
            x = backward.finish(decoder.block(layer, decoder.weights(layer), x))
    logits = decoder.head(x).flatten(0, 1)
    drawn = guide.sample(logits.detach(), 1.0, torch.Generator().manual_seed(0))
    torch.nn.functional.cross_entropy(logits, drawn, reduction="sum").backward()
    squares = outputs[0].grad.square()
    tokens = squares.sum(-1)
    torch.testing.assert_close(found.tokens["model.layers.0.down_in"], tokens / tokens.mean(), rtol=1e-3, atol=1e-5)
    rows = (squares / tokens[..., None]).sum((0, 1))
    torch.testing.assert_close(found.rows[name], rows / rows.mean(), rtol=1e-3, atol=1e-5)


def test_an_interrupted_recovery_goes_on(
    packed: Path, model: Path, text: Path, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, calls = recover.one_step, []

    def interrupted(*given: object) -> float:
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return step(*given)

    monkeypatch.setattr(recover, "SAVE_SECONDS", -1)
    monkeypatch.setattr(recover, "one_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made(model, text, tmp_path / "out")
    made(model, text, tmp_path / "out")
    steps = recover.Recipe().epochs * (TOKENS // 512) // recover.Recipe().batch
    assert len(calls) == 1 + steps  # one was interrupted, none was done twice
    assert contents(tmp_path / "out")["model.safetensors"] == contents(packed)["model.safetensors"]


@pytest.mark.parametrize("free", [0, 1 << 40])
def test_where_memory_is_short_recovery_computes_again(
    packed: Path, model: Path, text: Path, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    """To the same bytes; where it is not, every window meets the original once, and every block is computed once."""
    calls: list[bool] = []
    hidden, step = Decoder.hidden, recover.one_step
    monkeypatch.setattr(recover, "memory_free", lambda device: free)
    monkeypatch.setattr(Decoder, "hidden", lambda self, ids: (calls.append(free > 0), hidden(self, ids))[1])
    monkeypatch.setattr(recover, "one_step", lambda *given: (calls.append(given[-1]), step(*given))[1])
    made(model, text, tmp_path / "out")
    windows, epochs = TOKENS // 512, recover.Recipe().epochs
    steps = windows * epochs // recover.Recipe().batch
    assert calls.count(free > 0) == len(calls) == steps + windows * (1 if free else epochs)
    assert contents(tmp_path / "out")["model.safetensors"] == contents(packed)["model.safetensors"]


def test_an_interrupted_job_measures_the_guide_once(
    model: Path, text: Path, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"set": ("trellis.guided=on",), "recover": False}
    whole = made(model, text, tmp_path / "whole", **options)
    plain = made(model, text, tmp_path / "plain", recover=False)
    assert whole.qtensor(EMBED).codes.tobytes() != plain.qtensor(EMBED).codes.tobytes()
    save = calibrate.save

    def dies(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(calibrate, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        made(model, text, tmp_path / "out", **options)
    monkeypatch.setattr(calibrate, "save", save)
    monkeypatch.setattr(guide, "measure", dies)
    made(model, text, tmp_path / "out", **options)
    assert contents(tmp_path / "out")["model.safetensors"] == contents(tmp_path / "whole")["model.safetensors"]


def test_all_blocks_of_a_mixture_are_recovered_alike(packed: Path, model: Path) -> None:
    source, plan = open_model(str(model)), Artifact(packed).plan
    norm, down = "model.norm.weight", "model.layers.1.mlp.down_proj.weight"
    for bits, scheme in ((2, "w2t"), (4, "w4t")):
        student = recover.Student(
            source, uniform(source.arch, source.hash, scheme, "w3t", ("trellis",) * 3, {}), [], "cpu"
        )
        assert student.share(norm) == student.share(down) == 4 ** (2 - bits) and student.share(EMBED) == 1 / 4
    layers = {n: replace(at, scheme=parse("w4t" if n == down else "w2t")) for n, at in plan.layers.items()}
    student = recover.Student(source, replace(plan, layers=layers), [packed / "model.safetensors"], "cpu")
    assert 1 / 16 < student.share(norm) == student.share(down) < 1 == student.share(EMBED)


def test_an_embedding_in_16_bits_keeps_its_basis(model: Path, text: Path, tmp_path: Path, quick: None) -> None:
    source = made(model, text, tmp_path / "out", embed="fp16")
    assert source.rotation(EMBED) is None and source.rotation("model.layers.0.mlp.up_proj.weight") is not None
    assert np.array_equal(source.read(EMBED), open_model(str(model)).read(EMBED).astype(np.float16).astype(np.float32))
    check_runtimes_agree(source)


def test_recovery_that_diverges_says_so(
    model: Path, text: Path, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recover, "one_step", lambda *given: float("nan"))
    with pytest.raises(ParetobitError, match="recovery diverged at step 0; hint: leave it out with --no-recover"):
        made(model, text, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", [None, "trellis"])
def test_an_embedding_above_the_widest_trellis_turns_along(
    model: Path, text: Path, tmp_path: Path, quick: None, method: str | None
) -> None:
    fit = pb.quantize(str(model), to="w4t", method=method, out=str(tmp_path / "out"), calib=str(text), tokens=TOKENS)
    source = Artifact(tmp_path / "out")
    embedding = source.plan.layers[EMBED]
    assert (str(embedding.scheme), embedding.method) == ("w5", "gptq") and source.rotation(EMBED) is not None
    assert len(fit.notes) == 1 and fit.notes[0].startswith(f"{EMBED}: w5 instead of w4t")


def test_methods_that_cannot_are_refused(model: Path, tmp_path: Path, command: Command) -> None:
    done = command("quantize", model, "--to", "w4t", "--method", "gptq", "-o", tmp_path / "out")
    assert done.code == 2 and "gptq cannot round onto w4t; hint: use trellis" in done.error
    done = command(
        "quantize", model, "--to", "w4g64", "--embed", "w4g64", "--method", "trellis", "-o", tmp_path / "out"
    )
    assert done.code == 2 and "trellis cannot round onto w4g64; hint: use gptq" in done.error


@pytest.mark.parametrize(
    "given", ["damp=-1", "gain=0", "refits=-1", "block=0", "block=129", "asymmetric=nan", "residual=-1"]
)
def test_parameters_without_a_meaning_are_refused(model: Path, tmp_path: Path, command: Command, given: str) -> None:
    done = command("quantize", model, "--to", "w2t", "--set", f"trellis.{given}", "-o", tmp_path / "out")
    assert done.code == 2 and "is out of range; hint: give" in done.error


def test_an_untied_embedding_is_rounded_without_statistics(tmp_path: Path, text: Path, quick: None) -> None:
    from checkpoints import tiny_llama_folder

    untied = tiny_llama_folder(tmp_path / "untied", tied=False)
    source = made(untied, text, tmp_path / "out", recover=False)
    assert str(source.schemes[EMBED]) == "w4t"
    original = open_model(str(untied)).read(EMBED)
    assert ((source.read(EMBED) - original) ** 2).mean() < 0.02 * (original**2).mean()
    check_runtimes_agree(source)


@pytest.mark.parametrize(("method", "scheme"), [("gptq", "w4g16"), ("trellis", "w4t")])
def test_a_plan_that_rounds_a_lookup_by_statistics_is_refused(
    tmp_path: Path, command: Command, method: str, scheme: str
) -> None:
    from checkpoints import tiny_llama_folder

    untied = tiny_llama_folder(tmp_path / "untied", tied=False)
    source = open_model(str(untied))
    plan = uniform(source.arch, source.hash, "w4g16", scheme, ("rtn", method, "rtn"), {})
    (tmp_path / "plan.json").write_text(plan.to_json())
    done = command("quantize", untied, "--plan", tmp_path / "plan.json", "-o", tmp_path / "out")
    assert done.code == 2 and f"{method} rounds by what is multiplied, and {EMBED}, which is" in done.error
    assert done.error.rstrip().endswith("hint: round it by rtn")


def test_any_scheme_can_be_recovered(model: Path, text: Path, tmp_path: Path, quick: None) -> None:
    plain = made(model, text, tmp_path / "plain", "w3g16", method="rtn")
    trained = made(model, text, tmp_path / "trained", "w3g16", method="rtn", recover=True)
    assert plain.manifest["calibration"]["source"] == "none" != trained.manifest["calibration"]["source"]
    name = "model.layers.0.self_attn.q_proj.weight"
    assert np.array_equal(plain.qtensor(name).codes, trained.qtensor(name).codes)
    assert not np.array_equal(plain.qtensor(name).scale, trained.qtensor(name).scale)
    check_runtimes_agree(trained)


def test_statistics_alone_cannot_recover(model: Path, text: Path, tmp_path: Path, command: Command) -> None:
    shard = ("--to", "w2t", "--calib", text, "--tokens", TOKENS, "--shard", "0/1", "-o", tmp_path / "stats")
    assert command("quantize", model, *shard).code == 0
    done = command("quantize", model, "--to", "w2t", "--stats", tmp_path / "stats", "--recover", "-o", tmp_path / "out")
    assert done.code == 2 and "--recover needs text" in done.error
    stats = ("--to", "w2t", "--stats", tmp_path / "stats", "-o", tmp_path / "out")
    assert "guided rounding needs text" in command("quantize", model, *stats, "--set", "trellis.guided=on").error
    assert command("quantize", model, *stats).code == 0
    assert "nothing is recovered" in command("quantize", model, *shard, "--no-recover").error


def test_trellis_needs_its_own_grid() -> None:
    from paretobit.compress.methods import trellis
    from paretobit.scheme import parse

    with pytest.raises(ParetobitError, match="not 'affine'; hint: "):
        trellis.run(torch.zeros(64, 8), None, parse("w3g64").weight, trellis.Params())
