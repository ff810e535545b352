"""The recipes of papers: every row's parts can be made, its data set is the one its number belongs to, broken files."""

import numpy as np
import pytest
from PIL import Image

from plures.cli.app import settings_values
from plures.config import Experiment, recipe_settings
from plures.data.dataset import formats
from plures.data.formats.voc import CLASSES
from plures.errors import PluresError
from plures.losses import losses
from plures.models.heads import heads
from plures.recipes import load_recipe, recipe_names
from plures.training.schedules import schedules
from plures.training.train import train

PAPERS = [name for name in recipe_names() if name not in ("photos", "quick")]
OF_DATA = {
    ("voc", ""): "voc12",
    ("coco", "mlspl"): "coco14",
    ("coco", "query2label"): "coco14",
    ("nuswide", "mlspl"): "nuswide_mlspl",
    ("nuswide", "official"): "nuswide_official",
    ("nuswide", "asl"): "nuswide_asl",
    ("cub", ""): "cub",
}
ROWS = [(name, row) for name in PAPERS for row in load_recipe(name).rows]


def test_the_protocols_are_there():
    wanted = {"cole2021", "cole2021_linear", "cole2021_linearinit", "zhou2022", "kim2022", "kim2023", "chen2024"}
    assert wanted | {"zhang2021", "verelst2022", "jouanneau2022", "liu2021", "photos", "quick"} == set(recipe_names())


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_every_part_of_a_row_can_be_made(name, row):
    e = Experiment(**recipe_settings(f"{name}:{row}"))
    loss = losses.make(e.loss.name, **e.loss.options)
    head = heads.make(e.head.name, {"width": 64, "classes": 8}, **e.head.options)
    schedules.make(e.schedule.name, **e.schedule.options)
    reader, _, path = e.data.name.partition(":")
    formats.make(reader, **e.data.options)
    assert path
    given = {"label_state", "views"} | set(head.gives)
    assert set(loss.needs) <= given


@pytest.mark.parametrize("name", PAPERS)
def test_numbers_stand_at_the_data_they_were_measured_on(name):
    recipe = load_recipe(name)
    for row, numbers in [*recipe.published.items(), *recipe.unverified.items()]:
        data = Experiment(**recipe.settings(row)).data
        reader = data.name.partition(":")[0]
        variant = data.options["variant"] if reader in ("coco", "nuswide") else ""
        assert list(numbers) == [OF_DATA[reader, variant]], row
        assert all(10 < value < 100 for value in numbers.values())


@pytest.mark.parametrize("name", PAPERS)
def test_a_grid_is_made_of_settings(name):
    recipe = load_recipe(name)
    for key, values in recipe.grid.items():
        for value in values:
            Experiment(**{**recipe.settings(), key: value})


def test_rows_differ_in_what_they_say():
    """YAML anchors share pieces; a row that lost its data or loss would equal another one."""
    for name in PAPERS:
        recipe = load_recipe(name)
        rows = [str(Experiment(**recipe.settings(row)).to_dict()) for row in recipe.rows]
        assert len(set(rows)) == len(rows), name


def test_settings_that_the_papers_state():
    def settings(spec):
        return Experiment(**recipe_settings(spec))

    apl = settings("zhou2022:cub_em_apl")
    assert (apl.lr, apl.batch_size, apl.loss.options["alpha"], apl.loss.options["beta"]) == (1e-4, 8, 0.01, 0.4)
    voc = settings("kim2022:ll_cp_linearinit")
    assert (voc.lr, voc.optimizer.name, voc.stage_names, voc.loss.options) == (
        5e-3,
        "sgd",
        "probe,finetune",
        {"delta_rel": 0.1},
    )
    assert settings("kim2023:coco_ll_r").head.options == {"boost": 5}
    role = settings("cole2021_linearinit:cub_role")
    assert (
        role.of(role.stages[0]).lr,
        role.of(role.stages[0]).batch_size,
        role.loss.options["expected_positives"],
    ) == (1e-3, 8, 31.4)
    assert settings("cole2021_linear:coco_an").stage_names == "probe"
    assert load_recipe("cole2021").grid == {"batch_size": [8, 16], "lr": [1e-2, 1e-3, 1e-4, 1e-5]}


SMALL = ("backbone=small_conv", "image_size=16", "epochs=1", "device=cpu", "workers=0", "seed=0")


