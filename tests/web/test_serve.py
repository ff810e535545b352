"""The server: right answers, clear refusals, nothing lost, no stranger's photo that hurts it."""

import asyncio
import base64
import io
import struct
import threading
import time
import zlib
from concurrent.futures import CancelledError

import numpy as np
import pytest
import torch
from PIL import Image

from plures.config import Experiment
from plures.data.photos import Transform
from plures.metrics.thresholds import Calibration, Thresholds
from plures.models import build_model, save
from plures.runs.run import Run
from plures.web.batching import Batcher, Full, Stopped

pytest.importorskip("fastapi", reason='needs pip install "plures[web]"')
pytest.importorskip("prometheus_client", reason='needs pip install "plures[web]"')
from fastapi.testclient import TestClient

from plures.web.connections import listen
from plures.web.serve import Limits, make_app

CLASSES = ("cat", "dog", "sofa", "tree")
CALIBRATION = Calibration("affine", np.array([3.0, 2, 1, 5]), np.array([4.0, 0, 1, 0.1]))
CHOSEN = Thresholds(CLASSES, np.array([0.3, 0.5, 0.3, 0.6]), "m", "f1", "a", "g", CALIBRATION)
LIMITS = Limits(bytes=2_000_000, pixels=1_000_000, photos=5, seconds=20)


