"""What the end loss says of each token and each row: the squared gradients of the model's own log-likelihood.

For a matrix with outputs z, rounding costs about ½ Σ (g·δz)² nats of KL divergence, where g is the gradient of
log p(y) at z with y drawn from the model's own prediction (Fisher information; Kim et al., "GuidedQuant", arXiv 2505.07004,
equation 3; Tseng et al., "YAQA", arXiv 2505.22988). Here g² of token t and row o is taken as token weight · row weight, so
that all consumers of a tap still share one Hessian, Σ weight · x xᵀ.

One forward pass, and one backwards in which every block is computed again: what is alive is a batch's hidden states
before each block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paretobit.arch import Tap
from paretobit.arch.spec import EMBED, HEAD
from paretobit.compress.model import Decoder, finish
from paretobit.compress.sampling import sample
from paretobit.tensorfile import SafetensorsFile, write_arrays

GUIDE = "guide"  # among the statistics that a method may need
WINDOWS_AT_ONCE = 4
HEAD_TOKENS = 256  # whose logits are alive together


@dataclass
class Guide:
    """tokens: by tap, (windows, tokens) float32 weights, 1 on average; rows: by tensor, (out,) likewise."""

    tokens: Mapping[str, Tensor]
    rows: Mapping[str, Tensor]

    def row_weight(self, names: list[str]) -> Tensor:
        """Of the rows of these tensors, stacked."""
        return torch.cat([self.rows[name] for name in names])


def load(path: Path, device: str) -> Guide:
    """What `save` wrote."""
    file = SafetensorsFile(path)
    found: dict[str, dict[str, Tensor]] = {"tokens": {}, "rows": {}}
    for key in file.tensors:
        kind, _, name = key.partition(" ")
        found[kind][name] = torch.from_numpy(file.read_float32(key)).to(device)
    return Guide(**found)


def save(path: Path, guide: Guide) -> None:
    parts = {f"tokens {name}": value for name, value in guide.tokens.items()}
    parts |= {f"rows {name}": value for name, value in guide.rows.items()}
    write_arrays(path, {name: value.cpu().numpy() for name, value in parts.items()})


def measure(decoder: Decoder, windows: np.ndarray, seed: int, advance: Callable[[int], None]) -> Guide:
    """The guide from windows (n, tokens) int64 of text. Calls advance(1) once a window."""
    arch, ids = decoder.arch, torch.from_numpy(windows).to(decoder.device)
    taps = [tap for layer in range(arch.layers) for tap in arch.taps(layer)] + [arch.head_tap]
    tokens = {tap.name: torch.zeros(ids.shape, device=decoder.device) for tap in taps}
    shapes = arch.shapes()
    rows = {name: torch.zeros(shapes[name][0], device=decoder.device) for tap in taps for name in tap.consumers}
    generator = torch.Generator(decoder.device).manual_seed(seed)
    for start in range(0, len(ids), WINDOWS_AT_ONCE):
        part = slice(start, start + WINDOWS_AT_ONCE)
        _batch(decoder, ids[part], {name: value[part] for name, value in tokens.items()}, rows, generator)
        advance(len(ids[part]))
    return Guide(*({name: _normal(value) for name, value in kind.items()} for kind in (tokens, rows)))


def _normal(weight: Tensor) -> Tensor:
    mean = weight.mean()
    return weight / mean if mean > 0 else torch.ones_like(weight)


def _batch(
    decoder: Decoder, ids: Tensor, tokens: dict[str, Tensor], rows: dict[str, Tensor], generator: torch.Generator
) -> None:
    """Add a batch's squared gradients to `rows`, and set its `tokens`."""
    arch = decoder.arch
    with torch.no_grad():
        states = [decoder.embed(ids)]
        for layer in range(arch.layers):
            states.append(finish(decoder.block(layer, decoder.weights(layer), states[-1])))
    gradient = _head(decoder, states.pop(), tokens[arch.head_tap.name], rows, generator)
    for layer in reversed(range(arch.layers)):
        tap_of = {name: tap for tap in arch.taps(layer) for name in tap.consumers}
        x = states.pop().requires_grad_()
        with torch.enable_grad():
            decoder.watch = lambda name, y, tap_of=tap_of: y.register_hook(_adder(name, tap_of[name], tokens, rows))
            try:
                y = finish(decoder.block(layer, decoder.weights(layer), x))
            finally:
                decoder.watch = None
            y.backward(gradient)
        assert x.grad is not None
        gradient = x.grad


def _adder(name: str, tap: Tap, tokens: dict[str, Tensor], rows: dict[str, Tensor]) -> Callable[[Tensor], None]:
    def add(gradient: Tensor) -> None:
        squares = gradient.square()
        rows[name] += squares.sum((0, 1))
        tokens[tap.name] += squares.sum(-1)

    return add


def _head(
    decoder: Decoder, x: Tensor, tokens: Tensor, rows: dict[str, Tensor], generator: torch.Generator
) -> Tensor:  # (b, t, hidden) -> (b, t, hidden)
    """The gradient of log p(y) at the last block's output, y drawn from p; -(p - [y]) at the logits."""
    name = EMBED if decoder.arch.tied else HEAD
    weight = decoder.tensor(name)
    x.requires_grad_()
    with torch.enable_grad():
        z = decoder.head_input(x)
    flat, found = z.detach().flatten(0, 1), torch.empty_like(z).flatten(0, 1)
    for start in range(0, len(flat), HEAD_TOKENS):
        part = slice(start, start + HEAD_TOKENS)
        logits = F.linear(flat[part], weight)
        drawn = sample(logits, 1.0, generator)
        g = torch.softmax(logits, -1)
        g[torch.arange(len(g), device=g.device), drawn] -= 1
        found[part] = g @ weight
        g.square_()
        tokens.view(-1)[part] += g.sum(-1)
        rows[name] += g.sum(0)
    z.backward(found.view_as(z))
    assert x.grad is not None
    return x.grad
