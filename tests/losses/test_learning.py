"""Every loss as a criterion in a plain torch loop teaches a linear model all labels from one."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from plures.errors import PluresError
from plures.labels import Labels, mask_to_single_positive
from plures.losses import losses
from plures.models.outputs import Output, grid_boxes

N, K, D, B, EPOCHS, LR = 240, 5, 12, 24, 8, 0.05
K_OPTION = {"epr", "role", "en", "en_cl", "en_scl", "nnpu"}


def data():
    generator = np.random.default_rng(0)
    truth = generator.random((N, K)) < 0.35
    truth[np.arange(N), generator.integers(0, K, N)] = True
    features = truth @ generator.normal(size=(K, D)) + 0.3 * generator.normal(size=(N, D))
    return torch.from_numpy(features).float(), Labels.from_masks(truth)


def fit(name, features, labels, folder):
    torch.manual_seed(0)
    options = {"expected_positives": 2.3} if name in K_OPTION else {}
    if name in ("vlpl", "gpr"):
        np.save(folder / "scores.npy", np.zeros((N, K)))
        options["scores"] = str(folder / "scores.npy")
    loss = losses.make(name, **options)
    try:
        loss = loss.bind(mask_to_single_positive(labels))
        observed = mask_to_single_positive(labels)
    except PluresError:
        observed, loss = labels, loss.bind(labels)
    model, classes = torch.nn.Linear(D, K), torch.nn.Parameter(torch.randn(K, D))
    adam = torch.optim.Adam([*model.parameters(), classes], lr=LR)
    targets = torch.from_numpy(observed.values)
    for epoch in range(EPOCHS):
        for index in torch.randperm(N).split(B):
            logits = model(features[index])  # of the whole image as its one region
            embeddings, boxes = features[index][:, None, :] * classes, grid_boxes(1, 1)
            output = Output(logits, region_logits=logits[..., None], embeddings=embeddings, boxes=boxes)
            known = {"index": index, "epoch": epoch, "epochs": EPOCHS}
            if "changed_logits" in loss.needs:
                tokens = loss.changed_inputs(features[index][:, None], output, targets[index])
                known["changed_logits"] = model(tokens[:, 0]).detach()
            adam.zero_grad()
            loss(output, targets[index], **known).backward()
            adam.step()
            loss.step(LR)
        with torch.no_grad():
            loss.epoch_end(model(features), targets, epoch=epoch, epochs=EPOCHS)
    return model(features).detach()


@pytest.mark.parametrize("name", losses.names())
def test_learns_all_labels(name, tmp_path):
    features, labels = data()
    scores = fit(name, features, labels, tmp_path)
    assert average_precision_score(labels.present, scores) > 0.8  # chance is .47
