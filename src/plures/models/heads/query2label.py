"""Query2Label: a learned query for each label asks the encoded feature map.

Liu et al. 2021, "Query2Label: A simple transformer way to multi-label classification", arXiv 2107.10834.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from plures.models.heads import heads
from plures.models.heads.transformer import Attention, FeedForward, sine_code
from plures.models.outputs import Output, Tokens


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each added and then normalised. The position goes to query and key only."""

    def __init__(self, width: int, attention_heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(width, attention_heads, dropout)
        self.feedforward = FeedForward(width, feedforward, dropout)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """x [B, P, D], position [P, D] -> [B, P, D]."""
        placed = x + position
        x = self.norm1(x + self.dropout(self.self_attn(placed, placed, x)[0]))
        encoded: Tensor = self.norm2(x + self.dropout(self.feedforward(x)))
        return encoded


class DecoderLayer(nn.Module):
    """Self-attention among the queries (optional), cross-attention to the map, feed-forward."""

    def __init__(
        self, width: int, attention_heads: int, feedforward: int, dropout: float, self_attention: bool
    ) -> None:
        super().__init__()
        if self_attention:
            self.self_attn = Attention(width, attention_heads, dropout)
            self.norm1 = nn.LayerNorm(width)
        self.self_attention = self_attention
        self.multihead_attn = Attention(width, attention_heads, dropout)
        self.feedforward = FeedForward(width, feedforward, dropout)
        self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, queries: Tensor, placed: Tensor, memory: Tensor, maps: bool
    ) -> tuple[Tensor, Tensor | None]:
        """x [B or 1, K, D], queries [K, D], placed (memory + position) and memory [B, P, D] -> [B, K, D], attention."""
        if self.self_attention:
            asked = x + queries
            x = self.norm1(x + self.dropout(self.self_attn(asked, asked, x)[0]))
        found, attention = self.multihead_attn(x + queries, placed, memory, maps)
        x = self.norm2(x + self.dropout(found))
        return self.norm3(x + self.dropout(self.feedforward(x))), attention


class GroupLinear(nn.Module):
    """One linear score a label: [B, K, D] -> [B, K]."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(classes, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(classes).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bkd,kd->bk", x, self.weight) + self.bias


@heads.register("query2label", title="Query2Label transformer decoder", source="Liu et al. 2021, arXiv 2107.10834")
class Query2Label(nn.Module):
    """Tokens [B, P, D] -> logits [B, K], embeddings [B, K, d] and, if maps are wanted, attention [B, K, P].

    hidden: d; None works on the tokens as they are (d = D), a number puts a linear layer before. attention_heads,
    encoder_layers, decoder_layers, feedforward (inner width, None: 4 d), dropout: of the transformer.
    self_attention: which decoder layers let the queries see each other: "none", "later" (all but the first), "all".
    position: "sine" computes the code from the boxes, for any grid and for patches of several scales; "fixed" is a
    stored code for `positions` regions (released weights whose code differs); "none".
    The attention is that of the last decoder layer, averaged over heads.
    """

    gives = frozenset({"attention", "embeddings"})

    def __init__(
        self,
        width: int,
        classes: int,
        hidden: int | None = None,
        attention_heads: int = 4,
        encoder_layers: int = 1,
        decoder_layers: int = 2,
        feedforward: int | None = None,
        dropout: float = 0.1,
        self_attention: Literal["none", "later", "all"] = "none",
        position: Literal["sine", "fixed", "none"] = "sine",
        positions: int | None = None,
    ) -> None:
        super().__init__()
        self._check(decoder_layers, self_attention, position, positions)
        d = hidden or width
        shape = (d, attention_heads, feedforward or 4 * d, dropout)
        self.input_proj = nn.Linear(width, d) if hidden else nn.Identity()
        self.encoder = nn.ModuleList(EncoderLayer(*shape) for _ in range(encoder_layers))
        among = {"none": decoder_layers, "later": 1, "all": 0}[self_attention]  # the first layer whose queries talk
        self.decoder = nn.ModuleList(DecoderLayer(*shape, self_attention=i >= among) for i in range(decoder_layers))
        self.norm = nn.LayerNorm(d)
        self.queries = nn.Parameter(torch.randn(classes, d))
        self.classifier = GroupLinear(classes, d)
        self.position = position
        self.position_code: Tensor
        if position == "fixed":
            self.register_buffer("position_code", torch.zeros(positions or 0, d))
        elif position == "sine":
            sine_code(torch.zeros(1, 4), d)  # raises for an odd width
        for layer in (*self.encoder.modules(), *self.decoder.modules()):
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)

    @staticmethod
    def _check(decoder_layers: int, self_attention: str, position: str, positions: int | None) -> None:
        if decoder_layers < 1:
            raise ValueError(f"decoder_layers is 1 or more, got {decoder_layers}")
        if self_attention not in ("none", "later", "all"):
            raise ValueError(f"self_attention is none, later or all, got {self_attention}")
        if position not in ("sine", "fixed", "none"):
            raise ValueError(f"position is sine, fixed or none, got {position}")
        if (position == "fixed") != (positions is not None):
            raise ValueError("position=fixed requires the number of its positions, and only it does")

    def forward(self, tokens: Tokens | Tensor, maps: bool = True) -> Output:
        tokens = Tokens.of(tokens)
        memory = self.input_proj(tokens.features)  # [B, P, d]
        position = self._position(tokens, memory)
        for layer in self.encoder:
            memory = layer(memory, position)
        placed = memory + position
        x = torch.zeros_like(self.queries)[None]  # [1, K, d]: the same for all images up to the first cross-attention
        attention = None
        for number, layer in enumerate(self.decoder, start=1):
            x, attention = layer(x, self.queries, placed, memory, maps and number == len(self.decoder))
        embeddings = self.norm(x)  # [B, K, d]
        return Output(self.classifier(embeddings), attention, embeddings=embeddings, boxes=tokens.boxes)

    def _position(self, tokens: Tokens, memory: Tensor) -> Tensor:
        """[P, d]."""
        if self.position == "none":
            return memory.new_zeros(())
        if self.position == "sine":
            return sine_code(tokens.boxes, memory.shape[2]).to(memory.dtype)
        if len(self.position_code) != memory.shape[1]:
            raise ValueError(
                f"these weights hold a fixed position code for {len(self.position_code)} regions, the image has"
                f" {memory.shape[1]}; use the image size they were trained with"
            )
        return self.position_code.to(memory.dtype)
