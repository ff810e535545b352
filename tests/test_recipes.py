"""The recipes of papers: every row's parts can be made, its data set is the one its number belongs to, broken files."""

import pytest

from plures.data.dataset import formats
from plures.errors import PluresError
from plures.experiment import Experiment
from plures.losses import losses
from plures.models.parts import heads
from plures.recipes import load_recipe, recipe_names, recipe_settings
from plures.training.schedules import schedules

PAPERS = [name for name in recipe_names() if name != "photos"]
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
    assert wanted | {"zhang2021", "verelst2022", "jouanneau2022", "liu2021", "photos"} == set(recipe_names())


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
    assert (voc.lr, voc.optimizer.name, voc.mode, voc.loss.options) == (
        5e-3,
        "sgd",
        "frozen_then_end_to_end",
        {"delta_rel": 0.1},
    )
    assert settings("kim2023:coco_ll_r").head.options == {"boost": 5}
    role = settings("cole2021_linearinit:cub_role")
    assert (role.frozen_lr, role.batch_size, role.loss.options["expected_positives"]) == (1e-3, 8, 31.4)
    assert settings("cole2021_linear:coco_an").mode == "frozen"
    assert load_recipe("cole2021").grid == {"batch_size": [8, 16], "lr": [1e-2, 1e-3, 1e-4, 1e-5]}


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
