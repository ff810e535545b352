"""The registries as tables: losses, heads, backbones, priors, formats, schedules and recipes, with their options."""

from __future__ import annotations

import inspect
from typing import Any

from rich.table import Table

from plures.data.dataset import formats
from plures.losses import losses
from plures.models.backbones import backbones
from plures.models.heads import heads
from plures.models.priors import priors
from plures.recipes import load_recipe, recipe_names
from plures.registry import Registry
from plures.training.schedules import schedules

REGISTRIES: tuple[tuple[str, Registry[Any]], ...] = (
    ("Losses", losses),
    ("Heads", heads),
    ("Backbones", backbones),
    ("Priors", priors),
    ("Data formats", formats),
    ("Schedules", schedules),
)


def options_of(registry: Registry[Any], name: str) -> str:
    """The options of a component as `name=default, ...`, without those that the program fills in."""
    shown = []
    for option, parameter in registry[name].options.items():
        if option in registry.given:
            continue
        default = "" if parameter.default is inspect.Parameter.empty else f"={parameter.default}"
        shown.append(f"{option}{default}")
    return ", ".join(shown)


def render_registries() -> list[Table]:
    """A rich table for each registry, and one of the recipes."""
    tables = []
    for title, registry in REGISTRIES:
        table = Table("name", "what", "source", "options", title=title, title_justify="left", box=None)
        for entry in registry:
            table.add_row(entry.name, entry.title, entry.source, options_of(registry, entry.name))
        tables.append(table)
    table = Table("name", "what", "paper", "rows", title="Recipes", title_justify="left", box=None)
    for name in recipe_names():
        recipe = load_recipe(name)
        table.add_row(name, recipe.title, recipe.paper, ", ".join(recipe.rows))
    return [*tables, table]
