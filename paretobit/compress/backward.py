"""Backwards through a decoder one block at a time: every block is computed again when its gradient is wanted, so what
is alive is one block's graph and the hidden states before each block. Or, where there is room, without computing
anything twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from paretobit.arch import Arch
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


def whole_bytes(arch: Arch, tokens: int) -> int:
    """About what the graphs of all blocks hold for so many tokens, beside their matrices: every product's output, and
    what norms, rotation, attention and activation functions give."""
    shapes = (shape for shape in arch.block_shapes(0).values() if len(shape) == 2)
    products = sum(out for out, _ in shapes)
    return 4 * tokens * arch.layers * (2 * products + 6 * arch.hidden + 3 * arch.intermediate)


def through(
    decoder: Decoder, weights: Weights, x: Tensor, whole: bool = False
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The last block's output, and what leads a gradient there back to the first block's input x (b, t, hidden).

    whole: the graphs of all blocks stay, and nothing is computed again: the same bits in less time.
    """
    if not whole:
        states = forward(decoder, weights, x)
        return states.pop(), lambda gradient: backward(decoder, weights, states, gradient)
    before = last = x.detach().requires_grad_()
    with torch.enable_grad():
        for layer in range(decoder.arch.layers):
            last = finish(decoder.block(layer, weights(layer), last))

    def back(gradient: Tensor) -> Tensor:
        last.backward(gradient)
        assert before.grad is not None
        return before.grad

    return last.detach(), back


def head_pieces(tokens: int, vocab: int) -> Iterator[slice]:
    """All tokens, so many at a time that their logits need a bounded amount of memory."""
    return pieces(tokens, LOGITS, vocab)
