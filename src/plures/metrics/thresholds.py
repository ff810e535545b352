"""The noun Thresholds: from which probability on each class is called a tag, how probabilities are made of logits,
and what the choice assumes and guarantees. Saved with a run as `thresholds.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from plures.errors import PluresError
from plures.files import parse_json, writing

THRESHOLDS = "thresholds.json"
Floats = NDArray[np.float64]


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
            assert self.scale is not None
            assert self.offset is not None
            return sigmoid(logits * self.scale + self.offset)
        return np.stack([np.interp(logits[:, k], x, y) for k, (x, y) in enumerate(self.points)], axis=1)


@dataclass(frozen=True, eq=False)
class Thresholds:
    """A probability in (0, 1] for each of K classes: a tag is called from it on (1 and a bit: never called).

    values [K] are on the calibrated probabilities. method: how they were chosen; objective: for what; assumes and
    guarantees: a sentence each, for people.
    """

    classes: tuple[str, ...]
    values: Floats
    method: str
    objective: str
    assumes: str
    guarantees: str
    calibration: Calibration | None = None

    def probabilities(self, logits: NDArray[np.floating]) -> Floats:
        """Logits [N, K] -> calibrated probabilities [N, K]."""
        return sigmoid(logits) if self.calibration is None else self.calibration(logits)

    def tags(self, probabilities: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Calibrated probabilities [N, K] -> which tags are called, [N, K]."""
        return np.asarray(probabilities >= self.values)

    def cut_logits(self) -> Floats:
        """The logit from which each class is called, [K]: minus infinity for always, infinity for never."""
        with np.errstate(divide="ignore", invalid="ignore"):
            at = np.where(self.values > 1, np.inf, np.log(self.values) - np.log1p(-self.values))
        c = self.calibration
        if c is None:
            return np.asarray(at)
        if c.kind == "affine":
            assert c.scale is not None
            assert c.offset is not None
            return np.asarray((at - c.offset) / c.scale)
        return np.array([_reaches(x, y, value) for (x, y), value in zip(c.points, self.values, strict=True)])

    @classmethod
    def constant(cls, classes: tuple[str, ...], value: float = 0.5) -> Thresholds:
        """One threshold for every class, as given."""
        return cls(classes, np.full(len(classes), value), "given", "none", "nothing", "nothing")

    def save(self, folder: str | Path) -> None:
        """Write `thresholds.json` into a run folder, whole or not at all."""
        calibration: dict[str, Any] | None = None
        if self.calibration is not None:
            c = self.calibration
            calibration = {"kind": c.kind}
            if c.kind == "affine":
                assert c.scale is not None
                assert c.offset is not None
                calibration |= {"scale": c.scale.tolist(), "offset": c.offset.tolist()}
            else:
                calibration["points"] = [[x.tolist(), y.tolist()] for x, y in c.points]
        stored = {
            "method": self.method,
            "objective": self.objective,
            "assumes": self.assumes,
            "guarantees": self.guarantees,
            "thresholds": dict(zip(self.classes, self.values.tolist(), strict=True)),
            "calibration": calibration,
        }
        with writing(Path(folder) / THRESHOLDS) as temporary:
            temporary.write_text(json.dumps(stored, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path, classes: tuple[str, ...]) -> Thresholds | None:
        """The thresholds saved in a run folder, in the order of these classes; None where there are none.

        Raises PluresError if the file is damaged or made for other classes.
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
            words = {name: str(stored[name]) for name in ("method", "objective", "assumes", "guarantees")}
            return cls(classes, values, calibration=_read_calibration(stored["calibration"], order), **words)
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


def sigmoid(logits: NDArray[np.floating]) -> Floats:
    """Logits -> probabilities in float64, without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * np.asarray(logits, np.float64))))
