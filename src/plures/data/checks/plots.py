"""Pictures of data: a sheet of examples with their tags, and which classes come together."""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plures.data.dataset import Dataset
from plures.data.photos import to_image
from plures.files import writing

COLUMNS, ROWS = 6, 4  # of the sheet
MOST_CLASSES = 40  # in the co-occurrence plot: beyond, names cannot be read


def example_sheet(dataset: Dataset, path: Path, seed: int = 0) -> Path:
    """A sheet of images with their present tags below, as many classes among them as fit. Returns the path."""
    rows = _varied_rows(dataset, COLUMNS * ROWS, seed)
    figure = _figure(2.0 * COLUMNS, 2.3 * ROWS)
    present = dataset.labels.take(rows).present
    for place, row in enumerate(rows):
        axes = figure.add_subplot(ROWS, COLUMNS, place + 1)
        image = to_image(dataset.images[row] if dataset.in_memory else str(dataset.images[row]))
        image.thumbnail((320, 320))
        axes.imshow(np.asarray(image.convert("RGB")))
        axes.set_axis_off()
        tags = ", ".join(dataset.classes[column] for column in np.flatnonzero(present[place]))
        below = {"transform": axes.transAxes, "ha": "center", "va": "top", "fontsize": 8}
        axes.text(0.5, -0.03, _plain(shorten(tags or "(no tag)", 34, placeholder=" ...")), **below)
    figure.tight_layout()
    with writing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    return path


def co_occurrence_plot(
    classes: tuple[str, ...], together: NDArray[np.float64], present: NDArray[np.int64], folder: Path
) -> Path:
    """The share of row's images that also show column, for the most frequent classes. Returns the path."""
    most = np.argsort(-present, kind="stable")[:MOST_CLASSES]
    shares = 100 * together[np.ix_(most, most)]
    np.fill_diagonal(shares, np.nan)
    names = [_plain(shorten(classes[column], 20, placeholder="...")) for column in most]
    side = 2.5 + 0.28 * len(most)
    figure = _figure(side + 1, side)
    axes = figure.add_subplot()
    shown = axes.imshow(
        np.ma.masked_invalid(shares), cmap="viridis", vmin=0, vmax=max(1.0, np.nanmax(shares, initial=0))
    )
    axes.set_xticks(range(len(most)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(most)), names, fontsize=8)
    axes.set_xlabel("also shows")
    axes.set_ylabel("an image of")
    figure.colorbar(shown, ax=axes, label="percent of the images", fraction=0.046)
    figure.tight_layout()
    path = folder / "co_occurrence.png"
    with writing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    return path


def _figure(width: float, height: float) -> Any:
    """A figure that needs no screen and leaves no state behind."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height))
    FigureCanvasAgg(figure)
    return figure


def _plain(text: str) -> str:
    """Without the sign that starts a formula."""
    return text.replace("$", r"\$")


def _varied_rows(dataset: Dataset, many: int, seed: int) -> list[int]:
    """Rows drawn so that each class in turn, rarest first, adds an image; then any others. At most `many`."""
    generator = np.random.default_rng(seed)
    values = dataset.labels.values
    pool = np.sort(generator.permutation(len(dataset))[:20_000])  # enough to choose from, and quick for a million
    present = values[pool] == 1
    counts = present.sum(0)
    chosen: list[int] = []
    for column in np.argsort(counts, kind="stable"):
        showing = np.setdiff1d(np.flatnonzero(present[:, column]), chosen)
        if len(showing) and len(chosen) < many:
            chosen.append(int(generator.choice(showing)))
    others = np.setdiff1d(np.arange(len(pool)), chosen)
    chosen += generator.permutation(others)[: many - len(chosen)].tolist()
    return [int(pool[place]) for place in chosen]
