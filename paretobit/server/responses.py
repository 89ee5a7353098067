"""/v1/responses, as far as it maps to a chat: nothing is stored, so each request brings its whole conversation."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from typing import Any

import anyio.to_thread
from pydantic import ValidationError
from starlette.responses import Response

from paretobit.server import errors
from paretobit.server.answers import Answers
from paretobit.server.chat import Chat
from paretobit.server.errors import bad, unsupported
from paretobit.server.fields import ChatRequest, Item, ResponseNamed, ResponsesRequest
from paretobit.server.making import given
from paretobit.server.replies import Stream, Whole
from paretobit.server.served import Served

TEXTS = ("input_text", "output_text", "text")


async def respond(served: Served, asked: ResponsesRequest) -> Response:
    """Raises ApiError and ParetobitError on what cannot be answered."""
    turn = await anyio.to_thread.run_sync(Turn, served, asked)
    answers = Answers(served.engine, [(turn.chat.prompt, wish) for wish in turn.chat.wishes])
    answers.start()
    if asked.stream:
        return Stream(turn.events(answers), answers.cancel, named=True)
    return Whole(lambda: turn.whole(answers), answers.cancel)


def as_chat(asked: ResponsesRequest) -> ChatRequest:
    """The same request, as a chat."""
    messages: list[dict[str, Any]] = []
    if asked.instructions:
        messages.append({"role": "system", "content": asked.instructions})
    items = [Item(role="user", content=asked.input)] if isinstance(asked.input, str) else asked.input
    for at, item in enumerate(items):
        message = _message(item, f"input[{at}]")
        if item.type == "function_call" and messages and messages[-1].get("tool_calls"):
            messages[-1]["tool_calls"] += message["tool_calls"]
        else:
            messages.append(message)
    fields: dict[str, Any] = {
        "messages": messages,
        "max_completion_tokens": asked.max_output_tokens,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "response_format": _format(asked),
    }
    if asked.tools:
        functions = [tool.model_dump(exclude={"type"}, exclude_none=True) for tool in asked.tools]
        choice = asked.tool_choice
        if isinstance(choice, ResponseNamed):
            fields["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
        else:
            fields["tool_choice"] = choice
        fields["tools"] = [{"type": "function", "function": function} for function in functions]
        fields["parallel_tool_calls"] = asked.parallel_tool_calls
    try:
        return ChatRequest.model_validate(fields)
    except ValidationError as why:
        raise errors.of_validation(why) from None


def _format(asked: ResponsesRequest) -> dict[str, Any] | None:
    wanted = None if asked.text is None else asked.text.format
    if wanted is None or wanted.type != "json_schema":
        return None if wanted is None else {"type": wanted.type}
    if wanted.name is None or wanted.schema_ is None:
        raise bad("'text.format' of type json_schema needs name and schema", "text.format")
    return {"type": "json_schema", "json_schema": {"name": wanted.name, "schema": wanted.schema_}}


def _message(item: Item, where: str) -> dict[str, Any]:
    if item.type == "function_call":
        if not item.call_id or not item.name:
            raise bad(f"'{where}' needs call_id and name", where, "missing_required_parameter")
        function = {"name": item.name, "arguments": item.arguments or "{}"}
        call = {"id": item.call_id, "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    if item.type == "function_call_output":
        if not item.call_id or item.output is None:
            raise bad(f"'{where}' needs call_id and output", where, "missing_required_parameter")
        return {"role": "tool", "content": item.output, "tool_call_id": item.call_id}
    if item.role is None or item.content is None:
        raise bad(f"'{where}' needs role and content", where, "missing_required_parameter")
    if isinstance(item.content, str):
        return {"role": item.role, "content": item.content}
    texts = []
    for at, part in enumerate(item.content):
        if part.get("type") not in TEXTS or not isinstance(part.get("text"), str):
            raise unsupported(f"{where}.content[{at}].type={str(part.get('type'))[:50]}")
        texts.append(part["text"])
    return {"role": item.role, "content": "".join(texts)}


class Turn:
    """One request and its answer."""

    def __init__(self, served: Served, asked: ResponsesRequest) -> None:
        self._asked, self._served = asked, served
        self.chat = Chat(served, as_chat(asked))
        self._id, self._message_id = f"resp_{secrets.token_hex(12)}", f"msg_{secrets.token_hex(12)}"

    async def whole(self, answers: Answers) -> dict[str, Any]:
        made = await self.chat.whole(answers)
        (choice,) = made["choices"]
        output = []
        if choice["message"]["content"]:
            output.append(self._message(choice["message"]["content"]))
        output += [_call(call) for call in choice["message"].get("tool_calls", [])]
        return self._response(output, choice["finish_reason"], made["usage"])

    async def events(self, answers: Answers) -> AsyncIterator[dict[str, Any]]:
        number = 0

        def event(kind: str, **fields: Any) -> dict[str, Any]:
            nonlocal number
            number += 1
            return {"type": f"response.{kind}", "sequence_number": number - 1, **fields}

        yield event("created", response=self._response([], None, None))
        yield event("in_progress", response=self._response([], None, None))
        output: list[dict[str, Any]] = []
        text, finish, used = "", None, None
        at = {"item_id": self._message_id, "output_index": 0, "content_index": 0}
        async for chunk in self.chat.chunks(answers, True):
            used = chunk["usage"] or used
            for choice in chunk["choices"]:
                delta, finish = choice["delta"], choice["finish_reason"] or finish
                if delta.get("content"):
                    if not text:
                        item = {**self._message(""), "status": "in_progress", "content": []}
                        yield event("output_item.added", output_index=0, item=item)
                        yield event("content_part.added", **at, part=_part(""))
                    text += delta["content"]
                    yield event("output_text.delta", **at, delta=delta["content"], logprobs=[])
                output += [_call(call) for call in delta.get("tool_calls", ())]
        if text:
            yield event("output_text.done", **at, text=text, logprobs=[])
            yield event("content_part.done", **at, part=_part(text))
            yield event("output_item.done", output_index=0, item=self._message(text))
            output.insert(0, self._message(text))
        for place, item in enumerate(output):
            if item["type"] == "function_call":
                begun = {**item, "arguments": "", "status": "in_progress"}
                of = {"item_id": item["id"], "output_index": place}
                yield event("output_item.added", output_index=place, item=begun)
                yield event("function_call_arguments.delta", **of, delta=item["arguments"])
                yield event("function_call_arguments.done", **of, name=item["name"], arguments=item["arguments"])
                yield event("output_item.done", output_index=place, item=item)
        response = self._response(output, finish, used)
        yield event("completed" if response["status"] == "completed" else "incomplete", response=response)

    def _message(self, text: str) -> dict[str, Any]:
        content = [_part(text)]
        return {
            "id": self._message_id, "type": "message", "role": "assistant", "status": "completed", "content": content
        }  # fmt: skip

    def _response(
        self, output: list[dict[str, Any]], finish: str | None, used: dict[str, Any] | None
    ) -> dict[str, Any]:
        asked, cut = self._asked, finish == "length"
        usage = used and {
            "input_tokens": used["prompt_tokens"],
            "input_tokens_details": used["prompt_tokens_details"],
            "output_tokens": used["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": used["total_tokens"],
        }
        echoed = asked.model_dump(by_alias=True, exclude_none=True, include={"tools", "tool_choice", "text"})
        return {
            "id": self._id,
            "object": "response",
            "created_at": self.chat.created,
            "status": "in_progress" if finish is None else "incomplete" if cut else "completed",
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "model": self._served.id,
            "output": output,
            "parallel_tool_calls": given(asked.parallel_tool_calls, True),
            "previous_response_id": None,
            "store": False,
            "temperature": given(asked.temperature, 1.0),
            "top_p": given(asked.top_p, 1.0),
            "metadata": {},
            "usage": usage,
            "tools": [],
            "tool_choice": "auto",
            "text": {"format": {"type": "text"}},
            **echoed,
        }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _call(call: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"fc_{secrets.token_hex(12)}",
        "type": "function_call",
        "call_id": call["id"],
        "status": "completed",
        **call["function"],
    }
