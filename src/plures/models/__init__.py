"""Models: an embedder (image -> Tokens) and a head (Tokens -> Output), one file each."""

from plures.models.output import Output, Tokens
from plures.models.parts import embedders, heads

__all__ = ["Output", "Tokens", "embedders", "heads"]
