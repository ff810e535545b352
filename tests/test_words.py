"""The words a stranger meets: none of the private ones of earlier versions, and help screens with nothing cut off."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from plures.cli import app
from plures.cli.app import COMMANDS as GROUPS

ROOT = Path(__file__).parents[1]
WRITTEN_AS_IT_WAS = {"log.md", "results.md"}  # a diary and measurements; so is CHANGELOG.md
UNIT = "(image|photo|scene|class|row|line|label|batch|step)"
OLD = (  # and what to say instead
    r"\bwants\b",  # requires
    r"\bmend(s|ed|ing)?\b",  # fix
    r"to go on without",  # drop
    r"\bgoes on\b|\bto go on with\b|\bgo on with\b|\bgoing on (with|in|after)\b",  # continues, resumes
    r"\bthere are: ",  # choose from:
    r"\bcould be had\b|\bcan be had\b|\bcannot be had\b",  # could not load
    r"\bshel(f|ves)\b",  # registry
    r"\bplures parts\b",  # plures components
    r"\b[Tt]he house\b|\b[Rr]ules of the house\b|\bthe rooms\b|\bits room\b",  # the package
    r"(?<![Tt]here )\bis no (readable|table|report|number|split|mapping|model)\b",  # is not a valid
    r"\bwhole or not at all\b",  # atomically
    r"\b(head|is|are) solved for\b|\bsolves for\b",  # the closed-form ridge
    r"from single positives",  # from single-label data
    rf"\b([Tt]ags?|[Ll]abels?|[Pp]ositives?|[Rr]ows?|[Tt]hresholds?|[Cc]olumns?|[Ff]olders?) an? {UNIT}\b",  # per image
    rf"\bone an? {UNIT}\b",  # one per image
)
COMMANDS = typer.main.get_command(app).commands


def pages():
    for folder, suffixes in (("src/plures", ("*.py", "*.yaml", "*.html", "*.js")), ("docs", ("*.md",))):
        for suffix in suffixes:
            yield from (ROOT / folder).rglob(suffix)
    yield from (ROOT / name for name in ("README.md", "CONTRIBUTING.md", "mkdocs.yml"))


def old_words(text):
    """Lines with an old word, also where the words stand in two lines."""
    lines = text.split("\n")
    found = []
    for number, line in enumerate(lines):
        following = lines[number + 1].strip(" #*>") if number + 1 < len(lines) else ""
        for words in OLD:
            at = re.search(words, f"{line} {following}")
            if at is not None and at.start() <= len(line):
                found.append(f"{number + 1}: {at[0]}")
    return found


def test_no_old_word_is_left():
    found = [
        f"{page.relative_to(ROOT)}:{where}"
        for page in pages()
        if page.name not in WRITTEN_AS_IT_WAS
        for where in old_words(page.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "text", ["the loss wants labels", "; mend the data", "one tag\n    an image", "there are: q2l", "tags a photo"]
)
def test_an_old_word_is_found(text):
    assert old_words(text)


def test_every_command_is_in_one_group():
    listed = [name for names in GROUPS.values() for name in names]
    assert sorted(listed) == sorted(name for name, command in COMMANDS.items() if not command.hidden)


@pytest.mark.parametrize("width", [60, 80])
def test_help_fits_and_nothing_is_cut_off(width):
    """In one process of its own: click asks the terminal for its width through the environment."""
    program = (
        "import contextlib, io, sys\nfrom plures.cli.app import app\nimport plures.cli\n"
        "for name in sys.argv[1:]:\n"
        "    print('####', name)\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        app(name.split() + ['--help'], prog_name='plures')\n"
    )
    environment = {"COLUMNS": str(width), "PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin"}
    names = ["", *COMMANDS]
    done = subprocess.run(
        [sys.executable, "-c", program, *names], capture_output=True, text=True, env=environment, check=True
    )
    screens = done.stdout.split("#### ")[1:]
    assert len(screens) == len(names)
    for name, screen in zip(names, screens, strict=True):
        assert [line for line in screen.splitlines() if len(line) > width] == [], name
        assert "Usage: plures" in screen
        shown = "".join(screen.split())  # a line may end after a hyphen
        said = [COMMANDS[name].help] if name else [one.help for one in COMMANDS.values() if not one.hidden]
        options = COMMANDS[name].params if name else []
        for text in (*said, *(help for p in options if (help := getattr(p, "help", None)))):
            sentence = text if name else re.split(r"\.(\s|$)", text)[0]
            assert "".join(sentence.split()) in shown, (name, sentence)


def test_a_command_ends_with_the_next_one_on_stderr(plures, tmp_path):
    """Its words are quoted as a shell reads them; stdout holds results alone."""
    (tmp_path / "my photos").mkdir()
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "my photos" / "a.png")
    table = tmp_path / "my tags.csv"
    code, out, err = plures("init", tmp_path / "my photos", "--out", table)
    assert (code, "next" in out) == (0, False)
    assert err.splitlines()[-1] == f"next: plures review '{table}'"
    table.write_text(table.read_text().rstrip("\n") + "cat\n", encoding="utf-8")
    code, out, err = plures("check", table)
    assert (code, "next" in out) == (0, False)
    assert err.splitlines()[-1] == f"next: plures train '{table}' --out runs/first"


def test_the_old_name_of_components_still_works(plures):
    code, out, _ = plures("parts")
    assert code == 0
    assert out == plures("components")[1]
