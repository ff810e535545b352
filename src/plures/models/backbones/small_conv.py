"""A small convolutional network for small images (the built-in scenes), quick to train on a CPU."""

from __future__ import annotations

from torch import Tensor, nn

from plures.models.backbones import backbones
from plures.models.outputs import Tokens, grid_boxes


@backbones.register("small_conv", title="Small convolutional network")
class SmallConv(nn.Module):
    """Images [B, 3, H, W] -> one token [D] for each cell of a grid of H / 8 x W / 8.

    Three stages of two convolutions, each with batch norm and GELU; the first of a stage halves the grid. D = `width`.
    """

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)

    def __init__(self, image_size: int = 64, width: int = 128) -> None:
        super().__init__()
        if image_size < 8 or width < 4:
            raise ValueError(f"image_size is 8 or more and width 4 or more, got {image_size} and {width}")
        self.image_size, self.width = image_size, width
        widths = (3, width // 4, width // 4, width // 2, width // 2, width, width)
        strides = (2, 1, 2, 1, 2, 1)
        self.stages = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(i, o, 3, s, 1, bias=False), nn.BatchNorm2d(o), nn.GELU())
                for i, o, s in zip(widths, widths[1:], strides, strict=False)
            )
        )

    def forward(self, images: Tensor) -> Tokens:
        features = self.stages(images)  # [B, D, rows, columns]
        rows, columns = features.shape[2:]
        return Tokens(features.flatten(2).transpose(1, 2), grid_boxes(rows, columns, features.device))
