"""How answers travel: as one JSON object, or piece by piece as server-sent events. Who leaves ends the work."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from paretobit.server import errors
from paretobit.server.errors import ApiError

PATIENCE = 60.0  # seconds for a client to take what it is sent
log = logging.getLogger("paretobit.server")
NO_STORE = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


class Json(JSONResponse):
    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(
            "utf-8", "replace"
        )


def error_response(why: ApiError) -> Response:
    return Json(why.to_json(), why.status, {**NO_STORE, **why.headers})


class Reply(Response):
    """Runs `work` while its client is there; `leave` is called in any case, at the end."""

    def __init__(self, leave: Callable[[], None]) -> None:
        self._leave = leave
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(_until_gone, receive, group.cancel_scope)
                await self.work(scope, receive, send)
                group.cancel_scope.cancel()
        finally:
            self._leave()

    async def work(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise NotImplementedError


async def _until_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


class Whole(Reply):
    """One JSON object, once it is made."""

    def __init__(self, made: Callable[[], Awaitable[dict[str, Any]]], leave: Callable[[], None]) -> None:
        super().__init__(leave)
        self._made = made

    async def work(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            answer: Response = Json(await self._made(), 200, NO_STORE)
        except Exception as why:
            answer = error_response(explained(why))
        await answer(scope, receive, send)


class Stream(Reply):
    """Server-sent events; an error after the first is an event too. named: each has its type as the event's name."""

    def __init__(self, chunks: AsyncIterator[dict[str, Any]], leave: Callable[[], None], named: bool = False) -> None:
        super().__init__(leave)
        self._chunks, self._named = chunks, named

    async def work(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
        headers += [(name.encode(), value.encode()) for name, value in NO_STORE.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        with anyio.CancelScope() as patience:  # one for all pieces: a scope a piece costs as much as sending it

            async def pass_on(text: str, more: bool = True) -> None:
                patience.deadline = anyio.current_time() + PATIENCE
                body = text.encode("utf-8", "replace")
                await send({"type": "http.response.body", "body": body, "more_body": more})
                patience.deadline = math.inf

            try:
                async for chunk in self._chunks:
                    await pass_on(self._event(chunk))
            except Exception as why:
                await pass_on(self._event(explained(why).to_json()))
            await pass_on("" if self._named else "data: [DONE]\n\n", more=False)
        if patience.cancelled_caught:
            log.info("a client does not read its answer")

    def _event(self, chunk: dict[str, Any]) -> str:
        text = json.dumps(chunk, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        name = f"event: {chunk['type']}\n" if self._named and "type" in chunk else ""
        return f"{name}data: {text}\n\n"


def explained(why: Exception) -> ApiError:
    """The error that its client sees; what nobody expected is logged."""
    answer = errors.of(why)
    if answer.status >= 500:
        log.error("a request failed", exc_info=why)
    return answer
