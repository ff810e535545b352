"""docs/components.md, made from the registries: `python tools/components_page.py > docs/components.md` renews it."""

from __future__ import annotations

from plures.report.components import REGISTRIES, options_of


def markdown_registries() -> str:
    """The tables of `plures components` as Markdown."""
    lines = [
        "# Components",
        "",
        "Made from the registries by `python tools/components_page.py > docs/components.md`.",
        "",
    ]
    for title, registry in REGISTRIES:
        lines += [f"## {title}", "", "| name | what | source | options |", "|---|---|---|---|"]
        for entry in registry:
            options = options_of(registry, entry.name).replace("|", "\\|")
            lines.append(f"| `{entry.name}` | {entry.title} | {entry.source} | {options} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown_registries(), end="")
