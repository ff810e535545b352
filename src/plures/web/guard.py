"""What protects every page: who may ask (Host and Origin), how much they may send, what a browser may do with it.

A server on this machine is reachable by every web page that the user has open. Without these checks a foreign page
could send decisions (cross-site requests) or, with a name that suddenly means 127.0.0.1, read photos (DNS rebinding).
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Collection, Iterable, MutableMapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from plures.errors import PluresError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = "127.0.0.1"
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
WILDCARDS = frozenset({"", "0.0.0.0", "::"})
MAX_BODY = 1 << 20  # bytes
MAX_URL = 4096  # bytes of path and query together

HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self';"
        b" base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


def is_loopback(host: str) -> bool:
    """Whether a server bound to this host can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def allowed_hosts(host: str = LOOPBACK, names: Iterable[str] = ()) -> frozenset[str]:
    """The names by which a server bound to `host` may be called: loopback's, its own, and those the user adds.

    Raises PluresError if it listens to every network but no name is given: any name would have to be believed then.
    """
    names = {name.strip("[]").lower() for name in names}
    if host in WILDCARDS and not names:
        raise PluresError(
            f"host '{host}' listens to the whole network; name the host by which people will call it"
            " (--allow-host NAME), or leave --host out to listen to this machine alone"
        )
    own = set() if host in WILDCARDS else {host.strip("[]").lower()}
    return frozenset(LOOPBACK_NAMES | own | names)


class Guard:
    """ASGI middleware: `app.add_middleware(Guard, hosts=allowed_hosts(host), max_body=...)`.

    Refuses with a plain line of text: 400 a Host that is not ours, 403 a foreign origin, 413 a body of more than
    `max_body` bytes (announced or sent), 414 a URL of more than MAX_URL bytes. origins: foreign origins that are
    welcome all the same, such as "https://tools.example.org". Adds HEADERS to every answer that lacks them.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Collection[str] = LOOPBACK_NAMES,
        max_body: int = MAX_BODY,
        origins: Collection[str] = (),
    ) -> None:
        self.app, self.hosts, self.max_body = app, frozenset(hosts), max_body
        self.origins = frozenset(origin.rstrip("/").lower() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no page of ours speaks websocket
        refusal = self.refusal(scope)
        if refusal is not None:
            await _answer(send, *refusal)
            return
        await self._limited(scope, receive, send)

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason if the request must not go on."""
        headers = _headers(scope)
        if len(scope.get("raw_path") or scope["path"].encode()) + len(scope["query_string"]) > MAX_URL:
            return 414, "the URL is too long"
        host = headers.get("host", "")
        if _name(host) not in self.hosts:
            return 400, "this server is not called by that name (Host); it answers to " + ", ".join(sorted(self.hosts))
        if not self._same_origin(scope["method"], host, headers):
            return 403, "requests from other sites are refused (Origin)"
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self.max_body:
            return 413, f"the request is too large; at most {self.max_body:,} bytes are taken"
        return None

    def _same_origin(self, method: str, host: str, headers: dict[str, str]) -> bool:
        origin = headers.get("origin")
        if origin is not None:
            if origin.lower() in self.origins:
                return True
            return urlsplit(origin).netloc.lower() == host.lower() != ""
        if headers.get("sec-fetch-site") in ("cross-site", "same-site"):  # a browser says so where it sends no Origin
            return method in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
        return True

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, counting its body: an announced length may be missing."""
        seen, too_large, started = 0, False, False

        async def counted() -> Message:
            nonlocal seen, too_large
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.max_body:
                too_large = True
                raise _TooLarge
            return message

        async def guarded(message: Message) -> None:
            nonlocal started
            if too_large and not started:
                return  # whatever the app made of the broken body; the answer follows below
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = _with_headers(message)
            await send(message)

        with contextlib.suppress(_TooLarge):
            await self.app(scope, counted, guarded)
        if too_large and not started:
            await _answer(send, 413, f"the request is too large; at most {self.max_body:,} bytes are taken")


class _TooLarge(Exception):
    """The body went on beyond the limit."""


def _headers(scope: Scope) -> dict[str, str]:
    """Header values by name. Of a repeated header only equal values are believed: else it counts as malformed."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        if key in ("host", "origin", "content-length") and found.get(key, text) != text:
            text = "\0"
        found[key] = text
    return found


def _name(host: str) -> str:
    """The host's name without the port, in lower case; "" if malformed."""
    try:
        return (urlsplit(f"//{host}").hostname or "") if not set("/@?#\\") & set(host) else ""
    except ValueError:
        return ""


def _with_headers(message: MutableMapping[str, Any]) -> list[tuple[bytes, bytes]]:
    headers = list(message.get("headers", []))
    given = {name.lower() for name, _ in headers}
    return headers + [(name, value) for name, value in HEADERS if name not in given]


async def _answer(send: Send, status: int, text: str) -> None:
    body = (text + "\n").encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *HEADERS]})
    await send({"type": "http.response.body", "body": body})
