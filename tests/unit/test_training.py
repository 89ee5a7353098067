"""The model in training: what it starts from, what it computes with, its gradients, its order, and its way back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checkpoints import tiny_llama_folder

import paretobit as pb
from paretobit.arch.spec import EMBED, HEAD
from paretobit.artifact import TRAINING
from paretobit.checkpoint import Checkpoint, open_model
from paretobit.compress import apply
from paretobit.compress.apply import Job
from paretobit.compress.blockwise import Blockwise, relative_error
from paretobit.compress.distill import as_original, as_text, one_step
from paretobit.compress.learner import RANGE, Learner
from paretobit.compress.model import Decoder
from paretobit.compress.train import STATE, Recipe, Training
from paretobit.compress.trainable import Trainable, prepare, save_quantized, trained
from paretobit.compress.units import Units
from paretobit.compress.world import World
from paretobit.errors import ParetobitError
from paretobit.planfile import Plan, uniform
from paretobit.work import Work

BLOCK = "model.layers.0.mlp.up_proj.weight"
WIDTHS = ("w1", "w1.58", "w2", "w3", "w4", "w2g32s", "w2t", "w3t")


def rounding(source: Checkpoint, to: str, method: str) -> Plan:
    return uniform(source.arch, source.hash, to, None, (method,) * 3, {})


def plan_of(source: Checkpoint, to: str) -> Plan:
    return trained(rounding(source, to, "rtn"), {})


def ids_of(source: Checkpoint, windows: int, tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, source.arch.vocab, (windows, tokens)))


@pytest.mark.parametrize("to", WIDTHS)
@pytest.mark.parametrize("method", ["rtn", "best"])
def test_it_starts_as_it_was_rounded(model: Path, tmp_path: Path, to: str, method: str) -> None:
    source = open_model(model)
    on_trellis = to.endswith("t")
    plan = rounding(source, to, method if method == "rtn" else "trellis" if on_trellis else "gptq")
    ids = ids_of(source, 4, 32).numpy()
    with Work(tmp_path / "out", "model", {}).open(False) as work:
        rounded = Units(source, plan, apply.run(Job(source, plan, ids, recover=False), work))
        learner = Learner(source, plan_of(source, to), rounded, "cpu")
        for name in learner.grids:
            assert torch.equal(learner.value(name), rounded.tensor(name)), name
            latent, original = learner.parameters[name].detach(), torch.from_numpy(source.read(name))
            nearer = (latent - original).square().sum() < (rounded.tensor(name) - original).square().sum()
            assert on_trellis or nearer, name


@pytest.mark.parametrize("to", ["w1", "w2", "w4"])
def test_no_step_moves_many_codes(model: Path, tmp_path: Path, to: str) -> None:
    """GPTQ leaves many weights on a level that is not their nearest. Were the latent ones at the edge towards it, a
    step of any size would take them all across at once."""
    source, plan = open_model(model), rounding(open_model(model), to, "gptq")
    ids = ids_of(source, 4, 32).numpy()
    with Work(tmp_path / "out", "model", {}).open(False) as work:
        rounded = Units(source, plan, apply.run(Job(source, plan, ids, recover=False), work))
        recipe = Recipe(20, None, rate=1e-3)
        run = Training(source, plan_of(source, to), ids, rounded, work, recipe, "cpu", World())
        before = {name: run.learner.packed(name).codes for name in run.learner.grids}
        run.advance()
        moved = [float((run.learner.packed(name).codes != codes).mean()) for name, codes in before.items()]
    assert max(moved) < 0.01


def test_tensors_move_in_proportion_to_their_size(model: Path, tmp_path: Path) -> None:
    run = training(model, tmp_path, Recipe(9, None), "w4")
    shares, named = run._shares(), run.learner.parameters
    matrices = list(run.learner.grids)
    weights = [named[name].numel() for name in matrices]
    assert np.average([shares[name] for name in matrices], weights=weights) == pytest.approx(1)
    for name in matrices:
        size = named[name].detach().abs().mean() / shares[name]
        assert size == pytest.approx(float(named[EMBED].detach().abs().mean()) / shares[EMBED], rel=1e-4)
        assert shares[name + RANGE] < shares[name]  # a step of sixteen levels is smaller than the weights
    assert all(share == 3 for name, share in shares.items() if name.endswith("norm.weight"))  # ones, beside 0.02


@pytest.mark.parametrize(("loss", "share"), [("original", 1 / 16), ("text", 1.0)])
def test_a_finer_trellis_moves_less_where_there_is_an_original(
    model: Path, tmp_path: Path, loss: str, share: float
) -> None:
    run = training(model, tmp_path, Recipe(9, None, loss=loss), "w2t")
    assert run.learner.grids[EMBED].bits == 4
    usual = {name: run.learner.parameters[name].detach().abs().mean() / run._shares()[name] for name in (EMBED, BLOCK)}
    assert usual[BLOCK] / usual[EMBED] == pytest.approx(share, rel=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("to", "loss"), [("w2", "original"), ("w2", "text"), ("w2t", "original")])
def test_gradients_are_those_of_one_graph(tmp_path: Path, kind: str, tied: bool, to: str, loss: str) -> None:
    """Block by block, and the head a piece at a time, against autograd through everything at once, in double
    precision's stead with float32 sums in another order."""
    source = open_model(tiny_llama_folder(tmp_path / "m", model_type=kind, tied=tied))
    plan, ids = plan_of(source, to), ids_of(source, 3, 24)
    learner, teacher = Learner(source, plan, None, "cpu"), Decoder(source)
    found = 0.0
    with learner.ends():
        for part in ids.split(2):
            target = as_original(teacher, part) if loss == "original" else as_text(part)
            found += len(part) / 3 * one_step(learner, target, part, len(part) / 3)
    whole = Trainable(source, plan)
    logits = whole(ids)
    q = F.log_softmax(logits, -1)
    if loss == "original":
        p = F.log_softmax(torch.from_numpy(teacher.logits(ids.numpy())), -1)
        expected = (p.exp() * (p - q)).sum(-1).mean()
    else:
        expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    expected.backward()
    assert found == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, value in learner.parameters.items():
        theirs = whole.learner.parameters[name].grad
        assert (value.grad is None) == (theirs is None), name
        if theirs is not None:
            assert torch.allclose(value.grad, theirs, rtol=1e-3, atol=2e-4 * float(theirs.abs().max()) + 1e-9), name
    assert any(
        value.grad is not None and value.grad.any() for name, value in learner.parameters.items() if RANGE in name
    )


