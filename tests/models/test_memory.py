"""Batches run in pieces where memory is short."""

import torch

from plures.models.batch_halving import BatchHalver, joined
from plures.models.outputs import Output, grid_boxes


def test_pieces_join_to_the_output_of_the_whole_batch():
    whole = Output(
        torch.randn(5, 3),
        attention=torch.rand(5, 3, 4),
        region_logits=torch.randn(5, 3, 4),
        boxes=grid_boxes(2, 2),
        embeddings=torch.randn(5, 3, 2),
    )
    parts = ("logits", "attention", "region_logits", "embeddings")
    calls = []

    def run(rows):
        if len(rows) > 2:
            raise MemoryError
        calls.append(len(rows))
        return Output(**{name: getattr(whole, name)[rows] for name in parts}, boxes=whole.boxes)

    found = BatchHalver(run, joined)(torch.arange(5))
    assert calls == [2, 2, 1]
    for name in (*parts, "boxes"):
        assert torch.equal(getattr(found, name), getattr(whole, name))
