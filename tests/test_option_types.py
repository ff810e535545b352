"""Every option of every component, and every setting, says in one line what it takes, before there is a run folder."""

import inspect
from typing import Any

import pytest
from timm.optim import get_optimizer_class

import plures
from plures.config import Experiment
from plures.data.dataset import formats
from plures.data.masking import MODES
from plures.errors import PluresError
from plures.losses import losses
from plures.models.backbones import backbones
from plures.models.heads import heads
from plures.models.priors import priors
from plures.registry import fits, kinds_of
from plures.training.schedules import schedules

REGISTRIES = {"loss": losses, "backbone": backbones, "head": heads, "prior": priors, "schedule": schedules,
              "data": formats}  # fmt: skip
WRONG: tuple[Any, ...] = ("wrong", 7, {"no": "such value"}, float("nan"))
OPTIONS = [
    *((field, e.name, option, kind) for field, registry in REGISTRIES.items() for e in registry
      for option, kind in e.kinds.items() if option not in registry.given),
    *(("supervision", name, option, kind) for name, make in MODES.items()
      for option, kind in kinds_of(make).items() if option != "dataset"),
    *(("optimizer", name, option, kind) for name in ("adam", "adamw", "sgd")
      for option, kind in kinds_of(get_optimizer_class(name, bind_defaults=False)).items()
      if option not in ("params", "lr", "weight_decay", "return")),
]  # fmt: skip


@pytest.mark.parametrize("registry", REGISTRIES.values(), ids=REGISTRIES)
def test_every_option_declares_a_type_that_its_default_has(registry):
    for entry in registry:
        for option, parameter in entry.options.items():
            if option not in registry.given:
                assert option in entry.kinds, f"{entry.name}.{option}"
                assert parameter.default is inspect.Parameter.empty or fits(entry.kinds[option], parameter.default)


@pytest.mark.parametrize(("field", "name", "option", "kind"), OPTIONS, ids=[".".join(o[:3]) for o in OPTIONS])
def test_an_option_of_another_type_is_refused(field, name, option, kind):
    for wrong in [value for value in WRONG if not fits(kind, value)]:
        with pytest.raises(PluresError, match=f"{option}=.*: expected") as raised:
            Experiment(**{field: {"name": name, option: wrong}})
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("field", Experiment.model_fields)
@pytest.mark.parametrize("wrong", ["wrong:", -1, float("nan"), {"no": 1}, ["x", "x"]], ids=str)
def test_a_setting_of_another_kind_is_refused(field, wrong):
    takes = {"recipe": (), "start": ("wrong:",), "teacher": ("wrong:",), "classes": ("wrong:",), "data": ("wrong:",)}
    if wrong in takes.get(field, ()):
        return
    with pytest.raises(PluresError, match=field) as raised:
        Experiment(**{field: wrong})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": {"name": "gr", "slope": "steep"}},
        {"loss": {"name": "wn", "theta": -1.0}},
        {"supervision": {"name": "fraction", "fraction": "half"}},
        {"batch_size": -1},
    ],
)
def test_a_mistake_leaves_no_run_folder(settings, tmp_path):
    with pytest.raises(PluresError):
        plures.train("scenes", out=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        (float, [1, 0.5], ["1", True, None, float("nan")]),
        (int, [1], [1.0, "1", True]),
        (tuple[float, float], [[1, 2], (0.5, 1)], [[1], [1, 2, 3], "12", 1]),
        (tuple[float, ...], [[], [1, 2.5]], [["a"], "a"]),
        (dict[str, Any] | None, [None, {}], ["a", 1]),
    ],
)
def test_fits(kind, right, wrong):
    assert all(fits(kind, value) for value in right)
    assert not any(fits(kind, value) for value in wrong)
