"""One Experiment value, three spellings."""

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from plures.config import Component, Experiment, recipe_settings
from plures.data.dataset import formats
from plures.errors import PluresError
from plures.models.backbones import backbones
from plures.recipes import load_recipe, recipe_names

RICH = Experiment(
    data={"name": "voc:some dir/VOC2012", "variant": "query2label"},
    supervision={"name": "single_positive", "seed": 7},
    backbone={"name": "timm", "model": "resnet18", "pretrained": False, "model_options": {"pad_type": "same"}},
    head="linear",
    loss={"name": "role", "expected_positives": 1.5},
    stages="probe",
    optimizer={"name": "lamb", "betas": [0.9, 0.999]},
    lr=1e-5,
    ema=0.9997,
    clip=None,
    schedule={"name": "step", "every": 3},
)


def test_yaml_round_trip(tmp_path):
    RICH.save(tmp_path / "e.yaml")
    assert Experiment.load(tmp_path / "e.yaml") == RICH


def test_command_line_round_trip():
    assert Experiment().change(RICH.to_settings()) == RICH
    assert Experiment().to_settings() == []


def test_python_round_trip():
    assert Experiment(**RICH.to_dict()) == RICH


def test_the_three_spellings_agree(tmp_path):
    (tmp_path / "e.yaml").write_text("loss: {name: epr, expected_positives: 2.5}\nlr: 0.001\nepochs: 3\n")
    python = Experiment(loss={"name": "epr", "expected_positives": 2.5}, lr=0.001, epochs=3)
    line = Experiment().change(["loss=epr", "loss.expected_positives=2.5", "lr=1e-3", "epochs=3"])
    assert Experiment.load(tmp_path / "e.yaml") == python == line
    assert python.loss == Component(name="epr", options={"expected_positives": 2.5})


def test_naming_a_part_anew_drops_its_old_options():
    assert RICH.change(["loss=an"]).loss.options == {}


@pytest.mark.parametrize("text", ["|", " ", "#", "-", ",", "\\t", "1", "null", "[a", "{", "'x'", "yes", "1e3", ": "])
def test_an_option_that_is_text_takes_the_characters_as_they_are(text):
    assert Experiment().change(["data=tags.csv", f"data.separator={text}"]).data.options == {"separator": text}
    assert Experiment().change(["data=tags.csv", f"data.images={text}"]).data.options == {"images": text}


def test_what_text_is_follows_from_the_declared_type():
    changed = Experiment().change(["backbone=timm", "backbone.model=1e3", "backbone.weights=null", "data=2024"])
    assert changed.backbone.options == {"model": "1e3", "weights": None}
    assert changed.data.name == "2024"
    assert Experiment().change(["loss=role", "loss.expected_positives=2"]).loss.options == {"expected_positives": 2}
    assert Experiment().change(["data=tags.csv", "data.complete=true"]).data.options == {"complete": True}
    with pytest.raises(PluresError, match="separator=1: expected text"):
        formats.make("table", separator=1)


ODD_TEXT = (
    st.sampled_from(["|", " ", "#", "-", "null", "1", "1e3", "{x}", "", "~", "on", "a: b", "\n", "'q'"]) | st.text()
)


