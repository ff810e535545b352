"""`plures.load(run).predict(...)`: whatever Python holds, the same tags as `plures predict` writes."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import plures
from plures.errors import BadData, PluresError
from plures.models.model import build_model, save
from plures.runs.run import Run

CLASSES = ("red", "green", "blue")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with an untrained model: what it says does not matter here, only that every road says the same."""
    path = tmp_path_factory.mktemp("run") / "run"
    torch.manual_seed(0)
    Run.create(path, plures.Experiment(backbone={"name": "small_conv", "image_size": 16}, device="cpu"))
    model = build_model("small_conv", "codebook", CLASSES, {"image_size": 16})
    save(model, path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return plures.load(folder)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    place = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for row in range(5):
        Image.fromarray(random.integers(0, 256, (18, 20, 3), dtype=np.uint8)).save(place / f"{row}.png")
    return sorted(place.glob("*.png"))


def test_every_kind_of_input_gives_the_same(model, photos):
    expected = model.predict(photos)
    pictures = [Image.open(p) for p in photos]
    arrays = [np.asarray(p) for p in pictures]
    tensors = [torch.from_numpy(a.copy()).permute(2, 0, 1) for a in arrays]
    others = [
        str(photos[0].parent), pictures, arrays, np.stack(arrays), tensors, torch.stack(tensors),
        [a / 255 for a in arrays], [t / 255 for t in tensors],
        [photos[0], pictures[1], arrays[2], tensors[3], str(photos[4])],
    ]  # fmt: skip
    for given in others:
        np.testing.assert_array_equal(model.predict(given).scores, expected.scores)
    for one, given in zip(expected, [photos[0], pictures[1], arrays[2], tensors[3]], strict=False):
        assert model.predict(given)[0].scores == one.scores
    assert expected.names == [str(p) for p in photos]
    assert model.predict(pictures).names[4] == "image 4"


def test_it_equals_what_the_command_writes(folder, model, photos, tmp_path):
    plures.predict(folder, photos[0].parent, tmp_path / "found.jsonl")
    written = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    found = model.predict(photos).to_dicts()
    assert [w["tags"] for w in written] == [f["tags"] for f in found]
    for w, f in zip(written, found, strict=True):
        assert w["scores"] == pytest.approx(f["scores"], abs=1e-6)


def test_transform_and_forward_are_the_same_road(model, photos):
    pixels = torch.stack([model.transform(Image.open(p)) for p in photos])
    assert pixels.dtype == torch.uint8
    with torch.inference_mode():
        logits = model(pixels).logits.numpy()
    np.testing.assert_allclose(model.predict(photos).logits, logits, atol=1e-5)


def test_embeddings_are_the_mean_of_the_backbone(model, photos):
    found = model.embed(photos)
    pixels = torch.stack([model.transform(Image.open(p)) for p in photos])
    with torch.inference_mode():
        features = model.tokens(pixels).features
    assert found.shape == (5, features.shape[2])
    np.testing.assert_allclose(found, features.mean(1).numpy(), atol=1e-5)


def test_threshold_and_tags(model, photos):
    everything = model.predict(photos, threshold=1e-9)
    assert all(set(tags) == set(CLASSES) for tags in everything.tags)
    assert all([p.scores[t] for t in p.tags] == sorted(p.scores.values(), reverse=True) for p in everything)
    assert all(tags == () for tags in model.predict(photos, threshold=1 - 1e-9).tags)


def test_heatmap_is_as_large_as_the_photograph(model, photos):
    one = model.predict(photos[:1])[0]
    heat = one.heatmap("red")
    assert heat.shape == (18, 20)
    assert one.overlay("red").size == (20, 18)
    with pytest.raises(PluresError, match="did you mean 'red'"):
        one.heatmap("rad")


def test_it_prints_in_a_few_lines_and_renders(model, photos):
    found = model.predict([*photos, *photos], threshold=1e-9)
    lines = repr(found).splitlines()
    assert lines[0] == "Predictions of 10 images, 3 classes"
    assert len(lines) == 7
    assert lines[-1] == "  and 5 more"
    assert re.match(r".*0\.png: \w+ 0\.\d\d, ", lines[1].strip())
    page = found._repr_html_()
    assert page.count("<img ") == 10
    assert "<script" not in model.predict([photos[0]])._repr_html_()


def test_pandas(model, photos):
    pytest.importorskip("pandas")
    table = model.predict(photos, threshold=1e-9).to_pandas()
    assert list(table.columns) == ["image", "tags", *CLASSES]
    assert len(table) == 5


def test_unreadable_images_are_named_or_left_out(model, photos, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"broken")
    with pytest.raises(BadData, match=r"broken\.png"):
        model.predict([photos[0], tmp_path / "broken.png"])
    found = model.predict([photos[0], tmp_path / "broken.png", photos[1]], skip_bad=True)
    assert len(found) == 2
    assert found.names == [str(photos[0]), str(photos[1])]
    assert "broken.png" in found.skipped[0][0]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4, 7), np.uint8), r"uint8 \[4, 4, 7\]"),
        (np.full((4, 4, 3), 7.0), "floats outside"),
        (np.full((4, 4, 3), np.nan), "floats outside"),
        (np.zeros((4, 4, 3), np.int64) - 1, "int64"),
        (torch.zeros(5, 4, 4), "tensor"),
        (object(), "object"),
    ],
)
def test_what_is_no_image_is_one_clear_line(model, image, words):
    with pytest.raises(PluresError, match=words) as error:
        model.predict([image])
    assert len(str(error.value).splitlines()) == 1
    assert "image 0" in str(error.value)


def test_a_folder_with_a_model_alone_is_enough(folder, photos, tmp_path):
    for name in ("model.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    alone = plures.load(str(tmp_path), device="cpu").predict(photos)
    np.testing.assert_array_equal(alone.scores, plures.load(folder).predict(photos).scores)
