"""Pictures to try plures on where no photos are at hand: built-in scenes, sorted into folders by one thing they show.

python examples/make_photos.py photos 1200
"""

import csv
import sys
from pathlib import Path

from PIL import Image

import plures


def main(folder, count):
    scenes = plures.read("scenes", train=count, val=0, test=0)
    truth = [[name for name, there in zip(scenes.classes, row, strict=True) if there] for row in scenes.labels.present]
    with (Path(folder).parent / "truth.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "tags"])
        for number, (pixels, names) in enumerate(zip(scenes.images, truth, strict=True)):
            path = Path(folder) / names[number % len(names)] / f"{number:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
            rows.writerow([path.relative_to(Path(folder).parent), ";".join(names)])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
