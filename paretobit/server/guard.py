"""Who may ask, and how much at once: the key, the host's name, sizes, and the time that a body may take."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paretobit.errors import ParetobitError
from paretobit.server.errors import ApiError
from paretobit.server.replies import error_response
from paretobit.work import read_bytes

MOST_BODY = 8 << 20  # bytes
BODY_SECONDS = 30.0
OPEN_TO_ALL = ("/", "/health")
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


def read_keys(path: str) -> list[bytes]:
    """The keys in a file, one a line. Raises ParetobitError where there is none."""
    lines = [line.strip() for line in read_bytes(Path(path)).splitlines()]
    keys = [line for line in lines if line and not line.startswith(b"#")]
    if not keys:
        raise ParetobitError(f"{path} holds no key", hint="write one key on each line")
    return keys


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_reach(host: str, keys: Sequence[bytes], insecure: bool) -> None:
    """Raise ParetobitError where anybody on the network could use the server."""
    if not is_loopback(host) and not keys and not insecure:
        raise ParetobitError(
            f"--host {host} lets others in without a key",
            hint="give --api-key-file FILE, or --insecure if that is meant",
        )


class Guard:
    """In front of an app. local: only names of this machine may stand in Host, so that no web page whose name is made
    to point here (DNS rebinding) gets in."""

    def __init__(self, app: ASGIApp, keys: Sequence[bytes] = (), local: bool = True) -> None:
        self._app, self._keys, self._local = app, keys, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            headers = Headers(scope=scope)
            self._check(scope, headers)
            body = await _body(headers, receive) if scope["method"] in ("POST", "PUT", "PATCH", "DELETE") else b""
        except ApiError as why:
            await error_response(why)(scope, receive, send)
            return
        given = False

        async def read() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, read, send)

    def _check(self, scope: Scope, headers: Headers) -> None:
        host = headers.get("host", "")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if self._local and not self._keys and name.lower() not in LOCAL_NAMES:
            raise ApiError(403, "this server answers to the names of its own machine only", None, "wrong_host")
        if self._keys and scope["path"] not in OPEN_TO_ALL and not self._knows(headers.get("authorization", "")):
            raise ApiError(401, "the API key is missing or wrong", None, "invalid_api_key", www_authenticate="Bearer")

    def _knows(self, authorization: str) -> bool:
        """All keys are compared, each in a time that does not tell how much of it is right."""
        kind, _, key = authorization.partition(" ")
        right = [hmac.compare_digest(key.strip().encode("latin-1"), each) for each in self._keys]
        return any(right) and kind.lower() == "bearer"


async def _body(headers: Headers, receive: Receive) -> bytes:
    """All of it, while it is small enough and comes soon enough."""
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > MOST_BODY:
        raise _too_large()
    kind = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"the body must be application/json, not {kind[:80]}", None, "unsupported_media_type")
    parts: list[bytes] = []
    size = 0
    try:
        with anyio.fail_after(BODY_SECONDS):
            while True:
                message: Any = await receive()
                if message["type"] == "http.disconnect":
                    raise ApiError(400, "the client has gone")
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > MOST_BODY:
                    raise _too_large()
                if not message.get("more_body"):
                    return b"".join(parts)
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {BODY_SECONDS:g} s", None, "timeout") from None


def _too_large() -> ApiError:
    return ApiError(413, f"the body has more than {MOST_BODY} bytes", None, "body_too_large")