@pytest.mark.parametrize("to", [*WIDTHS, "bf16", "fp16", "fp32"])
def test_what_is_packed_is_what_was_trained(model: Path, tmp_path: Path, to: str) -> None:
    trainable = prepare(str(model), to)
    optimizer = torch.optim.AdamW(trainable.parameters(), lr=3e-3)
    ids = ids_of(trainable.source, 2, 32)
    losses = []
    for _ in range(4):
        loss = F.cross_entropy(trainable(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trainable.refresh()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    packed = save_quantized(trainable, str(tmp_path / "out"))
    for name in packed.arch.shapes():
        assert np.array_equal(packed.read(name), trainable.learner.value(name).detach().numpy()), name
    with torch.no_grad():
        assert torch.allclose(trainable(ids), torch.from_numpy(Decoder(packed).logits(ids.numpy())), atol=1e-5)


def training(
    model: Path, folder: Path, recipe: Recipe, to: str = "w2", windows: int = 6, world: World | None = None
) -> Training:
    source = open_model(model)
    ids = ids_of(source, windows, 32).numpy()
    work = Work(folder / "out", "model", {})
    work.folder.mkdir(parents=True, exist_ok=True)
    return Training(source, plan_of(source, to), ids, None, work, recipe, "cpu", world or World())


def state_of(run: Training) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in run.learner.parameters.items()}


@pytest.mark.parametrize("to", ["w2", "w2t"])
def test_killed_and_resumed_equals_uninterrupted(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    recipe = Recipe(60, None, batch=4, at_once=3, rate=1e-3)
    whole = training(model, tmp_path / "whole", recipe, to)
    (file,) = whole.run()
    for folder, stop in (("a", 7), ("b", 27), ("c", 59)):
        run = training(model, tmp_path / folder, replace(recipe, save_seconds=0.0), to)
        advance = run.advance

        def until(run: Training = run, stop: int = stop, advance: Any = advance) -> float:
            if run.step == stop:
                raise KeyboardInterrupt
            return float(advance())

        monkeypatch.setattr(run, "advance", until)
        with pytest.raises(KeyboardInterrupt):
            run.run()
        again = training(model, tmp_path / folder, recipe, to)
        assert [part.read_bytes() for part in again.run()] == [file.read_bytes()]
        for name, value in state_of(whole).items():
            assert torch.equal(value, again.learner.parameters[name]), name
        assert again.work.path(TRAINING).read_text() == whole.work.path(TRAINING).read_text()


def test_every_window_is_seen_once_an_epoch(model: Path, tmp_path: Path) -> None:
    run = training(model, tmp_path, Recipe(9, None, batch=2), windows=6)
    seen = []
    for run.step in range(9):
        seen += [tuple(row) for row in run.batch().tolist()]
    everything = sorted(tuple(row) for row in run.windows.tolist())
    epochs = [seen[i : i + 6] for i in range(0, 18, 6)]
    assert [sorted(epoch) for epoch in epochs] == [everything] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_rate_falls_to_nothing(model: Path, tmp_path: Path) -> None:
    run = training(model, tmp_path, Recipe(100, None, rate=1.0, warmup=0.1))
    rates = []
    for run.step in range(100):
        rates.append(run.rate())
    assert rates[0] < 0.1 and max(rates) > 0.95 and rates[-1] < 0.001
    assert rates[12:] == sorted(rates[12:], reverse=True)
    run.recipe = Recipe(None, 50.0, rate=1.0)
    rates = []
    for run.elapsed in (0.0, 25.0, 50.0, 60.0):
        rates.append((run.way(), round(run.rate(), 9)))
    assert rates == [(0.0, 1.0), (0.5, 0.5), (1.0, 0.0), (1.0, 0.0)]


def test_what_is_not_finite_stops_it_and_the_state_before_is_kept(model: Path, tmp_path: Path) -> None:
    run = training(model, tmp_path, Recipe(50, None, rate=1e-3))
    for _ in range(3):
        run.advance()
    before, name = state_of(run), "model.layers.1.mlp.up_proj.weight"
    value = run.learner.value

    def spoiled(asked: str) -> torch.Tensor:
        return value(asked) * (float("nan") if asked == name else 1.0)

    run.learner.value = spoiled  # type: ignore[method-assign]
    with pytest.raises(ParetobitError, match="failed at step 4: .* is not finite") as why:
        run.advance()
    assert "model." in why.value.message
    for kept, tensor in before.items():
        assert torch.equal(tensor, run.learner.parameters[kept])
    again = training(model, tmp_path, Recipe(50, None, rate=1e-3))
    again._resume()
    assert again.step == 3 and again.shards.read(STATE) is not None
    assert all(torch.equal(before[n], again.learner.parameters[n]) for n in before)


def test_it_watches_the_codes(model: Path, tmp_path: Path) -> None:
    run = training(model, tmp_path, Recipe(30, None, rate=3e-3), to="w1.58")
    first = {name: run.learner.packed(name).codes for name in run.learner.grids}
    run.run()
    rows = [json.loads(line) for line in run.work.path(TRAINING).read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 30 and np.mean(losses[-5:]) < losses[0]
    looks = [row for row in rows if row.get("scheme") == "w1.58"]
    assert [row["step"] for row in looks] == [0, 25, 30]
    assert "changed" not in looks[0] and [row["over_steps"] for row in looks] == [0, 25, 5]
    names = [n for n in run.learner.grids if n not in (EMBED, HEAD)]
    after = np.concatenate([run.learner.packed(n).codes.ravel() for n in names])
    assert looks[-1]["levels"] == pytest.approx([(after == level).mean() for level in range(3)])
    changed = (after != np.concatenate([first[n].ravel() for n in names])).mean()
    assert 0 < changed <= looks[1]["changed"] + looks[2]["changed"] + 1e-9
    assert looks[0]["range_drift"] == 0 < looks[-1]["range_drift"]


def test_bf16_products_learn_the_same(model: Path, tmp_path: Path) -> None:
    found = []
    for half in (False, True):
        run = training(model, tmp_path / str(half), Recipe(10, None, rate=1e-3, half=half))
        found.append([run.advance() for _ in range(10)])
    exact, halved = map(np.array, found)
    assert not np.array_equal(exact, halved)
    assert np.abs(halved / exact - 1).max() < 0.03 and exact[-1] < exact[0]


def blocks_first(model: Path, folder: Path, to: str, **how: Any) -> Training:
    return training(model, folder, Recipe(8, None, rate=2e-3, blocks=4, **how), to)


@pytest.mark.parametrize("to", ["w2", "w2t"])
@pytest.mark.parametrize("half", [False, True])
def test_blocks_come_nearer_to_the_original_s_one_by_one(model: Path, tmp_path: Path, to: str, half: bool) -> None:
    run = blocks_first(model, tmp_path, to, half=half)
    before, source = state_of(run), open_model(model)
    run._blocks()
    rows = [json.loads(line) for line in run.work.path(TRAINING).read_text().splitlines()]
    assert [row["block"] for row in rows] == list(range(source.arch.layers))
    assert all(row["error_after"] < row["error_before"] for row in rows)
    for name, value in run.learner.parameters.items():  # embedding, head and last norm are nobody's block
        assert torch.equal(value, before[name]) == (not name.startswith("model.layers.")), name
    assert run.spent > 0


@pytest.mark.parametrize("to", ["w2", "w2t"])
def test_killed_between_blocks_it_goes_on(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    whole = blocks_first(model, tmp_path / "whole", to)
    (file,) = whole.run()
    train_block, trained_blocks = Blockwise._block, []

    def killed(self: Blockwise, layer: int, *rest: Any) -> Any:
        trained_blocks.append(layer)
        if trained_blocks == [0, 1]:
            raise KeyboardInterrupt
        return train_block(self, layer, *rest)

    monkeypatch.setattr(Blockwise, "_block", killed)
    with pytest.raises(KeyboardInterrupt):
        blocks_first(model, tmp_path / "killed", to).run()
    again = blocks_first(model, tmp_path / "killed", to)
    assert [part.read_bytes() for part in again.run()] == [file.read_bytes()]
    assert trained_blocks == [0, 1, *range(1, whole.source.arch.layers)]
    assert again.work.path(TRAINING).read_text() == whole.work.path(TRAINING).read_text()


def test_a_block_s_error_counts_tokens_alike() -> None:
    """A state a thousand times as large, off by as large a share, is as wrong."""
    wanted = torch.tensor([[1.0, 0.0], [0.0, 1000.0]])
    assert float(relative_error(wanted * 1.1, wanted)) == pytest.approx(0.01, rel=1e-4)
    assert float(relative_error(wanted + torch.tensor([[0.1, 0.0], [0.0, 0.0]]), wanted)) == pytest.approx(0.005)


def test_a_block_that_diverges_is_named(model: Path, tmp_path: Path) -> None:
    run = blocks_first(model, tmp_path, "w2")
    value, name = run.learner.value, "model.layers.1.mlp.up_proj.weight"
    run.learner.value = lambda asked: value(asked) * (float("nan") if asked == name else 1.0)  # type: ignore[method-assign]
    with pytest.raises(ParetobitError, match="training block 1 by itself failed at step 1.*hint: .*--blocks"):
        run.run()


def test_public_names() -> None:
    assert pb.prepare is prepare and pb.save_quantized is save_quantized
    assert callable(pb.train)


def test_a_bad_module_is_not_saved(model: Path, tmp_path: Path) -> None:
    trainable = prepare(str(model), "w2")
    with torch.no_grad():
        trainable.learner.parameters[EMBED][0, 0] = float("inf")
    with pytest.raises(ParetobitError, match=f"{EMBED} is not finite"):
        save_quantized(trainable, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ParetobitError, match="cannot be trained on w4g64; hint: train it on w4g64s"):
        prepare(str(model), "w4g64")
