"""JPEGs decoded at a half or a quarter of their size: scores of photographs stay as they are."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from plures.data.photos import Transform, open_image
from plures.data.read import read
from plures.metrics.average_precision import average_precision
from plures.models.model import build_model
from shared import SHARED, needs_shared

SIZE, TRAINED, JUDGED = 64, 400, 1000  # photos of 384 pixels are decoded at a half


def _features(model, files, at_least):
    """Pooled features [N, D]; at_least: see `open_image`."""
    transform = Transform(SIZE)
    with torch.inference_mode():
        images = torch.stack([transform(open_image(file, at_least)) for file in files])
        return torch.cat([model.tokens(batch).features.mean(1) for batch in images.split(32)]).numpy()


@pytest.mark.shared
@pytest.mark.slow
@needs_shared
def test_scaled_decoding_moves_map_by_less_than_a_tenth_of_a_percent():
    data = read(f"voc:{SHARED / 'data' / 'voc12' / 'VOCdevkit' / 'VOC2012'}")
    train, test = (
        data.split(name).take(np.linspace(0, len(data.split(name)) - 1, count).astype(int))
        for name, count in (("train", TRAINED), ("test", JUDGED))
    )
    options = {
        "model": "mobilenetv2_100",
        "image_size": SIZE,
        "weights": str(SHARED / "weights" / "mobilenetv2_100.safetensors"),
        "model_options": {"pad_type": "same", "bn_eps": 1e-3},
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    model = build_model("timm", "linear", data.classes, options).eval()
    frequent = np.flatnonzero((test.labels.present.sum(0) >= 8) & (train.labels.present.sum(0) >= 8))
    learned = _features(model, train.images, None)
    in_full = _features(model, test.images, None)
    at_least = Transform(SIZE).decoding_size
    smaller = 0
    for file in test.images:
        with Image.open(file) as image:
            full = image.size
            image.draft(None, (at_least, at_least))
            smaller += image.size != full
    assert smaller > JUDGED / 2
    scaled = _features(model, test.images, at_least)
    assert np.abs(scaled - in_full).max() > 0
    found = []
    for features in (in_full, scaled):
        scores = np.zeros(test.labels.values.shape)
        for k in frequent:
            classifier = LogisticRegression(C=0.1, max_iter=200).fit(learned, train.labels.present[:, k])
            scores[:, k] = classifier.decision_function(features)
        found.append(100 * average_precision(scores, test.labels)[frequent].mean())
    print(f"{smaller} of {JUDGED} scaled, mAP of {len(frequent)} classes {found[0]:.3f} and {found[1]:.3f}")
    assert found[0] > 25  # the model knows something to lose
    assert abs(found[1] - found[0]) < 0.1
