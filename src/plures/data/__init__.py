"""Data: one file per format, the built-in scenes, splitting, and loading images."""

from plures.data.dataset import Boxes, Dataset

__all__ = ["Boxes", "Dataset"]
