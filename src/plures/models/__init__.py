"""Models: an embedder (image -> Tokens) and a head (Tokens -> Output), one file each."""

from plures.models.model import Model, Preprocessing, build_model, load, save
from plures.models.output import Output, Tokens
from plures.models.parts import embedders, heads

__all__ = ["Model", "Output", "Preprocessing", "Tokens", "build_model", "embedders", "heads", "load", "save"]
