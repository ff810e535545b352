"""Photos and heat maps as the pages show them: decoded and encoded anew, so that nothing but a picture ever leaves."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from plures.analysis.missing import heat_drawer
from plures.data.dataset import Dataset
from plures.data.photos import Unreadable, open_image, to_image
from plures.web.questions import Question

SIDE = 1024  # pixels of the longer side
SMALL = 320
KEEP = 400  # pictures in memory


class Pictures:
    """JPEG bytes of a dataset's photos by row, and of heat maps by question.

    folder: where the suggestions' heat maps lie; a path that leads out of it is refused. run: a run folder whose model
    draws a heat map where there is none.
    """

    def __init__(self, dataset: Dataset, folder: Path | None = None, run: Path | None = None) -> None:
        self.dataset, self.folder, self.run = dataset, folder, run
        self._kept: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._lock, self._model_lock = threading.Lock(), threading.Lock()
        self._draw: Callable[[Image.Image, str, float | None], Image.Image] | None = None

    def photo(self, row: int, small: bool = False) -> bytes:
        """The photo of a row. Raises Unreadable if there is none."""
        if not 0 <= row < len(self.dataset):
            raise Unreadable(f"there is no row {row}")
        side = SMALL if small else SIDE
        return self._cached((f"photo{side}", row), lambda: _jpeg(_shrunk(to_image(self.dataset.images[row]), side)))

    def can_show(self, question: Question) -> bool:
        """Whether there is a heat map for it, or one can be made."""
        return bool(question.heatmap) or self.run is not None

    def heat(self, question: Question) -> bytes:
        """The photo with the heat map over it. Raises Unreadable if there is none."""
        return self._cached(("heat", question.number), lambda: self._heat(question))

    def _heat(self, question: Question) -> bytes:
        if question.heatmap:
            return _jpeg(_shrunk(open_image(self._inside(question.heatmap)), SIDE))
        if self.run is None:
            raise Unreadable("no heat map")
        photo = _shrunk(to_image(self.dataset.images[question.row]), SIDE)
        with self._model_lock:
            if self._draw is None:
                self._draw = heat_drawer(self.run)
            return _jpeg(self._draw(photo, question.tag, None))

    def _inside(self, name: str) -> Path:
        """The file of this name in the suggestions' folder. Raises Unreadable if it lies elsewhere."""
        assert self.folder is not None
        root = self.folder.resolve()
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            raise Unreadable(f"heat map '{name}' lies outside of {self.folder}")
        return path

    def _cached(self, key: tuple[str, int], make: Callable[[], bytes]) -> bytes:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > KEEP:
                self._kept.popitem(last=False)
        return made


def _shrunk(image: Image.Image, side: int) -> Image.Image:
    if max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
