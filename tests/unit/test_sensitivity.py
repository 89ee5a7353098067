"""The bank, what its tensors cost, and whether costs add up to the divergence that a mixture of them has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checkpoints import tiny_llama_folder
from torch import Tensor

from paretobit import costs
from paretobit.arch.spec import EMBED, HEAD
from paretobit.checkpoint import open_model
from paretobit.checkpoint.base import Checkpoint
from paretobit.compress import bank, sensitivity
from paretobit.compress.corpus import Corpus
from paretobit.compress.model import Decoder
from paretobit.compress.units import Units
from paretobit.errors import ParetobitError
from paretobit.planfile import matrices
from paretobit.work import Work

SCHEMES = ("w2t", "w4t", "w6", "w8")
WINDOWS = np.random.default_rng(0).integers(3, 300, (6, 64)).astype(np.int64)

Made = tuple[Checkpoint, dict[str, Units], Path]


@pytest.fixture(scope="module", params=["llama", "gemma3_text", "untied"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("model")
    kind = "llama" if request.param == "untied" else request.param
    source = open_model(str(tiny_llama_folder(folder / "tiny", tied=request.param != "untied", model_type=kind)))
    corpus = Corpus(WINDOWS, "random")
    return source, bank.get(source, SCHEMES, corpus, folder / "bank", "cpu"), folder


def costs_of(made: Made, windows: np.ndarray, folder: Path) -> np.ndarray:
    source, units, _ = made
    work = Work(folder / "costs", "costs", {})
    with work.open(overwrite=True):
        return sensitivity.measure(source, units, windows, work)


def by_hand(source: Checkpoint, units: dict[str, Units], windows: np.ndarray, drawn: Tensor) -> np.ndarray:
    """½ mean over tokens of (d log p(y) / d s)², s a number a token that scales what rounding moves there; by autograd
    through the whole model at once, a scheme and a matrix at a time. drawn: y, (windows, tokens). And of that mean what
    the first token adds."""
    arch, ids = source.arch, torch.from_numpy(windows)
    decoder = Decoder(source)
    names = matrices(arch)
    found = np.zeros((2, len(windows), len(names), len(units)))
    for column, model in enumerate(units.values()):
        for row, name in enumerate(names):
            error = model.tensor(name) - decoder.tensor(name)
            steps = [torch.zeros(ids.shape, requires_grad=True) for _ in range(2)]  # of a product, and of a lookup
            x = F.embedding(ids, decoder.tensor(EMBED))
            if name == EMBED:
                x = x + steps[1][..., None] * F.embedding(ids, error)
            x = x * arch.embed_scale
            for layer in range(arch.layers):
                weights, at = decoder.weights(layer), dict[str, Tensor]()
                tap_of = {n: tap.name for tap in arch.taps(layer) for n in tap.consumers}

                def watch(matrix: str, y: Tensor, at: dict = at, tap_of: dict = tap_of) -> Tensor:
                    if matrix != name:  # noqa: B023
                        return y
                    return y + steps[0][..., None] * F.linear(at[tap_of[matrix]].detach(), error)  # noqa: B023

                with decoder.watched(watch):
                    run = decoder.block(layer, weights, x)
                    try:
                        while True:
                            tap, activation, _ = next(run)
                            at[tap] = activation
                    except StopIteration as stop:
                        x = stop.value
            z = decoder.head_input(x)
            head = EMBED if arch.tied else HEAD
            logits = F.linear(z, decoder.tensor(head))
            if name == head:
                logits = logits + steps[0][..., None] * F.linear(z.detach(), error)
            F.log_softmax(logits, -1).gather(-1, drawn[..., None]).sum().backward()
            nats = sum((s.grad.double().square() / 2).numpy() for s in steps if s.grad is not None)
            found[:, :, row, column] = nats.mean(-1), nats[:, 0] / ids.shape[1]
    return found


def test_costs_are_squared_gradients_of_what_rounding_moves(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against autograd through the whole model, with the same drawn tokens. A float32 sum of n products errs by at most
    n · 2⁻²⁴ of their absolute sum; blocks, attention and head amplify it: a few parts in 10⁴ of the largest cost."""
    source, units, _ = made
    windows = WINDOWS[:2, :16]
    drawn = torch.from_numpy(np.random.default_rng(1).integers(0, 300, windows.shape))
    pieces = iter([drawn.flatten()])
    monkeypatch.setattr(sensitivity, "sample", lambda logits, temperature, generator: next(pieces))
    monkeypatch.setattr(sensitivity, "VOCABULARY_ROWS", 128)  # several pieces
    monkeypatch.setattr(sensitivity, "WINDOWS_AT_ONCE", 1)
    found = costs_of(made, windows, tmp_path)
    expected = by_hand(source, units, windows, drawn)
    assert (expected[0] > 0).all() and (expected[1] > 0).mean() > 0.9
    for ours, true in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, true, rtol=2e-3, atol=1e-4 * true.max())


