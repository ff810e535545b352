"""Batches: every row once, an order that follows from seed and epoch, unreadable files named."""

import numpy as np
import pytest
import torch
from PIL import Image

from plures.data.dataset import Dataset
from plures.data.loading import FeatureBatches, ImageBatches, Order
from plures.data.photos import Transform, Unreadable
from plures.labels import Labels


def _dataset(n=10):
    images = np.random.default_rng(0).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    labels = Labels(np.random.default_rng(1).integers(-1, 2, (n, 3)).astype(np.int8))
    return Dataset(images, labels, ("a", "b", "c"))


def test_every_row_once_in_row_order_without_a_seed():
    rows = np.concatenate(Order(10, 4).batches(0))
    assert rows.tolist() == list(range(10))


def test_shuffled_order_follows_from_seed_and_epoch():
    order = Order(50, 8, shuffle_seed=3)
    assert [b.tolist() for b in order.batches(2)] == [b.tolist() for b in order.batches(2)]
    first, second = (np.concatenate(order.batches(e)) for e in (0, 1))
    assert first.tolist() != second.tolist()
    assert sorted(first) == sorted(second) == list(range(50))
    assert np.concatenate(Order(50, 8, shuffle_seed=4).batches(0)).tolist() != first.tolist()


def test_drop_last():
    assert [len(b) for b in Order(10, 4, drop_last=True).batches(0)] == [4, 4]
    assert [len(b) for b in Order(10, 4).batches(0)] == [4, 4, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_image_batches_give_image_label_and_row_together(workers):
    dataset = _dataset()
    batches = ImageBatches(dataset, Transform(8), Order(10, 4, shuffle_seed=0), workers)
    for epoch in (0, 1):
        seen = []
        for batch in batches.epoch(epoch):
            for image, labels, row in zip(batch.inputs, batch.labels, batch.index.tolist(), strict=True):
                assert np.array_equal(image.numpy().transpose(1, 2, 0), dataset.images[row])
                assert np.array_equal(labels.numpy(), dataset.labels.values[row])
                seen.append(row)
        assert seen == np.concatenate(batches.order.batches(epoch)).tolist()


def test_workers_change_nothing():
    order = Order(10, 3, shuffle_seed=1)
    results = []
    for workers in (0, 2):
        batches = ImageBatches(_dataset(), Transform(6, "crop"), order, workers, seed=5)
        results.append([b.inputs for epoch in range(2) for b in batches.epoch(epoch)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(tmp_path, workers):
    for name in ("a.png", "c.png"):
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"broken")
    labels = Labels(np.ones((3, 1), np.int8))
    dataset = Dataset([str(tmp_path / f"{n}.png") for n in "abc"], labels, ("x",))
    with pytest.raises(Unreadable, match=r"b\.png: not an image"):
        list(ImageBatches(dataset, Transform(4), Order(3, 2), workers).epoch(0))


def test_feature_batches_from_memory_and_from_disk_agree(tmp_path):
    features = np.random.default_rng(0).normal(size=(10, 2, 5)).astype(np.float16)
    np.save(tmp_path / "f.npy", features)
    labels = _dataset().labels.values
    order = Order(10, 4, shuffle_seed=9)
    here = list(FeatureBatches(features, labels, order).epoch(3))
    there = list(FeatureBatches(np.load(tmp_path / "f.npy", mmap_mode="r"), labels, order).epoch(3))
    for a, b in zip(here, there, strict=True):
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.inputs, torch.from_numpy(features)[a.index])
        assert torch.equal(a.labels, torch.from_numpy(labels)[b.index])


def test_workers_begin_the_next_epoch_while_this_one_is_judged():
    batches = ImageBatches(_dataset(), Transform(8), Order(10, 4, shuffle_seed=0), workers=1)
    first = [b.index.tolist() for b in batches.epoch(0)]
    assert batches._sampler.drawn > len(first)
    second = [b.index.tolist() for b in batches.epoch(1)]
    assert second == [b.tolist() for b in batches.order.batches(1)]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_left_in_the_middle_starts_anew_and_epochs_come_in_any_order(workers):
    dataset = _dataset()
    batches = ImageBatches(dataset, Transform(8), Order(10, 4, shuffle_seed=0), workers)
    for _ in batches.epoch(0):
        break
    for epoch in (0, 1, 5, 0):
        seen = [
            (row, image) for b in batches.epoch(epoch) for row, image in zip(b.index.tolist(), b.inputs, strict=True)
        ]
        assert [row for row, _ in seen] == np.concatenate(batches.order.batches(epoch)).tolist()
        assert all(np.array_equal(i.numpy().transpose(1, 2, 0), dataset.images[row]) for row, i in seen)


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_images_are_counted_and_others_stand_in_for_them(tmp_path, workers):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    files = [str(tmp_path / f"{row}.png") for row in range(6)]
    for row in (0, 1, 3, 5):
        Image.fromarray(pixels[row]).save(files[row])
    (tmp_path / "4.png").write_bytes(b"broken")
    dataset = Dataset(files, Labels(np.eye(6, 3, dtype=np.int8)), ("a", "b", "c"))
    unread = {}
    shuffled = ImageBatches(dataset, Transform(4), Order(6, 3, shuffle_seed=1), workers, unread=unread)
    for batch, rows in zip(shuffled.epoch(0), shuffled.order.batches(0), strict=True):
        good = [row for row in rows.tolist() if row not in (2, 4)]
        for row, asked, image, labels in zip(batch.index.tolist(), rows, batch.inputs, batch.labels, strict=True):
            assert row == asked if asked in good else row in good
            assert np.array_equal(image.numpy().transpose(1, 2, 0), pixels[row])
            assert np.array_equal(labels.numpy(), dataset.labels.values[row])
    assert unread == {files[2]: "no such file", files[4]: "not an image that can be read"}
    in_order = ImageBatches(dataset, Transform(4), Order(6, 3), workers, unread=unread)
    images = torch.cat([batch.inputs for batch in in_order.epoch(0)]).numpy().transpose(0, 2, 3, 1)
    assert torch.cat([batch.index for batch in in_order.epoch(0)]).tolist() == list(range(6))
    assert (images[[2, 4]] == 127).all()
    assert np.array_equal(images[[0, 1, 3, 5]], pixels[[0, 1, 3, 5]])
    with pytest.raises(Unreadable, match=r"4\.png"):
        list(ImageBatches(dataset.take([4]), Transform(4), Order(1, 1, shuffle_seed=0), unread={}).epoch(0))
