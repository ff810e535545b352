"""docs/api.md is made from the docstrings; `python tools/api_page.py > docs/api.md` renews it."""

import inspect
from pathlib import Path

import pytest

import plures
from api_page import first_paragraph, markdown_api, signature

PAGE = markdown_api()


def test_the_documented_api_is_the_api():
    documented = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
    assert documented == PAGE, "renew it: python tools/api_page.py > docs/api.md"


@pytest.mark.parametrize("name", sorted(set(plures.__all__) - {"__version__", "labels", "losses"}))
def test_every_public_name_is_on_the_page_and_says_what_it_is(name):
    assert f"### `plures.{name}`" in PAGE
    assert inspect.getdoc(getattr(plures, name))


def test_signatures_are_written_as_in_the_source():
    def some(first: int, *, second: str = "a", **others: float) -> list[str]:
        """One *star*, `two_words`, three_words."""

    assert signature("some", some) == "some(first: int, *, second: str = 'a', **others: float) -> list[str]"
    assert signature("some", some, width=20).splitlines()[1] == "    first: int,"
    assert first_paragraph(some) == r"One \*star\*, `two_words`, three\_words."
