"""The API as an OpenAPI document, from the models that check it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

PLACE = "#/components/schemas/{model}"


def schema(posts: Sequence[tuple[str, type[BaseModel]]]) -> dict[str, Any]:
    """posts: (path, what its body is)."""
    _, found = models_json_schema([(kind, "validation") for _, kind in posts], ref_template=PLACE)
    answer = {"200": {"description": "The answer"}, "400": {"description": "What is wrong, by its name"}}
    paths: dict[str, Any] = {
        path: {
            "post": {
                "operationId": path.strip("/").replace("/", "_"),
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": PLACE.format(model=kind.__name__)}}},
                },
                "responses": answer,
            }
        }
        for path, kind in posts
    }
    for path in ("/v1/models", "/health"):
        paths[path] = {"get": {"operationId": path.strip("/").replace("/", "_"), "responses": answer}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "paretobit", "version": version("paretobit")},
        "paths": paths,
        "components": {"schemas": found.get("$defs", {})},
    }
