"""No network: features that were computed elsewhere (CLIP, DINO, ...) and come with the data."""

from __future__ import annotations

from torch import Tensor, nn

from plures.models.backbones import backbones
from plures.models.outputs import Tokens, grid_boxes


@backbones.register("features", title="Features that come with the data (features:FILE); a head is trained on them")
class Features(nn.Module):
    """Features [B, D] -> the one token [B, 1, D] of each image. D = `width`, which training takes from the data."""

    image_size = 1
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __init__(self, width: int) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width is the number of features per image, 1 or more, got {width}")
        self.width = width

    def forward(self, features: Tensor) -> Tokens:
        if features.ndim != 2 or features.shape[1] != self.width:
            raise ValueError(f"features [B, {self.width}], got {list(features.shape)}")
        return Tokens(features[:, None], grid_boxes(1, 1, features.device))