def make_run(folder):
    torch.manual_seed(0)
    model = build_model("small_conv", "codebook", CLASSES, {"image_size": 32, "width": 16}, {"code_width": 16})
    run = Run.create(folder, Experiment(device="cpu"))
    save(model, folder)
    CHOSEN.save(folder)
    return run, model.eval()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    run, model = make_run(tmp_path_factory.mktemp("serve") / "run")
    with TestClient(make_app(run, LIMITS), base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client, model


@pytest.fixture
def client(served):
    return served[0]


def picture(height=40, width=60, seed=0, mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def ask(client, *contents, maps=False):
    files = [("photos", (f"{i}.png", content, "image/png")) for i, content in enumerate(contents)]
    return client.post("/predict", files=files, params={"maps": "true"} if maps else None)


def wanted(model, image):
    with torch.inference_mode():
        logits = model(Transform(32)(image)[None]).logits
    return CHOSEN.probabilities(logits.double().numpy())[0]


# -------------------------------------------------------------------------------------------------------- answers


def test_scores_and_tags_are_those_of_the_run(served):
    client, model = served
    images = [picture(seed=seed) for seed in range(3)]
    answer = ask(client, *map(encoded, images))
    assert answer.status_code == 200, answer.text
    photos = answer.json()["photos"]
    assert [photo["name"] for photo in photos] == ["0.png", "1.png", "2.png"]
    for image, photo in zip(images, photos, strict=True):
        scores = wanted(model, image)
        np.testing.assert_allclose([photo["scores"][name] for name in CLASSES], scores, atol=1e-5)
        called = [CLASSES[k] for k in np.argsort(-scores) if scores[k] >= CHOSEN.values[k]]
        assert photo["tags"] == called
        assert (photo["width"], photo["height"], photo["maps"]) == (60, 40, None)


def test_heat_maps_are_pngs_that_lie_over_the_photo(served):
    client, _ = served
    photo = ask(client, encoded(picture(200, 400)), maps=True).json()["photos"][0]
    assert list(photo["maps"]) == photo["tags"] != []
    for address in photo["maps"].values():
        kind, _, data = address.partition(",")
        assert kind == "data:image/png;base64"
        heat = Image.open(io.BytesIO(base64.b64decode(data)))
        assert (heat.size, heat.mode) == ((320, 160), "RGBA")
        alpha = np.asarray(heat)[..., 3]
        assert alpha.min() == 0
        assert alpha.max() == round(0.75 * 255)


def test_health_and_metrics_tell_what_happened(client):
    before = client.get("/metrics").text
    assert client.get("/health").json()["classes"] == 4
    assert ask(client, encoded(picture())).status_code == 200
    assert ask(client, b"nonsense").status_code == 415
    client.get("/no/such/place")
    after = client.get("/metrics").text

    def count(text, line):
        return sum(float(row.rsplit(" ", 1)[1]) for row in text.splitlines() if row.startswith(line))

    for line in (
        'plures_requests_total{path="/predict",status="200"}',
        'plures_requests_total{path="/predict",status="415"}',
        'plures_requests_total{path="other",status="404"}',
        "plures_photos_total",
    ):
        assert count(after, line) == count(before, line) + 1, line


def test_the_page_needs_no_network(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    whole = page.text + client.get("/serve.js").text + client.get("/serve.css").text
    assert "http://" not in whole
    assert "https://" not in whole
    assert "innerHTML" not in whole


def test_openapi_names_every_answer(client):
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) == {"/predict", "/health", "/metrics"}
    assert {"200", "413", "415", "422", "503", "504"} <= set(document["paths"]["/predict"]["post"]["responses"])


# ------------------------------------------------------------------------------------------------- hostile images


def png_header(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


JPEG, PNG = encoded(picture(), "JPEG"), encoded(picture())
REFUSED = {
    "empty": (b"", 415),
    "text": (b"hello" * 100, 415),
    "html": (b"<html><script>alert(1)</script></html>", 415),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\n", 415),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", 415),
    "magic alone": (b"\x89PNG\r\n\x1a\n", 415),
    "wrong magic": (b"\xff\xd8\xff" + PNG, (415, 422)),
    "truncated jpeg": (JPEG[: len(JPEG) // 2], 422),
    "truncated png": (PNG[: len(PNG) // 2], 422),
    "bomb": (png_header(20_000, 20_000), 413),
    "30,000 wide": (encoded(Image.new("1", (30_000, 40)), "PNG"), 413),
    "too many pixels": (encoded(Image.new("L", (1001, 1000))), 413),
    "no pixels": (png_header(0, 10), (415, 422)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_images_are_refused_in_one_line(client, name):
    content, status = REFUSED[name]
    answer = ask(client, content)
    assert answer.status_code in (status if isinstance(status, tuple) else (status,)), answer.text
    error = answer.json()["error"]
    assert "0.png" in error
    assert "\n" not in error
    assert "/" not in error  # no path of this machine
    assert ask(client, PNG).status_code == 200


READ = {
    "cmyk": encoded(picture(mode="CMYK"), "JPEG"),
    "16 bit": encoded(Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60) * 27)),
    "1 bit": encoded(picture(mode="1")),
    "palette": encoded(picture(mode="P")),
    "alpha": encoded(picture(mode="RGBA"), "WEBP"),
    "animated": encoded(picture(), "GIF", save_all=True, append_images=[picture(seed=i) for i in range(1, 30)]),
    "one pixel": encoded(picture(1, 1)),
    "a long strip": encoded(picture(2, 15_000)),
    "tiff": encoded(picture(), "TIFF"),
}


@pytest.mark.parametrize("name", READ)
def test_odd_but_honest_images_are_read(client, name):
    answer = ask(client, READ[name], maps=True)
    assert answer.status_code == 200, answer.text
    assert np.isfinite(list(answer.json()["photos"][0]["scores"].values())).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_upright(served, orientation):
    client, model = served
    image, exif = picture(), Image.Exif()
    exif[0x0112] = orientation
    photo = ask(client, encoded(image, "PNG", exif=exif)).json()["photos"][0]
    turned = orientation >= 5
    assert (photo["width"], photo["height"]) == ((40, 60) if turned else (60, 40))
    ways = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF -> Pillow's names of the way back
    upright = image if orientation == 1 else image.transpose(Image.Transpose(ways[orientation]))
    np.testing.assert_allclose([photo["scores"][n] for n in CLASSES], wanted(model, upright), atol=1e-5)


def test_a_name_is_only_a_name(client, tmp_path):
    """A sender's file name must not lead to a file or address of this machine."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(PNG)
    for name in (f"{secret}#0:{len(PNG)}", f"file://{secret}", "../../etc/passwd", "x\r\ny: z", "é😀" * 500):
        answer = client.post("/predict", files=[("photos", (name, b"nonsense", "image/png"))])
        assert answer.status_code in (415, 422), answer.text
        answer = client.post("/predict", files=[("photos", (name, JPEG, "image/png"))])
        assert answer.status_code == 200
        assert answer.json()["photos"][0]["width"] == 60
        assert len(answer.json()["photos"][0]["name"]) <= 200


# ---------------------------------------------------------------------------------------------------------- limits


def test_requests_beyond_the_limits_are_refused_as_json(client):
    cases = [
        (ask(client, bytes(2_100_000)), 413, "at most 2,000,000 bytes"),
        (ask(client, *[PNG] * 6), 413, "at most 5"),
        (client.post("/predict"), 422, "photos: field required"),
        (client.post("/predict", content=b"x", headers={"content-type": "multipart/form-data"}), 400, "boundary"),
        (client.post("/predict?maps=perhaps", files=[("photos", ("a", PNG))]), 422, "maps"),
        (client.get("/health", headers={"host": "evil.example"}), 400, "not called by that name"),
        (client.post("/predict", headers={"origin": "http://evil.example"}), 403, "other sites"),
        (client.get("/predict"), 405, "Method Not Allowed"),
        (client.get("/nothing"), 404, "Not Found"),
        (client.get("/health?" + "x" * 5000), 414, "too long"),
    ]
    for answer, status, words in cases:
        assert answer.status_code == status, (status, answer.text)
        assert words.lower() in answer.json()["error"].lower()
        assert answer.headers["content-type"] == "application/json"


def slow_app(run, seconds_each, **limits):
    """The app with a model that takes its time."""
    app = make_app(run, Limits(**limits))
    score = app.state.batcher._score

    def slowly(pixels, maps):
        time.sleep(seconds_each)
        return score(pixels, maps)

    app.state.batcher._score = slowly
    return app


def test_a_request_that_takes_too_long_ends_and_the_next_is_answered(tmp_path):
    run, _ = make_run(tmp_path / "run")
    app = slow_app(run, 0.6, seconds=0.2)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        answer = ask(client, PNG)
        assert (answer.status_code, answer.json()["error"]) == (504, "this took more than 0.2 seconds")
        time.sleep(0.6)
        assert client.get("/health").json()["waiting"] == 0


def test_beyond_the_queue_503_and_what_was_taken_is_answered(tmp_path):
    run, _ = make_run(tmp_path / "run")
    app = slow_app(run, 0.2, seconds=20, queue=3, batch=1)
    statuses = []
    with TestClient(app, base_url="http://127.0.0.1") as client:
        threads = [threading.Thread(target=lambda: statuses.append(ask(client, PNG))) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    codes = sorted(answer.status_code for answer in statuses)
    assert len(codes) == 12
    assert set(codes) == {200, 503}
    refused = next(answer for answer in statuses if answer.status_code == 503)
    assert refused.headers["retry-after"] == "1"
    assert "ask again later" in refused.json()["error"]


def test_more_requests_than_allowed_in_flight_are_refused_at_once(tmp_path):
    from plures.web.front import Front

    async def app(scope, receive, send):
        await asyncio.sleep(0.3)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def one(front, path):
        sent = []

        async def send(message):
            sent.append(message)

        await front({"type": "http", "path": path}, None, send)
        return sent[0]["status"]

    async def many():
        front = Front(app, 2, 5, lambda *_: None)
        return await asyncio.gather(*(one(front, path) for path in ("/predict",) * 4 + ("/health",)))

    assert asyncio.run(many()) == [200, 200, 503, 503, 200]


# -------------------------------------------------------------------------------------------------------- batching


def test_images_that_wait_together_are_scored_together_and_none_is_mixed_up():
    sizes, begin = [], threading.Event()

    def score(pixels, maps):
        begin.wait(5)
        return [(int(p.sum()), maps) for p in pixels]

    batcher = Batcher(score, max_batch=8, max_wait=0.02, max_queue=100, watch=sizes.append)
    futures = [batcher.submit([torch.full((1, 1, 1), i, dtype=torch.uint8)], i % 3 == 0)[0] for i in range(40)]
    begin.set()
    assert [f.result(5) for f in futures] == [(i, i % 3 == 0) for i in range(40)]
    assert sum(sizes) == 40
    assert len(sizes) < 20
    batcher.stop()
    with pytest.raises(Stopped):
        batcher.submit([torch.zeros(1, 1, 1)], False)


def test_stop_answers_what_waits():
    batcher = Batcher(lambda p, m: time.sleep(0.05) or [0] * len(p), max_batch=2, max_wait=0)
    futures = [f for _ in range(10) for f in batcher.submit([torch.zeros(1, 1, 1)], False)]
    batcher.stop()
    assert [f.result(0) for f in futures] == [0] * 10


def test_a_request_is_queued_whole_or_not_at_all():
    gate = threading.Event()
    batcher = Batcher(lambda p, m: gate.wait(5) and [0] * len(p), max_batch=1, max_wait=0, max_queue=4)
    first = batcher.submit([torch.zeros(1, 1, 1)] * 3, False)
    with pytest.raises(Full):
        batcher.submit([torch.zeros(1, 1, 1)] * 4, False)
    assert batcher.waiting <= 3
    first[2].cancel()
    gate.set()
    assert [f.result(5) for f in first[:2]] == [0, 0]
    with pytest.raises(CancelledError):
        first[2].result(5)
    batcher.stop()


def test_a_batch_that_fails_does_not_end_the_server():
    def score(pixels, maps):
        if pixels.sum() > 0:
            raise RuntimeError("out of memory")
        return [1] * len(pixels)

    batcher = Batcher(score, max_batch=1)
    bad, good = (batcher.submit([torch.full((1, 1, 1), v)], False)[0] for v in (1, 0))
    with pytest.raises(RuntimeError, match="out of memory"):
        bad.result(5)
    assert good.result(5) == 1
    batcher.stop()


# ------------------------------------------------------------------------------------------------- as a whole


def test_a_port_that_is_taken_is_one_line(plures, tmp_path):
    import socket

    run, _ = make_run(tmp_path / "run")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = plures("serve", run.path, "--port", taken.getsockname()[1])
    assert code == 2
    assert "choose another --port" in err
    assert err.count("\n") == 1


def test_an_answer_does_not_wait_for_the_other_side():
    import socket

    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.slow
def test_sigterm_lets_requests_in_flight_end(tmp_path):
    import os
    import signal
    import socket
    import subprocess
    import sys

    import httpx

    run, _ = make_run(tmp_path / "run")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code = (
        "import time, sys\nfrom plures.web import serve\nfrom plures import cli\ncall = serve.Scoring.__call__\n"
        "def slowly(self, pixels, maps):\n    time.sleep(1.5)\n    return call(self, pixels, maps)\n"
        "serve.Scoring.__call__ = slowly\n"
        f"sys.argv = ['plures', 'serve', {str(run.path)!r}, '--port', '{port}', '--max-batch', '1']\ncli.main()"
    )
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ)
    address = f"http://127.0.0.1:{port}"
    for _ in range(1200):
        try:
            httpx.get(f"{address}/health")
            break
        except httpx.HTTPError:
            time.sleep(0.1)
    statuses = []

    def one():
        statuses.append(httpx.post(f"{address}/predict", files={"photos": PNG}, timeout=20).status_code)

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(2.0)  # so that all three have arrived, on a busy machine too
    server.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    out, _ = server.communicate(timeout=20)
    assert statuses == [200, 200, 200]
    assert server.returncode == 0
    assert "stopped" in out


@pytest.mark.slow
def test_schemathesis_finds_nothing(tmp_path):
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed: pip install schemathesis")
    from hypothesis import HealthCheck, given, settings
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    run, _ = make_run(tmp_path / "run")
    app = make_app(run, LIMITS)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers={"host": "127.0.0.1"})

    asked = []

    def fuzz(case):
        asked.append((case.method, case.path))
        # a schema cannot say that the bytes of a file must be an image: these are refused with 4xx
        case.call_and_validate(headers={"host": "127.0.0.1"}, excluded_checks=[positive_data_acceptance])

    for operation in schema.get_all_operations():
        some = settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        some(given(case=operation.ok().as_strategy())(fuzz))()
    assert set(asked) == {("POST", "/predict"), ("GET", "/health"), ("GET", "/metrics")}
