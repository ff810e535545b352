"""axe finds nothing on any page: light and dark, on a desk and on a phone.

axe-core is not part of plures: `npm install axe-core` in the checkout, or PLURES_AXE=.../axe.min.js.
"""

import csv
import io
import os
import shutil
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import plures
from plures.report.compare import compare, write_comparison
from plures.report.demo import run_demo

pytest.importorskip("fastapi", reason='the pages need the web packages: pip install "plures[web]"')
pytest.importorskip("prometheus_client", reason='needs pip install "plures[web]"')
import uvicorn

from plures.web.connections import listen
from plures.web.review import Review, create_app
from plures.web.serve import make_app

playwright = pytest.importorskip("playwright.sync_api", reason="driving a browser needs playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
IN_CHECKOUT = Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js"
AXE = Path(os.environ.get("PLURES_AXE", IN_CHECKOUT))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (Debian: apt install chromium)"),
    pytest.mark.skipif(not AXE.is_file(), reason="no axe-core: npm install axe-core, or PLURES_AXE=.../axe.min.js"),
]
TAGS = ("cat", "dog", "cow")
VIEWS = [(width, scheme) for width in (1200, 390) for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """24 photographs, a table with every label, two runs, and suggestions."""
    folder = tmp_path_factory.mktemp("axe")
    rng, rows = np.random.default_rng(0), [["image", "tags", "absent"]]
    asked = [["image", "tag", "kind", "score", "rank"]]
    for i in range(24):
        Image.fromarray(rng.integers(0, 255, (90, 120, 3), dtype=np.uint8)).save(folder / f"{i:02d}.png")
        present, absent = TAGS[i % 3], TAGS[(i + 1) % 3]
        rows.append([f"{i:02d}.png", present, absent])
        asked.append([f"{i:02d}.png", TAGS[(i + 2) % 3], "missing", 1 - i / 30, i + 1])
    bare = [[name, "tags" if name == "image" else "", ""] for name, *_ in rows]
    for name, lines in (("tags", rows), ("review", asked), ("sample", rows), ("bare", bare)):
        with (folder / f"{name}.csv").open("w", newline="") as handle:
            csv.writer(handle).writerows(lines)
    backbone = {"name": "small_conv", "width": 16}
    settings = {"backbone": backbone, "image_size": 32, "epochs": 1, "device": "cpu", "workers": 0}
    runs = [
        plures.train(str(folder / "tags.csv"), folder / name, loss=name, progress=False, **settings)
        for name in ("gr", "wan")
    ]
    runs[0].write_report()
    run_demo(folder / "demo", Console(file=io.StringIO()), images=96, epochs=1)
    write_comparison(compare([run.path for run in runs]), folder / "compare.html")
    return folder


@contextmanager
def served(app):
    with listen("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        thread.join(30)


@contextmanager
def reviewed(*args, **options):
    work = Review(*args, **options)
    try:
        with served(create_app(work)) as url:
            yield url
    finally:
        work.close()


def suggestions(world):
    return reviewed(world / "tags.csv", world / "review.csv", run=world / "gr")


def photo(page):
    playwright.expect(page.locator("#photo")).not_to_have_js_property("naturalHeight", 0)


def many(page):
    photo(page)
    page.click("#mode")
    page.wait_for_selector("#grid .cell")
    page.locator(".unsure").first.click()


def tagged(page):
    photo(page)
    page.fill("#find", "cat")
    page.keyboard.press("Enter")
    page.wait_for_selector("#given .pill")
    page.fill("#find", "do")


def found(page, world):
    page.set_input_files("#file", [world / "00.png", world / "01.png"])
    playwright.expect(page.locator("article details li")).to_have_count(2 * len(TAGS))
    page.locator("details summary").first.click()


PAGES = {
    "suggestions": (suggestions, photo),
    "grid": (suggestions, many),
    "sample": (lambda world: reviewed(world / "sample.csv", None, sample=5), photo),
    "first tags": (lambda world: reviewed(world / "bare.csv", None), tagged),
}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def faults(browser, url, act=None):
    """What axe finds in every view, as lines; and pages wider than the phone."""
    lines = []
    for width, scheme in VIEWS:
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page.goto(url)
        if act is not None:
            act(page)
        page.evaluate(AXE.read_text(encoding="utf-8"))
        result = page.evaluate("axe.run()")
        for fault in result["violations"]:
            node = fault["nodes"][0]
            said = f"{fault['id']}, {len(fault['nodes'])} times: {node['html'][:200]} {node['failureSummary'][:300]}"
            lines.append(f"{width} {scheme}: {said}")
        if not page.evaluate("document.documentElement.scrollWidth <= innerWidth"):
            lines.append(f"{width} {scheme}: wider than the screen")
        if shots := os.environ.get("PLURES_SHOTS"):
            name = act.__name__ if act is not None else Path(url).stem
            page.screenshot(path=f"{shots}/{name}-{width}-{scheme}.png", full_page=True)
        page.close()
    return lines


@pytest.mark.parametrize("name", PAGES)
def test_review_pages(browser, world, name):
    serve, act = PAGES[name]
    with serve(world) as url:
        assert faults(browser, url, act) == []


@pytest.mark.parametrize("name", ["gr/report.html", "compare.html", "demo/index.html"])
def test_reports(browser, world, name):
    assert faults(browser, (world / name).as_uri()) == []


def test_the_serve_page(browser, world):
    with served(make_app(world / "gr")) as url:

        def act(page):
            found(page, world)

        assert faults(browser, url, act) == []
