"""The review page in a real browser: keys, undo, two tabs, many suggestions, and a server that is killed in between."""

import csv
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason='the pages need the web packages: pip install "plures[web]"')
playwright = pytest.importorskip("playwright.sync_api", reason="driving a browser needs playwright")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (Debian: apt install chromium)"),
]
PHOTOS, TAGS = 40, ("cat", "dog", "cow")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Server:
    """`plures review` as a process of its own."""

    def __init__(self, *arguments: str) -> None:
        self.port, self.arguments = free_port(), arguments
        self.url = f"http://127.0.0.1:{self.port}/"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "plures.cli", "review", *self.arguments, "--port", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(600):
            if self.process.poll() is not None:
                raise RuntimeError(self.process.stderr.read())
            try:
                urllib.request.urlopen(self.url + "api/state", timeout=5).read()
                return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError("the server did not start")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(30)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def folder(tmp_path):
    """40 photos, a table with one tag each, and 10,000 suggestions of 250 classes, 24 of them for cat."""
    random = np.random.default_rng(0)
    for i in range(PHOTOS):
        Image.fromarray(random.integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(tmp_path / f"{i:02d}.png")
    with (tmp_path / "tags.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([["image", "tags"], *([f"{i:02d}.png", TAGS[i % 3]] for i in range(PHOTOS))])
    cells = [(i, tag) for tag in ("cat", "dog") for i in range(PHOTOS) if TAGS[i % 3] != tag]
    cells += [(i, f"class {k}") for k in range(249) for i in range(PHOTOS)]
    with (tmp_path / "review.csv").open("w", newline="") as handle:
        lines = [[f"{i:02d}.png", tag, "missing", 1 - n / 1e5, n + 1] for n, (i, tag) in enumerate(cells[:10_000])]
        csv.writer(handle).writerows([["image", "tag", "kind", "score", "rank"], *lines])
    return tmp_path


@pytest.fixture
def server(folder):
    server = Server(str(folder / "tags.csv"), str(folder / "review.csv"))
    yield server
    server.stop()


def tab(browser, server):
    page = browser.new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.goto(server.url)
    playwright.expect(page.locator("#ask")).to_have_text(re.compile(r"\?$"))
    return page


def answered(page) -> None:
    playwright.expect(page.locator("#saved")).to_have_text("saved")


def asked(page) -> str:
    """Which question is shown."""
    return page.get_attribute("#ask", "data-question")


def journal(folder: Path) -> list[dict]:
    lines = (folder / "tags.csv.journal.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if "id" in entry]


def cells(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "tags.csv").open(newline="") as handle:
        return {row["image"]: row for row in csv.DictReader(handle)}


def test_keys_undo_and_ten_thousand_suggestions(browser, server, folder):
    page = tab(browser, server)
    playwright.expect(page.locator("#count")).to_have_text("0 of 10,000")
    for key in "yn?":
        page.keyboard.press(key)
    answered(page)
    assert [next(iter(e["answers"].values())) for e in journal(folder)] == ["yes", "no", "unsure"]
    before = asked(page)
    page.keyboard.press("u")
    playwright.expect(page.locator("#ask")).not_to_have_attribute("data-question", before)
    assert asked(page) == "2"
    assert "undo" in journal(folder)[-1]
    page.keyboard.press("Control+y")  # a browser's own keys are left alone
    assert asked(page) == "2"
    for n in range(60):
        now = asked(page)
        page.keyboard.press("yn"[n % 2])
        playwright.expect(page.locator("#ask")).not_to_have_attribute("data-question", now)
    answered(page)
    assert len(journal(folder)) == 64
    assert page.problems == []
    page.close()
    server.stop()
    assert cells(folder)["01.png"]["tags"].split(";")[:2] == ["dog", "cat"]
    assert "cat" in cells(folder)["02.png"]["absent"].split(";")


def test_a_class_at_a_time_and_many_at_once(browser, server, folder):
    page = tab(browser, server)
    page.click("nav button[data-tag='dog']")
    playwright.expect(page.locator("#ask")).to_have_text("dog?")
    page.keyboard.press("g")
    page.wait_for_selector("#grid .cell")
    shown = page.locator("#grid .cell")
    assert shown.count() == 12
    pick = page.locator("#grid .pick")
    assert {pick.nth(i).get_attribute("aria-pressed") for i in range(12)} == {"true"}  # scores of 0.9 and more
    assert page.evaluate("getComputedStyle(document.querySelector('.pick img')).objectFit") == "contain"
    for i in range(12):
        if i not in (0, 3, 5):
            pick.nth(i).click()
    pick.nth(3).click()
    pick.nth(3).click()  # and back
    shown.nth(6).locator(".unsure").click()
    playwright.expect(page.locator("#confirm")).to_contain_text("3 yes, 8 no, 1 not sure")
    first = pick.nth(0).get_attribute("data-question")
    page.keyboard.press("Enter")
    answered(page)
    answers = [e["answers"]["dog"] for e in journal(folder)]
    assert [i for i, a in enumerate(answers) if a == "yes"] == [0, 3, 5]
    assert [i for i, a in enumerate(answers) if a == "unsure"] == [6]
    assert answers.count("no") == 8
    before = (folder / "tags.csv").read_bytes()
    page.keyboard.press("u")  # the whole batch
    playwright.expect(page.locator("#toast")).to_contain_text("taken back: dog and 11 more")
    playwright.expect(pick.nth(0)).to_have_attribute("data-question", first)
    assert sum("undo" in e for e in journal(folder)) == 12
    assert (folder / "tags.csv").read_bytes() != before
    assert all("dog" not in row["tags"] for name, row in cells(folder).items() if TAGS[int(name[:2]) % 3] != "dog")
    playwright.expect(page.locator("#confirm")).to_contain_text("3 yes, 8 no, 1 not sure")  # as it was marked
    assert page.problems == []
    page.close()


def test_many_at_once_of_all_classes_on_a_phone_with_keys(browser, server, folder):
    page = browser.new_page(viewport={"width": 390, "height": 780})
    page.goto(server.url)
    page.click("#mode")
    page.wait_for_selector("#grid .cell")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("#grid .caption").first.inner_text() == "cat"
    page.keyboard.press("ArrowDown")  # to the first
    page.keyboard.press("n")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("?")
    page.keyboard.press("ArrowDown")  # two columns
    page.keyboard.press("ArrowLeft")
    page.keyboard.press(" ")
    page.click("#confirm")
    answered(page)
    answers = [e["answers"]["cat"] for e in journal(folder)]
    assert answers == ["no", "unsure", "no", *["yes"] * 9]
    page.close()


def test_what_is_edited_by_hand_meanwhile_is_said_and_stays(browser, server, folder):
    page = tab(browser, server)
    page.keyboard.press("?")
    answered(page)
    table = folder / "tags.csv"
    by_hand = table.read_text().replace("01.png,dog", "01.png,dog;cat")
    table.write_text(by_hand)
    page.keyboard.press("u")
    playwright.expect(page.locator("#toast")).to_contain_text("cat in 01.png was set to present in the table itself")
    assert table.read_text() == by_hand
    table.unlink()  # nothing is said to be saved that is not
    page.keyboard.press("y")
    playwright.expect(page.locator("#banner")).to_contain_text("the table is gone")
    playwright.expect(page.locator("#saved")).to_have_text("saving 1")
    table.write_text(by_hand)
    answered(page)
    playwright.expect(page.locator("#banner")).to_be_hidden()
    page.close()


def test_two_tabs_lose_nothing_and_double_nothing(browser, server, folder):
    one, two = tab(browser, server), tab(browser, server)
    one.keyboard.press("y")
    answered(one)
    two.keyboard.press("n")  # the same question, answered a moment ago by the other
    two.wait_for_selector("#toast:not([hidden])")
    assert "in another tab" in two.inner_text("#toast")
    two.keyboard.press("n")
    answered(two)
    entries = journal(folder)
    assert [next(iter(e["answers"].values())) for e in entries] == ["yes", "no"]
    assert len({(e["image"], *e["answers"]) for e in entries}) == 2
    one.close()
    two.close()


def test_killing_the_server_between_decisions_loses_nothing(browser, server, folder):
    page = tab(browser, server)
    page.keyboard.press("y")
    answered(page)
    server.kill()
    page.keyboard.press("n")
    page.keyboard.press("y")
    playwright.expect(page.locator("#banner")).to_contain_text("2 answers wait")
    server.start()
    page.wait_for_selector("#banner", state="hidden", timeout=20_000)
    answered(page)
    assert [next(iter(e["answers"].values())) for e in journal(folder)] == ["yes", "no", "yes"]
    page.close()
    server.stop()
    rows = cells(folder)
    assert "cat" in rows["01.png"]["tags"].split(";")
    assert "cat" in rows["02.png"]["absent"].split(";")
    assert "cat" in rows["04.png"]["tags"].split(";")


@pytest.fixture
def sample(folder):
    server = Server(str(folder / "tags.csv"), "--sample", "3")
    yield server
    server.stop()


def test_a_sample_with_keys_alone_on_a_phone(browser, folder, sample):
    page = browser.new_page(viewport={"width": 390, "height": 780}, color_scheme="dark")
    page.goto(sample.url)
    page.wait_for_selector("#tags .tag")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 22, 21)"
    page.wait_for_function("document.querySelector('#photo').naturalHeight > 0")
    bottom, top = (page.locator(name).bounding_box() for name in ("#photo", "#find"))
    assert top["y"] - bottom["y"] - bottom["height"] < 20  # no gap under the photo
    photo = page.get_attribute("#photo", "alt")
    own = TAGS[int(photo[:2]) % 3]
    first, second, third = [own, *sorted({*TAGS} - {own})]  # what is known comes first
    for key in ("ArrowDown", "ArrowUp", "ArrowRight", "y", "?", "Enter"):
        page.keyboard.press(key)
    answered(page)
    entry = journal(folder)[0]
    assert entry["image"] == photo
    assert entry["answers"] == {first: "yes", second: "yes", third: "unsure"}
    assert entry["split"] == "val"
    page.close()
    sample.stop()
    assert sum(row["split"] == "val" for row in cells(folder).values()) == 1


def test_confirming_a_known_tag_never_makes_it_absent(browser, folder, sample):
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    page.goto(sample.url)
    before = cells(folder)
    for n in range(3):
        page.wait_for_selector("#tags .tag:has(.known) .set-yes[aria-pressed='true']")
        photo = page.get_attribute("#photo", "alt")
        own = TAGS[int(photo[:2]) % 3]
        row = page.locator(f".tag[data-tag='{own}']")
        assert row.locator(".known").inner_text() == "known: yes"
        for _ in range(n + 1):  # once, twice, ...: it stays what it is
            row.locator(".set-yes").click()
            assert row.locator(".set-yes").get_attribute("aria-pressed") == "true"
        other = page.locator(".tag").nth(1)
        other.locator(".set-no").click()
        other.locator(".set-no").click()  # taken back: nothing is pressed
        assert other.locator("[aria-pressed='true']").count() == 0
        page.keyboard.press("Enter")
        answered(page)
        playwright.expect(page.locator("#photo")).not_to_have_attribute("alt", photo) if n < 2 else None
        assert journal(folder)[-1]["answers"][own] == "yes"
    page.close()
    sample.stop()
    assert {name: row["tags"] for name, row in cells(folder).items()} == {n: row["tags"] for n, row in before.items()}


def test_a_class_is_found_by_typing(browser, folder, sample):
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    page.goto(sample.url)
    page.wait_for_selector("#tags .tag")
    photo = page.get_attribute("#photo", "alt")
    page.keyboard.press("/")
    page.keyboard.type("do")
    playwright.expect(page.locator(".tag:not([hidden])")).to_have_count(1)
    page.keyboard.press("Enter")
    assert page.locator(".tag[data-tag='dog']").get_attribute("data-state") == "yes"
    page.keyboard.type("zebra")
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#toast")).to_contain_text("no class")
    page.keyboard.press("Escape")
    page.keyboard.press("Enter")
    answered(page)
    assert journal(folder)[0]["image"] == photo
    assert journal(folder)[0]["answers"]["dog"] == "yes"
    page.close()


def test_first_tags_with_keys_alone_and_a_kill(browser, folder):
    (folder / "tags.csv").unlink()
    server = Server(str(folder))
    try:
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        page.problems = []
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.goto(server.url)
        asked = json.loads(urllib.request.urlopen(server.url + "api/items?limit=3").read())
        one, two, three = [item["image"] for item in asked]
        playwright.expect(page.locator("#photo")).to_have_attribute("alt", one)
        playwright.expect(page.locator("#find")).to_be_focused()
        page.keyboard.type("grey cat")
        playwright.expect(page.locator(".pill[data-tag='grey cat']")).to_contain_text("new class")
        page.keyboard.press("Enter")
        page.keyboard.type("dog")
        page.keyboard.press("Enter")
        answered(page)
        assert cells(folder)[one]["tags"] == "grey cat;dog"  # at once, not when the photo is done
        server.kill()
        page.keyboard.press("Enter")
        playwright.expect(page.locator("#photo")).to_have_attribute("alt", two)
        page.keyboard.type("gr")  # what Enter takes is marked
        playwright.expect(page.locator(".pill[data-tag='grey cat']")).to_contain_text("Enter")
        page.keyboard.press("Enter")
        playwright.expect(page.locator("#banner")).to_contain_text("1 answer waits")
        server.start()
        page.wait_for_selector("#banner", state="hidden", timeout=60_000)
        answered(page)
        assert cells(folder)[two]["tags"] == "grey cat"
        page.keyboard.press("Backspace")  # takes it away again
        page.keyboard.press("Enter")
        page.keyboard.type("a;b")
        page.keyboard.press("Enter")
        playwright.expect(page.locator("#toast")).to_contain_text("contains ';'")
        playwright.expect(page.locator("#given .pill")).to_have_count(0)
        page.keyboard.press("1")
        answered(page)
        assert [cells(folder)[name]["tags"] for name in (one, two, three)] == ["grey cat;dog", "", "grey cat"]
        page.keyboard.press("Control+z")
        playwright.expect(page.locator("#given .pill")).to_have_count(0)
        playwright.expect(page.locator("#count")).to_have_text("0 of 39")  # what was tagged before is not asked again
        assert cells(folder)[three]["tags"] == ""
        page.keyboard.press("PageUp")
        playwright.expect(page.locator("#photo")).to_have_attribute("alt", two)
        assert page.problems == []
        page.close()
    finally:
        server.stop()
    assert len(cells(folder)) == PHOTOS
