"""A registry: components of one kind (losses, heads, backbones, priors, formats), found by name.

A component comes from one of three places: a file in the registry's own package, decorated with `part`; an installed
package's entry point ("plures.losses", "plures.backbones", "plures.heads", "plures.priors", "plures.formats"); or a
class that is named as `module:attribute`, such as my_package.losses:MyLoss. The command line, the YAML and the
documentation tables know it, and its options are its signature.

A run folder or a recipe may come from a stranger, and to import a module is to run its code. So a `module:attribute`
is imported only if the user named it (Experiment(...), the command line), has imported the module already, or allows
it by PLURES_ALLOW_IMPORTS=my_package (several: with commas; 1: any); and it must be a class of the right kind, so that
a file cannot have `os:system` called. Entry points are the choice of whoever installed the package.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from plures.errors import PluresError, clipped, did_you_mean

T = TypeVar("T")
Maker = TypeVar("Maker", bound=Callable[..., Any])
ALLOW = "PLURES_ALLOW_IMPORTS"


@dataclass(frozen=True)
class Entry(Generic[T]):
    """What the registry knows of one component."""

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
    def kinds(self) -> dict[str, Any]:
        """The declared types of the options that have one."""
        return kinds_of(self.make)

    @property
    def text_options(self) -> dict[str, bool]:
        """The options whose declared type is text, and whether None is allowed: their values are taken as written."""
        return {name: NoneType in get_args(kind) for name, kind in self.kinds.items() if is_text(kind)}


def kinds_of(make: Callable[..., Any]) -> dict[str, Any]:
    """The types that a class or function declares for its parameters, by name; nothing of those without one."""
    found: dict[str, Any] = {}
    for declaring in (make, make.__init__) if isinstance(make, type) else (make,):  # type: ignore[misc]
        with suppress(NameError, TypeError):  # a type that is only known while checking types
            found |= get_type_hints(declaring)
    return {name: found[name] for name in inspect.signature(make).parameters if name in found}


def fits(kind: Any, value: Any) -> bool:
    """Whether a value is of a declared type as YAML spells it: a list for a tuple, a whole number for a float."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(fits(one, value) for one in args)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in args)
    if kind in (int, float):
        number = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
        return number and value == value  # nan is no setting
    if origin in (tuple, list, Sequence):
        if not isinstance(value, Sequence) or isinstance(value, str):
            return False
        several = origin is not tuple or args[-1] is Ellipsis
        return (several or len(value) == len(args)) and all(
            fits(args[0] if several else args[place], one) for place, one in enumerate(value)
        )
    plain = origin or kind
    return not isinstance(plain, type) or isinstance(value, plain)


