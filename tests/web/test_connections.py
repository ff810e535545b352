"""Connections: half-sent requests end, a crowd of them shuts nobody out, and the log stays short."""

import signal
import socket
import subprocess
import sys
import threading

import pytest
from PIL import Image

pytest.importorskip("uvicorn", reason='needs pip install "plures[web]"')

SERVER = """
import signal, sys
from plures.web import connections
try:
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
except ImportError:
    pass
async def app(scope, receive, send):
    if scope["type"] == "http":
        if scope["path"] == "/fails":
            raise RuntimeError("a defect")
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})
connections.Connection.head_seconds = float(sys.argv[1])
listening = connections.listen("127.0.0.1", 0)
print(listening.getsockname()[1], flush=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as the command line has it: to be raised again at the end
try:
    connections.run_server(app, listening, 1)
except KeyboardInterrupt:
    pass
"""
REVIEW = """
import sys
from pathlib import Path
from plures.web import connections, review
from plures import cli
try:
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
except ImportError:
    pass
connections.HEAD_SECONDS = connections.Connection.head_seconds = float(sys.argv[1])
review.SECONDS = 1.0  # of a request
said = cli.review.screen
say = said.print
def told(*words, **more):
    if words and str(words[0]).startswith("open http://localhost:"):
        print(str(words[0]).split(":")[2].split("/")[0], flush=True)
said.print = told
sys.argv = ["plures", "review", "tags.csv", "--port", "0"]
cli.main()
"""
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def start(tmp_path):
    """Starts a server that may open 128 files; gives its port."""
    servers = []
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "tags.csv").write_text("image,tags\na.png,\n")

    def begin(head_seconds, server=SERVER):
        with (tmp_path / "said.txt").open("w") as said:
            command = [sys.executable, "-c", server, str(head_seconds)]
            servers.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, cwd=tmp_path))
        return int(servers[0].stdout.readline())

    begin.servers = servers
    yield begin
    for server in servers:
        server.send_signal(signal.SIGTERM)
        server.wait(60)
        server.stdout.close()


def ask(port, request=GET):
    with socket.create_connection(("127.0.0.1", port), timeout=60) as asking:
        asking.sendall(request)
        return asking.recv(1000)


def ended(connection):
    """Waits until the other side has closed."""
    try:
        while connection.recv(1000):
            pass
    except ConnectionError:
        pass
    return True


@pytest.mark.parametrize("server", [SERVER, REVIEW], ids=["serve", "review"])
def test_a_crowd_of_half_sent_requests_shuts_nobody_out(start, tmp_path, server):
    """300 connections against 128 files, none of them timed out before the test is over."""
    port = start(1000, server)
    crowd = []
    try:
        for _ in range(300):
            one = socket.create_connection(("127.0.0.1", port), timeout=60)
            one.sendall(b"GET / HTTP/1.1\r\nHost: loc")
            crowd.append(one)
        for _ in range(3):
            assert ask(port).startswith(b"HTTP/1.1 200")
        assert all(ended(one) for one in crowd[:200])  # the oldest made room
    finally:
        for one in crowd:
            one.close()
    assert len((tmp_path / "said.txt").read_text().splitlines()) < 20


@pytest.mark.parametrize("before", [b"", GET])
def test_a_request_that_trickles_in_ends(start, before):
    """A byte now and then keeps it alive no longer than silence; nor does a whole request before it."""
    port = start(1)
    with socket.create_connection(("127.0.0.1", port), timeout=60) as slow:
        slow.sendall(before + b"GET / HTTP/1.1\r\n")
        stopped = threading.Event()

        def trickle():
            try:
                while not stopped.wait(0.2):
                    slow.sendall(b"x")
            except OSError:
                pass

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            assert ended(slow)
        finally:
            stopped.set()
            thread.join()
        assert ask(port).startswith(b"HTTP/1.1 200")


def test_review_ends_a_body_that_never_comes(start):
    port = start(60, REVIEW)
    head = (
        b"POST /api/undo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=60) as slow:
        slow.sendall(head + b"{")
        assert slow.recv(1000).startswith(b"HTTP/1.1 504")
    assert ask(port).startswith(b"HTTP/1.1 200")


def test_the_log_of_many_bad_requests_stays_short(start, tmp_path):
    port = start(60)
    for _ in range(60):
        assert ask(port, b"\x16\x03\x01 no HTTP\r\n\r\n").startswith(b"HTTP/1.1 400")
        assert ask(port, GET.replace(b"/ ", b"/fails ")).startswith(b"HTTP/1.1 500")
    lines = (tmp_path / "said.txt").read_text().splitlines()
    assert 0 < sum("Invalid HTTP" in line for line in lines) <= 20
    assert 0 < sum("a defect" in line for line in lines) <= 20


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows knows no SIGHUP")
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_stops_the_server_without_a_word(start, tmp_path, number):
    port = start(60)
    assert ask(port).startswith(b"HTTP/1.1 200")
    server = start.servers[0]
    server.send_signal(getattr(signal, number))
    server.wait(60)
    assert (tmp_path / "said.txt").read_text() == ""
