"""The noun Thresholds: from where on each class is called a tag, how probabilities are made of logits, and what the
choice assumes and guarantees. Saved with a run as `thresholds.json`.

One rule everywhere: a class is called where the model's logit, a float32, is not below the class's cut, a float32. The
calibrated probability that belongs to a cut is for people. Probabilities are never compared: they round (all logits
above 17 are 1 in float32), and curves of a calibration have flat stretches.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from plures.data.taxonomy import Taxonomy
from plures.errors import PluresError
from plures.files import parse_json, writing

THRESHOLDS = "thresholds.json"
NEVER = float(np.nextafter(1.0, 2.0))  # stands where no probability is enough
LEAST = 1e-12  # the lowest threshold that is shown, where every logit is enough
EDITED = 1e-6  # a saved probability further than this from that of its cut was changed by hand
Floats = NDArray[np.float64]
Cuts = NDArray[np.float32]
AnyFloat = TypeVar("AnyFloat", bound=np.floating[Any])


@dataclass(frozen=True, eq=False)
class Calibration:
    """Logits -> calibrated probabilities, each class by its own monotone curve.

    kind "affine": sigmoid(scale * logit + offset), scale > 0 (a temperature is scale = 1 / T with offset 0).
    kind "isotonic": linear interpolation through points (x: logits ascending, y: probabilities), flat outside.
    """

    kind: Literal["affine", "isotonic"]
    scale: Floats | None = None  # [K]
    offset: Floats | None = None  # [K]
    points: tuple[tuple[Floats, Floats], ...] = ()  # K pairs (x, y)

    def __call__(self, logits: NDArray[np.floating]) -> Floats:
        """Logits [N, K] -> probabilities [N, K]."""
        logits = np.asarray(logits, np.float64)
        if self.kind == "affine":
            return sigmoid(self.comparable(logits))
        return np.stack([np.interp(logits[:, k], x, y) for k, (x, y) in enumerate(self.points)], axis=1)

    def _line(self) -> tuple[Floats, Floats]:
        assert self.scale is not None
        assert self.offset is not None
        return self.scale, self.offset

    def comparable(self, logits: NDArray[np.floating]) -> Floats:
        """Logits [N, K] -> scores [N, K] that can be compared between classes: the calibrated logits of an affine
        calibration (which never tie where logits differ), the probabilities of an isotonic one."""
        if self.kind == "affine":
            scale, offset = self._line()
            return np.asarray(np.asarray(logits, np.float64) * scale + offset)
        return self(logits)

    def logits_at(self, scores: Floats) -> Floats:
        """The least logit [K] whose `comparable` score is this [K] or more: infinity for never."""
        if self.kind == "affine":
            scale, offset = self._line()
            return np.asarray((scores - offset) / scale)
        return np.array([_reaches(x, y, value) for (x, y), value in zip(self.points, scores, strict=True)])

    def logits_of(self, probabilities: Floats) -> Floats:
        """The least logit [K] whose calibrated probability is this [K] or more: infinity for never."""
        return self.logits_at(logit(probabilities) if self.kind == "affine" else probabilities)


@dataclass(frozen=True, eq=False)
class Thresholds:
    """For each of K classes the logit from which on it is called, and the same as a probability for people.

    values [K]: calibrated probabilities in (0, 1] (NEVER, 1 and a bit: never called). cuts: float32 [K], on the logits
    before calibration, infinity: never called; made of the values unless given. method: how they were chosen;
    objective: for what; assumes and guarantees: a sentence each, for people. taxonomy: of the classes, saved with the
    model and not here: then the logit of a class is the highest of its own and those below it, a class is called only
    with all above it, and of an exclusive group only the highest is called.
    """

    classes: tuple[str, ...]
    values: Floats
    method: str
    objective: str
    assumes: str
    guarantees: str
    calibration: Calibration | None = None
    cuts: Cuts = field(default_factory=lambda: np.empty(0, np.float32))
    taxonomy: Taxonomy | None = None

    def __post_init__(self) -> None:
        if self.cuts.shape != self.values.shape:
            c = self.calibration
            cuts = logit(self.values) if c is None else c.logits_of(self.values)
            object.__setattr__(self, "cuts", cuts.astype(np.float32))

    def ranked(self, logits: NDArray[AnyFloat]) -> NDArray[AnyFloat]:
        """The model's logits [N, K] -> those that count, [N, K]: the same without a taxonomy."""
        return logits if self.taxonomy is None else np.asarray(self.taxonomy.highest(logits))

    def probabilities(self, logits: NDArray[np.floating]) -> Floats:
        """Logits [N, K] -> calibrated probabilities [N, K]."""
        logits = self.ranked(logits)
        return self._ordered(sigmoid(logits) if self.calibration is None else self.calibration(logits))

    def called(self, logits: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Logits [..., K], before calibration -> which tags are called, [..., K]."""
        logits = np.asarray(logits, np.float32)
        if self.taxonomy is None:
            return np.asarray(logits >= self.cuts)
        flat = self.ranked(logits.reshape(-1, logits.shape[-1]))
        comparable = flat if self.calibration is None else self._ordered(self.calibration.comparable(flat))
        return self.taxonomy.coherent(flat >= self.cuts, comparable).reshape(logits.shape)

    def _ordered(self, scores: Floats) -> Floats:
        """Each class has a calibration of its own, which may put a class below one that is below it."""
        return scores if self.taxonomy is None else np.asarray(self.taxonomy.highest(scores))

    @classmethod
    def constant(cls, classes: tuple[str, ...], value: float = 0.5, taxonomy: Taxonomy | None = None) -> Thresholds:
        """One threshold for every class, as given: a probability."""
        values = np.full(len(classes), value)
        return cls(classes, values, "given", "none", "nothing", "nothing", taxonomy=taxonomy)

    def save(self, folder: str | Path) -> None:
        """Write `thresholds.json` into a run folder, atomically."""
        calibration: dict[str, Any] | None = None
        if self.calibration is not None:
            c = self.calibration
            calibration = {"kind": c.kind}
            if c.kind == "affine":
                scale, offset = c._line()
                calibration |= {"scale": scale.tolist(), "offset": offset.tolist()}
            else:
                calibration["points"] = [[x.tolist(), y.tolist()] for x, y in c.points]
        stored = {
            "method": self.method,
            "objective": self.objective,
            "assumes": self.assumes,
            "guarantees": self.guarantees,
            "thresholds": dict(zip(self.classes, self.values.tolist(), strict=True)),
            "cut_logits": dict(zip(self.classes, map(_spelled, self.cuts.tolist()), strict=True)),
            "calibration": calibration,
        }
        with writing(Path(folder) / THRESHOLDS) as temporary:
            temporary.write_text(json.dumps(stored, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path, classes: tuple[str, ...], taxonomy: Taxonomy | None = None) -> Thresholds | None:
        """The thresholds saved in a run folder, in the order of these classes, with the model's taxonomy; None where
        there are none.

        Where a probability was changed by hand, it counts, and its cut follows; so it does in files of plures 0.1,
        which have no cuts. Raises PluresError if the file is damaged or made for other classes.
        """
        path = Path(folder) / THRESHOLDS
        if not path.is_file():
            return None
        try:
            stored = parse_json(path.read_text(encoding="utf-8"))
            if set(stored["thresholds"]) != set(classes):
                raise PluresError(f"{path}: made for other classes; choose again with `plures thresholds`")
            names = list(stored["thresholds"])
            order = [names.index(name) for name in classes]
            values = np.array([stored["thresholds"][name] for name in classes], np.float64)
            if not (np.isfinite(values) & (values > 0)).all():
                raise ValueError("a threshold is a number above 0")
            method, objective, *told = (str(stored[n]) for n in ("method", "objective", "assumes", "guarantees"))
            calibration = _read_calibration(stored["calibration"], order)
            given = cls(classes, values, method, objective, told[0], told[1], calibration, taxonomy=taxonomy)
            if "cut_logits" not in stored:
                return given
            cuts = np.array([_read_cut(stored["cut_logits"][name]) for name in classes], np.float32)
            edited = np.abs(probabilities_at(cuts, calibration) - values) > EDITED
            return replace(given, cuts=np.where(edited, given.cuts, cuts).astype(np.float32))
        except OSError as error:
            raise PluresError(f"{path}: cannot be read ({error.strerror})") from None
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise PluresError(f"{path}: not thresholds ({error}); choose again with `plures thresholds`") from None


def _read_calibration(stored: dict[str, Any] | None, order: list[int]) -> Calibration | None:
    if stored is None:
        return None
    if stored["kind"] == "affine":
        scale, offset = (np.array(stored[name], np.float64) for name in ("scale", "offset"))
        shaped = scale.shape == offset.shape == (len(order),)
        if not (shaped and np.isfinite([scale, offset]).all() and scale.min() > 0):
            raise ValueError("a calibration has a scale above 0 and an offset for each class")
        return Calibration("affine", scale[order], offset[order])
    if stored["kind"] != "isotonic" or len(stored["points"]) != len(order):
        raise ValueError("a calibration is affine, or isotonic with a curve for each class")
    return Calibration("isotonic", points=tuple(_read_curve(*stored["points"][k]) for k in order))


def _read_curve(x: list[float], y: list[float]) -> tuple[Floats, Floats]:
    logits, probabilities = np.array(x, np.float64), np.array(y, np.float64)
    rising = logits.ndim == 1 and (np.diff(logits) > 0).all() and (np.diff(probabilities) >= 0).all()
    if logits.shape != probabilities.shape or not len(logits) or not rising:
        raise ValueError("a curve rises, and has as many logits as probabilities")
    return logits, probabilities


def _reaches(x: Floats, y: Floats, value: float) -> float:
    """The smallest logit at which the curve through (x, y) is `value` or more."""
    above = np.flatnonzero(y >= value)
    if not len(above):
        return float("inf")
    j = int(above[0])
    if j == 0:
        return float("-inf")
    return float(x[j - 1] + (value - y[j - 1]) / (y[j] - y[j - 1]) * (x[j] - x[j - 1]))


def _spelled(cut: float) -> float | str:
    """A cut as JSON has it."""
    return cut if math.isfinite(cut) else "never" if cut > 0 else "always"


def _read_cut(stored: float | str) -> float:
    cut = {"never": math.inf, "always": -math.inf}[stored] if isinstance(stored, str) else float(stored)
    if math.isnan(cut):
        raise ValueError("a cut is a number, 'never' or 'always'")
    return cut


def probabilities_at(cuts: Cuts, calibration: Calibration | None) -> Floats:
    """The calibrated probability at each cut [K], in (0, 1], and NEVER for an infinite one."""
    at = sigmoid(cuts) if calibration is None else calibration(cuts[None])[0]
    return np.asarray(np.where(np.isposinf(cuts), NEVER, np.maximum(at, LEAST)))


def logit(probabilities: Floats) -> Floats:
    """Probabilities -> logits; more than 1 is infinity."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(probabilities > 1, np.inf, np.log(probabilities) - np.log1p(-probabilities)))


def sigmoid(logits: NDArray[np.floating]) -> Floats:
    """Logits -> probabilities in float64, without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * np.asarray(logits, np.float64))))
