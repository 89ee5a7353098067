"""The one decoder: it interprets an `Arch`, so every architecture that is data runs through this code.

A block is a generator that pauses at each tap, where an activation is born and before anything multiplies it.
Calibration listens there, sequential rounding replaces weights there, and plain inference runs through with
`finish`. Everything is float32 and differentiable; the caller chooses `torch.no_grad` or `inference_mode`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paretobit.arch.spec import EMBED, FINAL_NORM, HEAD, Arch
from paretobit.compress.rope import Rotary
from paretobit.errors import ParetobitError
from paretobit.pieces import pieces

Cache = tuple[Tensor, Tensor]  # keys and values of one layer, each (b, kv_heads, capacity, head_dim)
Watch = Callable[[str, Tensor], Tensor]  # a matrix's name and its outputs; returns what goes on
Rounded = Callable[[str, Tensor], Tensor]  # a tap's name and its activation; returns what is multiplied
Steps = Generator[tuple[str, Tensor, Tensor], None, Tensor]

HEAD_ROWS = 4096  # vocabulary entries at a time: what the head holds of its weights when it streams them
ACTIVATIONS = {"silu": F.silu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}


class Source(Protocol):
    """What the decoder needs of a checkpoint."""

    @property
    def arch(self) -> Arch: ...

    def read(self, name: str, rows: slice | None = None) -> np.ndarray: ...


def finish(steps: Steps) -> Tensor:
    """Run a block past its remaining taps and return its output."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value


