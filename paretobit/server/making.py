"""From a request's fields to wishes that the engine fulfils, and from tokens to what clients read of them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from paretobit.runtime.sampler import Sampling
from paretobit.runtime.tokenizer import Tokenizer
from paretobit.server.answers import Answers
from paretobit.server.errors import bad
from paretobit.server.fields import Sampled
from paretobit.server.job import Constraint, Likely, Wish

T = TypeVar("T")
FINISH = {"eos": "stop", "stop": "stop", "length": "length"}


def wishes(
    asked: Sampled,
    most: int | None,
    top: int | None,
    constraint: Callable[[], Constraint] | None = None,
    shown: Mapping[int, str] | None = None,
    **more: bool,
) -> list[Wish]:
    """One for each of `n` choices, whose seeds follow each other. Without a seed, a random one; temperature is 1, as
    OpenAI's, where nothing is said. Raises ParetobitError on what makes no sense."""
    stop = asked.stop if isinstance(asked.stop, list) else [asked.stop] if asked.stop is not None else []
    seed = secrets.randbits(63) if asked.seed is None else asked.seed % (1 << 64)
    bias = {int(token): value for token, value in (asked.logit_bias or {}).items()}

    def sampling(choice: int) -> Sampling:
        return Sampling(
            given(asked.temperature, 1.0),
            given(asked.top_k, 0),
            given(asked.top_p, 1.0),
            given(asked.min_p, 0.0),
            given(asked.repetition_penalty, 1.0),
            given(asked.presence_penalty, 0.0),
            given(asked.frequency_penalty, 0.0),
            bias,
            (seed + choice) % (1 << 64),
        )

    return [
        Wish(sampling(choice), most, tuple(stop), top, shown=shown or {}, constraint=constraint, **more)
        for choice in range(asked.n or 1)
    ]


def given(value: T | None, otherwise: T) -> T:
    return otherwise if value is None else value


def check_stream_options(asked: Sampled) -> bool:
    """Whether a stream ends with a chunk of its usage."""
    if asked.stream_options is not None and not asked.stream:
        raise bad("'stream_options' needs 'stream': true", "stream_options")
    return bool(asked.stream_options and asked.stream_options.include_usage)


def usage(answers: Answers, every: int = 1) -> dict[str, Any]:
    """every: how many answers in a row have the same prompt, which counts once."""
    first = answers.jobs[::every]
    prompt, said = sum(len(job.prompt) for job in first), answers.said
    return {
        "prompt_tokens": prompt,
        "completion_tokens": said,
        "total_tokens": prompt + said,
        "prompt_tokens_details": {"cached_tokens": sum(job.cached for job in first)},
    }


def spelled(tokenizer: Tokenizer, token: int) -> str:
    """A token's own text; a part of a character as OpenAI spells it, "bytes:\\xe4"."""
    text = tokenizer.decode([token], skip_special=False)
    if "\ufffd" not in text:
        return text
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in tokenizer.bytes_of(token))


def chat_logprobs(tokenizer: Tokenizer, noted: Sequence[Likely]) -> list[dict[str, Any]]:
    def entry(token: int, logprob: float | None) -> dict[str, Any]:
        text = spelled(tokenizer, token)
        return {"token": text, "logprob": logprob, "bytes": list(tokenizer.bytes_of(token))}

    return [{**entry(each.token, each.logprob), "top_logprobs": [entry(*best) for best in each.best]} for each in noted]


class TextLogprobs:
    """The `logprobs` of /v1/completions: parallel lists, with where each token begins in the text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._at = tokenizer, 0

    def push(self, noted: Sequence[Likely]) -> dict[str, Any]:
        texts = [spelled(self._tokenizer, each.token) for each in noted]
        offsets = []
        for text in texts:
            offsets.append(self._at)
            self._at += len(text)
        best = [
            None if each.logprob is None else dict((*self._spelled(each.best), (text, each.logprob)))
            for each, text in zip(noted, texts, strict=True)
        ]
        return {
            "tokens": texts,
            "token_logprobs": [each.logprob for each in noted],
            "top_logprobs": best,
            "text_offset": offsets,
        }

    def _spelled(self, best: Sequence[tuple[int, float]]) -> list[tuple[str, float]]:
        return [(spelled(self._tokenizer, token), value) for token, value in best]
