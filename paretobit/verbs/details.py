"""What eval writes into details.json: the spread of KL divergence, the worst windows, and what both models write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from paretobit.errors import ParetobitError
from paretobit.progress import progress

if TYPE_CHECKING:
    from paretobit.artifact import Artifact
    from paretobit.evals import divergence
    from paretobit.evals.perplexity import Logits
    from paretobit.reports.details import Continuation, Details, Guess, Spread, Window
    from paretobit.runtime.tokenizer import Tokenizer

FIRST, STEP, BINS = -7.0, 0.25, 36  # log10 of nats: from what is measured exactly to 100
SHARES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
CONTINUED, NEW_TOKENS = (0, 1, 3, 5), 24  # prompts, and tokens after each: as much work as four windows of text
MOST_KL = 1e9  # nats that the file can hold; no model that works comes near
BEFORE = 32  # tokens shown before the first scored one


def details_of(
    packed: Artifact,
    compared: divergence.Comparison,
    tokenizer: Tokenizer,
    original: str,
    command: str,
    continued: tuple[list[Continuation], str | None],
) -> Details:
    """What to keep of an evaluation against an original, beside its figures. continued: the texts, or why there are
    none."""
    from paretobit.reports.details import Details

    assert compared.kl is not None
    windows = tuple(_window(window, tokenizer) for window in compared.worst)
    spread = spread_of(compared.kl)
    return Details(packed.hash, original, command, spread, windows, tuple(continued[0]), continued[1])


def spread_of(kl: np.ndarray) -> Spread:  # (tokens,) nats
    """Its histogram over log10 and its quantiles."""
    from paretobit.reports.details import Spread

    at = np.floor((np.log10(np.maximum(kl, 10**FIRST)) - FIRST) / STEP).astype(np.int64)
    counts = np.bincount(np.clip(at, 0, BINS - 1), minlength=BINS)
    quantiles = zip(SHARES, np.quantile(kl, SHARES), strict=True)
    return Spread(
        FIRST, STEP, tuple(map(int, counts)), tuple((share, min(float(nats), MOST_KL)) for share, nats in quantiles)
    )


def _window(seen: divergence.Window, tokenizer: Tokenizer) -> Window:
    from paretobit.reports.details import MOST_TEXT, MOST_TOKENS, MOST_WORD, Token, Window
    from paretobit.runtime.streaming import Detokenizer

    scored = len(seen.kl)
    known, targets = seen.tokens[:-scored].tolist(), seen.tokens[-scored:].tolist()
    writer = Detokenizer(tokenizer, known)
    pieces = [writer.push(token) for token in targets]
    pieces[-1] += writer.end()
    tokens = []
    for i, (target, piece) in enumerate(zip(targets, pieces, strict=True)):
        top, other, kl = int(seen.top[i]), int(seen.reference_top[i]), float(f"{min(seen.kl[i], MOST_KL):.6g}")
        if top == other:
            tokens.append(Token(piece[:MOST_WORD], kl))
            continue
        right = "original" if other == target else "quantized" if top == target else None
        guesses = _guess(tokenizer, other, seen.reference_p[i]), _guess(tokenizer, top, seen.p[i])
        tokens.append(Token(piece[:MOST_WORD], kl, *guesses, right))
    before = tokenizer.decode(known[-BEFORE:])[-MOST_TEXT:]
    return Window(seen.index, before, tuple(tokens[:MOST_TOKENS]))


def _guess(tokenizer: Tokenizer, token: int, p: float) -> Guess:
    from paretobit.reports.details import MOST_WORD, Guess

    text = tokenizer.decode([token], skip_special=False)
    if not text or "\ufffd" in text:  # part of a character, or a row of the head that no token has
        text = tokenizer.text_of(token) or f"#{token}"
    return Guess(text[:MOST_WORD], min(1.0, round(float(p), 5)))


def continuations(
    names: tuple[str, str], models: tuple[Logits, Logits], tokenizer: Tokenizer, context: int, vocab: int
) -> tuple[list[Continuation], str | None]:
    """What `models`, the original and the packed one, write after the first prompts; or why they do not.

    context: the most tokens they take; vocab: entries of the embedding.
    """
    from paretobit.evals.writing import PROMPTS, greedy
    from paretobit.reports.details import Continuation

    prompts = [PROMPTS[i] for i in CONTINUED]
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    if not all(ids):
        return [], "the tokenizer makes nothing of the prompts"
    if max(map(max, ids)) >= vocab:
        return [], f"the prompts hold tokens beyond the model's {vocab}"
    if max(map(len, ids)) + NEW_TOKENS > context:
        return [], f"the prompts and {NEW_TOKENS} tokens do not fit a context of {context}"
    texts = []
    for name, logits in zip(names, models, strict=True):
        try:
            with progress(f"letting {name} write", NEW_TOKENS) as advance:
                written = greedy(logits, ids, NEW_TOKENS, tokenizer.eos_ids, advance)
        except ParetobitError as why:
            return [], f"{name} does not go on: {why.message}"
        texts.append([_new_text(tokenizer, prompt, new) for prompt, new in zip(ids, written, strict=True)])
    return [Continuation(*each) for each in zip(prompts, *texts, strict=True)], None


def _new_text(tokenizer: Tokenizer, prompt: Sequence[int], new: Sequence[int]) -> str:
    """The text of `new` as it goes on from `prompt`: alone, some tokenizers would drop its first space."""
    from paretobit.reports.details import MOST_TEXT

    before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *new])
    return (whole[len(before) :] if whole.startswith(before) else tokenizer.decode(new))[:MOST_TEXT]
