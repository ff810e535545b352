"""What the guides say is true: every command and option exists, every link leads somewhere, every code block runs.

A block that cannot run here is preceded by `<!-- not run: REASON -->`.
"""

import re
import runpy
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer.main
import yaml

import tiny_world
from plures.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
COMMANDS = {name: one for name, one in typer.main.get_command(app).commands.items() if not one.hidden}
# commands that are somebody else's, or that other tests or benchmarks run
ELSEWHERE = {
    "pip": "installs packages",
    "make": "is what runs these tests",
    "git": "needs a remote",
    "mkdocs": "is no dependency; builds these pages",
    "curl": "needs a server: tests/web/test_serve.py",
    "torchrun": "several processes: tests/training/test_distributed.py",
    "sbatch": "needs a cluster",
    "python benchmarks/": "takes minutes to hours",
    "python tests/faults/": "takes minutes",
    "python docs/pictures/": "takes minutes and a browser",
    "python -m plures.report.": "renews a page: tests/report",
    "python -m pytest ": "is what runs these tests",
    ".venv/bin/": "needs the development environment",
    "OMP_NUM_THREADS=1": "a benchmark",
    "PLURES_SHARED=": "needs the photographs",
}
HEAVY = {  # plures commands that other tests run
    "--int8": "tests/inference/test_export.py",
    "--engine": "a Ray cluster: tests/inference/test_distributed.py",
    "demo": "tests/report/test_demo.py",
}

INSTEAD = {"RUN": "runs/first", "1200": "20"}
SMALL_SCENES = ["data.train=24", "data.val=12", "data.test=12", "epochs=1"]


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str  # of a fence; "" for an indented block
    text: str
    not_run: str  # the reason, or nothing

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """Fenced and indented code blocks of a page."""
    found, lines, name = [], page.read_text(encoding="utf-8").splitlines(), str(page.relative_to(ROOT))
    n, reason = 0, ""
    while n < len(lines):
        line, start = lines[n], n
        if said := re.match(r"<!-- not run: (.+) -->", line):
            reason = said[1]
        elif fence := re.match(r"```(\w*)", line):
            n = next(i for i in range(n + 1, len(lines)) if lines[i].startswith("```"))
            found.append(Block(name, start + 2, fence[1], "\n".join(lines[start + 1 : n]), reason))
            reason = ""
        elif line.startswith("    ") and (n == 0 or not lines[n - 1].strip()):
            while n < len(lines) and (lines[n].startswith("    ") or not lines[n].strip()):
                n += 1
            text = "\n".join(part[4:] for part in lines[start:n])
            found.append(Block(name, start + 1, "", text, reason))
            reason, n = "", n - 1
        elif line.strip():
            reason = ""
        n += 1
    return found


def commands_of(block: Block) -> list[list[str]]:
    """The words of each command line; none where the block is output or a file."""
    if block.language not in ("", "sh", "bash", "shell", "console"):
        return []
    lines = [line.strip() for line in re.sub(r"\\\n", " ", block.text).splitlines() if line.strip()]
    known = [line for line in lines if line.startswith(("plures ", "python examples/", *ELSEWHERE))]
    if block.language == "" and not known:
        return []
    code = [line for line in lines if not line.startswith("#")]
    strange = [line for line in code if line not in known]
    assert not strange, f"{block}: {strange[0]!r} is no known command; add it to ELSEWHERE with a reason"
    return [shlex.split(line, comments=True) for line in code]


BLOCKS = {page: blocks_of(page) for page in PAGES}
RUNNABLE = [page for page in PAGES if any(b.language == "python" or commands_of(b) for b in BLOCKS[page])]


def code_on(page: Path) -> str:
    """Everything that is set as code, inline and in blocks; a command a line."""
    text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    return "\n".join([*inline, *(re.sub(r"\\\n\s*", " ", b.text) for b in BLOCKS[page])])


def test_every_command_and_option_in_the_guides_exists():
    seen, wrong = 0, []
    for page in PAGES:
        for line in code_on(page).splitlines():
            said = re.match(r"\s*plures ([a-z][a-z-]*)(.*)", line)
            if said is None:
                continue
            seen += 1
            if said[1] not in COMMANDS:
                wrong.append(f"{page.name}: plures {said[1]}")
                continue
            options = {o for p in COMMANDS[said[1]].params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
            given = re.findall(r"(?<=\s)--[a-z0-9-]+", said[2].split(" #")[0])
            wrong += [f"{page.name}: plures {said[1]} {option}" for option in given if option not in options]
    assert wrong == []
    assert seen > 50


def test_every_command_is_told_of_in_a_guide():
    text = "\n".join(code_on(page) for page in PAGES)
    assert [name for name in COMMANDS if f"plures {name}" not in text] == []


def test_links_and_pictures_lead_somewhere():
    broken = []
    for page in PAGES:
        text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.S)
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if not target.startswith(("http:", "https:", "mailto:")) and not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")
    assert broken == []


