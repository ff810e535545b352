"""What the guides and examples speak of, tiny: photos/, tags.csv, runs/first, ... and training cut to one epoch.

Pretrained weights are replaced by random ones of a small network, since tests have no network. A loss that a guide adds
leaves the registry with the test.
"""

import csv
import shutil
from pathlib import Path

import timm
from PIL import Image

import plures
from plures.cli import app as _commands  # noqa: F401  (imported once, before anything is replaced)
from plures.losses import losses
from plures.models.backbones import timm_map
from plures.training import train as training

TINY = {"epochs": 1, "image_size": 64, "batch_size": 8, "workers": 0}
_create, _train = timm_map.create, training.train


def _small(name, pretrained, image_size, options):
    model = timm.create_model("test_resnet", num_classes=0)
    model.bn1.running_mean += 0.01  # as trained weights have: batch norms that saw no batch would be refused
    return model


def _short(experiment, out, *, dataset=None, **others):
    changed = {k: v for k, v in TINY.items() if k != "image_size" or experiment.backbone.name != "patches"}
    return _train(experiment.model_copy(update=changed), out, dataset=dataset, **others)


def shrink(monkeypatch):
    """Every training is one epoch of small pictures, every backbone a small one; the registry of losses is a copy."""
    monkeypatch.setattr(losses, "_entries", {entry.name: entry for entry in losses})
    monkeypatch.setattr(timm_map, "create", _small)
    monkeypatch.setattr(training, "train", _short)


def build(folder: Path) -> None:
    """Write the world into `folder`: 40 scenes with one tag each (half of the split val: with all), and runs."""
    scenes = plures.read("scenes", train=20, val=10, test=10, size=32)
    names = [[c for c, there in zip(scenes.classes, row, strict=True) if there] for row in scenes.labels.present]
    (folder / "photos").mkdir(parents=True)
    one = [words[n % len(words)] for n, words in enumerate(names)]
    images = [f"photos/{tag}/{n:02}.png" for n, tag in enumerate(one)]
    for image, pixels in zip(images, scenes.images, strict=True):
        (folder / image).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / image)
    absent = [";".join(c for c in scenes.classes if c not in words) for words in names]
    whole = list(zip(images, map(";".join, names), absent, scenes.splits, strict=True))
    reviewed = [row[3] == "val" and n % 2 == 0 for n, row in enumerate(whole)]
    given = [r if all_ else (r[0], tag, "", r[3]) for r, tag, all_ in zip(whole, one, reviewed, strict=True)]
    _table(folder / "tags.csv", ["image", "tags", "absent", "split"], given)
    _table(folder / "reviewed.csv", ["image", "tags", "absent"], [row[:3] for row in whole])
    shutil.copytree(folder / "photos", folder / "new_photos")
    shutil.copytree(folder / "photos/" / one[0], folder / "runs/demo/scenes")
    for name in ("photo.jpg", "another.jpg", "cat.jpg", "dog.jpg"):
        Image.fromarray(scenes.images[0]).save(folder / name)
    (folder / "photos.txt").write_text("\n".join(images[:6]) + "\n")
    _merging(folder, images)
    run = plures.train(plures.Experiment(data="tags.csv", loss="gr"), folder / "runs/first")
    for name in ("an", "gr"):
        shutil.copytree(run.path, folder / "runs" / name)
    cells = [(image, tag) for image in images[:5] for tag in scenes.classes[:2]]
    _table(folder / "review.csv", ["image", "tag"], cells)


def _merging(folder: Path, images: list[str]) -> None:
    """Two sources that annotate different animals, as docs/merging.md tells of."""
    _table(folder / "a.csv", ["image", "tags"], [(images[0], "dog"), (images[1], "cat"), (images[2], "")])
    _table(folder / "b.csv", ["image", "tags"], [(images[1], "sofa"), (images[2], "canine"), (images[3], "dog;sofa")])
    (folder / "synonyms.yaml").write_text("dog: [canine, hound]\n")
    (folder / "parents.yaml").write_text("dog: animal\ncat: animal\n")
    (folder / "classes.yaml").write_text("classes:\n  odd: {}\n  one: {parents: odd}\nexclusive: [[two, three]]\n")
    (folder / "spec.yaml").write_text(
        "sources:\n  a: {data: a.csv, scope: complete}\n"
        "  b: {data: b.csv, scope: {positive: [dog, sofa], complete: [cat]}, rename: {canine: dog}}\n"
    )


def _table(path: Path, head, rows) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
