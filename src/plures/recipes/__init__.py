"""Recipes: one YAML a table of a paper, with paper, command, hours and published numbers beside the settings."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from plures.errors import PluresError, did_you_mean
from plures.files import read_yaml


@dataclass(frozen=True)
class Recipe:
    """A recipe file. experiment: settings common to its rows; rows: settings of each row of the table by name.

    published: of each row, mAP in percent by data set; unverified: the same, but from memory or second hand, to be
    checked before anyone relies on it. grid: settings over which the paper searched, each with its values (batch_size,
    lr), best run by validation. pieces: settings that rows share, for YAML's anchors. cost: of each row, estimates such
    as hours and gigabytes.
    """

    name: str
    title: str
    paper: str
    command: str
    hours: str
    experiment: dict[str, Any]
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    published: dict[str, dict[str, float]] = field(default_factory=dict)
    unverified: dict[str, dict[str, float]] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    pieces: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: str = ""

    def settings(self, row: str | None = None) -> dict[str, Any]:
        """Experiment values of the recipe, or of one row of it."""
        if row is None:
            return dict(self.experiment)
        if row not in self.rows:
            raise PluresError(f"recipe '{self.name}' has no row '{row}'{did_you_mean(row, self.rows)}")
        return {**self.experiment, **self.rows[row]}


def recipe_names() -> list[str]:
    """The recipes that come with plures."""
    return sorted(
        f.name.removesuffix(".yaml") for f in resources.files(__package__).iterdir() if f.name.endswith(".yaml")
    )


def load_recipe(name: str) -> Recipe:
    """A recipe by name. Raises PluresError for an unknown one."""
    if name not in recipe_names():
        raise PluresError(f"unknown recipe '{name}'{did_you_mean(name, recipe_names())}")
    with resources.as_file(resources.files(__package__) / f"{name}.yaml") as path:
        return recipe_of(name, read_yaml(path))


def recipe_of(name: str, values: dict[str, Any]) -> Recipe:
    """A recipe from the mapping in its file. Raises PluresError if an entry is missing or unknown."""
    fields = {f.name: f for f in dataclasses.fields(Recipe) if f.name != "name"}
    for key in values:
        if key not in fields:
            raise PluresError(f"recipe '{name}': no entry '{key}' in recipes{did_you_mean(key, fields)}")
    lacking = [key for key in ("title", "paper", "command", "hours", "experiment") if key not in values]
    if lacking:
        raise PluresError(f"recipe '{name}' lacks {', '.join(lacking)}")
    return Recipe(name=name, **values)
