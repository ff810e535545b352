"""The demo: one table, predictions, heat maps and a page whose pictures exist."""

import io
import re

import pandas as pd
import pytest
from rich.console import Console

from plures.errors import PluresError
from plures.report.demo import ROWS, run_demo


@pytest.mark.slow
def test_demo_writes_a_page_whose_pictures_exist(tmp_path):
    text = io.StringIO()
    page = run_demo(tmp_path / "demo", Console(file=text, width=200), images=96, epochs=1)
    for row in ROWS:
        assert row.title in text.getvalue()
        assert (tmp_path / "demo" / row.folder / "report.json").is_file()
    sources = re.findall(r'src="([^"]+)"', page.read_text())
    assert len([s for s in sources if s.startswith("scenes/")]) == 12
    assert all((page.parent / s).is_file() for s in sources)
    assert len(pd.read_csv(tmp_path / "demo" / "predictions.csv")) == 12
    with pytest.raises(PluresError, match="already holds a demo"):
        run_demo(tmp_path / "demo", Console(file=text))
