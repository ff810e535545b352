"""What stands before a server's routes: how many requests may be in flight and for how long, refusals."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING

from plures.web.guard import HEADERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Front:
    """ASGI middleware, the outermost one.

    Answers 503 to a request beyond `max_requests` in flight (/health and /metrics are always answered) and 504 to one
    that takes more than `seconds`, its upload included. An error that another layer says as plain text leaves as
    {"error": text}. watch: called with path, status and seconds of each request.
    """

    def __init__(
        self, app: ASGIApp, max_requests: int, seconds: float, watch: Callable[[str, int, float], None]
    ) -> None:
        self.app, self.max_requests, self.seconds, self.watch = app, max_requests, seconds, watch
        self.in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, answer = time.perf_counter(), _Answer(send)
        self.in_flight += 1
        try:
            if self.in_flight > self.max_requests and scope["path"] not in ("/health", "/metrics"):
                await answer.refuse(503, f"{self.max_requests:,} requests are being answered; ask again later")
                return
            async with asyncio.timeout(self.seconds):
                await self.app(scope, receive, answer)
        except TimeoutError:
            await answer.refuse(504, f"this took more than {self.seconds:g} seconds")
        except Exception:
            await answer.refuse(500, "the server failed on this request; its log says why")
            raise
        finally:
            self.in_flight -= 1
            self.watch(scope["path"], answer.status, time.perf_counter() - started)


class _Answer:
    """Passes messages on; holds back an error in plain text until it is whole and sends it as JSON."""

    def __init__(self, send: Send) -> None:
        self.send, self.status, self.started = send, 0, False
        self.held: bytes | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            kinds = [value for name, value in message["headers"] if name.lower() == b"content-type"]
            if self.status >= 400 and kinds and kinds[0].startswith(b"text/plain"):
                self.held = b""
                return
            self.started = True
        elif self.held is not None:
            self.held += message.get("body", b"")
            if not message.get("more_body", False):
                text, self.held = self.held.decode(errors="replace").strip(), None
                await self.refuse(self.status, text)
            return
        await self.send(message)

    async def refuse(self, status: int, text: str) -> None:
        """{"error": text}, unless an answer has begun already."""
        if self.started:
            return
        self.started, self.status = True, status
        body = json.dumps({"error": text}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if status == 503:
            headers.append((b"retry-after", b"1"))
        await self.send({"type": "http.response.start", "status": status, "headers": [*headers, *HEADERS]})
        await self.send({"type": "http.response.body", "body": body})
