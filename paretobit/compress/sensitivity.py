"""What each tensor costs on each scheme: the KL divergence to the original that its rounding error adds.

Rounding moves a matrix' outputs at token t by δz = (Q(W) - W) x. To second order this costs ½ E (g·δz)² nats, g the
gradient at z of log p(y), y drawn from the model's own prediction: the expected square is the Fisher information, which
is the Hessian of the divergence (Amari, "Natural gradient works efficiently in learning", 1998, section 3). Tokens and
tensors are added up as if independent, and that is measured to hold from 8 bits down to 3, and to miss a tenth at 2
(docs/planner.md). One forward and backward pass; every error is the real one, of real rounding.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paretobit.arch import Arch, Tap
from paretobit.arch.spec import EMBED, HEAD
from paretobit.checkpoint.base import Checkpoint
from paretobit.compress.backward import forward, head_pieces
from paretobit.compress.model import Decoder
from paretobit.compress.sampling import sample
from paretobit.compress.units import Units
from paretobit.costs import Costs
from paretobit.pieces import pieces
from paretobit.planfile import matrices
from paretobit.progress import progress
from paretobit.tensorfile import SafetensorsFile, write_arrays
from paretobit.work import Work

VOCABULARY_ROWS = 8192  # whole rings of a trellis
WINDOWS_AT_ONCE = 4  # whose activations of one block are alive
# A head's row whose token is less likely than this at every position adds nothing that shows: costs go by squares, and
# of 262,144 rows a text needs a tenth. Of the gradient that goes on into the blocks nothing is left out.
UNLIKELY = 1e-5
STATES_BYTES = 1 << 30  # hidden states between the blocks, of the windows that share one reading of the bank


def measure(
    source: Checkpoint, bank: Mapping[str, Units], windows: np.ndarray, work: Work, device: str = "cpu",
    cuts: tuple[int, ...] = (),
) -> np.ndarray:  # fmt: skip
    """Costs on windows (n, tokens) int64: float32 (2, n, matrices, schemes), nats a token, of all positions and of the
    first. cuts: rows at which embedding and head part into bands, which are matrices then. Resumable: what is done
    stays in the work folder until it goes.
    """
    decoder = Decoder(source, device=device, keep=False)
    arch, size = source.arch, windows.shape[1]
    together = max(1, STATES_BYTES // (4 * (arch.layers + 1) * size * arch.hidden))
    starts, found = range(0, len(windows), together), []
    banded = replace(arch, cuts=cuts)
    steps = arch.layers + len(rows_of(banded, arch.head_tap.consumers[0]))
    with progress(f"what every scheme costs {source.name}", len(starts) * steps) as advance:
        for start in starts:
            path = work.path(f"costs-{start:05d}.safetensors")
            if not path.exists():
                chunk = Chunk(decoder, banded, bank, windows[start : start + together], start)
                for _ in chunk.run():
                    advance(1)
                write_arrays(path, {"costs": chunk.costs.numpy().astype(np.float32)})
            else:
                advance(steps)
            found.append(SafetensorsFile(path).read_float32("costs"))
    return np.concatenate(found, axis=1)


def table(
    source: Checkpoint, bank: Mapping[str, Units], calibration: Mapping[str, object], costs: np.ndarray,
    cuts: tuple[int, ...] = (),
) -> Costs:  # fmt: skip
    return Costs(source.hash, calibration, tuple(matrices(replace(source.arch, cuts=cuts))), tuple(bank), *costs)


def rows_of(arch: Arch, end: str) -> list[tuple[int, slice]]:
    """Embedding or head a piece at a time: the number of a band, and rows that lie in it."""
    bands = enumerate(zip((0, *arch.cuts), (*arch.cuts, arch.vocab), strict=True))
    return [
        (number, slice(first + rows.start, first + rows.stop))
        for number, (first, last) in bands
        for rows in pieces(last - first, VOCABULARY_ROWS)
    ]


class Chunk:
    """Some windows (n, tokens) on their way back through the model. costs: float64 (2, n, matrices, schemes), of all
    positions and of the first."""

    def __init__(
        self, decoder: Decoder, banded: Arch, bank: Mapping[str, Units], windows: np.ndarray, seed: int
    ) -> None:
        self.decoder, self.banded, self.bank = decoder, banded, bank
        self.ids = torch.from_numpy(windows).to(decoder.device)
        self.names = matrices(banded)
        self.costs = torch.zeros(2, len(windows), len(self.names), len(bank), dtype=torch.float64)
        self.generator = torch.Generator(decoder.device).manual_seed(seed)

    def run(self) -> Iterator[None]:
        """Yields after every piece of the head and after every block, from the last to the first."""
        decoder, arch = self.decoder, self.decoder.arch
        states = forward(decoder, decoder.weights, decoder.embed(self.ids))
        gradient = yield from self._head(states.pop())
        for layer in reversed(range(arch.layers)):
            gradient = self._block(layer, states.pop(), gradient)
            yield
        for column, error in enumerate(self._errors(EMBED)):
            moved = (F.embedding(self.ids, error) * arch.embed_scale * gradient).sum(-1)
            for name, first, last in self._bands(EMBED):
                self._add(name, column, slice(None), moved * ((first <= self.ids) & (self.ids < last)))

    def _bands(self, end: str) -> Iterator[tuple[str, int, int]]:
        """The bands of embedding or head, and where each begins and ends."""
        cuts = self.banded.cuts
        return zip(self.banded.bands(end), (0, *cuts), (*cuts, self.banded.vocab), strict=True)

    def _errors(self, name: str, rows: slice = slice(None)) -> list[Tensor]:
        """Q(W) - W on each scheme, (out, in)."""
        exact = self.decoder.tensor(name, rows)
        return [units.tensor(name, self.decoder.device, rows).sub_(exact) for units in self.bank.values()]

    def _add(self, name: str, column: int, rows: slice, moved: Tensor) -> None:
        """Account for what log p(y) moves by, (b, t), of the windows `rows`, to first order."""
        nats = moved.double().square().cpu() / (2 * moved.shape[1])
        self.costs[:, rows, self.names.index(name), column] += torch.stack([nats.sum(1), nats[:, 0]])

    def _head(self, x: Tensor) -> Generator[None, None, Tensor]:  # (n, t, hidden) -> (n, t, hidden)
        """The gradient of log p(y) at the last block's output: [y] - p at the logits, a piece of them at a time, after
        which it yields."""
        decoder = self.decoder
        name = EMBED if decoder.arch.tied else HEAD
        x.requires_grad_()
        with torch.enable_grad():
            z = decoder.head_input(x)
        flat = z.detach().flatten(0, 1)
        drawn, norm = self._draw(flat)
        bands = self.banded.bands(name)
        found, sums = torch.zeros_like(flat), torch.zeros(len(bands), len(self.bank), len(flat), device=flat.device)
        for number, rows in rows_of(self.banded, name):
            weight, errors = decoder.tensor(name, rows), self._errors(name, rows)
            for part in head_pieces(len(flat), len(weight)):
                g = (F.linear(flat[part], weight) - norm[part, None]).exp_().neg_()
                own = drawn[part] - rows.start
                inside = ((own >= 0) & (own < len(weight))).nonzero()[:, 0]
                g[inside, own[inside]] += 1
                found[part] += g @ weight
                likely = (g.abs().amax(0) > UNLIKELY).nonzero()[:, 0]
                g = g[:, likely]
                for column, error in enumerate(errors):
                    sums[number, column, part] += ((g @ error[likely]) * flat[part]).sum(-1)
            yield
        for column in range(len(self.bank)):
            moved = sums[:, column].view(len(bands), *z.shape[:2])
            # What errors of two bands do at one token cancels out a little: bands share what they cost together.
            shares = moved.sum(0).square().sum(-1) / moved.square().sum((0, 2)).clamp(min=1e-30)
            for own, of_band in zip(bands, moved, strict=True):
                self._add(own, column, slice(None), of_band * shares.sqrt()[:, None])
        z.backward(found.view_as(z))
        assert x.grad is not None
        return x.grad

    def _draw(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A token from the prediction at each of x (n, hidden), and the logarithm of what normalizes it, (n,) each."""
        vocab = self.decoder.arch.vocab
        drawn = torch.empty(len(x), dtype=torch.int64, device=x.device)
        norm = torch.empty(len(x), device=x.device)
        for part in head_pieces(len(x), vocab):
            logits = self.decoder.multiplied_by_head(x[part])
            drawn[part], norm[part] = sample(logits, 1.0, self.generator), logits.logsumexp(-1)
        return drawn, norm

    def _block(self, layer: int, states: Tensor, gradient: Tensor) -> Tensor:
        """The gradient at a block's input from the one at its output; adds what its matrices cost."""
        decoder, before = self.decoder, torch.empty_like(states)
        weights = decoder.weights(layer)
        taps = decoder.arch.taps(layer)
        errors = {name: self._errors(name) for tap in taps for name in tap.consumers}
        for start in range(0, len(states), WINDOWS_AT_ONCE):
            part = slice(start, start + WINDOWS_AT_ONCE)
            x = states[part].detach().requires_grad_()
            inputs, at_outputs = self._step(layer, weights, taps, x, gradient[part])
            for tap in taps:
                for name in tap.consumers:
                    for column, error in enumerate(errors[name]):
                        moved = F.linear(inputs[tap.name], error)
                        self._add(name, column, part, (moved * at_outputs[name]).sum(-1))
            assert x.grad is not None
            before[part] = x.grad
        return before

    def _step(
        self, layer: int, weights: dict[str, Tensor], taps: Sequence[Tap], x: Tensor, gradient: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One batch through a block and back, to x.grad: what stood at its taps, and the gradients at the outputs of
        its matrices."""
        inputs: dict[str, Tensor] = {}
        at_outputs: dict[str, Tensor] = {}

        def watch(name: str, y: Tensor) -> Tensor:
            y.register_hook(lambda g: at_outputs.__setitem__(name, g))
            return y

        with torch.enable_grad(), self.decoder.watched(watch):
            steps = self.decoder.block(layer, weights, x)
            try:
                while True:
                    tap, activation, _ = next(steps)
                    inputs[tap] = activation.detach()
            except StopIteration as stop:
                stop.value.backward(gradient)
        return inputs, at_outputs


def windows_of(ids: np.ndarray, count: int) -> np.ndarray:
    """`count` of the windows, evenly spread."""
    return ids[np.linspace(0, len(ids) - 1, min(count, len(ids))).round().astype(int)]
