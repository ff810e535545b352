"""plures: learn all the labels of an image from training images that carry only one (or a few, or all)."""

__version__ = "0.1.0.dev0"
