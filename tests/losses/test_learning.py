"""Every loss, with the hooks called as the training loop calls them, teaches a linear model all labels from one."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from plures.errors import PluresError
from plures.labels import Labels, TensorLabels, observe_single_positive
from plures.losses import Context, losses
from plures.losses.context import ActsAfterEpoch, ChecksLabels, LooksAgain, PreparesForLabels
from plures.models.output import Output, grid_boxes
from plures.training.label_state import LabelMemory

N, K, D, B, EPOCHS, LR = 240, 5, 12, 24, 8, 0.05
K_OPTION = {"epr", "role", "en", "en_cl", "en_scl", "nnpu"}


def data():
    generator = np.random.default_rng(0)
    truth = generator.random((N, K)) < 0.35
    truth[np.arange(N), generator.integers(0, K, N)] = True
    features = truth @ generator.normal(size=(K, D)) + 0.3 * generator.normal(size=(N, D))
    return torch.from_numpy(features).float(), Labels.from_masks(truth)


def fit(name, features, labels):
    torch.manual_seed(0)
    options = {"expected_positives": 2.3} if name in K_OPTION else {}
    loss = losses.make(name, **options)
    try:
        if isinstance(loss, ChecksLabels):
            loss.check(observe_single_positive(labels))
        observed = observe_single_positive(labels)
    except PluresError:
        observed = labels
    if isinstance(loss, PreparesForLabels):
        loss = loss.prepare(observed)
    model, classes = torch.nn.Linear(D, K), torch.nn.Parameter(torch.randn(K, D))
    adam = torch.optim.Adam([*model.parameters(), classes], lr=LR)
    memory = None
    if "label_state" in loss.needs:
        state = loss.initial_state(observed, seed=0)
        memory = LabelMemory(state, learned=loss.learned, dtype=state.dtype)
    values = torch.from_numpy(observed.values)
    for epoch in range(EPOCHS):
        for index in torch.randperm(N).split(B):
            logits = model(features[index])  # of the whole image as its one region
            embeddings, boxes = features[index][:, None, :] * classes, grid_boxes(1, 1)
            output = Output(logits, region_logits=logits[..., None], embeddings=embeddings, boxes=boxes)
            changed = None
            if isinstance(loss, LooksAgain):
                tokens = loss.changed_inputs(features[index][:, None], output, TensorLabels(values[index]))
                changed = model(tokens[:, 0]).detach()
            context = Context(epoch, EPOCHS, epoch / EPOCHS, index, memory, None, changed)
            adam.zero_grad()
            sum(loss(output, TensorLabels(values[index]), context).values()).backward()
            adam.step()
            if memory is not None and memory.learned:
                memory.apply_gradient(LR * loss.state_lr_multiplier)
        context = Context(epoch, EPOCHS, (epoch + 1) / EPOCHS, None, memory)
        if isinstance(loss, ActsAfterEpoch) and loss.wants_scores(context):
            with torch.no_grad():
                loss.after_epoch(model(features), observed, context)
    return model(features).detach()


@pytest.mark.parametrize("name", losses.names())
def test_learns_all_labels(name):
    features, labels = data()
    scores = fit(name, features, labels)
    assert average_precision_score(labels.present, scores) > 0.8  # chance is .47
