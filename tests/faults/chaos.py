"""Bad luck by lot, over all verbs: what must hold afterwards is known, and every round is compared with it.

    python tests/faults/chaos.py [--rounds 200] [--seed 0] [--only train predict ...] [--faults kill ...]
    python tests/faults/chaos.py --every-renaming    # a kill before and after each renaming instead

A round is one verb and one fault in a fresh copy of a tiny world:
- kill: kill -9 at a random moment, or just before or after a file takes its place
- disk: a disk (tmpfs, where root may mount one) that is full after a random number of bytes, then made larger
- clock: every look at the clock jumps by years in either direction
- two: the same command twice at once
- cut: a file that the command needs or has made is cut at a random place, then put back

After it, what a person wrote is byte for byte as it was; nobody says "Traceback" or "unexpected failure"; no file under
its final name is half-written. The same command again (train: --resume) ends where the uninterrupted one ended: every
file, bit for bit, but for times; no temporary file is left. Answers that `review` acknowledged are in its table, once.

Commands run in forks of a process that has imported everything and done nothing: a start costs milliseconds, and no
thread of this process, or lock that it holds, is in them. Results go to benchmarks/results/faults.csv.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from plures import cli, files
from plures.scoring import features

Command = list[str]
FAULTS = ("kill", "disk", "clock", "two", "cut")
SMALL = ["backbone=small_conv", "backbone.image_size=16", "device=cpu", "workers=0", "batch_size=8"]
SCENES = ["scenes", "data.train=24", "data.val=8", "data.test=8", "data.size=32", *SMALL]
TIMES = ("seconds", "images_per_second", "time", "date", "started", "ended", "peak_memory")
WRITTEN = ("tags.csv", "other.csv", "asked.csv", "photos")  # by a person
TAGS = ("a", "b", "c")


@dataclass(frozen=True)
class Job:
    """A verb. begin: the call; again: the call after a fault, in the folder of the round; needs: files that may be cut;
    writes: what of a person's it may change, if only by adding."""

    begin: Command
    again: Callable[[], Command]
    needs: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


def same(*command: str) -> Job:
    return Job([*command], lambda: [*command], ("tags.csv", "run/model.safetensors", "run/model.json", "photos/00.png"))


def forced(*command: str) -> Job:
    return Job([*command], lambda: [*command, "--force"], same().needs)


def training(*settings: str, out: str = "new") -> Job:
    def again() -> Command:
        begun = Path(out, "experiment.yaml").exists()
        return ["train", "--resume", out] if begun else ["train", *settings, "--out", out]

    made = tuple(f"{out}/{name}" for name in ("checkpoint.pt", "model.safetensors", "log.jsonl", "experiment.yaml"))
    return Job(["train", *settings, "--out", out], again, ("tags.csv", "photos/00.png", *made))


