"""Listening: uvicorn, with the time that a client may take for its headers, and an end that lets answers finish."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from paretobit.errors import ParetobitError
from paretobit.server.guard import Guard

HEADER_SECONDS = 10.0  # from a connection, or a request's first byte, to the end of its headers
IDLE_SECONDS = 30  # between two requests
MOST_HEADERS = 16 << 10  # bytes
MOST_CONNECTIONS = 512
FINISH_SECONDS = 30  # for answers in progress when the server is told to stop


class Patient(H11Protocol):
    """Closes connections whose headers do not come: uvicorn itself watches the time between requests only."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        if self._deadline is None and self._idle():
            self._wait()
        super().data_received(data)
        if not self._idle() and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait(self) -> None:
        self._deadline = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _give_up(self) -> None:
        self._deadline = None
        if self._idle() and not self.transport.is_closing():
            self.transport.close()


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises ParetobitError where the address cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # By name: asyncio asks for TCP_NODELAY only where the protocol says TCP, and an answer in two writes would
        # otherwise wait 40 ms for the client's acknowledgement of the first.
        made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
    except (OSError, OverflowError) as why:
        raise ParetobitError(f"cannot listen on {host}:{port}: {why}", hint="choose another --port or --host") from None
    return made


def server(app: Guard, startup: Any = None) -> uvicorn.Server:
    """A uvicorn server for `app`; run it with the sockets that it listens on."""
    config = uvicorn.Config(
        app,
        http=Patient,
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=FINISH_SECONDS,
        limit_concurrency=MOST_CONNECTIONS,
        h11_max_incomplete_event_size=MOST_HEADERS,
    )
    return uvicorn.Server(config)
