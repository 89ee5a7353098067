"""What people see in a browser: the chat at /, and the API's description at /docs. Neither loads anything else."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

Endpoint = Callable[[Request], Awaitable[Response]]


def chat() -> Endpoint:
    """The chat, one file: page.html."""
    return _served(files("paretobit.server").joinpath("page.html").read_text("utf-8"))


def docs(schema: dict[str, Any]) -> Endpoint:
    """Every address and its fields, from the OpenAPI document."""
    kinds = schema["components"]["schemas"]
    parts = []
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>")
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            fields = kinds.get(body.get("$ref", "").rpartition("/")[2], {})
            needed = fields.get("required", ())
            rows = [_row(name, each, name in needed) for name, each in sorted(fields.get("properties", {}).items())]
            if rows:
                parts.append(f"<table><tr><th>field<th>what</tr>{''.join(rows)}</table>")
    style = (
        ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;"
        "padding:0 1rem}table{border-collapse:collapse}td,th{text-align:left;padding:.2rem .8rem .2rem 0;"
        "vertical-align:top}td+td{overflow-wrap:anywhere}"
    )
    return _served(
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>paretobit: the API</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head><body><main>'
        f"<h1>The API</h1><p>A field that is not listed is refused by its name. For programs: "
        f'<a href="openapi.json">openapi.json</a>.</p>'
        f"{''.join(parts)}</main></body></html>"
    )


def _row(name: str, field: dict[str, Any], needed: bool) -> str:
    what = ", ".join(_kind(each) for each in field.get("anyOf", [field]) if each.get("type") != "null")
    return f"<tr><td><code>{html.escape(name)}</code><td>{html.escape(what)}{'; needed' if needed else ''}</tr>"


def _kind(field: dict[str, Any]) -> str:
    name = str(field.get("$ref", "")).rpartition("/")[2] or str(field.get("type", "any"))
    if "enum" in field or "const" in field:
        return " | ".join(map(str, field.get("enum", [field.get("const")])))
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return " ".join([name, *(f"{sign} {field[key]:g}" for key, sign in bounds.items() if key in field)])


def _served(text: str) -> Endpoint:
    """A page with a policy that lets through its own scripts and styles, and requests to this server, alone."""

    def own(element: str) -> str:
        found = re.findall(rf"<{element}>(.*?)</{element}>", text, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in found)
        return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"

    headers = {
        "content-security-policy": f"default-src 'none'; script-src {own('script')}; style-src {own('style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-resource-policy": "same-origin",
        "cache-control": "no-cache",
    }

    async def endpoint(request: Request) -> Response:
        return HTMLResponse(text, headers=headers)

    return endpoint