JOBS = {
    "init": forced("init", "photos", "--out", "new.csv"),
    "init, again": Job(["init", "photos", "--out", "tags.csv"], lambda: ["init", "photos", "--out", "tags.csv"],
                       ("photos/00.png",), ("tags.csv",)),
    "check": same("check", "tags.csv", "--out", "look"),
    "merge": forced("merge", "tags.csv", "other.csv", "--out", "merged.csv"),
    "convert": forced("convert", "tags.csv", "--to", "coco", "--out", "coco.json"),
    "train": training(*SCENES, "loss=role", "epochs=2"),
    "train, frozen": training("tags.csv", *SMALL, "loss=an", "stages=probe", "epochs=2"),
    "sweep": same("sweep", *SCENES, "loss=an", "epochs=1", "--grid", "lr=0.01,0.001", "--out", "swept"),
    "evaluate": forced("evaluate", "run", "tags.csv", "--json", "judged.json"),
    "thresholds": same("thresholds", "run"),
    "report": same("report", "run", "--out", "report.html"),
    "compare": forced("compare", "run", "run2", "--out", "compared.html"),
    "table": forced("table", "run", "run2", "--out", "table.csv"),
    "suggest": forced("suggest", "run", "tags.csv", "--out", "found.csv"),
    "predict": forced("predict", "run", "photos", "--out", "said.csv"),
    "predict, maps": same("predict", "run", "photos", "--out", "parts2", "--heatmaps", "maps", "--resume"),
    "predict, parts": same("predict", "run", "photos", "--out", "parts", "--parts", "3", "--resume"),
    "export": forced("export", "run", "--to", "torch", "--out", "model.pt2"),
    "review": same("review", "tags.csv", "asked.csv"),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------- processes, faults


@dataclass
class Fault:
    """What befalls a process. renaming: 2 k or 2 k + 1 kills it before or after renaming k; clock: jumps, by seed."""

    renaming: int | None = None
    clock: int | None = None


_FORKS = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
_FORKS.set_forkserver_preload(["plures.cli", "plures.web.review", "fastapi", "uvicorn", "sklearn.linear_model"])
_begun: dict[int, Any] = {}


def forked(deed: Callable[..., None], *arguments: Any) -> int:
    """Call a function of a module in a fork of a clean process."""
    process = _FORKS.Process(target=deed, args=arguments)
    process.start()
    _begun[process.pid] = process
    return int(process.pid)


def start(command: Command, at: Path, fault: Fault | None = None) -> int:
    """Run a command line in a fork, in this folder; what it says goes to .said there."""
    return forked(run_here, command, at, fault or Fault())


def run_here(command: Command, at: Path, fault: Fault) -> NoReturn:
    code = 70
    torch.set_num_threads(1)
    try:
        os.chdir(at)
        log = os.open(at.parent / f"{at.name}.said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ["PLURES_CACHE"] = str(at / "cache")
        features.SAVED_EVERY = 0.0
        if fault.renaming is not None:
            _die_at(fault.renaming)
        if fault.clock is not None:
            _jump(fault.clock)
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


def _jump(seed: int) -> None:
    lot, began = random.Random(seed), time.time()
    time.time = lambda: began + lot.uniform(-1e9, 1e9)  # about thirty years
    time.perf_counter = time.monotonic = lambda: lot.choice((0.0, 1e6))  # type: ignore[assignment]


def ended(process: int) -> int:
    """Wait; the exit code, or minus the signal."""
    _begun[process].join()
    return int(_begun.pop(process).exitcode)


def said(at: Path) -> str:
    file = at.parent / f"{at.name}.said"
    return file.read_text(errors="replace") if file.exists() else ""


def finish(command: Command, at: Path, fault: Fault | None = None) -> None:
    code = ended(start(command, at, fault))
    if code:
        raise Broken(f"`{' '.join(command)}` ended with {code}: {said(at)[-500:]}")


def renames(job: Job, world: Path, at: Path) -> int:
    """How often an uninterrupted run puts a finished file in its place."""
    shutil.copytree(world, at)
    marks = at.parent / f"{at.name}.renamed"
    marks.touch()
    ended(forked(_counting, job.begin, at, marks))
    return marks.stat().st_size


def _counting(command: Command, at: Path, marks: Path) -> None:
    real = os.replace

    def replace(source: Any, target: Any) -> None:
        with marks.open("ab") as file:
            file.write(b".")
        real(source, target)

    files.os.replace = replace  # type: ignore[assignment]
    run_here(command, at, Fault())


# ------------------------------------------------------------------------------------------- what must hold, the model


class Broken(AssertionError):
    """Something that must hold does not."""


def state(at: Path, *, strict: bool = True) -> dict[str, str]:
    """A digest of every file, without the times in it; hidden and empty files, logs and locks do not count.

    strict: what cannot be read is an error: no file under its final name is half-written.
    """
    found = {}
    for path in sorted(at.rglob("*")):
        name = str(path.relative_to(at))
        if not path.is_file() or not path.stat().st_size or any(p.startswith(".") for p in path.relative_to(at).parts):
            continue
        try:
            digest = hashlib.sha256(repr(_content(path, str(at))).encode()).hexdigest()[:16]
            found[digest if path.parent.name == "features" else name] = (
                digest  # which are called after the round's paths
            )
        except Exception as error:
            if strict:
                raise Broken(f"{name} is half-written: {type(error).__name__}: {error}") from None
            found[name] = "cut"
    return found


def _content(path: Path, at: str) -> Any:
    content = path.read_bytes()
    match path.suffix:
        case ".pt":
            return _plain(torch.load(io.BytesIO(content), weights_only=True))
        case ".parquet":
            return pq.read_table(path).to_pydict()
        case ".json":
            return _timeless(json.loads(content.replace(at.encode(), b"")))
        case ".jsonl":
            return [_timeless(json.loads(line)) for line in content.replace(at.encode(), b"").splitlines()]
        case ".npy":
            return np.load(io.BytesIO(content)).tobytes()
        case ".png" | ".jpg":
            return np.asarray(Image.open(io.BytesIO(content))).tobytes()
        case ".pt2":
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                return [(one.filename, one.CRC) for one in archive.infolist()]
        case ".csv" if path.name == "log.csv":
            return len(content.splitlines())
        case _:
            return content.replace(at.encode(), b"")


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return str(value.dtype), hashlib.sha256(value.numpy().tobytes()).hexdigest()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in TIMES}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def written(at: Path) -> dict[str, bytes]:
    """What a person wrote."""
    found = [path for name in WRITTEN for path in ([at / name] if (at / name).is_file() else (at / name).rglob("*"))]
    return {str(path.relative_to(at)): path.read_bytes() for path in found}


def check_written(at: Path, before: dict[str, bytes], may_change: tuple[str, ...]) -> None:
    now = written(at)
    for name, content in before.items():
        lines = content.splitlines()
        if name in may_change and now.get(name, b"").splitlines()[: len(lines)] == lines:
            continue
        if now.get(name) != content:
            raise Broken(f"{name}, which a person wrote, is not what it was")


def check_said(at: Path) -> None:
    told = said(at)
    for word in ("Traceback", "unexpected failure", "Exception ignored"):
        if word in told:
            raise Broken(f"it said: {told[-600:]}")


# ---------------------------------------------------------------------------------------------------------- the world


def make_world(at: Path) -> None:
    """12 photographs, a table of 10 of them, another that disagrees, suggestions and two small runs."""
    lot = np.random.default_rng(0)
    (at / "photos").mkdir(parents=True)
    for i in range(12):
        Image.fromarray(lot.integers(0, 256, (20, 24, 3), np.uint8)).save(at / "photos" / f"{i:02d}.png")
    splits = ["train"] * 6 + ["val"] * 4
    rows = [f"photos/{i:02d}.png,{TAGS[i % 3]},{TAGS[(i + 1) % 3]},{splits[i]}" for i in range(10)]
    (at / "tags.csv").write_text("image,tags,absent,split\n" + "\n".join(rows) + "\n")
    (at / "other.csv").write_text("image,tags\n" + "".join(f"photos/{i:02d}.png,{TAGS[i % 2]};d\n" for i in range(8)))
    asked = [f"photos/{i:02d}.png,{TAGS[(i + 2) % 3]},missing,0.5,{i},model," for i in range(10)]
    (at / "asked.csv").write_text("image,tag,kind,score,rank,method,heatmap\n" + "\n".join(asked) + "\n")
    for run, loss in (("run", "an"), ("run2", "role")):
        finish(["train", "tags.csv", *SMALL, f"loss={loss}", "epochs=1", "stages=finetune", "--out", run], at)


# --------------------------------------------------------------------------------------------------------- the rounds


class Campaign:
    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.lot = root, random.Random(seed)
        self.world = root / "world"
        make_world(self.world)
        self.known: dict[str, tuple[dict[str, str], float, int]] = {}

    def expected(self, verb: str) -> tuple[dict[str, str], float, int]:
        """What the uninterrupted command ends with, how long it takes, and how many files it renames.

        What differs between two uninterrupted runs is not compared.
        """
        if verb not in self.known:
            job, states, seconds = JOBS[verb], list[dict[str, str]](), 0.0
            for name in ("whole", "again"):
                at = self.root / f"{verb} {name}"
                shutil.copytree(self.world, at)
                began = time.monotonic()
                finish(job.begin, at)
                seconds = time.monotonic() - began
                states.append(state(at))
            one, two = states
            fixed = {name: digest for name, digest in one.items() if two.get(name) == digest}
            if moving := sorted(one.keys() - fixed.keys()):
                print(f"   {verb}: not compared, since two uninterrupted runs differ: {', '.join(moving)}", flush=True)
            count = renames(job, self.world, self.root / f"{verb} counted")
            self.known[verb] = fixed, seconds, count
        return self.known[verb]

    def round(self, verb: str, fault: str, number: int, renaming: int | None = None) -> str:
        """How it went: what befell the command, or Broken."""
        at = self.root / f"{number}"
        if verb == "review":
            shutil.copytree(self.world, at)
            return self.review(at)
        expected, seconds, renamed = self.expected(verb)
        job = JOBS[verb]
        if fault == "disk":
            at.mkdir()
            used = sum(f.stat().st_size for f in self.world.rglob("*")) + 4096 * sum(1 for _ in self.world.rglob("*"))
            room = self.lot.choice((0, 4096, 20_000, 100_000, 500_000))
            options = ["-t", "tmpfs", "-o", f"size={used + room}", "tmpfs", str(at)]
            if subprocess.run(["mount", *options], capture_output=True).returncode:
                at.rmdir()
                return "no disk to fill"
            shutil.copytree(self.world, at, dirs_exist_ok=True)
        else:
            shutil.copytree(self.world, at)
        before = written(at)
        try:
            befell = getattr(self, fault)(job, at, seconds, renamed, renaming)
            check_said(at)
            check_written(at, before, job.writes)
            state(at)
            here = os.getcwd()
            os.chdir(at)
            try:
                again = job.again()
            finally:
                os.chdir(here)
            finish(again, at)
            check_said(at)
            check_written(at, before, job.writes)
            now = state(at)
            different = sorted(name for name, digest in expected.items() if now.get(name) != digest)
            if different:
                raise Broken(f"not as uninterrupted: {', '.join(different)}")
            left = [str(path.relative_to(at)) for path in at.rglob("*.tmp")]
            if left:
                raise Broken(f"left over: {left}")
            return str(befell)
        finally:
            if fault == "disk":
                subprocess.run(["umount", "-l", at], check=True)

    def kill(self, job: Job, at: Path, seconds: float, renamed: int, renaming: int | None) -> str:
        if renaming is None and renamed and self.lot.random() < 0.5:
            renaming = self.lot.randrange(2 * renamed)
        process = start(job.begin, at, Fault(renaming))
        if renaming is None:
            time.sleep(self.lot.uniform(0, seconds))
            os.kill(process, signal.SIGKILL)
        return "killed" if ended(process) == -signal.SIGKILL else "was done already"

    def disk(self, job: Job, at: Path, seconds: float, renamed: int, renaming: int | None) -> str:
        code = ended(start(job.begin, at))
        subprocess.run(["mount", "-o", "remount,size=64m", str(at)], check=True)
        if code not in (0, 1, 2):
            raise Broken(f"ended with {code} on a full disk")
        return "full" if code else "it was enough"

    def clock(self, job: Job, at: Path, seconds: float, renamed: int, renaming: int | None) -> str:
        finish(job.begin, at, Fault(clock=self.lot.randrange(1 << 30)))
        return "jumped"

    def two(self, job: Job, at: Path, seconds: float, renamed: int, renaming: int | None) -> str:
        first = start(job.begin, at)
        time.sleep(self.lot.choice((0, seconds / 3, seconds * 2 / 3)))
        second = start(job.begin, at)
        codes = {ended(first), ended(second)}
        if not codes <= {0, 1, 2} or 0 not in codes:
            raise Broken(f"two at once ended with {codes}: {said(at)[-500:]}")
        return "one refused" if len(codes) > 1 else "both ended"

    def cut(self, job: Job, at: Path, seconds: float, renamed: int, renaming: int | None) -> str:
        finish(job.begin, at)
        cuttable = [at / name for name in job.needs if (at / name).is_file()]
        file = self.lot.choice(cuttable)
        content = file.read_bytes()
        file.write_bytes(content[: self.lot.randrange(len(content))])
        here = os.getcwd()
        os.chdir(at)
        try:
            again = job.again()
        finally:
            os.chdir(here)
        code = ended(start(again, at))
        if code not in (0, 1, 2):
            raise Broken(f"ended with {code}: {said(at)[-500:]}")
        file.write_bytes(content)
        return f"refused {file.name}" if code else f"went on without {file.name}"

    def review(self, at: Path) -> str:
        """Kill the server again and again while it is answered; what was acknowledged must be kept, once."""
        asked = [line.split(",")[:2] for line in (at / "asked.csv").read_text().splitlines()[1:]]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = int(free.getsockname()[1])
        number, kills = 0, 3
        for attempt in range(kills + 1):
            server = start([*JOBS["review"].begin, "--port", str(port)], at)
            until = time.monotonic() + (self.lot.uniform(0.2, 1.5) if attempt < kills else 60)
            while time.monotonic() < until and (attempt < kills or number < len(asked)):
                answer = {asked[number % len(asked)][1]: ("yes", "no", "unsure")[number % 3]}
                one = {"id": f"d{number}", "question": number, "answers": answer, "versions": dict.fromkeys(answer, 0)}
                most = len(asked) * (attempt + 1) / (kills + 1)
                if number < most and _post(port, {"tab": "t", "decisions": [one]}):
                    number += 1
                else:
                    time.sleep(0.02)
            os.kill(server, signal.SIGKILL if attempt < kills else signal.SIGTERM)
            ended(server)
        check_said(at)
        entries = [json.loads(line) for line in (at / "tags.csv.journal.jsonl").read_text().splitlines()]
        ids = sorted(entry["id"] for entry in entries if "id" in entry)
        if ids != sorted(f"d{n}" for n in range(len(asked))):
            raise Broken("an answer was lost or kept twice")
        rows = {line.split(",")[0]: line.split(",") for line in (at / "tags.csv").read_text().splitlines()}
        for place, (image, tag) in enumerate(asked):
            there = [tag in cell.split(";") for cell in rows[image][1:3]]
            if there != [place % 3 == 0, place % 3 == 1]:
                raise Broken(f"the answer about {tag} in {image} is not in the table")
        if left := [str(path) for path in at.rglob("*.tmp")]:
            raise Broken(f"left over: {left}")
        return "killed"


def _post(port: int, content: Any) -> bool:
    url, head = f"http://127.0.0.1:{port}/api/decisions", {"content-type": "application/json"}
    try:
        request = urllib.request.Request(url, json.dumps(content).encode(), head)
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.load(answer)[0]["status"] in ("kept", "repeated")
    except OSError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(JOBS), choices=list(JOBS))
    parser.add_argument("--faults", nargs="*", default=list(FAULTS), choices=list(FAULTS))
    parser.add_argument("--every-renaming", action="store_true")
    parser.add_argument("--keep", action="store_true", help="keep the folders of rounds that went wrong")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    root = Path(tempfile.mkdtemp(prefix="chaos-"))
    campaign = Campaign(root, asked.seed)
    if asked.every_renaming:
        todo = [(verb, "kill", r) for verb in asked.only if verb != "review"
                for r in range(2 * campaign.expected(verb)[2])]  # fmt: skip
    else:
        pairs = [(verb, fault) for verb in asked.only for fault in (asked.faults if verb != "review" else ["kill"])]
        order = [pair for _ in range(-(-asked.rounds // len(pairs))) for pair in campaign.lot.sample(pairs, len(pairs))]
        todo = [(verb, fault, None) for verb, fault in order[: asked.rounds]]
    outcomes, broken = Counter[tuple[str, str, str]](), Counter[tuple[str, str]]()
    for number, (verb, fault, renaming) in enumerate(todo):
        try:
            outcomes[fault, verb, campaign.round(verb, fault, number, renaming)] += 1
        except Broken as error:
            broken[fault, verb] += 1
            print(f"BROKEN {number} {fault}, {verb}: {' '.join(str(error).split())}", flush=True)
            if asked.keep:
                continue
        shutil.rmtree(root / f"{number}", ignore_errors=True)
    if not asked.keep:
        shutil.rmtree(root)
    for (fault, verb, befell), times in sorted(outcomes.items()):
        print(f"{fault}, {verb}: {befell} {times}")
    rows = []
    for fault in asked.faults:
        tried = sum(n for (f, _, _), n in outcomes.items() if f == fault) + sum(
            n for (f, _), n in broken.items() if f == fault
        )
        befell = Counter[str]()
        for (f, _, what), n in outcomes.items():
            befell[re.sub(r" \S+\.\S+$", "", what)] += n * (f == fault)
        verbs = len({verb for f, verb, _ in outcomes if f == fault})
        lost = sum(n for (f, _), n in broken.items() if f == fault)
        what = "; ".join(f"{name} {n}" for name, n in sorted(befell.items()) if n)
        kind = f"{fault}, at every renaming" if asked.every_renaming else fault
        rows.append(
            {"fault": kind, "rounds": tried, "verbs": verbs, "befell": what, "losses": lost, "seed": asked.seed}
        )
    print(*rows, sep="\n")
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    from environment import read_rows, write

    new = {(row["fault"], row["seed"]) for row in rows}
    kept = [row for row in read_rows("faults") if (row["fault"], row.get("seed")) not in new]
    print(write("faults", kept + rows))


if __name__ == "__main__":
    main()
