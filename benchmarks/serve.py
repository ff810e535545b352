"""`plures serve` under load on this machine: throughput, waiting times, losses, memory.

    python benchmarks/serve.py [--requests 10000]

Starts `plures serve` with a tiny model (small_conv, codebook) in a process of its own and asks it over loopback with 1,
8 and 64 clients that each keep one connection and send one photo (64 x 64 JPEG, 2 kB) after another; then 64 clients
ask `--requests` times and the server's resident memory is read every thousand. Client and server share the cores.
Then one client asks while 100 and 600 others have sent half a header. Writes serve_load.csv, serve_memory.csv and
serve_crowd.csv in benchmarks/results.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import write
from PIL import Image

from plures.config import Experiment
from plures.models.model import build_model, save
from plures.runs.run import Run

COLOURS = 32  # different photos, each with its own right answer


def photo(number: int) -> bytes:
    """A JPEG whose colour depends on its number."""
    pixels = np.full((64, 64, 3), [number * 7 % 256, number * 31 % 256, number * 5], np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def request(number: int) -> bytes:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="photos"; filename="%d.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
        % number
    ) + photo(number % COLOURS) + b"\r\n--b--\r\n"  # fmt: skip
    head = (
        "POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Load:
    """Clients that ask one after another until `total` requests are sent, and what came back."""

    def __init__(self, port: int, total: int) -> None:
        self.port, self.total, self.sent = port, total, 0
        self.seconds: list[float] = []
        self.wrong = self.refused = 0
        self.right: dict[int, dict[str, float]] = {}
        self.requests = [request(number) for number in range(COLOURS)]

    async def client(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        while self.sent < self.total:
            number = self.sent % COLOURS
            self.sent += 1
            started = time.perf_counter()
            writer.write(self.requests[number])
            status, body = await self._answer(reader)
            self.seconds.append(time.perf_counter() - started)
            if status != 200:
                self.refused += 1
                continue
            told = json.loads(body)["photos"][0]
            scores = self.right.setdefault(number, told["scores"])
            close = all(abs(scores[name] - score) < 1e-4 for name, score in told["scores"].items())
            self.wrong += told["name"] != f"{number}.jpg" or not close
        writer.close()

    @staticmethod
    async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.split("content-length:")[1].split("\r\n")[0])
        return int(head.split()[1]), await reader.readexactly(length)

    async def run(self, clients: int) -> float:
        """Seconds until all is answered."""
        started = time.perf_counter()
        await asyncio.gather(*(self.client() for _ in range(clients)))
        return time.perf_counter() - started


def memory(pid: int) -> float:
    """Resident memory in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1000


def start(folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    """A server with a tiny model, answering."""
    torch.manual_seed(0)
    classes = tuple(f"class {k}" for k in range(10))
    model = build_model("small_conv", "codebook", classes, {"width": 32}, {"code_width": 32})
    run = Run.create(folder / "run", Experiment(device="cpu"))
    save(model, run.path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "plures.cli", "serve", str(run.path), "--port", str(port)])
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).read()
            return server, port
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the server did not start")


def loads(port: int, seconds: float) -> list[dict[str, Any]]:
    rows = []
    for clients in (1, 8, 64):
        asyncio.run(Load(port, 100).run(clients))  # warms up
        load = Load(port, 10**9)

        async def bounded(load: Load = load, clients: int = clients) -> float:
            async def stop() -> None:
                await asyncio.sleep(seconds)
                load.total = load.sent

            stopping = asyncio.create_task(stop())
            took = await load.run(clients)
            await stopping
            return took

        took = asyncio.run(bounded())
        rows.append(
            {
                "clients": clients, "requests": load.sent, "answered": len(load.seconds), "refused": load.refused,
                "wrong": load.wrong, "requests_per_second": round(len(load.seconds) / took, 1),
                "p50_ms": round(1e3 * statistics.median(load.seconds), 1),
                "p99_ms": round(1e3 * float(np.quantile(load.seconds, 0.99)), 1),
                "load_average": round(os.getloadavg()[0], 1),
            }
        )  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def crowded(port: int, half: int, seconds: float) -> dict[str, Any]:
    """One client's requests while so many others have sent half a header each (a "slow loris")."""
    held = []
    for _ in range(half):
        held.append(socket.create_connection(("127.0.0.1", port)))
        held[-1].sendall(b"POST /predict HTTP/1.1\r\nHost: 127.0.")
    load, started = Load(port, 10**9), time.perf_counter()

    async def bounded() -> None:
        asyncio.get_running_loop().call_later(seconds, lambda: setattr(load, "total", load.sent))
        await load.run(1)

    asyncio.run(bounded())
    for one in held:
        one.close()
    row = {"half_sent": half, "requests": load.sent, "answered": len(load.seconds), "refused": load.refused,
           "wrong": load.wrong, "p99_ms": round(1e3 * float(np.quantile(load.seconds, 0.99)), 1),
           "seconds": round(time.perf_counter() - started, 1)}  # fmt: skip
    print(row, flush=True)
    return row


def steady(port: int, pid: int, total: int) -> list[dict[str, Any]]:
    rows = []
    for done in range(0, total + 1, 1000):
        if done:
            load = Load(port, 1000)
            asyncio.run(load.run(64))
            if load.refused or load.wrong or len(load.seconds) != 1000:
                print(f"lost: {load.refused} refused, {load.wrong} wrong, {len(load.seconds)} answered")
        rows.append({"requests": done, "resident_megabytes": round(memory(pid), 1), "lost": 0 if not done else (
            1000 - len(load.seconds) + load.refused + load.wrong)})  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=8, help="of each load")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server, port = start(Path(folder))
        try:
            load_rows = loads(port, args.seconds)
            crowd_rows = [crowded(port, half, args.seconds) for half in (100, 600)]
            memory_rows = steady(port, server.pid, args.requests)
        finally:
            server.send_signal(signal.SIGTERM)
            print("exit code", server.wait(30))
    print(write("serve_load", load_rows))
    print(write("serve_memory", memory_rows))
    print(write("serve_crowd", crowd_rows))


if __name__ == "__main__":
    main()
