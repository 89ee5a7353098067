"""What a model writes after a few prompts when it always takes the likeliest token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from paretobit.evals.perplexity import Logits, call

PROMPTS = (
    "The capital of France is",
    "Water boils at",
    "The three primary colors are",
    "To make a cup of tea, first",
    "The largest planet in our solar system is",
    "Once upon a time, there was a little",
    "In 1969, astronauts",
    "def add(a, b):\n",
    "Q: What is 2 + 3?\nA:",
    "My favorite season is autumn because",
)


def greedy(
    logits: Logits,
    prompts: Sequence[Sequence[int]],
    count: int,
    ends: Sequence[int] = (),
    advance: Callable[[float], None] | None = None,
) -> list[list[int]]:
    """At most `count` tokens after each prompt (at least one token each), without it and without the token of `ends`
    that ends it.

    All prompts go on in one batch, filled up behind their ends, where a causal model does not look; without a cache, so
    that this works on whatever can be evaluated. Of equal logits the lowest id is taken. advance hears of steps done.
    """
    texts = [list(prompt) for prompt in prompts]
    going = [True for _ in texts]
    for step in range(count):
        lengths = [len(text) for text in texts]
        first = min(lengths) - 1
        rows = np.zeros((len(texts), max(lengths)), np.int64)
        for row, text in zip(rows, texts, strict=True):
            row[: len(text)] = text
        found = call(logits, rows, first)  # (prompts, positions, vocab)
        for i, text in enumerate(texts):
            token = int(found[i, lengths[i] - 1 - first].argmax())
            going[i] = going[i] and token not in ends
            if going[i]:
                text.append(token)
        if advance is not None:
            advance(1)
        if not any(going):
            if advance is not None:
                advance(count - 1 - step)
            break
    return [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]
