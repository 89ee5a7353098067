"""Backwards through a decoder one block at a time: every block is computed again when its gradient is wanted, so what
is alive is one block's graph and the hidden states before each block."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from paretobit.compress.model import Decoder, finish
from paretobit.pieces import pieces

Weights = Callable[[int], dict[str, Tensor]]  # of one layer
LOGITS = 1 << 24  # that are alive together


@torch.no_grad()
def forward(decoder: Decoder, weights: Weights, x: Tensor) -> list[Tensor]:
    """Hidden states (b, t, hidden) before every block and after the last."""
    states = [x]
    for layer in range(decoder.arch.layers):
        states.append(finish(decoder.block(layer, weights(layer), states[-1])))
    return states


def backward(decoder: Decoder, weights: Weights, states: list[Tensor], gradient: Tensor) -> Tensor:
    """The gradient at the first block's input, from the one at the last block's output; `states` are those before the
    blocks, and are used up. Parameters among the weights collect their gradients as ever."""
    for layer in reversed(range(decoder.arch.layers)):
        x = states.pop().detach().requires_grad_()
        with torch.enable_grad():
            y = finish(decoder.block(layer, weights(layer), x))
            y.backward(gradient)
        assert x.grad is not None
        gradient = x.grad
    return gradient


def head_pieces(tokens: int, vocab: int) -> Iterator[slice]:
    """All tokens, so many at a time that their logits need a bounded amount of memory."""
    return pieces(tokens, LOGITS, vocab)
