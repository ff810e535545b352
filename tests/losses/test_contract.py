"""What every loss of the registry must keep; a new loss is tested by being registered.

It must add one line to BY_HAND (its value worked out on paper) and, if its gradient is stopped somewhere or it ignores
unknown cells, to the sets below.
"""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from by_hand import BY_HAND
from loss_reference import Table
from plures.errors import PluresError
from plures.labels import Labels, TensorLabels, complete
from plures.losses import Context, losses
from plures.models.outputs import Output

NAMES = losses.names()
IGNORE_UNKNOWN = {"iu", "bce", "bce_ls"}  # bce and bce_ls refuse unknown cells; if any come they have no effect
STOP_GRADIENT = {
    "role",
    "gr",
    "gpr",
    "csl",
    "pu_mlc",
}  # finite differences see what the gradient must not; the reference numbers test these
FLOW = {
    "wn": {"stop_gradient": False},
    "asl": {"detach_focal_weight": False},
    "q2l_asl": {"detach_focal_weight": False},
}  # options under which the whole gradient flows
EPOCHS = [(0, 8), (5, 8)]

B, K, D, P = 5, 6, 3, 4


def some_labels(seed=0):
    """Partial labels [B, K] with one row all unknown, one all present and one complete."""
    values = np.random.default_rng(seed).choice([1, 0, -1], (B, K), p=[0.25, 0.25, 0.5]).astype(np.int8)
    values[0], values[1] = -1, 1
    values[2] = [1, 0, 0, 1, 0, 0]
    return Labels(values)


def suited(loss, labels):
    """The labels, or the same ones completed if the loss requires complete ones."""
    return Labels(np.maximum(labels.values, 0)) if loss.complete_only else labels


def ready(name, labels, **options):
    """The loss, its labels, and a fresh label state (or None)."""
    loss = losses.make(name, **options)
    labels = suited(loss, labels)
    loss = loss.prepare(labels)
    state = None
    if "label_state" in loss.needs:
        state = Table(loss.initial_state(labels, seed=0).double(), learned=loss.learned)
    return loss, labels, state


def some_output(logits, seed=0):
    """An Output with all its fields, whose embeddings, attention and region logits are random."""
    g = torch.Generator().manual_seed(seed)
    rows, columns = logits.shape
    return Output(
        logits,
        attention=torch.rand(rows, columns, P, generator=g).softmax(-1).to(logits.dtype),
        region_logits=torch.randn(rows, columns, P, generator=g).to(logits.dtype),
        embeddings=torch.randn(rows, columns, D, generator=g).to(logits.dtype),
        boxes=torch.tensor([[0, 0, 1, 1]] * P).to(logits.dtype),
    )


def some_changed(logits):
    """Logits of changed inputs: random whole numbers, which half precision holds too."""
    return (4 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(7))).round().to(logits.dtype)


def evaluate(loss, logits, labels, state, epoch=(0, 8), changed=None, **output):
    changed = some_changed(logits) if changed is None else changed
    rows = torch.arange(len(logits))
    context = Context(epoch[0], epoch[1], epoch[0] / epoch[1], rows, state, changed_logits=changed)
    out = replace(some_output(logits), **output)
    return loss.compute(out, TensorLabels(torch.from_numpy(labels.values)), context)