class Decoder:
    """A decoder over the weights of `source`.

    keep=True reads each tensor once and holds it, as float32, on `device`. keep=False reads a block's tensors
    at every use, the rows of the embedding that occur, and the head in pieces. Both compute the same bits.
    rounded: what becomes of a tap's activation before it is multiplied; None: nothing. half: matrices are held in bf16,
    for one whose products are of such numbers anyway.
    """

    def __init__(
        self, source: Source, device: str | torch.device = "cpu", keep: bool = True, rounded: Rounded | None = None,
        half: bool = False,
    ) -> None:  # fmt: skip
        self.arch = arch = source.arch
        self.device = torch.device(device)
        self._source = source
        self._kept: dict[str, Tensor] | None = {} if keep else None
        self._half = half
        self._watch: Watch | None = None
        self._rounded: Rounded = rounded or (lambda tap, x: x)
        self._names = [tuple(arch.block_shapes(layer)) for layer in range(arch.layers)]
        self._taps = [arch.taps(layer) for layer in range(arch.layers)]
        self._activation = ACTIVATIONS[arch.activation]
        self._rotary = Rotary(arch, self.device)

    # ---- weights

    def weights(self, layer: int) -> dict[str, Tensor]:
        """Name -> float32 tensor of one block. The dict is the caller's own, to replace entries in."""
        return {name: self.tensor(name) for name in self._names[layer]}

    def tensor(self, name: str, rows: slice | None = None) -> Tensor:
        """One tensor, or some of its rows, float32."""
        if self._kept is None:
            return self._load(name, rows)
        if name not in self._kept:
            self._kept[name] = self._load(name)
        return self._kept[name] if rows is None else self._kept[name][rows]

    def _load(self, name: str, rows: slice | None = None) -> Tensor:
        with torch.inference_mode(False):  # what is first read for inference may be trained later
            found = torch.from_numpy(self._source.read(name, rows)).to(self.device)
            return found.bfloat16() if self._half and found.dim() == 2 else found

    @contextmanager
    def watched(self, watch: Watch) -> Iterator[None]:
        """Show `watch` what every block matrix gives, before its bias, and go on with what it returns."""
        self._watch = watch
        try:
            yield
        finally:
            self._watch = None

    # ---- embedding, block, head

    def embed(self, tokens: Tensor) -> Tensor:  # (b, t) int64 -> (b, t, hidden)
        """Rows of the embedding, scaled. Raises ParetobitError on a token outside the vocabulary."""
        ids, vocab = tokens.to(self.device), self.arch.vocab
        least, most = (int(x) for x in torch.aminmax(ids))
        if not 0 <= least <= most < vocab:
            raise ParetobitError(
                f"tokens from {least} to {most}, but the model knows 0 to {vocab - 1}",
                hint="the tokenizer does not belong to this model",
            )
        if self._kept is None:
            ids, where = torch.unique(ids, return_inverse=True)
            x = F.embedding(where, self._embedding_rows(ids.numpy(force=True)))
        else:
            x = F.embedding(ids, self.tensor(EMBED))
        x = x.float() if self._half else x
        return x if self.arch.embed_scale == 1.0 else x * self.arch.embed_scale

    def _embedding_rows(self, ids: np.ndarray) -> Tensor:  # (n,) ascending -> (n, hidden)
        """Exactly these rows; neighbours come in one read."""
        runs = np.split(ids, np.flatnonzero(np.diff(ids) != 1) + 1)
        return torch.cat([self._load(EMBED, slice(int(run[0]), int(run[-1]) + 1)) for run in runs])

    def block(
        self, layer: int, weights: Mapping[str, Tensor], x: Tensor, cache: Cache | None = None, start: int = 0
    ) -> Steps:
        """One block on x (b, t, hidden) at positions start … start + t - 1; returns its output, as large.

        Yields (tap name, activation (b, t, width), residual stream (b, t, hidden)) at every tap of `arch.taps(layer)`,
        in order. The tap's consumers are looked up in `weights` after the yield: entries replaced during the pause
        take effect. With a cache, new keys and values are written to it at `start`, and earlier ones attended to as
        well.
        """
        arch, at = self.arch, self.arch.prefix(layer)
        attn_in, o_in, mlp_in, down_in = self._taps[layer]

        y = self._rounded(attn_in.name, self.normed(x, weights[attn_in.producer]))
        yield attn_in.name, y, x
        y = self._rounded(o_in.name, self._attention(layer, weights, y, cache, start))
        yield o_in.name, y, x
        y = self._linear(weights, f"{at}self_attn.o_proj", y)
        if arch.post_norms:
            y = self.normed(y, weights[f"{at}post_attention_layernorm.weight"])
        x = x + y

        y = self._rounded(mlp_in.name, self.normed(x, weights[mlp_in.producer]))
        yield mlp_in.name, y, x
        gate, up = (self._linear(weights, f"{at}mlp.{part}_proj", y) for part in ("gate", "up"))
        y = self._rounded(down_in.name, self._activation(gate) * up)
        del gate, up  # what is alive while paused counts once per batch of the calibration set
        yield down_in.name, y, x
        y = self._linear(weights, f"{at}mlp.down_proj", y)
        if arch.post_norms:
            y = self.normed(y, weights[f"{at}post_feedforward_layernorm.weight"])
        return x + y

    def head_input(self, x: Tensor) -> Tensor:
        """The final norm: what the head multiplies."""
        return self.normed(x, self.tensor(FINAL_NORM))

    def head(self, x: Tensor) -> Tensor:  # (…, hidden) -> (…, vocab)
        """Logits of the last block's output."""
        return self.multiplied_by_head(self._rounded(self.arch.head_tap.name, self.head_input(x)))

    def multiplied_by_head(self, x: Tensor) -> Tensor:  # (…, hidden) -> (…, vocab)
        """Logits of what stands behind the final norm, a piece of the vocabulary at a time."""
        name, vocab = EMBED if self.arch.tied else HEAD, self.arch.vocab
        if torch.is_grad_enabled():  # autograd would copy all logits once a piece written into them
            return torch.cat([F.linear(x, self.tensor(name, rows)) for rows in pieces(vocab, HEAD_ROWS)], -1)
        logits = x.new_empty(*x.shape[:-1], vocab)
        for rows in pieces(vocab, HEAD_ROWS):
            logits[..., rows] = F.linear(x, self.tensor(name, rows))
        return logits

    def _linear(self, weights: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
        weight, bias = weights[f"{name}.weight"], weights.get(f"{name}.bias")
        if self._watch is None:
            return F.linear(x, weight, bias)
        y = self._watch(f"{name}.weight", F.linear(x, weight))
        return y if bias is None else y + bias

    def normed(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMSNorm of x (…, width) by a weight (width,) as stored."""
        offset = self.arch.norm_offset
        return F.rms_norm(x, weight.shape, weight + offset if offset else weight, self.arch.norm_eps)

    def _attention(
        self, layer: int, weights: Mapping[str, Tensor], x: Tensor, cache: Cache | None, start: int
    ) -> Tensor:
        """Causal attention, before its output projection: (b, t, hidden) -> (b, t, heads · head_dim)."""
        arch, at = self.arch, f"{self.arch.prefix(layer)}self_attn."
        q, k, v = (self._linear(weights, f"{at}{part}_proj", x) for part in "qkv")
        q, k, v = (y.unflatten(-1, (-1, arch.head_dim)) for y in (q, k, v))  # (b, t, heads, head_dim)
        if arch.qk_norm:
            q, k = self.normed(q, weights[f"{at}q_norm.weight"]), self.normed(k, weights[f"{at}k_norm.weight"])
        q, k = (self._rotary(arch.ropes[layer], y, start) for y in (q, k))
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))  # (b, heads, t, head_dim)
        window, t = arch.windows[layer], x.shape[1]
        if cache is not None:
            oldest, stop = 0 if window is None else max(0, start + 1 - window), start + t
            for held, new in zip(cache, (k, v), strict=True):
                held[:, :, start:stop] = new
            k, v = (held[:, :, oldest:stop] for held in cache)
        return _attend(q, k, v, window, arch.attn_scale)

    # ---- the whole model

    def hidden(self, tokens: Tensor, caches: Sequence[Cache] | None = None, start: int = 0) -> Tensor:
        """Output of the last block for tokens (b, t), which stand at positions start … start + t - 1."""
        x = self.embed(tokens)
        for layer in range(self.arch.layers):
            x = finish(self.block(layer, self.weights(layer), x, caches[layer] if caches else None, start))
        return x

    @torch.inference_mode()
    def logits(self, tokens: np.ndarray, first: int = 0) -> np.ndarray:
        """Logits after positions first … t - 1 of tokens (b, t): float32 (b, t - first, vocab)."""
        x = self.hidden(torch.from_numpy(np.asarray(tokens, np.int64)))
        return self.head(x[:, first:]).numpy(force=True)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        eos_ids: Sequence[int] = (),
    ) -> list[list[int]]:
        """The continuation of each prompt, without the prompt; it ends before the first of `eos_ids`.

        Temperature 0 takes the likeliest token. Prompts of equal length run as one batch; `seed` fixes the
        whole call, so a sample depends on the prompts beside it. Raises ParetobitError on an empty prompt,
        and on one that leaves no room in the context.
        """
        from paretobit.compress.sampling import generate

        return generate(self, prompts, max_new_tokens, temperature, seed, eos_ids)


def _attend(q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float) -> Tensor:
    """Causal attention of q (b, heads, t, head_dim) to k and v (b, kv_heads, n, head_dim), n ≥ t.

    The queries are the last t of the n positions. Returns (b, t, heads · head_dim).
    """
    b, _, t, head_dim = q.shape
    n = k.shape[2]
    if t == 1:  # nothing to mask: a group's heads become the rows of one query, which reads k and v once
        y = F.scaled_dot_product_attention(q.reshape(b, k.shape[1], -1, head_dim), k, v, scale=scale)
        return y.reshape(b, t, -1)
    mask = None
    if n != t or (window is not None and window < t):
        mask = torch.ones(t, n, dtype=torch.bool, device=q.device).tril(n - t)
        mask = mask if window is None else mask.triu(n - t - window + 1)
    y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=scale, enable_gqa=True)
    return y.transpose(1, 2).reshape(b, t, -1)
