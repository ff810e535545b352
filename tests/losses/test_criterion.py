"""Losses as a stranger uses them: nn.Modules on logits and targets in a plain torch loop, and what they refuse."""

import copy
import doctest
import inspect
import re
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import plures
from plures.config import Experiment
from plures.data.loading import FeatureBatches, Order
from plures.errors import PluresError
from plures.labels import Labels, TensorLabels, from_positives
from plures.losses import Context, Loss, losses
from plures.models.heads.linear import Linear
from plures.models.outputs import Output, grid_boxes
from plures.scoring.device import make_fabric
from plures.scoring.logits import HeadOnFeatures
from plures.training.loop import fit
from plures.training.progress import Quiet
from plures.training.stages import Stage

L = plures.losses
B, K, N, D = 4, 5, 20, 3
CLASSES = sorted({entry.make for entry in losses}, key=lambda made: made.__name__)


def targets(rows=N, seed=0):
    """[rows, K] int64 with all three values in every row."""
    values = np.random.default_rng(seed).integers(-1, 2, (rows, K))
    values[:, :3] = [1, 0, -1]
    return torch.from_numpy(values)


def ready(made, folder, codes=None):
    """The criterion bound to `targets()` (completed where it must be), with the keywords it follows."""
    options = {}
    if made in (L.VLPL, L.GPR):
        np.save(folder / "scores.npy", np.random.default_rng(0).random((N, K)))
        options["scores"] = str(folder / "scores.npy")
    codes = targets() if codes is None else codes
    codes = codes.clamp(min=0) if made.complete_only else codes
    return made(**options).bind(codes), codes


def some_output(logits):
    one = torch.ones(len(logits), K, 1)
    embeddings = torch.randn(len(logits), K, D, generator=torch.Generator().manual_seed(1))
    return Output(logits, one, logits[..., None], embeddings, grid_boxes(1, 1))


def some_logits(rows=B):
    return torch.randn(rows, K, generator=torch.Generator().manual_seed(0))


KNOWN = {"epoch": 1, "epochs": 4, "index": torch.arange(B)}


def changed(criterion):
    return {"changed_logits": torch.zeros(B, K)} if "changed_logits" in criterion.needs else {}


@pytest.mark.parametrize("made", CLASSES, ids=lambda made: made.__name__)
def test_every_loss_is_a_module_with_named_terms_for_any_dtype(made, tmp_path):
    """The same numbers, whatever the dtype of the targets, and those of `compute`, which training calls."""
    criterion, codes = ready(made, tmp_path)
    assert isinstance(criterion, nn.Module)
    assert getattr(L, made.__name__) is made
    fresh = copy.deepcopy(criterion)
    index = torch.arange(B)
    looked = changed(criterion).get("changed_logits")
    context = Context(1, 4, 0.25, index, fresh.memory, None, looked)
    terms = fresh.compute(some_output(some_logits()), TensorLabels(codes[:B].to(torch.int8)), context)
    dtypes = [torch.int8, torch.int64, torch.float16, torch.float32, torch.float64]
    for dtype in [*dtypes, torch.bool, torch.uint8] if made.complete_only else dtypes:
        one = copy.deepcopy(criterion)
        found = one.terms(some_output(some_logits()), codes[:B].to(dtype), **KNOWN, **changed(one))
        assert {k: v.item() for k, v in found.items()} == {k: v.item() for k, v in terms.items()}
    value = copy.deepcopy(criterion)(some_output(some_logits()), codes[:B], **KNOWN, **changed(criterion))
    assert value.ndim == 0
    assert value.item() == pytest.approx(sum(term.item() for term in terms.values()))


def test_a_bool_target_is_a_complete_label():
    logits, known = some_logits(), targets(B) == 1
    assert L.BCE()(logits, known) == L.BCE()(logits, known.long())
    assert L.EM(unobserved=0)(logits, known) == L.EM()(logits, from_positives(known))


@pytest.mark.parametrize("made", CLASSES, ids=lambda made: made.__name__)
def test_options_state_and_copies(made, tmp_path):
    """The representation names the options; a bound criterion's state goes into another one bound to the same data."""
    criterion, codes = ready(made, tmp_path)
    assert all(f"{o}=" in repr(criterion) for o in losses[_name(made)].options if o != "unobserved")
    assert criterion.to("cpu") is criterion
    output = some_output(some_logits())
    criterion(output, codes[:B], **KNOWN, **changed(criterion))
    other, _ = ready(made, tmp_path)
    other.load_state_dict(criterion.state_dict())
    assert ("memory.table" in criterion.state_dict()) == ("label_state" in made.needs)
    after = {**KNOWN, "epoch": 2}
    one, two = (c(output, codes[:B], **after, **changed(c)) for c in (criterion, other))
    assert torch.equal(one, two)


