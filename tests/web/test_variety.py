"""The order of first tags: different ones first, near-duplicates together, the same again after a stop."""

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason='needs pip install "plures[web]"')
import timm
import torch
from safetensors.torch import save_file

import plures
from plures.web import variety
from plures.web.review import Review
from plures.web.variety import farthest_first, most_different_first


@pytest.fixture(autouse=True)
def no_weights(monkeypatch):
    monkeypatch.setattr(variety, "on_disk", lambda: {"fast": None})


def test_each_is_the_farthest_from_all_before_it():
    line = np.array([[0.0], [1], [2], [3], [100], [40]], np.float32)
    looks = 1000 * line
    assert farthest_first(line, looks, 0) == [5, 4, 0, 3, 1, 2]  # 5 is nearest to the mean of 24.3
    assert farthest_first(line, looks, 1) == [4, 5, 3, 1, 2]  # 0 has tags
    assert farthest_first(line, np.array([[0.0], [500], [1000], [3], [2000], [3000]], np.float32), 0)[2:4] == [0, 3]


@pytest.fixture
def photos(tmp_path):
    """Six reddish photographs, a blue one, two nearly equal green ones, one broken."""
    rng = np.random.default_rng(0)
    colours = [(200, 20 + 25 * i, 60) for i in range(6)] + [(20, 30, 220), (20, 200, 40)]
    for i, colour in enumerate(colours):
        pixels = np.tile(np.array(colour, np.int16), (60, 80, 1))
        pixels[10 * (i % 6) :, :20] += 30
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(tmp_path / f"{i}.png")
    green = np.array(Image.open(tmp_path / "7.png"), np.int16) + rng.integers(-3, 4, (60, 80, 3))
    Image.fromarray(np.clip(green, 0, 255).astype(np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no photograph")
    names = [f"{i}.png" for i in range(7)] + ["a.png", "b.png", "7.png"]
    (tmp_path / "tags.csv").write_text("image,tags\n" + "".join(f"{name},\n" for name in names))
    return tmp_path


def order(review):
    return [str(review.dataset.images[row]).rsplit("/", 1)[-1] for row in review.untagged]


def test_the_review_asks_the_different_ones_first_and_goes_on_after_a_stop(photos):
    review = Review(photos / "tags.csv")
    first = order(review)
    assert first[-1] == "b.png"  # broken: asked all the same
    assert sorted(first) == sorted(p.name for p in photos.glob("*.png"))
    assert abs(first.index("a.png") - first.index("7.png")) == 1
    assert set(first[1:4]) == {"6.png", "a.png", "7.png"}  # behind the most usual one, which is red
    items = review.untagged_after(-1, 3) + review.untagged_after(review.untagged[2], 20)
    assert [item["image"] for item in items] == first
    review.close()
    again = Review(photos / "tags.csv")
    assert order(again) == first
    again.close()
    text = (photos / "tags.csv").read_text()
    (photos / "tags.csv").write_text(text.replace("a.png,\n", "a.png,green\n").replace("6.png,\n", "6.png,blue\n"))
    after = Review(photos / "tags.csv")
    assert order(after)[0] in {f"{i}.png" for i in range(6)}  # neither blue nor green, which are known
    assert len(order(after)) == 8
    after.close()


def test_beyond_the_most_the_others_follow_as_they_stand(photos, monkeypatch):
    monkeypatch.setattr(variety, "LOOKED_AT", 4)
    dataset = plures.read(f"table:{photos / 'tags.csv'}", skip_bad=True, labelled=False)
    rows = [0, 1, 2, 3, 4, 5, 6, 7, 9]
    found = most_different_first(dataset, rows)
    assert sorted(found) == rows
    assert found[4:] == sorted(found[4:])


def test_features_of_a_backbone_on_this_disk_count(photos, monkeypatch, tmp_path):
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "w.safetensors")
    monkeypatch.setattr(variety, "on_disk", lambda: {"fast": str(tmp_path / "w.safetensors")})
    monkeypatch.setitem(variety.PRESETS, "fast", {"model": "test_resnet", "image_size": 32})
    monkeypatch.setattr(variety, "_places", None)
    monkeypatch.setenv("PLURES_CACHE", str(tmp_path / "cache"))
    review = Review(photos / "tags.csv")
    assert sorted(review.untagged) == list(range(10))
    assert list((tmp_path / "cache" / "features").glob("*.npy"))
    review.close()
