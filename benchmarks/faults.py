"""Kill -9 at random moments, and just before and after every renaming: a restart must end where the uninterrupted run
ends, and no file under its final name may be half-written.

    python benchmarks/faults.py [--kills 30] [--only train predict features export review]

Commands run in processes forked from this one, which has imported everything: a start costs milliseconds. Results go
to results/faults.csv.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import load_file

from plures import cli, files
from plures.config import Experiment
from plures.models.model import build_model, load, save
from plures.runs.run import Run
from plures.scoring import features

FORMATS = {"onnx": "model.onnx", "openvino": "model.xml", "torch": "model.pt2"}
LIMIT = 600.0  # seconds for the trials of one command
Command = list[str]


@dataclass
class Job:
    """A command that is killed. begin: the first call; go_on: the call after a kill; state: what it has made, to be
    compared with the uninterrupted run's; whole: loads every file that is there, raises if one is half-written."""

    begin: Callable[[Path], Command]
    go_on: Callable[[Path], Command]
    state: Callable[[Path], Any]
    whole: Callable[[Path], Any]


# ------------------------------------------------------------------------------------------- processes to be killed


def start(command: Command, folder: Path, die_at: int | None = None) -> int:
    """Run a command line in a fork of this process. die_at: 2 k or 2 k + 1 kills it before or after renaming k."""
    process = os.fork()
    if process:
        return process
    start_here(command, folder, die_at)
    return None


def start_here(command: Command, folder: Path, die_at: int | None = None) -> NoReturn:
    """Run a command line in this process, which ends with it; what it says goes to said.txt in the folder."""
    code = 70
    try:
        log = os.open(folder / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ["PLURES_CACHE"] = str(folder / "cache")
        features.SAVED_EVERY = 0.0
        if die_at is not None:
            _die_at(die_at)
        sys.argv = ["plures", *command]
        cli.main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)


def _die_at(moment: int) -> None:
    real, count = os.replace, [0]

    def replace(source: Any, target: Any) -> None:
        if count[0] == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        real(source, target)
        if count[0] + 1 == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        count[0] += 2

    files.os.replace = replace  # type: ignore[assignment]


