"""The shelves as tables: what losses, heads, backbones, formats, schedules and recipes there are, with options."""

from __future__ import annotations

import inspect
from typing import Any

from rich.table import Table

from plures.data.dataset import formats
from plures.losses import losses
from plures.models.backbones import backbones
from plures.models.heads import heads
from plures.recipes import load_recipe, recipe_names
from plures.registry import Registry
from plures.training.schedules import schedules

SHELVES: tuple[tuple[str, Registry[Any]], ...] = (
    ("Losses", losses),
    ("Heads", heads),
    ("Backbones", backbones),
    ("Data formats", formats),
    ("Schedules", schedules),
)


def options_of(shelf: Registry[Any], name: str) -> str:
    """The options of a part as `name=default, ...`, without those that the program fills in."""
    shown = []
    for option, parameter in shelf[name].options.items():
        if option in shelf.given:
            continue
        default = "" if parameter.default is inspect.Parameter.empty else f"={parameter.default}"
        shown.append(f"{option}{default}")
    return ", ".join(shown)


def render_shelves() -> list[Table]:
    """A rich table for each shelf, and one of the recipes."""
    tables = []
    for title, shelf in SHELVES:
        table = Table("name", "what", "source", "options", title=title, title_justify="left", box=None)
        for entry in shelf:
            table.add_row(entry.name, entry.title, entry.source, options_of(shelf, entry.name))
        tables.append(table)
    table = Table("name", "what", "paper", "rows", title="Recipes", title_justify="left", box=None)
    for name in recipe_names():
        recipe = load_recipe(name)
        table.add_row(name, recipe.title, recipe.paper, ", ".join(recipe.rows))
    return [*tables, table]


def markdown_shelves() -> str:
    """The same as Markdown, for docs/parts.md (`python -m plures.report.components` prints it)."""
    lines = ["# Parts", "", "Made from the shelves by `python -m plures.report.components > docs/parts.md`.", ""]
    for title, shelf in SHELVES:
        lines += [f"## {title}", "", "| name | what | source | options |", "|---|---|---|---|"]
        for entry in shelf:
            options = options_of(shelf, entry.name).replace("|", "\\|")
            lines.append(f"| `{entry.name}` | {entry.title} | {entry.source} | {options} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown_shelves(), end="")
