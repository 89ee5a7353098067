"""What the end loss says of each token and each row: the squared gradients of the model's own log-likelihood.

For a matrix with outputs z, rounding costs about ½ Σ (g·δz)² nats of KL divergence, where g is the gradient of
log p(y) at z with y drawn from the model's own prediction (Fisher information; Kim et al., "GuidedQuant", arXiv
2505.07004, equation 3; Tseng et al., "YAQA", arXiv 2505.22988). Here g² of token t and row o is taken as token weight ·
row weight, so that all consumers of a tap still share one Hessian, Σ weight · x xᵀ. The rows of embedding and head are
left alike: those of tokens that the text lacks would be lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paretobit.arch.spec import EMBED, HEAD
from paretobit.compress.backward import backward, forward, head_pieces
from paretobit.compress.model import Decoder
from paretobit.compress.sampling import sample
from paretobit.compress.world import World
from paretobit.progress import Advance, progress
from paretobit.tensorfile import SafetensorsFile, write_arrays

WINDOWS_AT_ONCE = 4
TINY = 1e-30


@dataclass
class Guide:
    """tokens: by tap, (windows, tokens) float32 weights, 1 on average; rows: by tensor, (out,) likewise."""

    tokens: Mapping[str, Tensor]
    rows: Mapping[str, Tensor]

    def row_weight(self, names: Sequence[str]) -> Tensor:
        """Of the rows of these tensors, stacked."""
        return torch.cat([self.rows[name] for name in names])


def get(path: Path, decoder: Decoder, windows: np.ndarray, world: World) -> Guide:
    """The guide from `path` where a killed job left it, else measured and kept there."""
    if world.least(int(path.exists())):
        return load(path, decoder.device)
    with progress("what the end loss says of each token and row", len(windows)) as advance:
        found = measure(decoder, windows, world, advance)
    save(path, found)
    world.wait()
    return found


def load(path: Path, device: torch.device) -> Guide:
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


def measure(decoder: Decoder, windows: np.ndarray, world: World, advance: Advance) -> Guide:
    """The guide from windows (n, tokens) int64 of text, this process's share. Calls advance(1) for every window."""
    arch, ids = decoder.arch, torch.from_numpy(windows).to(decoder.device)
    taps = [tap for layer in range(arch.layers) for tap in arch.taps(layer)] + [arch.head_tap]
    tokens = {tap.name: torch.zeros(ids.shape, device=decoder.device) for tap in taps}
    shapes = arch.shapes()
    rows = {name: torch.zeros(shapes[name][0], device=decoder.device) for tap in taps for name in tap.consumers}
    generator = torch.Generator(decoder.device).manual_seed(world.rank)
    for start in range(0, len(ids), WINDOWS_AT_ONCE):
        part = slice(start, start + WINDOWS_AT_ONCE)
        _batch(decoder, ids[part], {name: value[part] for name, value in tokens.items()}, rows, generator)
        advance(len(ids[part]))
    for name, value in rows.items():
        rows[name] = _normal(world.total(value), value.mean())
    for name, value in tokens.items():
        sums = world.total(torch.stack([value.sum(), torch.full_like(value.sum(), value.numel())]))
        tokens[name] = _normal(value, sums[0] / sums[1])
    return Guide(tokens, rows)


def _normal(weight: Tensor, mean: Tensor) -> Tensor:
    return weight / mean if mean > 0 else torch.ones_like(weight)


def _batch(
    decoder: Decoder, ids: Tensor, tokens: dict[str, Tensor], rows: dict[str, Tensor], generator: torch.Generator
) -> None:
    """Add a batch's squared gradients to `rows`, and set its `tokens`."""
    arch = decoder.arch
    states = forward(decoder, decoder.weights, decoder.embed(ids))
    gradient = _head(decoder, states.pop(), tokens[arch.head_tap.name], rows, generator)
    tap_of = {name: tap.name for layer in range(arch.layers) for tap in arch.taps(layer) for name in tap.consumers}

    def watch(name: str, y: Tensor) -> Tensor:
        def add(gradient: Tensor) -> None:
            squares = gradient.square()
            of_tokens = squares.sum(-1)
            # Each token votes alike on rows: a sum of squares would be the word of a few tokens.
            rows[name] += (squares / of_tokens.clamp(min=TINY)[..., None]).sum((0, 1))
            tokens[tap_of[name]] += of_tokens

        y.register_hook(add)
        return y

    with decoder.watched(watch):
        backward(decoder, decoder.weights, states, gradient)


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
    for part in head_pieces(len(flat), len(weight)):
        logits = F.linear(flat[part], weight)
        drawn = sample(logits, 1.0, generator)
        g = torch.softmax(logits, -1)
        g[torch.arange(len(g), device=g.device), drawn] -= 1
        found[part] = g @ weight
        g.square_()
        tokens.view(-1)[part] += g.sum(-1)
        rows[name] += (g / g.sum(-1, keepdim=True).clamp(min=TINY)).sum(0)
    z.backward(found.view_as(z))
    assert x.grad is not None
    return x.grad
