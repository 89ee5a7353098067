"""/v1/chat/completions."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio.to_thread
from starlette.responses import Response

from paretobit.server.answers import Answers
from paretobit.server.errors import bad
from paretobit.server.fields import ChatRequest
from paretobit.server.grammar import form_of
from paretobit.server.job import Event, Wish
from paretobit.server.making import FINISH, chat_logprobs, check_stream_options, usage, wishes
from paretobit.server.replies import Stream, Whole
from paretobit.server.served import Served
from paretobit.server.tools import CallReader, Toolbox


async def respond(served: Served, asked: ChatRequest) -> Response:
    """Raises ApiError and ParetobitError on what cannot be answered."""
    with_usage = check_stream_options(asked)
    chat = await anyio.to_thread.run_sync(Chat, served, asked)
    answers = Answers(served.engine, [(chat.prompt, wish) for wish in chat.wishes])
    answers.start()
    if asked.stream:
        return Stream(chat.chunks(answers, with_usage), answers.cancel)
    return Whole(lambda: chat.whole(answers), answers.cancel)


class Chat:
    """One request: its prompt, its wishes, and how its answers read."""

    def __init__(self, served: Served, asked: ChatRequest) -> None:
        if asked.max_tokens is not None and asked.max_completion_tokens is not None:
            raise bad("'max_tokens' and 'max_completion_tokens' are the same: give one", "max_tokens")
        if asked.max_tokens == 0:
            raise bad("'max_tokens' must be at least 1", "max_tokens", "invalid_value")
        if asked.top_logprobs is not None and not asked.logprobs:
            raise bad("'top_logprobs' needs 'logprobs': true", "top_logprobs")
        if not asked.tools and asked.tool_choice not in (None, "none"):
            raise bad("'tool_choice' needs 'tools'", "tool_choice")
        if not asked.tools and asked.parallel_tool_calls is not None:
            raise bad("'parallel_tool_calls' needs 'tools'", "parallel_tool_calls")
        _check_messages(asked)
        self.served = served
        self.id, self.created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())
        tokenizer = served.model.tokenizer
        self.toolbox = Toolbox(tokenizer, asked.tools, asked.tool_choice, asked.parallel_tool_calls)
        self.prompt = tokenizer.encode(self.toolbox.prompt(tokenizer, asked.messages), add_special=False)
        grammar = self.toolbox.grammar(form_of(asked.response_format))
        constraint = None if grammar is None else served.grammars.compile(*grammar)
        most = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
        self.logprobs = bool(asked.logprobs)
        top = (asked.top_logprobs or 0) if asked.logprobs else None
        self.wishes: list[Wish] = wishes(asked, most, top, constraint, self.toolbox.shown)
        self._readers = [CallReader(self.toolbox) for _ in self.wishes]

    async def whole(self, answers: Answers) -> dict[str, Any]:
        choices: list[dict[str, Any]] = [
            {
                "index": at,
                "message": {"role": "assistant", "content": "", "refusal": None},
                "logprobs": {"content": [], "refusal": None} if self.logprobs else None,
                "finish_reason": None,
            }
            for at in range(len(self.wishes))
        ]
        async for at, event in answers.events():
            choice, message = choices[at], choices[at]["message"]
            message["content"] += self._readers[at].push(event.text)
            if self.logprobs:
                choice["logprobs"]["content"] += chat_logprobs(self.served.model.tokenizer, event.likely)
            if event.finish:
                rest, calls = self._readers[at].end()
                message["content"] += rest
                if calls:
                    message |= {"content": message["content"] or None, "tool_calls": calls}
                choice["finish_reason"] = _finish(event, calls)
        return {**self._head("chat.completion"), "choices": choices, "usage": usage(answers, len(self.wishes))}

    async def chunks(self, answers: Answers, with_usage: bool) -> AsyncIterator[dict[str, Any]]:
        head = self._head("chat.completion.chunk")
        more = {"usage": None} if with_usage else {}

        def chunk(at: int, delta: dict[str, Any], finish: str | None = None, likely: Any = ()) -> dict[str, Any]:
            noted = chat_logprobs(self.served.model.tokenizer, likely)
            logprobs = {"content": noted, "refusal": None} if self.logprobs and noted else None
            choice = {"index": at, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
            return {**head, "choices": [choice], **more}

        for at in range(len(self.wishes)):
            yield chunk(at, {"role": "assistant", "content": "", "refusal": None})
        async for at, event in answers.events():
            text = self._readers[at].push(event.text)
            rest, calls = self._readers[at].end() if event.finish else ("", [])
            if text + rest or event.likely:
                yield chunk(at, {"content": text + rest}, likely=event.likely)
            for number, call in enumerate(calls):
                yield chunk(at, {"tool_calls": [{"index": number, **call}]})
            if event.finish:
                yield chunk(at, {}, _finish(event, calls))
        if with_usage:
            yield {**head, "choices": [], "usage": usage(answers, len(self.wishes))}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.served.id,
            "system_fingerprint": None,
        }


def _finish(event: Event, calls: list[dict[str, Any]]) -> str:
    return "tool_calls" if calls and event.finish != "length" else FINISH[event.finish]


def _check_messages(asked: ChatRequest) -> None:
    for at, message in enumerate(asked.messages):
        where = f"messages[{at}]"
        if message.content is None and not (message.role == "assistant" and message.tool_calls):
            raise bad(f"'{where}.content' is missing", f"{where}.content", "missing_required_parameter")
        if message.tool_calls and message.role != "assistant":
            raise bad(f"'{where}.tool_calls' belong to the assistant", f"{where}.tool_calls", "invalid_value")
        if (message.tool_call_id is not None) != (message.role == "tool"):
            raise bad(f"'{where}.tool_call_id' belongs to messages of role tool", f"{where}.tool_call_id")
