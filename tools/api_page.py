"""docs/api.md, made from the public docstrings: `python tools/api_page.py > docs/api.md` renews it."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from typing import Any

import plures
from plures.config import Experiment
from plures.losses import losses

BEYOND = {  # public, but not worth a place in `plures` itself: module, names, one sentence
    "plures.analysis.thresholds": (("choose_thresholds",), "From which probability on a tag is called."),
    "plures.analysis.missing": (("suggest", "rank_missing"), "Which tags are probably missing."),
    "plures.scoring.logits": (("look",), "Where a model saw a class."),
    "plures.export.export": (("export",), "A model as one file for other programs."),
    "plures.data.merge": (("merge", "Source", "Scope"), "Several sources of tags as one dataset."),
    "plures.metrics.report": (("evaluate_scores", "Report"), "Judging scores by labels."),
    "plures.metrics.thresholds": (("Thresholds",), "Thresholds and calibration as a value."),
    "plures.models.weights.hub": (("push_to_hub", "from_hub", "HubModel"), "Models on the Hugging Face hub."),
    "plures.labels": (("from_positives",), "The door for targets in which 0 means not observed."),
    "plures.losses": (
        tuple(sorted({"Loss", "LabelMemory", "WeightedBCE", *(entry.make.__name__ for entry in losses)})),
        "Losses as criteria (nn.Module): `criterion(logits, targets)`, targets in {1, 0, -1}.",
    ),
    "plures.losses.context": (("Context",), "What a loss may know besides outputs and labels."),
}
HEAD = """# API reference

Made from the docstrings by `python tools/api_page.py > docs/api.md`. N images, K classes, B images of a batch, P
regions, D numbers per region. Settings of a run: `plures.Experiment` below; their options: [components](components.md).
"""


def markdown_api() -> str:
    """The page: `plures` first, then the modules of BEYOND."""
    sections = [HEAD]
    sections += ["## `plures`", ""]
    for name in sorted(set(plures.__all__) - {"__version__"}):
        if inspect.ismodule(getattr(plures, name)):
            continue
        sections += describe(f"plures.{name}", getattr(plures, name))
    for module, (names, sentence) in BEYOND.items():
        sections += [f"## `{module}`", "", sentence, ""]
        for name in names:
            sections += describe(f"{module}.{name}", getattr(import_module(module), name))
    return "\n".join(sections).rstrip() + "\n"


def describe(name: str, thing: Any) -> list[str]:
    """Lines on a function or class: its signature with its docstring, and a class's public methods."""
    short = name.rpartition(".")[2]
    text = [f"    {line}".rstrip() for line in (inspect.getdoc(thing) or "").splitlines()]
    lines = [f"### `{name}`", "", "```text", signature(short, thing), *text, "```", ""]
    methods = []
    for method, found in vars(thing).items() if inspect.isclass(thing) else ():
        if method.startswith("_") or not (found.__doc__ or "").strip():
            continue
        if isinstance(found, property):
            methods.append(f"- `.{method}`: {first_paragraph(found)}")
        elif isinstance(found, classmethod | staticmethod) or inspect.isfunction(found):
            called = signature(method, getattr(thing, method), width=10**6)
            methods.append(f"- `.{called}`: {first_paragraph(found)}")
    return [*lines, *methods, ""] if methods else lines


def signature(name: str, thing: Any, width: int = 110) -> str:
    """`name(arguments) -> result`, one argument per line where that is longer than `width`.

    The name alone for exceptions and protocols, and for an Experiment, whose fields its docstring explains.
    """
    if inspect.isclass(thing) and (issubclass(thing, Exception | Experiment) or getattr(thing, "_is_protocol", False)):
        return name
    found = inspect.signature(thing)
    words = list[str]()
    keyword_only = False
    for p in found.parameters.values():
        if p.name == "self":
            continue
        if p.kind is p.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            words.append("*")
        star = "*" if p.kind is p.VAR_POSITIONAL else "**" if p.kind is p.VAR_KEYWORD else ""
        default = "" if p.default is p.empty else f" = {p.default!r}"
        words.append(f"{star}{p.name}{annotation(p.annotation, ': ')}{default}")
    result = "" if inspect.isclass(thing) else annotation(found.return_annotation, " -> ")
    line = f"{name}({', '.join(words)}){result}"
    return line if len(line) <= width else f"{name}(\n" + "".join(f"    {w},\n" for w in words) + f"){result}"


def annotation(kind: Any, before: str) -> str:
    """The annotation as it is written in the source, or nothing."""
    if kind is inspect.Signature.empty or kind in (None, "None"):
        return ""
    return before + (kind if isinstance(kind, str) else inspect.formatannotation(kind))


def first_paragraph(thing: Any) -> str:
    """Of a docstring, in one line, with its stars and underscores taken literally."""
    text = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    pieces = text.split("`")  # the odd ones are code
    return "`".join(piece if n % 2 else re.sub(r"([*<_])", r"\\\1", piece) for n, piece in enumerate(pieces))


if __name__ == "__main__":
    print(markdown_api(), end="")