def _name(made):
    return next(entry.name for entry in losses if entry.make is made)


def test_the_memory_moves_and_keeps_its_dtype():
    role = L.ROLE(expected_positives=2).bind(targets())
    assert role.half().memory.table.dtype == torch.float32
    assert role.to("meta").memory.table.device.type == "meta"
    assert role.memory.visits.device.type == "meta"


def test_binding_resolves_auto_and_leaves_the_first_criterion_alone():
    codes = torch.full((N, K), -1)
    codes[:, :3] = 1
    role = L.ROLE()
    bound = role.bind(codes)
    assert bound.expected_positives == 3
    assert role.expected_positives == "auto"
    assert role.memory is None
    again = role.bind(targets(6))
    assert again.memory.table.shape == (6, K)
    assert bound.memory.table.shape == (N, K)
    assert bound.bind(targets(6)).memory.table.shape == (6, K)
    assert torch.equal(role.bind(codes.numpy()).memory.table, bound.memory.table)
    assert torch.equal(role.bind(Labels(codes.numpy().astype(np.int8))).memory.table, bound.memory.table)
    assert not torch.equal(role.bind(codes, seed=1).memory.table, bound.memory.table)


# ------------------------------------------------------------------------------------------------- in a plain loop


class Keep:
    """Keeps the weights of the last epoch."""

    def score(self, net):
        self.kept = [p.detach().clone() for p in net.head.parameters()]
        return {"score": float("nan")}

    def keep_best(self, net):
        pass

    def keep_state(self, state, record):
        self.memory = None if state["memory"] is None else state["memory"]["table"].clone()


@pytest.mark.parametrize("dense", [False, True])
def test_role_in_a_plain_loop_learns_what_training_learns_bit_for_bit(dense):
    """Model and memory, after three epochs of whole and last batches."""
    codes, features = targets(), torch.randn(N, D, generator=torch.Generator().manual_seed(3))
    e = Experiment(
        loss="role",
        head="linear",
        stages="probe",
        optimizer="adam",
        epochs=3,
        batch_size=8,
        lr=0.03,
        device="cpu",
        seed=5,
    )
    order, torchs = Order(N, 8, shuffle_seed=5), nn.Linear(D, K)
    head, labels = Linear(D, K), Labels(codes.numpy().astype(np.int8))
    head.classifier.load_state_dict(torchs.state_dict())
    batches = FeatureBatches(features[:, None].numpy(), labels.values, order)
    net = HeadOnFeatures(head, grid_boxes(1, 1))
    loss, keep = L.ROLE(expected_positives=2, dense_adam=dense), Keep()
    fit(Stage("probe", 0, net, head, batches, labels, e, batches), loss, make_fabric(e), keep, Quiet())

    role = L.ROLE(expected_positives=2, dense_adam=dense).bind(codes, seed=5)
    before = role.memory.table.clone()
    optimizer = torch.optim.Adam(torchs.parameters(), lr=0.03)
    for epoch in range(3):
        for index in order.batches(epoch):
            index = torch.as_tensor(index)
            optimizer.zero_grad()
            role(torchs(features[index]), codes[index], index=index).backward()
            optimizer.step()
            role.step(lr=0.03)
    assert torch.equal(role.memory.table, keep.memory)
    assert (role.memory.table - before).abs().min() > 0
    for mine, trained in zip(torchs.parameters(), keep.kept, strict=True):
        assert torch.equal(mine, trained)


def test_a_memory_that_is_never_stepped_is_told_of_once():
    role = L.ROLE(expected_positives=2).bind(targets())

    def batch(start):
        index = torch.arange(start, start + 4)
        role(torch.zeros(4, K, requires_grad=True), targets()[index], index=index).backward()

    for start in range(0, N, 4):
        batch(start)
    with pytest.warns(UserWarning, match=r"never stepped; call criterion.step\(lr\)"):
        batch(0)