@given(
    ODD_TEXT.filter(bool),
    ODD_TEXT,
    ODD_TEXT,
    st.none() | ODD_TEXT,
    st.dictionaries(st.sampled_from("abc"), st.booleans() | st.integers() | ODD_TEXT, min_size=1),
    st.floats(1e-9, 1e9),
)
def test_every_experiment_survives_its_command_line_spelling(name, separator, model, weights, options, lr):
    backbone = {"name": "timm", "model": model, "weights": weights, "model_options": options}
    made = Experiment(data={"name": name, "separator": separator}, backbone=backbone, lr=lr)
    assert Experiment().change(made.to_settings()) == made
    only = Experiment(data=name, start=None if weights in ("", "~", "null") else weights)  # these words mean none
    assert Experiment().change(only.to_settings()) == only


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["los=an"], "no setting 'los'; did you mean 'loss'?"),
        (["schedule=cosin"], "unknown schedule 'cosin'; did you mean 'cosine'?"),
        (["schedule=cosine", "schedule.warmup=2"], "'cosine' has no option 'warmup'; did you mean 'warmup_epochs'?"),
        (["optimizer=adamww"], "unknown optimizer 'adamww'; did you mean 'adamw'"),
        (["optimizer=sgd", "optimizer.momentun=0.9"], "'sgd' has no option 'momentun'; did you mean 'momentum'?"),
        (["optimizer.beta=0.9"], "'adam' has no option 'beta'; did you mean 'betas'?"),
        (["optimizer.lr=0.1"], "optimizer.lr is a setting of its own: write lr=0.1"),
        (["supervision=single"], "unknown supervision 'single'; did you mean 'single_positive'?"),
        (["supervision=fraction", "supervision.share=0.1"], "supervision 'fraction' has no option 'share'"),
        (["supervision=single_positive", "supervision.bias=sise"], "bias='sise': expected uniform, frequency"),
        (["device=cude"], "device 'cude' is unknown; use auto, cpu, cuda, cuda:1 or mps"),
        (["data=table:tags.csv", "data.seperator=,"], "no option 'seperator'; did you mean 'separator'?"),
        (
            ["data=nowhere.csv", "data.seperator=,"],
            "no data format has an option 'seperator'; did you mean 'separator'?",
        ),
        (["backbone.wieghts=a"], "no option 'wieghts'; did you mean 'weights'?"),
        (["head.code_with=8"], "head=auto has no option code_with; name the head"),
        (["loss=rol"], "unknown loss 'rol'; did you mean 'role'?"),
        (["head=codebok"], "unknown head 'codebok'; did you mean 'codebook'?"),
        (["loss=role", "loss.expected_positive=2"], "did you mean 'expected_positives'?"),
        (["lr=fast"], "lr='fast'"),
        (["epochs=0"], "epochs=0"),
        (["stages=linear"], "unknown stage 'linear'"),
        (["lr"], "write key=value"),
        (["lr.decay=3"], "'lr' has no options"),
        (["stages=probe", "augment=flip"], "augment=flip has no effect"),
    ],
)
def test_a_wrong_setting_says_what_was_meant(settings, message):
    with pytest.raises(PluresError) as caught:
        Experiment().change(settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_yaml_cannot_run_code(tmp_path):
    (tmp_path / "e.yaml").write_text("data: !!python/object/apply:os.system ['touch pwned']\n")
    with pytest.raises(PluresError, match="not a YAML file"):
        Experiment.load(tmp_path / "e.yaml")


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words", "a: [", "\x00"])
def test_broken_yaml_is_one_line(tmp_path, text):
    (tmp_path / "e.yaml").write_text(text)
    with pytest.raises(PluresError) as caught:
        Experiment.load(tmp_path / "e.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid(name):
    recipe = load_recipe(name)
    Experiment(**recipe.settings())
    for row in recipe.rows:
        Experiment(**recipe.settings(row))
    assert set(recipe.published) | set(recipe.unverified) | set(recipe.cost) <= set(recipe.rows)
    both = [(row, data) for row, numbers in recipe.unverified.items() for data in numbers]
    assert not [at for at in both if at[1] in recipe.published.get(at[0], {})]
    assert recipe.command.startswith("plures train")


def test_the_rows_of_liu2021_name_backbones_that_exist():
    """Names of backbones and of frozen parts, and their options, are only seen when a backbone is made."""
    recipe = load_recipe("liu2021")
    assert set(recipe.published) == set(recipe.cost) == set(recipe.rows)
    for row, published in recipe.published.items():
        assert published["coco14"] > 84
        part = Experiment(**recipe.settings(row)).backbone
        options = {name: value for name, value in part.options.items() if name != "pretrained"}
        try:
            with torch.device("meta"):
                backbone = backbones.make(part.name, **options)
        except NotImplementedError:  # timm 1.0.20 cannot make a TResNet there
            backbone = backbones.make(part.name, **options)
        assert backbone.image_size == int(row[-3:])
        frozen = {name.split(".")[1] for name, p in backbone.named_parameters() if not p.requires_grad}
        assert frozen == ({"conv1", "layer1"} if row.startswith("r101") else set())


def test_a_recipe_leaves_its_name_in_the_experiment():
    assert Experiment(**recipe_settings("liu2021:cvt_384")).recipe == "liu2021:cvt_384"
    assert Experiment(**recipe_settings("liu2021")).recipe == "liu2021"


def test_recipe_by_row_and_by_file(tmp_path):
    assert recipe_settings("jouanneau2022:wn")["loss"]["name"] == "wn"
    RICH.save(tmp_path / "experiment.yaml")
    assert Experiment(**recipe_settings(str(tmp_path / "experiment.yaml"))) == RICH
    with pytest.raises(PluresError, match="no row 'wm'"):
        recipe_settings("jouanneau2022:wm")
    with pytest.raises(PluresError, match="unknown recipe 'jouaneau2022'; did you mean 'jouanneau2022'"):
        recipe_settings("jouaneau2022")


def test_saved_yaml_is_plain(tmp_path):
    RICH.save(tmp_path / "e.yaml")
    assert "!!" not in (tmp_path / "e.yaml").read_text()
    assert yaml.safe_load((tmp_path / "e.yaml").read_text())["loss"]["name"] == "role"


@pytest.mark.parametrize(
    ("setting", "hint"),
    [
        ("backbone.model_options={pad_type:same}", "YAML requires a blank after the colon: {pad_type: same}"),
        ("backbone.model_options={pad_type}", "expected {pad_type: VALUE}"),
    ],
)
def test_a_mapping_without_a_value_is_refused(setting, hint):
    with pytest.raises(PluresError) as error:
        Experiment(backbone="timm").change([setting])
    assert "timm, model_options" in str(error.value)
    assert hint in str(error.value)
    made = Experiment(backbone="timm").change(["backbone.model_options={pad_type: same}", "backbone.mean=null"])
    assert made.backbone.options["model_options"] == {"pad_type": "same"}


def test_a_run_of_the_first_version_is_still_read(tmp_path):
    (tmp_path / "experiment.yaml").write_text("embedder: {name: small_conv, image_size: 16}\nlr: 0.01\n")
    assert Experiment.load(tmp_path / "experiment.yaml").backbone.options == {"image_size": 16}


@pytest.mark.parametrize(
    ("old", "stages"),
    [
        ("mode: frozen\noptimizer: {name: exact, l2: [1.0, 3.0]}\n", [{"name": "ridge", "l2": [1.0, 3.0]}]),
        ("mode: frozen\noptimizer: adam\n", ["probe"]),
        ("mode: end_to_end\nfrozen_epochs: 25\nfrozen_lr: 0.001\n", ["finetune"]),
        (
            "mode: frozen_then_end_to_end\nfrozen_epochs: 7\nfrozen_lr: 0.01\n",
            [{"name": "probe", "epochs": 7, "lr": 0.01}, "finetune"],
        ),
        ("mode: frozen_then_end_to_end\n", [{"name": "probe", "epochs": 25, "lr": 1e-3}, "finetune"]),
        ("mode: auto\noptimizer: auto\nembedder: small_conv\n", "auto"),
    ],
)
def test_files_of_the_first_version_are_read(tmp_path, old, stages):
    (tmp_path / "e.yaml").write_text(old)
    read = Experiment.load(tmp_path / "e.yaml")
    assert read.to_dict()["stages"] == stages
    assert read.optimizer == Component(name="adam")
    recipe = {"title": "t", "paper": "p", "command": "c", "hours": "h", "experiment": yaml.safe_load(old)}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    assert Experiment(recipe=str(tmp_path / "r.yaml")).stages == read.stages


def test_a_stage_has_its_own_settings_and_the_common_ones():
    line = ["stages=probe,finetune", "stages.probe.epochs=25", "stages.probe.optimizer=sgd",
            "stages.probe.optimizer.momentum=0.8", "stages.finetune.lr=1e-5", "epochs=3", "seed=4"]  # fmt: skip
    e = Experiment().change(line)
    sgd = {"name": "sgd", "momentum": 0.8}
    stages = [{"name": "probe", "epochs": 25, "optimizer": sgd}, {"name": "finetune", "lr": 1e-5}]
    assert e == Experiment(stages=stages, epochs=3, seed=4)
    assert Experiment().change(e.to_settings()) == e
    probe, finetune = (e.of(stage) for stage in e.stages)
    assert (probe.epochs, probe.optimizer, probe.lr, probe.seed) == (
        25,
        Component(name="sgd", options={"momentum": 0.8}),
        1e-3,
        4,
    )
    assert (finetune.epochs, finetune.optimizer.name, finetune.lr, finetune.frozen) == (3, "adam", 1e-5, False)
    assert (probe.frozen, e.frozen, Experiment(stages="ridge").ridge, Experiment(stages="ridge").frozen) == (
        True,
        False,
        True,
        True,
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["stages=prob"], "unknown stage 'prob'; did you mean 'probe'?"),
        (["stages=finetune,probe"], "stages=finetune,probe is no course of training; choose from auto, ridge, probe"),
        (["stages=probe,probe"], "no course of training"),
        (["stages="], "expected names such as probe,finetune or {name: probe, epochs: 25}, got None"),
        (["stages=3"], "stages: expected names such as probe,finetune"),
        (["stages=[{nam: probe}]"], "got {'nam': 'probe'}"),
        (["stages=probe", "stages.probe.epochs=0"], "stages.probe: epochs=0: input should be greater"),
        (["stages=probe", "stages.probe.epoch=3"], "stage 'probe' has no option 'epoch'; did you mean 'epochs'?"),
        (["stages=probe", "stages.probe.optimizer=sdg"], "stages.probe: unknown optimizer 'sdg'; did you mean 'sgd'"),
        (["stages=probe", "stages.probe.l2=[1]"], "stage 'probe' has no option 'l2'"),
        (["stages=probe", "stages.probe=3"], "names no setting of a stage; write stages.probe.epochs=25"),
        (["stages.probe.lr=3"], "the stages are auto; name it too, as in stages=probe"),
        (["stages=ridge", "stages.ridge.l2=[0]"], "stages.ridge.l2 is a list of strengths above 0"),
        (["mode=frozen"], "the setting 'mode' of plures 0.1.0 is written stages=ridge, stages=probe"),
        (["frozen_lr=0.1"], "is written stages.probe.lr=X today"),
        (["optimizer=exact"], "is written stages=ridge today"),
    ],
)  # fmt: skip
def test_a_wrong_stage_says_what_was_meant(settings, message):
    with pytest.raises(PluresError) as caught:
        Experiment().change(settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
