"""The figures of a report as SVG inside the page: text and axes take the page's own colour, so that one figure serves
light and dark; numbers and names stay text, small and selectable."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from textwrap import shorten
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from plures.labels import Labels, co_occurrence
from plures.metrics.reliability import Reliability

INK = "#010203"  # stands for the page's colour of text
BLUE, ORANGE, GREY = "#3f8fd2", "#e2803c", "#8a8f98"  # told apart by the colour-blind; 3:1 on white and on black
MOST_CLASSES = 20  # in the co-occurrence: beyond, names cannot be read on a phone
Records = Sequence[dict[str, Any]]


@contextmanager
def _drawing(width: float, height: float) -> Iterator[Figure]:
    look: Any = {  # matplotlib knows the names of its settings one by one
        "font.size": 9,
        "svg.fonttype": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "axes.titlesize": 9,
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    }
    with matplotlib.rc_context(look):
        yield Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Figure, name: str, says: str) -> str:
    """The figure as an <svg> element; says: what it shows, for those who cannot see it."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text))
    text = text.replace("<svg", f'<svg role="img" aria-label="{says}"', 1).replace(INK, "currentColor")
    text = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font: \1px system-ui, sans-serif", text)
    ids = set(re.findall(r'id="([^"]+)"', text))
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    for other in sorted(ids - used):
        text = text.replace(f' id="{other}"', "")
    return re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", text)


def training_curves(log: Records) -> str | None:
    """Loss and validation mAP by epoch, or by strength of a closed-form head; None without a log."""
    if not log:
        return None
    x = np.arange(1, len(log) + 1)
    with _drawing(4.6, 3.0) as figure:
        axes = figure.add_subplot()
        axes.plot(x, [r["loss"] for r in log], color=GREY, marker=".", label="training loss")
        solved = "l2" in log[0]
        axes.set_xlabel("strength l2" if solved else "epoch")
        if solved:
            axes.set_xticks(x, [f"{r['l2']:g}" for r in log])
        axes.set_ylabel("loss")
        right = axes.twinx()
        for key, colour, label in (
            ("val_map", BLUE, "validation mAP, known labels"),
            ("val_map_observed", ORANGE, "validation mAP, observed labels"),
        ):
            values = [np.nan if r.get(key) is None else r[key] for r in log]
            if not np.isnan(values).all():
                right.plot(x, values, color=colour, marker=".", label=label)
        right.set_ylabel("percent")
        right.spines["right"].set_visible(True)
        figure.legend(loc="outside upper left", ncols=1)
        return _svg(figure, "curves", "training loss and validation mAP by epoch")


def distributions(probabilities: NDArray[np.floating], labels: Labels) -> str:
    """Histogram of the probabilities of present and of absent cells."""
    with _drawing(4.6, 2.8) as figure:
        axes = figure.add_subplot()
        edges = np.linspace(0, 1, 26)
        for mask, colour, name in ((labels.absent, GREY, "absent"), (labels.present, BLUE, "present")):
            if mask.any():
                share = np.histogram(probabilities[mask], edges)[0] / mask.sum()
                axes.stairs(share, edges, color=colour, fill=True, alpha=0.45, label=f"{name} ({mask.sum():,} cells)")
                axes.stairs(share, edges, color=colour)
        axes.set_yscale("log")
        axes.set_xlabel("predicted probability")
        axes.set_ylabel("share of the cells")
        axes.legend()
        return _svg(figure, "distributions", "histogram of probabilities of present and absent cells")


def hidden_labels(records: Records, name: str = "hidden", title: str = "") -> str | None:
    """Probabilities of hidden positives and of negatives over training: median, middle half and middle 80%."""
    if not records:
        return None
    x = np.arange(1, len(records) + 1)
    with _drawing(4.6, 3.0) as figure:
        axes = figure.add_subplot()
        for key, colour, words in (
            ("observed_positives", ORANGE, "positives that training saw"),
            ("hidden_positives", BLUE, "positives hidden from it"),
            ("negatives", GREY, "negatives"),
        ):
            quantiles = np.array([r[key]["quantiles"] or [np.nan] * 5 for r in records])  # [epochs, 5]
            axes.plot(x, quantiles[:, 2], color=colour, marker=".", label=words)
            axes.fill_between(x, quantiles[:, 1], quantiles[:, 3], color=colour, alpha=0.3, linewidth=0)
            axes.fill_between(x, quantiles[:, 0], quantiles[:, 4], color=colour, alpha=0.13, linewidth=0)
        axes.set_ylim(0, 1)
        axes.set_xlabel("epoch")
        axes.set_ylabel("predicted probability")
        if title:
            axes.set_title(title)
        figure.legend(loc="outside upper left", ncols=1)
        return _svg(figure, name, "probabilities of hidden positives and negatives over training")


