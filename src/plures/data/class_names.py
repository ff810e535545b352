"""classes.yaml: what a person knows of the classes beside their names.

classes:
  sofa: {synonyms: [couch, settee], prompts: ["a photo of a sofa in a room"]}
  tvmonitor: {synonyms: television}

Its parents and exclusive groups are for `data/taxonomy.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plures.errors import PluresError, did_you_mean
from plures.files import read_yaml

KEYS = ("prompts", "synonyms", "parents")


@dataclass(frozen=True)
class ClassNames:
    """synonyms: other names of the class; prompts: whole sentences that describe a photograph of it."""

    synonyms: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()


def read_class_names(path: str | Path, classes: Iterable[str]) -> dict[str, ClassNames]:
    """What the file says of these classes; nothing of those that it does not name.

    Raises PluresError if it cannot be read, says something else, or names a class that is not one of these.
    """
    named = check_keys(path, read_yaml(path))
    known = tuple(classes)
    strange = [name for name in named if name not in known]
    if strange:
        more = f" (and {len(strange) - 1} more)" if len(strange) > 1 else ""
        raise PluresError(f"{path}: '{strange[0]}'{more} is no class of the data{did_you_mean(strange[0], known)}")
    said = {
        name: ClassNames(*(texts(path, f"{name}.{key}", value.get(key)) for key in ("synonyms", "prompts")))
        for name, value in named.items()
    }
    return {name: said.get(name, ClassNames()) for name in known}


def check_keys(path: str | Path, stored: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the content of a classes file says of each class that it names. Raises PluresError for other keys."""
    named = stored.get("classes")
    if not isinstance(named, dict) or not stored.keys() <= {"classes", "exclusive"}:
        raise PluresError(
            f"{path}: expected one mapping, `classes:`, with a line per class, as in sofa: {{synonyms: [couch]}}, and"
            " at most a list, `exclusive:`, beside it"
        )
    for name, value in named.items():
        if not isinstance(value, dict | None):
            raise PluresError(f"{path}: {name}: expected keys of {', '.join(KEYS)}, found {type(value).__name__}")
        for key in value or {}:
            if key not in KEYS:
                raise PluresError(f"{path}: {name}: no key '{key}'{did_you_mean(str(key), KEYS)}")
    return {str(name): value or {} for name, value in named.items()}


def texts(path: str | Path, where: str, value: Any) -> tuple[str, ...]:
    """A text or a list of texts in a file. Raises PluresError if it is anything else."""
    found = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) and text.strip() for text in found):
        raise PluresError(f"{path}: {where}: expected a text or a list of texts, found {value!r}")
    return tuple(found)


def spoken(name: str) -> str:
    """A class's name as words: `potted_plant`, `pottedPlant` and `potted-plant` are "potted plant"."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return " ".join(re.split(r"[\s_\-/.:]+", apart)).strip().lower()
