"""One codebook per label attends to the patches; one shared classifier judges what each label gathered.

Jouanneau et al., "A patch-based architecture for multi-label classification from single positive annotations",
blocks 3 to 5, equations 1-3.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from plures.models.backbones.patches import variance_scaling
from plures.models.heads import heads
from plures.models.outputs import Output, Tokens


@heads.register("codebook", title="Label codebooks", source="Jouanneau et al., Eq. 1-3")
class Codebook(nn.Module):
    """Tokens [B, P, D] -> logits [B, K], attention [B, K, P], embeddings [B, K, F].

    attention: softmax over all patches of codebook . patch (Eq. 1: no scaling, no projections).
    embeddings: f(A E) + A E with f a two-layer perceptron (Eq. 2).
    logit: "margin" is Eq. 3, the softmax of the shared classifier over each label's own embedding, of which label l
    takes entry l; as a logit it is S_ll - logsumexp over k != l of S_lk, with S_lk = W_k e_l + b_k. "sigmoid" is S_ll.
    code_width: F; tokens of another width go through a linear layer first. normalise_tokens: a LayerNorm on the tokens
    before the codebooks see them (the paper has none): without it attention is nearly uniform at first and the label
    embeddings nearly coincide.
    """

    gives = frozenset({"attention", "embeddings"})

    def __init__(
        self,
        width: int,
        classes: int,
        code_width: int = 256,
        logit: Literal["margin", "sigmoid"] = "margin",
        normalise_tokens: bool = False,
    ) -> None:
        super().__init__()
        if logit not in ("margin", "sigmoid"):
            raise ValueError(f"logit is margin or sigmoid, got {logit}")
        if logit == "margin" and classes < 2:
            raise ValueError("the margin logit compares classes and requires at least two; use logit=sigmoid")
        self.logit = logit
        self.project = nn.Linear(width, code_width) if width != code_width else nn.Identity()
        self.norm = nn.LayerNorm(code_width) if normalise_tokens else nn.Identity()
        self.codebooks = nn.Parameter(torch.empty(classes, code_width))
        self.mlp = nn.Sequential(nn.Linear(code_width, code_width), nn.GELU(), nn.Linear(code_width, code_width))
        self.classifier = nn.Linear(code_width, classes)
        self.apply(variance_scaling)
        nn.init.normal_(self.codebooks, std=1 / 16)

    def forward(self, tokens: Tokens | Tensor, maps: bool = True) -> Output:
        tokens = Tokens.of(tokens)
        patches = self.norm(self.project(tokens.features))  # [B, P, F]
        attention = (self.codebooks @ patches.transpose(1, 2)).softmax(-1)  # [B, K, P]
        gathered = attention.to(patches.dtype) @ patches  # [B, K, F]
        embeddings = self.mlp(gathered) + gathered
        return Output(self.judge(embeddings), attention, embeddings=embeddings, boxes=tokens.boxes)

    def judge(self, embeddings: Tensor) -> Tensor:
        """Embeddings [B, K, F] -> logits [B, K]."""
        if self.logit == "sigmoid":
            return (embeddings * self.classifier.weight).sum(-1) + self.classifier.bias
        scores = self.classifier(embeddings)  # S [B, K, K]: row l is label l's embedding, column k is class k
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        own = scores.diagonal(dim1=1, dim2=2)  # [B, K]
        same = torch.eye(scores.shape[2], dtype=torch.bool, device=scores.device)
        margin: Tensor = own - scores.masked_fill(same, float("-inf")).logsumexp(-1)
        return margin