def expected(kind: Any) -> str:
    """What to say that a declared type takes."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(expected(one) for one in args)
    if origin is Literal:
        return " or ".join(map(str, args))
    if origin in (tuple, list, Sequence):
        several = origin is not tuple or args[-1] is Ellipsis
        return f"a list of {'' if several else f'{len(args)} times '}{expected(args[0])}"
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}
    return words.get(origin or kind, getattr(kind, "__name__", str(kind)))


def check_values(what: str, kinds: dict[str, Any], options: dict[str, Any]) -> None:
    """Raise PluresError if an option is of another type than declared. what: the component, for the message."""
    for option, value in options.items():
        if option not in kinds or fits(kind := kinds[option], value):
            continue
        quoted = f" (in quotes, as in {option}: '1')" if is_text(kind) and not isinstance(value, str) else ""
        raise PluresError(f"{what}: {option}={clipped(repr(value))}: expected {expected(kind)}{quoted}")


def is_text(kind: Any) -> bool:
    """Whether a declared type holds text and nothing else (but None): `str`, a Literal of words, or such `| None`."""
    if get_origin(kind) is Literal:
        return all(isinstance(choice, str) for choice in get_args(kind))
    if get_origin(kind) in (Union, UnionType):
        return all(one is NoneType or is_text(one) for one in get_args(kind))
    return kind is str


class Registry(Generic[T]):
    """Components of one kind, imported on first use.

    kind: the noun used in messages ("loss"). package: its folder. given: parameters that the program fills in and a
    user does not set (for example the number of classes). group: of entry points. base: what a class of one's own is
    a subclass of, as text and as a test.
    """

    def __init__(
        self,
        kind: str,
        package: str,
        given: tuple[str, ...] = (),
        group: str = "",
        base: tuple[str, Callable[[type], bool]] | None = None,
    ) -> None:
        self.kind, self.package, self.given, self.group, self.base = kind, package, given, group, base
        self._entries: dict[str, Entry[T]] = {}
        self._points: dict[str, EntryPoint] = {}
        self._imported: dict[str, Entry[T]] = {}
        self._loaded = False

    def register(self, name: str, *, title: str, source: str = "") -> Callable[[Maker], Maker]:
        """Decorator: registers a class or function under `name`."""

        def put(make: Maker) -> Maker:
            known = self._entries.get(name)
            if known is not None and getattr(known.make, "__qualname__", "") != make.__qualname__:
                raise ValueError(f"two components claim the {self.kind} name {name!r}: {known.make} and {make}")
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
        points = entry_points(group=self.group) if self.group else ()
        self._points = {point.name: point for point in points if point.name not in self._entries}

    def __iter__(self) -> Iterator[Entry[T]]:
        for name in self.names():
            try:
                yield self[name]
            except PluresError as error:  # of an entry point: another package's fault stops nobody
                warnings.warn(str(error), stacklevel=2)

    def names(self) -> list[str]:
        self._load()
        return sorted(self._entries | self._points)

    def __getitem__(self, name: str) -> Entry[T]:
        return self.get(name)

    def get(self, name: str, named: bool = False) -> Entry[T]:
        """The component of this name. named: the user wrote the name, so that a `module:attribute` may be imported.

        Raises PluresError if there is none, or if it may not be imported.
        """
        self._load()
        if name in self._entries:
            return self._entries[name]
        if name not in self._imported and name in self._points:
            point = self._points[name]
            self._imported[name] = self._entry(name, point.value, point.load)
        elif name not in self._imported and self.base is not None and ":" in name:
            if not named:
                self.refuse_import(name)
            module, _, attribute = name.partition(":")
            self._imported[name] = self._entry(name, name, lambda: getattr(importlib.import_module(module), attribute))
        if name in self._imported:
            return self._imported[name]
        own = "" if self.base is None else "; one of your own is named as module:attribute, as in my_package.mine:Mine"
        raise PluresError(f"unknown {self.kind} '{name}'{did_you_mean(name, self.names())}{own}")

    def refuse_import(self, name: str, where: str = "") -> None:
        """Raise PluresError if this is a `module:attribute` that may not be imported; see the top of this file."""
        module, colon, _ = name.partition(":")
        allowed = [one.strip() for one in os.environ.get(ALLOW, "").split(",")]
        if not colon or not module.replace(".", "_").isidentifier() or module in sys.modules:
            return
        if "1" not in allowed and not any(module == one or module.startswith(f"{one}.") for one in allowed if one):
            raise PluresError(
                f"{where or 'this'} names code outside plures, {self.kind} '{name}', and to import it is to run it; if"
                f" you trust it, set {ALLOW}={module.partition('.')[0]} (in Python: import {module} first)"
            )

    def _entry(self, name: str, place: str, load: Callable[[], Any]) -> Entry[T]:
        """A component from outside. Raises PluresError if it cannot be imported or is of another kind."""
        try:
            made = load()
        except Exception as error:  # whatever somebody else's module raises
            raise PluresError(
                f"{self.kind} '{name}': cannot import {place} ({type(error).__name__}: {error}); install its package,"
                " or put its folder on PYTHONPATH"
            ) from error
        if self.base is not None and not (isinstance(made, type) and self.base[1](made)):
            raise PluresError(f"{self.kind} '{name}': {place} is not {self.base[0]}")
        title = (inspect.getdoc(made) or name).partition("\n")[0]
        return Entry(name, title, place, made)

    def check(self, name: str, options: dict[str, Any], named: bool = False) -> None:
        """Raise PluresError if the component does not exist or does not take one of the options; named: as in `get`."""
        entry = self.get(name, named)
        allowed = [o for o in entry.options if o not in self.given]
        for option in options:
            if option not in allowed:
                hint = did_you_mean(option, allowed) if allowed else "; it has no options"
                raise PluresError(f"{self.kind} '{name}' has no option '{option}'{hint}")
        check_values(f"{self.kind} '{name}'", entry.kinds, options)

    def make(self, name: str, given: dict[str, Any] | None = None, **options: Any) -> T:
        """Build the component. `given` holds what the program fills in, `options` what the user chose."""
        self.check(name, options)
        entry = self[name]
        filled = {k: v for k, v in (given or {}).items() if k in entry.options}
        try:
            return entry.make(**filled, **options)
        except (TypeError, ValueError) as error:
            raise PluresError(f"{self.kind} '{name}': {error}") from error
