"""The guard in front of every page: names, origins and sizes."""

import pytest

pytest.importorskip("fastapi", reason='the pages need the web packages: pip install "plures[web]"')

from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from plures.errors import PluresError
from plures.web.guard import Guard, allowed_hosts, is_loopback

HERE = "http://127.0.0.1:8765"


@pytest.fixture(scope="module")
def client():
    app = FastAPI()
    app.add_middleware(Guard, hosts=allowed_hosts("127.0.0.1"), max_body=1000, origins=["https://friend.example"])

    @app.get("/")
    def page() -> str:
        return "secret"

    @app.post("/json")
    def json(body: dict[str, str]) -> int:
        return len(body)

    @app.post("/raw")
    async def raw(request: Request) -> int:
        return len(await request.body())

    return TestClient(app, base_url=HERE)


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "localhost", "LOCALHOST:1", "[::1]:8765"])
def test_own_names_are_answered(client, host):
    assert client.get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "evil.example:8765", "", "localhost@evil.example", "a/localhost"]
)
def test_other_names_are_refused(client, host):
    """DNS rebinding: a foreign name that means 127.0.0.1."""
    answer = client.get("/", headers={"host": host})
    assert answer.status_code == 400
    assert "secret" not in answer.text


def test_two_different_hosts_are_refused(client):
    assert client.get("/", headers=[("host", "127.0.0.1:8765"), ("host", "evil.example")]).status_code == 400


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": HERE}, 200),
        ({"origin": "https://friend.example"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"origin": "http://127.0.0.1:8765.evil.example"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
    ],
)
def test_foreign_origins_cannot_post(client, headers, status):
    assert client.post("/json", json={"a": "b"}, headers=headers).status_code == status


def test_a_link_on_another_site_opens_the_page_but_an_image_tag_gets_nothing(client):
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client.get("/", headers=link).status_code == 200
    assert client.get("/", headers={**link, "sec-fetch-mode": "no-cors"}).status_code == 403


def chunks():
    for _ in range(30):
        yield b"x" * 100


@pytest.mark.parametrize("path", ["/json", "/raw"])
def test_a_body_beyond_the_limit_is_refused_announced_or_not(client, path):
    assert client.post(path, content=b"x" * 1001).status_code == 413
    assert client.post(path, content=chunks()).status_code == 413  # chunked: no length announced


def test_a_body_within_the_limit_goes_through(client):
    assert client.post("/raw", content=b"x" * 1000).json() == 1000
    assert client.post("/raw", content=(b"x" * 500 for _ in range(2))).json() == 1000


def test_long_urls_are_refused(client):
    assert client.get("/?q=" + "x" * 5000).status_code == 414


def test_every_answer_says_what_a_browser_may_do(client):
    for answer in (client.get("/"), client.get("/nowhere"), client.get("/", headers={"host": "evil.example"})):
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_whole_network_needs_a_name():
    with pytest.raises(PluresError, match="--allow-host"):
        allowed_hosts("0.0.0.0")
    assert "photos.lan" in allowed_hosts("0.0.0.0", ["photos.lan"])
    assert allowed_hosts("192.168.1.7") >= {"192.168.1.7", "localhost"}


def test_what_is_loopback():
    assert all(map(is_loopback, ["127.0.0.1", "localhost", "::1", "127.8.8.8"]))
    assert not any(map(is_loopback, ["0.0.0.0", "192.168.1.7", "example.org", ""]))
