"""Priors: what is known of the classes in a photograph without any tag. One file each, found by name."""

from plures.models.priors.base import NONE, Fused, Prior, check_prior, priors

__all__ = ["NONE", "Fused", "Prior", "check_prior", "priors"]
