"""The pictures and numbers of docs/from-photos-to-onnx.md: runs its commands on scenes instead of photographs.

python docs/pictures/walkthrough.py FOLDER

A script stands in for the person: it answers the questions of the review page by the scenes' known labels. Needs the
web and export extras and chromium.
"""

import csv
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"
MODEL = ["backbone=small_conv", "image_size=64", "epochs=15"]  # in place of --recipe photos
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def run(*command: str) -> None:
    words = [str(word) for word in command]
    print("$", *words, flush=True)
    started = time.perf_counter()
    program = [sys.executable, "-m", "plures.cli"] if words[0] == "plures" else [sys.executable]
    subprocess.run([*program, *words[1:]], check=True)
    print(f"({time.perf_counter() - started:.0f} s)", flush=True)


@contextmanager
def page(*arguments: str):
    """`plures review` as a process of its own; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "plures.cli", "review", *arguments, "--port", str(port)]
    server = subprocess.Popen(command)
    address = f"http://localhost:{port}"
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{address}/api/state").read()
            break
        except OSError:
            time.sleep(0.2)
    yield address
    server.terminate()
    server.wait()


def ask(address: str, told: object = None):
    body = None if told is None else json.dumps(told).encode()
    request = urllib.request.Request(address, body, {"content-type": "application/json"})
    return json.loads(urllib.request.urlopen(request).read())


def answer_all(address: str, truth: dict[str, set[str]], at_most: int) -> tuple[int, int]:
    """Answer what the page asks; gives how many cells were answered and how many with yes."""
    answered = yes = 0
    while answered < at_most and (items := ask(f"{address}/api/items?limit=50")):
        decisions = []
        for item in items:
            cells = item.get("tags") or [{"tag": item["tag"], "version": item["version"]}]
            said = {c["tag"]: "yes" if c["tag"] in truth[Path(item["image"]).name] else "no" for c in cells}
            place = {"question": item["question"]} if "question" in item else {"row": item["row"]}
            versions = {c["tag"]: c["version"] for c in cells}
            decisions.append({"id": f"{answered}-{len(decisions)}-{time.time_ns()}", "answers": said,
                              "versions": versions, **place})  # fmt: skip
            answered += len(said)
            yes += sum(word == "yes" for word in said.values())
        ask(f"{address}/api/decisions", {"tab": "walkthrough", "decisions": decisions})
    return answered, yes


def photograph(address: str, name: str, width: int, height: int) -> None:
    file = Path(f"{name}.png").absolute()
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
    flags += [f"--user-data-dir={file.parent / 'chromium'}", "--virtual-time-budget=20000"]
    subprocess.run(
        [CHROMIUM, *flags, f"--window-size={width},{height}", f"--screenshot={file}", address],
        check=True,
        stderr=subprocess.DEVNULL,
    )  # it complains of a desktop that is not there
    keep(Image.open(file), name)


def keep(picture: Image.Image, name: str, limit: int = 150_000) -> None:
    """Into docs/pictures as a PNG below the limit, in fewer colours or smaller if need be."""
    for scale in (1.0, 0.8, 0.65, 0.5):
        side = (int(picture.width * scale), int(picture.height * scale))
        small, bytes_ = picture.convert("RGB").resize(side, Image.Resampling.LANCZOS), io.BytesIO()
        small.quantize(128).save(bytes_, "PNG", optimize=True)
        if bytes_.tell() < limit:
            (HERE / f"walk_{name}.png").write_bytes(bytes_.getvalue())
            return


def main(folder: str) -> None:
    Path(folder).mkdir(parents=True)
    os.chdir(folder)
    run("python", EXAMPLES / "make_photos.py", "photos", "1200")
    with open("truth.csv", newline="") as file:
        truth = {Path(row["image"]).name: set(row["tags"].split(";")) for row in csv.DictReader(file)}
    run("plures", "init", "photos/", "--out", "tags.csv")
    run("plures", "check", "tags.csv", "--out", "look/")
    for picture in Path("look").glob("*.png"):
        keep(Image.open(picture), f"check_{picture.stem}")
    with page("tags.csv", "--sample", "100") as address:
        photograph(address, "sample", 900, 700)
        print("sample:", answer_all(address, truth, 10**6))
    run("plures", "train", "tags.csv", "--out", "runs/first", *MODEL)
    run("plures", "suggest", "runs/first", "--out", "review.csv", "--top", "500")
    with page("tags.csv", "review.csv", "--run", "runs/first") as address:
        photograph(address, "review", 900, 700)
        print("suggestions:", answer_all(address, truth, 10**6))
    run("plures", "train", "tags.csv", "--out", "runs/second", *MODEL)
    run("plures", "thresholds", "runs/second", "tags.csv", "--from", "reviewed")
    run("plures", "report", "runs/second", "--split", "val")
    photograph(Path("runs/second/report.html").absolute().as_uri(), "report", 900, 1100)
    shutil.copytree("photos/eight", "new_photos")
    run("plures", "predict", "runs/second", "new_photos/", "--out", "found.csv", "--heatmaps", "maps/")
    keep(sheet(sorted(Path("maps").rglob("*.png"))[:8]), "maps")
    run("plures", "export", "runs/second", "--to", "onnx", "--out", "tags.onnx")
    run("python", EXAMPLES / "onnx_inference.py", "tags.onnx", *sorted(Path("new_photos").glob("*.png"))[:3])


def sheet(files: list[Path], side: int = 200) -> Image.Image:
    """The pictures side by side, four in a row."""
    together = Image.new("RGB", (4 * side, (len(files) + 3) // 4 * side), "white")
    for number, file in enumerate(files):
        small = Image.open(file).convert("RGB").resize((side - 8, side - 8))
        together.paste(small, (number % 4 * side + 4, number // 4 * side + 4))
    return together


if __name__ == "__main__":
    main(sys.argv[1])
