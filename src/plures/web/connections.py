"""How a server listens and how long a connection may stay idle or half-sent: what no request of the app is told.

A connection on which no request is being answered ends after some seconds, whatever trickles in (a "slow loris" sends
a header every minute). Where all connections are taken, the one that has been idle longest is closed for a new one,
so that the server stays reachable. What goes wrong is logged, but never more than a few lines in some seconds.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from plures.errors import PluresError

HEAD_SECONDS = 10.0  # for a request's headers, and for a connection without any request
MOST = 512  # connections
KEPT_FILES = 64  # of those that a process may open: for the program, photos and the model
LINES, LINES_SECONDS = 10, 10.0  # lines logged at most in so many seconds


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there (port 0: any free one). Raises PluresError if it cannot, as where it is in use."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        made = socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:
        number = getattr(error, "errno", None) or 0  # below 0: a name that nobody knows; else Python adds the address
        reason = os.strerror(number) if number > 0 else getattr(error, "strerror", None) or error
        raise PluresError(f"cannot listen on {host}, port {port} ({reason}); choose another --port or --host") from None
    # asyncio does this only for sockets it made itself; without it each answer's body waits 40 ms for the other side to
    # acknowledge its head
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def run_server(app: Any, listening: socket.socket, seconds: float) -> None:
    """Answer with an ASGI app until the process is told to stop (SIGINT, SIGTERM, SIGHUP); requests in flight then
    have `seconds` to end."""
    most = most_connections()
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).addFilter(Few())
    config = uvicorn.Config(
        app,
        http=type("Connection", (Connection,), {"most": most}),
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=int(seconds) + 1,
        server_header=False,
        backlog=max(1, min(128, most // 4)),  # how many asyncio takes at once, each of them an open file
    )
    Server(config).run(sockets=[listening])


class Server(uvicorn.Server):
    """uvicorn's, with a longer queue for those who wait to be taken than are taken at once."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listening in sockets or ():
            listening.listen(512)


def most_connections() -> int:
    """As many as the process may open files for, with some left for the program itself."""
    if sys.platform == "win32":
        return MOST
    import resource

    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST if files == resource.RLIM_INFINITY else max(8, min(MOST, (files - KEPT_FILES) * 2 // 3))


class Connection(H11Protocol):
    """uvicorn's protocol, with a limit of idle time and of connections."""

    most = MOST
    head_seconds = HEAD_SECONDS
    idle_since = 0.0
    _check: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self.connections) >= self.most:
            others = [other for other in self.connections if isinstance(other, Connection) and other.idle]
            if not others:
                transport.abort()
                return
            oldest = min(others, key=lambda other: other.idle_since)
            oldest.transport.abort()
            self.connections.discard(oldest)
        self.idle_since = time.monotonic()
        super().connection_made(transport)
        self._check = self.loop.call_later(self.head_seconds, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._check is None:  # it was refused
            return
        self._check.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self.idle_since = time.monotonic()
        super().on_response_complete()

    @property
    def idle(self) -> bool:
        """Whether no request is being answered: none has come, or only a part of its headers."""
        return self.cycle is None or self.cycle.response_complete

    def _look(self) -> None:
        left = self.idle_since + self.head_seconds - time.monotonic()
        if self.transport.is_closing() or (self.idle and left <= 0):
            self.transport.abort()
            return
        self._check = self.loop.call_later(left if self.idle else self.head_seconds, self._look)


class Few(logging.Filter):
    """Lets LINES records through in LINES_SECONDS, and says how many it left out. Without their tracebacks where the
    machine is to blame: too many open files."""

    def __init__(self) -> None:
        super().__init__()
        self.began, self.seen = 0.0, 0

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now - self.began > LINES_SECONDS:
            if self.seen > LINES:
                record.msg = f"({self.seen - LINES:,} lines left out) {record.msg}"
            self.began, self.seen = now, 0
        self.seen += 1
        with suppress(TypeError, IndexError):
            if isinstance(record.exc_info[1], OSError):  # type: ignore[index]
                record.exc_info = None
        return self.seen <= LINES
