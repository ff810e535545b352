"""A shelf: a folder of one-file parts (losses, heads, embedders, formats), found by name.

Adding a part is one file: put it into the folder, decorate the class or function with the shelf's `part`, and the
command line, the YAML, the documentation tables and the contract tests know it. Its options are its signature.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from types import NoneType, UnionType
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin

from plures.errors import PluresError, clipped, did_you_mean

T = TypeVar("T")
Maker = TypeVar("Maker", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry(Generic[T]):
    """What the shelf knows of one part."""

    name: str
    title: str
    source: str  # paper, year, arXiv id; empty for our own
    make: Callable[..., T]

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """The options that a user may set, by name: the keyword parameters of the maker's signature."""
        parameters = inspect.signature(self.make).parameters.values()
        return {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}

    @cached_property
    def text_options(self) -> dict[str, bool]:
        """The options whose declared type is text, and whether None is allowed: their values are taken as written."""
        try:
            parameters = inspect.signature(self.make, eval_str=True).parameters.values()
        except (NameError, TypeError):  # a type that is only known while checking types
            return {}
        return {p.name: NoneType in get_args(p.annotation) for p in parameters if is_text(p.annotation)}


def is_text(kind: Any) -> bool:
    """Whether a declared type holds text and nothing else (but None): `str`, a Literal of words, or such `| None`."""
    if get_origin(kind) is Literal:
        return all(isinstance(choice, str) for choice in get_args(kind))
    if get_origin(kind) in (Union, UnionType):
        return all(one is NoneType or is_text(one) for one in get_args(kind))
    return kind is str


class Shelf(Generic[T]):
    """Parts of one kind in one package, imported on first use.

    `kind` is the noun used in messages ("loss"); `given` names parameters that the program fills in and a user
    does not set (for example the number of classes).
    """

    def __init__(self, kind: str, package: str, given: tuple[str, ...] = ()) -> None:
        self.kind, self.package, self.given = kind, package, given
        self._entries: dict[str, Entry[T]] = {}
        self._loaded = False

    def part(self, name: str, *, title: str, source: str = "") -> Callable[[Maker], Maker]:
        """Decorator: puts a class or function on the shelf under `name`."""

        def put(make: Maker) -> Maker:
            known = self._entries.get(name)
            if known is not None and getattr(known.make, "__qualname__", "") != make.__qualname__:
                raise ValueError(f"two parts claim the {self.kind} name {name!r}: {known.make} and {make}")
            self._entries[name] = Entry(name, title, source, make)
            return make

        return put

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(getattr(package, "__path__", []), prefix=f"{self.package}."):
            importlib.import_module(module.name)

    def __iter__(self) -> Iterator[Entry[T]]:
        self._load()
        return iter(sorted(self._entries.values(), key=lambda entry: entry.name))

    def names(self) -> list[str]:
        return [entry.name for entry in self]

    def __getitem__(self, name: str) -> Entry[T]:
        self._load()
        if name not in self._entries:
            raise PluresError(f"unknown {self.kind} '{name}'{did_you_mean(name, self._entries)}")
        return self._entries[name]

    def check(self, name: str, options: dict[str, Any]) -> None:
        """Raise PluresError if the part does not exist or does not take one of the options."""
        entry = self[name]
        allowed = [o for o in entry.options if o not in self.given]
        for option in options:
            if option not in allowed:
                hint = did_you_mean(option, allowed) if allowed else "; it has no options"
                raise PluresError(f"{self.kind} '{name}' has no option '{option}'{hint}")
        for option, optional in entry.text_options.items():
            value = options.get(option, "")
            if not isinstance(value, str) and not (optional and value is None):
                what = f"{option}={clipped(repr(value))}: expected text (in quotes, as in {option}: '1')"
                raise PluresError(f"{self.kind} '{name}': {what}")

    def make(self, name: str, given: dict[str, Any] | None = None, **options: Any) -> T:
        """Build the part. `given` holds what the program fills in, `options` what the user chose."""
        self.check(name, options)
        entry = self[name]
        filled = {k: v for k, v in (given or {}).items() if k in entry.options}
        try:
            return entry.make(**filled, **options)
        except (TypeError, ValueError) as error:
            raise PluresError(f"{self.kind} '{name}': {error}") from error