def normal(seed=0):
    return torch.randn(B, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


@pytest.mark.parametrize("epoch", EPOCHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_finite_at_extreme_logits(name, dtype, epoch):
    for sign in (1, -1):
        logits = torch.tensor([1e4, -1e4, 0.0, 30.0, -30.0, 1e4]).repeat(B, 1) * sign
        logits[3:] *= -1
        logits = logits.to(dtype).requires_grad_()
        loss, labels, state = ready(name, some_labels())
        if state is not None and loss.learned:
            state.values = torch.full_like(state.values, -1e4 * sign)
        terms = evaluate(loss, logits, labels, state, epoch)
        sum(terms.values()).backward()
        assert all(term.isfinite() for term in terms.values()), terms
        assert logits.grad.isfinite().all()
        assert state is None or not loss.learned or state.read.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_logits_are_computed_in_float32(name):
    values = []
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        loss, labels, state = ready(name, some_labels())
        logits = (normal() * 4).round().to(dtype)
        out = some_output(logits.float())
        fields = {"embeddings": out.embeddings, "region_logits": out.region_logits, "boxes": out.boxes}
        values.append(sum(evaluate(loss, logits, labels, state, (5, 8), **fields).values()))
    assert {value.dtype for value in values} == {torch.float32}
    assert values[0] == values[1] == values[2]


@pytest.mark.parametrize("epoch", EPOCHS)
@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_that_of_the_value(name, epoch):
    if name in STOP_GRADIENT:
        pytest.skip("holds some factors constant on purpose; see the reference numbers")

    def value(logits, embeddings):
        loss, labels, state = ready(name, some_labels(), **FLOW.get(name, {}))
        return sum(evaluate(loss, logits, labels, state, epoch, embeddings=embeddings).values())

    embeddings = torch.randn(B, K, D, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    uses = "embeddings" in losses.make(name).needs
    assert torch.autograd.gradcheck(value, (normal().requires_grad_(), embeddings.requires_grad_(uses)))


@pytest.mark.parametrize("epoch", EPOCHS)
@pytest.mark.parametrize("name", NAMES)
def test_order_of_images_and_classes_does_not_matter(name, epoch):
    rows, columns = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([5, 2, 0, 1, 4, 3])

    def shuffled(values):
        return (values[rows] if len(values) == B else values)[:, columns]  # a state may have one row for all

    loss, labels, state = ready(name, some_labels())
    mixed = Labels(shuffled(torch.from_numpy(labels.values)).numpy())
    loss_2 = losses.make(name)
    loss_2 = loss_2.prepare(mixed)
    state_2 = None if state is None else Table(shuffled(state.values), state.learned)
    x, y = normal().requires_grad_(), shuffled(normal()).requires_grad_()
    straight = evaluate(loss, x, labels, state, epoch)
    out = some_output(x)
    other = {"embeddings": shuffled(out.embeddings), "attention": shuffled(out.attention)}
    other["region_logits"] = shuffled(out.region_logits)
    crossed = evaluate(loss_2, y, mixed, state_2, epoch, shuffled(some_changed(x)), **other)
    assert straight.keys() == crossed.keys()
    for term in straight:
        torch.testing.assert_close(straight[term], crossed[term])
    sum(straight.values()).backward()
    sum(crossed.values()).backward()
    torch.testing.assert_close(shuffled(x.grad), y.grad)
    if state is not None:
        torch.testing.assert_close(shuffled(state.values), state_2.values, equal_nan=True)


@pytest.mark.parametrize("name", sorted(IGNORE_UNKNOWN))
def test_unknown_cells_without_effect(name):
    loss, labels = losses.make(name), some_labels()
    x = normal().requires_grad_()
    value = sum(evaluate(loss, x, labels, None).values())
    value.backward()
    assert (x.grad[torch.from_numpy(labels.unknown)] == 0).all()
    assert (x.grad[torch.from_numpy(~labels.unknown)] != 0).all()
    moved = torch.where(torch.from_numpy(labels.unknown), 7.0, x.detach())
    assert float(sum(evaluate(loss, moved, labels, None).values())) == float(value.detach())


@pytest.mark.parametrize("name", NAMES)
def test_known_labels_pull_the_right_way(name):
    """One step of descent from p = 1/2 raises a present class and lowers an absent one."""
    values = np.full((B, K), -1, np.int8)
    values[:, 0], values[:, 1] = 1, 0
    loss, labels, state = ready(name, Labels(values))
    x = torch.zeros(B, K, dtype=torch.float64, requires_grad=True)
    sum(evaluate(loss, x, labels, state).values()).backward()
    assert (x.grad[:, 0] < 0).all()
    assert (x.grad[:, 1] > 0).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 6), (1, 1), (3, 1)])
@pytest.mark.parametrize("fill", [-1, 0, 1])
def test_small_and_empty(name, shape, fill):
    """A batch of one, a single class, images without any known or any present label: a number, never nan."""
    loss = losses.make(name)
    labels = Labels(np.full(shape, fill, np.int8))
    loss = loss.prepare(labels)
    state = None
    if "label_state" in loss.needs:
        state = Table(loss.initial_state(labels, seed=0).double(), learned=loss.learned)
    for epoch in EPOCHS:
        x = torch.randn(shape, dtype=torch.float64).requires_grad_()
        terms = evaluate(loss, x, labels, state, epoch)
        sum(terms.values()).backward()
        assert all(term.isfinite() for term in terms.values())
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_reductions_differ_by_a_factor(name):
    if "reduction" not in {f.name for f in fields(losses.make(name))}:
        pytest.skip("has no reduction")
    values = {}
    for reduction in ("mean", "image", "sum"):
        loss, labels, state = ready(name, some_labels(), reduction=reduction)
        values[reduction] = evaluate(loss, normal(), labels, state, (5, 8))
    for term, mean in values["mean"].items():
        torch.testing.assert_close(values["image"][term], mean * K)
        torch.testing.assert_close(values["sum"][term], mean * B * K)


@pytest.mark.parametrize("epoch", EPOCHS)
@pytest.mark.parametrize("name", NAMES)
def test_never_waits_for_the_gpu(name, epoch):
    """Fake tensors have no values: `.item()`, a branch on a value or a mask of unknown size raises."""
    loss, labels, state = ready(name, some_labels())
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        x = fake.from_tensor(normal()).requires_grad_()
        if state is not None:
            state.values = fake.from_tensor(state.values)
        changed = fake.from_tensor(some_changed(normal()))
        context = Context(epoch[0], epoch[1], 0.5, fake.from_tensor(torch.arange(B)), state, None, changed)
        values = fake.from_tensor(torch.from_numpy(labels.values))
        terms = loss.compute(some_output(x), TensorLabels(values), context)
        sum(terms.values()).backward()
    assert all(term.ndim == 0 for term in terms.values())