@pytest.mark.parametrize(
    ("spec", "loss"),
    [
        ("zhou2022:nus_em_apl", "em_apl"),
        ("cole2021_linearinit:cub_role", "role"),
        ("kim2022:ll_r", "ll_r"),
        ("kim2023:ll_ct", "ll_ct"),
    ],
)
def test_rows_train_on_a_tiny_copy_of_their_data(tmp_path, monkeypatch, spec, loss):
    """All of `plures train DATA --recipe NAME:ROW`: options of the recipe's reader stay when DATA is named."""
    monkeypatch.setenv("PLURES_CACHE", str(tmp_path / "cache"))
    reader = {"zhou2022:nus_em_apl": tiny_nuswide, "cole2021_linearinit:cub_role": tiny_cub}.get(spec, tiny_voc)
    data = reader(tmp_path / "data")
    values = settings_values(data, spec, [*SMALL])
    assert values["data"]["name"] == data
    run = train(Experiment(**values), tmp_path / "run")
    assert run.experiment.loss.name == loss
    assert run.log[-1]["loss"] > 0
    assert (run.path / "report.json").is_file()


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(len(path.name)).integers(0, 255, (12, 12, 3), np.uint8)).save(path)


def flags(count, classes):
    """bool [N, K] with a present class in every row."""
    cells = np.random.default_rng(0).random((count, classes)) < 0.4
    cells[np.arange(count), np.arange(count) % classes] = True
    return cells.astype(int)


def tiny_nuswide(root):
    (root / "Groundtruth" / "TrainTestLabels").mkdir(parents=True)
    (root / "ImageList").mkdir()
    for subset, count in (("Train", 20), ("Test", 8)):
        names = [f"a\\{subset}{i}.jpg" for i in range(count)]
        (root / "ImageList" / f"{subset}Imagelist.txt").write_text("\n".join(names))
        for name in names:
            picture(root / "Flickr" / name.replace("\\", "/"))
        for concept, column in zip(("sky", "dog", "sun"), flags(count, 3).T, strict=True):
            file = root / "Groundtruth" / "TrainTestLabels" / f"Labels_{concept}_{subset}.txt"
            file.write_text("\n".join(map(str, column)))
    return f"nuswide:{root}"


def tiny_cub(root):
    (root / "CUB_200_2011" / "attributes").mkdir(parents=True)
    inner, cells = root / "CUB_200_2011", flags(28, 4)
    (root / "attributes.txt").write_text("".join(f"{k} has::{k}\n" for k in range(1, 5)))
    (inner / "images.txt").write_text("".join(f"{i} a/{i}.jpg\n" for i in range(1, 29)))
    (inner / "train_test_split.txt").write_text("".join(f"{i} {int(i <= 20)}\n" for i in range(1, 29)))
    lines = [f"{i + 1} {k + 1} {cells[i, k]} 3 1.0\n" for i in range(28) for k in range(4)]
    (inner / "attributes" / "image_attribute_labels.txt").write_text("".join(lines))
    for i in range(1, 29):
        picture(inner / "images" / "a" / f"{i}.jpg")
    return f"cub:{root}"


def tiny_voc(root):
    lists, cells = root / "VOC2012" / "ImageSets" / "Main", flags(28, 20)
    lists.mkdir(parents=True)
    for subset, rows in (("train", range(20)), ("val", range(20, 28))):
        for k, name in enumerate(CLASSES):
            text = "".join(f"{i:06} {1 if cells[i, k] else -1}\n" for i in rows)
            (lists / f"{name}_{subset}.txt").write_text(text)
    notes = root / "VOC2012" / "Annotations"
    notes.mkdir()
    for i in range(28):
        picture(root / "VOC2012" / "JPEGImages" / f"{i:06}.jpg")
        (notes / f"{i:06}.xml").write_text("<a><size><width>12</width><height>12</height></size></a>")
    return f"voc:{root / 'VOC2012'}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("experiment: {}\nrow: {}\n", "no entry 'row' in recipes; did you mean 'rows'"),
        ("experiment: {}\ntitle: t\n", "lacks paper, command, hours"),
    ],
)
def test_a_broken_recipe_file_is_one_line(tmp_path, text, message):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(PluresError, match=message):
        recipe_settings(str(tmp_path / "own.yaml"))
