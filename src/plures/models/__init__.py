"""Models: a backbone (image -> Tokens) and a head (Tokens -> Output), one file each."""

from plures.models.model import Model, Preprocessing, build_model, load, save
from plures.models.outputs import Output, Tokens

__all__ = ["Model", "Output", "Preprocessing", "Tokens", "build_model", "load", "save"]