def test_pseudo_labels_come_from_epoch_end():
    criterion = L.EMAPL(warmup_epochs=1, negative_proportion=1.0).bind(targets())
    criterion.epoch_end(some_logits(N), targets(), epoch=0, epochs=4)
    assert (~criterion.memory.table.isnan()).sum() > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        criterion(some_logits(), targets()[:B], **KNOWN)
    forgetful = L.EMAPL(warmup_epochs=1).bind(targets())
    with pytest.warns(UserWarning, match="call criterion.epoch_end"):
        forgetful(some_logits(), targets()[:B], **KNOWN)


# ------------------------------------------------------------------------------------------------- what is said


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: L.AssumeNegative()(some_logits(), targets()), r"targets of shape \[20, 5\] for logits \[4, 5\]"),
        (lambda: L.AssumeNegative()(some_logits(), targets(B).numpy()), r"targets are a tensor \[B, K\], got ndarray"),
        (lambda: L.AssumeNegative()(some_logits(), targets(B) * 2), r"found 2 \(.* of 20 have other codes\)"),
        (lambda: L.WAN()(some_logits(), targets(B) * 0.5), r"found 0.5 .*soft labels are not supported"),
        (lambda: L.WAN()(some_logits(), targets(B) * float("nan")), "found nan"),
        (lambda: L.WAN()(some_logits(), targets(B).to(torch.uint8)), "found 255"),
        (lambda: L.WAN()(some_logits(), targets(B).to(torch.complex64)), "targets are int, float or bool"),
        (lambda: L.WAN()(some_logits()[0], targets(B)[0]), r"logits are a tensor \[B, K\] or a plures.Output, got \(5"),
        (lambda: L.BCE()(some_logits(), targets(B)), "loss 'bce' requires complete labels, but .* of 20 are unknown"),
        (lambda: L.WeakNegatives()(some_logits(), targets(B)), r"WeakNegatives requires Output.embeddings \[B, K, D\]"),
        (lambda: L.ExpectedNegativesSCL(2.0).bind(targets())(some_logits(), targets(B)), "requires Output.region_log"),
        (lambda: L.ROLE(2.0)(some_logits(), targets(B), index=torch.arange(B)), r"criterion.bind\(train_targets\)"),
        (lambda: L.ROLE()(some_logits(), targets(B)), "keeps a memory of the training labels and has none yet"),
        (lambda: L.EPR()(some_logits(), targets(B)), "expected_positives is 'auto': call criterion = criterion.bind"),
        (lambda: L.NNPU()(some_logits(), targets(B)), "has no class weights: call criterion = criterion.bind"),
        (lambda: L.ROLE().bind(targets())(some_logits(), targets(B)), "give index=, int64"),
        (lambda: _role(torch.arange(B) + 18), "index runs from 18 to 21, but the criterion was bound to 20"),
        (lambda: _role(torch.arange(3)), r"index is int64 \[4\], .* got torch.int64 \[3\]"),
        (lambda: _role(torch.zeros(B)), "got torch.float32"),
        (lambda: L.ROLE().bind(["a"]), "targets .N, K. are numbers in"),
        (lambda: L.ROLE().bind(np.ones(3)), r"are \[N, K\], got \[3\]"),
        (lambda: L.GR()(some_logits(), targets(B), epoch=1), "with epoch= give epochs= as well"),
        (lambda: L.GR()(some_logits(), targets(B), epoch=4, epochs=4), "epoch is 0-based and below epochs=4, got 4"),
        (lambda: L.IGNORE().bind(targets())(some_logits(), targets(B), epoch=0), "give changed_logits="),
        (lambda: L.IgnoreUnknown().bind(np.full((2, 2), -1)), "no label is known to be absent"),
        (lambda: from_positives(torch.tensor([1, 0, -1])), "found -1"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(call, message):
    with pytest.raises((PluresError, ValueError), match=message) as said:
        call()
    assert "\n" not in str(said.value)


def _role(index):
    return L.ROLE(2.0).bind(targets())(some_logits(), targets(B), index=index)


@pytest.mark.parametrize("made", [made for made in CLASSES if made().follows()], ids=lambda made: made.__name__)
def test_a_loss_that_follows_epochs_says_once_that_it_was_not_told(made, tmp_path):
    criterion, _ = ready(made, tmp_path)
    known = {**changed(criterion), "index": torch.arange(B)}
    with pytest.warns(UserWarning, match="called without epoch="):
        criterion(some_logits(), targets(B), **known)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        criterion(some_logits(), targets(B), **known)


def test_who_follows_epochs():
    found = {made.__name__ for made in CLASSES if made().follows()}
    assert found == {"GR", "GPR", "SPLC", "EMAPL", "LargeLossR", "LargeLossCt", "LargeLossCp", "IGNORE"}
    assert L.VLPL(warmup_epochs=2).follows()


@pytest.mark.parametrize("made", [made for made in CLASSES if made.unknown_differs], ids=lambda made: made.__name__)
def test_zero_for_unobserved_is_noticed_where_it_would_change_the_loss(made, tmp_path):
    """The trap of {0, 1} with 0 for "not observed": a warning; with `unobserved=0` the loss is what it should be."""
    positives = (targets() == 1).long()
    with pytest.warns(UserWarning, match=r"unobserved=0 or use plures.labels.from_positives\(targets\)"):
        ready(made, tmp_path, positives)
    if "label_state" not in made.needs and made is not L.NNPU and made is not L.EPR:
        with pytest.warns(UserWarning, match="unobserved=0"):
            made()(some_output(some_logits()), positives[:B], epoch=1, epochs=4)
    told, _ = ready(made, tmp_path, from_positives(positives))
    options = {"scores": str(tmp_path / "scores.npy")} if made in (L.VLPL, L.GPR) else {}
    door = made(**options, unobserved=0).bind(positives)
    output = some_output(some_logits())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        known = KNOWN | {"epoch": 0} | changed(door)
        assert torch.equal(door(output, positives[:B], **known), told(output, from_positives(positives)[:B], **known))


def test_who_treats_unknown_labels_apart_says_so():
    """`unknown_differs` is what the numbers say: the loss of an unknown cell against that of an absent one."""
    for made in CLASSES:
        if "label_state" in made.needs or made in (L.NNPU, L.EPR) or made.complete_only:
            continue
        loss = made()
        codes = targets(B).to(torch.int8)
        output, context = some_output(some_logits()), Context(3, 4)
        one, two = (
            sum(loss.compute(output, TensorLabels(c), context).values()).item() for c in (codes, codes.clamp(min=0))
        )
        assert (one != pytest.approx(two)) == made.unknown_differs or made is L.IgnoreUnknown, made.__name__


def test_training_looks_at_no_value():
    """`compute` is what training calls; the checks are in the criterion's own call alone."""
    assert ".item()" not in inspect.getsource(Loss.compute)
    loss = L.AssumeNegative()
    wrong = TensorLabels(torch.full((B, K), 7, dtype=torch.int8))
    assert loss.compute(Output(some_logits()), wrong, Context())["assumed_absent"].isfinite()


# ------------------------------------------------------------------------------------------------- one's own, docs


class Own(Loss):
    """An ordinary __init__ instead of a dataclass."""

    def __init__(self, trust: float = 0.3) -> None:
        super().__init__()
        self.trust = trust

    def compute(self, output, labels, context):
        return {"all": self.trust * (output.logits * labels.present).mean()}


def test_a_loss_of_ones_own_with_an_ordinary_init():
    assert repr(Own(0.5)) == "Own(trust=0.5)"
    assert Own(0.5)(some_logits(), targets(B)) == 0.5 * (some_logits() * (targets(B) == 1)).mean()


def test_what_a_parent_declared_does_not_hold_of_another_compute():
    class Double(L.AssumeNegative):
        def compute(self, output, labels, context):
            return {name: 2 * term for name, term in super().compute(output, labels, context).items()}

    class Heavy(L.AssumeNegative):
        def weights(self, labels, dtype=torch.float32):
            yes, no = super().weights(labels, dtype)
            return 2 * yes, no

    assert (Double.per_cell, Double.closed_form, Double.per_image) == (False, False, False)
    assert Heavy.per_cell


@pytest.mark.parametrize("made", CLASSES, ids=lambda made: made.__name__)
def test_docstrings_say_args_source_and_an_example_that_runs(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = inspect.getdoc(made) or ""
    assert re.search(r"\[B, K\]", text), "shapes"
    assert "Source:" in text
    options = [o for o in losses[_name(made)].options if o not in ("unobserved", "reduction", "eps")]
    assert all(re.search(rf"^\s+({o}|.*, {o}|{o}, .*|.*, {o}, .*):", text, re.M) for o in options), options
    space = {"torch": torch, "np": np, "plures": plures, made.__name__: made}
    test = doctest.DocTestParser().get_doctest(text, space, made.__name__, None, 0)
    assert test.examples
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert runner.run(test).failed == 0
