"""Predictions: what a model says of some images, as a value for Python and notebooks."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from plures.data.photos import to_image
from plures.errors import PluresError, did_you_mean
from plures.scoring.heatmaps import overlay, paint

SHOWN, THUMBNAIL = 24, 160  # photographs that a notebook shows, and the longer side of each in pixels

Regions = tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]  # weights [K, P] and boxes [P, 4]


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says of one image.

    Attributes:
        name: path or address of the image, or `image 3` for one in memory.
        tags: the classes called, the surest first.
        scores: probability of every class by name, in [0, 1].
    """

    name: str
    tags: tuple[str, ...]
    scores: dict[str, float]
    _image: Any = field(repr=False)
    _regions: Callable[[Any], Regions] = field(repr=False)

    def image(self) -> Image.Image:
        """The photograph, upright, as the model saw it before resizing."""
        return to_image(self._image)

    def heatmap(self, tag: str) -> NDArray[np.float32]:
        """Where the model saw a class: float32 [H, W] at the photograph's own size, 0 (cold) to 1 (hot).

        Runs the model on this image once more. Raises PluresError for an unknown class.

        Example:
            >>> found[0].heatmap("cat").max()  # doctest: +SKIP
            1.0
        """
        if tag not in self.scores:
            raise PluresError(f"class '{tag}' is unknown to the model{did_you_mean(tag, self.scores)}")
        picture = self.image()
        weights, boxes = self._regions(self._image)
        return paint(weights[list(self.scores).index(tag)], boxes, picture.height, picture.width)

    def overlay(self, tag: str) -> Image.Image:
        """The photograph with the heat map of a class laid over it."""
        return overlay(self.image(), self.heatmap(tag), tag, self.scores[tag])

    def __repr__(self) -> str:
        return f"{self.name}: {', '.join(f'{t} {self.scores[t]:.2f}' for t in self.tags) or 'no tags'}"


class Predictions(Sequence[Prediction]):
    """What a model says of N images, in their order.

    Attributes:
        names: of the images. classes: the K classes. tags: for each image the classes called, the surest first.
        scores: probabilities, float64 [N, K]. logits: float32 [N, K]. skipped: (name, reason) of unreadable images
            that were left out.
    """

    def __init__(
        self,
        names: list[str],
        classes: tuple[str, ...],
        logits: NDArray[np.float32],
        scores: NDArray[np.float64],
        called: NDArray[np.bool_],
        images: list[Any],
        regions: Callable[[Any], Regions],
        skipped: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.names, self.classes, self.logits, self.scores = names, classes, logits, scores
        self.skipped = tuple(skipped)
        order = np.argsort(-scores, axis=1, kind="stable")
        self.tags = [tuple(classes[k] for k in row if called[n, k]) for n, row in enumerate(order)]
        self._images, self._regions = images, regions

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, place: int) -> Prediction: ...
    @overload
    def __getitem__(self, place: slice) -> list[Prediction]: ...
    def __getitem__(self, place: int | slice) -> Prediction | list[Prediction]:
        if isinstance(place, slice):
            return [self[n] for n in range(*place.indices(len(self)))]
        scores = dict(zip(self.classes, self.scores[place].tolist(), strict=True))
        return Prediction(self.names[place], self.tags[place], scores, self._images[place], self._regions)

    def __iter__(self) -> Iterator[Prediction]:
        return (self[n] for n in range(len(self)))

    def to_dicts(self) -> list[dict[str, Any]]:
        """One dict per image: image, tags (list) and scores (by class)."""
        return [{"image": one.name, "tags": list(one.tags), "scores": one.scores} for one in self]

    def to_pandas(self) -> Any:
        """A data frame with a row per image: image, tags joined by ";", and a column per class. Requires pandas."""
        import pandas as pd

        scores = pd.DataFrame(self.scores, columns=list(self.classes))
        scores.insert(0, "tags", [";".join(tags) for tags in self.tags], allow_duplicates=True)
        scores.insert(0, "image", self.names, allow_duplicates=True)
        return scores

    def __repr__(self) -> str:
        lines = [f"Predictions of {len(self):,} images, {len(self.classes)} classes"]
        lines += [f"  {self[n]!r}" for n in range(min(5, len(self)))]
        if len(self) > 5:
            lines.append(f"  and {len(self) - 5:,} more")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Thumbnails with their tags, for notebooks."""
        cells = "".join(_cell(one) for one in self[:SHOWN])
        more = f"<p>and {len(self) - SHOWN:,} more</p>" if len(self) > SHOWN else ""
        return f'<div style="display:flex;flex-wrap:wrap;gap:12px">{cells}</div>{more}'


def _cell(one: Prediction) -> str:
    picture = one.image()
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    source = base64.b64encode(file.getvalue()).decode()
    tags = "<br>".join(f"{html.escape(t)} {one.scores[t]:.2f}" for t in one.tags) or "no tags"
    name = html.escape(one.name, quote=True)
    return (
        f'<figure style="margin:0;width:{THUMBNAIL}px"><img src="data:image/jpeg;base64,{source}" alt="{name}"'
        f' title="{name}"><figcaption>{tags}</figcaption></figure>'
    )