@pytest.mark.parametrize("only", [None, 1])
def test_bands_share_what_embedding_and_head_cost(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only: int | None
) -> None:
    """Bands together cost what the whole does. only: the band that is rounded at all; the others cost nothing then."""
    source, units, _ = made
    cuts, real = (64, 192), sensitivity.Chunk._errors

    def errors(self: sensitivity.Chunk, name: str, rows: slice = slice(None)) -> list[Tensor]:
        found = real(self, name, rows)
        if only is not None and name in (EMBED, HEAD):
            at = torch.arange(source.arch.vocab)[rows]
            found = [error * ((cuts[0] <= at) & (at < cuts[1]))[:, None] for error in found]
        return found

    monkeypatch.setattr(sensitivity.Chunk, "_errors", errors)
    whole = costs_of(made, WINDOWS[:2], tmp_path / "whole")
    work = Work(tmp_path / "bands", "costs", {})
    with work.open(overwrite=True):
        apart = sensitivity.measure(source, units, WINDOWS[:2], work, cuts=cuts)
    before, after = (sensitivity.table(source, units, {}, each, at) for each, at in ((whole, ()), (apart, cuts)))
    for end in (EMBED,) if source.arch.tied else (EMBED, HEAD):
        names = replace(source.arch, cuts=cuts).bands(end)
        assert names == (f"{end}[0:64]", f"{end}[64:192]", f"{end}[192:{source.arch.vocab}]")
        rows = [after.names.index(name) for name in names]
        summed = after.per_window[:, rows].sum(1)
        np.testing.assert_allclose(summed, before.per_window[:, before.names.index(end)], rtol=1e-4)
        at_first = after.first[:, rows].sum(1), before.first[:, before.names.index(end)]
        assert only is None or np.allclose(*at_first, rtol=1e-4)
        costly = (after.per_window[:, rows] > 0).all((0, 2))
        assert costly.tolist() == ([True] * 3 if only is None else [False, True, False])
    rest = [name for name in before.names if name in after.names]
    assert len(rest) >= len(before.names) - 2
    others = (each.per_window[:, [each.names.index(name) for name in rest]] for each in (before, after))
    np.testing.assert_allclose(*others, rtol=1e-4)


def test_a_band_that_the_text_does_not_use_costs_something() -> None:
    """Three bands of 64, 64 and 128 rows, of which only the first costs: all together what they did."""
    names = [f"{EMBED}[0:64]", f"{EMBED}[64:128]", f"{EMBED}[128:256]", "a"]
    whole = np.zeros((1, 4, 2))
    whole[:, [0, 3]] = 1
    found = costs.Costs("m", {}, tuple(names), ("w2t", "w4t"), whole, 0 * whole).typical()
    assert found[:3].sum(0) == pytest.approx(1)
    assert found[:3] / costs.EVENLY == pytest.approx(np.outer([1 / costs.EVENLY - 0.75, 0.25, 0.5], [1, 1]))


def divergence(source: Checkpoint, model: bank.Mixture, windows: np.ndarray) -> float:
    ids = torch.from_numpy(windows)
    with torch.inference_mode():
        ours, theirs = (F.log_softmax(d.head(d.hidden(ids)), -1).double() for d in (Decoder(model), Decoder(source)))
    return float((theirs.exp() * (theirs - ours)).sum(-1).mean())


def test_costs_of_small_errors_add_up_to_the_divergence(made: Made, tmp_path: Path) -> None:
    """Mixtures of 6 and 8 bits, where second order is all there is. The estimate has one drawn token a position: its
    standard error over windows is known, and four of them bound what chance may do."""
    source, units, _ = made
    windows = np.random.default_rng(2).integers(3, 300, (48, 64)).astype(np.int64)
    found = sensitivity.table(source, units, {}, costs_of(made, windows, tmp_path))
    random = np.random.default_rng(3)
    for _ in range(3):
        chosen = {name: str(random.choice(("w6", "w8"))) for name in found.names}
        predicted, stderr = found.predicted(chosen)
        assert stderr is not None
        measured = divergence(source, bank.Mixture(source, units, chosen), windows)
        # What is added up as if independent is not quite; on random weights it is within a quarter.
        assert abs(predicted - measured) < 4 * stderr + 0.25 * measured
        assert predicted > 0.5 * measured


def test_a_mixture_is_each_matrix_of_its_own_scheme(made: Made) -> None:
    source, units, _ = made
    chosen = {name: SCHEMES[i % len(SCHEMES)] for i, name in enumerate(matrices(source.arch))}
    mixture = bank.Mixture(source, units, chosen)
    for name in source.names():
        whole = mixture.read(name)
        expected = units[chosen[name]].tensor(name).numpy() if name in chosen else source.read(name)
        assert whole.tobytes() == expected.tobytes()
        assert mixture.read(name, slice(1, 5)).tobytes() == whole[1:5].tobytes()
    assert np.abs(mixture.read(EMBED) - source.read(EMBED)).max() > 0