@pytest.mark.parametrize("name", NAMES)
def test_by_hand(name):
    """logits 0, ln 3, -ln 3, so p = 1/2, 3/4, 1/4; the first class present, the others unknown (or absent)."""
    case = BY_HAND[name]
    loss = losses.make(name, **case.options)
    labels = Labels(np.array([[1, *case.others]], np.int8))
    loss = loss.prepare(labels)
    state = None if case.state is None else Table(torch.tensor([case.state], dtype=torch.float64), loss.learned)
    x = torch.tensor([[0.0, np.log(3), -np.log(3)]], dtype=torch.float64)
    embeddings = torch.tensor([[[2.0, 0], [1, 1], [-1, 0]]], dtype=torch.float64)
    regions = x.detach()[:, :, None].repeat(1, 1, P)  # every region says what the image says
    changed = x.detach() - torch.tensor([[1.0, 2, 3]])
    terms = evaluate(loss, x, labels, state, case.epoch, changed, embeddings=embeddings, region_logits=regions)
    assert {k: float(v.detach()) for k, v in terms.items()} == pytest.approx(case.terms, rel=1e-12, abs=1e-15)


def test_complete_labels_are_required():
    with pytest.raises(PluresError, match=r"loss 'bce' requires complete labels, but 13 of 30 are unknown"):
        losses.make("bce").check(some_labels())
    losses.make("bce_ls").check(complete(Labels(np.zeros((2, 3), np.int8))))
    with pytest.raises(PluresError, match="no label is known to be absent"):
        losses.make("iu").check(Labels(np.array([[1, -1]], np.int8)))


def test_wrong_options_are_named():
    with pytest.raises(PluresError, match=r"loss 'an': reduction='median': expected mean or image or sum"):
        losses.make("an", reduction="median")
    with pytest.raises(PluresError, match=r"theta is between 0 and 1, got -0.5"):
        losses.make("wn", theta=-0.5)
    with pytest.raises(PluresError, match=r"loss 'epr': expected_positives='many': expected a number or auto"):
        losses.make("epr", expected_positives="many")
    with pytest.raises(PluresError, match=r"negative_weight='many': expected a number or auto"):
        losses.make("least_squares", negative_weight="many")
    with pytest.raises(PluresError, match=r"criterion.bind\(train_targets\) first"):
        evaluate(losses.make("epr"), normal(), some_labels(), None)


def test_auto_never_learns_the_true_number_from_single_positives():
    full = Labels(np.ones((50, 4), np.int8))
    single = np.full((50, 4), -1, np.int8)
    single[np.arange(50), np.arange(50) % 4] = 1
    assert losses.make("epr").prepare(full).expected_positives == 4
    assert losses.make("role").prepare(Labels(single)).expected_positives == 1
    half = Labels(np.where(np.arange(200).reshape(50, 4) % 2, full.values, -1).astype(np.int8))
    assert losses.make("epr").prepare(half).expected_positives == pytest.approx(2)  # no absent cell: a lower bound
    some = np.zeros((100, 2), np.int8)
    some[:30, 0], some[:90, 1] = 1, 1
    some[::2] = -1
    assert losses.make("epr").prepare(Labels(some)).expected_positives == pytest.approx(1.2)
    assert losses.make("epr", expected_positives=2.9).prepare(full).expected_positives == 2.9


@pytest.mark.parametrize("size", [3, 20])
@pytest.mark.parametrize("options", [{}, {"eps": 1e-5}, {"reduction": "image"}, {"reduction": "sum"}])
@pytest.mark.parametrize("name", [n for n in NAMES if losses[n].make.closed_form])
def test_gradient_in_closed_form_is_that_of_autograd(name, options, size):
    """For one run, and for three at once that do not know of each other; in float32 where p rounds to 0 and 1, too."""
    loss = ready(name, some_labels(), **options)[0]
    runs = [ready(name, some_labels(seed), **options)[1:] for seed in range(3)]
    x = size * torch.randn(B, 3, K, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x if size == 3 else x.float()
    by_logits, by_state = [], []
    for run, (labels, state) in enumerate(runs):
        leaf = x[:, run].clone().requires_grad_()
        sum(evaluate(loss, leaf, labels, state).values()).backward()
        by_logits.append(leaf.grad)
        by_state.append(None if state is None else state.read.grad)
    values = torch.stack([torch.from_numpy(labels.values) for labels, _ in runs], 1)
    states = None if runs[0][1] is None else Table(torch.stack([state.values for _, state in runs], 1))
    weights = loss.weights(TensorLabels(values))
    found, of_state = loss.gradient(x, *weights, Context(0, 8, 0.0, torch.arange(B), states))
    least = 1e-9 if states is not None else 1e-12  # with a state, terms of both signs cancel
    near = {"rtol": 1e-6, "atol": 1e-9} if size == 3 else {"rtol": 1e-4, "atol": least, "check_dtype": False}
    torch.testing.assert_close(found, torch.stack(by_logits, 1), **near)
    if states is not None:
        torch.testing.assert_close(of_state, torch.stack(by_state, 1), **near)
