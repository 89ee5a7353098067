"""One step of training a packed model to predict as the original does, or as a text goes on: forward, forward again
block by block, and backward, so that what is alive is one block's graph, and logits a piece at a time. Where there is
room for all graphs, forward once.

Source: distillation (Hinton et al., arXiv 1503.02531) by the KL divergence to the original's whole prediction.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paretobit import native
from paretobit.compress.backward import LOGITS, through
from paretobit.compress.model import Decoder
from paretobit.pieces import pieces

HELD = 2 * LOGITS  # that are alive together, three times: the model's, the original's and the gradient
AT_ONCE = 1 << 20  # logits that become probabilities together: what a cache holds

Target = Callable[[slice, Tensor, float], tuple[float, Tensor]]
"""Of some of a batch's tokens, flat, their logits (n, vocab), and a factor: the losses' sum, and the factor times its
gradient at the logits, (n, vocab) of their type."""


class Student(Protocol):
    """A model that is trained. Whatever of it has a gradient to get is in the graphs of what these give."""

    decoder: Decoder

    def weights(self, layer: int) -> dict[str, Tensor]:
        """Of a block, by name."""
        ...

    def watch(self, name: str, y: Tensor) -> Tensor:
        """What goes on where a block's matrix gives y."""
        ...

    def embed(self, ids: Tensor) -> Tensor:  # (b, t) -> (b, t, hidden)
        ...

    def logits(self, x: Tensor) -> Tensor:  # (n, hidden), the last block's outputs -> (n, vocab)
        ...


def halved(device: str | torch.device, half: bool) -> AbstractContextManager[object]:
    """Products of what is computed inside are of bf16 numbers, summed in float32, if `half`."""
    return torch.autocast(torch.device(device).type, torch.bfloat16) if half else nullcontext()


def one_step(student: Student, target: Target, ids: Tensor, share: float = 1.0, whole: bool = False) -> float:
    """Add `share` of the gradients of the mean loss over the tokens ids (b, t); returns that loss, in nats. whole: keep
    the graphs of all blocks."""
    with student.decoder.watched(student.watch):
        with torch.enable_grad():
            x = student.embed(ids)
        last, back = through(student.decoder, student.weights, x.detach(), whole)
        loss, gradient = _head(student, target, last.flatten(0, 1), share)
        gradient = back(gradient.view_as(last))
    if x.requires_grad:  # not where the embedding stays as it is
        x.backward(gradient)
    return loss


def _head(student: Student, target: Target, x: Tensor, share: float) -> tuple[float, Tensor]:
    """(mean loss, `share` of its gradient at x (n, hidden))."""
    x, loss = x.detach().requires_grad_(), 0.0
    for part in pieces(len(x), HELD, student.decoder.arch.vocab):
        with torch.enable_grad():
            logits = student.logits(x[part])
        with torch.no_grad():
            found, gradient = target(part, logits, share / len(x))
        loss += found
        logits.backward(gradient)
    assert x.grad is not None
    return loss / len(x), x.grad


def as_original(teacher: Decoder, ids: Tensor) -> Target:
    """The KL divergence from what `teacher` predicts on ids (b, t)."""
    return as_predicted(teacher, states_of(teacher, ids))


@torch.no_grad()
def states_of(teacher: Decoder, ids: Tensor) -> Tensor:  # (b, t) -> (b, t, hidden)
    """What its head multiplies."""
    return teacher.head_input(teacher.hidden(ids))


def as_predicted(teacher: Decoder, states: Tensor) -> Target:
    """The KL divergence from what `teacher` predicts where its head multiplies states (b, t, hidden)."""
    states = states.flatten(0, 1)

    def target(part: slice, logits: Tensor, factor: float) -> tuple[float, Tensor]:
        wanted = teacher.multiplied_by_head(states[part]).to(logits.dtype)
        return native_divergence(wanted, logits, factor) if logits.is_cpu else divergence(wanted, logits, factor)

    return target


def divergence(wanted: Tensor, logits: Tensor, factor: float) -> tuple[float, Tensor]:
    """The sum over tokens of the KL divergence of logits (n, vocab) from `wanted`, and factor times its gradient."""

    def one(rows: slice, q: Tensor) -> tuple[Tensor, Tensor]:
        p = F.log_softmax(wanted[rows].float(), -1)
        likely = p.exp()
        return p.sub_(q).mul_(likely).sum(), q.exp_().sub_(likely)

    return _by_rows(logits, factor, one)


def native_divergence(wanted: Tensor, logits: Tensor, factor: float) -> tuple[float, Tensor]:
    """`divergence` in one pass over float32 or bf16 logits."""
    kind = torch.uint16 if logits.dtype == torch.bfloat16 else torch.float32  # bf16 is nothing that numpy knows
    p, q = (x.detach().contiguous().view(kind).numpy() for x in (wanted, logits))
    losses, gradient = native.divergence(p, q, factor)
    return float(losses.sum(dtype=np.float64)), torch.from_numpy(gradient).view(logits.dtype)


def as_text(ids: Tensor) -> Target:
    """The cross entropy of each next token of ids (b, t); a window's last token predicts nothing."""
    following = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], -1)], 1).flatten()
    scale = ids.shape[1] / (ids.shape[1] - 1)  # the mean is over all tokens, and some have no loss

    def target(part: slice, logits: Tensor, factor: float) -> tuple[float, Tensor]:
        def one(rows: slice, q: Tensor) -> tuple[Tensor, Tensor]:
            labels = following[part][rows]
            known, at = (labels >= 0)[:, None] * scale, labels.clamp_min(0)[:, None]
            loss = -(q.gather(1, at) * known).sum()
            return loss, q.exp_().scatter_add_(1, at, torch.full_like(at, -1, dtype=q.dtype)).mul_(known)

        return _by_rows(logits, factor, one)

    return target


def _by_rows(
    logits: Tensor, factor: float, one: Callable[[slice, Tensor], tuple[Tensor, Tensor]]
) -> tuple[float, Tensor]:
    """A Target's answer, from `one`, which gives the loss of some rows and its gradient, both float32, for their log
    probabilities, which it may overwrite."""
    gradient, loss = torch.empty_like(logits), 0.0
    for rows in pieces(len(logits), AT_ONCE, logits.shape[1]):
        found, slope = one(rows, F.log_softmax(logits[rows].float(), -1))
        loss += float(found)
        gradient[rows] = slope.mul_(factor)
    return loss, gradient
