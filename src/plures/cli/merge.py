"""`plures merge`: several sources of tags, each with its own scope, as one table that says present, absent, unknown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plures.cli.app import Force, SafeCsv, Skip, app, errors, say_next, say_skipped, screen
from plures.errors import PluresError
from plures.files import refuse_replacing


@app.command()
def merge(
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=]DATA...", help="Data to merge; named after the file unless given."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The table to write: .csv, .tsv or .parquet.")] = Path("merged.csv"),
    scope: Annotated[
        list[str] | None,
        typer.Option(help="SOURCE:KIND[:CLASS,CLASS]; KIND: complete, positive, none, as_given (default)."),
    ] = None,
    synonyms: Annotated[Path | None, typer.Option(help="YAML: name kept: [other names of the same class].")] = None,
    parents: Annotated[
        Path | None,
        typer.Option(help="YAML: child: parent, or child: [parents]; or classes.yaml, or a .csv of child,parent."),
    ] = None,
    spec: Annotated[Path | None, typer.Option(help="YAML file with sources, synonyms, parents and match.")] = None,
    match: Annotated[str, typer.Option(help="What identifies an image: path or name.")] = "path",
    skip_bad: Skip = False,
    force: Force = False,
    safe_csv: SafeCsv = True,
) -> None:
    """Merge sources that annotate different classes; what a source does not cover stays unknown."""
    from plures.data.merge import merge as run_merge
    from plures.data.merge_files import open_source, outputs, read_names, read_spec, scopes_of_flags, write_merged
    from plures.data.taxonomy import Relations, read_relations

    if (spec is None) == (not sources):
        raise PluresError("say what to merge: DATA DATA ..., or --spec FILE")
    if spec is not None:
        if scope or synonyms or parents or match != "path":
            raise PluresError("--spec FILE holds scopes, synonyms, parents and match: leave the other options out")
        found, same, above, match = read_spec(spec)
        chosen = [(name, values["data"], values["scope"], values["rename"]) for name, values in found.items()]
    else:
        named = [_named(source) for source in sources or []]
        scopes = scopes_of_flags(scope or [], [name for name, _ in named])
        same = {} if synonyms is None else read_names(synonyms)
        above = Relations((), {}, []) if parents is None else read_relations(parents)
        chosen = [(name, data, scopes[name], {}) for name, data in named]
    inputs = [*filter(None, (spec, synonyms, parents)), *(data for _, data, _, _ in chosen)]
    for path in outputs(out):
        refuse_replacing(path, force=force, inputs=inputs)
    opened = [open_source(*source, skip_bad) for source in chosen]
    merged = run_merge(opened, same, above.parents, match, above.exclusive)  # type: ignore[arg-type]
    paths = write_merged(merged, opened, out, safe_csv)
    for source in opened:
        say_skipped(source.dataset.problems)
        by_class = "".join(f", {kind} of {name}" for name, kind in source.scope.by_class.items())
        screen.print(f"{source.name}: {len(source.dataset):,} images, {source.scope.rest}{by_class}", highlight=False)
    labels, k = merged.dataset.labels, len(merged.dataset.classes)
    screen.print(
        f"{out}: {len(labels):,} images, {k} classes; {int(labels.present.sum()):,} cells present,"
        f" {int(labels.absent.sum()):,} absent, {int(labels.unknown.sum()):,} unknown",
        highlight=False,
    )
    for note in merged.notes:
        screen.print(note, highlight=False)
    if merged.conflicts:
        errors.print(f"{len(merged.conflicts):,} conflicts, left unknown and listed in {paths[-1]}; the first:")
        for c in merged.conflicts[:5]:
            what = "in splits" if c.name is None else f"'{c.name}' present in"
            absent = f", absent in {'; '.join(c.absent)}" if c.absent else ""
            errors.print(f"  {c.image}: {what} {'; '.join(c.present)}{absent}")
    screen.print(f"provenance: {', '.join(path.name for path in paths[1:])}", highlight=False)
    say_next("plures", "check", out)


def _named(source: str) -> tuple[str, str]:
    """`NAME=DATA` or `DATA`, whose name is then the file's or folder's without suffix."""
    name, equals, data = source.partition("=")
    if equals and name and "/" not in name:
        return name, data
    return Path(source.rpartition(":")[2] or source).stem, source
