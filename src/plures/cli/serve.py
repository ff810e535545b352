"""`plures serve`: a run's model behind HTTP, with a page to try it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from plures.cli.app import app, screen
from plures.errors import require


@app.command()
def serve(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for the network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any free one.")] = 8000,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A host name by which the server may be reached; repeatable.")
    ] = None,
    max_megabytes: Annotated[float, typer.Option(min=0.001, help="Largest request, in MB.")] = 32,
    max_megapixels: Annotated[float, typer.Option(min=0.001, help="Largest photo, in megapixels.")] = 50,
    max_seconds: Annotated[float, typer.Option(min=0.1, help="Longest request, upload included.")] = 30,
    max_queue: Annotated[int, typer.Option(min=1, help="Photos that may wait in the queue.")] = 256,
    max_batch: Annotated[int, typer.Option(min=1, help="Photos scored at once.")] = 16,
) -> None:
    """Serve scores, tags and heat maps over HTTP, with a page to drop photos on."""
    require("serving", "web", ["fastapi", "uvicorn", "python_multipart", "prometheus_client"])
    from plures.web.connections import listen, run_server
    from plures.web.guard import allowed_hosts
    from plures.web.serve import Limits, make_app

    limits = Limits(
        bytes=int(max_megabytes * 1e6),
        pixels=int(max_megapixels * 1e6),
        seconds=max_seconds,
        queue=max_queue,
        batch=max_batch,
    )
    server = make_app(run, limits, allowed_hosts(host, allow_host or ()))
    listening = listen(host, port)
    shown, port = f"[{host}]" if ":" in host else host, listening.getsockname()[1]
    screen.print(f"serving {run} on http://{shown}:{port}/ (Ctrl+C stops)", highlight=False)
    with suppress(KeyboardInterrupt):  # the server says so itself after it has stopped
        run_server(server, listening, limits.seconds)
    screen.print("stopped", highlight=False)
