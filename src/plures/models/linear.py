"""A linear classifier on pooled features, with class activation maps, plain or boosted.

Zhou et al. 2016, "Learning deep features for discriminative localization", arXiv 1512.04150: the classifier applied to
each region shows where a class was seen; the mean of these region logits is the image's logit.
BoostLU: "Bridging the Gap between Model Explanations in Partially Annotated Multi-label Classification", Kim, Kim,
Jeong, Schmid, Akata, Lee, 2023, arXiv 2304.01804: region logits above zero count five times (`boost: 5`) before the
mean is taken, in training and at test alike; meant for the losses ll_r, ll_ct and ll_cp.
"""

from __future__ import annotations

import torch
from torch import nn

from plures.models.output import Output, Tokens
from plures.models.parts import heads


@heads.part("linear", title="Linear classifier on pooled features", source="Zhou et al. 2016, arXiv 1512.04150 (maps)")
class Linear(nn.Module):
    """Tokens [B, P, D] -> logits [B, K] of their mean; region_logits [B, K, P] if maps are wanted.

    boost: factor on region logits above zero, as in BoostLU (there 5); the image's logit is the mean after it.
    """

    gives = frozenset({"region_logits"})

    def __init__(self, width: int, classes: int, boost: float = 1.0) -> None:
        super().__init__()
        if not boost > 0:
            raise ValueError(f"boost is a positive factor (1: none, BoostLU: 5), got {boost!r}")
        self.classifier = nn.Linear(width, classes)
        self.boost = boost
        # without a boost the logits are the same for the mean of all tokens as the only token
        self.mean_is_enough = boost == 1

    def forward(self, tokens: Tokens, maps: bool = True) -> Output:
        if self.boost == 1:
            logits = self.classifier(tokens.features.mean(1))  # [B, K]
            region_logits = self.classifier(tokens.features).transpose(1, 2) if maps else None  # [B, K, P]
            return Output(logits, region_logits=region_logits, boxes=tokens.boxes)
        activation = self.classifier(tokens.features).transpose(1, 2)  # [B, K, P]
        boosted = torch.where(activation > 0, self.boost * activation, activation)
        return Output(boosted.mean(2), region_logits=boosted if maps else None, boxes=tokens.boxes)
