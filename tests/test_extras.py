"""Optional packages: without one, what needs it says so in one line, and everything else works."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
EXPORT = ("export", "RUN", "--to")
TRAIN = ("train", "scenes", "data.train=8", "data.val=2", "data.test=2", "data.size=32", "backbone=small_conv",
         "epochs=1", "--out", "run")  # fmt: skip
NEEDED = {  # by extra: which command needs which packages, as they are imported
    "web": {
        ("serve", "RUN"): ("fastapi", "uvicorn", "python_multipart", "prometheus_client"),
        ("review", "tags.csv"): ("fastapi", "uvicorn"),
    },
    "export": {
        (*EXPORT, "onnx", "--out", "m.onnx"): ("onnx", "onnxscript", "onnxruntime"),
        (*EXPORT, "openvino", "--out", "m.xml"): ("onnx", "onnxscript", "openvino"),
        (*EXPORT, "openvino", "--out", "m.xml", "--int8", "static"): ("onnxruntime",),
    },
    "ray": {("predict", "RUN", "photos", "--out", "parts", "--engine", "ray"): ("ray",)},
    "search": {("sweep", "scenes", "--out", "sweep", "--grid", "lr=1e-4..1e-3", "--search", "2"): ("optuna",)},
    "track": {(*TRAIN, "log=tensorboard"): ("tensorboard",)},
    "wandb": {(*TRAIN, "log=wandb"): ("wandb",)},
    "mlflow": {(*TRAIN, "log=mlflow"): ("mlflow",)},
}  # fmt: skip
CASES = [
    (extra, package, words)
    for extra, commands in NEEDED.items()
    for words, packages in commands.items()
    for package in packages
]


@pytest.mark.parametrize(
    ("extra", "package", "words"), CASES, ids=lambda value: value[0] if isinstance(value, tuple) else value
)
def test_a_missing_package_is_one_line(plures, tmp_path, monkeypatch, extra, package, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    code, _, err = plures(*words)
    assert code == 2, err
    assert f'pip install "plures[{extra}]"' in err
    assert package.split("_")[-1] in err
    assert err.count("\n") == 1


def test_every_package_of_every_extra_is_among_them():
    def imported(line):
        return re.match(r"[\w-]+", line)[0].replace("-", "_")

    extras = PROJECT["optional-dependencies"]
    for extra, commands in NEEDED.items():
        assert {imported(line) for line in extras[extra]} == {name for names in commands.values() for name in names}
    assert extras["all"] == [f"plures[{','.join([*NEEDED, 'heic', 'text', 'hf'])}]"]
    others = {"all", "dev", "docs", "heic", "text", "hf", "fiftyone"}  # tests/data: test_images.py, test_judges.py
    assert extras.keys() - NEEDED.keys() == others


@pytest.mark.slow
def test_the_core_works_without_any_of_them(tmp_path):
    missing = sorted({package for _, package, _ in CASES})
    settings = ["data.train=60", "data.val=20", "data.test=20", "data.size=32", "epochs=1", "backbone=small_conv"]
    commands = [
        ["train", "scenes", *settings, "workers=0", "--out", "run"],
        ["evaluate", "run"],
        ["thresholds", "run", "--from", "clean"],
        ["report", "run"],
        ["export", "run", "--to", "torch", "--out", "m.pt2"],
    ]
    code = (
        "import sys\n"
        f"for name in {missing!r}:\n    sys.modules[name] = None\n"
        "from plures import cli\n"
        f"for words in {commands!r}:\n"
        "    sys.argv = ['plures', *words]\n"
        "    try:\n        cli.main()\n"
        "    except SystemExit as end:\n        assert not end.code, words\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "m.pt2").is_file()
