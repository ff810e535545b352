"""ML-Decoder: fixed group queries ask the feature map, each group answers for a share of the labels.

Ridnik et al. 2021, "ML-Decoder: Scalable and versatile classification head", arXiv 2111.12933.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plures.models.heads import heads
from plures.models.heads.transformer import Attention, FeedForward
from plures.models.outputs import Output, Tokens


@heads.register("ml_decoder", title="ML-Decoder with group queries", source="Ridnik et al. 2021, arXiv 2111.12933")
class MLDecoder(nn.Module):
    """Tokens [B, P, D] -> logits [B, K] and, if maps are wanted, attention [B, K, P]: that of the label's group.

    groups: how many queries, at most K. With one query per label also embeddings [B, K, hidden].
    hidden, attention_heads, feedforward, dropout: of the single decoder layer. The queries are random and not trained.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        groups: int = 100,
        hidden: int = 768,
        attention_heads: int = 8,
        feedforward: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if groups < 1:
            raise ValueError(f"groups is 1 or more, got {groups}")
        groups = min(groups, classes)
        self.classes, self.share = classes, -(-classes // groups)  # share: labels a group answers for
        self.gives = frozenset({"attention"} | ({"embeddings"} if self.share == 1 else set()))
        self.input_proj = nn.Linear(width, hidden)
        self.register_buffer("queries", torch.randn(groups, hidden))
        self.queries: torch.Tensor
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(hidden) for _ in range(3))
        self.multihead_attn = Attention(hidden, attention_heads, dropout)
        self.feedforward = FeedForward(hidden, feedforward, dropout)
        self.dropout = nn.Dropout(dropout)
        self.weight = nn.Parameter(torch.empty(groups, hidden, self.share))
        self.bias = nn.Parameter(torch.zeros(classes))
        nn.init.xavier_normal_(self.weight)

    def forward(self, tokens: Tokens | Tensor, maps: bool = True) -> Output:
        tokens = Tokens.of(tokens)
        memory = self.input_proj(tokens.features).relu_()  # [B, P, hidden]
        queries = self.queries[None]  # [1, groups, hidden], the same for all images unless dropout acts on them
        if self.training and self.dropout.p:
            queries = queries.expand(len(memory), -1, -1)
        x = self.norm1(queries + self.dropout(queries))
        found, attention = self.multihead_attn(x, memory, memory, maps)
        x = self.norm2(x + self.dropout(found))
        x = self.norm3(x + self.dropout(self.feedforward(x)))  # [B, groups, hidden]
        logits = torch.einsum("bgd,gds->bgs", x, self.weight).flatten(1)[:, : self.classes] + self.bias  # [B, K]
        if attention is not None:
            attention = attention.repeat_interleave(self.share, dim=1)[:, : self.classes]  # [B, K, P]
        return Output(logits, attention, embeddings=x if self.share == 1 else None, boxes=tokens.boxes)
