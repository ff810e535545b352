"""docs/components.md is made from the registries: `python tools/components_page.py > docs/components.md`."""

from pathlib import Path

from components_page import markdown_registries
from plures.losses import losses


def test_the_documented_parts_are_the_parts():
    documented = (Path(__file__).parents[2] / "docs" / "components.md").read_text(encoding="utf-8")
    assert documented == markdown_registries()


def test_every_loss_says_what_it_is_and_where_it_comes_from():
    for entry in losses:
        assert entry.title
        assert f"`{entry.name}`" in markdown_registries()
