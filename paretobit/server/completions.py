"""/v1/completions: text or tokens in, what goes on from them out, with log-probabilities of both where asked for."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio.to_thread
from starlette.responses import Response

from paretobit.errors import ParetobitError
from paretobit.server.answers import Answers
from paretobit.server.errors import bad
from paretobit.server.fields import CompletionRequest
from paretobit.server.grammar import form_of
from paretobit.server.job import Event, Wish
from paretobit.server.making import FINISH, TextLogprobs, check_stream_options, usage, wishes
from paretobit.server.replies import Stream, Whole
from paretobit.server.served import Served

USUAL = 16  # tokens, as OpenAI's


async def respond(served: Served, asked: CompletionRequest) -> Response:
    """Raises ApiError and ParetobitError on what cannot be answered."""
    with_usage = check_stream_options(asked)
    work = await anyio.to_thread.run_sync(Completions, served, asked)
    answers = Answers(served.engine, work.asked)
    answers.start()
    if asked.stream:
        return Stream(work.chunks(answers, with_usage), answers.cancel)
    return Whole(lambda: work.whole(answers), answers.cancel)


class Completions:
    """One request: all its prompts, `n` answers to each."""

    def __init__(self, served: Served, asked: CompletionRequest) -> None:
        self.served = served
        self.id, self.created = f"cmpl-{secrets.token_hex(12)}", int(time.time())
        self._echo, self._logprobs = bool(asked.echo), asked.logprobs is not None
        most = USUAL if asked.max_tokens is None else asked.max_tokens
        if most == 0 and not asked.echo:
            raise bad("'max_tokens' is 0, and without 'echo' nothing is left to answer", "max_tokens", "invalid_value")
        form = form_of(asked.response_format)
        constraint = None if form is None else served.grammars.compile(form.whole, form.param)
        score = self._echo and self._logprobs
        each: list[Wish] = wishes(asked, most, asked.logprobs, constraint, score=score, continues=True)
        self._every = len(each)
        prompts = [self._tokens(prompt) for prompt in listed(asked.prompt)]
        self.asked = [(prompt, wish) for prompt in prompts for wish in each]
        tokenizer = served.model.tokenizer
        self._readers = [TextLogprobs(tokenizer) for _ in self.asked]

    def _tokens(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            return self.served.model.tokenizer.encode(prompt)
        vocab = self.served.model.session.arch.vocab
        wrong = next((token for token in prompt if token >= vocab), None)
        if wrong is not None:
            raise bad(f"'prompt': {wrong} is not one of this model's {vocab} tokens", "prompt", "invalid_value")
        return prompt

    async def whole(self, answers: Answers) -> dict[str, Any]:
        texts = [self._first(at) for at in range(len(self.asked))]
        likely: list[list[Any]] = [[] for _ in self.asked]
        ends = [""] * len(self.asked)
        async for at, event in answers.events():
            texts[at] += event.text
            likely[at] += event.likely
            ends[at] = event.finish
        choices = [self._choice(at, texts[at], likely[at], FINISH[ends[at]]) for at in range(len(self.asked))]
        return {**self._head(), "choices": choices, "usage": usage(answers, self._every)}

    async def chunks(self, answers: Answers, with_usage: bool) -> AsyncIterator[dict[str, Any]]:
        more = {"usage": None} if with_usage else {}
        begun: set[int] = set()

        def text_of(at: int, event: Event) -> str:
            first = "" if at in begun else self._first(at)
            begun.add(at)
            return first + event.text

        async for at, event in answers.events():
            text = text_of(at, event)
            if text or event.likely:
                yield {**self._head(), "choices": [self._choice(at, text, event.likely, None)], **more}
            if event.finish:
                yield {**self._head(), "choices": [self._choice(at, "", (), FINISH[event.finish])], **more}
        if with_usage:
            yield {**self._head(), "choices": [], "usage": usage(answers, self._every)}

    def _first(self, at: int) -> str:
        return self.served.model.tokenizer.decode(self.asked[at][0]) if self._echo else ""

    def _choice(self, at: int, text: str, likely: Any, finish: str | None) -> dict[str, Any]:
        logprobs = self._readers[at].push(likely) if self._logprobs and (likely or finish is None) else None
        return {"index": at, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.served.id,
            "system_fingerprint": None,
        }


def listed(prompt: Any) -> list[str | list[int]]:
    """All the prompts of a request. Raises ParetobitError on one without tokens."""
    many = prompt if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else [prompt]
    if not all(isinstance(each, str) or each for each in many):
        raise ParetobitError("the prompt is empty", hint="give at least one token")
    return many
