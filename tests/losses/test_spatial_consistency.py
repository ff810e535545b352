"""EN+SCL: maps follow the augmentation, are read as torch resamples bilinearly, and rest where nothing is seen."""

import pytest
import torch
import torch.nn.functional as F

from plures.config import Experiment
from plures.errors import PluresError
from plures.labels import Labels, TensorLabels
from plures.losses import Context, losses
from plures.losses.label_memory import LabelMemory
from plures.losses.spatial_consistency import in_image, interpolate
from plures.models.heads.linear import Linear
from plures.models.outputs import Output, grid_boxes
from plures.training.train import make_loss

WHOLE = torch.tensor([[0.0, 0, 1, 1]])
MIRRORED = torch.tensor([[1.0, 0, 0, 1]])


def random_maps(rows, columns, K=3, seed=0):
    return torch.rand(1, K, rows * columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("source", "target"), [((7, 7), (14, 14)), ((14, 14), (7, 7)), ((5, 5), (5, 5)), ((4, 6), (9, 3))]
)
def test_reading_a_grid_is_bilinear_resizing(source, target):
    values = random_maps(*source)
    ours, found = interpolate(values, grid_boxes(*source)[None], grid_boxes(*target)[None])
    torchs = F.interpolate(values.view(1, 3, *source), target, mode="bilinear", align_corners=False)
    torch.testing.assert_close(ours, torchs.flatten(2), atol=1e-5, rtol=1e-4)
    assert found.all()


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_crop_reads_as_torchs_grid_sample(mirrored):
    left, top, right, bottom = 0.2, 0.1, 0.8, 0.9
    view = torch.tensor([[right, top, left, bottom] if mirrored else [left, top, right, bottom]])
    values = random_maps(8, 8)
    ours, _ = interpolate(values, grid_boxes(8, 8)[None], in_image(grid_boxes(6, 6), view))
    x = (torch.arange(6) + 0.5) / 6
    along, down = left + x * (right - left), top + x * (bottom - top)
    along = along.flip(0) if mirrored else along
    at = torch.stack(torch.meshgrid(along, down, indexing="xy"), -1)[None] * 2 - 1  # [1, 6, 6, 2]
    torchs = F.grid_sample(values.view(1, 3, 8, 8), at, mode="bilinear", padding_mode="border", align_corners=False)
    torch.testing.assert_close(ours, torchs.flatten(2), atol=1e-5, rtol=1e-4)


class Run:
    """One image, one present class, a head with a 4 x 4 grid, a memory with a 4 x 4 map."""

    def __init__(self, **options):
        self.loss = losses.make("en_scl", grid=4, expected_positives=1, **options)
        self.labels = Labels(torch.tensor([[1, -1, -1]], dtype=torch.int8).numpy())
        state = self.loss.initial_state(self.labels, 0)
        self.memory = LabelMemory(state, learned=False, dtype=state.dtype)

    def step(self, regions, view):
        output = Output(regions.mean(2), region_logits=regions, boxes=grid_boxes(4, 4))
        context = Context(index=torch.tensor([0]), label_state=self.memory, views=view)
        return self.loss.compute(output, TensorLabels(torch.from_numpy(self.labels.values)), context)

    @property
    def maps(self):
        return self.memory.rows(torch.tensor([0]))[0, :, 1:].view(3, 4, 4)


def some_regions(seed=0):
    return torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(seed))


def test_what_a_mirrored_image_shows_is_stored_the_right_way_round():
    run, regions = Run(), some_regions()
    assert run.step(regions, MIRRORED)["consistency"] == 0  # no past
    seen = torch.sigmoid(regions).view(3, 4, 4)
    torch.testing.assert_close(run.maps, seen.flip(2), atol=1e-3, rtol=0)
    upright = regions.view(1, 3, 4, 4).flip(3).flatten(2)
    assert run.step(upright, None)["consistency"] < 1e-3  # the same picture, not mirrored: it agrees
    assert run.step(upright, MIRRORED)["consistency"] > 0.05


def test_a_crop_changes_only_what_it_shows():
    run, regions = Run(momentum=0.5), some_regions()
    run.step(regions, torch.tensor([[0.0, 0, 0.5, 1]]))
    assert run.maps[:, :, 2:].isnan().all()
    assert not run.maps[:, :, :2].isnan().any()
    before = run.maps.clone()
    run.step(some_regions(1), torch.tensor([[0.5, 0, 1, 1]]))  # the other half: nothing known, nothing shared
    assert torch.equal(run.maps[:, :, :2], before[:, :, :2])
    assert not run.maps.isnan().any()
    before = run.maps.clone()
    run.step(some_regions(2), None)
    now = torch.sigmoid(some_regions(2)).view(3, 4, 4)
    torch.testing.assert_close(run.maps, 0.5 * before + 0.5 * now, atol=2e-3, rtol=0)


def test_the_gradient_pulls_the_map_towards_its_past():
    run = Run(consistency=3.0)
    past, now = some_regions(), some_regions(1).requires_grad_()
    run.step(past, None)
    term = run.step(now, None)["consistency"]
    term.backward()
    by_hand = 3 * (torch.sigmoid(now) - torch.sigmoid(past)).abs().mean()
    torch.testing.assert_close(term, by_hand, atol=1e-3, rtol=0)
    assert torch.equal(now.grad.sign(), (now - past).sign())


def test_the_state_is_float16_saved_and_mapped(tmp_path):
    run = Run()
    run.step(some_regions(), None)
    torch.save(run.memory.state_dict(), tmp_path / "s.pt")
    state = run.loss.initial_state(run.labels, 0)
    assert state.dtype == torch.float16
    other = LabelMemory(state, learned=False, dtype=state.dtype, in_memory_at_most=0, folder=tmp_path)
    assert other.mapped
    other.load_state_dict(torch.load(tmp_path / "s.pt", weights_only=True))
    index = torch.tensor([0])
    assert torch.equal(other.rows(index), run.memory.rows(index))
    with pytest.raises(ValueError, match=r"a label state is \[N, K\], got"):
        LabelMemory(state.float(), learned=True)


def test_what_it_cannot_work_with_is_one_line():
    values = {"loss": "en_scl", "head": "codebook"}
    with pytest.raises(PluresError, match=r"needs region_logits, which head 'codebook' does not give; .*: linear"):
        make_loss(Experiment(**values), Run().labels, type("Head", (), {"gives": frozenset()})())
    with pytest.raises(PluresError, match="follows flips and crops only"):
        make_loss(Experiment(loss="en_scl", head="linear", augment="cutout_randaugment"), Run().labels, Linear(2, 3))
