"""What the commands share: the program, its two screens, and how DATA and KEY=VALUE become an Experiment's values."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from plures.errors import PluresError, grouped, printable

COMMANDS = {
    "Data": ("init", "check", "duplicates", "merge", "convert"),
    "Train": ("train", "sweep", "import-weights", "demo"),
    "Judge": ("evaluate", "thresholds", "report", "compare", "localise", "table"),
    "Improve the labels": ("suggest", "review"),
    "Use the model": ("predict", "undo", "similar", "export", "serve"),
    "Help": ("doctor", "components"),
}


class Grouped(TyperGroup):
    """Commands in the order of the work, each with its whole first sentence."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for title, names in COMMANDS.items():
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(limit=1000)) for name in names])


app = typer.Typer(
    cls=Grouped,
    epilog="First steps: `plures init photos/`, then `plures review tags.csv` to tag them, `plures check tags.csv`, and"
    " `plures train tags.csv --out runs/first`. `plures COMMAND --help` explains a command.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Screen(Console):
    """A console that shows names as people gave them: no markup, no emoji codes, control characters as escapes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(soft_wrap=True, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich does it, but no table loses a letter: into a file or pipe it is as wide as it needs to be, and on a
        terminal too narrow for its words each row becomes a list."""
        shown = [part for one in objects for part in (one.renderables if isinstance(one, Group) else [one])]
        if not any(isinstance(part, Table) for part in shown):
            super().print(*objects, **options)
            return
        for part in shown:
            if isinstance(part, Table):
                self._print_table(part)
            else:
                super().print(part, **options)

    def _print_table(self, table: Table) -> None:
        wide = self.options.update(width=10_000, max_width=10_000)
        needed = Measurement.get(self, wide, table)
        if not self.is_terminal:
            usual = self.width
            self.width = max(usual, needed.maximum)
            super().print(table, soft_wrap=False)
            self.width = usual
        elif needed.minimum <= self.width:
            super().print(table, soft_wrap=False)
        else:
            super().print(table.title or "")
            names = [column.header for column in table.columns]
            for cells in zip(*(column.cells for column in table.columns), strict=True):
                super().print(", ".join(f"{name} {cell}".strip() for name, cell in zip(names, cells, strict=True)))


screen = Screen()
errors = Screen(stderr=True, highlight=False)

SETTING = re.compile(r"[a-z_]+(\.\w+)?=")
Skip = Annotated[bool, typer.Option("--skip-bad", help="Drop unusable rows and report how many.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")]
SafeCsv = Annotated[
    bool,
    typer.Option(
        help="In .csv and .tsv, put an apostrophe before names that a spreadsheet would run as a formula (=, +, -, @);"
        " plures reads them without it."
    ),
]
Json = Annotated[Path | None, typer.Option("--json", help="Write the numbers to this JSON file.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        import plures

        screen.print(f"plures {plures.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Contact no model hub; use only weights on this machine.")
    ] = False,
) -> None:
    """Learn all the labels of an image from training images that carry only one."""
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported, which the commands do


def experiment_values(arguments: list[str], recipe: str | None) -> dict[str, Any]:
    settings = [a for a in arguments if SETTING.match(a)]
    data = [a for a in arguments if not SETTING.match(a)]
    if len(data) > 1:
        raise PluresError(f"one DATA at a time, got {' and '.join(data)}; settings are written key=value")
    if not data and recipe is None and not any(s.startswith("data=") for s in settings):
        raise PluresError("say what to train on: a path, voc:DIR, coco:DIR, folder:DIR, table:FILE, or scenes")
    return settings_values(data[0] if data else None, recipe, settings)


def data_and_options(arguments: list[str]) -> tuple[str | None, dict[str, Any]]:
    """DATA and the options of its reader."""
    from plures.config import apply_settings

    settings = [a for a in arguments if SETTING.match(a)]
    data = [a for a in arguments if not SETTING.match(a)]
    if len(data) > 1:
        raise PluresError(f"one DATA at a time, got {' and '.join(data)}")
    strange = [s for s in settings if not s.startswith("data.")]
    if strange:
        raise PluresError(f"only the data's options can be set here, as in data.variant=query2label, not {strange[0]}")
    part = apply_settings({}, settings).get("data", {})
    return (data[0] if data else None), {k: v for k, v in part.items() if k != "name"}


def settings_values(data: str | None, recipe: str | None, settings: list[str]) -> dict[str, Any]:
    from plures.config import apply_settings, recipe_settings

    values = recipe_settings(recipe) if recipe is not None else {}
    if data is not None:
        old = values.get("data")
        values["data"] = {**old, "name": data} if isinstance(old, dict) else data
    return apply_settings(values, settings)


def say_next(*words: str | Path) -> None:
    """The last line of a command, on stderr, so that pipes carry results alone: what to type next."""
    errors.print(f"next: {shlex.join(map(str, words))}")


def say_skipped(problems: tuple[Any, ...]) -> None:
    left_out = [p for p in problems if p.severity == "error"]
    if left_out:
        count = sum(p.times for p in left_out)
        errors.print(f"left out {count:,} unusable rows, the first: {left_out[0].file}: {left_out[0].what}")


def say_notices(problems: tuple[Any, ...]) -> None:
    for notice in grouped(p for p in problems if p.severity == "notice"):
        errors.print(f"{notice.file}: {notice.what}")


def show_report(run: Path) -> None:
    from plures.metrics.report import Report

    path = run / "report.json"
    if path.is_file():
        screen.print(Report.load(path).render())
    screen.print(f"run folder: {run}", highlight=False)