def test_pictures_are_small():
    assert [p.name for p in (ROOT / "docs/pictures").glob("*.png") if p.stat().st_size > 150_000] == []


def test_the_site_lists_every_page():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]

    def leaves(entry):
        if isinstance(entry, str):
            return [entry]
        return [leaf for part in (entry.values() if isinstance(entry, dict) else entry) for leaf in leaves(part)]

    listed = leaves(nav)
    assert sorted(listed) == sorted(str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("page", [p for p in PAGES if any(b.language in ("yaml", "yml") for b in BLOCKS[p])])
def test_yaml_blocks_are_yaml(page):
    for block in BLOCKS[page]:
        if block.language in ("yaml", "yml"):
            yaml.safe_load(block.text)


# ------------------------------------------------------------------------------------------------- running the blocks


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The tiny world, built once; each page gets a copy."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        tiny_world.shrink(patch)
        patch.chdir(folder)
        tiny_world.build(folder)
    return folder


@pytest.fixture
def here(world, tmp_path, monkeypatch):
    folder = tmp_path / "here"
    shutil.copytree(world, folder)
    for known in folder.glob("runs/*/environment.json"):  # the data lie in the copy, too
        known.write_text(known.read_text().replace(str(world), str(folder)))
    shutil.copytree(ROOT / "examples", folder / "examples")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PLURES_CACHE", str(tmp_path / "cache"))
    tiny_world.shrink(monkeypatch)
    uvicorn = pytest.importorskip("uvicorn", reason='the pages need the web packages: pip install "plures[web]"')
    monkeypatch.setattr(uvicorn.Server, "run", answer)
    monkeypatch.setattr("plures.web.connections.run_server", lambda *_: None)
    return folder


def answer(server, sockets=None) -> None:
    """In place of a server that waits for a person: up to a dozen of its questions are answered."""
    from fastapi.testclient import TestClient

    server.started = True
    client = TestClient(server.config.app, base_url="http://localhost")
    decisions = []
    tagging = client.get("/api/state").json()["mode"] == "tagging"
    for n, item in enumerate(client.get("/api/items", params={"limit": 12}).json()):
        if tagging:
            decisions.append({"id": f"{n}", "row": item["row"], "answers": {"new": "yes"}, "versions": {"new": 0}})
            continue
        cells = item.get("tags") or [item]
        said = {c["tag"]: "yes" if c["code"] == 1 or (n + k) % 4 == 0 else "no" for k, c in enumerate(cells)}
        place = {"question": item["question"]} if "question" in item else {"row": item["row"]}
        versions = {c["tag"]: c["version"] for c in cells}
        decisions.append({"id": f"{n}", "answers": said, "versions": versions, **place})
    told = client.post("/api/decisions", json={"tab": "test", "decisions": decisions})
    assert told.status_code == 200, told.text


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_runs(page, here, plures, monkeypatch):
    fresh = {"runs/first", "runs/an", "runs/gr", "review.csv"}  # the world has them; made, they are taken away first
    space: dict[str, object] = {"__name__": "guide"}
    for block in BLOCKS[page]:
        if block.not_run:
            continue
        if block.language == "python":
            for run in re.findall(r'plures\.train\([^\n]*"(runs/\w+)"\)', block.text):
                shutil.rmtree(run, ignore_errors=True)  # Python is often the second spelling of a command above it
            exec(compile(block.text, str(block), "exec"), space)
        for words in commands_of(block):
            words = [INSTEAD.get(word, word) for word in words if word != "..."]
            words += SMALL_SCENES if words[1:3] in (["train", "scenes"], ["sweep", "scenes"]) else []
            if words[0] == "plures" and not any(word in HEAVY for word in words):
                start_without(words, fresh)
                code, _, err = plures(*words[1:])
                assert code == 0, f"{block}: {' '.join(words)}\n{err}"
            elif words[:1] == ["python"] and words[1].startswith("examples/"):
                monkeypatch.setattr(sys, "argv", words[1:])
                runpy.run_path(words[1], run_name="__main__")


def start_without(words: list[str], fresh: set[str]) -> None:
    """Before a command that makes a run or a file of the world's own: take that away."""
    if words[1] in ("train", "sweep", "suggest") and "--out" in words:
        out = words[words.index("--out") + 1]
        if out in fresh:
            fresh.remove(out)
            shutil.rmtree(out) if Path(out).is_dir() else Path(out).unlink()


def test_blocks_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "# A\n\n    plures train tags.csv \\\n      --out r  # c\n    plures components\n\n<!-- not run: far -->\n"
        "```python\n1 / 0\n```\n\n    name  value\n"
    )
    found = blocks_of(page)
    assert [commands_of(b) for b in found] == [
        [["plures", "train", "tags.csv", "--out", "r"], ["plures", "components"]], [], [],
    ]  # fmt: skip
    assert [b.not_run for b in found] == ["", "far", ""]