def ended(process: int) -> int:
    """Wait; the exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _in_this_process(command: Command, folder: Path) -> None:
    os.environ["PLURES_CACHE"] = str(folder / "cache")
    sys.argv = ["plures", *command]
    try:
        cli.main()
    except SystemExit as end:
        if end.code:
            raise AssertionError(f"{' '.join(command)} failed") from None


def finish(command: Command, folder: Path) -> None:
    code = ended(start(command, folder))
    if code:
        raise AssertionError(f"{' '.join(command)} ended with {code}: {(folder / 'said.txt').read_text()[-500:]}")


# ---------------------------------------------------------------------------------------------------------------- jobs


def photos(folder: Path, count: int) -> Path:
    generator = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        Image.fromarray(generator.integers(0, 256, (20, 24, 3), np.uint8)).save(folder / f"{i:03d}.png")
    return folder


def _run_state(run: Path) -> Any:
    """Everything that a training run made, without times."""
    opened = Run(run)
    log = [{k: v for k, v in r.items() if k not in ("seconds", "images_per_second")} for r in opened.log]
    checkpoint = opened.load_checkpoint()
    return (run / "model.safetensors").read_bytes(), (run / "report.json").read_text(), log, _plain(checkpoint)


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _run_whole(run: Path) -> None:
    if not (run / "experiment.yaml").exists():
        return
    opened = Run(run)
    opened.log, opened.load_checkpoint()
    if (run / "model.json").exists():
        load(run)
    elif (run / "model.safetensors").exists():
        load_file(run / "model.safetensors")
    for file in run.glob("*.json"):
        json.loads(file.read_text())
    for file in (run.parent / "cache").glob("features/*.npy"):
        np.load(file)


def training(settings: Command) -> Job:
    def begin(at: Path) -> Command:
        return ["train", *settings, "--out", str(at / "run")]

    def go_on(at: Path) -> Command:
        begun = (at / "run" / "experiment.yaml").exists()
        return ["train", "--resume", str(at / "run")] if begun else begin(at)

    def state(at: Path) -> Any:
        left = [f.name for f in at.glob("cache/features/*") if f.suffix in (".part", ".rows")]
        return _run_state(at / "run"), left, sorted(f.read_bytes() for f in at.glob("cache/features/*.npy"))

    return Job(begin, go_on, state, lambda at: _run_whole(at / "run"))


def predicting(run: Path, source: Path) -> Job:
    def begin(at: Path) -> Command:
        return ["predict", str(run), str(source), "--out", str(at / "found"), "--parts", "4", "--batch-size", "2"]

    def state(at: Path) -> Any:
        return [pq.read_table(part).to_pydict() for part in sorted((at / "found").glob("*.parquet"))]

    return Job(begin, lambda at: [*begin(at), "--resume"], state, state)


def exporting(run: Path, to: str) -> Job:
    from plures.export import formats

    def begin(at: Path) -> Command:
        return ["export", str(run), "--to", to, "--out", str(at / FORMATS[to])]

    def state(at: Path) -> Any:
        content = (at / FORMATS[to]).read_bytes()
        runner: Any = {
            "onnx": lambda: formats.run_onnx(content),
            "openvino": lambda: formats.run_openvino(content, (at / "model.bin").read_bytes()),
            "torch": lambda: formats.run_torch(content, False),
        }[to]()
        images = np.random.default_rng(1).integers(0, 256, (2, 3, 30, 40), np.uint8)
        file = None if to == "openvino" else content  # whose names of nodes count the exports of a process
        return file, {name: np.asarray(value).tobytes() for name, value in runner(images).items()}

    def loaded(at: Path) -> None:
        if (at / FORMATS[to]).exists():
            state(at)

    return Job(begin, lambda at: [*begin(at), "--force"], state, loaded)


# --------------------------------------------------------------------------------------------------------- the campaign


def killed(name: str, job: Job, kills: int, at_renames: bool, root: Path, seed: int = 0) -> dict[str, Any]:
    """Kill `kills` times at random, then at each renaming; each time in a new folder, restarted once."""
    generator = random.Random(f"{seed} {name}")
    whole = root / f"{name} whole"
    whole.mkdir()
    _in_this_process(job.begin(whole), whole)  # so that what commands import is there for the forks
    again = root / f"{name} again"
    again.mkdir()
    began = time.monotonic()
    finish(job.begin(again), again)
    seconds = time.monotonic() - began
    until = time.monotonic() + LIMIT
    expected, failures, died = job.state(whole), list[str](), 0
    moments: list[int | None] = [None] * kills
    if at_renames:
        moments += list(range(2 * renames(job, root / f"{name} counted")))
    generator.shuffle(moments)
    tried: list[int | None] = []
    for number, moment in enumerate(moments):
        if time.monotonic() > until:
            break
        tried.append(moment)
        at = root / f"{name} {number}"
        at.mkdir()
        process = start(job.begin(at), at, moment)
        if moment is None:
            time.sleep(generator.uniform(0, seconds))
            os.kill(process, signal.SIGKILL)
        died += ended(process) == -signal.SIGKILL
        try:
            job.whole(at)
            finish(job.go_on(at), at)
            left = [str(f.relative_to(at)) for f in at.rglob("*.tmp")]
            if left:
                failures.append(f"left over: {left}")
            if job.state(at) != expected:
                failures.append(f"trial {number}: another result than the uninterrupted run")
        except Exception as error:
            failures.append(f"trial {number}, renaming {moment}: {type(error).__name__}: {error}")
        shutil.rmtree(at)
    for failure in failures[:5]:
        print("  ", failure, flush=True)
    return {"fault": f"kill -9, {name}", "times": len(tried),
            "at_random": tried.count(None), "at_renames": len(tried) - tried.count(None),
            "died": died, "went_on_to_the_same_result": len(tried) - len(failures), "defects": len(failures),
            "seconds_uninterrupted": round(seconds, 2)}  # fmt: skip


def renames(job: Job, at: Path) -> int:
    """How often an uninterrupted run puts a finished file in its place."""
    at.mkdir()
    read, write = os.pipe()
    process = os.fork()
    if not process:
        real = os.replace

        def replace(source: Any, target: Any) -> None:
            os.write(write, b".")
            real(source, target)

        files.os.replace = replace  # type: ignore[assignment]
        os._exit(ended(start(job.begin(at), at)))
    os.close(write)
    count = 0
    while chunk := os.read(read, 4096):
        count += len(chunk)
    os.close(read)
    ended(process)
    return count


# --------------------------------------------------------------------------------------------------------------- review


def reviewing(kills: int, root: Path) -> dict[str, Any]:
    """Answer questions through HTTP while the server is killed again and again; what was acknowledged must be kept,
    once, and the table must be that of a server that was never killed."""
    import fastapi  # noqa: F401
    import uvicorn  # noqa: F401

    import plures.web.review  # noqa: F401  so that forks need not

    tables = []
    for name, times in (("whole", 0), ("killed", kills)):
        at = root / f"review {name}"
        photos(at, 12)
        tags = ["a", "b", "c", "d", "e"]
        rows = [f"{i:03d}.png,{tags[i % 5]}" for i in range(12)]
        (at / "tags.csv").write_text("image,tags\n" + "\n".join(rows) + "\n")
        asked = [(i, tag) for i in range(12) for tag in tags if tag != tags[i % 5]]
        lines = [f"{i:03d}.png,{tag},missing,0.5,{n},model," for n, (i, tag) in enumerate(asked)]
        head = "image,tag,kind,score,rank,method,heatmap\n"
        (at / "review.csv").write_text(head + "\n".join(lines) + "\n")
        died = _answer_all(at, asked, times)
        entries = [json.loads(line) for line in (at / "tags.csv.journal.jsonl").read_text().splitlines()]
        ids = [e["id"] for e in entries if "id" in e]
        assert sorted(ids) == sorted(f"d{n}" for n in range(len(asked))), "an answer was lost or kept twice"
        assert not list(at.glob("*.tmp")) + list(at.glob(".*.tmp")), "a temporary file is left"
        tables.append((at / "tags.csv").read_text())
    return {"fault": "kill -9, review", "times": kills, "at_random": kills, "at_renames": 0, "died": died,
            "went_on_to_the_same_result": kills if tables[0] == tables[1] else 0,
            "defects": int(tables[0] != tables[1]), "answers": len(asked)}  # fmt: skip


def _answer_all(at: Path, asked: list[tuple[int, str]], kills: int) -> int:
    """Returns how many kills met a living server."""
    generator = random.Random(0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = ["review", str(at / "tags.csv"), str(at / "review.csv"), "--port", str(port)]
    died = number = 0
    for attempt in range(kills + 1):
        server = start(command, at)
        until = time.monotonic() + (generator.uniform(0.3, 2.5) if attempt < kills else 600)
        while time.monotonic() < until and (number < len(asked) or attempt < kills):
            tag = asked[number % len(asked)][1]
            answer = {tag: ("yes", "no", "unsure")[number % 3]}
            one = {"id": f"d{number}", "question": number, "answers": answer, "versions": {tag: 0}}
            if number < len(asked) * (attempt + 1) / (kills + 1) and _post(port, {"tab": "t", "decisions": [one]}):
                number += 1
            else:
                time.sleep(0.02)
        if attempt < kills:
            os.kill(server, signal.SIGKILL)
            died += ended(server) == -signal.SIGKILL
        else:
            os.kill(server, signal.SIGTERM)
            ended(server)
    return died


def _post(port: int, content: Any) -> bool:
    url, head = f"http://127.0.0.1:{port}/api/decisions", {"content-type": "application/json"}
    try:
        request = urllib.request.Request(url, json.dumps(content).encode(), head)
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.load(answer)[0]["status"] in ("kept", "repeated")
    except OSError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--only", nargs="*", default=["train", "predict", "features", "review", "export"])
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for each command")
    asked = parser.parse_args()
    globals()["LIMIT"] = asked.limit
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in asked.only:
            for row in attacked(name, asked.kills, root):
                rows.append(row)
                print(row, flush=True)
    from environment import read_rows, write

    known = [row for row in read_rows("faults") if row["fault"] not in {r["fault"] for r in rows}]
    print(write("faults", known + rows))


def attacked(name: str, kills: int, root: Path) -> list[dict[str, Any]]:
    """The rows of one kind of command."""
    small: dict[str, Any] = {"device": "cpu", "workers": 0, "loss": "role", "supervision": "single_positive"}
    if name == "train":
        data = {"name": "scenes", "train": 24, "val": 8, "test": 8, "size": 32}
        small |= {"backbone": {"name": "small_conv", "image_size": 32}, "epochs": 2}
        return [killed("train", training(Experiment(data=data, **small).to_settings()), kills, True, root)]
    if name == "features":
        for i, kind in enumerate(("cat", "dog", "sofa")):
            (root / "classes").mkdir(exist_ok=True)
            photos(root / "classes" / kind, 40)
            for file in sorted((root / "classes" / kind).iterdir()):
                Image.open(file).point(lambda v, i=i: v // (i + 1)).save(file)
        small |= {"backbone": {"name": "small_conv", "image_size": 32}, "loss": "bce", "supervision": "full"}
        made = Experiment(data={"name": str(root / "classes"), "complete": True}, stages="probe", epochs=2, **small)
        return [killed("frozen features", training(made.to_settings()), kills, True, root)]
    if name == "review":
        return [reviewing(kills, root)]
    run = root / "model"
    if not run.exists():
        torch.manual_seed(0)
        options = {"image_size": 32}
        Run.create(run, Experiment(backbone={"name": "small_conv", **options}, device="cpu"))
        save(build_model("small_conv", "codebook", ("cat", "dog"), options), run)
    if name == "predict":
        return [killed("predict", predicting(run, photos(root / "photos", 60)), kills, True, root)]
    import onnx  # noqa: F401  so that forks need not
    import onnxruntime  # noqa: F401
    import openvino  # noqa: F401

    return [killed(f"export to {to}", exporting(run, to), kills, True, root) for to in FORMATS]


if __name__ == "__main__":
    main()
