"""plures: learn all the labels of an image from training images that carry only one (or a few, or all).

dataset = plures.read("tags.csv")
run = plures.train(plures.Experiment(data="tags.csv", loss="role"), "runs/first")
report = plures.evaluate("runs/first")
plures.predict("runs/first", "photos/", "found.csv")
model = plures.load("runs/first")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from plures import labels as labels
    from plures import losses as losses
    from plures.analysis.evaluate import evaluate as evaluate
    from plures.api import Run as Run
    from plures.api import train as train
    from plures.config import Experiment as Experiment
    from plures.data.dataset import Dataset as Dataset
    from plures.data.read import read as read
    from plures.errors import BadData as BadData
    from plures.errors import PluresError as PluresError
    from plures.errors import WorkFailed as WorkFailed
    from plures.labels import Labels as Labels
    from plures.models.model import Model as Model
    from plures.models.outputs import Output as Output
    from plures.models.outputs import Tokens as Tokens
    from plures.prediction.predict import predict as predict
    from plures.scoring.predictor import load as load

_PLACES = {
    "BadData": "errors",
    "Dataset": "data.dataset",
    "Experiment": "config",
    "Labels": "labels",
    "Model": "models.model",
    "Output": "models.outputs",
    "PluresError": "errors",
    "Run": "api",
    "Tokens": "models.outputs",
    "WorkFailed": "errors",
    "evaluate": "analysis.evaluate",
    "load": "scoring.predictor",
    "predict": "prediction.predict",
    "read": "data.read",
    "train": "api",
}
_MODULES = ("labels", "losses")
__all__ = ["__version__", *_MODULES, *_PLACES]


def __getattr__(name: str) -> Any:
    """The public names, imported on first use: `import plures` alone does not load torch."""
    if name in _MODULES:
        return import_module(f"plures.{name}")
    if name not in _PLACES:
        raise AttributeError(f"module 'plures' has no attribute '{name}'")
    return getattr(import_module(f"plures.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
