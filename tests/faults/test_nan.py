"""A model that gives nan is broken: every command says so in the same line, ends with 1 and writes nothing."""

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from plures.config import Experiment
from plures.training.train import train


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A run on photos whose weights became nan, its data folder, and nothing in its cache of features."""
    folder = tmp_path_factory.mktemp("nan")
    random = np.random.default_rng(0)
    lines = ["image,tags"]
    for i in range(24):
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{('cat', 'dog')[i % 2]}")
    (folder / "tags.csv").write_text("\n".join(lines))
    settings = {"epochs": 1, "batch_size": 8, "image_size": 32, "device": "cpu", "workers": 0}
    run = train(Experiment(data=str(folder / "tags.csv"), **settings), folder / "run").path
    weights = load_file(run / "model.safetensors")
    name = next(name for name in weights if name.startswith("head."))
    weights[name] = np.full_like(weights[name], np.nan)
    save_file(weights, run / "model.safetensors")
    return run, folder


COMMANDS = {
    "evaluate": ("evaluate", "RUN"),
    "thresholds": ("thresholds", "RUN"),
    "predict": ("predict", "RUN", "FOLDER/0.png", "--out", "FOLDER/found.jsonl"),
    "heat maps": ("predict", "RUN", "FOLDER/0.png", "--out", "FOLDER/found.csv", "--heatmaps", "FOLDER/maps"),
    "suggest": ("suggest", "RUN", "--out", "FOLDER/missing.csv"),
    "report": ("report", "RUN"),
    "localise": ("localise", "RUN", "--boxes", "FOLDER/boxes.json"),
    "serve": ("serve", "RUN"),
    "export": ("export", "RUN", "--to", "torch", "--out", "FOLDER/model.pt2"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_broken_model_is_said_and_ends_with_1(plures, broken, command):
    run, folder = broken
    before = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    words = [word.replace("RUN", str(run)).replace("FOLDER", str(folder)) for word in COMMANDS[command]]
    code, _, err = plures(*words)
    assert "the model gives nan (no number) for" in err
    assert "its weights are damaged or its training diverged" in " ".join(err.split())
    assert code == 1
    assert sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file()) == before
