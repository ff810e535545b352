"""Backbones: normalised images -> Tokens. One file each, found by name."""

from plures.models.backbones.base import Backbone, backbones

__all__ = ["Backbone", "backbones"]
