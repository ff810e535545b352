"""A backbone, a head and a data format of your own, each named by its import: module:attribute.

python examples/own_components.py photos runs/own_components
"""

import sys
from pathlib import Path

import torch
from torch import nn

import plures


class Stripes(nn.Module):  # a backbone: normalised images [B, 3, H, W] -> a feature map [B, D, h, w]
    width, mean, std = 8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

    def __init__(self, image_size=32):
        super().__init__()
        self.image_size, self.conv = image_size, nn.Conv2d(3, self.width, 8, stride=8)

    def forward(self, images):
        return self.conv(images).relu()


class Brightest(nn.Module):  # a head: Tokens [B, P, D] -> Output with logits [B, K], here of the strongest region
    def __init__(self, width, classes):
        super().__init__()
        self.classifier = nn.Linear(width, classes)

    def forward(self, tokens, maps=True):
        return plures.Output(self.classifier(tokens.features).amax(1), boxes=tokens.boxes)


class NamedFiles:  # a format: photos whose file names begin with their tag, as in cat_07.png
    def recognises(self, path):
        return False  # it must be named

    def read(self, path):
        images = sorted(str(file) for file in Path(path).rglob("*_*.png"))
        tags = [Path(image).name.split("_")[0] for image in images]
        classes = tuple(sorted(set(tags)))
        present = torch.tensor([[tag == name for name in classes] for tag in tags])
        labels = plures.Labels(plures.labels.from_positives(present).numpy())
        return plures.Dataset(images, labels, classes), []


if __name__ == "__main__":
    photos, out = sys.argv[1:]
    me = "own_components"
    settings = {"backbone": f"{me}:Stripes", "head": f"{me}:Brightest", "data": f"{me}:NamedFiles:{photos}"}
    run = plures.train(plures.Experiment(**settings, epochs=2), out)
    print(plures.load(run.path).classes)
