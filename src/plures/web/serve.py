"""`plures serve`: a run's model behind HTTP, and a small page to try it.

POST /predict (one or many photos), GET /health, GET /metrics (Prometheus), GET /openapi.json, GET / (the page).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import anyio
from fastapi import FastAPI, File, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException

import plures
from plures.errors import PluresError, WorkFailed
from plures.runs.run import Run
from plures.web.batching import Batcher, Full, Stopped
from plures.web.front import Front
from plures.web.guard import LOOPBACK_NAMES, Guard
from plures.web.scoring import PhotoAnswer, Scoring
from plures.web.uploads import Refused, decode

PAGE = {
    "/": ("templates/serve.html", "text/html"),
    "/serve.js": ("static/serve.js", "text/javascript"),
    "/serve.css": ("static/serve.css", "text/css"),
}
ROUTES = frozenset({"/predict", "/health", "/metrics", "/openapi.json", *PAGE})


@dataclass(frozen=True)
class Limits:
    """What a server takes. bytes: of a request; pixels: of a photo; photos: of a request; seconds: of a request, its
    upload included; queue: photos that may wait; requests: that may be in flight; batch, wait: photos scored at once,
    and seconds that the first of them waits for others."""

    bytes: int = 32 << 20
    pixels: int = 50_000_000
    photos: int = 32
    seconds: float = 30.0
    queue: int = 256
    requests: int = 256
    batch: int = 16
    wait: float = 0.005


class Answer(BaseModel):
    """One entry per photo, in the order of the request."""

    photos: list[PhotoAnswer]


class Trouble(BaseModel):
    """Why a request was refused, in one line."""

    error: str


class Health(BaseModel):
    """waiting: photos in the queue."""

    status: str
    model: str
    classes: int
    waiting: int
    plures: str


class Meters:
    """What /metrics tells."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("plures_requests", "Requests answered", ["path", "status"], registry=self.registry)
        self.seconds = Histogram("plures_request_seconds", "Seconds per /predict request", registry=self.registry)
        self.photos = Counter("plures_photos", "Photos scored", registry=self.registry)
        self.batches = Histogram(
            "plures_batch_photos", "Photos scored at once", buckets=(1, 2, 4, 8, 16, 32, 64), registry=self.registry
        )
        self.waiting = Gauge("plures_waiting_photos", "Photos that wait to be scored", registry=self.registry)

    def request(self, path: str, status: int, seconds: float) -> None:
        self.requests.labels(path if path in ROUTES else "other", str(status)).inc()
        if path == "/predict":
            self.seconds.observe(seconds)

    def batch(self, size: int) -> None:
        self.photos.inc(size)
        self.batches.observe(size)


def make_app(run: str | Path | Run, limits: Limits | None = None, hosts: Collection[str] = LOOPBACK_NAMES) -> FastAPI:
    """The server as an ASGI app; `hosts`: the names by which it may be called."""
    limits = limits or Limits()
    scoring, meters = Scoring(run if isinstance(run, Run) else Run(run)), Meters()
    batcher = Batcher(scoring, limits.batch, limits.wait, limits.queue, meters.batch)
    meters.waiting.set_function(lambda: batcher.waiting)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await anyio.to_thread.run_sync(batcher.stop)

    app = FastAPI(
        title="plures", version=plures.__version__, description=f"Tags of photos by the model {scoring.name}.",
        docs_url=None, redoc_url=None, lifespan=lifespan,
    )  # fmt: skip
    app.state.batcher = batcher
    _add_predict(app, scoring, batcher, limits)
    _add_rest(app, scoring, batcher, meters)
    _add_errors(app)
    app.add_middleware(Guard, hosts=hosts, max_body=limits.bytes)
    app.add_middleware(Front, max_requests=limits.requests, seconds=limits.seconds, watch=meters.request)
    return app


def _troubles(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Trouble} for status in statuses}


def _add_predict(app: FastAPI, scoring: Scoring, batcher: Batcher, limits: Limits) -> None:
    threads = anyio.CapacityLimiter(os.cpu_count() or 1)  # photos decoded at once: each may need 4 bytes a pixel

    @app.post("/predict", responses=_troubles(400, 403, 413, 414, 415, 422, 500, 503, 504))
    async def predict(
        photos: Annotated[list[UploadFile], File(description="One or more photos.")],
        maps: Annotated[bool, Query(description="A heat map for each tag, too.")] = False,
    ) -> Answer:
        """Scores, tags and, on request, heat maps of photos."""
        if len(photos) > limits.photos:
            raise Refused(413, f"{len(photos)} photos; at most {limits.photos} are taken at once")
        decoded = []
        for number, upload in enumerate(photos):
            if batcher.waiting >= limits.queue:  # before the work of decoding
                raise Full(f"{batcher.waiting:,} photos wait already; ask again later")
            name = (upload.filename or f"photo {number + 1}")[:200]
            work = partial(decode, await upload.read(), name, scoring.transform, limits.pixels)
            decoded.append(await anyio.to_thread.run_sync(work, limiter=threads))
        futures = batcher.submit([photo.pixels for photo in decoded], maps)
        scored = await asyncio.gather(*map(asyncio.wrap_future, futures))
        answers = []
        for photo, (scores, weights) in zip(decoded, scored, strict=True):
            tell = partial(scoring.describe, photo, scores, weights)
            answers.append(await anyio.to_thread.run_sync(tell, limiter=threads) if maps else tell())
        return Answer(photos=answers)


def _add_rest(app: FastAPI, scoring: Scoring, batcher: Batcher, meters: Meters) -> None:
    @app.get("/health", responses=_troubles(400, 403, 503))
    async def health() -> Health:
        """Whether the model answers."""
        if not batcher.alive:
            raise Stopped("the server is stopping")
        return Health(
            status="ok", model=scoring.name, classes=len(scoring.classes), waiting=batcher.waiting,
            plures=plures.__version__,
        )  # fmt: skip

    @app.get("/metrics", response_class=PlainTextResponse, responses=_troubles(400, 403))
    async def metrics() -> Response:
        """Counts and times for Prometheus."""
        return Response(generate_latest(meters.registry), media_type=CONTENT_TYPE_LATEST)

    for path, (name, kind) in PAGE.items():
        content = (files("plures.web") / name).read_text(encoding="utf-8")
        app.add_api_route(path, _page(content, kind), include_in_schema=False)


def _page(content: str, kind: str) -> Callable[[], Awaitable[Response]]:
    async def page() -> Response:
        return Response(content, media_type=f"{kind}; charset=utf-8")

    return page


def _add_errors(app: FastAPI) -> None:
    def say(status: int, text: str, headers: Any = None) -> JSONResponse:
        return JSONResponse({"error": text}, status, {"Retry-After": "1"} if status == 503 else headers)

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return say(error.status, str(error))

    @app.exception_handler(Full)
    @app.exception_handler(Stopped)
    async def busy(_: Request, error: PluresError) -> JSONResponse:
        return say(503, str(error))

    @app.exception_handler(WorkFailed)
    async def failed(_: Request, error: WorkFailed) -> JSONResponse:
        return say(500, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        return say(422, f"{place}: {first['msg'].lower()}; send photos as multipart/form-data, field `photos`")

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> JSONResponse:
        return say(error.status_code, str(error.detail), error.headers)
