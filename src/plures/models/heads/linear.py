"""A linear classifier on pooled features, with class activation maps, plain or boosted.

Zhou et al. 2016, "Learning deep features for discriminative localization", arXiv 1512.04150: the classifier applied to
each region shows where a class was seen; the mean of these region logits is the image's logit.
BoostLU: "Bridging the Gap between Model Explanations in Partially Annotated Multi-label Classification", Kim, Kim,
Jeong, Schmid, Akata, Lee, 2023, arXiv 2304.01804: region logits above zero count five times (`boost: 5`) before the
mean is taken, in training and at test alike; meant for the losses ll_r, ll_ct and ll_cp.

`standardise` brings every feature to mean 0 and standard deviation 1 over the training images before the classifier;
`normalise` then gives every image features of the same length. With strong decoupled weight decay (adamw, 10), or with
optimizer=exact, that is worth more than the choice of a loss: see docs/choosing.md.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plures.models.heads import heads
from plures.models.outputs import Output, Tokens


@heads.register(
    "linear", title="Linear classifier on pooled features", source="Zhou et al. 2016, arXiv 1512.04150 (maps)"
)
class Linear(nn.Module):
    """Tokens [B, P, D] -> logits [B, K] of their mean; region_logits [B, K, P] if maps are wanted.

    boost: factor on region logits above zero, as in BoostLU (there 5); the image's logit is the mean after it.
    standardise: features less their mean over their standard deviation, which training on frozen features fills in.
    normalise: then all features of an image are divided by one number, so that their mean has the length sqrt(D).
    """

    gives = frozenset({"region_logits"})

    feature_mean: Tensor
    feature_scale: Tensor

    def __init__(
        self, width: int, classes: int, boost: float = 1.0, standardise: bool = False, normalise: bool = False
    ) -> None:
        super().__init__()
        if not boost > 0:
            raise ValueError(f"boost is a positive factor (1: none, BoostLU: 5), got {boost!r}")
        self.classifier = nn.Linear(width, classes)
        self.boost, self.standardise, self.normalise = boost, standardise, normalise
        if standardise:
            self.register_buffer("feature_mean", torch.zeros(width))
            self.register_buffer("feature_scale", torch.ones(width))
        # without a boost the logits are the same for the mean of all tokens as the only token
        self.mean_is_enough = boost == 1

    def fit_features(self, mean: Tensor, deviation: Tensor) -> None:
        """Take the mean [D] and standard deviation [D] of the training features; a constant feature counts nothing."""
        if self.standardise:
            self.feature_mean.copy_(mean)
            self.feature_scale.copy_(torch.where(deviation > 1e-6, 1 / deviation.clamp(min=1e-6), 0.0))

    def prepared(self, features: Tensor) -> Tensor:
        """Features [B, P, D] as the classifier sees them: standardised and normalised, as far as wanted."""
        if self.standardise:
            features = (features - self.feature_mean) * self.feature_scale
        if self.normalise:
            length = torch.linalg.vector_norm(features.mean(1, keepdim=True), dim=2, keepdim=True)  # [B, 1, 1]
            features = features * (features.shape[2] ** 0.5 / length.clamp(min=1e-6))
        return features

    def forward(self, tokens: Tokens | Tensor, maps: bool = True) -> Output:
        tokens = Tokens.of(tokens)
        features = self.prepared(tokens.features)  # [B, P, D]
        if self.boost == 1:
            logits = self.classifier(features.mean(1))  # [B, K]
            region_logits = self.classifier(features).transpose(1, 2) if maps else None  # [B, K, P]
            return Output(logits, region_logits=region_logits, boxes=tokens.boxes)
        activation = self.classifier(features).transpose(1, 2)  # [B, K, P]
        boosted = torch.where(activation > 0, self.boost * activation, activation)
        return Output(boosted.mean(2), region_logits=boosted if maps else None, boxes=tokens.boxes)
