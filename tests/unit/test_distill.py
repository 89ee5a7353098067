"""Distillation's loss in one native pass, against double precision and the torch operations that define it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from paretobit import native
from paretobit.compress.distill import divergence, native_divergence

VOCABS = (1, 3, 16, 77, 4099)


def logits(vocab: int, seed: int, kind: torch.dtype) -> torch.Tensor:
    """Of five tokens: usual, all far below 0, one certain, all alike, and far apart."""
    made = torch.randn(5, vocab, generator=torch.Generator().manual_seed(seed)) * 3
    made[1] -= 200
    made[2, 0] += 60
    made[3] = 0.5
    made[4] *= 20
    return made.to(kind)


@pytest.mark.parametrize("isa", native.available())
@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_loss_and_gradient(isa: str, vocab: int, kind: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.ISA_VARIABLE, isa)
    p, q = logits(vocab, 1, kind), logits(vocab, 2, kind)
    exact = q.double().requires_grad_()
    wanted = F.kl_div(F.log_softmax(exact, -1), F.log_softmax(p.double(), -1), reduction="sum", log_target=True)
    wanted.backward()
    unit = 2.0**-8 if kind == torch.bfloat16 else 2.0**-23
    for computed in (native_divergence, divergence):
        loss, gradient = computed(p, q.clone(), 0.25)
        assert loss == pytest.approx(float(wanted.detach()), rel=1e-5, abs=2e-5)
        assert gradient.dtype == kind
        assert (gradient.double() - 0.25 * exact.grad).abs().max() <= unit * 0.25 + 1e-6


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_what_is_not_a_number_stays_none(kind: torch.dtype) -> None:
    """So that training stops on it; the other tokens are none the worse."""
    p, q = logits(77, 1, kind), logits(77, 2, kind)
    q[3, 70] = float("nan")
    arrays = [x.view(torch.uint16 if kind == torch.bfloat16 else kind).numpy() for x in (p, q)]
    losses, gradient = native.divergence(*arrays, 1.0)
    assert np.isnan(losses).tolist() == [False, False, False, True, False]
    made = torch.from_numpy(gradient).view(kind)
    assert made[3].isnan().any() and not made[[0, 1, 2, 4]].isnan().any()


def test_neither_threads_nor_the_other_tokens_matter() -> None:
    p, q = (np.random.default_rng(i).standard_normal((40, 5000)).astype(np.float32) for i in range(2))
    losses, gradient = native.divergence(p, q, 1.0, threads=1)
    again = native.divergence(p, q, 1.0, threads=4)
    assert np.array_equal(losses, again[0]) and np.array_equal(gradient, again[1])
    part = native.divergence(p[7:9].copy(), q[7:9].copy(), 1.0)
    assert np.array_equal(losses[7:9], part[0]) and np.array_equal(gradient[7:9], part[1])
    assert np.abs(gradient.sum(1, dtype=np.float64)).max() < 1e-6
