"""A linear classifier on pooled features, with class activation maps.

Zhou et al. 2016, "Learning deep features for discriminative localization", arXiv 1512.04150: the classifier applied to
each region shows where a class was seen; the mean of these region logits is the image's logit.
"""

from __future__ import annotations

from torch import nn

from plures.models.output import Output, Tokens
from plures.models.parts import heads


@heads.part("linear", title="Linear classifier on pooled features", source="Zhou et al. 2016, arXiv 1512.04150 (maps)")
class Linear(nn.Module):
    """Tokens [B, P, D] -> logits [B, K] of their mean; region_logits [B, K, P] if maps are wanted."""

    gives = frozenset({"region_logits"})
    mean_is_enough = True  # the logits are the same for the mean of all tokens as the only token

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(width, classes)

    def forward(self, tokens: Tokens, maps: bool = True) -> Output:
        logits = self.classifier(tokens.features.mean(1))  # [B, K]
        region_logits = self.classifier(tokens.features).transpose(1, 2) if maps else None  # [B, K, P]
        return Output(logits, region_logits=region_logits, boxes=tokens.boxes)
