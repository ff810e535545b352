"""Coverage-guided fuzzing (libFuzzer through atheris) of the readers of tables, JSON, XML and YAML.

    pip install atheris
    python benchmarks/fuzz_guided.py --seconds 120 [--only coco voc ...]

Inputs that reach lines of plures which none reached before are kept and changed further, half of the time by libFuzzer
and half of the time by the mutations of fuzz.py, which know trees and numbers. Every door has a process of its own. A
defect is what it is in fuzz.py: an error that is no PluresError, a hang, or a crash. Counts go to
results/fuzz_guided.csv.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

DOORS = {
    "table csv, tags": "tags.csv",
    "table csv, columns": "tags.csv",
    "table tsv": "tags.tsv",
    "suggestions": "review.csv",
    "nuswide csv": "nus_wid_data.csv",
    "cub": "CUB_200_2011/attributes/image_attribute_labels.txt",
    "list to predict": "list.txt",
    "coco": "at/instances_train.json",
    "voc": "Annotations/2008_000001.xml",
    "review journal": "tags.csv.journal.jsonl",
    "thresholds": "thresholds.json",
    "report": "report.json",
    "model": "model.json",
    "experiment": "experiment.yaml",
    "merge spec": "spec.yaml",
}
LONGEST_INPUT = 1 << 16  # bytes


def attack(name: str, seconds: int, notes: Path) -> None:
    """Fuzz one door in this process, which libFuzzer ends; what was found is in `notes` from time to time."""
    import atheris

    with atheris.instrument_imports(include=["plures"]):
        import fuzz

    os.environ["NO_COLOR"] = "1"
    root = Path(tempfile.mkdtemp(dir=notes.parent))
    door = fuzz.doors(root)[name]
    path, folder = DOORS[name], root / "at"
    kind = fuzz.KINDS_OF[Path(path).suffix]
    fuzz.prepare(door, folder)
    assert fuzz.tried(door, folder)[0] == "read"
    corpus = root / "corpus"
    corpus.mkdir()
    for file, content in door.files.items():
        if Path(file).suffix == Path(path).suffix:
            (corpus / file.replace("/", "_")).write_bytes(content)
    counts: dict[str, int] = {}
    examples: dict[str, str] = {}
    saved = [0.0]

    def one(data: bytes) -> None:
        (folder / path).write_bytes(data)
        outcome, message = fuzz.tried(door, folder)
        new = outcome not in counts
        counts[outcome] = counts.get(outcome, 0) + 1
        if new and outcome not in ("read", "refused"):
            examples[outcome] = f"{message[:150]}\n    {data[:2000]!r}"
        if new or time.monotonic() - saved[0] > 1:
            notes.write_text(json.dumps({"counts": counts, "examples": examples}))
            saved[0] = time.monotonic()

    def mutator(data: bytes, most: int, seed: int) -> bytes:
        if seed % 2:
            return bytes(atheris.Mutate(data, most))
        try:
            return fuzz.mutated(data, kind, random.Random(seed))[:most] if data else b"x"
        except Exception:  # no tree any more; each format has its own error for that
            return bytes(atheris.Mutate(data, most))

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + fuzz.MEMORY, used + fuzz.MEMORY))
    limits = [f"-max_total_time={seconds}", "-timeout=0", "-rss_limit_mb=0", f"-max_len={LONGEST_INPUT}"]
    atheris.Setup([sys.argv[0], *limits, str(corpus)], one, custom_mutator=mutator)
    atheris.Fuzz()


def campaign(name: str, seconds: int) -> dict[str, Any]:
    """Attack a door in a process of its own; a row for the table."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        notes = Path(folder) / "notes.json"
        command = [sys.executable, __file__, "--door", name, "--seconds", str(seconds), "--notes", str(notes)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=4 * seconds + 120)
        except subprocess.TimeoutExpired:
            sys.exit(f"{name}: the process did not end")
        found = json.loads(notes.read_text()) if notes.is_file() else {"counts": {}, "examples": {}}
    defects = {k: n for k, n in found["counts"].items() if k not in ("read", "refused")}
    if done.returncode:
        defects[f"the process ended with {done.returncode}: {done.stderr[-500:]}"] = 1
    for kind, times in defects.items():
        print(f"  {name}: {times} x {kind}\n    {found['examples'].get(kind)}", flush=True)
    lines = [line.split() for line in done.stderr.splitlines() if " cov: " in line]
    covered = [int(words[words.index("cov:") + 1]) for words in lines]
    return {"door": name, "inputs": sum(found["counts"].values()), "read": found["counts"].get("read", 0),
            "refused": found["counts"].get("refused", 0), "defects": sum(defects.values()),
            "kinds_of_defect": len(defects), "covered_at_first": covered[0] if covered else None,
            "covered_at_last": covered[-1] if covered else None, "seconds": seconds}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=120, help="for each door")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--door", choices=DOORS, help=argparse.SUPPRESS)
    parser.add_argument("--notes", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    try:
        import atheris  # noqa: F401
    except ImportError:
        sys.exit("coverage-guided fuzzing needs the package atheris: pip install atheris")
    if asked.door:
        attack(asked.door, asked.seconds, asked.notes)
        return
    rows = []
    for name in DOORS:
        if not asked.only or any(word in name for word in asked.only):
            rows.append(campaign(name, asked.seconds))
            print(rows[-1], flush=True)
    from environment import read_rows, write

    known = [row for row in read_rows("fuzz_guided") if row["door"] not in {r["door"] for r in rows}]
    print(write("fuzz_guided", known + rows))


if __name__ == "__main__":
    main()