def reliability_curve(found: Reliability) -> str:
    """Share present against mean probability, a dot a bin, as large as its cells are many."""
    with _drawing(4.6, 3.4) as figure:
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="as it should be")
        some = found.cells > 0
        size = 12 + 90 * np.log1p(found.cells[some]) / np.log1p(found.cells.max())
        axes.plot(found.probability[some], found.present[some], color=BLUE)
        axes.scatter(found.probability[some], found.present[some], s=size, color=BLUE, alpha=0.7, linewidth=0)
        axes.set_xlabel("predicted probability")
        axes.set_ylabel("share really present")
        axes.set_title(f"ECE {100 * found.error:.1f} percent")
        axes.legend()
        return _svg(figure, "reliability", "reliability curve")


def against_frequency(
    ap: NDArray[np.floating], images: NDArray[np.int64], classes: Sequence[str]
) -> tuple[str, float] | None:
    """AP of each class [K] against its training images [K], and Spearman's rank correlation; None below 3 classes."""
    scored = ~np.isnan(ap) & (images > 0)
    if scored.sum() < 3:
        return None
    from scipy.stats import spearmanr

    with _drawing(4.6, 3.2) as figure:
        axes = figure.add_subplot()
        axes.scatter(images[scored], 100 * ap[scored], s=18, color=BLUE, linewidth=0)
        axes.set_xscale("log")
        axes.set_xlabel("training images that show it (log)")
        axes.set_ylabel("AP, percent")
        axes.set_ylim(-3, 103)
        if scored.sum() <= 30:
            figure.draw_without_rendering()  # the layout must stand before a label has a place
            _name(axes, {_plain(classes[k], 14): (images[k], 100 * ap[k]) for k in np.flatnonzero(scored).tolist()})
        picture = _svg(figure, "frequency", "average precision of each class against its training images")
    flat = len(set(images[scored].tolist())) == 1 or len(set(ap[scored].tolist())) == 1
    return picture, float("nan") if flat else float(spearmanr(ap[scored], images[scored])[0])


def _name(axes: Any, places: dict[str, tuple[float, float]]) -> None:
    """A label beside each place, where it covers no other one; none where there is no such side."""
    taken: list[Any] = []
    for name, place in places.items():
        label = axes.annotate(name, place, (3, 2), textcoords="offset points", fontsize=7)
        for offset in ((3, 2), (3, -8), (-3, 2), (-3, -8)):
            label.xyann = offset
            label.set_horizontalalignment("left" if offset[0] > 0 else "right")
            box = label.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
        else:
            label.remove()


def co_occurrences(labels: Labels, tags: NDArray[np.bool_], classes: Sequence[str]) -> tuple[str, float] | None:
    """Which classes come together, in the labels and as predicted, for the most frequent ones; and the correlation of
    the two over all pairs of those. None where no image has two labels known to be present."""
    if not (labels.present.sum(1) > 1).any():
        return None
    images = labels.present.sum(0)
    most = np.argsort(-images, kind="stable")[: min(MOST_CLASSES, int((images > 0).sum()))]
    if len(most) < 2:
        return None
    both = [100 * co_occurrence(Labels(labels.values[:, most])), 100 * co_occurrence(Labels.from_masks(tags[:, most]))]
    for shares in both:
        np.fill_diagonal(shares, np.nan)
    top = max(float(np.nanmax(shares, initial=1)) for shares in both)
    names = [_plain(classes[k], 14) for k in most]
    with _drawing(4.6, 7.4) as figure:
        panels = figure.subplots(2, 1, sharex=True)
        for axes, shares, title in zip(panels, both, ("in the labels", "as predicted"), strict=True):
            shown = axes.imshow(np.ma.masked_invalid(shares), cmap="viridis", vmin=0, vmax=top)
            axes.set_yticks(range(len(names)), names, fontsize=7)
            axes.set_xticks(range(len(names)), names, fontsize=7, rotation=90)
            axes.set_title(title)
        bar = figure.colorbar(shown, ax=panels, shrink=0.5, location="right")
        bar.outline.set_edgecolor(INK)
        picture = _svg(figure, "together", "which classes come together, in the labels and as predicted")
    pairs = ~np.isnan(both[0]) & ~np.isnan(both[1])
    a, b = both[0][pairs], both[1][pairs]
    return picture, float(np.corrcoef(a, b)[0, 1]) if len(a) > 2 and a.std() > 0 and b.std() > 0 else float("nan")


def _plain(name: str, most: int) -> str:
    """Short, and without matplotlib's marks of mathematics."""
    return shorten(name, most, placeholder="…").replace("$", r"\$") or name[: most - 1] + "…"
