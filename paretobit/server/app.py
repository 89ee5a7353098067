"""The routes: what stands at which address."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import anyio.to_thread
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from paretobit.errors import ParetobitError
from paretobit.server import chat, completions, errors, fields, openapi, page, responses
from paretobit.server.errors import ApiError, bad
from paretobit.server.guard import Guard
from paretobit.server.meter import Meter
from paretobit.server.metrics import Registry
from paretobit.server.replies import NO_STORE, Json, error_response, explained
from paretobit.server.served import Catalogue, Served

Fields = TypeVar("Fields", bound=BaseModel)
Endpoint = Callable[[Request], Awaitable[Response]]


class Api:
    """The endpoints over a catalogue of models. registry: None leaves /metrics out."""

    def __init__(self, catalogue: Catalogue, registry: Registry | None) -> None:
        self._catalogue, self._registry = catalogue, registry
        self._meter = Meter(catalogue)

    def routes(self) -> list[Route]:
        posts: list[tuple[str, type[Any], Any]] = [
            ("/v1/chat/completions", fields.ChatRequest, chat.respond),
            ("/v1/completions", fields.CompletionRequest, completions.respond),
            ("/v1/responses", fields.ResponsesRequest, responses.respond),
            ("/v1/embeddings", fields.EmbeddingsRequest, embed),
            ("/tokenize", fields.TokenizeRequest, tokenize),
            ("/detokenize", fields.DetokenizeRequest, detokenize),
        ]
        found = [Route(path, self._post(kind, respond), methods=["POST"]) for path, kind, respond in posts]
        schema = openapi.schema([(path, kind) for path, kind, _ in posts])

        async def described(request: Request) -> Response:
            return Json(schema)

        gets: list[tuple[str, Endpoint]] = [
            ("/v1/models", self.models),
            ("/v1/models/{name:path}", self.model),
            ("/health", self.health),
            ("/meter", self.meter),
            ("/openapi.json", described),
            ("/docs", page.docs(schema)),
            ("/", page.chat()),
        ]
        if self._registry is not None:
            gets.append(("/metrics", self.metrics))
        return found + [Route(path, endpoint, methods=["GET"]) for path, endpoint in gets]

    def _post(self, kind: type[Fields], respond: Callable[[Served, Fields], Awaitable[Response]]) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            try:
                asked = kind.model_validate_json(await request.body())
            except ValidationError as why:
                raise errors.of_validation(why) from None
            except RecursionError:
                raise bad("the body is nested too deeply", None, "invalid_json") from None
            return await respond(self._catalogue.find(asked.model), asked)  # type: ignore[attr-defined]

        return endpoint

    async def models(self, request: Request) -> Response:
        self._catalogue.find(None)
        return Json({"object": "list", "data": [_listed(each) for each in self._catalogue.models.values()]})

    async def model(self, request: Request) -> Response:
        return Json(_listed(self._catalogue.find(request.path_params["name"])))

    async def health(self, request: Request) -> Response:
        ready = bool(self._catalogue.models)
        return Json({"status": "ok" if ready else "loading"}, 200 if ready else 503, NO_STORE)

    async def meter(self, request: Request) -> Response:
        return Json(self._meter.read(), 200, NO_STORE)

    async def metrics(self, request: Request) -> Response:
        assert self._registry is not None
        return Response(self._registry.text(), media_type="text/plain; version=0.0.4", headers=NO_STORE)


def _listed(served: Served) -> dict[str, Any]:
    session = served.model.session
    return {
        "id": served.id,
        "object": "model",
        "created": served.created,
        "owned_by": "paretobit",
        "max_model_len": session.context,
        "size_bytes": served.size_bytes,
    }


async def embed(served: Served, asked: fields.EmbeddingsRequest) -> Response:
    raise bad(f"'{served.id}' writes text; it makes no embeddings", "model", "unsupported_model")


async def tokenize(served: Served, asked: fields.TokenizeRequest) -> Response:
    tokens = await anyio.to_thread.run_sync(served.model.tokenizer.encode, asked.content, asked.add_special)
    return Json({"tokens": tokens, "count": len(tokens), "max_model_len": served.model.session.context})


async def detokenize(served: Served, asked: fields.DetokenizeRequest) -> Response:
    text = await anyio.to_thread.run_sync(served.model.tokenizer.decode, asked.tokens, False)
    return Json({"content": text})


def app(
    catalogue: Catalogue, registry: Registry | None = None, keys: Sequence[bytes] = (), local: bool = True
) -> Guard:
    """The whole application. keys: any of them lets in; none lets all in. local: see Guard."""

    async def fail(request: Request, why: Exception) -> Response:
        return error_response(explained(why))

    async def no_page(request: Request, why: Exception) -> Response:
        assert isinstance(why, HTTPException)
        text = {404: f"there is nothing at {request.url.path[:100]}", 405: f"{request.method} is not for this address"}
        return error_response(ApiError(why.status_code, text.get(why.status_code, str(why.detail))))

    handlers: Any = {ApiError: fail, ParetobitError: fail, HTTPException: no_page, Exception: fail}
    routes = Api(catalogue, registry).routes()
    return Guard(Starlette(routes=routes, exception_handlers=handlers), keys, local)