def test_the_bank_is_made_once(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    source, units, folder = made

    def refuse(*args: object) -> None:
        raise AssertionError("rounded again")

    monkeypatch.setattr(bank.apply, "round_all", refuse)
    again = bank.get(source, SCHEMES, Corpus(WINDOWS, "random"), folder / "bank", "cpu")
    name = matrices(source.arch)[-1]
    assert torch.equal(again["w2t"].tensor(name), units["w2t"].tensor(name))


def test_what_is_measured_survives_an_interruption(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in its second chunk, it goes on from there and comes to the same figures as without a stop."""
    source, units, _ = made
    monkeypatch.setattr(sensitivity, "STATES_BYTES", 1)  # one window a chunk
    whole = costs_of(made, WINDOWS[:3], tmp_path / "a")
    begun: list[int] = []
    real = sensitivity.Chunk.__init__

    def counting(self: sensitivity.Chunk, *args: object) -> None:
        begun.append(args[-1])  # type: ignore[arg-type]
        if len(begun) == 2:
            raise KeyboardInterrupt
        real(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(sensitivity.Chunk, "__init__", counting)
    work = Work(tmp_path / "b/costs", "costs", {})
    with work.open(overwrite=False), pytest.raises(KeyboardInterrupt):
        sensitivity.measure(source, units, WINDOWS[:3], work)
    with work.open(overwrite=False):
        resumed = sensitivity.measure(source, units, WINDOWS[:3], work)
    assert begun == [0, 1, 1, 2]
    assert resumed.tobytes() == whole.tobytes()


def test_the_table_comes_back_and_merges(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    tables = []
    for i in range(2):
        values = random.random((3, 2, 4)).astype(np.float32)
        tables.append(costs.Costs("m" * 64, {"source": "x"}, ("a", "b"), SCHEMES, values, values / 3))
        (tmp_path / str(i)).mkdir()
        tables[i].write(tmp_path / str(i), {})
        back = costs.read(tmp_path / str(i))
        assert back.per_window.tobytes() == values.tobytes()
        assert back.first.tobytes() == (values / 3).tobytes()
        assert (back.model, back.names, back.schemes) == ("m" * 64, ("a", "b"), SCHEMES)
    both = costs.merge(tables)
    assert both.per_window.shape == both.first.shape == (6, 2, 4)
    assert both.first == pytest.approx(both.per_window / 3)
    mean, stderr = both.predicted({"a": "w4t", "b": "w8"})
    sums = both.per_window[:, 0, 1].astype(np.float64) + both.per_window[:, 1, 3]
    assert mean == pytest.approx(sums.mean())
    assert stderr == pytest.approx(sums.std(ddof=1) / 6**0.5)
    other = costs.Costs("n" * 64, {}, ("a", "b"), SCHEMES, tables[0].per_window, tables[0].first)
    with pytest.raises(ParetobitError, match="cost tables of different model; hint: "):
        costs.merge([tables[0], other])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "model"}, "no cost table"),
        ({"version": 9}, "no cost table"),
        ({"names": ["a"]}, "do not fit"),
        ({"names": ["a", "a"]}, "different names"),
        ({"schemes": []}, "0 schemes"),
        ({"model": 3}, "model or calibration is missing"),
    ],
)
def test_a_damaged_table_is_named(tmp_path: Path, change: dict[str, object], said: str) -> None:
    import json

    ones = np.ones((1, 2, 4), np.float32)
    costs.Costs("m", {}, ("a", "b"), SCHEMES, ones, ones).write(tmp_path, {})
    path = tmp_path / "paretobit.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ParetobitError, match="; hint: ") as why:
        costs.read(tmp_path)
    assert said in str(why.value)
    assert str(tmp_path) in str(why.value)


@pytest.mark.parametrize(
    ("whole", "first", "said"),
    [
        (np.nan, 0, "not finite"),
        (np.inf, 0, "not finite"),
        (-1, -2, "a cost is negative"),
        (1, -1, "a cost is negative"),
        (1, 2, "a cost is negative"),
    ],
)
def test_costs_that_are_none_are_refused(tmp_path: Path, whole: float, first: float, said: str) -> None:
    values = np.ones((2, 1, 2, 4), np.float32)
    values[:, 0, 1, 2] = whole, first
    costs.Costs("m", {}, ("a", "b"), SCHEMES, *values).write(tmp_path, {})
    with pytest.raises(ParetobitError, match=f"costs.safetensors: .*{said}.*; hint: "):
        costs.read(tmp_path)


def test_of_the_first_position_a_part_is_left() -> None:
    """Two matrices that cost the same, one of them at the first position alone."""
    whole = np.ones((2, 2, 4))
    first = whole * [[[1], [0]]]
    left = costs.Costs("m", {}, ("a", "b"), SCHEMES, whole, first)
    assert left.typical()[0] == pytest.approx(costs.FIRST * left.typical()[1])
    assert left.mean() == pytest.approx(whole[0])
