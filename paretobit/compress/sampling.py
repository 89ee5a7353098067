"""Batched generation with the torch decoder: keys and values cached, one forward pass a token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from paretobit.errors import ParetobitError

if TYPE_CHECKING:
    from paretobit.compress.model import Decoder


def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float,
    seed: int,
    eos_ids: Sequence[int],
) -> list[list[int]]:
    """See `Decoder.generate`."""
    _check(prompts, max_new_tokens, temperature, decoder.arch.max_positions)
    generator = torch.Generator(decoder.device).manual_seed(seed)
    ends = torch.tensor(list(eos_ids), dtype=torch.int64)
    texts: list[list[int]] = [[] for _ in prompts]
    for length in sorted({len(prompt) for prompt in prompts}):
        members = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
        batch = torch.tensor([list(prompts[i]) for i in members])
        columns = []
        ended = torch.zeros(len(members), dtype=torch.bool)
        for column in stream(decoder, batch, max_new_tokens, temperature, generator):
            columns.append(column.cpu())
            ended |= torch.isin(columns[-1], ends)
            if ended.all():
                break
        for i, row in zip(members, torch.stack(columns, 1) if columns else batch[:, :0], strict=True):
            stop = torch.isin(row, ends).nonzero()
            texts[i] = row[: int(stop[0]) if len(stop) else None].tolist()
    return texts


@torch.inference_mode()
def stream(
    decoder: Decoder, prompts: Tensor, max_new_tokens: int, temperature: float, generator: torch.Generator
) -> Iterator[Tensor]:
    """The next token of every prompt, (b,), max_new_tokens times; prompts (b, t) int64."""
    arch, (b, t) = decoder.arch, prompts.shape
    capacity = t + max_new_tokens - 1  # the last token is never fed
    room = torch.empty(arch.layers, 2, b, arch.kv_heads, capacity, arch.head_dim, device=decoder.device)
    caches = [(keys, values) for keys, values in room]
    tokens, start = prompts, 0
    for _ in range(max_new_tokens):
        x = decoder.hidden(tokens, caches, start)
        start += tokens.shape[1]
        token = sample(decoder.head(x[:, -1]), temperature, generator)
        yield token
        tokens = token[:, None]


def sample(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:  # (b, vocab) -> (b,)
    """Draw from softmax(logits / temperature); temperature 0 takes the likeliest.

    Inverts the cumulative distribution, with one random number a row: several times cheaper than
    `torch.multinomial`, which draws one a vocabulary entry.
    """
    if temperature == 0:
        return logits.argmax(-1)
    weights = torch.softmax((logits - logits.amax(-1, keepdim=True)) / temperature, -1)
    edges = weights.cumsum(-1, dtype=torch.float64)
    u = torch.rand(len(edges), 1, generator=generator, dtype=torch.float64, device=edges.device)
    last = edges[:, -1:]  # the product may round up to it, and past it there is no token
    at = torch.minimum(u * last, torch.nextafter(last, torch.zeros_like(last)))
    return torch.searchsorted(edges, at, right=True)[:, 0]


def _check(prompts: Sequence[Sequence[int]], max_new_tokens: int, temperature: float, context: int) -> None:
    if not temperature >= 0:
        raise ParetobitError(f"temperature {temperature} is negative", hint="0 is greedy, 1 the model's own")
    if max_new_tokens < 0:
        raise ParetobitError(f"cannot generate {max_new_tokens} tokens", hint="ask for 0 or more")
    if not all(len(prompt) for prompt in prompts):
        raise ParetobitError("an empty prompt has no next token", hint="start it with at least one token")
    longest = max(map(len, prompts), default=0)
    if longest + max_new_tokens > context:
        raise ParetobitError(
            f"{longest} tokens and {max_new_tokens} new ones are beyond the model's context of {context}",
            hint="shorten the prompt, or generate less",
        )
